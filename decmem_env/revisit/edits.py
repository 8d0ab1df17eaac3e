"""Is a block still broken or placed after a while out of sight? Scored in the block's own pixels.

The same question in the frame of the edit itself, `right_at_once`, comes from the same rollout and tells an edit that
was lost on the way back from one that was never made. It is asked of the edits whose return is scored, where the edit
changes at least `MINIMUM_PIXELS` in its own frame, and of the pixels that it changes there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import metrics
from ..results import Record, record
from ..worlds.edited import render_edited
from .edit_scripts import KINDS, UNSEEN, EditScript
from .evaluate import Contender, dream
from .matches import GATE_SHARE
from .parts import Columns, Part, Tell, gather, whole
from .scripts import Script
from .truth import Truth

BAR = 80.0  # percent, placing and breaking apart
MINIMUM_RETURNS = 200  # of each kind, for a verdict
THRESHOLD = 16  # grey levels by which a pixel must differ with and without the edit
MINIMUM_PIXELS = 40
_RIGHT = "right"  # among a part's pictures: whether the return they show is right


class EditTruth(Truth):
    """The truth of scripts with edits.

    Attributes:
        rgb: uint8 [n, T, H, W, 3], with the edit from its frame on.
        plain: uint8 [n, T, H, W, 3], the same walk as if the block had not changed.
        changed: bool [n, T, H, W], pixels that differ by more than 16/255 between the two.
    """

    def __init__(self, scripts: Sequence[EditScript], blocks: Mapping[int, torch.Tensor], renderer: Any) -> None:
        """Render; the arguments are those of `Truth`."""
        super().__init__([item.script for item in scripts], blocks, renderer)
        self.plain, self.rgb = self.rgb, self.rgb.clone()
        world: tuple[int, torch.Tensor] | None = None
        for row, item in enumerate(scripts):
            seed, start = item.script.world, item.time
            if world is None or world[0] != seed:
                world = seed, blocks[seed][None].to(renderer.device, copy=True)
            edit = item.edit - np.array([start, 0, 0, 0, 0], np.int32)
            self.rgb[row, start:] = render_edited(renderer, world[1], item.script.poses[start:], edit)
        self.changed = torch.stack(
            [(a.short() - b.short()).abs().amax(-1) > THRESHOLD for a, b in zip(self.rgb, self.plain, strict=True)]
        )


@dataclass(frozen=True)
class Returns:
    """Columns, each [N]: one entry a (script, noise seed).

    Attributes:
        script: Index of the script.
        world: Seed of its world.
        kind: Index into `KINDS`.
        noise: Index of the noise seed.
        near: The return is beside the first pose, not exactly there.
        unseen: Frames out of sight before the return.
        pixels: That the edit changes in the frame that is scored.
        right: In that frame these pixels are closer to the edited truth than to the unedited one.
        right_at_once: The same in the frame of the edit; NaN where it changes too few pixels.
        right_frames: Share of right frames among all behind the time out of sight (with enough pixels).
        moved: The frames generated out of sight are closer to their truth than to the frame of the edit.
        psnr: dB of these pixels against the edited truth, at most 50.
    """

    script: NDArray[np.int32]
    world: NDArray[np.int64]
    kind: NDArray[np.int8]
    noise: NDArray[np.int16]
    near: NDArray[np.bool_]
    unseen: NDArray[np.int32]
    pixels: NDArray[np.int32]
    right: NDArray[np.bool_]
    right_at_once: NDArray[np.float32]
    right_frames: NDArray[np.float32]
    moved: NDArray[np.bool_]
    psnr: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.script)

    def select(self, mask: NDArray[np.bool_]) -> Returns:
        """Rows where the mask holds."""
        return Returns(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


@dataclass(frozen=True)
class EditStrip:
    """Pictures of one return, uint8 [H, W, 3] each.

    Attributes:
        item: The script.
        right: As in `Returns`.
        frames: By caption, in order.
    """

    item: EditScript
    right: bool
    frames: dict[str, torch.Tensor]


@dataclass
class EditOutcome:
    """What the edits measure found.

    Attributes:
        main: Name of the row under test.
        seeds: Noise seeds.
        unseen: Frames out of sight that were asked for.
        returns: By row; `bound` is the autoencoder's decoding of the truth.
        strips: Every return of the main row's first noise seed.
        left_out: Scripts that the truth shows to be unfit: seen in between, or too few pixels.
    """

    main: str
    seeds: int
    unseen: int
    returns: dict[str, Returns]
    strips: list[EditStrip]
    left_out: int


@dataclass(frozen=True)
class Edits:
    """The edits measure, a `parts.Measure`.

    Attributes:
        scripts: What to walk and to edit.
        blocks: uint8 [X, Z, Y] of every world seed the scripts name.
        renderer: A `worlds.Renderer` at the models' frame size; scores are computed on its device.
        contenders: Rows; the first is the model under test.
        unseen: Frames that an edit must be out of sight.
        seeds: Noise seeds of every script.
        steps: Denoising steps; the model's own number when None.
    """

    scripts: Sequence[EditScript]
    blocks: Mapping[int, torch.Tensor]
    renderer: Any
    contenders: Sequence[Contender]
    unseen: int = UNSEEN
    seeds: int = 1
    steps: int | None = None

    @property
    def walks(self) -> list[Script]:
        """The scripts without their edits."""
        return [item.script for item in self.scripts]

    def score(self, indices: Sequence[int], tell: Tell) -> Part:
        """Let every contender dream these scripts and score the returns; scripts that are unfit get no entry."""
        chosen = [self.scripts[i] for i in indices]
        truth = EditTruth(chosen, self.blocks, self.renderer)
        gaps = [_out_of_sight(truth.changed[row], item) for row, item in enumerate(chosen)]
        fit = [
            row
            for row, gap in enumerate(gaps)
            if len(gap) >= self.unseen and _pixels(truth, row, chosen[row].returned) >= MINIMUM_PIXELS
        ]
        columns: dict[str, Columns] = {}
        pictures: dict[int, Columns] = {}
        for contender in (*self.contenders, None):
            if contender is None:
                name, dreams = "bound", truth.decoded(self.contenders[0].model)[:, None]
            else:
                name, walks = contender.name, [item.script for item in chosen]
                seeds = contender.seeds or self.seeds
                dreams, _ = dream(contender, walks, truth, seeds, self.steps, partial(tell, name))
            found = [_score(indices[row], chosen[row], truth, row, gaps[row], dreams[row]) for row in fit]
            if found:
                columns[name] = {
                    f.name: np.concatenate([getattr(part, f.name) for part in found]) for f in fields(Returns)
                }
            if contender is self.contenders[0]:
                for row, returns in zip(fit, found, strict=True):
                    frames = _pictures(chosen[row], truth, row, gaps[row], dreams[row, 0])
                    pictures[indices[row]] = {_RIGHT: returns.right[:1], **frames}
        return Part(tuple(indices), columns, pictures)

    def outcome(self, parts: Sequence[Part]) -> EditOutcome:
        """The returns of each row and their pictures, over the worlds that are whole."""
        order = whole(self.walks, parts)
        returns = {}
        for name in (*(c.name for c in self.contenders), "bound"):
            columns = gather(parts, name, order)
            if columns is not None:
                returns[name] = Returns(**columns)
        pictures = {index: found for part in parts for index, found in part.pictures.items()}
        strips = [_strip(self.scripts[index], pictures[index]) for index in order if index in pictures]
        left_out = len(order) - len(strips)
        return EditOutcome(self.contenders[0].name, self.seeds, self.unseen, returns, strips, left_out)


def _pixels(truth: EditTruth, row: int, frame: int) -> int:
    return int(truth.changed[row, frame].sum())


def _out_of_sight(changed: torch.Tensor, item: EditScript) -> NDArray[np.int64]:
    """The last unbroken run of frames before the scored one in which no pixel [T, H, W] shows the edit."""
    seen = np.flatnonzero(changed.flatten(1).any(1).cpu().numpy()[: item.returned + 1])
    seen = seen[seen >= item.time]
    breaks = np.flatnonzero(np.diff(seen) > 1)
    if not len(breaks):
        return np.zeros(0, np.int64)
    return np.arange(seen[breaks[-1]] + 1, seen[breaks[-1] + 1])


def _score(
    index: int, item: EditScript, truth: EditTruth, row: int, gap: NDArray[np.int64], dreams: torch.Tensor
) -> Returns:
    """Score the dreams uint8 [S, T - context, H, W, 3] of one script."""
    context, seeds = item.script.context, len(dreams)
    frames = [item.time, *range(int(gap[-1]) + 1, len(item.script.poses))]
    at = torch.tensor(frames, device=dreams.device)
    mask = truth.changed[row, at]
    enough = (mask.flatten(1).sum(1) >= MINIMUM_PIXELS).cpu().numpy()
    scored = frames.index(item.returned, 1)
    right = np.stack([_closer(made[at - context], truth, row, at, mask) for made in dreams])  # [S, frames]
    own = truth.rgb[row, item.returned][None]
    own, pixels = own.expand(seeds, -1, -1, -1), mask[scored].expand(seeds, -1, -1)
    psnr = metrics.psnr(dreams[:, item.returned - context], own, pixels, metrics.MASKED_PSNR_CAP)
    later = enough[1:]
    return Returns(
        script=np.full(seeds, index, np.int32),
        world=np.full(seeds, item.script.world, np.int64),
        kind=np.full(seeds, KINDS.index(item.script.kind), np.int8),
        noise=np.arange(seeds, dtype=np.int16),
        near=np.full(seeds, item.near),
        unseen=np.full(seeds, len(gap), np.int32),
        pixels=np.full(seeds, _pixels(truth, row, item.returned), np.int32),
        right=right[:, scored],
        right_at_once=right[:, 0].astype(np.float32) if enough[0] else np.full(seeds, np.nan, np.float32),
        right_frames=right[:, 1:][:, later].mean(1).astype(np.float32),
        moved=np.array([_moved(item, truth, row, gap, made) for made in dreams]),
        psnr=psnr.cpu().numpy(),
    )


def _closer(
    frames: torch.Tensor, truth: EditTruth, row: int, at: torch.Tensor, mask: torch.Tensor
) -> NDArray[np.bool_]:
    """Whether each frame is closer to the edited than to the unedited truth under its mask, bool [F]."""

    def error(target: torch.Tensor) -> torch.Tensor:
        squares = (frames.float() - target.float()).square().sum(-1)
        return (squares * mask).flatten(1).sum(1)

    closer = error(truth.rgb[row, at]) < error(truth.plain[row, at])
    return np.asarray(closer.cpu().numpy(), bool)


def _moved(item: EditScript, truth: EditTruth, row: int, gap: NDArray[np.int64], made: torch.Tensor) -> bool:
    """A camera that stands still would show the edit for ever: what lies between must look like itself."""
    at = torch.from_numpy(gap).to(made.device)
    away, target = made[at - item.script.context], truth.rgb[row, at]
    still = truth.rgb[row, item.time].expand_as(target)
    own, other = metrics.mean_squared_error(away, target), metrics.mean_squared_error(away, still)
    return bool(own.mean() < other.mean())


def _pictures(item: EditScript, truth: EditTruth, row: int, gap: NDArray[np.int64], made: torch.Tensor) -> Columns:
    """Frames of one return by caption, in order; `_strip` reads them."""
    middle = int(gap[len(gap) // 2])
    context = item.script.context
    frames = {
        "without, truth": truth.plain[row, item.time],
        "edit, truth": truth.rgb[row, item.time],
        "edit, dream": made[item.time - context],
        "away, truth": truth.rgb[row, middle],
        "away, dream": made[middle - context],
        "back, without": truth.plain[row, item.returned],
        "back, truth": truth.rgb[row, item.returned],
        "back, dream": made[item.returned - context],
    }
    return {name: frame.cpu().numpy() for name, frame in frames.items()}


def _strip(item: EditScript, pictures: Columns) -> EditStrip:
    frames = {name: torch.from_numpy(frame) for name, frame in pictures.items() if name != _RIGHT}
    return EditStrip(item, bool(pictures[_RIGHT][0]), frames)


def edit_records(outcome: EditOutcome, *, device: str, command: str | None = None) -> list[Record]:
    """Share of right returns in percent for every row and kind; the bar holds for the main row.

    The details hold the share of edits right in their own frame too (`right_at_once_percent`, with its 95 % interval
    over worlds) and of how many edits it is the share (`right_at_once_edits`).
    """
    found = []
    for row, table in outcome.returns.items():
        for number, kind in enumerate(KINDS):
            part = table.select(table.kind == number)
            share = metrics.bootstrap(100.0 * part.right, part.world)
            once = metrics.bootstrap(100.0 * part.right_at_once, part.world)
            moved = float(part.moved.mean()) if len(part) else float("nan")
            main = row == outcome.main
            item = record(
                f"edits.{kind}.{row}.right_percent",
                share.mean,
                "%",
                bar=BAR if main else None,
                device=device,
                command=command,
                details={
                    "low": share.low,
                    "high": share.high,
                    "frames": len(part),
                    "worlds": share.groups,
                    "complete": len(part) >= MINIMUM_RETURNS,
                    "valid": moved >= GATE_SHARE,
                    "moved": moved,
                    "right_at_once_percent": _percent(part.right_at_once),
                    "right_at_once_low": once.low if once.count else None,
                    "right_at_once_high": once.high if once.count else None,
                    "right_at_once_edits": once.count,
                    "right_in_all_return_frames_percent": _percent(part.right_frames),
                    "right_if_right_at_once_percent": _percent(part.right[part.right_at_once == 1]),
                    "exact_return_percent": _percent(part.right[~part.near]),
                    "near_return_percent": _percent(part.right[part.near]),
                    "psnr_db": float(part.psnr.mean()) if len(part) else None,
                    "pixels_median": float(np.median(part.pixels)) if len(part) else None,
                    "unseen_median": float(np.median(part.unseen)) if len(part) else None,
                    "noise_seeds": outcome.seeds,
                    "left_out": outcome.left_out,
                },
            )
            if main and len(part) < MINIMUM_RETURNS:
                item["met"] = None  # too few for a verdict
            elif main and moved < GATE_SHARE:
                item["met"] = False
            found.append(item)
    return found


def _percent(values: NDArray[Any]) -> float | None:
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    return 100.0 * float(known.mean()) if len(known) else None


def edit_table(records: Sequence[Record]) -> str:
    """The figures for a terminal; `edits` counts the edits that `at once` is the share of."""
    heads = f"{'right':>7}{'95 %':>15}{'at once':>9}{'PSNR':>7}{'returns':>9}{'worlds':>8}{'moved':>7}{'edits':>7}"
    lines = [f"{'edit':8}{'row':20}{heads}"]
    for item in records:
        _, kind, row, _ = item["name"].split(".")
        details = item["details"]
        if not details["frames"]:
            continue
        spread = f"{details['low']:.1f} to {details['high']:.1f}"
        once = "" if details["right_at_once_percent"] is None else f"{details['right_at_once_percent']:.1f}"
        note = "" if details["valid"] else "  not valid: fails the movement gate"
        lines.append(
            f"{kind:8}{row:20}{item['value']:7.1f}{spread:>15}{once:>9}{details['psnr_db']:7.1f}"
            f"{details['frames']:9d}{details['worlds']:8d}{details['moved']:>7.0%}"
            f"{details['right_at_once_edits']:7d}{note}"
        )
    return "\n".join(lines)
