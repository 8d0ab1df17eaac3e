"""A stroll through a neighbourhood that was toured: what somebody who plays sees.

The tables of revisits ask for views at, or a step beside, poses that were seen. Whoever walks about among things that
were seen from elsewhere stands blocks away from all of them. The model watches a tour (`tour`: a look around, ways out
with looks around, and home), and then generates a walk from one random place to the next, all within reach of the tour.

- `stroll_psnr_db`: PSNR of all generated frames against the true world. Beside it the autoencoder's bound and the true
  frame with the nearest pose of the tour.
- `stroll_visible_psnr_db`: of every 8th frame the pixels alone that one of the nearest views of the tour shows
  (`visible`), where they are at least three in ten.
- `stroll_sharpness`: mean sharpness of the generated frames over that of the same true frames as the autoencoder
  decodes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..conventions.actions import CAMERA_STEP_DEGREES, Action, press
from ..conventions.poses import wrap_degrees
from ..metrics import bootstrap, psnr, sharpness
from ..model.nearest_views import apart
from ..pictures import Image8, sheet
from ..results import Record, record
from ..tour import FRAMES, tour_of_length
from .evaluate import Contender, dream
from .matches import match_poses
from .parts import Columns, Part, Tell, evenly, gather, whole
from .scripts import Script
from .truth import Truth, strips
from .visible import MINIMUM_SHARE, visible_mask

STROLL = "stroll"
LENGTH = 240  # frames to generate
REACH = 12.0  # blocks from home to the places walked to
_PATIENCE = 48  # frames to get to a place
_STUCK = 6  # frames without getting on
_CHECKED, _VIEWS = 8, 24  # every so many frames are masked, by so many of the nearest views


@dataclass(frozen=True)
class StrollOutcome:
    """What was found in n worlds.

    Attributes:
        main: Name of the row under test.
        names: Of all rows, that one first.
        scores: By row, and of `bound` and `copy`: `world` [n], `psnr` [n, T], `visible` [n, T / 8] (NaN: too little of
            the frame was seen), `sharp` [n] summed over frames.
        strips: World, frames [F], truth and dream uint8 [F, H, W, 3], for the pictures.
    """

    main: str
    names: tuple[str, ...]
    scores: dict[str, Columns]
    strips: list[tuple[int, Columns]]


def build_strolls(
    seeds: Sequence[int], progress: Callable[[int], None] = lambda n: None
) -> tuple[dict[int, torch.Tensor], list[Script]]:
    """Build every world and its stroll, which depends on the seed alone.

    Args:
        seeds: World seeds.
        progress: Called once a world.

    Returns:
        uint8 [X, Z, Y] by world seed, and the scripts.
    """
    from ..worlds import Simulator, generate_world

    blocks: dict[int, torch.Tensor] = {}
    scripts = []
    for seed in seeds:
        world = generate_world(seed)
        blocks[seed] = torch.from_numpy(np.asarray(world.blocks, np.uint8))
        context = tour_of_length(world, np.asarray(world.spawn, np.float64), FRAMES)
        simulator = Simulator([world])
        seen = simulator.walk(context[:, None])[:, 0]
        actions, poses = _walk_about(simulator, np.random.default_rng([int(seed), LENGTH]))
        both = np.concatenate([context, actions]), np.concatenate([seen, poses])
        scripts.append(Script(STROLL, int(seed), False, FRAMES, *both, int(seed)))
        progress(1)
    return blocks, scripts


def _walk_about(simulator: Any, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Walk from one random place near home to the next: actions [T, 25] and poses [T, 5]."""
    home = simulator.poses[0].copy()
    actions: list[NDArray[np.float32]] = []
    poses: list[NDArray[np.float64]] = []
    goal, began, moved = home[[0, 2]], -_PATIENCE, 0
    while len(actions) < LENGTH:
        here, time = simulator.poses[0], len(actions)
        if np.linalg.norm(goal - here[[0, 2]]) < 1.0 or time - began >= _PATIENCE or time - moved >= _STUCK:
            angle, distance = rng.uniform(0.0, 2.0 * np.pi), REACH * np.sqrt(rng.uniform())
            goal = home[[0, 2]] + distance * np.array([np.cos(angle), np.sin(angle)])
            began = moved = time
        away = goal - here[[0, 2]]
        turn = float(wrap_degrees(np.degrees(np.arctan2(-away[0], away[1])) - here[4])) / CAMERA_STEP_DEGREES
        action = press(Action.CAMERA_YAW, float(np.clip(turn, -1.0, 1.0)))
        action[Action.FORWARD] = float(abs(turn) < 3.0)  # nearly facing it
        before = here[[0, 2]].copy()
        poses.append(simulator.step(action[None])[0])
        actions.append(action)
        if abs(turn) >= 1.0 or np.linalg.norm(poses[-1][[0, 2]] - before) > 0.1:
            moved = time
    return np.stack(actions), np.stack(poses)


@dataclass(frozen=True)
class Strolls:
    """The test, a `parts.Measure`.

    Attributes:
        walks: What to walk.
        blocks: uint8 [X, Z, Y] of every world seed the scripts name.
        renderer: A `worlds.Renderer` at the models' frame size; scores are computed on its device.
        contenders: Rows; the first is the model under test.
        steps: Denoising steps; the model's own number when None.
        seeds: Noise seeds of every script.
        pictures: Worlds whose frames are kept, evenly spread.
    """

    walks: Sequence[Script]
    blocks: Mapping[int, torch.Tensor]
    renderer: Any
    contenders: Sequence[Contender]
    steps: int | None = None
    seeds: int = 1
    pictures: int = 8

    def score(self, indices: Sequence[int], tell: Tell) -> Part:
        """Let every contender dream these scripts, and score them."""
        scripts = [self.walks[i] for i in indices]
        truth = Truth(scripts, self.blocks, self.renderer)
        true = truth.rgb[:, truth.context :]
        masks = [_masks(truth, row, script) for row, script in enumerate(scripts)]
        ids: Columns = {
            "script": np.array(indices, np.int32),
            "world": np.array([script.world for script in scripts], np.int64),
        }
        nearest = truth.copied([match_poses(script.poses, script.context) for script in scripts])
        columns = {
            "bound": {**ids, **_scores(truth.decoded(self.contenders[0].model), true, masks)},
            "copy": {**ids, **_scores(nearest, true, masks)},
        }
        pictures: dict[int, Columns] = {}
        for contender in self.contenders:
            made = dream(contender, scripts, truth, self.seeds, self.steps, partial(tell, contender.name))[0][:, 0]
            columns[contender.name] = {**ids, **_scores(made, true, masks)}
            if contender is self.contenders[0]:
                pictures = strips(indices, true, made)
        kept = evenly(len(self.walks), self.pictures)
        return Part(tuple(indices), columns, {i: found for i, found in pictures.items() if i in kept})

    def outcome(self, parts: Sequence[Part]) -> StrollOutcome:
        """The columns and the pictures of the worlds that are whole."""
        order = whole(self.walks, parts)
        names = tuple(contender.name for contender in self.contenders)
        scores = {name: gather(parts, name, order) or {} for name in ("bound", "copy", *names)}
        found = {index: kept for part in parts for index, kept in part.pictures.items()}
        return StrollOutcome(names[0], names, scores, [(self.walks[i].world, found[i]) for i in order if i in found])


def _masks(truth: Truth, row: int, script: Script) -> dict[int, torch.Tensor]:
    """What one of the nearest views of the context shows of every 8th generated frame, by generated frame."""
    context, depth, poses = script.context, truth.depth[row], script.poses
    _, distinct = np.unique(poses[:context].round(4), axis=0, return_index=True)
    masks = {}
    for t in range(0, script.generated, _CHECKED):
        pose = poses[context + t]
        near = distinct[np.argsort(apart(poses[distinct], pose), kind="stable")[:_VIEWS]]
        shown = depth[torch.as_tensor(near, device=depth.device)]
        masks[t] = visible_mask(depth[context + t], pose, shown, poses[near])
    return masks


def _scores(made: torch.Tensor, true: torch.Tensor, masks: Sequence[dict[int, torch.Tensor]]) -> Columns:
    """`psnr`, `visible` and `sharp` of n clips uint8 [n, T, H, W, 3]."""
    whole_frames = [psnr(clip, truth).cpu().numpy() for clip, truth in zip(made, true, strict=True)]
    visible = [
        [
            float(psnr(clip[t][None], truth[t][None], mask[None])[0])
            if mask.float().mean() >= MINIMUM_SHARE
            else np.nan
            for t, mask in found.items()
        ]
        for clip, truth, found in zip(made, true, masks, strict=True)
    ]
    sharp = [float(sharpness(clip).sum()) for clip in made]
    return {"psnr": np.stack(whole_frames), "visible": np.array(visible), "sharp": np.array(sharp)}


def stroll_records(outcome: StrollOutcome, *, device: str) -> list[Record]:
    """Three figures for each row; bound and copy have the first two. The main row has no name behind its figures."""
    result = []
    for name in (*outcome.names, "bound", "copy"):
        row = "" if name == outcome.main else f".{name}"
        found = outcome.scores[name]
        for title, values in (("stroll_psnr_db", found["psnr"]), ("stroll_visible_psnr_db", found["visible"])):
            worlds = np.repeat(found["world"], values.shape[1])
            scored = ~np.isnan(values.ravel())
            spread = bootstrap(values.ravel()[scored], worlds[scored])
            facts = {"low": spread.low, "high": spread.high, "frames": int(scored.sum()), "worlds": spread.groups}
            result.append(record(f"{title}{row}", spread.mean, "dB", device=device, details=facts))
        ratio = float(found["sharp"].sum() / max(outcome.scores["bound"]["sharp"].sum(), 1e-9))
        facts = {"frames": int(found["psnr"].size), "worlds": len(found["world"])}
        result.append(record(f"stroll_sharpness{row}", ratio, "x decoded truth", device=device, details=facts))
    return result


def stroll_table(found: Sequence[Record]) -> str:
    """The records for a terminal."""
    lines = [f"{'stroll':20}{'PSNR':>8}{'95 %':>16}{'visible':>9}{'95 %':>16}{'sharp':>7}{'frames':>8}{'worlds':>8}"]
    for every, visible, sharp in zip(found[::3], found[1::3], found[2::3], strict=True):
        facts, seen = every["details"], visible["details"]
        spans = [f"{part['low']:.1f} to {part['high']:.1f}" for part in (facts, seen)]
        name = every["name"].partition(".")[2] or "under test"
        lines.append(
            f"{name:20}{every['value']:8.2f}{spans[0]:>16}{visible['value']:9.2f}{spans[1]:>16}{sharp['value']:7.2f}"
            f"{facts['frames']:8d}{facts['worlds']:8d}"
        )
    return "\n".join(lines)


def stroll_sheet(outcome: StrollOutcome) -> Image8:
    """Truth above dream, two lines a world, uint8 [H, W, 3]."""
    rows = []
    for world, strip in outcome.strips:
        rows += [(f"{world} truth", strip["truth"]), (f"{world} dream", strip["dream"])]
    return sheet(rows, [f"+{frame}" for frame in outcome.strips[0][1]["frames"].tolist()], f"stroll, {outcome.main}")
