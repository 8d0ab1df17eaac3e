"""The CSV that names the clips of a split: columns `video_path,action_path`, as the DecMem release reads it."""

from __future__ import annotations

import csv
import os
from pathlib import Path


def read_clip_index(path: str | os.PathLike[str]) -> list[tuple[Path, Path]]:
    """Read a CSV of clips; relative paths are relative to the CSV's folder or, failing that, to the current one.

    Returns:
        (video, actions) pairs in the file's order.

    Raises:
        FileNotFoundError: The CSV or a clip it names is missing.
        ValueError: Other columns, or no rows.
    """
    index = Path(path)
    if not index.is_file():
        raise FileNotFoundError(f"{index}: no such file (make one with `decmem data index`)")
    with index.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if "video_path" not in columns or "action_path" not in columns:
            raise ValueError(f"{index} has the columns {columns}: expected video_path,action_path")
        rows = [(row["video_path"], row["action_path"]) for row in reader]
    if not rows:
        raise ValueError(f"{index} names no clips")

    def locate(name: str) -> Path:
        for candidate in (index.parent / name, Path(name)):
            if candidate.is_file():
                return candidate
        raise FileNotFoundError(f"{index} names {name}, which does not exist")

    return [(locate(video), locate(action)) for video, action in rows]
