"""The diffusion transformer: Wan-style blocks whose self-attention is DecMem's decoupled memory.

Block: modulated LayerNorm -> decoupled attention -> gated residual; (attention to a fixed text, where a model keeps
one from its backbone;) modulated LayerNorm -> FFN -> gated residual. The residual stream, norms and modulation are
fp32. The six modulation vectors are a projection of the flow time shared by all blocks plus a table per block; q and k
pass an RMS norm over all heads together; actions are embedded and added to the tokens before the first block (DecMem
section 3).

Shapes: B batch, T latent frames, F frames in a pass, N places for tokens of a frame (some models repeat the last token
to fill the last memory block; those keys are never seen), W width, H heads, D head channels, C latent
channels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels.block_sparse_attention import block_sparse_attention
from ..kernels.softmax_merge import merge_softmax
from .attention import (
    BlockLists,
    FrameLists,
    frame_attention,
    history_limit,
    key_sizes,
    retrieve,
    seen_lists,
    window_lists,
)
from .config import ModelConfig
from .layers import CrossAttention, RMSNorm
from .position import Positions, channel_order, positions, spatial_angles, token_order, transform
from .voxel_rays import VoxelRays, crossings

TIME_CHANNELS = 256
ATTENTIONS = ("memory", "dense", "window")


class Sequence(NamedTuple):
    """What teacher-forced attention needs beside q, k and v.

    Attributes:
        window: Lists of the local memory (of all frames for dense attention).
        limit: Blocks each query block may retrieve.
        frame_sizes: Real keys of each frame, None where all places hold tokens.
        block_sizes: Real keys of each clean block.
    """

    window: FrameLists
    limit: Tensor
    frame_sizes: Tensor | None
    block_sizes: Tensor | None


def time_features(time: Tensor) -> Tensor:
    """Sinusoid of flow times [...] in [0, 1], fp32 [..., 256]; Wan's form on t * 1000, cosine half first."""
    half = TIME_CHANNELS // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, device=time.device, dtype=torch.float64) / half)
    angle = time[..., None].double() * 1000.0 * frequency
    return torch.cat([angle.cos(), angle.sin()], -1).float()


class DecoupledMemoryAttention(nn.Module):
    """Shared q, k, v; the branches are attended by the caller's lists; per-channel gate (DecMem 4.3)."""

    channels: Tensor
    stored: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        inner = config.heads * config.head_dim
        self.qkv = nn.Linear(config.width, 3 * inner)
        self.norm_q, self.norm_k = RMSNorm(inner), RMSNorm(inner)
        self.out = nn.Linear(inner, config.width)
        self.gate = nn.Linear(config.width, inner) if config.fusion == "gated" else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            linear = config.gate == "linear"
            start = config.gate_init if linear else math.log(config.gate_init / (1.0 - config.gate_init))
            nn.init.constant_(self.gate.bias, start)
        order = channel_order(config)
        self.reordered = order is not None
        if order is not None:
            self.register_buffer("channels", order, persistent=False)
            self.register_buffer("stored", torch.argsort(order), persistent=False)

    def project(self, x: Tensor, where: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """Position-encoded q, k, v, each [B, H, F * N, D], from normed tokens [B, F, N, W]."""
        cfg = self.config
        q, k, v = self.qkv(x).chunk(3, -1)
        shape = (*x.shape[:3], cfg.heads, cfg.head_dim)
        q, k, v = self.norm_q(q).view(shape), self.norm_k(k).view(shape), v.reshape(shape)
        if self.reordered:
            q, k, v = (t[..., self.channels] for t in (q, k, v))
        q = transform(q, "query", where, cfg)
        k = transform(k, "key", where, cfg)
        v = transform(v, "value", where, cfg)
        return tuple(t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # type: ignore[return-value]

    def merge(self, x: Tensor, local: Tensor, retrieved: Tensor | None, where: Positions) -> Tensor:
        """`ALM' + gate * SGM'` after the output transform of each branch, projected back to [B, F, N, W].

        Args:
            x: Normed tokens [B, F, N, W], which open the gate.
            local: ALM (or one-softmax) output [B, H, F * N, D].
            retrieved: SGM output, or None where there is no second branch.
            where: Positions of the F frames.
        """
        result = self._output(local, where, x.shape[1:3])
        if retrieved is not None and self.gate is not None:
            opened = self.gate(x)
            if self.config.gate == "sigmoid":
                opened = torch.sigmoid(opened)
            result = result + opened * self._output(retrieved, where, x.shape[1:3])
        return self.out(result)

    def _output(self, branch: Tensor, where: Positions, shape: torch.Size) -> Tensor:
        """Output transform of [B, H, F * N, D]: [B, F, N, H * D]."""
        turned = transform(branch.transpose(1, 2).unflatten(1, shape), "output", where, self.config)
        return (turned[..., self.stored] if self.reordered else turned).flatten(-2)


class Block(nn.Module):
    """One transformer block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.modulation = nn.Parameter(torch.randn(6, config.width) / config.width**0.5)
        self.attention = DecoupledMemoryAttention(config)
        if config.text_tokens:
            self.cross_norm = nn.LayerNorm(config.width, eps=1e-6)
            self.cross_attention = CrossAttention(config.width, config.heads, config.head_dim)
        self.ffn = nn.Sequential(
            nn.Linear(config.width, config.ffn_width),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.ffn_width, config.width),
        )

    def modulate(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """LayerNorm without parameters, then scale and shift per frame: x [B, F, N, W], vectors [B, F, 1, W]."""
        return F.layer_norm(x, (x.shape[-1],), eps=1e-6) * (1.0 + scale) + shift

    def vectors(self, time: Tensor) -> tuple[Tensor, ...]:
        """The six modulation vectors [B, F, 1, W] from the shared projection [B, F, 6, W]."""
        return (self.modulation + time)[:, :, :, None].unbind(2)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        where: Positions,
        sequence: Sequence,
        local_only: bool,
        lists: BlockLists | None,
        text: Tensor | None = None,
    ) -> tuple[Tensor, BlockLists | None]:
        """Teacher-forced pass over [clean | noisy].

        Args:
            x: [B, 2T, N, W].
            time: Shared time projection [B, 2T, 6, W].
            where: Positions of the 2T frames.
            sequence: Lists.
            local_only: One softmax over the listed frames, without retrieval.
            lists: Retrieved blocks to use instead of the top k.
            text: Embedded text [L, W], for models that keep one.

        Returns:
            New tokens and the lists that were retrieved (None without retrieval).
        """
        cfg = self.config
        shift1, scale1, gate1, shift2, scale2, gate2 = self.vectors(time)
        normed = self.modulate(x, shift1, scale1)
        q, k, v = self.attention.project(normed, where)
        retrieved = None
        if local_only:
            local, _ = frame_attention(q, k, v, sequence.window, cfg.tokens, sequence.frame_sizes)
        else:
            half = k.shape[2] // 2
            if lists is None:
                lists = retrieve(q, k[:, :, :half], sequence.limit, cfg)
            local, local_lse = frame_attention(q, k, v, sequence.window, cfg.tokens, sequence.frame_sizes)
            size = cfg.block_tokens
            memory, memory_lse = block_sparse_attention(
                q,
                k[:, :, :half],
                v[:, :, :half],
                lists.lists,
                lists.counts,
                q_block=size,
                kv_block=size,
                kv_sizes=sequence.block_sizes,
                return_lse=True,
            )
            if cfg.fusion == "gated":
                retrieved = memory
            else:
                # The queries of a frame share their window: two calls read its keys once a frame instead of once a
                # query block, as one list of both sets would.
                local = merge_softmax(local, local_lse, memory, memory_lse)
        x = x + gate1 * self.attention.merge(normed, local, retrieved, where)
        if text is not None:
            x = x + self.cross_attention(self.cross_norm(x), self.cross_attention.keys(text))
        x = x + gate2 * self.ffn(self.modulate(x, shift2, scale2))
        return x, lists


class WorldTransformer(nn.Module):
    """Velocity of latent frames given their past, their actions and their cameras.

    Attributes:
        checkpoint_activations: Recompute each block in the backward pass instead of keeping its activations.
    """

    order: Tensor
    unorder: Tensor
    spatial: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.checkpoint_activations = False
        self.config = config
        width = config.width
        self.patch = nn.Linear(config.patch_channels, width)
        self.action = nn.Sequential(nn.Linear(config.action_channels, width), nn.SiLU(), nn.Linear(width, width))
        # Added to the tokens of clean frames that a model generated itself, so that memory tells seen from dreamed.
        self.generated = nn.Parameter(torch.zeros(width)) if config.marks_generated else None
        self.voxel_rays = VoxelRays(config) if config.voxel_planes else None
        if config.layout == "wan":
            # What the pretrained backbone does not have begins without effect; so does the gate (`gate_init`).
            nn.init.zeros_(self.action[2].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.action[2].bias)  # type: ignore[arg-type]
        if config.text_tokens:
            self.text = nn.Sequential(
                nn.Linear(config.text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
            )
            # Wan pads prompts with zeros; the encoded empty prompt may be put here. It is not trained.
            self.text_context = nn.Parameter(torch.zeros(config.text_tokens, config.text_width), requires_grad=False)
        self.time = nn.Sequential(nn.Linear(TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_modulation = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.head = nn.Linear(width, config.patch_channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        order = token_order(config)
        self.register_buffer("order", order, persistent=False)
        places = len(order) - config.padding
        self.register_buffer("unorder", torch.argsort(order[:places]), persistent=False)
        self.register_buffer("spatial", spatial_angles(config), persistent=False)
        self._run: list[Any] | None = None

    def compile_blocks(self) -> None:
        """Compile every block's teacher-forced pass (CUDA training; shapes must stay the same)."""
        self._run = [torch.compile(block, dynamic=False) for block in self.blocks]
        if self.voxel_rays is not None:
            self.voxel_rays.crossings = torch.compile(crossings, dynamic=False)

    def tokens(
        self, latents: Tensor, actions: Tensor, action_mask: Tensor, generated: Tensor, view: Tensor | None = None
    ) -> Tensor:
        """Embed latents [B, F, C, h, w] with their actions [B, F, A]: tokens [B, F, N, W], blocks contiguous.

        A dropped action (`action_mask` bool [B, F] False) adds exactly zero; clean frames of the model's own
        (`generated` bool [B, F]) get its mark, where it has one. A model with `voxel_planes` needs `view`, fp32
        [B, F, 8 + 4 K] (`voxel_rays.views`).
        """
        p = self.config.patch
        cells = latents.unflatten(-1, (-1, p)).unflatten(-3, (-1, p))  # [B, F, C, rows, p, columns, p]
        flat = cells.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)[:, :, self.order]
        embedded = self.action(actions) * action_mask[..., None]
        if self.generated is not None:
            embedded = embedded + generated[..., None] * self.generated
        tokens = self.patch(flat) + embedded[:, :, None]
        if self.voxel_rays is None:
            return tokens
        if view is None:
            raise ValueError("this model has voxel_planes: it needs the view of every frame (voxel_rays.views(poses))")
        return tokens + self.voxel_rays(view, actions * action_mask[..., None])

    def embedded_text(self) -> Tensor | None:
        """The text that blocks attend to, [L, W]; None for models without."""
        return self.text(self.text_context) if self.config.text_tokens else None

    def time_vectors(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Flow times [B, F] to (head embedding [B, F, W], block projection [B, F, 6, W])."""
        embedded = self.time(time_features(time))
        return embedded, self.time_projection(embedded).unflatten(-1, (6, -1)).float()

    def velocity(self, x: Tensor, embedded: Tensor) -> Tensor:
        """Head: tokens [B, F, N, W] to velocities [B, F, C, h, w]."""
        shift, scale = (self.head_modulation + embedded[:, :, None].float()).unbind(2)
        normed = F.layer_norm(x, (x.shape[-1],), eps=1e-6) * (1.0 + scale[:, :, None]) + shift[:, :, None]
        return self.unpatch(self.head(normed))

    def unpatch(self, out: Tensor) -> Tensor:
        """Outputs of the head [B, F, N, p * p * C] (channel fastest, as in Wan) as velocities [B, F, C, h, w]."""
        p = self.config.patch
        cells = out[:, :, self.unorder].unflatten(2, self.config.grid).unflatten(-1, (p, p, -1))
        return cells.permute(0, 1, 6, 2, 4, 3, 5).flatten(5).flatten(3, 4)

    def where(self, projective: Tensor, projective_inverse: Tensor, frame_index: Tensor) -> Positions:
        """Positions of F frames: matrices fp32 [B, F, 4, 4], indices int64 [B, F]."""
        return positions(self.config, self.spatial, projective, projective_inverse, frame_index)

    def teacher_forcing(
        self,
        clean: Tensor,
        noisy: Tensor,
        clean_time: Tensor,
        noisy_time: Tensor,
        actions: Tensor,
        projective: Tensor,
        projective_inverse: Tensor,
        frame_index: Tensor,
        *,
        action_mask: Tensor,
        generated: Tensor | None = None,
        view: Tensor | None = None,
        attention: str = "memory",
        seen: tuple[Tensor, Tensor] | None = None,
        lists: list[BlockLists] | None = None,
        return_lists: bool = False,
    ) -> Any:
        """Predict the velocity of every noisy frame given the clean frames before it (DecMem section 3).

        Args:
            clean: [B, T, C, h, w], the history (possibly slightly noised).
            noisy: [B, T, C, h, w], z_t of the same frames.
            clean_time: [B, T], flow times of the history, 0 when clean.
            noisy_time: [B, T].
            actions: [B, T, A], A = 25 for each video frame of a latent; actions[t] led to frame t.
            projective: P~, fp32 [B, T, 4, 4].
            projective_inverse: fp32 [B, T, 4, 4].
            frame_index: int64 [B, T].
            action_mask: bool [B, T], False drops the action from the noisy half (the history keeps its own).
            generated: bool [B, T], frames of the history that the model generated itself; None: none.
            view: fp32 [B, T, 8 + 4 K] of `voxel_rays.views`, for models with `voxel_planes`.
            attention: `memory` (SGM and ALM), `dense`, or `window` (ALM alone).
            seen: Frames that each frame sees instead in `memory`, int32 [B, T, n], and how many of them count, int32
                [B, T], -1 where it goes by window and content (`nearest_views.seen_on_walk`); None: all do.
            lists: Retrieved blocks per layer, instead of the top k.
            return_lists: Also return them.

        Returns:
            Velocity [B, T, C, h, w], and the lists per layer if asked for.
        """
        if attention not in ATTENTIONS:
            raise ValueError(f"attention is {attention!r}: expected {', '.join(ATTENTIONS)}")
        cfg, frames, device = self.config, clean.shape[1], clean.device
        reach = frames if attention == "dense" else cfg.window
        keep = torch.cat([torch.ones_like(action_mask), action_mask], 1)
        nowhere = torch.zeros_like(action_mask)
        own = torch.cat([nowhere if generated is None else generated, nowhere], 1)
        both = None if view is None else torch.cat([view, view], 1)
        x = self.tokens(torch.cat([clean, noisy], 1), torch.cat([actions, actions], 1), keep, own, both).float()
        embedded, time = self.time_vectors(torch.cat([clean_time, noisy_time], 1))
        twice = [torch.cat([t, t], 1) for t in (projective.float(), projective_inverse.float(), frame_index)]
        where = self.where(*twice)
        skip = cfg.window if cfg.fusion == "union" else 0
        window = window_lists(frames, reach, cfg.chunk, device)
        limit = history_limit(frames, cfg.blocks_per_frame, skip, cfg.chunk, device)
        if seen is not None and attention == "memory":
            window = seen_lists(window, *seen)
            limit = limit * (seen[1] < 0).repeat(1, 2).repeat_interleave(cfg.blocks_per_frame, 1)
        sequence = Sequence(
            window,
            limit,
            key_sizes(cfg, 2 * frames, cfg.tokens, device),
            key_sizes(cfg, frames, cfg.block_tokens, device),
        )
        text = self.embedded_text()
        used: list[BlockLists | None] = []
        keep_less = self.checkpoint_activations and torch.is_grad_enabled()
        for i, block in enumerate(self._run or self.blocks):
            arguments = (x, time, where, sequence, attention != "memory", lists[i] if lists is not None else None, text)
            x, chosen = checkpoint(block, *arguments, use_reentrant=False) if keep_less else block(*arguments)
            used.append(chosen)
        velocity = self.velocity(x[:, frames:], embedded[:, frames:])
        return (velocity, used) if return_lists else velocity
