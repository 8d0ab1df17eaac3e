"""Tile sizes and launch settings of the Triton kernels: one table, measured by ``benchmark.py --sweep``."""

from __future__ import annotations

from typing import NamedTuple


class Config(NamedTuple):
    """Launch settings of one kernel.

    Attributes:
        step: rows gathered per loop iteration (a power of two, at least 16).
        warps: warps per program.
        stages: software pipelining depth.
    """

    step: int
    warps: int
    stages: int


# (kernel, rows of the resident tile, padded head channels) -> settings. The resident tile holds queries in "forward"
# and "query_gradient", keys in "key_gradient". Tiles of 16 rows use one warp: softmax and the second product then need
# no exchange through shared memory. Tiles of 64 rows and four warps are the smallest that reach wgmma on Hopper.
TUNING: dict[tuple[str, int, int], Config] = {
    ("forward", 16, 32): Config(32, 1, 3),
    ("forward", 16, 64): Config(32, 1, 2),
    ("forward", 16, 128): Config(32, 2, 3),
    ("forward", 32, 32): Config(64, 2, 3),
    ("forward", 32, 64): Config(64, 2, 3),
    ("forward", 32, 128): Config(64, 4, 3),
    ("forward", 64, 32): Config(64, 4, 3),
    ("forward", 64, 64): Config(64, 4, 2),
    ("forward", 64, 128): Config(64, 4, 3),
    ("forward", 128, 32): Config(64, 4, 3),
    ("forward", 128, 64): Config(64, 4, 3),
    ("forward", 128, 128): Config(64, 8, 3),
    ("query_gradient", 16, 32): Config(32, 1, 2),
    ("query_gradient", 16, 64): Config(32, 1, 2),
    ("query_gradient", 16, 128): Config(32, 2, 2),
    ("query_gradient", 32, 32): Config(64, 2, 3),
    ("query_gradient", 32, 64): Config(64, 2, 3),
    ("query_gradient", 32, 128): Config(32, 4, 3),
    ("query_gradient", 64, 32): Config(64, 4, 3),
    ("query_gradient", 64, 64): Config(64, 4, 2),
    ("query_gradient", 64, 128): Config(64, 4, 3),
    ("query_gradient", 128, 32): Config(64, 4, 3),
    ("query_gradient", 128, 64): Config(64, 8, 3),
    ("query_gradient", 128, 128): Config(64, 8, 2),
    ("key_gradient", 16, 32): Config(32, 1, 3),
    ("key_gradient", 16, 64): Config(32, 1, 2),
    ("key_gradient", 16, 128): Config(32, 2, 2),
    ("key_gradient", 32, 32): Config(64, 2, 3),
    ("key_gradient", 32, 64): Config(64, 2, 3),
    ("key_gradient", 32, 128): Config(32, 4, 3),
    ("key_gradient", 64, 32): Config(64, 4, 3),
    ("key_gradient", 64, 64): Config(128, 4, 2),
    ("key_gradient", 64, 128): Config(64, 8, 2),
    ("key_gradient", 128, 32): Config(64, 4, 3),
    ("key_gradient", 128, 64): Config(64, 8, 3),
    ("key_gradient", 128, 128): Config(64, 8, 2),
}


def padded_channels(dim: int) -> int:
    """Head channels as the kernels hold them: the next power of two, at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


def row_tile(rows: int) -> int:
    """Rows of a resident tile for blocks of ``rows`` tokens: padding as small as tiles of 16 to 128 rows allow.

    A block of more than 64 tokens is cut into tiles of 64, or of 128 where that pads no more (147 -> 3 x 64).
    """
    if rows <= 64:
        return max(16, 1 << (rows - 1).bit_length())
    return 128 if -(-rows // 128) * 128 <= -(-rows // 64) * 64 else 64


def launch_config(kernel: str, tile: int, channels: int, single_precision: bool) -> Config:
    """Look up the settings of a kernel.

    Args:
        kernel: "forward", "query_gradient" or "key_gradient".
        tile: rows of the resident tile, from :func:`row_tile`.
        channels: padded head channels.
        single_precision: True for fp32 inputs, which need twice the shared memory and multiply on the ordinary cores.

    Returns:
        The settings.
    """
    config = TUNING[kernel, tile, min(max(channels, 32), 128)]
    if single_precision:
        return Config(32 if tile < 64 else 16 if channels > 64 else 32, max(4, config.warps), 1)
    return config
