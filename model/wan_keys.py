"""Names of Wan2.1's parameters, in its own files and in diffusers', and what they are called here.

| Wan                            | diffusers                                 | here                             |
|--------------------------------|-------------------------------------------|----------------------------------|
| patch_embedding                | patch_embedding                           | patch                            |
| time_embedding.0 / 2           | condition_embedder.time_embedder.linear_* | time.0 / 2                       |
| time_projection.1              | condition_embedder.time_proj              | time_projection.1                |
| text_embedding.0 / 2           | condition_embedder.text_embedder.linear_* | text.0 / 2                       |
| blocks.i.modulation            | blocks.i.scale_shift_table                | blocks.i.modulation              |
| blocks.i.self_attn.q, k, v     | blocks.i.attn1.to_q, to_k, to_v           | blocks.i.attention.q, k, v (*)   |
| blocks.i.self_attn.o           | blocks.i.attn1.to_out.0                   | blocks.i.attention.out           |
| blocks.i.self_attn.norm_q, _k  | blocks.i.attn1.norm_q, norm_k             | blocks.i.attention.norm_q, _k    |
| blocks.i.norm3                 | blocks.i.norm2                            | blocks.i.cross_norm              |
| blocks.i.cross_attn.*          | blocks.i.attn2.*                          | blocks.i.cross_attention.*       |
| blocks.i.ffn.0 / 2             | blocks.i.ffn.net.0.proj / net.2           | blocks.i.ffn.0 / 2               |
| head.head, head.modulation     | proj_out, scale_shift_table               | head, head_modulation            |

(*) Self-attention's q, k and v are one matrix here: join the three along the first axis, in this order, into
`blocks.i.attention.qkv`. Shapes differ by axes of length one, and by the patch convolution [W, C, 1, 2, 2], which is
the linear layer [W, C * 4] here; the element order is the same. `text`, `cross_norm` and `cross_attention` are there
only in models that keep the text context (`ModelConfig.text_tokens`).
"""

from __future__ import annotations

import re

_TABLE = tuple(
    (re.compile(f"^{pattern}$"), name)
    for pattern, name in (
        (r"patch_embedding\.(weight|bias)", r"patch.\1"),
        (r"time_embedding\.([02])\.(weight|bias)", r"time.\1.\2"),
        (r"condition_embedder\.time_embedder\.linear_1\.(weight|bias)", r"time.0.\1"),
        (r"condition_embedder\.time_embedder\.linear_2\.(weight|bias)", r"time.2.\1"),
        (r"(?:time_projection\.1|condition_embedder\.time_proj)\.(weight|bias)", r"time_projection.1.\1"),
        (r"text_embedding\.([02])\.(weight|bias)", r"text.\1.\2"),
        (r"condition_embedder\.text_embedder\.linear_1\.(weight|bias)", r"text.0.\1"),
        (r"condition_embedder\.text_embedder\.linear_2\.(weight|bias)", r"text.2.\1"),
        (r"(blocks\.\d+)\.(?:modulation|scale_shift_table)", r"\1.modulation"),
        (r"(blocks\.\d+)\.(?:self_attn\.|attn1\.to_)([qkv])\.(weight|bias)", r"\1.attention.\2.\3"),
        (r"(blocks\.\d+)\.(?:self_attn\.o|attn1\.to_out\.0)\.(weight|bias)", r"\1.attention.out.\2"),
        (r"(blocks\.\d+)\.(?:self_attn|attn1)\.norm_([qk])\.weight", r"\1.attention.norm_\2.weight"),
        # The affine norm before cross-attention: Wan counts it third, diffusers second. The others hold no weights.
        (r"(blocks\.\d+)\.(?:norm3|norm2)\.(weight|bias)", r"\1.cross_norm.\2"),
        (r"(blocks\.\d+)\.(?:cross_attn\.|attn2\.to_)([qkv])\.(weight|bias)", r"\1.cross_attention.\2.\3"),
        (r"(blocks\.\d+)\.(?:cross_attn\.o|attn2\.to_out\.0)\.(weight|bias)", r"\1.cross_attention.out.\2"),
        (r"(blocks\.\d+)\.(?:cross_attn|attn2)\.norm_([qk])\.weight", r"\1.cross_attention.norm_\2.weight"),
        (r"(blocks\.\d+)\.ffn\.([02])\.(weight|bias)", r"\1.ffn.\2.\3"),
        (r"(blocks\.\d+)\.ffn\.net\.0\.proj\.(weight|bias)", r"\1.ffn.0.\2"),
        (r"(blocks\.\d+)\.ffn\.net\.2\.(weight|bias)", r"\1.ffn.2.\2"),
        (r"(?:head\.head|proj_out)\.(weight|bias)", r"head.\1"),
        (r"head\.modulation|scale_shift_table", "head_modulation"),
    )
)
_TEXT = re.compile(r"^(?:text\.|blocks\.\d+\.cross_(?:norm|attention)\.)")


def to_native(name: str) -> str | None:
    """Our name of one of Wan's parameters, by its original or its diffusers name; None if it is neither.

    Wrappers and prefixes of training code (`model.`, `_fsdp_wrapped_module.`) must be off already.

    >>> to_native("blocks.3.self_attn.o.weight"), to_native("blocks.3.attn1.to_out.0.weight")
    ('blocks.3.attention.out.weight', 'blocks.3.attention.out.weight')
    """
    for pattern, replacement in _TABLE:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    return None


def is_text(native: str) -> bool:
    """Whether one of our names belongs to the text context, which a text-free model does not have."""
    return _TEXT.match(native) is not None
