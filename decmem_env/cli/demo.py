"""`decmem demo`: the main job in one command."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from .common import Bar, add_command, add_model_options, load_model, resolve_device, say

_EXAMPLES = """\
decmem demo                             writes out/demo/demo.mp4, demo.png, summary.json
decmem demo --out /tmp/demo --seed 8000005"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "demo",
        "build a world, remember it, walk away, come back",
        "Show the model a voxel world, let it walk back through it by itself, and compare with the truth.",
        _EXAMPLES,
    )
    add_model_options(parser)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR", help="default: out/demo")
    parser.add_argument("--seed", type=int, default=8_000_000, help="of the world (default: 8000000)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the demo and print its figures."""
    from ..demo import run_demo, summarise, write_demo

    begun = time.monotonic()
    device = resolve_device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    model = load_model(options.checkpoint, device)
    bars: list[Bar] = []

    def ticker(title: str, total: int) -> Any:
        while bars:
            bars.pop().__exit__()
        say(f"{title} ...")
        bars.append(Bar(total, title))
        return bars[-1].add

    demo = run_demo(model, options.seed, steps=options.steps, tell=say, ticker=ticker)
    while bars:
        bars.pop().__exit__()
    summary = summarise(demo, device=device, checkpoint=options.checkpoint, seed=options.seed)
    summary["seconds"] = round(time.monotonic() - begun, 1)
    paths = write_demo(options.out, demo, summary)
    if options.json:
        print(json.dumps(summary, indent=1))
        return 0
    bound, score, floor = (summary[f"{k}_db"] for k in ("autoencoder_bound", "revisit_psnr", "window_only_psnr"))
    say()
    speed = summary["frames_per_second"]
    print(f"generated      {summary['generated_frames']} frames at {speed:.1f} frames/s on {device}")
    if score is None:
        print("revisits       none on this walk: try another --seed")
    else:
        frames, gap = summary["revisit_frames"], summary["longest_gap_frames"]
        print(f"revisits       {frames} frames, places unseen for up to {gap} frames")
        print(f"with memory    {score:.2f} dB   (the autoencoder alone: {bound:.2f} dB)")
        print(f"memory off     {floor:.2f} dB")
    for name, path in paths.items():
        print(f"{name:14} {path}")
    return 0
