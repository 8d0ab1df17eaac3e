"""C libraries of the package: built by the system's compiler on first use, kept in the user's cache folder.

The renderer and the CPU kernels are single C files with a torch twin each, so a machine without a compiler only loses
speed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_BASE = ("-O3", "-shared", "-fPIC")
# Later rows for compilers that know no OpenMP (Apple's clang) or no -march=native.
_FLAGS = (("-march=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())


def cache_folder() -> Path:
    """Folder of built libraries: `$DECMEM_CACHE`, else `decmem` in the user's cache folder."""
    chosen = os.environ.get("DECMEM_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "decmem"


@functools.lru_cache(maxsize=8)
def built(source: Path, extra: tuple[str, ...] = ()) -> Path | None:
    """Path of the library of one C file, compiled if need be; None without a compiler or a writable folder.

    Args:
        source: The C file.
        extra: Flags besides optimisation, threads and the processor's own instructions.
    """
    compiler = next((found for found in map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")) if found), None)
    if compiler is None:
        return None
    # -march=native code must not reach another kind of processor through a shared home folder.
    text = source.read_text(encoding="utf-8")
    key = "\n".join((text, compiler, platform.machine(), _processor(), repr((_FLAGS, extra))))
    name = f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    for folder in (cache_folder(), Path(tempfile.gettempdir()) / f"decmem-{_user()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            target = folder / name
            if target.is_file() or _build(compiler, source, extra, target):
                ctypes.CDLL(str(target))
                return target
        except OSError:
            continue
    return None


def _build(compiler: str, source: Path, extra: tuple[str, ...], target: Path) -> bool:
    """Compile next to the target, then rename: another process sees the whole library or none."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as folder:
        made = Path(folder) / target.name
        for flags in _FLAGS:
            command = [compiler, *_BASE, *extra, *flags, "-o", str(made), str(source), "-lm"]
            if subprocess.run(command, capture_output=True).returncode == 0:
                os.replace(made, target)
                return True
    return False


_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads(wanted: int) -> int:
    """Threads a library may use: one in a forked child, where OpenMP waits for ever for its parent's threads."""
    return 1 if _forked else max(wanted, 1)


def _processor() -> str:
    """What tells kinds of processors apart: the first model name and flags of /proc/cpuinfo, else platform's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(next((line for line in lines if line.startswith(name)), "") for name in ("model name", "flags"))


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else "user"
