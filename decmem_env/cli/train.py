"""`decmem train STAGE ...`: hands over to the trainers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_EXAMPLES = "decmem train --help      the stages, their options and examples"


def add_parser(commands: Any) -> None:
    """Add the sub-command to the list of commands; its options belong to the trainers."""
    commands.add_parser("train", help="train a stage: autoencoder, dense_short, dense, decmem, pose", epilog=_EXAMPLES)


def run(arguments: Sequence[str]) -> int:
    """Run a training stage."""
    from ..trainers.__main__ import main

    return int(main(list(arguments)) or 0)
