"""The definitions, in plain operations."""

from __future__ import annotations

from torch import Tensor


def gather_pages_naive(pages: Tensor, slots: Tensor, real: int) -> Tensor:
    """Real tokens of listed pages; arguments and result as `gather_pages`, for one tensor."""
    groups, count = slots.shape
    taken = pages[:, slots.flatten().long(), :real].unflatten(1, (groups, count))
    return taken.transpose(0, 1).flatten(2, 3).contiguous()


def dense_attention_naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention in fp32."""
    scores = q.float() @ k.float().mT / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v.float()).to(q.dtype)
