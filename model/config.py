"""Sizes of the world model and its presets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .autoencoder import AutoencoderConfig
from .wan_size import WanAutoencoderConfig

FUSIONS = ("gated", "union")
GATES = ("sigmoid", "linear")
LAYOUTS = ("split", "wan")
SAMPLERS = ("euler", "renoise")


@dataclass(frozen=True)
class ModelConfig:
    """One transformer at one size, with its autoencoder.

    Attributes:
        name: Preset or run name.
        width: Channels of the residual stream.
        depth: Transformer blocks.
        heads: Attention heads.
        layout: How head channels are split between camera, patch grid and time: `split` or `wan` (`position`).
        camera_channels: Head channels under the projective transform (a multiple of 4; of 16 with `wan`).
        spatial_channels: Head channels under 2D rotary (a multiple of 4).
        temporal_channels: Head channels under temporal rotary (even).
        ffn_width: Hidden channels of the feed-forward network.
        blocks_per_frame: Memory blocks of a latent frame (the paper's M = 6).
        block_tile: Rows and columns of tokens in a block; None for runs of tokens in raster order, the last shorter.
        patch: Latent rows and columns of a token.
        chunk: Latent frames that are denoised together; they see each other, and the frames of earlier chunks.
        window: Latent frames before the current chunk that the local memory sees (the paper's w = 8).
        top_k: Retrieved blocks per query block and head.
        nearest_views: Frames that a frame sees which shows nothing new, those with the nearest poses (`nearest_views`),
            instead of the window and what is retrieved by content; 0: window and retrieval.
        fusion: `gated` (ALM + gate * SGM, DecMem section 4.3) or `union` (one softmax over window and retrieved
            blocks).
        gate: `sigmoid`, or `linear` (no activation, as in Video Sparse Attention).
        gate_init: Value of the gate before training; in (0, 1) for `sigmoid`.
        spatial_base: Rotary base on patch coordinates.
        temporal_base: Rotary base on frame indices.
        translation_scale: Blocks per unit of camera translation.
        vertical_fov: Degrees; intrinsics of the bundled world.
        marks_generated: Whether frames that the model generated itself carry a learnt mark in memory.
        keyframe_blocks: Generated frames enter memory only if none in it was taken within so many blocks and
            `keyframe_degrees` of yaw and pitch (`keyframes`); 0: all do.
        keyframe_degrees: See `keyframe_blocks`.
        voxel_planes: Faces of voxels along each axis whose crossings every token is told (`voxel_rays`); 0: none, for
            videos whose poses are not in blocks.
        voxel_hands: Whether the model can be told which cell a hand breaks or fills (`voxel_rays.views`).
        voxel_changes: Whether it is told of those cells in all later frames, too (`changes.told_changes`).
        hole_emphasis: How much louder it is told of emptied cells in sessions than in training: holes come out pale.
        action_dim: Entries of an action; those of a latent's frames are concatenated.
        text_tokens: Length of the fixed text context that cross-attention sees, 0 for no text (and no such layers).
        text_width: Channels of that context.
        steps: Default sampler steps.
        new_view_steps: The same, if more, of frames without a remembered view within the keyframes' distances.
        shift: Of the sampler's flow times towards noise, t' = shift t / (1 + (shift - 1) t).
        sampler: `euler`, or `renoise` (each step predicts the clean latent and adds fresh noise of the next level).
        guidance: Default action guidance scale (1 is off; eq. 14).
        frame_rate: Frames a second.
        autoencoder: Sizes of the autoencoder, which also fix the frame size.
    """

    name: str = "tiny"
    width: int = 320
    depth: int = 8
    heads: int = 5
    layout: str = "split"
    camera_channels: int = 24
    spatial_channels: int = 20
    temporal_channels: int = 20
    ffn_width: int = 1280
    blocks_per_frame: int = 6
    block_tile: tuple[int, int] | None = (2, 5)
    patch: int = 1
    chunk: int = 1
    window: int = 8
    top_k: int = 48
    nearest_views: int = 0
    fusion: str = "gated"
    gate: str = "sigmoid"
    gate_init: float = 0.5
    spatial_base: float = 100.0
    temporal_base: float = 10000.0
    translation_scale: float = 16.0
    vertical_fov: float = 70.0
    marks_generated: bool = False
    keyframe_blocks: float = 0.0
    keyframe_degrees: float = 0.0
    voxel_planes: int = 0
    voxel_hands: bool = False
    voxel_changes: bool = False
    hole_emphasis: float = 1.0
    action_dim: int = 25
    text_tokens: int = 0
    text_width: int = 4096
    steps: int = 1
    new_view_steps: int = 1
    shift: float = 1.0
    sampler: str = "euler"
    guidance: float = 1.0
    frame_rate: int = 10
    autoencoder: AutoencoderConfig | WanAutoencoderConfig = field(default_factory=AutoencoderConfig)

    def __post_init__(self) -> None:
        if self.block_tile is not None:
            object.__setattr__(self, "block_tile", tuple(self.block_tile))
        for name, known in (("fusion", FUSIONS), ("gate", GATES), ("layout", LAYOUTS), ("sampler", SAMPLERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"model.{name} is {getattr(self, name)!r}: expected one of {', '.join(known)}")
        if self.nearest_views < 0 or (self.nearest_views and (self.chunk > 1 or self.fusion != "union")):
            raise ValueError(
                f"model.nearest_views is {self.nearest_views}: expected at least 0, and 0 with chunks of several "
                "latents or fusion 'gated'"
            )
        if self.window < 0:
            raise ValueError(f"model.window is {self.window}: expected at least 0 (no local memory)")
        if min(self.keyframe_blocks, self.keyframe_degrees) < 0.0:
            raise ValueError(
                f"model.keyframe_blocks is {self.keyframe_blocks:g}, model.keyframe_degrees {self.keyframe_degrees:g}: "
                "expected at least 0 (0 blocks: every frame is kept)"
            )
        if self.new_view_steps < 1 or (self.new_view_steps > 1 and not self.keyframe_blocks):
            raise ValueError(
                f"model.new_view_steps is {self.new_view_steps}: expected at least 1, and 1 without keyframe_blocks"
            )
        if self.voxel_planes < 0 or (self.voxel_planes and isinstance(self.autoencoder, WanAutoencoderConfig)):
            raise ValueError(
                f"model.voxel_planes is {self.voxel_planes}: expected at least 0, and 0 for videos with several frames "
                "in a latent"
            )
        if self.voxel_hands and not self.voxel_planes:
            raise ValueError("model.voxel_hands is True: it needs voxel_planes above 0")
        if self.hole_emphasis <= 0.0:
            raise ValueError(f"model.hole_emphasis is {self.hole_emphasis}: expected more than 0")
        if self.voxel_changes and not self.voxel_hands:
            raise ValueError("model.voxel_changes is True: it needs voxel_hands")
        for name in ("width", "depth", "heads", "chunk", "top_k", "steps", "patch", "blocks_per_frame"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}: expected at least 1")
        if self.camera_channels % 4 or self.spatial_channels % 4 or self.temporal_channels % 2:
            raise ValueError("head channels: camera and spatial must be multiples of 4, temporal even")
        if self.layout == "wan":
            self._check_wan_channels()
        if self.latent_height % self.patch or self.latent_width % self.patch:
            raise ValueError(f"patch {self.patch} does not divide latents of {self.latent_height}x{self.latent_width}")
        if self.block_tile is not None:
            self._check_tile(*self.block_tile)
        elif self.padding >= self.block_tokens:
            raise ValueError(
                f"{self.grid[0] * self.grid[1]} tokens a frame leave one of {self.blocks_per_frame} blocks empty"
            )
        if self.gate == "sigmoid" and not 0.0 < self.gate_init < 1.0:
            raise ValueError(f"gate_init is {self.gate_init}: expected a value between 0 and 1")
        if self.shift <= 0.0:
            raise ValueError(f"shift is {self.shift}: expected more than 0")

    def _check_wan_channels(self) -> None:
        camera, axis = self.camera_channels, self.head_dim // 6 * 2
        given = (self.spatial_channels, self.temporal_channels)
        wanted = (2 * axis - camera // 2, self.head_dim - 2 * axis - camera // 2)
        if camera % 16 or min(wanted) < 2 or given != wanted:
            raise ValueError(
                f"layout 'wan' with {camera} camera, {given[0]} spatial and {given[1]} temporal channels: camera must "
                f"be a multiple of 16, half of it taken from time and half from space, which gives {wanted}"
            )

    def _check_tile(self, rows: int, columns: int) -> None:
        height, width = self.grid
        if height % rows or width % columns:
            raise ValueError(f"block_tile {self.block_tile} does not divide {height}x{width} tokens")
        if self.blocks_per_frame * rows * columns != height * width:
            raise ValueError(
                f"{self.blocks_per_frame} blocks of {rows}x{columns} tokens are not {height * width} tokens"
            )

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
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in a frame."""
        return self.latent_height // self.patch, self.latent_width // self.patch

    @property
    def block_tokens(self) -> int:
        """Places for tokens in a memory block: 147 where 880 tokens fill 6 blocks."""
        return -(-self.grid[0] * self.grid[1] // self.blocks_per_frame)

    @property
    def tokens(self) -> int:
        """Places for tokens in a latent frame: 882 for 880 tokens in 6 blocks."""
        return self.block_tokens * self.blocks_per_frame

    @property
    def padding(self) -> int:
        """Places at the end of a latent frame that repeat its last token; no key there is ever seen."""
        return self.tokens - self.grid[0] * self.grid[1]

    @property
    def patch_channels(self) -> int:
        """Latent values of a token."""
        return self.latent_channels * self.patch**2

    @property
    def action_channels(self) -> int:
        """Numbers that say how a latent frame came about: the actions of its video frames, one after the other."""
        return self.action_dim * self.frames_per_latent

    @property
    def frames_per_latent(self) -> int:
        """Video frames of a latent frame (of every one but a video's first, which is one frame)."""
        return self.autoencoder.temporal_stride if isinstance(self.autoencoder, WanAutoencoderConfig) else 1

    @property
    def default_new_view_steps(self) -> int:
        """Sampler steps of frames that show something new, where nobody asks for others."""
        return max(self.steps, self.new_view_steps)

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
        size = plain.get("autoencoder")
        if isinstance(size, Mapping):
            kind = WanAutoencoderConfig if "temporal_stride" in size else AutoencoderConfig
            plain["autoencoder"] = kind.from_dict(size)
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
    return ModelConfig(keyframe_blocks=1.0, keyframe_degrees=10.0)


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


def wan_1_3b() -> ModelConfig:
    """Wan2.1-T2V-1.3B's transformer without text, with DecMem's memory: 352x640 frames, 880 tokens a latent frame.

    Untrained parts start at zero (gate and actions), so that a converted backbone is at first what it was: its blocks
    under a sliding window, equal to the dense backbone while the history fits into the window.
    """
    return ModelConfig(
        name="wan-1.3b",
        width=1536,
        depth=30,
        heads=12,
        layout="wan",
        camera_channels=32,
        spatial_channels=68,
        temporal_channels=28,
        ffn_width=8960,
        block_tile=None,
        patch=2,
        chunk=4,
        top_k=80,
        gate="linear",
        gate_init=0.0,
        spatial_base=10000.0,
        steps=20,
        shift=5.0,
        guidance=7.5,
        autoencoder=WanAutoencoderConfig(),
    )


def wan_debug() -> ModelConfig:
    """`wan-1.3b` at the size of a test: 64x112 frames, 28 tokens a latent frame in blocks of 5 and 3."""
    return wan_1_3b().with_overrides(
        name="wan-debug",
        width=64,
        depth=2,
        heads=2,
        camera_channels=16,
        spatial_channels=12,
        temporal_channels=4,
        ffn_width=128,
        top_k=8,
        steps=2,
        guidance=5.0,
        autoencoder=WanAutoencoderConfig(height=64, width=112, base_width=8),
    )


PRESETS = {"tiny": tiny, "debug": debug, "wan-1.3b": wan_1_3b, "wan-debug": wan_debug}


def preset(name: str) -> ModelConfig:
    """Look up a preset.

    Raises:
        ValueError: Unknown name; the known ones are listed.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]()
