"""`decmem play`: the pygame viewer."""

from __future__ import annotations

import argparse
from typing import Any

from .common import CommandError, add_command, add_model_options

_EXAMPLES = """\
decmem play                          the bundled world
decmem play --world-seed 8000001     another one
decmem play --replay session.json    what was recorded"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "play",
        "stand in the world: WASD, mouse, place, break",
        "Open the viewer. H shows the keys.",
        _EXAMPLES,
    )
    add_model_options(parser)
    parser.add_argument("--world-seed", type=int, default=8_000_000, help="voxel world to start from")
    parser.add_argument("--replay", metavar="FILE", help="play a recorded action log")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Open the viewer."""
    try:
        import pygame  # noqa: F401
    except ImportError:
        raise CommandError('the viewer needs pygame: pip install "decmem-env[play]"') from None
    from ..viewer import play

    return int(play(options) or 0)
