"""Time Wan's autoencoder and TAEHV's decoder at random weights: ``python -P -m decmem_env.model.wan_vae_bench``.

A chunk is 4 latents, 16 frames. Each variant is compared with fp32 before it is timed. The file is written after every
row; rows that would begin after the time budget are left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import channel_norm
from .taehv import TinyVideoDecoder
from .wan_autoencoder import WanAutoencoder
from .wan_size import WanAutoencoderConfig

CHUNK = 4
# Operations of a steady chunk at 352x640 and width 96, as FlopCounterMode counts them.
DECODE_TFLOP, ENCODE_TFLOP, TINY_TFLOP = 30.52, 18.11, 1.189
CONVOLUTIONS = ((96, 352, 640, 16), (192, 176, 320, 16), (384, 88, 160, 8))  # channels, rows, columns, frames


class Bench:
    """Rows by name, written as they come."""

    def __init__(self, path: Path | None, seconds: float, device: torch.device) -> None:
        self.path, self.device, self.stop = path, device, time.monotonic() + seconds
        name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        self.report: dict[str, Any] = {"device": name, "torch": torch.__version__, "rows": {}, "left_out": []}

    def row(self, name: str, make: Callable[[], dict[str, float]]) -> None:
        """Run one row, unless time is up; an error of one variant does not end the others."""
        if time.monotonic() > self.stop:
            self.report["left_out"].append(name)
        else:
            began = time.monotonic()
            try:
                facts: dict[str, Any] = {key: float(f"{value:.4g}") for key, value in make().items()}
            except RuntimeError as error:
                facts = {"error": str(error).splitlines()[0]}
            facts["row_s"] = round(time.monotonic() - began, 1)
            self.report["rows"][name] = facts
            print(f"{name:34}", facts, flush=True)
        if self.path is not None:
            fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            fresh.write_text(json.dumps(self.report, indent=1) + "\n", encoding="utf-8")
            fresh.replace(self.path)

    def milliseconds(self, call: Callable[[], object], repeats: int = 6) -> float:
        """Median of a call, after two to warm up."""
        times = []
        for number in range(repeats + 2):
            self.wait()
            began = time.perf_counter()
            call()
            self.wait()
            if number > 1:
                times.append(1000.0 * (time.perf_counter() - began))
        return statistics.median(times)

    def wait(self) -> None:
        """Until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@contextmanager
def variant(kernels: bool, search: bool) -> Iterator[None]:
    """With or without our kernels, and cuDNN's search for the fastest algorithm."""
    with (
        mock.patch.object(channel_norm, "_HAS_TRITON", kernels),
        torch.backends.cudnn.flags(enabled=True, benchmark=search, deterministic=False, allow_tf32=False),
        torch.no_grad(),
    ):
        yield


def distance(a: Tensor, b: Tensor) -> float:
    """Relative L2."""
    return float((a.float() - b.float()).norm() / b.float().norm())


def time_coder(
    bench: Bench,
    run: Callable[[Tensor, list[Tensor] | None], tuple[Tensor, list[Tensor]]],
    first: Tensor,
    steady: Tensor,
    tflop: float | None,
    exact: Tensor | None = None,
) -> dict[str, float]:
    """Times of the beginning and of a steady chunk, memory, and the error against fp32."""
    caches = run(first, None)[1]
    error = {} if exact is None else {"error_to_fp32": distance(run(steady, caches)[0], exact)}
    peak = {}
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ms = bench.milliseconds(lambda: run(steady, caches))
    if bench.device.type == "cuda":
        peak = {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}
    cache = sum(t.numel() * t.element_size() for t in caches) / 2**20
    frames = 4 * CHUNK
    return {
        "ms_per_chunk": ms,
        "frames_per_second": 1000.0 * frames / ms,
        **({} if tflop is None else {"tflop_per_second": 1000.0 * tflop / ms}),
        "first_ms": bench.milliseconds(lambda: run(first, None), 3),
        "cache_mib": cache,
        **peak,
        **error,
    }


def convolution_forms(bench: Bench, shape: tuple[int, int, int, int], dtype: torch.dtype) -> dict[str, float]:
    """One causal convolution of the decoder as cuDNN may do it; TFLOP/s of each form."""
    channels, height, width, frames = shape
    x = torch.randn(1, frames + 2, height, width, channels, device=bench.device, dtype=dtype).permute(0, 4, 1, 2, 3)
    weight = torch.randn(channels, channels, 3, 3, 3, device=bench.device, dtype=dtype) * 0.02
    volume = weight.contiguous(memory_format=torch.channels_last_3d)
    planes = [weight[:, :, i].contiguous(memory_format=torch.channels_last) for i in range(3)]
    stacked = torch.cat(planes).contiguous(memory_format=torch.channels_last)
    images = x[0].transpose(0, 1)

    def whole() -> Tensor:
        return F.conv3d(x, volume, padding=(0, 1, 1))

    def three_planes() -> Tensor:
        made = F.conv2d(images[:-2], planes[0], padding=1)
        return made.add_(F.conv2d(images[1:-1], planes[1], padding=1)).add_(F.conv2d(images[2:], planes[2], padding=1))

    def stacked_planes() -> Tensor:
        a, b, c = F.conv2d(images, stacked, padding=1).split(channels, 1)
        return (a[:-2] + b[1:-1]).add_(c[2:])

    tflop = 2e-12 * 27 * channels**2 * height * width * frames
    expected = whole()[0].transpose(0, 1)
    result = {"conv3d": 1000.0 * tflop / bench.milliseconds(whole)}
    for name, form in (("three_conv2d", three_planes), ("stacked_conv2d", stacked_planes)):
        result[f"{name}_error"] = distance(form(), expected)
        result[name] = 1000.0 * tflop / bench.milliseconds(form)
    return result


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=35.0, help="begin no row after this many (default 35)")
    parser.add_argument("--size", type=int, nargs=3, default=(352, 640, 96), metavar=("H", "W", "WIDTH"))
    parser.add_argument("--compile", action="store_true", help="torch.compile too (minutes on a cold cache)")
    options = parser.parse_args()
    height, columns, width = options.size
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    bench = Bench(options.json, options.seconds, device)
    torch.manual_seed(0)
    with device:
        model = WanAutoencoder(WanAutoencoderConfig(height=height, width=columns, base_width=width))
        tiny = TinyVideoDecoder().to(dtype).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        z = torch.randn(16, 1 + CHUNK, *model.config.latent_shape[1:])[None]
        pixels = torch.rand(3, 1 + 4 * CHUNK, height, columns)[None] * 2 - 1
    model.eval().requires_grad_(False).use_channels_last()
    tiny.requires_grad_(False)
    with variant(False, False):
        exact = model.decode_chunk(z[:, :, 1:].contiguous(memory_format=model.memory_format), _begin(model, z))[0]
    model.to(dtype)
    first, steady, frame, frames = (
        part.to(dtype).contiguous(memory_format=model.memory_format)
        for part in (z[:, :, :1], z[:, :, 1:], pixels[:, :, :1], pixels[:, :, 1:])
    )
    full = tuple(options.size) == (352, 640, 96)
    decode, encode, small = (DECODE_TFLOP, ENCODE_TFLOP, TINY_TFLOP) if full else (None, None, None)

    def decoding(run: Any) -> dict[str, float]:
        return time_coder(bench, run, first, steady, decode, exact)

    def tiny_decoding(run: Any) -> dict[str, float]:
        head, rest = (part[0].transpose(0, 1).contiguous(memory_format=torch.channels_last) for part in (first, steady))
        return time_coder(bench, run, head, rest, small)

    for name, settings in (
        ("wan decode, kernels", (True, False)),
        ("wan decode, kernels, search", (True, True)),
        ("wan decode, plain", (False, False)),
    ):
        with variant(*settings):
            bench.row(name, lambda: decoding(model.decode_chunk))
    with variant(True, False):
        bench.row("taehv decode", lambda: tiny_decoding(tiny.decode_chunk))
        bench.row("wan encode, kernels", lambda: time_coder(bench, model.encode_chunk, frame, frames, encode))
    for shape in CONVOLUTIONS if full else ((8, 6, 10, 4),):
        with variant(True, False):
            name = f"convolution {'x'.join(map(str, shape))}, TFLOP/s"
            bench.row(name, lambda shape=shape: convolution_forms(bench, shape, dtype))  # type: ignore[misc]
    if options.compile:
        with variant(False, False):
            bench.row("taehv decode, compiled", lambda: tiny_decoding(torch.compile(tiny.decode_chunk, dynamic=False)))
            bench.row("wan decode, compiled", lambda: decoding(torch.compile(model.decode_chunk, dynamic=False)))
    if bench.report["left_out"]:
        print("left out, no time:", ", ".join(bench.report["left_out"]))


def _begin(model: WanAutoencoder, z: Tensor) -> list[Tensor]:
    return model.decode_chunk(z[:, :, :1].contiguous(memory_format=model.memory_format), None)[1]


if __name__ == "__main__":
    main()
