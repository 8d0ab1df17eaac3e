"""What is shown of new ground (`new_ground.py`): records, table, contact sheet, page."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics import bootstrap, frechet_distance
from ..pictures import Image8, png_bytes, sheet
from ..results import Record, progress_note, record, write_atomically
from .new_ground import PARTS, GroundOutcome

_BOOTSTRAP = 2000
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1280px;padding:0 1em}
table{border-collapse:collapse}td,th{padding:.25em .7em;border-bottom:1px solid #d1d9e0;text-align:left}
img{max-width:100%;image-rendering:pixelated}
"""


def new_ground_records(outcome: GroundOutcome, *, device: str) -> list[Record]:
    """The three figures of the main row, then of the others with the name of the row behind."""
    result = []
    truth, bound = outcome.walks["truth"], outcome.walks["bound"]
    worlds, frames = len(truth["world"]), sum(part.stop - part.start for part in PARTS.values())
    half = worlds // 2
    references = {
        "floor": _distance(truth["moments"][:half], truth["moments"][half:])[0] if half else None,
        "bound": _distance(bound["moments"], truth["moments"])[0],
    }
    for name in outcome.names:
        row = "" if name == outcome.main else f".{name}"
        made, counts = outcome.walks[name], {"frames": worlds * frames, "worlds": worlds}
        value, low, high = _ratio(made["sharp"].sum(1), bound["sharp"].sum(1))
        parts = dict(zip(PARTS, made["sharp"].sum(0) / bound["sharp"].sum(0).clip(1e-9), strict=True))
        seen = dict(zip(PARTS, 100.0 * truth["seen"].mean(0), strict=True))
        facts: dict[str, Any] = {"low": low, "high": high, **counts, "parts": parts, "seen_percent": seen}
        title, unit = f"new_ground_sharpness{row}", "x decoded truth"
        result.append(record(title, value, unit, device=device, details=facts))
        mean, by_row = _distance(made["moments"], truth["moments"])
        facts = {**counts, **references, "rows": by_row}
        result.append(record(f"new_ground_distance{row}", mean, better="lower", device=device, details=facts))
        again = outcome.returns[name]["psnr"]
        spread = bootstrap(again, np.repeat(outcome.returns[name]["world"], again.shape[1]))
        facts = {"low": spread.low, "high": spread.high, "frames": again.size, "worlds": spread.groups}
        result.append(record(f"new_ground_return_db{row}", spread.mean, "dB", device=device, details=facts))
    return result


def _ratio(made: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float, float]:
    """Sum over worlds [n] of one over that of the other, with the 95 % bootstrap interval over worlds."""
    draws = np.random.default_rng(0).integers(0, len(made), (_BOOTSTRAP, len(made)))
    low, high = np.percentile(made[draws].sum(1) / truth[draws].sum(1).clip(1e-9), [2.5, 97.5])
    return float(made.sum() / truth.sum().clip(1e-9)), float(low), float(high)


def _distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, list[float]]:
    """Frechet distance of `moments` [n, h, C + 1, C + 1] summed over worlds: the mean over rows, and each row's."""
    found = [frechet_distance(one, other) for one, other in zip(a.sum(0), b.sum(0), strict=True)]
    return float(np.mean(found)), found


def new_ground_table(found: Sequence[Record]) -> str:
    """The records for a terminal."""
    heads = "".join(f"{part:>7}" for part in PARTS)
    lines = [
        f"{'new ground':18}{'sharp':>7}{'95 %':>14}{heads}{'distance':>10}{'floor':>7}{'bound':>7}"
        f"{'return dB':>11}{'95 %':>14}{'worlds':>8}"
    ]
    for sharp, distance, again in zip(found[::3], found[1::3], found[2::3], strict=True):
        facts, floor, back = sharp["details"], distance["details"]["floor"], again["details"]
        name = sharp["name"].partition(".")[2] or "under test"
        parts = "".join(f"{value:7.2f}" for value in facts["parts"].values())
        lines.append(
            f"{name:18}{sharp['value']:7.2f}{_span(facts, 2):>14}{parts}{distance['value']:10.2f}"
            f"{'-' if floor is None else f'{floor:.2f}':>7}{distance['details']['bound']:7.2f}"
            f"{again['value']:11.2f}{_span(back, 1):>14}{facts['worlds']:8d}"
        )
    return "\n".join(lines)


def _span(details: Mapping[str, Any], digits: int) -> str:
    return f"{details['low']:.{digits}f} to {details['high']:.{digits}f}"


def new_ground_sheet(outcome: GroundOutcome) -> Image8:
    """Draw the sheet, two lines a world.

    Args:
        outcome: With at least one strip.

    Returns:
        uint8 [H, W, 3].
    """
    rows = []
    for strip in outcome.strips:
        rows += [(f"{strip.world} truth", strip.truth), (f"{strip.world} dream", strip.dream)]
    return sheet(rows, [f"+{frame}" for frame in outcome.strips[0].frames], f"new ground, {outcome.main}")


def write_page(path: str | os.PathLike[str], outcome: GroundOutcome, records: Sequence[Record]) -> Path:
    """Write the self-contained page atomically: the figures and the sheet."""
    first = records[0]
    origin = html.escape(f"{first['command']}; {first['hardware']}; {first['date']}; commit {first['commit']}")
    lines = []
    for item in records:
        details = item["details"]
        spread = f"{details['low']:.2f} to {details['high']:.2f}" if "low" in details else ""
        value = f"{item['value']} {html.escape(item['unit'])}"
        lines.append(f"<tr><td>{html.escape(item['name'])}<td>{value}<td>{spread}<td>{details['worlds']}")
    picture = base64.b64encode(png_bytes(new_ground_sheet(outcome))).decode()
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>New ground</title>",
        f"<style>{_STYLE}</style><h1>New ground</h1><p>{origin}</p><p>{progress_note(first)}</p>",
        "<table><tr><th>figure<th>value<th>95 %<th>worlds</tr>",
        *lines,
        f'</table><p><img src="data:image/png;base64,{picture}" alt="truth above dream, frames of walk_on"></p></html>',
    ]
    return write_atomically(path, "\n".join(parts).encode())
