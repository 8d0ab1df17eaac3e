"""Speeds as `measures.md` defines them.

`python -m decmem_env.benchmarks` is one fresh process of `decmem bench cpu`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

WARM_UP, MEASURED, PROCESSES, THREADS = 20, 200, 3, 2
MEMORY_FRAMES = 300


def env_speed(
    checkpoint: str = "tiny",
    *,
    memory_frames: int = MEMORY_FRAMES,
    warm_up: int = WARM_UP,
    measured: int = MEASURED,
    threads: int = THREADS,
    device: str = "cpu",
) -> dict[str, Any]:
    """Time one environment in this process: through `gym.make`, decode included.

    Args:
        checkpoint: Bundled name, folder or hub id.
        memory_frames: True frames observed before the first step.
        warm_up: Steps that do not count.
        measured: Steps whose median counts.
        threads: Of torch.
        device: Where the model runs.

    Returns:
        `frames_per_second` (median step), step times in ms (median, 10 % and 90 %), and the configuration.
    """
    import gymnasium as gym
    import torch

    import decmem_env  # noqa: F401  registers the environments
    from decmem_env.conventions.actions import parse_action_string
    from decmem_env.scene import Scene

    torch.set_num_threads(threads)
    env = gym.make("DecMem-Minecraft-v0", checkpoint=checkpoint, device=device)
    height, width = env.observation_space.shape[:2]  # type: ignore[index]
    script = parse_action_string("W*10 L*24 W*5 R*6")
    repeats = -(-memory_frames // len(script))
    actions = np.concatenate([script] * repeats)[:memory_frames]
    actions[0] = 0.0
    scene = Scene(8_000_000, height, width)
    poses = scene.walk(actions)
    truth = scene.film(actions, poses)
    env.reset(seed=0, options={"frames": truth.frames, "actions": actions, "poses": poses})
    moves = [1, 1, 6, 6, 1, 5, 0, 5]  # walk, turn right, walk, turn left, nothing
    times = []
    per_step = getattr(env.unwrapped, "frames_per_step", 1)
    for t in range(warm_up + measured):
        start = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(moves[t % len(moves)])
        times.append(time.perf_counter() - start)
        if terminated or truncated:
            raise ValueError(f"the environment ended after {t + 1} steps: the benchmark needs {warm_up + measured}")
    env.close()
    steady = times[warm_up:]
    low, high = np.percentile(steady, [10, 90])
    return {
        "frames_per_second": per_step / statistics.median(steady),
        "step_ms": 1000 * statistics.median(steady),
        "step_ms_10": 1000 * float(low),
        "step_ms_90": 1000 * float(high),
        "memory_frames": memory_frames,
        "threads": threads,
        "checkpoint": checkpoint,
        "warm_up": warm_up,
        "measured": measured,
    }


def slowest_env_speed(processes: int = PROCESSES, **options: Any) -> dict[str, Any]:
    """Run `env_speed` in fresh processes one after another and return the slowest; all are under `runs`.

    Raises:
        ValueError: A process failed; its last line is in the message.
    """
    runs = []
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.get("threads", THREADS))}
    for _ in range(processes):
        done = subprocess.run(
            [sys.executable, "-m", "decmem_env.benchmarks", json.dumps(options)],
            capture_output=True,
            text=True,
            env=environment,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"benchmark process failed: {last}")
        runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
    slowest = min(runs, key=lambda run: run["frames_per_second"])
    return {**slowest, "runs": [run["frames_per_second"] for run in runs]}


def vector_env_speed(
    checkpoint: str = "tiny", *, worlds: int = 16, steps: int = 50, device: str = "cpu"
) -> dict[str, Any]:
    """Frames a second of `gym.make_vec` with random actions (all worlds in one forward pass), after 5 warm-up steps."""
    import gymnasium as gym

    import decmem_env  # noqa: F401

    env = gym.make_vec("DecMem-Minecraft-v0", num_envs=worlds, checkpoint=checkpoint, device=device)
    env.action_space.seed(0)
    env.reset(seed=0)
    times = []
    for _ in range(5 + steps):
        start = time.perf_counter()
        env.step(env.action_space.sample())
        times.append(time.perf_counter() - start)
    env.close()
    median = statistics.median(times[5:])
    return {"frames_per_second": worlds / median, "step_ms": 1000 * median, "worlds": worlds, "checkpoint": checkpoint}


def renderer_speed(
    *, device: str = "cpu", height: int = 96, width: int = 160, batch: int | None = None
) -> dict[str, Any]:
    """Frames a second of the voxel renderer (2x2 samples, 8 worlds), after it agreed with the reference renderer.

    Raises:
        ValueError: The renderers disagree: no speed.
    """
    from .worlds import benchmark, generate_world

    worlds = [generate_world(7_000_000 + i) for i in range(8)]
    checked = benchmark.agreement(worlds[:2], device)
    if min(checked.values()) < 0.999:
        raise ValueError(f"the renderers disagree, so no speed is printed: {checked}")
    count = batch or (8192 if device.startswith("cuda") else 64)
    speed = benchmark.renderer_speed(worlds, device, height, width, count)
    return {"frames_per_second": speed, "batch": count, "height": height, "width": width, "samples": 2, **checked}


if __name__ == "__main__":
    print(json.dumps(env_speed(**json.loads(sys.argv[1]))))
