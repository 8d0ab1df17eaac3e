"""What a test has found so far, on disk: the folder `F.partial` beside a file `F`, one archive a batch.

Nothing is written twice, so that a long test does not spend its time on saving. The folder names the run it belongs to
and is gone when the run is complete.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..results import write_atomically, write_json
from .parts import Part

_FACTS = "run.json"


class Sidecar:
    """The parts of one run.

    Attributes:
        folder: Where they lie.
    """

    def __init__(self, target: Path, facts: Mapping[str, object]) -> None:
        """Name the run; nothing is read or written yet.

        Args:
            target: The file that the run writes.
            facts: What the figures depend on (checkpoint, worlds, ...); a run with other facts is another run.
        """
        self.folder = target.with_name(f"{target.name}.partial")
        self._facts = {name: str(value) for name, value in facts.items()}

    def read(self) -> list[Part]:
        """The parts that an earlier run of the same kind has left; none where it left nothing.

        Raises:
            ValueError: They are of another run, or damaged.
        """
        facts_file = self.folder / _FACTS
        if not facts_file.exists():
            return []
        try:
            facts = dict(json.loads(facts_file.read_text(encoding="utf-8")))
            parts = [_unpack(path.read_bytes()) for path in sorted(self.folder.glob("*.npz"))]
        except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self.folder} is damaged ({error}): delete it to begin anew") from None
        for name in sorted({*facts, *self._facts}):
            if facts.get(name) != self._facts.get(name):
                difference = f"{name} {facts.get(name)} there, {self._facts.get(name)} here"
                mend = "repeat that command, or delete the folder to begin anew"
                raise ValueError(f"{self.folder} belongs to another run ({difference}): {mend}")
        return parts

    def __len__(self) -> int:
        """Parts on disk, unread."""
        return sum(1 for _ in self.folder.glob("*.npz"))

    def add(self, part: Part) -> None:
        """Keep one more."""
        facts = self.folder / _FACTS
        if not facts.exists():
            write_json(facts, self._facts)
        write_atomically(self.folder / f"{min(part.scripts):06d}.npz", _pack(part))

    def remove(self) -> None:
        """The run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _pack(part: Part) -> bytes:
    """NPZ: every array under its path; seconds are left out, they are the process's own."""
    arrays = {"scripts": np.array(part.scripts, np.int64)}
    for row, columns in part.columns.items():
        arrays |= {f"columns/{row}/{name}": column for name, column in columns.items()}
    for script, pictures in part.pictures.items():
        arrays |= {f"pictures/{script}/{name}": picture for name, picture in pictures.items()}
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _unpack(data: bytes) -> Part:
    part = Part((), {}, {})
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        for path in arrays.files:
            group, _, rest = path.partition("/")
            key, _, name = rest.partition("/")
            if group == "columns":
                part.columns.setdefault(key, {})[name] = arrays[path]
            elif group == "pictures":
                part.pictures.setdefault(int(key), {})[name] = arrays[path]
        return Part(tuple(arrays["scripts"].tolist()), part.columns, part.pictures)
