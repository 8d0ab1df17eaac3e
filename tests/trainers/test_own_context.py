import types

import numpy as np
import pytest
import torch
from decmem_env.model.keyframes import any_beside, new_views, within
from decmem_env.model.nearest_views import NEAR_BLOCKS, NEAR_DEGREES, Views, apart, seen_on_walk
from decmem_env.trainers.config import ConfigError, load_config
from decmem_env.trainers.data.own_context import STILL_TRUE, ClipRing, TurningClips, own_places
from decmem_env.trainers.distributed import Ranks
from decmem_env.trainers.dynamics import LATE, DynamicsTask
from decmem_env.trainers.profiling import Profile


def batch_of(value, rows=3, frames=12):
    return types.SimpleNamespace(latents=torch.full((rows, frames, 1, 2, 2), float(value)))


def test_a_share_of_rows_turns_from_a_random_frame_on():
    torch.manual_seed(0)
    own = own_places(400, 12, 0.5, torch.device("cpu"))
    assert own.shape == (400, 12) and not own[:, :2].any()
    assert (own.int().diff(dim=1) >= 0).all(), "once own, own to the end"
    turning = own.any(1)
    assert 0.4 < turning.float().mean() < 0.6 and own[turning, -1].all()
    assert len(own.sum(1).unique()) > 5


def test_predictions_enter_only_where_allowed_and_targets_stay():
    nowhere = torch.zeros(3, 12, dtype=torch.bool)
    clips = TurningClips(batch_of(0), batch_of(0).latents, nowhere.clone(), nowhere)
    clips.own[1, 4:] = True
    valid = torch.ones(3, 12, dtype=torch.bool)
    valid[1, 6] = False
    clips.take(torch.ones(3, 12, 1, 2, 2), valid)
    turned = clips.context[..., 0, 0, 0]
    assert turned[1, 4:].tolist() == [1, 1, 0, 1, 1, 1, 1, 1] and turned.sum() == 7
    assert (clips.batch.latents == 0).all()
    assert torch.equal(clips.generated, turned == 1)


def test_new_views_turn_only_in_cells_that_still_show_the_truth():
    nowhere = torch.zeros(3, 12, dtype=torch.bool)
    clips = TurningClips(batch_of(0), batch_of(0).latents, nowhere.clone(), nowhere)
    clips.own[:, 4:] = True
    predicted = torch.full((3, 12, 1, 2, 2), 1.1 * STILL_TRUE**0.5)
    predicted[..., 0, 1] = 0.9 * STILL_TRUE**0.5
    new, valid = nowhere.clone(), ~nowhere
    new[0, :6] = new[1] = True
    valid[1, 7] = False
    clips.take(predicted, valid, new)
    turned = (clips.context != 0)[:, :, 0]
    cells = torch.tensor([[False, True], [False, False]])
    assert not turned[:, :4].any() and not turned[1, 7].any()
    assert (turned[0, 4:6] == cells).all() and turned[0, 6:].all()
    assert (turned[1, [4, 5, 6, 8, 9, 10, 11]] == cells).all() and turned[2, 4:].all()
    assert torch.equal(clips.context[turned[:, :, None]], predicted[turned[:, :, None]])


def test_nearness_of_a_cell_is_the_mean_over_its_channels():
    batch = types.SimpleNamespace(latents=torch.randn(1, 2, 4, 1, 1))
    everywhere = torch.ones(1, 2, dtype=torch.bool)
    clips = TurningClips(batch, batch.latents, everywhere, ~everywhere)
    predicted = batch.latents.clone()
    predicted[0, :, 0] += torch.tensor([0.9, 1.1])[:, None, None] * (4 * STILL_TRUE) ** 0.5
    clips.take(predicted, everywhere, everywhere)
    assert torch.equal(clips.context[0, 0], predicted[0, 0]) and torch.equal(clips.context[0, 1], batch.latents[0, 1])


def test_ring_keeps_each_batch_for_its_rounds_and_staggers_the_groups():
    made = iter(range(1000))
    ring = ClipRing(lambda: batch_of(next(made)), groups=3, rounds=4, share=1.0, finish=lambda batch, own: batch)
    seen = []
    for _ in range(120):
        clips = ring.next()
        seen.append((int(clips.batch.latents[0, 0, 0, 0, 0]), clips.rounds))
        clips.take(torch.full_like(clips.context, -1.0), torch.ones(3, 12, dtype=torch.bool))
    late = [rounds for number, rounds in seen if 3 <= number < 20]
    assert {late.count(k) for k in (1, 2, 3, 4)} == {17}
    assert len({rounds for _, rounds in seen[60:63]}) == 3, "ages of neighbouring steps differ"
    assert len({number for number, _ in seen[60:63]}) == 3


def task_of(runs, **settings):
    return DynamicsTask(
        load_config("debug_decmem", settings), Ranks("cpu"), str(runs["dense"]), Profile(torch.device("cpu"))
    )


def test_training_for_new_views_needs_their_distances(runs):
    with pytest.raises(ConfigError, match="objective.new_view_noise needs model.keyframe_blocks"):
        task_of(runs, **{"objective.new_view_noise": 0.0, "model.keyframe_blocks": 0.0})


def test_frames_see_and_are_told_what_they_would_in_sessions(runs):
    settings = {"model.keyframe_blocks": 1.0, "model.keyframe_degrees": 10.0, "model.fusion": "union"}
    told = {"model.nearest_views": 2, "model.voxel_planes": 3, "model.voxel_hands": True, "model.voxel_changes": True}
    task = task_of(runs, **settings, **told, **{"objective.self_context": 0.5, "data.told": 1.0, "data.edits": 1.0})
    task.open({})
    task.fill()
    rng = np.random.default_rng(0)
    found, changed = set(), 0
    for _ in range(4):
        clips = task.next_batch(rng)
        batch = clips.batch
        lists, counts = batch.seen
        for row, poses in enumerate(batch.poses):
            own = clips.own[row].numpy()
            views = Views.of(poses, batch.actions[row].numpy(), own, batch.cells[row])
            for t, chosen in enumerate(seen_on_walk(views, task.model_config)):
                assert counts[row, t] == (-1 if chosen is None else len(chosen))
                if chosen is not None:
                    assert lists[row, t, : len(chosen)].tolist() == chosen.tolist() and (chosen < t).all()
            changed += int((batch.view[row, :, 11::4] != 0.0).any())
        found |= set(counts.unique().tolist())
        assert torch.isfinite(task.loss(clips, rng))
    assert {-1, 2} <= found and changed
    task.close()


def test_frames_of_wide_clips_see_their_place_from_elsewhere(runs):
    settings = {"model.keyframe_blocks": 1.0, "model.keyframe_degrees": 10.0, "model.fusion": "union"}
    wide = {"model.nearest_views": 2, "objective.new_view_noise": 0.4, "data.wide": 1.0, "data.edits": 0.0}
    task = task_of(runs, **settings, **wide)
    task.open({})
    task.fill()
    rng = np.random.default_rng(0)
    hidden_from = 0
    for _ in range(4):
        clips = task.next_batch(rng)
        batch, config = clips.batch, task.model_config
        lists, counts = batch.seen
        for row, poses in enumerate(batch.poses):
            for t in range(len(poses)):
                far, chosen = batch.hidden[row, t], lists[row, t, : max(0, counts[row, t])].numpy()
                before = apart(poses[:t], poses[t])
                if len(chosen) and (before[chosen] >= far).all():
                    hidden_from += int((before < far).any())
                    assert bool(batch.new[row, t]) or any_beside(poses[chosen], poses[t], config)
                else:  # nothing that far away would serve
                    left = (before >= far) & ~clips.own[row, :t].numpy()
                    assert not within(poses[:t][left], poses[t], NEAR_BLOCKS, NEAR_DEGREES).any()
        assert torch.isfinite(task.loss(clips, rng))
    assert hidden_from
    task.close()


def test_a_step_treats_new_views_as_a_sampler_of_several_steps_makes_them(runs):
    settings = {"model.keyframe_blocks": 1.0, "model.keyframe_degrees": 10.0, "objective.new_view_noise": 0.0}
    more = {"objective.self_context": 1.0, "objective.action_dropout": 0.3, "objective.self_context_groups": 1}
    task = task_of(runs, **settings, **more)
    pushed = []

    class Adversary:
        def add(self, flow, velocity, inputs, latents, valid):
            pushed.append((inputs, valid))
            return flow

    task.adversary = Adversary()
    task.open({})
    task.fill()
    torch.manual_seed(0)
    clips = task.next_batch(np.random.default_rng(0))
    batch, new = clips.batch, clips.batch.new
    for row, poses in enumerate(batch.poses):
        assert np.array_equal(new[row].numpy(), new_views(poses, task.model_config))
    assert new[:, 0].all() and not new.all()
    for _ in range(6):
        assert torch.isfinite(task.loss(clips, np.random.default_rng(0)))
    for inputs, valid in pushed:
        assert not (inputs.time == 1)[new].any()
        late, pure = inputs.time < LATE, inputs.time == 1
        assert torch.equal(valid, torch.where(new, late, pure) & inputs.action_mask)
    assert any(valid[new].any() for _, valid in pushed) and any(valid[~new].any() for _, valid in pushed)
    error = (clips.context - batch.latents).square().mean(2)
    assert 0 < error[new].max() <= STILL_TRUE < error[~new].max()
    task.close()
