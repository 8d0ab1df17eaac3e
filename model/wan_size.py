"""Sizes of Wan2.1's video autoencoder, as far as the transformer needs to know them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class WanAutoencoderConfig:
    """What goes in and comes out: `temporal_stride` frames of 8x8 pixels become one cell; the first frame stands alone.

    Attributes:
        latent_channels: Channels of a latent cell.
        height: Frame height in pixels.
        width: Frame width in pixels.
        spatial_stride: Pixels of a cell, in each direction.
        temporal_stride: Video frames of a latent frame.
    """

    latent_channels: int = 16
    height: int = 352
    width: int = 640
    spatial_stride: int = 8
    temporal_stride: int = 4

    def __post_init__(self) -> None:
        if self.height % self.spatial_stride or self.width % self.spatial_stride:
            raise ValueError(
                f"frames of {self.height}x{self.width}: both sides must be multiples of {self.spatial_stride}"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a latent frame."""
        return self.latent_channels, self.height // self.spatial_stride, self.width // self.spatial_stride

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WanAutoencoderConfig:
        """Build from a mapping.

        Raises:
            ValueError: A key is unknown.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown autoencoder settings {unknown}: known are {[f.name for f in fields(cls)]}")
        return cls(**values)
