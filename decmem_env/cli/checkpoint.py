"""`decmem checkpoint download | inspect | convert`: weights of this and of other projects."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .common import Bar, CommandError, Formatter, add_command, say

_EXAMPLES = """\
decmem checkpoint download wan-1.3b                    wan_models/Wan2.1-T2V-1.3B: transformer, config, VAE
decmem checkpoint download decmem                      checkpoints/decmem.pt
decmem checkpoint inspect checkpoints/decmem.pt --preset wan-1.3b
decmem checkpoint convert checkpoints/decmem.pt --preset wan-1.3b --vae wan_models/Wan2.1-T2V-1.3B --out runs/decmem
decmem checkpoint convert wan_models/Wan2.1-T2V-1.3B --preset wan-1.3b --allow-partial --out runs/wan-start

Reads safetensors (one file or shards, Wan's or diffusers' names) and .pt files (also Self-Forcing's sections and
prefixes); code in a .pt never runs. inspect returns 1 where the match with --preset is partial."""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "checkpoint",
        "download, inspect, convert weights",
        "Public weights: fetch them, see what is in them, turn them into a checkpoint folder of ours.",
        _EXAMPLES,
    )
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    download = parts.add_parser("download", help="fetch from the Hugging Face hub", formatter_class=Formatter)
    download.add_argument("name", metavar="NAME", help="wan-1.3b, decmem, or owner/name")
    download.add_argument("--out", type=Path, metavar="DIR", help="default: the reference README's folder")
    download.add_argument("--revision", default="main", help="branch, tag or commit (default: main)")
    download.set_defaults(run=run_download)
    inspect = parts.add_parser("inspect", help="list tensors, match them with a preset", formatter_class=Formatter)
    inspect.add_argument("path", type=Path, metavar="PATH", help="weight file or folder")
    inspect.set_defaults(run=run_inspect)
    convert = parts.add_parser("convert", help="write a checkpoint folder", formatter_class=Formatter)
    convert.add_argument("path", type=Path, metavar="PATH", help="weight file or folder")
    convert.add_argument("--out", required=True, type=Path, metavar="DIR")
    convert.add_argument("--vae", type=Path, metavar="PATH", help="autoencoder (default: the one beside PATH)")
    convert.add_argument("--dtype", choices=("keep", "fp32", "bf16", "fp16"), default="keep")
    convert.add_argument("--allow-partial", action="store_true", help="missing parameters keep their initial values")
    convert.set_defaults(run=run_convert)
    for part in (inspect, convert):
        size = part.add_mutually_exclusive_group(required=part is convert)
        size.add_argument("--preset", metavar="P", help="sizes to match with, for example wan-1.3b")
        size.add_argument("--config", type=Path, metavar="F.json", help="sizes from a config.json of ours")
        part.add_argument("--section", metavar="S", help="generator, generator_ema, ... where a file has several")


def run_download(options: argparse.Namespace) -> int:
    """Fetch."""
    from ..model.hub import fetch, source_of

    source = source_of(options.name)
    folder = options.out or Path(source.folder)
    say(f"{source.repository} at {options.revision} -> {folder}")
    got = fetch(source, folder, revision=options.revision, tell=say)
    print(f"{got.folder}: {len(got.files)} files, {sum(s for _, s in got.files):,} bytes, commit {got.commit}")
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    """Print what a file holds, and how it matches."""
    from ..model.formats import FAMILIES, bare_names, family_of
    from ..model.importing import plan_import
    from ..model.matching import table
    from ..model.weight_files import locate, open_weights

    config = _config(options)
    weights = open_weights(locate(options.path))
    names = bare_names(weights.tensors, options.section)
    family = family_of(names.clean.values())
    kinds = sorted({str(info.dtype).removeprefix("torch.") for info in weights.tensors.values()})
    chosen = sum(weights.tensors[name].count for name in names.clean)
    print(f"file       {weights.path} ({weights.container}), {weights.bytes:,} bytes")
    print(f"names      {FAMILIES[family]}")
    print(f"section    {'.'.join(names.section) or '-'}: {len(names.clean)} tensors, {chosen:,} numbers")
    if names.left:
        print(f"not chosen {', '.join(f'{name} ({count} tensors)' for name, count in names.left.items())}")
    print(f"types      {', '.join(kinds)}")
    if config is None:
        for source, bare in names.clean.items():
            print(f"{bare:60} {'x'.join(map(str, weights.tensors[source].shape))}")
        return 0
    match = plan_import(options.path, config, options.section).match
    print(table(match, names.clean))
    print(match.summary)
    return 0 if match.complete else 1


def run_convert(options: argparse.Namespace) -> int:
    """Write a checkpoint folder."""
    from ..model.conversion import convert
    from ..model.importing import plan_import
    from ..model.matching import table

    config = _config(options)
    assert config is not None
    plan = plan_import(options.path, config, options.section)
    say(table(plan.match, plan.names.clean))
    say(plan.match.summary)
    with Bar(plan.weights.bytes, "converting", "B") as bar:
        convert(
            plan,
            options.out,
            config,
            vae=options.vae,
            dtype=options.dtype,
            allow_partial=options.allow_partial,
            progress=bar.add,
        )
    print(f"{options.out}: {plan.match.summary}; use it with --checkpoint {options.out}")
    return 0


def _config(options: argparse.Namespace) -> Any:
    from ..model.config import ModelConfig, preset

    if options.preset is not None:
        return preset(options.preset)
    if options.config is None:
        return None
    if not options.config.is_file():
        raise CommandError(f"--config {options.config}: no such file")
    return ModelConfig.from_json(options.config.read_text())
