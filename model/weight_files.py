"""Reading weights of any origin tensor by tensor: safetensors (one file or shards) and `.pt` files.

Opening reads names and shapes only; `Weights.read` takes one tensor from the disk, so that a load never holds the file
beside the module. `.pt` files are opened with `weights_only=True` and `mmap=True`: code in them never runs.
"""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import pickle
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PICKLED = (".pt", ".pth", ".ckpt", ".bin")
TRANSFORMER_FILES = (
    "transformer.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors.index.json",
    "model.safetensors",
    "decmem.pt",
    "model.pt",
)
VAE_FILES = (
    "autoencoder.safetensors",
    "Wan2.1_VAE.pth",
    "vae/diffusion_pytorch_model.safetensors",
)
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete or damaged; the message says how to mend it."""


@dataclass(frozen=True)
class TensorInfo:
    """Shape and number type of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size on the disk."""
        return self.count * self.dtype.itemsize


@dataclass(eq=False)
class Weights:
    """An opened weight file, or a set of shards.

    Attributes:
        path: What was opened.
        container: `safetensors`, `safetensors, 3 shards` or `pt`.
        files: All files behind it.
        tensors: Shape and type by the name in the file; nested dictionaries of a `.pt` are joined with dots.
        others: Names of entries that are no tensors.
        read: Gives one tensor on the CPU: read from a safetensors file, mapped from a `.pt`.
    """

    path: Path
    container: str
    files: list[Path]
    tensors: dict[str, TensorInfo]
    read: Callable[[str], Tensor]
    others: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(info.bytes for info in self.tensors.values())


def open_weights(path: str | Path) -> Weights:
    """Open a weight file.

    Args:
        path: `.safetensors`, `.safetensors.index.json`, `.pt`, `.pth`, `.ckpt` or `.bin`.

    Raises:
        CheckpointError: Missing, damaged, unsafe or of an unknown kind; the mend is named.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such weight file")
    if file.name.endswith(".safetensors.index.json"):
        return _open_shards(file)
    if file.suffix == ".safetensors":
        return _open_safetensors(file, [file])
    if file.suffix in PICKLED:
        return _open_pickled(file)
    raise CheckpointError(
        f"{file}: unknown kind of weight file: expected .safetensors, .safetensors.index.json or {', '.join(PICKLED)}"
    )


def locate(path: str | Path, names: tuple[str, ...] = TRANSFORMER_FILES) -> Path:
    """The weight file that a path means: the file itself, or the known one in a folder (or its `transformer/`).

    Raises:
        CheckpointError: Nothing there, or several unknown files to choose from (they are listed).
    """
    place = Path(path)
    if place.is_file():
        return place
    if not place.is_dir():
        raise CheckpointError(f"{place}: no such file or folder; `decmem checkpoint download` fetches public weights")
    for folder in (place, place / "transformer"):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    found = sorted(p for p in place.iterdir() if p.suffix in (".safetensors", *PICKLED))
    if names is TRANSFORMER_FILES:
        # The VAE and the text encoder lie in the same folder in Wan's own repository.
        found = [p for p in found if "vae" not in p.name.lower() and "t5" not in p.name.lower()]
    else:
        found = [p for p in found if "vae" in p.name.lower()]
    if len(found) == 1:
        return found[0]
    listed = f"several files: {', '.join(p.name for p in found)}; name one" if found else f"none of {', '.join(names)}"
    raise CheckpointError(f"{place} holds {listed}")


def _open_safetensors(path: Path, files: list[Path]) -> Weights:
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, TensorInfo] = {}
    places: dict[str, tuple[Path, int]] = {}
    for file in files:
        try:
            with safe_open(str(file), framework="pt", device="cpu"):
                pass  # checks the header and the length of the file
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged ({error}): download or convert it again") from None
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _DTYPES:
                raise CheckpointError(f"{file}: {name} has the type {entry['dtype']}: expected {', '.join(_DTYPES)}")
            tensors[name] = TensorInfo(tuple(entry["shape"]), _DTYPES[entry["dtype"]])
            places[name] = file, 8 + length + entry["data_offsets"][0]

    def read(name: str) -> Tensor:
        return _read_tensor(*places[name], name, tensors[name])

    container = "safetensors" if len(files) == 1 else f"safetensors, {len(files)} shards"
    return Weights(path, container, files, tensors, read)


def _read_tensor(file: Path, start: int, name: str, info: TensorInfo) -> Tensor:
    """Read a tensor; `get_tensor` would map the file, whose pages count as memory until it is closed."""
    tensor = torch.empty(info.shape, dtype=info.dtype)
    view = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    done = 0
    with file.open("rb", buffering=0) as opened:
        opened.seek(start)
        while done < len(view):
            got = opened.readinto(view[done:])
            if not got:
                raise CheckpointError(f"{file} ends inside {name}: download or convert it again")
            done += got
    return tensor


def _open_shards(index: Path) -> Weights:
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(table.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no shard index ({error!r}): download it again") from None
    outside = [name for name in shards if Path(name).name != name]
    if outside:
        raise CheckpointError(f"{index} names {outside[0]!r}: shards must lie beside their index")
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index} names {', '.join(missing)}, which is not there: download the missing shards")
    weights = _open_safetensors(index, [index.parent / name for name in shards])
    absent = sorted(set(table) - set(weights.tensors))
    if absent:
        raise CheckpointError(f"{index} names {absent[0]}, which its shards do not hold: download them again")
    return weights


def _open_pickled(path: Path) -> Weights:
    try:
        try:
            loaded, mapped = torch.load(path, map_location="cpu", mmap=True, weights_only=True), True
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            loaded, mapped = torch.load(path, map_location="cpu", weights_only=True), False  # from before torch 1.6
    except pickle.UnpicklingError as error:
        what = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "").strip()
        raise CheckpointError(
            f"{path} holds Python objects beside its weights and will not be unpickled ({what or 'unsafe content'}): "
            "save its state dict alone, where you trust the file"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({str(error).splitlines()[0]}): download it again") from None
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    for name, value in _flat(loaded):
        if isinstance(value, Tensor):
            tensors[name] = value.detach()
        else:
            others.append(name)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors: expected a state dict, or one under `generator` or `model`")
    infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in tensors.items()}

    def read(name: str) -> Tensor:
        if not mapped:
            return tensors[name]
        copy = tensors[name].clone()
        _forget_pages(tensors[name])
        return copy

    return Weights(path, "pt", [path], infos, read, others)


def _forget_pages(tensor: Tensor) -> None:
    """Take the pages of a file-mapped tensor off this process; reading it again fetches them again."""
    if not sys.platform.startswith("linux"):
        return
    first = -(-tensor.untyped_storage().data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (tensor.untyped_storage().data_ptr() + tensor.untyped_storage().nbytes()) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(mmap.MADV_DONTNEED))


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dictionaries and lists with dotted names."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, Tensor)) for item in value):
        for number, item in enumerate(value):
            yield from _flat(item, f"{prefix}.{number}" if prefix else str(number))
    else:
        yield prefix or "(the file itself)", value
