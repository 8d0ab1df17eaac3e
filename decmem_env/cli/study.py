"""`decmem study`: what the variants of the memory remember, and where their attention goes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from .common import (
    Bar,
    CommandError,
    add_command,
    generous_budget,
    load_model,
    positive,
    resolve_device,
    say,
    seed_range,
)

_EXAMPLES = """\
python -m decmem_env.trainers.study --out runs/study --init model/weights/tiny --steps 450    train the variants first
decmem study --runs runs/study --device cuda --json study.json --png study.png
decmem study --runs runs/study --worlds 7000000-7000000 --frames 100                          a quick look on a CPU"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "study",
        "compare kinds of memory",
        "Dense attention, a window, the paper's memory and others, trained alike, along 1,000 generated frames: PSNR,"
        "\nSSIM, sharpness, shares of attention in small and large weights, time of a step.",
        _EXAMPLES,
    )
    parser.add_argument("--runs", type=Path, required=True, metavar="DIR", help="folder of the trained variants")
    parser.add_argument("--worlds", type=seed_range, default=range(7_000_000, 7_000_008), metavar="A-B")
    parser.add_argument("--frames", type=positive, default=1000, metavar="N", help="generated (default: 1000)")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="noise seeds (default: 1)")
    parser.add_argument("--batch", type=positive, metavar="N", help="sessions in one forward pass")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument("--json", type=Path, metavar="F", help="write the records here")
    parser.add_argument("--png", type=Path, metavar="F", help="draw the curves here")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the comparison, print the tables, write the files."""
    from .. import study
    from ..results import write_json
    from ..revisit import evaluate, frames_to_generate, long_run_records
    from ..revisit.truth import Truth
    from ..revisit.worlds import build_course
    from ..rollout import frame_size
    from ..worlds import Renderer

    device = resolve_device(options.device)
    budget = generous_budget(device) // (len(study.MODES) + 1)
    rows = study.contenders(options.runs, lambda folder: load_model(folder, device, budget))
    seeds = list(options.worlds)
    begun = time.monotonic()
    with Bar(len(seeds), "building worlds and walks", "world") as bar:
        course = build_course(seeds, (), 0, long_run=True, progress=bar.add)
    scripts = [script.cut(options.frames) for script in course.scripts]
    if not scripts:
        raise CommandError("no loop fits into these worlds: choose other --worlds")
    height, width = frame_size(rows[0].model)
    renderer = Renderer(height=height, width=width, device=device)
    total = frames_to_generate(scripts, rows, options.seeds) + len(rows) * scripts[0].generated
    names = ", ".join(row.name for row in rows)
    say(f"{len(rows)} variants ({names}), {len(scripts)} worlds: {total} frames to generate on {device}")
    attention = {}
    with Bar(total, "generating") as bar:
        seen = 0

        def report(name: str, done: int, _: int) -> None:
            nonlocal seen
            bar.title(f"generating, {name}")
            bar.add(done - seen)
            seen = done

        outcome = evaluate(
            scripts,
            course.blocks,
            renderer,
            rows,
            gap=60,
            seeds=options.seeds,
            sessions_per_batch=options.batch or (64 if device.startswith("cuda") else 4),
            report=report,
        )
        frames = Truth(scripts[:1], course.blocks, renderer).rgb[0, : scripts[0].context].cpu().numpy()
        for row in rows:
            bar.title(f"attention, {row.name}")
            attention[row.name] = study.watch(row, scripts[0], frames, bar.add)
    found = [*study.study_records(outcome, attention, device=device), *long_run_records(outcome, device=device)]
    print(study.text(outcome, attention))
    say(f"{time.monotonic() - begun:.0f} s in all")
    if options.json is not None:
        print(write_json(options.json, found))
    if options.png is not None:
        if study.draw(options.png, outcome, attention):
            print(options.png)
        else:
            say("no picture: pip install matplotlib draws it")
    return 0
