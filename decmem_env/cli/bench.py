"""`decmem bench cpu | growth | kernels | env | soak | renderer | load | wan | bank`: speeds by their definitions."""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from typing import Any

from .common import Formatter, add_command, add_model_options, generous_budget, positive, resolve_device, say

_EXAMPLES = """\
decmem bench cpu --json cpu.json          frames_per_second: three fresh processes, 2 threads, the slowest
decmem bench cpu --known                  the same while nothing new is seen: no frame is kept
decmem bench growth --json growth.json    a step at 3,000 frames of memory against one at 100
decmem bench env --worlds 64 --device cuda
decmem bench soak --minutes 60 --json soak.json
decmem bench renderer --device cuda
decmem bench load --preset wan-1.3b --device cuda --dtype bfloat16
decmem bench wan --device cuda --json wan.json      the full-size model, random weights
decmem bench bank --device cuda --json bank.json    memory on the host and in 8 bits
decmem bench kernels --json kernels.json  needs a CUDA device; checks every kernel before it is timed"""

CPU_BAR = 4.0  # frames/s with a memory of 300 frames, two cores
VECTOR_BAR = 1500.0  # env steps/s, 64 worlds on a H200
SOAK_BAR = 1.05  # the end of a long session over its beginning
WAN_PARTS = ("protocol", "few", "growth", "dense", "layer", "graphs", "profile")
WAN_GROWTH_BAR, WAN_LAYER_BAR = 1.15, 1.25  # a chunk at 600 latents, a layer at 2,400, over one at 56
BANK_PARTS = ("tiny", "layer", "ahead", "minute", "fork")
LOAD_BAR = 10.0  # seconds for Wan-1.3B's fp32 file from a warm page cache
RENDERER_BARS = {"cuda": 100_000.0, "cpu": 60.0}  # frames/s at 96x160, 2x2 samples


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands, "bench", "measure speed", "Speeds, each with its machine, date, commit and command.", _EXAMPLES
    )
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    cpu = parts.add_parser("cpu", help="one world through gym.make on this CPU", formatter_class=Formatter)
    cpu.add_argument("--checkpoint", default="tiny", metavar="C")
    cpu.add_argument("--memory-frames", type=positive, default=300, metavar="N", help="remembered first (default: 300)")
    cpu.add_argument("--frames", type=positive, default=200, metavar="N", help="steps that count (default: 200)")
    cpu.add_argument("--processes", type=positive, default=3, metavar="N", help="fresh processes (default: 3)")
    cpu.add_argument("--known", action="store_true", help="look around where all was seen, instead of walking on")
    cpu.set_defaults(run=run_cpu)
    growth = parts.add_parser("growth", help="what a longer memory costs on this CPU", formatter_class=Formatter)
    growth.add_argument("--checkpoint", default="tiny", metavar="C")
    growth.add_argument(
        "--frames",
        type=positive,
        nargs=2,
        default=(100, 3000),
        metavar=("A", "B"),
        help="of memory (default: 100 3000)",
    )
    growth.add_argument("--pairs", type=positive, default=200, metavar="N", help="paired steps (default: 200)")
    growth.set_defaults(run=run_growth)
    env = parts.add_parser("env", help="many worlds through gym.make_vec", formatter_class=Formatter)
    add_model_options(env)
    env.add_argument("--worlds", type=positive, default=16, metavar="N")
    env.add_argument(
        "--episode", type=positive, default=256, metavar="N", help="steps of an episode; resets count (default: 256)"
    )
    env.set_defaults(run=run_env)
    soak = parts.add_parser("soak", help="a long session: memory and speed stay flat", formatter_class=Formatter)
    add_model_options(soak)
    soak.add_argument("--minutes", type=float, default=60.0, metavar="N", help="of play (default: 60)")
    soak.add_argument("--budget-gib", type=float, metavar="G", help="for the memory (default: the engine's)")
    soak.set_defaults(run=run_soak)
    renderer = parts.add_parser("renderer", help="the voxel renderer", formatter_class=Formatter)
    renderer.add_argument("--device", default="auto")
    renderer.set_defaults(run=run_renderer)
    kernels = parts.add_parser(
        "kernels", help="attention kernels against their check and peers", formatter_class=Formatter
    )
    kernels.add_argument("--peers", action="store_true", help="also time FlexAttention")
    shapes = ("tiny", "wan")
    kernels.add_argument("--shape", choices=shapes, default="tiny", help="which model's (default: tiny)")
    kernels.set_defaults(run=run_kernels)
    load = parts.add_parser("load", help="loading a checkpoint file", formatter_class=Formatter)
    load.add_argument("--preset", default="tiny", metavar="P", help="sizes (default: tiny)")
    load.add_argument("--device", default="auto")
    load.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32")
    load.set_defaults(run=run_load)
    wan = parts.add_parser("wan", help="the full-size model with random weights", formatter_class=Formatter)
    wan.add_argument("--preset", default="wan-1.3b", metavar="P", help="sizes (default: wan-1.3b)")
    wan.add_argument("--device", default="auto")
    wan.add_argument(
        "--parts",
        nargs="+",
        choices=WAN_PARTS,
        default=WAN_PARTS[:-2],
        help="protocol: the paper's; few: 4 steps, no guidance; growth: longer histories; dense: attention to all;"
        " layer: 2,400 latents; graphs: protocol and few without decoder, passes replayed as CUDA graphs; profile: a"
        " table of kernels (default: all but the last two)",
    )
    wan.add_argument(
        "--histories", type=positive, nargs="+", default=(56, 150, 600), metavar="N", help="latents (56 150 600)"
    )
    wan.set_defaults(run=run_wan)
    bank = parts.add_parser("bank", help="memory on the host and in 8 bits", formatter_class=Formatter)
    bank.add_argument("--device", default="auto")
    bank.add_argument(
        "--parts",
        nargs="+",
        choices=BANK_PARTS,
        default=BANK_PARTS,
        help="tiny: 100,000 blocks in 2 GiB; layer: 20,000 blocks of one Wan layer; ahead: copies beside computation;"
        " minute: of Wan-1.3B in 8 bits; fork: 64 children (default: all)",
    )
    bank.add_argument("--debug", action="store_true", help="sizes of a test, without bars")
    bank.set_defaults(run=run_bank)
    for part in (cpu, growth, env, soak, renderer, kernels, load, wan, bank):
        part.add_argument("--json", type=Path, metavar="F", help="write the records here")


def run_cpu(options: argparse.Namespace) -> int:
    """Measure frames_per_second."""
    from ..benchmarks import THREADS, slowest_env_speed

    say(f"{options.processes} fresh processes, {THREADS} threads, {options.memory_frames} frames of memory")
    found = slowest_env_speed(
        options.processes,
        checkpoint=options.checkpoint,
        memory_frames=options.memory_frames,
        measured=options.frames,
        known=options.known,
    )
    bar = CPU_BAR if options.memory_frames == 300 and not options.known else None
    parts = found["parts"]
    for part, milliseconds in parts.items():
        print(f"{milliseconds:7.1f} ms  {100 * milliseconds / sum(parts.values()):3.0f} %  {part}")
    middle, mean = found["step_ms"], found["step_ms_mean"]
    print(f"a step: {middle:.1f} ms in the median, {mean:.1f} on average (what is new takes more sampler steps)")
    return _finish("frames_per_second_known" if options.known else "frames_per_second", found, bar, "cpu", options)


def run_growth(options: argparse.Namespace) -> int:
    """Measure the growth of a step and of its attention with the memory."""
    from .. import growth
    from ..results import record, write_json

    say(f"{options.pairs} pairs, {growth.THREADS} threads, {options.frames[0]} against {options.frames[1]} frames")
    frames, pairs = tuple(options.frames), options.pairs
    usual = frames == growth.STEP_FRAMES
    found = [("growth_step", growth.step_growth(options.checkpoint, frames=frames, pairs=pairs), growth.STEP_BAR)]
    if usual:
        frames = growth.KERNEL_FRAMES
    for name, select, bar in (
        ("growth_attention", False, growth.ATTENTION_BAR),
        ("growth_attention_and_selection", True, growth.SELECTION_BAR),
    ):
        found.append((name, growth.kernel_growth(frames=frames, select=select, pairs=pairs), bar))
    items = []
    for name, details, bar in found:
        ratio = details.pop("ratio")
        items.append(record(name, ratio, "", bar=bar if usual else None, better="lower", details=details))
        print(
            f"{name}: {ratio:.3f} ({details['ratio_10']:.3f} to {details['ratio_90']:.3f}), "
            f"{details['short_ms']:.2f} to {details['long_ms']:.2f} ms" + (f" (bar {bar:g})" if usual else "")
        )
    if options.json is not None:
        print(write_json(options.json, items))
    return 0


def run_env(options: argparse.Namespace) -> int:
    """Measure the vector environment."""
    from ..benchmarks import vector_env_speed

    device = resolve_device(options.device)
    worlds, episode, budget = options.worlds, options.episode, generous_budget(device)
    found = vector_env_speed(options.checkpoint, worlds=worlds, episode=episode, device=device, memory_budget=budget)
    full = options.worlds == 64 and device.startswith("cuda")
    return _finish("vector_env_frames_per_second", found, VECTOR_BAR if full else None, device, options)


def run_soak(options: argparse.Namespace) -> int:
    """Play for long."""
    from ..results import record, write_json
    from ..soak import soak

    device = resolve_device(options.device)
    budget = None if options.budget_gib is None else int(options.budget_gib * 2**30)
    found = soak(options.minutes, options.checkpoint, device=device, memory_budget=budget, tell=say)
    series = {key: found.pop(key) for key in ("minutes", "frames", "evicted_frames", "checkpoint", "series")}
    over, full = found["memory_bytes"] / found["memory_budget"], found.pop("full_over_filling")
    items = [
        record("soak_slow_down", found["slow_down"], bar=SOAK_BAR, better="lower", device=device, details=series),
        record("soak_memory_growth", found["memory_growth"], bar=SOAK_BAR, better="lower", device=device),
        record("soak_memory_over_budget", over, bar=1.0, better="lower", device=device, details=found),
    ]
    if full is not None:
        items.append(record("soak_step_full_over_filling", full, better="lower", device=device))
    for item in items:
        print(f"{item['name']}: {item['value']:.3f}" + ("" if item["bar"] is None else f" (bar {item['bar']:g})"))
    if options.json is not None:
        print(write_json(options.json, items))
    return 0


def run_renderer(options: argparse.Namespace) -> int:
    """Measure the renderer."""
    from ..benchmarks import renderer_speed

    device = resolve_device(options.device)
    bar = RENDERER_BARS["cuda" if device.startswith("cuda") else "cpu"]
    return _finish("renderer_frames_per_second", renderer_speed(device=device), bar, device, options)


def run_load(options: argparse.Namespace) -> int:
    """Measure loading."""
    from ..load_benchmark import load_speed
    from ..results import record, write_json

    device = resolve_device(options.device)
    found = load_speed(options.preset, device, options.dtype)
    full = options.preset == "wan-1.3b"
    seconds, over = found.pop("seconds"), found.pop("memory_over_file")
    items = [
        record(
            "checkpoint_load_seconds",
            seconds,
            "s",
            bar=LOAD_BAR if full else None,
            better="lower",
            device=device,
            details=found,
        ),
        record(
            "checkpoint_load_memory_over_file",
            over,
            bar=2.0 if full else None,
            better="lower",
            device=device,
            details=found,
        ),
    ]
    print(
        f"{found['gigabytes']:.2f} GB in {seconds:.2f} s, memory {over:.2f} times the file, on {items[0]['hardware']}"
    )
    if options.json is not None:
        print(write_json(options.json, items))
    return 0


def run_wan(options: argparse.Namespace) -> int:
    """Measure the full-size model."""
    import torch

    from .. import wan_benchmark as bench
    from ..results import record, write_json

    device, parts = resolve_device(options.device), set(options.parts)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    lengths = tuple(sorted(options.histories))
    grow = bool(parts & {"growth", "dense"})
    items: list[dict[str, Any]] = []

    def add(name: str, value: float, unit: str = "", **more: Any) -> None:
        items.append(record(name, value, unit, device=device, **more))
        print(f"{name}: {value:.3f} {unit}".rstrip(), flush=True)
        if options.json is not None:  # a part that fails later costs none of these
            write_json(options.json, items)

    began = last = time.perf_counter()

    def done(part: str) -> None:
        nonlocal last
        now = time.perf_counter()
        say(f"{part}: {now - last:.0f} s, {now - began:.0f} s in all")
        last = now

    error, bound = bench.check(options.preset, device, dtype), bench.CHECK_BOUND[str(dtype).removeprefix("torch.")]
    add("wan_stream_against_teacher_forcing", error, bar=bound, better="lower")
    if not error <= bound:
        raise ValueError(
            f"streaming differs from teacher forcing by {error:.1e} (bound {bound:g}): no speed is printed"
        )
    done("check")
    held = max(lengths) if grow else bench.PREFIX
    model = bench.random_model(options.preset, device, dtype, held + 2 * bench.PREFIX)
    done("model")
    if "protocol" in parts:
        for name, decode in (("wan_frames_per_second_without_decoder", False), ("wan_frames_per_second", True)):
            found = bench.protocol(model, decode=decode)
            add(name, found["frames_per_second"], "frames/s", details=found)
        done("protocol")
    if "few" in parts:
        found = bench.protocol(model, steps=bench.FEW_STEPS, guidance=1.0)
        add("wan_few_steps_frames_per_second_without_decoder", found["frames_per_second"], "frames/s", details=found)
        model.decoder = bench.random_fast_decoder(device, dtype)
        found = bench.protocol(model, decode=True, steps=bench.FEW_STEPS, guidance=1.0)
        add("wan_few_steps_frames_per_second_fast_decoder", found["frames_per_second"], "frames/s", details=found)
        model.decoder = None
        done("few")
    if grow:
        rows = []
        for row in bench.histories(model, lengths, "dense" in parts):
            rows.append(row)
            for kind in ("chunk_seconds", "dense_chunk_seconds"):
                if kind in row:
                    add(f"wan_{kind}_{row['latents']:.0f}", row[kind], "s")
        ratio, full = rows[-1]["chunk_seconds"] / rows[0]["chunk_seconds"], (lengths[0], lengths[-1]) == (56, 600)
        add("wan_chunk_growth", ratio, bar=WAN_GROWTH_BAR if full else None, better="lower", details={"rows": rows})
        done("growth")
    if "graphs" in parts:
        error = bench.use_graphs(model)
        add("wan_graphs_relative_error", error, bar=bound, better="lower")
        if not error <= bound:
            raise ValueError(f"replayed passes differ by {error:.1e} (bound {bound:g}): no speed is printed")
        few: dict[str, Any] = {"steps": bench.FEW_STEPS, "guidance": 1.0}
        for name, settings in (("", {}), ("few_steps_", few)):
            found = bench.protocol(model, **settings)
            add(f"wan_{name}frames_per_second_graphs", found["frames_per_second"], "frames/s", details=found)
        model.graphs = None
        done("graphs")
    if "profile" in parts:
        print(bench.profile(model, min(lengths)))
        done("profile")
    del model
    gc.collect()  # its memory may be all there is
    if "layer" in parts:
        size = (bench.PREFIX, bench.LAYER_HISTORY if options.preset == "wan-1.3b" else 2 * bench.PREFIX)
        found = bench.layer_growth(options.preset, device, dtype, size, bench.LAYERS)
        bar = WAN_LAYER_BAR if options.preset == "wan-1.3b" else None
        add("wan_layer_growth", found.pop("ratio"), bar=bar, better="lower", details=found)
        done("layer")
    if options.json is not None:
        print(options.json)
    return 0


def run_bank(options: argparse.Namespace) -> int:
    """Measure memory on the host and in 8 bits."""
    from ..bank_results import measure

    return measure(resolve_device(options.device), tuple(options.parts), options.debug, options.json)


def run_kernels(options: argparse.Namespace) -> int:
    """Check and measure the kernels."""
    from ..kernels import benchmark, benchmark_wan

    arguments = ["--peers"] if options.peers else []
    if options.shape == "wan":
        arguments.append("--backward")
    if options.json is not None:
        arguments += ["--json", str(options.json)]
    return (benchmark_wan if options.shape == "wan" else benchmark).main(arguments)


def _finish(name: str, found: dict[str, Any], bar: float | None, device: str, options: argparse.Namespace) -> int:
    from ..results import record, write_json

    value = found.pop("frames_per_second")
    item = record(name, float(value), "frames/s", bar=bar, device=device, details=found)
    print(f"{name}: {value:.2f} frames/s on {item['hardware']}" + ("" if bar is None else f" (bar {bar:g})"))
    if options.json is not None:
        print(write_json(options.json, [item]))
    return 0
