"""The definition: a set's share of the softmax is the sigmoid of the difference of the log-sum-exps."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_softmax_naive(one: Tensor, one_lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """``one + sigmoid(other_lse - one_lse) * (other - one)``; shapes as :func:`.merge_softmax`."""
    share = torch.sigmoid(other_lse - one_lse)[..., None]
    return torch.lerp(one.float(), other.float(), share).to(one.dtype)
