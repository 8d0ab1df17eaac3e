"""Fetching public weights from the Hugging Face hub: pinned to a commit, resumed, sizes checked, nothing unpickled."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .weight_files import CheckpointError

SAFE = ("*.safetensors", "*.safetensors.index.json", "config.json")


@dataclass(frozen=True)
class Source:
    """A public repository and the files of it that this project reads.

    Attributes:
        repository: owner/name on the hub.
        files: Names or patterns.
        folder: Where it goes by default, as in the reference README.
    """

    repository: str
    files: tuple[str, ...]
    folder: str


KNOWN = {
    "wan-1.3b": Source(
        "Wan-AI/Wan2.1-T2V-1.3B",
        ("config.json", "diffusion_pytorch_model.safetensors", "Wan2.1_VAE.pth"),
        "wan_models/Wan2.1-T2V-1.3B",
    ),
    "decmem": Source("KlingTeam/DecMem", ("decmem.pt",), "checkpoints"),
}


@dataclass(frozen=True)
class Fetched:
    """What a download gave.

    Attributes:
        folder: Where the files lie.
        commit: Of the repository.
        files: Path and size in bytes.
    """

    folder: Path
    commit: str
    files: tuple[tuple[Path, int], ...]


def source_of(name: str) -> Source:
    """A known short name, or any owner/name (its safetensors and config only).

    Raises:
        CheckpointError: Neither.
    """
    if name in KNOWN:
        return KNOWN[name]
    for source in KNOWN.values():
        if source.repository == name:
            return source
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return Source(name, SAFE, f"checkpoints/{name.rpartition('/')[2]}")
    raise CheckpointError(f"{name!r} is no hub repository: expected {', '.join(KNOWN)} or owner/name")


def by_hand(source: Source, revision: str, folder: Path) -> str:
    """The command of the hub's own tool that fetches the same files."""
    exact = [file for file in source.files if "*" not in file]
    words = ["hf", "download", source.repository]
    words += exact if len(exact) == len(source.files) else ["--include", *source.files]
    return shlex.join([*words, "--revision", revision, "--local-dir", str(folder)])


def fetch(
    source: Source,
    folder: Path,
    *,
    revision: str = "main",
    endpoint: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Fetched:
    """Download the files of a repository; what is there with the right size is kept, a broken-off one continues.

    Args:
        source: Which files of which repository.
        folder: Where they go.
        revision: Branch, tag or commit; all files come from the one commit it names now.
        endpoint: Another hub.
        tell: Receives lines for people.

    Raises:
        CheckpointError: No hub, no such repository, revision or file, or a file of the wrong size. The message has the
            command to type where there is a network.
    """
    from huggingface_hub import HfApi, hf_hub_download

    hint = f"where there is a network, type: {by_hand(source, revision, folder)}"
    try:
        api = HfApi(endpoint=endpoint)
        info = api.model_info(source.repository, revision=revision, files_metadata=True)
    except Exception as error:
        raise CheckpointError(_said(source, revision, error, hint)) from None
    sizes = {item.rfilename: item.size for item in info.siblings or ()}
    wanted = _select(sizes, source, hint)
    commit = str(info.sha)
    done = []
    for name in wanted:
        target, size = folder / name, sizes[name]
        if target.is_file() and size is not None and target.stat().st_size == size:
            tell(f"{target}: there already, {size:,} bytes")
        else:
            try:
                path = hf_hub_download(
                    source.repository,
                    name,
                    revision=commit,
                    local_dir=str(folder),
                    endpoint=endpoint,
                    force_download=target.is_file(),  # a file of another size; an unfinished one lies elsewhere
                )
            except Exception as error:
                raise CheckpointError(_said(source, revision, error, hint)) from None
            target = Path(path)
            got = target.stat().st_size
            if size is not None and got != size:
                raise CheckpointError(f"{target} has {got} bytes, the hub says {size}: delete it and run this again")
            tell(f"{target}: {got:,} bytes")
        done.append((target, target.stat().st_size))
    return Fetched(folder, commit, tuple(done))


def _select(sizes: dict[str, Any], source: Source, hint: str) -> Sequence[str]:
    wanted: list[str] = []
    sizes = {name: size for name, size in sizes.items() if ".." not in name and not name.startswith("/")}
    for pattern in source.files:
        found = [name for name in sorted(sizes) if fnmatch(name, pattern)]
        if not found and "*" not in pattern:
            listed = ", ".join(sorted(sizes)[:8])
            raise CheckpointError(f"{source.repository} has no {pattern}, it has {listed}; {hint}")
        wanted += [name for name in found if name not in wanted]
    if not wanted:
        raise CheckpointError(f"{source.repository} holds none of {', '.join(source.files)}; {hint}")
    return wanted


def _said(source: Source, revision: str, error: Exception, hint: str) -> str:
    reason = str(error).strip().splitlines()
    return (
        f"{source.repository} at {revision} could not be fetched ({type(error).__name__}"
        f"{': ' + reason[0] if reason else ''}); {hint}"
    )
