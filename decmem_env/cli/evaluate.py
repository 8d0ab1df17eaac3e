"""`decmem eval`: the paper's protocol on clips."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .common import Bar, add_command, generous_budget, load_model, own_device, positive, run_on_gpus, say
from .infer import add_generation_options, from_environment

_EXAMPLES = """\
decmem eval --csv data/test.csv --checkpoint-path runs/decmem --guidance-scale 7.5 --num-inference-steps 20 --num-gpus 8
decmem eval --csv clips/test.csv --condition-frames 60 --windows 61-68,113-120 --start-frame 0 --n 4    the small model
decmem eval --csv data/test.csv --memory dense --out outputs/eval-dense                                 dense attention

221 true frames, then generation along true actions and poses; frames 222-229, 334-341 and 798-805 are scored against
the raw and against the autoencoder-decoded clip: PSNR, SSIM, and LPIPS and FID where torchmetrics and its weights are
here. OUT holds eval.json, eval.md and the frames of the windows; finished clips are kept, so run it again after an
interruption. What differs from the paper's settings is listed in the output."""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands, "eval", "measure by the paper's protocol", "PSNR, SSIM, LPIPS and FID of continued clips.", _EXAMPLES
    )
    parser.add_argument("--csv", required=True, type=Path, metavar="F", help="video_path,action_path (data index)")
    parser.add_argument("--out", type=Path, default=Path("outputs/eval"), metavar="DIR", help="default: outputs/eval")
    add_generation_options(parser)
    from_environment(parser, "--n", "N", None, positive, "clips (default: the paper's 300, or every row)")
    parser.add_argument("--condition-frames", type=positive, default=221, metavar="F", help="given (default: 221)")
    parser.add_argument("--windows", default="222-229,334-341,798-805", metavar="A-B,..", help="1-based, both included")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Generate what is missing, then score."""
    from ..evaluation import is_kept, note, records, score
    from ..given_clips import Generation, check_given, clips_of, ranks
    from ..inference import sample_name, settings_of
    from ..protocol import CLIPS, Setting, parse_windows
    from ..results import page, write_atomically, write_json

    windows = parse_windows(options.windows, options.condition_frames)
    videos = clips_of(options.csv, options.n)
    videos = videos[:CLIPS] if options.n is None else videos
    rank, size = ranks()
    if options.num_gpus > 1 and size == 1:
        code = run_on_gpus(options.num_gpus, options.arguments, options.device)
        if code:
            return code
    options.out.mkdir(parents=True, exist_ok=True)
    device = own_device(options.device)
    model = load_model(options.checkpoint_path, device, generous_budget(device))
    check_given(model, options.condition_frames)
    how = Generation.of(
        model,
        memory=options.memory,
        steps=options.num_inference_steps,
        guidance=options.guidance_scale,
        seed=options.seed,
        start_frame=options.start_frame,
    )
    last = windows[-1][1]
    settings = [
        {**settings_of(how, video, options.condition_frames, last), "windows": [list(w) for w in windows]}
        for video in videos
    ]
    names = [sample_name(i, video) for i, video in enumerate(videos)]
    mine = [i for i in range(len(videos)) if i % size == rank and not is_kept(options.out, names[i], settings[i])]
    _generate(options, model, how, [(i, videos[i], names[i], settings[i]) for i in mine], windows)
    if size > 1:
        print(f"{options.out}: rank {rank} of {size} done; run the command without torchrun to score")
        return 0
    del model
    with Bar(len(names), "scoring", "clip") as bar:
        scores = score(options.out, names, windows, device, bar.add)
    for text in scores.unavailable.values():
        say(text)
    setting = Setting(options.condition_frames, windows, len(names), how.steps, how.guidance, how.memory)
    facts = {**how.to_dict(), "csv": options.csv.name}
    found = records(scores, setting, device, facts)
    print(write_json(options.out / "eval.json", found))
    text = page(found, "Evaluation by the paper's protocol", note(setting, scores, facts))
    print(write_atomically(options.out / "eval.md", text.encode()))
    for item in found:
        if isinstance(item["value"], float):
            print(f"{item['name']:36} {item['value']:.4f} {item['unit']}")
    return 0


def _generate(options: argparse.Namespace, model: Any, how: Any, left: list[Any], windows: Any) -> None:
    from ..evaluation import keep_windows
    from ..given_clips import continue_clip, read_given

    condition, last = options.condition_frames, windows[-1][1]
    with Bar(len(left) * last, "generating") as bar:
        for i, video, name, settings in left:
            clip = read_given(video, how.start_frame, last, model)
            made = continue_clip(model, clip, condition, last - condition, how, i, bar.add)
            keep_windows(options.out, name, model, clip, made, condition, windows, settings)
