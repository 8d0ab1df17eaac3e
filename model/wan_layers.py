"""Layers of Wan2.1's video autoencoder. Causal in time; what they need of earlier frames comes and goes as `Caches`.

Tensors are [B, C, T, H, W]; with channels-last weights every layer keeps that layout. The names of the parameters are
those of diffusers' `AutoencoderKLWan`. Frame counts: a stream's first frame stands alone in every layer that changes
the frame rate; all later frames come in whole groups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.channel_norm import add_bias, channel_norm_naive, has_kernel, norm_silu_join


class Caches:
    """What one pass over a stream reads and leaves, a slot for each causal layer in the order they run.

    The tensors are never written to, so streams can share them.

    Attributes:
        old: Left by the pass before; None at the beginning of a stream.
        new: Left by this pass.
    """

    def __init__(self, old: list[Tensor] | None) -> None:
        self.old = old
        self.new: list[Tensor] = []

    def past(self) -> Tensor | None:
        """The next layer's frames of before, or None at the beginning of a stream."""
        return None if self.old is None else self.old[len(self.new)]


class CausalConv3d(nn.Conv3d):
    """Convolution over two earlier frames and the present one; zeros stand before a stream's first frame.

    Args:
        inputs: Channels.
        outputs: Channels.
        size: Pixels of the kernel in each direction.
    """

    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__(inputs, outputs, (3, size, size), padding=(0, size // 2, size // 2))

    def forward(self, x: Tensor, caches: Caches) -> Tensor:  # type: ignore[override]
        """[B, inputs, T, H, W] -> [B, outputs, T, H, W]."""
        past = caches.past()
        return self.convolve(F.pad(x, (0, 0, 0, 0, 2, 0)) if past is None else behind(past, x), caches)

    def convolve(self, joined: Tensor, caches: Caches, bias: bool = True) -> Tensor:
        """Convolve frames that have their two predecessors in front; leaves the last two as cache.

        Args:
            joined: [B, inputs, T + 2, H, W].
            caches: Takes the cache.
            bias: Whether to add it here.
        """
        caches.new.append(joined[:, :, -2:].clone())
        return F.conv3d(joined, self.weight, self.bias if bias else None, padding=self.padding)


class ChannelNorm(nn.Module):
    """Root-mean-square norm over channels, computed in fp32 at least.

    Args:
        channels: Of the input.
        dims: Axes after the channels: 3 for video, 2 for frames.
    """

    def __init__(self, channels: int, dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * dims))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] -> the same shape."""
        return channel_norm_naive(x, self.gamma)


class ResidualBlock(nn.Module):
    """Two times norm, SiLU, causal convolution; a 1x1x1 convolution beside them where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(inputs)
        self.conv1 = CausalConv3d(inputs, outputs)
        self.norm2 = ChannelNorm(outputs)
        self.conv2 = CausalConv3d(outputs, outputs)
        self.conv_shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        """[B, inputs, T, H, W] -> [B, outputs, T, H, W]."""
        # The kernels add the biases on their way; a convolution of cuDNN takes one more pass over its output for that.
        fused = has_kernel(x)
        y = self.conv1.convolve(norm_silu_join(x, self.norm1.gamma, caches.past()), caches, bias=not fused)
        between = self.conv1.bias if fused else None
        y = self.conv2.convolve(norm_silu_join(y, self.norm2.gamma, caches.past(), between), caches, bias=not fused)
        if not fused:
            return y + self.conv_shortcut(x)
        assert self.conv2.bias is not None
        return add_bias(y, self.conv2.bias, self.conv_shortcut(x))


class FrameAttention(nn.Module):
    """Self-attention with one head, inside each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        batch, channels, frames, height, width = x.shape
        y = as_images(x)
        qkv = self.to_qkv(self.norm(y)).flatten(2).transpose(1, 2).contiguous()
        q, k, v = (part[:, None] for part in qkv.chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, (height, width))
        return x + as_video(self.proj(y), batch)


class MiddleBlock(nn.Module):
    """Residual block, attention, residual block, at the coarsest scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels), ResidualBlock(channels, channels)])
        self.attentions = nn.ModuleList([FrameAttention(channels)])

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        x = self.resnets[0](x, caches)
        return self.resnets[1](self.attentions[0](x), caches)


class Upsample(nn.Module):
    """Twice the pixels, half the channels; with `time`, twice the frames too, but for a stream's first one."""

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        # The place of the first is taken by the interpolation in `forward`, so that names fit.
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(channels, channels // 2, 3, padding=1))
        self.time_conv = CausalConv3d(channels, 2 * channels, 1) if time else None

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        """[B, C, T, H, W] -> [B, C/2, T', 2H, 2W] with T' = 2T (2T - 1 at the beginning of a stream)."""
        if self.time_conv is not None:
            x = self._more_frames(self.time_conv, x, caches)
        y = F.interpolate(as_images(x), scale_factor=2.0, mode="nearest-exact")
        return as_video(self.resample(y), len(x))

    @staticmethod
    def _more_frames(conv: nn.Module, x: Tensor, caches: Caches) -> Tensor:
        first = None
        if caches.past() is None:
            first, x = x[:, :, :1], x[:, :, 1:]
            if not x.shape[2]:
                # The first frame does not enter the convolution: the second one sees zeros before itself.
                caches.new.append(torch.zeros_like(torch.cat([first, first], 2)))
                return first
        pair = conv(x, caches)
        half = x.shape[1]
        frames = torch.cat([pair[:, :half, :, None], pair[:, half:, :, None]], 3).flatten(2, 3)
        return frames if first is None else torch.cat([first, frames], 2)


class Downsample(nn.Module):
    """Half the pixels; with `time`, half the frames too, but for a stream's first one, which stays."""

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if time else None

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T', H/2, W/2] with T' = T/2 ((T + 1)/2 at the beginning of a stream)."""
        x = as_video(self.resample(as_images(x)), len(x))
        if self.time_conv is None:
            return x
        past = caches.past()
        caches.new.append(x[:, :, -1:].clone())
        if past is not None:
            return self.time_conv(behind(past, x))
        first = x[:, :, :1]
        return first if x.shape[2] == 1 else torch.cat([first, self.time_conv(x)], 2)


def behind(past: Tensor, x: Tensor) -> Tensor:
    """[B, C, P + T, H, W] in the layout of `x`; a cache out of a file has lost it."""
    last = x.is_contiguous(memory_format=torch.channels_last_3d)
    layout = torch.channels_last_3d if last else torch.contiguous_format
    return torch.cat([past.contiguous(memory_format=layout), x], 2)


def as_images(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B * T, C, H, W]; costs nothing on channels-last tensors."""
    return x.transpose(1, 2).flatten(0, 1)


def as_video(x: Tensor, batch: int) -> Tensor:
    """Inverse of `as_images`."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)
