"""Copies of what a pass reads, for memory that attention cannot read in place: in 8 bits, or partly on the host.

The frames that local attention sees are copied whole, with room for those that the pass writes. Retrieved blocks are
copied into a stage, once however many queries chose them, and the lists then name places in the stage. A stage
remembers what it holds. Where every layer has its own, only blocks that the last passes did not retrieve are copied;
those used longest ago make room. Where layers share two stages, the blocks that a layer retrieved in the last pass are
copied while the layer before it computes (on CUDA, by a second stream), and once its lists are known what is missing.
The CPU never learns the lists, so nothing waits for it, unless a stage might be too small for them. Without frames on
the host, a stage with a place for every block needs no order: a block's place is its number.

Shapes: L layers, B rows, Q query blocks, H heads, S places of a stage, N tokens of a frame, M blocks of a frame, D head
channels, F frame slots.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..kernels.block_placement import Part, Stage, place_blocks
from ..kernels.block_placement.naive import listed_blocks
from ..kernels.gather_blocks import gather_blocks
from .attention import BlockLists
from .upload import upload

if TYPE_CHECKING:
    from .memory import PagePool, Slots

_PROGRAMS_BESIDE = 32  # of a copy that runs beside the layer before


class Working(NamedTuple):
    """Frames that the local attention of a pass sees; a frame's place is where it comes in this order.

    Attributes:
        blocks: int32 [1, frames * M], their blocks in memory; -1 for frames that the pass writes.
        places: int64 [n], of the frames that the pass commits.
        slots: int64 [n], of the same frames in memory.
    """

    blocks: Tensor
    places: Tensor
    slots: Tensor


class Staged(NamedTuple):
    """Copied blocks: keys and values [1, H, S * block, D], the lists that name them, real keys of each place."""

    keys: Tensor
    values: Tensor
    lists: BlockLists
    sizes: Tensor | None


class Staging:
    """The stages of a pool.

    Args:
        pool: Of the pages; its layout says how many stages there are and how large they are.

    Attributes:
        ahead: Whether layers that share stages have blocks copied before their lists are known.
    """

    def __init__(self, pool: PagePool) -> None:
        cfg, layout = pool.config, pool.layout
        self.pool: PagePool = weakref.proxy(pool)  # it owns this
        self.stages, self.places = layout.stages, layout.stage_blocks
        blocks = cfg.blocks_per_frame
        self._whole = pool.host is None and self.places >= self._none
        if self._whole:
            self.places = self._none
        cut = self.places
        self._parts = [Part(0, blocks, 0, cut)]
        if cfg.padding:
            # The last block of a frame has fewer real keys. Sizes are the same for all heads, so it has its own places.
            cut -= min(-(-cut // 4), pool.limit)
            self._parts = [Part(0, blocks - 1, 0, cut), Part(blocks - 1, blocks, cut, self.places)]
        self.ahead = True
        self._fetched = torch.zeros((), dtype=torch.int64, device=pool.device)
        self._before = self._fetched.clone()
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        # By layer and head; places count from 1, and place 0 and the block after the last stand for none.
        self._held = self._used = self._place = torch.zeros(0, dtype=torch.int64)
        self._owner: list[int] = []
        self._clock = self._pass = 0
        self._seen: list[int] = []
        self._sizes: Tensor | None = None
        self._stream: torch.cuda.Stream | None = None
        self._ready: dict[int, torch.cuda.Event] = {}

    @property
    def _none(self) -> int:
        return self.pool.limit * self.pool.config.blocks_per_frame

    def _open(self) -> None:
        """Take the stages' bytes, on first use."""
        cfg, device = self.pool.config, self.pool.device
        rows = (cfg.heads, self.places, cfg.block_tokens, cfg.head_dim)
        self._keys, self._values = (
            [torch.zeros(rows, dtype=self.pool.copied, device=device) for _ in range(self.stages)] for _ in range(2)
        )
        if cfg.padding:
            self._sizes = torch.full((self.places,), cfg.block_tokens, dtype=torch.int32, device=device)
            last = slice(cfg.blocks_per_frame - 1, None, cfg.blocks_per_frame)
            self._sizes[last if self._whole else slice(self._parts[-1].start, None)] -= cfg.padding
        if self._whole:
            return
        shape = (cfg.depth, cfg.heads, 1 + self.places)
        self._held = torch.full(shape, self._none, dtype=torch.int64, device=device)
        self._used = torch.zeros(shape, dtype=torch.int64, device=device)
        self._place = torch.zeros(cfg.depth, cfg.heads, self._none + 1, dtype=torch.int32, device=device)
        self._seen = [0] * cfg.depth
        self._owner = [-1] * self.stages
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)

    def forget(self, slots: Slots) -> None:
        """These slots will hold other frames."""
        if not self._keys or self._whole:
            return
        blocks = self.pool.config.blocks_per_frame
        gone = torch.from_numpy((slots[:, None] * blocks + np.arange(blocks)).ravel()).to(self.pool.device)
        places = self._place[:, :, gone].long()
        self._held.scatter_(2, places, self._none)
        self._place[:, :, gone] = 0

    def begin(self, retrieves: bool) -> None:
        """A pass begins."""
        if not self._keys:
            self._open()
        self._pass = self._clock
        if retrieves:
            self.prefetch(0)

    def prefetch(self, layer: int) -> None:
        """Begin to copy what a layer retrieved last time; call it when the layer before is about to be computed."""
        cfg = self.pool.config
        stage = layer % self.stages
        if not self.ahead or self.pool.host is None or self.stages in (1, cfg.depth) or layer >= cfg.depth:
            return
        self._owner[stage] = layer
        self._drop(layer, self._used[layer] <= self._seen[layer])  # only what the last pass retrieved
        if self._stream is None:
            self._copy_held(layer)
            return
        main = torch.cuda.current_stream(self.pool.device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            self._copy_held(layer, _PROGRAMS_BESIDE)
            self._ready[layer] = self._stream.record_event()

    def _drop(self, layer: int, places: Tensor) -> None:
        """Forget what these places hold, bool [H, 1 + S]."""
        held = self._held[layer]
        self._place[layer].scatter_(1, torch.where(places, held, self._none), 0)
        held.masked_fill_(places, self._none)

    def _copy_held(self, layer: int, programs: int | None = None) -> None:
        held = self._held[layer]
        self._copy(layer, torch.where(held < self._none, held, -1).int()[:, 1:], programs)

    def _copy(self, layer: int, named: Tensor, programs: int | None = None) -> None:
        """Copy blocks int32 [H, S] to their places, but for those below 0."""
        stage = layer % self.stages
        out = self._keys[stage], self._values[stage]
        gather_blocks(self.pool.source(layer), named, out, self.pool.config.block_tokens, programs, self._fetched)

    def window(self, layer: int, working: Working) -> tuple[Tensor, Tensor, Tensor]:
        """Copy the frames of the local attention.

        Returns:
            Keys and values [H, frames, N, D] and room for mean keys [H, frames, M, D]; frames that the pass writes are
            not filled yet.
        """
        pool, cfg = self.pool, self.pool.config
        frames = working.blocks.shape[1] // cfg.blocks_per_frame
        shape = (cfg.heads, frames * cfg.blocks_per_frame, cfg.block_tokens, cfg.head_dim)
        out = tuple(torch.empty(shape, dtype=pool.copied, device=pool.device) for _ in range(2))
        gather_blocks(pool.source(layer), working.blocks, (out[0], out[1]), cfg.block_tokens)
        means = torch.empty(cfg.heads, frames, cfg.blocks_per_frame, cfg.head_dim, device=pool.device)
        whole = (cfg.heads, frames, cfg.tokens, cfg.head_dim)
        return out[0].view(whole), out[1].view(whole), means

    def keep(self, layer: int, working: Working, pages: tuple[Tensor, Tensor, Tensor]) -> None:
        """Store the committed frames of a pass."""
        if len(working.slots):
            parts = (t.index_select(1, working.places).transpose(0, 1) for t in pages)
            self.pool.write(layer, working.slots, *parts)

    def fits(self, lists: BlockLists) -> bool:
        """Whether one stage holds all blocks of these lists, which name blocks of the pool."""
        if self._whole:
            return True
        most = lists.lists.shape[0] * lists.lists.shape[2] * lists.lists.shape[3]
        if all(min(most, self.pool.limit * (p.last - p.first)) <= p.stop - p.start for p in self._parts):
            return True
        frames = self._listed(lists)[:, :-1].unflatten(1, (self.pool.limit, -1))
        counts = [int(frames[:, :, p.first : p.last].sum((1, 2)).max()) for p in self._parts]
        return all(count <= p.stop - p.start for count, p in zip(counts, self._parts, strict=True))

    def _listed(self, lists: BlockLists) -> Tensor:
        """Which blocks are on any list, bool [H, blocks + 1]; the last one stands for none."""
        listed = torch.zeros(self.pool.config.heads, self._none + 1, dtype=torch.bool, device=self.pool.device)
        return listed.scatter_(1, listed_blocks(*lists, self._none).flatten(1), True)

    def fetch(self, layer: int, lists: BlockLists) -> Staged:
        """Copy the listed blocks that the stage does not hold.

        Args:
            layer: Which.
            lists: Int32 [B, H, Q, k], blocks of the pool, of which `fits` is true.

        Returns:
            What to attend to; it stands until the next call for a layer that shares the stage.
        """
        if self._whole:
            return self._fetch_by_number(layer, lists)
        event = self._ready.pop(layer, None)
        if event is not None:
            torch.cuda.current_stream(self.pool.device).wait_event(event)
        stage, held, used, place_of = layer % self.stages, self._held[layer], self._used[layer], self._place[layer]
        if self._owner[stage] != layer:
            self._owner[stage] = layer
            held.fill_(self._none)
            place_of.zero_()
        self._clock += 1
        self._seen[layer] = self._pass
        state, depth = Stage(held, used, place_of), self.pool.config.depth
        places, fresh = place_blocks(
            *lists, state, self._parts, self.pool.config.blocks_per_frame, self._clock, self._clock - depth
        )
        self._copy(layer, fresh)
        keys, values = (t[stage].flatten(1, 2)[None] for t in (self._keys, self._values))
        return Staged(keys, values, BlockLists(places, lists.counts), self._sizes)

    def _fetch_by_number(self, layer: int, lists: BlockLists) -> Staged:
        numbers = torch.arange(self.places, dtype=torch.int32, device=self.pool.device)
        self._copy(layer, torch.where(self._listed(lists)[:, :-1], numbers, -1))
        keys, values = (t[0].flatten(1, 2)[None] for t in (self._keys, self._values))
        return Staged(keys, values, lists, self._sizes)

    def mark(self) -> None:
        """A step begins, for `fetched_bytes`."""
        if self._keys:
            self._before = self._fetched.clone()

    def fetched_bytes(self) -> int:
        """Bytes of retrieved blocks read from the host since `mark`."""
        cfg = self.pool.config
        if self.pool.host is None or not self._keys:
            return 0
        return int(self._fetched - self._before) * 2 * cfg.block_tokens * cfg.head_dim * self.pool.storage.itemsize


def working_set(pool: PagePool, local: list[list[Slots]], written: Slots, committed: Slots) -> tuple[Working, Slots]:
    """Gather the frames of a pass.

    Args:
        pool: Of the slots.
        local: For each row and frame, the slots that it sees; replaced by places.
        written: Slots that the pass writes.
        committed: Those of them that it commits.

    Returns:
        The frames, and the places of `written`.
    """
    frames = np.unique(np.concatenate([written, *(entry for row in local for entry in row)]))
    for row in local:
        row[:] = [np.searchsorted(frames, entry) for entry in row]
    blocks = pool.config.blocks_per_frame
    named = (frames[:, None] * blocks + np.arange(blocks)).astype(np.int32)
    named[np.isin(frames, written)] = -1
    parts = (named.reshape(1, -1), np.searchsorted(frames, committed), committed)
    return Working(*(upload(part, pool.device) for part in parts)), np.searchsorted(frames, written)
