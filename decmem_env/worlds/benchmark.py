"""Measure the voxel world: `python -m decmem_env.worlds.benchmark --device cuda|cpu`."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from .renderer import Renderer
from .simulator import Simulator
from .terrain import World, generate_world
from .trajectories import sample_trajectories

_SEED = 7_000_000


def _median(work: Callable[[], object], repeats: int = 10) -> float:
    """Median seconds of a call, after two that warm up."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def renderer_speed(worlds: list[World], device: str, height: int, width: int, batch: int) -> float:
    """Frames a second, 2x2 samples, poses spread over explored walks; the GPU is waited for."""
    length = -(-batch // len(worlds))
    walks = sample_trajectories(worlds, length, np.random.default_rng(0), grid=False, candidates=1)
    index = np.repeat(np.arange(len(worlds)), length)[:batch]
    blocks = torch.from_numpy(np.stack([world.blocks for world in worlds])).to(device)
    renderer = Renderer(height, width, device=device)
    poses = walks.poses.reshape(-1, 5)[:batch]

    def work() -> None:
        renderer.render(blocks, index, poses)
        if renderer.device.type == "cuda":
            torch.cuda.synchronize(renderer.device)

    return batch / _median(work)


def simulator_speed(worlds: list[World], players: int = 256, ticks: int = 20) -> float:
    """Player ticks a second of walking players."""
    index = np.arange(players) % len(worlds)
    simulator = Simulator.shared(worlds, index, np.stack([worlds[i].spawn for i in index]))
    actions = np.zeros((players, 25), np.float32)
    actions[:, 11] = 1.0

    def work() -> None:
        for _ in range(ticks):
            simulator.step(actions)

    return players * ticks / _median(work, 5)


def copy_psnr(worlds: list[World], length: int = 48) -> float:
    """Mean PSNR (dB) of the previous frame against the next over frames in which the player moves or turns."""
    walks = sample_trajectories(worlds, length, np.random.default_rng(1), grid=False, candidates=1)
    blocks = torch.from_numpy(np.stack([world.blocks for world in worlds]))
    index = np.repeat(np.arange(len(worlds)), length)
    frames = Renderer().render(blocks, index, walks.poses.reshape(-1, 5)).rgb.unflatten(0, (len(worlds), length))
    difference = frames[:, 1:].float() - frames[:, :-1].float()
    error = (difference / 255.0).square().mean((2, 3, 4)).numpy()
    moving = np.abs(np.diff(walks.poses, axis=1)).max(-1) > 1e-6
    return float((-10.0 * np.log10(error[moving].clip(1e-10))).mean())


def agreement(worlds: list[World], device: str) -> dict[str, float]:
    """Share of pixels within one level, and of equal block ids, between this device and the reference renderers."""
    walks = sample_trajectories(worlds, 40, np.random.default_rng(2), grid=False, candidates=1)
    poses = walks.poses[:, ::10].reshape(-1, 5)
    index = np.repeat(np.arange(len(worlds)), len(poses) // len(worlds))
    blocks = torch.from_numpy(np.stack([world.blocks for world in worlds]))
    here = Renderer(device=device).render(blocks.to(device), index, poses, block_ids=True)
    reference = Renderer(backend="torch" if device == "cpu" else None).render(blocks, index, poses, block_ids=True)
    assert here.block_ids is not None and reference.block_ids is not None
    levels = (here.rgb.cpu().int() - reference.rgb.int()).abs()
    same = here.block_ids.cpu() == reference.block_ids
    return {"within_one_level": float((levels <= 1).float().mean()), "equal_ids": float(same.float().mean())}


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--batch", type=int, help="frames a call (8192 on a GPU, 64 on a CPU)")
    options = parser.parse_args()
    start = time.perf_counter()
    worlds = [generate_world(_SEED + i) for i in range(8)]
    seconds = time.perf_counter() - start
    cuda = options.device.startswith("cuda")
    batch = options.batch or (8192 if cuda else 64)
    checked = agreement(worlds[:2], options.device)
    if min(checked.values()) < 0.999:
        raise SystemExit(f"the renderers disagree, no speed is printed: {checked}")
    result = {
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads",
        **checked,
        "frames_per_second": renderer_speed(worlds, options.device, options.height, options.width, batch),
        "world_ms": 1000 * seconds / len(worlds),
        "player_ticks_per_second": simulator_speed(worlds),
        "previous_frame_copied_psnr_db": copy_psnr(worlds),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
