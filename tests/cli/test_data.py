import csv

import numpy as np
import pytest

from decmem_env.cli import main
from decmem_env.datasets import index_clips, split_of


def touch(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        path.with_suffix(".npz").write_bytes(b"")


def test_splits():
    assert split_of(0) == split_of(6_999_999) == "training"
    assert split_of(7_000_000) == "validation" and split_of(8_000_999) == "test"
    for seed in (7_001_000, 8_001_000, 9_000_000):
        with pytest.raises(ValueError, match="no split"):
            split_of(seed)


def test_index_is_shuffled_with_the_seed(tmp_path, capsys):
    names = [f"training/deep/c{i:02d}.mp4" for i in range(20)]
    touch(tmp_path, [*names, "test/t.mp4"])
    assert main(["data", "index", "--root", str(tmp_path), "--seed", "42"]) == 0
    with open(tmp_path / "train.csv") as file:
        rows = list(csv.DictReader(file))
    got = [row["video_path"] for row in rows]
    assert sorted(got) == names and got != names
    assert got == [names[i] for i in np.random.default_rng(42).permutation(20)]
    assert all(row["action_path"] == row["video_path"][:-3] + "npz" for row in rows)
    assert (tmp_path / "test.csv").is_file() and not (tmp_path / "val.csv").exists()
    again = (tmp_path / "train.csv").read_text()
    index_clips(tmp_path, 42)
    assert (tmp_path / "train.csv").read_text() == again
    index_clips(tmp_path, 43)
    assert (tmp_path / "train.csv").read_text() != again


def test_index_names_what_is_missing(tmp_path, capsys):
    assert main(["data", "index", "--root", str(tmp_path / "none")]) == 2
    assert "no folder" in capsys.readouterr().err
    assert main(["data", "index", "--root", str(tmp_path)]) == 2
    assert "no clips" in capsys.readouterr().err
    touch(tmp_path, ["training/a.mp4"])
    (tmp_path / "training/a.npz").unlink()
    assert main(["data", "index", "--root", str(tmp_path)]) == 2
    assert "no .npz" in capsys.readouterr().err
    assert not (tmp_path / "train.csv").exists()
