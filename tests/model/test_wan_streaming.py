"""The layout `wan` chunk by chunk against teacher-forced passes, and its benchmark at toy size."""

import json

import numpy as np
import pytest
import torch
from decmem_env.model import passes, pointwise, streaming
from decmem_env.model.attention import BlockLists
from decmem_env.model.config import preset
from decmem_env.model.video_rate import to_latent_rate, video_frames

from decmem_env import wan_benchmark as bench
from decmem_env.cli import main
from decmem_env.conventions.poses import normalised_intrinsics, projective_matrices

PREFIX, TOTAL = 12, 24


def walk(count, seed=0):
    rng = np.random.default_rng(seed)
    poses = np.cumsum(rng.normal(size=(count, 5)) * (0.4, 0.0, 0.4, 2.0, 12.0), 0)
    actions = np.zeros((count, 25), np.float32)
    actions[:, 11], actions[:, 16] = rng.integers(0, 2, count), rng.integers(-1, 2, count)
    return actions, poses


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("changes", "large", "fused"),
    [({}, 320, False), ({}, 16, False), ({"text_tokens": 3, "text_width": 16}, 16, False), ({}, 16, True)],
)
def test_streaming_equals_one_teacher_forced_pass(changes, large, fused, monkeypatch):
    """24 latents in chunks of 4, k = 8: the lists that the stream chose are forced on the batch."""
    monkeypatch.setattr(passes, "LARGE_FRAME", large)  # with 16, the window goes by dense kernels
    passes.local_tiles.cache_clear()
    model = bench.random_model("wan-debug", "cpu", torch.float32, 64, **changes)
    if fused:  # as on a GPU, by Triton's interpreter
        model.streamer.fused, model.streamer.point = True, pointwise.Pointwise(False, kernels=True)
    cfg, depth, blocks = model.config, model.config.depth, model.config.blocks_per_frame
    assert (cfg.chunk, cfg.top_k, cfg.padding) == (4, 8, 2)
    if cfg.text_tokens:
        torch.nn.init.normal_(model.transformer.text_context)
        model.streamer = streaming.Streamer(model.transformer, model.pool)
    calls, velocities, gathered = [], [], []
    select, run, gather = streaming.select_blocks, model.streamer.run, streaming.gather_pages

    def counted(*arguments):
        gathered.append(arguments[2].shape)
        return gather(*arguments)

    monkeypatch.setattr(streaming, "gather_pages", counted)

    def spy(*arguments, **named):
        calls.append(select(*arguments, **named))
        return calls[-1]

    def watched(*arguments, **named):
        velocities.append(run(*arguments, **named))
        return velocities[-1]

    monkeypatch.setattr(streaming, "select_blocks", spy)
    monkeypatch.setattr(model.streamer, "run", watched)
    actions, poses = walk(video_frames(TOTAL, 4, start=True))
    latent_actions, latent_poses = to_latent_rate(actions, poses, 4, start=True)
    torch.manual_seed(2)
    clean = [torch.randn(PREFIX, *cfg.autoencoder.latent_shape)]
    session = model.start(1, steps=1, guidance=1.0)
    session.observe_latents(clean[0], latent_actions[:PREFIX], latent_poses[:PREFIX])
    noises = []
    for start in range(PREFIX, TOTAL, 4):
        part = slice(1 + 4 * (start - 1), 1 + 4 * (start + 3))
        state = session.generator.get_state()
        model.step([session], actions[None, part], poses[None, part], decode=False)
        twin = torch.Generator()
        twin.set_state(state)
        noises.append(torch.randn(session.pending.latents.shape, generator=twin))
        clean.append(session.pending.latents)

    shape = (1, cfg.heads, 2 * TOTAL, blocks)
    lists = [(torch.zeros(*shape, cfg.top_k).int(), torch.zeros(shape).int()) for _ in range(depth)]
    # Frames of each call: the prefill's (its last layer only stores), then committed and noisy, then noisy alone.
    order = [(layer, [*range(PREFIX - 4)]) for layer in range(depth - 1)]
    for t in range(PREFIX, TOTAL, 4):
        noisy, both = [*range(TOTAL + t, TOTAL + t + 4)], [*range(t - 4, t), *range(TOTAL + t, TOTAL + t + 4)]
        order += [(layer, both if layer < depth - 1 else noisy) for layer in range(depth)]
    for (layer, rows), chosen in zip(order, calls, strict=True):
        for held, found in zip(lists[layer], chosen, strict=True):
            held[:, :, rows] = found.unflatten(2, (len(rows), blocks))
    forced = [BlockLists(*(t.flatten(2, 3) for t in layer)) for layer in lists]
    camera = normalised_intrinsics(cfg.height, cfg.frame_width, cfg.vertical_fov)
    pair = projective_matrices(latent_poses, camera, latent_poses[0], translation_scale=cfg.translation_scale)
    wanted = model.transformer.teacher_forcing(
        torch.cat(clean)[None],
        torch.cat([torch.zeros_like(clean[0]), *noises])[None],
        torch.zeros(1, TOTAL),
        torch.ones(1, TOTAL),
        torch.from_numpy(latent_actions)[None],
        *(torch.from_numpy(m.astype(np.float32))[None] for m in pair),
        torch.arange(TOTAL)[None],
        action_mask=torch.ones(1, TOTAL, dtype=torch.bool),
        lists=forced,
    )
    found = torch.cat([v for v in velocities if v is not None], 1)
    assert found.shape[1] == TOTAL - PREFIX
    assert relative(found, wanted[:, PREFIX:]) < 1e-4
    # Chunks of one pass see 8 latents of the window and their own 4; a prefill's first ones see fewer.
    assert set(gathered) == (set() if large == 320 else {(2, 12), (1, 12)})


def test_the_first_latent_of_a_session_is_one_frame():
    actions, poses = walk(13)
    rows, where = to_latent_rate(actions, poses, 4, start=True)
    assert rows.shape == (4, 100) and where.shape == (4, 5)
    assert (rows[0].reshape(4, 25) == actions[0]).all() and (rows[1].reshape(4, 25) == actions[1:5]).all()
    assert (where == poses[[0, 4, 8, 12]]).all()
    model = bench.random_model("wan-debug", "cpu", torch.float32, 64)
    fresh, old = model.start(0, steps=1), model.start(1, steps=1)
    model.step([fresh], actions[None], poses[None], decode=False)
    assert model.frames_of(fresh) == model.frames_per_step == 16 and fresh.next_frame == 4
    with pytest.raises(ValueError, match=r"make \[13, 16\] frames"):
        model.step([fresh, old], np.zeros((2, 16, 25)), np.zeros((2, 16, 5)), decode=False)


def test_guidance_shares_the_history_and_drops_only_the_new_actions():
    """One pass with both branches equals eq. 14 on two passes, with and without the chunk's actions."""
    actions, poses = walk(16)
    model = bench.random_model("wan-debug", "cpu", torch.float32, 64)
    embed = model.transformer.tokens

    def dropped(latents, given, keep, *rest):
        return embed(latents, given, keep & (torch.arange(latents.shape[1]) < latents.shape[1] - 4), *rest)

    results = []
    for guidance, tokens in ((5.0, embed), (1.0, embed), (1.0, dropped)):
        model.transformer.tokens = embed
        torch.manual_seed(0)
        session = model.start(3, steps=1, guidance=guidance)
        bench.observe(session, PREFIX)
        model.transformer.tokens = tokens
        model.step([session], actions[None], poses[None], decode=False)
        results.append(session.pending.latents)
    guided, with_actions, without = results
    assert relative(with_actions, without) > 1e-3
    assert relative(guided, without + 5.0 * (with_actions - without)) < 1e-4


def test_block_means_leave_out_the_padding():
    cfg = preset("wan-debug")
    x = torch.randn(2, cfg.heads, cfg.tokens, cfg.head_dim)
    means = pointwise._means(x, cfg)
    changed = x.clone()
    changed[:, :, -cfg.padding :] += 100.0
    assert torch.equal(pointwise._means(changed, cfg), means)
    assert torch.allclose(means[:, :, -1], x[:, :, 25:28].mean(2))
    assert torch.allclose(means[:, :, 0], x[:, :, :5].mean(2))


def test_the_benchmark_runs_at_toy_size(tmp_path):
    file = tmp_path / "wan.json"
    arguments = ["bench", "wan", "--preset", "wan-debug", "--device", "cpu", "--histories", "12", "16"]
    assert main([*arguments, "--parts", "protocol", "few", "growth", "dense", "--json", str(file)]) == 0
    items = {item["name"]: item for item in json.loads(file.read_text())}
    assert items["wan_stream_against_teacher_forcing"]["met"]
    assert items["wan_frames_per_second_without_decoder"]["value"] > 0
    assert {"wan_chunk_seconds_12", "wan_dense_chunk_seconds_16", "wan_chunk_growth"} <= set(items)
