"""One generated frame beside a remembered one: which way of being beside it costs what.

The tables of revisits mix all ways in which a view differs from what memory holds. Here the model watches a walk, and
is then asked for single frames at set distances from one of its poses: turned, tilted, or a step aside. Nothing has
been generated before, so what is scored is fetching and moving a picture, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..conventions.actions import ACTION_DIM
from ..metrics import bootstrap, psnr
from ..results import Record, record
from ..rollout import decoded_truth, roll_out, whole_context
from .evaluate import Contender
from .visible import visible_mask

CONTEXT, RECENT = 120, 30  # frames watched, and the last of them that are not asked for
ANCHORS = 10  # poses of each walk
LEAST_VISIBLE, LEAST_DEPTH = 0.5, 0.3  # share of pixels seen from the anchor; blocks to the nearest surface

# Degrees of yaw and pitch, blocks to the side and ahead; the first three to either side.
OFFSETS: dict[str, tuple[float, float, float, float]] = {
    "exact": (0.0, 0.0, 0.0, 0.0),
    "yaw_2": (2.0, 0.0, 0.0, 0.0),
    "yaw_8": (8.0, 0.0, 0.0, 0.0),
    "yaw_15": (15.0, 0.0, 0.0, 0.0),
    "pitch_2": (0.0, 2.0, 0.0, 0.0),
    "pitch_8": (0.0, 8.0, 0.0, 0.0),
    "side_0.25": (0.0, 0.0, 0.25, 0.0),
    "side_1": (0.0, 0.0, 1.0, 0.0),
    "ahead_1": (0.0, 0.0, 0.0, 1.0),
    "yaw_2_pitch_2_side_0.25": (2.0, 2.0, 0.25, 0.0),
}


class Score(NamedTuple):
    """PSNR in dB of one frame over what the anchor shows of it: the model's, the autoencoder's, the anchor copied."""

    world: int
    made: float
    bound: float
    copy: float


def moved(pose: NDArray[np.float64], offset: Sequence[float], rng: np.random.Generator) -> NDArray[np.float64]:
    """The pose [5] at an offset of `OFFSETS`, to a random side."""
    yaw, pitch, side, ahead = (
        value * sign for value, sign in zip(offset, (*rng.choice([-1.0, 1.0], 3), 1.0), strict=True)
    )
    result, heading = pose.copy(), np.radians(pose[4])
    forward, right = (-np.sin(heading), np.cos(heading)), (-np.cos(heading), -np.sin(heading))
    result[0] += ahead * forward[0] + side * right[0]
    result[2] += ahead * forward[1] + side * right[1]
    result[3:] += pitch, yaw
    return result


def measure(
    contender: Contender,
    seeds: Sequence[int],
    renderer: Any,
    steps: int | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> dict[str, list[Score]]:
    """Score all offsets in all worlds.

    Args:
        contender: A model and how much memory it may use.
        seeds: World seeds.
        renderer: A `worlds.Renderer`.
        steps: Denoising steps; the model's own number when None.
        progress: Called once a world.

    Returns:
        Scores by name of the offset; views into walls, or that show little of what the anchor showed, are left out.
    """
    found: dict[str, list[Score]] = {name: [] for name in OFFSETS}
    for seed in seeds:
        for name, score in _in_world(contender, seed, renderer, steps):
            found[name].append(score)
        progress(1)
    return found


def _in_world(contender: Contender, seed: int, renderer: Any, steps: int | None) -> Iterator[tuple[str, Score]]:
    from ..worlds import generate_world, sample_trajectories

    rng, world = np.random.default_rng([int(seed), CONTEXT]), generate_world(seed)
    walk = sample_trajectories([world], CONTEXT, rng, "mixed", grid=False)
    poses, actions = np.asarray(walk.poses[0], np.float64), np.asarray(walk.actions[0], np.float32)
    blocks = torch.from_numpy(np.asarray(world.blocks, np.uint8))[None].to(renderer.device)

    def render(at: NDArray[np.float64]) -> Any:
        return renderer.render(blocks, np.zeros(len(at), np.int64), at, depth=True)

    seen = render(poses)
    model = contender.model
    root = model.start(seed=1, memory=contender.memory, steps=steps)
    root.observe(*whole_context(model, seen.rgb.cpu().numpy(), actions, poses))
    for anchor in rng.choice(CONTEXT - RECENT, ANCHORS, replace=False):
        for name, offset in OFFSETS.items():
            pose = moved(poses[anchor], offset, rng)[None]
            truth = render(pose)
            mask = visible_mask(truth.depth[0], pose[0], seen.depth[[anchor]], poses[[anchor]])
            if truth.depth.min() < LEAST_DEPTH or mask.float().mean() < LEAST_VISIBLE:
                continue
            asked = root.fork(1)[0]
            still = np.zeros((1, 1, ACTION_DIM), np.float32)
            made = roll_out(model, [asked], still, pose[None], device=truth.rgb.device)[0]
            asked.close()
            shown = (made, decoded_truth(model, truth.rgb), seen.rgb[[anchor]])
            yield name, Score(int(seed), *(float(psnr(frames, truth.rgb, mask[None])[0]) for frames in shown))
    root.close()


def beside_records(scores: dict[str, list[Score]], name: str, *, device: str) -> list[Record]:
    """A record for every offset and row; the contender's has its `name`."""
    result = []
    for offset, found in scores.items():
        for row, field in ((name, "made"), ("bound", "bound"), ("copy", "copy")):
            estimate = bootstrap([getattr(score, field) for score in found], [score.world for score in found])
            details = {
                "low": estimate.low,
                "high": estimate.high,
                "frames": len(found),
                "worlds": estimate.groups,
            }
            result.append(record(f"beside.{offset}.{row}.psnr_db", estimate.mean, "dB", device=device, details=details))
    return result


def beside_table(found: list[Record], name: str) -> str:
    """The records for a terminal."""
    lines = [f"{'beside by':26}{name:>9}{'95 %':>15}{'bound':>8}{'copy':>8}{'frames':>8}{'worlds':>8}"]
    by_name = {item["name"]: item for item in found}
    for offset in OFFSETS:
        made, bound, copy = (by_name[f"beside.{offset}.{row}.psnr_db"] for row in (name, "bound", "copy"))
        if made["value"] is None:
            continue
        facts = made["details"]
        lines.append(
            f"{offset:26}{made['value']:9.2f}{facts['low']:8.1f} to {facts['high']:.1f}"
            f"{bound['value']:8.2f}{copy['value']:8.2f}{facts['frames']:8d}{facts['worlds']:8d}"
        )
    return "\n".join(lines)
