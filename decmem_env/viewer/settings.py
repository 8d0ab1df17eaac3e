"""What can be set when the viewer starts."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..rows import POSE_SOURCES

DEFAULT_SEED = 8_000_000
VOXEL = "voxel"  # the checkpoint name that plays the true world


@dataclass(frozen=True)
class PlaySettings:
    """Settings of one run of the viewer.

    Attributes:
        checkpoint: Bundled name, folder or hub id; `voxel` plays the true world.
        seed: World to start in; None is the demo's.
        device: `cpu`, `cuda` or `auto`.
        steps: Denoising steps a frame; None is the model's own.
        memory: `memory`, `content`, `dense`, `window` or `off`.
        context: Action string of the true frames that are remembered first; None is a tour of the neighbourhood.
        pose_source: `truth` (the voxel world's physics), `predictor` (the walls that the model shows) or `kinematic`
            (walks through walls).
        scale: Window pixels per frame pixel; None fits the screen.
        rate: Frames a second at most.
        turn_based: Step only when there is input.
        record: Folder to record into from the first frame.
        replay: Recording to run again.
        script: Action string to run first.
        headless: No window; ends when the script or the replay ends.
        screenshot: Picture of the window, written when the script or the replay has ended.
        folder: Where saves, recordings and screenshots go.
    """

    checkpoint: str = "tiny"
    seed: int | None = None
    device: str = "auto"
    steps: int | None = None
    memory: str = "memory"
    context: str | None = None
    pose_source: str = "truth"
    scale: int | None = None
    rate: float = 10.0
    turn_based: bool = False
    record: Path | None = None
    replay: Path | None = None
    script: str | None = None
    headless: bool = False
    screenshot: Path | None = None
    folder: Path = Path("decmem-play")

    def __post_init__(self) -> None:
        for name in ("record", "replay", "screenshot", "folder"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Path(value))
        if self.seed is None:
            object.__setattr__(self, "seed", DEFAULT_SEED)
        if self.headless and not (self.script or self.replay):
            raise ValueError('nothing to do without a window: give a script ("W*20 L*24") or a recording to replay')
        if self.script and self.replay:
            raise ValueError("give a script or a recording to replay, not both")
        if not self.rate > 0:
            raise ValueError(f"rate is {self.rate}: expected frames a second above 0")
        if self.scale is not None and self.scale < 1:
            raise ValueError(f"scale is {self.scale}: expected a whole number of at least 1")
        if self.pose_source not in POSE_SOURCES:
            raise ValueError(f"pose_source is {self.pose_source!r}: expected {', '.join(POSE_SOURCES)}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the viewer's own options (without checkpoint, device and steps) to a command line."""
    seed_help = f"voxel world to start in (default: {DEFAULT_SEED})"
    parser.add_argument("--seed", "--world-seed", dest="seed", type=int, metavar="N", help=seed_help)
    parser.add_argument(
        "--memory",
        default="memory",
        choices=("memory", "content", "dense", "window", "off"),
        help="what the model sees",
    )
    context_help = 'the walk that is remembered first, for example "L*24" (default: a tour of the neighbourhood)'
    parser.add_argument("--context", metavar="KEYS", help=context_help)
    parser.add_argument("--pose-source", default="truth", choices=POSE_SOURCES, help="who says where you are")
    parser.add_argument("--scale", type=int, metavar="N", help="window pixels per frame pixel (default: fits)")
    parser.add_argument("--rate", type=float, default=10.0, metavar="HZ", help="frames a second at most (default: 10)")
    parser.add_argument("--turn-based", action="store_true", help="time stands still without input")
    parser.add_argument("--record", type=Path, metavar="DIR", help="record from the first frame")
    parser.add_argument("--replay", type=Path, metavar="DIR", help="run a recording again and compare every frame")
    parser.add_argument("--script", metavar="KEYS", help='run these first, for example "W*20 L*24"')
    parser.add_argument("--headless", action="store_true", help="no window; needs --script or --replay")
    parser.add_argument("--screenshot", type=Path, metavar="PNG", help="picture of the window after script or replay")
    parser.add_argument("--folder", type=Path, default=Path("decmem-play"), metavar="DIR", help="saves and recordings")


def settings_from(options: argparse.Namespace, **changes: Any) -> PlaySettings:
    """Settings from a parsed command line; options that are no settings are ignored.

    Raises:
        ValueError: Settings that contradict each other.
    """
    known = {field.name for field in fields(PlaySettings)}
    values = {name: value for name, value in vars(options).items() if name in known}
    if "world_seed" in vars(options):
        values["seed"] = options.world_seed
    return PlaySettings(**{**values, **changes})
