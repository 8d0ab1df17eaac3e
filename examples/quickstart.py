"""Quick start: step through a dreamed world and save the last frame. `python examples/quickstart.py`."""

import argparse

import gymnasium as gym
from PIL import Image

import decmem_env  # noqa: F401  (registers DecMem-Minecraft-v0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--out", default="quickstart.png")
    options = parser.parse_args(arguments)

    env = gym.make("DecMem-Minecraft-v0", checkpoint=options.checkpoint)
    frame, info = env.reset(seed=0)  # a fresh voxel world; the model has watched 64 frames of it
    for _ in range(options.frames):
        frame, reward, terminated, truncated, info = env.step(env.action_space.sample())
        if terminated or truncated:
            frame, info = env.reset()
    print(f"pose {info['pose'].round(2)}, {info['memory_frames']} frames in memory")
    Image.fromarray(frame).save(options.out)
    env.close()


if __name__ == "__main__":
    main()
