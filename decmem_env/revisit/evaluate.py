"""Roll every contender through every script and score the frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..hand_reader import HandReader
from ..rollout import roll_out, whole_context
from ..start import Start
from .matches import NEAR, Matches, in_gap, match_poses
from .parts import Columns, Part, Report, Tell, evenly, gather, score_parts, whole
from .scores import Scores, join, score_script
from .scripts import Script
from .truth import Truth
from .visible import visible_mask

_MASKED_FRAMES = 10  # frames of a script scored under the visible mask, evenly spread
_SHOWN = "shown "  # in front of the names of rows among a part's pictures


@dataclass(frozen=True)
class Contender:
    """A row of the table: a model and how much memory it may use.

    Attributes:
        name: Row name: `memory`, `dense`, `no_retrieval`, `window_retrieval`, `window_model`.
        model: A `WorldModel`.
        memory: Argument of `WorldModel.start`.
        floor: Whether it is one of the "no memory" rows.
        seeds: Noise seeds, when fewer than the evaluation's.
    """

    name: str
    model: Any
    memory: str
    floor: bool = False
    seeds: int | None = None


@dataclass(frozen=True)
class Strip:
    """Frames of one script kept for the pictures.

    Attributes:
        script: What was walked.
        frames: Their indices in the script.
        truth: uint8 [F, H, W, 3].
        shown: uint8 [F, H, W, 3] by row name.
        labels: Class and gap of each, for the captions.
    """

    script: Script
    frames: tuple[int, ...]
    truth: torch.Tensor
    shown: dict[str, torch.Tensor]
    labels: tuple[tuple[int, int], ...]


@dataclass
class Outcome:
    """Everything an evaluation found; `scores` holds the contenders and the references `bound` and `copy`."""

    kinds: tuple[str, ...]
    gap: int
    seeds: int
    main: str
    floors: tuple[str, ...]
    scores: dict[str, Scores]
    strips: list[Strip]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class _Batch:
    """Scripts that are stepped together, and their truth."""

    indices: list[int]
    scripts: list[Script]
    kinds: tuple[str, ...]
    truth: Truth
    matches: list[Matches]
    masks: list[dict[int, torch.Tensor]]

    def score(self, dreams: torch.Tensor, decoded: torch.Tensor) -> list[Scores]:
        """Score uint8 [n, S, T - context, H, W, 3]."""
        return [
            score_script(
                self.indices[row],
                script,
                self.kinds,
                self.matches[row],
                dreams[row],
                self.truth.rgb[row],
                decoded[row],
                self.masks[row],
            )
            for row, script in enumerate(self.scripts)
        ]


@dataclass(frozen=True)
class Revisits:
    """The scripted revisit test, a `parts.Measure`.

    Attributes:
        walks: What to walk.
        blocks: uint8 [X, Z, Y] of every world seed the scripts name.
        renderer: A `worlds.Renderer` at the models' frame size; scores are computed on its device.
        contenders: Rows; the first is the model under test.
        gap: G of the "G-frame" figures.
        seeds: Noise seeds of every script.
        steps: Denoising steps; the model's own number when None.
        pictures: Scripts whose frames are kept for the report.
    """

    walks: Sequence[Script]
    blocks: Mapping[int, torch.Tensor]
    renderer: Any
    contenders: Sequence[Contender]
    gap: int
    seeds: int = 3
    steps: int | None = None
    pictures: int = 6

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of the scripts, as `Scores.kind` counts them."""
        return tuple(dict.fromkeys(script.kind for script in self.walks))

    def score(self, indices: Sequence[int], tell: Tell) -> Part:
        """Let every contender dream these scripts and score them, and the two references with them."""
        main = self.contenders[0].model
        seconds = dict.fromkeys(("truth", "observe", "generate", "score"), 0.0)
        clock = time.perf_counter()
        batch = _prepare([(i, self.walks[i]) for i in indices], self.kinds, self.blocks, self.renderer, self.gap)
        decoded = {
            id(model): batch.truth.decoded(model) for model in {id(c.model): c.model for c in self.contenders}.values()
        }
        seconds["truth"] += time.perf_counter() - clock

        kept = self._kept().intersection(indices)
        columns: dict[str, Columns] = {}
        shown: dict[str, torch.Tensor] = {}
        for contender in self.contenders:
            made = 0

            def count(frames: int, name: str = contender.name) -> None:
                nonlocal made
                made += frames
                tell(name, frames)

            dreams, spent = dream(
                contender, batch.scripts, batch.truth, contender.seeds or self.seeds, self.steps, count
            )
            assert made == dreams[..., 0, 0, 0].numel(), "every frame is reported once"
            for name, value in spent.items():
                seconds[name] += value
            clock = time.perf_counter()
            columns[contender.name] = vars(join(batch.score(dreams, decoded[id(contender.model)])))
            seconds["score"] += time.perf_counter() - clock
            if kept:
                shown[contender.name] = dreams[:, 0]
        clock = time.perf_counter()
        shown["copy"] = batch.truth.copied(batch.matches)
        for name, frames in (("bound", decoded[id(main)]), ("copy", shown["copy"])):
            columns[name] = vars(join(batch.score(frames[:, None], decoded[id(main)])))
        pictures = {i: _pictures(batch, row, shown, self.gap) for row, i in enumerate(indices) if i in kept}
        seconds["score"] += time.perf_counter() - clock
        return Part(tuple(indices), columns, pictures, seconds)

    def outcome(self, parts: Sequence[Part]) -> Outcome:
        """The scores of each contender and of the references, and the pictures, over the worlds that are whole."""
        order = whole(self.walks, parts)
        scores = {}
        for name in (*(c.name for c in self.contenders), "bound", "copy"):
            columns = gather(parts, name, order)
            if columns is not None:
                scores[name] = Scores(**columns)
        pictures = {index: found for part in parts for index, found in part.pictures.items()}
        seconds: dict[str, float] = {}
        for part in parts:
            for name, value in part.seconds.items():
                seconds[name] = seconds.get(name, 0.0) + value
        return Outcome(
            self.kinds,
            self.gap,
            self.seeds,
            self.contenders[0].name,
            tuple(c.name for c in self.contenders if c.floor),
            scores,
            [_strip(self.walks[index], pictures[index]) for index in order if index in pictures],
            seconds,
        )

    def _kept(self) -> set[int]:
        """Scripts whose frames are kept, evenly spread."""
        return evenly(len(self.walks), self.pictures)


def evaluate(
    scripts: Sequence[Script],
    blocks: Mapping[int, torch.Tensor],
    renderer: Any,
    contenders: Sequence[Contender],
    *,
    gap: int,
    seeds: int = 3,
    steps: int | None = None,
    sessions_per_batch: int = 96,
    report: Report | None = None,
) -> Outcome:
    """Run the scripted revisit test in one go.

    Args:
        scripts: What to walk; this and all up to `steps` as in `Revisits`.
        blocks: Of the worlds.
        renderer: At the models' frame size.
        contenders: Rows.
        gap: In frames.
        seeds: Of the noise.
        steps: Of the sampler.
        sessions_per_batch: Upper limit of sessions in one forward pass.
        report: Progress.

    Returns:
        The scores of each contender and of the two references: `bound`, the autoencoder's decoding of the truth, and
        `copy`, the true context frame with the nearest pose.
    """
    measure = Revisits(scripts, blocks, renderer, contenders, gap, seeds, steps)
    return measure.outcome(list(score_parts(measure, sessions_per_batch, report)))


def standard_contenders(
    model: Any, modes: Sequence[str] = ("memory",), window_model: Any = None, floors: bool = True
) -> list[Contender]:
    """The model under test in each memory mode, then the rows without memory (one noise seed is enough for those).

    Args:
        model: Under test.
        modes: Arguments of `WorldModel.start`; the first is the main row.
        window_model: A model trained without memory, if there is one.
        floors: Whether to add retrieval off and retrieval limited to the window.
    """
    found = [Contender(mode, model, mode) for mode in modes]
    if floors:
        found.append(Contender("no_retrieval", model, "off", floor=True, seeds=1))
        found.append(Contender("window_retrieval", model, "window", floor=True, seeds=1))
    if window_model is not None:
        found.append(Contender("window_model", window_model, "off", floor=True, seeds=1))
    return found


def _prepare(
    chosen: list[tuple[int, Script]],
    kinds: tuple[str, ...],
    blocks: Mapping[int, torch.Tensor],
    renderer: Any,
    gap: int,
) -> _Batch:
    indices, scripts = [index for index, _ in chosen], [script for _, script in chosen]
    truth = Truth(scripts, blocks, renderer)
    matches = [match_poses(script.poses, script.context) for script in scripts]
    masks = [_masks(truth, row, scripts[row], matches[row], gap) for row in range(len(scripts))]
    return _Batch(indices, scripts, kinds, truth, matches, masks)


def dream(
    contender: Contender,
    scripts: Sequence[Script],
    truth: Truth,
    seeds: int,
    steps: int | None,
    tell: Callable[[int], None],
) -> tuple[torch.Tensor, dict[str, float]]:
    """Let a contender watch the true context of scripts of equal length and generate the rest.

    Args:
        contender: Who dreams.
        scripts: n scripts of equal context and length.
        truth: Of these scripts; its context frames are observed.
        seeds: Noise seeds S; the context is observed once and forked.
        steps: Denoising steps; the model's own number when None.
        tell: Called with the number of frames made since the last call.

    Returns:
        uint8 [n, S, T - context, H, W, 3], and the seconds spent observing and generating.
    """
    context = truth.context
    roots: list[Any] = []
    sessions: list[Any] = []
    clock = time.perf_counter()
    for row, script in enumerate(scripts):
        root = contender.model.start(seed=script.noise_seed, memory=contender.memory, steps=steps)
        given = truth.rgb[row, :context].cpu().numpy(), script.actions[:context], script.poses[:context]
        root.observe(*whole_context(contender.model, *given))
        roots.append(root)
        sessions.extend([root] if seeds == 1 else root.fork(seeds))
    middle = time.perf_counter()
    actions = np.repeat(np.stack([s.actions[context:] for s in scripts]), seeds, 0)
    poses = np.repeat(np.stack([s.poses[context:] for s in scripts]), seeds, 0)
    starts = (
        Start(script.actions[:context], script.poses[:context], truth.rgb[row, :context].cpu().numpy())
        for row, script in enumerate(scripts)
    )
    hands = HandReader.where_needed(contender.model, starts, actions, seeds)
    frames = roll_out(contender.model, sessions, actions, poses, device=truth.rgb.device, progress=tell, hands=hands)
    _refuse_forgetting(sessions)
    for session in {id(s): s for s in (*roots, *sessions)}.values():
        session.close()
    end = time.perf_counter()
    return frames.unflatten(0, (len(roots), seeds)), {"observe": middle - clock, "generate": end - middle}


def _refuse_forgetting(sessions: list[Any]) -> None:
    """A session that had to drop frames for lack of room would measure the budget, not the memory."""
    evicted = sum(int(session.stats["evicted_frames"]) for session in sessions)
    if evicted:
        raise ValueError(f"{evicted} frames were evicted from memory: run fewer sessions at once (--batch N)")


def _masks(truth: Truth, row: int, script: Script, matches: Matches, gap: int) -> dict[int, torch.Tensor]:
    """Visible masks of (at most ten) near frames of the G-frame figure, by frame."""
    wanted = np.flatnonzero((matches.label == NEAR) & matches.left & in_gap(matches.gap, gap))
    if len(wanted) > _MASKED_FRAMES:
        wanted = wanted[np.linspace(0, len(wanted) - 1, _MASKED_FRAMES).round().astype(int)]
    _, distinct = np.unique(script.poses[: script.context].round(4), axis=0, return_index=True)
    depth, poses = truth.depth[row], script.poses
    seen = depth[torch.as_tensor(distinct, device=depth.device)]
    return {int(t): visible_mask(depth[t], poses[t], seen, poses[distinct]) for t in wanted}


def _pictures(batch: _Batch, row: int, shown: dict[str, torch.Tensor], gap: int) -> Columns:
    """About ten frames of a script: the way out, the time away, the return; `_strip` reads them."""
    script, matches = batch.scripts[row], batch.matches[row]
    revisits = np.flatnonzero(in_gap(matches.gap, gap) & (matches.label > 0))
    last = int(revisits[-1]) if len(revisits) else len(script.poses) - 1
    spread = np.linspace(script.context, max(script.context, last - 6), 5).round().astype(int)
    chosen = sorted({*spread.tolist(), *revisits[:: max(1, len(revisits) // 4)].tolist(), last})
    index = torch.tensor(chosen)
    pictures = {
        f"{_SHOWN}{name}": frames[row][(index - script.context).to(frames.device)].cpu().numpy()
        for name, frames in shown.items()
    }
    truth = batch.truth.rgb[row][index.to(batch.truth.rgb.device)].cpu().numpy()
    labels = np.stack([matches.label[chosen], matches.gap[chosen]], 1).astype(np.int32)
    return {"frames": np.array(chosen, np.int32), "truth": truth, "labels": labels, **pictures}


def _strip(script: Script, pictures: Columns) -> Strip:
    shown = {
        name.removeprefix(_SHOWN): torch.from_numpy(frames)
        for name, frames in pictures.items()
        if name.startswith(_SHOWN)
    }
    labels = tuple((int(label), int(gap)) for label, gap in pictures["labels"])
    return Strip(script, tuple(pictures["frames"].tolist()), torch.from_numpy(pictures["truth"]), shown, labels)
