import argparse

import pytest

from decmem_env.cli import build_parser, main
from decmem_env.cli.common import seed_range


def test_seed_range():
    assert list(seed_range("5-7")) == [5, 6, 7]
    assert list(seed_range("5")) == [5]
    for bad in ("7-5", "a-b", "-3", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            seed_range(bad)


@pytest.mark.parametrize("command", ["demo", "play", "rollout", "revisit", "data", "bench", "doctor"])
def test_help_teaches_with_examples(command, capsys):
    with pytest.raises(SystemExit) as leave:
        main([command, "--help"])
    assert leave.value.code == 0
    text = capsys.readouterr().out
    assert "examples" in text and f"decmem {command}" in text


def test_no_command_prints_help(capsys):
    assert main([]) == 0
    assert "decmem demo" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("decmem-env ")


def one_error_line(argv, capsys):
    code = main(argv)
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    lines = [line for line in captured.err.splitlines() if "error" in line]
    assert len(lines) == 1 and "Traceback" not in captured.err
    return lines[0]


def test_bad_input_gets_one_line(tmp_path, capsys):
    line = one_error_line(["rollout", "--actions", "W*20", "--out", str(tmp_path / "f.avi")], capsys)
    assert ".mp4" in line
    line = one_error_line(["rollout", "--actions", "W*x", "--out", str(tmp_path / "f.mp4")], capsys)
    assert "W*X" in line
    line = one_error_line(["rollout", "--actions", "Z", "--out", str(tmp_path / "f.mp4")], capsys)
    assert "unknown key 'Z'" in line
    line = one_error_line(
        ["rollout", "--actions", "W", "--clip", str(tmp_path / "none.mp4"), "--out", str(tmp_path / "f.mp4")], capsys
    )
    assert "no such file" in line
    line = one_error_line(["revisit", "--kinds", "sideways"], capsys)
    assert "sideways" in line and "turn_away" in line
    line = one_error_line(["revisit", "--memory", "perfect"], capsys)
    assert "perfect" in line
    line = one_error_line(["demo", "--device", "abacus", "--out", str(tmp_path / "d")], capsys)
    assert "abacus" in line
    assert not list(tmp_path.glob("*.mp4"))


def test_bad_options_leave_with_2(capsys):
    for argv in (["revisit", "--gap", "0"], ["revisit", "--worlds", "9-1"], ["nonsense"], ["rollout"]):
        with pytest.raises(SystemExit) as leave:
            build_parser().parse_args(argv)
        assert leave.value.code == 2
        capsys.readouterr()


def test_train_belongs_to_the_trainers(capsys):
    with pytest.raises(SystemExit) as leave:
        main(["train", "--help"])
    assert leave.value.code == 0 and "dense_short" in capsys.readouterr().out
    assert main(["train", "no_such_stage", "--out", "nowhere"]) == 2
    assert "no_such_stage" in capsys.readouterr().err
