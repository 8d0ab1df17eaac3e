"""The engine: `WorldModel` generates frames for any number of sessions, each with its own memory."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..conventions.actions import validate_vector
from ..conventions.poses import normalised_intrinsics, validate_poses
from . import checkpoint, flow
from .attention import BlockLists
from .changes import hands_used, latest, made_changes, told_on_walk
from .denoising import Chunks, denoise, place
from .keyframes import keeps
from .memory import PagePool
from .memory_layout import CPU_MEMORY
from .nearest_views import BY_PLACE, seen_from
from .pass_graphs import PassGraphs
from .passes import LARGE_FRAME, MODES, Row, Seen, plan_pass
from .products import cpu_products
from .session import Pending, Session, Settings
from .snapshot import Snapshot
from .streaming import Streamer
from .upload import upload
from .video_rate import to_latent_rate, video_frames
from .video_stream import Decoder

PREFILL = {"cpu": 16, "cuda": 64}  # frames that one pass of a prefill commits


class WorldModel:
    """A loaded model and the memory of its sessions. Methods may be called from several threads; they take turns.

    Attributes:
        config: Sizes.
        autoencoder: Frames to latents and back.
        pose_predictor: Tells from latents where walls are, for poses from the model; None where there is none.
        decoder: Shows frames instead of the autoencoder's own, in sessions that start from now on (`taehv`).
        own_decoder: The autoencoder, or a copy in the dtype of the products: what shows frames without `decoder`.
        device: Where it runs.
        name: Of the checkpoint.
        sha256: Of the checkpoint.
        kernel: Device, number type and attention kernel, which bitwise replay depends on.
        frames_per_step: Video frames that one `step` makes; the first step of a session may make fewer (`frames_of`).
        graphs: Replays passes as CUDA graphs, for results that stay the same; None (the default) does without.
    """

    def __init__(
        self,
        loaded: checkpoint.Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        memory_budget: int | None = None,
        memory_dtype: str | None = None,
        host_budget: int | None = None,
        products: torch.dtype | None = None,
    ) -> None:
        self.config, self.name, self.sha256 = loaded.config, loaded.name, loaded.sha256
        self.transformer, self.autoencoder = loaded.transformer, loaded.autoencoder
        self.pose_predictor = loaded.pose_predictor
        self.decoder: Decoder | None = None
        self.device, self.dtype = device, dtype
        if self.config.layout == "wan" and device.type == "cuda" and dtype != torch.float32:
            # The streamer holds 16-bit copies; gigabytes of fp32 beside them wait on the host (`save_pretrained`), from
            # before the memory is reserved.
            self.transformer.blocks.to("cpu")
            torch.cuda.empty_cache()
        self.pool = PagePool(self.config, device, dtype, memory_budget, memory_dtype, host_budget)
        self.lock = self.pool.lock
        self.streamer = Streamer(self.transformer, self.pool, products)
        self.own_decoder: Any = self.autoencoder
        if products not in (None, dtype):
            self.own_decoder = copy.deepcopy(self.autoencoder).to(products)
        self.graphs: PassGraphs | None = None
        self.frames_per_step = self.config.chunk * self.config.frames_per_latent
        backend = "cpu" if device.type == "cpu" else "triton"
        self.kernel = f"{device.type}/{str(products or dtype).removeprefix('torch.')}/{backend}"
        self.kernel += "" if self.pool.memory_dtype is None else f"/{self.pool.memory_dtype}"
        self.intrinsics = normalised_intrinsics(self.config.height, self.config.frame_width, self.config.vertical_fov)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "tiny",
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        memory_budget: int | None = None,
        memory_dtype: str | None = None,
        host_budget: int | None = None,
    ) -> WorldModel:
        """Load a model.

        Args:
            name: `tiny`, a checkpoint folder, a hub id, or a size with random weights: `debug`,
                `wan-1.3b`, `wan-debug`.
            device: `cpu`, `cuda`, ...
            dtype: Of the products: by default fp16 on CUDA, fp32 on the CPU, where those with weights and decoding are
                in bf16 if the processor has it (`products`; not with `memory_dtype="float32"`, nor in Wan's layout).
            memory_budget: Bytes of memory for all sessions; 2 GiB on the CPU and 8 GiB (at most half of
                what is free) on CUDA by default. All of it is reserved at once.
            memory_dtype: Of keys and values, by default fp16 (`dtype` where that is not fp32 on the CPU); `float32` on
                the CPU for all of `dtype`; `int8` for half the bytes of fp16, with an error of about a hundredth.
            host_budget: Bytes of host memory for frames that the device has no room for; by default half of the free
                RAM on CUDA, none on the CPU. An explicit one may claim up to three quarters of `memory_budget` for what
                serves those frames, the default at most a quarter.

        Raises:
            CheckpointError: No such checkpoint, or a damaged one.
            ValueError: The device is not there, or the budget is too small.
        """
        place = torch.device(device)
        if place.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {device}: this torch sees no CUDA device; use device='cpu'")
        if place.type == "cuda" and place.index is None:
            place = torch.device("cuda", torch.cuda.current_device())
        free = dtype is None and memory_dtype != "float32"
        if dtype is None:
            dtype = torch.float16 if place.type == "cuda" else torch.float32
        if memory_dtype is None and place.type == "cpu" and dtype == torch.float32:
            memory_dtype = CPU_MEMORY
        loaded = checkpoint.load(str(name), place)
        products = None
        if free and place.type == "cpu" and loaded.config.layout == "split":
            products = cpu_products()
        return cls(loaded, place, dtype, memory_budget, memory_dtype, host_budget, products)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the checkpoint, weights in fp16; all of it or nothing."""
        checkpoint.save(folder, self.config, self.transformer, self.autoencoder, self.pose_predictor)

    def start(
        self,
        seed: int = 0,
        memory: str = "memory",
        top_k: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        new_view_steps: int | None = None,
    ) -> Session:
        """Begin a world.

        Args:
            seed: Of its noise.
            memory: `memory`, the model's own; `every`, the same, but every generated frame is kept (see `keyframes`);
                `content`, window and blocks retrieved by content, also where the model has `nearest_views`;
                `dense`, attention to everything; `decay`, the same with frames before the window weighed down; `off`,
                the window only; `window`, retrieval from the window's frames.
            top_k: Retrieved blocks; the config's by default.
            steps: Sampler steps; the config's by default.
            guidance: Action guidance scale (eq. 14), 1 is off; the config's by default.
            new_view_steps: Sampler steps of frames that show something new (`keyframes`); by default `steps` where that
                is given, else the config's.

        Raises:
            ValueError: A setting out of range.
        """
        cfg = self.config
        few = cfg.steps if steps is None else int(steps)
        if steps is None and new_view_steps is None:
            new_view_steps = cfg.default_new_view_steps
        settings = Settings(
            memory,
            cfg.top_k if top_k is None else int(top_k),
            few,
            few if new_view_steps is None else int(new_view_steps),
            cfg.guidance if guidance is None else float(guidance),
        )
        if memory not in MODES:
            raise ValueError(f"memory is {memory!r}: expected one of {', '.join(MODES)}")
        if min(settings.top_k, few, settings.new_view_steps) < 1 or not settings.guidance >= 0.0:
            raise ValueError(
                f"top_k {settings.top_k}, steps {few}, new_view_steps {settings.new_view_steps}, guidance "
                f"{settings.guidance:g}: expected at least 1, 1, 1, 0"
            )
        if settings.new_view_steps != few and not cfg.keyframe_blocks:
            raise ValueError(
                f"new_view_steps {settings.new_view_steps}: this model keeps every frame (keyframe_blocks 0), so that "
                "none is known to be new; leave it out"
            )
        return Session(self, seed, settings)

    def restore(self, snapshot: Snapshot) -> Session:
        """Continue from a snapshot; any number of times.

        Raises:
            SnapshotError: It belongs to another checkpoint or kernel choice.
        """
        return snapshot.restore(self)

    @overload
    def step(
        self,
        sessions: Sequence[Session],
        actions: ArrayLike,
        poses: ArrayLike,
        decode: Literal[True] = True,
        cells: ArrayLike | None = None,
    ) -> NDArray[np.uint8]: ...

    @overload
    def step(
        self,
        sessions: Sequence[Session],
        actions: ArrayLike,
        poses: ArrayLike,
        decode: Literal[False],
        cells: ArrayLike | None = None,
    ) -> None: ...

    def step(
        self,
        sessions: Sequence[Session],
        actions: ArrayLike,
        poses: ArrayLike,
        decode: bool = True,
        cells: ArrayLike | None = None,
    ) -> NDArray[np.uint8] | None:
        """Generate one chunk in each session, all in one batch.

        Args:
            sessions: n different sessions of this model, of any lengths.
            actions: float32 [n, F, 25] with F from `frames_of`, equal in all sessions.
            poses: float64 [n, F, 5], of the frames to be generated.
            decode: Whether frames are wanted.
            cells: float64 [n, F, 3], the cell (x, y, z) of the block grid that the player's hand breaks or fills in
                each frame, NaN where none is known; None: nowhere. Models without `voxel_hands` do not hear of it.

        Returns:
            uint8 [n, F, H, W, 3], or None without decoding.

        Raises:
            ValueError: Wrong shape, range or NaN, or a session that is closed, foreign or named twice.
        """
        began = time.perf_counter()
        sessions = list(sessions)
        actions, poses = self._check(sessions, actions, poses)
        told = self._checked_cells(cells, poses)
        groups: dict[tuple[Settings, bool], list[int]] = defaultdict(list)
        for i, session in enumerate(sessions):
            groups[session.settings, session.pending is None].append(i)
        frames = None
        with self.lock:
            self.pool.staging.mark()
            for (settings, _), rows in groups.items():
                self._generate([sessions[i] for i in rows], actions[rows], poses[rows], told[rows], settings)
            if decode:
                frames = self._decode(sessions).cpu().numpy()
        for session in sessions:
            session.step_ms = 1000.0 * (time.perf_counter() - began)
        return frames

    def _decode(self, sessions: list[Session]) -> Tensor:
        """Frames of the pending chunks, uint8 [n, F, H, W, 3]."""
        if self.autoencoder.reach or self.decoder is not None:
            return torch.stack([session.show() for session in sessions])
        latents = torch.cat([session.pending.latents for session in sessions if session.pending is not None])
        return self.own_decoder.decode(latents).unflatten(0, (len(sessions), -1))

    def _check(
        self, sessions: list[Session], actions: ArrayLike, poses: ArrayLike
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        if not sessions:
            raise ValueError("step needs at least one session")
        if len({id(session) for session in sessions}) < len(sessions):
            raise ValueError("a session is named twice in one step: fork it to branch")
        for i, session in enumerate(sessions):
            if session.model is not self:
                raise ValueError(f"session {i} belongs to another WorldModel: step it with session.model.step")
            if session.closed:
                raise ValueError(f"session {i} is closed: start another")
        checked, placed = validate_vector(actions), validate_poses(poses)
        lengths = {self.frames_of(session) for session in sessions}
        if len(lengths) > 1:
            raise ValueError(
                f"sessions of one step make {sorted(lengths)} frames: step those that begin apart from the others"
            )
        expected = (len(sessions), *lengths)
        if checked.shape != (*expected, self.config.action_dim) or placed.shape != (*expected, 5):
            raise ValueError(
                f"actions {checked.shape} and poses {placed.shape}: expected {(*expected, self.config.action_dim)} and "
                f"{(*expected, 5)} (sessions, frames of a chunk, ...)"
            )
        stride = self.config.frames_per_latent
        return to_latent_rate(checked, placed, stride, sessions[0].next_frame == 0)

    def frames_of(self, session: Session) -> int:
        """Video frames of a session's next step: 16 with Wan's autoencoder and chunks of 4, 13 at the very start."""
        return video_frames(self.config.chunk, self.config.frames_per_latent, session.next_frame == 0)

    def _checked_cells(self, cells: ArrayLike | None, poses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cells [n, c, 3] for the latent frames of `poses` [n, c, 5]."""
        nowhere = np.full((*poses.shape[:2], 3), np.nan)
        if cells is None or not self.config.voxel_hands:
            return nowhere
        told = np.asarray(cells, np.float64)
        if told.shape != nowhere.shape or np.isinf(told).any():
            raise ValueError(f"cells {told.shape}: expected finite numbers or NaN, {nowhere.shape}")
        return told

    def _generate(
        self, sessions: list[Session], actions: NDArray, poses: NDArray, cells: NDArray, settings: Settings
    ) -> None:
        """Denoise one chunk in sessions that share settings and have a chunk to commit, or have none yet."""
        chunk = self.config.chunk
        branches = 1 if settings.guidance == 1.0 else 2
        states = [session.generator.get_state() for session in sessions]
        kept = [keeps(session) for session in sessions]
        fresh: list[NDArray[np.int64]] = []
        try:
            if any(kept):  # all rows of a pass commit: what one of them does without is forgotten behind it
                for session in sessions:
                    fresh.append(self.pool.allocate(chunk, session.bank.last))
            scratch = self.pool.scratch(len(sessions) * branches * chunk).reshape(len(sessions), branches, chunk)
            new = self._placed(sessions, actions, poses, cells)
            old = [session.pending for session in sessions]
            latents = denoise(self, Chunks(sessions, old, new, fresh, kept, scratch))
        except BaseException:
            for slots in fresh:
                self.pool.release(slots)
            for session, state in zip(sessions, states, strict=True):
                session.generator.set_state(state)
            raise
        for i, session in enumerate(sessions):
            done, made = old[i], new[i]
            if done is not None and kept[i]:
                session.bank.append(fresh[i], done.frame_index, *done.views)
            elif fresh:
                self.pool.release(fresh[i])
            if session.origin is None:
                session.origin = poses[i, 0].copy()
            session.replace_pending(replace(made, latents=latents[i]))
            session.video.forget_encoder()
            session.next_frame += chunk
            session.force_lists = None

    def _placed(self, sessions: list[Session], actions: NDArray, poses: NDArray, cells: NDArray) -> list[Pending]:
        """The chunks to be made, with noise for latents: of actions [n, c, A], poses [n, c, 5] and cells [n, c, 3]."""
        chunk, shape = self.config.chunk, (self.config.chunk, *self.config.autoencoder.latent_shape)
        rows = [array.reshape(-1, array.shape[-1]) for array in (actions, poses, cells)]
        hands, changes = hands_used(rows[0]).reshape(-1, chunk), made_changes(*rows).reshape(-1, chunk, 4)
        own = np.ones(chunk, np.bool_)
        return [
            Pending(
                flow.session_noise(session.generator, shape),
                actions[i],
                poses[i],
                np.arange(session.next_frame, session.next_frame + chunk),
                own,
                cells[i],
                self.told(session, poses[i], changes[i]),
                hands[i],
                changes[i],
            )
            for i, session in enumerate(sessions)
        ]

    def told(self, session: Session, poses: NDArray, changes: NDArray) -> NDArray[np.float64]:
        """The changes that the model is told of in new latent frames of a session, `Pending.told` [c, K, 4].

        Args:
            session: Whose.
            poses: float64 [c, 5].
            changes: float64 [c, 4], what hands change in these frames (`changes.made_changes`).
        """
        if not self.config.voxel_hands:
            return np.full((len(poses), 0, 4), np.nan)
        before, waiting = session.bank.latest, session.pending
        if waiting is not None and waiting.hands.any():
            before = latest(np.concatenate([before, waiting.changes]))
        return told_on_walk(changes, poses, self.config.voxel_changes, before)

    def commit(
        self, session: Session, frames: tuple[Pending, Pending], progress: Callable[[int], None] | None = None
    ) -> None:
        """Write frames into a session's memory, many in one pass, and leave the last chunk pending.

        Args:
            session: Whose.
            frames: What to write, and the chunk to leave pending.
            progress: Called with the number of frames done since the last call.
        """
        past, pending = frames
        known = 0 if session.pending is None else len(session.pending.frame_index)
        chunk, total, done = self.config.chunk, len(past.frame_index), 0
        assert session.origin is not None
        forced, session.force_lists = session.force_lists, None
        blocks, small = self.config.blocks_per_frame, self.config.tokens <= LARGE_FRAME
        while done < total:
            most = min(PREFILL.get(self.device.type, 16), self.pool.room(), total - done)
            part = slice(done, done + max(chunk, most // chunk * chunk))
            piece = past.part(part)
            count = len(piece.frame_index)
            slots = self.pool.allocate(count, session.bank.last)
            try:
                row = Row(
                    np.concatenate([session.bank.slots, slots]), count, seen=self._seen_when_committed(session, piece)
                )
                settings, tables = session.settings, small and self.graphs is not None
                plan = plan_pass(self.pool, [row], settings.memory, settings.top_k, tables)
                lists = None
                if forced is not None:
                    span = slice(done * blocks, (done + count) * blocks)
                    lists = [BlockLists(*(t[:, :, span].to(self.device) for t in layer)) for layer in forced]
                placed = place(self, [[piece]], [session.origin])
                (self.graphs or self.streamer).run(
                    plan,
                    piece.latents[None],
                    placed.actions,
                    torch.ones(1, count, dtype=torch.bool, device=self.device),
                    upload(piece.generated[None], self.device),
                    placed.view,
                    (0.0,) * count,
                    placed.where,
                    lists,
                )
            except BaseException:
                self.pool.release(slots)
                raise
            session.bank.append(slots, piece.frame_index, *piece.views)
            done += count
            if progress is not None:
                progress(count)
        session.replace_pending(pending, past.latents[known:])

    def _seen_when_committed(self, session: Session, frames: Pending) -> tuple[Seen, ...]:
        """What frames see of a session's memory and of each other as they enter it (`Row.seen`)."""
        if not self.config.nearest_views or session.settings.memory not in BY_PLACE:
            return ()
        known, before = frames.views.after(session.bank), len(session.bank)
        return tuple(seen_from(known.first(before + i), pose, self.config) for i, pose in enumerate(frames.poses))
