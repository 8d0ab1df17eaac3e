"""Pictures and videos of results: captions, contact sheets, side-by-side videos."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .results import write_atomically

Image8 = NDArray[np.uint8]

INK = (235, 235, 235)
PAPER = (24, 26, 30)
_LINE = 14  # height of a line of captions in pixels


def png_bytes(image: Image8) -> bytes:
    """Encode uint8 [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_png(path: str | os.PathLike[str], image: Image8) -> Path:
    """Write a PNG atomically."""
    return write_atomically(path, png_bytes(image))


def text_strip(text: str, width: int, height: int = _LINE) -> Image8:
    """A strip of text on dark paper, uint8 [height, width, 3]; text that does not fit is cut."""
    image = Image.new("RGB", (width, height), PAPER)
    ImageDraw.Draw(image).text((3, (height - 11) // 2), text, fill=INK, font=ImageFont.load_default())
    return np.asarray(image)


def enlarge(frames: Image8, factor: int) -> Image8:
    """Repeat pixels of [..., H, W, 3], so that small frames stay crisp."""
    return frames.repeat(factor, -3).repeat(factor, -2) if factor > 1 else frames


def difference(a: Image8, b: Image8, gain: float = 2.0) -> Image8:
    """Absolute difference, brightened, uint8."""
    return np.clip(np.abs(a.astype(np.int16) - b.astype(np.int16)) * gain, 0, 255).astype(np.uint8)


def sheet(rows: Sequence[tuple[str, Image8]], captions: Sequence[str], title: str = "") -> Image8:
    """Contact sheet: one row a stack of frames, one column a frame.

    Args:
        rows: (label, uint8 [F, H, W, 3]) with equal shapes.
        captions: One a column, written above it.
        title: First line.

    Returns:
        uint8 [H', W', 3].
    """
    count, height, width = rows[0][1].shape[:3]
    margin, gap = 96, 2
    total = margin + count * (width + gap)
    parts: list[Image8] = [text_strip(title, total, _LINE + 4)] if title else []
    head = [text_strip("", margin)]
    for text in captions:
        head += [text_strip(text, width), text_strip("", gap)]
    parts.append(np.concatenate(head, 1))
    for label, frames in rows:
        line = np.empty((height + gap, total, 3), np.uint8)
        line[:] = PAPER
        line[(height - _LINE) // 2 : (height - _LINE) // 2 + _LINE, :margin] = text_strip(label, margin)
        for column, frame in enumerate(frames):
            left = margin + column * (width + gap)
            line[:height, left : left + width] = frame
        parts.append(line)
    return np.concatenate(parts, 0)


def side_by_side(panels: Sequence[tuple[str, Image8]], captions: Sequence[str], factor: int = 1) -> Image8:
    """Video frames with panels beside each other, their names above and a caption below.

    Args:
        panels: (name, uint8 [T, H, W, 3]) with equal shapes.
        captions: One a frame.
        factor: Enlargement.

    Returns:
        uint8 [T, H', W', 3], both sides even (video encoders want that).
    """
    length, height, width = panels[0][1].shape[:3]
    gap = 4
    total = len(panels) * width * factor + gap * (len(panels) - 1)
    names: list[Image8] = []
    for index, (name, _) in enumerate(panels):
        names += ([text_strip("", gap)] if index else []) + [text_strip(name, width * factor)]
    head = np.concatenate(names, 1)
    bar = np.empty((height * factor, gap, 3), np.uint8)
    bar[:] = PAPER
    frames = []
    for t in range(length):
        line: list[Image8] = []
        for index, (_, stack) in enumerate(panels):
            line += ([bar] if index else []) + [enlarge(stack[t], factor)]
        frames.append(np.concatenate([head, np.concatenate(line, 1), text_strip(captions[t], total)], 0))
    result = np.stack(frames)
    pad = [(0, 0), (0, result.shape[1] % 2), (0, result.shape[2] % 2), (0, 0)]
    return np.pad(result, pad)


def write_video(path: str | os.PathLike[str], frames: Image8, fps: float = 10.0) -> Path:
    """Write an H.264 mp4 atomically.

    Args:
        path: Ends in .mp4.
        frames: uint8 [T, H, W, 3], even sides.
        fps: Frames per second.

    Raises:
        ValueError: The name does not end in .mp4.
    """
    import imageio.v2 as imageio

    target = Path(path)
    if target.suffix.lower() != ".mp4":
        raise ValueError(f"{target}: expected a name that ends in .mp4")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".video-", suffix=".mp4")
    os.close(handle)
    try:
        with imageio.get_writer(
            temporary,
            format="FFMPEG",
            fps=fps,
            codec="libx264",
            quality=8,
            macro_block_size=2,
            ffmpeg_log_level="error",
        ) as writer:
            for frame in frames:
                writer.append_data(frame)  # type: ignore[attr-defined]
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target
