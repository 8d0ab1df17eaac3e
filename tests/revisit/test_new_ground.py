import numpy as np
import pytest
import torch

from decmem_env.conventions.poses import wrap_degrees
from decmem_env.metrics import frechet_distance, moments
from decmem_env.revisit import Contender
from decmem_env.revisit.new_ground import HALF, PARTS, RETURN, SCORED, WALK_ON, NewGround, build_new_ground
from decmem_env.revisit.new_ground_report import new_ground_records, new_ground_sheet, new_ground_table
from decmem_env.revisit.parts import score_parts

SEEDS = range(7_000_000, 7_000_003)


@pytest.fixture(scope="module")
def course():
    return build_new_ground(SEEDS)


def test_frechet_distance_of_known_gaussians():
    rng = torch.Generator().manual_seed(0)
    samples = torch.randn(20_000, 8, generator=rng) * torch.linspace(0.5, 2.0, 8)
    first = moments(samples)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-8)
    shift = torch.arange(8.0) / 4
    assert frechet_distance(first, moments(samples + shift)) == pytest.approx(float(shift.square().sum()), rel=1e-6)
    other = torch.randn(20_000, 8, generator=rng) * torch.linspace(0.5, 2.0, 8) + shift
    assert frechet_distance(first, moments(other)) == pytest.approx(float(shift.square().sum()), rel=0.05)
    # Covariances that do not commute: of sqrt(A B) in full.
    mix = torch.randn(8, 8, generator=rng)
    a, b = np.cov(samples.T, bias=True), np.cov((samples @ mix).T, bias=True)
    values = np.linalg.eigvals(a @ b)
    means = float((samples.double().mean(0) - (samples @ mix).double().mean(0)).square().sum())
    expected = means + np.trace(a + b) - 2 * np.sqrt(values.real).sum()
    assert frechet_distance(first, moments(samples @ mix)) == pytest.approx(expected, rel=1e-4)
    assert np.allclose(moments(samples[:7]) + moments(samples[7:]), first)


def test_flat_samples_have_a_distance():
    flat = moments(torch.ones(10, 4))
    assert frechet_distance(flat, flat) == pytest.approx(0.0, abs=1e-12)
    assert frechet_distance(flat, moments(torch.zeros(10, 4))) == pytest.approx(4.0)


def test_scored_frames_look_elsewhere(course):
    _, scripts = course
    assert [script.kind for script in scripts] == [WALK_ON] * 3 + [RETURN] * 3
    for script in scripts[:3]:
        assert script.context == 18 and script.generated == 80 == PARTS["on"].stop
        seen, made = script.poses[:18], script.poses[18:]
        assert (seen[:, :4] == seen[0, :4]).all()
        assert np.abs(wrap_degrees(seen[:, 4] - seen[0, 4])).max() == 30.0
        beside = np.abs(wrap_degrees(made[:, None, 4] - seen[None, :, 4])).min(1)
        assert beside[:SCORED].max() < 75.0 and beside[SCORED : PARTS["walk"].stop].min() >= 75.0
        assert beside[PARTS["on"]].min() >= 60.0  # seventeen blocks on
    far = [np.linalg.norm(script.poses[-23, :3] - script.poses[0, :3]) for script in scripts[:3]]
    assert np.median(far) > 15.0


def test_return_comes_back_to_the_same_poses(course):
    for script in course[1][3:]:
        assert script.generated == 3 * HALF
        made = script.poses[script.context :]
        assert np.array_equal(made[:HALF], made[2 * HALF :])
        assert np.array_equal(made[2 * HALF - 1], script.poses[script.context - 1])


def test_scripts_depend_on_the_seed_alone(course):
    for script, again in zip(course[1][2::3], build_new_ground([SEEDS[2]])[1], strict=True):
        assert np.array_equal(script.poses, again.poses) and np.array_equal(script.actions, again.actions)
    first = {tuple(script.poses[0]) for script in course[1]}
    assert len(first) == 3  # both scripts of a world begin in one place


class Latents:
    """The fake autoencoder's frames in the shape of latents: 3 channels a pixel."""

    frames_per_latent = 1

    def stream(self):
        self.encoder = self
        return self

    def encode(self, frames):
        return frames[:, ::4, ::4].permute(0, 3, 1, 2).float() / 64

    def decode(self, latents):
        frames = (latents * 64).round().to(torch.uint8).permute(0, 2, 3, 1)
        return frames.repeat_interleave(4, 1).repeat_interleave(4, 2)


def test_figures_of_models_whose_answers_are_known(course, fakes):
    blocks, scripts = course
    models = {kind: fakes.Model(kind) for kind in ("oracle", "frozen")}
    for model in models.values():
        model.autoencoder = Latents()
    rows = [Contender(kind, model, "memory") for kind, model in models.items()]
    measure = NewGround(scripts, blocks, fakes.Renderer(), rows, pictures=2)
    outcome = measure.outcome(list(score_parts(measure, 2)))
    found = {item["name"]: item for item in new_ground_records(outcome, device="cpu")}
    assert found["new_ground_distance"]["value"] == pytest.approx(0.0, abs=1e-3)
    assert found["new_ground_return_db"]["value"] == 100.0
    assert found["new_ground_return_db.frozen"]["value"] == 100.0  # standing still stays: read it beside the others
    assert found["new_ground_distance.frozen"]["value"] > 0.0
    seen = found["new_ground_sharpness"]["details"]["seen_percent"]
    assert set(seen) == set(PARTS)
    assert len(outcome.strips) == 2 and new_ground_sheet(outcome).shape[2] == 3
    assert "frozen" in new_ground_table(list(found.values()))
    # Batches of another size give the same figures.
    again = measure.outcome(list(score_parts(measure, 8)))
    for name, item in {item["name"]: item for item in new_ground_records(again, device="cpu")}.items():
        assert item["value"] == found[name]["value"]
