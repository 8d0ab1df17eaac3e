"""The work of a layer between its products and its attention, for the layout `wan`; compiled, or kernels, on CUDA.

Each function reads its inputs once and writes its outputs once when compiled; on the CPU they run as written. Shapes as
in `streaming`; P = B * F frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.modulated_norm import modulated_norm, residual_modulated_norm
from .config import ModelConfig
from .position import Positions, transform


class Encoded(NamedTuple):
    """Position-encoded tokens of P frames.

    Attributes:
        q: [P, H, N, D].
        k: Like q.
        v: Like q.
        q_means: fp32 [P, H, M, D], of the blocks' real tokens.
        k_means: Like q_means.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    q_means: Tensor
    k_means: Tensor


def modulated(x: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """LayerNorm without parameters, then scale (plus one already) and shift."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), scale).to(dtype)


def residual(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    """Add a gated change to the fp32 stream."""
    return torch.addcmul(x, gate, change.float())


def residual_modulated(
    x: Tensor, gate: Tensor, change: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`residual`, and the new stream `modulated`."""
    x = residual(x, gate, change)
    return x, modulated(x, shift, scale, dtype)


def up(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """First product of the FFN and Wan's activation, `gelu` of its tanh form."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def up_fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`up` with the activation (on CUDA in its tanh form) at the end of the product's own kernel."""
    made = torch._addmm_activation(bias, x.flatten(0, -2), weight.mT, use_gelu=True)
    return made.unflatten(0, x.shape[:-1])


def encode(mixed: Tensor, norm: Tensor, where: Positions, config: ModelConfig) -> Encoded:
    """Norm q and k over all heads and position-encode q, k and v.

    Args:
        mixed: [P, N, 3 * H * D or more], channels in the order of `channel_order`.
        norm: fp32 [2, 1, H, D].
        where: Of the P frames, [1, P, ...].
        config: Sizes.
    """
    heads, dim = config.heads, config.head_dim
    parts = mixed[..., : 3 * heads * dim].float().unflatten(-1, (3, heads, dim)).unbind(-3)
    done = []
    for i, (part, kind) in enumerate(zip(parts, ("query", "key", "value"), strict=True)):
        if i < 2:
            part = part * torch.rsqrt(part.square().mean((-1, -2), keepdim=True) + 1e-6) * norm[i]
        done.append(transform(part[None], kind, where, config)[0].transpose(1, 2))
    means = [_means(x, config) for x in done[:2]]
    q, k, v = (x.to(mixed.dtype).contiguous() for x in done)
    return Encoded(q, k, v, *means)


def _means(x: Tensor, config: ModelConfig) -> Tensor:
    """Mean over each block's real tokens: [P, H, N, D] to [P, H, M, D]."""
    blocks = x.unflatten(2, (config.blocks_per_frame, config.block_tokens))
    if not config.padding:
        return blocks.mean(3)
    last = blocks[:, :, -1:, : -config.padding].mean(3)
    return torch.cat([blocks[:, :, :-1].mean(3), last], 2)


def decode(
    local: Tensor, retrieved: Tensor | None, gate: Tensor | None, where: Positions, config: ModelConfig
) -> Tensor:
    """Output transform of each branch [B, H, F * N, D], then `local + gate * retrieved`: [B, F, N, H * D].

    Args:
        local: Or only branch.
        retrieved: Second branch, or None.
        gate: [B, F, N, H * D] with the second branch, before its activation.
        where: Of the F frames of each row.
        config: Sizes.
    """
    frames = where.output.shape[1]

    def turned(branch: Tensor) -> Tensor:
        x = branch.unflatten(2, (frames, -1)).permute(0, 2, 3, 1, 4).float()
        return transform(x, "output", where, config).flatten(-2)

    result = turned(local)
    if retrieved is not None and gate is not None:
        opened = gate.float() if config.gate == "linear" else torch.sigmoid(gate.float())
        result = result + opened * turned(retrieved)
    return result.to(local.dtype)


class Pointwise:
    """The functions of this module, compiled or as kernels where that pays.

    Args:
        compiled: Whether to compile.
        kernels: Whether Triton's kernels run here.
    """

    def __init__(self, compiled: bool, kernels: bool) -> None:
        def ready(function: Callable[..., Any]) -> Any:
            return torch.compile(function) if compiled else function

        self.residual = ready(residual)
        self.modulated = modulated_norm if kernels else ready(modulated)
        self.residual_modulated = residual_modulated_norm if kernels else ready(residual_modulated)
        self.up = up_fused if compiled else up
        self.encode, self.decode = ready(encode), ready(decode)
