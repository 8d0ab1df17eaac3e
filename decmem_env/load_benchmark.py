"""Time and memory of loading a checkpoint file: a fresh process loads a file of random weights from the page cache."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def load_speed(preset: str, device: str, dtype: str) -> dict[str, Any]:
    """Write random fp32 weights of a preset, then load them in a fresh process.

    Args:
        preset: Of `model.config`.
        device: Where the module goes.
        dtype: `float32`, `float16` or `bfloat16`, of the module.

    Returns:
        `seconds`, `gigabytes` of the file, `memory_over_file` (growth of the process's peak resident memory over the
        file's size), and how it was measured.

    Raises:
        ValueError: The loading process failed; its last line is in the message.
    """
    import torch

    from .model.config import preset as sizes
    from .model.importing import parameter_shapes
    from .model.weight_writer import write_safetensors

    shapes = parameter_shapes(sizes(preset))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "transformer.safetensors"
        layout = {name: (shape, torch.float32) for name, shape in shapes.items()}
        write_safetensors(file, layout, lambda name: torch.randn(shapes[name]), {})
        file.read_bytes()  # into the page cache
        arguments = json.dumps([str(file), preset, device, dtype])
        done = subprocess.run(  # from that folder: the source tree's own would hide the installed package
            [sys.executable, "-m", "decmem_env.load_benchmark", arguments], cwd=folder, capture_output=True, text=True
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"loading failed: {last}")
        size = file.stat().st_size
    found = json.loads(done.stdout.strip().splitlines()[-1])
    grown = found.pop("grown_bytes")
    return {**found, "gigabytes": size / 1e9, "memory_over_file": grown / size, "preset": preset, "dtype": dtype}


def _load(file: str, preset: str, device: str, dtype: str) -> dict[str, float]:
    import torch

    from .model.config import preset as sizes
    from .model.importing import load_transformer, parameter_shapes

    place = torch.device(device)
    torch.zeros(1, device=place)  # the device's context is not part of loading
    parameter_shapes(sizes(preset))
    before = _peak()
    start = time.perf_counter()
    module, _ = load_transformer(file, sizes(preset), device=place, dtype=getattr(torch, dtype))
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    seconds = time.perf_counter() - start
    result = {"seconds": seconds, "grown_bytes": _peak() - before}
    if place.type == "cuda":
        weights = sum(parameter.nbytes for parameter in module.parameters())
        result["gpu_memory_over_weights"] = torch.cuda.max_memory_allocated(place) / weights
    return result


def _peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource  # on Linux its figure includes the process that started this one

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    print(json.dumps(_load(*json.loads(sys.argv[1]))))
