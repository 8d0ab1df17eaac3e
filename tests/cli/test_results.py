import json

import pytest
import torch

from decmem_env import results
from decmem_env.copies import copies_beside, covered


def test_record_compares_with_its_bar():
    good = results.record("x", 26.0, "dB", bar=25.5, command="c")
    assert good["met"] is True and set(results.FIELDS) <= set(good)
    assert results.record("x", 25.0, "dB", bar=25.5, command="c")["met"] is False
    assert results.record("x", 3.0, "dB", bar=3.5, better="lower", command="c")["met"] is True
    assert results.record("x", 3.0, "dB", command="c")["met"] is None
    assert results.record("x", float("nan"), "dB", bar=1.0, command="c")["met"] is False


def test_write_and_read_back(tmp_path):
    records = [
        results.record("speed", 4.5, "frames/s", bar=4, command="decmem bench cpu"),
        results.record(
            "psnr",
            20.0,
            "dB",
            bar=25.5,
            command="decmem revisit",
            details={"low": 19.0, "high": 21.0, "frames": 10, "worlds": 2},
        ),
    ]
    path = results.write_results(tmp_path / "deep" / "NAME.json", records, title="A title")
    assert results.read_results(path) == json.loads(path.read_text())
    page = path.with_suffix(".md").read_text()
    assert "# A title" in page and "| speed | 4.5 frames/s | 4 | yes |" in page and "**no**" in page
    assert "19.00 to 21.00, 10 frames, 2 worlds" in page
    assert sorted(p.name for p in path.parent.iterdir()) == ["NAME.json", "NAME.md"]  # nothing temporary left


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path, monkeypatch):
    target = tmp_path / "a.json"
    results.write_json(target, {"a": 1})

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(results.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        results.write_json(target, {"a": 2})
    assert json.loads(target.read_text()) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_broken_results_are_named(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("[{]")
    with pytest.raises(ValueError, match="not JSON"):
        results.read_results(path)
    path.write_text('[{"name": "x"}]')
    with pytest.raises(ValueError, match="record 0 lacks value"):
        results.read_results(path)


def test_time_of_copies_beside_other_work():
    copies = [(10.0, 20.0), (15.0, 30.0), (40.0, 50.0)]
    assert covered(copies, [(0.0, float("inf"))]) == 30.0
    assert covered(copies, [(0.0, 12.0), (11.0, 16.0), (45.0, 47.0), (60.0, 70.0)]) == 8.0
    assert covered(copies, []) == 0.0 and copies_beside(torch.device("cpu"), int) == {}
