"""Uploads, and a step that never waits for the device."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from decmem_env.model.upload import _Ring, upload, upload_all

from decmem_env import wan_benchmark as bench

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_values_arrive(device):
    table = np.arange(6, dtype=np.int64).reshape(2, 3)
    for values in (table, table[:, None], table.T, torch.from_numpy(table)[:, 1:], np.zeros((0, 2), np.float32)):
        sent = upload(values, torch.device(device))
        assert sent.device.type == device and sent.dtype == torch.as_tensor(values).dtype
        assert np.array_equal(sent.cpu().numpy(), np.asarray(values))


VALUES = [
    np.arange(7, dtype=np.int32),
    np.array([True, False, True]),
    torch.zeros(0, 4),
    torch.arange(12.0).view(3, 4).T,
    torch.arange(5, dtype=torch.bfloat16),
    np.array(2.5),
]


@pytest.mark.parametrize("device", DEVICES)
def test_several_arrive_together(device):
    for value, sent in zip(VALUES, upload_all(VALUES, torch.device(device)), strict=True):
        wanted = torch.as_tensor(value)
        assert sent.device.type == device and sent.dtype == wanted.dtype and torch.equal(sent.cpu(), wanted)


def test_parts_of_the_ring_wait_for_what_left_from_there(monkeypatch):
    """Without a GPU: plain memory, and events that are written down."""
    waited, plain = [], torch.empty
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: waited.append(1))
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory, **options: plain(*size, **options))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    ring = _Ring()
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    for number in range(40):  # six fill a part
        big = torch.full((2**20 + number,), number, dtype=torch.bool)
        tensors = [torch.as_tensor(value) for value in VALUES]
        *small, sent = ring.send([*tensors, big], torch.device("cpu"))
        assert torch.equal(sent, big) and all(torch.equal(a, b) for a, b in zip(small, tensors, strict=True))
    assert len(waited) == 40 // 7 - 3


@pytest.mark.gpu
def test_what_was_sent_stays_while_the_device_is_busy():
    """More than the pinned memory holds, from an array that changes at once, behind a kernel that takes its time."""
    device = torch.device("cuda")
    torch.cuda._sleep(200_000_000)
    value, sent = np.zeros(2**19, np.int64), []
    for number in range(24):
        value[:] = number
        sent.append(upload(value, device))
    assert [int(tensor.min()) for tensor in sent] == [int(tensor.max()) for tensor in sent] == list(range(24))


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
