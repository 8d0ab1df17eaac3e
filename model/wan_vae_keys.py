"""Names of the Wan VAE's parameters in `Wan2.1_VAE.pth` and what they are called here (and in diffusers).

| Wan                                   | here                                            |
|---------------------------------------|-------------------------------------------------|
| conv1, conv2                          | quant_conv, post_quant_conv                     |
| encoder / decoder.conv1               | encoder / decoder.conv_in                       |
| *.head.0, *.head.2                    | *.norm_out, *.conv_out                          |
| *.middle.0, 1, 2                      | *.mid_block.resnets.0, attentions.0, resnets.1  |
| encoder.downsamples.n                 | encoder.down_blocks.n                           |
| decoder.upsamples.(4b + r), r < 3     | decoder.up_blocks.b.resnets.r                   |
| decoder.upsamples.(4b + 3)            | decoder.up_blocks.b.upsamplers.0                |
| *.residual.0, 2, 3, 6                 | *.norm1, conv1, norm2, conv2                    |
| *.shortcut                            | *.conv_shortcut                                 |
"""

from __future__ import annotations

import re

_INSIDE = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}
_MIDDLE = ("resnets.0", "attentions.0", "resnets.1")
_TOP = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
_ENDS = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
_PART = re.compile(r"^(encoder|decoder)\.(.+)\.(weight|bias|gamma)$")


def to_native(name: str) -> str | None:
    """Our name of one of the VAE's parameters, by its original or its diffusers name; None if it is neither.

    >>> to_native("decoder.upsamples.7.time_conv.weight"), to_native("encoder.middle.2.residual.6.bias")
    ('decoder.up_blocks.1.upsamplers.0.time_conv.weight', 'encoder.mid_block.resnets.1.conv2.bias')
    """
    top, _, kind = name.partition(".")
    if top in (*_TOP, *_TOP.values()) and kind in ("weight", "bias"):
        return f"{_TOP.get(top, top)}.{kind}"
    found = _PART.match(name)
    if found is None:
        return None
    side, path, kind = found.groups()
    path = _ENDS.get(path, path)
    for old, new in _INSIDE.items():
        path = path.replace(f".{old}", f".{new}")
    path = path.replace(".shortcut", ".conv_shortcut")
    path = re.sub(r"^middle\.([012])", lambda m: f"mid_block.{_MIDDLE[int(m[1])]}", path)
    path = re.sub(r"^downsamples\.", "down_blocks.", path)
    path = re.sub(r"^upsamples\.(\d+)", lambda m: f"up_blocks.{int(m[1]) // 4}.{_up(int(m[1]) % 4)}", path)
    known = path.startswith(("mid_block.", "down_blocks.", "up_blocks.")) or path in _ENDS.values()
    return f"{side}.{path}.{kind}" if known else None


def _up(place: int) -> str:
    return "upsamplers.0" if place == 3 else f"resnets.{place}"
