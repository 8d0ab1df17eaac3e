"""`python -m decmem_env.trainers STAGE`: train without the rest of the package's dependencies."""

from __future__ import annotations

import time

_STARTED = time.monotonic()

import argparse  # noqa: E402
import sys  # noqa: E402

_EXAMPLES = """
stages, in order: autoencoder, dense_short, dense, decmem, pose (debug_* : the same at toy size, on any CPU)

examples
  python -m decmem_env.trainers autoencoder --out runs/ae --max-minutes 4
  python -m decmem_env.trainers dense_short --out runs/short --init runs/ae --max-minutes 4
  python -m decmem_env.trainers decmem --out runs/mem --init runs/dense --max-minutes 6 --set model.fusion=union
  python -m decmem_env.trainers pose --out runs/pose --init runs/mem
  torchrun --nproc-per-node 8 -m decmem_env.trainers dense --out runs/dense --init runs/short

A command repeated with the same --out continues where it stopped.
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    result = argparse.ArgumentParser(
        "python -m decmem_env.trainers",
        description="Train one stage of the tiny model.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("stage", help="a stage's name or a YAML file")
    result.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    result.add_argument("--max-minutes", type=float, metavar="N", help="stop by then: saved, evaluated and exported")
    result.add_argument("--init", metavar="DIR", help="run or export folder to start from")
    result.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change one setting")
    result.add_argument("--resume", metavar="DIR", help="continue another folder's state or compact state in --out")
    result.add_argument("--fresh", action="store_true", help="start afresh even if --out holds a state")
    result.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N")
    result.add_argument("--compact", action="store_true", help="also write compact/, a small resumable state")
    result.add_argument("--profile", action="store_true", help="time the parts of a step, then stop")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parser().parse_args(arguments)
    from .config import ConfigError
    from .files import StateError
    from .stages import run_stage

    try:
        run_stage(
            options.stage,
            options.out,
            options.set,
            options.max_minutes,
            False if options.fresh else options.resume or True,
            options.device,
            options.init,
            options.compact,
            options.profile,
            _STARTED,
        )
    except (ConfigError, StateError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
