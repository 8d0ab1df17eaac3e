import json
from functools import partial

import numpy as np
import pytest

from decmem_env.revisit import Contender, cells, evaluate, records, text_table
from decmem_env.revisit.parts import batches
from decmem_env.revisit.table import find, sharpness_ratio


@pytest.fixture
def run(fakes, blocks):
    return partial(_run, fakes, blocks)


def _run(fakes, blocks, kind, **options):
    scripts = [fakes.turn_away(world) for world in range(4)]
    model = fakes.Model(kind)
    contenders = [Contender("memory", model, "memory"), Contender("no_retrieval", model, "off", floor=True)]
    outcome = evaluate(scripts, blocks, fakes.Renderer(), contenders, gap=40, seeds=2, sessions_per_batch=4, **options)
    return outcome, cells(outcome)


def test_oracle_scores_perfectly_and_its_floor_does_not(run):
    outcome, table = run("oracle")
    cell = find(table, "memory", "exact", "gap40", "all")
    assert cell.psnr.mean == 100.0 and cell.valid and cell.moved == 1.0
    assert cell.worlds == 4 and cell.frames == 4 * 2 * 2  # gaps 40 and 41 of four worlds, two noise seeds
    assert not cell.complete  # four worlds are no verdict
    floor = find(table, "no_retrieval", "exact", "gap40", "all")
    assert floor.psnr.mean < 12
    found = {item["name"]: item for item in records(outcome, table, device="cpu")}
    assert found["exact_gap40_above_no_memory_db"]["value"] > 80
    assert found["exact_gap40_above_no_memory_db"]["details"]["best_floor"] == "no_retrieval"
    json.dumps(list(found.values()), allow_nan=False)


def test_a_frozen_camera_fails_the_movement_gate(run):
    outcome, table = run("frozen")
    cell = find(table, "memory", "exact", "gap40", "all")
    # It repeats the frame remembered: a perfect score at the return, and refused.
    assert cell.moved == 0.0 and not cell.valid
    assert "not valid" in text_table(outcome, table)
    head = next(item for item in records(outcome, table, device="cpu") if item["name"] == "exact_gap40_psnr_db")
    assert "movement gate" in head["details"]["refused"]


def test_copy_and_bound_rows(run):
    _, table = run("oracle")
    assert find(table, "copy", "exact", "gap40", "all").psnr.mean > 60
    bound = find(table, "bound", "exact", "gap40", "all")
    assert 30 < bound.psnr.mean < 60 and bound.psnr_decoded.mean == 100.0


def test_noise_is_sharper_than_truth(run):
    outcome, _ = run("noise")
    ratio = sharpness_ratio(outcome.scores["memory"])
    assert ratio[0]["ratio"] == pytest.approx(1.0, abs=0.1)  # the truth here is noise, too
    assert ratio[0]["worlds"] == 4


def test_near_rows_have_a_visible_mask(fakes, blocks):
    scripts = [fakes.turn_away(world) for world in range(2)]
    for script in scripts:
        script.poses[-2:, 4] = 6.0  # comes back to 6 degrees: near, not exact
    model = fakes.Model("oracle")
    outcome = evaluate(scripts, blocks, fakes.Renderer(), [Contender("memory", model, "memory")], gap=40, seeds=1)
    cell = find(cells(outcome), "memory", "near_masked", "gap40", "all")
    assert cell is not None and cell.psnr.mean == 50.0  # capped


def test_progress_ends_at_the_total(run):
    seen = []
    run("oracle", report=lambda name, done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert all(a[0] < b[0] for a, b in zip(seen, seen[1:], strict=False))


def test_batches_fit_the_memory(fakes):
    scripts = [fakes.turn_away(world) for world in range(7)]
    model = fakes.Model("oracle")
    contenders = [Contender("memory", model, "memory")]
    pages = 10 + 3 * (len(scripts[0].poses) - 10 + 2)
    for limit, sizes in ((100 * pages, [3, 3, 1]), (2 * pages, [2, 2, 2, 1]), (pages, [1] * 7)):
        model.pool.limit = limit
        found = list(batches(scripts, 9, 3, contenders))
        assert [len(part) for part in found] == sizes
        assert sorted(sum(found, [])) == list(range(7))
    model.pool.limit = pages - 1
    with pytest.raises(ValueError, match="fewer --seeds"):
        list(batches(scripts, 9, 3, contenders))


def test_scores_repeat(run):
    a, _ = run("noise")
    b, _ = run("noise")
    assert np.array_equal(a.scores["memory"].psnr, b.scores["memory"].psnr)
