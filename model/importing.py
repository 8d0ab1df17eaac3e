"""Weights of other projects into our transformer: straight into a module, or converted to a checkpoint folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .formats import FAMILIES, Names, bare_names, family_of
from .matching import Match, assemble, match_names
from .transformer import WorldTransformer
from .weight_files import CheckpointError, Weights, locate, open_weights


@dataclass(frozen=True, eq=False)
class Import:
    """An opened file matched with a model.

    Attributes:
        weights: The file.
        names: Its bare names and sections.
        family: Whose names they are, a key of `formats.FAMILIES`.
        match: What fills what.
    """

    weights: Weights
    names: Names
    family: str
    match: Match


def plan_import(path: str | Path, config: ModelConfig, section: str | None = None) -> Import:
    """Open a transformer's weights and match them with a model; reads names and shapes only.

    Args:
        path: File or folder (`weight_files.locate`).
        config: Of our model.
        section: `generator`, `generator_ema`, ... where a file holds several.

    Raises:
        CheckpointError: Unreadable, or it is no transformer.
    """
    weights = open_weights(locate(path))
    names = bare_names(weights.tensors, section)
    family = family_of(names.clean.values())
    if family in ("wan-vae", "diffusers-vae", "native autoencoder"):
        raise CheckpointError(f"{weights.path} is a {FAMILIES[family]}, no transformer: give it as --vae")
    return Import(weights, names, family, match_names(names.clean, weights.tensors, parameter_shapes(config)))


def require_complete(plan: Import, allow_partial: bool) -> None:
    """Refuse a partial match.

    Raises:
        CheckpointError: Something is missing, left over or of another shape and `allow_partial` is off, or nothing
            fits at all.
    """
    match = plan.match
    if not match.pairs:
        raise CheckpointError(f"{plan.weights.path}: no tensor fits this model ({match.summary}); is the preset right?")
    if match.complete or allow_partial:
        return
    examples = [f"missing {name}" for name in list(match.missing)[:3]]
    examples += [f"unexpected {name}" for name in list(match.unexpected)[:3]]
    examples += [f"{m[0]} has shape {m[1]} and {m[2]} {m[3]}" for m in match.misfits[:3]]
    raise CheckpointError(
        f"{plan.weights.path} fits only in part: {match.summary} ({'; '.join(examples)}). `decmem checkpoint inspect` "
        "shows the table; --allow-partial leaves missing parameters at their initial values and unexpected tensors out"
    )


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of our transformer, without allocating any."""
    with torch.device("meta"):
        module = WorldTransformer(config)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def reader(plan: Import, config: ModelConfig) -> Callable[[str], Tensor]:
    """A function that gives each parameter by our name, read when it is asked for.

    Missing parameters take the values that training starts from, drawn with seed 0.
    """
    pairs = {pair.target: pair for pair in plan.match.pairs}
    initial: dict[str, Tensor] = {}
    if len(pairs) < len(parameter_shapes(config)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            state = WorldTransformer(config).state_dict()
        initial = {name: tensor for name, tensor in state.items() if name not in pairs}

    def read(name: str) -> Tensor:
        return assemble(pairs[name], plan.weights.read) if name in pairs else initial[name]

    return read


def load_transformer(
    path: str | Path,
    config: ModelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    section: str | None = None,
    allow_partial: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[WorldTransformer, Import]:
    """Load foreign or own weights straight onto a device; at most one tensor is held beside the module.

    Args:
        path: File or folder.
        config: Of our model.
        device: Where the module lives.
        dtype: Of its parameters.
        section: Where a file holds several.
        allow_partial: Leave missing parameters at their initial values.
        progress: Called with the elements filled since the last call.

    Returns:
        The module in evaluation mode without gradients, and what filled it.

    Raises:
        CheckpointError: Unreadable, a partial match, NaN or infinity in a tensor.
    """
    plan = plan_import(path, config, section)
    require_complete(plan, allow_partial)
    with torch.device("meta"):
        module = WorldTransformer(config)
    read = reader(plan, config)
    for name, parameter in list(module.named_parameters()):
        # To the device first: there the conversion is fast. `read` gives fresh memory, so no copy is needed.
        filled = read(name).to(device).to(dtype).contiguous()
        if not torch.isfinite(filled).all():
            raise CheckpointError(f"{plan.weights.path}: {name} holds NaN or infinity as {dtype}; download it again")
        owner = module.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], nn.Parameter(filled, requires_grad=False))
        if progress is not None:
            progress(parameter.numel())
    return module.to(device).eval(), plan
