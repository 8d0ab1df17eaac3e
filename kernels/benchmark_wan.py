"""Check, then time, the kernels at the shape of the paper's model: ``python -m decmem_env.kernels.benchmark_wan``.

Wan-1.3B at 352 x 640 (DecMem, arXiv 2605.31336): 12 heads of 128, a chunk of 4 latents of 880 tokens, 6 blocks of 146
or 147 tokens a latent, 80 blocks for every (head, query block). FLOPs are useful ones: real queries times real listed
keys.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .benchmark import FORWARD_BOUND, GRADIENT_BOUND, matrix_product_tflops, relative
from .block_selection import pool_blocks, select_blocks
from .block_sparse_attention import block_sparse_attention, hopper, tuning
from .dense_attention import dense_attention

WINDOW, DENSE_LATENTS = 12, 600  # latents of the local branch; most that dense attention is timed at
HEADS, DIM, LATENTS, BLOCKS, BLOCK, TOP = 12, 128, 4, 6, 147, 80
# Where 880 tokens are cut into 6 blocks: two of 146 and four of 147.
SIZES = [-(-880 * (i + 1) // BLOCKS) - -(-880 * i // BLOCKS) for i in range(BLOCKS)]


class Inputs(NamedTuple):
    """One attention call.

    Attributes:
        q: ``[1, H, 24 * 147, 128]``.
        k: ``[1, H, history * 6 * 147, 128]``.
        v: like ``k``.
        grad: gradient of the output.
        lists: int32 ``[1, H, 24, 80]``, ascending.
        counts: int32 ``[1, H, 24]``.
        kv_sizes: int32 ``[history * 6]``.
        flops: useful ones of the forward pass.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor
    lists: Tensor
    counts: Tensor
    kv_sizes: Tensor
    flops: float

    def attend(self, backend: str, *leaves: Tensor, **more: Any) -> Any:
        """Our attention; a variant of a backend is written "hopper:rows apart 32", any words of these."""
        backend, _, variant = backend.partition(":")
        hopper.FORWARD = "rows" if "rows" in variant else "columns"
        hopper.GRADIENTS = "apart" if "apart" in variant else "together"
        hopper.STRIP = 32 if "32" in variant else None
        q, k, v = leaves or (self.q, self.k, self.v)
        options = {"q_block": BLOCK, "kv_block": BLOCK, "kv_sizes": self.kv_sizes, "backend": backend, **more}
        return block_sparse_attention(q, k, v, self.lists, self.counts, **options)


def make_inputs(history: int, heads: int = HEADS, seed: int = 0) -> Inputs:
    """Random bf16 tensors and uniformly random lists over ``history`` latents."""
    rng = torch.Generator("cuda").manual_seed(seed)

    def normal(tokens: int) -> Tensor:
        return torch.randn(1, heads, tokens, DIM, generator=rng, device="cuda", dtype=torch.bfloat16)

    queries, blocks = LATENTS * BLOCKS, history * BLOCKS
    order = torch.rand(1, heads, queries, blocks, generator=rng, device="cuda").topk(min(TOP, blocks), -1).indices
    lists = order.sort(-1).values.int()
    counts = torch.full((1, heads, queries), lists.shape[-1], dtype=torch.int32, device="cuda")
    sizes = torch.tensor(SIZES, device="cuda", dtype=torch.int32)
    kv_sizes = sizes.repeat(history)
    rows = sizes.repeat(LATENTS).double()
    flops = 4.0 * DIM * float((rows * kv_sizes[lists.long()].sum(-1)).sum())
    q, k, v, grad = (normal(t * BLOCK) for t in (queries, blocks, blocks, queries))
    return Inputs(q, k, v, grad, lists, counts, kv_sizes, flops)


def describe(got: Tensor, want: Tensor) -> str:
    """Where two results ``[1, H, T, D]`` differ most: enough to tell a wrong tile, row, channel or piece."""
    a, b = got.float(), want.float()
    wrong = (a - b).abs().nan_to_num(nan=1e30)
    place = torch.unravel_index(wrong.argmax(), wrong.shape)
    _, h, t, c = (int(x) for x in place)
    rows = wrong[:, :, : wrong.shape[2] // BLOCK * BLOCK].unflatten(2, (-1, BLOCK)).amax((0, 1, 2, 4))
    groups = [f"{float(x.max()):.1e}" for x in rows.split(16)]
    channels = [f"{float(x.max()):.1e}" for x in wrong.amax((0, 1, 2)).split(32)]
    return (
        f"worst at head {h} block {t // BLOCK} row {t % BLOCK} channel {c}: got {float(a[place]):.4f}, want "
        f"{float(b[place]):.4f}; NaN {int(a.isnan().sum())}; by 16 rows {' '.join(groups)}; by 32 channels "
        f"{' '.join(channels)}; by head {' '.join(f'{float(x):.1e}' for x in wrong.amax((0, 2, 3))[:12])}"
    )


def compare(label: str, names: str, got: list[Tensor], want: list[Tensor]) -> list[str]:
    """Print a line for each pair of results; returns the failures."""
    failures = []
    for name, a, b in zip(names.split(), got, want, strict=True):
        finite = ~b.isinf()
        same = bool((finite == ~a.isinf()).all())
        error = relative(torch.where(finite, a.float(), 0.0), torch.where(finite, b.float(), 0.0))
        good = same and error <= (FORWARD_BOUND if name in ("out", "lse") else GRADIENT_BOUND)
        print(f"  {label} {name}: {error:.1e}{'' if good else ' WRONG'}", flush=True)
        if not good:
            failures.append(f"{label} {name} {error:.1e}")
            print(
                f"    {describe(a if a.dim() == 4 else a[..., None], b if b.dim() == 4 else b[..., None])}", flush=True
            )
    return failures


def check(backend: str, history: int = 20, heads: int = 3) -> list[str]:
    """Compare with the definition in fp32, a single block first; prints lines for each case, returns the failures."""
    failures = []
    for case, factor, ragged in [("tiny", 1.0, False), *itertools.product(("full",), (1.0, 4.0, 16.0), (False, True))]:
        x = make_inputs(*((1, 1) if case == "tiny" else (history, heads)), seed=int(factor))
        if ragged:
            # Counts from 0 to 80, and NaN in every row that no list reaches.
            rng = torch.Generator().manual_seed(3)
            counts = torch.randint(0, x.lists.shape[-1] + 1, x.counts.shape, generator=rng).int()
            counts[0, 0, :2] = torch.tensor([0, 1])
            past = torch.arange(BLOCK, device="cuda") >= x.kv_sizes[:, None]
            x = x._replace(counts=counts.cuda())
            x = x._replace(k=x.k.masked_fill(past.flatten()[:, None], torch.nan))
            x = x._replace(v=x.v.masked_fill(past.flatten()[:, None], torch.nan))
        q = x.q * factor
        label = f"{backend} x{factor:.0f} {'ragged' if ragged else case}"
        leaves, exact = ([y.to(t).detach().requires_grad_() for y in (q, x.k, x.v)] for t in (q.dtype, torch.float32))
        got, want = (list(x.attend(b, *y, return_lse=True)) for b, y in ((backend, leaves), ("naive", exact)))
        failures += compare(label, "out lse", got, want)
        grads = list(torch.autograd.grad(got[0], leaves, x.grad))
        failures += compare(label, "dq dk dv", grads, list(torch.autograd.grad(want[0], exact, x.grad.float())))
    return failures


def flushed_ms(function: Callable[[], object], repeats: int = 100, warm: int = 5) -> float:
    """Median time of a call with nothing of its inputs left in the L2 cache."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    times = []
    for i in range(repeats + warm):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        if i >= warm:
            times.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(s.elapsed_time(e) for s, e in times)


def flex_ms(x: Inputs) -> dict[str, float]:
    """FlexAttention on the same blocks, each padded to 192 tokens (three of its tiles of 64)."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    width = 192

    def pad(y: Tensor) -> Tensor:
        blocks = y.unflatten(2, (-1, BLOCK))
        return torch.nn.functional.pad(blocks, (0, 0, 0, width - BLOCK)).flatten(2, 3)

    sizes = x.kv_sizes

    def within(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return j % width < sizes[j // width]

    q, k, v = (pad(y) for y in (x.q, x.k, x.v))
    order = torch.zeros(*x.lists.shape[:3], k.shape[2] // width, dtype=torch.int32, device="cuda")
    order[..., : x.lists.shape[3]] = x.lists
    mask = BlockMask.from_kv_blocks(
        x.counts, order, BLOCK_SIZE=width, mask_mod=within, seq_lengths=(q.shape[2], k.shape[2])
    )
    flex: Any = torch.compile(flex_attention, dynamic=False)
    options = {"BLOCK_M": 64, "BLOCK_N": 64}

    def run() -> Tensor:
        return flex(q, k, v, block_mask=mask, kernel_options=options)  # type: ignore[no-any-return]

    error = relative(run().unflatten(2, (-1, width))[:, :, :, :BLOCK].flatten(2, 3), x.attend("triton"))
    ms = flushed_ms(run, 30)
    return {"ms": ms, "tflops": x.flops / ms * 1e-9, "error": error}


def dense_ms(latents: int) -> dict[str, float]:
    """Dense attention of a chunk to all real tokens of some latents, by the fastest library kernel (`choice`)."""
    q, k, v = (
        torch.randn(1, HEADS, tokens, DIM, device="cuda", dtype=torch.bfloat16)
        for tokens in (LATENTS * BLOCKS * BLOCK, *[latents * sum(SIZES)] * 2)
    )
    ms = flushed_ms(functools.partial(dense_attention, q, k, v), 20)
    return {"ms": ms, "tflops": 4.0 * HEADS * DIM * LATENTS * sum(SIZES) * k.shape[2] / ms * 1e-9}


def backward_ms(x: Inputs, backend: str, repeats: int) -> float:
    """Median time of the gradients."""
    leaves = [y.detach().requires_grad_() for y in (x.q, x.k, x.v)]
    out = x.attend(backend, *leaves)
    return flushed_ms(lambda: torch.autograd.grad(out, leaves, x.grad, retain_graph=True), repeats, 2)


def sweep(x: Inputs) -> None:
    """Time launch settings of the Triton kernels; the best of each stays set."""
    for kernel in ("forward", "query_gradient", "key_gradient"):
        key = (kernel, tuning.row_tile(BLOCK), DIM)
        times: dict[tuple[int, int, int], float] = {}
        for candidate in [tuning.TUNING[key], *itertools.product((32, 64, 128), (4, 8), (2, 3, 4))]:
            tuning.TUNING[key] = tuning.Config(*candidate)
            try:
                if kernel == "forward":
                    with torch.no_grad():
                        times[candidate] = flushed_ms(lambda: x.attend("triton"), 10, 2)
                else:
                    times[candidate] = backward_ms(x, "triton", 10)
            except Exception as error:  # a variant may need more shared memory than there is
                print(f"  {kernel} {tuple(candidate)}: {str(error).splitlines()[0][:80]}")
        best = sorted(times, key=lambda c: times[c])
        tuning.TUNING[key] = tuning.Config(*best[0])
        print(f"  {key}: " + ", ".join(f"{tuple(c)} {times[c]:.3f}" for c in best[:6]) + " ms", flush=True)


def time_history(x: Inputs, backends: list[str], gemm: float, backward: bool, selection: bool) -> dict[str, Any]:
    """Times at one history length."""
    row: dict[str, Any] = {}
    for backend in backends:
        with torch.no_grad():
            ms = flushed_ms(functools.partial(x.attend, backend))
        row[backend] = {"forward_ms": ms, "tflops": x.flops / ms * 1e-9, "share_of_gemm": x.flops / ms * 1e-9 / gemm}
        if backward:
            ms = backward_ms(x, backend, 20)
            row[backend] |= {"backward_ms": ms, "backward_tflops": 2.5 * x.flops / ms * 1e-9}
    if selection:
        row["selection"] = time_selection(x)
    return row


def time_selection(x: Inputs) -> dict[str, float]:
    """Microseconds to choose the blocks: as called, as a CUDA graph, and by ``torch.topk``.

    Raises:
        RuntimeError: the chosen blocks do not have the best scores.
    """
    pooled_q, pooled_k = pool_blocks(x.q, BLOCK), pool_blocks(x.k, BLOCK)
    limit = torch.full((1, pooled_q.shape[2]), pooled_k.shape[2], dtype=torch.int32, device="cuda")
    scores = pooled_q.double() @ pooled_k.double().transpose(-1, -2)
    chosen, best = (
        scores.gather(-1, select_blocks(pooled_q, pooled_k, TOP, limit, backend=b)[0].long()).sort(-1).values
        for b in ("triton", "naive")
    )
    worst = float((chosen - best).abs().max() / scores.std())
    if worst > 1e-4:
        raise RuntimeError(f"the selected blocks miss the best scores by {worst:.1e} of their spread")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        select_blocks(pooled_q, pooled_k, TOP, limit)
    return {
        "us": 1e3 * flushed_ms(lambda: select_blocks(pooled_q, pooled_k, TOP, limit)),
        "graph_us": 1e3 * flushed_ms(graph.replay),
        "topk_us": 1e3 * flushed_ms(lambda: select_blocks(pooled_q, pooled_k, TOP, limit, backend="naive")),
        "worst": worst,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        arguments: command line, default ``sys.argv[1:]``.

    Returns:
        0, or 1 if a check failed.
    """
    parser = argparse.ArgumentParser(prog="python -m decmem_env.kernels.benchmark_wan", description=__doc__)
    parser.add_argument("--backends", default="hopper,triton", help="also variants such as hopper:rows")
    parser.add_argument("--history", default="160,600", help="latents, comma-separated")
    parser.add_argument("--check-only", action="store_true")
    parser.add_argument("--backward", action="store_true", help="also time the gradients")
    parser.add_argument("--no-selection", action="store_true", help="do not time the selection of blocks")
    parser.add_argument("--peers", action="store_true", help="also time FlexAttention (once) and dense attention")
    parser.add_argument("--sweep", action="store_true", help="try launch settings of the Triton kernels first")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("the kernel benchmark needs a CUDA device; there is none")
        return 1
    failed: dict[str, list[str]] = {}
    for backend in options.backends.split(","):
        try:
            failed[backend] = check(backend)
        except Exception as error:  # the other backends are still worth a time
            failed[backend] = [str(error)]
            print(f"  {backend}: {error}", flush=True)
        print(f"{backend}: {'FAILED: ' + '; '.join(failed[backend])[:600] if failed[backend] else 'checks passed'}")
    good = [b for b, wrong in failed.items() if not wrong]
    report: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "failed": failed}
    if not options.check_only:
        gemm = matrix_product_tflops("cuda")
        report["gemm_tflops"] = gemm
        print(f"{report['gpu']}, torch {torch.__version__}, matrix product {gemm:.0f} TFLOP/s")
        histories = [int(h) for h in options.history.split(",")]
        for history in histories:
            x = make_inputs(history)
            if options.sweep:
                sweep(x)
            row = report[f"history {history}"] = time_history(x, good, gemm, options.backward, not options.no_selection)
            if options.peers and history <= DENSE_LATENTS:
                row |= {"dense": dense_ms(history), "dense window": dense_ms(WINDOW)}
            if options.peers and history == histories[0]:  # it takes as long at every history
                try:
                    row["flex"] = flex_ms(x)
                except Exception as error:  # a peer that cannot run must not end the table
                    row["flex"] = {"failed": str(error)[:300]}
            for name, values in row.items():
                shown = values if isinstance(values, dict) else {"": values}
                print(f"history {history} {name}: " + ", ".join(
                    f"{n} {t:.4g}" if isinstance(t, float) else f"{n} {t}" for n, t in shown.items()
                ), flush=True)  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    return int(any(failed.values()))


if __name__ == "__main__":
    sys.exit(main())
