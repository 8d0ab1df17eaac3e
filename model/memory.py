"""Memory of generated worlds: pages of keys and values, shared by all sessions of a model; a table for each session.

A page is one latent frame: its position-encoded keys and values in every layer, and the mean key of each block (what
retrieval scores). Pages are written once, when a frame is committed, and never change; forks and snapshots therefore
share them by counting references. Pages lie head after head and block after block, so that attention gathers runs of
memory and reads the pool itself as its keys, addressed by the lists.

Keys live in the frame of the session's first pose (`translation_scale` blocks a unit). Moving that origin while
walking far away (which 16-bit keys would need) is not done here.

Shapes: H heads, N tokens of a frame, M blocks of a frame, D head channels.
"""

from __future__ import annotations

import threading
import weakref
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .config import ModelConfig

Slots = NDArray[np.int64]
CPU_BUDGET = 2 << 30
CUDA_BUDGET = 8 << 30
_FIRST_CUDA_PAGES = 256


class Pages(NamedTuple):
    """Copies of n pages: keys and values [layers, H, n, N, D], mean keys fp32 [layers, H, n, M, D]."""

    keys: Tensor
    values: Tensor
    pooled: Tensor


class Spillable(Protocol):
    """Holds pages that it can move out of the pool."""

    def spill(self) -> None:
        """Copy the pages elsewhere and release them."""


def page_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one latent frame in memory, all layers."""
    row = config.depth * config.heads * config.head_dim
    return row * (2 * config.tokens * dtype.itemsize + 4 * config.blocks_per_frame)


class PagePool:
    """All pages of one model.

    On the CPU the whole budget is reserved as virtual memory, which costs nothing until a page is written; on CUDA the
    pool doubles up to the budget. When the budget is used up, snapshots move to host memory outside of it, then the
    oldest frame that is in no session's window is forgotten (`MemoryBank.evicted` counts it).

    Args:
        config: Sizes.
        device: Of the pages.
        dtype: Of keys and values.
        budget: Bytes, None for 2 GiB on the CPU and 8 GiB on CUDA.

    Raises:
        ValueError: The budget holds less than one session needs.
    """

    def __init__(
        self, config: ModelConfig, device: torch.device, dtype: torch.dtype, budget: int | None = None
    ) -> None:
        if budget is None:
            budget = CUDA_BUDGET if device.type == "cuda" else CPU_BUDGET
        self.config, self.device, self.dtype, self.budget = config, device, dtype, int(budget)
        self.page_bytes = page_bytes(config, dtype)
        self.limit = self.budget // self.page_bytes
        needed = config.window + 4 * config.chunk
        if self.limit < needed:
            raise ValueError(
                f"memory_budget of {self.budget:,} bytes holds {self.limit} frames: give at least "
                f"{needed * self.page_bytes:,} ({needed} frames of {self.page_bytes:,} bytes)"
            )
        self.lock = threading.RLock()
        self.capacity = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._pooled: list[Tensor] = []
        self._references = np.zeros(0, np.int64)
        self._born = np.zeros(0, np.int64)
        self._clock = 0
        self._scratch: list[int] = []
        self._banks: weakref.WeakSet[MemoryBank] = weakref.WeakSet()
        self._spillable: weakref.WeakSet[Spillable] = weakref.WeakSet()
        self._grow(self.limit if device.type == "cpu" else min(self.limit, max(needed, _FIRST_CUDA_PAGES)))

    def _grow(self, capacity: int) -> None:
        cfg, old = self.config, self.capacity
        for held, rows, dtype in (
            (self._keys, cfg.tokens, self.dtype),
            (self._values, cfg.tokens, self.dtype),
            (self._pooled, cfg.blocks_per_frame, torch.float32),
        ):
            for layer in range(cfg.depth):
                fresh = torch.empty((cfg.heads, capacity, rows, cfg.head_dim), dtype=dtype, device=self.device)
                if old:
                    fresh[:, :old] = held[layer]
                    held[layer] = fresh
                else:
                    held.append(fresh)
        self._references = np.append(self._references, np.zeros(capacity - old, np.int64))
        self._born = np.append(self._born, np.zeros(capacity - old, np.int64))
        self.capacity = capacity

    @property
    def used(self) -> int:
        """Pages in use."""
        return int(np.count_nonzero(self._references))

    def keys(self, layer: int) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, each a view [1, H, capacity * N, D]."""
        return self._keys[layer].flatten(1, 2)[None], self._values[layer].flatten(1, 2)[None]

    def pages(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """All of a layer, page by page: keys and values [H, capacity, N, D], mean keys [H, capacity, M, D]."""
        return self._keys[layer], self._values[layer], self._pooled[layer]

    def pooled(self, layer: int, rows: Tensor | slice) -> Tensor:
        """Mean keys of tables of slots.

        Args:
            layer: Which.
            rows: int64 [B, n] slots on the pool's device, or a slice where there is one table without gaps.

        Returns:
            fp32 [B, H, n * M, D].
        """
        held = self._pooled[layer]
        if isinstance(rows, slice):
            return held[:, rows].flatten(1, 2)[None]
        heads, _, blocks, channels = held.shape
        taken = held.index_select(1, rows.flatten()).view(heads, len(rows), -1, channels)
        return taken.transpose(0, 1)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor, pooled: Tensor) -> None:
        """Store frames.

        Args:
            layer: Which.
            slots: int64 [n].
            keys: [n, H, N, D].
            values: [n, H, N, D].
            pooled: fp32 [n, H, M, D].
        """
        for held, fresh in ((self._keys, keys), (self._values, values), (self._pooled, pooled)):
            held[layer].index_copy_(1, slots, fresh.transpose(0, 1).to(held[layer].dtype))

    def copy_out(self, slots: Slots) -> Pages:
        """Copy pages to the CPU."""
        index = torch.as_tensor(slots, device=self.device)
        parts = (torch.stack([t.index_select(1, index).cpu() for t in held]) for held in self._tensors())
        return Pages(*parts)

    def copy_in(self, slots: Slots, pages: Pages) -> None:
        """Write copied pages into allocated slots."""
        index = torch.as_tensor(slots, device=self.device)
        for held, fresh in zip(self._tensors(), pages, strict=True):
            for layer, tensor in enumerate(held):
                tensor.index_copy_(1, index, fresh[layer].to(self.device))

    def _tensors(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        return self._keys, self._values, self._pooled

    def allocate(self, count: int, after: int | None = None) -> Slots:
        """Reserve pages, if possible right behind slot `after` (tables without gaps need no gathering).

        Raises:
            MemoryError: The budget is used up and nothing may be forgotten.
        """
        self._make_room(count)
        slots = np.empty(count, np.int64)
        for i in range(count):
            follows = after is not None and after + 1 < self.capacity and not self._references[after + 1]
            after = after + 1 if follows and after is not None else self._start_of_run()
            slots[i] = after
            self._references[after] = 1
            self._clock += 1
            self._born[after] = self._clock
        return slots

    def _start_of_run(self) -> int:
        """A free slot with room behind it: the middle of the largest gap (sessions then rarely meet)."""
        taken = np.flatnonzero(self._references)
        edges = np.concatenate([[-1], taken, [self.capacity]])
        gaps = np.diff(edges) - 1
        widest = int(gaps.argmax())
        first = int(edges[widest]) + 1
        return first if first == 0 else first + int(gaps[widest]) // 2

    def scratch(self, count: int) -> Slots:
        """Slots for frames that are being denoised; the same ones in every step, never part of a history."""
        missing = count - len(self._scratch)
        if missing > 0:
            self._make_room(missing)
            fresh = np.flatnonzero(self._references == 0)[-missing:]
            self._references[fresh] = 1
            self._scratch.extend(int(slot) for slot in fresh)
        return np.array(self._scratch[:count], np.int64)

    def retain(self, slots: Slots) -> None:
        """Count one more holder of pages."""
        self._references[slots] += 1

    def release(self, slots: Slots) -> None:
        """Count one holder less; pages without holders are free."""
        self._references[slots] -= 1

    def register(self, bank: MemoryBank) -> None:
        """Make a session's table known, so that its oldest frames can be forgotten."""
        self._banks.add(bank)

    def register_spillable(self, holder: Spillable) -> None:
        """Make a holder known that can move its pages out."""
        self._spillable.add(holder)

    def _make_room(self, count: int) -> None:
        while self.capacity - self.used < count and self.capacity < self.limit:
            self._grow(min(2 * self.capacity, self.limit))
        if self.capacity - self.used < count:
            for holder in list(self._spillable):
                holder.spill()
        while self.capacity - self.used < count:
            banks = list(self._banks)
            anchored = self._anchored(banks)
            candidates = [slot for bank in banks for slot in bank.forgettable() if slot not in anchored]
            if not candidates:
                raise MemoryError(
                    f"memory_budget of {self.budget:,} bytes ({self.limit} frames) is full with the windows of "
                    f"{len(banks)} sessions: close some, or give WorldModel.from_pretrained a larger memory_budget"
                )
            oldest = min(candidates, key=lambda slot: int(self._born[slot]))
            for bank in banks:
                bank.forget(int(oldest))

    def _anchored(self, banks: list[MemoryBank]) -> set[int]:
        """Pages in the window of any session, which must stay."""
        return {int(slot) for bank in banks for slot in bank.anchors()}

    def room(self) -> int:
        """Pages that `allocate` can provide, counting those it may forget."""
        return self.limit - len(self._anchored(list(self._banks))) - len(self._scratch)


class MemoryBank:
    """One session's memory: its pages in order of time, with the frame index and the pose of each.

    Attributes:
        slots: int64 [n], pages of the pool.
        frame_index: int64 [n], ascending.
        poses: float64 [n, 5].
        evicted: Frames forgotten because the budget was used up.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.slots: Slots = np.zeros(0, np.int64)
        self.frame_index: NDArray[np.int64] = np.zeros(0, np.int64)
        self.poses: NDArray[np.float64] = np.zeros((0, 5))
        self.evicted = 0
        pool.register(self)

    def __len__(self) -> int:
        return len(self.slots)

    def __del__(self) -> None:
        self.close()

    @property
    def last(self) -> int | None:
        """Page of the newest frame."""
        return int(self.slots[-1]) if len(self.slots) else None

    def append(self, slots: Slots, frame_index: NDArray[np.int64], poses: NDArray[np.float64]) -> None:
        """Add committed frames; the bank takes over their references."""
        self.slots = np.concatenate([self.slots, slots])
        self.frame_index = np.concatenate([self.frame_index, frame_index])
        self.poses = np.concatenate([self.poses, poses])

    def fork(self) -> MemoryBank:
        """A second table over the same pages."""
        child = MemoryBank(self.pool)
        with self.pool.lock:
            self.pool.retain(self.slots)
            child.append(self.slots, self.frame_index, self.poses)
            child.evicted = self.evicted
        return child

    def anchors(self) -> Slots:
        """Pages in the window of the chunks to come."""
        return self.slots[-(self.pool.config.window + self.pool.config.chunk) :]

    def forgettable(self) -> Slots:
        """The oldest page outside of the window."""
        return self.slots[: max(0, len(self.slots) - len(self.anchors()))][:1]

    def forget(self, slot: int) -> None:
        """Drop a page if it is here."""
        found = np.flatnonzero(self.slots == slot)
        if not len(found):
            return
        self.slots = np.delete(self.slots, found)
        self.frame_index = np.delete(self.frame_index, found)
        self.poses = np.delete(self.poses, found, 0)
        self.evicted += 1
        self.pool.release(np.array([slot], np.int64))

    def close(self) -> None:
        """Release all pages."""
        pool = getattr(self, "pool", None)
        if pool is not None and len(self.slots):
            with pool.lock:
                pool.release(self.slots)
                self.slots = self.slots[:0]
                self.frame_index, self.poses = self.frame_index[:0], self.poses[:0]
