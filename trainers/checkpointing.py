"""Saving and resuming a run: everything that its next step depends on, exactly or in compact form."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import compact
from .adversarial import Adversary
from .ema import Ema
from .files import (
    StateError,
    copy_into,
    read_json,
    read_tensors,
    replacing_folder,
    settled_folder,
    write_tensors,
    write_text,
)
from .optim import Optimisers

FORMAT = 1
_ADVERSARY = "adversary.safetensors"


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        step: Steps done.
        elapsed: Wall-clock seconds used by all pieces, start-up included.
        seconds: Length of the schedule in seconds, or None.
        frames: Frames trained.
        data: The task's own position (worlds used, allowance).
    """

    step: int = 0
    elapsed: float = 0.0
    seconds: float | None = None
    frames: int = 0
    data: dict[str, Any] = field(default_factory=dict)


def random_states(rng: np.random.Generator, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of all generators: (torch tensors, numpy state)."""
    tensors = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return tensors, dict(rng.bit_generator.state)


def restore_random_states(
    rng: np.random.Generator, device: torch.device, tensors: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """Inverse of `random_states`; a state saved on another kind of device is left out."""
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
    rng.bit_generator.state = state


def save_state(
    folder: Path,
    module: nn.Module,
    ema: Ema,
    optimisers: Optimisers,
    progress: Progress,
    rng: np.random.Generator,
    config: dict[str, Any],
    small: bool = False,
    adversary: Adversary | None = None,
) -> None:
    """Write the state of a run as a folder, replacing an older one only when complete.

    Args:
        folder: `state/` (exact) or `compact/`.
        module: Trained module.
        ema: Its average.
        optimisers: Its optimisers.
        progress: Counters.
        rng: The run's numpy generator.
        config: Resolved settings, for reference.
        small: Write the compact form.
        adversary: What trains beside the module; the compact form leaves it out.
    """
    device = next(module.parameters()).device
    tensors, numpy_state = random_states(rng, device)
    about = {
        "format": FORMAT,
        "compact": small,
        "progress": progress.__dict__,
        "ema_updates": ema.updates,
        "numpy_rng": numpy_state,
        "config": config,
    }
    with replacing_folder(folder) as fresh:
        if small:
            compact.write_shards(fresh, compact.encode_state(module.state_dict(), ema.average, optimisers.moments()))
        else:
            write_tensors(fresh / "weights.safetensors", module.state_dict())
            write_tensors(fresh / "ema.safetensors", ema.state_dict())
            write_tensors(fresh / "moments.safetensors", optimisers.moments())
            if adversary is not None:
                write_tensors(fresh / _ADVERSARY, adversary.state_dict())
        write_tensors(fresh / "rng.safetensors", tensors)
        write_text(fresh / "state.json", json.dumps(about))


def find_state(run: Path) -> Path | None:
    """The newest state of a run folder: `state/`, else `compact/`, else the folder itself if it is a state."""
    for folder in (settled_folder(run / "state"), settled_folder(run / "compact"), run):
        if (folder / "state.json").is_file():
            return folder
    for folder in (run / "state", run / "compact"):
        if folder.exists():
            raise StateError(f"{folder} has no state.json: it is damaged; remove it or start afresh with --fresh")
    return None


def load_state(
    folder: Path,
    module: nn.Module,
    ema: Ema,
    optimisers: Optimisers,
    rng: np.random.Generator,
    adversary: Adversary | None = None,
) -> Progress:
    """Continue from a folder written by `save_state`; an adversary that it does not hold starts afresh, with its ramp.

    Raises:
        StateError: Missing, damaged, of another format or of another model.
    """
    about = read_json(folder / "state.json")
    if about.get("format") != FORMAT:
        raise StateError(f"{folder} has state format {about.get('format')}, this version reads {FORMAT}: use --fresh")
    if about["compact"]:
        weights, average, moments = compact.decode_state(compact.read_shards(folder))
    else:
        weights = read_tensors(folder / "weights.safetensors")
        average = read_tensors(folder / "ema.safetensors")
        moments = read_tensors(folder / "moments.safetensors")
    copy_into(module, weights, str(folder))
    if set(average) != set(ema.average):
        raise StateError(f"{folder}: the averaged weights do not fit this model; use --fresh")
    ema.load_state_dict(average, about["ema_updates"])
    optimisers.load_moments(moments)
    if adversary is not None and (folder / _ADVERSARY).is_file():
        adversary.load_state_dict(read_tensors(folder / _ADVERSARY))
    device = next(module.parameters()).device
    restore_random_states(rng, device, read_tensors(folder / "rng.safetensors"), about["numpy_rng"])
    return Progress(**about["progress"])
