"""The tiny autoencoder: 96x160x3 frames <-> 32x6x10 latents, light enough for two CPU cores.

Plain convolutional residual blocks without normalisation layers: statistics over a frame would couple its pixels to
each other and drift between one frame and a batch. Most of the arithmetic happens at low resolution; pixels leave and
enter by pixel shuffles. The latent alone is normalised, per channel and without learned scale, so that the dynamics
model always sees unit variance.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import video_stream
from .video_stream import VideoStream

SCALE = 16  # pixels of one latent cell, in each direction


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of `TinyAutoencoder`; widths and depths run from the finest (1/2) to the coarsest scale (1/16).

    Attributes:
        latent_channels: Channels of a latent cell.
        height: Frame height in pixels, a multiple of 16.
        width: Frame width in pixels, a multiple of 16.
        encoder_widths: Channels of the encoder at 1/2, 1/4, 1/8, 1/16.
        encoder_depths: Residual blocks there.
        decoder_widths: Channels of the decoder at the same scales.
        decoder_depths: Residual blocks there.
        latent_noise: Largest standard deviation of the noise added to latents in training (latents have unit variance);
            each frame draws its own level uniformly. It makes the decoder forgive the dynamics model's small errors.
    """

    latent_channels: int = 32
    height: int = 96
    width: int = 160
    encoder_widths: tuple[int, ...] = (32, 96, 192, 256)
    encoder_depths: tuple[int, ...] = (0, 1, 1, 1)
    decoder_widths: tuple[int, ...] = (24, 96, 192, 256)
    decoder_depths: tuple[int, ...] = (1, 2, 2, 1)
    latent_noise: float = 0.15

    def __post_init__(self) -> None:
        for name in ("encoder_widths", "encoder_depths", "decoder_widths", "decoder_depths"):
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))
            if len(getattr(self, name)) != 4:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries: give 4, for 1/2, 1/4, 1/8 and 1/16")
        if self.height % SCALE or self.width % SCALE or min(self.height, self.width) < SCALE:
            raise ValueError(f"frames of {self.height}x{self.width}: both sides must be multiples of {SCALE}")

    @staticmethod
    def tiny() -> AutoencoderConfig:
        """The bundled size: 2.4 M encoder, 3.2 M decoder parameters."""
        return AutoencoderConfig()

    @staticmethod
    def debug(height: int = 96, width: int = 160, latent_channels: int = 8) -> AutoencoderConfig:
        """A few thousand parameters at the bundled frame size, for tests."""
        widths = (8, 8, 16, 16)
        return AutoencoderConfig(latent_channels, height, width, widths, (0, 1, 1, 1), widths, (1, 1, 1, 1))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one frame's latent."""
        return self.latent_channels, self.height // SCALE, self.width // SCALE

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AutoencoderConfig:
        """Build from a mapping.

        Raises:
            ValueError: A key is unknown.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown autoencoder settings {unknown}: known are {[f.name for f in fields(cls)]}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> AutoencoderConfig:
        """Inverse of `to_json`."""
        return cls.from_dict(json.loads(text))


def _conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))); the second convolution starts at zero, so a new block is the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, width)
        self.conv2 = _conv(width, width)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Encoder(nn.Module):
    """Pixels [N, 3, H, W] -> latents before normalisation [N, C, H/16, W/16]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, depths = config.encoder_widths, config.encoder_depths
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), _conv(12, widths[0])]
        for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if level:
                layers += [nn.PixelUnshuffle(2), _conv(4 * widths[level - 1], width, 1)]
            layers += [ResidualBlock(width) for _ in range(depth)]
        layers += [nn.SiLU(), _conv(widths[-1], config.latent_channels)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Run all layers."""
        return self.layers(x)


class Decoder(nn.Module):
    """Latents [N, C, h, w] -> pixels [N, 3, 16 h, 16 w] (about -1..1, not clamped)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, depths = config.decoder_widths, config.decoder_depths
        layers: list[nn.Module] = [_conv(config.latent_channels, widths[-1])]
        for level in range(3, -1, -1):
            layers += [ResidualBlock(widths[level]) for _ in range(depths[level])]
            if level:
                layers += [_conv(widths[level], 4 * widths[level - 1], 1), nn.PixelShuffle(2)]
        layers += [nn.SiLU(), _conv(widths[0], 12), nn.PixelShuffle(2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Run all layers."""
        return self.layers(z)


class LatentNorm(nn.Module):
    """Batch norm without affine part: batch statistics in training, running ones (frozen) in evaluation.

    Keep the two buffers in fp32.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, momentum: float = 0.02) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, z: Tensor) -> Tensor:
        """[N, C, h, w] -> unit variance per channel, fp32 in training."""
        if self.training:
            z = z.float()
            variance, mean = torch.var_mean(z, (0, 2, 3), correction=0)
            with torch.no_grad():
                self.mean.lerp_(mean.detach(), self.momentum)
                self.variance.lerp_(variance.detach(), self.momentum)
        else:
            mean, variance = self.mean.float(), self.variance.float()
        normed = (z.float() - mean[:, None, None]) * torch.rsqrt(variance + 1e-6)[:, None, None]
        return normed if self.training else normed.to(z.dtype)


class TinyAutoencoder(nn.Module):
    """Encoder, normalised latent, decoder.

    Args:
        config: An `AutoencoderConfig`, or a model config that carries one as its field `autoencoder`.
    """

    frames_per_latent = 1
    latents_per_pass = 32
    reach = 0

    def __init__(self, config: AutoencoderConfig | Any) -> None:
        super().__init__()
        self.config: AutoencoderConfig = getattr(config, "autoencoder", config)
        self.encoder = Encoder(self.config)
        self.latent_norm = LatentNorm(self.config.latent_channels)
        self.decoder = Decoder(self.config)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode_float(self, pixels: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] in [-1, 1] -> latents [N, C, h, w]; differentiable."""
        return self.latent_norm(self.encoder(pixels.contiguous(memory_format=torch.channels_last)))

    def decode_float(self, latents: Tensor) -> Tensor:
        """Latents [N, C, h, w] -> pixels [N, 3, H, W] around [-1, 1]; differentiable, not clamped."""
        return self.decoder(latents.contiguous(memory_format=torch.channels_last))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """One training pass.

        Args:
            pixels: [N, 3, H, W] in [-1, 1].

        Returns:
            (reconstruction [N, 3, H, W], latents [N, C, h, w] before the training noise).
        """
        latents = self.encode_float(pixels)
        noisy = latents
        if self.training and self.config.latent_noise > 0:
            level = self.config.latent_noise * torch.rand(len(latents), 1, 1, 1, device=latents.device)
            noisy = latents + level * torch.randn_like(latents)
        return self.decode_float(noisy), latents

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.decoder.layers[0].weight.dtype  # type: ignore[union-attr,return-value]

    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames without gradient.

        Args:
            frames: uint8 [N, H, W, 3] on the model's device.

        Returns:
            Latents [N, C, h, w], unit variance per channel, in the type of the weights.

        Raises:
            ValueError: Wrong type or shape.
        """
        size = (self.config.height, self.config.width, 3)
        if frames.dtype != torch.uint8 or frames.ndim != 4 or tuple(frames.shape[1:]) != size:
            raise ValueError(
                f"frames are {frames.dtype} {tuple(frames.shape)}: expected uint8 [N, {size[0]}, {size[1]}, 3]"
            )
        with torch.no_grad():
            return self.encode_float(to_pixels(frames, self.dtype))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents without gradient.

        Args:
            latents: [N, C, h, w] on the model's device, any float type.

        Returns:
            uint8 [N, H, W, 3].

        Raises:
            ValueError: Wrong shape.
        """
        if latents.ndim != 4 or tuple(latents.shape[1:]) != self.config.latent_shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}: expected [N, {self.config.latent_shape}]")
        with torch.no_grad():
            return to_frames(self.decode_float(latents.to(self.dtype)))

    def stream(self, decoder: video_stream.Decoder | None = None) -> VideoStream:
        """Begin a video; frames do not depend on each other here.

        Args:
            decoder: Takes the place of this autoencoder's own.
        """
        return VideoStream(self, decoder or self)

    def encode_part(self, frames: Tensor, old: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """`encode` in the form that a `VideoStream` asks for."""
        return self.encode(frames), []

    def decode_part(self, latents: Tensor, old: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """`decode` in the form that a `VideoStream` asks for."""
        return self.decode(latents), []


def to_pixels(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [N, H, W, 3] -> [N, 3, H, W] in [-1, 1], channels last in memory (no copy beyond the conversion)."""
    return frames.permute(0, 3, 1, 2).to(dtype).mul_(1.0 / 127.5).sub_(1.0)


def to_frames(pixels: Tensor) -> Tensor:
    """[N, 3, H, W] around [-1, 1] -> uint8 [N, H, W, 3], rounded and clamped."""
    return pixels.float().add(1.0).mul(127.5).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
