import itertools
import math
import platform

import pytest
import torch
from decmem_env.kernels import block_sparse_attention, invert_lists, pool_blocks, select_blocks
from decmem_env.kernels.block_sparse_attention import native

from decmem_env.conventions import native as compiler

DEVICES = [
    pytest.param(
        "cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is chosen without a GPU")
    ),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def make(
    *, batch=2, heads=2, queries=3, blocks=5, length=4, q_block=10, kv_block=10, dim=64, dtype=torch.float32,
    device="cpu", key_batch=None, list_heads=None, list_batch=None, sizes=False, seed=0,
):  # fmt: skip
    """Random tensors; lists ascending, counts from 0 on, and nonsense past the counts."""
    rng = torch.Generator().manual_seed(seed)
    key_batch, list_heads, list_batch = key_batch or batch, list_heads or heads, list_batch or batch
    q = torch.randn(batch, heads, queries * q_block, dim, generator=rng)
    k = torch.randn(key_batch, heads, blocks * kv_block, dim, generator=rng)
    v = torch.randn(key_batch, heads, blocks * kv_block, dim, generator=rng)
    order = torch.rand(list_batch, list_heads, queries, blocks, generator=rng).argsort(-1)
    counts = torch.randint(0, length + 1, (list_batch, list_heads, queries), generator=rng)
    counts[0, 0, 0], counts[-1, -1, -1] = 0, length
    listed = torch.arange(length) < counts[..., None]
    lists = torch.where(listed, order[..., :length], blocks).sort(-1).values
    lists = torch.where(listed, lists, 2**31 - 1)
    kv_sizes = torch.randint(0, kv_block + 1, (blocks,), generator=rng, dtype=torch.int32).to(device) if sizes else None
    q, k, v = (x.to(device, dtype) for x in (q, k, v))
    lists, counts = lists.to(device, torch.int32), counts.to(device, torch.int32)
    return q, k, v, lists, counts, {"q_block": q_block, "kv_block": kv_block, "kv_sizes": kv_sizes}


def by_loops(q, k, v, lists, counts, *, q_block, kv_block, kv_sizes):
    """The definition once more, one query block at a time, sharing no code with the package."""
    out, lse = torch.zeros_like(q), torch.full(q.shape[:3], -math.inf)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for n in range(q.shape[2] // q_block):
                bl, hl, bk = b % lists.shape[0], h % lists.shape[1], b % k.shape[0]
                rows = []
                for j in lists[bl, hl, n, : counts[bl, hl, n]].tolist():
                    rows += range(j * kv_block, j * kv_block + (kv_block if kv_sizes is None else int(kv_sizes[j])))
                if rows:
                    part = slice(n * q_block, (n + 1) * q_block)
                    logits = q[b, h, part] @ k[bk, h, rows].T / math.sqrt(q.shape[3])
                    out[b, h, part] = logits.softmax(-1) @ v[bk, h, rows]
                    lse[b, h, part] = logits.logsumexp(-1)
    return out, lse


def run(backend, q, k, v, lists, counts, options, grad=True, **more):
    """Output, log-sum-exp and gradients of a random linear function of both."""
    q, k, v = (x.detach().clone().requires_grad_(grad) for x in (q, k, v))
    out, lse = block_sparse_attention(q, k, v, lists, counts, backend=backend, return_lse=True, **options, **more)
    if not grad:
        return [out, lse]
    rng = torch.Generator().manual_seed(1)
    weights = torch.randn(out.shape, generator=rng).to(out)
    lse_weights = torch.randn(lse.shape, generator=rng).to(lse)
    loss = (out * weights).sum() + torch.where(lse.isinf(), 0.0, lse * lse_weights).sum()
    return [out.detach(), lse.detach(), *torch.autograd.grad(loss, (q, k, v))]


def assert_near(got, want, tolerance):
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), got, want, strict=False):
        a, b = a.float(), b.float()
        assert torch.equal(a.isinf(), b.isinf()), name
        a, b = a.masked_fill(a.isinf(), 0.0), b.masked_fill(b.isinf(), 0.0)
        assert not a.isnan().any(), name
        assert (a - b).norm() <= tolerance * b.norm() + 1e-6, (name, float((a - b).norm() / b.norm()))


SHAPES = {
    "tiny": {},
    "window": {"q_block": 60, "kv_block": 60, "list_heads": 1, "blocks": 4, "length": 3},
    "shared lists": {"list_heads": 1, "list_batch": 1, "heads": 3},
    "shared keys": {"key_batch": 1, "batch": 3},
    "ragged": {"sizes": True, "kv_block": 13},
    "ragged shared": {"sizes": True, "key_batch": 1, "list_heads": 1, "q_block": 7, "seed": 3},
    "147": {"q_block": 147, "kv_block": 147, "batch": 1, "heads": 1, "blocks": 3, "length": 2, "dim": 32},
    "one token": {"q_block": 1, "kv_block": 1, "blocks": 9, "length": 5},
    "72 channels": {"dim": 72, "q_block": 20},
    "96 channels": {"dim": 96, "batch": 1},
    "128 channels": {"dim": 128, "batch": 1},
    "one list": {"length": 1, "blocks": 1},
    "seventeen of ten": {"queries": 17, "blocks": 15, "length": 6, "sizes": True, "batch": 1},
    "mixed": {"q_block": 60, "kv_block": 10, "batch": 1, "blocks": 30, "length": 20, "seed": 5},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_naive_and_cpu_match_loops(shape):
    q, k, v, lists, counts, options = make(**shape)
    want = by_loops(q, k, v, lists, counts, **options)
    assert_near(run("naive", q, k, v, lists, counts, options, grad=False), want, 1e-5)
    assert_near(run("cpu", q, k, v, lists, counts, options, grad=False), want, 1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_native_matches_loops(shape):
    q, k, v, lists, counts, options = make(**shape)
    if not native.serves(q, k, v):
        with pytest.raises(ValueError, match="needs a C compiler"):
            run("native", q, k, v, lists, counts, options, grad=False)
        return
    for factor in (1.0, 16.0):
        want = by_loops(q * factor, k, v, lists, counts, **options)
        assert_near(run("native", q * factor, k, v, lists, counts, options, grad=False), want, 1e-5)


@pytest.mark.parametrize("backend", ["native", "cpu", "naive"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_keys_and_values_stored_in_16_bits(shape, backend):
    q, k, v, lists, counts, options = make(**shape)
    k, v = k.half(), v.half()
    if backend == "native" and not native.serves(q, k, v):
        pytest.skip("not served")
    want = by_loops(q, k.float(), v.float(), lists, counts, **options)
    assert_near(run(backend, q, k, v, lists, counts, options, grad=False), want, 1e-5)
    with pytest.raises(ValueError, match="must share one of"):
        run(backend, q.half(), k.float(), v.float(), lists, counts, options, grad=False)


@pytest.mark.skipif(native.load() is None, reason="no C compiler")
def test_every_fp16_number_is_read_as_it_is():
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    v = every[every.isfinite()].view(1, 1, -1, 32)
    q, lists = torch.zeros(1, 1, v.shape[2], 32), torch.arange(v.shape[2], dtype=torch.int32).view(1, 1, -1, 1)
    options = {"q_block": 1, "kv_block": 1, "backend": "native"}
    out = block_sparse_attention(q, torch.zeros_like(v), v, lists, torch.ones_like(lists[..., 0]), **options)
    assert torch.equal(out, v.float())


@pytest.mark.skipif(native.load() is None, reason="no C compiler")
@pytest.mark.parametrize("flags", [("-mno-avx512f",), ("-mno-avx",)], ids=["32-byte registers", "16-byte registers"])
def test_native_with_shorter_registers(flags, monkeypatch):
    if platform.machine() != "x86_64":
        pytest.skip("flags of x86-64")
    monkeypatch.setattr(compiler, "_FLAGS", (("-march=x86-64-v3", *flags, "-fopenmp"), ("-march=x86-64-v3", *flags)))
    path = compiler.built(native._SOURCE, flags)
    assert path is not None
    library = native.bind(path)
    monkeypatch.setattr(native, "load", lambda: library)
    q, k, v, lists, counts, options = make(queries=17, blocks=15, length=6, sizes=True, batch=1)
    assert_near(
        run("native", q, k, v, lists, counts, options, grad=False), by_loops(q, k, v, lists, counts, **options), 1e-5
    )
    test_every_fp16_number_is_read_as_it_is()


@pytest.mark.skipif(native.load() is None, reason="no C compiler")
def test_native_gives_the_same_bits_whatever_the_threads():
    q, k, v, lists, counts, options = make(queries=17, blocks=15, length=6)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run("native", q, k, v, lists, counts, options, grad=False))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("programs", [0, 10**9], ids=["merged", "apart"])
def test_triton_matches_naive(shape, device, programs, monkeypatch):
    from decmem_env.kernels.block_sparse_attention import grouping

    monkeypatch.setattr(grouping, "MIN_PROGRAMS", programs)
    q, k, v, lists, counts, options = make(**shape, device=device)
    want = run("naive", q, k, v, lists, counts, options)
    assert_near(run("triton", q, k, v, lists, counts, options), want, 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("programs", [0, 10**9], ids=["merged", "apart"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1.0, 4.0, 16.0])
def test_half_precision_at_large_logits(dtype, factor, device, programs, monkeypatch):
    from decmem_env.kernels.block_sparse_attention import grouping

    monkeypatch.setattr(grouping, "MIN_PROGRAMS", programs)
    q, k, v, lists, counts, options = make(dtype=dtype, device=device, blocks=8, length=6, q_block=12)
    q = q * factor
    single = [x.float() for x in (q, k, v)]
    want = run("naive", *single, lists, counts, options)
    got = run("triton", q, k, v, lists, counts, options)
    assert all(x.dtype == dtype for x in (got[0], *got[2:]))
    assert_near(got[:2], want[:2], 5e-3)
    assert_near(got, want, 1e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["triton", "triton merged", "naive", "cpu", "native"])
def test_memory_that_is_not_listed_is_never_used(backend, device, monkeypatch):
    from decmem_env.kernels.block_sparse_attention import grouping

    monkeypatch.setattr(grouping, "MIN_PROGRAMS", 0 if backend == "triton merged" else 10**9)
    backend = backend.split()[0]
    if backend in ("cpu", "native") and device == "cuda":
        pytest.skip("for the CPU")
    if backend == "native" and native.load() is None:
        pytest.skip("no C compiler")
    q, k, v, lists, counts, options = make(device=device, blocks=8, sizes=True, key_batch=1, batch=2, seed=2)
    grad = backend not in ("cpu", "native")
    naive = run("naive", q, k, v, lists, counts, options, grad=grad)
    within = torch.arange(10, device=device) < options["kv_sizes"][:, None]
    used = torch.zeros(1, 2, 8, dtype=torch.bool, device=device)
    for b in range(2):
        for h in range(2):
            for n in range(3):
                used[0, h, lists[b, h, n, : counts[b, h, n]].long()] = True
    spoiled = ~(used[..., None] & within).flatten(2)[..., None]
    assert spoiled.any()
    k, v = k.masked_fill(spoiled, math.nan), v.masked_fill(spoiled, math.nan)
    got = run(backend, q, k, v, lists, counts, options, grad=grad)
    assert_near(got, naive, 1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_empty_everything(device):
    q, k, v, lists, counts, options = make(device=device, sizes=True)
    for change in ("counts", "sizes"):
        if change == "counts":
            out, lse, *grads = run("triton", q, k, v, lists, torch.zeros_like(counts), options)
        else:
            none = torch.zeros_like(options["kv_sizes"])
            out, lse, *grads = run("triton", q, k, v, lists, counts, {**options, "kv_sizes": none})
        assert (lse == -math.inf).all()
        assert all((x == 0).all() for x in (out, *grads))


@pytest.mark.parametrize("device", DEVICES)
def test_any_strides(device):
    q, k, v, lists, counts, options = make(device=device)
    want = run("triton", q, k, v, lists, counts, options)
    # Interleaved heads, a slice of a longer cache, rows that are not 16-byte aligned, channels that are not contiguous.
    interleaved = q.transpose(1, 2).contiguous().transpose(1, 2)
    cache = torch.full((2, 2, 90, 64), math.nan, device=device)
    cache[:, :, 20:70] = k
    odd = torch.zeros(2, 2, 50, 67, device=device)[..., :64].copy_(v)
    got = block_sparse_attention(interleaved, cache[:, :, 20:70], odd, lists, counts, backend="triton", **options)
    assert_near([got], want, 1e-5)
    if device == "cpu":
        for backend in ("cpu", *(["native"] if native.load() else [])):
            rows = interleaved, cache[:, :, 20:70], odd
            assert_near([block_sparse_attention(*rows, lists, counts, backend=backend, **options)], want, 1e-5)
    turned = k.transpose(2, 3).contiguous().transpose(2, 3)
    assert_near([block_sparse_attention(q, turned, v, lists, counts, backend="triton", **options)], want, 1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_given_inverse_is_the_one_computed(device):
    q, k, v, lists, counts, options = make(device=device, list_heads=1)
    inverse = invert_lists(lists, counts, 5)
    a = run("triton", q, k, v, lists, counts, options)
    b = run("triton", q, k, v, lists, counts, options, inverse=inverse)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


def test_inverse_lists_every_pair_once_and_ascending():
    _, _, _, lists, counts, _ = make(blocks=6, length=5, queries=9)
    offsets, entries = invert_lists(lists, counts, 6)
    for b in range(2):
        for h in range(2):
            for j in range(6):
                row = (b * 2 + h) * 6 + j
                want = [n for n in range(9) if j in lists[b, h, n, : counts[b, h, n]]]
                assert entries[offsets[row] : offsets[row + 1]].tolist() == want


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("group", [2, 8])
def test_merged_lists_are_the_lists(group, device):
    from decmem_env.kernels.block_sparse_attention.grouping import INDEX_BITS, merge_lists

    _, _, _, lists, counts, _ = make(blocks=19, length=7, queries=9, heads=3, device=device)
    for transposed in (False, True):
        entries, sizes = merge_lists(lists, counts, 19, group, transposed)
        found = set()
        groups = -(-(19 if transposed else 9) // group)
        for row, size in enumerate(sizes.tolist()):
            plane, g = divmod(row, groups)
            packed = entries[row, :size].tolist()
            index = [x & ((1 << INDEX_BITS) - 1) for x in packed]
            assert index == sorted(set(index))
            pairs = {
                (g * group + m, i) for x, i in zip(packed, index, strict=True) for m in range(8) if x >> 23 + m & 1
            }
            found |= {(plane, i, m) if transposed else (plane, m, i) for m, i in pairs}
        want = set()
        for b, h, n in itertools.product(range(2), range(3), range(9)):
            want |= {(b * 3 + h, n, j) for j in lists[b, h, n, : counts[b, h, n]].tolist()}
        assert found == want


def test_operator_passes_opcheck():
    q, k, v, lists, counts, _ = make(batch=1, heads=1, queries=2)
    if torch.cuda.is_available():
        q, k, v, lists, counts = (x.cuda() for x in (q, k, v, lists, counts))
    for x in (q, k, v):
        x.requires_grad_()
    args = (q, k, v, lists, counts, None, None, None, 10, 10, 0.125, "triton")
    torch.library.opcheck(torch.ops.decmem.block_sparse_attention.default, args)


def test_default_backend_on_the_cpu_has_gradients():
    q, k, v, lists, counts, options = make()
    q.requires_grad_()
    assert block_sparse_attention(q, k, v, lists, counts, **options).requires_grad
    with torch.no_grad():
        a = block_sparse_attention(q, k, v, lists, counts, **options)
        b = block_sparse_attention(q, k, v, lists, counts, backend="native" if native.load() else "cpu", **options)
    assert torch.equal(a, b)


BAD = {
    "q_block": (lambda a, o: (a, {**o, "q_block": 7}), "multiple of q_block 7"),
    "kv_block": (lambda a, o: (a, {**o, "kv_block": 7}), "multiple of kv_block 7"),
    "dtype": (lambda a, o: ((a[0].half(), *a[1:]), o), "must share one of"),
    "int64": (lambda a, o: ((*a[:3], a[3].long(), a[4]), o), "int32"),
    "heads": (lambda a, o: ((a[0][:, :1], *a[1:]), o), "to match q"),
    "queries": (lambda a, o: ((*a[:3], a[3][:, :, :2], a[4][:, :, :2]), o), "lists"),
    "index": (lambda a, o: ((*a[:3], a[3] + 4, a[4]), o), "listed indices must lie in 0..4"),
    "count": (lambda a, o: ((*a[:4], a[4] + 3), o), "counts must lie in 0..4"),
    "sizes": (lambda a, o: (a, {**o, "kv_sizes": torch.ones(3, dtype=torch.int32)}), "kv_sizes"),
    "backend": (lambda a, o: (a, {**o, "backend": "cuda"}), "unknown backend"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(change, message):
    *arguments, options = make()
    arguments, options = change(tuple(arguments), options)
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(*arguments, **options)


@pytest.mark.gpu
def test_growing_history_does_not_recompile():
    from decmem_env.kernels.block_sparse_attention.triton_kernels import forward_kernel, key_gradient_kernel

    def compiled():
        return sum(len(caches[0]) for f in (forward_kernel, key_gradient_kernel) for caches in f.device_caches.values())

    first = None
    for blocks, length, queries, batch in [(16, 4, 4, 2), (17, 4, 3, 1), (33, 7, 1, 3), (1, 1, 16, 1)]:
        q, k, v, lists, counts, options = make(
            blocks=blocks, length=length, queries=queries, batch=batch, device="cuda", dtype=torch.bfloat16, heads=5
        )
        run("triton", q, k, v, lists, counts, options)
        first = first or compiled()
        assert compiled() == first


@pytest.mark.parametrize("device", DEVICES)
def test_one_compiled_graph_serves_growing_histories(device):
    torch._dynamo.reset()
    graphs = []

    def branch(q, k, v, lists, counts):
        out = block_sparse_attention(q * 1.0, k, v, lists, counts, backend="triton", q_block=10, kv_block=10)
        pooled = pool_blocks(k, 10)
        limit = torch.full((1, pooled.shape[2]), 3, dtype=torch.int32, device=k.device)
        return out, *select_blocks(pooled, pooled, 2, limit, backend="triton")

    def backend(graph, examples):
        graphs.append(graph)
        return graph

    compiled = torch.compile(branch, fullgraph=True, dynamic=True, backend=backend)
    for blocks in (5, 6, 9):
        q, k, v, lists, counts, _ = make(blocks=blocks, device=device, queries=blocks - 2)
        q.requires_grad_()
        got, want = compiled(q, k, v, lists, counts), branch(q, k, v, lists, counts)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert len(graphs) == 1


@pytest.mark.gpu
def test_inside_torch_compile_and_deterministic():
    q, k, v, lists, counts, options = make(device="cuda", dtype=torch.bfloat16, blocks=9, length=6)

    def branch(q, k, v):
        return block_sparse_attention(q * 1.0, k, v.sin(), lists, counts, **options).transpose(1, 2) * 2.0

    compiled = torch.compile(branch, fullgraph=True)
    results = []
    for function in (branch, compiled, compiled):
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        out = function(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)])
    for a, b, c in zip(*results, strict=True):
        assert (a.float() - b.float()).norm() <= 2e-2 * a.float().norm()
        assert torch.equal(b, c)


@pytest.mark.gpu
def test_in_a_cuda_graph():
    q, k, v, lists, counts, options = make(device="cuda", dtype=torch.bfloat16)
    want = block_sparse_attention(q, k, v, lists, counts, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = block_sparse_attention(q, k, v, lists, counts, **options)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got, want)


def test_cpu_backend_in_several_chunks(monkeypatch):
    from decmem_env.kernels.block_sparse_attention import cpu

    for shape in ({}, {"sizes": True}):
        q, k, v, lists, counts, options = make(**shape)
        whole = run("cpu", q, k, v, lists, counts, options, grad=False)
        monkeypatch.setattr(cpu, "_CHUNK", 2 * 40 * 64)
        assert_near(run("cpu", q, k, v, lists, counts, options, grad=False), whole, 1e-6)
        monkeypatch.undo()
