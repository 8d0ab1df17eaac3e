"""Wan2.1's video autoencoder as the engine uses it: uint8 frames <-> normalised latents."""

from __future__ import annotations

import torch
from torch import Tensor

from .autoencoder import to_frames, to_pixels
from .video_stream import Decoder, VideoStream
from .wan_size import WanAutoencoderConfig
from .wan_vae import STRIDE, WanVAE

# Of Wan2.1's latents, in the order of their channels (`latents_mean`, `latents_std` of diffusers' config).
MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
DEVIATION = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
LATENTS_PER_PASS = {"cpu": 1, "cuda": 4}  # one a pass makes results on the CPU independent of how a video is cut


class WanAutoencoder(WanVAE):
    """The autoencoder of the `wan` presets.

    Latents are the encoder's means, brought to zero mean and unit variance. Several latents a pass equal one at a time
    up to rounding.

    Args:
        config: Frame size, latent channels and width.
    """

    mean: Tensor
    deviation: Tensor
    frames_per_latent = STRIDE
    reach = 38  # 24 latents in the layers at the latents' rate, 7 at twice, 6.5 at four times that rate

    def __init__(self, config: WanAutoencoderConfig) -> None:
        if config.latent_channels != len(MEAN):
            raise ValueError(f"latent_channels is {config.latent_channels}: Wan2.1's autoencoder has {len(MEAN)}")
        super().__init__(config.base_width, config.latent_channels)
        self.config = config
        self.reset_statistics()

    def reset_statistics(self) -> None:
        """Set the constants of the normalisation; needed after moving from `meta`."""
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def use_bf16(self) -> None:
        """Weights in bf16; the constants of the normalisation stay in fp32."""
        for weight in self.parameters():
            weight.data = weight.data.to(torch.bfloat16)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.quant_conv.weight.dtype

    @property
    def latents_per_pass(self) -> int:
        """Latent frames in one pass."""
        return LATENTS_PER_PASS.get(self.quant_conv.weight.device.type, 1)

    def stream(self, decoder: Decoder | None = None) -> VideoStream:
        """Begin a video.

        Args:
            decoder: Takes the place of this autoencoder's own, for example a `TinyVideoDecoder`.
        """
        return VideoStream(self, decoder or self)

    def encode(self, frames: Tensor) -> Tensor:
        """A whole video, uint8 [1 + 4n, H, W, 3] -> latents fp32 [n + 1, C, h, w]."""
        return self.stream().encode(frames)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents of a whole video [n, C, h, w] -> uint8 [4n - 3, H, W, 3]."""
        return self.stream().decode(latents)

    @torch.no_grad()
    def encode_part(self, frames: Tensor, old: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """One pass of the encoder.

        Args:
            frames: uint8 [T, H, W, 3]; T = 1 + 4n at the beginning of a video, 4n later.
            old: Caches that the pass before left, or None.

        Returns:
            (normalised latents fp32 [n (+ 1), C, h, w], caches).

        Raises:
            ValueError: Wrong type or shape.
        """
        size = (self.config.height, self.config.width, 3)
        if frames.dtype != torch.uint8 or frames.ndim != 4 or tuple(frames.shape[1:]) != size:
            raise ValueError(
                f"frames are {frames.dtype} {tuple(frames.shape)}: expected uint8 [T, {size[0]}, {size[1]}, 3]"
            )
        means, new = self.encode_chunk(self.laid_out(to_pixels(frames, self.dtype)), old)
        return (means[0].transpose(0, 1).float() - self.mean) / self.deviation, new

    @torch.no_grad()
    def decode_part(self, latents: Tensor, old: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """One pass of the decoder.

        Args:
            latents: Normalised [n, C, h, w].
            old: Caches that the pass before left, or None at the beginning of a video.

        Returns:
            (uint8 [T, H, W, 3] with T = 4n, 4n - 3 at the beginning; caches).

        Raises:
            ValueError: Wrong shape.
        """
        if latents.ndim != 4 or tuple(latents.shape[1:]) != self.config.latent_shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}: expected [n, {self.config.latent_shape}]")
        whole = (latents.float() * self.deviation + self.mean).to(self.dtype)
        pixels, new = self.decode_chunk(self.laid_out(whole), old)
        return to_frames(pixels[0].transpose(0, 1)), new

    def laid_out(self, images: Tensor) -> Tensor:
        """[T, C, H, W] -> [1, C, T, H, W] in the memory format of the weights."""
        return images.transpose(0, 1)[None].contiguous(memory_format=self.memory_format)
