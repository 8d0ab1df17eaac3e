"""Places for listed blocks, by plain operations and by the kernel (in Triton's interpreter without a GPU)."""

import importlib

import pytest
import torch
from decmem_env.kernels.block_placement import Part, Stage, place_blocks_naive
from decmem_env.kernels.block_placement.naive import listed_blocks

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
HEADS, FRAMES, FRAME = 3, 40, 4
NONE = FRAMES * FRAME
ONE = [Part(0, FRAME, 0, 60)]
TWO = [Part(0, FRAME - 1, 0, 40), Part(FRAME - 1, FRAME, 40, 60)]


@pytest.fixture
def kernel(monkeypatch):
    if not CUDA:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    from decmem_env.kernels.block_placement import triton

    module = importlib.reload(triton)
    monkeypatch.setattr(module, "_CHUNK", 32)  # several pieces
    return module.place_blocks_triton


def empty() -> Stage:
    held = torch.full((HEADS, 61), NONE, device=DEVICE)
    return Stage(held, torch.zeros_like(held), torch.zeros(HEADS, NONE + 1, dtype=torch.int32, device=DEVICE))


def lists_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists that drift, int32 [2, HEADS, 3, 8] in the strides of a permuted tensor, some of them short or empty."""
    rng = torch.Generator().manual_seed(step)
    near = 3 * step + torch.stack([torch.randperm(50, generator=rng)[:8] for _ in range(2 * HEADS * 3)])
    lists = (near % NONE).view(3, 2, HEADS, 8).permute(1, 2, 0, 3).int().to(DEVICE)
    return lists, torch.randint(0, 9, (2, HEADS, 3), generator=rng, dtype=torch.int32).to(DEVICE)


def check(stage: Stage, lists, counts, places, fresh, before: torch.Tensor) -> None:
    """What is listed stands where the answer says; what is fresh is new there; both tables agree."""
    index = listed_blocks(lists, counts, NONE).transpose(0, 1)
    heads = torch.arange(HEADS, device=DEVICE)[None, :, None, None]
    named = index < NONE
    assert torch.equal(stage.held[heads, places.long() + 1][named], index[named]) and not places[~named].any()
    changed = stage.held[:, 1:] != before[:, 1:]
    assert torch.equal(fresh >= 0, changed) and torch.equal(fresh[changed].long(), stage.held[:, 1:][changed])
    for head in range(HEADS):
        filled = torch.nonzero(stage.held[head, 1:] < NONE)[:, 0] + 1
        back = torch.zeros(NONE + 1, dtype=torch.int32, device=DEVICE)
        back[stage.held[head, filled]] = filled.int()
        assert torch.equal(back[:-1], stage.place[head, :-1])


@pytest.mark.parametrize("parts", [ONE, TWO])
def test_the_kernel_and_the_definition_place_what_is_listed(kernel, parts):
    stages = [empty(), empty()]
    for step in range(12):
        lists, counts = lists_of(step)
        clock, found = 2 * step + 1, []
        for stage, run in zip(stages, (lambda *a: place_blocks_naive(*a[:-1]), kernel), strict=True):
            before = stage.held.clone()
            places, fresh = run(lists, counts, stage, parts, FRAME, clock, clock - 2)
            check(stage, lists, counts, places, fresh, before)
            found.append(int((fresh >= 0).sum()))
        assert found[0] > 0 or step
        for part in parts:  # every block is in the places of its part
            held = stages[1].held[:, 1 + part.start : 1 + part.stop]
            inside = held[held < NONE] % FRAME
            assert ((part.first <= inside) & (inside < part.last)).all()
    # Lists drift by three blocks a step: most of a step's blocks are those of the step before.
    assert found[1] <= found[0] + 6


def test_blocks_of_the_last_calls_are_given_up_last(kernel):
    stage, parts = empty(), ONE
    counts = torch.full((1, HEADS, 1), 20, dtype=torch.int32, device=DEVICE)

    def call(first: int, clock: int) -> int:
        lists = torch.arange(first, first + 20, dtype=torch.int32, device=DEVICE).expand(1, HEADS, 1, 20)
        _, fresh = kernel(lists, counts, stage, parts, FRAME, clock, clock - 2)
        return int((fresh >= 0).sum())

    assert [call(first, clock) for clock, first in enumerate((0, 20, 40), 1)] == [60, 60, 60]
    assert call(60, 4) == 60  # takes the places of the first twenty
    assert call(40, 5) == 0 and call(20, 6) == 0 and call(0, 7) == 60


def test_nothing_listed(kernel):
    stage = empty()
    lists = torch.full((1, HEADS, 2, 5), 7, dtype=torch.int32, device=DEVICE)
    places, fresh = kernel(lists, torch.zeros(1, HEADS, 2, dtype=torch.int32, device=DEVICE), stage, TWO, FRAME, 1, 0)
    assert not places.any() and (fresh == -1).all() and (stage.held == NONE).all()
