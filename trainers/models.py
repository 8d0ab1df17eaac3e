"""Building models from settings and exports, and writing exports (`WorldModel.from_pretrained` reads them)."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import torch
from decmem_env.model.autoencoder import AutoencoderConfig, TinyAutoencoder
from torch import Tensor, nn

from .config import ConfigError
from .files import StateError, copy_into, read_tensors, replacing_folder, write_tensors, write_text

AUTOENCODER = "autoencoder.safetensors"
TRANSFORMER = "transformer.safetensors"
CONFIG = "config.json"
_LATENT_LAYERS = ("patch.weight", "head.weight", "head.bias")


def find_export(path: str | Path) -> Path:
    """The folder that holds the weights: the path itself or its `export/`.

    Raises:
        StateError: Neither holds an autoencoder.
    """
    root = Path(path)
    for folder in (root / "export", root):
        if (folder / AUTOENCODER).is_file():
            return folder
    what = "has no exported weights (did its stage finish?)" if root.is_dir() else "does not exist"
    raise StateError(
        f"--init {root}: {what}: expected {AUTOENCODER} in it or in its export/; train `autoencoder` first"
    )


def _halved(tensors: dict[str, Tensor], exact: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """fp16 copies of the float tensors, but for names that start with one of `exact`."""
    return {n: t.half() if t.is_floating_point() and not n.startswith(exact) else t for n, t in tensors.items()}


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        return file.metadata() or {}


def load_autoencoder(folder: Path) -> TinyAutoencoder:
    """Load the exported autoencoder in fp32; its sizes are in the file's metadata under `config`."""
    path = folder / AUTOENCODER
    tensors = read_tensors(path)
    text = _metadata(path).get("config")
    if text is None:
        raise StateError(f"{path} carries no sizes (metadata `config`): it was not written by `decmem train`")
    model = TinyAutoencoder(AutoencoderConfig.from_json(text))
    copy_into(model, tensors, str(path))
    return model


def widen_latents(saved: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fit saved weights into a model whose latents have more channels.

    The first channels keep their meaning: new inputs get weight zero, new outputs keep the model's fresh values.
    Tensors of other ranks or with fewer entries stay as they are, for the loader to complain about.
    """
    result = dict(saved)
    for name, tensor in saved.items():
        fresh = own.get(name)
        if fresh is None or fresh.ndim != tensor.ndim or fresh.shape == tensor.shape:
            continue
        if all(a >= b for a, b in zip(fresh.shape, tensor.shape, strict=True)):
            wide = fresh.detach().clone()
            if wide.ndim > 1:
                wide[:, tensor.shape[1] :] = 0
            wide[tuple(slice(n) for n in tensor.shape)] = tensor.to(wide)
            result[name] = wide
    return result


def _write_autoencoder(folder: Path, model: TinyAutoencoder) -> None:
    # The statistics stay in 32 bit: they are few, and everything downstream hangs on them.
    write_tensors(
        folder / AUTOENCODER, _halved(model.state_dict(), ("latent_norm.",)), {"config": model.config.to_json()}
    )


def save_autoencoder(folder: Path, model: TinyAutoencoder) -> None:
    """Write an export that holds an autoencoder only."""
    with replacing_folder(folder) as fresh:
        _write_autoencoder(fresh, model)


def save_dynamics(folder: Path, config: Any, model: nn.Module, autoencoder: TinyAutoencoder) -> None:
    """Write a full export: config, transformer, autoencoder."""
    with replacing_folder(folder) as fresh:
        write_text(fresh / CONFIG, config.to_json())
        write_tensors(fresh / TRANSFORMER, _halved(plain_names(model.state_dict())))
        _write_autoencoder(fresh, autoencoder)


def plain_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the prefix that torch.compile puts before names."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}


def build_transformer(folder: Path, changes: dict[str, Any], autoencoder: AutoencoderConfig) -> tuple[Any, nn.Module]:
    """Build the transformer: the init's config if it has one, else a preset; then the changes.

    Args:
        folder: Export to start from.
        changes: The `model` section: `preset` and single fields.
        autoencoder: Must match in latent shape.

    Returns:
        (ModelConfig, WorldTransformer with fresh weights).

    Raises:
        ConfigError: Unknown preset or field, or the latent shapes differ.
    """
    from decmem_env.model.config import ModelConfig, preset
    from decmem_env.model.transformer import WorldTransformer

    fields = dict(changes)
    name = fields.pop("preset", "tiny")
    if (folder / CONFIG).is_file():
        config = ModelConfig.from_json((folder / CONFIG).read_text())
    else:
        try:
            config = preset(name)
        except ValueError as error:
            raise ConfigError(f"model.preset: {error}") from None
    known = {f.name for f in dataclasses.fields(config)}
    if unknown := sorted(set(fields) - known):
        raise ConfigError(f"unknown setting model.{unknown[0]}: the model has {', '.join(sorted(known))}")
    if "autoencoder" in known:
        fields["autoencoder"] = autoencoder
    try:
        config = dataclasses.replace(config, **fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model settings {fields}: {error}") from None
    return config, WorldTransformer(config)


def weights_number(folder: Path) -> int:
    """A number that stands for the transformer's weights of an export."""
    return zlib.crc32((folder / TRANSFORMER).read_bytes())


def load_transformer_weights(folder: Path, model: nn.Module) -> bool:
    """Load the export's transformer, if it has one.

    Where the autoencoder has more latent channels than the transformer was trained with, the layers at its two ends are
    widened (`widen_latents`). The gate exists in the gated fusion only, and dense stages do not train it: where the
    fusion changes between two stages, a gate in the file is left out and a gate without a file keeps its initial value.
    So do the mark of generated frames (`marks_generated`) and the rays of the block grid (`voxel_planes`).

    Returns:
        Whether there was one.

    Raises:
        StateError: Names or shapes differ.
    """
    path = folder / TRANSFORMER
    if not path.is_file():
        return False
    with torch.no_grad():
        tensors, own = read_tensors(path), model.state_dict()
        kept = {n: t for n, t in tensors.items() if n in own or ".gate." not in n}
        fresh = {n: t for n, t in own.items() if n not in tensors and ".gate." in n}
        for name in own:
            if name == "generated" or name.startswith("voxel_rays."):
                kept.setdefault(name, own[name])
        if len(kept) < len(tensors) or fresh:
            print(f"{path}: the fusion changed; gates start afresh", flush=True)
        widened = widen_latents(kept, {n: own[n] for n in _LATENT_LAYERS})
        copy_into(model, {**widened, **fresh}, str(path))
    return True
