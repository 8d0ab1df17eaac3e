"""The Triton kernels and their custom operators.

As plain tensor operations inside a compiled block the merge is inlined into whatever reads it, once per use: on an H200
at the training shape of ``tiny`` that took several times as long as one pass over the data.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 32


@triton.jit
def _share(one_lse_ptr, other_lse_ptr, rows, ok):
    """sigmoid(other - one), 0 where the other set is empty."""
    difference = tl.load(other_lse_ptr + rows, mask=ok, other=0.0) - tl.load(one_lse_ptr + rows, mask=ok, other=0.0)
    return 1.0 / (1.0 + tl.exp(-difference))


@triton.jit
def _forward_kernel(
    one_ptr, one_lse_ptr, other_ptr, other_lse_ptr, out_ptr, total, D: tl.constexpr, D_PAD: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, D_PAD)
    ok = rows < total
    mask = ok[:, None] & (dims < D)[None, :]
    at = rows[:, None] * D + dims[None, :]
    share = _share(one_lse_ptr, other_lse_ptr, rows, ok)[:, None]
    one = tl.load(one_ptr + at, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(other_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (one + share * (other - one)).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    grad_ptr, one_ptr, one_lse_ptr, other_ptr, other_lse_ptr, d_one_ptr, d_one_lse_ptr, d_other_ptr, d_other_lse_ptr,
    total, D: tl.constexpr, D_PAD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, D_PAD)
    ok = rows < total
    mask = ok[:, None] & (dims < D)[None, :]
    at = rows[:, None] * D + dims[None, :]
    share = _share(one_lse_ptr, other_lse_ptr, rows, ok)
    grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
    one = tl.load(one_ptr + at, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(other_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(d_one_ptr + at, (grad * (1.0 - share)[:, None]).to(d_one_ptr.dtype.element_ty), mask=mask)
    tl.store(d_other_ptr + at, (grad * share[:, None]).to(d_other_ptr.dtype.element_ty), mask=mask)
    slope = share * (1.0 - share) * tl.sum(grad * (other - one), 1)
    tl.store(d_one_lse_ptr + rows, -slope, mask=ok)
    tl.store(d_other_lse_ptr + rows, slope, mask=ok)


def _grid(x: Tensor) -> tuple[int, dict[str, int], tuple[int]]:
    total, dim = x.numel() // x.shape[-1], x.shape[-1]
    return total, {"D": dim, "D_PAD": triton.next_power_of_2(dim), "ROWS": _ROWS}, (triton.cdiv(total, _ROWS),)


@torch.library.custom_op("decmem::merge_softmax", mutates_args=())
def merge_forward(one: Tensor, one_lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Forward; arguments as :func:`.merge_softmax`."""
    one, one_lse, other, other_lse = (x.contiguous() for x in (one, one_lse, other, other_lse))
    out = torch.empty_like(one)
    total, sizes, grid = _grid(one)
    if total:
        _forward_kernel[grid](one, one_lse, other, other_lse, out, total, **sizes)
    return out


@merge_forward.register_fake
def _(one: Tensor, one_lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    return one.new_empty(one.shape)


@torch.library.custom_op("decmem::merge_softmax_backward", mutates_args=())
def merge_backward(
    grad: Tensor, one: Tensor, one_lse: Tensor, other: Tensor, other_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of all four arguments."""
    grad, one, one_lse, other, other_lse = (x.contiguous() for x in (grad, one, one_lse, other, other_lse))
    grads = tuple(torch.empty_like(x) for x in (one, one_lse, other, other_lse))
    total, sizes, grid = _grid(one)
    if total:
        _backward_kernel[grid](grad, one, one_lse, other, other_lse, *grads, total, **sizes)
    return grads  # type: ignore[return-value]


@merge_backward.register_fake
def _(
    grad: Tensor, one: Tensor, one_lse: Tensor, other: Tensor, other_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(x.new_empty(x.shape) for x in (one, one_lse, other, other_lse))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    return merge_backward(grad, *ctx.saved_tensors)


merge_forward.register_autograd(_backward, setup_context=_setup_context)
