"""Recordings read back and checked frame by frame."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .recorder import FORMAT, action_from_json, frame_hash, versions
from .source import Shot


@dataclass(frozen=True, eq=False)
class Recording:
    """What `Recorder` wrote.

    Attributes:
        folder: Where it lies.
        meta: Facts.
        actions: float32 [T, 25].
        hashes: One a frame.
    """

    folder: Path
    meta: dict[str, Any]
    actions: NDArray[np.float32]
    hashes: list[str]

    @property
    def start(self) -> Path | None:
        """The saved state it starts from; None for a world's start."""
        folder = self.folder / "start"
        return folder if folder.is_dir() else None


def read_recording(path: str | Path) -> Recording:
    """Read a recording; a last line that an early quit cut short is dropped.

    Args:
        path: The folder, or a file in it.

    Raises:
        ValueError: Nothing there, nothing recorded, or another format.
    """
    folder = Path(path)
    folder = folder.parent if folder.is_file() else folder
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        lines = (folder / "actions.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is no recording: {Path(error.filename).name} is missing") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'meta.json'} is broken ({error}): the recording cannot be replayed") from None
    if meta.get("format") != FORMAT:
        raise ValueError(f"{folder}: recording format {meta.get('format')}, this version reads {FORMAT}")
    actions, hashes = [], []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            action, frame = action_from_json(entry["action"]), str(entry["frame"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{folder / 'actions.jsonl'}, line {number} is broken: {error}") from None
        actions.append(action)
        hashes.append(frame)
    if not actions:
        raise ValueError(f"{folder}: nothing was recorded, actions.jsonl has no frames")
    return Recording(folder, meta, np.stack(actions), hashes)


class Verdict:
    """Compares a run with its recording, frame by frame."""

    def __init__(self, recording: Recording) -> None:
        """Nothing compared yet."""
        self._recording = recording
        self.compared = 0
        self.first_difference: int | None = None
        self.same_start: bool | None = None

    @property
    def complete(self) -> bool:
        """Whether every frame was compared."""
        return self.compared == len(self._recording.hashes)

    @property
    def equal(self) -> bool:
        """Whether every frame compared so far is bitwise equal."""
        return self.first_difference is None and self.same_start is not False

    def start(self, shot: Shot) -> None:
        """Compare the frame before the first action."""
        self.same_start = frame_hash(shot.frame) == self._recording.meta["first_frame"]

    def check(self, shot: Shot) -> None:
        """Compare the next frame."""
        if self.complete:
            return
        if frame_hash(shot.frame) != self._recording.hashes[self.compared] and self.first_difference is None:
            self.first_difference = self.compared
        self.compared += 1

    def sentence(self) -> str:
        """One line for people."""
        if self.same_start is False:
            return "replay differs from the start: another world version or renderer" + self._changes()
        if self.first_difference is not None:
            return f"replay differs from frame {self.first_difference} on" + self._changes()
        return f"replay: {self.compared} of {len(self._recording.hashes)} frames, bitwise equal"

    def _changes(self) -> str:
        then, now = self._recording.meta.get("versions", {}), versions()
        changed = [f"{name} {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]]
        return f" ({', '.join(changed)})" if changed else ""


def use_recorded_threads(recording: Recording) -> None:
    """Let torch compute with as many threads as when it was recorded: sums depend on it in the last bits."""
    import torch

    threads = recording.meta.get("versions", {}).get("threads")
    if isinstance(threads, int) and threads > 0:
        torch.set_num_threads(threads)


def check_source(recording: Recording, facts: dict[str, Any]) -> None:
    """Refuse to replay with another checkpoint or sampler.

    Args:
        recording: What is to be replayed.
        facts: `PlaySource.describe()` of the source at hand.

    Raises:
        ValueError: They differ; the facts that do are named.
    """
    ignored = {"device", "kernels"}  # may change the bits, which the verdict reports, but not the meaning
    different = [
        f"{name} was {recording.meta.get(name)!r} and is {value!r}"
        for name, value in facts.items()
        if name not in ignored and recording.meta.get(name) != value
    ]
    if different:
        raise ValueError(f"{recording.folder} was made with other settings: {'; '.join(different)}")
