import json
import os
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from decmem_env.trainers import run_stage
from decmem_env.trainers.__main__ import main
from decmem_env.trainers.config import ConfigError
from decmem_env.trainers.curves import read_log
from decmem_env.trainers.files import StateError
from safetensors.torch import load_file

STAGES = ("autoencoder", "dense_short", "dense", "decmem")


def init_of(runs, stage):
    place = STAGES.index(stage)
    return runs[STAGES[place - 1]] if place else None


def losses(folder):
    return {r["step"]: r["loss"] for r in read_log(folder / "log.jsonl") if "loss" in r}


@pytest.mark.parametrize("stage", STAGES)
def test_stage_trains_saves_evaluates_and_exports(runs, stage):
    out = runs[stage]
    result = json.loads((out / "result.json").read_text())
    assert result["step"] == 2 and result["progress"] == 1.0 and result["loss"] > 0
    assert result["psnr_db"] > 3
    names = {p.name for p in (out / "export").iterdir()}
    full = {"autoencoder.safetensors", "config.json", "transformer.safetensors"}
    assert names == (full if stage != "autoencoder" else {"autoencoder.safetensors"})
    assert (out / "curves.png").stat().st_size > 1000 and (out / "config.yaml").is_file()
    assert not list(out.glob("*.tmp")) and not list(out.glob("*.old"))
    if stage != "autoencoder":
        weights = load_file(out / "export" / "transformer.safetensors")
        assert all(t.dtype == torch.float16 for t in weights.values() if t.is_floating_point())


@pytest.mark.parametrize(("stage", "share"), [("autoencoder", 0.0), ("decmem", 0.0), ("decmem", 0.5)])
def test_resume_continues_exactly(runs, stage, share, tmp_path):
    settings = {"run.steps": 4, "run.log_seconds": 0, "run.validation_worlds": 0, "optimiser.warmup": 3}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    more = {"objective.self_context": 0.0, "objective.adversarial": share} if stage == "decmem" else {}
    run_stage(f"debug_{stage}", whole, settings | more, device="cpu", init=init_of(runs, stage))
    # The same schedule, cut by a time limit after two steps.
    import decmem_env.trainers.trainer as trainer

    finished, calls = trainer.Trainer._finished, [0]

    def stop_after_two(self):
        calls[0] += 1
        return self.progress.step >= 2 or finished(self)

    trainer.Trainer._finished = stop_after_two
    try:
        run_stage(f"debug_{stage}", parts, settings | more, device="cpu", init=init_of(runs, stage))
    finally:
        trainer.Trainer._finished = finished
    assert max(losses(parts)) == 2
    run_stage(f"debug_{stage}", parts, settings | more, device="cpu", init=init_of(runs, stage))
    assert losses(parts) == losses(whole) and len(losses(whole)) == 4
    for name in ("weights", "ema", "moments", *(["adversary"] if share else [])):
        a, b = (load_file(f / "state" / f"{name}.safetensors") for f in (whole, parts))
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_resume_from_the_compact_state_is_close(runs, tmp_path):
    settings = {"run.steps": 5, "run.log_seconds": 0, "run.validation_worlds": 0}
    exact, small = tmp_path / "exact", tmp_path / "small"
    shutil.copytree(runs["dense"], exact)
    shutil.copytree(runs["dense"] / "compact", small / "compact")
    run_stage("debug_dense", exact, settings, device="cpu", init=runs["dense_short"])
    run_stage("debug_dense", small, settings, device="cpu", init=runs["dense_short"])
    a, b = losses(exact), losses(small)
    assert set(b) == {3, 4, 5}
    assert all(abs(a[s] - b[s]) < 0.01 * a[s] for s in b)
    files = list((small / "compact").glob("*.safetensors"))
    assert all(f.stat().st_size <= 16 * 2**20 for f in files)


def test_a_finished_run_is_left_alone_unless_fresh(runs, capsys):
    before = (runs["dense"] / "state" / "state.json").stat().st_mtime_ns
    run_stage("debug_dense", runs["dense"], device="cpu", init=runs["dense_short"])
    assert "finished already" in capsys.readouterr().out
    assert (runs["dense"] / "state" / "state.json").stat().st_mtime_ns == before


def test_time_limit_ends_a_run_in_time(runs, tmp_path):
    settings = {"run.steps": 10**6, "run.validation_worlds": 0}
    result = run_stage("debug_autoencoder", tmp_path, settings, max_minutes=0.05, device="cpu")
    assert result["progress"] == 1.0 and result["step"] > 2
    assert read_log(tmp_path / "log.jsonl")[-1]["step"] == result["step"]


def test_fusion_may_change_between_stages(runs, tmp_path, capsys):
    settings = {"model.fusion": "union", "run.steps": 1, "run.validation_worlds": 0}
    run_stage("debug_decmem", tmp_path, settings, device="cpu", init=runs["dense"])
    assert "gates start afresh" in capsys.readouterr().out
    assert json.loads((tmp_path / "export" / "config.json").read_text())["fusion"] == "union"


def test_stages_train_on_a_users_clips(runs, tmp_path):
    clips = pytest.importorskip("decmem_env.conventions.clips")
    rng = np.random.default_rng(0)
    rows = ["video_path,action_path"]
    for name in "ab":
        poses = np.cumsum(np.full((14, 5), 0.1), 0)
        frames = rng.integers(0, 256, (14, 96, 160, 3), dtype=np.uint8)
        clips.write_clip(tmp_path / f"{name}.mp4", clips.Clip(frames, np.zeros((14, 25), np.float32), poses, 10))
        rows.append(f"{name}.mp4,{name}.npz")
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    settings = {"data.source": "worldmem", "data.csv": str(tmp_path / "index.csv"), "data.episode_frames": 7}
    settings |= {"data.min_fill": 1, "run.validation_worlds": 2}
    result = run_stage("debug_autoencoder", tmp_path / "ae", settings, device="cpu")
    assert result["step"] == 2 and result["frames"] > 0
    settings["data.frames"] = 4
    result = run_stage("debug_dense_short", tmp_path / "short", settings, device="cpu", init=tmp_path / "ae")
    assert result["step"] == 2 and result["psnr_db"] > 3


def test_profile_prints_shares(runs, tmp_path, capsys):
    settings = {"run.steps": 100, "data.frames": 4}
    run_stage("debug_dense_short", tmp_path, settings, device="cpu", init=runs["autoencoder"], profile=True)
    text = capsys.readouterr().out
    assert all(word in text for word in ("forward", "backward", "optimiser", "render+encode", "ms/step"))
    assert not (tmp_path / "state").exists()


def test_errors_say_what_to_do(runs, tmp_path, capsys):
    with pytest.raises(ConfigError, match="needs --init"):
        run_stage("debug_dense", tmp_path, device="cpu")
    with pytest.raises(StateError, match="does not exist"):
        run_stage("debug_dense", tmp_path, device="cpu", init=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="unknown setting model.colour"):
        run_stage("debug_dense", tmp_path, ["model.colour=1"], device="cpu", init=runs["dense_short"])
    with pytest.raises(StateError, match="no state there"):
        run_stage("debug_dense", tmp_path, device="cpu", init=runs["dense_short"], resume=tmp_path / "nothing")
    with pytest.raises(ConfigError, match="leaves nothing"):
        run_stage("dense", tmp_path, device="cpu", init=runs["dense_short"], max_minutes=0.1)
    assert main(["dance", "--out", str(tmp_path)]) == 2
    assert "unknown stage 'dance'" in capsys.readouterr().err


def test_corrupt_state_is_refused_and_fresh_starts_anew(runs, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(runs["dense"], out)
    weights = out / "state" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (out / "result.json").unlink()
    with pytest.raises(StateError, match="damaged"):
        run_stage("debug_dense", out, device="cpu", init=runs["dense_short"])
    result = run_stage(
        "debug_dense", out, {"run.validation_worlds": 0}, device="cpu", init=runs["dense_short"], resume=False
    )
    assert result["step"] == 2


def test_loss_that_is_not_finite_stops_the_run(runs, tmp_path):
    with pytest.raises(StateError, match="lower optimiser.lr"):
        settings = {"optimiser.lr": 1e30, "run.steps": 6, "run.log_seconds": 0}
        run_stage("debug_dense", tmp_path, settings, device="cpu", init=runs["dense_short"])


def test_export_loads_in_the_engine(runs):
    module = pytest.importorskip("decmem_env.model.world_model")
    model = module.WorldModel.from_pretrained(str(runs["decmem"] / "export"), device="cpu")
    assert sum(p.numel() for p in model.transformer.parameters()) > 1000


@pytest.mark.slow
def test_two_ranks_train_the_same_weights(runs, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "decmem_env.trainers", "debug_dense_short", "--device", "cpu"]
    command += ["--init", str(runs["autoencoder"]), "--set", "run.validation_worlds=0"]
    # A schedule by the clock, whose start differs between the ranks.
    command += ["--set", "objective.adversarial=0.5", "--set", "run.steps=40", "--max-minutes", "0.25"]
    command += ["--set", "run.reserve_seconds=0", "--set", "optimiser.warmup=1"]
    processes = []
    for rank in range(2):
        time.sleep(0.5 * rank)
        env = os.environ | {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        out = ["--out", str(tmp_path / "run")]
        processes.append(subprocess.Popen([*command, *out], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    outputs = [p.communicate(timeout=120)[0].decode() for p in processes]
    assert all(p.returncode == 0 for p in processes), outputs
    assert "training" in outputs[0] and "training" not in outputs[1]
    assert "2 ranks agree" in outputs[0]


def test_latents_grow_and_keep_what_was_learnt(runs, tmp_path):
    from decmem_env.trainers.models import load_autoencoder

    settings = {"run.steps": 1, "run.validation_worlds": 0, "optimiser.lr": 0.0}
    wider = {"autoencoder.latent_channels": 12, "autoencoder.latent_noise": 0.0}
    run_stage("debug_autoencoder", tmp_path / "ae", settings | wider, device="cpu", init=runs["autoencoder"])
    before, after = (load_autoencoder(f / "export") for f in (runs["autoencoder"], tmp_path / "ae"))
    assert before.config.latent_channels == 8 and after.config.latent_channels == 12
    z = torch.randn(2, 12, *before.config.latent_shape[1:])
    close = torch.allclose(before.decode_float(z[:, :8]), after.decode_float(z), atol=1e-2)
    assert close, "the decoder ignores the new channels at first"

    init = tmp_path / "init"
    shutil.copytree(runs["decmem"] / "export", init)
    shutil.copy(tmp_path / "ae" / "export" / "autoencoder.safetensors", init)
    run_stage("debug_decmem", tmp_path / "mem", settings, device="cpu", init=init)
    old, new = (load_file(f / "transformer.safetensors") for f in (init, tmp_path / "mem" / "export"))
    assert new["patch.weight"].shape[1] == 12 and new["head.weight"].shape[0] == 12
    assert torch.allclose(old["patch.weight"], new["patch.weight"][:, :8], atol=1e-3)
    assert (new["patch.weight"][:, 8:] == 0).all()


def test_latents_do_not_shrink(runs, tmp_path):
    with pytest.raises(ConfigError, match="latent_channels may grow"):
        run_stage(
            "debug_autoencoder",
            tmp_path,
            {"autoencoder.latent_channels": 4},
            device="cpu",
            init=runs["autoencoder"],
        )
