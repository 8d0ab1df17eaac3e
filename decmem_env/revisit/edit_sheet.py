"""Contact sheet of edits: returns that are right and returns that are wrong, evenly drawn from all."""

from __future__ import annotations

import numpy as np

from ..pictures import Image8, sheet
from .edit_scripts import KINDS
from .edits import EditOutcome, EditStrip


def edit_sheet(outcome: EditOutcome, each: int = 5) -> Image8:
    """Draw the sheet, one line a return.

    Args:
        outcome: With at least one strip.
        each: Lines for each of: placed and right, placed and wrong, broken and right, broken and wrong.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: Nothing to draw.
    """
    chosen: list[tuple[str, EditStrip]] = []
    counts = []
    for kind in KINDS:
        for right, word in ((True, "right"), (False, "wrong")):
            strips = [s for s in outcome.strips if s.item.script.kind == kind and s.right == right]
            counts.append(f"{kind} {word}: {len(strips)}")
            places = np.linspace(0, len(strips) - 1, min(each, len(strips))).round().astype(int)
            chosen += [(f"{kind}, {word}", strips[i]) for i in places]
    if not chosen:
        raise ValueError("no return of an edit to draw: choose more --worlds")
    rows = [(label, np.stack([frame.numpy() for frame in strip.frames.values()])) for label, strip in chosen]
    return sheet(rows, list(chosen[0][1].frames), f"{outcome.main}, first noise seed: {', '.join(counts)}")
