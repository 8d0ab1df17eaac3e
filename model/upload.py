"""Sending what the host prepared to the device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(values: Tensor | NDArray, device: torch.device) -> Tensor:
    """Copy to a device, in turn with its work but without waiting for it.

    A plain copy from memory that is not pinned waits until the device has done all that was launched before, so that it
    then stands idle while the next pass is prepared.

    Args:
        values: On the host, any type and shape; on the CPU the result may share its memory.
        device: Where to.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
