"""Memory of generated worlds: pages of keys and values, shared by all sessions of a model; a table for each session.

A page is one latent frame: its position-encoded keys and values in every layer, and the mean key of each block (what
retrieval scores). Pages are written once, when a frame is committed, and never change; forks and snapshots therefore
share them by counting references. Pages lie head after head and block after block, so that attention gathers runs of
memory and reads the pool itself as its keys, addressed by the lists.

With 8-bit storage, and once frames have moved to host memory, attention reads copies of the listed blocks instead
(`staging`); mean keys stay on the device for ever.

Keys live in the frame of the session's first pose (`translation_scale` blocks a unit). Moving that origin while
walking far away (which 16-bit keys would need) is not done here.

Shapes: H heads, N tokens of a frame, M blocks of a frame, D head channels.
"""

from __future__ import annotations

import threading
import weakref
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from .changes import latest
from .config import ModelConfig
from .memory_layout import default_budget, default_host_budget, divide, frame_bytes, page_bytes
from .page_store import Pages, PageStore, Slots
from .staging import Staging

__all__ = ["MemoryBank", "PagePool", "Pages", "Slots", "Spillable", "page_bytes"]

_MOVED_AT_ONCE = 32 << 20  # bytes; pages move to the host some at a time


class Spillable(Protocol):
    """Holds pages that it can move out of the pool."""

    def spill(self) -> None:
        """Copy the pages elsewhere and release them."""


class PagePool(PageStore):
    """All pages of one model.

    The whole budget is reserved at once and nothing is copied as memory grows: on the CPU it is virtual memory, which
    costs nothing until a page is written; on CUDA it is taken from the device. When all device pages are used, the
    oldest frames outside of all windows move to host memory. When that is full too (on the CPU there is none),
    snapshots move to host memory outside of any budget, then the oldest frame that is in no session's window is
    forgotten (`MemoryBank.evicted` counts it).

    Args:
        config: Sizes.
        device: Of the pages.
        dtype: Of the products, and of keys and values unless `memory_dtype` says otherwise.
        budget: Bytes on the device, None for 2 GiB on the CPU and 8 GiB (at most half of what is free) on CUDA.
        memory_dtype: `int8` to store keys and values in 8 bits, with a scale for each head and block; `float16` on the
            CPU under fp32; None or the name of `dtype` to store them in it.
        host_budget: Bytes in host memory, None for half of the free RAM on CUDA and none on the CPU.

    Attributes:
        used: Pages in use.

    Raises:
        ValueError: The budget holds less than one session needs, or is more than the device has; unknown memory_dtype.
    """

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        dtype: torch.dtype,
        budget: int | None = None,
        memory_dtype: str | None = None,
        host_budget: int | None = None,
    ) -> None:
        own = str(dtype).removeprefix("torch.")
        narrower = ("float16",) if device.type == "cpu" and dtype == torch.float32 else ()
        if memory_dtype not in (None, own, *narrower, "int8"):
            known = ", ".join(map(repr, (own, *narrower, "int8")))
            raise ValueError(f"memory_dtype is {memory_dtype!r}: expected None or one of {known}")
        memory_dtype = None if memory_dtype == own else memory_dtype
        self.budget = default_budget(device) if budget is None else int(budget)
        host = default_host_budget(device) if host_budget is None else int(host_budget)
        layout = divide(config, dtype, memory_dtype, self.budget, host, host_budget is not None)
        self.page_bytes = page_bytes(config, dtype, memory_dtype)
        self.host_page_bytes = frame_bytes(config, dtype, memory_dtype).page
        needed = config.window + 4 * config.chunk
        if layout.pages < needed and host_budget is None:  # too little to serve frames on the host as well
            layout = divide(config, dtype, memory_dtype, self.budget, 0, False)
        if layout.pages < needed:
            raise ValueError(
                f"memory_budget of {self.budget:,} bytes holds {layout.pages} frames: give at least "
                f"{needed * self.page_bytes:,} ({needed} frames of {self.page_bytes:,} bytes)"
                + (f", and {layout.reserved:,} for stages and frames on the host" if layout.reserved else "")
            )
        try:
            super().__init__(config, device, dtype, memory_dtype, layout)
        except torch.cuda.OutOfMemoryError:
            free, total = torch.cuda.mem_get_info(device)
            raise ValueError(
                f"memory_budget of {self.budget:,} bytes is more than {device} has ({free:,} of {total:,} bytes are "
                "free): give WorldModel.from_pretrained a smaller one, or memory_dtype='int8'"
            ) from None
        self.lock = threading.RLock()
        self._references = np.zeros(self.limit, np.int64)
        self.used = self._near = 0  # the latter: of them, slots below `capacity`
        self._born = np.zeros(self.limit, np.int64)
        self._settled = np.zeros(self.limit, bool)  # in a table, so that the page may move
        self._clock = 0
        self._scratch: list[int] = []
        self._banks: weakref.WeakSet[MemoryBank] = weakref.WeakSet()
        self._spillable: weakref.WeakSet[Spillable] = weakref.WeakSet()
        self.staging = Staging(self)

    def allocate(self, count: int, after: int | None = None) -> Slots:
        """Reserve pages, if possible right behind slot `after` (tables without gaps need no gathering).

        Raises:
            MemoryError: The budget is used up and nothing may be forgotten.
        """
        self._make_room(count)
        slots = np.empty(count, np.int64)
        bound = self._bound()
        for i in range(count):
            follows = after is not None and after + 1 < bound and not self._references[after + 1]
            after = after + 1 if follows and after is not None else self._start_of_run(bound)
            slots[i] = after
            self._take(after)
            self._clock += 1
            self._born[after] = self._clock
            bound = self._bound()
        self.staging.forget(slots)
        return slots

    def _take(self, slot: int) -> None:
        self._references[slot] = 1
        self.used += 1
        self._near += slot < self.capacity
        self._settled[slot] = False
        self.places.take(slot)

    def _bound(self) -> int:
        """Slots to choose from: those with a device page of their number, while there are any."""
        return self.limit if self._near == self.capacity else self.capacity

    def _start_of_run(self, bound: int) -> int:
        """A free slot with room behind it: the middle of the largest gap (sessions then rarely meet)."""
        taken = np.flatnonzero(self._references[:bound])
        edges = np.concatenate([[-1], taken, [bound]])
        gaps = np.diff(edges) - 1
        widest = int(gaps.argmax())
        first = int(edges[widest]) + 1
        return first if first == 0 else first + int(gaps[widest]) // 2

    def scratch(self, count: int) -> Slots:
        """Slots for frames that are being denoised; the same ones in every step, never part of a history."""
        if self.in_bytes:  # never stored
            return np.arange(self.limit, self.limit + count)
        missing = count - len(self._scratch)
        if missing > 0:
            self._make_room(missing)
            for _ in range(missing):
                slot = int(np.flatnonzero(self._references[: self._bound()] == 0)[-1])
                self._take(slot)
                self._scratch.append(slot)
            self._scratch.sort()
        return np.array(self._scratch[:count], np.int64)

    def retain(self, slots: Slots) -> None:
        """Count one more holder of pages."""
        self._references[slots] += 1

    def release(self, slots: Slots) -> None:
        """Count one holder less; pages without holders are free."""
        self._references[slots] -= 1
        gone = slots[self._references[slots] == 0]
        if len(gone):
            self.used -= len(gone)
            self._near -= int(np.count_nonzero(gone < self.capacity))
            self._settled[gone] = False
            self.leave(gone)

    def settle(self, slots: Slots) -> None:
        """The frames are written and in a table: their pages may move to the host."""
        self._settled[slots] = True

    def register(self, bank: MemoryBank) -> None:
        """Make a session's table known, so that its oldest frames can be forgotten."""
        self._banks.add(bank)

    def register_spillable(self, holder: Spillable) -> None:
        """Make a holder known that can move its pages out."""
        self._spillable.add(holder)

    def _make_room(self, count: int) -> None:
        if self.limit - self.used < count:
            for holder in list(self._spillable):
                holder.spill()
        while self.limit - self.used < count:
            banks = list(self._banks)
            anchored = self._anchored(banks)
            candidates = [slot for bank in banks for slot in bank.forgettable() if slot not in anchored]
            if not candidates:
                raise self._full()
            oldest = min(candidates, key=lambda slot: int(self._born[slot]))
            for bank in banks:
                bank.forget(int(oldest))
        if self.places.free < count:
            self._offload(count - self.places.free)

    def _full(self) -> MemoryError:
        return MemoryError(
            f"memory_budget of {self.budget:,} bytes ({self.capacity} frames) is full with the windows of "
            f"{len(self._banks)} sessions: close some, or give WorldModel.from_pretrained a larger memory_budget"
        )

    def _offload(self, count: int) -> None:
        """Move the oldest pages outside of all windows to the host, some more than needed."""
        may = self._settled & (self.places.of >= 0)
        may[list(self._anchored(list(self._banks)))] = False
        slots = np.flatnonzero(may)
        if len(slots) < count or self.host is None:
            raise self._full()
        spare = self.limit - self.used - count
        more = max(count, min(_MOVED_AT_ONCE // self.host_page_bytes, self.capacity // 16, count + spare))
        for slot in slots[np.argsort(self._born[slots])][:more]:
            self.move_to_host(int(slot))

    def _anchored(self, banks: list[MemoryBank]) -> set[int]:
        """Pages in the window of any session, which must stay."""
        return {int(slot) for bank in banks for slot in bank.anchors()}

    def room(self, at_once: bool = True) -> int:
        """Pages that `allocate` can provide, counting those it may move or forget; at once, or one after the other."""
        most = self.capacity if at_once else self.limit
        return most - len(self._anchored(list(self._banks))) - len(self._scratch)


class MemoryBank:
    """One session's memory: its pages in order of time, and what is known of the frame of each.

    Attributes:
        slots: int64 [n], pages of the pool.
        frame_index: int64 [n], ascending.
        poses: float64 [n, 5].
        hands: bool [n], frames whose action broke or placed something.
        generated: bool [n], frames that the model made.
        changes: float64 [n, 4], what hands changed in them, NaN where that is not known (`changes.made_changes`).
        latest: float64 [m, 4], what these come to (`changes.latest`).
        evicted: Frames forgotten because the budget was used up.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.slots: Slots = np.zeros(0, np.int64)
        self.frame_index: NDArray[np.int64] = np.zeros(0, np.int64)
        self.poses: NDArray[np.float64] = np.zeros((0, 5))
        self.hands: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.generated: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self.changes: NDArray[np.float64] = np.zeros((0, 4))
        self.latest: NDArray[np.float64] = np.zeros((0, 4))
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

    @property
    def on_host(self) -> int:
        """Frames whose keys and values are in host memory."""
        return int(np.count_nonzero(self.pool.places.of[self.slots] < 0))

    def append(
        self,
        slots: Slots,
        frame_index: NDArray[np.int64],
        poses: NDArray[np.float64],
        hands: NDArray[np.bool_],
        generated: NDArray[np.bool_],
        changes: NDArray[np.float64] | None = None,
    ) -> None:
        """Add committed frames; the bank takes over their references. Without `changes`, none is known."""
        known = np.full((len(slots), 4), np.nan) if changes is None else changes
        self.slots = np.concatenate([self.slots, slots])
        self.frame_index = np.concatenate([self.frame_index, frame_index])
        self.poses = np.concatenate([self.poses, poses])
        self.hands = np.concatenate([self.hands, hands])
        self.generated = np.concatenate([self.generated, generated])
        self.changes = np.concatenate([self.changes, known])
        if known.size and (known[:, 0] == known[:, 0]).any():  # not NaN
            self.latest = latest(np.concatenate([self.latest, known]))
        self.pool.settle(slots)

    def fork(self) -> MemoryBank:
        """A second table over the same pages."""
        child = MemoryBank(self.pool)
        with self.pool.lock:
            self.pool.retain(self.slots)
            child.append(self.slots, self.frame_index, self.poses, self.hands, self.generated, self.changes)
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
        self.hands = np.delete(self.hands, found)
        self.generated = np.delete(self.generated, found)
        gone, self.changes = self.changes[found], np.delete(self.changes, found, 0)
        if not np.isnan(gone[:, 0]).all():
            self.latest = latest(self.changes)
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
                self.hands, self.generated = self.hands[:0], self.generated[:0]
                self.changes, self.latest = self.changes[:0], self.latest[:0]
