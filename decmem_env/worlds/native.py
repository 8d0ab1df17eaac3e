"""The renderer's C library (how it is built: `conventions/native.py`)."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from ..conventions.native import built, threads

__all__ = ["SOURCE_PATH", "load", "native_library", "source", "threads"]

SOURCE_PATH = Path(__file__).with_name("raymarch.c")

# No fused multiply-add, so that every backend gives the same frames.
_EXACT = ("-ffp-contract=off",)


def source() -> str:
    """Text of `raymarch.c`, for the C compiler and for NVRTC."""
    return SOURCE_PATH.read_text(encoding="utf-8")


def native_library() -> Path | None:
    """Path of the built library, building it if need be; None without a working compiler or a writable folder."""
    return built(SOURCE_PATH, _EXACT)


@functools.lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The library with its argument types set, or None (then the torch twin renders)."""
    path = native_library()
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.render.argtypes = [*[pointer] * 4, *[integer] * 5, *[pointer] * 3, integer]
    library.render.restype = None
    return library
