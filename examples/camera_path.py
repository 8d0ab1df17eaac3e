"""Pose control: fly a camera around the start, through anything. `python examples/camera_path.py --out path.mp4`."""

import argparse

import gymnasium as gym
import numpy as np

import decmem_env  # noqa: F401
from decmem_env.conventions.actions import noop
from decmem_env.conventions.clips import Clip, write_clip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--out", default="camera_path.mp4")
    options = parser.parse_args(arguments)

    env = gym.make("DecMem-Minecraft-v0", checkpoint=options.checkpoint, action_mode="pose")
    _, info = env.reset(seed=1)
    start, frames, poses = info["pose"], [], []
    for angle in np.linspace(0.0, 2.0 * np.pi, options.frames):
        # A circle of two blocks, one block above the ground, looking outwards: x, y, z, pitch, yaw.
        offset = [2.0 * np.sin(-angle), 1.0, 2.0 * np.cos(angle), 10.0, np.degrees(angle)]
        pose = np.array([*start[:3], 0.0, 0.0]) + offset
        frame, _, _, _, info = env.step(pose)
        frames.append(frame)
        poses.append(info["pose"])
    clip = Clip(np.stack(frames), np.repeat(noop()[None], options.frames, 0), np.stack(poses))
    write_clip(options.out, clip)
    print(f"{options.out}: {len(frames)} frames")
    env.close()


if __name__ == "__main__":
    main()
