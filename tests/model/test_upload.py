"""Uploads, and a step that never waits for the device."""

import warnings

import numpy as np
import pytest
import torch
from decmem_env.model.upload import upload

from decmem_env import wan_benchmark as bench

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_values_arrive(device):
    table = np.arange(6, dtype=np.int64).reshape(2, 3)
    for values in (table, table[:, None], table.T, torch.from_numpy(table)[:, 1:], np.zeros((0, 2), np.float32)):
        sent = upload(values, torch.device(device))
        assert sent.device.type == device and sent.dtype == torch.as_tensor(values).dtype
        assert np.array_equal(sent.cpu().numpy(), np.asarray(values))


@pytest.mark.gpu
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_step_never_waits_for_the_device(guidance):
    model = bench.random_model("wan-debug", "cuda", torch.bfloat16, 96)
    session = model.start(0, steps=3, guidance=guidance)
    bench.observe(session, 20)
    for _ in range(2):  # compiles and chooses kernels
        bench.step(session)
    with warnings.catch_warnings():  # torch calls the mode a prototype, once a process
        warnings.simplefilter("ignore", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        bench.step(session)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert session.pending is not None and bool(session.pending.latents.isfinite().all())
