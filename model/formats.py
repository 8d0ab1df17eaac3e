"""Names in other people's weight files, and what they are called here.

A name passes three steps: wrappers and sections are taken off (`generator_ema._fsdp_wrapped_module.model.blocks.0...`),
diffusers' names become Wan's original ones, and those become ours (`wan_to_native`).
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

_DIFFUSERS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
        (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
        (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
        (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
        (r"^condition_embedder\.time_proj\.", "time_projection.1."),
        (r"^proj_out\.", "head.head."),
        (r"^scale_shift_table$", "head.modulation"),
        (r"^(blocks\.\d+)\.scale_shift_table$", r"\1.modulation"),
        (r"^(blocks\.\d+)\.attn1\.to_out\.0\.", r"\1.self_attn.o."),
        (r"^(blocks\.\d+)\.attn1\.to_([qkv])\.", r"\1.self_attn.\2."),
        (r"^(blocks\.\d+)\.attn1\.", r"\1.self_attn."),
        (r"^(blocks\.\d+)\.attn2\.to_out\.0\.", r"\1.cross_attn.o."),
        (r"^(blocks\.\d+)\.attn2\.to_([qkv])\.", r"\1.cross_attn.\2."),
        (r"^(blocks\.\d+)\.attn2\.", r"\1.cross_attn."),
        (r"^(blocks\.\d+)\.ffn\.net\.0\.proj\.", r"\1.ffn.0."),
        (r"^(blocks\.\d+)\.ffn\.net\.2\.", r"\1.ffn.2."),
        # diffusers swaps the two norms: its norm2 is the one with weights, before cross-attention.
        (r"^(blocks\.\d+)\.norm2\.", r"\1.norm3."),
    )
)

_WAN = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^patch_embedding\.", "patch."),
        (r"^time_embedding\.", "time."),
        (r"^time_projection\.1\.", "time_projection.1."),
        (r"^(blocks\.\d+)\.modulation$", r"\1.modulation"),
        (r"^(blocks\.\d+)\.self_attn\.([qkv])\.", r"\1.attention.\2."),
        (r"^(blocks\.\d+)\.self_attn\.o\.", r"\1.attention.out."),
        (r"^(blocks\.\d+)\.self_attn\.norm_([qk])\.", r"\1.attention.norm_\2."),
        (r"^(blocks\.\d+)\.ffn\.", r"\1.ffn."),
        (r"^head\.modulation$", "head_modulation"),
        (r"^head\.head\.", "head."),
    )
)
# Parts of Wan that a text-free world model does not have.
_TEXT = re.compile(r"^(text_embedding\.|blocks\.\d+\.(cross_attn|norm3)\.)")

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


def diffusers_to_wan(name: str) -> str:
    """Wan's original name of a diffusers name; others come back as they are."""
    return _rename(name, _DIFFUSERS) or name


def wan_to_native(name: str) -> str | None:
    """Our name of one of Wan's original names; None where we have no such part, or the name is not Wan's.

    `q`, `k` and `v` keep names of their own (`attention.q.weight`); `matching` joins them where a model fuses them.
    """
    return _rename(name, _WAN)


def is_text_part(name: str) -> bool:
    """Whether a Wan name belongs to text conditioning, which a text-free model leaves out."""
    return _TEXT.match(name) is not None


def _rename(name: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
    for pattern, replacement in table:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    return None
