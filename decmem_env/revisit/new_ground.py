"""New ground: what a model makes of places that nobody has seen, and whether they stay.

The truth cannot be guessed there, so that PSNR says nothing. Two scripts a world, from a start drawn by its seed, with
the same context of true frames: 2 of nothing, then a look 30 degrees to one side, 60 to the other and back to the
middle, in steps of 7.5 degrees.

`walk_on`: turn by 180 degrees in steps of 15, 40 steps forward, 6 turns of 15 degrees, 22 steps forward. Scored from
the 7th turn on, in three parts: the turn, the first walk, and what follows from the second turn on. The 7th turn is 75
degrees beside the nearest view of the context, a frame 99 degrees wide: at the edge of two turns, and far off after the
second turn, a little of the context is in view. `seen_percent` in the details says how much.

- `new_ground_sharpness`: mean sharpness of the scored frames over that of the same true frames as the autoencoder
  decodes them. 1 is right, less is blur, more is noise.
- `new_ground_distance`: Frechet distance between Gaussians fitted to latents. Generated and true frames are both
  encoded (again); the cells of one row of the latent grid, over all scored frames and worlds, are one set of samples;
  the mean over rows. Lower is better. It shrinks with more worlds. To read it: `floor`, between the true frames of the
  first and the second half of the worlds, and `bound`, between decoded and true frames.

`return`: turn away by 180 degrees, turn back, turn away again the same way. `new_ground_return_db` is the PSNR of the
last 6 frames of the second turn away against those of the first: the model against itself, at the same poses. Fog would
come back well: read it beside the sharpness.

The rows without memory are measured, too: their names follow those of the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..conventions.actions import Action
from ..metrics import moments, psnr, sharpness
from .evaluate import Contender, dream
from .parts import Columns, Part, Tell, evenly, gather, whole
from .plans import Plan, act
from .scripts import Script
from .truth import Truth, strips
from .visible import visible_mask

WALK_ON, RETURN = "walk_on", "return"
HALF = 12  # turns of 15 degrees that face away
SCORED = 6  # turns passed over before frames are scored
PARTS = {"turn": slice(SCORED, HALF), "walk": slice(HALF, HALF + 40), "on": slice(HALF + 40, HALF + 68)}
_SEEN_EVERY = 4  # of the scored frames, how many of their pixels the context shows is counted in every 4th


@dataclass(frozen=True)
class GroundStrip:
    """Frames of one `walk_on` for the pictures.

    Attributes:
        world: Its seed.
        frames: Indices of the F frames among the generated ones.
        truth: uint8 [F, H, W, 3].
        dream: uint8 [F, H, W, 3] of the row under test.
    """

    world: int
    frames: tuple[int, ...]
    truth: NDArray[np.uint8]
    dream: NDArray[np.uint8]


@dataclass(frozen=True)
class GroundOutcome:
    """What was found in n worlds.

    Attributes:
        main: Name of the row under test.
        names: Of all rows, that one first.
        walks: Columns of `walk_on` by row, and of `truth` and `bound` (the decoded truth): `world` [n], `sharp` [n, 3]
            summed over the frames of each part, `moments` [n, h, C + 1, C + 1] of each row of the latent grid; of
            `truth` also `seen` [n, 3], the share of pixels that the context shows.
        returns: Columns of `return` by row: `world` [n], `psnr` [n, 6].
        strips: For the pictures.
    """

    main: str
    names: tuple[str, ...]
    walks: dict[str, Columns]
    returns: dict[str, Columns]
    strips: list[GroundStrip]


def build_new_ground(
    seeds: Sequence[int], progress: Callable[[int], None] = lambda n: None
) -> tuple[dict[int, torch.Tensor], list[Script]]:
    """Build every world and its two scripts; they depend on the seed alone.

    Args:
        seeds: World seeds.
        progress: Called once a world.

    Returns:
        uint8 [X, Z, Y] by world seed, and the scripts, all `walk_on` first.
    """
    from ..worlds import Simulator, generate_world
    from ..worlds.trajectories import random_start

    blocks: dict[int, torch.Tensor] = {}
    scripts: dict[str, list[Script]] = {WALK_ON: [], RETURN: []}
    for seed in seeds:
        world = generate_world(seed)
        blocks[seed] = torch.from_numpy(np.asarray(world.blocks, np.uint8))
        rng = np.random.default_rng([int(seed), HALF])
        start, side = random_start(world, rng), float(rng.choice([-1.0, 1.0]))
        for kind, rest in _plans().items():
            context = [*[act()] * 2, *_turn(4, 0.5 * side), *_turn(8, -0.5 * side), *_turn(4, 0.5 * side)]
            actions = np.stack([*context, *rest])
            simulator = Simulator([world], start[None])
            poses = simulator.walk(actions[:, None])[:, 0]
            scripts[kind].append(Script(kind, int(seed), True, len(context), actions, poses, int(seed)))
        progress(1)
    return blocks, [*scripts[WALK_ON], *scripts[RETURN]]


def _plans() -> dict[str, Plan]:
    away, forward = _turn(HALF), act(Action.FORWARD)
    walk_on = [*away, *[forward] * 40, *_turn(6), *[forward] * 22]
    return {WALK_ON: walk_on, RETURN: [*away, *_turn(HALF, -1.0), *away]}


def _turn(count: int, size: float = 1.0) -> Plan:
    return [act(Action.CAMERA_YAW, size)] * count


@dataclass(frozen=True)
class NewGround:
    """The test, a `parts.Measure`.

    Attributes:
        walks: What to walk.
        blocks: uint8 [X, Z, Y] of every world seed the scripts name.
        renderer: A `worlds.Renderer` at the models' frame size; scores are computed on its device.
        contenders: Rows; the first is the model under test. Its autoencoder encodes the frames of all rows.
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
        """Let every contender dream these scripts, of one kind, and score them."""
        scripts = [self.walks[i] for i in indices]
        onward = scripts[0].kind == WALK_ON
        truth = Truth(scripts if onward else [script.cut(0) for script in scripts], self.blocks, self.renderer)
        worlds = np.array([script.world for script in scripts], np.int64)
        ids: Columns = {"script": np.array(indices, np.int32), "world": worlds}
        columns: dict[str, Columns] = {}
        pictures: dict[int, Columns] = {}
        if onward:
            model, true = self.contenders[0].model, truth.rgb[:, truth.context :]
            seen = np.array([_seen(truth, row, script) for row, script in enumerate(scripts)])
            columns["truth"] = {**ids, **_look(model, true), "seen": seen}
            columns["bound"] = {**ids, **_look(model, truth.decoded(model))}
        for contender in self.contenders:
            made = dream(contender, scripts, truth, self.seeds, self.steps, partial(tell, contender.name))[0][:, 0]
            if not onward:
                turns = made[:, SCORED:HALF], made[:, 2 * HALF + SCORED :]
                values = [psnr(again, first).cpu().numpy() for first, again in zip(*turns, strict=True)]
                columns[f"{contender.name} {RETURN}"] = {**ids, "psnr": np.stack(values)}
                continue
            columns[contender.name] = {**ids, **_look(model, made)}
            if contender is self.contenders[0]:
                pictures = strips(indices, true, made)
        return Part(tuple(indices), columns, {i: found for i, found in pictures.items() if i in self._kept()})

    def outcome(self, parts: Sequence[Part]) -> GroundOutcome:
        """The columns and the pictures of the worlds that are whole."""
        order = whole(self.walks, parts)
        names = tuple(contender.name for contender in self.contenders)
        walks = {name: gather(parts, name, order) or {} for name in ("truth", "bound", *names)}
        returns = {name: gather(parts, f"{name} {RETURN}", order) or {} for name in names}
        found = {index: kept for part in parts for index, kept in part.pictures.items()}
        strips = [
            GroundStrip(self.walks[i].world, tuple(found[i]["frames"].tolist()), found[i]["truth"], found[i]["dream"])
            for i in order
            if i in found
        ]
        return GroundOutcome(names[0], names, walks, returns, strips)

    def _kept(self) -> set[int]:
        """Scripts whose frames are kept."""
        count = sum(script.kind == WALK_ON for script in self.walks)
        return evenly(count, self.pictures)


def _look(model: Any, frames: torch.Tensor) -> Columns:
    """`sharp` and `moments` of the generated part of n `walk_on`, uint8 [n, T, H, W, 3]."""
    sharp = [[float(sharpness(clip[part]).sum()) for part in PARTS.values()] for clip in frames]
    cells = [_latents(model, clip[SCORED:]).permute(2, 0, 3, 1).flatten(1, 2) for clip in frames]  # [h, N w, C]
    return {"sharp": np.array(sharp), "moments": np.stack([moments(rows) for rows in cells])}


def _latents(model: Any, frames: torch.Tensor) -> torch.Tensor:
    """Latents [N, C, h, w] of a clip uint8 [T, H, W, 3], whose last frame is repeated to fill the last latent."""
    stream = model.autoencoder.stream()
    lack = -(len(frames) - 1) % stream.encoder.frames_per_latent
    filled = torch.cat([frames, frames[-1:].expand(lack, *frames.shape[1:])])
    return stream.encode(filled.to(model.device))


def _seen(truth: Truth, row: int, script: Script) -> list[float]:
    """Share of pixels of each part that the context shows, from every 4th frame."""
    _, distinct = np.unique(script.poses[: script.context].round(4), axis=0, return_index=True)
    depth, poses = truth.depth[row], script.poses
    shown = depth[torch.as_tensor(distinct, device=depth.device)]
    shares = []
    for part in PARTS.values():
        times = range(script.context + part.start, script.context + part.stop, _SEEN_EVERY)
        masks = [visible_mask(depth[t], poses[t], shown, poses[distinct]) for t in times]
        shares.append(float(torch.stack(masks).float().mean()))
    return shares
