"""The parts of a step: each has its own time, and they add up."""

import time

import numpy as np
import pytest
from decmem_env.model import WorldModel, streaming, world_model

from decmem_env.step_profile import REST, StepProfile


def test_parts_add_up_and_nothing_stays_wrapped():
    plain = (world_model.WorldModel.step, world_model.keeps, streaming.select_blocks)
    model = WorldModel.from_pretrained("debug", device="cpu", memory_budget=64 << 20)
    session = model.start(0)
    poses = np.zeros((1, 1, 5))
    with StepProfile() as profile:
        start = time.perf_counter()
        for _ in range(20):
            poses[..., 4] += 15.0
            model.step([session], np.zeros((1, 1, 25), np.float32), poses)
        time.sleep(0.05)
        seconds = time.perf_counter() - start
    assert plain == (world_model.WorldModel.step, world_model.keeps, streaming.select_blocks)
    parts = profile.parts(seconds, 20)
    assert sum(parts.values()) == pytest.approx(1000 * seconds / 20)
    assert min(parts.values()) > 0 and list(parts.values()) == sorted(parts.values(), reverse=True)
    assert parts[REST] == pytest.approx(2.5, abs=1.5), "what was spent outside of the engine"
    assert {"decoder", "attention", "selection of blocks", "transformer without attention"} < set(parts)


def test_an_error_unwraps_too():
    plain = world_model.WorldModel.step
    with pytest.raises(RuntimeError), StepProfile():
        assert world_model.WorldModel.step is not plain
        raise RuntimeError
    assert world_model.WorldModel.step is plain
