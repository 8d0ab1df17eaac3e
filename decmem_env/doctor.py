"""What this machine can do: the checks behind `decmem doctor`."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        name: What was looked for.
        ok: True works, False is needed and missing, None is optional and missing.
        found: What is there.
        mend: What to do when it is missing.
    """

    name: str
    ok: bool | None
    found: str
    mend: str = ""


def examine() -> list[Finding]:
    """Run every check; none of them raises."""
    findings: list[Finding] = []
    for check in _CHECKS:
        try:
            findings.extend(check())
        except Exception as error:  # a broken installation must not break its own diagnosis
            name = check.__name__.strip("_").replace("_", " ")
            findings.append(
                Finding(name, False, f"{type(error).__name__}: {error}", "reinstall: pip install decmem-env")
            )
    return findings


def _python() -> list[Finding]:
    good = sys.version_info >= (3, 10)
    package = Finding("decmem-env", True, f"{version('decmem-env')} in {Path(__file__).resolve().parent}")
    return [
        package,
        Finding("python", good, f"{platform.python_version()} on {platform.system()}", "use Python 3.10 or later"),
    ]


def _torch() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("torch", False, str(error), "pip install torch")]
    cores = os.cpu_count()
    found = [Finding("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads on {cores} cores")]
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        found.append(Finding("device", True, f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"))
    else:
        note = "a CUDA build of torch makes training and the full-size model possible"
        found.append(Finding("device", None, "cpu only", note))
    return found


def _memory() -> list[Finding]:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return [Finding("memory", None, "not known on this system")]
    return [Finding("memory", total >= 3, f"{total:.1f} GiB, {free:.1f} GiB free", "the bundled model wants 3 GiB")]


def _compiler() -> list[Finding]:
    found = next((path for path in map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")) if path), None)
    mend = (
        "install gcc or clang; without it rendering and attention on the CPU run in plain torch, several times slower"
    )
    return [Finding("C compiler", True if found else None, found or "none", mend)]


def _renderer() -> list[Finding]:
    import numpy as np
    import torch

    from decmem_env import worlds

    mend = "install a C compiler (gcc or clang): it is built on first use; the torch twin draws the same, slower"
    try:
        blocks = torch.as_tensor(worlds.generate_world(0).blocks)[None]
        start = time.perf_counter()
        renderer = worlds.Renderer(height=16, width=16)
        renderer.render(blocks, np.zeros(1, np.int64), np.array([[128.5, 40.0, 128.5, 0.0, 0.0]]))
        spent = time.perf_counter() - start
    except Exception as error:  # a compiler may fail in any way
        return [Finding("voxel renderer", False, f"{type(error).__name__}: {error}", mend)]
    text = f"{renderer.backend}, world version {worlds.VERSION}, first frame after {spent:.1f} s"
    return [Finding("voxel renderer", True if renderer.backend == "c" else None, text, mend)]


def _triton() -> list[Finding]:
    return [_package("triton", "pip install triton (Linux with an NVIDIA GPU); the CPU needs none")]


def _packages() -> list[Finding]:
    needed = [_package("gymnasium", "pip install gymnasium", needed=True)]
    optional = [
        _package("pygame", 'pip install "decmem-env[play]"', distribution="pygame-ce"),
        _package("stable_baselines3", 'pip install "decmem-env[rl]"', distribution="stable-baselines3"),
    ]
    return needed + optional


def _ffmpeg() -> list[Finding]:
    mend = 'pip install "imageio[ffmpeg]", or put ffmpeg on the path'
    try:
        import imageio_ffmpeg

        return [Finding("ffmpeg", True, str(imageio_ffmpeg.get_ffmpeg_version()))]
    except (ImportError, RuntimeError) as error:
        return [Finding("ffmpeg", False, str(error), mend)]


def _weights() -> list[Finding]:
    import decmem_env.model as model

    root = Path(model.__file__).resolve().parent / "weights"
    mend = "reinstall decmem-env, or train your own: decmem train --help"
    found = []
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        files = sorted(folder.glob("*.safetensors"))
        digest = hashlib.sha256()
        for file in files:
            digest.update(file.read_bytes())
        size = sum(file.stat().st_size for file in files) / 2**20
        complete = {"transformer.safetensors", "autoencoder.safetensors"} <= {file.name for file in files}
        complete &= (folder / "config.json").is_file()
        text = f"{size:.1f} MiB, sha256 {digest.hexdigest()[:16]}"
        found.append(Finding(f"weights {folder.name}", complete, text, mend))
    return found or [Finding("weights", False, f"none in {root}", mend)]


def _cache() -> list[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        free = shutil.disk_usage(folder).free / 2**30
    return [Finding("disk for temporary files", free > 0.5, f"{free:.1f} GiB free", "set TMPDIR to a larger disk")]


def _package(module: str, mend: str, needed: bool = False, distribution: str | None = None) -> Finding:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        importlib.import_module(module)
        number = version(distribution or module)
    except PackageNotFoundError:
        number = "present"
    except ImportError as error:
        return Finding(module, False if needed else None, f"not installed ({error})", mend)
    return Finding(module, True, number)


_CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    _python,
    _torch,
    _memory,
    _compiler,
    _renderer,
    _triton,
    _packages,
    _ffmpeg,
    _weights,
    _cache,
)
