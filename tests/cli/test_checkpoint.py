"""`decmem checkpoint` end to end on small files."""

from __future__ import annotations

import torch
from decmem_env.model.autoencoder import TinyAutoencoder
from decmem_env.model.config import debug
from decmem_env.model.transformer import WorldTransformer

from decmem_env.cli import main


def test_inspect_then_convert_then_use(tmp_path, capsys):
    config = debug()
    torch.manual_seed(1)
    state = WorldTransformer(config).state_dict()
    torch.save({"generator": {f"model.{n}": t for n, t in state.items()}, "step": 7}, tmp_path / "decmem.pt")
    torch.save(TinyAutoencoder(config.autoencoder).state_dict(), tmp_path / "my_vae.pt")
    path = str(tmp_path / "decmem.pt")
    assert main(["checkpoint", "inspect", path]) == 0
    text = capsys.readouterr().out
    assert "section    generator.model: 41 tensors" in text and "blocks.0.attention.qkv.weight" in text
    assert main(["checkpoint", "inspect", str(tmp_path), "--preset", "debug"]) == 0
    assert "41 matched (0 guessed), 0 missing, 0 unexpected" in capsys.readouterr().out
    out = tmp_path / "out"
    assert main(["checkpoint", "convert", path, "--preset", "debug", "--out", str(out)]) == 0
    capsys.readouterr()
    argv = ["rollout", "--checkpoint", str(out), "--device", "cpu", "--actions", "W*2"]
    assert main([*argv, "--out", str(tmp_path / "walk.mp4")]) == 0

    del state["head.weight"]
    torch.save(state, tmp_path / "decmem.pt")
    assert main(["checkpoint", "inspect", path, "--preset", "debug"]) == 1
    assert "MISSING" in capsys.readouterr().out
    assert main(["checkpoint", "convert", path, "--preset", "debug", "--out", str(tmp_path / "no")]) == 2
    assert "missing head.weight" in capsys.readouterr().err and not (tmp_path / "no").exists()
    assert main(["checkpoint", "convert", path, "--preset", "debug", "--out", str(out), "--allow-partial"]) == 0
    assert main(["checkpoint", "inspect", path, "--preset", "huge"]) == 2
    assert "unknown preset 'huge'" in capsys.readouterr().err


def test_download_without_a_network_says_what_to_type(tmp_path, capsys, monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    assert main(["checkpoint", "download", "decmem", "--out", str(tmp_path), "--revision", "v1"]) == 2
    said = capsys.readouterr().err
    assert f"hf download KlingTeam/DecMem decmem.pt --revision v1 --local-dir {tmp_path}" in said
    assert "no route to the hub" in said
