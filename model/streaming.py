"""Passes over the newest frames of many sessions, with everything older in the page pool.

A pass holds, for each row (session), frames to commit (clean) followed by frames to denoise. Every layer first writes
the keys and values of all of them into their pages, then attends by lists, which express the teacher-forcing mask: so
one pass commits the last frame and denoises the next, a prefill commits many frames at once, and guidance adds a second
noisy frame. Results equal `WorldTransformer.teacher_forcing` up to rounding.

The weights of a layer are laid out for inference here: one product for q, k, v and gate, modulation vectors computed
once per flow time, positions as one batched product (`position.FrameMatrices`; in the layout `wan`, whose frames are
large, as compiled functions of `pointwise`).

Shapes: B rows, F frames of a pass, N tokens, M blocks of a frame, H heads, D head channels, W width, I = H * D.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.block_selection import select_blocks
from ..kernels.block_sparse_attention import block_sparse_attention
from ..kernels.choice import fastest
from ..kernels.dense_attention import dense_attention, gather_pages
from ..kernels.position_encoding import encode_pages, has_kernel, merge_branches
from ..kernels.softmax_merge import merge_softmax
from .attention import BlockLists, key_sizes, union_lists
from .dispersion import Dispersion, Listed
from .layers import CrossAttention
from .memory import PagePool
from .passes import Lists, Plan, local_tiles
from .pointwise import Encoded, Pointwise
from .position import FrameMatrices, Positions, frame_matrices, patch_tables
from .staged_attention import Window, attend_copies
from .transformer import Block, WorldTransformer
from .upload import upload

# Factor on the logits of tokens before the window in the mode `decay`, after UltraViCo (arXiv 2511.20123), which scales
# what lies beyond the trained length down without training; DecMem, which compares itself with it, names no value.
DECAY = 0.9
_PAGES_AT_ONCE = 64  # pages beyond which chunks are attended one after the other, to copy less at a time


class _Layer:
    """Weights of one block, laid out for inference, wherever the block's own lie."""

    def __init__(self, block: Block, device: torch.device, dtype: torch.dtype, text: Tensor | None) -> None:
        if block.modulation.device != device:
            block = copy.deepcopy(block).to(device)
        attention = block.attention
        heads, dim = attention.config.heads, attention.config.head_dim
        parts = [attention.qkv] if attention.gate is None else [attention.qkv, attention.gate]
        into, bias = torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])
        norm, out = torch.stack([attention.norm_q.weight, attention.norm_k.weight]), attention.out.weight
        if attention.reordered:
            # Heads keep their channels in the order of the position transforms, so nothing is moved at run time.
            first = torch.arange(0, into.shape[0], dim, device=into.device)[:, None]
            rows = (first + attention.channels).flatten()
            inner = rows[: heads * dim]
            into, bias, norm, out = into[rows], bias[rows], norm[:, inner], out[:, inner]
        self.into = into.to(dtype), bias.to(dtype)
        self.norm = norm.view(2, 1, heads, dim).float()
        self.gated = attention.gate is not None
        self.out = out.to(dtype), attention.out.bias.to(dtype)
        self.up, self.down = (
            (linear.weight.to(dtype), linear.bias.to(dtype)) for linear in block.ffn if isinstance(linear, nn.Linear)
        )
        self.modulation = block.modulation.detach().clone().float()
        self.cross: tuple[nn.LayerNorm, CrossAttention, tuple[Tensor, Tensor]] | None = None
        if text is not None:
            k, v = block.cross_attention.keys(text)
            cast = copy.deepcopy(block.cross_attention).to(dtype)
            self.cross = copy.deepcopy(block.cross_norm), cast, (k.to(dtype), v.to(dtype))

    def attend_text(self, x: Tensor) -> Tensor:
        """Add the attention to the text, in models that keep one, to the stream [B, F, N, W]."""
        assert self.cross is not None
        norm, attention, keys = self.cross
        return x + attention(norm(x).to(self.out[0].dtype), keys).float()


class _Next(NamedTuple):
    """What follows a block: shift and scale of its norm [1, F, 1, W], and the norm's dtype."""

    shift: Tensor
    scale: Tensor
    dtype: torch.dtype


class Streamer:
    """The transformer over a page pool.

    Attributes:
        watcher: Told what every layer attends to, where someone wants to know (`dispersion`).

    Args:
        model: fp32 weights on the pool's device; its blocks may lie on another.
        pool: Pages; its dtype is also that of queries.
        products: Dtype of the products with weights; the pool's by default.
    """

    def __init__(self, model: WorldTransformer, pool: PagePool, products: torch.dtype | None = None) -> None:
        self.model, self.pool, self.config = model, pool, model.config
        self.dtype = pool.dtype
        self.products = products or pool.dtype
        with torch.no_grad():
            text = model.embedded_text()
            self.layers = [_Layer(block, pool.device, self.products, text) for block in model.blocks]  # type: ignore[arg-type]
        wan = self.config.layout == "wan"
        self.tables = None if wan else patch_tables(self.config, model.spatial)
        self.fused = wan and has_kernel(pool.device, self.config.head_dim)
        self.point = Pointwise(wan and pool.device.type == "cuda", self.fused)
        self.watcher: Dispersion | None = None
        self._vectors: dict[tuple[float, ...], tuple[list[Tensor], Tensor]] = {}

    def where(self, projective: Tensor, inverse: Tensor, frame_index: Tensor) -> FrameMatrices | Positions:
        """Position transforms of P frames: P~ and its inverse fp32 [P, 4, 4], indices int64 [P]."""
        # On a GPU the matrices are built there: many worlds' take milliseconds to build here, and more to send.
        parts = [upload(t, self.pool.device) for t in (projective, inverse, frame_index)]
        if self.tables is not None:
            return frame_matrices(self.config, self.tables, *parts)
        return self.model.where(*(t[None] for t in parts))

    def modulation(self, times: tuple[float, ...]) -> tuple[list[Tensor], Tensor]:
        """Vectors [6, 1, F, 1, W] of each layer and [2, 1, F, 1, W] of the head; scales are stored plus one."""
        found = self._vectors.get(times)
        if found is None:
            embedded, shared = self.model.time_vectors(torch.tensor([times], device=self.pool.device))
            layers = [(layer.modulation + shared).permute(2, 0, 1, 3)[:, :, :, None] for layer in self.layers]
            head = (self.model.head_modulation + embedded[:, :, None].float()).permute(2, 0, 1, 3)[:, :, :, None]
            for vectors, scales in [*((v, (1, 4)) for v in layers), (head, (1,))]:
                for index in scales:
                    vectors[index] += 1.0
            if len(self._vectors) >= 64:
                self._vectors.clear()
            found = self._vectors[times] = ([v.contiguous() for v in layers], head.contiguous())
        return found

    @torch.no_grad()
    def run(
        self,
        plan: Plan,
        latents: Tensor,
        actions: Tensor,
        keep: Tensor,
        generated: Tensor,
        view: Tensor | None,
        times: tuple[float, ...],
        where: FrameMatrices | Positions,
        forced: list[BlockLists] | None = None,
        record: list[BlockLists] | None = None,
    ) -> Tensor | None:
        """Write the pass into memory and denoise.

        Args:
            plan: From `plan_pass`.
            latents: fp32 [B, F, C, h, w].
            actions: [B, F, A].
            keep: bool [B, F], False drops the action.
            generated: bool [B, F], frames to commit that the model generated itself.
            view: fp32 [B, F, 8 + 4 K] (`voxel_rays.views`), for models with `voxel_planes`.
            times: Flow time of each frame, equal in all rows.
            where: From `where`, of the B * F frames.
            forced: Per layer, retrieved blocks of the pass's frames (in blocks of the row's history) to use.
            record: Receives the lists of each layer, of the frames whose output is wanted.

        Returns:
            Velocity fp32 [B, F - output, C, h, w], or None where only commits were asked for.
        """
        vectors = self.modulation(times)
        return self.compute(plan, latents, actions, keep, generated, view, vectors, where, forced, record)

    @torch.no_grad()
    def compute(
        self,
        plan: Plan,
        latents: Tensor,
        actions: Tensor,
        keep: Tensor,
        generated: Tensor,
        view: Tensor | None,
        modulation: tuple[list[Tensor], Tensor],
        where: FrameMatrices | Positions,
        forced: list[BlockLists] | None = None,
        record: list[BlockLists] | None = None,
    ) -> Tensor | None:
        """`run`, with the vectors of `modulation` in place of the flow times."""
        vectors, head = modulation
        x = self.model.tokens(latents, actions, keep, generated, view).float()
        normed = self.point.modulated(x, vectors[0][0], vectors[0][1], self.products)
        last = len(self.layers) - 1
        if plan.working is not None:
            if self.watcher is not None:
                raise ValueError(
                    "a session can be watched only with no frames on the host and a memory_dtype other than int8"
                )
            self.pool.staging.begin(plan.lists.limit is not None)
        for index, layer in enumerate(self.layers):
            start = plan.output if index == last else 0
            lists = forced[index] if forced is not None else None
            after = head if index == last else vectors[index + 1]
            then = _Next(after[0], after[1], torch.float32 if index == last else self.products)
            x, normed = self._layer(index, layer, x, normed, vectors[index], then, where, plan, start, lists, record)
        if plan.output == plan.frames:
            return None
        return self.model.unpatch(self.model.head(normed))

    def _layer(
        self,
        index: int,
        layer: _Layer,
        x: Tensor,
        normed: Tensor,
        vectors: Tensor,
        then: _Next,
        where: FrameMatrices | Positions,
        plan: Plan,
        start: int,
        forced: BlockLists | None,
        record: list[BlockLists] | None,
    ) -> tuple[Tensor, Tensor]:
        """One block: from stream and norm to the next ones.

        Frames before `start` only leave their keys and values (their output is not needed any more).
        """
        cfg, pool, point = self.config, self.pool, self.point
        batch, frames, tokens, _ = x.shape
        staging, pages = pool.staging, pool.pages(index)
        if plan.working is not None:
            if plan.lists.limit is not None:
                staging.prefetch(index + 1)
            pages = staging.window(index, plan.working)
        _, _, gate1, shift2, scale2, gate2 = vectors[:, :, start:]
        mixed = F.linear(normed, *layer.into).view(batch * frames, tokens, -1)
        if isinstance(where, Positions) and self.fused:
            query, key, _, cos, sin = (t.flatten(0, 1) for t in where)
            size, real = cfg.block_tokens, tokens - cfg.padding
            parts = mixed.view(batch, frames, tokens, -1)
            q, q_means = encode_pages(parts, layer.norm, query, key, cos, sin, pages, plan.slots, size, real)
        else:
            if isinstance(where, Positions):
                encoded = point.encode(mixed, layer.norm, where, cfg)
            else:
                encoded = self._encode(mixed.float(), layer, where)
            for held, fresh in zip(pages, (encoded.k, encoded.v, encoded.k_means), strict=True):
                held.index_copy_(1, plan.slots, fresh.transpose(0, 1).to(held.dtype))
            if plan.working is None:
                pool.encode(index, plan.slots)
            q, q_means = (t.unflatten(0, (batch, frames)).transpose(1, 2) for t in (encoded.q, encoded.q_means))
        if plan.working is not None:
            staging.keep(index, plan.working, pages)
        if start == frames:
            return x, normed
        q = q[:, :, start:].flatten(2, 3).to(self.dtype)
        lists = plan.lists if start == 0 else plan.output_lists
        assert lists is not None
        chosen = None
        if lists.limit is not None and plan.history is not None:
            if forced is not None:
                chosen = BlockLists(*(t[:, :, start * cfg.blocks_per_frame :] for t in forced))
            else:
                means = q_means[:, :, start:].flatten(2, 3)
                keys = pool.pooled(index, plan.history)
                codes = pool.codes(index, plan.history)
                found = select_blocks(
                    means, keys, plan.top_k, lists.limit, first=lists.first, codes=codes, runs=plan.runs
                )
                chosen = BlockLists(*found)
        if record is not None:
            record.append(self._wanted(chosen, plan, start))
        local, retrieved = self._attend(index, q, lists, chosen, plan, pages)
        gate = None
        if retrieved is not None:
            gate = mixed.view(batch, frames, tokens, -1)[:, start:, :, 3 * cfg.heads * cfg.head_dim :]
        if isinstance(where, Positions) and self.fused:
            every = mixed.view(batch, frames, tokens, -1)
            matrices = where.output.flatten(0, 1)
            merged = merge_branches(local, retrieved, every, matrices, cfg.camera_channels, cfg.gate == "sigmoid")
        elif isinstance(where, Positions):
            rows = Positions(*(t.flatten(0, 1).unflatten(0, (batch, frames))[:, start:] for t in where))
            merged = point.decode(local, retrieved, gate, rows, cfg)
        else:
            merged = self._decode(local, retrieved, gate, where, frames - start, start)
        change = F.linear(merged.to(self.products), *layer.out)
        if layer.cross is None:
            x, normed = point.residual_modulated(x[:, start:], gate1, change, shift2, scale2, self.products)
        else:
            x = layer.attend_text(point.residual(x[:, start:], gate1, change))
            normed = point.modulated(x, shift2, scale2, self.products)
        change = F.linear(point.up(normed, *layer.up), *layer.down)
        return point.residual_modulated(x, gate2, change, then.shift[:, start:], then.scale[:, start:], then.dtype)

    def _encode(self, mixed: Tensor, layer: _Layer, where: FrameMatrices) -> Encoded:
        """Norm q and k and position-encode q, k and v of [B * F, N, 3I (+ I)], by matrices."""
        cfg = self.config
        frames, tokens, _ = mixed.shape
        heads, dim, inner = cfg.heads, cfg.head_dim, cfg.heads * cfg.head_dim
        split = mixed[..., : 3 * inner].view(frames, tokens, 3, heads, dim).transpose(1, 2)
        ready = torch.empty(frames, 3, tokens, heads, dim, device=mixed.device)
        size = torch.linalg.vector_norm(split[:, :2], dim=(3, 4), keepdim=True)
        torch.mul(split[:, :2], (size.square_().div_(inner).add_(1e-6)).rsqrt_(), out=ready[:, :2])
        ready[:, :2].mul_(layer.norm)
        ready[:, 2] = split[:, 2]
        turned = torch.bmm(ready.view(frames * 3, tokens * heads, dim), where.encode.flatten(0, 1))
        turned = turned.view(frames, 3, tokens, heads, 2 * dim).transpose(2, 3)
        encoded = torch.empty(frames, 3, heads, tokens, dim, device=mixed.device)
        torch.mul(turned[..., :dim], where.cos[:, 0], out=encoded)
        encoded.addcmul_(turned[..., dim:], where.sin[:, 0])
        means = encoded[:, :2].unflatten(3, (cfg.blocks_per_frame, -1)).mean(4)
        return Encoded(*encoded.unbind(1), *means.unbind(1))

    def _decode(
        self, local: Tensor, retrieved: Tensor | None, gate: Tensor | None, where: FrameMatrices, kept: int, start: int
    ) -> Tensor:
        """Output transform of each branch [B, H, kept * N, D], then the gate: [B, kept, N, I]."""
        cfg = self.config
        batch, heads, _, dim = local.shape
        branches = [local] if retrieved is None else [local, retrieved]
        ready = torch.empty(batch, kept, len(branches), cfg.tokens, heads, dim, device=local.device)
        for i, branch in enumerate(branches):
            ready[:, :, i] = branch.unflatten(2, (kept, -1)).permute(0, 2, 3, 1, 4)
        matrices = where.decode.view(batch, -1, dim, 2 * dim)[:, start:].flatten(0, 1)
        turned = torch.bmm(ready.view(batch * kept, -1, dim), matrices).view(*ready.shape[:-1], 2 * dim)
        out = torch.mul(turned[..., :dim], where.cos).addcmul_(turned[..., dim:], where.sin, value=-1.0).flatten(-2)
        if gate is None:
            return out[:, :, 0]
        opened = torch.sigmoid(gate.float()) if cfg.gate == "sigmoid" else gate.float()
        return torch.addcmul(out[:, :, 0], opened, out[:, :, 1])

    def _attend(
        self,
        index: int,
        q: Tensor,
        lists: Lists,
        chosen: BlockLists | None,
        plan: Plan,
        pages: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor | None]:
        """Local (or only) branch and retrieved branch, each [B, H, kept * N, D]; `pages` are those of the plan."""
        cfg, size = self.config, self.config.block_tokens
        keys, values = (t.flatten(1, 2)[None] for t in pages[:2])
        query_tile, key_tile = local_tiles(cfg, self.pool.device)

        def sizes(tile: int) -> Tensor | None:
            return key_sizes(cfg, pages[0].shape[1], tile, self.pool.device)

        def options(part: Listed) -> dict[str, Any]:
            scale = part.factor * cfg.head_dim**-0.5
            return {"q_block": part.query_tile, "kv_block": part.key_tile, "kv_sizes": part.sizes, "scale": scale}

        def over(part: Listed) -> Tensor:
            return block_sparse_attention(q, keys, values, *part.found, **options(part))

        def with_lse(part: Listed) -> tuple[Tensor, Tensor]:
            return block_sparse_attention(q, keys, values, *part.found, return_lse=True, **options(part))

        def watch(*softmaxes: list[Listed]) -> None:
            if self.watcher is not None:
                self.watcher(q, keys, softmaxes)

        near = Listed(lists.local, query_tile, key_tile, sizes(key_tile))
        memory = None
        if chosen is not None:
            chosen = self._in_pool(chosen, plan)
            if plan.working is not None and cfg.fusion == "union":
                assert lists.blocks is not None
                window = Window(keys, values, sizes(size), lists.blocks)
                return attend_copies(self.pool.staging, index, q, chosen, window), None
            if cfg.fusion == "union":
                assert lists.blocks is not None
                chosen = union_lists(chosen, lists.blocks)
            memory = Listed(chosen, size, size, sizes(size))
            if cfg.fusion == "union":
                watch([memory])
                return over(memory), None
        if lists.far is not None:
            far = Listed(lists.far, query_tile, key_tile, sizes(key_tile), DECAY)
            watch([near, far])
            return merge_softmax(*with_lse(near), *with_lse(far)), None
        watch([near], *([] if memory is None else [[memory]]))

        if lists.pages is None:
            local = over(near)
        else:
            ways: dict[str, Callable[[], Tensor]] = {
                "dense": partial(self._attend_pages, q, lists.pages, pages),
                "lists": lambda: over(near),
            }
            local = fastest("window", (q.shape, lists.pages.shape), q.device, ways)()
        if chosen is not None and plan.working is not None:
            return local, attend_copies(self.pool.staging, index, q, chosen)
        return local, None if memory is None else over(memory)

    def _attend_pages(self, q: Tensor, pages: Tensor, held: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Local branch of large frames: every chunk of q [B, H, kept * N, D] to its pages, all of their real tokens."""
        batch = q.shape[0]
        q = q.unflatten(2, (len(pages) // batch, -1)).transpose(1, 2).flatten(0, 1)
        real = self.config.tokens - self.config.padding
        keys, values, _ = held
        parts = 1 if pages.shape[1] <= _PAGES_AT_ONCE else len(pages)
        found = [
            dense_attention(some, *(t.to(q.dtype) for t in gather_pages(keys, values, which, real)))
            for some, which in zip(q.chunk(parts), pages.chunk(parts), strict=True)
        ]
        out = found[0] if parts == 1 else torch.cat(found)
        return out.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)

    def _in_pool(self, chosen: BlockLists, plan: Plan) -> BlockLists:
        """Blocks of a row's history as blocks of the pool."""
        if isinstance(plan.table, int):
            return BlockLists(chosen.lists + plan.table, chosen.counts)
        batch = len(plan.table)
        flat = plan.table.gather(1, chosen.lists.reshape(batch, -1).long())
        return BlockLists(flat.view_as(chosen.lists), chosen.counts)

    def _wanted(self, chosen: BlockLists | None, plan: Plan, start: int) -> BlockLists:
        """Lists of the noisy frames, for the record; empty ones where nothing was retrieved."""
        cfg = self.config
        if chosen is None:
            batch = plan.lists.local.lists.shape[0]
            rows = (plan.frames - plan.output) * cfg.blocks_per_frame
            shape = (batch, cfg.heads, rows)
            device = self.pool.device
            return BlockLists(
                torch.zeros((*shape, plan.top_k), dtype=torch.int32, device=device),
                torch.zeros(shape, dtype=torch.int32, device=device),
            )
        skip = (plan.output - start) * cfg.blocks_per_frame
        return BlockLists(*(t[:, :, skip:].clone() for t in chosen))
