"""Names in other people's weight files: sections, wrappers, and whose names they are.

Wrappers and sections (`generator_ema._fsdp_wrapped_module.model.blocks.0...`) are taken off here; `wan_keys` turns the
bare names of Wan and of diffusers into ours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .weight_files import CheckpointError

WRAPPERS = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"})
# In order of preference where a file holds several: averaged weights first.
SECTIONS = (
    "generator_ema",
    "ema",
    "ema_model",
    "generator",
    "student",
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "transformer",
    "diffusion_model",
    "net",
)
# What stands beside a generator in training states and never belongs to it.
_STRANGERS = (
    "critic",
    "fake_score",
    "real_score",
    "discriminator",
    "optimizer",
    "generator_optimizer",
    "critic_optimizer",
    "scheduler",
    "lr_scheduler",
    "rng",
    "text_encoder",
    "vae",
)

_SIGNATURES = (
    ("native", re.compile(r"^blocks\.\d+\.attention\.qkv\.")),
    ("wan", re.compile(r"^blocks\.\d+\.self_attn\.q\.")),
    ("diffusers", re.compile(r"^blocks\.\d+\.attn1\.to_q\.")),
    ("wan-vae", re.compile(r"^decoder\.upsamples\.\d+\.")),
    ("diffusers-vae", re.compile(r"^decoder\.up_blocks\.\d+\.")),
    ("native autoencoder", re.compile(r"^latent_norm\.mean$")),
)
FAMILIES = {
    "native": "decmem-env transformer",
    "wan": "Wan transformer, original names",
    "diffusers": "Wan transformer, diffusers names",
    "wan-vae": "Wan VAE, original names",
    "diffusers-vae": "Wan VAE, diffusers names",
    "native autoencoder": "decmem-env autoencoder",
    "unknown": "unknown names",
}


@dataclass(frozen=True)
class Names:
    """Names of a file without wrappers and sections.

    Attributes:
        clean: Bare name by the name in the file, of the chosen section only.
        section: Sections that were entered, outermost first.
        left: Tensors of each section that was not entered.
    """

    clean: dict[str, str]
    section: tuple[str, ...]
    left: dict[str, int]


def bare_names(names: Iterable[str], section: str | None = None) -> Names:
    """Take wrappers and sections off.

    Modules that stand beside the section of the model (for example an action encoder next to `model.`) stay; optimizer
    states, critics and the sections not chosen go.

    Args:
        names: As in the file.
        section: Enter this one where several are there; by default the first of `SECTIONS`.

    Raises:
        CheckpointError: No such section; those of the file are listed.
    """
    clean = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names}
    entered: list[str] = []
    seen: set[str] = set()
    left: Counter[str] = Counter()
    while True:
        roots = {name.partition(".")[0] for name in clean.values()}
        known = [name for name in SECTIONS if name in roots]
        seen.update(known)
        if not known or not any(name.startswith(f"{root}.") for root in known for name in clean.values()):
            break
        chosen = section if section in known else known[0]
        kept = {}
        for name, bare in clean.items():
            root, _, rest = bare.partition(".")
            if root == chosen and rest:
                kept[name] = rest
            elif root in known or root in _STRANGERS:
                left[root] += 1
            else:
                kept[name] = bare
        clean = kept
        entered.append(chosen)
    if section is not None and section not in entered:
        there = ", ".join(sorted(seen)) or "none"
        raise CheckpointError(f"no section {section!r} in this file: it has {there}")
    return Names(clean, tuple(entered), dict(left))


def family_of(names: Iterable[str]) -> str:
    """Whose names these bare names are: a key of `FAMILIES`."""
    found = list(names)
    for family, pattern in _SIGNATURES:
        if any(pattern.match(name) for name in found):
            return family
    return "unknown"
