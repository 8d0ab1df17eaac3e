"""`decmem pose`: score poses from the model against the true physics."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .common import (
    Bar,
    CommandError,
    add_command,
    add_model_options,
    generous_budget,
    load_model,
    positive,
    resolve_device,
    say,
    seed_range,
)

_EXAMPLES = """\
decmem pose --checkpoint runs/pose                          the bar: 300 steps, 32 test worlds
decmem pose --checkpoint runs/pose --seeds 7000000-7000007  while choosing (validation worlds)
decmem pose --checkpoint runs/pose --methods true_open,dream_open --json docs/results/pose.json

true: the model sees true frames; dream: its own, after it observed the true walk. open: from the true poses, the errors
of the predicted steps add up; closed: from the predicted poses. Dead reckoning (kinematic) is printed beside them."""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "pose",
        "score poses from the model (walls stop the player) against the true physics",
        "Walks that run into walls, their poses predicted from what the model sees.",
        _EXAMPLES,
    )
    parser.add_argument(
        "--seeds", type=seed_range, default=range(8_000_000, 8_000_032), metavar="A-B", help="worlds, one walk each"
    )
    parser.add_argument("--frames", type=positive, default=300, metavar="N", help="steps of a walk (default: 300)")
    parser.add_argument(
        "--methods", metavar="M,M", help="of true_open, true_closed, dream_open, dream_closed (default: all)"
    )
    parser.add_argument("--json", type=Path, metavar="F.json", help="also write the records, and F.md beside them")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Walk, predict, compare; 1 where a bar is missed."""
    from ..pose_score import METHODS, Scorer, contact_walks, reckoned
    from ..pose_score import records as pose_records
    from ..predicted_player import NO_PREDICTOR
    from ..results import page, write_results

    methods = tuple(options.methods.split(",")) if options.methods else METHODS
    if unknown := sorted(set(methods) - set(METHODS)):
        raise CommandError(f"--methods {unknown[0]}: expected some of {', '.join(METHODS)}")
    device = resolve_device(options.device)
    model = load_model(options.checkpoint, device, generous_budget(device))
    if model.pose_predictor is None:
        raise CommandError(f"--checkpoint {options.checkpoint}: it has no {NO_PREDICTOR}")
    say(f"drawing {len(options.seeds)} walks of {options.frames} steps")
    walks = contact_walks(options.seeds, options.frames)
    results = {"kinematic": reckoned(walks)}
    with Bar(len(walks.worlds) * walks.actions.shape[1] * len(methods), "walking") as bar:
        scorer = Scorer(model, walks, bar.add, steps=options.steps)
        for method in methods:
            bar.title(method)
            results[method] = scorer.run(method)
    records = pose_records(walks, results, device)
    print(page(records, "Poses from the model"))
    if options.json is not None:
        write_results(options.json, records, "Poses from the model")
    return 0 if all(item["met"] is not False for item in records) else 1
