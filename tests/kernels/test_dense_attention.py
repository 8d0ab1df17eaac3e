"""Dense attention to listed pages: the gathering kernel (in Triton's interpreter without a GPU) and the choice."""

import pytest
import torch
from decmem_env.kernels import choice
from decmem_env.kernels import dense_attention as dense
from decmem_env.kernels.dense_attention.op import gather

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make(pages=7, tokens=20, dim=32, dtype=torch.float32, device=DEVICE):
    torch.manual_seed(0)
    keys, values = (torch.randn(3, pages, tokens, dim, device=device, dtype=dtype) for _ in range(2))
    slots = torch.tensor([[6, 0, 3, 3], [1, 2, 5, 0]], device=device)
    return keys, values, slots


@pytest.mark.parametrize(("tokens", "real", "dim"), [(20, 18, 32), (300, 299, 128), (5, 5, 72)])
def test_kernel_copies_the_real_tokens_of_listed_pages(tokens, real, dim):
    keys, values, slots = make(tokens=tokens, dim=dim)
    keys[:, :, real:] = float("nan")
    found = gather(keys, values, slots, real)
    for x, y in zip(found, (keys, values), strict=True):
        assert x.is_contiguous() and not x.isnan().any()
        assert torch.equal(x, dense.gather_pages_naive(y, slots, real))
    k = found[0].unflatten(2, (4, real))
    assert torch.equal(k[1, 2, 1], keys[2, 2, :real]) and torch.equal(k[0, 0, 0], keys[0, 6, :real])


def test_pages_of_a_larger_pool_need_no_copy():
    keys, values, slots = make(pages=9)
    keys, values = keys[:, 1:8], values[:, 1:8]
    for x, y in zip(gather(keys, values, slots, 18), (keys, values), strict=True):
        assert torch.equal(x, dense.gather_pages_naive(y, slots, 18))


def test_the_first_way_is_taken_on_the_cpu():
    ways = {"one": lambda: torch.zeros(1), "two": lambda: torch.ones(1)}
    assert choice.fastest("test", 1, torch.device("cpu"), ways) is ways["one"]
    assert not any(name.startswith("test") for name in choice.choices())


def test_attention_is_the_definition():
    q, k, v = (torch.randn(2, 3, n, 16) for n in (10, 24, 24))
    assert torch.allclose(dense.dense_attention(q, k, v), dense.dense_attention_naive(q, k, v), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_fastest_kernel_is_found_once_and_right(dtype):
    choice._chosen.clear()
    q, k, v = (torch.randn(2, 12, n, 128, device="cuda", dtype=dtype) for n in (882, 2640, 2640))
    for _ in range(2):
        found, wanted = dense.dense_attention(q, k, v), dense.dense_attention_naive(q, k, v)
        assert float((found - wanted).float().norm() / wanted.float().norm()) < 5e-3
    assert len(choice.choices()) == 1 and next(iter(choice.choices().values())) != "MATH"


@pytest.mark.gpu
def test_ways_that_fail_are_out_and_the_fastest_wins():
    choice._chosen.clear()
    x = torch.randn(4096, 4096, device="cuda")

    def broken():
        raise RuntimeError("not on this chip")

    def slow():
        return x @ x @ x @ x

    ways = {"broken": broken, "slow": slow, "fast": lambda: x + 1}
    assert choice.fastest("test", 1, x.device, ways) is ways["fast"]
    assert choice.fastest("test", 1, x.device, ways) is ways["fast"] and len(choice.choices()) == 1
