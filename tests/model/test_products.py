"""Products in bf16 on CPUs that have them: close to fp32, never mixed up with it, and not asked of others."""

import numpy as np
import pytest
import torch
from decmem_env.model import WorldModel, products, world_model
from decmem_env.model.snapshot import SnapshotError
from decmem_env.model.streaming import Streamer

from .conftest import make_walk

STEPS = range(12, 18)


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(world_model, "cpu_products", lambda: torch.bfloat16)


def play(model, walk):
    session = model.start(1)
    walk.observe(session, 0, STEPS.start)
    return np.concatenate([model.step([session], *walk.chunk(t))[0] for t in STEPS]), session


def test_frames_are_close_and_in_bf16(narrow):
    walk = make_walk(STEPS.stop)
    quick = WorldModel.from_pretrained("debug", memory_budget=64 << 20)
    exact = WorldModel.from_pretrained("debug", memory_budget=64 << 20, dtype=torch.float32)
    assert quick.kernel == "cpu/bfloat16/cpu/float16" and exact.kernel == "cpu/float32/cpu/float16"
    assert {layer.into[0].dtype for layer in quick.streamer.layers} == {torch.bfloat16}
    assert quick.own_decoder.dtype == torch.bfloat16 and quick.autoencoder.dtype == torch.float32
    assert quick.pool.dtype == torch.float32  # queries and the camera's matrices stay
    frames, session = play(quick, walk)
    wanted, _ = play(exact, walk)
    error = np.square(frames.astype(float) - wanted).mean()
    assert 0.0 < error < 255.0**2 * 1e-4  # 40 dB
    np.testing.assert_array_equal(play(quick, walk)[0], frames)
    np.testing.assert_array_equal(session.decode_context()[0], frames[-1])
    with pytest.raises(SnapshotError, match="kernel"):
        exact.restore(session.snapshot())


@pytest.mark.parametrize("asked", [{"dtype": torch.float32}, {"memory_dtype": "float32"}])
def test_who_asks_for_fp32_gets_it(narrow, asked):
    model = WorldModel.from_pretrained("debug", memory_budget=64 << 20, **asked)
    assert model.streamer.products == torch.float32 and model.own_decoder is model.autoencoder


def test_wan_stays_in_fp32(narrow):
    with pytest.warns(UserWarning, match="random weights"):
        model = WorldModel.from_pretrained("wan-debug", memory_budget=256 << 20)
    assert model.streamer.products == torch.float32


def test_the_rule_follows_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert products.cpu_products() == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert products.cpu_products() == torch.float32
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert products.cpu_products() == torch.float32


def test_streamers_multiply_in_the_pools_dtype_by_default(model):
    assert Streamer(model.transformer, model.pool).products == model.pool.dtype
