"""The tensors of the memory: keys, values, mean keys and scales of all pages."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.block_selection import Codes, native
from ..kernels.block_sparse_attention import native as attention
from ..kernels.gather_blocks import Source, quantise_blocks
from .config import ModelConfig
from .host_memory import HostPages, Places
from .memory_layout import Layout, copied_type, has_codes, stored_type
from .reserve import reserve

Slots = NDArray[np.int64]


class Pages(NamedTuple):
    """Copies of n pages: keys and values [layers, H, n, N, D], mean keys fp32 [layers, H, n, M, D].

    In 8-bit memory keys and values are int8, with scales fp32 [layers, 2, H, n, M].
    """

    keys: Tensor
    values: Tensor
    pooled: Tensor
    scales: Tensor | None = None

    def part(self, frames: slice) -> Pages:
        """Some of them."""
        scales = None if self.scales is None else self.scales[:, :, :, frames]
        keys, values, pooled = (t[:, :, frames] for t in self[:3])
        return Pages(keys, values, pooled, scales)


class PageStore:
    """Pages by slot, and the slots' places on the device or on the host.

    Args:
        config: Sizes.
        device: Of the pages.
        dtype: Of the products.
        memory_dtype: See `memory_layout.frame_bytes`.
        layout: How many pages.

    Attributes:
        capacity: Pages on the device.
        limit: Slots: frames that can be remembered, on the device or on the host.
        storage: Type of keys and values in memory.
        copied: Type of keys and values that attention reads.
    """

    def __init__(
        self, config: ModelConfig, device: torch.device, dtype: torch.dtype, memory_dtype: str | None, layout: Layout
    ) -> None:
        self.config, self.device, self.dtype, self.memory_dtype = config, device, dtype, memory_dtype
        self.layout = layout
        self.storage, self.copied = stored_type(dtype, memory_dtype), copied_type(dtype, memory_dtype)
        self.capacity, self.limit = layout.pages, layout.pages + layout.host_pages
        layers, heads, dim = range(config.depth), config.heads, config.head_dim
        rows = (heads, self.capacity, config.tokens, dim)
        means, scales = (
            (heads, self.limit, config.blocks_per_frame, dim),
            (2, heads, self.limit, config.blocks_per_frame),
        )
        tables = [self._tables(rows) for _ in layers]
        self._keys, self._values = [keys for keys, _ in tables], [values for _, values in tables]
        self._pooled = [reserve(means, torch.float32, device) for _ in layers]
        self._scales = [torch.empty(scales, device=device) for _ in layers if self.in_bytes]
        coded = layers if has_codes(memory_dtype) and native.load() is not None else range(0)
        self._codes = [reserve(means, torch.uint8, device) for _ in coded]
        self._facts = [reserve((*means[:3], native.CODE_FACTS), torch.float32, device) for _ in coded]
        self.places = Places(self.limit, self.capacity, device)
        self.host: HostPages | None = None
        if layout.host_pages:
            shape = (config.depth, 2, heads, config.tokens, dim)
            self.host = HostPages(layout.host_pages, shape, self.storage, device)

    def _tables(self, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
        """A layer's keys and values [H, capacity, N, D].

        Where only the C attention reads them they lie token by token side by side: a retrieved block is one run of
        memory then, on fewer pages of the processor's. Otherwise apart and contiguous.
        """
        if has_codes(self.memory_dtype) and not self.layout.host_pages and attention.takes(shape[3]):
            keys, values = reserve((*shape[:3], 2, shape[3]), self.storage, self.device).unbind(3)
            return keys, values
        return reserve(shape, self.storage, self.device), reserve(shape, self.storage, self.device)

    @property
    def in_bytes(self) -> bool:
        """Whether keys and values are stored in 8 bits, which attention reads by way of copies."""
        return self.storage == torch.int8

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

    def codes(self, layer: int, rows: Tensor | slice) -> Codes | None:
        """8-bit copies of `pooled`, where there are any and one table without gaps."""
        if not self._codes or not isinstance(rows, slice):
            return None
        return Codes(self._codes[layer][:, rows].flatten(1, 2), self._facts[layer][:, rows].flatten(1, 2))

    def encode(self, layer: int, slots: Tensor) -> None:
        """The mean keys of these slots, int64 [n], have been written: renew their 8-bit copies."""
        if self._codes:
            native.encode(self._pooled[layer], self._codes[layer], self._facts[layer], slots)

    def direct(self, slots: Slots) -> bool:
        """Whether attention can read these frames in place: not in 8 bits, each in the page of its number."""
        return not self.in_bytes and bool((self.places.of[slots] == slots).all())

    def source(self, layer: int) -> Source:
        """A layer as `gather_blocks` reads it."""
        scales = self._scales[layer] if self._scales else None
        host = None if self.host is None else self.host.layer(layer)
        return Source(self._keys[layer], self._values[layer], self.places.where(), scales, host)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor, pooled: Tensor) -> None:
        """Store frames.

        Args:
            layer: Which.
            slots: int64 [n], of frames on the device.
            keys: [n, H, N, D].
            values: [n, H, N, D].
            pooled: fp32 [n, H, M, D].
        """
        pages = self.places.where()[slots].long()
        for which, (held, fresh) in enumerate(((self._keys, keys), (self._values, values))):
            if self.in_bytes:
                fresh, scales = quantise_blocks(fresh, self.config.blocks_per_frame)
                self._scales[layer][which].index_copy_(1, slots, scales.transpose(0, 1))
            held[layer].index_copy_(1, pages, fresh.transpose(0, 1).to(self.storage))
        self._pooled[layer].index_copy_(1, slots, pooled.transpose(0, 1))
        self.encode(layer, slots)

    def copy_out(self, slots: Slots) -> Pages:
        """Copy pages to the CPU."""
        cfg, places = self.config, self.places.of[slots]
        near = np.flatnonzero(places >= 0)
        shape = (cfg.depth, cfg.heads, len(slots), cfg.tokens, cfg.head_dim)
        index = torch.as_tensor(places[near], device=self.device)
        parts = []
        for which, held in enumerate((self._keys, self._values)):
            part = torch.empty(shape, dtype=self.storage)
            for layer, tensor in enumerate(held):
                part[layer][:, torch.from_numpy(near)] = tensor.index_select(1, index).cpu()
            if self.device.type == "cuda":  # frames may still be on their way to the host
                torch.cuda.current_stream(self.device).synchronize()
            for i in np.flatnonzero(places < 0):
                assert self.host is not None
                part[:, :, i] = self.host[int(-1 - places[i])][:, which]
            parts.append(part)
        index = torch.as_tensor(slots, device=self.device)
        pooled = torch.stack([t.index_select(1, index).cpu() for t in self._pooled])
        scales = [t.index_select(2, index).cpu() for t in self._scales]
        return Pages(parts[0], parts[1], pooled, torch.stack(scales) if scales else None)

    def copy_in(self, slots: Slots, pages: Pages) -> None:
        """Write copied pages into allocated slots."""
        index = torch.as_tensor(slots, device=self.device)
        place = torch.as_tensor(self.places.of[slots], device=self.device)
        for layer in range(self.config.depth):
            for held, fresh in ((self._keys, pages.keys), (self._values, pages.values)):
                held[layer].index_copy_(1, place, fresh[layer].to(self.device))
            self._pooled[layer].index_copy_(1, index, pages.pooled[layer].to(self.device))
            self.encode(layer, index)
            if pages.scales is not None:
                self._scales[layer].index_copy_(2, index, pages.scales[layer].to(self.device))

    @property
    def allocated(self) -> int:
        """Bytes of the tensors on the device."""
        held = (*self._keys, *self._values, *self._pooled, *self._scales, *self._codes, *self._facts)
        return sum(t.numel() * t.element_size() for t in held)

    def move_to_host(self, slot: int) -> None:
        """Move a frame's keys and values from the device to the host."""
        assert self.host is not None
        page, target = int(self.places.of[slot]), self.host.allocate()
        # One copy for all layers: packed on the device, then in one piece to where it stays.
        layers = zip(self._keys, self._values, strict=True)
        packed = torch.stack([torch.stack((keys[:, page], values[:, page])) for keys, values in layers])
        self.host[target].copy_(packed, non_blocking=True)
        self.places.move_out(slot, target)

    def leave(self, slots: Slots) -> None:
        """These slots hold nothing any more."""
        far = self.places.leave(slots)
        if self.host is not None:
            self.host.release(far)
