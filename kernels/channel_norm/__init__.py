"""What stands between the convolutions of a causal video autoencoder, each in one pass over channels-last frames.

A convolution's bias, norm over channels, SiLU, and the two frames of before in front: in plain operations these are
eight passes over tensors of hundreds of megabytes, as much time as a third of the convolutions.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from .naive import add_bias_naive, channel_norm_naive, norm_silu_join_naive

_HAS_TRITON = importlib.util.find_spec("triton") is not None

__all__ = ["add_bias", "channel_norm_naive", "has_kernel", "norm_silu_join"]


def has_kernel(x: Tensor) -> bool:
    """Whether the kernels take this tensor: on CUDA, channels-last, without gradients."""
    grads = torch.is_grad_enabled() and x.requires_grad
    return x.is_cuda and _HAS_TRITON and not grads and _rows(x).is_contiguous()


def norm_silu_join(x: Tensor, gamma: Tensor, past: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """Norm and SiLU of new frames, behind the two frames of before.

    Args:
        x: ``[B, C, T, H, W]``.
        gamma: ``[C, 1, 1, 1]``, scale of the norm.
        past: ``[B, C, 2, H, W]``, taken as it is; zeros if None.
        bias: ``[C]``, added to ``x`` before the norm.

    Returns:
        ``[B, C, T + 2, H, W]``.
    """
    if not has_kernel(x):
        return norm_silu_join_naive(x, gamma, past, bias)
    from .op import norm_silu_join_rows

    batch, channels, frames, height, width = x.shape
    out = x.new_empty(batch, frames + 2, height, width, channels)
    if past is None:
        out[:, :2].zero_()
    else:
        out[:, :2].copy_(_rows(past))
    norm_silu_join_rows(_rows(x), gamma, bias, out)
    return out.permute(0, 4, 1, 2, 3)


def add_bias(x: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    """``x + bias + other``.

    Args:
        x: ``[B, C, T, H, W]``; may be overwritten.
        bias: ``[C]``.
        other: like ``x``.

    Returns:
        Like ``x``.
    """
    if not has_kernel(x) or not _rows(other).is_contiguous():
        return add_bias_naive(x, bias, other)
    from .op import add_bias_rows

    add_bias_rows(_rows(x), bias, _rows(other))
    return x


def _rows(x: Tensor) -> Tensor:
    """``[B, C, T, H, W]`` -> ``[B, T, H, W, C]``."""
    return x.permute(0, 2, 3, 4, 1)
