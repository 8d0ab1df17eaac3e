"""Per-frame scores of one contender: columns of equal length, one entry per (script, noise seed, generated frame)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from .. import metrics
from .matches import Matches
from .scripts import Script
from .visible import MINIMUM_SHARE


@dataclass(frozen=True)
class Scores:
    """Columns, each [N]; see `measures.md` for the definitions.

    Attributes:
        script: Index of the script in the whole evaluation.
        world: Seed of its world.
        kind: Index into the kinds of the evaluation.
        grid: Whether the script stays on the grid of poses.
        noise: Index of the noise seed.
        frame: Generated frame, 0 is the first after the context.
        label: `matches.NEW`, `NEAR` or `EXACT`.
        gap: Frames.
        in_context: The match lies in the context (else only in generated frames).
        left: The path went far enough away (first half of the movement gate).
        moved: The frames generated meanwhile are closer to their truth than to the remembered frame (second half).
        psnr: dB against the raw truth.
        psnr_decoded: dB against the autoencoder's decoding of the truth.
        ssim: Against the raw truth.
        masked: dB against the raw truth under the visible mask; NaN where there is none.
        visible: Share of pixels under the mask; NaN where there is none.
        sharp: Mean absolute gradient of the frame.
        sharp_truth: That of the autoencoder-decoded truth.
    """

    script: NDArray[np.int32]
    world: NDArray[np.int64]
    kind: NDArray[np.int16]
    grid: NDArray[np.bool_]
    noise: NDArray[np.int16]
    frame: NDArray[np.int32]
    label: NDArray[np.int8]
    gap: NDArray[np.int32]
    in_context: NDArray[np.bool_]
    left: NDArray[np.bool_]
    moved: NDArray[np.bool_]
    psnr: NDArray[np.float32]
    psnr_decoded: NDArray[np.float32]
    ssim: NDArray[np.float32]
    masked: NDArray[np.float32]
    visible: NDArray[np.float32]
    sharp: NDArray[np.float32]
    sharp_truth: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.script)

    def select(self, mask: NDArray[np.bool_]) -> Scores:
        """Rows where the mask holds."""
        return Scores(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


def join(parts: list[Scores]) -> Scores:
    """Stack score tables."""
    return Scores(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Scores)})


def score_script(
    index: int,
    script: Script,
    kinds: tuple[str, ...],
    matches: Matches,
    dream: torch.Tensor,
    truth: torch.Tensor,
    decoded: torch.Tensor,
    masks: dict[int, torch.Tensor],
) -> Scores:
    """Score the generated frames of one script.

    Args:
        index: Of the script in the evaluation.
        script: The script, T frames.
        kinds: Names that `Scores.kind` counts.
        matches: Of its poses.
        dream: uint8 [S, T - context, H, W, 3], one row a noise seed.
        truth: uint8 [T, H, W, 3].
        decoded: uint8 [T - context, H, W, 3], the autoencoder's decoding of the truth.
        masks: bool [H, W] visible mask by frame index (near frames only).

    Returns:
        S * (T - context) rows.
    """
    seeds, length = dream.shape[:2]
    start = script.context
    target = truth[start:]
    flat = dream.flatten(0, 1)
    repeated = target.repeat(seeds, 1, 1, 1)
    masked = torch.full((seeds, length), float("nan"))
    visible = torch.full((seeds, length), float("nan"))
    scored = [t for t in sorted(masks) if bool(masks[t].float().mean() >= MINIMUM_SHARE)]
    for t in masks:
        visible[:, t - start] = masks[t].float().mean().cpu()
    if scored:
        columns = torch.tensor([t - start for t in scored])
        mask = torch.stack([masks[t] for t in scored])
        for s in range(seeds):
            value = metrics.psnr(dream[s, columns], target[columns], mask, cap=metrics.MASKED_PSNR_CAP)
            masked[s, columns] = value.cpu()
    generated = slice(start, None)

    def tile(values: NDArray) -> NDArray:
        return np.tile(values, seeds)

    rows = seeds * length
    return Scores(
        script=np.full(rows, index, np.int32),
        world=np.full(rows, script.world, np.int64),
        kind=np.full(rows, kinds.index(script.kind), np.int16),
        grid=np.full(rows, script.grid, bool),
        noise=np.repeat(np.arange(seeds, dtype=np.int16), length),
        frame=tile(np.arange(length, dtype=np.int32)),
        label=tile(matches.label[generated]),
        gap=tile(matches.gap[generated]),
        in_context=tile(matches.in_context[generated]),
        left=tile(matches.left[generated]),
        moved=np.concatenate([moved(matches, start, dream[s], truth) for s in range(seeds)]),
        psnr=metrics.psnr(flat, repeated).cpu().numpy(),
        psnr_decoded=metrics.psnr(flat, decoded.repeat(seeds, 1, 1, 1)).cpu().numpy(),
        ssim=metrics.ssim(flat, repeated).cpu().numpy(),
        masked=masked.flatten().numpy(),
        visible=visible.flatten().numpy(),
        sharp=metrics.sharpness(flat).cpu().numpy(),
        sharp_truth=tile(metrics.sharpness(decoded).cpu().numpy()),
    )


def moved(matches: Matches, context: int, dream: torch.Tensor, truth: torch.Tensor) -> NDArray[np.bool_]:
    """Second half of the movement gate for each generated frame.

    The frames generated while the player was away must, on average, be closer to their own truth than to the frame
    remembered; a camera that stands still fails.

    Args:
        matches: Of the trajectory.
        context: Number of context frames.
        dream: uint8 [T - context, H, W, 3].
        truth: uint8 [T, H, W, 3].

    Returns:
        bool [T - context]; False for new frames. True where nothing was generated meanwhile.
    """
    revisits = np.flatnonzero(matches.label[context:] > 0) + context
    result = np.zeros(len(dream), bool)
    if not len(revisits):
        return result
    remembered = np.unique(matches.remembered[revisits])
    a = dream.flatten(1).float() / 255.0
    b = truth[torch.as_tensor(remembered, dtype=torch.long, device=truth.device)].flatten(1).float() / 255.0
    # Mean squared difference of every pair by one matrix product.
    pairs = (a.square().mean(1)[:, None] + b.square().mean(1)[None] - 2 * (a @ b.T) / a.shape[1]).cpu().numpy()
    own = metrics.mean_squared_error(dream, truth[context:]).cpu().numpy()
    for t in revisits:
        away = np.flatnonzero(matches.away[t, context:t])
        column = int(np.searchsorted(remembered, matches.remembered[t]))
        result[t - context] = not len(away) or own[away].mean() < pairs[away, column].mean()
    return result
