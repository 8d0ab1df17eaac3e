"""The arithmetic of forward passes: bf16 by autocast with fp32 weights, or plain fp32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from .config import TrainConfig


def autocast_of(config: TrainConfig, device: torch.device) -> Callable[[], AbstractContextManager]:
    """A maker of the context in which forward passes run.

    On the CPU it is always fp32: bf16 is emulated there and slower by orders of magnitude.
    """
    enabled = config.run.precision == "bf16" and device.type == "cuda"
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=enabled)
