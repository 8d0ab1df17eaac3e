"""Small layers of the transformer, as Wan2.1 has them: the RMS norm and the attention to a text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., width]; the dtype stays."""
        full = x.float()
        return (full * torch.rsqrt(full.square().mean(-1, keepdim=True) + 1e-6) * self.weight).to(x.dtype)


class CrossAttention(nn.Module):
    """Attention of every token to one fixed text; keys and values do not depend on the frames.

    Args:
        width: Channels of tokens and of the embedded text.
        heads: Attention heads.
        head_dim: Channels of a head.
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_dim
        self.q, self.k, self.v = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, width)
        self.norm_q, self.norm_k = RMSNorm(inner), RMSNorm(inner)

    def keys(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [1, H, L, D] of an embedded text [L, W]."""
        parts = self.norm_k(self.k(text)), self.v(text)
        k, v = (t.unflatten(-1, (self.heads, -1)).transpose(0, 1)[None] for t in parts)
        return k, v

    def forward(self, x: Tensor, keys: tuple[Tensor, Tensor]) -> Tensor:
        """Attend from normed tokens [..., W] to `keys`."""
        q = self.norm_q(self.q(x)).flatten(0, -2).unflatten(-1, (self.heads, -1)).transpose(0, 1)[None]
        k, v = (t.to(q.dtype) for t in keys)
        found = F.scaled_dot_product_attention(q, k, v)
        return self.out(found[0].transpose(0, 1).flatten(1).view(*x.shape[:-1], -1))  # type: ignore[no-any-return]
