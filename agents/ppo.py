"""PPO of Stable-Baselines3, trained inside the dream (or, for comparison, in the true world).

    python -m decmem_env.agents.ppo --task reach_landmark --steps 20000 --seeds 0 1 2 --num-envs 16 --device cuda \
        --world dream --out runs/ppo

Writes, for each seed, `OUT/seedS/policy.zip` (at the end, whole or not at all) and `OUT/seedS/log.jsonl` (one line a
rollout), and `OUT/config.json`. Evaluate with `decmem_env.agents.evaluate`. Settings are those that learn
`reach_landmark` from 64x64 frames and the goal vector in 20,000 steps.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces

from ..results import write_atomically
from ..tasks import TASKS
from .evaluate import DREAM, HORIZON, TRUE_WORLD
from .policy import OBSERVATION_SIZE, policy_settings
from .sb3 import SB3VecEnv

try:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecMonitor
except ImportError:
    raise ImportError('agents need Stable-Baselines3: pip install "decmem-env[rl]"') from None


@dataclass(frozen=True)
class PPOConfig:
    """One training run.

    Attributes:
        task: Of `decmem_env.tasks`.
        world: `dream` or `voxel`.
        checkpoint: Of the dream.
        memory: What the dream may attend to.
        steps: Environment steps in all.
        num_envs: Worlds in a batch.
        horizon: Steps of an episode.
        device: Of the model, the renderer and the policy.
        context_frames: True frames before an episode.
        worlds: How many different worlds to train in; they stay in memory.
        first_world: Seed of the first.
        rollout: Steps a world between updates.
        batch_size: Samples of a gradient step.
        epochs: Passes over a rollout.
        learning_rate: Of Adam, falling to zero.
        gamma: Discount.
        entropy: Weight of the entropy bonus.
        seed: Of everything.
    """

    task: str = "reach_landmark"
    world: str = DREAM
    checkpoint: str = "tiny"
    memory: str = "memory"
    steps: int = 20_000
    num_envs: int = 16
    horizon: int = HORIZON
    device: str = "cpu"
    context_frames: int = 25
    worlds: int = 64
    first_world: int = 9_000_000
    rollout: int = 50
    batch_size: int = 200
    epochs: int = 6
    learning_rate: float = 1e-3
    gamma: float = 0.97
    entropy: float = 0.01
    seed: int = 0


def make_env(config: PPOConfig) -> SB3VecEnv:
    """The vector environment of a run, behind the adapter."""
    from ..vector import DecMemVectorEnv
    from ..voxel_env import VoxelVectorEnv

    common: dict[str, Any] = {
        "autoreset_mode": "SAME_STEP",
        "task": config.task,
        "obs_size": OBSERVATION_SIZE,
        "context_frames": config.context_frames,
        "world_seeds": (config.first_world, config.first_world + config.worlds - 1),
        "device": config.device,
    }
    if config.world == TRUE_WORLD:
        return SB3VecEnv(VoxelVectorEnv(config.num_envs, config.horizon, **common))
    dream: dict[str, Any] = {"checkpoint": config.checkpoint, "memory": config.memory}
    return SB3VecEnv(DecMemVectorEnv(config.num_envs, config.horizon, **dream, **common))


class _Log(BaseCallback):
    """One JSON line a rollout, and a line for people."""

    def __init__(self, path: Path, total: int) -> None:
        super().__init__()
        self._path, self._total, self._began = path, total, time.monotonic()
        self.lines: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        episodes = list(self.model.ep_info_buffer or [])
        successes = list(self.model.ep_success_buffer or [])
        seconds = time.monotonic() - self._began
        line = {
            "steps": int(self.num_timesteps),
            "seconds": round(seconds, 2),
            "mean_return": _mean([float(episode["r"]) for episode in episodes]),
            "mean_length": _mean([float(episode["l"]) for episode in episodes]),
            "success": _mean([float(success) for success in successes]),
        }
        self.lines.append(line)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        left = seconds / max(self.num_timesteps, 1) * (self._total - self.num_timesteps)
        shown = {key: "-" if line[key] is None else f"{line[key]:.2f}" for key in ("mean_return", "success")}
        print(
            f"{self.num_timesteps:>7} of {self._total} steps  return {shown['mean_return']}  success {shown['success']}"
            f"  {self.num_timesteps / max(seconds, 1e-9):.0f} steps/s  about {max(left, 0):.0f} s left",
            file=sys.stderr,
            flush=True,
        )


def train(config: PPOConfig, folder: str | Path) -> list[dict[str, Any]]:
    """Train one policy.

    Args:
        config: The run.
        folder: Gets `policy.zip` and `log.jsonl`.

    Returns:
        The log's lines.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    log = target / "log.jsonl"
    log.unlink(missing_ok=True)
    env = make_env(config)
    env.seed(10_000 * config.seed)
    space = env.observation_space
    with_goal = isinstance(space, spaces.Dict) and "goal" in space.spaces
    kind = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "CnnPolicy"
    rollout = max(1, min(config.rollout, config.steps // config.num_envs))
    model = PPO(
        kind,
        VecMonitor(env),
        n_steps=rollout,
        batch_size=min(config.batch_size, rollout * config.num_envs),
        n_epochs=config.epochs,
        learning_rate=lambda left: config.learning_rate * left,
        gamma=config.gamma,
        gae_lambda=0.95,
        ent_coef=config.entropy,
        policy_kwargs=policy_settings(with_goal),
        seed=config.seed,
        device=config.device,
    )
    callback = _Log(log, config.steps)
    try:
        model.learn(config.steps, callback=callback)
    finally:
        env.close()
    buffer = io.BytesIO()
    model.save(buffer, exclude=["lr_schedule", "learning_rate", "clip_range"])
    write_atomically(target / "policy.zip", buffer.getvalue())
    return callback.lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    default = PPOConfig()
    parser = argparse.ArgumentParser(prog="python -m decmem_env.agents.ppo", description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, default=default.task)
    parser.add_argument("--world", choices=(DREAM, TRUE_WORLD), default=default.world)
    parser.add_argument("--checkpoint", default=default.checkpoint, help="of the dream (default: tiny)")
    parser.add_argument("--memory", default=default.memory, help="memory, dense, window or off (default: memory)")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="S")
    parser.add_argument("--num-envs", type=int, default=default.num_envs)
    parser.add_argument("--horizon", type=int, default=default.horizon)
    parser.add_argument("--context-frames", type=int, default=default.context_frames)
    parser.add_argument("--device", default=default.device)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = vars(parser.parse_args(arguments))
    out, seeds = options.pop("out"), options.pop("seeds")
    config = PPOConfig(**options)
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        parser.exit(2, "ppo: --device cuda: this torch sees no CUDA device; use --device cpu\n")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "config.json", json.dumps({**asdict(config), "seeds": seeds}, indent=2).encode())
    for seed in seeds:
        print(f"seed {seed}", file=sys.stderr, flush=True)
        try:
            train(replace(config, seed=seed), out / f"seed{seed}")
        except (ValueError, FileNotFoundError) as error:
            parser.exit(2, f"ppo: {error}\n")
    return 0


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


if __name__ == "__main__":
    raise SystemExit(main())
