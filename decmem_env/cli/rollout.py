"""`decmem rollout`: follow an action script, write a clip."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from .common import Bar, CommandError, add_command, add_model_options, load_model, resolve_device, say

_EXAMPLES = """\
decmem rollout --actions "W*20 L*24 S*20" --out walk.mp4
decmem rollout --actions "W+R*10 SPACE P B N*5" --world-seed 8000003 --out play.mp4
decmem rollout --actions QQQQAAAA --keymap worldmem --clip clips/test/world8000000_00000.mp4 --out more.mp4
decmem rollout --actions "L*24" --image photo.png --out look.mp4

keys (decmem): W S walk, A D strafe, L R turn, U J look up and down, SPACE jump, P place, B break, N nothing;
KEY*COUNT repeats, K+K presses together. Beside OUT.mp4 lies OUT.npz with actions and poses (WorldMem's format).
The clip holds the observed frames first, then the generated ones."""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "rollout",
        "follow an action script, write mp4 + npz",
        "Observe a beginning, then generate one frame for every action.",
        _EXAMPLES,
    )
    parser.add_argument("--actions", required=True, metavar="SCRIPT", help='for example "W*20 L*24 S*20"')
    parser.add_argument("--out", required=True, type=Path, metavar="F.mp4")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--world-seed", type=int, default=8_000_000, help="begin in this voxel world (default: 8000000)")
    begin.add_argument("--clip", type=Path, metavar="MP4", help="begin with a clip (its .npz beside it)")
    begin.add_argument("--image", type=Path, metavar="PNG", help="begin with one image")
    parser.add_argument("--keymap", choices=("decmem", "worldmem"), default="decmem")
    parser.add_argument("--memory", choices=("memory", "content", "dense", "off", "window"), default="memory")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--only-generated", action="store_true", help="leave the observed frames out of the clip")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Generate and write."""
    import numpy as np

    from ..conventions.actions import parse_action_string
    from ..conventions.clips import Clip, write_clip

    if options.out.suffix.lower() != ".mp4":
        raise CommandError(f"--out {options.out}: expected a name that ends in .mp4")
    actions = parse_action_string(options.actions, options.keymap)
    for name in ("clip", "image"):
        path = getattr(options, name)
        if path is not None and not path.is_file():
            raise CommandError(f"--{name} {path}: no such file")
    device = resolve_device(options.device)
    model = load_model(options.checkpoint, device)
    from ..beginnings import from_clip, from_image, from_world
    from ..hand_reader import HandReader
    from ..rollout import frame_size, roll_out, whole_context
    from ..start import Start

    height, width = frame_size(model)
    if options.clip is not None:
        begin = from_clip(options.clip, actions, height, width)
    elif options.image is not None:
        begin = from_image(options.image, actions, height, width)
    else:
        begin = from_world(options.world_seed, actions, height, width)
    session = model.start(seed=options.seed, memory=options.memory, steps=options.steps)
    say(f"observing {len(begin.frames)} frames")
    session.observe(*whole_context(model, begin.frames, begin.actions, begin.poses))
    hands = HandReader.where_needed(model, [Start(begin.actions, begin.poses, begin.frames)], actions)
    start = time.monotonic()
    with Bar(len(actions), "generating") as bar:
        rolled = roll_out(model, [session], actions[None], begin.next_poses[None], progress=bar.add, hands=hands)
    made = rolled[0].numpy()
    speed = len(actions) / (time.monotonic() - start)
    frames, steps, poses = made, actions, begin.next_poses
    if not options.only_generated:
        frames = np.concatenate([begin.frames, made])
        steps = np.concatenate([begin.actions, actions])
        poses = np.concatenate([begin.poses, begin.next_poses])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_clip(options.out, Clip(frames, steps, poses, 10.0))
    print(f"{options.out} and {options.out.with_suffix('.npz')}: {len(frames)} frames, {len(made)} generated")
    say(f"{speed:.1f} frames/s on {device}; poses: {begin.pose_source}")
    return 0
