"""The main job: build a world, remember it, walk away, come back; video, picture and figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import metrics
from .pictures import difference, sheet, side_by_side, write_png, write_video
from .results import write_json
from .revisit.matches import CLASS_NAMES, Matches, match_poses
from .rollout import decoded_truth, frame_size, roll_out, whole_context
from .scene import Footage, Scene

WARM_UP = 20  # frames left out of the speed

Tell = Callable[[str], None]
Ticker = Callable[[str, int], Callable[[int], None]]  # (title, total) -> what to call with frames done


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo saw and made."""

    truth: Footage
    context: int
    matches: Matches
    dream: NDArray[np.uint8]
    forgetful: NDArray[np.uint8]
    decoded: NDArray[np.uint8]
    seconds: NDArray[np.float64]


def run_demo(model: Any, seed: int, *, steps: int | None = None, tell: Tell, ticker: Ticker) -> Demo:
    """Remember a voxel world, then walk back through it with and without memory.

    Args:
        model: A `WorldModel`.
        seed: World seed, also of the noise.
        steps: Denoising steps; the model's own number when None.
        tell: Receives lines for people.
        ticker: Makes progress bars.

    Returns:
        All frames and timings.
    """
    tell(f"building world {seed} and choosing a walk that comes back")
    scene = Scene(seed, *frame_size(model))
    actions, poses, context = scene.return_trip()
    truth = scene.film(actions, poses)
    matches = match_poses(poses, context)
    ahead = slice(context, None)
    dreams = {}
    clock: list[float] = []
    for name, memory in (("with memory", "memory"), ("without memory", "off")):
        session = model.start(seed=seed, memory=memory, steps=steps)
        tick = ticker(f"remembering {context} frames", context) if memory == "memory" else None
        session.observe(*whole_context(model, truth.frames[:context], actions[:context], poses[:context]))
        if tick is not None:
            tick(context)
        tick = ticker(f"walking back, {name}", len(actions) - context)
        if memory == "memory":
            clock.append(time.perf_counter())

            def note(count: int, inner: Callable[[int], None] = tick) -> None:
                clock.append(time.perf_counter())
                inner(count)

            tick = note
        frames = roll_out(model, [session], actions[None, ahead], poses[None, ahead], progress=tick)
        dreams[memory] = frames[0].numpy()
        session.close()
    decoded = decoded_truth(model, torch.from_numpy(truth.frames[ahead]), 32).numpy()
    return Demo(truth, context, matches, dreams["memory"], dreams["off"], decoded, np.diff(clock))


def summarise(demo: Demo, *, device: str, checkpoint: str, seed: int) -> dict[str, Any]:
    """The figures of `summary.json`; revisits are exact and near frames that the walk had really left."""
    ahead = slice(demo.context, None)
    revisit = (demo.matches.label[ahead] > 0) & demo.matches.left[ahead]
    truth = demo.truth.frames[ahead]

    def mean(frames: NDArray[np.uint8]) -> float | None:
        return round(float(metrics.psnr(frames[revisit], truth[revisit]).mean()), 3) if revisit.any() else None

    steady = demo.seconds[min(WARM_UP, len(demo.seconds) // 2) :]
    return {
        "frames_per_second": round(float(1.0 / np.median(steady)), 3),
        "revisit_psnr_db": mean(demo.dream),
        "autoencoder_bound_db": mean(demo.decoded),
        "window_only_psnr_db": mean(demo.forgetful),
        "generated_frames": len(demo.dream),
        "revisit_frames": int(revisit.sum()),
        "context_frames": demo.context,
        "longest_gap_frames": int(demo.matches.gap.max()),
        "device": device,
        "checkpoint": checkpoint,
        "world_seed": seed,
    }


def write_demo(folder: Path, demo: Demo, summary: dict[str, Any]) -> dict[str, Path]:
    """Write `demo.mp4`, `demo.png` and `summary.json`, each atomically, the summary last."""
    context = demo.context
    panels = [
        ("true world", demo.truth.frames),
        ("dream, with memory", np.concatenate([demo.truth.frames[:context], demo.dream])),
        ("dream, memory off", np.concatenate([demo.truth.frames[:context], demo.forgetful])),
    ]
    factor = max(1, 320 // demo.dream.shape[2])
    paths = {"video": write_video(folder / "demo.mp4", side_by_side(panels, _captions(demo), factor))}
    paths["picture"] = write_png(folder / "demo.png", contact_sheet(demo, summary))
    paths["summary"] = write_json(folder / "summary.json", summary)
    return paths


def contact_sheet(demo: Demo, summary: dict[str, Any], columns: int = 8) -> NDArray[np.uint8]:
    """Truth, dream, dream without memory and the difference at a few moments of the way back."""
    chosen = np.linspace(0, len(demo.dream) - 1, columns).round().astype(int)
    truth = demo.truth.frames[demo.context :][chosen]
    rows = [
        ("true world", truth),
        ("with memory", demo.dream[chosen]),
        ("memory off", demo.forgetful[chosen]),
        ("difference x2", difference(truth, demo.dream[chosen])),
    ]
    captions = []
    for i in chosen:
        gap = int(demo.matches.gap[demo.context + i])
        captions.append(f"frame {i + 1}" + (f", unseen for {gap}" if gap else ""))
    score = summary["revisit_psnr_db"]
    title = f"{len(demo.dream)} generated frames after {demo.context} true ones; {summary['checkpoint']}"
    if score is not None:
        title += f"; revisits {score:.1f} dB, memory off {summary['window_only_psnr_db']:.1f} dB"
    return sheet(rows, captions, title)


def _captions(demo: Demo) -> list[str]:
    lines = []
    for t in range(len(demo.truth.frames)):
        if t < demo.context:
            lines.append(f"frame {t + 1}: true frames enter memory")
            continue
        label, gap = CLASS_NAMES[demo.matches.label[t]], int(demo.matches.gap[t])
        note = f"{label} revisit, unseen for {gap} frames" if gap else "on the way"
        lines.append(f"frame {t + 1}: generated; {note}")
    return lines
