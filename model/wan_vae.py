"""Wan2.1's video autoencoder: encoder and decoder as functions of a chunk and the caches of what came before.

Parameters are called as in diffusers' `AutoencoderKLWan`. No state is kept here; `wan_stream` holds it for a session.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..kernels.channel_norm import norm_silu_join
from .wan_layers import Caches, CausalConv3d, ChannelNorm, Downsample, MiddleBlock, ResidualBlock, Upsample

MULTIPLES = (1, 2, 4, 4)  # channels over `base_width` at 1/1, 1/2, 1/4 and 1/8 of the pixels
BLOCKS = 2  # residual blocks at each scale of the encoder; the decoder has one more
TIME = (False, True, True)  # which of the three changes of scale change the frame rate too, in the encoder's order
STRIDE, SCALE = 4, 8  # video frames, and pixels in each direction, of a latent cell


class WanEncoder(nn.Module):
    """Pixels -> mean and logarithm of the variance of latents.

    Args:
        width: Channels at full resolution.
        channels: Of the output.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        widths = [width * m for m in (1, *MULTIPLES)]
        self.conv_in = CausalConv3d(3, width)
        self.down_blocks = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            self.down_blocks.append(ResidualBlock(inputs, outputs))
            self.down_blocks.extend(ResidualBlock(outputs, outputs) for _ in range(BLOCKS - 1))
            if level < len(TIME):
                self.down_blocks.append(Downsample(outputs, TIME[level]))
        self.mid_block = MiddleBlock(widths[-1])
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], channels)

    def forward(self, x: Tensor, old: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Encode a chunk.

        Args:
            x: [B, 3, T, H, W] in [-1, 1]; T = 1 + 4n at the beginning of a stream, 4n later.
            old: Caches that the chunk before left, or None.

        Returns:
            ([B, channels, T', H/8, W/8] with T' = n + 1 or n, caches).
        """
        caches = Caches(old)
        x = self.conv_in(x, caches)
        for block in self.down_blocks:
            x = block(x, caches)
        x = self.mid_block(x, caches)
        return self.conv_out.convolve(norm_silu_join(x, self.norm_out.gamma, caches.past()), caches), caches.new


class UpBlock(nn.Module):
    """Residual blocks at one scale, then the change to the next."""

    def __init__(self, inputs: int, outputs: int, upsample: Upsample | None) -> None:
        super().__init__()
        widths = [inputs, *[outputs] * (BLOCKS + 1)]
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.upsamplers = None if upsample is None else nn.ModuleList([upsample])

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        """Run all layers."""
        for block in self.resnets:
            x = block(x, caches)
        return x if self.upsamplers is None else self.upsamplers[0](x, caches)


class WanDecoder(nn.Module):
    """Latents -> pixels.

    Args:
        width: Channels at full resolution.
        channels: Of a latent cell.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        widths = [width * m for m in (MULTIPLES[-1], *MULTIPLES[::-1])]
        self.conv_in = CausalConv3d(channels, widths[0])
        self.mid_block = MiddleBlock(widths[0])
        self.up_blocks = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            inputs = inputs if level == 0 else inputs // 2  # a change of scale halves the channels
            upsample = Upsample(outputs, TIME[::-1][level]) if level < len(TIME) else None
            self.up_blocks.append(UpBlock(inputs, outputs, upsample))
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], 3)

    def forward(self, z: Tensor, old: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Decode a chunk.

        Args:
            z: [B, channels, n, h, w].
            old: Caches that the chunk before left, or None at the beginning of a stream.

        Returns:
            ([B, 3, T, 8h, 8w] around [-1, 1] with T = 4n, 4n - 3 at the beginning, not clamped; caches).
        """
        caches = Caches(old)
        z = self.mid_block(self.conv_in(z, caches), caches)
        for block in self.up_blocks:
            z = block(z, caches)
        return self.conv_out.convolve(norm_silu_join(z, self.norm_out.gamma, caches.past()), caches), caches.new


class WanVAE(nn.Module):
    """Encoder and decoder with the two 1x1x1 convolutions between them; the state dict is diffusers' own.

    Args:
        base_width: Channels at full resolution; Wan's have 96.
        latent_channels: Of a latent cell.

    Attributes:
        memory_format: Layout that chunks should come in.
    """

    def __init__(self, base_width: int = 96, latent_channels: int = 16) -> None:
        super().__init__()
        self.encoder = WanEncoder(base_width, 2 * latent_channels)
        self.quant_conv = nn.Conv3d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv3d(latent_channels, latent_channels, 1)
        self.decoder = WanDecoder(base_width, latent_channels)
        self.memory_format = torch.contiguous_format

    def encode_chunk(self, pixels: Tensor, old: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Pixels [B, 3, T, H, W] -> (means of the latents [B, C, n, h, w], not normalised; caches)."""
        moments, new = self.encoder(pixels, old)
        return self.quant_conv(moments).chunk(2, 1)[0], new

    def decode_chunk(self, latents: Tensor, old: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Latents [B, C, n, h, w], not normalised -> (pixels [B, 3, T, H, W], not clamped; caches)."""
        return self.decoder(self.post_quant_conv(latents), old)

    def use_channels_last(self) -> None:
        """Lay the weights out for the fast kernels of a GPU; inputs in `memory_format` stay in it."""
        self.memory_format = torch.channels_last_3d
        for weight in self.parameters():
            if weight.ndim == 5:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
            elif weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
