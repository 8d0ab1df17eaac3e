"""How the memory's budgets in bytes become pages.

Without host memory and but for 8 bits, all bytes of the budget are pages that attention reads in place. Otherwise
part of the budget goes to what every remembered frame keeps on the device (mean keys and scales), to the stages into
which retrieved blocks are copied, to one layer's mean keys (gathered where a history has gaps), and a 32nd to tables
and copies of the window.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..kernels.block_selection.native import CODE_FACTS
from .config import ModelConfig

CPU_MEMORY = "float16"  # memory_dtype of models that compute in fp32 on the CPU, unless one is given
CPU_BUDGET = 2 << 30
CUDA_BUDGET = 8 << 30
_SPARE = 1 / 32  # of the budget, for tables and the copies of the window
_SHARES, _SHARES_ASKED = (1 / 8, 1 / 8), (1 / 2, 1 / 4)  # at most, for what frames on the host keep, and for stages


class FrameBytes(NamedTuple):
    """Bytes of one latent frame, all layers.

    Attributes:
        page: Its keys and values, which may move to the host.
        kept: Its mean keys (and their 8-bit copies, and scales of 8-bit keys and values), which stay on the device.
    """

    page: int
    kept: int


class Layout(NamedTuple):
    """The memory in pages.

    Attributes:
        pages: Frames whose keys and values are on the device.
        host_pages: Frames whose keys and values are on the host.
        stages: Buffers for retrieved blocks, which the layers use in turn: as many as layers, or fewer.
        stage_blocks: Blocks of each head in a stage.
        reserved: Bytes on the device that are not for pages.
    """

    pages: int
    host_pages: int
    stages: int
    stage_blocks: int
    reserved: int


def stored_type(dtype: torch.dtype, memory_dtype: str | None) -> torch.dtype:
    """Type of keys and values in memory; arguments as of `frame_bytes`."""
    return dtype if memory_dtype is None else {"float16": torch.float16, "int8": torch.int8}[memory_dtype]


def copied_type(dtype: torch.dtype, memory_dtype: str | None) -> torch.dtype:
    """Type of keys and values that attention reads: as they are stored, but for 8 bits."""
    stored = stored_type(dtype, memory_dtype)
    return dtype if stored == torch.int8 else stored


def has_codes(memory_dtype: str | None) -> bool:
    """Whether mean keys have copies in 8 bits, which retrieval scans first: with the CPU's 16-bit memory."""
    return memory_dtype == "float16"


def frame_bytes(config: ModelConfig, dtype: torch.dtype, memory_dtype: str | None = None) -> FrameBytes:
    """Bytes of one latent frame in memory.

    Args:
        config: Sizes.
        dtype: Of the products.
        memory_dtype: `int8`, `float16` (under fp32 on the CPU), or None for keys and values in `dtype`.
    """
    size = stored_type(dtype, memory_dtype).itemsize
    scales = 2 * 4 * config.depth * config.heads * config.blocks_per_frame if memory_dtype == "int8" else 0
    row = config.depth * config.heads * config.head_dim
    means = row * 4 * config.blocks_per_frame
    codes = means // 4 + 4 * CODE_FACTS * means // (4 * config.head_dim) if has_codes(memory_dtype) else 0
    return FrameBytes(row * 2 * config.tokens * size, means + codes + scales)


def page_bytes(config: ModelConfig, dtype: torch.dtype, memory_dtype: str | None = None) -> int:
    """Bytes of one latent frame on the device, all layers."""
    return sum(frame_bytes(config, dtype, memory_dtype))


def default_budget(device: torch.device) -> int:
    """2 GiB on the CPU, on CUDA 8 GiB or half of what is free there if that is less."""
    if device.type != "cuda":
        return CPU_BUDGET
    return min(CUDA_BUDGET, torch.cuda.mem_get_info(device)[0] // 2)


def default_host_budget(device: torch.device) -> int:
    """Half of the free RAM on CUDA (with Triton, whose kernel reads it), 0 on the CPU, which has no other memory."""
    from ..kernels.gather_blocks import has_kernel

    if not has_kernel(device):
        return 0
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0
    return free * 1024 // 2


def divide(
    config: ModelConfig, dtype: torch.dtype, memory_dtype: str | None, budget: int, host_budget: int, asked: bool
) -> Layout:
    """Divide the budgets.

    Args:
        config: Sizes.
        dtype: Of the products.
        memory_dtype: See `frame_bytes`.
        budget: Bytes on the device.
        host_budget: Bytes on the host, 0 for none.
        asked: Whether the host budget was given, and not a default: what serves frames on the host may then cost
            three quarters of the device budget instead of one.
    """
    page, kept = frame_bytes(config, dtype, memory_dtype)
    if not host_budget and memory_dtype != "int8":
        return Layout(budget // (page + kept), 0, 0, 0, 0)
    kept_share, stage_share = _SHARES_ASKED if asked else _SHARES
    host_pages = min(host_budget // page, int(budget * kept_share) // kept)
    most = (host_pages + budget // (page + kept)) * config.blocks_per_frame
    # A step commits a chunk and denoises one, twice with guidance.
    wanted = min(3 * config.chunk * config.blocks_per_frame * config.top_k, most)
    block = 2 * config.heads * config.block_tokens * config.head_dim * copied_type(dtype, memory_dtype).itemsize
    room = int(budget * stage_share)
    stages = 1
    if host_pages:
        stages = config.depth if config.depth * wanted * block <= room else min(2, config.depth)
    # One query block must fit whatever it lists; of padded frames a quarter of the places is for their last blocks.
    least = min(config.top_k * (4 if config.padding else 1), most)
    blocks = max(min(wanted, room // (stages * block)), least)
    gathered = kept // config.depth
    reserved = int(budget * _SPARE) + stages * blocks * block + host_pages * (kept + gathered)
    return Layout(max(0, budget - reserved) // (page + kept + gathered), host_pages, stages, blocks, reserved)
