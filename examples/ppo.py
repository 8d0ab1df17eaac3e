"""Train PPO in the dream, test it in the true world. `python examples/ppo.py --steps 20000 --out runs/ppo`."""

import argparse
from pathlib import Path

from decmem_env.agents.evaluate import PolicyPlayer, make_rows, play, summarise
from decmem_env.agents.ppo import PPOConfig, train
from decmem_env.agents.scripted import RandomPlayer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--context-frames", type=int, default=25)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/ppo"))
    options = parser.parse_args(arguments)

    config = PPOConfig(
        checkpoint=options.checkpoint,
        steps=options.steps,
        num_envs=options.num_envs,
        context_frames=options.context_frames,
    )
    train(config, options.out)
    truth = make_rows("voxel", config.task, context_frames=options.context_frames)
    worlds = range(9_500_000, 9_500_000 + options.episodes)  # none of these was trained in
    for name, player in (("random", RandomPlayer()), ("ppo", PolicyPlayer(options.out / "policy.zip"))):
        result = summarise(play(truth, player, worlds))
        print(f"{name}: {100 * result['success']:.0f} % [{100 * result['lower']:.0f}, {100 * result['upper']:.0f}]")


if __name__ == "__main__":
    main()
