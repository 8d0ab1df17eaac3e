"""What a latent frame says about the blocks around the player: the learnt half of poses from the model.

WorldMem regresses the change of pose from the last latent, the action and the pose. Contact is a decision about where
blocks are, though, and much of what stops a player was seen some frames ago (a step below the picture's lower edge, a
wall behind the back). So the network here reads each latent frame once and updates a map of air, solid and water around
the player, column by column; the rules of a box in a grid of blocks then move the player through that map
(`decmem_env.predicted_player`). Angles follow from the action alone and are not learnt.

Shapes: n frames, Q columns, C latent channels. Positions are those of `conventions.poses`.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conventions.poses import EYE_HEIGHT, VERTICAL_FOV
from .weight_files import CheckpointError

FILE = "pose.safetensors"
AIR, SOLID, WATER = range(3)
CLASSES = 3
REACH = 6  # cells to each side of the player's own column that a frame may tell about
BELOW, ABOVE = 4, 3  # layers of cells below the feet's layer, and from it upwards
SIDE, LAYERS = 2 * REACH + 1, BELOW + ABOVE + 1
CELLS = SIDE * SIDE * LAYERS
COLUMNS = SIDE * SIDE
NEIGHBOURS = 4
LARGEST = 6.0  # logits of the map stay within +- this: any cell can change its mind in a few frames
_BESIDE = 1  # columns this near are asked about even out of sight: the player touches them
_MARGIN = 1.1  # half widths of the picture within which a column counts as in sight
_ATTRIBUTES = 13


@dataclass(frozen=True)
class PoseConfig:
    """Sizes of `PosePredictor`.

    Attributes:
        latent_channels: C.
        latent_height: Rows of a latent frame.
        latent_width: Columns.
        vertical_fov: Degrees.
        width: Channels of the convolutions over the latent.
        fine: Channels of its map of twice the resolution, which columns look into.
        hidden: Units of the network that updates a column of cells.
    """

    latent_channels: int = 64
    latent_height: int = 6
    latent_width: int = 10
    vertical_fov: float = VERTICAL_FOV
    width: int = 96
    fine: int = 32
    hidden: int = 192

    @classmethod
    def from_json(cls, text: str) -> PoseConfig:
        """Inverse of `to_json`.

        Raises:
            ValueError: No JSON object, or an unknown field.
        """
        values = json.loads(text)
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown field {unknown[0]}")
        return cls(**values)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def all_columns(device: torch.device | str = "cpu") -> Tensor:
    """Columns around the player's own, int64 [COLUMNS, 2] offsets (x, z), in the order of `template`."""
    return template(device)[::LAYERS, ::2]


def template(device: torch.device | str = "cpu") -> Tensor:
    """Cells around the player's own, int64 [CELLS, 3] offsets (x, y, z), in the order x, z, y of the blocks' arrays."""
    span, layers = torch.arange(-REACH, REACH + 1, device=device), torch.arange(-BELOW, ABOVE + 1, device=device)
    x, z, y = torch.meshgrid(span, span, layers, indexing="ij")
    return torch.stack([x, y, z], -1).reshape(-1, 3)


def _focal(vertical_fov: float) -> float:
    return 1.0 / math.tan(math.radians(vertical_fov / 2.0))


def _conv(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


class PosePredictor(nn.Module):
    """Latent frames and poses in, a map of the blocks around the player out. About 0.3 million parameters.

    Args:
        config: Sizes.
    """

    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.entry = _conv(config.latent_channels, width, 1)
        self.first = nn.ModuleList([_conv(width, width) for _ in range(2)])
        self.second = nn.ModuleList([_conv(width, width, 1) for _ in range(2)])
        self.fine = _conv(width, 4 * config.fine, 1)
        known = LAYERS * (CLASSES + NEIGHBOURS)
        self.column = nn.Sequential(
            nn.Linear(LAYERS * config.fine + known + _ATTRIBUTES, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, LAYERS * CLASSES),
        )

    def read(self, latents: Tensor) -> Tensor:
        """Features of latent frames [n, C, h, w] -> [n, fine, 2 h, 2 w]."""
        x = self.entry(latents)
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(F.silu(first(F.silu(x))))
        return F.pixel_shuffle(self.fine(F.silu(x)), 2)

    def asked(self, inner: Tensor, angles: Tensor) -> Tensor:
        """Columns that a frame may tell about: in reach and, seen from above, in sight; or beside the player.

        Whole columns, since what lies below the picture's edge is often known from what is above it.

        Args:
            inner: float32 [n, 3], position of the feet within their cell.
            angles: float32 [n, 2], pitch and yaw in degrees.

        Returns:
            bool [n, COLUMNS], in the order x, z.
        """
        columns = all_columns(inner.device)
        dx, dz = (columns.to(inner.dtype) + 0.5 - inner[:, None, ::2]).unbind(-1)
        yaw = torch.deg2rad(angles[:, 1:])
        right, level = -yaw.cos() * dx - yaw.sin() * dz, -yaw.sin() * dx + yaw.cos() * dz
        flat = level.clamp_min(0.25)
        half = self.config.latent_width / self.config.latent_height / _focal(self.config.vertical_fov)
        seen = (right / flat).abs() <= half * (_MARGIN + 0.7 / flat)
        seen &= (level > 0.0) & (dx.square() + dz.square() <= (REACH + 0.5) ** 2)
        return seen | (columns.abs().amax(-1) <= _BESIDE)

    def update(
        self, features: Tensor, columns: Tensor, inner: Tensor, angles: Tensor, climb: Tensor, known: Tensor
    ) -> Tensor:
        """Bring the map up to date with a frame.

        Args:
            features: [n, fine, 2 h, 2 w] of `read`.
            columns: int64 [n, Q, 2], offsets (x, z) from the player's own column.
            inner: float32 [n, 3], position of the feet within their cell.
            angles: float32 [n, 2], pitch and yaw in degrees.
            climb: float32 [n], by how much the player rose since the frame before, in blocks.
            known: float32 [n, Q, 1 + NEIGHBOURS, LAYERS, 3], what the map says of the columns and of those `around`
                them: logits of air, solid, water; 0 where nothing is known.

        Returns:
            New logits of the columns, float32 [n, Q, LAYERS, 3], of mean 0 and within +- `LARGEST`.
        """
        rows, count = columns.shape[:2]
        spot, ahead, attributes = self.look(columns, inner, angles)
        found = F.grid_sample(features, spot, padding_mode="border", align_corners=False)  # [n, fine, Q, LAYERS]
        found = found * (ahead > 0.0).to(found)[:, None]  # nothing is seen of what lies behind the picture's plane
        body = torch.stack([inner[:, 1], climb.clamp(-1.0, 1.0), (climb.abs() < 1e-3).to(inner)], -1)
        solid = known[:, :, 1:, :, SOLID] - known[:, :, 1:, :, AIR]
        inputs = torch.cat(
            [
                found.permute(0, 2, 3, 1).flatten(2),
                known[:, :, 0].flatten(2) / 3.0,
                solid.flatten(2) / 6.0,
                attributes,
                body[:, None].expand(-1, count, -1),
            ],
            -1,
        )
        logits = known[:, :, 0] + self.column(inputs).float().view(rows, count, LAYERS, CLASSES)
        return (logits - logits.mean(-1, keepdim=True)).clamp(-LARGEST, LARGEST)

    def look(self, columns: Tensor, inner: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the camera sees the cells of columns; arguments of `update`.

        Returns:
            spot float32 [n, Q, LAYERS, 2], the place of each cell's centre in the picture, in half widths and heights
            (x right, y down); ahead float32 [n, Q, LAYERS], its depth in blocks; attributes of the columns.
        """
        size = self.config
        dx, dz = (columns.to(inner.dtype) + 0.5 - inner[:, None, ::2]).unbind(-1)
        pitch, yaw = (torch.deg2rad(angle)[:, None] for angle in angles.unbind(-1))
        right, level = -yaw.cos() * dx - yaw.sin() * dz, -yaw.sin() * dx + yaw.cos() * dz
        layers = torch.arange(-BELOW, ABOVE + 1, device=inner.device, dtype=inner.dtype)
        dy = (layers + 0.5 - inner[:, 1:2] - EYE_HEIGHT)[:, None]
        sp, cp = pitch.sin()[..., None], pitch.cos()[..., None]
        ahead, up = level[..., None] * cp - dy * sp, level[..., None] * sp + dy * cp
        depth, focal = ahead.clamp_min(0.25), _focal(size.vertical_fov)
        across = right[..., None] / depth * (focal * size.latent_height / size.latent_width)
        spot = torch.stack([across, -up / depth * focal], -1)
        distance = (dx.square() + dz.square()).sqrt()
        turned = torch.cat([(4.0 * yaw).sin(), (4.0 * yaw).cos(), pitch.sin(), pitch.cos()], -1)
        mine = torch.stack([right / 4.0, level / 4.0, distance / 4.0, 1.0 / (1.0 + distance), dx.abs(), dz.abs()], -1)
        mine = mine.clamp(-2.0, 2.0)
        return spot, ahead, torch.cat([mine, turned[:, None].expand(-1, columns.shape[1], -1)], -1)


def around(columns: Tensor, angles: Tensor) -> Tensor:
    """Columns with their four neighbours, those ahead, right, behind and left of the camera, as near as a grid has it.

    Args:
        columns: int64 [n, Q, 2], (x, z).
        angles: float32 [n, 2], pitch and yaw in degrees.

    Returns:
        int64 [n, Q, 1 + NEIGHBOURS, 2]; the column itself comes first.
    """
    sides = torch.tensor([[0, 1], [-1, 0], [0, -1], [1, 0]], device=columns.device)  # yaw 0, 90, 180, 270
    quarter = torch.round(angles[:, 1:] / 90.0).long()
    turned = sides[(quarter + torch.arange(NEIGHBOURS, device=columns.device)) % 4]
    return torch.cat([columns[:, :, None], columns[:, :, None] + turned[:, None]], 2)


def save_pose(folder: Path, model: PosePredictor) -> None:
    """Write `pose.safetensors` (fp16) into a checkpoint folder, in one go."""
    from safetensors.torch import save_file

    fresh = folder / f"{FILE}.tmp"
    tensors = {name: tensor.detach().half().contiguous().cpu() for name, tensor in model.state_dict().items()}
    save_file(tensors, str(fresh), {"config": model.config.to_json()})
    fresh.chmod(0o644)
    os.replace(fresh, folder / FILE)


def load_pose(
    folder: Path, latent_shape: tuple[int, int, int], device: torch.device | str = "cpu"
) -> PosePredictor | None:
    """Load the pose predictor of a checkpoint folder in fp32, ready to run; None where there is none.

    Args:
        folder: Of the checkpoint.
        latent_shape: (C, h, w) of its autoencoder.
        device: Where to put it.

    Raises:
        CheckpointError: The file is damaged or of another model.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        return None
    mend = "train it again (decmem train pose), or remove it"
    try:
        with safe_open(str(path), "pt") as file:
            text = (file.metadata() or {}).get("config")
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): {mend}") from None
    if text is None:
        raise CheckpointError(f"{path} carries no sizes (metadata `config`): {mend}")
    try:
        model = PosePredictor(PoseConfig.from_json(text))
        model.load_state_dict(tensors)
    except (ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}; {mend}") from None
    reads = (model.config.latent_channels, model.config.latent_height, model.config.latent_width)
    if reads != tuple(latent_shape):
        raise CheckpointError(f"{path} reads latents of shape {reads}, the autoencoder's are {latent_shape}: {mend}")
    return model.eval().requires_grad_(False).to(device)
