"""The page of a revisit test: one HTML file with pictures, curves and the table inside."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .pictures import difference, png_bytes, sheet
from .results import Record, progress_note, write_atomically
from .revisit.evaluate import Outcome, Strip
from .revisit.matches import CLASS_NAMES
from .revisit.table import Cell, curve_by_frame, curve_by_gap, find

ROW_TITLES = {
    "memory": "with memory",
    "dense": "dense attention over everything",
    "no_retrieval": "no memory: retrieval off",
    "window_retrieval": "no memory: retrieval limited to the window",
    "window_model": "no memory: window-only model",
    "bound": "autoencoder bound",
    "copy": "nearest true frame copied",
}
_COLOURS = ("#1f6feb", "#d1242f", "#bf8700", "#8250df", "#1a7f37", "#6e7781", "#0a7ea4")

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1280px;padding:0 1em;color:#1f2328;background:#fff}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .7em;border-bottom:1px solid #d1d9e0;text-align:right}
td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}img{max-width:100%;image-rendering:pixelated}
.no{color:#d1242f;font-weight:600}.yes{color:#1a7f37;font-weight:600}.note{color:#59636e}figure{margin:1.5em 0}
svg text{font:12px system-ui,sans-serif;fill:#59636e}code{background:#f6f8fa;padding:.1em .3em}
"""


def write_html(path: str | os.PathLike[str], outcome: Outcome, table: list[Cell], records: Sequence[Record]) -> Path:
    """Write the self-contained page atomically."""
    first = records[0] if records else {}
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Revisit test</title>",
        f"<style>{_STYLE}</style><h1>Revisit test, gap {outcome.gap}</h1>",
        "<p>The model watches true frames, walks away, and comes back to places it has seen. PSNR in dB, mean over"
        " frames, against the raw truth; the interval is a 95 % bootstrap over worlds. <b>Exact</b>: the same pose was"
        " shown before (a copy is perfect there). <b>Near</b>: within 2 blocks and 17 degrees (needs understanding).",
        f"<p class=note><code>{html.escape(str(first.get('command', '')))}</code><br>",
        f"{html.escape(str(first.get('hardware', '')))}; {first.get('date', '')};"
        f" commit {html.escape(str(first.get('commit', '')))}; {outcome.seeds} noise seeds</p>",
        *(f"<p class=no>{note}</p>" for note in [progress_note(first)] if note),
        _verdicts(records),
        _table(outcome, table),
        "<h2>Curves</h2>",
        "<figure>"
        + svg_curves(_series(outcome, curve_by_gap), "frames since the place was last seen", "PSNR, revisits")
        + "</figure>",
        "<figure>" + svg_curves(_series(outcome, curve_by_frame), "generated frame", "PSNR, all frames") + "</figure>",
        _sharpness(records),
        "<h2>Pictures</h2>",
        *(_figure(outcome, strip) for strip in outcome.strips),
        "</html>",
    ]
    return write_atomically(path, "\n".join(parts).encode())


def strip_sheet(outcome: Outcome, strip: Strip) -> np.ndarray:
    """Truth, dream, no-memory, difference of one script as a contact sheet, uint8 [H, W, 3]."""
    truth = strip.truth.numpy()
    dream = strip.shown[outcome.main].numpy()
    rows = [("truth", truth), (outcome.main, dream)]
    rows += [(name, strip.shown[name].numpy()) for name in outcome.floors if name in strip.shown][:1]
    rows += [("difference x2", difference(truth, dream))]
    captions = []
    for frame, (label, gap) in zip(strip.frames, strip.labels, strict=True):
        note = f"{CLASS_NAMES[label]}, gap {gap}" if gap else "new"
        captions.append(f"+{frame - strip.script.context} {note}")
    return sheet(rows, captions)


def svg_curves(series: dict[str, list[dict[str, Any]]], x_title: str, y_title: str) -> str:
    """Line chart as inline SVG; `series` maps a name to points {"x", "psnr"}."""
    points = [(p["x"], p["psnr"]) for line in series.values() for p in line]
    if not points:
        return "<p class=note>nothing to draw</p>"
    width, height, left, bottom, top = 760, 300, 50, 40, 10
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    y0, y1 = np.floor(min(y for _, y in points)) - 1, np.ceil(max(y for _, y in points)) + 1
    x1, plot = max(x1, x0 + 1), width - left - 10

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - x0) / (x1 - x0) * plot, top + (y1 - y) / (y1 - y0) * (height - top - bottom)

    parts = [
        f'<svg viewBox="0 0 {width + 240} {height}" width="{width + 240}" role="img"'
        f' aria-label="{html.escape(y_title)}">'
    ]
    for y in np.arange(y0, y1 + 1, max(1, round((y1 - y0) / 6))):
        _, py = at(x0, float(y))
        parts.append(f'<line x1="{left}" x2="{width - 10}" y1="{py:.1f}" y2="{py:.1f}" stroke="#d1d9e0"/>')
        parts.append(f'<text x="{left - 8}" y="{py + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in np.linspace(x0, x1, 7):
        px, _ = at(float(x), y0)
        parts.append(f'<text x="{px:.1f}" y="{height - bottom + 16}" text-anchor="middle">{x:.0f}</text>')
    parts.append(f'<text x="{left + plot / 2:.0f}" y="{height - 6}" text-anchor="middle">{html.escape(x_title)}</text>')
    for index, (name, line) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        drawn = [at(p["x"], p["psnr"]) for p in line]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in drawn)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5" fill="{colour}"/>' for px, py in drawn]
        y = top + 14 + 18 * index
        parts.append(f'<rect x="{width}" y="{y - 9}" width="12" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{width + 18}" y="{y - 3}">{html.escape(ROW_TITLES.get(name, name))}</text>')
    parts.append(f'<text x="{left + 4}" y="{top + 10}">{html.escape(y_title)}, dB</text></svg>')
    return "".join(parts)


def _series(outcome: Outcome, curve: Any) -> dict[str, list[dict[str, Any]]]:
    lines = {name: curve(scores) for name, scores in outcome.scores.items()}
    # Exact copies lie at 70 to 100 dB and would flatten everything else.
    return {name: [p for p in line if p["psnr"] < 45] for name, line in lines.items()}


def _verdicts(records: Sequence[Record]) -> str:
    lines = []
    for item in records:
        if item["bar"] is None and not item["name"].startswith(("exact_gap", "near_gap")):
            continue
        met = {True: "<span class=yes>met</span>", False: "<span class=no>not met</span>", None: ""}[item["met"]]
        details = item.get("details", {})
        note = details.get("refused") or (
            "" if details.get("complete", True) else "too few frames or worlds for a verdict"
        )
        value = "-" if item["value"] is None else f"{item['value']:.2f} {item['unit']}"
        bar = "" if item["bar"] is None else f"{item['bar']:g}"
        lines.append(f"<tr><td>{item['name']}<td>{html.escape(note)}<td>{value}<td>{bar}<td>{met}")
    return "<table><tr><th>figure<th>note<th>value<th>bar<th></tr>" + "".join(lines) + "</table>" if lines else ""


def _table(outcome: Outcome, table: list[Cell]) -> str:
    lines = [
        "<h2>Table</h2><table><tr><th>frames<th>row<th>PSNR<th>95 %<th>against decoded truth<th>SSIM<th>frames"
        "<th>worlds<th>moved</tr>"
    ]
    keys = dict.fromkeys((cell.label, cell.gap, cell.scripts) for cell in table)
    for label, gap, scripts in keys:
        for row in outcome.scores:
            cell = find(table, row, label, gap, scripts)
            if cell is None:
                continue
            title = f"{label.replace('_', ', ')} &middot; {gap} &middot; {scripts.replace('_', ' ')}"
            decoded = "" if np.isnan(cell.psnr_decoded.mean) else f"{cell.psnr_decoded.mean:.2f}"
            ssim = "" if np.isnan(cell.ssim) else f"{cell.ssim:.3f}"
            model_row = row not in ("bound", "copy") and label != "new"
            moved = f"{cell.moved:.0%}" if model_row else ""
            if not cell.valid:
                moved = f"<span class=no>{moved}, not valid</span>"
            lines.append(
                f"<tr><td>{title}<td>{ROW_TITLES.get(row, row)}<td>{cell.psnr.mean:.2f}<td>{cell.psnr.low:.2f} to"
                f" {cell.psnr.high:.2f}<td>{decoded}<td>{ssim}<td>{cell.frames}<td>{cell.worlds}<td>{moved}"
            )
    return "".join(lines) + "</table>"


def _sharpness(records: Sequence[Record]) -> str:
    lines = []
    for item in records:
        if not item["name"].startswith("sharpness."):
            continue
        windows = ", ".join(f"{w['first']}-{w['last']}: {w['ratio']:.2f}" for w in item["details"]["windows"])
        lines.append(f"<tr><td>{item['name'].split('.')[1]}<td>{windows}")
    head = (
        "<h2>Sharpness</h2><p>Gradient over that of the decoded truth, by window of generated frames; 1 is right.</p>"
    )
    return head + "<table><tr><th>row<th>window: ratio</tr>" + "".join(lines) + "</table>" if lines else ""


def _figure(outcome: Outcome, strip: Strip) -> str:
    data = base64.b64encode(png_bytes(strip_sheet(outcome, strip))).decode()
    grid = "on the grid of poses" if strip.script.grid else "off the grid"
    caption = f"{strip.script.kind}, world {strip.script.world}, {grid}; context {strip.script.context} frames"
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )
