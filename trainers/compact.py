"""The compact form of a training state: 16-bit weights, 8-bit averages and moments, shards of at most 16 MiB.

Signed tensors are stored as int8 with one scale per block of 256; second moments as the logarithm of their root in
sixteenths of an octave below the block's largest, which keeps 4 % precision over 16 octaves (a linear 8-bit code would
round small second moments to zero and blow up their updates).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .files import read_json, read_tensors, write_tensors, write_text

SHARD_BYTES = 16 * 2**20 - 2**16  # leaves room for the header
_BLOCK = 256


def _blocks(tensor: Tensor) -> Tensor:
    flat = tensor.detach().float().cpu().flatten()
    padded = torch.zeros(-(-len(flat) // _BLOCK) * _BLOCK)
    padded[: len(flat)] = flat
    return padded.view(-1, _BLOCK)


def encode_signed(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Block-wise int8.

    Returns:
        (codes int8 of the tensor's shape, scales fp32 [blocks]).
    """
    blocks = _blocks(tensor)
    scale = blocks.abs().amax(1) / 127.0
    codes = (blocks / scale.clamp_min(1e-30)[:, None]).round().clamp(-127, 127).to(torch.int8)
    return codes.flatten()[: tensor.numel()].view(tensor.shape).clone(), scale


def decode_signed(codes: Tensor, scale: Tensor) -> Tensor:
    """Inverse of `encode_signed`, fp32."""
    return (_blocks(codes) * scale[:, None]).flatten()[: codes.numel()].view(codes.shape)


def encode_second(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Block-wise logarithmic uint8 of a non-negative tensor; code 0 is zero.

    Returns:
        (codes uint8 of the tensor's shape, largest roots fp32 [blocks]).
    """
    root = _blocks(tensor).clamp_min(0).sqrt()
    top = root.amax(1)
    octaves = torch.log2(root / top.clamp_min(1e-30)[:, None])
    codes = (255 + 16 * octaves).round().clamp(1, 255)
    codes = torch.where(root > 0, codes, torch.zeros_like(codes)).to(torch.uint8)
    return codes.flatten()[: tensor.numel()].view(tensor.shape).clone(), top


def decode_second(codes: Tensor, top: Tensor) -> Tensor:
    """Inverse of `encode_second`, fp32."""
    blocks = _blocks(codes)
    root = torch.where(blocks > 0, torch.exp2((blocks - 255) / 16) * top[:, None], torch.zeros_like(blocks))
    return root.square().flatten()[: codes.numel()].view(codes.shape)


def encode_state(
    weights: Mapping[str, Tensor], ema: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Shrink a state to named tensors for `write_shards`."""
    out: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        # Buffers (statistics) are few and stay exact.
        out[f"w/{name}"] = tensor.detach().cpu().bfloat16() if name in ema else tensor.detach().cpu()
    for name, tensor in ema.items():
        out[f"e/{name}"], out[f"es/{name}"] = encode_signed(tensor.cpu() - out[f"w/{name}"].float())
    for name, tensor in moments.items():
        if tensor.numel() == 1:
            out[f"m/{name}"] = tensor.detach().cpu().float()
        elif name.endswith(".exp_avg_sq"):
            out[f"v/{name}"], out[f"vs/{name}"] = encode_second(tensor)
        else:
            out[f"s/{name}"], out[f"ss/{name}"] = encode_signed(tensor)
    return out


def decode_state(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Inverse of `encode_state`: (weights, ema, moments), fp32 but for exact buffers."""
    weights: dict[str, Tensor] = {}
    ema: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        if kind == "w":
            weights[name] = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        elif kind == "e":
            ema[name] = tensors[f"w/{name}"].float() + decode_signed(tensor, tensors[f"es/{name}"])
        elif kind == "m":
            moments[name] = tensor
        elif kind == "s":
            moments[name] = decode_signed(tensor, tensors[f"ss/{name}"])
        elif kind == "v":
            moments[name] = decode_second(tensor, tensors[f"vs/{name}"])
    return weights, ema, moments


def write_shards(folder: Path, tensors: Mapping[str, Tensor], limit: int = SHARD_BYTES) -> None:
    """Spread tensors over `shard-NN.safetensors` files below the limit, with `index.json` naming the files.

    Raises:
        ValueError: A single tensor exceeds the limit.
    """
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() + 256  # with its share of the header
        if size > limit:
            raise ValueError(f"tensor {name} has {size} bytes: more than a shard of {limit}")
        if used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += size
    names = [f"shard-{i:02d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_tensors(folder / name, shard)
    write_text(folder / "index.json", '{"shards": [' + ", ".join(f'"{n}"' for n in names) + "]}\n")


def read_shards(folder: Path) -> dict[str, Tensor]:
    """Inverse of `write_shards`."""
    result: dict[str, Tensor] = {}
    for name in read_json(folder / "index.json")["shards"]:
        result.update(read_tensors(folder / name))
    return result
