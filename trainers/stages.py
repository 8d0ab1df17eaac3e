"""The stages by name: `autoencoder`, then `dense_short` -> `dense` -> `decmem`, then `pose`; `debug_*` at toy size."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .autoencoder import AutoencoderTask
from .config import ConfigError, load_config
from .distributed import Ranks
from .dynamics import DynamicsTask
from .pose import PoseTask
from .profiling import Profile
from .trainer import Trainer, finished_result, prepare


def run_stage(
    name: str,
    out_dir: str | Path,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    max_minutes: float | None = None,
    resume: bool | str | Path = True,
    device: str = "auto",
    init: str | None = None,
    compact: bool = False,
    profile: bool = False,
    started: float | None = None,
) -> dict[str, Any]:
    """Train one stage, or one piece of it.

    Args:
        name: A bundled recipe or a path to a YAML file.
        out_dir: Folder of the run: config.yaml, log.jsonl, curves.png, state/, export/, result.json.
        overrides: "section.key=value" strings, or a mapping.
        max_minutes: This process stops itself (saving, evaluating and exporting included) after this wall-clock time.
            Also the length of the schedule where the recipe sets no `run.minutes`.
        resume: True: continue the folder's state if it has one; False: start afresh; a path: continue that state here.
        device: "auto", "cpu", "cuda", "cuda:N".
        init: Run or export folder whose weights to start from.
        compact: Also write `compact/`, a resumable state of about four bytes a parameter in small files.
        profile: Time the parts of a few steps and stop.
        started: `time.monotonic()` when the command started, to count start-up time.

    Returns:
        step, progress (1 = the schedule is over), loss, and the figures of the evaluation.

    Raises:
        ConfigError: A setting does not fit.
        StateError: A state or checkpoint is missing or damaged, or the loss is no longer finite.
    """
    started = time.monotonic() if started is None else started
    config = load_config(name, overrides)
    if max_minutes is not None and 60 * max_minutes <= config.run.reserve_seconds:
        raise ConfigError(
            f"--max-minutes {max_minutes} leaves nothing beside run.reserve_seconds="
            f"{config.run.reserve_seconds:g}: raise it"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" or not torch.cuda.is_available():
        config.data.workers = min(config.data.workers, max(0, (os.cpu_count() or 1) - 1))
    out = Path(out_dir)
    ranks = Ranks(device)
    try:
        _set_speed(ranks.device)
        torch.manual_seed(config.run.seed)
        timer = Profile(ranks.device, profile)
        state = prepare(out, resume)
        if state is not None and (done := finished_result(out, state, config)) is not None and not profile:
            print(f"{out} is finished already (step {done['step']}): --fresh trains it anew", flush=True)
            return done
        makers: dict[str, Any] = {"autoencoder": AutoencoderTask, "dynamics": DynamicsTask, "pose": PoseTask}
        task = makers[config.objective.task](config, ranks, init, timer)
        trainer = Trainer(config, task, ranks, out, started, max_minutes, timer)
        if state is not None:
            trainer.resume(state)
            trainer.say(f"resumed {state} at step {trainer.progress.step}")
        if ranks.main:
            config.save(out / "config.yaml")
        result = trainer.run()
        if compact and ranks.main and not profile:
            trainer.say(f"wrote {trainer.save(small=True)}")
        return result
    finally:
        ranks.close()


def _set_speed(device: torch.device) -> None:
    if device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    from torch import _dynamo

    # A graph that does not compile costs speed, not the run.
    _dynamo.config.suppress_errors = True
