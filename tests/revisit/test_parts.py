"""A test in parts is the test in one go, and what a cut leaves behind is whole worlds, marked and continued."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

from decmem_env import results
from decmem_env.cli import main
from decmem_env.revisit import Contender, Revisits, cells, records
from decmem_env.revisit.parts import batches, score_parts, whole
from decmem_env.revisit.sidecar import Sidecar
from decmem_env.revisit.worlds import Course

WORLDS = 4


@pytest.fixture
def walks(fakes):
    """Two walks a world, the second of another kind; as `build_course` sorts them: kinds, then worlds."""
    first = [fakes.turn_away(world) for world in range(WORLDS)]
    return [*first, *(dataclasses.replace(walk, kind="aba", noise_seed=walk.noise_seed + 100) for walk in first)]


@pytest.fixture
def measure(fakes, blocks, walks):
    model = fakes.Model("noise")
    rows = [Contender("memory", model, "memory"), Contender("no_retrieval", model, "off", floor=True, seeds=1)]
    return Revisits(walks, blocks, fakes.Renderer(), rows, 40, 2)


def read(outcome):
    return records(outcome, cells(outcome), device="cpu")


def test_batches_take_world_after_world_and_stay_full(measure, walks):
    found = list(batches(walks, 6, 2, measure.contenders))
    assert [[walks[i].world for i in part] for part in found] == [[0, 0, 1], [1, 2, 2], [3, 3]]
    assert list(batches(walks, 6, 2, measure.contenders, {0, 4, 5})) == [[1, 2, 6], [3, 7]]


@pytest.mark.parametrize("sessions", [2, 6])
def test_parts_in_any_order_are_the_test_in_one_go(measure, sessions):
    once = measure.outcome(list(score_parts(measure, 100)))
    parts = list(score_parts(measure, sessions))
    assert len(parts) > 1
    outcome = measure.outcome(parts[::-1])
    for name, scores in once.scores.items():
        for column, values in vars(scores).items():
            np.testing.assert_array_equal(getattr(outcome.scores[name], column), values)
    assert read(outcome) == read(once)
    for a, b in zip(outcome.strips, once.strips, strict=True):
        assert (a.script, a.frames, a.labels) == (b.script, b.frames, b.labels)
        assert all(bool((a.shown[name] == b.shown[name]).all()) for name in b.shown) and bool(
            (a.truth == b.truth).all()
        )


def test_a_world_counts_when_all_its_walks_are_done(measure, walks):
    parts = list(score_parts(measure, 6))[:1]  # world 0, and one of the two walks in world 1
    assert parts[0].scripts == (0, 4, 1) and whole(walks, parts) == [0, 4]
    assert set(measure.outcome(parts).scores["memory"].world) == {0}


def test_sidecar_keeps_parts_and_knows_its_run(measure, tmp_path):
    target, facts = tmp_path / "r.json", {"--gap": 40, "row memory": "checkpoint a"}
    parts = list(score_parts(measure, 6))
    sidecar = Sidecar(target, facts)
    assert sidecar.read() == [] and not sidecar.folder.exists()
    for part in parts:
        sidecar.add(part)
    again = Sidecar(target, facts).read()
    assert [part.scripts for part in again] == [part.scripts for part in parts]
    assert read(measure.outcome(again)) == read(measure.outcome(parts))
    assert len(measure.outcome(again).strips) == 6
    with pytest.raises(ValueError, match=r"another run \(row memory checkpoint a there, checkpoint b here\)"):
        Sidecar(target, {**facts, "row memory": "checkpoint b"}).read()
    next(sidecar.folder.glob("*.npz")).write_bytes(b"half")
    with pytest.raises(ValueError, match="damaged"):
        sidecar.read()
    sidecar.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def interruptible():
    """A job that a shell started in the background ignores Ctrl-C; these tests are about it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def command(fakes, blocks, walks, monkeypatch, tmp_path):
    """`decmem revisit` on the fakes; `before` is called with the number of each batch that is to be scored."""
    monkeypatch.setattr("decmem_env.cli.revisit.load_model", lambda *_: fakes.Model("noise"))
    monkeypatch.setattr("decmem_env.rollout.frame_size", lambda _: (16, 24))
    monkeypatch.setattr("decmem_env.worlds.Renderer", lambda **_: fakes.Renderer())
    monkeypatch.setattr("decmem_env.revisit.worlds.build_course", lambda *_, **__: Course(blocks, walks, []))
    score = Revisits.score

    def run(name, before=lambda number: None, *more):
        numbers = []

        def counted(self, indices, tell):
            numbers.append(len(numbers))
            before(numbers[-1])
            return score(self, indices, tell)

        monkeypatch.setattr(Revisits, "score", counted)
        argv = ["revisit", "--device", "cpu", "--gap", "40", "--seeds", "1", "--batch", "3"]
        return main([*argv, "--worlds", f"0-{WORLDS - 1}", "--json", str(tmp_path / name), *more]), len(numbers)

    return run


class Killed(BaseException):
    """Nothing may run after it that would tidy up."""


def plain(path):
    return [{k: v for k, v in item.items() if k not in ("command", "date")} for item in results.read_results(path)]


@pytest.mark.parametrize("more", [[], ["--long-run"]])
def test_a_killed_run_leaves_whole_worlds_and_is_continued(command, tmp_path, capsys, more):
    def kill(number):
        if number == 1:
            raise Killed

    assert command("whole.json", lambda _: None, *more) == (0, 3)
    expected = plain(tmp_path / "whole.json")
    assert not any("of_worlds" in item.get("details", {}) for item in expected)

    with pytest.raises(Killed):
        command("cut.json", kill, *more)
    found = results.read_results(tmp_path / "cut.json")
    assert {(item["details"]["done_worlds"], item["details"]["of_worlds"]) for item in found} == {(1, WORLDS)}
    assert all(item["met"] is None for item in found)
    assert "unfinished: 1 of 4 worlds" in results.page(found, "Cut")

    assert command("cut.json", lambda _: None, *more) == (0, 2), "the batch that was done is not done again"
    assert plain(tmp_path / "cut.json") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.json", "whole.json"]
    assert "going on from" in capsys.readouterr().err


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_batch(command, tmp_path, capsys, number, code):
    def ask(batch):
        if batch == 1:
            os.kill(os.getpid(), number)

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert command("r.json", ask, "--html", str(tmp_path / "r.html")) == (code, 2)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    out = capsys.readouterr().out
    assert "exact gap40" in out and out.endswith("3 of 4 worlds: stopped\n")
    found = json.loads((tmp_path / "r.json").read_text())
    assert {item["details"]["done_worlds"] for item in found} == {3}
    assert "unfinished: 3 of 4 worlds" in (tmp_path / "r.html").read_text()
    assert command("r.json") == (0, 1)
    assert "stopped" not in capsys.readouterr().out and not (tmp_path / "r.json.partial").exists()


def test_a_second_signal_stops_at_once(command, tmp_path, capsys):
    def ask(batch):
        if batch == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    assert command("r.json", ask) == (130, 2)
    assert "stopped" not in capsys.readouterr().out
    found = results.read_results(tmp_path / "r.json")
    assert {item["details"]["done_worlds"] for item in found} == {1}


def test_a_signal_before_a_world_is_whole_keeps_its_walks(command, tmp_path, capsys):
    assert command("r.json", lambda _: os.kill(os.getpid(), signal.SIGTERM), "--batch", "1") == (143, 1)
    assert capsys.readouterr().out == "0 of 4 worlds: stopped\n"
    assert [path.name for path in tmp_path.iterdir()] == ["r.json.partial"]
    assert command("r.json") == (0, 3) and (tmp_path / "r.json").exists()


def test_a_run_of_another_kind_is_refused(command, tmp_path, capsys):
    assert command("r.json", lambda _: os.kill(os.getpid(), signal.SIGTERM))[0] == 143
    assert command("r.json", lambda _: None, "--seeds", "2") == (2, 0)
    assert "--seeds 1 there, 2 here" in capsys.readouterr().err
