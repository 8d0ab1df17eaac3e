"""Wan's autoencoder from a file: diffusers' safetensors, `Wan2.1_VAE.pth`, or our own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from . import wan_vae_keys
from .formats import bare_names
from .wan_autoencoder import WanAutoencoder
from .wan_size import WanAutoencoderConfig
from .weight_files import VAE_FILES, CheckpointError, locate, open_weights

M = TypeVar("M", bound=nn.Module)


def load_wan_autoencoder(
    path: str | Path,
    config: WanAutoencoderConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> WanAutoencoder:
    """Load Wan2.1's autoencoder.

    Args:
        path: `Wan2.1_VAE.pth`, a `.safetensors` file with diffusers' names, or a folder with one of them.
        config: Frame size; 352x640 by default.
        device: Where it lives; on CUDA its weights are channels-last.
        dtype: Of its weights.

    Raises:
        CheckpointError: Unreadable, a tensor is missing, left over or of another shape, or holds NaN.
    """
    with torch.device("meta"):
        module = WanAutoencoder(config or WanAutoencoderConfig())
    fill(module, locate(path, (*VAE_FILES, "diffusion_pytorch_model.safetensors")), wan_vae_keys.to_native, dtype)
    # Built on `meta`, the constants of the normalisation hold nothing yet.
    module.reset_statistics()
    module.to(torch.device(device))
    if torch.device(device).type == "cuda":
        module.use_channels_last()
    return module


def fill(
    module: M,
    path: Path,
    native: Callable[[str], str | None],
    dtype: torch.dtype,
    *,
    ignore: str | None = None,
    last_rows: bool = False,
) -> M:
    """Give a module on `meta` the weights of a file, in evaluation mode and without gradients.

    Args:
        module: Its parameters are replaced.
        path: Weight file.
        native: Name here by the name in the file; None if it is unknown.
        dtype: Of the parameters.
        ignore: Leave out tensors whose names begin so.
        last_rows: Where the file has a multiple of the rows, take the last ones.

    Raises:
        CheckpointError: A tensor is missing, unknown or of another shape, or holds NaN or infinity.
    """
    weights = open_weights(path)
    sources = {}
    unknown = []
    for source, bare in bare_names(weights.tensors).clean.items():
        name = native(bare)
        if ignore is not None and bare.startswith(ignore):
            continue
        if name is None:
            unknown.append(bare)
        else:
            sources[name] = source
    wanted = module.state_dict()
    missing = sorted(set(wanted) - set(sources))
    unknown += sorted(set(sources) - set(wanted))
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing[:3])}"] if missing else []
        wrong += [f"holds unknown {', '.join(unknown[:3])}"] if unknown else []
        raise CheckpointError(f"{path} is no weight file of {type(module).__name__}: it {' and '.join(wrong)}")
    for name, parameter in wanted.items():
        shape, rows = weights.tensors[sources[name]].shape, len(parameter)
        more = last_rows and bool(shape) and shape[0] % rows == 0
        if shape != tuple(parameter.shape) and not (more and shape[1:] == parameter.shape[1:]):
            raise CheckpointError(
                f"{path}: {sources[name]} has shape {shape}, {type(module).__name__} needs {tuple(parameter.shape)}"
            )
        tensor = weights.read(sources[name])[-rows:].to(dtype)
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {sources[name]} holds NaN or infinity; download it again")
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    return module.eval()
