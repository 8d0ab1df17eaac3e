"""`python -m decmem_env.trainers.study`: train the variants of the memory question, each for the same steps and data.

Every variant starts from the same weights and sees the same stream of worlds; only what attention may see differs
(DecMem section 5, Figures 7 and 10). `decmem study` compares them.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# What changes against the recipe `decmem` with `fusion=union`.
VARIANTS: dict[str, tuple[str, ...]] = {
    "dense": ("objective.attention=dense",),
    "window": ("objective.attention=window",),
    "gated": ("model.fusion=gated",),
    "union": (),
    "no_alm": ("model.window=0",),
}

_EXAMPLES = """
variants: dense (attention to everything), window (the last frames only), gated (the paper's ALM + gate * SGM), union
(one softmax over window and retrieved blocks), no_alm (union without the window)

examples
  python -m decmem_env.trainers.study --out runs/study --init model/weights/tiny --steps 450
  python -m decmem_env.trainers.study --out runs/study --init model/weights/tiny --steps 450 --at-once 2
  decmem study --runs runs/study --device cuda --json study.json --png study.png

A command repeated with the same --out continues where it stopped; finished variants are skipped.
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    result = argparse.ArgumentParser(
        "python -m decmem_env.trainers.study",
        description="Train the variants of the memory study.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--out", required=True, type=Path, metavar="DIR", help="one folder a variant goes here")
    result.add_argument("--init", required=True, metavar="DIR", help="run or export folder that all start from")
    result.add_argument("--steps", required=True, type=int, metavar="N", help="optimiser steps of each variant")
    result.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS), metavar="V")
    result.add_argument("--stage", default="decmem", help="recipe (default: decmem)")
    result.add_argument("--at-once", type=int, default=1, metavar="N", help="variants trained at the same time")
    result.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for all variants")
    result.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    return result


def command(options: argparse.Namespace, variant: str) -> list[str]:
    """The training command of a variant."""
    settings = ["model.fusion=union", f"run.steps={options.steps}", *options.set, *VARIANTS[variant]]
    chosen = [word for setting in settings for word in ("--set", setting)]
    where = ["--out", str(options.out / variant), "--init", options.init, "--device", options.device]
    return [sys.executable, "-P", "-m", "decmem_env.trainers", options.stage, *where, *chosen]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: that of the first variant that failed, else 0."""
    options = parser().parse_args(arguments)
    if options.steps < 1 or options.at_once < 1:
        print("error: --steps and --at-once: expected at least 1", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    waiting, failed = list(options.variants), 0
    while waiting and not failed:
        group, waiting = waiting[: options.at_once], waiting[options.at_once :]
        with contextlib.ExitStack() as logs:
            running = []
            for variant in group:
                log = logs.enter_context((options.out / f"{variant}.log").open("w")) if len(group) > 1 else None
                print(f"== {variant}{'' if log is None else ': see ' + log.name}", flush=True)
                running.append((variant, subprocess.Popen(command(options, variant), stdout=log, stderr=log)))
            for variant, process in running:
                if process.wait():
                    failed = failed or process.returncode
                    print(f"error: variant {variant} ended with status {process.returncode}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
