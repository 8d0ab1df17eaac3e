"""Block selection in plain PyTorch: scores of pooled features, top-k among the allowed blocks, ascending lists.

DecMem (arXiv 2605.31336, section 3), step 1 of the sparse global memory: with pooled features of query block ``n`` and
key block ``j`` (:func:`pool_blocks`), ``score[n, j] = mean_q[n] . mean_k[j]`` (the factor ``1 / sqrt(D)`` does not
change the order), and the context of ``n`` is the ``k`` best-scoring blocks of its history, or all of them while
there are fewer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Scores held at once: 512 MiB of fp32.
MAX_SCORES = 1 << 27


def pool_blocks(k: Tensor, block: int) -> Tensor:
    """Average the features of every block.

    Args:
        k: ``[B, H, T, D]``, T a multiple of ``block``.
        block: tokens of a block.

    Returns:
        fp32 ``[B, H, T / block, D]``, without gradient.

    Raises:
        ValueError: T is not a multiple of ``block``.
    """
    if k.dim() != 4 or block < 1 or k.shape[2] % block:
        raise ValueError(f"pool_blocks: {tuple(k.shape)} must be [B, H, T, D] with T a multiple of block {block}")
    return k.detach().unflatten(2, (-1, block)).mean(dim=3, dtype=torch.float32)


def score_chunks(
    q_pooled: Tensor, k_pooled: Tensor, first: Tensor | None, mask: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Compute scores for runs of query blocks, few enough at a time to bound memory.

    Args:
        q_pooled: ``[B, H, NQ, D]``.
        k_pooled: ``[B or 1, H, NK, D]``.
        first: int32 ``[B or 1, NQ]`` or None, first allowed key block.
        mask: bool, broadcastable to ``[B, H, NQ, NK]``, or None; False forbids.

    Yields:
        The slice of query blocks and their scores, fp32 ``[B, H, n, NK]``, -inf where ``first`` or ``mask`` forbid.
    """
    batch, heads, num_queries, _ = q_pooled.shape
    num_keys = k_pooled.shape[2]
    step = max(1, MAX_SCORES // max(1, batch * heads * num_keys))
    keys = k_pooled.float().transpose(-1, -2)
    for start in range(0, num_queries, step):
        part = slice(start, min(start + step, num_queries))
        scores = q_pooled[:, :, part].float() @ keys
        if first is not None:
            index = torch.arange(num_keys, device=scores.device)
            scores = scores.masked_fill(index < first[:, None, part, None], float("-inf"))
        if mask is not None:
            allowed = mask if mask.shape[2] == 1 else mask[:, :, part]
            scores = scores.masked_fill(~allowed, float("-inf"))
        yield part, scores


def select_blocks_naive(
    q_pooled: Tensor, k_pooled: Tensor, k: int, limit: Tensor, first: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Select by ``torch.topk``.

    Args:
        q_pooled: fp32 ``[B, H, NQ, D]``.
        k_pooled: fp32 ``[B or 1, H, NK, D]``.
        k: most blocks to select.
        limit: int32 ``[B or 1, NQ]``, one past the last allowed key block.
        first: int32 ``[B or 1, NQ]`` or None, first allowed key block.
        mask: bool, broadcastable to ``[B, H, NQ, NK]``, or None; False forbids.

    Returns:
        lists int32 ``[B, H, NQ, k]``, ascending, 0 past the count; counts int32 ``[B, H, NQ]``.
    """
    batch, heads, num_queries, _ = q_pooled.shape
    num_keys = k_pooled.shape[2]
    lists = torch.zeros((batch, heads, num_queries, k), dtype=torch.int32, device=q_pooled.device)
    counts = torch.zeros((batch, heads, num_queries), dtype=torch.int32, device=q_pooled.device)
    width = min(k, num_keys)
    if width == 0:
        return lists, counts
    index = torch.arange(num_keys, device=q_pooled.device)
    for part, scores in score_chunks(q_pooled, k_pooled, first, mask):
        scores = scores.masked_fill(index >= limit[:, None, part, None], float("-inf"))
        best = torch.topk(scores, width, dim=-1, sorted=False)
        chosen = best.values > float("-inf")
        # Forbidden picks sort to the end and become 0.
        picks = torch.where(chosen, best.indices, num_keys).sort(dim=-1).values
        lists[:, :, part, :width] = torch.where(picks < num_keys, picks, 0).to(torch.int32)
        counts[:, :, part] = chosen.sum(dim=-1, dtype=torch.int32)
    return lists, counts
