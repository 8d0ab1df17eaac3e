"""`decmem doctor`: what works on this machine, and how to get what does not."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .common import add_command

_EXAMPLES = """\
decmem doctor           a table for people
decmem doctor --json    the same for scripts; exit code 1 when something needed is missing"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "doctor",
        "check this machine",
        "Check Python, torch, the device, the compiler, the renderer, the optional parts and the bundled weights.",
        _EXAMPLES,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings; 1 when something needed is missing."""
    from ..doctor import examine

    findings = examine()
    if options.json:
        print(json.dumps([vars(item) for item in findings], indent=1))
    else:
        width = max(len(item.name) for item in findings)
        marks = {True: "ok  ", False: "MISS", None: "--  "}
        for item in findings:
            print(f"{marks[item.ok]} {item.name:{width}}  {item.found}")
            if not item.ok and item.mend:
                print(f"     {'':{width}}  -> {item.mend}")
    return 1 if any(item.ok is False for item in findings) else 0
