import types

import torch
from decmem_env.trainers.data.own_context import ClipRing, TurningClips, own_places


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


def test_ring_keeps_each_batch_for_its_rounds_and_staggers_the_groups():
    made = iter(range(1000))
    ring = ClipRing(lambda: batch_of(next(made)), groups=3, rounds=4, share=1.0)
    seen = []
    for _ in range(120):
        clips = ring.next()
        seen.append((int(clips.batch.latents[0, 0, 0, 0, 0]), clips.rounds))
        clips.take(torch.full_like(clips.context, -1.0), torch.ones(3, 12, dtype=torch.bool))
    late = [rounds for number, rounds in seen if 3 <= number < 20]
    assert {late.count(k) for k in (1, 2, 3, 4)} == {17}
    assert len({rounds for _, rounds in seen[60:63]}) == 3, "ages of neighbouring steps differ"
    assert len({number for number, _ in seen[60:63]}) == 3
