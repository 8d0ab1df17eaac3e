"""The truth of a batch of scripts: frames and depth from the voxel renderer, and what the autoencoder makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..rollout import decoded_truth
from .matches import Matches
from .parts import Columns
from .scripts import Script

_RENDER_CHUNK = 2048  # frames rendered, encoded or decoded at a time on a GPU
_RENDER_CHUNK_CPU = 64
_SHOWN = 10  # frames of a strip


class Truth:
    """Rendered truth of n scripts of equal length.

    Attributes:
        rgb: uint8 [n, T, H, W, 3].
        depth: float32 [n, T, H, W], blocks along the ray, infinite for sky.
        context: Number of context frames.
    """

    def __init__(self, scripts: Sequence[Script], blocks: Mapping[int, torch.Tensor], renderer: Any) -> None:
        """Render.

        Args:
            scripts: Equal context and length.
            blocks: uint8 [X, Z, Y] of every world seed named by the scripts.
            renderer: A `worlds.Renderer`.
        """
        seeds = sorted({script.world for script in scripts})
        device = torch.device(renderer.device)
        stacked = torch.stack([blocks[seed] for seed in seeds]).to(device)
        poses = np.stack([script.poses for script in scripts])
        count, length = poses.shape[:2]
        world = np.repeat([seeds.index(script.world) for script in scripts], length).astype(np.int64)
        flat = poses.reshape(-1, 5)
        rgb, depth = [], []
        chunk = _RENDER_CHUNK if device.type == "cuda" else _RENDER_CHUNK_CPU
        for start in range(0, len(flat), chunk):
            part = slice(start, start + chunk)
            made = renderer.render(stacked, world[part], flat[part], depth=True)
            rgb.append(made.rgb)
            depth.append(made.depth)
        self.rgb = torch.cat(rgb).unflatten(0, (count, length))
        self.depth = torch.cat(depth).unflatten(0, (count, length))
        self.context = scripts[0].context

    def decoded(self, model: Any) -> torch.Tensor:
        """The generated part as the model's autoencoder shows it, uint8 [n, T - context, H, W, 3]."""
        target = self.rgb[:, self.context :]
        chunk = 256 if self.rgb.is_cuda else 32
        return torch.stack([decoded_truth(model, clip, chunk) for clip in target])

    def copied(self, matches: Sequence[Matches]) -> torch.Tensor:
        """The context frame with the nearest pose for every generated frame, uint8 [n, T - context, H, W, 3]."""
        index = torch.as_tensor(np.stack([m.nearest[self.context :] for m in matches]), device=self.rgb.device).long()
        rows = torch.arange(len(index), device=self.rgb.device)[:, None]
        return self.rgb[rows, index]


def strips(indices: Sequence[int], truth: torch.Tensor, dream: torch.Tensor) -> dict[int, Columns]:
    """Ten frames of each of n clips uint8 [n, T, H, W, 3], evenly spread: `frames`, `truth` and `dream` by script."""
    at = np.linspace(0, dream.shape[1] - 1, _SHOWN).round().astype(np.int32)
    shown = [clips[:, torch.from_numpy(at).to(clips.device)].cpu().numpy() for clips in (truth, dream)]
    return {
        index: {"frames": at, "truth": true, "dream": made} for index, true, made in zip(indices, *shown, strict=True)
    }
