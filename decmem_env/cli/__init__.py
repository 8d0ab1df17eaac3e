"""The `decmem` command: one sub-command, one module, one function; heavy imports happen inside it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import bench, checkpoint, data, demo, doctor, evaluate, infer, play, pose, revisit, rollout, study, train
from .common import CommandError, Formatter

_EPILOG = """\
start here
  decmem doctor                 what works on this machine, and how to get what does not
  decmem demo --out out/demo    build a world, remember it, walk away, come back: video, picture, figures
  decmem play                   stand in it yourself

`decmem COMMAND --help` shows the options and examples of a command."""

_COMMANDS = (demo, play, rollout, revisit, study, infer, evaluate, train, data, checkpoint, bench, pose, doctor)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="decmem",
        description="A neural world with memory: play it, train agents in it, train it, measure it.",
        epilog=_EPILOG,
        formatter_class=Formatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in _COMMANDS:
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; those of the process when None.

    Returns:
        0 for success, 1 where a check failed, 2 for bad input, 130 when interrupted (143 by SIGTERM).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    if arguments[:1] == ["train"]:
        # The trainers read their own options, so that a field can be overridden by any name.
        return _guarded(lambda: train.run(arguments[1:]))
    options = parser.parse_args(arguments)
    options.arguments = arguments  # for commands that start themselves again on several GPUs
    if options.version:
        from importlib.metadata import version

        print(f"decmem-env {version('decmem-env')}")
        return 0
    if options.command is None:
        parser.print_help()
        return 0
    return _guarded(lambda: options.run(options))


def _guarded(call: object) -> int:
    """Turn bad input into one line on stderr; anything else stays a traceback, because it is our fault."""
    try:
        return int(call() or 0)  # type: ignore[operator]
    except (CommandError, ValueError, FileNotFoundError, PermissionError, IsADirectoryError, FileExistsError) as error:
        text = " ".join(str(error).split())
        print(f"decmem: error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("decmem: interrupted; nothing half-written was left behind", file=sys.stderr)
        return 130
