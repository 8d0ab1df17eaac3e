"""Our transformer with Wan's sizes against diffusers' `WanTransformer3DModel`, the same random weights in both."""

import pytest
import torch
from decmem_env.model.config import preset
from decmem_env.model.formats import bare_names
from decmem_env.model.importing import load_transformer, parameter_shapes
from decmem_env.model.matching import assemble, match_names
from decmem_env.model.transformer import WorldTransformer, time_features
from decmem_env.model.wan_size import WanAutoencoderConfig
from decmem_env.model.weight_files import TensorInfo
from safetensors.torch import save_file

diffusers = pytest.importorskip("diffusers")


def backbone(frames: int, pixels: tuple[int, int] = (64, 112), **changes):
    """The preset without camera channels, every frame in one chunk: what Wan itself computes."""
    return preset("wan-1.3b").with_overrides(
        chunk=frames, autoencoder=WanAutoencoderConfig(height=pixels[0], width=pixels[1]), **changes
    )


def pair(config):
    """diffusers' model with random weights, and ours with the same ones."""
    torch.manual_seed(0)
    theirs = diffusers.WanTransformer3DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        text_dim=config.text_width,
        ffn_dim=config.ffn_width,
        num_layers=config.depth,
    ).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 2.0)
            elif parameter.ndim > 1 and "scale_shift_table" not in name:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(std=0.2)
        # Their sinusoid is fp32; the bar asks for fp64 tables on both sides.
        theirs.condition_embedder.timesteps_proj.forward = lambda t: time_features(t / 1000.0)
    weights = theirs.state_dict()
    infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in weights.items()}
    match = match_names(bare_names(weights).clean, infos, parameter_shapes(config))
    assert not match.unexpected and not match.misfits and not match.left_out
    assert all(name == "text_context" or name.startswith("action.") or ".gate." in name for name in match.missing)
    ours = WorldTransformer(config).eval()
    state = ours.state_dict() | {pair.target: assemble(pair, weights.__getitem__) for pair in match.pairs}
    state["text_context"] = torch.randn(config.text_tokens, config.text_width)
    ours.load_state_dict(state)
    return theirs, ours


def velocities(theirs, ours, frames, time=0.637):
    """Both models on the same noisy frames."""
    config = ours.config
    noisy = torch.randn(1, frames, *config.autoencoder.latent_shape)
    with torch.no_grad():
        wanted = theirs(
            noisy.transpose(1, 2), torch.tensor([1000.0 * time]), ours.text_context[None], return_dict=False
        )[0].transpose(1, 2)
        found = ours.teacher_forcing(
            torch.zeros_like(noisy),
            noisy,
            torch.zeros(1, frames),
            torch.full((1, frames), time),
            torch.zeros(1, frames, config.action_channels),
            torch.eye(4).expand(1, frames, 4, 4),
            torch.eye(4).expand(1, frames, 4, 4),
            torch.arange(frames)[None],
            action_mask=torch.ones(1, frames, dtype=torch.bool),
            attention="dense",
        )
    return wanted, found


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


SMALL = {"width": 96, "heads": 2, "ffn_width": 192, "text_tokens": 7, "text_width": 32}


# 28 tokens in 30 places of a frame, and 20 tokens in 20.
@pytest.mark.parametrize(("pixels", "blocks", "depth"), [((64, 112), 6, 30), ((64, 80), 5, 2)])
def test_thirty_layers_of_reduced_width_equal_diffusers(pixels, blocks, depth):
    frames, sizes = 3, {"camera_channels": 0, "spatial_channels": 32, "temporal_channels": 16, **SMALL}
    theirs, ours = pair(backbone(frames, pixels, blocks_per_frame=blocks, depth=depth, **sizes))
    assert (ours.config.padding > 0) == (blocks == 6)
    wanted, found = velocities(theirs, ours, frames)
    assert wanted.std() > 0.1
    assert relative(found, wanted) <= 1e-5


def test_one_block_of_full_width_equals_diffusers():
    sizes = {"camera_channels": 0, "spatial_channels": 84, "temporal_channels": 44}
    theirs, ours = pair(backbone(2, depth=1, text_tokens=7, **sizes))
    assert ours.config.width == 1536 and ours.config.ffn_width == 8960 and ours.config.head_dim == 128
    wanted, found = velocities(theirs, ours, 2)
    assert relative(found, wanted) <= 1e-5


def test_weights_of_diffusers_load_from_a_file(tmp_path):
    config = backbone(3, camera_channels=16, spatial_channels=24, temporal_channels=8, depth=2, **SMALL)
    theirs, ours = pair(config)
    save_file(theirs.state_dict(), str(tmp_path / "wan.safetensors"))
    loaded, plan = load_transformer(
        tmp_path / "wan.safetensors", config, device=torch.device("cpu"), allow_partial=True
    )
    assert plan.family == "diffusers"
    loaded.text_context.copy_(ours.text_context)
    torch.manual_seed(2)
    wanted, first = velocities(theirs, ours, 3)
    torch.manual_seed(2)
    _, second = velocities(theirs, loaded, 3)
    assert torch.equal(first, second)


def test_camera_channels_hardly_change_what_the_backbone_does():
    """Cameras that stand still: only the slowest rotary pairs are gone, so the dense pass stays close to Wan."""
    sizes = {"camera_channels": 16, "spatial_channels": 24, "temporal_channels": 8, "depth": 4, **SMALL}
    theirs, ours = pair(backbone(3, **sizes))
    wanted, found = velocities(theirs, ours, 3)
    assert 1e-5 < relative(found, wanted) < 0.2


def test_a_converted_backbone_starts_as_itself():
    """Gate and actions begin without effect: within the window, memory equals dense attention, whatever the action."""
    config = preset("wan-debug").with_overrides(chunk=2)
    torch.manual_seed(1)
    ours = WorldTransformer(config).eval()
    torch.nn.init.normal_(ours.head.weight, std=0.1)
    frames = config.window
    noisy, clean = torch.randn(2, 1, frames, *config.autoencoder.latent_shape)
    given = {
        "clean_time": torch.zeros(1, frames),
        "noisy_time": torch.rand(1, frames),
        "projective": torch.eye(4).expand(1, frames, 4, 4),
        "projective_inverse": torch.eye(4).expand(1, frames, 4, 4),
        "frame_index": torch.arange(frames)[None],
        "action_mask": torch.ones(1, frames, dtype=torch.bool),
    }
    results = []
    with torch.no_grad():
        for attention, actions in (("memory", 0.0), ("memory", 1.0), ("dense", 0.0)):
            given["actions"] = torch.full((1, frames, config.action_channels), actions)
            results.append(ours.teacher_forcing(clean, noisy, **given, attention=attention))
    assert relative(results[0], results[2]) < 1e-5 and torch.equal(results[0], results[1])


def test_a_session_of_hours_keeps_its_positions():
    """Wan's table ends at 1,024 latents; here only differences of time matter, after a million latents as at zero."""
    config = preset("wan-debug")
    torch.manual_seed(1)
    ours = WorldTransformer(config).eval()
    torch.nn.init.normal_(ours.head.weight, std=0.1)
    noisy, clean = torch.randn(2, 1, 4, *config.autoencoder.latent_shape)
    found = []
    with torch.no_grad():
        for start in (0, 1_000_000):
            found.append(
                ours.teacher_forcing(
                    clean,
                    noisy,
                    torch.zeros(1, 4),
                    torch.full((1, 4), 0.5),
                    torch.zeros(1, 4, config.action_channels),
                    torch.eye(4).expand(1, 4, 4, 4),
                    torch.eye(4).expand(1, 4, 4, 4),
                    torch.arange(start, start + 4)[None],
                    action_mask=torch.ones(1, 4, dtype=torch.bool),
                )
            )
    assert relative(found[1], found[0]) < 1e-5
