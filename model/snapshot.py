"""Snapshots: the frozen state of a session, in memory by reference or in one safetensors file with JSON metadata."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .memory import PagePool, Pages
from .session import Pending, Session, Settings

if TYPE_CHECKING:
    from .world_model import WorldModel

FORMAT = "decmem-snapshot"
VERSION = 6
_TABLE = ("frame_index", "poses", "hands", "generated", "changes")  # of a `MemoryBank`
_PENDING = ("actions", "poses", "frame_index", "generated", "cells", "told")  # of a `Pending`; the rest follows


class SnapshotError(ValueError):
    """A snapshot is damaged or belongs to another model; the message says what differs."""


class Snapshot:
    """State of a session. Restoring it on the same model and machine continues bit for bit.

    Pages are shared with the session until memory runs short (then they move to host memory) or the snapshot is saved.

    Attributes:
        facts: JSON-able identity and counters.
        arrays: Small tensors by name.
    """

    def __init__(self, facts: dict[str, Any], arrays: dict[str, Tensor], pages: Pages | None = None) -> None:
        self.facts, self.arrays = facts, arrays
        self._pages = pages
        self._pool: PagePool | None = None
        self._slots = np.zeros(0, np.int64)

    @classmethod
    def of(cls, session: Session) -> Snapshot:
        """Freeze a session."""
        model, bank = session.model, session.bank
        with model.lock:
            facts = {
                "format": FORMAT,
                "version": VERSION,
                "checkpoint": model.name,
                "checkpoint_sha256": model.sha256,
                "kernel": model.kernel,
                "seed": session.seed,
                "forks": session.forks,
                "next_frame": session.next_frame,
                "evicted": bank.evicted,
                "encoded": session.encoded,
                "settings": dict(vars(session.settings)),
            }
            arrays = {
                "generator": session.generator.get_state(),
                **{name: torch.from_numpy(getattr(bank, name).copy()) for name in _TABLE},
            }
            if session.origin is not None:
                arrays["origin"] = torch.from_numpy(session.origin.copy())
            if session.pending is not None:
                arrays["pending_latents"] = session.pending.latents.cpu().clone()
                for name in _PENDING:
                    arrays[f"pending_{name}"] = torch.from_numpy(getattr(session.pending, name).copy())
            arrays |= {f"video.{name}": tensor for name, tensor in session.video.tensors().items()}
            if session.shown is not None:
                arrays["shown"] = session.shown
            result = cls(facts, arrays)
            result._pool, result._slots = model.pool, bank.slots.copy()
            model.pool.retain(result._slots)
            model.pool.register_spillable(result)
        return result

    def __del__(self) -> None:
        self._release()

    def _release(self) -> None:
        pool = getattr(self, "_pool", None)
        if pool is not None:
            with pool.lock:
                pool.release(self._slots)
                self._pool, self._slots = None, self._slots[:0]

    def spill(self) -> None:
        """Copy the pages to host memory and release them."""
        self.pages()
        self._release()

    def pages(self) -> Pages:
        """The pages as tensors on the CPU."""
        if self._pages is None:
            assert self._pool is not None
            with self._pool.lock:
                self._pages = self._pool.copy_out(self._slots)
        return self._pages

    def restore(self, model: WorldModel) -> Session:
        """Make a session of it; use `WorldModel.restore`.

        Raises:
            SnapshotError: It belongs to another checkpoint or kernel choice.
        """
        for key, have, mend in (
            ("checkpoint_sha256", model.sha256, f"load checkpoint {self.facts['checkpoint']!r} as it was then"),
            ("kernel", model.kernel, "load the model on the same device, with the same dtype and memory_dtype"),
        ):
            if self.facts[key] != have:
                raise SnapshotError(f"snapshot has {key} {self.facts[key]}, this model {have}: {mend}")
        with model.lock:
            session = Session(model, self.facts["seed"], Settings(**self.facts["settings"]))
            bank, arrays = session.bank, self.arrays
            table = [arrays[name].numpy().copy() for name in _TABLE]
            index = table[0]
            if self._pool is model.pool and self._pages is None:
                model.pool.retain(self._slots)
                bank.append(self._slots, *table)
            elif len(index):
                if len(index) > model.pool.room(at_once=False):
                    raise SnapshotError(
                        f"snapshot holds {len(index)} frames, memory_budget has room for "
                        f"{model.pool.room(at_once=False)}: give "
                        f"WorldModel.from_pretrained memory_budget >= {len(index) * model.pool.page_bytes * 2:,}"
                    )
                done, last = 0, None
                while done < len(index):
                    slots = model.pool.allocate(min(model.pool.room(), len(index) - done), last)
                    part, last = slice(done, done + len(slots)), int(slots[-1])
                    model.pool.copy_in(slots, self.pages().part(part))
                    bank.append(slots, *(column[part] for column in table))
                    done += len(slots)
            bank.evicted = self.facts["evicted"]
            session.forks, session.next_frame = self.facts["forks"], self.facts["next_frame"]
            session.generator.set_state(arrays["generator"])
            video = {name[len("video.") :]: t for name, t in arrays.items() if name.startswith("video.")}
            session.video.load_tensors(video, model.device)
            session.shown = arrays["shown"].to(model.device) if "shown" in arrays else None
            session.encoded = self.facts.get("encoded", 0)
            if "origin" in arrays:
                session.origin = arrays["origin"].numpy().copy()
            if "pending_latents" in arrays:
                rest = (arrays[f"pending_{name}"].numpy().copy() for name in _PENDING)
                session.pending = Pending.of(arrays["pending_latents"].to(model.device), *rest)
        return session

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, all of it or nothing."""
        from safetensors.torch import save_file

        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in self.arrays.items()}
        tensors |= {
            f"pages_{name}": tensor.contiguous()
            for name, tensor in self.pages()._asdict().items()
            if tensor is not None
        }
        handle, fresh = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        os.close(handle)
        try:
            save_file(tensors, fresh, {"decmem": json.dumps(self.facts, sort_keys=True)})
            os.chmod(fresh, 0o644)
            os.replace(fresh, target)
        finally:
            Path(fresh).unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Snapshot:
        """Read a saved snapshot.

        Raises:
            SnapshotError: Not a snapshot, damaged, or of another format version.
            FileNotFoundError: No such file.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"snapshot {path} does not exist")
        try:
            with safe_open(str(path), "pt") as file:
                facts = json.loads((file.metadata() or {}).get("decmem", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, ValueError) as error:
            raise SnapshotError(f"{path} is no snapshot or is damaged ({error}): save it again") from None
        if facts.get("format") != FORMAT:
            raise SnapshotError(f"{path} is a safetensors file, but no snapshot")
        if facts["version"] != VERSION:
            raise SnapshotError(
                f"{path} has snapshot version {facts['version']}, this program reads {VERSION}: use the decmem-env "
                "that wrote it"
            )
        pages = Pages(*(tensors.pop(f"pages_{name}", None) for name in Pages._fields))
        return cls(facts, tensors, pages)
