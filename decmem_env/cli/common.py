"""What the sub-commands share: errors, ranges, devices, progress."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any


class CommandError(Exception):
    """Bad input: one line that says what is wrong and how to mend it."""


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help that keeps the examples' line breaks and has room for option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)


def add_command(commands: Any, name: str, help_line: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Add a sub-command whose help ends with examples."""
    return commands.add_parser(
        name,
        help=help_line,
        description=description,
        epilog="examples\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines()),
        formatter_class=Formatter,
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that runs the model."""
    parser.add_argument(
        "--checkpoint", default="tiny", metavar="C", help="bundled name, folder or hub id (default: tiny)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default: auto)")
    parser.add_argument("--steps", type=positive, metavar="N", help="denoising steps a frame (default: the model's)")


def positive(text: str) -> int:
    """Argument type: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def seed_range(text: str) -> range:
    """Argument type: `A-B` (both included) or a single seed."""
    first, dash, last = text.partition("-")
    try:
        start, stop = int(first), int(last if dash else first)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a range of seeds: write for example 8000000-8000063"
        ) from None
    if start < 0 or stop < start:
        raise argparse.ArgumentTypeError(f"{text!r}: the first seed must not be above the last, nor negative")
    return range(start, stop + 1)


def resolve_device(name: str) -> str:
    """Turn `auto` into what this machine has; refuse a GPU that is not there.

    Raises:
        CommandError: CUDA was asked for and is not available.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    if name.startswith("cuda") and not available:
        raise CommandError("--device cuda: this torch sees no CUDA device; use --device cpu, or run `decmem doctor`")
    if name != "cpu" and not name.startswith("cuda"):
        raise CommandError(f"--device {name}: expected cpu, cuda, cuda:N or auto")
    return name


def own_device(name: str) -> str:
    """The device of this process: under torchrun each rank takes its own GPU, and makes it the current one."""
    import os

    import torch

    device = resolve_device(name)
    rank = os.environ.get("LOCAL_RANK")
    if device == "cuda" and rank is not None:
        device = f"cuda:{rank}"
        torch.cuda.set_device(device)
    return device


def run_on_gpus(count: int, arguments: Sequence[str], device: str) -> int:
    """Run this command again in `count` processes under torchrun; returns its exit code.

    Raises:
        CommandError: Fewer GPUs than asked for.
    """
    import subprocess

    import torch

    if resolve_device(device).startswith("cuda") and torch.cuda.device_count() < count:
        raise CommandError(f"NUM_GPUS {count}: this machine has {torch.cuda.device_count()}; lower it")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.run([*command, "-m", "decmem_env.cli", *arguments], check=False).returncode


def load_model(checkpoint: str, device: str, memory_budget: int | None = None) -> Any:
    """Load a `WorldModel`; its own errors name the checkpoint and the mend."""
    from ..model import WorldModel

    return WorldModel.from_pretrained(checkpoint, device=device, memory_budget=memory_budget)


def generous_budget(device: str) -> int:
    """Bytes of session memory for a test that must not forget: half of what is free."""
    import os

    import torch

    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(torch.device(device))[0] // 2
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 4 << 30


def say(text: str = "") -> None:
    """A line for people: stderr, so that stdout stays clean for results."""
    print(text, file=sys.stderr, flush=True)


class Bar:
    """A progress bar on stderr with a time estimate; plain lines where stderr is no terminal."""

    def __init__(self, total: int, title: str, unit: str = "frame") -> None:
        from tqdm import tqdm

        self._quiet = not sys.stderr.isatty()
        self._title, self._unit, self._total, self._done = title, unit, total, 0
        self._start = self._last = time.monotonic()
        self._bar = tqdm(total=total, desc=title, unit=unit, disable=self._quiet, leave=True, dynamic_ncols=True)

    def add(self, count: int = 1) -> None:
        """Count finished items."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._quiet and now - self._last > 15:
            self._last = now
            left = (now - self._start) / max(self._done, 1) * (self._total - self._done)
            say(f"{self._title}: {self._done} of {self._total} {self._unit}s, about {left:.0f} s left")

    def title(self, text: str) -> None:
        """Change what is being done."""
        self._title = text
        self._bar.set_description(text, refresh=False)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
