"""Sizes of the world model and its presets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .autoencoder import AutoencoderConfig

FUSIONS = ("gated", "union")
SAMPLERS = ("euler", "renoise")


@dataclass(frozen=True)
class ModelConfig:
    """One transformer at one size, with its autoencoder.

    Attributes:
        name: Preset or run name.
        width: Channels of the residual stream.
        depth: Transformer blocks.
        heads: Attention heads.
        camera_channels: Head channels under the projective transform (a multiple of 4).
        spatial_channels: Head channels under 2D rotary (a multiple of 4).
        temporal_channels: Head channels under temporal rotary (even).
        ffn_width: Hidden channels of the feed-forward network.
        blocks_per_frame: Memory blocks of a latent frame (the paper's M = 6).
        block_tile: Rows and columns of tokens in a block.
        chunk: Latent frames that are denoised together; they see each other, and the frames of earlier chunks.
        window: Latent frames before the current chunk that the local memory sees (the paper's w = 8).
        top_k: Retrieved blocks per query block and head.
        fusion: `gated` (ALM + gate * SGM, DecMem section 4.3) or `union` (one softmax over window and retrieved
            blocks).
        gate_init: Value of the gate before training, in (0, 1).
        spatial_base: Rotary base on patch coordinates.
        temporal_base: Rotary base on frame indices.
        translation_scale: Blocks per unit of camera translation.
        vertical_fov: Degrees; intrinsics of the bundled world.
        action_dim: Entries of an action.
        steps: Default sampler steps.
        sampler: `euler`, or `renoise` (each step predicts the clean latent and adds fresh noise of the next level).
        guidance: Default action guidance scale (1 is off; eq. 14).
        frame_rate: Frames a second.
        autoencoder: Sizes of the autoencoder, which also fix the frame size.
    """

    name: str = "tiny"
    width: int = 320
    depth: int = 8
    heads: int = 5
    camera_channels: int = 24
    spatial_channels: int = 20
    temporal_channels: int = 20
    ffn_width: int = 1280
    blocks_per_frame: int = 6
    block_tile: tuple[int, int] = (2, 5)
    chunk: int = 1
    window: int = 8
    top_k: int = 48
    fusion: str = "gated"
    gate_init: float = 0.5
    spatial_base: float = 100.0
    temporal_base: float = 10000.0
    translation_scale: float = 16.0
    vertical_fov: float = 70.0
    action_dim: int = 25
    steps: int = 1
    sampler: str = "euler"
    guidance: float = 1.0
    frame_rate: int = 10
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_tile", tuple(self.block_tile))
        if self.fusion not in FUSIONS:
            raise ValueError(f"model.fusion is {self.fusion!r}: expected one of {', '.join(FUSIONS)}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"model.sampler is {self.sampler!r}: expected one of {', '.join(SAMPLERS)}")
        for name in ("width", "depth", "heads", "chunk", "window", "top_k", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}: expected at least 1")
        if self.camera_channels % 4 or self.spatial_channels % 4 or self.temporal_channels % 2:
            raise ValueError("head channels: camera and spatial must be multiples of 4, temporal even")
        rows, columns = self.block_tile
        if self.latent_height % rows or self.latent_width % columns:
            raise ValueError(
                f"block_tile {self.block_tile} does not divide {self.latent_height}x{self.latent_width} tokens"
            )
        if self.blocks_per_frame * rows * columns != self.tokens:
            raise ValueError(f"{self.blocks_per_frame} blocks of {rows}x{columns} tokens are not {self.tokens} tokens")
        if not 0.0 < self.gate_init < 1.0:
            raise ValueError(f"gate_init is {self.gate_init}: expected a value between 0 and 1")

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.camera_channels + self.spatial_channels + self.temporal_channels

    @property
    def latent_channels(self) -> int:
        """Channels of a latent cell."""
        return self.autoencoder.latent_channels

    @property
    def latent_height(self) -> int:
        """Latent rows of a frame."""
        return self.autoencoder.latent_shape[1]

    @property
    def latent_width(self) -> int:
        """Latent columns of a frame."""
        return self.autoencoder.latent_shape[2]

    @property
    def tokens(self) -> int:
        """Tokens of a latent frame."""
        return self.latent_height * self.latent_width

    @property
    def block_tokens(self) -> int:
        """Tokens of a memory block."""
        return self.tokens // self.blocks_per_frame

    @property
    def height(self) -> int:
        """Frame height in pixels."""
        return self.autoencoder.height

    @property
    def frame_width(self) -> int:
        """Frame width in pixels."""
        return self.autoencoder.width

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from plain values.

        Raises:
            ValueError: An unknown or malformed field, named.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"model config: unknown field {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        plain = dict(values)
        if isinstance(plain.get("autoencoder"), Mapping):
            plain["autoencoder"] = AutoencoderConfig.from_dict(plain["autoencoder"])
        return cls(**plain)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Inverse of `to_json`."""
        return cls.from_dict(json.loads(text))

    def with_overrides(self, **values: Any) -> ModelConfig:
        """A copy with some fields replaced; unknown names raise ValueError."""
        known = {f.name for f in fields(self)}
        for name in values:
            if name not in known:
                raise ValueError(f"model config: unknown field {name}; known: {', '.join(sorted(known))}")
        return replace(self, **values)


def tiny() -> ModelConfig:
    """The bundled size: 96x160 frames, real-time on a CPU."""
    return ModelConfig()


def debug() -> ModelConfig:
    """Random weights at the bundled frame size, small enough for tests."""
    widths = (8, 8, 16, 16)
    autoencoder = AutoencoderConfig(8, 96, 160, widths, (0, 1, 1, 1), widths, (1, 1, 1, 1))
    return ModelConfig(
        name="debug",
        width=64,
        depth=2,
        heads=2,
        camera_channels=12,
        spatial_channels=12,
        temporal_channels=8,
        ffn_width=128,
        top_k=8,
        autoencoder=autoencoder,
    )


PRESETS = {"tiny": tiny, "debug": debug}


def preset(name: str) -> ModelConfig:
    """Look up a preset.

    Raises:
        ValueError: Unknown name; the known ones are listed.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]()
