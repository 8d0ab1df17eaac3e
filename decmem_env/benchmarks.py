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
PROFILED = 40  # steps
MEMORY_FRAMES = 300


def env_speed(
    checkpoint: str = "tiny",
    *,
    memory_frames: int = MEMORY_FRAMES,
    warm_up: int = WARM_UP,
    measured: int = MEASURED,
    profiled: int = PROFILED,
    threads: int = THREADS,
    device: str = "cpu",
    known: bool = False,
) -> dict[str, Any]:
    """Time one environment in this process: through `gym.make`, decode included.

    Args:
        checkpoint: Bundled name, folder or hub id.
        memory_frames: True frames observed before the first step.
        warm_up: Steps that do not count.
        measured: Steps whose median counts.
        profiled: Further steps, whose parts are timed.
        threads: Of torch.
        device: Where the model runs.
        known: Look around on the spot, where memory has seen everything, instead of walking on.

    Returns:
        `frames_per_second` (median step), step times in ms (median, mean, 10 % and 90 %), the configuration, and
        `memory_frames_at_end` (more than before where frames were kept), and `parts`, the mean milliseconds of each
        part of the profiled steps.
    """
    import gymnasium as gym
    import torch

    import decmem_env  # noqa: F401  registers the environments
    from decmem_env.conventions.actions import parse_action_string
    from decmem_env.scene import Scene
    from decmem_env.step_profile import StepProfile

    torch.set_num_threads(threads)
    env = gym.make("DecMem-Minecraft-v0", checkpoint=checkpoint, device=device)
    height, width = env.observation_space.shape[:2]  # type: ignore[index]
    script = parse_action_string("W*10 L*24 W*5 R*6")
    repeats = -(-memory_frames // len(script))
    actions = np.concatenate([script] * repeats)[:memory_frames]
    if known:
        around = parse_action_string("L*24")[:memory_frames]
        actions[len(actions) - len(around) :] = around
    actions[0] = 0.0
    scene = Scene(8_000_000, height, width)
    poses = scene.walk(actions)
    truth = scene.film(actions, poses)
    env.reset(seed=0, options={"frames": truth.frames, "actions": actions, "poses": poses})
    moves = [5] if known else [1, 1, 6, 6, 1, 5, 0, 5]  # walk, turn right, walk, turn left, nothing
    info: dict[str, Any] = {}
    per_step = getattr(env.unwrapped, "frames_per_step", 1)

    def step(t: int) -> float:
        nonlocal info
        start = time.perf_counter()
        _, _, terminated, truncated, info = env.step(moves[t % len(moves)])
        spent = time.perf_counter() - start
        if terminated or truncated:
            total = warm_up + measured + profiled
            raise ValueError(f"the environment ended after {t + 1} steps: the benchmark needs {total}")
        return spent

    times = [step(t) for t in range(warm_up + measured)]
    kept = info["memory_frames"]
    with StepProfile() as profile:
        spent = sum(step(warm_up + measured + t) for t in range(profiled))
    env.close()
    steady = times[warm_up:]
    low, high = np.percentile(steady, [10, 90])
    return {
        "frames_per_second": per_step / statistics.median(steady),
        "step_ms": 1000 * statistics.median(steady),
        "step_ms_mean": 1000 * statistics.fmean(steady),
        "step_ms_10": 1000 * float(low),
        "step_ms_90": 1000 * float(high),
        "parts": profile.parts(spent, profiled),
        "memory_frames": memory_frames,
        "memory_frames_at_end": kept,
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
    checkpoint: str = "tiny",
    *,
    worlds: int = 16,
    episode: int = 256,
    device: str = "cpu",
    memory_budget: int | None = None,
) -> dict[str, Any]:
    """Env steps a second of `gym.make_vec` with random actions: all that a learner would wait for, resets included.

    Episodes of `episode` steps end one after another, evenly spread, and restart in the same step. One whole period is
    timed after one that is not, so every world is reset once; worlds are made before (they stay in memory).

    Args:
        checkpoint: Bundled name, folder or hub id.
        worlds: Environments.
        episode: Steps of an episode.
        device: Where the model runs.
        memory_budget: Bytes for the memories of all worlds; frames beyond it move or are forgotten, which costs time.
    """
    import gymnasium as gym

    import decmem_env  # noqa: F401

    env = gym.make_vec(
        "DecMem-Minecraft-v0",
        num_envs=worlds,
        checkpoint=checkpoint,
        device=device,
        memory_budget=memory_budget,
        max_episode_steps=episode,
        autoreset_mode="SAME_STEP",
        world_seeds=(9_000_000, 9_000_000 + worlds - 1),
    )
    env.action_space.seed(0)
    # Every world is made here, none while the clock runs.
    env.reset(seed=0, options={"world_seed": [9_000_000 + i for i in range(worlds)]})
    due = [[i for i in range(worlds) if i * episode // worlds == t] for t in range(episode)]
    for rows in due:
        if rows:
            mask = np.isin(np.arange(worlds), rows)
            env.reset(options={"reset_mask": mask})
        env.step(env.action_space.sample())
    times, resets = [], 0
    for _ in range(episode):
        start = time.perf_counter()
        *_, truncated, _ = env.step(env.action_space.sample())
        times.append(time.perf_counter() - start)
        resets += int(np.sum(truncated))
    env.close()
    return {
        "frames_per_second": worlds * episode / sum(times),
        "step_ms": 1000 * statistics.median(times),
        "slowest_step_ms": 1000 * max(times),
        "resets": resets,
        "worlds": worlds,
        "episode": episode,
        "checkpoint": checkpoint,
    }


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
