"""The paper's evaluation protocol (DecMem, appendix A.2 and section 4): what is given, what is scored, what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CONDITION_FRAMES = 221
CLIPS = 300
STEPS = 20
GUIDANCE = 7.5
SPEED_FRAMES = 120

Window = tuple[int, int]  # first and last frame, 1-based, both included
WINDOWS: tuple[Window, ...] = ((222, 229), (334, 341), (798, 805))
_NAMES = {(222, 229): "within", (334, 341): "mid", (798, 805): "long"}


def parse_windows(text: str, condition: int) -> tuple[Window, ...]:
    """Read `222-229,334-341`.

    Raises:
        ValueError: Not of this form, out of order, or inside the given frames.
    """
    windows = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdigit() and last.isdigit() and dash) or int(first) > int(last):
            raise ValueError(f"windows {text!r}: {part!r} is not FIRST-LAST, as in 222-229")
        windows.append((int(first), int(last)))
    if windows != sorted(windows) or windows[0][0] <= condition:
        raise ValueError(f"windows {text!r}: expected rising windows that begin after the {condition} given frames")
    return tuple(windows)


def window_name(window: Window, condition: int) -> str:
    """`within`, `mid`, `long` for the paper's windows after its 221 frames; else the frames themselves."""
    if condition == CONDITION_FRAMES and window in _NAMES:
        return _NAMES[window]
    return f"frames_{window[0]}_{window[1]}"


@dataclass(frozen=True)
class Setting:
    """What was run, to be compared with the paper."""

    condition: int
    windows: Sequence[Window]
    clips: int
    steps: int
    guidance: float
    memory: str

    def deviations(self) -> list[str]:
        """What differs from the paper's protocol, in words; empty when nothing does."""
        pairs = (
            ("given frames", self.condition, CONDITION_FRAMES),
            ("windows", _words(self.windows), _words(WINDOWS)),
            ("clips", self.clips, CLIPS),
            ("denoising steps", self.steps, STEPS),
            ("guidance", self.guidance, GUIDANCE),
            ("memory", self.memory, "memory"),
        )
        return [f"{what}: {ours}, the paper has {theirs}" for what, ours, theirs in pairs if ours != theirs]


def _words(windows: Sequence[Window]) -> str:
    return ", ".join(f"{a}-{b}" for a, b in windows)
