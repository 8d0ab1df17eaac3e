"""Long run: 1,000 generated frames along a loop that was shown once; the first and the last 200 compared."""

from __future__ import annotations

from ..metrics import bootstrap
from ..results import Record, record
from .evaluate import Outcome
from .table import sharpness_ratio

EDGE = 200  # frames compared at either end
LENGTH = 1000


def long_run_records(outcome: Outcome, *, device: str, command: str | None = None) -> list[Record]:
    """Mean PSNR over the exact and near frames of the first and last 200 generated ones, and what was lost."""
    found = []
    for row, scores in outcome.scores.items():
        length = int(scores.frame.max()) + 1
        edge = min(EDGE, length // 2)
        seen = scores.select(scores.label > 0)
        ends = {}
        for name, part in (
            ("first", seen.select(seen.frame < edge)),
            ("last", seen.select(seen.frame >= length - edge)),
        ):
            estimate = bootstrap(part.psnr, part.world)
            ends[name] = estimate.mean
            details = {
                "low": estimate.low,
                "high": estimate.high,
                "frames": len(part),
                "worlds": estimate.groups,
                "generated": length,
                "ssim": float(part.ssim.mean()) if len(part) else None,
            }
            title = f"long_run.{name}_{edge}.{row}.psnr_db"
            found.append(record(title, estimate.mean, "dB", device=device, command=command, details=details))
        lost = ends["first"] - ends["last"]
        found.append(record(f"long_run.lost.{row}.psnr_db", lost, "dB", device=device, command=command))
        if row not in ("bound", "copy"):
            windows = sharpness_ratio(scores)
            ratio = windows[-1]["ratio"] if windows else float("nan")
            title = f"long_run.sharpness_last_window.{row}.ratio"
            found.append(
                record(title, ratio, "x decoded truth", device=device, command=command, details={"windows": windows})
            )
    return found
