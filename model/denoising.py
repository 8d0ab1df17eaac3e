"""The sampler over a batch of sessions: from noise to clean latents, in passes that share what can be shared.

All rows begin with one pass, which also commits their pending chunks. Rows that take more steps than others go on in
passes of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conventions.poses import projective_matrices
from . import flow
from .attention import BlockLists
from .keyframes import seen_views, shows_new
from .memory import Slots
from .nearest_views import BY_PLACE, seen_from
from .passes import Plan, Row, Seen, plan_pass
from .position import FrameMatrices, Positions
from .session import Pending, Session
from .session_lists import given_lists, keep_lists
from .upload import upload, upload_all
from .voxel_rays import views

if TYPE_CHECKING:
    from .world_model import WorldModel


ROWS = 16  # passes of some rows of a batch have a multiple of so many where they are replayed as CUDA graphs


class Placed(NamedTuple):
    """What a pass is told of its frames, rows one after the other.

    Attributes:
        where: Position transforms.
        actions: float32 [n, F, A].
        view: What the block grid sees of them, fp32 [n, F, 8 + 4 K], for models that are told; else None.
    """

    where: FrameMatrices | Positions
    actions: Tensor
    view: Tensor | None


def place(model: WorldModel, parts: list[list[Pending]], origins: list[NDArray[np.float64]]) -> Placed:
    """Camera, actions and view of the frames of a pass.

    Args:
        model: Whose pass.
        parts: Chunks of each row.
        origins: Of each row's coordinates, float64 [5] each.
    """
    poses = np.stack([np.concatenate([p.poses for p in row]) for row in parts])
    actions = np.stack([np.concatenate([p.actions for p in row]) for row in parts])
    cells = np.stack([np.concatenate([p.cells for p in row]) for row in parts])
    told = np.stack([np.concatenate([p.told for p in row]) for row in parts])
    seen = [views(poses, cells, told)] if model.config.voxel_planes else []
    poses[..., :3] -= np.stack(origins)[:, None, :3]
    pair = projective_matrices(poses, model.intrinsics, translation_scale=model.config.translation_scale)
    cameras = [matrices.reshape(-1, 4, 4).astype(np.float32) for matrices in pair]
    index = np.concatenate([p.frame_index for row in parts for p in row])
    sent = upload_all([*cameras, index, actions, *seen], model.device)
    return Placed(model.streamer.where(*sent[:3]), sent[3], sent[4] if seen else None)


@dataclass
class Chunks:
    """One chunk of each of n sessions that share settings.

    Attributes:
        sessions: Whose.
        old: Their pending chunks; all None or none.
        new: The chunks to make; their latents are the noise.
        fresh: Pages to commit the pending ones to; none of them is committed if this is empty.
        kept: Which of those are remembered; what the others commit is not seen.
        scratch: Pages int64 [n, branches, c] of the chunks being made.
    """

    sessions: list[Session]
    old: list[Pending | None]
    new: list[Pending]
    fresh: list[Slots]
    kept: list[bool]
    scratch: NDArray[np.int64]
    _found: dict[int, tuple[Seen, Seen]] = field(init=False, repr=False, default_factory=dict)

    def seen(self, i: int) -> tuple[Seen, Seen]:
        """Places in a row's history that its pending chunk and its new one see; None: by window and content."""
        if i not in self._found:  # passes of several steps ask again
            self._found[i] = self._by_place(i)
        return self._found[i]

    def _by_place(self, i: int) -> tuple[Seen, Seen]:
        session, old, new = self.sessions[i], self.old[i], self.new[i]
        session.last_seen = None
        config, views = session.model.config, session.bank
        if not config.nearest_views or session.settings.memory not in BY_PLACE:
            return None, None
        if old is None or not self.kept[i]:
            before, index = None, views.frame_index
            after = seen_from(views, new.poses[0], config)
        else:
            before = seen_from(views, old.poses[0], config)
            index = np.concatenate([views.frame_index, old.frame_index])
            after = seen_from(old.views.after(views), new.poses[0], config)
        if after is not None:
            session.last_seen = index[after]
        return before, after

    def steps(self) -> list[int]:
        """Sampler steps of each row: more where its chunk shows something new."""
        found = []
        for session, old, new, kept in zip(self.sessions, self.old, self.new, self.kept, strict=True):
            few, many = session.settings.steps, session.settings.new_view_steps
            if many != few and shows_new(seen_views(session), old if kept else None, new, session.model.config):
                few = many
            found.append(few)
        return found


def denoise(model: WorldModel, chunks: Chunks) -> Tensor:
    """Run the sampler; its first pass also commits the pending chunks, if there are `fresh` pages for them.

    Returns:
        Clean latents [n, c, C, h, w].
    """
    steps = chunks.steps()
    # NumPy, since torch would wake all threads for it (`upload`).
    noise = upload(np.stack([frames.latents.numpy() for frames in chunks.new]), model.device)
    forced = given_lists(chunks.sessions, model.device)
    everyone = _Rows(range(len(steps)), len(steps), model.device)
    velocity = _Passes(model, chunks, everyone, forced, first=True)(noise, 1.0)
    latents = torch.empty_like(noise)
    for count in sorted(set(steps)):
        times = [*flow.schedule(count, model.config.shift), 0.0]
        rows = _Rows([i for i, taken in enumerate(steps) if taken == count], len(steps), model.device)
        passes = _Passes(model, chunks, rows, forced, first=False) if count > 1 else None
        state, towards = rows.of(noise), rows.of(velocity)
        for number, (now, then) in enumerate(zip(times[:-1], times[1:], strict=True)):
            if passes is not None and number:
                towards = passes(state, now)
            drawn = None
            if model.config.sampler == "renoise" and then > 0.0:
                shape = tuple(state.shape[1:])
                fresh = [flow.session_noise(chunks.sessions[i].generator, shape) for i in rows.numbers]
                drawn = upload(torch.stack(fresh), model.device)
            state = flow.advance(state, towards, now, then, drawn)
        latents = rows.put(state, latents)
    return latents


class _Rows:
    """Some rows of a batch; indices lie on its device, since it would have to be waited for to send them later.

    Args:
        numbers: Which.
        total: Rows of the batch.
        device: Of it.
    """

    def __init__(self, numbers: Sequence[int], total: int, device: torch.device) -> None:
        self.numbers = list(numbers)
        self._index = None if len(numbers) == total else upload(np.array(self.numbers), device)

    def of(self, batch: Tensor) -> Tensor:
        """These rows of a batch."""
        return batch if self._index is None else batch.index_select(0, self._index)

    def put(self, values: Tensor, batch: Tensor) -> Tensor:
        """The batch with `values` in these rows."""
        return values if self._index is None else batch.index_copy_(0, self._index, values.to(batch.dtype))


class _Passes:
    """Passes over some rows of the chunks: what does not change between them is prepared once.

    Args:
        model: Whose.
        chunks: All rows.
        rows: Those of these passes.
        forced: Retrieved blocks given to all rows.
        first: Whether the pass also commits.
    """

    def __init__(
        self, model: WorldModel, chunks: Chunks, rows: _Rows, forced: list[BlockLists] | None, first: bool
    ) -> None:
        self.model, self.sessions = model, [chunks.sessions[i] for i in rows.numbers]
        self.chunk, self.branches = model.config.chunk, chunks.scratch.shape[1]
        committing = bool(chunks.fresh)
        # A recorded pass serves one number of rows: some of many rows are made up to one of few numbers.
        total, count = len(chunks.sessions), len(rows.numbers)
        self.spare = min(-count % ROWS, total - count) if model.graphs and forced is None else 0
        numbers = rows.numbers + rows.numbers[-1:] * self.spare
        self.clean = self.chunk if first and committing else 0
        planned, parts, origins = [], [], []
        self.old: list[Pending] = []
        for i in numbers:
            session, old, new = chunks.sessions[i], chunks.old[i], chunks.new[i]
            written = [chunks.fresh[i]] if self.clean or (committing and chunks.kept[i]) else []
            history = np.concatenate([session.bank.slots, *written])
            before, after = chunks.seen(i)
            seen = (*(before,) * self.clean, after)
            planned.append(Row(history, self.clean, tuple(chunks.scratch[i]), not chunks.kept[i], seen))
            committed = [old] if self.clean and old is not None else []
            self.old += committed
            parts.append(committed + [new] * self.branches)
            origins.append(new.poses[0] if session.origin is None else session.origin)
        settings = chunks.sessions[0].settings
        self.guidance = settings.guidance
        self.plan: Plan = plan_pass(model.pool, planned, settings.memory, settings.top_k)
        self.placed = place(model, parts, origins)
        skip = self.chunk * model.config.blocks_per_frame if committing and not first else 0
        self.forced = None
        if forced is not None:
            self.forced = [BlockLists(*(rows.of(t)[:, :, skip:] for t in lists)) for lists in forced]

    def __call__(self, state: Tensor, now: float) -> Tensor:
        """Velocity [m, c, C, h, w] of states of flow time `now`."""
        model, clean, shown = self.model, self.clean, self.chunk * self.branches
        record: list[BlockLists] | None = [] if any(session.record_lists for session in self.sessions) else None
        count = len(state)
        if self.spare:
            state = torch.cat([state, state[-1:].expand(self.spare, *state.shape[1:])])
        latents = torch.cat([state] * self.branches, 1)
        if clean:
            latents = torch.cat([torch.stack([p.latents for p in self.old]).to(model.device), latents], 1)
        keep = torch.ones(latents.shape[:2], dtype=torch.bool, device=model.device)
        if self.branches == 2:
            keep[:, clean + self.chunk :] = False
        # A frame is the model's own from its commit on; while it is denoised, its token says so anyway.
        generated = torch.zeros_like(keep)
        if clean:
            generated[:, :clean] = upload(np.stack([p.generated for p in self.old]), model.device)
        velocity = (model.graphs or model.streamer).run(
            self.plan,
            latents,
            self.placed.actions,
            keep,
            generated,
            self.placed.view,
            (0.0,) * clean + (now,) * shown,
            self.placed.where,
            self.forced,
            record,
        )
        assert velocity is not None
        velocity = velocity[:count]
        keep_lists(self.sessions, record, self.chunk * model.config.blocks_per_frame)
        if self.branches == 2:
            velocity = flow.guided(velocity[:, self.chunk :], velocity[:, : self.chunk], self.guidance)
        return velocity
