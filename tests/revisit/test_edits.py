import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from decmem_env.conventions.actions import Action
from decmem_env.conventions.poses import is_exact, is_near
from decmem_env.revisit import Contender
from decmem_env.revisit.edit_scripts import KINDS, UNSEEN, EditScript, build_edit_scripts
from decmem_env.revisit.edit_sheet import edit_sheet
from decmem_env.revisit.edits import MINIMUM_PIXELS, Edits, EditTruth, _score, edit_records, edit_table
from decmem_env.revisit.parts import score_parts
from decmem_env.revisit.scripts import Script
from decmem_env.revisit.sidecar import Sidecar
from decmem_env.worlds import Renderer, Simulator, generate_world
from decmem_env.worlds.blocks import AIR, PLACED

HEIGHT, WIDTH = 48, 80


@pytest.fixture(scope="module")
def world():
    return generate_world(7_000_001)


@pytest.fixture(scope="module")
def scripts(world):
    return build_edit_scripts(world, 2)


@pytest.fixture(scope="module")
def renderer():
    return Renderer(HEIGHT, WIDTH, samples=1)


@pytest.fixture(scope="module")
def truth(world, scripts, renderer):
    return EditTruth(scripts, {world.seed: torch.from_numpy(world.blocks)}, renderer)


class Player:
    """Plays back, for each script, one of the truths, or stands still at the edit; known by the noise seed."""

    def __init__(self, answers, context):
        self.answers, self.context, self.device, self.autoencoder = answers, context, "cpu", self
        self.pool = SimpleNamespace(limit=10_000)
        self.config = SimpleNamespace(frames_per_latent=1, voxel_hands=False)
        self.time = 0

    def stream(self):
        return SimpleNamespace(encoder=SimpleNamespace(frames_per_latent=1), encode=self.encode, decode=self.encode)

    def encode(self, frames):
        return frames

    def start(self, seed=0, memory="memory", steps=None):
        session = partial(self.answers.__getitem__, seed)
        session.time = 0
        session.stats = {"evicted_frames": 0}
        session.observe = lambda frames, actions, poses: setattr(session, "time", len(frames))
        session.close = lambda: None
        return session

    def step(self, sessions, actions, poses):
        made = np.stack([session()[session.time].numpy() for session in sessions])[:, None]
        for session in sessions:
            session.time += 1
        return made


def run(world, scripts, renderer, frames):
    answers = {item.script.noise_seed: frames[row] for row, item in enumerate(scripts)}
    contenders = [Contender("memory", Player(answers, 100), "memory")]
    blocks = {world.seed: torch.from_numpy(world.blocks)}
    measure = Edits(scripts, blocks, renderer, contenders)
    outcome = measure.outcome(list(score_parts(measure, 3)))
    return outcome, {item["name"]: item for item in edit_records(outcome, device="cpu")}


def test_scripts_edit_once_leave_and_return(world, scripts):
    assert [item.script.kind for item in scripts] == [kind for kind in KINDS for _ in range(2)]
    assert len({item.script.noise_seed for item in scripts}) == 4
    for item in scripts:
        script = item.script
        assert script.context < item.time < item.returned < len(script.poses) and not script.actions[0].any()
        entry = Action.PLACE if script.kind == "place" else Action.ATTACK
        assert np.flatnonzero(script.actions[:, [Action.PLACE, Action.ATTACK]].any(1)).tolist() == [item.time]
        assert script.actions[item.time, entry] == 1 and item.edit[0, 4] == (PLACED if script.kind == "place" else AIR)
        same = is_near if item.near else is_exact
        assert same(script.poses[item.time], script.poses[item.returned : item.returned + 1])[0]
        player = Simulator([world], script.poses[:1])
        for action, pose in zip(script.actions[1:], script.poses[1:], strict=True):
            np.testing.assert_allclose(player.step(action[None])[0], pose, atol=1e-9)
        assert [tuple(edit)[1:] for edit in player.edits] == [tuple(item.edit[0, [1, 3, 2, 4]].tolist())]
    again = build_edit_scripts(world, 2)
    assert all(np.array_equal(a.script.poses, b.script.poses) for a, b in zip(scripts, again, strict=True))


def test_truth_differs_where_the_edit_is_seen(scripts, truth):
    for row, item in enumerate(scripts):
        pixels = truth.changed[row].flatten(1).sum(1)
        assert not pixels[: item.time].any() and pixels[item.time] > 0 and pixels[item.returned] > 0
        assert (pixels[item.time : item.returned] == 0).sum() >= UNSEEN
        assert torch.equal(truth.rgb[row, : item.time], truth.plain[row, : item.time])


def test_the_truth_is_right_and_an_unchanged_world_is_wrong(world, scripts, renderer, truth):
    outcome, found = run(world, scripts, renderer, truth.rgb)
    assert outcome.left_out < 2 and len(outcome.returns["memory"]) == 4 - outcome.left_out
    for kind in KINDS:
        item = found[f"edits.{kind}.memory.right_percent"]
        assert item["value"] == 100.0 and item["bar"] == 80.0 and item["met"] is None  # too few for a verdict
        assert item["details"]["valid"] and item["details"]["right_at_once_percent"] in (100.0, None)
        assert found[f"edits.{kind}.bound.right_percent"]["value"] == 100.0
    assert outcome.returns["memory"].unseen.min() >= UNSEEN and outcome.returns["memory"].pixels.min() >= 40
    json.dumps(list(found.values()), allow_nan=False)
    assert edit_sheet(outcome).dtype == np.uint8

    outcome, found = run(world, scripts, renderer, truth.plain)
    assert all(found[f"edits.{kind}.memory.right_percent"]["value"] == 0.0 for kind in KINDS)
    assert found["edits.place.memory.right_percent"]["details"]["right_at_once_percent"] == 0.0
    assert "place" in edit_table(list(found.values()))


def test_parts_from_disk_are_the_test_in_one_go(world, scripts, renderer, truth, tmp_path):
    whole, found = run(world, scripts, renderer, truth.rgb)
    answers = {item.script.noise_seed: truth.rgb[row] for row, item in enumerate(scripts)}
    contenders = [Contender("memory", Player(answers, 100), "memory")]
    measure = Edits(scripts, {world.seed: torch.from_numpy(world.blocks)}, renderer, contenders)
    first = next(score_parts(measure, 1))
    sidecar = Sidecar(tmp_path / "e.json", {})
    sidecar.add(first)
    assert measure.outcome([first]).left_out == 0 and not measure.outcome([first]).returns["memory"].script.size
    rest = list(score_parts(measure, 2, given=sidecar.read()))
    assert [part.scripts for part in rest] == [(1, 2), (3,)]
    outcome = measure.outcome([*reversed(rest), *sidecar.read()])
    assert edit_records(outcome, device="cpu") == list(found.values())
    assert np.array_equal(edit_sheet(outcome), edit_sheet(whole))


def test_a_frozen_camera_is_refused(world, scripts, renderer, truth):
    still = truth.rgb.clone()
    for row, item in enumerate(scripts):
        still[row, item.time :] = truth.rgb[row, item.time]
    _, found = run(world, scripts, renderer, still)
    item = found["edits.place.memory.right_percent"]
    assert item["details"]["moved"] == 0.0 and not item["details"]["valid"]
    assert "not valid" in edit_table(list(found.values()))


@pytest.mark.parametrize("made", [True, False])
def test_at_once_is_the_frame_of_the_edit_and_no_other(world, scripts, renderer, truth, made):
    frames, other = (truth.plain, truth.rgb) if made else (truth.rgb, truth.plain)
    frames = frames.clone()
    for row, item in enumerate(scripts):
        frames[row, item.time] = other[row, item.time]
    outcome, found = run(world, scripts, renderer, frames)
    table = outcome.returns["memory"]
    for number, kind in enumerate(KINDS):
        item = found[f"edits.{kind}.memory.right_percent"]
        rows = table.script[table.kind == number]
        enough = sum(int(truth.changed[i, scripts[i].time].sum()) >= MINIMUM_PIXELS for i in rows)
        assert item["value"] == (0.0 if made else 100.0), "the return is scored as ever"
        assert item["details"]["right_at_once_edits"] == enough > 0
        for name in ("percent", "low", "high"):
            assert item["details"][f"right_at_once_{name}"] == (100.0 if made else 0.0)


@pytest.mark.parametrize("pixels", [MINIMUM_PIXELS - 1, MINIMUM_PIXELS])
def test_at_once_looks_at_the_pixels_of_the_edit_not_of_the_return(pixels):
    # Eight frames, two of them observed: the edit shows in the upper half of frame 3 and the lower half of frame 6.
    plain = torch.zeros(1, 8, 16, 10, 3, dtype=torch.uint8)
    changed = torch.zeros(plain.shape[:-1], dtype=torch.bool)
    changed[0, 3].view(-1)[:pixels] = True
    changed[0, 6, 8:] = True
    rgb = plain + 200 * changed[..., None].byte()
    poses = np.zeros((8, 5))
    script = Script("break", 7, True, 2, np.zeros((8, 25), np.float32), poses, 1)
    item = EditScript(script, np.array([[3, 0, 0, 0, AIR]], np.int32), 6, near=False)
    dream = plain[0, 2:].clone()
    dream[3 - 2] = rgb[0, 3]
    dream[3 - 2, 8:] = 255  # where the return will be looked at
    found = _score(0, item, SimpleNamespace(rgb=rgb, plain=plain, changed=changed), 0, np.array([4, 5]), dream[None])
    assert not found.right[0]
    np.testing.assert_equal(found.right_at_once, [1.0 if pixels == MINIMUM_PIXELS else np.nan])
