"""The true world above the dream, frame by frame, on one walk. `python examples/truth_and_dream.py`."""

import argparse

import gymnasium as gym
import numpy as np
from PIL import Image

import decmem_env  # noqa: F401
from decmem_env.conventions.actions import parse_action_string


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--walk", default="W*12 L*12 W*12 R*12", help="W S A D walk, L R turn, U J look")
    parser.add_argument("--world", type=int, default=9_000_000)
    parser.add_argument("--out", default="truth_and_dream.png")
    options = parser.parse_args(arguments)

    dream = gym.make("DecMem-Minecraft-v0", checkpoint=options.checkpoint, action_mode="vector")
    truth = gym.make("DecMem-Voxel-v0", action_mode="vector")
    for env in (dream, truth):
        env.reset(seed=0, options={"world_seed": options.world})
    actions = parse_action_string(options.walk)
    columns = []
    for t, action in enumerate(actions):
        seen, known = dream.step(action)[0], truth.step(action)[0]
        if t % max(1, len(actions) // 6) == 0:
            columns.append(np.concatenate([known, seen]))
    Image.fromarray(np.concatenate(columns, 1)).save(options.out)
    print(f"{options.out}: truth above, dream below, {len(columns)} of {len(actions)} frames")
    dream.close(), truth.close()


if __name__ == "__main__":
    main()
