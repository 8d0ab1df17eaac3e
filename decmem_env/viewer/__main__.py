"""`python -m decmem_env.viewer`."""

from __future__ import annotations

import argparse
import sys

from . import play
from .settings import add_options


def main() -> int:
    """Parse the command line and play."""
    parser = argparse.ArgumentParser(prog="python -m decmem_env.viewer", description="Play. H shows the keys.")
    parser.add_argument("--checkpoint", default="tiny", metavar="C", help="bundled name, folder, hub id, or voxel")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default: auto)")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps a frame (default: the model's)")
    add_options(parser)
    options = parser.parse_args()
    try:
        return play(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
