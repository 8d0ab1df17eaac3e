"""Batch inference: continue the clips of an index, one folder of results, resumable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import metrics
from .conventions.clips import Clip, write_clip
from .given_clips import Continued, Generation, to_model_size
from .pictures import difference, sheet, write_png
from .results import write_json

_COLUMNS, _WIDEST = 8, 240  # of the comparison strip; pixels of one frame in it


def sample_name(number: int, video: Path) -> str:
    """Stem of a sample's files."""
    return f"{number:05d}_{video.stem}"


def is_finished(folder: Path, name: str, settings: dict[str, Any]) -> bool:
    """Whether a sample is there with the same settings; its JSON is written last."""
    try:
        known = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    files = all((folder / f"{name}{suffix}").is_file() for suffix in (".mp4", ".npz", ".png"))
    return files and known.get("settings") == json.loads(json.dumps(settings))


def settings_of(how: Generation, video: Path, condition: int, total: int) -> dict[str, Any]:
    """What decides a sample's content."""
    return {**how.to_dict(), "video": video.name, "condition_frames": condition, "frames": total}


def write_sample(
    folder: Path,
    name: str,
    clip: Clip,
    made: Continued,
    condition: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Write NAME.mp4 + NAME.npz (given frames, then generated ones), NAME.png (comparison strip) and NAME.json.

    Args:
        folder: Exists.
        name: Stem.
        clip: The true clip at the model's size.
        made: What the model generated.
        condition: Given frames.
        settings: Of `settings_of`.

    Returns:
        The content of the JSON.
    """
    total = condition + len(made.frames)
    truth = clip.frames[condition:total]
    score = metrics.psnr(made.frames, truth)
    facts = {
        "settings": settings,
        "psnr_db": float(score.mean()),
        "frames_per_second": made.frames_per_second,
    }
    frames = np.concatenate([clip.frames[:condition], made.frames])
    write_clip(folder / f"{name}.mp4", Clip(frames, clip.actions[:total], clip.poses[:total], clip.fps))
    write_png(folder / f"{name}.png", _strip(name, truth, made.frames, condition, score.numpy()))
    write_json(folder / f"{name}.json", facts)
    return facts


def _strip(
    name: str, truth: NDArray[np.uint8], made: NDArray[np.uint8], condition: int, score: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Truth, generated frames and their difference at a few moments."""
    chosen = np.unique(np.linspace(0, len(made) - 1, _COLUMNS).round().astype(int))
    height, width = truth.shape[1:3]
    small = min(1.0, _WIDEST / width)
    size = (round(height * small), round(width * small))
    rows = [("true clip", truth[chosen]), ("generated", made[chosen])]
    rows.append(("difference x2", difference(truth[chosen], made[chosen])))
    captions = [f"frame {condition + i + 1}: {score[i]:.1f} dB" for i in chosen]
    return sheet([(label, to_model_size(frames, *size)) for label, frames in rows], captions, name)
