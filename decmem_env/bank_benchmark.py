"""What memory on the host and in 8 bits costs: `decmem bench bank`, at random weights and random keys and values.

Each part first compares the limited memory with an unlimited one over the same step and refuses to print a speed if
they differ by more than rounding (8-bit memory has a bound of its own, and its error is a figure).
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from .copies import copies_beside
from .wan_benchmark import CHECK_BOUND, FEW_STEPS, filled_session, random_checkpoint, step, timed

if TYPE_CHECKING:
    import torch

    from .model import WorldModel
    from .model.checkpoint import Checkpoint
    from .model.session import Session

TINY_FRAMES, TINY_BUDGET = 16_667, 2 << 30  # 100,000 blocks; 2 GiB
LAYER_FRAMES, LAYER_BUDGET = 3_334, 8 << 30  # 20,000 blocks
AHEAD_FRAMES, AHEAD_LAYERS, AHEAD_TOP_K = 600, 4, 80
MINUTE_LATENTS, CARD_BYTES = 150, 22 << 30  # 600 video frames; what a card of 24 GB leaves free
FORK_FRAMES, FORKS = 600, 64
INT8_BOUND = 0.1  # relative error of a generated chunk


def _model(
    loaded: Checkpoint, device: str, dtype: torch.dtype, budget: int, memory_dtype: str | None = None, host: int = 0
) -> WorldModel:
    import torch

    from .model import WorldModel

    return WorldModel(loaded, torch.device(device), dtype, budget, memory_dtype, host)


def _room(loaded: Checkpoint, dtype: torch.dtype, latents: int, memory_dtype: str | None = None) -> int:
    """Bytes of so many latent frames and of what a session needs beside them."""
    from .model.memory import page_bytes

    spare = loaded.config.window + 8 * loaded.config.chunk
    return (latents + spare) * page_bytes(loaded.config, dtype, memory_dtype)


def _fill(model: WorldModel, latents: int, **settings: Any) -> Session:
    """A session with the same random memory on every model."""
    from dataclasses import replace

    import torch

    torch.manual_seed(1)
    session = filled_session(model, latents)
    session.settings = replace(session.settings, **settings)
    return session


class _Peak:
    """Bytes of the device beyond the weights: of the pool, of the stages, and of all that a step needs."""

    def __init__(self, model: WorldModel) -> None:
        import torch

        self.device, self.weights = model.device, 0
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.weights = torch.cuda.memory_allocated(self.device) - model.pool.allocated
            torch.cuda.reset_peak_memory_stats(self.device)

    def bytes(self) -> int | None:
        """The most so far; None on the CPU."""
        import torch

        return None if self.device.type != "cuda" else torch.cuda.max_memory_allocated(self.device) - self.weights


class _Card:
    """Lets this process take no more of a CUDA device than a smaller one has; `peak` is the most that it took."""

    def __init__(self, device: str, limit: int) -> None:
        import torch

        place = torch.device(device)
        if place.type == "cuda" and place.index is None:
            place = torch.device("cuda", torch.cuda.current_device())
        self.device, self.limit = place, limit
        self.peak: int | None = None

    def _allow(self, share: float) -> None:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share, self.device)

    def __enter__(self) -> _Card:
        import torch

        if self.device.type == "cuda":
            self._allow(min(1.0, self.limit / torch.cuda.get_device_properties(self.device).total_memory))
            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *error: object) -> None:
        import torch

        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_reserved(self.device)
            self._allow(1.0)


def _chunk(session: Session) -> torch.Tensor:
    """Latents of one more chunk."""
    step(session)
    assert session.pending is not None
    return session.pending.latents.float()


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def _checked(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, what: str) -> float:
    error, bound = _difference(found, wanted), CHECK_BOUND[str(dtype).removeprefix("torch.")]
    if not error <= bound:
        raise ValueError(f"{what} changes a chunk by {error:.1e} (bound {bound:g}): no speed is printed")
    return error


def _pairs(short: Session, long: Session, pairs: int, decode: bool = False) -> dict[str, float]:
    """Median seconds of steps of both in turn, and the median of the paired ratios."""
    times: list[list[float]] = [[], []]
    for i in range(pairs + 2):
        for held, session in zip(times, (short, long), strict=True):
            seconds = timed(session.model, lambda s=session: step(s, decode))  # type: ignore[misc]
            if i >= 2:
                held.append(seconds)
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return {
        "unlimited_seconds": statistics.median(times[0]),
        "limited_seconds": statistics.median(times[1]),
        "ratio": statistics.median(ratios),
    }


def limited_step(
    preset: str,
    device: str,
    dtype: torch.dtype,
    frames: int,
    budget: int,
    pairs: int,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A step with most frames on the host against one with all of them on the device.

    Args:
        preset: Of `model.config`.
        device: Where.
        dtype: Of products, keys and values.
        frames: Latent frames remembered.
        budget: Bytes on the device of the limited memory.
        pairs: Steps that count.
        settings: Of the sessions.
        **changes: Of the preset.

    Returns:
        Seconds, their ratio, `error`, `blocks`, bytes, where the frames are, `peak_over_budget` (the most that torch
        held beyond weights and the unlimited memory's activations; None on the CPU) and `all_over_budget` (with them).

    Raises:
        ValueError: The steps differ: no speed.
    """
    loaded = random_checkpoint(preset, device, **changes)
    whole = _room(loaded, dtype, frames + 2 * pairs * loaded.config.chunk)
    limited = _model(loaded, device, dtype, budget, host=whole)
    peak = _Peak(limited)
    long = _fill(limited, frames, **(settings or {}))
    first = _chunk(long)
    fetched = long.stats["fetched_bytes"]
    step(long)
    most = peak.bytes()
    unlimited = _model(loaded, device, dtype, whole)
    other = _Peak(unlimited)
    short = _fill(unlimited, frames, **(settings or {}))
    error = _checked(first, _chunk(short), dtype, "the limited memory")
    step(short)
    beside = other.bytes()
    found: dict[str, Any] = {**_pairs(short, long, pairs), "error": error}
    found["blocks"] = frames * loaded.config.blocks_per_frame
    stats, layout = long.stats, limited.pool.layout
    found |= {key: stats[key] for key in ("host_frames", "evicted_frames", "fetched_bytes", "memory_budget")}
    found |= {"device_pages": layout.pages, "stages": layout.stages, "stage_blocks": layout.stage_blocks}
    found["first_fetched_bytes"] = fetched  # the stages were empty
    found["history_bytes"] = frames * limited.pool.page_bytes
    if most is not None and beside is not None:
        # Activations are not the memory's: the same steps with an unlimited memory show how much they take.
        activations = beside - unlimited.pool.allocated
        found["peak_over_budget"] = (most - activations) / budget
        found["activations_bytes"], found["all_over_budget"] = activations, most / budget
    else:
        found["peak_over_budget"] = None
    short.close()
    long.close()
    return found


def overlap(
    preset: str, device: str, dtype: torch.dtype, frames: int, budget: int, chunks: int = 3, **changes: Any
) -> dict[str, Any]:
    """Seconds of a step whose layers share two stages, with blocks copied ahead and without.

    Returns:
        Seconds of both, their ratio, bytes fetched, `error`; on CUDA, from one more step of each under the profiler,
        the milliseconds of copies and the share of them during which other kernels ran.

    Raises:
        ValueError: The two give different frames, or layers do not share stages at these sizes.
    """
    loaded = random_checkpoint(preset, device, **changes)
    host = _room(loaded, dtype, frames + 8 * chunks * loaded.config.chunk)
    model = _model(loaded, device, dtype, budget, host=host)
    if not 1 < model.pool.layout.stages < loaded.config.depth:
        raise ValueError(f"layers share no stages with a budget of {budget:,} bytes: give a smaller one")
    seconds: dict[bool, float] = {}
    fetched: dict[bool, int] = {}
    chunks_of: list[torch.Tensor] = []
    beside: dict[bool, dict[str, float]] = {}
    for ahead in (True, False):
        model.pool.staging.ahead = ahead
        session = _fill(model, frames, steps=FEW_STEPS, guidance=1.0)
        chunks_of.append(_chunk(session))
        seconds[ahead] = statistics.median(timed(model, lambda s=session: step(s)) for _ in range(chunks))  # type: ignore[misc]
        fetched[ahead] = session.stats["fetched_bytes"]
        beside[ahead] = copies_beside(model.device, lambda s=session: step(s))  # type: ignore[misc]
        session.close()
    error = _checked(chunks_of[0], chunks_of[1], dtype, "copying ahead")
    return {
        "ahead_seconds": seconds[True],
        "late_seconds": seconds[False],
        "ratio": seconds[True] / seconds[False],
        "ahead_bytes": fetched[True],
        "late_bytes": fetched[False],
        "error": error,
        **{
            f"{name}_{key}": value
            for name, of in (("ahead", True), ("late", False))
            for key, value in beside[of].items()
        },
    }


def eight_bits(
    preset: str, device: str, dtype: torch.dtype, latents: int, pairs: int, decode: bool = True, **changes: Any
) -> dict[str, Any]:
    """A long memory in 8 bits against the same one in full: bytes, speed and error.

    Args:
        preset: Of `model.config`.
        device: Where. On CUDA the 8-bit model is made, filled and stepped within `CARD_BYTES`.
        dtype: Of the products.
        latents: Latent frames remembered in the end.
        pairs: Chunks that count.
        decode: Whether frames are made.
        **changes: Of the preset.

    Returns:
        Frames a second, the most bytes that torch took from the device (weights, decoder, and making the model
        included), and errors.

    Raises:
        ValueError: A generated chunk differs by more than `INT8_BOUND`: no speed.
    """
    from .model.memory_layout import divide, page_bytes

    loaded = random_checkpoint(preset, device, **changes)
    cfg, settings = loaded.config, {"steps": FEW_STEPS, "guidance": 1.0}
    begin = latents - (pairs + 3) * cfg.chunk
    budget = (latents + cfg.chunk) * page_bytes(cfg, dtype, "int8")
    while divide(cfg, dtype, "int8", budget, 0, False).pages < max(latents + cfg.chunk, cfg.window + 4 * cfg.chunk):
        budget += budget // 100
    with _Card(device, CARD_BYTES) as card:
        small = _model(loaded, device, dtype, budget, "int8")
        short = _fill(small, begin, **settings)
        held = [timed(small, lambda: step(short, decode)) for _ in range(pairs + 2)][2:]
        short.close()
    full = _model(loaded, device, dtype, _room(loaded, dtype, latents))
    short, long = (_fill(model, begin, **settings) for model in (small, full))
    error = _difference(*(_chunk(session) for session in (short, long)))
    frames = [session.decode_context() for session in (long, short)]
    if not error <= INT8_BOUND:
        raise ValueError(f"8-bit memory changes a chunk by {error:.2f} (bound {INT8_BOUND:g}): no speed")
    squared = float(np.mean((frames[0].astype(np.float64) - frames[1]) ** 2))
    found: dict[str, Any] = _pairs(long, short, pairs, decode)
    attention = attention_error(full, long)
    count = small.frames_per_step
    # What counts is the step inside the card, where passes may have to be smaller.
    found["together_seconds"], found["limited_seconds"] = found["limited_seconds"], statistics.median(held)
    found["ratio"] = found["limited_seconds"] / found["unlimited_seconds"]
    found |= {
        "latents": latents,
        "memory_budget": budget,
        "peak_gib": None if card.peak is None else card.peak / 2**30,
        "frames_per_second": count / found["limited_seconds"],
        "unlimited_frames_per_second": count / found["unlimited_seconds"],
        "chunk_error": error,
        "chunk_psnr_db": float(10 * np.log10(255**2 / max(squared, 1e-9))),
        "attention_error": attention,
    }
    return found


def attention_error(model: WorldModel, session: Session) -> float:
    """Relative error of attention to 8-bit copies of a session's newest frames (the model's own keys), all layers.

    Args:
        model: With memory in full precision.
        session: Of the model.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from .kernels.gather_blocks import dequantise_blocks, quantise_blocks

    cfg = model.config
    slots = torch.as_tensor(session.bank.slots[-cfg.window :], device=model.device)
    wrong = right = 0.0
    for layer in range(cfg.depth):
        exact = [t.index_select(1, slots).float() for t in model.pool.pages(layer)[:2]]
        rough = [dequantise_blocks(*quantise_blocks(t, cfg.blocks_per_frame)) for t in exact]
        query = exact[0][None, :, -1]
        flat = [[t.flatten(1, 2)[None] for t in pair] for pair in (exact, rough)]
        one, other = (scaled_dot_product_attention(query, keys, values) for keys, values in flat)
        wrong, right = wrong + float((one - other).square().sum()), right + float(one.square().sum())
    return (wrong / right) ** 0.5


def forks(
    preset: str, device: str, dtype: torch.dtype, frames: int = FORK_FRAMES, count: int = FORKS
) -> dict[str, Any]:
    """Bytes of the memory right after a session was forked, tables included, over those of the session alone."""
    loaded = random_checkpoint(preset, device)
    model = _model(loaded, device, dtype, _room(loaded, dtype, frames + 2 * count))
    session = _fill(model, frames)
    before = _bank_bytes(model, [session])
    children = session.fork(count)
    after = _bank_bytes(model, [session, *children])
    apart = _difference(*(_chunk(s) for s in (children[-1], session)))  # pages are shared, noise is not
    for child in children:
        child.close()
    return {"ratio": after / before, "before_bytes": before, "after_bytes": after, "forks": count, "apart": apart}


def _bank_bytes(model: WorldModel, sessions: list[Session]) -> int:
    tables = sum(t.nbytes for s in sessions for t in (s.bank.slots, s.bank.frame_index, s.bank.poses))
    return model.pool.used * model.pool.page_bytes + tables
