"""Speed of the full-size model at random weights: `decmem bench wan`, by the definitions of the measures.

The paper's protocol: 352x640, a memory of 56 latents, then 8 chunks of 4 latents, 20 steps, action guidance with both
branches in one pass over a shared history, every chunk written back clean. Random weights choose diffuse lists, the
worst case for caches. Longer histories are filled with random keys and values.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    import torch

    from .model import WorldModel
    from .model.checkpoint import Checkpoint
    from .model.session import Session, Settings
    from .model.taehv import TinyVideoDecoder

CHECK_BOUND = {"bfloat16": 2e-2, "float16": 4e-3, "float32": 1e-4}
PREFIX, CHUNKS, FEW_STEPS = 56, 8, 4
HISTORIES, LAYER_HISTORY, LAYERS = (56, 150, 600), 2400, 4
_AT_ONCE = 16


def random_model(preset: str, device: str, dtype: torch.dtype, latents: int, **changes: Any) -> WorldModel:
    """A model of random weights in which every part matters.

    Args:
        preset: Of `model.config`.
        device: Where.
        dtype: Of products, keys and values.
        latents: Latent frames that its memory must hold.
        **changes: Of the preset.
    """
    import torch

    from .model import WorldModel
    from .model.memory import page_bytes

    loaded = random_checkpoint(preset, device, **changes)
    budget = (latents + 8 * loaded.config.chunk) * page_bytes(loaded.config, dtype)
    return WorldModel(loaded, torch.device(device), dtype, memory_budget=budget, host_budget=0)


def random_checkpoint(preset: str, device: str, **changes: Any) -> Checkpoint:
    """The weights of `random_model`."""
    import torch
    from torch import nn

    from .model import autoencoders
    from .model.checkpoint import Checkpoint
    from .model.config import preset as sizes
    from .model.transformer import WorldTransformer

    config = sizes(preset).with_overrides(**changes)
    place = torch.device(device)
    torch.manual_seed(0)
    with place:
        transformer = WorldTransformer(config)
        autoencoder = autoencoders.build_autoencoder(config.autoencoder)
        for block in transformer.blocks:
            nn.init.normal_(cast(Any, block).modulation, std=0.5)  # so that each layer changes the stream
            gate = cast(Any, block).attention.gate
            if gate is not None:
                nn.init.normal_(gate.weight, std=config.width**-0.5)
        nn.init.normal_(transformer.head.weight, std=config.width**-0.5)
        nn.init.normal_(cast(Any, transformer.action)[2].weight, std=config.width**-0.5)
    transformer.eval().requires_grad_(False).to(place)
    return Checkpoint(f"random {preset}", "0" * 64, config, transformer, autoencoders.place(autoencoder, place))


def random_fast_decoder(device: str, dtype: torch.dtype) -> TinyVideoDecoder:
    """TAEHV's decoder with random weights."""
    import torch

    from .model.taehv import TinyVideoDecoder

    decoder = TinyVideoDecoder().eval().requires_grad_(False)
    return decoder.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def filled_session(model: WorldModel, latents: int) -> Session:
    """A session that remembers `latents` latent frames: random pages, then a window of frames from the model itself."""
    import torch

    cfg, pool = model.config, model.pool
    true = min(latents, -(-(cfg.window + cfg.chunk) // cfg.chunk) * cfg.chunk)
    session = model.start(0)
    session.origin = _poses(1)[0]
    count = latents - true
    for start in range(0, count, _AT_ONCE):  # in parts, so that the first may move to the host
        slots = pool.allocate(min(_AT_ONCE, count - start), session.bank.last)
        part = torch.from_numpy(slots).to(model.device)
        for layer in range(cfg.depth):
            shape = (len(part), cfg.heads, cfg.tokens, cfg.head_dim)
            keys, values = (torch.randn(shape, device=model.device, dtype=model.dtype) for _ in range(2))
            means = keys.unflatten(2, (cfg.blocks_per_frame, -1)).mean(3, dtype=torch.float32)
            pool.write(layer, part, keys, values, means)
        index, poses = np.arange(start, start + len(slots)), np.repeat(_poses(1), len(slots), 0)
        never = np.zeros(len(slots), np.bool_)
        session.bank.append(slots, index, poses, never, never)
    session.next_frame = count
    observe(session, true)
    return session


def observe(session: Session, latents: int) -> None:
    """Random latents enter a session's memory, as an encoded video would."""
    import torch

    model, cfg = session.model, session.model.config
    frames = torch.randn(latents, *cfg.autoencoder.latent_shape, device=model.device)
    actions = np.zeros((latents, cfg.action_channels), np.float32)
    session.observe_latents(frames, actions, _poses(latents))


def step(session: Session, decode: bool = False) -> None:
    """Generate one chunk of a player who turns on the spot."""
    count = session.model.frames_of(session)
    actions = np.zeros((1, count, session.model.config.action_dim), np.float32)
    actions[..., 16] = 1.0
    session.model.step([session], actions, _poses(count)[None], decode=decode)  # type: ignore[call-overload]


def _poses(count: int) -> np.ndarray:
    poses = np.zeros((count, 5))
    poses[:, 1], poses[:, 4] = 20.0, np.arange(count) * 15.0 % 360.0 - 180.0
    return poses


def timed(model: WorldModel, call: Callable[[], object]) -> float:
    """Seconds of a call, with the device idle before and after."""
    import torch

    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(model.device)
    start = time.perf_counter()
    call()
    if cuda:
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start


def _branch(session: Session, **settings: Any) -> Session:
    """The same memory under other settings."""
    (child,) = session.fork(1)
    child.settings = replace(cast("Settings", session.settings), **settings)
    return child


def check(preset: str, device: str, dtype: torch.dtype, depth: int = 2) -> float:
    """Relative error of one streamed chunk against one teacher-forced pass in fp32; all history is retrieved.

    Args:
        preset: Of `model.config`.
        device: Where.
        dtype: Of the streamed pass.
        depth: Layers.
    """
    import torch

    from .conventions.poses import normalised_intrinsics, projective_matrices
    from .model import flow

    model = random_model(preset, device, dtype, 64, depth=depth, top_k=80)
    cfg, prefix = model.config, 3 * model.config.chunk
    total = prefix + cfg.chunk
    session = model.start(0, steps=1, guidance=1.0)
    torch.manual_seed(1)
    clean = torch.randn(total, *cfg.autoencoder.latent_shape, device=model.device)
    poses, actions = _poses(total), np.zeros((total, cfg.action_channels), np.float32)
    actions[:, 11] = 1.0
    session.observe_latents(clean[:prefix], actions[:prefix], poses[:prefix])
    twin = torch.Generator().manual_seed(0)
    noise = flow.session_noise(twin, (cfg.chunk, *cfg.autoencoder.latent_shape)).to(model.device)
    count = model.frames_of(session)
    model.step(
        [session],
        actions[None, prefix:].reshape(1, count, -1),
        poses[prefix:].repeat(count // cfg.chunk, 0)[None],
        decode=False,
    )
    assert session.pending is not None
    found = noise - session.pending.latents
    camera = normalised_intrinsics(cfg.height, cfg.frame_width, cfg.vertical_fov)
    pair = projective_matrices(poses, camera, poses[0], translation_scale=cfg.translation_scale)
    projective, inverse = (torch.from_numpy(m.astype(np.float32))[None].to(model.device) for m in pair)
    with torch.no_grad():
        plain = random_model(preset, device, torch.float32, 16, depth=depth, top_k=80).transformer
        wanted = plain.teacher_forcing(
            clean[None],
            torch.cat([torch.zeros_like(clean[:prefix]), noise])[None],
            torch.zeros(1, total, device=model.device),
            torch.ones(1, total, device=model.device),
            torch.from_numpy(actions)[None].to(model.device),
            projective,
            inverse,
            torch.arange(total, device=model.device)[None],
            action_mask=torch.ones(1, total, dtype=torch.bool, device=model.device),
        )[0, prefix:]
    return float((found - wanted).norm() / wanted.norm())


def chunk_seconds(session: Session, chunks: int = 2, **settings: Any) -> float:
    """Median time of chunks after one that does not count."""
    child = _branch(session, **settings)
    try:
        step(child)
        return statistics.median(timed(session.model, lambda: step(child)) for _ in range(chunks))
    finally:
        child.close()


def dense_seconds(session: Session) -> float:
    """Time of a chunk with dense attention: from one step and three, as every further step costs the same.

    The same chunk every time: dense kernels are planned anew for each length, which the first run pays.
    """

    def once(steps: int) -> float:
        child = _branch(session, memory="dense", steps=steps)
        try:
            return timed(session.model, lambda: step(child))
        finally:
            child.close()

    once(1)
    one, three = (statistics.median(once(steps) for _ in range(3)) for steps in (1, 3))
    return one + (session.settings.steps - 1) * (three - one) / 2


def protocol(
    model: WorldModel, prefix: int = PREFIX, chunks: int = CHUNKS, decode: bool = False, **settings: Any
) -> dict[str, float]:
    """The paper's protocol; the prefix is given as latents.

    Args:
        model: Of `random_model`.
        prefix: Latents that are observed.
        chunks: To generate.
        decode: Whether frames are made; decoding the prefix, which later frames depend on, counts as prefill.
        **settings: Of the session.

    Returns:
        `frames_per_second`, `chunk_seconds` (mean), `prefill_seconds`.
    """

    def begin() -> None:
        observe(session, prefix)
        if decode:
            session.decode_context()

    def play() -> None:
        for _ in range(chunks):
            step(session, decode)

    session = _branch(model.start(0), **settings)
    begin()  # compiles
    step(session, decode)
    session.close()
    session = _branch(model.start(0), **settings)
    prefill = timed(model, begin)

    seconds = timed(model, play)
    session.close()
    frames = chunks * model.frames_per_step
    return {
        "frames_per_second": frames / seconds,
        "chunk_seconds": seconds / chunks,
        "prefill_seconds": prefill,
        "prefix_latents": prefix,
        "chunks": chunks,
    }


def use_graphs(model: WorldModel) -> float:
    """Let a model replay its passes as CUDA graphs from now on; the relative difference that it makes after 3 chunks.

    Raises:
        ValueError: The model is not on a GPU.
    """
    import torch

    from .model.pass_graphs import PassGraphs

    made: list[torch.Tensor] = []
    for graphs in (None, PassGraphs(model.streamer)):
        model.graphs = graphs
        session = model.start(0, steps=FEW_STEPS)
        torch.manual_seed(1)
        observe(session, PREFIX)
        for _ in range(3):
            step(session)
        assert session.pending is not None
        made.append(session.pending.latents.clone())
        session.close()
    return float((made[1] - made[0]).norm() / made[0].norm())


def histories(model: WorldModel, lengths: tuple[int, ...], dense: bool) -> Iterator[dict[str, float]]:
    """Time of a chunk at each length of history as it is measured, dense attention beside it where asked for."""
    for latents in lengths:
        session = filled_session(model, latents)
        row = {"latents": float(latents), "chunk_seconds": chunk_seconds(session)}
        if dense:
            row["dense_chunk_seconds"] = dense_seconds(session)
        session.close()
        yield row


def layer_growth(preset: str, device: str, dtype: torch.dtype, lengths: tuple[int, int], layers: int) -> dict[str, Any]:
    """Time of a chunk through a few layers, the long history over the short one."""
    model = random_model(preset, device, dtype, sum(lengths) + 64, depth=layers)
    seconds = []
    for latents in lengths:
        session = filled_session(model, latents)
        seconds.append(chunk_seconds(session, 3))
        session.close()
    return {"ratio": seconds[1] / seconds[0], "seconds": seconds, "latents": list(lengths), "layers": layers}


def profile(model: WorldModel, latents: int = PREFIX, rows: int = 30) -> str:
    """Where the time of a chunk of two steps goes: kernels of the device, longest first, then what was chosen."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorder

    from .kernels.choice import choices

    session = _branch(filled_session(model, latents), steps=2)
    step(session)
    alone = statistics.median(timed(model, lambda: step(session)) for _ in range(3))
    cuda = model.device.type == "cuda"
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with recorder(activities=kinds) as found:
        timed(model, lambda: step(session))
    session.close()
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=order, row_limit=rows, max_name_column_width=70)
    said = f"without the profiler the chunk takes {1000.0 * alone:.1f} ms; beyond the device's own time it waited"
    return "\n".join([table, said, *(f"{what}: {way}" for what, way in choices().items())])
