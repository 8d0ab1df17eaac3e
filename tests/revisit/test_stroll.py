import numpy as np
import pytest
from decmem_env.model.nearest_views import apart

from decmem_env.revisit import Contender
from decmem_env.revisit.parts import score_parts
from decmem_env.revisit.stroll import LENGTH, REACH, Strolls, build_strolls, stroll_records, stroll_sheet, stroll_table
from decmem_env.tour import FRAMES

from .test_new_ground import Latents

SEEDS = range(7_000_000, 7_000_003)


@pytest.fixture(scope="module")
def course():
    return build_strolls(SEEDS)


def test_a_stroll_stays_in_the_neighbourhood_and_beside_what_was_seen(course):
    for script in course[1]:
        assert script.context == FRAMES and script.generated == LENGTH
        seen, made = script.poses[:FRAMES], script.poses[FRAMES:]
        away = np.linalg.norm(made[:, [0, 2]] - seen[0, [0, 2]], axis=1)
        assert 4.0 < away.max() <= REACH + 1.0
        assert np.linalg.norm(np.diff(made[:, [0, 2]], axis=0), axis=1).sum() > 30.0
        beside = np.array([apart(seen, pose).min() for pose in made])
        assert np.median(beside) > 0.5, "most of it was never seen from where the player stands"


def test_strolls_depend_on_the_seed_alone(course):
    again = build_strolls([SEEDS[2]])[1][0]
    assert np.array_equal(course[1][2].poses, again.poses) and np.array_equal(course[1][2].actions, again.actions)


def test_figures_of_models_whose_answers_are_known(course, fakes):
    blocks, scripts = course
    models = {kind: fakes.Model(kind) for kind in ("oracle", "frozen")}
    for model in models.values():
        model.autoencoder = Latents()
    rows = [Contender(kind, model, "memory") for kind, model in models.items()]
    measure = Strolls(scripts, blocks, fakes.Renderer(), rows, pictures=2)
    outcome = measure.outcome(list(score_parts(measure, 2)))
    found = {item["name"]: item for item in stroll_records(outcome, device="cpu")}
    assert found["stroll_psnr_db"]["value"] == 100.0
    assert found["stroll_psnr_db"]["details"]["frames"] == 3 * LENGTH
    assert found["stroll_psnr_db.frozen"]["value"] < 15.0
    assert found["stroll_sharpness.bound"]["value"] == 1.0
    scored = found["stroll_visible_psnr_db"]["details"]["frames"]
    assert 0 < scored <= 3 * LENGTH // 8
    assert len(outcome.strips) == 2 and stroll_sheet(outcome).shape[2] == 3
    assert "frozen" in stroll_table(list(found.values()))
    again = measure.outcome(list(score_parts(measure, 8)))
    for item in stroll_records(again, device="cpu"):
        assert item["value"] == found[item["name"]]["value"]
