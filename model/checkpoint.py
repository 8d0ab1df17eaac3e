"""Checkpoints: a folder with `config.json`, `transformer.safetensors` and `autoencoder.safetensors`.

Found as a bundled name (`model/weights/<name>/`), a folder, or a Hugging Face hub id. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from .autoencoders import Autoencoder, build_autoencoder, place
from .config import PRESETS, ModelConfig, preset
from .hub import KNOWN
from .pose_predictor import FILE as POSE
from .pose_predictor import PosePredictor, load_pose, save_pose
from .transformer import WorldTransformer
from .weight_files import CheckpointError, locate

WEIGHTS = Path(__file__).parent / "weights"
CONFIG, TRANSFORMER, AUTOENCODER = "config.json", "transformer.safetensors", "autoencoder.safetensors"
FILES = (CONFIG, TRANSFORMER, AUTOENCODER)
RANDOM = tuple(name for name in PRESETS if name != "tiny")  # sizes without bundled weights


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        name: As it was asked for.
        sha256: Of its weights and config.
        config: Sizes.
        transformer: fp32.
        autoencoder: fp32; Wan's bf16 on CUDA.
        pose_predictor: fp32; None in a folder without `pose.safetensors`. No frame depends on it: it is not hashed.
    """

    name: str
    sha256: str
    config: ModelConfig
    transformer: WorldTransformer
    autoencoder: Autoencoder
    pose_predictor: PosePredictor | None = None


def bundled() -> list[str]:
    """Names that need no files of yours."""
    found = [path.name for path in sorted(WEIGHTS.glob("*")) if (path / CONFIG).is_file()]
    return [*found, *RANDOM]


def find(name: str) -> Path:
    """The folder of a checkpoint; a hub id is downloaded (safetensors and config only).

    Raises:
        CheckpointError: Nothing there; the message lists what there is.
    """
    here = [folder for folder in (Path(name) / "export", Path(name)) if _is_whole(folder)]
    if Path(name).name == name and _is_whole(WEIGHTS / name):
        if here:
            # Somebody once measured the bundled weights in place of the ones in a folder of their name.
            warnings.warn(f"checkpoint {name} is the bundled one; ./{name} means the folder here", stacklevel=2)
        return WEIGHTS / name
    if here:
        return here[0]
    path = Path(name)
    if _is_foreign(path):
        raise CheckpointError(f"checkpoint {name} holds weights of another project: {_conversion(name)}")
    if path.is_dir():
        missing = ", ".join(file for file in FILES if not (path / file).is_file())
        raise CheckpointError(f"checkpoint {name}: no {missing} in this folder; train the stage to its end")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not path.suffix:
        return _download(name)
    raise CheckpointError(
        f"checkpoint {name!r} does not exist: expected one of {', '.join(bundled())}, a folder with "
        f"{', '.join(FILES)}, or a hub id owner/name"
    )


def _is_whole(folder: Path) -> bool:
    return all((folder / file).is_file() for file in FILES)


def _is_foreign(path: Path) -> bool:
    if (path / TRANSFORMER).exists() or (path / AUTOENCODER).exists():
        return False  # ours, but incomplete
    try:
        locate(path)
    except CheckpointError:
        return False
    return True


def _conversion(path: str) -> str:
    return f"decmem checkpoint convert {path} --preset wan-1.3b --vae VAE --out FOLDER makes a checkpoint of ours"


def _download(name: str) -> Path:
    for short, source in KNOWN.items():
        if name == source.repository:
            first = f"decmem checkpoint download {short}"
            raise CheckpointError(
                f"checkpoint {name} holds weights of another project: {first}, then {_conversion(source.folder)}"
            )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"checkpoint {name}: downloading needs huggingface-hub (pip install huggingface-hub)"
        ) from None
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*FILES, POSE]))
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {name} is no folder here, and the hub has not given it: {type(error).__name__}: "
            f"{str(error).splitlines()[0]}"
        ) from None
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(f"checkpoint {name}: the hub repository lacks {', '.join(missing)}")
    return folder


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): copy or train it again") from None


def _fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    missing, unknown = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing[:4])}"] if missing else []
        wrong += [f"holds unknown {', '.join(unknown[:4])}"] if unknown else []
        raise CheckpointError(f"{path} does not fit its {CONFIG}: it {' and '.join(wrong)}")
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, its {CONFIG} asks for {tuple(tensor.shape)}"
            )
        if not torch.isfinite(tensors[name].float()).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity; copy or train it again")
    with torch.no_grad():
        module.load_state_dict({name: tensors[name].to(tensor.dtype) for name, tensor in own.items()})


def load(name: str, device: torch.device) -> Checkpoint:
    """Load a checkpoint onto a device; the same files again cost nothing.

    A preset without bundled weights gets random ones, and a warning unless it is `debug`, which is nothing else.

    Raises:
        CheckpointError: Missing or damaged files.
    """
    if name in RANDOM and not (Path(name) / CONFIG).is_file():
        if name != "debug":
            warnings.warn(
                f"checkpoint {name}: random weights, none are bundled for this size; "
                f"decmem checkpoint convert PATH --preset {name} --out FOLDER makes a folder to load",
                stacklevel=2,
            )
        return _load(name, None, (), device)
    folder = find(name)
    facts = [(folder / file).stat() for file in (*FILES, POSE) if (folder / file).is_file()]
    return _load(name, folder, tuple((fact.st_mtime_ns, fact.st_size) for fact in facts), device)


@lru_cache(maxsize=4)
def _load(name: str, folder: Path | None, stamp: tuple[tuple[int, int], ...], device: torch.device) -> Checkpoint:
    if folder is None:
        config, transformer, autoencoder = _random(name)
        digest = hashlib.sha256(config.to_json().encode())
        for module in (transformer, autoencoder):
            for key, tensor in sorted(module.state_dict().items()):
                digest.update(key.encode())
                digest.update(tensor.contiguous().numpy())
    else:
        try:
            config = ModelConfig.from_json((folder / CONFIG).read_text())
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{folder / CONFIG}: {error}") from None
        transformer, autoencoder = WorldTransformer(config), build_autoencoder(config.autoencoder)
        _fill(transformer, _read(folder / TRANSFORMER), folder / TRANSFORMER)
        _fill(autoencoder, _read(folder / AUTOENCODER), folder / AUTOENCODER)
        digest = hashlib.sha256()
        for file in FILES:
            digest.update((folder / file).read_bytes())
    transformer.eval().requires_grad_(False).to(device)
    place(autoencoder, device)
    poses = None if folder is None else load_pose(folder, config.autoencoder.latent_shape, device)
    return Checkpoint(name, digest.hexdigest(), config, transformer, autoencoder, poses)


def _random(name: str) -> tuple[ModelConfig, WorldTransformer, Autoencoder]:
    """A preset with seeded weights in which every input matters, also those that start at zero in training."""
    config = preset(name)
    std = config.width**-0.5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer, autoencoder = WorldTransformer(config), build_autoencoder(config.autoencoder)
        nn.init.normal_(transformer.head.weight, std=std)
        for block in transformer.blocks:
            if block.attention.gate is not None:  # type: ignore[union-attr]
                nn.init.normal_(block.attention.gate.weight, std=std)  # type: ignore[union-attr,arg-type]
        if config.layout == "wan":
            nn.init.normal_(transformer.action[2].weight, std=std)  # type: ignore[arg-type]
    return config, transformer, autoencoder


def save(
    folder: str | Path,
    config: ModelConfig,
    transformer: nn.Module,
    autoencoder: nn.Module,
    pose_predictor: PosePredictor | None = None,
) -> None:
    """Write a checkpoint folder, all of it or nothing; weights in fp16, statistics of the latent in fp32.

    Raises:
        FileExistsError: The folder exists and is not a checkpoint.
    """
    from safetensors.torch import save_file

    with replacing(folder) as fresh:
        (fresh / CONFIG).write_text(config.to_json())
        for file, module in ((TRANSFORMER, transformer), (AUTOENCODER, autoencoder)):
            tensors = {
                name: (t if name.startswith("latent_norm.") or not t.is_floating_point() else t.half())
                .contiguous()
                .cpu()
                for name, t in module.state_dict().items()
            }
            save_file(tensors, str(fresh / file), {"config": json.dumps(config.to_dict()["autoencoder"])})
        if pose_predictor is not None:
            save_pose(fresh, pose_predictor)


@contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of a checkpoint folder when the block ends without an error.

    Raises:
        FileExistsError: The folder exists and is not a checkpoint.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / CONFIG).is_file())):
        raise FileExistsError(f"{target} exists and is no checkpoint: choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield fresh
        fresh.chmod(0o755)
        old = target.with_name(f".{target.name}-old-{os.getpid()}")
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
