"""Many worlds in one batched step. `python examples/vector.py --worlds 4`."""

import argparse
import time

import gymnasium as gym

import decmem_env  # noqa: F401


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--worlds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args(arguments)

    envs = gym.make_vec(
        "DecMem-Minecraft-v0",
        num_envs=options.worlds,
        checkpoint=options.checkpoint,
        context_frames=16,
        task="explore",  # 0.1 for every new cell of 2x2 blocks
        obs_size=(64, 64),
        autoreset_mode="SAME_STEP",
    )
    frames, infos = envs.reset(seed=0)  # world i is that of a single environment with seed i
    total, start = 0.0, time.perf_counter()
    for _ in range(options.steps):
        frames, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample())
        total += rewards.sum()
    speed = options.worlds * options.steps / (time.perf_counter() - start)
    print(f"frames {frames.shape}, reward {total:.1f}, {speed:.1f} frames/s")
    envs.close()


if __name__ == "__main__":
    main()
