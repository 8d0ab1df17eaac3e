"""The definition, in plain tensor operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def channel_norm_naive(x: Tensor, gamma: Tensor) -> Tensor:
    """Root-mean-square norm over axis 1, in fp32 at least.

    Args:
        x: ``[N, C, ...]``.
        gamma: ``[C, 1, ...]``.
    """
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return F.normalize(wide, dim=1).to(x.dtype) * x.shape[1] ** 0.5 * gamma


def norm_silu_join_naive(x: Tensor, gamma: Tensor, past: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """``past`` followed by ``silu(channel_norm(x + bias))``; shapes as :func:`.norm_silu_join`."""
    if bias is not None:
        x = x + bias.view(-1, 1, 1, 1)
    y = F.silu(channel_norm_naive(x, gamma))
    return F.pad(y, (0, 0, 0, 0, 2, 0)) if past is None else torch.cat([past, y], 2)


def add_bias_naive(x: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    """``x + bias + other``; shapes as :func:`.add_bias`."""
    return x + bias.view(-1, 1, 1, 1) + other
