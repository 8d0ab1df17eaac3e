"""Every example runs, on random weights, and stays short."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ARGUMENTS = {
    "quickstart": (["--frames", "2", "--out", "{}/a.png"], "frames in memory"),
    "vector": (["--worlds", "2", "--steps", "2"], "frames (2, 64, 64, 3)"),
    "camera_path": (["--frames", "3", "--out", "{}/a.mp4"], "3 frames"),
    "fork": (["--steps", "2", "--out", "{}/a.png"], "the same future twice: True"),
    "ppo": (
        ["--steps", "32", "--num-envs", "2", "--context-frames", "3", "--episodes", "2", "--out", "{}/ppo"],
        "ppo: ",
    ),
    "truth_and_dream": (["--walk", "W*3 L*3", "--out", "{}/a.png"], "truth above"),
}


def test_every_example_is_tested():
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_example(name, tmp_path, capsys):
    if name == "ppo":
        pytest.importorskip("stable_baselines3")
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 40
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments, expected = ARGUMENTS[name]
    module.main(["--checkpoint", "debug", *[argument.format(tmp_path) for argument in arguments]])
    assert expected in capsys.readouterr().out
