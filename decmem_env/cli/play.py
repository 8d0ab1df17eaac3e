"""`decmem play`: the pygame viewer."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .common import CommandError, add_command, add_model_options

_EXAMPLES = """\
decmem play                                     the bundled world
decmem play --world-seed 8000001                another one
decmem play --context "L*24"                    one look around to remember, instead of a tour
decmem play --checkpoint voxel                  the true world
decmem play --script "W*20 L*24" --record walk  walk by script, record actions and video
decmem play --replay walk                       run a recording again and compare every frame"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    from ..viewer import add_options

    parser = add_command(
        commands,
        "play",
        "stand in the world: WASD, mouse, place, break",
        "Open the viewer. H shows the keys.",
        _EXAMPLES,
    )
    add_model_options(parser)
    add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Open the viewer."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame  # noqa: F401
    except ImportError:
        raise CommandError('the viewer needs pygame: pip install "decmem-env[play]"') from None
    from ..viewer import play

    return play(options)
