"""Where the pages of remembered frames lie: on the device, or in host memory once the device is full."""

from __future__ import annotations

import heapq

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.gather_blocks import HostSegments

_SEGMENT = 1 << 28  # bytes; pinned memory is allocated in powers of two, so a page wastes little of a large one


class HostPages:
    """Keys and values of frames in host memory, pinned for CUDA; it grows by segments, which never move.

    Args:
        count: Most pages.
        shape: Of a page: layers, 2 (keys, values), H, N, D.
        dtype: Of its numbers.
        device: Which reads the pages.
    """

    def __init__(self, count: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.count, self.shape, self.dtype, self.device = count, shape, dtype, device
        self.page = int(np.prod(shape)) * dtype.itemsize
        size = max(_SEGMENT, 1 << (4 * self.page - 1).bit_length())
        self.per_segment = max(1, min(size // self.page, count))
        self._segment = size if self.per_segment < count else self.per_segment * self.page
        self._segments: list[Tensor] = []
        self._addresses = torch.zeros(0, dtype=torch.int64, device=device)
        self._free = list(range(count))  # a heap

    def allocate(self) -> int:
        """Reserve the lowest free page."""
        page = heapq.heappop(self._free)
        while page >= self.per_segment * len(self._segments):
            self._grow()
        return page

    def release(self, pages: list[int]) -> None:
        """Give pages back."""
        for page in pages:
            heapq.heappush(self._free, page)

    def _grow(self) -> None:
        raw = torch.empty(self._segment, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        held = raw[: self.per_segment * self.page].view(self.dtype).view(self.per_segment, *self.shape)
        self._segments.append(held)
        self._addresses = torch.tensor([s.data_ptr() for s in self._segments], device=self.device)

    def __getitem__(self, page: int) -> Tensor:
        """A page, [layers, 2, H, N, D]; what is written to it is there for all."""
        return self._segments[page // self.per_segment][page % self.per_segment]

    def layer(self, layer: int) -> HostSegments:
        """One layer of all pages, as `gather_blocks` reads it."""
        return HostSegments(self._segments, self._addresses, self.per_segment, layer)


class Places:
    """The page of each frame slot. A page on the device has the number of its slot until the device was full.

    Args:
        slots: Of frames.
        pages: On the device.
        device: Of `where`.

    Attributes:
        free: Pages on the device without a frame.
    """

    def __init__(self, slots: int, pages: int, device: torch.device) -> None:
        self.device = device
        self.of: NDArray[np.int64] = np.minimum(np.arange(slots), pages - 1)
        self.taken = np.zeros(pages, bool)
        self.free = pages
        self._where: Tensor | None = None

    def take(self, slot: int) -> None:
        """Give a slot a page on the device, the one of its number if that is free."""
        page = slot if slot < len(self.taken) and not self.taken[slot] else int(self.taken.argmin())
        self.taken[page] = True
        self.free -= 1
        self.move(slot, page)

    def leave(self, slots: NDArray[np.int64]) -> list[int]:
        """Slots are free again; returns the pages on the host that they had."""
        pages = self.of[slots]
        near = pages[pages >= 0]
        self.taken[near] = False
        self.free += len(near)
        return [int(-1 - page) for page in pages[pages < 0]]

    def move_out(self, slot: int, page: int) -> None:
        """The slot's frame now lies in page `page` of the host; its page on the device is free."""
        self.taken[self.of[slot]] = False
        self.free += 1
        self.move(slot, -1 - page)

    def move(self, slot: int, page: int) -> None:
        """The slot's frame now lies in another page."""
        if self.of[slot] != page:
            self.of[slot] = page
            self._where = None

    def where(self) -> Tensor:
        """int32 [slots] on the device: pages of the device, or -1 - page of the host."""
        if self._where is None:
            self._where = torch.from_numpy(self.of.astype(np.int32)).to(self.device)
        return self._where
