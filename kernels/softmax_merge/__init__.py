"""One softmax over two disjoint sets of keys, from the attention outputs over each set and their log-sum-exps."""

from __future__ import annotations

import importlib.util

from torch import Tensor

from .naive import merge_softmax_naive

BACKENDS = ("naive", "triton")
_HAS_TRITON = importlib.util.find_spec("triton") is not None

__all__ = ["BACKENDS", "merge_softmax"]


def merge_softmax(
    one: Tensor, one_lse: Tensor, other: Tensor, other_lse: Tensor, *, backend: str | None = None
) -> Tensor:
    """Merge two attention outputs (maths: ``naive.py``); differentiable in all four.

    Args:
        one: ``[B, H, T, D]``, from a set that is nowhere empty (log-sum-exp above -inf).
        one_lse: fp32 ``[B, H, T]``.
        other: like ``one``; its set may be empty (output 0, log-sum-exp -inf).
        other_lse: fp32 ``[B, H, T]``.
        backend: "triton" (the default on CUDA) or "naive".

    Returns:
        ``[B, H, T, D]`` in the type of ``one``.

    Raises:
        ValueError: shapes do not fit, or the backend is unknown.
    """
    if one.shape != other.shape or one_lse.shape != one.shape[:-1] or other_lse.shape != one.shape[:-1]:
        raise ValueError(
            f"merge_softmax: outputs {tuple(one.shape)}, {tuple(other.shape)} and log-sum-exps "
            f"{tuple(one_lse.shape)}, {tuple(other_lse.shape)} do not fit"
        )
    if backend is None:
        backend = "triton" if one.device.type == "cuda" and _HAS_TRITON else "naive"
    if backend not in BACKENDS:
        raise ValueError(f"merge_softmax: unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "triton":
        from .op import merge_forward

        return merge_forward(one, one_lse, other, other_lse)
    return merge_softmax_naive(one, one_lse, other, other_lse)
