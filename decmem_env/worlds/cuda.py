"""The renderer's CUDA kernel, compiled by NVRTC at run time through torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from .native import source

THREADS = 128


@functools.lru_cache(maxsize=16)
def kernel(device_index: int) -> Callable[..., None]:
    """Compile `raymarch.c` for one CUDA device (a second or two, once a process).

    Raises:
        RuntimeError: This torch has no run-time compiler.
    """
    compile_kernel: Any = getattr(torch.cuda, "_compile_kernel", None)
    if compile_kernel is None:
        raise RuntimeError(
            f"torch {torch.__version__} has no torch.cuda._compile_kernel: install torch 2.11 or later, "
            "or render on the CPU (device='cpu')"
        )
    with torch.cuda.device(device_index):
        # --fmad=false: no fused multiply-add, as on the CPU.
        options = ["--fmad=false"]
        try:
            return compile_kernel(source(), "render", nvcc_options=options)
        except OSError as error:
            if "CUDA_HOME" not in str(error):
                raise
            return _without_toolkit(compile_kernel, options)


def _without_toolkit(compile_kernel: Callable[..., Any], options: list[str]) -> Callable[..., None]:
    """Compile where no CUDA toolkit is installed: torch insists on its include folder, this source needs none."""
    from torch.utils import cpp_extension

    before = cpp_extension.CUDA_HOME
    cpp_extension.CUDA_HOME = "/nonexistent"
    try:
        return compile_kernel(source(), "render", nvcc_options=options)
    finally:
        cpp_extension.CUDA_HOME = before


def render(
    worlds: torch.Tensor,
    index: torch.Tensor,
    cameras: torch.Tensor,
    atlas: torch.Tensor,
    size: tuple[int, int, int],
    rgb: torch.Tensor,
    depth: torch.Tensor | None,
    ids: torch.Tensor | None,
) -> None:
    """Launch on the current stream; `size` is height, width, samples; the arrays are those of `raymarch.c`."""
    height, width, samples = size
    frames = len(cameras)
    threads = frames * ((width + 7) // 8) * ((height + 3) // 4) * 32
    extra = (depth is not None) + 2 * (ids is not None)
    outputs = (rgb, rgb if depth is None else depth, rgb if ids is None else ids)
    with torch.cuda.device(rgb.device):
        kernel(rgb.device.index)(
            grid=((threads + THREADS - 1) // THREADS, 1, 1),
            block=(THREADS, 1, 1),
            args=[worlds, index, cameras, atlas, height, width, samples, frames, extra, *outputs],
        )
