"""Saved states: a folder with everything needed to go on from a frame."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .history import History
from .source import PlaySource, Shot

FORMAT = 1


@dataclass(frozen=True, eq=False)
class SaveCard:
    """One line of the list of saves.

    Attributes:
        folder: Where it lies.
        title: Source that made it.
        seed: World.
        index: Frame.
        saved: Local time.
        picture: uint8 [H, W, 3].
    """

    folder: Path
    title: str
    seed: int
    index: int
    saved: str
    picture: NDArray[np.uint8]


def write_save(folder: Path, source: PlaySource, shot: Shot, history: History) -> None:
    """Write a state; the folder appears whole or not at all.

    Args:
        folder: Must not exist.
        source: What is being played.
        shot: The present frame.
        history: Everything up to it.

    Raises:
        OSError: The disk refuses.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        source.save(partial)
        history.save(partial)
        np.savez(partial / "shot.npz", frame=shot.frame, pose=shot.pose, action=shot.action)
        facts = {
            "format": FORMAT,
            "title": source.title,
            "seed": source.seed,
            "pose_source": source.pose_source,
            "index": shot.index,
            "memory_frames": shot.memory_frames,
            "memory_bytes": shot.memory_bytes,
            "forgotten": shot.forgotten,
            "saved": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        (partial / "viewer.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def read_save(folder: Path, source: PlaySource, history: History) -> Shot:
    """Put a saved state into the source and the history.

    Args:
        folder: What `write_save` wrote.
        source: Continues from the state; left as it was on an error.
        history: Replaced.

    Returns:
        The saved frame.

    Raises:
        ValueError: No save, another format, or another checkpoint's.
    """
    facts = _facts(folder)
    if facts["title"] != source.title:
        raise ValueError(f"{folder.name} was saved with {facts['title']}, this is {source.title}")
    try:
        with np.load(folder / "shot.npz", allow_pickle=False) as arrays:
            frame, pose, action = arrays["frame"], arrays["pose"], arrays["action"]
        source.load(folder, int(facts["seed"]))
        history.load(folder)
    except FileNotFoundError as error:
        raise ValueError(f"{folder.name} is incomplete: {Path(error.filename).name} is missing") from None
    memory: dict[str, Any] = {name: int(facts[name]) for name in ("memory_frames", "memory_bytes", "forgotten")}
    return Shot(frame, pose, action, int(facts["index"]), **memory)


def save_seed(folder: Path) -> int:
    """World seed of a saved state."""
    return int(_facts(folder)["seed"])


def list_saves(parent: Path, limit: int = 8) -> list[SaveCard]:
    """The newest saves of a folder, newest first; what is no save is passed over."""
    cards: list[SaveCard] = []
    for folder in sorted(parent.glob("*/"), key=lambda path: path.stat().st_mtime, reverse=True):
        if folder.suffix == ".partial" or len(cards) == limit:
            continue
        try:
            facts = _facts(folder)
            with np.load(folder / "shot.npz", allow_pickle=False) as arrays:
                picture = arrays["frame"]
        except (ValueError, OSError, KeyError):
            continue
        cards.append(SaveCard(folder, facts["title"], int(facts["seed"]), int(facts["index"]), facts["saved"], picture))
    return cards


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / "viewer.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} is no saved state: viewer.json is missing") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'viewer.json'} is broken: {error}") from None
    if facts.get("format") != FORMAT:
        raise ValueError(f"{folder}: save format {facts.get('format')}, this version reads {FORMAT}")
    return dict(facts)
