"""Parts of a long test by several processes of the same command: each does its share and leaves it in F.partial."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO

from .common import CommandError
from .stopping import Stop

_POLL = 0.5  # seconds


def threads_each(jobs: int) -> int:
    """Threads of each of so many processes on this machine."""
    return max(1, (os.cpu_count() or jobs) // jobs)


def run_shares(jobs: int, tell: Callable[[], None], stop: Stop) -> None:
    """Run this process's command `jobs` times, each with a share of the batches, and wait for all of them.

    Args:
        jobs: Processes; each computes with its part of the cores.
        tell: Called from time to time.
        stop: When asked, the processes finish their batches and end, too.

    Raises:
        CommandError: A process failed; the others are stopped.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads_each(jobs))}
    running: dict[subprocess.Popen[bytes], IO[bytes]] = {}
    try:
        for number in range(jobs):
            words: IO[bytes] = tempfile.TemporaryFile()
            command = [sys.executable, "-m", "decmem_env.cli", *sys.argv[1:], "--share", f"{number}/{jobs}"]
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=words, env=environment, start_new_session=True
            )
            running[process] = words
        told = False
        while any(process.poll() is None for process in running):
            failed = next((p for p in running if p.poll() not in (None, 0, 128 + signal.SIGTERM)), None)
            if failed is not None:
                break
            if stop.asked and not told:
                _signal(running, signal.SIGTERM)
                told = True
            tell()
            time.sleep(_POLL)
        for process, words in running.items():
            if process.poll() not in (None, 0, 128 + signal.SIGTERM):
                words.seek(0)
                said = words.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
                raise CommandError(f"a process of --jobs ended with code {process.returncode}: {said[-1]}")
        tell()
    finally:
        _signal(running, signal.SIGKILL)
        for process, words in running.items():
            process.wait()
            words.close()


def _signal(running: dict[subprocess.Popen[bytes], IO[bytes]], number: int) -> None:
    for process in running:
        if process.poll() is None:
            process.send_signal(number)


def share(text: str) -> tuple[int, int]:
    """Parse `number/of`."""
    number, of = (int(part) for part in text.split("/"))
    return number, of
