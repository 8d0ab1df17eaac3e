"""Clips that stay for several steps while their later context turns into the model's own frames.

Trained on true context alone, a world model drifts on its own frames. Rolling out in training is sequential and slow.
Here every training pass gives, as a by-product, the one-step prediction of the frames that it saw as pure noise; those
take the place of the true frames in the clip's context, so the next pass predicts from them, and so on: after r rounds
a frame's context is up to r generations of the model's own frames (a Jacobi iteration towards the free-running
rollout), at no extra pass. The targets stay the true frames.

What a frame shows for the first time cannot be known, and a wrong guess in its place would teach that own frames say
nothing about what comes next. There the truth is as good a sample as any: cells of new views turn only into predictions
that still show it, most of them made from the true frame under some noise, as in a sampler's last steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .latents import ClipBatch

STILL_TRUE = 0.6  # squared error of a cell (latents have unit variance); of known cells nine in ten are nearer


@dataclass
class TurningClips:
    """A batch of clips and its context so far.

    Attributes:
        batch: True latents, actions, cameras.
        context: [B, T, C, h, w], the true latents with the model's own in some places.
        own: bool [B, T], places that may turn.
        generated: bool [B, T], places that have turned.
        rounds: Passes so far.
    """

    batch: ClipBatch
    context: Tensor
    own: Tensor
    generated: Tensor
    rounds: int = 0

    @torch.no_grad()
    def take(self, predicted: Tensor, valid: Tensor, new: Tensor | None = None) -> None:
        """Put predictions into the context.

        Args:
            predicted: [B, T, C, h, w].
            valid: bool [B, T], frames to take, where the place may turn.
            new: bool [B, T], frames of which only cells within `STILL_TRUE` of the true ones are taken.
        """
        turned = self.own & valid
        cells = turned[..., None, None]
        if new is not None:
            close = (predicted - self.batch.latents).square().mean(2) <= STILL_TRUE
            cells = cells & (close | ~new[..., None, None])
        self.context = torch.where(cells[:, :, None], predicted.to(self.context.dtype), self.context)
        self.generated = self.generated | turned


def own_places(rows: int, frames: int, share: float, device: torch.device) -> Tensor:
    """Which places of a clip's context may turn: in a share of rows, all from a random, rather early frame on.

    Args:
        rows: B.
        frames: T.
        share: Of rows that turn at all.
        device: Where.

    Returns:
        bool [B, T]; the first sixth of a clip always stays true.
    """
    least = max(1, frames // 6)
    # A session's own frames soon outnumber the true ones.
    first = (least + torch.rand(rows, 1, device=device).square() * (frames - least)).long()
    first = torch.where(torch.rand(rows, 1, device=device) < share, first, frames)
    return torch.arange(frames, device=device)[None] >= first


class ClipRing:
    """Groups of clips used in turn, each for a number of rounds; their ages are staggered.

    Args:
        sample: Draws a new batch.
        groups: Groups kept, so that consecutive steps see different clips.
        rounds: Passes of each batch.
        share: Of rows that turn.
        finish: Completes a batch once it is known which places, bool [B, T], may turn.
    """

    def __init__(
        self,
        sample: Callable[[], ClipBatch],
        groups: int,
        rounds: int,
        share: float,
        finish: Callable[[ClipBatch, Tensor], ClipBatch],
    ) -> None:
        self._sample, self._rounds, self._share, self._finish = sample, rounds, share, finish
        self._groups: list[TurningClips | None] = [None] * groups
        self._at = 0

    def next(self) -> TurningClips:
        """The clips of the next step, with one round more on their count."""
        slot = self._at % len(self._groups)
        clips = self._groups[slot]
        if clips is None or clips.rounds >= self._rounds:
            # The first batches count as older than they are, so that ages differ from then on.
            age = slot % self._rounds if clips is None else 0
            batch = self._sample()
            rows, frames = batch.latents.shape[:2]
            own = own_places(rows, frames, self._share, batch.latents.device)
            batch = self._finish(batch, own)
            clips = self._groups[slot] = TurningClips(batch, batch.latents, own, torch.zeros_like(own), age)
        self._at += 1
        clips.rounds += 1
        return clips
