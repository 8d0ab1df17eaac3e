"""The commands end to end on the `debug` preset: random weights, small frames."""

from __future__ import annotations

import itertools
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from decmem_env import benchmarks, results, soak
from decmem_env.cli import main
from decmem_env.conventions.clips import read_clip

DEBUG = ["--checkpoint", "debug", "--device", "cpu"]


def test_demo_writes_video_picture_and_summary(tmp_path, capsys):
    assert main(["demo", *DEBUG, "--out", str(tmp_path / "demo"), "--seed", "7000000", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert printed == summary
    for name in ("frames_per_second", "revisit_psnr_db", "autoencoder_bound_db", "window_only_psnr_db"):
        assert summary[name] > 0, name
    assert summary["generated_frames"] >= 40 and summary["revisit_frames"] > 0
    assert summary["device"] == "cpu" and summary["checkpoint"] == "debug"
    files = {path.name: path.stat().st_size for path in (tmp_path / "demo").iterdir()}
    assert set(files) == {"demo.mp4", "demo.png", "summary.json"} and min(files.values()) > 100


def test_rollout_writes_a_clip_that_reads_back(tmp_path, capsys):
    out = tmp_path / "walk.mp4"
    argv = ["rollout", *DEBUG, "--actions", "W*3 L*2", "--out", str(out), "--world-seed", "7000001"]
    assert main(argv) == 0
    clip = read_clip(out)
    assert len(clip.frames) == 25 + 5 and clip.actions.shape == (30, 25) and clip.poses.shape == (30, 5)
    assert clip.actions[25:28, 11].tolist() == [1, 1, 1] and clip.actions[28:, 16].tolist() == [-1, -1]
    assert not np.allclose(clip.poses[24], clip.poses[29])

    more = tmp_path / "more.mp4"
    argv = ["rollout", *DEBUG, "--actions", "AAQ", "--keymap", "worldmem", "--clip", str(out), "--out", str(more)]
    assert main([*argv, "--only-generated"]) == 0
    assert len(read_clip(more).frames) == 3

    image = tmp_path / "image.png"
    from decmem_env.pictures import write_png

    write_png(image, np.full((60, 200, 3), 90, np.uint8))
    assert main(["rollout", *DEBUG, "--actions", "R", "--image", str(image), "--out", str(tmp_path / "i.mp4")]) == 0
    capsys.readouterr()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    assert main(["rollout", *DEBUG, "--actions", "R", "--image", str(broken), "--out", str(tmp_path / "j.mp4")]) == 2
    assert "no readable image" in capsys.readouterr().err
    assert not (tmp_path / "j.mp4").exists()


def test_revisit_writes_records_and_page(tmp_path, capsys):
    argv = ["revisit", *DEBUG, "--worlds", "7000000-7000003", "--limit-worlds", "1", "--gap", "20"]
    argv += ["--kinds", "turn_away,aba", "--seeds", "2", "--batch", "4"]
    argv += ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    assert main(argv) == 0
    table = capsys.readouterr().out
    assert "exact gap20" in table and "bound" in table and "copy" in table
    records = results.read_results(tmp_path / "r.json")
    names = {item["name"] for item in records}
    assert "exact_gap20_psnr_db" in names and "sharpness.memory.ratio" in names
    rows = {name.split(".")[4] for name in names if name.startswith("revisit.exact.")}
    assert rows == {"memory", "no_retrieval", "window_retrieval", "bound", "copy"}
    copy = next(item for item in records if item["name"].startswith("revisit.exact.gap20.all.copy"))
    assert copy["value"] > 60
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/png;base64") >= 2 and "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and 'src="data' in page


def test_revisit_long_run(tmp_path, capsys, monkeypatch):
    from decmem_env.revisit import scripts

    monkeypatch.setattr(scripts.build_long_run, "__defaults__", (30, 48))
    argv = ["revisit", *DEBUG, "--worlds", "7000002", "--long-run", "--no-floors", "--seeds", "1"]
    assert main([*argv, "--json", str(tmp_path / "l.json")]) == 0
    names = {item["name"] for item in results.read_results(tmp_path / "l.json")}
    assert {"long_run.first_15.memory.psnr_db", "long_run.last_15.memory.psnr_db"} <= names


def test_revisit_edits(tmp_path, capsys):
    argv = ["revisit", *DEBUG, "--worlds", "7000002", "--edits", "--per-world", "1", "--no-floors", "--seeds", "1"]
    assert main([*argv, "--json", str(tmp_path / "e.json"), "--sheet", str(tmp_path / "e.png")]) == 0
    assert "place" in capsys.readouterr().out
    found = {item["name"]: item for item in results.read_results(tmp_path / "e.json")}
    details = found["edits.place.memory.right_percent"]["details"]
    assert details["frames"] == details["right_at_once_edits"] == 1
    assert found["edits.break.bound.right_percent"]["bar"] is None
    assert (tmp_path / "e.png").read_bytes()[:4] == b"\x89PNG"
    assert main([*argv, "--html", str(tmp_path / "e.html")]) == 2
    assert "--sheet" in capsys.readouterr().err


def test_revisit_by_several_processes_finds_the_same(tmp_path, capsys, monkeypatch):
    argv = ["revisit", *DEBUG, "--worlds", "7000002-7000003", "--kinds", "turn_away", "--gap", "20", "--no-floors"]
    argv += ["--seeds", "1", "--batch", "1", "--device", "cpu"]
    found, threads = [], torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # as each of the two has it: sums depend on it
    for more in ([], ["--jobs", "2"]):
        path = tmp_path / f"r{len(more)}.json"
        monkeypatch.setattr("sys.argv", ["decmem", *argv, *more, "--json", str(path)])
        assert main() == 0
        found.append([(item["name"], item["value"]) for item in results.read_results(path)])
    torch.set_num_threads(threads)
    assert found[0] == found[1] and len(found[0]) > 10
    assert "scripts in 2 worlds" in capsys.readouterr().err
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["r0.json", "r2.json"]
    assert main([*argv, "--jobs", "2"]) == 2
    assert "--jobs needs --json" in capsys.readouterr().err


def test_a_process_that_fails_ends_the_test(tmp_path, capsys, monkeypatch):
    argv = ["revisit", *DEBUG, "--worlds", "7000002-7000003", "--kinds", "turn_away", "--gap", "20", "--no-floors"]
    argv += ["--jobs", "2", "--device", "cpu", "--json", str(tmp_path / "r.json")]
    monkeypatch.setattr("sys.argv", ["decmem", "revisit", "--nonsense"])  # what the processes run
    assert main(argv) == 2
    assert "--jobs ended with code 2" in capsys.readouterr().err


def test_revisit_beside(tmp_path, capsys):
    argv = ["revisit", *DEBUG, "--worlds", "7000002", "--beside"]
    assert main([*argv, "--json", str(tmp_path / "b.json")]) == 0
    assert "pitch_2" in capsys.readouterr().out
    found = {item["name"]: item for item in results.read_results(tmp_path / "b.json")}
    assert found["beside.exact.copy.psnr_db"]["value"] > 99.0
    assert found["beside.pitch_8.copy.psnr_db"]["value"] < found["beside.pitch_2.copy.psnr_db"]["value"] < 99.0
    assert main([*argv, "--edits"]) == 2
    assert main([*argv, "--memory", "memory,dense"]) == 2
    assert "single --memory" in capsys.readouterr().err


def test_revisit_new_ground(tmp_path, capsys):
    argv = ["revisit", *DEBUG, "--worlds", "7000002-7000003", "--new-ground", "--steps", "1", "--batch", "2"]
    files = {option: tmp_path / f"n.{option}" for option in ("json", "html")} | {"sheet": tmp_path / "n.png"}
    written = [str(part) for option, path in files.items() for part in (f"--{option}", path)]
    assert main([*argv, "--memory", "memory,off", "--no-floors", *written]) == 0
    assert "distance" in capsys.readouterr().out
    found = {item["name"]: item for item in results.read_results(files["json"])}
    figures = ["new_ground_sharpness", "new_ground_distance", "new_ground_return_db"]
    assert list(found) == [*figures, *(f"{name}.off" for name in figures)]
    assert all(item["value"] > 0 and item["bar"] is None for item in found.values())
    assert found["new_ground_sharpness"]["details"]["frames"] == 2 * 74
    assert found["new_ground_distance"]["details"]["floor"] > 0
    assert files["sheet"].read_bytes()[:4] == b"\x89PNG"
    assert "data:image/png;base64" in files["html"].read_text()
    assert not (tmp_path / "n.json.partial").exists()
    assert main([*argv, "--beside"]) == 2
    assert main([*argv[:-5], "--sheet", str(tmp_path / "m.png")]) == 2
    assert "--new-ground" in capsys.readouterr().err


def test_data_make_and_index(tmp_path, capsys):
    argv = ["data", "make", "--out", str(tmp_path), "--clips", "2", "--frames", "12", "--seeds", "7000000-7000009"]
    assert main([*argv, "--height", "32", "--width", "64", "--device", "cpu"]) == 0
    assert main(["data", "index", "--root", str(tmp_path)]) == 0
    rows = (tmp_path / "val.csv").read_text().splitlines()
    assert rows[0] == "video_path,action_path" and len(rows) == 3
    clip = read_clip(tmp_path / rows[1].split(",")[0])
    assert clip.frames.shape == (12, 32, 64, 3) and not clip.actions[0].any()
    assert main(["data", "make", "--out", str(tmp_path), "--clips", "1", "--seeds", "7500000-7500001"]) == 2
    assert "no split" in capsys.readouterr().err


def test_doctor_reports_json(capsys):
    code = main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)
    names = {item["name"] for item in findings}
    assert {"python", "torch", "voxel renderer", "ffmpeg", "gymnasium"} <= names
    assert code == (1 if any(item["ok"] is False for item in findings) else 0)
    assert all(item["mend"] for item in findings if item["ok"] is False)


def test_unknown_checkpoint_is_named(tmp_path, capsys):
    assert main(["demo", "--checkpoint", "no-such-model", "--device", "cpu", "--out", str(tmp_path / "d")]) == 2
    assert "no-such-model" in capsys.readouterr().err


@pytest.mark.slow
def test_bench_cpu_runs_in_fresh_processes(tmp_path, capsys):
    argv = ["bench", "cpu", "--checkpoint", "debug", "--memory-frames", "30", "--frames", "5", "--processes", "2"]
    assert main([*argv, "--json", str(tmp_path / "b.json")]) == 0
    item = results.read_results(tmp_path / "b.json")[0]
    assert item["name"] == "frames_per_second" and item["value"] > 0
    assert len(item["details"]["runs"]) == 2 and min(item["details"]["runs"]) == pytest.approx(item["value"], rel=1e-3)
    printed = capsys.readouterr().out
    assert all(f"%  {part}\n" in printed for part in item["details"]["parts"]) and "on average" in printed


def test_bench_on_known_ground_keeps_nothing():
    sizes = {"memory_frames": 60, "warm_up": 2, "measured": 6, "profiled": 4, "threads": 1}
    walking, looking = (benchmarks.env_speed(**sizes, known=known) for known in (False, True))
    assert looking["memory_frames_at_end"] == 61  # the last frame is always there, kept or not
    assert walking["memory_frames_at_end"] > 61
    assert max(looking["parts"], key=looking["parts"].get) in ("transformer without attention", "attention", "decoder")


def test_bench_env_counts_every_reset(tmp_path):
    argv = ["bench", "env", "--checkpoint", "debug", "--worlds", "3", "--episode", "6", "--device", "cpu"]
    assert main([*argv, "--json", str(tmp_path / "v.json")]) == 0
    (item,) = json.loads((tmp_path / "v.json").read_text())
    assert item["value"] > 0 and item["details"]["resets"] == 3


def test_bench_soak(tmp_path, monkeypatch):
    # A clock that ticks with every look at it: how many frames are played does not depend on the machine's load.
    ticks = itertools.count()
    monkeypatch.setattr(soak, "time", SimpleNamespace(perf_counter=lambda: 0.005 * next(ticks)))
    argv = ["bench", "soak", "--checkpoint", "debug", "--minutes", "0.06", "--budget-gib", "0.0035", "--device", "cpu"]
    assert main([*argv, "--json", str(tmp_path / "s.json")]) == 0
    slow_down, growth, share, full = json.loads((tmp_path / "s.json").read_text())
    assert slow_down["value"] == pytest.approx(1) and growth["value"] < 2 and 0.5 < share["value"] <= 1
    assert slow_down["details"]["evicted_frames"] > 0
    assert full["name"] == "soak_step_full_over_filling" and full["value"] == pytest.approx(1) and full["bar"] is None


def test_bench_load(tmp_path):
    argv = ["bench", "load", "--preset", "debug", "--device", "cpu", "--json", str(tmp_path / "l.json")]
    assert main(argv) == 0
    seconds, memory = results.read_results(tmp_path / "l.json")
    assert 0 < seconds["value"] < 10 and memory["value"] > 0 and memory["details"]["gigabytes"] > 0
    assert seconds["bar"] is None, "the bar is for the full-size file"


def test_bench_renderer(tmp_path):
    assert main(["bench", "renderer", "--device", "cpu", "--json", str(tmp_path / "b.json")]) == 0
    assert results.read_results(tmp_path / "b.json")[0]["value"] > 0


def test_bench_growth(tmp_path):
    argv = ["bench", "growth", "--checkpoint", "debug", "--frames", "20", "60", "--pairs", "3"]
    assert main([*argv, "--json", str(tmp_path / "g.json")]) == 0
    items = {item["name"]: item for item in results.read_results(tmp_path / "g.json")}
    assert set(items) == {"growth_step", "growth_attention", "growth_attention_and_selection"}
    for item in items.values():
        assert item["value"] > 0 and item["bar"] is None and item["details"]["frames"] == [20, 60]
        assert item["details"]["ratio_10"] <= item["value"] <= item["details"]["ratio_90"]


def test_bench_bank(tmp_path):
    argv = ["bench", "bank", "--device", "cpu", "--debug", "--parts", "tiny", "ahead", "fork"]
    assert main([*argv, "--json", str(tmp_path / "b.json")]) == 0
    found = {item["name"]: item for item in json.loads((tmp_path / "b.json").read_text())}
    assert found["bank_step_ratio"]["details"]["error"] < 1e-4
    assert found["bank_step_ratio"]["details"]["host_frames"] > 60 and found["bank_fork_ratio"]["value"] <= 1.05
    assert found["bank_ahead_over_late_seconds"]["details"]["ahead_bytes"] > 0
