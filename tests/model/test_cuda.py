"""The engine on a GPU: the same worlds as on the CPU."""

import numpy as np
import pytest
import torch
from decmem_env.model import WorldModel

from .conftest import make_walk, random_checkpoint
from .test_offload import budget_of
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
    assert model.pool.allocated <= torch.cuda.memory_allocated() - before <= budget + 3 * weights
    with pytest.raises(ValueError, match="more than cuda"):
        WorldModel.from_pretrained("debug", device="cuda", memory_budget=1 << 42, host_budget=0)


@pytest.mark.parametrize(
    ("dtype", "memory_dtype"), [(torch.float32, None), (torch.float16, None), (torch.float16, "int8")]
)
@pytest.mark.parametrize("shared", [False, True])
def test_frames_on_the_host_change_nothing(dtype, memory_dtype, shared, monkeypatch):
    if shared:
        monkeypatch.setattr("decmem_env.model.memory_layout._SHARES_ASKED", (0.5, 0.05))
    walk, runs = make_walk(80), []
    for host in (0, 256 << 20):
        loaded = random_checkpoint(depth=3, window=4)
        loaded.transformer.to("cuda"), loaded.autoencoder.to("cuda")
        budget = budget_of(loaded.config, 30, host, memory_dtype, dtype) if host else 256 << 20
        model = WorldModel(loaded, torch.device("cuda"), dtype, budget, memory_dtype, host)
        session = begin(model, walk, 1, context=70)
        runs.append(play(model, session, walk, 70, 80).astype(int))
    assert model.pool.layout.stages == (2 if shared else 3)
    assert session.stats["host_frames"] > 40 and session.stats["evicted_frames"] == 0
    assert session.stats["fetched_bytes"] > 0
    assert abs(runs[0][0] - runs[1][0]).max() <= (1 if dtype == torch.float32 else 12)
