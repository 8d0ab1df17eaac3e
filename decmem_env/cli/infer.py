"""`decmem infer`: batch inference on clips, by the reference README's names."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from .common import (
    Bar,
    CommandError,
    add_command,
    generous_budget,
    load_model,
    own_device,
    positive,
    run_on_gpus,
    say,
)

_EXAMPLES = """\
decmem infer --csv data/test.csv --n 4                                      the bundled model
decmem infer --csv data/test.csv --checkpoint-path runs/decmem --t-lat 160 --num-condition-frames 56 \\
    --guidance-scale 5.0 --num-inference-steps 50 --num-gpus 8               as scripts/infer.sh of the reference
EXP_NAME=decmem CHECKPOINT_PATH=runs/decmem T_LAT=160 N=16 decmem infer --csv data/test.csv
torchrun --nproc-per-node 8 -m decmem_env.cli infer --csv data/test.csv      the same spread by hand

Every option in capitals in brackets is read from that environment variable too; the command line wins. Lengths count
latents: 160 are 637 frames with the Wan VAE (1 + 159 * 4) and 160 frames with the bundled model. Finished samples are
kept; run the command again after an interruption."""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "infer",
        "continue the clips of a CSV",
        "Watch the beginning of every clip, generate the rest along its actions and poses; for each clip an mp4 and\n"
        "npz, a comparison strip and a JSON with settings, PSNR and speed.",
        _EXAMPLES,
    )
    parser.add_argument("--csv", required=True, type=Path, metavar="F", help="video_path,action_path (data index)")
    parser.add_argument("--out", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs")
    from_environment(parser, "--exp-name", "EXP_NAME", "infer", str, "folder under --out")
    add_generation_options(parser)
    from_environment(parser, "--t-lat", "T_LAT", 160, positive, "latents of a sample, given ones included")
    from_environment(parser, "--num-condition-frames", "NUM_CONDITION_FRAMES", 56, positive, "given latents")
    from_environment(parser, "--n", "N", None, positive, "samples (default: every row)")
    parser.set_defaults(run=run)


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Options that `infer` and `eval` share."""
    from_environment(parser, "--checkpoint-path", "CHECKPOINT_PATH", "tiny", str, "bundled name, folder or hub id")
    from_environment(parser, "--guidance-scale", "GUIDANCE_SCALE", None, float, "action guidance; 1 or less is off")
    from_environment(parser, "--num-inference-steps", "NUM_INFERENCE_STEPS", None, positive, "denoising steps")
    from_environment(parser, "--num-gpus", "NUM_GPUS", 1, positive, "spread samples over this many GPUs")
    parser.add_argument("--memory", choices=("memory", "content", "dense", "off", "window"), default="memory")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; sample i uses seed + i (default: 0)")
    parser.add_argument(
        "--start-frame",
        type=_not_negative,
        default=100,
        metavar="F",
        help="first frame used; WorldMem's loader skips 100 bad ones (default: 100)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default: auto)")


def from_environment(
    parser: argparse.ArgumentParser, option: str, variable: str, default: Any, kind: Any, text: str
) -> None:
    """Add an option whose default an environment variable may set."""
    shown = "" if default is None or "default" in text else f", default: {default}"
    parser.add_argument(
        option,
        type=kind,
        default=os.environ.get(variable) or default,
        metavar=variable[:1] if kind is not str else "S",
        help=f"{text} [{variable}{shown}]",
    )


def _not_negative(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Generate this process's share of the samples."""
    from ..given_clips import (
        Generation,
        check_given,
        clips_of,
        continue_clip,
        frames_of_latents,
        ranks,
        read_given,
        share_of,
    )
    from ..inference import is_finished, sample_name, settings_of, write_sample

    if options.num_condition_frames >= options.t_lat:
        raise CommandError(
            f"T_LAT {options.t_lat} must be above NUM_CONDITION_FRAMES {options.num_condition_frames}: nothing is left "
            "to generate"
        )
    videos = clips_of(options.csv, options.n)
    rank, size = ranks()
    if options.num_gpus > 1 and size == 1:
        return run_on_gpus(options.num_gpus, options.arguments, options.device)
    folder = options.out / options.exp_name
    folder.mkdir(parents=True, exist_ok=True)
    device = own_device(options.device)
    model = load_model(options.checkpoint_path, device, generous_budget(device))
    how = Generation.of(
        model,
        memory=options.memory,
        steps=options.num_inference_steps,
        guidance=options.guidance_scale,
        seed=options.seed,
        start_frame=options.start_frame,
    )
    given, total = (frames_of_latents(model, n) for n in (options.num_condition_frames, options.t_lat))
    check_given(model, given)
    mine = share_of(videos, rank, size)
    settings = {i: settings_of(how, video, given, total) for i, video in mine}
    left = [(i, video) for i, video in mine if not is_finished(folder, sample_name(i, video), settings[i])]
    who = f"rank {rank} of {size}: " if size > 1 else ""
    say(f"{who}{len(mine)} samples, {len(mine) - len(left)} finished before; {given} given + {total - given} frames")
    scores = []
    with Bar(len(left) * total, f"{who}generating") as bar:
        for i, video in left:
            clip = read_given(video, how.start_frame, total, model)
            made = continue_clip(model, clip, given, total - given, how, i, bar.add)
            facts = write_sample(folder, sample_name(i, video), clip, made, given, settings[i])
            scores.append(facts)
    for facts in scores:
        said = f"{facts['psnr_db']:.2f} dB, {facts['frames_per_second']:.2f} frames/s"
        say(f"{who}{facts['settings']['video']}: {said} on {device}")
    print(f"{folder}: {who}{len(left)} samples written, {len(mine) - len(left)} kept")
    return 0
