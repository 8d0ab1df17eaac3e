"""Clips in WorldMem's layout: `NAME.mp4` beside `NAME.npz` with `actions` and `poses`.

`actions` is int32 [T, 8] as in MineDojo (what WorldMem ships and its loader reads) wherever that says everything, and
float32 [T, 25] where it cannot (fractional speeds, keys MineDojo lacks). Camera angles off the grid of 15 degrees go to
an extra key, `camera_degrees` float32 [T, 2] = pitch and yaw change. `actions[t]` led to frame t; `actions[0]` is the
reset no-op. Reading repairs the two known faults of the released data (see `read_clip`) and refuses everything else.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .actions import ACTION_DIM, CAMERA_ENTRIES, CAMERA_STEP_DEGREES, Action, validate_vector
from .poses import validate_poses

FRAME_RATE = 10.0
RAW_DIM = 8
_RAW_CENTRE = 12  # camera bin of "no change"; a bin is 15 degrees
_JUMPY_HEIGHT = 1.5  # blocks; nobody falls further in a frame, so a larger first step is the known fault

# (component, value, entry): what a raw MineDojo action sets. WorldMem itself reads neither component 2 nor `attack`.
_RAW_KEYS: tuple[tuple[int, int, Action], ...] = (
    (0, 1, Action.FORWARD),
    (0, 2, Action.BACK),
    (1, 1, Action.LEFT),
    (1, 2, Action.RIGHT),
    (2, 1, Action.JUMP),
    (2, 2, Action.SNEAK),
    (2, 3, Action.SPRINT),
    (5, 6, Action.PLACE),
    (5, 1, Action.PLACE),
    (5, 3, Action.ATTACK),
    (7, 1, Action.HOTBAR_1),
)
_NOT_IN_WORLDMEM = (Action.JUMP, Action.SNEAK, Action.SPRINT, Action.ATTACK)


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames with the actions that led to them and the poses they were seen from.

    Attributes:
        frames: uint8 [T, H, W, 3].
        actions: float32 [T, 25]; camera entries are degrees / 15.
        poses: float64 [T, 5], blocks and degrees.
        fps: Frames a second.
    """

    frames: NDArray[np.uint8]
    actions: NDArray[np.float32]
    poses: NDArray[np.float64]
    fps: float = FRAME_RATE

    def __post_init__(self) -> None:
        frames = np.asarray(self.frames)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise ValueError(f"clip frames are {frames.dtype} {frames.shape}: expected uint8 [T, H, W, 3] with T >= 1")
        actions, poses = validate_vector(self.actions), validate_poses(self.poses, "clip poses")
        if actions.shape != (len(frames), ACTION_DIM) or poses.shape != (len(frames), 5):
            raise ValueError(
                f"clip has {len(frames)} frames, actions {actions.shape} and poses {poses.shape}: expected "
                f"[{len(frames)}, 25] and [{len(frames)}, 5], one row a frame"
            )
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"clip fps is {self.fps}: expected a positive number")
        for name, value in (("frames", frames), ("actions", actions), ("poses", poses), ("fps", float(self.fps))):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frames)


def raw_to_vectors(
    raw: ArrayLike, camera_degrees: ArrayLike | None = None, strict: bool = False
) -> NDArray[np.float32]:
    """Turn MineDojo actions of 8 integers into 25-vectors.

    Args:
        raw: int [T, 8].
        camera_degrees: [T, 2] pitch and yaw change in degrees; replaces the camera bins.
        strict: Leave out what WorldMem never fills (jump, sneak, sprint, attack).

    Returns:
        float32 [T, 25].

    Raises:
        ValueError: Wrong shape, or a camera bin other than 11, 12, 13 without `camera_degrees` (WorldMem reads such a
            bin as "no motion", which is wrong).
    """
    array = np.asarray(raw)
    if array.ndim != 2 or array.shape[1] != RAW_DIM:
        raise ValueError(f"raw actions have shape {array.shape}: expected [T, 8] (MineDojo)")
    vectors = np.zeros((len(array), ACTION_DIM), np.float32)
    for component, value, entry in _RAW_KEYS:
        if not (strict and entry in _NOT_IN_WORLDMEM):
            vectors[array[:, component] == value, entry] = 1.0
    if camera_degrees is not None:
        vectors[:, CAMERA_ENTRIES] = np.asarray(camera_degrees, np.float32) / np.float32(CAMERA_STEP_DEGREES)
        return vectors
    bins = array[:, 3:5] - _RAW_CENTRE
    unknown = np.argwhere(np.abs(bins) > 1)
    if len(unknown):
        row, column = unknown[0].tolist()
        raise ValueError(
            f"raw action {row} has {('pitch', 'yaw')[column]} bin {int(array[row, 3 + column])}: expected 11, 12 or 13 "
            "(-15, 0, +15 degrees), or a camera_degrees array with the true angles"
        )
    vectors[:, CAMERA_ENTRIES] = bins
    return vectors


def vectors_to_raw(vectors: ArrayLike) -> tuple[NDArray[np.int32], NDArray[np.float32] | None] | None:
    """Turn 25-vectors into MineDojo actions, if those can say them without loss.

    Args:
        vectors: [T, 25].

    Returns:
        int32 [T, 8], and float32 [T, 2] camera degrees (None if every angle is -15, 0 or +15); None if a vector holds
        a fraction or a key that MineDojo actions lack.
    """
    array = validate_vector(vectors)
    raw = np.zeros((len(array), RAW_DIM), np.int32)
    raw[:, 3:5] = _RAW_CENTRE + np.clip(np.round(array[:, CAMERA_ENTRIES]), -1, 1).astype(np.int32)
    for component, value, entry in _RAW_KEYS:
        raw[array[:, entry] == 1.0, component] = value
    degrees = array[:, CAMERA_ENTRIES] * np.float32(CAMERA_STEP_DEGREES)
    extra = None if np.isin(array[:, CAMERA_ENTRIES], (-1.0, 0.0, 1.0)).all() else degrees
    if not np.allclose(raw_to_vectors(raw, degrees), array, rtol=0, atol=1e-6):
        return None
    return raw, extra


def write_clip(path: str | os.PathLike[str], clip: Clip) -> None:
    """Write an mp4 (H.264) and the npz of the same stem; a reader sees both whole or the old ones.

    Args:
        path: Ends in `.mp4`; its folder exists.
        clip: Frames of even height and width.

    Raises:
        ValueError: Another suffix, or odd sizes.
        FileNotFoundError: The folder does not exist.
        OSError: ffmpeg could not write the video.
    """
    target = Path(path)
    if target.suffix.lower() != ".mp4":
        raise ValueError(f"clip path {target}: expected a name that ends in .mp4")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"clip path {target}: the folder {target.parent} does not exist, create it first")
    height, width = clip.frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"clip frames are {height}x{width}: H.264 needs an even height and width")
    raw = vectors_to_raw(clip.actions)
    arrays: dict[str, NDArray[Any]] = {"actions": clip.actions if raw is None else raw[0], "poses": clip.poses}
    if raw is not None and raw[1] is not None:
        arrays["camera_degrees"] = raw[1]
    temporary = [_temporary(target), _temporary(target)]
    try:
        with temporary[0].open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        _encode(temporary[1], clip.frames, clip.fps)
        # The video comes last: whoever looks for *.mp4 finds its npz.
        temporary[0].replace(target.with_suffix(".npz"))
        temporary[1].replace(target)
    finally:
        for leftover in temporary:
            leftover.unlink(missing_ok=True)


def read_clip(path: str | os.PathLike[str], strict: bool = False, length: int | None = None) -> Clip:
    """Read an mp4 and the npz of the same stem.

    Two faults of the released data are repaired: clips with one pose less than actions lack the pose of the reset frame
    (it becomes a copy of the first one known; WorldMem puts zeros there), and a first height that lies more than 1.5
    blocks from the second is replaced by it. Video and rows may differ in length by one; the longer is cut.

    Args:
        path: The mp4.
        strict: Leave out actions that WorldMem's own loader never fills (jump, sneak, sprint, attack).
        length: Read only this many frames from the start; None reads them all.

    Returns:
        The clip.

    Raises:
        FileNotFoundError: The mp4 or its npz is missing.
        ValueError: A broken video or npz, wrong shapes, NaN poses, unknown camera bins; the file is named.
    """
    video = Path(path)
    if not video.is_file():
        raise FileNotFoundError(f"{video}: no such clip")
    beside = video.with_suffix(".npz")
    if not beside.is_file():
        raise FileNotFoundError(
            f"{video} has no {beside.name} beside it: fetch its actions and poses, or start from an image"
        )
    arrays = _load_arrays(beside)
    actions, poses = _check_arrays(arrays, beside, strict)
    wanted = len(actions) + 2 if length is None else min(length, len(actions) + 2)
    frames, fps = _decode(video, wanted)
    cut = len(frames) == wanted and wanted <= len(actions)  # read no further, so the ends cannot be compared
    if not cut and abs(len(frames) - len(actions)) > 1:
        raise ValueError(
            f"{video} has {len(frames) if len(frames) < len(actions) else 'more'} frames, {beside.name} has "
            f"{len(actions)} actions: one of the two is cut short, fetch or make the clip again"
        )
    length = min(len(frames), len(actions))
    return Clip(frames[:length], actions[:length], poses[:length], fps)


def _load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files if key in ("actions", "poses", "camera_degrees")}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no readable npz ({error}): fetch or make the clip again") from None
    for key in ("actions", "poses"):
        if key not in arrays:
            raise ValueError(f"{path} has no array {key!r}: expected actions [T, 8] or [T, 25] and poses [T, 5]")
    return arrays


def _check_arrays(
    arrays: Mapping[str, NDArray[Any]], path: Path, strict: bool
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    raw, poses, degrees = arrays["actions"], arrays["poses"], arrays.get("camera_degrees")
    if raw.ndim != 2 or raw.shape[1] not in (RAW_DIM, ACTION_DIM) or not len(raw):
        raise ValueError(f"{path}: actions have shape {raw.shape}: expected [T, 8] (MineDojo) or [T, 25]")
    if poses.ndim != 2 or poses.shape[1] != 5 or len(poses) not in (len(raw), len(raw) - 1) or not len(poses):
        raise ValueError(f"{path}: poses have shape {poses.shape}: expected [{len(raw)}, 5] (old clips: one less)")
    if degrees is not None and degrees.shape != (len(raw), 2):
        raise ValueError(f"{path}: camera_degrees has shape {degrees.shape}: expected [{len(raw)}, 2]")
    try:
        actions = raw_to_vectors(raw, degrees, strict) if raw.shape[1] == RAW_DIM else raw
        actions, poses = validate_vector(actions), validate_poses(poses).copy()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if len(poses) < len(actions):
        poses = np.concatenate([poses[:1], poses])
    if len(poses) > 1 and abs(poses[0, 1] - poses[1, 1]) > _JUMPY_HEIGHT:
        poses[0, 1] = poses[1, 1]
    return actions, poses


def _temporary(target: Path) -> Path:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=".tmp")
    os.close(handle)
    os.chmod(name, 0o644)
    return Path(name)


def _ffmpeg() -> str:
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError:
        raise ImportError('clips need ffmpeg: pip install "imageio[ffmpeg]"') from None
    return str(get_ffmpeg_exe())


def _encode(path: Path, frames: NDArray[np.uint8], fps: float) -> None:
    height, width = frames.shape[1:3]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
    # crf 8: about 45 dB, so that clips serve training; yuv420p: every player shows it.
    sink = ["-c:v", "libx264", "-crf", "8", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    command = [_ffmpeg(), "-v", "error", "-y", *source, *sink, "-f", "mp4", str(path)]
    done = subprocess.run(command, input=np.ascontiguousarray(frames).data, capture_output=True, check=False)
    if done.returncode:
        raise OSError(f"ffmpeg could not write the video: {_last_line(done.stderr.decode(errors='replace'))}")


def _decode(path: Path, limit: int) -> tuple[NDArray[np.uint8], float]:
    """Read at most `limit` frames as a stream of PPM images, whose headers carry the size."""
    command = [_ffmpeg(), "-hide_banner", "-nostats", "-i", str(path), "-frames:v", str(limit), "-an"]
    command += ["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]
    with tempfile.TemporaryFile() as log:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log) as process:
            assert process.stdout is not None
            frames, count = _read_ppm(process.stdout, limit)
        log.seek(0)
        said = log.read().decode(errors="replace")
    if frames is None:
        raise ValueError(f"{path} is no readable video ({_last_line(said)}): fetch or make the clip again")
    if process.returncode:
        raise ValueError(f"{path} breaks off after frame {count} ({_last_line(said)}): fetch or make the clip again")
    rate = re.search(r"([\d.]+) fps", said)
    return frames[:count], float(rate.group(1)) if rate and float(rate.group(1)) > 0 else FRAME_RATE


def _read_ppm(stream: IO[bytes], limit: int) -> tuple[NDArray[np.uint8] | None, int]:
    frames: NDArray[np.uint8] | None = None
    for count in range(limit):
        if stream.readline() != b"P6\n":
            return frames, count
        width, height = (int(word) for word in stream.readline().split())
        stream.readline()
        if frames is None:
            frames = np.empty((limit, height, width, 3), np.uint8)
        data = stream.read(frames[0].size)
        if len(data) < frames[0].size:
            return (frames if count else None), count
        frames[count] = np.frombuffer(data, np.uint8).reshape(frames.shape[1:])
    return frames, limit


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "ffmpeg gave no reason"
