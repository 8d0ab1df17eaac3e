"""Check, then time, block-sparse attention and block selection: ``python -m decmem_env.kernels.benchmark``.

A kernel whose check fails gets no time. FLOPs are useful ones: ``4 * D * query tokens * listed key tokens`` forward,
2.5 times that backward. Times are medians of CUDA events.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .benchmark_flex import flex
from .benchmark_shapes import BLOCKS, TOKENS, TOP, Shape, tiny_shapes
from .block_selection import pool_blocks, select_blocks
from .block_sparse_attention import block_sparse_attention, grouping, invert_lists, tuning

HEADS, DIM = 5, 64
FORWARD_BOUND, GRADIENT_BOUND = 5e-3, 1e-2
PEER_BOUND = 2e-2  # a peer need not be as exact as ours, but must compute the same


def median_ms(function: Callable[[], object], repeats: int = 50, seconds: float = 2.0) -> float:
    """Median time of a call on the GPU in milliseconds, after three to warm up; fewer repeats if time runs out."""
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    times: list[float] = []
    stop = time.monotonic() + seconds
    while len(times) < repeats and (time.monotonic() < stop or len(times) < 10):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def matrix_product_tflops(device: str) -> float:
    """Rate of a bf16 product of two 8192 x 8192 matrices: what to compare attention with."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    return 2 * 8192.0**3 / median_ms(lambda: a @ a, 20) * 1e-9


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance."""
    return float((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-30))


def random_inputs(shape: Shape, batch: int, device: str) -> list[Tensor]:
    """bf16 q, k, v and output gradient of a shape."""
    rng = torch.Generator(device).manual_seed(1)
    tokens_q = shape.lists.shape[2] * shape.q_block
    sizes = (tokens_q, shape.key_tokens, shape.key_tokens, tokens_q)
    return [torch.randn(batch, HEADS, t, DIM, generator=rng, device=device, dtype=torch.bfloat16) for t in sizes]


def attend(shape: Shape, leaves: list[Tensor], **more: Any) -> Tensor:
    """Our attention with the lists of a shape."""
    q, k, v = leaves
    options = {"q_block": shape.q_block, "kv_block": shape.kv_block, **more}
    return block_sparse_attention(q, k, v, shape.lists, shape.counts, **options)


def check(shape: Shape, inputs: list[Tensor], run: Callable[..., Tensor] | None = None) -> dict[str, float]:
    """Errors of one row and head against the definition in fp32, with logits times 1, 4 and 16.

    The kernels run on all rows and heads: on one alone they would not merge the lists of small blocks.

    Args:
        shape: lists of blocks.
        inputs: of :func:`random_inputs`.
        run: attention of q, k and v, ours if None; rows without keys may hold anything.

    Returns:
        Relative L2 distances by name.
    """
    part = shape._replace(lists=shape.lists[-1:, -1:].contiguous(), counts=shape.counts[-1:, -1:].contiguous())
    used = (shape.counts > 0).repeat_interleave(shape.q_block, 2)[..., None]
    q, k, v, grad = (x.detach() for x in inputs)
    errors: dict[str, float] = {}
    for factor in (1.0, 4.0, 16.0):
        leaves = [x.clone().requires_grad_() for x in (q * factor, k, v)]
        out = torch.where(used, run(*leaves), 0.0) if run else attend(shape, leaves, backend="triton")
        ours = [x[-1:, -1:] for x in (out.detach(), *torch.autograd.grad(out, leaves, grad))]
        single = [x[-1:, -1:].detach().float().requires_grad_() for x in leaves]
        out = attend(part, single, backend="naive")
        wanted = [out.detach(), *torch.autograd.grad(out, single, grad[-1:, -1:].float())]
        for name, a, b in zip(("out", "dq", "dk", "dv"), ours, wanted, strict=True):
            errors[f"{name} x{factor:.0f}"] = relative(a, b) if bool(a.isfinite().all()) else float("inf")
    return errors


def failures(errors: dict[str, float]) -> list[str]:
    """Errors that break the bounds (or are NaN)."""
    return [f"{n} {e:.1e}" for n, e in errors.items() if not e <= (FORWARD_BOUND if n[:3] == "out" else GRADIENT_BOUND)]


def time_backward(out: Tensor, leaves: list[Tensor], grad: Tensor, repeats: int = 50, seconds: float = 2.0) -> float:
    """Median time of the gradients of ``out``."""
    return median_ms(lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True), repeats, seconds)


def time_shape(shape: Shape, inputs: list[Tensor]) -> dict[str, float]:
    """Times of forward, backward (with and without building the inverse lists) and both."""
    q, k, v, grad = inputs
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    inverse = invert_lists(shape.lists, shape.counts, shape.key_tokens // shape.kv_block)

    def forward(**more: Any) -> Tensor:
        return attend(shape, leaves, **more)

    result: dict[str, float] = {}
    with torch.no_grad():
        result["forward_ms"] = median_ms(forward)
    given: dict[str, Any] = {"inverse": inverse}
    for name, more in (("backward_ms", {}), ("backward_given_inverse_ms", given)):
        result[name] = time_backward(forward(**more), leaves, grad)
    result["both_ms"] = median_ms(lambda: torch.autograd.grad(forward(), leaves, grad))
    blocks = shape.key_tokens // shape.kv_block
    result["invert_ms"] = median_ms(lambda: invert_lists(shape.lists, shape.counts, blocks))
    pairs = float(shape.counts.expand(q.shape[0], HEADS, -1).sum()) * shape.q_block * shape.kv_block
    flops = 4.0 * DIM * pairs
    result["forward_tflops"] = flops / result["forward_ms"] * 1e-9
    result["backward_tflops"] = 2.5 * flops / result["backward_ms"] * 1e-9
    return result


def time_peer(shape: Shape, inputs: list[Tensor]) -> dict[str, float]:
    """FlexAttention, compiled, with the same lists as a mask and a prebuilt BlockMask, checked as ours is."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs[:3]]
    theirs = flex(shape, len(leaves[0]), HEADS)
    errors = check(shape, inputs, theirs)
    if bad := [f"{n} {e:.1e}" for n, e in errors.items() if not e <= PEER_BOUND]:
        raise RuntimeError(f"FlexAttention differs from the definition: {', '.join(bad)}")
    both = median_ms(lambda: torch.autograd.grad(theirs(*leaves), leaves, inputs[3]), 20)
    own = median_ms(lambda: torch.autograd.grad(attend(shape, leaves), leaves, inputs[3]), 20)
    worst = max(errors.values())
    return {"batch": len(leaves[0]), "error": worst, "flex_both_ms": both, "ours_both_ms": own, "speedup": both / own}


def time_selection(batch: int, frames: int, device: str) -> dict[str, float]:
    """Pooling, and selection of 48 blocks: this kernel against ``torch.topk``."""
    q = torch.randn(batch, HEADS, 2 * frames * TOKENS, DIM, device=device, dtype=torch.bfloat16)
    k = q[:, :, : frames * TOKENS]
    q_pooled, k_pooled = pool_blocks(q, 10), pool_blocks(k, 10)
    limit = (torch.arange(frames * BLOCKS, device=device) // BLOCKS * BLOCKS).repeat(2)[None].int()
    ours, reference = (select_blocks(q_pooled, k_pooled, TOP, limit, backend=b) for b in ("triton", "naive"))
    different = float((ours[0] != reference[0]).float().mean())
    if different > 1e-3 or not torch.equal(ours[1], reference[1]):
        raise RuntimeError(f"selection is wrong: {different:.1e} of the entries differ")
    return {
        "different_entries": different,
        "pool_ms": median_ms(lambda: (pool_blocks(q, 10), pool_blocks(k, 10))),
        "scores_ms": median_ms(lambda: q_pooled @ k_pooled.transpose(-1, -2), 20),
        "select_ms": median_ms(lambda: select_blocks(q_pooled, k_pooled, TOP, limit), 20),
        "select_topk_ms": median_ms(lambda: select_blocks(q_pooled, k_pooled, TOP, limit, backend="naive"), 10),
    }


def sweep(shape: Shape, inputs: list[Tensor], seconds: float) -> dict[str, dict[str, float]]:
    """Time variants of the launch settings, one kernel at a time; the best one of each stays set for the next."""
    q, k, v, grad = inputs
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    inverse = invert_lists(shape.lists, shape.counts, shape.key_tokens // shape.kv_block)

    def forward() -> Tensor:
        return attend(shape, leaves, inverse=inverse)

    with torch.no_grad():
        wanted = forward()
    found: dict[str, dict[str, float]] = {}
    for kernel in ("forward", "query_gradient", "key_gradient"):
        sides = (shape.q_block, q.shape[2] // shape.q_block), (shape.kv_block, k.shape[2] // shape.kv_block)
        (block, blocks), (_, others) = reversed(sides) if kernel == "key_gradient" else sides
        tile = tuning.row_tile(block * grouping.group_size(block, blocks, others, q.shape[0] * q.shape[1]))
        key = (kernel, tile, tuning.padded_channels(DIM))
        warps = (1, 2) if tile == 16 else (4, 8)
        steps = (16, 32, 64) if tile == 16 else (32, 64, 128)
        times: dict[tuple[int, int, int], float] = {}
        stop = time.monotonic() + seconds / 3
        start = tuning.TUNING[key]
        for candidate in [start, *itertools.product(steps, warps, (2, 3, 5))]:
            if candidate in times or time.monotonic() > stop:
                continue
            tuning.TUNING[key] = tuning.Config(*candidate)
            try:
                if kernel == "forward":
                    with torch.no_grad():
                        if not relative(forward(), wanted) < 1e-2:
                            raise RuntimeError("wrong result")
                        times[candidate] = median_ms(forward, 10, 0.3)
                else:
                    times[candidate] = time_backward(forward(), leaves, grad, 10, 0.3)
            except Exception as error:  # a variant may need more shared memory than there is
                print(f"  {kernel} {candidate}: {str(error).splitlines()[0][:80]}")
        best = min(times, key=lambda c: times[c])
        tuning.TUNING[key] = tuning.Config(*best)
        found[str(key)] = {str(tuple(c)): t for c, t in sorted(times.items(), key=lambda item: item[1])}
        ranking = ", ".join(f"{tuple(c)} {t:.3f}" for c, t in sorted(times.items(), key=lambda item: item[1])[:6])
        print(f"  {shape.name} {key}: {ranking} ms; table has {tuple(start)} {times.get(start, float('nan')):.3f}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        arguments: command line, default ``sys.argv[1:]``.

    Returns:
        0, or 1 if a check failed.
    """
    parser = argparse.ArgumentParser(prog="python -m decmem_env.kernels.benchmark", description=__doc__)
    parser.add_argument("--preset", choices=["tiny"], default="tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--only", help="comma-separated shape names")
    parser.add_argument("--peers", action="store_true", help="also time FlexAttention")
    parser.add_argument("--sweep", action="store_true", help="try launch settings on the union and window shapes")
    parser.add_argument("--sweep-seconds", type=float, default=25.0, help="per shape")
    parser.add_argument("--apart", action="store_true", help="do not merge the lists of neighbouring small blocks")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.apart:
        grouping.MIN_PROGRAMS = sys.maxsize
    if not torch.cuda.is_available():
        print("the kernel benchmark needs a CUDA device; there is none")
        return 1
    device = "cuda"
    gemm = matrix_product_tflops(device)
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "gemm_tflops": gemm, "batch": options.batch,
        "frames": options.frames, "heads": HEADS, "dim": DIM, "shapes": {},
    }  # fmt: skip
    print(f"{report['gpu']}, torch {torch.__version__}, matrix product {gemm:.0f} TFLOP/s")
    failed = False
    try:
        report["selection"] = time_selection(options.batch, options.frames, device)
        print("selection", {n: round(t, 4) for n, t in report["selection"].items()})
    except RuntimeError as error:
        failed, report["selection"] = True, {"error": str(error)}
        print("selection:", error)
    wanted = options.only.split(",") if options.only else None
    for shape in tiny_shapes(options.batch, HEADS, options.frames, torch.device(device)):
        if wanted and shape.name not in wanted:
            continue
        row: dict[str, Any] = {}
        report["shapes"][shape.name] = row
        inputs = random_inputs(shape, options.batch, device)
        row["errors"] = check(shape, inputs)
        worst = max(row["errors"], key=lambda n: row["errors"][n])
        print(f"{shape.name}: largest error {worst} {row['errors'][worst]:.1e}", flush=True)
        if bad := failures(row["errors"]):
            failed = True
            print(f"  check failed, not timed: {', '.join(bad)}")
            continue
        if options.sweep and shape.name in ("union related", "window"):
            row["sweep"] = sweep(shape, inputs, options.sweep_seconds)
        row.update(time_shape(shape, inputs))
        print("  " + ", ".join(f"{n} {x:.3f}" for n, x in row.items() if isinstance(x, float)), flush=True)
        if options.peers:
            try:
                row["peer"] = time_peer(shape, inputs)
                print(f"  peer {row['peer']}", flush=True)
            except Exception as error:  # a peer that cannot run must not end the table
                row["peer"] = {"error": str(error)[:300]}
                print(f"  FlexAttention: {str(error)[:300]}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
