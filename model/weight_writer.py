"""Writing safetensors tensor by tensor, so that a conversion holds one tensor in memory and not the file.

Layout (safetensors 0.3 and later): eight bytes little-endian with the length of the header, a JSON header padded with
spaces to a multiple of eight, then the raw numbers in the header's order without gaps.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK = 1 << 24  # bytes copied out of a tensor at once


def write_safetensors(
    path: Path,
    layout: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a file, one tensor in memory at a time.

    Args:
        path: Of the new file; the caller renames it into place.
        layout: Shape and type of every tensor by its name.
        read: Gives the tensor of a name, of that shape; it is converted to that type.
        metadata: Strings for the header.
        progress: Called with the bytes written since the last call.

    Raises:
        ValueError: A tensor of another shape, or with NaN or infinity (also when `fp16` has no room for a value).
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for name, (shape, dtype) in layout.items():
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (shape, dtype) in layout.items():
            tensor = read(name)
            if tuple(tensor.shape) != tuple(shape):
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected {tuple(shape)}")
            tensor = tensor.to(dtype).contiguous()
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f"{name} holds NaN or infinity as {_NAMES[dtype]}: choose fp32, or mend the source")
            for piece in _bytes(tensor):
                file.write(piece)
            if progress is not None:
                progress(tensor.nbytes)
        file.flush()
        os.fsync(file.fileno())


def _bytes(tensor: Tensor) -> Iterable[bytes]:
    raw = tensor.reshape(-1).view(torch.uint8).numpy()
    for start in range(0, raw.size, _CHUNK):
        yield raw[start : start + _CHUNK].tobytes()
