"""Replayed passes against launched ones; without a GPU the "graphs" run the same code on their buffers."""

import json

import pytest
import torch
from decmem_env.model import pass_graphs
from decmem_env.model.pass_graphs import PassGraphs

from decmem_env import wan_benchmark as bench
from decmem_env.cli import main


class Again:
    """Stands in for CUDA graphs: to replay is to run again, from the buffers alone."""

    def __init__(self):
        self.runs = 0

    def __call__(self, run):
        first = run()
        result = None if first is None else first.clone()

        def replay():
            self.runs += 1
            again = run()
            if result is not None:
                result.copy_(again)

        return replay, result


def chunks(model, seeds, count, **settings):
    """Latents of some chunks in sessions that are stepped together, each with 8 to 20 latents of context."""
    sessions = [model.start(seed, **settings) for seed in seeds]
    torch.manual_seed(0)
    for i, session in enumerate(sessions):
        bench.observe(session, 8 + 4 * i)
    found = []
    frames = model.frames_of(sessions[0])
    for _ in range(count):
        actions = torch.zeros(len(seeds), frames, model.config.action_dim)
        poses = torch.zeros(len(seeds), frames, 5)
        poses[:, :, 4] = 10.0 * len(found)
        model.step(sessions, actions.numpy(), poses.double().numpy(), decode=False)
        found.append(torch.stack([session.pending.latents for session in sessions]))
    for session in sessions:
        session.close()
    return torch.stack(found)


@pytest.mark.parametrize(
    ("preset", "seeds", "settings"),
    [
        ("wan-debug", [3], {"guidance": 5.0}),
        ("wan-debug", [3, 4], {"guidance": 1.0}),
        ("wan-debug", [3], {"guidance": 1.0, "memory": "off"}),
        ("debug", [3], {"guidance": 1.0}),
        ("debug", [3, 4, 5], {"guidance": 1.0}),
    ],
)
def test_replayed_passes_are_the_same(preset, seeds, settings, monkeypatch):
    """Two buckets of history; the pool holds NaN wherever nothing was written."""
    monkeypatch.setattr(pass_graphs, "BUCKET", 20)
    model = bench.random_model(preset, "cpu", torch.float32, 96)
    for layer in range(model.config.depth):
        for pages in model.pool.pages(layer):
            pages.fill_(torch.nan)
    wanted = chunks(model, seeds, 5, steps=4, **settings)
    recorder = Again()
    model.graphs = PassGraphs(model.streamer, recorder)
    found = chunks(model, seeds, 5, steps=4, **settings)
    assert not found.isnan().any()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert recorder.runs >= 10, "of the 20 passes the first ones of each kind are launched"


def test_contexts_of_one_length_are_replayed(monkeypatch):
    """Small frames only: the third context of a length enters memory by what the second one recorded."""
    model = bench.random_model("debug", "cpu", torch.float32, 96)
    wanted = [chunks(model, [seed], 2, steps=1) for seed in range(4)]
    recorder = Again()
    model.graphs = PassGraphs(model.streamer, recorder)
    for seed in range(4):
        torch.testing.assert_close(chunks(model, [seed], 2, steps=1), wanted[seed], rtol=1e-5, atol=1e-5)
    before = recorder.runs
    bench.observe(model.start(9), 8)
    assert recorder.runs == before + 1


def test_what_someone_watches_is_not_replayed():
    model = bench.random_model("wan-debug", "cpu", torch.float32, 64)
    recorder = Again()
    model.graphs = PassGraphs(model.streamer, recorder)
    session = model.start(0, steps=4)
    session.record_lists = True
    bench.observe(session, 8)
    bench.step(session)
    assert recorder.runs == 0 and session.last_lists is not None


def test_graphs_need_a_gpu():
    model = bench.random_model("wan-debug", "cpu", torch.float32, 64)
    with pytest.raises(ValueError, match="use device='cuda', or no graphs"):
        PassGraphs(model.streamer)


def test_the_benchmark_compares_before_it_measures(tmp_path, monkeypatch):
    monkeypatch.setattr(pass_graphs, "_CudaRecorder", lambda device: Again())
    file = tmp_path / "wan.json"
    arguments = ["bench", "wan", "--preset", "wan-debug", "--device", "cpu", "--parts", "graphs", "--json", str(file)]
    assert main(arguments) == 0
    items = {item["name"]: item for item in json.loads(file.read_text())}
    assert items["wan_graphs_relative_error"]["met"]
    assert items["wan_few_steps_frames_per_second_graphs"]["value"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize(("seeds", "guidance"), [([3], 5.0), ([3, 4], 1.0)])
def test_cuda_graphs(seeds, guidance, monkeypatch):
    monkeypatch.setattr(pass_graphs, "BUCKET", 20)
    model = bench.random_model("wan-debug", "cuda", torch.bfloat16, 96)
    wanted = chunks(model, seeds, 6, steps=4, guidance=guidance)
    model.graphs = PassGraphs(model.streamer)
    found = chunks(model, seeds, 6, steps=4, guidance=guidance)
    assert sum(graph is not None for graph in model.graphs._graphs.values()) >= 2
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
