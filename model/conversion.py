"""Writing a checkpoint folder of ours from weights of other projects, one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from .autoencoder import TinyAutoencoder
from .checkpoint import AUTOENCODER, CONFIG, TRANSFORMER, replacing
from .config import ModelConfig
from .formats import bare_names
from .importing import Import, parameter_shapes, reader, require_complete
from .matching import assemble, match_names
from .weight_files import VAE_FILES, CheckpointError, Weights, locate, open_weights
from .weight_writer import write_safetensors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def convert(
    plan: Import,
    out: Path,
    config: ModelConfig,
    *,
    vae: Path | None = None,
    dtype: str = "keep",
    allow_partial: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `config.json`, `transformer.safetensors` and `autoencoder.safetensors`; all of them or nothing.

    Args:
        plan: The transformer (`importing.plan_import`).
        out: Folder; an older checkpoint there is replaced.
        config: Sizes.
        vae: File or folder of the autoencoder; by default where the transformer lies, or one folder above.
        dtype: `keep` (as stored), `fp32`, `bf16` or `fp16`, of the transformer; the autoencoder keeps its own.
        allow_partial: Accept missing and unexpected tensors of the transformer.
        progress: Called with the bytes written since the last call.

    Raises:
        CheckpointError: A partial match, no autoencoder, or damaged weights.
        FileExistsError: `out` is something else than a checkpoint.
    """
    require_complete(plan, allow_partial)
    beside = _open_vae([vae] if vae else [plan.weights.path.parent, plan.weights.path.parent.parent])
    stored = {pair.target: plan.weights.tensors[pair.sources[0]].dtype for pair in plan.match.pairs}
    layout = {
        name: (shape, DTYPES.get(dtype) or stored.get(name, torch.float32))
        for name, shape in parameter_shapes(config).items()
    }
    origin = {"source": plan.weights.path.name, "section": ".".join(plan.names.section), "match": plan.match.summary}
    with replacing(out) as fresh:
        (fresh / CONFIG).write_text(config.to_json())
        write_safetensors(fresh / TRANSFORMER, layout, reader(plan, config), origin, progress)
        with torch.device("meta"):
            shapes = {n: tuple(t.shape) for n, t in TinyAutoencoder(config.autoencoder).state_dict().items()}
        match = match_names(bare_names(beside.tensors).clean, beside.tensors, shapes)
        if not match.complete:
            raise CheckpointError(f"{beside.path} does not fit the autoencoder of this preset: {match.summary}")
        pairs = {pair.target: pair for pair in match.pairs}
        write_safetensors(
            fresh / AUTOENCODER,
            {name: (shape, beside.tensors[pairs[name].sources[0]].dtype) for name, shape in shapes.items()},
            lambda name: assemble(pairs[name], beside.read),
            {"config": json.dumps(config.to_dict()["autoencoder"])},
        )


def _open_vae(places: list[Path]) -> Weights:
    failures = []
    for place in places:
        try:
            return open_weights(locate(place, VAE_FILES))
        except CheckpointError as error:
            failures.append(str(error))
    raise CheckpointError(f"{failures[0]}; give the autoencoder as --vae FILE or FOLDER")
