"""The records of `decmem bench bank` and their bars."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from . import bank_benchmark as bench
from .results import record, write_json

STEP_BAR, PEAK_BAR, FORK_BAR = 2.0, 1.0, 1.05  # over unlimited; of the budget; over one session
MINUTE_PEAK_BAR, MINUTE_SPEED_BAR = 22.0, 0.75  # GiB, weights and all; of the unlimited frames/s


def measure(device: str, parts: tuple[str, ...], debug: bool, json: Path | None) -> int:
    """Run parts of the benchmark, print them and write the records.

    Args:
        device: Where.
        parts: `tiny`, `layer`, `ahead`, `minute`, `fork`.
        debug: Sizes of a test, without bars.
        json: File for the records, or None.

    Raises:
        ValueError: A check failed; what was measured before it is in the file.
    """
    import torch

    cuda = device.startswith("cuda")
    half, brain = (torch.float16, torch.bfloat16) if cuda else (torch.float32, torch.float32)
    small, large = ("debug", "wan-debug") if debug else ("tiny", "wan-1.3b")
    items: list[dict[str, Any]] = []

    def add(name: str, value: float | None, unit: str = "", bar: float | None = None, **more: Any) -> None:
        items.append(record(f"bank_{name}", value, unit, bar=None if debug else bar, device=device, **more))
        shown = "not measured" if value is None else f"{value:.4g} {unit}".rstrip()
        print(f"bank_{name}: {shown}" + ("" if items[-1]["bar"] is None else f" (bar {bar:g})"), flush=True)
        if json is not None:
            write_json(json, items)

    def free() -> None:
        gc.collect()  # the memory of the part before may be all there is
        if cuda:
            torch.cuda.empty_cache()

    if "tiny" in parts:
        frames, budget = (120, 5 << 20) if debug else (bench.TINY_FRAMES, bench.TINY_BUDGET)
        found = bench.limited_step(small, device, half, frames, budget, 2 if debug else 30)
        add("step_ratio", found["ratio"], "", STEP_BAR, better="lower", details=found)
        add("peak_over_budget", found["peak_over_budget"], "", PEAK_BAR, better="lower")
    free()
    if "layer" in parts:
        frames, budget = (80, 2 << 20) if debug else (bench.LAYER_FRAMES, bench.LAYER_BUDGET)
        settings = {"steps": 4}
        found = bench.limited_step(large, device, brain, frames, budget, 2, settings, depth=1)
        add("layer_step_seconds", found["limited_seconds"], "s", better="lower", details=found)
        add("layer_fetched_gigabytes", found["fetched_bytes"] / 1e9, "GB", better="lower")
        add("layer_peak_over_budget", found["peak_over_budget"], "", better="lower")
    free()
    if "ahead" in parts:
        frames, layers, top_k = (90, 3, 8) if debug else (bench.AHEAD_FRAMES, bench.AHEAD_LAYERS, bench.AHEAD_TOP_K)
        budget = (6 << 20) if debug else bench.LAYER_BUDGET
        found = bench.overlap(large, device, brain, frames, budget, depth=layers, top_k=top_k)
        add("ahead_over_late_seconds", found["ratio"], "", better="lower", details=found)
    free()
    if "minute" in parts:
        found = bench.eight_bits(large, device, brain, 40 if debug else bench.MINUTE_LATENTS, 1 if debug else 3)
        add("minute_peak", found["peak_gib"], "GiB", MINUTE_PEAK_BAR, better="lower", details=found)
        add("minute_speed_ratio", 1.0 / found["ratio"], "", MINUTE_SPEED_BAR, details=found)
        add("int8_attention_error", found["attention_error"], "", better="lower")
        add("int8_chunk_psnr", found["chunk_psnr_db"], "dB")
    free()
    if "fork" in parts:
        frames, count = (30, 4) if debug else (bench.FORK_FRAMES, bench.FORKS)
        found = bench.forks(small, device, half, frames, count)
        add("fork_ratio", found["ratio"], "", FORK_BAR, better="lower", details=found)
    return 0
