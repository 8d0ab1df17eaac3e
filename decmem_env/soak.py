"""Soak test: a scripted player plays for long; memory must stay within its budget and steps must not slow down."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .conventions.actions import DISCRETE_ACTIONS

# A square that comes back near its start, with a jump at each corner; a block placed and broken; a look around.
_SIDE = ["forward"] * 12 + ["jump"] + ["turn_right"] * 6
_SCRIPT = _SIDE * 4 + ["place", "noop", "break"] + ["turn_left"] * 24


def soak(
    minutes: float,
    checkpoint: str = "tiny",
    *,
    device: str = "cpu",
    memory_budget: int | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Play one environment without a pause.

    Args:
        minutes: How long.
        checkpoint: Bundled name, folder or hub id.
        device: Where the model runs.
        memory_budget: Bytes for the memory of the session; the engine's default when None.
        tell: Receives a line for every interval (a minute, or a twentieth of a shorter run).

    Returns:
        `slow_down` (median step of the last fifth over that of the fifth after the budget was first full, or of the
        second fifth if it never was), `memory_growth` (resident memory likewise), `full_over_filling` (median step of
        that first fifth over that of as long just before; None if the budget never was full), `memory_bytes` and
        `memory_budget` (largest of the session's memory, and what was allowed), `frames`, and the series.

    Raises:
        ValueError: Too short to compare fifths.
    """
    import gymnasium as gym

    import decmem_env  # noqa: F401  registers the environments

    interval = min(60.0, 60 * minutes / 20)
    # One episode: a reset would empty the memory.
    env = gym.make(
        "DecMem-Minecraft-v0",
        checkpoint=checkpoint,
        device=device,
        memory_budget=memory_budget,
        max_episode_steps=-1,
    )
    env.reset(seed=0)
    actions = [DISCRETE_ACTIONS.index(name) for name in _SCRIPT]
    series: list[dict[str, float]] = []
    start = mark = time.perf_counter()
    times: list[float] = []
    frames = 0
    while time.perf_counter() - start < 60 * minutes:
        began = time.perf_counter()
        env.step(actions[frames % len(actions)])
        times.append(time.perf_counter() - began)
        frames += 1
        if time.perf_counter() - mark >= interval:
            stats = env.unwrapped.stats  # type: ignore[attr-defined]
            series.append(
                {
                    "minute": (time.perf_counter() - start) / 60,
                    "frames": frames,
                    "step_ms": 1000 * statistics.median(times),
                    "resident_bytes": resident_memory(),
                    "memory_bytes": stats["memory_bytes"],
                    "evicted_frames": stats["evicted_frames"],
                }
            )
            last = series[-1]
            tell(
                f"{last['minute']:.1f} min, {frames} frames, {last['step_ms']:.1f} ms a step, "
                f"{last['resident_bytes'] / 2**20:.0f} MiB in all, {last['memory_bytes'] / 2**20:.0f} MiB of memory, "
                f"{last['evicted_frames']} frames forgotten"
            )
            times, mark = [], time.perf_counter()
    budget = env.unwrapped.stats["memory_budget"]  # type: ignore[attr-defined]
    env.close()
    fifth = len(series) // 5
    if not fifth:
        raise ValueError(f"a soak of {minutes:g} minutes gave {len(series)} intervals: play longer")
    full = next((i for i, item in enumerate(series) if item["evicted_frames"] > 0), fifth)
    full = min(full, len(series) - 2 * fifth)
    first = series[full:][:fifth]

    def ratio(key: str) -> float:
        return statistics.median(item[key] for item in series[-fifth:]) / statistics.median(item[key] for item in first)

    over_filling: float | None = None
    if full and series[full]["evicted_frames"]:
        filling = series[max(0, full - fifth) : full]
        over_filling = statistics.median(item["step_ms"] for item in first)
        over_filling /= statistics.median(item["step_ms"] for item in filling)
    return {
        "slow_down": ratio("step_ms"),
        "full_over_filling": over_filling,
        "memory_growth": ratio("resident_bytes"),
        "memory_bytes": max(item["memory_bytes"] for item in series),
        "memory_budget": budget,
        "minutes": minutes,
        "frames": frames,
        "evicted_frames": series[-1]["evicted_frames"],
        "checkpoint": checkpoint,
        "series": series,
    }


def resident_memory() -> int:
    """Resident memory of this process in bytes (Linux), or its peak where only that is known."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
