import math

import pytest
import torch
from decmem_env.kernels import pool_blocks, select_blocks

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
    ("blocks", "count", "many"), [(50, 8, 0), (5, 8, 99), (1100, 48, 0), (4200, 80, 99), (1, 1, 0)]
)
def test_selects_the_best_allowed(blocks, count, many, backend, device, monkeypatch):
    from decmem_env.kernels.block_selection import triton as launch

    # Both launch settings, with rows shorter and longer than what stays in registers.
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
def test_extreme_scores(device):
    k = torch.tensor([1e38, -1e38, math.nan, 1e-45, -math.inf, 0.0, 5.0], device=device).view(1, 1, 7, 1)
    q = torch.ones(1, 1, 1, 1, device=device)
    limit = torch.tensor([[7]], dtype=torch.int32, device=device)
    lists, counts = select_blocks(q, k, 2, limit, backend="triton")
    assert lists.flatten().tolist() == [0, 6]
    lists, counts = select_blocks(q, k, 7, limit, backend="triton")
    assert counts.item() == 5 and lists.flatten().tolist()[:5] == [0, 1, 3, 5, 6]


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
