"""Ctrl-C and SIGTERM during long work: finish the piece at hand, keep what is done; the second one stops at once."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class Stop:
    """Inside the block the first signal only asks; the next one does what it would have done without the block.

    Attributes:
        asked: Number of the signal that asked to stop; None so far.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def code(self) -> int:
        """The exit code of a process that stopped for this signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.asked if self.asked is not None else 0

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background job wants it
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.asked = number
        self.__exit__()
        os.write(2, b"stopping after this batch; once more stops at once\n")  # print may be at work in this very moment
