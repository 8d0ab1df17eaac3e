"""`decmem revisit`: the scripted revisit test of any checkpoint against the voxel truth."""

from __future__ import annotations

import argparse
import time
from functools import partial
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
from .jobs import share, threads_each
from .parts import Conclusion, LongTest, in_parts

KINDS = ("turn_away", "aba", "abca", "look360", "loop")

_EXAMPLES = """\
decmem revisit --worlds 8000000-8000063 --gap 60 --json r.json --html r.html --device cuda     the full table
decmem revisit --worlds 7000000-7000003 --kinds turn_away --seeds 1                            a quick look on a CPU
decmem revisit --checkpoint runs/decmem/ema --window-checkpoint runs/window/ema --json r.json
decmem revisit --worlds 8000000-8000007 --memory memory,dense --json dense.json                dense attention beside it
decmem revisit --worlds 8000000-8000007 --long-run --json long.json --jobs 8 --device cpu      1,000 generated frames
decmem revisit --worlds 8000000-8000015 --beside --json b.json                                 frames beside known ones
decmem revisit --worlds 8000000-8000063 --edits --seeds 1 --json e.json --sheet e.png          blocks broken and placed
decmem revisit --worlds 8000000-8000015 --new-ground --json n.json --sheet n.png               beyond all that was seen
decmem revisit --worlds 8000000-8000015 --stroll --json s.json --sheet s.png                   walk about, as in play

Worlds: choose on 7000000-7000999, report on 8000000-8000999. The same worlds and paths come out on every device.

Long tests: --json F is written after every batch, with the worlds done so far (details: done_worlds, of_worlds). Ctrl-C
and SIGTERM end the test after its batch, a second one at once. The same command goes on where a cut one stopped, from
the folder F.partial, which is gone at the end."""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "revisit",
        "measure memory: come back to places seen",
        "Let the model watch true frames, walk away and come back, and compare with the truth: exact and near revisits,"
        "\nthe autoencoder bound, the nearest true frame copied, rows without memory, the movement gate, sharpness.",
        _EXAMPLES,
    )
    add_model_options(parser)
    parser.add_argument("--worlds", type=seed_range, default=range(7_000_000, 7_000_064), metavar="A-B")
    parser.add_argument("--limit-worlds", type=positive, metavar="N", help="only the first N of them")
    parser.add_argument("--gap", type=positive, metavar="G", help="frames away (default: 60; of --edits: 30)")
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="K,K", help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="noise seeds (default: 3)")
    parser.add_argument(
        "--memory",
        default="memory",
        metavar="M,M",
        help="what the model may use: memory, content, dense, decay, off, window; a second one becomes a row beside it",
    )
    parser.add_argument("--window-checkpoint", metavar="C", help="a model trained without memory, as a third floor")
    parser.add_argument("--no-floors", action="store_true", help="leave out the rows without memory (faster)")
    parser.add_argument("--long-run", action="store_true", help="a loop of true frames, then 1,000 generated ones")
    parser.add_argument(
        "--beside", action="store_true", help="single frames at set turns, tilts and steps from a remembered one"
    )
    parser.add_argument("--edits", action="store_true", help="the model breaks and places blocks, leaves, comes back")
    parser.add_argument("--new-ground", action="store_true", help="turn away from all that was seen and walk on there")
    parser.add_argument("--stroll", action="store_true", help="walk about, blocks beside all that a tour has shown")
    parser.add_argument("--per-world", type=positive, default=4, metavar="N", help="with --edits: of each (default: 4)")
    parser.add_argument(
        "--sheet", type=Path, metavar="F", help="with --edits, --new-ground or --stroll: what was seen (PNG)"
    )
    parser.add_argument("--batch", type=positive, metavar="N", help="sessions in one forward pass")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="processes that share the work (CPU)")
    parser.add_argument("--share", type=share, help=argparse.SUPPRESS)  # what each of them does
    parser.add_argument(
        "--budget-gib",
        type=float,
        metavar="G",
        help="for the memory (default: half of what is free; say less to share a GPU)",
    )
    parser.add_argument("--json", type=Path, metavar="F", help="write the records here")
    parser.add_argument("--html", type=Path, metavar="F", help="write the page here")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the test, print the table, write the files."""
    kinds = _choices("--kinds", options.kinds, KINDS)
    modes = _choices("--memory", options.memory, ("memory", "every", "content", "dense", "decay", "off", "window"))
    if options.edits and (options.long_run or options.html is not None):
        raise CommandError("--edits goes without --long-run and --html: its pictures come with --sheet F.png")
    if options.beside and (options.edits or options.long_run or options.html is not None):
        raise CommandError("--beside goes without --edits, --long-run and --html")
    if options.beside and (len(modes) > 1 or options.window_checkpoint):
        raise CommandError("--beside scores one row: give a single --memory and no --window-checkpoint")
    if options.new_ground and (options.beside or options.edits or options.long_run):
        raise CommandError("--new-ground goes without --beside, --edits and --long-run")
    if options.stroll and (options.beside or options.edits or options.long_run or options.new_ground or options.html):
        raise CommandError("--stroll goes without --beside, --edits, --long-run, --new-ground and --html")
    if options.sheet is not None and not (options.edits or options.new_ground or options.stroll):
        raise CommandError("--sheet belongs to --edits, --new-ground and --stroll: other tests have a page, --html")
    for path in (options.json, options.html, options.sheet):
        if path is not None and path.is_dir():
            raise CommandError(f"{path} is a folder: name a file")
    device = resolve_device(options.device)
    if options.jobs > 1 and (options.json is None or options.beside or device.startswith("cuda")):
        raise CommandError("--jobs needs --json F and --device cpu, and goes without --beside")
    budget = generous_budget(device) if options.budget_gib is None else int(options.budget_gib * 2**30)
    budget //= 2 if options.window_checkpoint else 1
    model = load_model(options.checkpoint, device, budget)
    forgetful = load_model(options.window_checkpoint, device, budget) if options.window_checkpoint else None

    import torch

    from ..revisit import standard_contenders
    from ..rollout import frame_size
    from ..worlds import Renderer

    begun = time.monotonic()
    seeds = list(options.worlds)[: options.limit_worlds]
    rows = standard_contenders(model, modes, forgetful, floors=not options.no_floors)
    height, width = frame_size(model)
    renderer = Renderer(height=height, width=width, device=device)
    if options.beside:
        return _beside(options, rows[0], seeds, renderer, device)
    with Bar(len(seeds), "building worlds and walks", "world") as bar:
        if options.edits:
            test = _edits(options, seeds, renderer, rows, device, bar)
        elif options.new_ground:
            test = _new_ground(options, seeds, renderer, rows, device, bar)
        elif options.stroll:
            test = _stroll(options, seeds, renderer, rows, device, bar)
        else:
            test = _revisits(options, seeds, kinds, renderer, rows, device, bar)
    sessions = options.batch or _sessions(device)
    if options.jobs > 1:  # small batches, so that all have something to do; the figures' hardware is theirs
        torch.set_num_threads(threads_each(options.jobs))
        sessions = min(sessions, options.seeds * max(1, len(test.measure.walks) // (2 * options.jobs)))
    facts = _facts(options, seeds, rows, device)
    code = in_parts(test, options.json, facts, sessions, device, options.jobs, options.share)
    say(f"{time.monotonic() - begun:.0f} s in all")
    return code


def _beside(options: argparse.Namespace, row: Any, seeds: list[int], renderer: Any, device: str) -> int:
    """Single frames beside remembered ones."""
    from ..results import write_json
    from ..revisit.beside import beside_records, beside_table, measure

    with Bar(len(seeds), "frames beside known ones", "world") as bar:
        found = beside_records(measure(row, seeds, renderer, options.steps, bar.add), row.name, device=device)
    print(beside_table(found, row.name))
    if options.json is not None:
        print(write_json(options.json, found))
    return 0


def _revisits(
    options: argparse.Namespace,
    seeds: list[int],
    kinds: tuple[str, ...],
    renderer: Any,
    rows: list[Any],
    device: str,
    bar: Bar,
) -> LongTest:
    """The table of revisits, or the long run."""
    from ..report import write_html
    from ..revisit import Revisits, cells, long_run_records, records, text_table
    from ..revisit.worlds import build_course

    gap = options.gap or 60
    course = build_course(seeds, kinds, gap, long_run=options.long_run, progress=bar.add)
    if not course.scripts:
        raise CommandError(f"no walk in these worlds returns after {gap} frames: choose other --worlds or --gap")
    if course.missing:
        pairs = len(course.missing) + len(course.scripts)
        say(f"no walk found for {len(course.missing)} of {pairs} (world, kind) pairs")

    def conclude(outcome: Any) -> Conclusion:
        table = cells(outcome)
        found = long_run_records(outcome, device=device) if options.long_run else []
        found += records(outcome, table, device=device)

        def draw(found: list[dict[str, Any]]) -> None:
            if options.html is not None:
                print(write_html(options.html, outcome, table, found))

        spent = ", ".join(f"{name} {value:.0f} s" for name, value in outcome.seconds.items())
        return Conclusion(found, partial(text_table, outcome, table), f"time: {spent}", draw)

    measure = Revisits(course.scripts, course.blocks, renderer, rows, gap, options.seeds, options.steps)
    return LongTest(measure, conclude)


def _edits(
    options: argparse.Namespace, seeds: list[int], renderer: Any, rows: list[Any], device: str, bar: Bar
) -> LongTest:
    """The edits measure: table, records, contact sheet."""
    from ..pictures import write_png
    from ..revisit.edit_scripts import UNSEEN
    from ..revisit.edit_sheet import edit_sheet
    from ..revisit.edits import Edits, edit_records, edit_table
    from ..revisit.worlds import build_edit_course

    unseen = options.gap or UNSEEN
    blocks, scripts = build_edit_course(seeds, options.per_world, unseen, bar.add)
    if not scripts:
        raise CommandError(f"no edit in these worlds is left for {unseen} frames: choose other --worlds or --gap")

    def conclude(outcome: Any) -> Conclusion:
        found = edit_records(outcome, device=device)

        def draw(_: list[dict[str, Any]]) -> None:
            if options.sheet is not None and outcome.strips:
                print(write_png(options.sheet, edit_sheet(outcome)))

        count = outcome.left_out + len(outcome.strips)
        left_out = f"{outcome.left_out} of {count} left out: the edit is seen in between, or hardly on return"
        return Conclusion(found, partial(edit_table, found), left_out if outcome.left_out else "", draw)

    return LongTest(Edits(scripts, blocks, renderer, rows, unseen, options.seeds, options.steps), conclude)


def _new_ground(
    options: argparse.Namespace, seeds: list[int], renderer: Any, rows: list[Any], device: str, bar: Bar
) -> LongTest:
    """Beyond all that was seen: table, records, contact sheet or page."""
    from ..pictures import write_png
    from ..revisit.new_ground import NewGround, build_new_ground
    from ..revisit.new_ground_report import new_ground_records, new_ground_sheet, new_ground_table, write_page

    blocks, scripts = build_new_ground(seeds, bar.add)

    def conclude(outcome: Any) -> Conclusion:
        found = new_ground_records(outcome, device=device)

        def draw(found: list[dict[str, Any]]) -> None:
            if options.sheet is not None:
                print(write_png(options.sheet, new_ground_sheet(outcome)))
            if options.html is not None:
                print(write_page(options.html, outcome, found))

        return Conclusion(found, partial(new_ground_table, found), "", draw)

    return LongTest(NewGround(scripts, blocks, renderer, rows, options.steps), conclude)


def _stroll(
    options: argparse.Namespace, seeds: list[int], renderer: Any, rows: list[Any], device: str, bar: Bar
) -> LongTest:
    """Among things that were seen from elsewhere: table, records, contact sheet."""
    from ..pictures import write_png
    from ..revisit.stroll import Strolls, build_strolls, stroll_records, stroll_sheet, stroll_table

    blocks, scripts = build_strolls(seeds, bar.add)

    def conclude(outcome: Any) -> Conclusion:
        found = stroll_records(outcome, device=device)

        def draw(_: list[dict[str, Any]]) -> None:
            if options.sheet is not None:
                print(write_png(options.sheet, stroll_sheet(outcome)))

        return Conclusion(found, partial(stroll_table, found), "", draw)

    return LongTest(Strolls(scripts, blocks, renderer, rows, options.steps), conclude)


def _sessions(device: str) -> int:
    return 192 if device.startswith("cuda") else 8


def _facts(options: argparse.Namespace, seeds: list[int], rows: list[Any], device: str) -> dict[str, object]:
    """What the figures depend on: a test that was cut is continued by the same command only."""
    from ..results import commit, hardware

    names = ("gap", "kinds", "memory", "seeds", "steps", "long_run", "edits", "new_ground", "stroll", "per_world")
    facts: dict[str, object] = {f"--{name.replace('_', '-')}": getattr(options, name) for name in names}
    facts["--worlds"] = f"{seeds[0]}-{seeds[-1]}"
    facts |= {f"row {row.name}": f"checkpoint {row.model.sha256[:16]}" for row in rows}
    return {**facts, "hardware": hardware(device), "commit": commit()}


def _choices(option: str, text: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [part for part in chosen if part not in allowed]
    if unknown or not chosen:
        raise CommandError(f"{option} {text!r}: expected a comma-separated choice of {', '.join(allowed)}")
    return chosen
