"""TAEHV's decoder for Wan2.1's latents (`taew2_1`): 25 times fewer operations than Wan's own, at some loss of detail.

Architecture after github.com/madebyollin/taehv: convolutions on single frames, and blocks that also see the frame
before. Parameters are called as there. It takes normalised latents as they are. There is no encoder here: the one of
TAEHV pads at the end of a video, which does not fit Wan's single first frame.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .wan_files import fill
from .wan_layers import Caches

WIDTHS = (256, 128, 64, 64)  # at 1/8, 1/4, 1/2 and 1/1 of the pixels
CHANNELS = 16
GROWTH = (1, 2, 2)  # frames that each change of scale makes of one
TRIM = 3  # a video's first latent is one frame: three of the four made of it are from before the video


def _conv(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class MemoryBlock(nn.Module):
    """Residual block on a frame and the frame before it; zeros stand before a video's first frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        """[T, C, H, W] -> the same shape."""
        past = caches.past()
        caches.new.append(x[-1:].clone())
        before = torch.cat([torch.zeros_like(x[:1]) if past is None else past, x[:-1]])
        return F.relu(self.conv(torch.cat([x, before], 1)) + x)


class Grow(nn.Module):
    """Makes `stride` frames of each, and four pixels of each.

    TAEHV enlarges first; a 1x1 convolution gives the same on the small frame.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[T, C, H, W] -> [T * stride, C, 2H, 2W]."""
        width = x.shape[1]
        frames = torch.stack(self.conv(x).split(width, 1), 1).flatten(0, 1)
        return F.interpolate(frames, scale_factor=2.0, mode="nearest")


class SoftClamp(nn.Module):
    """Keeps latents within -3..3."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return torch.tanh(x / 3) * 3


class TinyVideoDecoder(nn.Module):
    """Decoder of a `VideoStream`: `autoencoder.stream(decoder)`.

    Attributes:
        latents_per_pass: Latent frames in one pass.
        reach: Latent frames before its own that a frame depends on: six blocks at the latents' rate, three at twice.
    """

    latents_per_pass = 4
    reach = 8

    def __init__(self) -> None:
        super().__init__()
        # The places of parameterless layers count in the names: 6, 12 and 18 enlarge there.
        layers: list[nn.Module] = [SoftClamp(), _conv(CHANNELS, WIDTHS[0]), nn.ReLU()]
        for width, after, stride in zip(WIDTHS[:-1], WIDTHS[1:], GROWTH, strict=True):
            layers += [MemoryBlock(width) for _ in range(3)]
            layers += [nn.Identity(), Grow(width, stride), _conv(width, after, bias=False)]
        layers += [nn.ReLU(), _conv(WIDTHS[-1], 3)]
        self.decoder = nn.Sequential(*layers)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype

    def decode_chunk(self, latents: Tensor, old: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Latents [n, C, h, w] -> (pixels [4n, 3, H, W] around [0, 1], not clamped and not trimmed; caches)."""
        caches = Caches(old)
        x = latents
        for layer in self.decoder:
            x = layer(x, caches) if isinstance(layer, MemoryBlock) else layer(x)
        return x, caches.new

    @torch.no_grad()
    def decode_part(self, latents: Tensor, old: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """One pass.

        Args:
            latents: Normalised [n, C, h, w].
            old: Caches that the pass before left, or None at the beginning of a video.

        Returns:
            (uint8 [T, H, W, 3] with T = 4n, 4n - 3 at the beginning; caches).

        Raises:
            ValueError: Wrong shape.
        """
        if latents.ndim != 4 or latents.shape[1] != CHANNELS:
            raise ValueError(f"latents have shape {tuple(latents.shape)}: expected [n, {CHANNELS}, h, w]")
        laid_out = latents.to(self.dtype).contiguous(memory_format=torch.channels_last)
        pixels, new = self.decode_chunk(laid_out, old)
        if old is None:
            pixels = pixels[TRIM:]
        frames = pixels.float().mul(255.0).round_().clamp_(0, 255).to(torch.uint8)
        return frames.permute(0, 2, 3, 1).contiguous(), new


def load_tiny_decoder(
    path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> TinyVideoDecoder:
    """Load `taew2_1.pth` (or its safetensors).

    Args:
        path: Weight file.
        device: Where it lives.
        dtype: Of its weights.

    Raises:
        CheckpointError: Unreadable, or no such decoder: a tensor is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        module = TinyVideoDecoder()
    fill(module, Path(path), lambda name: name, dtype, ignore="encoder.", last_rows=True)
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
