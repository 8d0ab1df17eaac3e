"""One past, several futures: snapshot, restore and fork a dreamed world. `python examples/fork.py`."""

import argparse

import gymnasium as gym
import numpy as np
from PIL import Image

import decmem_env  # noqa: F401


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", default="fork.png")
    options = parser.parse_args(arguments)

    env = gym.make("DecMem-Minecraft-v0", checkpoint=options.checkpoint).unwrapped
    env.reset(seed=2)
    kept = env.snapshot()
    for _ in range(options.steps):
        first, *_ = env.step(1)  # forward
    env.restore(kept)
    for _ in range(options.steps):
        again, *_ = env.step(1)
    print("the same future twice:", np.array_equal(first, again))

    env.restore(kept)
    futures = []
    for child, action in zip(env.fork(3), (5, 1, 6), strict=True):  # turn left, walk on, turn right
        for _ in range(options.steps):
            frame, *_ = child.step(action)
        futures.append(frame)
        child.close()
    Image.fromarray(np.concatenate(futures, 1)).save(options.out)


if __name__ == "__main__":
    main()
