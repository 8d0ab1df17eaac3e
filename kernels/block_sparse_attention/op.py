"""The custom operators: opaque to ``torch.compile``, differentiable, usable in CUDA graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .inverse import InverseLists


def run_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Tensor,
    counts: Tensor,
    kv_sizes: Tensor | None,
    offsets: Tensor | None,
    entries: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
    path: str,
) -> tuple[Tensor, Tensor]:
    """Forward; ``offsets`` and ``entries`` (the inverse lists) only travel to the backward.

    ``path`` is "triton", "hopper", or "auto" for Hopper's kernel wherever it serves.
    """
    from . import hopper
    from . import triton as launch

    if path != "triton":
        reason = hopper.unsupported(q, k, v, q_block, kv_block, scale)
        if path == "hopper" and reason:
            raise ValueError(f"block_sparse_attention: backend 'hopper' cannot be used: {reason}")
        if path == "hopper" or (reason is None and hopper.available(q, q_block, kv_block, kv_sizes is not None, False)):
            return hopper.forward(q, k, v, lists, counts, kv_sizes, q_block, kv_block, scale)
    return launch.forward(q, k, v, lists, counts, kv_sizes, q_block, kv_block, scale)


sparse_forward = torch.library.custom_op("decmem::block_sparse_attention", run_forward, mutates_args=())


@sparse_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Tensor,
    counts: Tensor,
    kv_sizes: Tensor | None,
    offsets: Tensor | None,
    entries: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
    path: str,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("decmem::block_sparse_attention_backward", mutates_args=())
def sparse_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lists: Tensor,
    counts: Tensor,
    kv_sizes: Tensor | None,
    offsets: Tensor | None,
    entries: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward; ``path`` as forward."""
    from . import hopper
    from . import triton as launch

    inverse = None if offsets is None or entries is None else InverseLists(offsets, entries)
    grad_q = delta = keys = None
    if path != "triton" and hopper.unsupported(q, k, v, q_block, kv_block, scale) is None:
        grad_out = grad_out.contiguous()
        plan = hopper.gradients_plan(q, q_block, kv_block, kv_sizes is not None)
        if plan is not None:
            grad_q, *keys = hopper.gradients(
                plan, grad_out, grad_lse, q, k, v, out, lse, lists, counts, inverse, kv_sizes, scale
            )
            if grad_q is not None:
                return grad_q, keys[0], keys[1]
        if path == "hopper" or hopper.available(q, q_block, kv_block, kv_sizes is not None, True):
            delta = torch.linalg.vecdot(out.float(), grad_out.float()) - grad_lse
            # Queries without keys: their log-sum-exp has no gradient, and nothing else may depend on it.
            delta = torch.where(lse.isinf(), 0.0, delta)
            grad_q = hopper.query_gradient(
                grad_out, delta, q, k, v, lse, lists, counts, kv_sizes, q_block, kv_block, scale
            )
            if keys is not None:
                return grad_q, keys[0], keys[1]
    return launch.backward(
        grad_out, grad_lse, q, k, v, out, lse, lists, counts, kv_sizes, inverse, q_block, kv_block, scale, grad_q, delta
    )


@sparse_backward.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lists: Tensor,
    counts: Tensor,
    kv_sizes: Tensor | None,
    offsets: Tensor | None,
    entries: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, lists, counts, kv_sizes, offsets, entries, ctx.q_block, ctx.kv_block, ctx.scale, ctx.path = inputs
    ctx.save_for_backward(q, k, v, *output, lists, counts, kv_sizes, offsets, entries)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    grads = sparse_backward(grad_out, grad_lse, *ctx.saved_tensors, ctx.q_block, ctx.kv_block, ctx.scale, ctx.path)
    return (*grads, *([None] * 9))


sparse_forward.register_autograd(_backward, setup_context=_setup_context)
