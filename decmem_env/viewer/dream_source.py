"""The dream: a world model that has seen a piece of a voxel world and goes on from there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..conventions.poses import integrate_kinematic
from ..model import Session, Snapshot, WorldModel
from ..model.passes import LARGE_FRAME
from ..predicted_player import PredictedPlayer, PredictedPoses
from ..rollout import frame_size, frames_per_step, whole_context
from ..scene import LOOK_AROUND
from ..start import Start
from ..tour import TOUR
from .settings import PlaySettings
from .source import Opening, Progress, Shot
from .stage import Stage


class DreamSource:
    """A session of a world model, and the true world it began in.

    The true player acts along, so that poses are those of real physics (`pose_source="truth"`) and the truth can be
    shown beside the dream. With `kinematic` poses the player is carried through walls, with `predictor` it walks among
    the blocks that the dream shows; the true player is carried along.

    Args:
        model: Generates.
        context: Action string of the true frames to remember first, or `TOUR`.
        pose_source: `truth`, `predictor` or `kinematic`.
        **sampler: Arguments of `WorldModel.start` besides the seed.
    """

    def __init__(self, model: WorldModel, context: str, pose_source: str = "truth", **sampler: Any) -> None:
        """Nothing is generated yet."""
        self.title = model.name
        self.seed = 0
        self.pose_source = pose_source
        self._model, self._context, self._sampler = model, context, sampler
        self._size = frame_size(model)
        self._session: Session | None = None
        self._stage: Stage | None = None
        self._pose = np.zeros(5)
        self._poses = PredictedPoses(model) if pose_source == "predictor" else None
        self._player: PredictedPlayer | None = None

    @classmethod
    def load_model(cls, settings: PlaySettings) -> DreamSource:
        """Load the checkpoint that was asked for.

        Raises:
            ValueError: There is no such checkpoint, or this machine lacks the device.
        """
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = WorldModel.from_pretrained(settings.checkpoint, device=device)
        small = model.config.tokens <= LARGE_FRAME  # a tour of large frames takes minutes to remember
        context = settings.context or (TOUR if small else LOOK_AROUND)
        return cls(model, context, settings.pose_source, memory=settings.memory, steps=settings.steps)

    @property
    def session(self) -> Session:
        """The session being played.

        Raises:
            RuntimeError: Before `reset` and after `close`.
        """
        if self._session is None:
            raise RuntimeError("no world yet: call reset first")
        return self._session

    @property
    def stage(self) -> Stage:
        """The true world beside it.

        Raises:
            RuntimeError: Before `reset`.
        """
        if self._stage is None:
            raise RuntimeError("no world yet: call reset first")
        return self._stage

    def reset(self, seed: int, progress: Progress) -> Opening:
        """Walk through the true world and remember it."""
        progress("building the world", 0, 0, None)
        stage = Stage(seed, *self._size)
        frames, actions, poses = stage.opening(self._context, progress)
        context = whole_context(self._model, frames, actions, poses)
        session = self._model.start(seed, **self._sampler)
        done = 0

        def note(count: int) -> None:
            nonlocal done
            done += count
            progress("remembering", done, len(context[0]), context[0][done - 1])

        progress("remembering", 0, len(context[0]), frames[0])
        session.observe(*context, progress=note)
        player = None if self._poses is None else self._poses.begin(Start(actions, poses, frames))[1]
        self._take_over(seed, session, stage, poses[-1], player)
        return Opening(frames, poses, self._shot(frames[-1], actions[-1], 0.0))

    def step(self, action: NDArray[np.float32], truth: bool = False) -> Shot:
        """Dream the next chunk under one action, held over its frames; the last of them is shown."""
        start = time.perf_counter()
        chunk = frames_per_step(self._model)
        moves = [self._move(action) for _ in range(chunk)]
        poses, cells = (np.stack(part)[None] for part in zip(*moves, strict=True))
        frame = self._model.step([self.session], np.repeat(action[None, None], chunk, 1), poses, cells=cells)[0, -1]
        if self._poses is not None and self._player is not None:
            self._poses.observe([self._player], [self.session])
        spent = 1000.0 * (time.perf_counter() - start)
        return self._shot(frame, action, spent, self.stage.picture(self._pose) if truth else None)

    def _move(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Let the player act for one frame; returns its pose and the cell that its hand changed, NaN if none known."""
        pose, cell = self.stage.move(action), self.stage.touched
        if self.pose_source == "kinematic":
            pose, cell = integrate_kinematic(self._pose, action), np.full(3, np.nan)
            self.stage.place_player(pose)
        elif self._poses is not None and self._player is not None:
            pose = self._poses.move([self._player], action[None])[0]
            cell = self._player.touched
            self.stage.place_player(pose)
        self._pose = pose
        return pose, cell

    def true_picture(self) -> NDArray[np.uint8]:
        """The true world from where the player stands."""
        return self.stage.picture(self._pose)

    def describe(self) -> dict[str, Any]:
        """Everything that decides what is dreamt."""
        settings = vars(self._model.start(0, **self._sampler).settings)
        return {
            "checkpoint": self._model.name,
            "checkpoint_hash": self._model.sha256,
            "sampler": dict(settings),
            "context": self._context,
            "frame_size": list(self._size),
            "kernels": self._model.kernel,
            "device": str(self._model.device),
        }

    def save(self, folder: Path) -> None:
        """Write the session's snapshot and the true world's state."""
        self.session.snapshot().save(folder / "session.safetensors")
        self.stage.save(folder)
        np.savez(folder / "source.npz", pose=self._pose)
        if self._player is not None:
            np.savez(folder / "player.npz", **self._player.snapshot())

    def load(self, folder: Path, seed: int) -> None:
        """Read them back."""
        session = self._model.restore(Snapshot.load(folder / "session.safetensors"))
        stage = Stage(seed, *self._size)
        stage.load(folder)
        with np.load(folder / "source.npz", allow_pickle=False) as arrays:
            pose = arrays["pose"]
        player = None
        if self._poses is not None:
            if not (folder / "player.npz").is_file():
                raise ValueError(f"{folder} was saved with other poses than the predictor's: change --pose-source")
            with np.load(folder / "player.npz", allow_pickle=False) as arrays:
                player = PredictedPlayer.restore(dict(arrays))
        self._take_over(seed, session, stage, pose, player)

    def close(self) -> None:
        """Give the session's memory back."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _take_over(
        self, seed: int, session: Session, stage: Stage, pose: NDArray[np.float64], player: PredictedPlayer | None
    ) -> None:
        self.close()
        self._player = player
        session.record_lists = True
        self.seed, self._session, self._stage, self._pose = seed, session, stage, pose

    def _shot(
        self,
        frame: NDArray[np.uint8],
        action: NDArray[np.float32],
        spent: float,
        truth: NDArray[np.uint8] | None = None,
    ) -> Shot:
        stats = self.session.stats
        frames, shares = retrieved_frames(self.session)
        return Shot(
            np.ascontiguousarray(frame),
            self._pose,
            action,
            int(stats["frame_index"]),
            spent,
            int(stats["memory_frames"]),
            int(stats["memory_bytes"]),
            int(stats["evicted_frames"]),
            truth,
            frames,
            shares,
        )


def retrieved_frames(session: Session) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Frames whose blocks the last step retrieved, over all layers, heads and query blocks; or that it saw by place.

    Returns:
        Frame indices int64 [K], most used first, and their shares, float64 [K]: of all retrieved blocks, or equal.
    """
    nothing = np.zeros(0, np.int64), np.zeros(0)
    if session.last_seen is not None and len(session.last_seen):
        return session.last_seen[::-1], np.full(len(session.last_seen), 1.0 / len(session.last_seen))
    if not session.last_lists:
        return nothing
    blocks, known = session.model.config.blocks_per_frame, session.memory_frames
    counts = np.zeros(len(known), np.int64)
    for lists, sizes in session.last_lists:
        entries, filled = lists.numpy(), sizes.numpy()
        valid = np.arange(entries.shape[-1]) < filled[..., None]
        counts += np.bincount(entries[valid] // blocks, minlength=len(known))[: len(known)]
    used = np.flatnonzero(counts)
    if not len(used):
        return nothing
    order = used[np.argsort(-counts[used], kind="stable")]
    return np.asarray(known[order], np.int64), counts[order] / counts.sum()
