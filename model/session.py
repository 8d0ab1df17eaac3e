"""A session: one generated world and all of its state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..conventions.actions import validate_vector
from ..conventions.poses import validate_poses
from .attention import BlockLists
from .changes import hands_used, made_changes
from .memory import MemoryBank
from .nearest_views import Views
from .upload import upload
from .video_rate import to_latent_rate
from .video_stream import VideoStream

if TYPE_CHECKING:
    from .snapshot import Snapshot
    from .world_model import WorldModel

ENCODE_BATCH = 32


@dataclass(frozen=True)
class Settings:
    """How a session generates.

    Attributes:
        memory: `memory`, `dense`, `off` or `window` (see `WorldModel.start`).
        top_k: Retrieved blocks.
        steps: Sampler steps.
        new_view_steps: The same of frames that show something new (`keyframes`).
        guidance: Action guidance scale, 1 is off.
    """

    memory: str
    top_k: int
    steps: int
    new_view_steps: int
    guidance: float


@dataclass(frozen=True)
class Pending:
    """The newest chunk: generated or observed, not yet in memory (the next pass commits it).

    Attributes:
        latents: fp32 [c, C, h, w] on the model's device.
        actions: float32 [c, 25].
        poses: float64 [c, 5].
        frame_index: int64 [c].
        generated: bool [c], whether the model made the frame itself.
        cells: float64 [c, 3], the cell that the hand changed, NaN where that is not known.
        told: float64 [c, K, 4], the changes that the model is told of in each frame (`changes.told_changes`), its own
            included; K is 0 without `voxel_hands`, 1 (its own alone) without `voxel_changes`.
        hands: bool [c], whether a hand is at work (`changes.hands_used`).
        changes: float64 [c, 4], what it changes (`changes.made_changes`).
    """

    latents: Tensor
    actions: NDArray[np.float32]
    poses: NDArray[np.float64]
    frame_index: NDArray[np.int64]
    generated: NDArray[np.bool_]
    cells: NDArray[np.float64]
    told: NDArray[np.float64]
    hands: NDArray[np.bool_]
    changes: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        latents: Tensor,
        actions: NDArray[np.float32],
        poses: NDArray[np.float64],
        frame_index: NDArray[np.int64],
        generated: NDArray[np.bool_],
        cells: NDArray[np.float64],
        told: NDArray[np.float64],
    ) -> Pending:
        """A chunk; what hands do in it follows from the rest."""
        done = hands_used(actions), made_changes(actions, poses, cells)
        return cls(latents, actions, poses, frame_index, generated, cells, told, *done)

    @property
    def views(self) -> Views:
        """The frames as views that later ones may see."""
        return Views(self.poses, self.hands, self.generated, self.changes)

    def part(self, part: slice) -> Pending:
        """Some of the frames."""
        return Pending(*(getattr(self, entry.name)[part] for entry in fields(self)))


class Session:
    """One world. Made by `WorldModel.start`, `WorldModel.restore` or `fork`; stepped by `WorldModel.step`.

    Attributes:
        model: The model that generates.
        seed: Of the noise.
        settings: How it generates.
        record_lists: Keep the retrieved lists of each step in `last_lists`.
        last_seen: int64 [n], indices of the frames that the last generated chunk saw, where they are chosen by their
            poses (`nearest_views`); None elsewhere.
        last_lists: Per layer, the blocks that the last generated chunk retrieved in its last sampler step: lists int32
            [heads, blocks of the chunk, top_k] and counts; block `j` is block `j % M` of frame `memory_frames[j // M]`.
        force_lists: Per layer, blocks to retrieve in the next `observe` or step instead of the best-scoring ones, for
            the frames of that call in the order of its pass: those it commits, then the noisy ones; lists int32
            [1, heads, frames * M, k]. Used once.
    """

    def __init__(self, model: WorldModel, seed: int, settings: Settings) -> None:
        self.model = model
        self.seed = int(seed)
        self.settings = settings
        self.bank = MemoryBank(model.pool)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.pending: Pending | None = None
        # `video` stands before the pending chunk until `shown` holds its frames, and behind it from then on.
        self.video = model.autoencoder.stream(model.decoder or model.own_decoder)
        self.shown: Tensor | None = None
        self.encoded = 0  # latent frames that `video` has encoded
        self.origin: NDArray[np.float64] | None = None
        self.next_frame = 0
        self.forks = 0
        self.step_ms = 0.0
        self.record_lists = False
        self.last_lists: list[BlockLists] | None = None
        self.last_seen: NDArray[np.int64] | None = None
        self.force_lists: list[BlockLists] | None = None
        self.closed = False

    def observe(
        self,
        frames: NDArray[np.uint8] | Tensor,
        actions: ArrayLike,
        poses: ArrayLike,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Let true frames enter the memory, all at once.

        Args:
            frames: uint8 [T, H, W, 3].
            actions: float32 [T, 25]; `actions[t]` led to frame t.
            poses: float64 [T, 5].
            progress: Called with the number of frames done since the last call.

        Raises:
            ValueError: Wrong shape, type, range or NaN.
        """
        cfg = self.model.config
        self._open()
        pixels = torch.as_tensor(frames)
        size = (cfg.height, cfg.frame_width, 3)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or tuple(pixels.shape[1:]) != size or not len(pixels):
            raise ValueError(
                f"frames are {str(pixels.dtype).removeprefix('torch.')} {tuple(pixels.shape)}: expected uint8 "
                f"[T, {size[0]}, {size[1]}, 3]"
            )
        count = len(pixels)
        actions, poses = validate_vector(actions), validate_poses(poses)
        if actions.shape != (count, cfg.action_dim) or poses.shape != (count, 5):
            raise ValueError(
                f"{count} frames with actions {actions.shape} and poses {poses.shape}: expected [{count}, "
                f"{cfg.action_dim}] and [{count}, 5]"
            )
        stride = cfg.frames_per_latent
        whole, alone = cfg.chunk * stride, stride - 1 if self.next_frame == 0 else 0
        if (count + alone) % whole:
            wanted = f"{whole - alone} or any multiple of {whole} more, for" if alone else "a multiple of"
            raise ValueError(f"{count} frames: expected {wanted} the chunk of {whole}")
        if self.model.autoencoder.reach and self.encoded != self.next_frame:
            raise ValueError(
                "this session holds frames that were generated or given as latents, and its autoencoder encodes a "
                "video without gaps: observe before the first step, or start another session"
            )
        with self.model.lock:
            before, self.video = self.video, self.video.fork()
            try:
                parts = [self.video.encode(upload(part, self.model.device)) for part in _parts(self.video, pixels)]
                slow = to_latent_rate(actions, poses, stride, self.next_frame == 0)
                self.observe_latents(torch.cat(parts), *slow, _in_frames(progress, stride, alone))
            except BaseException:
                self.video = before
                raise
            self.encoded = self.next_frame

    def observe_latents(
        self,
        latents: Tensor,
        actions: NDArray[np.float32],
        poses: NDArray[np.float64],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Let frames that are encoded already enter the memory.

        Args:
            latents: fp32 [T, C, h, w] on the model's device, T a multiple of the chunk.
            actions: float32 [T, A], at the rate of latents (`video_rate.to_latent_rate`).
            poses: float64 [T, 5], likewise.
            progress: Called with the number of latent frames done since the last call.

        Raises:
            ValueError: Wrong shape.
        """
        cfg = self.model.config
        self._open()
        count = len(latents)
        wanted = (count, *cfg.autoencoder.latent_shape), (count, cfg.action_channels), (count, 5)
        if (tuple(latents.shape), actions.shape, poses.shape) != wanted or not count or count % cfg.chunk:
            raise ValueError(
                f"latents {tuple(latents.shape)}, actions {actions.shape} and poses {poses.shape}: expected "
                f"{wanted[0]}, {wanted[1]} and {wanted[2]}, a multiple of the chunk of {cfg.chunk}"
            )
        with self.model.lock:
            if self.origin is None:
                self.origin = poses[0].copy()
            index = np.arange(self.next_frame, self.next_frame + count)
            cells = np.full((count, 3), np.nan)
            told = self.model.told(self, poses, np.full((count, 4), np.nan))
            fresh = Pending.of(latents, actions, poses, index, np.zeros(count, np.bool_), cells, told)
            waiting = self.pending is not None
            self.model.commit(self, _split(_joined(self.pending, fresh), cfg.chunk), progress)
            self.next_frame += count
        if progress is not None and not waiting:
            progress(cfg.chunk)

    def fork(self, n: int) -> list[Session]:
        """Branch into n sessions that share this memory; this one stays usable.

        Child 0 continues this session's noise; child i draws its own, from (seed, number of the fork, i).
        """
        self._open()
        if n < 1:
            raise ValueError(f"fork({n}): expected at least 1")
        self.forks += 1
        children = []
        for i in range(n):
            child = Session(self.model, self.seed if i == 0 else derived_seed(self.seed, self.forks, i), self.settings)
            child.bank = self.bank.fork()
            if i == 0:
                child.generator.set_state(self.generator.get_state())
                child.forks = self.forks
            child.pending, child.origin, child.next_frame = self.pending, self.origin, self.next_frame
            child.video, child.shown, child.encoded = self.video.fork(), self.shown, self.encoded
            child.record_lists = self.record_lists
            children.append(child)
        return children

    def snapshot(self) -> Snapshot:
        """Freeze the state; costs no copy as long as memory is not short."""
        from .snapshot import Snapshot

        self._open()
        return Snapshot.of(self)

    def decode_context(self) -> NDArray[np.uint8]:
        """The newest chunk as the autoencoder shows it, uint8 [F, H, W, 3].

        Raises:
            ValueError: Nothing was observed or generated yet.
        """
        if self.pending is None:
            raise ValueError("this session has no frame yet: observe some, or step")
        with self.model.lock:
            return self.show().cpu().numpy()

    def show(self) -> Tensor:
        """Decode the pending chunk, once; uint8 [F, H, W, 3]."""
        assert self.pending is not None
        if self.shown is None:
            self.shown = self.video.decode(self.pending.latents)
        return self.shown

    def replace_pending(self, pending: Pending, between: Tensor | None = None) -> None:
        """Make another chunk the newest one.

        Args:
            pending: The chunk.
            between: Latents [n, C, h, w] that came between the old one and this one.
        """
        if self.shown is None and self.pending is not None:
            self.video.skip(self.pending.latents)
        if between is not None:
            self.video.skip(between)
        self.pending, self.shown = pending, None

    @property
    def pose(self) -> NDArray[np.float64] | None:
        """Pose of the newest frame, float64 [5]."""
        return None if self.pending is None else self.pending.poses[-1]

    @property
    def memory_frames(self) -> NDArray[np.int64]:
        """Frame index of every frame that can be retrieved, int64 [n], in the order of the lists."""
        return self.bank.frame_index

    @property
    def memory_poses(self) -> NDArray[np.float64]:
        """Pose of every frame that can be retrieved, float64 [n, 5]."""
        return self.bank.poses

    @property
    def remembered(self) -> int:
        """Latent frames in memory, those of the newest chunk included."""
        return len(self.bank) + (0 if self.pending is None else len(self.pending.frame_index))

    @property
    def stats(self) -> dict[str, Any]:
        """Facts about this session: memory, budget, timing, checkpoint.

        `covered_frames` were generated beside a remembered view and not kept (`keyframes`), `evicted_frames` were
        dropped for want of room.
        """
        model = self.model
        frames, far, memory = len(self.bank), self.bank.on_host, model.pool
        return {
            "frame_index": self.next_frame - 1,
            "memory_frames": self.remembered,
            "memory_bytes": frames * memory.page_bytes - far * memory.host_page_bytes,
            "memory_budget": memory.budget,
            "host_frames": far,
            "host_bytes": far * memory.host_page_bytes,
            "fetched_bytes": memory.staging.fetched_bytes(),
            "evicted_frames": self.bank.evicted,
            "covered_frames": self.next_frame - self.remembered - self.bank.evicted,
            "retrieved_lists": self.last_lists,
            "step_ms": self.step_ms,
            "memory": self.settings.memory,
            "top_k": self.settings.top_k,
            "steps": self.settings.steps,
            "new_view_steps": self.settings.new_view_steps,
            "guidance": self.settings.guidance,
            "checkpoint": model.name,
            "checkpoint_sha256": model.sha256,
        }

    def close(self) -> None:
        """Give the memory back; the session cannot be used any more."""
        self.bank.close()
        self.pending, self.shown, self.closed = None, None, True
        self.video = self.model.autoencoder.stream()

    def _open(self) -> None:
        if self.closed:
            raise ValueError("this session is closed: start another")


def derived_seed(seed: int, fork: int, child: int) -> int:
    """Seed of a forked session."""
    digest = hashlib.sha256(f"{seed}/{fork}/{child}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _joined(first: Pending | None, second: Pending) -> Pending:
    if first is None:
        return second
    names = [entry.name for entry in fields(Pending) if entry.name != "latents"]
    rest = [np.concatenate([getattr(first, name), getattr(second, name)]) for name in names]
    return Pending(torch.cat([first.latents, second.latents]), *rest)


def _in_frames(progress: Callable[[int], None] | None, stride: int, alone: int) -> Callable[[int], None] | None:
    """Report latents as video frames; the first latent lacks `alone` of them."""
    if progress is None or stride == 1:
        return progress
    lack = alone

    def note(latents: int) -> None:
        nonlocal lack
        progress(latents * stride - lack)
        lack = 0

    return note


def _parts(video: VideoStream, frames: Tensor) -> list[Tensor]:
    """Cut frames so that few of them lie on the device at a time."""
    lead = len(frames) % video.encoder.frames_per_latent
    return [part for part in (frames[:lead], *frames[lead:].split(ENCODE_BATCH)) if len(part)]


def _split(frames: Pending, chunk: int) -> tuple[Pending, Pending]:
    """All but the last chunk, and the last chunk."""
    cut = len(frames.frame_index) - chunk
    return frames.part(slice(None, cut)), frames.part(slice(cut, None))
