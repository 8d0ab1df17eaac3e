"""`decmem data make | index`: clips in WorldMem's format, and the CSV that names them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .common import Bar, Formatter, add_command, positive, resolve_device, say, seed_range

_EXAMPLES = """\
decmem data make --out clips --clips 64 --frames 300 --seeds 0-6999999
decmem data make --out clips --clips 8 --frames 300 --seeds 8000000-8000007 --kind aba
decmem data index --root clips --seed 42
decmem data index --root /data/minecraft --seed 42        (the real WorldMem set, too)"""

_MAKE = """\
Render voxel worlds to NAME.mp4 + NAME.npz (actions, poses) under OUT/training, OUT/validation or OUT/test by the
seed of the world: 0-6999999 training, 7000000-7000999 validation, 8000000-8000999 test."""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands, "data", "make clips of voxel worlds, index clips", "Clips in WorldMem's format.", _EXAMPLES
    )
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    make = parts.add_parser("make", help="render clips", description=_MAKE, formatter_class=Formatter)
    make.add_argument("--out", required=True, type=Path, metavar="DIR")
    make.add_argument("--clips", type=positive, default=16, metavar="N", help="how many (default: 16)")
    make.add_argument("--frames", type=positive, default=300, metavar="T", help="frames of each (default: 300)")
    make.add_argument(
        "--seeds", type=seed_range, default=range(0, 7_000_000), metavar="A-B", help="worlds to draw from"
    )
    make.add_argument("--kind", default="mixed", help="trajectory kind (default: mixed)")
    make.add_argument("--height", type=positive, default=96)
    make.add_argument("--width", type=positive, default=160)
    make.add_argument("--seed", type=int, default=0, help="of the choice of worlds and paths (default: 0)")
    make.add_argument("--device", default="auto", help="cpu, cuda or auto")
    make.set_defaults(run=run_make)
    index = parts.add_parser(
        "index",
        help="write the CSV of each split",
        description="Pair MP4 with NPZ: ROOT/training gives ROOT/train.csv, validation val.csv, test test.csv.",
        formatter_class=Formatter,
    )
    index.add_argument("--root", required=True, type=Path, metavar="DIR")
    index.add_argument("--seed", type=int, default=42, help="of the row order (default: 42)")
    index.set_defaults(run=run_index)


def run_make(options: argparse.Namespace) -> int:
    """Render clips."""
    from ..datasets import make_clips

    device = resolve_device(options.device)
    with Bar(options.clips, "rendering clips", "clip") as bar:
        paths = make_clips(
            options.out,
            clips=options.clips,
            frames=options.frames,
            seeds=options.seeds,
            kind=options.kind,
            height=options.height,
            width=options.width,
            seed=options.seed,
            device=device,
            progress=bar.add,
        )
    say(f"{len(paths)} clips under {options.out}; next: decmem data index --root {options.out}")
    return 0


def run_index(options: argparse.Namespace) -> int:
    """Write the CSV files."""
    from ..datasets import index_clips

    for path, rows in index_clips(options.root, options.seed).items():
        print(f"{path}: {rows} rows")
    return 0
