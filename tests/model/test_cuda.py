"""The engine on a GPU: the same worlds as on the CPU."""

import numpy as np
import pytest
import torch
from decmem_env.model import WorldModel

from .conftest import make_walk, random_checkpoint
from .test_sessions import begin, play

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("fusion", ["gated", "union"])
@pytest.mark.parametrize(("dtype", "levels"), [(torch.float32, 2), (torch.float16, 12)], ids=["fp32", "fp16"])
def test_the_first_frame_equals_the_cpu_one(fusion, dtype, levels):
    walk = make_walk(40)
    frames = []
    for device, kind in (("cpu", torch.float32), ("cuda", dtype)):
        loaded = random_checkpoint(fusion=fusion, top_k=400)  # every block: no ties to break
        loaded.transformer.to(device), loaded.autoencoder.to(device)
        model = WorldModel(loaded, torch.device(device), kind, 64 << 20)
        frames.append(play(model, begin(model, walk, 3, context=30), walk, 30, 31).astype(int))
    assert abs(frames[0] - frames[1]).max() <= levels


def test_batches_forks_and_snapshots():
    model = WorldModel.from_pretrained("debug", device="cuda", memory_budget=256 << 20)
    walks = [make_walk(40, seed) for seed in range(3)]
    sessions = [begin(model, w, i, c) for i, (w, c) in enumerate(zip(walks, (4, 14, 20), strict=True))]
    state = sessions[1].snapshot()
    rows = [w.chunk(c) for w, c in zip(walks, (4, 14, 20), strict=True)]
    frames = model.step(sessions, *(np.concatenate(p) for p in zip(*rows, strict=True)))
    single = model.step([model.restore(state)], *walks[1].chunk(14))
    assert abs(frames[1].astype(int) - single[0]).max() <= 12
    runs = [play(model, model.restore(state), walks[1], 14, 18) for _ in range(2)]
    assert np.array_equal(*runs)


def test_the_budget_is_reserved_and_holds():
    before = torch.cuda.memory_allocated()
    budget = 256 << 20
    model = WorldModel.from_pretrained("debug", device="cuda", memory_budget=budget)
    weights = sum(p.numel() * p.element_size() for m in (model.transformer, model.autoencoder) for p in m.parameters())
    assert torch.cuda.memory_allocated() - before <= budget + 2 * weights + (1 << 20)
    with pytest.raises(ValueError, match="more than cuda"):
        WorldModel.from_pretrained("debug", device="cuda", memory_budget=1 << 45, host_budget=0)


@pytest.mark.parametrize(
    ("dtype", "memory_dtype"), [(torch.float32, None), (torch.float16, None), (torch.float16, "int8")]
)
def test_frames_on_the_host_change_nothing(dtype, memory_dtype):
    walk, runs = make_walk(80), []
    for budget, host in ((256 << 20, 0), (10 << 20, 1 << 30)):
        loaded = random_checkpoint()
        loaded.transformer.to("cuda"), loaded.autoencoder.to("cuda")
        model = WorldModel(loaded, torch.device("cuda"), dtype, budget, memory_dtype, host)
        session = begin(model, walk, 1, context=60)
        runs.append(play(model, session, walk, 60, 80).astype(int))
    assert session.stats["host_frames"] > 20 and session.stats["evicted_frames"] == 0
    assert abs(runs[0][0] - runs[1][0]).max() <= (1 if dtype == torch.float32 else 12)
    assert (abs(runs[0] - runs[1]) <= 2).mean() > 0.99
