"""Block-sparse attention, written as its definition: a dense masked softmax in fp32.

DecMem (arXiv 2605.31336, section 3) lets every query block attend to a few retrieved blocks of the history. With
queries ``q_i``, keys ``k_j`` and values ``v_j`` of one head, ``C(n)`` the set of key blocks retrieved for query block
``n``, and ``J(n)`` the valid tokens of those blocks::

    s_ij = scale * q_i . k_j                              j in J(n(i)),  scale = 1 / sqrt(D)
    lse_i = log sum_{j in J(n(i))} exp(s_ij)              (-inf when J is empty)
    o_i  = sum_{j in J(n(i))} exp(s_ij - lse_i) v_j       (0 when J is empty)

The paper's two branches are two calls: the sparse global memory (SGM) with the top-k lists of
:func:`decmem_env.kernels.select_blocks`, the anchored local memory (ALM) with the frames of a sliding window. They are
summed outside, through the learned gate: ``o_t = o_t^alm + G_t * o_t^sgm``.

Gradients, with ``p_ij = exp(s_ij - lse_i)`` and ``delta_i = sum_d do_id o_id - dlse_i``::

    dv_j = sum_i p_ij do_i
    ds_ij = p_ij (do_i . v_j - delta_i)
    dq_i = scale * sum_j ds_ij k_j        dk_j = scale * sum_i ds_ij q_i

Here autograd derives them; the Triton kernels compute exactly these sums. Lists are constants: nothing flows into them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def allowed_blocks(lists: Tensor, counts: Tensor, num_blocks: int) -> Tensor:
    """Turn index lists into a mask.

    Args:
        lists: int32 ``[B, H, NQ, L]``; entries from ``counts`` on are ignored, whatever they hold.
        counts: int32 ``[B, H, NQ]``.
        num_blocks: number of key blocks NK.

    Returns:
        bool ``[B, H, NQ, NK]``, True where the key block is listed.
    """
    length = lists.shape[-1]
    listed = torch.arange(length, device=lists.device) < counts[..., None]
    # Unlisted entries go to a spare last column that is cut off again.
    target = torch.where(listed, lists, num_blocks).long()
    mask = torch.zeros(*lists.shape[:-1], num_blocks + 1, dtype=torch.bool, device=lists.device)
    return mask.scatter_(-1, target, True)[..., :num_blocks]


def block_sparse_attention_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Tensor,
    counts: Tensor,
    kv_sizes: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attend by the definition above; memory is ``B * H * Tq * Tk`` floats.

    Args:
        q: ``[B, H, Tq, D]``.
        k: ``[B or 1, H, Tk, D]``.
        v: like ``k``.
        lists: int32 ``[B or 1, H or 1, NQ, L]``.
        counts: int32 ``[B or 1, H or 1, NQ]``.
        kv_sizes: int32 ``[NK]``, valid tokens of each key block, or None if all are full.
        q_block: tokens of a query block.
        kv_block: tokens of a key block.
        scale: factor on the logits.

    Returns:
        The output ``[B, H, Tq, D]`` in the type of ``q`` and the log-sum-exp, fp32 ``[B, H, Tq]``.
    """
    num_blocks = k.shape[2] // kv_block
    allowed = allowed_blocks(lists, counts, num_blocks).repeat_interleave(kv_block, dim=3)
    if kv_sizes is not None:
        within = torch.arange(kv_block, device=k.device) < kv_sizes[:, None]
        allowed = allowed & within.flatten()
    # Rows that nobody lists may be uninitialised memory: 0 * NaN must not reach a sum.
    used = allowed.any(dim=2)[..., None]
    keys = torch.where(used, k.float(), 0.0)
    values = torch.where(used, v.float(), 0.0)
    allowed = allowed.repeat_interleave(q_block, dim=2)

    logits = (q.float() @ keys.transpose(-1, -2) * scale).masked_fill(~allowed, float("-inf"))
    top = logits.detach().amax(dim=-1, keepdim=True)
    top = torch.where(top.isinf(), 0.0, top)
    weights = torch.exp(logits - top)
    total = weights.sum(dim=-1, keepdim=True)
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    out = weights @ values / total
    lse = torch.where(empty, float("-inf"), torch.log(total) + top)
    return out.to(q.dtype), lse.squeeze(-1)
