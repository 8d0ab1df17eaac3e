"""Compile CUDA C++ at run time and launch it: the few driver and NVRTC calls that the Hopper kernels need."""

from __future__ import annotations

import ctypes
import functools
import glob
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_TENSOR_MAP_TYPES = {torch.float16: 6, torch.bfloat16: 9}
_SWIZZLE_128_BYTES, _L2_PROMOTION_256_BYTES = 3, 3
_MAX_DYNAMIC_SHARED = 8
TENSOR_MAP_BYTES = 128


class CudaError(RuntimeError):
    """A driver or compiler call failed."""


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    """The run-time compiler that PyTorch's wheels bring along, or the toolkit's."""
    major = (torch.version.cuda or "0").split(".")[0]
    name = f"libnvrtc.so.{major}"
    places = [os.path.join(p, "nvidia", "*", "lib", name) for p in sys.path]
    places += [os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "lib64", name)]
    for candidate in [*(found for place in places for found in sorted(glob.glob(place))), name]:
        try:
            # The compiler looks for its built-ins by name only: have them loaded.
            for built_ins in glob.glob(os.path.join(os.path.dirname(candidate), f"libnvrtc-builtins.so.{major}.*")):
                ctypes.CDLL(built_ins)
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    raise CudaError(f"no {name}: install the nvidia-cuda-nvrtc package that fits torch {torch.__version__}")


def _check(code: int, what: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise CudaError(f"{what}: {(text.value or b'unknown error').decode()} ({code})")


def compile_source(source: str, architecture: str) -> bytes:
    """Compile CUDA C++ without headers.

    Args:
        source: the program.
        architecture: for example "sm_90a".

    Returns:
        Machine code for :class:`Module`.

    Raises:
        CudaError: there is no compiler, or it refuses the source.
    """
    nvrtc = _nvrtc()
    program = ctypes.c_void_p()
    code = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"decmem.cu", 0, None, None)
    if code:
        raise CudaError(f"nvrtcCreateProgram failed ({code})")
    try:
        options = [f"--gpu-architecture={architecture}".encode(), b"-std=c++17"]
        code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        size = ctypes.c_size_t()
        if code:
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise CudaError(f"the kernel does not compile ({code}):\n{log.value.decode(errors='replace')[:4000]}")
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        binary = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, binary)
        return binary.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


class Module:
    """Machine code loaded on the current device."""

    def __init__(self, binary: bytes) -> None:
        self._module = ctypes.c_void_p()
        _check(_driver().cuModuleLoadData(ctypes.byref(self._module), binary), "cuModuleLoadData")

    def kernel(self, name: str, shared_bytes: int = 0) -> ctypes.c_void_p:
        """Find a kernel and allow it ``shared_bytes`` of dynamic shared memory."""
        function = ctypes.c_void_p()
        _check(_driver().cuModuleGetFunction(ctypes.byref(function), self._module, name.encode()), name)
        if shared_bytes:
            _check(
                _driver().cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, shared_bytes), f"shared memory of {name}"
            )
        return function


def launch(function: ctypes.c_void_p, grid: int, threads: int, shared_bytes: int, *arguments: Any) -> None:
    """Launch on PyTorch's current stream.

    Args:
        function: from :meth:`Module.kernel`.
        grid: programs.
        threads: of a program.
        shared_bytes: dynamic shared memory.
        arguments: ctypes values, one for each parameter.
    """
    pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(x) for x in arguments))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    code = _driver().cuLaunchKernel(function, grid, 1, 1, threads, 1, 1, shared_bytes, stream, pointers, None)
    _check(code, "cuLaunchKernel")


def encode_tensor_map(where: int, x: Tensor, block: int, box_rows: int) -> None:
    """Describe ``[B, H, T, D]`` to the copy engine as (channel, row of a block, block, head, batch).

    Rows past a block's end are out of bounds of their axis, so a box that reaches over it is filled with zeros there.

    Args:
        where: address to write ``TENSOR_MAP_BYTES`` to, a multiple of 64.
        x: the tensor, 16-byte aligned in every row.
        block: tokens of a block.
        box_rows: rows of a copy, of 64 channels each.
    """
    batch, heads, tokens, dim = x.shape
    size = x.element_size()
    row = x.stride(2) * size
    # An axis of one may have any stride, also one that the copy engine refuses.
    head = x.stride(1) * size if heads > 1 else row * tokens
    outer = x.stride(0) * size if batch > 1 else row * tokens
    dims = (ctypes.c_uint64 * 5)(dim, block, tokens // block, heads, batch)
    strides = (ctypes.c_uint64 * 4)(row, row * block, head, outer)
    code = _driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(where), _TENSOR_MAP_TYPES[x.dtype], 5, ctypes.c_void_p(x.data_ptr()), dims, strides,
        (ctypes.c_uint32 * 5)(64, box_rows, 1, 1, 1), (ctypes.c_uint32 * 5)(1, 1, 1, 1, 1),
        0, _SWIZZLE_128_BYTES, _L2_PROMOTION_256_BYTES, 0,
    )  # fmt: skip
    _check(code, f"tensor map of {tuple(x.shape)} with strides {x.stride()}")


def struct_arguments(tensor_maps: Sequence[tuple[Tensor, int, int]], rest: bytes) -> Any:
    """Build a parameter that starts with tensor maps.

    Args:
        tensor_maps: tensor, block and box rows of each, as for :func:`encode_tensor_map`.
        rest: the fields after them.

    Returns:
        A ctypes value for :func:`launch`, aligned to 64 bytes.
    """
    head = len(tensor_maps) * TENSOR_MAP_BYTES
    size = -(-(head + len(rest)) // 64) * 64
    memory = ctypes.create_string_buffer(size + 64)
    start = -(-ctypes.addressof(memory) // 64) * 64
    value = (ctypes.c_char * size).from_buffer(memory, start - ctypes.addressof(memory))
    for i, (x, block, box_rows) in enumerate(tensor_maps):
        encode_tensor_map(start + i * TENSOR_MAP_BYTES, x, block, box_rows)
    ctypes.memmove(start + head, rest, len(rest))
    return value
