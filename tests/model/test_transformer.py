import pytest
import torch
from decmem_env.model.attention import history_limit, window_lists

from .conftest import make_walk, random_checkpoint

FRAMES = 14


def inputs(config, seed=0, frames=FRAMES):
    generator = torch.Generator().manual_seed(seed)
    shape = (1, frames, *config.autoencoder.latent_shape)
    walk = make_walk(frames)
    projective, inverse = walk.projective()
    return {
        "clean": torch.randn(shape, generator=generator),
        "noisy": torch.randn(shape, generator=generator),
        "clean_time": torch.zeros(1, frames),
        "noisy_time": torch.rand(1, frames, generator=generator),
        "actions": torch.from_numpy(walk.actions)[None],
        "projective": projective,
        "projective_inverse": inverse,
        "frame_index": torch.arange(frames)[None],
        "action_mask": torch.ones(1, frames, dtype=torch.bool),
    }


@pytest.fixture(scope="module", params=["gated", "union"])
def transformer(request):
    return random_checkpoint(fusion=request.param, top_k=4, window=3).transformer


@pytest.mark.parametrize("attention", ["memory", "dense"])
def test_a_frame_sees_only_the_clean_past_and_itself(transformer, attention):
    given = inputs(transformer.config)
    before = transformer.teacher_forcing(**given, attention=attention)
    changed = {**given, "clean": given["clean"].clone(), "noisy": given["noisy"].clone()}
    changed["clean"][:, 8:] += 1.0
    changed["noisy"][:, 3] += 1.0
    after = transformer.teacher_forcing(**changed, attention=attention)
    difference = (after - before).abs().amax((0, 2, 3, 4))
    assert difference[[*range(3), *range(4, 9)]].max() < 1e-5
    assert difference[3] > 1e-3 and difference[9:].min() > 1e-4


def test_memory_reaches_beyond_the_window(transformer):
    given = inputs(transformer.config)
    _, lists = transformer.teacher_forcing(**given, return_lists=True)
    assert any((layer.lists[0, :, -6:] < 6).any() for layer in lists), "nothing of frame 0 was retrieved"
    old = {**given, "clean": given["clean"].clone()}
    old["clean"][:, 0] += 1.0
    changed = transformer.teacher_forcing(**old, lists=lists) - transformer.teacher_forcing(**given, lists=lists)
    assert changed[0, -1].abs().max() > 1e-5


def test_windows_follow_the_order_of_the_sequence_not_the_time():
    transformer = random_checkpoint(fusion="union", top_k=4, window=3).transformer
    given = inputs(transformer.config)
    spliced = {**given, "frame_index": given["frame_index"].clone()}
    spliced["frame_index"][:, 12:] += 500
    empty = [
        layer._replace(counts=torch.zeros_like(layer.counts))
        for layer in transformer.teacher_forcing(**given, return_lists=True)[1]
    ]
    before = transformer.teacher_forcing(**spliced, lists=empty)
    spliced["clean"] = given["clean"].clone()
    spliced["clean"][:, 11] += 1.0
    assert (transformer.teacher_forcing(**spliced, lists=empty)[0, 12] - before[0, 12]).abs().max() > 1e-3


def test_a_dropped_action_adds_exactly_nothing(transformer):
    given = inputs(transformer.config)
    dropped = {**given, "action_mask": torch.zeros_like(given["action_mask"])}
    before = transformer.teacher_forcing(**dropped)
    tokens = transformer.tokens(given["noisy"], given["actions"], dropped["action_mask"], dropped["action_mask"])
    flat = given["noisy"].flatten(3).transpose(2, 3)[:, :, transformer.order]
    assert torch.equal(tokens, transformer.patch(flat))
    # The last frame's action reaches nobody but itself: dropped, its value does not matter.
    other = {**dropped, "actions": given["actions"].clone()}
    other["actions"][:, -1] = 1.0
    assert torch.equal(transformer.teacher_forcing(**other)[:, -1], before[:, -1])
    assert not torch.allclose(transformer.teacher_forcing(**given)[:, -1], before[:, -1])


def test_the_history_keeps_its_actions_when_the_current_one_is_dropped(transformer):
    given = inputs(transformer.config)
    dropped = {**given, "action_mask": torch.zeros_like(given["action_mask"]), "actions": given["actions"].clone()}
    before = transformer.teacher_forcing(**dropped)
    dropped["actions"][:, -2] += 1.0
    assert (transformer.teacher_forcing(**dropped)[:, -1] - before[:, -1]).abs().max() > 1e-5


def test_checkpointed_activations_give_the_same_gradients():
    transformer = random_checkpoint(top_k=4).transformer
    transformer.requires_grad_(True)
    given = inputs(transformer.config, frames=6)
    gradients = []
    for flag in (False, True):
        transformer.checkpoint_activations = flag
        transformer.zero_grad()
        transformer.teacher_forcing(**given).square().mean().backward()
        gradients.append(transformer.blocks[0].attention.qkv.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def test_lists_of_chunks():
    lists = window_lists(6, 2, 2, torch.device("cpu"))
    rows = [lists.lists[0, 0, i, : lists.counts[0, 0, i]].tolist() for i in range(12)]
    assert rows[2] == rows[3] == [0, 1, 2, 3]
    assert rows[5] == [2, 3, 4, 5]
    assert rows[6 + 5] == [2, 3, 10, 11]
    assert rows[6] == [6, 7]
    limit = history_limit(6, 6, 0, 2, torch.device("cpu"))[0].view(12, 6)[:, 0]
    assert limit.tolist() == [0, 0, 12, 12, 24, 24] * 2


def test_unknown_attention_is_named(transformer):
    with pytest.raises(ValueError, match="'sparse': expected memory, dense, window"):
        transformer.teacher_forcing(**inputs(transformer.config), attention="sparse")
