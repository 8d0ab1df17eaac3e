"""Play a task many times, in the true world or in the dream, and count successes.

    python -m decmem_env.agents.evaluate --policy runs/ppo/seed0/policy.zip --task reach_landmark --episodes 100 \
        --worlds 8000000-8000099 --world voxel --out result.json

Episode i plays world `first + i` with seed i, whoever plays: every player meets the same starts. Beside the policies
stand the random and the no-op player (the floor) and the scripted oracle (the ceiling). Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..conventions.actions import DISCRETE_ACTIONS
from ..results import write_atomically
from ..rows import Row, Rows
from ..tasks import TASKS
from .scripted import NoopPlayer, Player, RandomPlayer, oracle

TRUE_WORLD, DREAM = "voxel", "dream"
HORIZON = 64


@dataclass(frozen=True)
class Episode:
    """One episode: its world, whether it succeeded, its return and its length in steps."""

    world_seed: int
    success: bool
    total_reward: float
    length: int


def make_rows(
    world: str,
    task: str,
    *,
    checkpoint: str = "tiny",
    device: str = "cpu",
    obs_size: tuple[int, int] | None = (64, 64),
    context_frames: int = 25,
    memory: str = "memory",
) -> Rows:
    """The rows that a task is played in: `voxel` is the truth, `dream` the model."""
    from ..dream import Dream
    from ..voxel_env import Truth

    settings = {"task": task, "obs_size": obs_size, "context_frames": context_frames}
    if world == TRUE_WORLD:
        return Rows(Truth(96, 160, 2, device), settings)
    if world == DREAM:
        return Rows(Dream(checkpoint, device, None, memory=memory), settings)
    raise ValueError(f"unknown world {world!r}: expected {TRUE_WORLD} or {DREAM}")


def play(
    rows: Rows,
    player: Player,
    world_seeds: Sequence[int],
    *,
    horizon: int = HORIZON,
    together: int = 16,
    progress: Callable[[int], None] | None = None,
) -> list[Episode]:
    """Play one episode in each world.

    Args:
        rows: Where.
        player: Who.
        world_seeds: One world an episode; episode i has seed i.
        horizon: Steps after which an episode counts as failed.
        together: Episodes in one batch.
        progress: Called with 1 at the end of every episode.

    Returns:
        Episodes in the order of the worlds.
    """
    done: dict[int, Episode] = {}
    waiting = list(range(len(world_seeds)))[::-1]
    running: dict[int, Row] = {}
    rewards: dict[int, float] = {}
    luck = {i: np.random.default_rng([i, 1]) for i in waiting}
    while waiting or running:
        while waiting and len(running) < together:
            i = waiting.pop()
            running[i] = rows.start(np.random.default_rng([i, 0]), {"world_seed": int(world_seeds[i])})
            rewards[i] = 0.0
        order = sorted(running)
        batch = [running[i] for i in order]
        steps = [row.frame_index // rows.backend.frames_per_step for row in batch]
        actions = player.act([rows.observe(row) for row in batch], steps, [luck[i] for i in order])
        gained, success = rows.step(batch, list(actions))
        for k, i in enumerate(order):
            rewards[i] += float(gained[k])
            if success[k] or steps[k] + 1 >= horizon:
                done[i] = Episode(int(world_seeds[i]), bool(success[k]), rewards[i], steps[k] + 1)
                rows.close(running.pop(i))
                if progress is not None:
                    progress(1)
    return [done[i] for i in range(len(world_seeds))]


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share.

    Args:
        successes: 0 to `trials`.
        trials: At least 1.
        z: Normal quantile; the default gives 95 %.

    Returns:
        Lower and upper bound.
    """
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def summarise(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Success with its interval, mean return and length, and the raw episodes."""
    successes = sum(episode.success for episode in episodes)
    lower, upper = wilson(successes, len(episodes))
    return {
        "success": successes / len(episodes),
        "lower": lower,
        "upper": upper,
        "mean_return": float(np.mean([episode.total_reward for episode in episodes])),
        "mean_length": float(np.mean([episode.length for episode in episodes])),
        "episodes": [asdict(episode) for episode in episodes],
    }


class PolicyPlayer:
    """A trained SB3 policy.

    Args:
        path: A zip of `agents.ppo`.
        device: Where it runs.
        deterministic: Take the likeliest action instead of drawing one.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No policy in it, or one for other spaces.
    """

    def __init__(self, path: str | Path, device: str = "cpu", deterministic: bool = False) -> None:
        from .policy import load_policy

        self._policy = load_policy(path, device)
        self._deterministic = deterministic

    def act(self, observations: Sequence[Any], steps: Sequence[int], generators: Sequence[np.random.Generator]) -> Any:
        """Actions of the policy; drawn with each episode's own generator."""
        import torch

        first = observations[0]
        if isinstance(first, dict):
            batch: Any = {key: np.stack([observation[key] for observation in observations]) for key in first}
        else:
            batch = np.stack(observations)
        with torch.no_grad():
            tensor, _ = self._policy.obs_to_tensor(batch)
            distribution: Any = self._policy.get_distribution(tensor).distribution
            shares = distribution.probs.cpu().double().numpy()
        if self._deterministic:
            return shares.argmax(-1)
        picks = [int(rng.random() * 2**53) / 2**53 for rng in generators]
        below = np.cumsum(shares, -1) < np.array(picks)[:, None] * shares.sum(-1, keepdims=True)
        return np.minimum(below.sum(-1), len(DISCRETE_ACTIONS) - 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m decmem_env.agents.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--policy", action="append", default=[], metavar="ZIP", help="a policy; repeat for several")
    parser.add_argument("--task", choices=TASKS, default="reach_landmark")
    parser.add_argument("--world", choices=(TRUE_WORLD, DREAM), default=TRUE_WORLD, help="the truth or the dream")
    parser.add_argument("--worlds", default="8000000-8000099", metavar="A-B", help="world seeds, one an episode")
    parser.add_argument("--episodes", type=int, help="play only the first N worlds")
    parser.add_argument("--horizon", type=int, default=HORIZON, help=f"steps of an episode (default: {HORIZON})")
    parser.add_argument("--context-frames", type=int, default=25, help="as in training (default: 25)")
    parser.add_argument("--checkpoint", default="tiny", help="of the dream")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--deterministic", action="store_true", help="take the likeliest action")
    parser.add_argument("--no-baselines", action="store_true", help="policies only")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON")
    options = parser.parse_args(arguments)
    try:
        seeds = _seeds(options.worlds, options.episodes)
        players: dict[str, Player] = {}
        if not options.no_baselines:
            players = {"random": RandomPlayer(), "noop": NoopPlayer(), "oracle": oracle(options.task)}
        for path in options.policy:
            players[str(path)] = PolicyPlayer(path, options.device, options.deterministic)
        rows = make_rows(
            options.world,
            options.task,
            checkpoint=options.checkpoint,
            device=options.device,
            context_frames=options.context_frames,
        )
    except (ValueError, FileNotFoundError, ImportError) as error:
        parser.exit(2, f"evaluate: {error}\n")
    results: dict[str, Any] = {}
    for name, player in players.items():
        results[name] = summarise(play(rows, player, seeds, horizon=options.horizon))
        line = results[name]
        share = f"{100 * line['success']:5.1f} % [{100 * line['lower']:.1f}, {100 * line['upper']:.1f}]"
        print(f"{share}  return {line['mean_return']:+.3f}  {name}", file=sys.stderr, flush=True)
    report = {
        "task": options.task,
        "world": options.world,
        "checkpoint": options.checkpoint if options.world == DREAM else None,
        "worlds": options.worlds,
        "horizon": options.horizon,
        "deterministic": options.deterministic,
        "players": results,
    }
    write_atomically(options.out, json.dumps(report, indent=2).encode())
    return 0


def _seeds(text: str, episodes: int | None) -> list[int]:
    first, _, last = text.partition("-")
    if not first.isdigit() or not (last or first).isdigit() or int(last or first) < int(first):
        raise ValueError(f"--worlds {text}: expected A-B, for example 8000000-8000099")
    seeds = list(range(int(first), int(last or first) + 1))
    if episodes is not None and not 1 <= episodes <= len(seeds):
        raise ValueError(f"--episodes {episodes}: expected 1 to {len(seeds)}, the number of worlds in {text}")
    return seeds[:episodes]


if __name__ == "__main__":
    raise SystemExit(main())
