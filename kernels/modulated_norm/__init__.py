"""What stands between two products of a modulated transformer block, in one pass over the residual stream.

A gated residual, and the norm, scale and shift of what comes next (DiT's adaptive LayerNorm, as in Wan). A compiler
makes two kernels of it, which read the new stream again, and none across the border of two blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["modulated_norm", "residual_modulated_norm"]


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """LayerNorm without parameters (eps 1e-6), times ``scale``, plus ``shift``; by Triton.

    Args:
        x: fp32 ``[B, F, N, W]``, tokens contiguous.
        shift: fp32 ``[1, F, 1, W]``, channels contiguous.
        scale: like ``shift``; the 1 that is usually added is in it already.
        dtype: of the result.

    Returns:
        ``[B, F, N, W]``, contiguous.

    Raises:
        ValueError: shapes, types or strides do not fit.
    """
    from .op import fused

    return fused(x, None, None, shift, scale, dtype)[1]


def residual_modulated_norm(
    x: Tensor, gate: Tensor, change: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The new stream ``x + gate * change``, and its :func:`modulated_norm`.

    Args:
        x: as for :func:`modulated_norm`, like all arguments without a word of their own.
        gate: like ``shift``.
        change: ``[B, F, N, W]``, any float type, contiguous.
        shift: see ``x``.
        scale: see ``x``.
        dtype: of the norm.

    Returns:
        fp32 stream and norm, each ``[B, F, N, W]``, contiguous.

    Raises:
        ValueError: shapes, types or strides do not fit.
    """
    from .op import fused

    return fused(x, gate, change, shift, scale, dtype)
