"""Sending what the host prepared to the device."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PARTS, _PART_BYTES = 4, 8 * 2**20
_ALIGNED = 256  # bytes


def upload(values: Tensor | NDArray, device: torch.device) -> Tensor:
    """Copy to a device, in turn with its work but without waiting for it.

    A plain copy from memory that is not pinned waits until the device has done all that was launched before, so that it
    then stands idle while the next pass is prepared.

    Args:
        values: On the host, any type and shape; on the CPU the result may share its memory.
        device: Where to.
    """
    return upload_all([values], device)[0]


def upload_all(values: Sequence[Tensor | NDArray], device: torch.device) -> list[Tensor]:
    """`upload` of several at once, in one copy: each by itself costs the host a twentieth of a millisecond."""
    tensors = [torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in values]
    if device.type != "cuda" or any(tensor.device.type != "cpu" for tensor in tensors):
        return [tensor.to(device) for tensor in tensors]
    with torch.cuda.device(device):
        ring = _ring(torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream)
        return ring.send(tensors, device)


class _Ring:
    """Pinned memory that copies to one stream take turns in.

    It is handed out piece by piece; before a part of it is used again, the copies that left from there have arrived.
    NumPy fills it: torch would share even small copies among all threads, and to wake 32 of them takes half a
    millisecond, for 31 copies a step.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(_PARTS * _PART_BYTES, dtype=torch.uint8, pin_memory=True)
        self._bytes = self._memory.numpy()
        self._sent: list[torch.cuda.Event | None] = [None] * _PARTS
        self._part, self._used = 0, 0
        self._lock = threading.Lock()

    def send(self, tensors: list[Tensor], device: torch.device) -> list[Tensor]:
        """Copy to the device."""
        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
        ends = np.cumsum([-(-size // _ALIGNED) * _ALIGNED for size in sizes])
        if ends[-1] > _PART_BYTES:
            return [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
        with self._lock:
            if self._used + ends[-1] > _PART_BYTES:
                self._turn()
            start = self._part * _PART_BYTES + self._used
            self._used += int(ends[-1])
            places = [slice(begin, begin + size) for begin, size in zip([0, *ends[:-1].tolist()], sizes, strict=True)]
            room = self._bytes[start : start + int(ends[-1])]
            for place, tensor in zip(places, tensors, strict=True):
                room[place] = tensor.contiguous().flatten().view(torch.uint8).numpy()
            sent = self._memory[start : start + int(ends[-1])].to(device, non_blocking=True)
        return [sent[place].view(t.dtype).view(t.shape) for place, t in zip(places, tensors, strict=True)]

    def _turn(self) -> None:
        """Begin the next part."""
        event = torch.cuda.Event()
        event.record()
        self._sent[self._part] = event
        self._part, self._used = (self._part + 1) % _PARTS, 0
        before = self._sent[self._part]
        if before is not None:
            before.synchronize()


@lru_cache(maxsize=64)
def _ring(device: int, stream: int) -> _Ring:
    """The ring of a stream: its events tell when copies to that stream are done."""
    return _Ring()
