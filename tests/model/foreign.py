"""Our debug transformer written down as other projects write theirs; the values stay, names and shapes change."""

from __future__ import annotations

import torch
from decmem_env.model.config import debug
from decmem_env.model.transformer import WorldTransformer


def transformer(seed: int = 3) -> WorldTransformer:
    torch.manual_seed(seed)
    module = WorldTransformer(debug())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def as_wan(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Wan's original names and shapes; actions and gate keep ours, Wan has none."""
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if ".attention.qkv." in name:
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                out[name.replace("attention.qkv", f"self_attn.{letter}")] = third.clone()
            continue
        if name.endswith("modulation"):
            tensor = tensor[None]
        if name == "patch.weight":
            tensor = tensor[:, :, None, None, None]
        for ours, theirs in (
            ("patch.", "patch_embedding."),
            ("time.", "time_embedding."),
            ("head_modulation", "head.modulation"),
            ("head.weight", "head.head.weight"),
            ("head.bias", "head.head.bias"),
        ):
            if name.startswith(ours):
                name = theirs + name[len(ours) :]
                break
        out[name.replace(".attention.out.", ".self_attn.o.").replace(".attention.", ".self_attn.")] = tensor.clone()
    return out


def as_diffusers(wan: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' names of Wan's (model card of `WanTransformer3DModel`)."""
    swaps = (
        ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
        ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
        ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
        ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
        ("time_projection.1.", "condition_embedder.time_proj."),
        ("head.modulation", "scale_shift_table"),
        ("head.head.", "proj_out."),
        (".modulation", ".scale_shift_table"),
        (".self_attn.o.", ".attn1.to_out.0."),
        (".cross_attn.o.", ".attn2.to_out.0."),
        (".ffn.0.", ".ffn.net.0.proj."),
        (".ffn.2.", ".ffn.net.2."),
        (".norm3.", ".norm2."),
    )
    out = {}
    for name, tensor in wan.items():
        for old, new in swaps:
            if old in name:
                name = name.replace(old, new)
                break
        for letter in "qkv":
            name = name.replace(f".self_attn.{letter}.", f".attn1.to_{letter}.")
            name = name.replace(f".cross_attn.{letter}.", f".attn2.to_{letter}.")
        out[name.replace(".self_attn.", ".attn1.").replace(".cross_attn.", ".attn2.")] = tensor
    return out


def with_text(wan: dict[str, torch.Tensor], width: int = 64) -> dict[str, torch.Tensor]:
    """Add the text conditioning that a released Wan file has."""
    out = dict(wan)
    for layer in (0, 2):
        out[f"text_embedding.{layer}.weight"] = torch.zeros(width, width)
        out[f"text_embedding.{layer}.bias"] = torch.zeros(width)
    for block in range(debug().depth):
        for letter in "qkvo":
            out[f"blocks.{block}.cross_attn.{letter}.weight"] = torch.zeros(width, width)
            out[f"blocks.{block}.cross_attn.{letter}.bias"] = torch.zeros(width)
        for letter in "qk":
            out[f"blocks.{block}.cross_attn.norm_{letter}.weight"] = torch.zeros(width)
        out[f"blocks.{block}.norm3.weight"] = torch.zeros(width)
        out[f"blocks.{block}.norm3.bias"] = torch.zeros(width)
    return out
