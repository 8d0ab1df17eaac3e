"""The training loop shared by all stages: schedule, optimisation, logging, saving, resuming, evaluating, exporting."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .adversarial import Adversary
from .checkpointing import Progress, find_state, load_state, save_state
from .config import TrainConfig
from .curves import RunLog, draw_curves
from .distributed import Ranks
from .ema import Ema
from .files import StateError, read_json, write_text
from .optim import Optimisers
from .profiling import Profile
from .schedule import learning_rate, progress_of

_ASK_MAIN = 8  # steps


class Task(Protocol):
    """What a stage gives the loop."""

    module: nn.Module
    frames_per_step: int

    @property
    def adversary(self) -> Adversary | None:
        """What trains beside the module, if anything."""

    def open(self, data: dict[str, Any]) -> None:
        """Start the data workers at a position."""

    def fill(self) -> None:
        """Wait for enough data to start."""

    def position(self) -> dict[str, Any]:
        """Position in the data, as JSON values."""
        ...

    def next_batch(self, rng: np.random.Generator) -> Any:
        """Inputs of one step."""

    def loss(self, batch: Any, rng: np.random.Generator) -> Tensor:
        """Scalar loss."""
        ...

    def after_step(self) -> None:
        """Refresh the data."""

    def evaluate(self, rng: np.random.Generator) -> dict[str, float]:
        """Figures of the weights in place."""
        ...

    def export(self, folder: Path) -> None:
        """Write the weights in place."""

    def close(self) -> None:
        """Stop workers."""


class Trainer:
    """Runs one piece of a stage.

    Args:
        config: Resolved settings.
        task: The stage's part.
        ranks: This process.
        out: Folder of the run.
        started: `time.monotonic()` at the start of the command.
        max_minutes: Wall-clock limit of this piece, or None.
        profile: Section timer; enabled, it stops the run after a few steps with a table.
    """

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        ranks: Ranks,
        out: Path,
        started: float,
        max_minutes: float | None = None,
        profile: Profile | None = None,
    ) -> None:
        self.config, self.task, self.ranks, self.out, self.started = config, task, ranks, out, started
        self.profile = profile or Profile(ranks.device)
        self._profiling = self.profile.enabled
        self.limit = math.inf if max_minutes is None else 60.0 * max_minutes - config.run.reserve_seconds
        ranks.broadcast(task.module)
        self.optimisers = Optimisers(task.module, config.optimiser, fused=ranks.device.type == "cuda")
        self.ema = Ema(task.module, config.optimiser.ema)
        self.rng = np.random.default_rng([config.run.seed, ranks.rank])
        torch.manual_seed(config.run.seed + 7919 * ranks.rank)
        minutes = config.run.minutes if config.run.minutes is not None else max_minutes
        seconds = None if minutes is None else max(60.0 * minutes - config.run.reserve_seconds, 1.0)
        self.progress = Progress(seconds=seconds)
        self._before = 0.0  # seconds used by earlier pieces
        self._share_of_all: float | None = None

    def resume(self, folder: Path) -> None:
        """Continue from a saved state; the schedule keeps its length unless `run.minutes` says otherwise."""
        chosen = self.progress.seconds
        self.progress = load_state(folder, self.task.module, self.ema, self.optimisers, self.rng, self.task.adversary)
        if self.config.run.minutes is not None or self.progress.seconds is None:
            self.progress.seconds = chosen
        if self.ranks.rank:  # the saved generators are those of rank 0
            seeds = [self.config.run.seed, self.ranks.rank, self.progress.step]
            self.rng = np.random.default_rng(seeds)
            torch.manual_seed(self.config.run.seed + 7919 * self.ranks.rank + self.progress.step)
        self._before = self.progress.elapsed

    def say(self, text: str) -> None:
        """Print a line on the main rank."""
        if self.ranks.main:
            print(f"[{time.monotonic() - self.started:6.1f} s] {text}", flush=True)

    def _share(self) -> float:
        self.progress.elapsed = self._before + time.monotonic() - self.started
        p = self.progress
        return progress_of(p.step, self.config.run.steps, p.elapsed, p.seconds)

    def _finished(self) -> bool:
        """Whether training is over; also sets `_share_of_all`, the share of the schedule that the rate follows."""
        step, steps = self.progress.step, self.config.run.steps
        share = self._share()
        over = share >= 1.0 or time.monotonic() - self.started >= self.limit
        if self.ranks.size == 1:
            self._share_of_all = share
            return over
        if steps is not None and step >= steps:
            return True
        # Clocks differ between ranks, and learning rates that differ let their weights drift apart. Asking makes every
        # rank wait for its GPU, so they do not ask at every step.
        if self._share_of_all is not None and step % _ASK_MAIN:
            return False
        self._share_of_all, stop = self.ranks.of_main(share, float(over))
        return stop > 0.0

    def run(self) -> dict[str, Any]:
        """Train until the schedule or this piece ends, then save, evaluate and export.

        Returns:
            step, share of the schedule, last mean loss, figures of the evaluation.

        Raises:
            StateError: The loss is no longer finite.
        """
        task = self.task
        task.open(self.progress.data)
        try:
            if not self._finished():
                self.say("waiting for the first worlds")
                task.fill()
            return self._loop()
        finally:
            task.close()

    def _loop(self) -> dict[str, Any]:
        config, task, device = self.config, self.task, self.ranks.device
        log = RunLog(self.out / "log.jsonl", self.progress.step) if self.ranks.main else None
        first = self.progress.step
        self.say(
            f"training from step {first}, {sum(p.numel() for p in self.optimisers.params):,} parameters on {device}"
        )
        total, norms, steps, wait = torch.zeros((), device=device), torch.zeros((), device=device), 0, 0.0
        mean_loss, last_log, last_save = math.nan, time.monotonic(), time.monotonic()
        task.module.train()
        while not self._finished():
            lr = learning_rate(config.optimiser, self.progress.step, self._share_of_all or 0.0)
            begun = time.perf_counter()
            batch = task.next_batch(self.rng)
            wait += time.perf_counter() - begun
            with self.profile.section("forward"):
                loss = task.loss(batch, self.rng)
            with self.profile.section("backward"):
                loss.backward()
            with self.profile.section("optimiser"):
                self.ranks.average_gradients(self.optimisers.params)
                norm = nn.utils.clip_grad_norm_(self.optimisers.params, config.optimiser.clip)
                self.optimisers.step(lr)
                self.ema.update()
            begun = time.perf_counter()
            task.after_step()
            wait += time.perf_counter() - begun
            total += loss.detach()
            norms += norm
            steps += 1
            self.progress.step += 1
            self.progress.frames += task.frames_per_step
            if self._profiling and self._profile_step(self.progress.step - first):
                break
            now = time.monotonic()
            # The first line comes after one step, so that a broken run shows at once.
            if log is not None and (now - last_log >= config.run.log_seconds or self.progress.step == first + 1):
                mean_loss = self._log(log, float(total) / steps, float(norms) / steps, lr, steps, wait, now - last_log)
                total.zero_()
                norms.zero_()
                steps, wait, last_log = 0, 0.0, time.monotonic()
            if self.ranks.main and now - last_save >= config.run.save_seconds:
                self.save()
                last_save = time.monotonic()
        if log is not None and steps:
            seconds = time.monotonic() - last_log
            mean_loss = self._log(log, float(total) / steps, float(norms) / steps, lr, steps, wait, seconds)
        return self._finish(log, mean_loss)

    def _profile_step(self, done: int) -> bool:
        warm, counted, traced = 5, 10, 4
        if done == warm:
            self.profile.seconds.clear()
        if done < warm + counted:
            return False
        if done == warm + counted:
            self.say(self.profile.table(counted))
            if self.ranks.device.type != "cuda":
                return True
            self.profile.watch_kernels()
        if done == warm + counted + traced:
            self.say(self.profile.kernels(traced))
        return done == warm + counted + traced

    def _log(self, log: RunLog, loss: float, norm: float, lr: float, steps: int, wait: float, seconds: float) -> float:
        if not math.isfinite(loss):
            raise StateError(
                f"the loss is {loss} at step {self.progress.step}: the last good state is kept; "
                "lower optimiser.lr and resume"
            )
        speed = steps * self.task.frames_per_step / max(seconds, 1e-9)
        share = self._share()
        record: dict[str, Any] = {
            "step": self.progress.step,
            "elapsed": round(self.progress.elapsed, 1),
            "progress": round(share, 4),
            "loss": loss,
            "grad_norm": norm,
            "lr": lr,
            "frames_per_second": round(speed, 1),
            "data_share": round(wait / max(seconds, 1e-9), 3),
            "data": self.task.position(),
        }
        rival = {} if self.task.adversary is None else self.task.adversary.figures()
        record |= rival
        log.write(record)
        data = " ".join(f"{k} {v:g}" for k, v in record["data"].items())
        self.say(
            f"step {self.progress.step:6d} {100 * share:5.1f} % loss {loss:.4f} grad {norm:.3f} lr {lr:.2e} "
            f"{speed:,.0f} frames/s {1e3 * seconds / steps:.0f} ms/step "
            f"data {100 * record['data_share']:.0f} % ({data})"
            + "".join(f" {name.replace('_', ' ')} {value:.3g}" for name, value in rival.items())
        )
        return loss

    def save(self, small: bool = False) -> Path:
        """Write `state/` (or `compact/`)."""
        self._share()
        self.progress.data = self.task.position()
        folder = self.out / ("compact" if small else "state")
        config, task = self.config.to_dict(), self.task
        save_state(
            folder, task.module, self.ema, self.optimisers, self.progress, self.rng, config, small, task.adversary
        )
        return folder

    def _finish(self, log: RunLog | None, mean_loss: float) -> dict[str, Any]:
        result: dict[str, Any] = {"step": self.progress.step, "progress": self._share(), "loss": mean_loss}
        if self.ranks.size > 1:
            rival = [] if self.task.adversary is None else self.task.adversary.optimisers.params
            own = sum(float(p.detach().double().sum()) for p in [*self.optimisers.params, *rival])
            if self.ranks.any(abs(own - self.ranks.mean(own)) > 1e-6 * (1.0 + abs(own))):
                raise StateError(f"the weights of the {self.ranks.size} ranks have drifted apart: nothing was saved")
            self.say(f"{self.ranks.size} ranks agree on the weights")
        if not self.ranks.main or self.profile.enabled:
            return result
        self.save()
        self.say(f"saved {self.out / 'state'} at step {self.progress.step}")
        with self.ema.applied():
            # The weights are safe on disk before anything that could fail; the export precedes the curves.
            figures = self.task.evaluate(self.rng)
            self.task.export(self.out / "export")
        result |= figures
        if log is not None:
            log.write({"step": self.progress.step, "evaluation": figures})
        done = "finished" if result["progress"] >= 1.0 else f"{100 * result['progress']:.0f} % of the schedule"
        self.say(f"{done}; " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
        draw_curves(self.out / "log.jsonl", self.out / "curves.png", self.config.stage)
        write_text(self.out / "result.json", _json(result))
        self.say(f"exported {self.out / 'export'}")
        return result


def _json(values: dict[str, Any]) -> str:
    return (
        json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}) + "\n"
    )


def finished_result(out: Path, state: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The result of a run whose schedule (under these settings) is over and whose weights are exported, or None."""
    if state.parent != out or not (out / "result.json").is_file() or not (out / "export").is_dir():
        return None
    result, at = read_json(out / "result.json"), read_json(state / "state.json")["progress"]
    minutes = config.run.minutes
    seconds = at["seconds"] if minutes is None else 60.0 * minutes - config.run.reserve_seconds
    over = progress_of(at["step"], config.run.steps, at["elapsed"], seconds) >= 1.0
    return result if over and result["step"] == at["step"] else None


def prepare(out: Path, resume: bool | str | Path) -> Path | None:
    """Make the run folder and find the state to continue from.

    Args:
        out: Folder of the run.
        resume: True: continue if there is a state; False: start afresh; a path: that run's or state's folder.

    Raises:
        StateError: A path without a state.
    """
    out.mkdir(parents=True, exist_ok=True)
    if resume is False:
        return None
    if resume is True:
        return find_state(out)
    found = find_state(Path(resume))
    if found is None:
        raise StateError(f"--resume {resume}: no state there; give a run folder with state/ or compact/")
    return found
