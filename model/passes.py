"""What the frames of a pass may see: rows, lists and tables over the page pool."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.block_selection import Runs
from .attention import BlockLists, block_table
from .config import ModelConfig
from .memory import PagePool, Slots
from .staging import Working, working_set
from .upload import upload, upload_all

MODES = ("memory", "every", "content", "dense", "decay", "off", "window")
LARGE_FRAME = 320  # tokens; local attention over larger frames goes by dense kernels or in tiles
_MOST_RUNS = 8  # of a history that the CPU reads in place

Seen = NDArray[np.int64] | None  # places in a history
_History = tuple[Tensor | slice | None, Runs | None, Tensor | int]  # `history`, `runs` and `table` of a `Plan`
_NONE: _History = (None, None, 0)


class Row(NamedTuple):
    """One session in a pass.

    Attributes:
        history: Pages of all committed frames, those committed by this pass included.
        commit: How many of the last ones this pass commits.
        noisy: Pages of the frames being denoised, a chunk for each branch of guidance.
        forgets: Whether the frames being denoised do not see those that are committed: they will be forgotten.
        seen: Places in the history that each frame to commit sees, and then those that the frames being denoised see;
            None: the window, and what is retrieved. Empty: that for all.
    """

    history: Slots
    commit: int
    noisy: tuple[Slots, ...] = ()
    forgets: bool = False
    seen: tuple[Seen, ...] = ()


class Lists(NamedTuple):
    """What the frames of a pass may see.

    Attributes:
        local: Lists int32 [B, 1, F * tiles, L * tiles] over the pool (ALM, or everything when dense), and counts.
        pages: The same as pages of each chunk, int64 [B * chunks, n], where frames are large and all chunks see equally
            many; None otherwise.
        far: What lies before the window, where it counts less (`decay`), as `local`; None otherwise.
        blocks: The same as block lists, for one softmax over both.
        limit: int32 [B, F * M], leading history blocks that may be retrieved; None without retrieval.
        first: int32 [B, F * M] or None, first block that may be retrieved.
    """

    local: BlockLists
    pages: Tensor | None
    far: BlockLists | None
    blocks: BlockLists | None
    limit: Tensor | None
    first: Tensor | None


class Plan(NamedTuple):
    """One pass.

    Attributes:
        slots: int64 [B * F], pages that the pass writes: of the pool, or of the working set.
        lists: For all its frames.
        frames: Frames of the pass, F.
        output: Index of the first frame whose output is wanted (the noisy ones).
        output_lists: For those frames.
        history: Rows of the block tables: a slice of slots, or int64 [B, n]; None without history.
        runs: Where one row's history is in few parts, its parts of that slice, in blocks; None otherwise.
        table: First pool block of a slice, or int32 [B, n * M].
        top_k: Blocks to retrieve.
        working: Frames to copy, where the pool cannot be read in place (then pages are those of this set); else None.
    """

    slots: Tensor
    lists: Lists
    frames: int
    output: int
    output_lists: Lists | None
    history: Tensor | slice | None
    runs: Runs | None
    table: Tensor | int
    top_k: int
    working: Working | None


@lru_cache(maxsize=32)
def local_tiles(config: ModelConfig, device: torch.device) -> tuple[int, int]:
    """How local attention cuts a frame into query and key blocks: whole, but to the GPU kernels' liking on CUDA.

    Queries of the large model go in tiles of at most 128 (882 places are 7 of 126: tiles of 64 rows are full), keys in
    tiles of at most 320.
    """
    if device.type != "cuda" or config.tokens <= LARGE_FRAME:
        return config.tokens, config.tokens

    def most(limit: int) -> int:
        return max(t for t in range(1, limit + 1) if config.tokens % t == 0)

    return most(128), most(320)


def _pad(rows: list[list[np.ndarray]], device: torch.device, least: int = 1) -> BlockLists:
    counts = np.array([[len(entry) for entry in row] for row in rows], np.int32)
    lists = np.zeros((*counts.shape, max(least, int(counts.max()))), np.int32)
    lists[np.arange(lists.shape[2]) < counts[..., None]] = np.concatenate([entry for row in rows for entry in row])
    return BlockLists(*upload_all([lists[:, None], counts[:, None]], device))


def _pages(config: ModelConfig, local: list[list[np.ndarray]], device: torch.device) -> Tensor | None:
    """Pages that each chunk sees, int64 [B * chunks, n]; None for small frames or where n differs."""
    chunks = [entry for row in local for entry in row[:: config.chunk]]
    if config.tokens <= LARGE_FRAME or len({len(pages) for pages in chunks}) > 1:
        return None
    return upload(np.stack(chunks), device)


def _lists(
    config: ModelConfig,
    local: list[list[np.ndarray]],
    far: list[list[np.ndarray]],
    limit: np.ndarray,
    first: np.ndarray,
    mode: str,
    device: torch.device,
) -> Lists:
    least = config.window + 1 if config.nearest_views else 1  # one shape, for CUDA graphs
    frames = _pad(local, device, least)
    union, blocks = config.fusion == "union", config.blocks_per_frame
    parts = [config.tokens // tile for tile in local_tiles(config, device)]
    tiles = frames if parts == [1, 1] else block_table(*frames, *parts)
    if mode == "decay":
        return Lists(tiles, None, block_table(*_pad(far, device), *parts), None, None, None)
    pages = _pages(config, local, device)
    if mode == "dense" or not (limit > first).any():
        return Lists(tiles, pages, None, None, None, None)

    def spread(values: np.ndarray) -> Tensor:
        return upload(np.repeat(values * blocks, blocks, 1).astype(np.int32), device)

    return Lists(
        tiles,
        pages,
        None,
        block_table(*frames, blocks, blocks) if union else None,
        spread(limit),
        spread(first) if first.any() else None,
    )


def plan_pass(pool: PagePool, rows: list[Row], mode: str, top_k: int, tables: bool = False) -> Plan:
    """Work out who sees what.

    Args:
        pool: Where the pages are.
        rows: Equal in `commit` and in the number of noisy frames.
        mode: `memory`, `every` or `content` (they differ in what is committed and in `Row.seen`); `dense`, one softmax
            over everything; `decay`, the same with what lies before the window weighed down; `off`, no retrieval;
            `window`, retrieval from the window.
        top_k: Blocks to retrieve for each query block and head.
        tables: Address histories by tables even where one is a slice of the pool: a recorded pass (`pass_graphs`) can
            be given another table, but no other slice.
    """
    config, device = pool.config, pool.device
    window, chunk = config.window, config.chunk
    union = config.fusion == "union"
    local: list[list[np.ndarray]] = []
    distant: list[list[np.ndarray]] = []
    limits, firsts, written = [], [], []
    for row in rows:
        base = len(row.history) - row.commit
        entries, far, limit, first = [], [], [], []
        starts = [base + i // chunk * chunk for i in range(row.commit)]
        own = [row.history[start : start + chunk] for start in starts]
        known = base if row.forgets else len(row.history)
        for branch in row.noisy:
            starts += [known] * chunk
            own += [branch] * chunk
        chosen: list[Seen] = [None] * len(starts)
        if row.seen:
            chosen = [*row.seen[: row.commit], *row.seen[row.commit :] * (len(row.noisy) * chunk)]
        for start, mine, seen in zip(starts, own, chosen, strict=True):
            if seen is not None:
                entries.append(np.concatenate([row.history[seen], mine]))
                far.append(row.history[:0])
                limit.append(0)
                first.append(0)
                continue
            low = max(0, start - window)
            entries.append(np.concatenate([row.history[0 if mode == "dense" else low : start], mine]))
            far.append(row.history[:low])
            reach = low if union else start
            allowed = {"memory": reach, "every": reach, "content": reach, "window": 0 if union else start}.get(mode, 0)
            limit.append(allowed)
            first.append(low if mode == "window" and not union else 0)
        local.append(entries)
        distant.append(far)
        limits.append(limit)
        firsts.append(first)
        written.append(np.concatenate([row.history[base:], *row.noisy]))
    working, slots = None, np.concatenate(written)
    if not pool.direct(np.concatenate([slots, *(row.history for row in rows)])):
        committed = np.concatenate([row.history[len(row.history) - row.commit :] for row in rows])
        working, slots = working_set(pool, local + (distant if mode == "decay" else []), slots, committed)
    limit_BF, first_BF = np.array(limits), np.array(firsts)
    output = rows[0].commit if rows[0].noisy else limit_BF.shape[1]
    output_lists = None
    if rows[0].noisy:
        late, far_late = ([entries[output:] for entries in lists] for lists in (local, distant))
        output_lists = _lists(config, late, far_late, limit_BF[:, output:], first_BF[:, output:], mode, device)
    lists = (
        output_lists
        if output == 0 and output_lists is not None
        else _lists(config, local, distant, limit_BF, first_BF, mode, device)
    )
    history = _NONE if lists.limit is None else _history(pool, rows, config.blocks_per_frame, tables)
    placed = upload(slots, device)
    return Plan(placed, lists, limit_BF.shape[1], output, output_lists, *history, top_k, working)


def _history(pool: PagePool, rows: list[Row], blocks: int, tables: bool) -> _History:
    """Tables of the rows; a slice of the pool where there is one row without gaps and that will do.

    With few gaps, too, if the CPU selects: a full memory is a ring, and to copy its mean keys takes longer than to scan
    them.
    """
    if len(rows) == 1 and not tables:
        slots = rows[0].history
        gaps = np.flatnonzero(np.diff(slots) != 1) + 1
        if not len(gaps):
            return slice(int(slots[0]), int(slots[-1]) + 1), None, int(slots[0]) * blocks
        if pool.device.type == "cpu" and len(gaps) < _MOST_RUNS:
            runs = tuple((int(part[0]) * blocks, len(part) * blocks) for part in np.split(slots, gaps))
            return slice(0, pool.limit), runs, torch.from_numpy(_blocks_of(slots[None], blocks))
    padded = np.zeros((len(rows), max(len(row.history) for row in rows)), np.int64)
    for b, row in enumerate(rows):
        padded[b, : len(row.history)] = row.history
    sent = upload_all([padded, _blocks_of(padded, blocks)], pool.device)
    return sent[0], None, sent[1]


def _blocks_of(slots: NDArray[np.int64], blocks: int) -> NDArray[np.int32]:
    """The pool's blocks of the frames in slots [B, n], int32 [B, n * M]."""
    return (slots[..., None] * blocks + np.arange(blocks)).reshape(len(slots), -1).astype(np.int32)
