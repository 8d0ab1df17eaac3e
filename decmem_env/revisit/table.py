"""From per-frame scores to the table: estimates with intervals, gates, bars, records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics import Estimate, bootstrap
from ..results import Record, record
from .evaluate import Outcome
from .matches import CLASS_NAMES, EXACT, GATE_SHARE, NEAR, in_gap
from .scores import Scores

MINIMUM_FRAMES, MINIMUM_WORLDS = 500, 64
HEADLINE_KINDS = ("turn_away", "aba")  # of the exact bar

# Bars of the playable release (issue "A world you can stand in"), gap 60, dB.
BARS: dict[str, float] = {
    "exact": 25.5,
    "exact_below_bound": 3.5,
    "exact_above_no_memory": 8.0,
    "near": 20.5,
    "near_above_copy": 1.5,
}


@dataclass(frozen=True)
class Cell:
    """One figure: a contender, a class, a span of gaps, a selection of scripts.

    Attributes:
        row: Contender or reference.
        label: `exact`, `near`, `near_masked` or `new`.
        gap: `gap60` (G to 1.25 G), `shorter`, `longer` or `any`.
        scripts: `all`, a kind, `turn_away+aba`, `on_grid` or `off_grid`.
        psnr: Against the raw truth.
        psnr_decoded: Against the autoencoder's decoding of the truth (NaN under the mask).
        ssim: Mean.
        frames: Scored frames, each noise seed counted.
        worlds: Distinct worlds.
        moved: Share of these frames that pass the movement gate.
        in_context: Share of these frames whose match is a context frame.
    """

    row: str
    label: str
    gap: str
    scripts: str
    psnr: Estimate
    psnr_decoded: Estimate
    ssim: float
    frames: int
    worlds: int
    moved: float
    in_context: float

    @property
    def valid(self) -> bool:
        """Whether the movement gate lets the row count."""
        return self.row in ("bound", "copy") or self.label == "new" or self.moved >= GATE_SHARE

    @property
    def complete(self) -> bool:
        """Whether there are enough frames and worlds for a verdict."""
        return self.frames >= MINIMUM_FRAMES and self.worlds >= MINIMUM_WORLDS

    @property
    def name(self) -> str:
        """Its name in the records."""
        return f"revisit.{self.label}.{self.gap}.{self.scripts}.{self.row}.psnr_db"


def cells(outcome: Outcome) -> list[Cell]:
    """Every figure that has frames, headline selections first."""
    result = []
    for label in ("exact", "near", "near_masked", "new"):
        for gap in _gaps(outcome.gap) if label != "new" else ("any",):
            for scripts in _selections(outcome):
                for row, scores in outcome.scores.items():
                    cell = _cell(outcome, row, scores, label, gap, scripts)
                    if cell is not None:
                        result.append(cell)
    return result


def find(table: list[Cell], row: str, label: str, gap: str, scripts: str) -> Cell | None:
    """The figure with these keys, if it has frames."""
    for cell in table:
        if (cell.row, cell.label, cell.gap, cell.scripts) == (row, label, gap, scripts):
            return cell
    return None


def records(outcome: Outcome, table: list[Cell], *, device: str, command: str | None = None) -> list[Record]:
    """Headline records first (with bars at gap 60), then one a cell, sharpness and the curves."""
    g = f"gap{outcome.gap}"
    bars = BARS if outcome.gap == 60 else {}
    found: list[Record] = []

    def add(
        name: str, value: float, unit: str, cell: Cell | None, bar: str = "", lower: bool = False, **more: Any
    ) -> None:
        limit = bars.get(bar)
        better = "lower" if lower else "higher"
        item = record(name, value, unit, bar=limit, better=better, device=device, command=command)  # type: ignore[arg-type]
        item["details"] = more
        if cell is not None:
            item["details"] = {**_details(cell), **more}
            if limit is not None and not cell.complete:
                item["met"] = None  # too few frames for a verdict
            elif limit is not None and not cell.valid:
                item["met"] = False
        found.append(item)

    exact_scripts = "turn_away+aba" if find(table, outcome.main, "exact", g, "turn_away+aba") else "all"
    for label, scripts in (("exact", exact_scripts), ("near", "all")):
        cell = find(table, outcome.main, label, g, scripts)
        if cell is None:
            continue
        title = f"{label}_{g}"
        add(f"{title}_psnr_db", cell.psnr.mean, "dB", cell, label)
        if not cell.valid:
            reason = f"movement gate: {cell.moved:.0%} of the revisits pass, {GATE_SHARE:.0%} needed"
            found[-1]["details"]["refused"] = reason
        bound = find(table, "bound", label, g, scripts)
        copy = find(table, "copy", label, g, scripts)
        floors = [c for c in (find(table, name, label, g, scripts) for name in outcome.floors) if c is not None]
        if bound is not None:
            add(f"{title}_below_bound_db", bound.psnr.mean - cell.psnr.mean, "dB", cell, f"{label}_below_bound", True)
        if floors:
            best = max(floors, key=lambda c: c.psnr.mean)
            difference = cell.psnr.mean - best.psnr.mean
            add(f"{title}_above_no_memory_db", difference, "dB", cell, f"{label}_above_no_memory", best_floor=best.row)
        if copy is not None:
            add(f"{title}_above_copy_db", cell.psnr.mean - copy.psnr.mean, "dB", cell, f"{label}_above_copy")
    for cell in table:
        add(cell.name, cell.psnr.mean, "dB", cell)
    for row, scores in outcome.scores.items():
        if row in ("copy", "bound"):
            continue
        ratio = sharpness_ratio(scores)
        if ratio:
            add(f"sharpness.{row}.ratio", ratio[0]["ratio"], "x decoded truth", None, windows=ratio)
        add(f"curve.{row}.frame", float("nan"), "dB", None, points=curve_by_frame(scores))
        add(f"curve.{row}.gap", float("nan"), "dB", None, points=curve_by_gap(scores))
    return found


def sharpness_ratio(scores: Scores, window: int = 50) -> list[dict[str, float]]:
    """Gradient of exact and near frames over that of the decoded truth, per window of frames, median over worlds."""
    chosen = scores.select(scores.label > 0)
    result = []
    for number in np.unique(chosen.frame // window):
        part = chosen.select(chosen.frame // window == number)
        ratios = [
            float(part.sharp[part.world == world].sum() / max(part.sharp_truth[part.world == world].sum(), 1e-9))
            for world in np.unique(part.world)
        ]
        first = int(number) * window
        result.append(
            {"first": first, "last": first + window - 1, "ratio": float(np.median(ratios)), "worlds": len(ratios)}
        )
    return result


def curve_by_frame(scores: Scores, width: int = 5) -> list[dict[str, float]]:
    """Mean PSNR of all generated frames against frame number, in bins of `width` frames."""
    return _curve(scores.frame // width * width, scores.psnr)


def curve_by_gap(scores: Scores, width: int = 10) -> list[dict[str, float]]:
    """Mean PSNR of revisits (exact and near, gone far enough) against gap, in bins of `width` frames."""
    chosen = scores.select((scores.label > 0) & scores.left)
    return _curve(chosen.gap // width * width, chosen.psnr)


def _curve(x: NDArray, y: NDArray) -> list[dict[str, float]]:
    return [{"x": int(v), "psnr": float(y[x == v].mean()), "frames": int((x == v).sum())} for v in np.unique(x)]


def _gaps(gap: int) -> tuple[str, ...]:
    return (f"gap{gap}", "shorter", "longer", "any")


def _selections(outcome: Outcome) -> tuple[str, ...]:
    both = ("turn_away+aba",) if set(HEADLINE_KINDS) <= set(outcome.kinds) else ()
    kinds = outcome.kinds if len(outcome.kinds) > 1 else ()
    return (*both, "all", *kinds, "on_grid", "off_grid")


def _cell(outcome: Outcome, row: str, scores: Scores, label: str, gap: str, scripts: str) -> Cell | None:
    masked = label == "near_masked"
    wanted = {"exact": EXACT, "near": NEAR, "near_masked": NEAR, "new": 0}[label]
    mask = scores.label == wanted
    if label != "new":
        mask &= scores.left  # a path that never went far enough away proves nothing
        spans = {"shorter": scores.gap < outcome.gap, "longer": scores.gap > 1.25 * outcome.gap}
        spans[f"gap{outcome.gap}"] = in_gap(scores.gap, outcome.gap)
        mask &= spans.get(gap, np.ones(len(scores), bool))
    if scripts == "turn_away+aba":
        mask &= np.isin(scores.kind, [outcome.kinds.index(kind) for kind in HEADLINE_KINDS])
    elif scripts in ("on_grid", "off_grid"):
        mask &= scores.grid == (scripts == "on_grid")
    elif scripts != "all":
        mask &= scores.kind == outcome.kinds.index(scripts)
    if masked:
        mask &= np.isfinite(scores.masked)
    part = scores.select(mask)
    if not len(part):
        return None
    nothing = Estimate(float("nan"), float("nan"), float("nan"), 0, 0)
    return Cell(
        row,
        label,
        gap,
        scripts,
        bootstrap(part.masked if masked else part.psnr, part.world),
        nothing if masked else bootstrap(part.psnr_decoded, part.world),
        float("nan") if masked else float(part.ssim.mean()),
        len(part),
        len(np.unique(part.world)),
        float(part.moved.mean()),
        float(part.in_context.mean()),
    )


def _details(cell: Cell) -> dict[str, Any]:
    return {
        "low": cell.psnr.low,
        "high": cell.psnr.high,
        "frames": cell.frames,
        "worlds": cell.worlds,
        "complete": cell.complete,
        "valid": cell.valid,
        "moved": cell.moved,
        "in_context": cell.in_context,
        "psnr_decoded_db": cell.psnr_decoded.mean,
        "ssim": cell.ssim,
    }


def text_table(outcome: Outcome, table: list[Cell]) -> str:
    """The main figures for a terminal."""
    names = {"exact": "exact", "near": "near", "near_masked": "near, visible", "new": "new"}
    lines = [
        f"{'':26}{'row':18}{'PSNR':>7}{'95 %':>15}{'vs decoded':>12}{'SSIM':>7}{'frames':>8}{'worlds':>8}{'moved':>7}"
    ]
    for label in names:
        gap = "any" if label == "new" else f"gap{outcome.gap}"
        selections = ("turn_away+aba", "all") if label == "exact" else ("all",)
        for scripts in selections:
            first = True
            for row in outcome.scores:
                cell = find(table, row, label, gap, scripts)
                if cell is None:
                    continue
                title = f"{names[label]} {gap} {scripts}" if first else ""
                first = False
                spread = f"{cell.psnr.low:.1f} to {cell.psnr.high:.1f}"
                decoded = "" if np.isnan(cell.psnr_decoded.mean) else f"{cell.psnr_decoded.mean:.2f}"
                ssim = "" if np.isnan(cell.ssim) else f"{cell.ssim:.3f}"
                moved = "" if cell.row in ("bound", "copy") or label == "new" else f"{cell.moved:.0%}"
                note = "" if cell.valid else "  not valid: fails the movement gate"
                lines.append(
                    f"{title:26}{row:18}{cell.psnr.mean:7.2f}{spread:>15}{decoded:>12}{ssim:>7}"
                    f"{cell.frames:8d}{cell.worlds:8d}{moved:>7}{note}"
                )
    return "\n".join(lines)


__all__ = [
    "BARS",
    "CLASS_NAMES",
    "Cell",
    "cells",
    "curve_by_frame",
    "curve_by_gap",
    "find",
    "records",
    "sharpness_ratio",
    "text_table",
]
