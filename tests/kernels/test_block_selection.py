import math
import platform

import pytest
import torch
from decmem_env.kernels import pool_blocks, select_blocks
from decmem_env.kernels.block_selection import Codes, native

from decmem_env.conventions import native as compiler

DEVICES = [
    pytest.param(
        "cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is chosen without a GPU")
    ),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def make(batch=2, heads=3, queries=7, blocks=50, dim=16, device="cpu", key_batch=None):
    rng = torch.Generator().manual_seed(blocks)
    q = torch.randn(batch, heads, queries, dim, generator=rng)
    k = torch.randn(key_batch or batch, heads, blocks, dim, generator=rng)
    limit = torch.randint(0, blocks + 1, (batch, queries), generator=rng, dtype=torch.int32)
    limit[0, 0], limit[-1, -1] = 0, blocks
    first = torch.randint(0, blocks // 2 + 1, (1, queries), generator=rng, dtype=torch.int32)
    mask = torch.rand(batch, 1, queries, blocks, generator=rng) > 0.3
    return [x.to(device) for x in (q, k, limit, first, mask)]


def check(lists, counts, q, k, count, limit, first=None, mask=None):
    """Against Python's sort, as sets of scores."""
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            scores = (q[b, h].double() @ k[b % k.shape[0], h].double().T).tolist()
            for n in range(q.shape[2]):
                low = 0 if first is None else int(first[b % first.shape[0], n])
                allowed = [j for j in range(low, int(limit[b % limit.shape[0], n]))]
                if mask is not None:
                    allowed = [j for j in allowed if mask[b, 0, n, j]]
                best = sorted((scores[n][j] for j in allowed), reverse=True)[:count]
                size = int(counts[b, h, n])
                chosen = lists[b, h, n, :size].tolist()
                assert size == len(best)
                assert chosen == sorted(set(chosen)) and set(chosen) <= set(allowed)
                got = sorted((scores[n][j] for j in chosen), reverse=True)
                assert got == pytest.approx(best, abs=1e-4)
                assert (lists[b, h, n, size:] == 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["naive", "triton"])
@pytest.mark.parametrize(
    ("blocks", "count", "many"),
    [(50, 8, 0), (5, 8, 99), (1100, 48, 0), (1100, 48, 99), (4200, 80, 99), (1, 1, 0)],
)
def test_selects_the_best_allowed(blocks, count, many, backend, device, monkeypatch):
    from decmem_env.kernels.block_selection import triton as launch

    # All launch settings, with rows shorter and longer than what stays in registers.
    monkeypatch.setattr(launch, "MANY_ROWS", many)
    q, k, limit, first, mask = make(blocks=blocks, device=device, queries=7 if blocks < 100 else 3)
    for options in ({}, {"first": first}, {"mask": mask}, {"first": first, "mask": mask}):
        lists, counts = select_blocks(q, k, count, limit, backend=backend, **options)
        assert lists.dtype == counts.dtype == torch.int32 and lists.shape[-1] == count
        check(*(x.cpu() for x in (lists, counts, q, k)), count, limit.cpu(), **{a: x.cpu() for a, x in options.items()})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["naive", "triton"])
def test_runs_in_chunks_and_shares_keys(backend, device, monkeypatch):
    from decmem_env.kernels.block_selection import naive

    q, k, limit, _, mask = make(device=device, key_batch=1)
    whole = select_blocks(q, k, 6, limit[:1], mask=mask, backend=backend)
    monkeypatch.setattr(naive, "MAX_SCORES", 2 * 3 * 50 * 2)
    parts = select_blocks(q, k, 6, limit[:1], mask=mask, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    check(*(x.cpu() for x in (*whole, q, k)), 6, limit[:1].cpu(), mask=mask.cpu())


@pytest.mark.parametrize("device", DEVICES)
def test_ties_go_to_the_lowest_index(device):
    q = torch.ones(1, 1, 1, 16, device=device)
    k = torch.zeros(1, 1, 600, 16, device=device)
    k[0, 0, 590] = 1.0
    k[0, 0, 2] = -0.0
    k[0, 0, 3] = -1.0
    limit = torch.tensor([[599]], dtype=torch.int32, device=device)
    lists, counts = select_blocks(q, k, 5, limit, backend="triton")
    assert lists.flatten().tolist() == [0, 1, 2, 4, 590] and counts.item() == 5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["negative", "wide", "small", "few values", "equal", "one above"])
def test_finds_the_threshold_wherever_it_is(kind, device):
    rng = torch.Generator().manual_seed(7)
    scores = torch.randn(300, generator=rng)
    scores = (
        {
            "negative": -scores.abs() - 1.0,
            "wide": (scores * 20.0).exp() * scores.sign(),
            "small": scores * 1e-37,
            "few values": scores.round(),
            "equal": torch.full_like(scores, 0.75),
            "one above": torch.cat([torch.full((299,), -2.0), torch.tensor([3.0])]),
        }[kind]
        .bfloat16()
        .float()
    )  # exact in any precision of the products
    q = torch.zeros(1, 1, 1, 16)
    q[..., 0] = 1.0
    k = torch.zeros(1, 1, 300, 16)
    k[..., 0] = scores
    limit = torch.tensor([[300]], dtype=torch.int32, device=device)
    for count in (1, 2, 80, 299):
        lists, _ = select_blocks(q.to(device), k.to(device), count, limit, backend="triton")
        best = torch.sort(scores, descending=True, stable=True).indices[:count].sort().values
        assert lists.flatten().tolist() == best.tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_extreme_scores(device):
    k = torch.tensor([1e38, -1e38, math.nan, 1e-45, -math.inf, 0.0, 5.0], device=device).view(1, 1, 7, 1)
    q = torch.ones(1, 1, 1, 1, device=device)
    limit = torch.tensor([[7]], dtype=torch.int32, device=device)
    # With a mask the scores come from PyTorch: NumPy, under the interpreter, warns of infinities.
    mask = torch.ones(1, 1, 1, 7, dtype=torch.bool, device=device)
    lists, counts = select_blocks(q, k, 2, limit, mask=mask, backend="triton")
    assert lists.flatten().tolist() == [0, 6]
    lists, counts = select_blocks(q, k, 7, limit, mask=mask, backend="triton")
    assert counts.item() == 5 and lists.flatten().tolist()[:5] == [0, 1, 3, 5, 6]


needs_compiler = pytest.mark.skipif(native.load() is None, reason="needs a C compiler")


@needs_compiler
@pytest.mark.parametrize(("blocks", "count", "dim"), [(50, 8, 16), (5, 8, 18), (700, 48, 64), (1, 1, 3), (2500, 40, 8)])
def test_the_scan_in_c_selects_the_best_allowed(blocks, count, dim):
    q, k, limit, first, _ = make(blocks=blocks, queries=7 if blocks < 100 else 3, dim=dim)
    for options in ({}, {"first": first}):
        lists, counts = select_blocks(q, k, count, limit, backend="native", **options)
        check(lists, counts, q, k, count, limit, **options)
    wide = torch.full((3, 3, 2 * blocks, dim + 2), math.nan)[:1, :, ::2, 1:-1].copy_(k[:1])
    for keys in (k[:1], wide):
        shared = select_blocks(q, keys, count, limit[:1], backend="native")
        check(*shared, q, k[:1], count, limit[:1])


@needs_compiler
def test_the_scan_in_c_is_the_same_with_any_number_of_threads():
    q, k, limit, _, _ = make(blocks=9000, batch=1, queries=12)
    k = (k * 4).round() / 4  # many ties
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(select_blocks(q, k, 48, limit, backend="native"))
    finally:
        torch.set_num_threads(before)
    for lists, counts in found[1:]:
        assert torch.equal(lists, found[0][0]) and torch.equal(counts, found[0][1])
    check(*found[0], q, k, 48, limit)


@needs_compiler
def test_the_scan_in_c_takes_ties_and_extremes_as_the_gpu_does():
    k = torch.zeros(1, 1, 600, 16)
    k[0, 0, 590], k[0, 0, 2], k[0, 0, 3] = 1.0, -0.0, -1.0
    limit = torch.tensor([[599]], dtype=torch.int32)
    lists, counts = select_blocks(torch.ones(1, 1, 1, 16), k, 5, limit, backend="native")
    assert lists.flatten().tolist() == [0, 1, 2, 4, 590] and counts.item() == 5
    k = torch.tensor([1e38, -1e38, math.nan, 1e-45, -math.inf, 0.0, 5.0]).view(1, 1, 7, 1)
    limit = torch.tensor([[7]], dtype=torch.int32)
    for count, wanted in ((2, [0, 6]), (7, [0, 1, 3, 5, 6, 0, 0])):
        lists, counts = select_blocks(torch.ones(1, 1, 1, 1), k, count, limit, backend="native")
        assert lists.flatten().tolist() == wanted and counts.item() == min(count, 5)
    with pytest.raises(ValueError, match="takes no mask"):
        select_blocks(torch.ones(1, 1, 1, 1), k, 1, limit, mask=k[..., 0][:, :, None] > 0, backend="native")


def copies(keys: torch.Tensor) -> Codes:
    """8-bit copies of keys [1, H, NK, D]."""
    pages = keys[0][:, :, None].contiguous()
    codes, facts = torch.empty(pages.shape, dtype=torch.uint8), torch.empty(*pages.shape[:3], native.CODE_FACTS)
    native.encode(pages, codes, facts, torch.arange(pages.shape[1]))
    return Codes(codes.flatten(1, 2), facts.flatten(1, 2))


def draw(kind: str, dim: int, count: int, rng: torch.Generator) -> torch.Tensor:
    """Pooled keys [1, 2, count, dim] of some spread."""
    keys = torch.randn(1, 2, count, dim, generator=rng)
    return {
        "even": keys,
        "far from the origin": keys + 3.0,
        "all alike": keys[:, :, :1] + 1e-4 * keys,
        "ties": keys.round(),
        "equal": keys[:, :, :1].expand_as(keys).contiguous(),
        "magnitudes": keys * 10.0 ** torch.randint(-20, 15, (count, 1), generator=rng),
        "tiny": keys * 1e-42,
    }[kind]


KINDS = ("even", "far from the origin", "all alike", "ties", "equal", "magnitudes", "tiny")


def check_copies() -> None:
    """Lists by way of copies are those without."""
    rng = torch.Generator().manual_seed(0)
    for kind, (dim, queries, count) in zip(
        KINDS * 2, [(64, 12, 9000), (32, 5, 3001), (128, 20, 4000), (8, 1, 20000)] * 4, strict=False
    ):
        keys, q = draw(kind, dim, count, rng), torch.randn(1, 2, queries, dim, generator=rng)
        if kind == "ties":
            q = q.round()
        limit = torch.randint(count // 2, count + 1, (1, queries), dtype=torch.int32, generator=rng)
        first = torch.randint(0, count // 4, (1, queries), dtype=torch.int32, generator=rng)
        limit[0, 0] = count
        held = copies(keys)
        for options in ({}, {"first": first}):
            want = select_blocks(q, keys, 48, limit, backend="native", **options)
            found = select_blocks(q, keys, 48, limit, backend="native", codes=held, **options)
            assert all(map(torch.equal, found, want)), (kind, dim)
            part = slice(count // 3, None)
            want = select_blocks(q, keys[:, :, part], 20, limit, backend="native", **options)
            some = Codes(*(t[:, part] for t in held))
            found = select_blocks(q, keys[:, :, part], 20, limit, backend="native", codes=some, **options)
            assert all(map(torch.equal, found, want)), (kind, dim)


@needs_compiler
def test_copies_in_8_bits_select_the_same():
    check_copies()


@needs_compiler
@pytest.mark.parametrize("flags", [("-mno-avx512f",), ("-mno-avx",)], ids=["32-byte registers", "16-byte registers"])
def test_copies_in_8_bits_with_shorter_registers(flags, monkeypatch):
    if platform.machine() != "x86_64":
        pytest.skip("flags of x86-64")
    monkeypatch.setattr(compiler, "_FLAGS", (("-march=x86-64-v3", *flags, "-fopenmp"), ("-march=x86-64-v3", *flags)))
    path = compiler.built(native._SOURCE, flags)
    assert path is not None
    library = native.bind(path)
    monkeypatch.setattr(native, "load", lambda: library)
    check_copies()


@pytest.mark.parametrize("backend", ["naive", pytest.param("native", marks=needs_compiler)])
@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_keys_in_parts(backend, coded, threads):
    """As if they lay in a row; what lies between them is not read."""
    rng = torch.Generator().manual_seed(0)
    runs = ((20011, 9001), (0, 6), (300, 8000), (19000, 1), (9000, 5003))
    pool = torch.full((1, 2, 30000, 16), math.nan)
    parts = [torch.randn(1, 2, length, 16, generator=rng) for _, length in runs]
    for (start, length), part in zip(runs, parts, strict=True):
        pool[:, :, start : start + length] = part
    keys, q = torch.cat(parts, 2), torch.randn(1, 2, 12, 16, generator=rng)
    limit = torch.randint(5000, keys.shape[2] + 1, (1, 12), dtype=torch.int32, generator=rng)
    first = torch.randint(0, 9100, (1, 12), dtype=torch.int32, generator=rng)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for options in ({}, {"first": first}):
            want = select_blocks(q, keys, 48, limit, backend=backend, **options)
            held = copies(pool) if coded and backend == "native" else None
            found = select_blocks(q, pool, 48, limit, backend=backend, codes=held, runs=runs, **options)
            assert all(map(torch.equal, found, want))
    finally:
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match=r"run \(29999, 2\) is not among 30000"):
        select_blocks(q, pool, 48, limit, backend=backend, runs=((29999, 2),))


@needs_compiler
def test_what_is_not_finite_is_selected_as_without_copies():
    rng = torch.Generator().manual_seed(0)
    keys, q = torch.randn(1, 1, 4000, 16, generator=rng), torch.randn(1, 1, 6, 16, generator=rng)
    keys[0, 0, 5:4000:97, 3] = math.inf
    keys[0, 0, 9:4000:101, 7] = math.nan
    keys[0, 0, 11] = 3e38
    limit = torch.full((1, 6), 4000, dtype=torch.int32)
    for _ in range(2):
        want = select_blocks(q, keys, 30, limit, backend="native")
        assert all(map(torch.equal, select_blocks(q, keys, 30, limit, backend="native", codes=copies(keys)), want))
        q[0, 0, 2, 1] = math.inf


@needs_compiler
def test_the_copies_tell_what_they_miss():
    keys = draw("magnitudes", 64, 500, torch.Generator().manual_seed(0))
    codes, facts = copies(keys)
    held = (codes.double() - 128) * facts[..., :1].double()
    missed, norm = (keys[0].double() - held).norm(dim=-1), held.norm(dim=-1)
    for known, true in ((facts[..., 1], missed), (facts[..., 2], norm)):
        assert (known >= true).all() and (known <= true * 1.00001 + 1e-37).all()
    assert (missed <= facts[..., 0] * 0.51 * 8).all()


def test_pooling_is_a_mean_in_fp32():
    k = torch.randn(2, 3, 30, 8, dtype=torch.bfloat16, requires_grad=True)
    pooled = pool_blocks(k, 10)
    assert pooled.dtype == torch.float32 and not pooled.requires_grad
    assert torch.allclose(pooled[1, 2, 1], k[1, 2, 10:20].float().mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="multiple of block 7"):
        pool_blocks(k, 7)


def test_bad_input_is_named():
    q, k, limit, first, mask = make()
    with pytest.raises(ValueError, match="limit must be int32"):
        select_blocks(q, k, 4, limit.long())
    with pytest.raises(ValueError, match="first must be int32"):
        select_blocks(q, k, 4, limit, first=first[:, :3])
    with pytest.raises(ValueError, match="mask must be bool"):
        select_blocks(q, k, 4, limit, mask=mask.int())
    with pytest.raises(ValueError, match="k_pooled"):
        select_blocks(q, k[:, :1], 4, limit)
    with pytest.raises(ValueError, match="unknown backend"):
        select_blocks(q, k, 4, limit, backend="cuda")


def test_operator_passes_opcheck():
    q, k, limit, first, mask = make(device="cuda" if torch.cuda.is_available() else "cpu")
    utils = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.decmem.select_blocks.default, (q, k, 4, limit, first, mask), test_utils=utils)


@pytest.mark.gpu
def test_matches_topk_at_the_training_shape():
    q, k, _, _, _ = make(batch=2, heads=5, queries=768, blocks=768, dim=64, device="cuda")
    limit = (torch.arange(768, device="cuda", dtype=torch.int32) // 6 * 6)[None]
    a, b = (select_blocks(q, k, 48, limit, backend=backend) for backend in ("naive", "triton"))
    assert torch.equal(a[1], b[1])
    # Different lists can only come from tied scores.
    assert (a[0] != b[0]).float().mean() < 1e-4
