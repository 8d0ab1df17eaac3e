"""Files that are never half-written: written beside their place, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


class StateError(RuntimeError):
    """A saved state or checkpoint is missing, damaged or of another model; the message says how to go on."""


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `target` when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = target.with_name(target.name + ".tmp"), target.with_name(target.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def settled_folder(target: Path) -> Path:
    """The folder itself, or its predecessor where a crash fell between the two renames."""
    old = target.with_name(target.name + ".old")
    return old if not target.exists() and old.exists() else target


def write_text(path: Path, text: str) -> None:
    """Write a text file in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text(text)
    os.replace(fresh, path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file in one go; tensors come from any device."""
    fresh = path.with_name(path.name + ".tmp")
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, fresh, metadata)
    os.replace(fresh, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU.

    Raises:
        StateError: It is missing or damaged.
    """
    if not path.is_file():
        raise StateError(f"{path} is missing: the folder is incomplete; copy it again or start afresh with --fresh")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise StateError(f"{path} is damaged ({error}): copy it again or start afresh with --fresh") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StateError: It is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise StateError(f"{path} is missing: the folder is incomplete; copy it again or use --fresh") from None
    except (ValueError, OSError) as error:
        raise StateError(f"{path} is damaged ({error}): copy it again or start afresh with --fresh") from None


def copy_into(module: torch.nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Load weights by name, all of them.

    Raises:
        StateError: Names or shapes differ; the first differences are listed.
    """
    own = module.state_dict()
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    shapes = [n for n in own if n in tensors and own[n].shape != tensors[n].shape]
    if missing or extra or shapes:
        raise StateError(
            f"{origin} does not fit this model: missing {missing[:4]}, unknown {extra[:4]}, other shapes {shapes[:4]}; "
            "use the model settings it was trained with"
        )
    module.load_state_dict({n: t.to(own[n].dtype) for n, t in tensors.items()})
