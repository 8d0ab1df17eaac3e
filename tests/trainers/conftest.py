"""Toy runs for the tests of the trainers."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(kept)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Finished toy runs of every stage, each started from the one before: {stage: folder}."""
    from decmem_env.trainers import run_stage

    root = tmp_path_factory.mktemp("runs")
    folders, init = {}, None
    for stage in ("autoencoder", "dense_short", "dense", "decmem"):
        folders[stage] = root / stage
        run_stage(f"debug_{stage}", folders[stage], device="cpu", init=init, compact=True)
        init = folders[stage]
    return folders
