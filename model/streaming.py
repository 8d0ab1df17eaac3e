"""Passes over the newest frames of many sessions, with everything older in the page pool.

A pass holds, for each row (session), frames to commit (clean) followed by frames to denoise. Every layer first writes
the keys and values of all of them into their pages, then attends by lists, which express the teacher-forcing mask: so
one pass commits the last frame and denoises the next, a prefill commits many frames at once, and guidance adds a second
noisy frame. Results equal `WorldTransformer.teacher_forcing` up to rounding.

The weights of a layer are laid out for inference here: one product for q, k, v and gate, positions as one batched
product (`position.FrameMatrices`), modulation vectors computed once per flow time.

Shapes: B rows, F frames of a pass, N tokens, M blocks of a frame, H heads, D head channels, W width, I = H * D.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.block_selection import select_blocks
from ..kernels.block_sparse_attention import block_sparse_attention
from .attention import BlockLists, block_table, union_lists
from .config import ModelConfig
from .memory import PagePool, Slots
from .position import FrameMatrices, patch_tables
from .transformer import Block, WorldTransformer

MODES = ("memory", "dense", "off", "window")


class Row(NamedTuple):
    """One session in a pass.

    Attributes:
        history: Pages of all committed frames, those committed by this pass included.
        commit: How many of the last ones this pass commits.
        noisy: Pages of the frames being denoised, a chunk for each branch of guidance.
    """

    history: Slots
    commit: int
    noisy: tuple[Slots, ...] = ()


class Lists(NamedTuple):
    """What the frames of a pass may see.

    Attributes:
        local: Frame lists int32 [B, 1, F, L] over the pool (ALM, or everything when dense), and counts.
        blocks: The same as block lists, for one softmax over both.
        limit: int32 [B, F * M], leading history blocks that may be retrieved; None without retrieval.
        first: int32 [B, F * M] or None, first block that may be retrieved.
    """

    local: BlockLists
    blocks: BlockLists | None
    limit: Tensor | None
    first: Tensor | None


class Plan(NamedTuple):
    """One pass.

    Attributes:
        slots: int64 [B * F], pages that the pass writes.
        lists: For all its frames.
        output: Index of the first frame whose output is wanted (the noisy ones).
        output_lists: For those frames.
        history: Rows of the block tables: a slice of slots, or int64 [B, n]; None without history.
        table: First pool block of a slice, or int32 [B, n * M].
        top_k: Blocks to retrieve.
    """

    slots: Tensor
    lists: Lists
    output: int
    output_lists: Lists | None
    history: Tensor | slice | None
    table: Tensor | int
    top_k: int


def _pad(rows: list[list[np.ndarray]], device: torch.device) -> BlockLists:
    counts = np.array([[len(entry) for entry in row] for row in rows], np.int32)
    lists = np.zeros((*counts.shape, int(counts.max())), np.int32)
    for b, row in enumerate(rows):
        for f, entry in enumerate(row):
            lists[b, f, : len(entry)] = entry
    return BlockLists(torch.from_numpy(lists)[:, None].to(device), torch.from_numpy(counts)[:, None].to(device))


def _lists(
    config: ModelConfig,
    local: list[list[np.ndarray]],
    limit: np.ndarray,
    first: np.ndarray,
    mode: str,
    device: torch.device,
) -> Lists:
    frames = _pad(local, device)
    union, blocks = config.fusion == "union", config.blocks_per_frame
    if mode == "dense" or not (limit > first).any():
        return Lists(frames, None, None, None)

    def spread(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.repeat(values * blocks, blocks, 1).astype(np.int32)).to(device)

    return Lists(
        frames,
        block_table(*frames, blocks) if union else None,
        spread(limit),
        spread(first) if first.any() else None,
    )


def plan_pass(pool: PagePool, rows: list[Row], mode: str, top_k: int) -> Plan:
    """Work out who sees what.

    Args:
        pool: Where the pages are.
        rows: Equal in `commit` and in the number of noisy frames.
        mode: `memory`; `dense`, one softmax over everything; `off`, no retrieval; `window`, retrieval from the window.
        top_k: Blocks to retrieve for each query block and head.
    """
    config, device = pool.config, pool.device
    window, chunk = config.window, config.chunk
    union = config.fusion == "union"
    local: list[list[np.ndarray]] = []
    limits, firsts, written = [], [], []
    for row in rows:
        base = len(row.history) - row.commit
        entries, limit, first = [], [], []
        starts = [base + i // chunk * chunk for i in range(row.commit)]
        own = [row.history[start : start + chunk] for start in starts]
        for branch in row.noisy:
            starts += [len(row.history)] * chunk
            own += [branch] * chunk
        for start, mine in zip(starts, own, strict=True):
            low = max(0, start - window)
            entries.append(np.concatenate([row.history[0 if mode == "dense" else low : start], mine]))
            allowed = {"memory": low if union else start, "window": 0 if union else start}.get(mode, 0)
            limit.append(allowed)
            first.append(low if mode == "window" and not union else 0)
        local.append(entries)
        limits.append(limit)
        firsts.append(first)
        written.append(np.concatenate([row.history[base:], *row.noisy]))
    limit_BF, first_BF = np.array(limits), np.array(firsts)
    output = rows[0].commit if rows[0].noisy else limit_BF.shape[1]
    output_lists = None
    if rows[0].noisy:
        late = [entries[output:] for entries in local]
        output_lists = _lists(config, late, limit_BF[:, output:], first_BF[:, output:], mode, device)
    lists = (
        output_lists
        if output == 0 and output_lists is not None
        else _lists(config, local, limit_BF, first_BF, mode, device)
    )
    history, table = _history(pool, rows, config.blocks_per_frame) if lists.limit is not None else (None, 0)
    slots = torch.from_numpy(np.concatenate(written)).to(device)
    return Plan(slots, lists, output, output_lists, history, table, top_k)


def _history(pool: PagePool, rows: list[Row], blocks: int) -> tuple[Tensor | slice, Tensor | int]:
    """Tables of the rows: a slice of the pool where there is one row without gaps."""
    longest = max(len(row.history) for row in rows)
    slots = rows[0].history
    if len(rows) == 1 and int(slots[-1]) - int(slots[0]) == len(slots) - 1 and (np.diff(slots) == 1).all():
        return slice(int(slots[0]), int(slots[-1]) + 1), int(slots[0]) * blocks
    padded = np.zeros((len(rows), longest), np.int64)
    for b, row in enumerate(rows):
        padded[b, : len(row.history)] = row.history
    table = (padded[..., None] * blocks + np.arange(blocks)).reshape(len(rows), -1).astype(np.int32)
    return torch.from_numpy(padded).to(pool.device), torch.from_numpy(table).to(pool.device)


class _Layer:
    """Weights of one block, laid out for inference."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        attention = block.attention
        parts = [attention.qkv] if attention.gate is None else [attention.qkv, attention.gate]
        self.into = torch.cat([p.weight for p in parts]).to(dtype), torch.cat([p.bias for p in parts]).to(dtype)
        heads, dim = attention.config.heads, attention.config.head_dim
        self.norm = torch.stack([attention.norm_q.weight, attention.norm_k.weight]).view(2, 1, heads, dim).float()
        self.gated = attention.gate is not None
        self.out = attention.out.weight.to(dtype), attention.out.bias.to(dtype)
        self.up, self.down = (
            (linear.weight.to(dtype), linear.bias.to(dtype)) for linear in block.ffn if isinstance(linear, nn.Linear)
        )
        self.modulation = block.modulation.float()


class Streamer:
    """The transformer over a page pool.

    Args:
        model: fp32 weights on the pool's device.
        pool: Pages; its dtype is also that of the products.
    """

    def __init__(self, model: WorldTransformer, pool: PagePool) -> None:
        self.model, self.pool, self.config = model, pool, model.config
        self.dtype = pool.dtype
        with torch.no_grad():
            self.layers = [_Layer(block, self.dtype) for block in model.blocks]  # type: ignore[arg-type]
            self.tables = patch_tables(model.config, model.spatial)
        self._vectors: dict[tuple[float, ...], tuple[list[Tensor], Tensor]] = {}

    def _modulation(self, times: tuple[float, ...]) -> tuple[list[Tensor], Tensor]:
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
        times: tuple[float, ...],
        where: FrameMatrices,
        forced: list[BlockLists] | None = None,
        record: list[BlockLists] | None = None,
    ) -> Tensor | None:
        """Write the pass into memory and denoise.

        Args:
            plan: From `plan_pass`.
            latents: fp32 [B, F, C, h, w].
            actions: [B, F, 25].
            keep: bool [B, F], False drops the action.
            times: Flow time of each frame, equal in all rows.
            where: Matrices of the B * F frames.
            forced: Per layer, retrieved blocks of the pass's frames (in blocks of the row's history) to use.
            record: Receives the lists of each layer, of the frames whose output is wanted.

        Returns:
            Velocity fp32 [B, F - output, C, h, w], or None where only commits were asked for.
        """
        vectors, head = self._modulation(times)
        x = self.model.tokens(latents, actions, keep).float()
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            start = plan.output if index == last else 0
            lists = forced[index] if forced is not None else None
            x = self._layer(index, layer, x, vectors[index], where, plan, start, lists, record)
        if plan.output == len(times):
            return None
        shift, scale = head[:, :, plan.output :]
        normed = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), scale)
        out = self.model.head(normed)[:, :, self.model.unorder].transpose(2, 3)
        return out.unflatten(-1, (self.config.latent_height, self.config.latent_width))

    def _layer(
        self,
        index: int,
        layer: _Layer,
        x: Tensor,
        vectors: Tensor,
        where: FrameMatrices,
        plan: Plan,
        start: int,
        forced: BlockLists | None,
        record: list[BlockLists] | None,
    ) -> Tensor:
        """One block; frames before `start` only leave their keys and values (their output is not needed any more)."""
        cfg, pool = self.config, self.pool
        batch, frames, tokens, width = x.shape
        inner = cfg.heads * cfg.head_dim
        shift1, scale1, gate1, shift2, scale2, gate2 = vectors
        normed = torch.addcmul(shift1, F.layer_norm(x, (width,), eps=1e-6), scale1).to(self.dtype)
        mixed = F.linear(normed, *layer.into).float().view(batch * frames, tokens, -1)
        encoded = self._encode(mixed, layer, where)  # [B * F, 3, H, N, D]
        pooled = encoded[:, :2].unflatten(3, (cfg.blocks_per_frame, -1)).mean(4)
        pool.write(index, plan.slots, encoded[:, 1], encoded[:, 2], pooled[:, 1])
        if start == frames:
            return x
        kept = frames - start
        q = encoded[:, 0].unflatten(0, (batch, frames))[:, start:].transpose(1, 2).flatten(2, 3).to(self.dtype)
        lists = plan.lists if start == 0 else plan.output_lists
        assert lists is not None
        chosen = None
        if lists.limit is not None and plan.history is not None:
            if forced is not None:
                chosen = BlockLists(*(t[:, :, start * cfg.blocks_per_frame :] for t in forced))
            else:
                query = pooled[:, 0].unflatten(0, (batch, frames))[:, start:].transpose(1, 2).flatten(2, 3)
                keys = pool.pooled(index, plan.history)
                chosen = BlockLists(*select_blocks(query, keys, plan.top_k, lists.limit, first=lists.first))
        if record is not None:
            record.append(self._wanted(chosen, plan, start))
        local, retrieved = self._attend(index, q, lists, chosen, plan)
        gate = None
        if retrieved is not None:
            gate = mixed.view(batch, frames, tokens, -1)[:, start:, :, 3 * inner :]
        merged = self._decode(local, retrieved, gate, where, kept, start)
        x = x[:, start:]
        x = torch.addcmul(x, gate1[:, start:], F.linear(merged.to(self.dtype), *layer.out).float())
        normed = torch.addcmul(shift2[:, start:], F.layer_norm(x, (width,), eps=1e-6), scale2[:, start:])
        hidden = F.gelu(F.linear(normed.to(self.dtype), *layer.up), approximate="tanh")
        return torch.addcmul(x, gate2[:, start:], F.linear(hidden, *layer.down).float())

    def _encode(self, mixed: Tensor, layer: _Layer, where: FrameMatrices) -> Tensor:
        """Norm q and k and position-encode q, k and v: [B * F, N, 3I (+ I)] to [B * F, 3, H, N, D]."""
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
        return encoded.addcmul_(turned[..., dim:], where.sin[:, 0])

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
        return torch.addcmul(out[:, :, 0], torch.sigmoid(gate), out[:, :, 1])

    def _attend(
        self, index: int, q: Tensor, lists: Lists, chosen: BlockLists | None, plan: Plan
    ) -> tuple[Tensor, Tensor | None]:
        """Local (or only) branch and retrieved branch, each [B, H, kept * N, D]."""
        cfg = self.config
        keys, values = self.pool.keys(index)
        tokens, size = cfg.tokens, cfg.block_tokens
        if chosen is not None:
            chosen = self._in_pool(chosen, plan)
            if cfg.fusion == "union":
                assert lists.blocks is not None
                both = union_lists(chosen, lists.blocks)
                return block_sparse_attention(q, keys, values, *both, q_block=size, kv_block=size), None
        local = block_sparse_attention(q, keys, values, *lists.local, q_block=tokens, kv_block=tokens)
        if chosen is None:
            return local, None
        return local, block_sparse_attention(q, keys, values, *chosen, q_block=size, kv_block=size)

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
            rows = (plan.lists.local.lists.shape[2] - plan.output) * cfg.blocks_per_frame
            shape = (batch, cfg.heads, rows)
            device = self.pool.device
            return BlockLists(
                torch.zeros((*shape, plan.top_k), dtype=torch.int32, device=device),
                torch.zeros(shape, dtype=torch.int32, device=device),
            )
        skip = (plan.output - start) * cfg.blocks_per_frame
        return BlockLists(*(t[:, :, skip:].clone() for t in chosen))
