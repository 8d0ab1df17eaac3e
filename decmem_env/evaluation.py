"""The paper's evaluation: continue clips, keep the frames of the windows, score them against raw and decoded truth."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import metrics
from .conventions.clips import Clip
from .feature_metrics import FID_DEFINITION, LPIPS_DEFINITION, Fid, Lpips, MetricUnavailable
from .given_clips import Continued
from .protocol import SPEED_FRAMES, Setting, Window, window_name
from .results import Record, record, write_atomically, write_json
from .rollout import decoded_truth

REFERENCES = ("raw", "decoded")
UNITS = {"psnr": "dB", "ssim": "", "lpips": "", "fid": ""}
DEFINITIONS = {
    "psnr": "per frame over all pixels and channels, data range 1 (uint8 / 255), capped at 100 dB; mean over frames",
    "ssim": "Wang et al. 2004, Gaussian window 11 with sigma 1.5, data range 1, mean over channels, only windows "
    "inside the frame; mean over frames",
    "lpips": LPIPS_DEFINITION,
    "fid": FID_DEFINITION,
    "raw": "reference: the clip's own frames at the model's size",
    "decoded": "reference: the same frames encoded and decoded by the model's autoencoder",
}


def keep_windows(
    folder: Path,
    name: str,
    model: Any,
    clip: Clip,
    made: Continued,
    condition: int,
    windows: Sequence[Window],
    settings: dict[str, Any],
) -> None:
    """Write what scoring needs of a finished clip: NAME.npz with the frames, then NAME.json with the settings.

    Arrays `generated_I`, `raw_I`, `decoded_I` for window I: uint8 [frames, H, W, 3].
    """
    last = windows[-1][1]
    truth = clip.frames[:last]
    decoded = decoded_truth(model, torch.from_numpy(truth)).numpy()
    arrays: dict[str, NDArray[np.uint8]] = {}
    for i, (first, final) in enumerate(windows):
        part = slice(first - 1, final)
        arrays[f"generated_{i}"] = made.frames[first - 1 - condition : final - condition]
        arrays[f"raw_{i}"], arrays[f"decoded_{i}"] = truth[part], decoded[part]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(folder / f"{name}.npz", buffer.getvalue())
    frames, seconds = made.first(SPEED_FRAMES)
    write_json(folder / f"{name}.json", {"settings": settings, "speed_frames": frames, "speed_seconds": seconds})


def is_kept(folder: Path, name: str, settings: dict[str, Any]) -> bool:
    """Whether a clip is finished with the same settings."""
    try:
        known = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return known.get("settings") == json.loads(json.dumps(settings)) and (folder / f"{name}.npz").is_file()


@dataclass
class Scores:
    """Values of all clips.

    Attributes:
        values: Per frame (PSNR, SSIM) or per clip (LPIPS), by (window number, metric, reference); rows of a clip hold
            its number in `groups`.
        groups: Clip of each value.
        fid: By (window number, reference).
        unavailable: Why a metric is missing.
        speed: Frames/s of each clip.
    """

    values: dict[tuple[int, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    groups: dict[tuple[int, str, str], list[int]] = field(default_factory=lambda: defaultdict(list))
    fid: dict[tuple[int, str], float] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    speed: list[float] = field(default_factory=list)

    def add(self, key: tuple[int, str, str], clip: int, values: Sequence[float]) -> None:
        """Add a clip's values."""
        self.values[key] += values
        self.groups[key] += [clip] * len(values)


def score(
    folder: Path,
    names: Sequence[str],
    windows: Sequence[Window],
    device: str,
    progress: Callable[[int], None] = lambda n: None,
) -> Scores:
    """Score the kept windows of all clips.

    Args:
        folder: Of `keep_windows`.
        names: Stems of the clips.
        windows: As kept.
        device: Of the metrics.
        progress: Called with clips scored.
    """
    scores = Scores()
    lpips = _try(scores, "lpips", lambda: Lpips(device))
    fids: dict[tuple[int, str], Fid] | None = _try(
        scores, "fid", lambda: {(i, ref): Fid(device) for i in range(len(windows)) for ref in REFERENCES}
    )
    for number, name in enumerate(names):
        facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        scores.speed.append(facts["speed_frames"] / facts["speed_seconds"])
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            for i in range(len(windows)):
                made = torch.from_numpy(arrays[f"generated_{i}"]).to(device)
                for ref in REFERENCES:
                    truth = torch.from_numpy(arrays[f"{ref}_{i}"]).to(device)
                    scores.add((i, "psnr", ref), number, metrics.psnr(made, truth).tolist())
                    scores.add((i, "ssim", ref), number, metrics.ssim(made, truth).tolist())
                    if lpips is not None:
                        scores.add((i, "lpips", ref), number, [lpips(made, truth)])
                    if fids is not None:
                        fids[i, ref].add(made, truth)
        progress(1)
    if fids is not None:
        scores.fid = {key: fid.compute() for key, fid in fids.items()}
    return scores


def records(scores: Scores, setting: Setting, device: str, facts: dict[str, Any]) -> list[Record]:
    """Records of all scores, each with its definition, and one with the protocol.

    Args:
        scores: Of all clips.
        setting: What was run.
        device: For the hardware line.
        facts: Checkpoint and other settings to keep.
    """
    protocol = {
        **facts,
        "given_frames": setting.condition,
        "windows": [f"{a}-{b}" for a, b in setting.windows],
        "clips": setting.clips,
        "steps": setting.steps,
        "guidance": setting.guidance,
        "deviations_from_the_paper": setting.deviations(),
        "definitions": DEFINITIONS,
        "unavailable": scores.unavailable,
    }
    found = [record("eval.protocol", "as the paper" if not setting.deviations() else "differs", details=protocol)]
    for i, window in enumerate(setting.windows):
        for metric in ("psnr", "ssim", "lpips", "fid"):
            for ref in REFERENCES:
                found.append(_record(scores, setting, (i, metric, ref), window, device))
    speed = {
        "definition": f"frames generated until {SPEED_FRAMES} are done (whole chunks) over their time; decoding "
        "counts, observing the given frames does not; time per frame averaged over clips",
        "steps": setting.steps,
        "guidance": setting.guidance,
    }
    rate = float(1.0 / np.mean(1.0 / np.asarray(scores.speed)))
    found.append(record("eval.frames_per_second", rate, "frames/s", device=device, details=speed))
    return found


def _record(scores: Scores, setting: Setting, key: tuple[int, str, str], window: Window, device: str) -> Record:
    i, metric, ref = key
    name = f"eval.{window_name(window, setting.condition)}.{metric}.{ref}"
    frames = setting.clips * (window[1] - window[0] + 1)
    details: dict[str, Any] = {
        "frames_of_clip": f"{window[0]}-{window[1]}",
        "definition": DEFINITIONS[metric],
        "reference": DEFINITIONS[ref],
        "frames": frames,
        "clips": setting.clips,
    }
    if metric in scores.unavailable:
        return record(name, None, device=device, details={**details, "unavailable": scores.unavailable[metric]})
    if metric == "fid":
        if frames < 2048:
            details["warning"] = f"{frames} frames for 2048 features: too few to compare with other sets"
        return record(name, scores.fid[i, ref], device=device, details=details)
    estimate = metrics.bootstrap(scores.values[key], scores.groups[key])
    details.update(low=estimate.low, high=estimate.high)
    return record(name, estimate.mean, UNITS[metric], device=device, details=details)


def note(setting: Setting, scores: Scores, facts: dict[str, Any]) -> str:
    """Definitions and deviations, for the head of the page."""
    lines = [f"Checkpoint {facts['checkpoint']} ({facts['sha256'][:12]}). Frames are counted from 1. Definitions:", ""]
    lines += [f"- **{name}**: {text}" for name, text in DEFINITIONS.items()]
    lines += [f"- **{key.replace('_', ' ')}**: {value}" for key, value in facts.items() if key not in _IN_HEAD]
    different = setting.deviations()
    lines += ["", "Differs from the paper's protocol:" if different else "The paper's protocol in every setting.", ""]
    lines += [f"- {line}" for line in different]
    lines += [f"- {metric.upper()} not measured: {why}" for metric, why in scores.unavailable.items()]
    return "\n".join(lines).rstrip()


_IN_HEAD = ("checkpoint", "sha256")


def _try(scores: Scores, name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except MetricUnavailable as error:
        scores.unavailable[name] = str(error)
        return None
