"""How much a longer memory costs: `decmem bench growth`, by the definition of Growth in the measures.

Two frozen histories in one process are timed in turn; the figure is the median of the paired ratios. Random keys and
values with the spread of true ones fill the histories, so retrieval reads all over them (the worst case for caches).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .model import WorldModel
    from .model.session import Session

PAIRS, THREADS = 200, 2
STEP_FRAMES, KERNEL_FRAMES = (100, 3000), (100, 2000)
STEP_BAR, ATTENTION_BAR, SELECTION_BAR = 1.35, 1.1, 1.5
_AT_ONCE = 64


def paired(short: Callable[[], object], long: Callable[[], object], pairs: int, warm_up: int = 5) -> dict[str, float]:
    """Time two calls in turn.

    Returns:
        `ratio` (median of long / short), `ratio_10`, `ratio_90`, and the median milliseconds `short_ms`, `long_ms`.
    """
    times: list[list[float]] = [[], []]
    for i in range(warm_up + pairs):
        for held, call in zip(times, (short, long), strict=True):
            start = time.perf_counter()
            call()
            if i >= warm_up:
                held.append(1000.0 * (time.perf_counter() - start))
    ratios = [b / a for a, b in zip(*times, strict=True)]
    low, high = np.percentile(ratios, [10, 90])
    return {
        "ratio": statistics.median(ratios),
        "ratio_10": float(low),
        "ratio_90": float(high),
        "short_ms": statistics.median(times[0]),
        "long_ms": statistics.median(times[1]),
    }


def _clip(model: WorldModel, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames of noise, actions and poses of a player who turns on the spot."""
    cfg = model.config
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (count, cfg.height, cfg.frame_width, 3), np.uint8)
    poses = np.zeros((count, 5))
    poses[:, 1], poses[:, 4] = 20.0, np.arange(count) * 15.0 % 360.0 - 180.0
    return frames, np.zeros((count, cfg.action_dim), np.float32), poses


def filled_session(model: WorldModel, frames: int, seed: int = 0) -> Session:
    """A session that remembers `frames` frames: random pages, then a window of true ones."""
    import torch

    cfg, pool = model.config, model.pool
    true = -(-(cfg.window + cfg.chunk) // cfg.chunk) * cfg.chunk
    clip = _clip(model, true + cfg.chunk)
    probe = model.start(seed)
    probe.observe(*clip)
    pages = pool.copy_out(probe.bank.slots)
    probe.close()
    session = model.start(seed, memory="content")  # what is seen by place costs the same in any memory
    session.origin = clip[2][0].copy()
    count = max(frames - true, 0)
    slots = pool.allocate(count)
    rng = torch.Generator().manual_seed(seed)
    for start in range(0, count, _AT_ONCE):
        part = torch.from_numpy(slots[start : start + _AT_ONCE])
        for layer in range(cfg.depth):
            fresh = []
            for held, rows in (
                (pages.keys, cfg.tokens),
                (pages.values, cfg.tokens),
                (pages.pooled, pages.pooled.shape[3]),
            ):
                noise = torch.randn(len(part), cfg.heads, rows, cfg.head_dim, generator=rng)
                fresh.append((noise * held[layer].float().std()).to(model.device))
            pool.write(layer, part.to(model.device), *fresh)
    never = np.zeros(count, np.bool_)
    session.bank.append(slots, np.arange(count), np.repeat(clip[2][:1], count, 0), never, never)
    session.next_frame = count
    session.observe(*clip)
    return session


def _stepper(model: WorldModel, session: Session) -> Callable[[], object]:
    """A call that generates one chunk, decoded, always from the same state."""
    state = session.snapshot()
    session.close()
    chunk = model.config.chunk
    _, actions, poses = _clip(model, chunk)

    def step() -> None:
        again = model.restore(state)
        model.step([again], actions[None], poses[None])
        again.close()

    return step


def step_growth(
    checkpoint: str = "tiny",
    *,
    frames: tuple[int, int] = STEP_FRAMES,
    pairs: int = PAIRS,
    threads: int = THREADS,
    device: str = "cpu",
) -> dict[str, Any]:
    """Ratio of whole steps (decode included) of one world with a long and a short memory."""
    import torch

    from .model import WorldModel

    torch.set_num_threads(threads)
    short, long = sorted(frames)
    size = WorldModel.from_pretrained(checkpoint, device=device, host_budget=0).pool.page_bytes
    # Twice what is needed, so that both tables lie without gaps.
    model = WorldModel.from_pretrained(
        checkpoint, device=device, memory_budget=2 * (short + long + 64) * size, host_budget=0
    )
    calls = [_stepper(model, filled_session(model, count, seed)) for seed, count in enumerate((long, short))]
    return {**paired(calls[1], calls[0], pairs), "frames": [short, long], "pairs": pairs, "threads": threads}


def kernel_growth(
    *,
    frames: tuple[int, int] = KERNEL_FRAMES,
    select: bool,
    pairs: int = PAIRS,
    threads: int = THREADS,
) -> dict[str, Any]:
    """Ratio of retrieved attention, all layers of the tiny shape, on the CPU.

    Args:
        frames: Of the two histories.
        select: Whether the blocks are chosen by `select_blocks` (in the time) or are uniform random lists.
        pairs: How many.
        threads: Of torch.
    """
    import torch

    from .kernels import block_sparse_attention, select_blocks
    from .model.config import tiny
    from .model.memory import PagePool, page_bytes
    from .model.memory_layout import CPU_MEMORY

    torch.set_num_threads(threads)
    cfg, rng = tiny(), torch.Generator().manual_seed(0)
    short, long = sorted(frames)
    queries, size, dim = 2 * cfg.blocks_per_frame, cfg.block_tokens, cfg.head_dim
    budget = long * page_bytes(cfg, torch.float32, CPU_MEMORY)
    pool = PagePool(cfg, torch.device("cpu"), torch.float32, budget, CPU_MEMORY)
    for start in range(0, long, _AT_ONCE):
        slots = torch.arange(start, min(start + _AT_ONCE, long))
        for layer in range(cfg.depth):
            shapes = ((len(slots), cfg.heads, rows, dim) for rows in (cfg.tokens, cfg.tokens, cfg.blocks_per_frame))
            pool.write(layer, slots, *(torch.randn(shape, generator=rng) for shape in shapes))
    q = torch.randn(1, cfg.heads, queries * size, dim, generator=rng)
    pooled = torch.randn(1, cfg.heads, queries, dim, generator=rng)

    def reader(count: int) -> Callable[[], object]:
        blocks = count * cfg.blocks_per_frame
        limit = torch.full((1, queries), blocks, dtype=torch.int32)
        scores = torch.rand(cfg.depth, cfg.heads, queries, blocks, generator=rng)
        fixed = scores.topk(cfg.top_k, sorted=False).indices.sort().values.int()
        full = torch.full((1, cfg.heads, queries), cfg.top_k, dtype=torch.int32)

        def read() -> None:
            for layer in range(cfg.depth):
                lists, counts = fixed[layer][None], full
                if select:
                    means, codes = pool.pooled(layer, slice(0, count)), pool.codes(layer, slice(0, count))
                    lists, counts = select_blocks(pooled, means, cfg.top_k, limit, codes=codes)
                k, v = (t[:, :, : count * cfg.tokens] for t in pool.keys(layer))
                block_sparse_attention(q, k, v, lists, counts, q_block=size, kv_block=size)

        return read

    found = paired(reader(short), reader(long), pairs)
    return {**found, "frames": [short, long], "pairs": pairs, "threads": threads}
