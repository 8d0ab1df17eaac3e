"""Recordings: what was done, what came out, and everything needed to make it again.

A recording is a folder: `meta.json` (checkpoint hash, seed, sampler, kernels, versions), `actions.jsonl` (one line a
frame with the action, the pose and the frame's hash), `video.mp4`, and, where it does not begin with a world's start,
`start/` with the saved state. Every line is flushed and the video is written in fragments, so that an early quit
loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..conventions.actions import ACTION_DIM, Action
from .source import Shot

FORMAT = 1
_VIDEO_HEIGHT = 384  # small frames are enlarged by a whole factor up to about this


def frame_hash(frame: NDArray[np.uint8]) -> str:
    """First 16 hex digits of the SHA-256 of a frame's bytes."""
    return hashlib.sha256(np.ascontiguousarray(frame).tobytes()).hexdigest()[:16]


def action_to_json(action: NDArray[np.float32]) -> dict[str, float]:
    """The entries that are not zero, by name; float32 values survive exactly."""
    return {Action(int(i)).name: float(action[i]) for i in np.flatnonzero(action)}


def action_from_json(values: Mapping[str, float]) -> NDArray[np.float32]:
    """Inverse of `action_to_json`.

    Raises:
        ValueError: An unknown entry.
    """
    vector = np.zeros(ACTION_DIM, np.float32)
    for name, value in values.items():
        if name not in Action.__members__:
            raise ValueError(f"unknown action entry {name!r}")
        vector[Action[name]] = value
    return vector


def versions() -> dict[str, Any]:
    """What a bitwise replay depends on besides the checkpoint."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from ..worlds import VERSION

    try:
        own = version("decmem-env")
    except PackageNotFoundError:
        own = "source tree"
    return {
        "decmem_env": own,
        "worlds": VERSION,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


class Recorder:
    """Writes one recording, frame by frame."""

    def __init__(self, folder: Path, meta: Mapping[str, Any], first: Shot, fps: int = 10) -> None:
        """Begin.

        Args:
            folder: Made if missing.
            meta: Facts of the source (`PlaySource.describe`), seed and start.
            first: Where the recording starts; its hash is checked by a replay, it is the video's first frame.
            fps: Frames a second of the video.

        Raises:
            ValueError: The folder holds a recording already.
        """
        if (folder / "actions.jsonl").exists():
            raise ValueError(f"{folder} holds a recording already: name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.frames = 0
        self._meta = {
            "format": FORMAT,
            **meta,
            "versions": versions(),
            "fps": fps,
            "first_frame": frame_hash(first.frame),
            "began": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }
        self._write_meta()
        self._log = (folder / "actions.jsonl").open("w", encoding="utf-8")
        height, width = first.frame.shape[:2]
        self._factor = max(1, round(_VIDEO_HEIGHT / height))
        self._video = _open_video(folder / "video.mp4", width * self._factor, height * self._factor, fps)
        self._draw(first.frame)

    def write(self, shot: Shot) -> None:
        """Add one frame."""
        line = {
            "step": self.frames,
            "action": action_to_json(shot.action),
            "pose": [float(value) for value in shot.pose],
            "frame": frame_hash(shot.frame),
            "ms": round(shot.step_ms, 2),
        }
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()
        self._draw(shot.frame)
        self.frames += 1

    def close(self) -> None:
        """Finish the video and the facts; harmless when called twice."""
        if self._log.closed:
            return
        self._log.close()
        self._video.close()
        self._meta["frames"] = self.frames
        self._write_meta()

    def _draw(self, frame: NDArray[np.uint8]) -> None:
        large = np.repeat(np.repeat(frame, self._factor, 0), self._factor, 1)
        self._video.send(np.ascontiguousarray(large))

    def _write_meta(self) -> None:
        (self.folder / "meta.json").write_text(json.dumps(self._meta, indent=2) + "\n", encoding="utf-8")


def _open_video(path: Path, width: int, height: int, fps: int) -> Any:
    import imageio_ffmpeg

    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec="libx264",
        quality=None,
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-preset", "veryfast", "-crf", "17", "-tune", "zerolatency", "-g", str(fps)]
        + ["-threads", "1", "-flush_packets", "1", "-movflags", "+frag_keyframe+empty_moov+default_base_moof"],
    )
    writer.send(None)
    return writer


def unused_folder(parent: Path, stem: str) -> Path:
    """`parent/stem`, or with `-2`, `-3` ... where that exists."""
    path, count = parent / stem, 1
    while path.exists():
        count += 1
        path = parent / f"{stem}-{count}"
    return path


def time_stamp() -> str:
    """Local time, for folder names."""
    return time.strftime("%Y%m%d-%H%M%S")
