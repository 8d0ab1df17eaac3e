"""Chunk by chunk through the memory gives what one teacher-forced pass gives."""

import pytest
import torch
from decmem_env.model import flow, streaming
from decmem_env.model.attention import BlockLists

from .conftest import build, make_walk

CONTEXT, STEPS = 20, 6


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def record_velocities(monkeypatch, model):
    found = []
    run = model.streamer.run

    def spy(*arguments, **named):
        found.append(run(*arguments, **named))
        return found[-1]

    monkeypatch.setattr(model.streamer, "run", spy)
    return found


def teacher_forced(model, walk, clean, noisy, times, **options):
    projective, inverse = walk.projective()
    frames = clean.shape[1]
    mask = options.pop("action_mask", torch.ones(1, frames, dtype=torch.bool))
    return model.transformer.teacher_forcing(
        clean,
        noisy,
        torch.zeros(1, frames),
        times,
        torch.from_numpy(walk.actions)[None],
        projective,
        inverse,
        torch.arange(frames)[None],
        action_mask=mask,
        **options,
    )


def stream(model, walk, session, chunk=1):
    """Observe, then step; the clean latents of everything."""
    clean = [model.autoencoder.encode(torch.as_tensor(walk.frames[:CONTEXT]))]
    walk.observe(session, 0, CONTEXT)
    for t in range(CONTEXT, CONTEXT + STEPS, chunk):
        model.step([session], *walk.chunk(t, chunk), decode=False)
        clean.append(session.pending.latents)
    return torch.cat(clean)[None]


@pytest.mark.parametrize("fusion", ["gated", "union"])
@pytest.mark.parametrize("chunk", [1, 2])
def test_free_run_equals_one_pass(fusion, chunk, noises, monkeypatch):
    model, walk = build(fusion=fusion, chunk=chunk, window=4), make_walk(CONTEXT + STEPS)
    scores = []
    select = streaming.select_blocks

    def spy(query, keys, k, limit, **more):
        scores.append(query @ keys.transpose(-1, -2))
        return select(query, keys, k, limit, **more)

    monkeypatch.setattr(streaming, "select_blocks", spy)
    velocities = record_velocities(monkeypatch, model)
    session = model.start(1)
    session.record_lists = True
    clean = [model.autoencoder.encode(torch.as_tensor(walk.frames[:CONTEXT]))]
    walk.observe(session, 0, CONTEXT)
    recorded = []
    for t in range(CONTEXT, CONTEXT + STEPS, chunk):
        scores.clear()
        model.step([session], *walk.chunk(t, chunk), decode=False)
        clean.append(session.pending.latents)
        recorded.append((session.last_lists, [s[0, :, -6 * chunk :] for s in scores]))
    clean = torch.cat(clean)[None]
    noisy = clean.clone()
    noisy[0, CONTEXT:] = torch.cat(noises)
    wanted, lists = teacher_forced(model, walk, clean, noisy, torch.ones(1, CONTEXT + STEPS), return_lists=True)
    differences = 0
    for step, (own, score) in enumerate(recorded):
        start = (CONTEXT + STEPS + CONTEXT + step * chunk) * 6
        for layer in range(model.config.depth):
            batch = lists[layer].lists[0, :, start : start + 6 * chunk]
            for head, row in (own[layer].lists != batch).any(-1).nonzero().tolist():
                mine, theirs = set(own[layer].lists[head, row].tolist()), set(batch[head, row].tolist())
                odd = score[layer][head, row, sorted(mine ^ theirs)]
                assert odd.max() - odd.min() <= 1e-5, "lists differ by more than a tie"
                differences += 1
    assert CONTEXT * 6 > 2 * model.config.top_k  # histories longer than the lists
    if not differences:
        assert relative(torch.cat(velocities[-STEPS // chunk :], 1), wanted[:, CONTEXT:]) < 1e-4


@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_injected_lists_give_the_same_numbers(fusion, noises, monkeypatch):
    """Random lists, forced on the stream and on the batch: no score enters, so only rounding differs."""
    model, walk = build(fusion=fusion, window=4), make_walk(CONTEXT + STEPS)
    cfg, frames, blocks = model.config, CONTEXT + STEPS, model.config.blocks_per_frame
    generator = torch.Generator().manual_seed(5)
    lists = []
    skip = cfg.window if fusion == "union" else 0
    for _ in range(cfg.depth):
        table = torch.zeros(1, cfg.heads, 2 * frames * blocks, cfg.top_k, dtype=torch.int32)
        counts = torch.zeros(1, cfg.heads, 2 * frames * blocks, dtype=torch.int32)
        for head in range(cfg.heads):
            for row in range(2 * frames * blocks):
                limit = max(0, (row // blocks) % frames - skip) * blocks
                count = min(limit, cfg.top_k)
                chosen = torch.randperm(limit, generator=generator)[:count].sort().values if count else []
                table[0, head, row, :count] = torch.as_tensor(chosen, dtype=torch.int32)
                counts[0, head, row] = count
        lists.append(BlockLists(table, counts))

    def rows(*indices):
        picked = torch.cat([torch.arange(i * blocks, (i + 1) * blocks) for i in indices])
        return [BlockLists(layer.lists[:, :, picked], layer.counts[:, :, picked]) for layer in lists]

    velocities = record_velocities(monkeypatch, model)
    session = model.start(2)
    session.force_lists = rows(*range(CONTEXT - 1))
    walk.observe(session, 0, CONTEXT)
    clean = [model.autoencoder.encode(torch.as_tensor(walk.frames[:CONTEXT]))]
    for t in range(CONTEXT, frames):
        session.force_lists = rows(t - 1, frames + t)
        model.step([session], *walk.chunk(t), decode=False)
        assert session.force_lists is None
        clean.append(session.pending.latents)
    clean = torch.cat(clean)[None]
    noisy = clean.clone()
    noisy[0, CONTEXT:] = torch.cat(noises)
    wanted = teacher_forced(model, walk, clean, noisy, torch.ones(1, frames), lists=lists)
    assert relative(torch.cat(velocities[-STEPS:], 1), wanted[:, CONTEXT:]) < 1e-4
    free = teacher_forced(model, walk, clean, noisy, torch.ones(1, frames))
    assert relative(free[:, CONTEXT:], wanted[:, CONTEXT:]) > 1e-3  # the lists matter


def test_the_bundled_size_streams_exactly(noises, monkeypatch):
    """At the size that ships; the lists that the stream chose are forced on the batch, so that no tie can differ."""
    context, steps = 12, 2
    model, walk = build(base="tiny"), make_walk(context + steps)
    depth, blocks, frames = model.config.depth, model.config.blocks_per_frame, context + steps
    calls = []
    select = streaming.select_blocks

    def spy(*arguments, **named):
        calls.append(select(*arguments, **named))
        return calls[-1]

    monkeypatch.setattr(streaming, "select_blocks", spy)
    velocities = record_velocities(monkeypatch, model)
    session = model.start(1, memory="every")
    clean = [model.autoencoder.encode(torch.as_tensor(walk.frames[:context]))]
    walk.observe(session, 0, context)
    for t in range(context, frames):
        model.step([session], *walk.chunk(t), decode=False)
        clean.append(session.pending.latents)
    clean = torch.cat(clean)[None]
    noisy = clean.clone()
    noisy[0, context:] = torch.cat(noises)

    shape = (1, model.config.heads, 2 * frames, blocks)
    lists = [(torch.zeros(*shape, model.config.top_k).int(), torch.zeros(shape).int()) for _ in range(depth)]
    # Frames of each call: the prefill's (its last layer only stores), then committed and noisy, then noisy alone.
    order = [(layer, [*range(context - 1)]) for layer in range(depth - 1)]
    for t in range(context, frames):
        order += [(layer, [t - 1, frames + t] if layer < depth - 1 else [frames + t]) for layer in range(depth)]
    for (layer, rows), chosen in zip(order, calls, strict=True):
        for held, found in zip(lists[layer], chosen, strict=True):
            held[:, :, rows] = found.unflatten(2, (len(rows), blocks))
    forced = [BlockLists(*(t.flatten(2, 3) for t in layer)) for layer in lists]
    wanted = teacher_forced(model, walk, clean, noisy, torch.ones(1, frames), lists=forced)
    assert context * blocks > model.config.top_k
    assert relative(torch.cat(velocities[-steps:], 1), wanted[:, context:]) < 1e-4


def test_dense_memory_equals_the_dense_pass(noises, monkeypatch):
    model, walk = build(window=4), make_walk(CONTEXT + STEPS)
    velocities = record_velocities(monkeypatch, model)
    clean = stream(model, walk, model.start(1, memory="dense"))
    noisy = clean.clone()
    noisy[0, CONTEXT:] = torch.cat(noises)
    wanted = teacher_forced(model, walk, clean, noisy, torch.ones(1, CONTEXT + STEPS), attention="dense")
    assert relative(torch.cat(velocities[-STEPS:], 1), wanted[:, CONTEXT:]) < 1e-4


def test_guidance_and_several_steps_follow_eq_14(noises, monkeypatch):
    """Two Euler steps with guidance: both branches of both steps equal teacher forcing at that state."""
    model, walk = build(window=4), make_walk(CONTEXT + 1)
    velocities = record_velocities(monkeypatch, model)
    session = model.start(3, steps=2, guidance=3.0)
    walk.observe(session, 0, CONTEXT)
    velocities.clear()
    model.step([session], *walk.chunk(CONTEXT), decode=False)
    clean = torch.cat([model.autoencoder.encode(torch.as_tensor(walk.frames[:CONTEXT])), session.pending.latents])[None]
    state = noises[0]
    for (now, then), found in zip(((1.0, 0.5), (0.5, 0.0)), velocities, strict=True):
        noisy = clean.clone()
        noisy[0, -1] = state
        times = torch.full((1, CONTEXT + 1), now)
        both = []
        for keep in (True, False):
            mask = torch.full((1, CONTEXT + 1), keep)
            both.append(teacher_forced(model, walk, clean, noisy, times, action_mask=mask)[0, -1])
        assert relative(found[0], torch.stack(both)) < 1e-4
        assert relative(both[0], both[1]) > 1e-3
        state = state - (now - then) * flow.guided(both[1], both[0], 3.0)
    assert relative(session.pending.latents, state) < 1e-4


def test_a_world_may_begin_with_nothing(noises, monkeypatch):
    model, walk = build(), make_walk(3)
    velocities = record_velocities(monkeypatch, model)
    session = model.start(4)
    frames = [model.step([session], *walk.chunk(t)) for t in range(3)]
    assert frames[0].shape == (1, 1, 96, 160, 3)
    noisy = torch.cat(noises)[None]
    clean = noisy - torch.cat(velocities, 1)
    wanted = teacher_forced(model, walk, clean, noisy, torch.ones(1, 3))
    assert relative(torch.cat(velocities, 1), wanted) < 1e-4


def test_a_prefill_in_parts_equals_one(model, walk):
    one, parts = model.start(5), model.start(5)
    walk.observe(one, 0, 30)
    for start, stop in ((0, 1), (1, 12), (12, 13), (13, 30)):
        walk.observe(parts, start, stop)
    keys = [torch.stack([model.pool.copy_out(s.bank.slots).keys]) for s in (one, parts)]
    assert relative(keys[1], keys[0]) < 1e-4
    frames = [model.step([s], *walk.chunk(30)).astype(int) for s in (one, parts)]
    assert abs(frames[0] - frames[1]).max() <= 1


def test_the_renoising_sampler_starts_every_level_from_fresh_noise(noises, monkeypatch):
    model, walk = build(sampler="renoise"), make_walk(CONTEXT + 1)
    velocities = record_velocities(monkeypatch, model)
    session = model.start(3, steps=3)
    walk.observe(session, 0, CONTEXT)
    velocities.clear()
    model.step([session], *walk.chunk(CONTEXT), decode=False)
    state = noises[0][None]
    for now, then, velocity, fresh in zip(
        (1.0, 2 / 3, 1 / 3), (2 / 3, 1 / 3, 0.0), velocities, (*noises[1:], None), strict=True
    ):
        clean = state - now * velocity
        state = clean if fresh is None else flow.add_noise(clean, fresh[None], torch.full((1, 1), then))
    assert len(noises) == 3
    assert relative(session.pending.latents, state[0]) < 1e-5


@pytest.mark.parametrize(("changes", "attention", "memory"), [
    ({"fusion": "union", "window": 0}, "memory", "memory"),
    ({"fusion": "gated", "window": 0}, "memory", "memory"),
    ({"fusion": "union", "window": 4}, "window", "off"),
    ({"fusion": "union", "window": 4}, "dense", "dense"),
])  # fmt: skip
def test_ablations_stream_as_they_train(changes, attention, memory, noises, monkeypatch):
    """Without local memory, with nothing else, and dense."""
    model, walk = build(top_k=1000, **changes), make_walk(CONTEXT + STEPS)
    velocities = record_velocities(monkeypatch, model)
    clean = stream(model, walk, model.start(1, memory=memory))
    noisy = clean.clone()
    noisy[0, CONTEXT:] = torch.cat(noises)
    wanted = teacher_forced(model, walk, clean, noisy, torch.ones(1, CONTEXT + STEPS), attention=attention)
    assert relative(torch.cat(velocities[-STEPS:], 1), wanted[:, CONTEXT:]) < 1e-4


def test_decay_weighs_the_far_frames_down(noises, monkeypatch):
    """With factor 1 it is dense attention; below, the more the smaller."""
    model, walk = build(fusion="union", window=4), make_walk(CONTEXT + 1)
    found = {}
    for memory, factor in [("dense", 1.0), ("decay", 1.0), ("decay", 0.9), ("decay", 0.5)]:
        monkeypatch.setattr(streaming, "DECAY", factor)
        session = model.start(1, memory=memory)
        walk.observe(session, 0, CONTEXT)
        model.step([session], *walk.chunk(CONTEXT), decode=False)
        found[memory, factor] = session.pending.latents
    dense = found["dense", 1.0]
    assert relative(found["decay", 1.0], dense) < 1e-5
    assert 1e-4 < relative(found["decay", 0.9], dense) < relative(found["decay", 0.5], dense)


def test_generated_frames_carry_their_mark(noises, monkeypatch):
    """Frames that were observed have none; what a session generated has it from its commit on, and after a restore."""
    model = build(fusion="union", window=4, marks_generated=True, top_k=6 * (CONTEXT + STEPS))
    torch.nn.init.normal_(model.transformer.generated)
    walk = make_walk(CONTEXT + STEPS)
    velocities = record_velocities(monkeypatch, model)
    session = model.start(1)
    clean = [model.autoencoder.encode(torch.as_tensor(walk.frames[:CONTEXT]))]
    walk.observe(session, 0, CONTEXT)
    for t in range(CONTEXT, CONTEXT + STEPS):
        model.step([session], *walk.chunk(t, 1), decode=False)
        clean.append(session.pending.latents)
        session = model.restore(session.snapshot())
    clean = torch.cat(clean)[None]
    noisy = clean.clone()
    noisy[0, CONTEXT:] = torch.cat(noises)
    own = (torch.arange(CONTEXT + STEPS) >= CONTEXT)[None]
    found, times = torch.cat(velocities[-STEPS:], 1), torch.ones(1, CONTEXT + STEPS)
    marked = teacher_forced(model, walk, clean, noisy, times, generated=own)[:, CONTEXT:]
    plain = teacher_forced(model, walk, clean, noisy, times)[:, CONTEXT:]
    assert relative(found, marked) < 1e-4 < 1e-2 < relative(found[:, 1:], plain[:, 1:])
    assert relative(found[:, :1], plain[:, :1]) < 1e-4, "the first generated frame sees observed ones only"
