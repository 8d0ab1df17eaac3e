"""The log of a run: one JSON object a line, and a picture of the curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_PANELS = ("loss", "lr", "frames_per_second", "grad_norm")


class RunLog:
    """Appends records to `log.jsonl`.

    Args:
        path: The file; a resumed run continues it.
        step: Records of later steps (lost by a crash after the last save) are dropped.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        self.path = path
        kept = [r for r in read_log(path) if r.get("step", 0) <= step] if step else []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(r) + "\n" for r in kept))

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a log; a line cut off by a crash is skipped."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def draw_curves(log: Path, picture: Path, title: str) -> bool:
    """Draw loss, rate, speed and gradient norm over steps.

    Returns:
        Whether there was something to draw and matplotlib to draw it.
    """
    records = [r for r in read_log(log) if "loss" in r]
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if not records:
        return False
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, key in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        axis.plot([r["step"] for r in records], [r[key] for r in records], linewidth=1.2)
        axis.set(title=key.replace("_", " "), xlabel="step")
        axis.grid(alpha=0.3)
        if key == "loss" and min(r[key] for r in records) > 0:
            axis.set_yscale("log")
    figure.suptitle(title)
    figure.savefig(picture, dpi=100)
    return True
