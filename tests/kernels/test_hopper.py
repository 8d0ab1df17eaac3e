"""The Hopper kernel: its source and its schedule here, its results on a GPU of compute capability 9.0."""

import itertools
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from decmem_env.kernels import block_sparse_attention, invert_lists
from decmem_env.kernels.block_sparse_attention import hopper
from decmem_env.kernels.block_sparse_attention.hopper_source import (
    SHARED_BYTES,
    ColumnsPlan,
    GradientsPlan,
    Plan,
    best_strip,
    constants,
    kernel_files,
    source,
)

from .test_block_sparse_attention import assert_near, make, run

PLANS = [
    Plan(147, 147, 128, "bf16", True), Plan(128, 128, 128, "f16", False), Plan(65, 40, 64, "bf16", False),
    Plan(192, 320, 64, "f16", True), Plan(110, 110, 128, "bf16", True), Plan(192, 320, 128, "bf16", False),
    Plan(147, 147, 128, "bf16", True, True), Plan(192, 320, 128, "bf16", False, True),
    Plan(65, 40, 64, "f16", True, True),
]  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_plan_covers_the_blocks_and_fits(plan):
    rows = (plan.pieces - 1) * plan.piece_rows + plan.last_columns
    assert plan.warpgroups * 64 >= plan.q_block and rows >= plan.kv_block
    assert rows - plan.kv_block < 8 and 0 < plan.last_columns <= plan.piece_rows
    assert plan.piece_rows % 16 == 0 and plan.last_columns % 8 == 0
    assert plan.stages >= 2 and plan.shared_bytes <= SHARED_BYTES + 1024
    groups = plan.warpgroups + 1
    assert plan.warpgroups * plan.registers + 32 <= groups * (65536 // (128 * groups) // 8 * 8)


@pytest.mark.parametrize("tiles", [1, 23, 131, 132, 133, 260, 288, 1000])
def test_every_list_position_belongs_to_one_program(tiles):
    """Schedule of ``hopper_common.cu`` in Python: rounds of whole query blocks, then equal shares."""
    programs, count = 132, 80
    whole, rest = hopper.split_rounds(tiles, programs)
    assert whole + rest == tiles and rest < programs and (rest == 0 or whole % programs == 0)
    seen = [[0] * count for _ in range(rest)]
    work = [0] * programs
    for c in range(programs):
        index = first = c * rest // programs
        while rest and index < rest:
            low, high = c * rest - index * programs, (c + 1) * rest - index * programs
            if high <= 0:
                break
            low, high = max(low, 0), min(high, programs)
            assert 0 <= index - first <= 1
            # The programs that `combine` asks for this query block.
            assert index * programs // rest <= c <= ((index + 1) * programs - 1) // rest
            for place in range(low * count // programs, high * count // programs):
                seen[index][place] += 1
                work[c] += 1
            index += 1
    assert all(x == 1 for row in seen for x in row)
    assert max(work) - min(work) <= 2


@pytest.mark.parametrize(("block", "strip"), [(147, 21), (128, 64), (110, 16), (160, 32), (63, 64), (84, 21)])
def test_strips_waste_little(block, strip):
    assert best_strip(block) == strip
    plan = ColumnsPlan(147, block, strip, True)
    assert plan.columns == 152 and plan.shared_bytes <= 232_448 - 8_192


COLUMNS = [ColumnsPlan(147, 147, 21, True), ColumnsPlan(160, 128, 64, False)]
COLUMNS += [GradientsPlan(147, 147, 21, "bf16", True, query) for query in (True, False)]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs the CUDA compiler")
@pytest.mark.parametrize("plan", [*PLANS[:2], PLANS[6], *COLUMNS])
def test_source_compiles_without_spills_and_without_waiting_for_every_product(plan, tmp_path):
    (tmp_path / "kernel.cu").write_text(source(plan))
    command = ["nvcc", "-gencode=arch=compute_90a,code=sm_90a", "-cubin", "-std=c++17", "-Xptxas", "-v"]
    command += [str(tmp_path / "kernel.cu"), "-o", str(tmp_path / "kernel.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "C751" not in done.stderr and "serialized" not in done.stderr and "C7508" not in done.stderr
    spills = [int(found) for found in re.findall(r"(\d+) bytes spill stores", done.stderr)]
    assert spills and max(spills) <= 64


def run_emulator(plan, program, head, tensors, tmp_path):
    """Run a plan's kernel on the CPU (hopper_emulator.h); returns the bytes that it wrote.

    Args:
        plan: sizes.
        program: file with ``main``.
        head: numbers that it reads first.
        tensors: what it reads after the scale.
        tmp_path: for the program.
    """
    ours, theirs = Path(__file__).parent, Path(hopper.__file__).parent
    files = [ours / "hopper_emulator.h", *(theirs / name for name in kernel_files(plan)), ours / program]
    (tmp_path / "emulated.cpp").write_text("".join([constants(plan), *(f.read_text() for f in files)]))
    command = ["g++", "-O1", "-std=c++20", "-w", str(tmp_path / "emulated.cpp"), "-o", str(tmp_path / "emulated")]
    subprocess.run(command, check=True)
    everything = [torch.tensor(head, dtype=torch.int32), torch.tensor([tensors[0].shape[3] ** -0.5]), *tensors]
    raw = b"".join(x.contiguous().flatten().view(torch.uint8).numpy().tobytes() for x in everything)
    done = subprocess.run([str(tmp_path / "emulated")], input=raw, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout.decode(errors="replace")
    return bytearray(done.stdout)


def emulate(plan, programs, tensors, tmp_path):
    """Run the kernels that own query blocks.

    Args:
        plan: sizes.
        programs: multiprocessors to play.
        tensors: q, k, v, lists, counts, sizes, and for a gradient that of the output, log-sum-exp and delta.
        tmp_path: for the program.
    """
    q, k, _, lists, *_ = tensors
    batch, heads, tokens, _ = q.shape
    q_blocks = tokens // plan.q_block
    whole, rest = hopper.split_rounds(batch * heads * q_blocks, programs)
    numbers = [batch, heads, q_blocks, k.shape[2] // plan.kv_block, lists.shape[3], programs, whole, rest]
    head = [*numbers, k.shape[0], *lists.shape[:2]]
    return run_emulator(plan, "hopper_emulator.cpp", head, tensors, tmp_path)


EMULATED = {
    "147": ({"q_block": 147, "kv_block": 147, "dim": 128, "batch": 1, "heads": 1, "length": 3}, 2, 1.0),
    "ragged shared keys": ({"q_block": 147, "kv_block": 147, "dim": 128, "sizes": True, "key_batch": 1,
                            "list_heads": 1, "queries": 2}, 3, 4.0),
    "other sizes": ({"q_block": 65, "kv_block": 45, "dim": 64, "sizes": True, "batch": 3, "list_batch": 1}, 4, 16.0),
    "columns": ({"q_block": 147, "kv_block": 147, "dim": 128, "batch": 1, "heads": 1, "length": 4, "sizes": True,
                 "queries": 4}, 3, 1.0),
    "one piece": ({"q_block": 128, "kv_block": 100, "dim": 128, "batch": 1, "heads": 1, "blocks": 9, "length": 9},
                  5, 1.0),
}  # fmt: skip


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("kind", ["rows", "columns", "strips of 32", "gradient"])
@pytest.mark.parametrize(("shape", "programs", "factor"), EMULATED.values(), ids=EMULATED.keys())
def test_emulated_kernel_matches_naive(shape, programs, factor, kind, tmp_path):
    """Rounds and shares, all roles and barriers, swizzles, masks and merges; NaN wherever nothing may look."""
    gradient = kind == "gradient"
    if kind in ("columns", "strips of 32") and shape["dim"] != 128:
        pytest.skip("128 channels only")
    q, k, v, lists, counts, options = make(**shape, dtype=torch.bfloat16)
    q = q * factor
    kv_block, sizes = options["kv_block"], options["kv_sizes"]
    if sizes is None:
        sizes = torch.full((k.shape[2] // kv_block,), kv_block, dtype=torch.int32)
    past = (torch.arange(kv_block) >= sizes[:, None]).flatten()[:, None]
    spoiled = [k.masked_fill(past, math.nan), v.masked_fill(past, math.nan)]
    plan = Plan(options["q_block"], kv_block, q.shape[3], "bf16", options["kv_sizes"] is not None, gradient)
    if kind in ("columns", "strips of 32"):
        strip = best_strip(kv_block) if kind == "columns" else 32
        plan = ColumnsPlan(options["q_block"], kv_block, strip, options["kv_sizes"] is not None)
    leaves = [x.float().requires_grad_() for x in (q, k, v)]
    out, lse = block_sparse_attention(*leaves, lists, counts, backend="naive", return_lse=True, **options)
    tensors = [q, *spoiled, lists, counts, sizes]
    if gradient:
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
        want = torch.autograd.grad(out, leaves[0], grad.float())
        tensors += [grad, lse.detach(), (out * grad.float()).sum(-1).detach()]
    else:
        want = [out.detach(), lse.detach()]
    raw = emulate(plan, programs, tensors, tmp_path)
    size = 2 * q.numel()
    got = [torch.frombuffer(raw[:size], dtype=torch.bfloat16).view(q.shape)]
    if not gradient:
        got.append(torch.frombuffer(raw[size:], dtype=torch.float32).view(q.shape[:3]))
    assert_near(got, want, 1e-2 if gradient else 5e-3)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("query", [True, False])
@pytest.mark.parametrize(("shape", "programs", "factor"), EMULATED.values(), ids=EMULATED.keys())
def test_emulated_gradients_match_naive(shape, programs, factor, query, tmp_path):
    """Strips, pairs of chunks, shared keys, key blocks that nothing lists, NaN wherever nothing may look."""
    if shape["dim"] != 128:
        pytest.skip("128 channels only")
    q, k, v, lists, counts, options = make(**shape, dtype=torch.bfloat16)
    q = q * factor
    kv_block, sizes = options["kv_block"], options["kv_sizes"]
    blocks = k.shape[2] // kv_block
    plan = GradientsPlan(options["q_block"], kv_block, best_strip(options["q_block"]), "bf16", sizes is not None, query)
    if sizes is None:
        sizes = torch.full((blocks,), kv_block, dtype=torch.int32)
    past = (torch.arange(kv_block) >= sizes[:, None]).flatten()[:, None]
    leaves = [x.float().requires_grad_() for x in (q, k, v)]
    out, lse = block_sparse_attention(*leaves, lists, counts, backend="naive", return_lse=True, **options)
    rng = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=rng).bfloat16()
    grad_lse = torch.where(lse.isinf(), 0.0, torch.randn(lse.shape, generator=rng))
    want = torch.autograd.grad((out, lse.masked_fill(lse.isinf(), 0.0)), leaves, (grad.float(), grad_lse))
    inverse = invert_lists(lists, counts, blocks)
    batch, heads, tokens, dim = q.shape
    fetch = 1 if blocks < 8 else 3
    head = [batch, heads, tokens // options["q_block"], blocks, lists.shape[3], programs, fetch, k.shape[0]]
    tensors = [q, k.masked_fill(past, math.nan), v.masked_fill(past, math.nan), grad, out.detach().bfloat16()]
    tensors += [lse.detach(), grad_lse, lists, counts, sizes]
    raw = run_emulator(plan, "hopper_gradients_emulator.cpp", [*head, *lists.shape[:2]], tensors, tmp_path)
    got = [torch.frombuffer(raw[: 2 * q.numel()], dtype=torch.bfloat16).view(q.shape)]
    keys, rest = raw[2 * q.numel() :][: 4 * k.numel()], raw[2 * q.numel() + 4 * k.numel() :]
    got += [x.view(k.shape) for x in torch.frombuffer(keys, dtype=torch.bfloat16).split(k.numel())]
    offsets = torch.frombuffer(rest[: 8 * len(inverse.offsets)], dtype=torch.int64)
    entries = torch.frombuffer(rest[8 * len(inverse.offsets) :], dtype=torch.int32)
    used = int(inverse.offsets[-1])
    assert torch.equal(offsets, inverse.offsets) and torch.equal(entries[:used], inverse.entries[:used])
    for name, a, b in list(zip(("dq", "dk", "dv"), got, want, strict=True))[0 if query else 1 :]:
        assert not a.isnan().any(), name
        assert float((a.float() - b).norm() / b.norm()) < 1e-2, name


hopper_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
    ),
]

SHAPES = {
    "147": {"q_block": 147, "kv_block": 147, "dim": 128, "queries": 4, "blocks": 9, "length": 7},
    "ragged": {"q_block": 147, "kv_block": 147, "dim": 128, "blocks": 9, "length": 7, "sizes": True},
    "shared keys": {"q_block": 147, "kv_block": 147, "dim": 128, "key_batch": 1, "batch": 3, "list_heads": 1},
    "128": {"q_block": 128, "kv_block": 128, "dim": 128, "list_batch": 1},
    "64 channels": {"q_block": 110, "kv_block": 110, "dim": 64, "sizes": True},
    "mixed": {"q_block": 65, "kv_block": 45, "dim": 128, "blocks": 12, "length": 9, "queries": 5},
    "large": {"q_block": 192, "kv_block": 320, "dim": 64, "blocks": 4, "length": 4, "batch": 1},
    "long": {"q_block": 147, "kv_block": 147, "dim": 128, "blocks": 70, "length": 60, "batch": 1, "sizes": True},
    "long, two warpgroups": {"q_block": 128, "kv_block": 128, "dim": 128, "blocks": 70, "length": 60, "batch": 1},
    "two rounds": {"q_block": 147, "kv_block": 147, "dim": 128, "queries": 80, "blocks": 7, "length": 5, "batch": 2},
}


class TestOnHopper:
    pytestmark = hopper_gpu

    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("kernels", ["rows", "columns"])
    def test_matches_naive(self, shape, dtype, kernels, monkeypatch):
        monkeypatch.setattr(hopper, "FORWARD", kernels)
        monkeypatch.setattr(hopper, "GRADIENTS", "together" if kernels == "columns" else "apart")
        q, k, v, lists, counts, options = make(**shape, device="cuda", dtype=dtype)
        for factor in (1.0, 4.0, 16.0):
            leaves = (q * factor, k, v)
            want = run("naive", *(x.float() for x in leaves), lists, counts, options)
            got = run("hopper", *leaves, lists, counts, options)
            assert_near(got[:2], want[:2], 5e-3)
            assert_near(got, want, 1e-2)

    def test_logits_that_outgrow_the_reference(self, monkeypatch):
        """The first keys' logits lie 200 below the rest: another kernel does the block again."""
        monkeypatch.setattr(hopper, "FORWARD", "columns")
        shape = {"q_block": 147, "kv_block": 147, "dim": 128, "blocks": 6, "length": 6, "batch": 1}
        q, k, v, lists, counts, options = make(**shape, device="cuda", dtype=torch.bfloat16)
        lists, counts = torch.arange(6).expand_as(lists).int().cuda().contiguous(), torch.full_like(counts, 6)
        q, k = q / 8 + 2.0, k / 8 + 5.0
        k[:, :, :147] -= 10.0
        want = run("naive", q.float(), k.float(), v.float(), lists, counts, options, grad=False)
        assert_near(run("hopper", q, k, v, lists, counts, options, grad=False), want, 5e-3)

    def test_gradients_have_the_same_bits_in_deterministic_mode(self, monkeypatch):
        monkeypatch.setattr(hopper, "GRADIENTS", "together")
        inputs = make(**SHAPES["long"], device="cuda", dtype=torch.bfloat16)
        torch.use_deterministic_algorithms(True)
        try:
            first, second = (run("hopper", *inputs) for _ in range(2))
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_unlisted_memory_is_never_used(self):
        shape = {"q_block": 147, "kv_block": 147, "dim": 128, "blocks": 8, "sizes": True, "key_batch": 1, "seed": 2}
        q, k, v, lists, counts, options = make(**shape, device="cuda", dtype=torch.bfloat16)
        used = torch.zeros(1, 2, 8, dtype=torch.bool, device="cuda")
        for b, h, n in itertools.product(range(2), range(2), range(3)):
            used[0, h, lists[b, h, n, : counts[b, h, n]].long()] = True
        within = torch.arange(147, device="cuda") < options["kv_sizes"][:, None]
        spoiled = ~(used[..., None] & within).flatten(2)[..., None]
        clean = run("hopper", q, k, v, lists, counts, options, grad=False)
        k, v = k.masked_fill(spoiled, math.nan), v.masked_fill(spoiled, math.nan)
        got = run("hopper", q, k, v, lists, counts, options, grad=False)
        assert all(torch.equal(a, b) for a, b in zip(got, clean, strict=True))

    def test_empty_lists(self):
        q, k, v, lists, counts, options = make(q_block=147, kv_block=147, dim=128, device="cuda", dtype=torch.bfloat16)
        out, lse = run("hopper", q, k, v, lists, torch.zeros_like(counts), options, grad=False)
        assert (out == 0).all() and (lse == -math.inf).all()

    def test_strides_graph_and_the_same_bits_again(self):
        q, k, v, lists, counts, options = make(q_block=147, kv_block=147, dim=128, device="cuda", dtype=torch.bfloat16)
        want = block_sparse_attention(q, k, v, lists, counts, **options)
        turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
        assert torch.equal(block_sparse_attention(*turned, lists, counts, backend="hopper", **options), want)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = block_sparse_attention(q, k, v, lists, counts, **options)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(got, want)


def test_says_why_it_cannot_be_used():
    q, k, v, *_ = make()
    assert "not a GPU" in hopper.unsupported(q, k, v, 147, 147, 1.0)
