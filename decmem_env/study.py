"""The memory question: what trained variants remember along 1,000 frames, and where their attention goes.

DecMem's Figure 7 (components along a long rollout) and Figure 10 (dispersion of attention), in our world: the long run
of the measures for every variant that `decmem_env.trainers.study` trained, and for dense attention with decay.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .results import Record, record, write_atomically
from .revisit.evaluate import Contender, Outcome
from .revisit.scores import Scores
from .revisit.scripts import Script
from .rollout import whole_context

# Of each variant, what its sessions may see.
MODES = {"dense": "dense", "window": "off", "gated": "memory", "union": "memory", "no_alm": "memory"}
WINDOW = 100  # frames of a point of the curves
WATCHED = 50  # frames between two looks at the attention


@dataclass(frozen=True)
class Attention:
    """Where the attention of a variant goes along one rollout, and what a step costs.

    Attributes:
        frame: Generated frames that were watched.
        shares: By name (`Dispersion.mean`), one value a watched frame.
        step_ms: Milliseconds of the steps between (no decoding), by generated frame.
    """

    frame: list[int]
    shares: dict[str, list[float]]
    step_ms: list[float]


def contenders(runs: Path, load: Callable[[str], Any]) -> list[Contender]:
    """The trained variants of a folder, and dense attention with decay.

    Args:
        runs: Folder of `decmem_env.trainers.study`.
        load: Loads a checkpoint folder.

    Raises:
        ValueError: None is there, or one is unfinished.
    """
    found = []
    for name, memory in MODES.items():
        folder = runs / name
        if not folder.is_dir():
            continue
        if not (folder / "export").is_dir():
            raise ValueError(f"{folder} has no export/: train it to its end with python -m decmem_env.trainers.study")
        model = load(str(folder / "export"))
        found.append(Contender(name, model, memory))
        if name == "dense":
            found.append(Contender("decay", model, "decay"))
    if not found:
        known = ", ".join(MODES)
        raise ValueError(f"{runs} holds none of {known}: train them with python -m decmem_env.trainers.study")
    return found


def watch(contender: Contender, script: Script, frames: np.ndarray, tell: Callable[[int], None]) -> Attention:
    """Roll one script out in one session, looking at the attention now and then.

    Args:
        contender: Whose.
        script: Context, actions, poses.
        frames: uint8 [context, H, W, 3], the true ones.
        tell: Called with the number of frames made since the last call.
    """
    from .model.dispersion import Dispersion

    model = contender.model
    config, count = model.config, model.config.chunk
    session = model.start(seed=script.noise_seed, memory=contender.memory)
    context = script.context
    session.observe(*whole_context(model, frames, script.actions[:context], script.poses[:context]))
    watched: list[int] = []
    shares: dict[str, list[float]] = {}
    times: list[float] = []
    for t in range(context, len(script.poses) - count + 1, count):
        part = slice(t, t + count)
        looking = (t - context) // count % max(1, WATCHED // count) == 0
        watcher = Dispersion(config.block_tokens, count * config.tokens) if looking else None
        model.streamer.watcher = watcher
        _settle(model)
        begun = time.perf_counter()
        try:
            model.step([session], script.actions[None, part], script.poses[None, part], decode=False)
        finally:
            model.streamer.watcher = None
        _settle(model)
        if watcher is None:
            times.append(1000.0 * (time.perf_counter() - begun))
        else:
            watched.append(t - context)
            for name, value in watcher.mean().items():
                shares.setdefault(name, []).append(value)
        tell(count)
    session.close()
    return Attention(watched, shares, times)


def _settle(model: Any) -> None:
    """Wait for the device, so that a clock shows a step's time."""
    if model.device.type == "cuda":
        import torch

        torch.cuda.synchronize(model.device)


def curve(scores: Scores, window: int = WINDOW) -> list[dict[str, float]]:
    """PSNR, SSIM and sharpness (median over worlds) of exact and near frames, by stretches of the rollout."""
    seen = scores.select(scores.label > 0)
    points = []
    for first in range(0, int(scores.frame.max()) + 1, window):
        part = seen.select((seen.frame >= first) & (seen.frame < first + window))
        if not len(part):
            continue
        ratios = [
            float(part.sharp[part.world == world].mean() / part.sharp_truth[part.world == world].mean())
            for world in np.unique(part.world)
        ]
        points.append(
            {
                "x": float(first + window / 2),
                "psnr": float(part.psnr.mean()),
                "ssim": float(part.ssim.mean()),
                "sharpness": float(np.median(ratios)),
                "frames": float(len(part)),
            }
        )
    return points


def study_records(outcome: Outcome, attention: Mapping[str, Attention], *, device: str) -> list[Record]:
    """One record a curve of each row, beside those of the long run."""
    found = []
    for row, scores in outcome.scores.items():
        points = curve(scores)
        if points:
            name = f"study.{row}.psnr_db"
            mean = float(scores.select(scores.label > 0).psnr.mean())
            found.append(record(name, mean, "dB", device=device, details={"curve": points}))
    for row, seen in attention.items():
        tenth = max(1, len(seen.step_ms) // 10)
        early, late = statistics.median(seen.step_ms[:tenth]), statistics.median(seen.step_ms[-tenth:])
        details: dict[str, Any] = {"first_tenth_ms": early, "last_tenth_ms": late}
        median = statistics.median(seen.step_ms)
        found.append(record(f"study.{row}.step_ms", median, "ms", device=device, details=details))
        for name, values in seen.shares.items():
            details = {"frame": seen.frame, "share": values}
            title = f"study.{row}.{name}"
            found.append(record(title, float(np.mean(values)), "share", device=device, details=details))
    return found


def text(outcome: Outcome, attention: Mapping[str, Attention]) -> str:
    """The curves as tables."""
    lines = []
    for key, digits in (("psnr", 2), ("ssim", 3), ("sharpness", 2)):
        curves = {row: curve(scores) for row, scores in outcome.scores.items() if row != "copy"}
        lines += ["", f"{key} by {WINDOW} generated frames (exact and near)"]
        lines += [
            f"  {row:8}" + "".join(f" {point[key]:7.{digits}f}" for point in points) for row, points in curves.items()
        ]
    for name in next(iter(attention.values())).shares if attention else ():
        lines += ["", f"attention, {name.replace('_', ', ')}: frames 0, {WATCHED}, ..."]
        lines += [f"  {row:8}" + "".join(f" {v:5.2f}" for v in seen.shares[name]) for row, seen in attention.items()]
    for row, seen in attention.items():
        lines.append(f"{row:8} {statistics.median(seen.step_ms):7.2f} ms a step (median, without decoding)")
    return "\n".join(lines)


def draw(path: Path, outcome: Outcome, attention: Mapping[str, Attention]) -> bool:
    """Draw PSNR, sharpness and the shares of attention along the rollout.

    Returns:
        Whether matplotlib was there to draw with.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    import io

    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    for axis, key in ((axes[0, 0], "psnr"), (axes[0, 1], "sharpness")):
        for row, scores in outcome.scores.items():
            if row not in ("copy", "bound") or (row == "bound" and key == "psnr"):
                points = curve(scores)
                axis.plot([p["x"] for p in points], [p[key] for p in points], label=row)
    for axis, key in ((axes[1, 0], "block_negligible"), (axes[1, 1], "block_critical")):
        for row, seen in attention.items():
            axis.plot(seen.frame, seen.shares[key], label=row)
    titles = (
        "PSNR, dB",
        "sharpness, x decoded truth",
        "share in block weights < 0.02",
        "share in block weights > 0.05",
    )
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.set(title=title, xlabel="generated frame")
        axis.grid(alpha=0.3)
    axes[0, 0].legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=100, format="png")
    write_atomically(path, picture.getvalue())
    return True
