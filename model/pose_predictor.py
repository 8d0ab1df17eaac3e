"""What a latent frame says about the blocks around the player: the learnt half of poses from the model.

WorldMem regresses the change of pose from the last latent, the action and the pose. Contact is a decision about where
blocks are, though, and much of what stops a player was seen some frames ago (a step below the picture's lower edge, a
wall behind the back). So the network here reads each latent frame once and updates a map of air, solid and water around
the player, column by column; the rules of a box in a grid of blocks then move the player through that map
(`decmem_env.predicted_player`). Angles follow from the action alone and are not learnt.

Whether a cell is solid is a comparison of its distance with that of what the picture shows in its place. One small
network makes it for every cell alike (`sight`, which knows nothing of the map); what is left after that is decided for
whole columns, with the map (`update`). So all frames of a batch are looked at in one go, and only the map is serial.

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
from .camera import camera_axes
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
_ATTRIBUTES = 14
_UNDECIDED = 1.0  # lead of a logit; cells with less may be guessed at without being shown
_SLIVER = 0.25  # blocks; cells that reach less into the picture are not shown
_GEOMETRY = 17
_HEIGHTS = 2 * LAYERS + 1  # where a column's axis looks into the picture: floors, middles, and the last ceiling
_SPOTS = 5  # where each cell looks into the part of the picture that it covers
_ASIDE = 0.35  # of that part's width and height, from its middle to the other spots
_FINER = 4  # of the map that cells look into, times the latent's resolution: a block 6 blocks away has 11 pixels of 96
_NEAREST = 0.05  # blocks; what is nearer to the camera's plane is taken to be this far


@dataclass(frozen=True)
class PoseConfig:
    """Sizes of `PosePredictor`.

    Attributes:
        latent_channels: C.
        latent_height: Rows of a latent frame.
        latent_width: Columns.
        vertical_fov: Degrees.
        width: Channels of the convolutions over the latent.
        blocks: Residual blocks of them.
        fine: Channels of a map of `_FINER` times the resolution, which cells look into.
        cell: Channels of what is seen of a cell.
        hidden: Units of the network that updates a column of cells.
    """

    latent_channels: int = 64
    latent_height: int = 6
    latent_width: int = 10
    vertical_fov: float = VERTICAL_FOV
    width: int = 160
    blocks: int = 4
    fine: int = 24
    cell: int = 48
    hidden: int = 320

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
    """Latent frames and poses in, a map of the blocks around the player out. About 1.5 million parameters.

    Args:
        config: Sizes.
    """

    def __init__(self, config: PoseConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.entry = _conv(config.latent_channels, width, 1)
        self.where = nn.Parameter(0.02 * torch.randn(width, config.latent_height, config.latent_width))
        self.stance = nn.Linear(3, width)
        self.first = nn.ModuleList([_conv(width, width) for _ in range(config.blocks)])
        self.second = nn.ModuleList([_conv(width, width, 1) for _ in range(config.blocks)])
        self.fine = _conv(width, _FINER**2 * config.fine, 1)
        self.cell = nn.Sequential(
            nn.Linear((3 + _SPOTS) * config.fine + _GEOMETRY, 2 * config.cell),
            nn.SiLU(),
            nn.Linear(2 * config.cell, config.cell),
            nn.SiLU(),
        )
        self.column = nn.Linear(LAYERS * config.cell + _ATTRIBUTES, config.hidden)
        self.belief = nn.Linear(LAYERS * (CLASSES + NEIGHBOURS), config.hidden, bias=False)
        self.decide = nn.Sequential(
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, LAYERS * (CLASSES + 1)),
        )

    def read(self, latents: Tensor, inner: Tensor, angles: Tensor) -> Tensor:
        """Features of latent frames.

        Args:
            latents: [n, C, h, w].
            inner: float32 [n, 3], position of the feet within their cell.
            angles: float32 [n, 2], pitch and yaw in degrees.

        Returns:
            [n, fine, _FINER * h, _FINER * w].
        """
        pitch = torch.deg2rad(angles[:, :1])
        stance = self.stance(torch.cat([pitch.sin(), pitch.cos(), inner[:, 1:2]], -1))
        x = self.entry(latents) + self.where + stance[..., None, None]
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(F.silu(first(F.silu(x))))
        return F.pixel_shuffle(self.fine(F.silu(x)), _FINER)

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

    def sight(
        self, features: Tensor, columns: Tensor, inner: Tensor, angles: Tensor, climb: Tensor, generated: Tensor
    ) -> Tensor:
        """What a frame shows of columns, whatever the map says.

        Args:
            features: [n, fine, _FINER * h, _FINER * w] of `read`.
            columns: int64 [n, Q, 2], offsets (x, z) from the player's own column.
            inner: float32 [n, 3], position of the feet within their cell.
            angles: float32 [n, 2], pitch and yaw in degrees.
            climb: float32 [n], by how much the player rose since the frame before, in blocks.
            generated: bool [n], frames that a model made: they must not undo what true ones have shown.

        Returns:
            [n, Q, hidden].
        """
        spot, ahead, geometry, attributes = self.look(columns, inner, angles)
        part, covers = self.covered(columns, inner, angles)
        spots = torch.cat([spot, _spread(part).flatten(2, 3)], 2)
        found = F.grid_sample(features, spots.to(features), padding_mode="border", align_corners=False)
        # Nothing is seen of what lies behind the picture's plane or beside the picture.
        seen = torch.cat([ahead > 0.0, covers.repeat_interleave(_SPOTS, -1)], -1)
        found = (found * seen.to(found)[:, None]).permute(0, 2, 3, 1)  # [n, Q, _HEIGHTS + LAYERS * _SPOTS, fine]
        axis, own = found.tensor_split([_HEIGHTS], 2)
        own = own.unflatten(2, (LAYERS, _SPOTS)).flatten(3)
        where = torch.cat([geometry, part * covers[..., None]], -1).to(found)
        cells = torch.cat([axis[:, :, :-2:2], axis[:, :, 1::2], axis[:, :, 2::2], own, where], -1)
        body = torch.stack(
            [inner[:, 1], climb.clamp(-1.0, 1.0), (climb.abs() < 1e-3).to(inner), generated.to(inner)], -1
        )
        body = body[:, None].expand(-1, columns.shape[1], -1)
        return self.column(torch.cat([self.cell(cells).flatten(2), attributes.to(found), body.to(found)], -1))

    def shown(self, columns: Tensor, inner: Tensor, angles: Tensor) -> Tensor:
        """Cells that reach into the picture, hidden by others or not, bool [n, Q, LAYERS]; arguments as for `sight`.

        A corner does not count: what is seen around it is mostly something else, and a ceiling that was known was taken
        for sky under its edge.
        """
        dx, dz = (columns.to(inner.dtype) + 0.5 - inner[:, None, ::2]).unbind(-1)
        layers = torch.arange(-BELOW, ABOVE + 1, device=inner.device, dtype=inner.dtype)
        dy = layers + 0.5 - inner[:, 1:2] - EYE_HEIGHT
        right, up, ahead = camera_axes(*torch.deg2rad(angles).unbind(-1)).unbind(-2)
        high = 1.0 / _focal(self.config.vertical_fov)
        wide = high * self.config.latent_width / self.config.latent_height
        within = torch.ones(*columns.shape[:2], LAYERS, dtype=torch.bool, device=inner.device)
        for side in (ahead, wide * ahead + right, wide * ahead - right, high * ahead + up, high * ahead - up):
            side = F.normalize(side, dim=-1)
            x, y, z = side[:, None].unbind(-1)  # the picture's pyramid lies to the side that this normal points to
            middle = (dx * x + dz * z)[..., None] + (dy * y)[:, None]
            within &= middle + 0.5 * side.abs().sum(-1)[:, None, None] > _SLIVER
        return within

    def covered(self, columns: Tensor, inner: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """The part of the picture that each cell covers, hidden by others or not; arguments of `sight`.

        A cell beside or above the player spreads over much of the picture while its column's axis lies out of it.

        Returns:
            The rectangle around it, float32 [n, Q, LAYERS, 4]: left, upper, right and lower edge in half widths and
            heights; bool [n, Q, LAYERS], False where it is empty.
        """
        size = self.config
        corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], device=inner.device)
        flat = columns.to(inner.dtype)[:, :, None] + corners - inner[:, None, None, ::2]
        dx, dz = flat.unbind(-1)  # [n, Q, 4]
        pitch, yaw = (torch.deg2rad(angle)[:, None, None] for angle in angles.unbind(-1))
        right, level = -yaw.cos() * dx - yaw.sin() * dz, -yaw.sin() * dx + yaw.cos() * dz
        heights = torch.arange(LAYERS + 1, device=inner.device, dtype=inner.dtype) - BELOW
        dy = (heights - inner[:, 1:2] - EYE_HEIGHT)[:, None, :, None]
        sp, cp = pitch.sin()[..., None], pitch.cos()[..., None]
        ahead = level[:, :, None] * cp - dy * sp  # [n, Q, LAYERS + 1, 4]
        up = level[:, :, None] * sp + dy * cp
        depth, focal = ahead.clamp_min(_NEAREST), _focal(size.vertical_fov)
        across = right[:, :, None] / depth * (focal * size.latent_height / size.latent_width)
        spots = torch.stack([across, -up / depth * focal], -1)
        low, high, near = spots.amin(3), spots.amax(3), (ahead > _NEAREST).any(3)
        low = torch.minimum(low[:, :, :-1], low[:, :, 1:]).clamp(-1.0, 1.0)
        high = torch.maximum(high[:, :, :-1], high[:, :, 1:]).clamp(-1.0, 1.0)
        return torch.cat([low, high], -1), (high > low).all(-1) & (near[:, :, :-1] | near[:, :, 1:])

    def update(self, seen: Tensor, shown: Tensor, known: Tensor) -> Tensor:
        """Bring the map up to date with a frame.

        What stands beside the player decides its way and is mostly out of the picture: there the map stays as it is
        where it knows anything. Small changes would add up while a player stands at a wall.

        Args:
            seen: [n, Q, hidden] of `sight`.
            shown: bool [n, Q, LAYERS] of `shown`.
            known: float32 [n, Q, 1 + NEIGHBOURS, LAYERS, 3], what the map says of the columns and of those `around`
                them: logits of air, solid, water; 0 where nothing is known.

        Returns:
            New logits of the columns, float32 [n, Q, LAYERS, 3], of mean 0; a map holds them `bounded`.
        """
        solid = known[:, :, 1:, :, SOLID] - known[:, :, 1:, :, AIR]
        belief = self.belief(torch.cat([known[:, :, 0].flatten(2) / 3.0, solid.flatten(2) / 6.0], -1))
        change, gate = (
            self.decide(seen + belief).float().unflatten(-1, (LAYERS, CLASSES + 1)).tensor_split([CLASSES], -1)
        )
        first, second = known[:, :, 0].topk(2).values.unbind(-1)
        free = shown | (first - second < _UNDECIDED)
        logits = known[:, :, 0] + change * gate.sigmoid() * free[..., None]
        return logits - logits.mean(-1, keepdim=True)

    def look(self, columns: Tensor, inner: Tensor, angles: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where the camera sees the cells of columns; arguments of `sight`.

        Returns:
            spot float32 [n, Q, 2 LAYERS + 1, 2], places in the picture of the floors and middles of the cells and of
            the last one's ceiling, all in the column's axis, in half widths and heights (x right, y down); ahead
            float32 [n, Q, 2 LAYERS + 1], their depths in blocks; geometry of the cells float32 [n, Q, LAYERS, 13];
            attributes of the columns float32 [n, Q, 10].
        """
        size = self.config
        dx, dz = (columns.to(inner.dtype) + 0.5 - inner[:, None, ::2]).unbind(-1)
        pitch, yaw = (torch.deg2rad(angle)[:, None] for angle in angles.unbind(-1))
        right, level = -yaw.cos() * dx - yaw.sin() * dz, -yaw.sin() * dx + yaw.cos() * dz
        heights = torch.arange(_HEIGHTS, device=inner.device, dtype=inner.dtype) / 2.0 - BELOW
        dy = (heights - inner[:, 1:2] - EYE_HEIGHT)[:, None]
        sp, cp = pitch.sin()[..., None], pitch.cos()[..., None]
        ahead, up = level[..., None] * cp - dy * sp, level[..., None] * sp + dy * cp
        depth, focal = ahead.clamp_min(0.25), _focal(size.vertical_fov)
        across = right[..., None] / depth * (focal * size.latent_height / size.latent_width)
        spot = torch.stack([across, -up / depth * focal], -1)
        distance = (dx.square() + dz.square()).sqrt()
        turned = torch.cat([(4.0 * yaw).sin(), (4.0 * yaw).cos(), pitch.sin(), pitch.cos()], -1)
        mine = torch.stack([right / 4.0, level / 4.0, distance / 4.0, 1.0 / (1.0 + distance), dx.abs(), dz.abs()], -1)
        mine = mine.clamp(-2.0, 2.0)
        attributes = torch.cat([mine, turned[:, None].expand(-1, columns.shape[1], -1)], -1)
        return spot, ahead, _geometry(right, up[..., 1::2], ahead[..., 1::2], spot[..., 1::2, :]), attributes


def _geometry(right: Tensor, up: Tensor, ahead: Tensor, spot: Tensor) -> Tensor:
    """Where cells are, seen from the camera: [n, Q] and [n, Q, LAYERS] -> [n, Q, LAYERS, 13]."""
    right = right[..., None].expand_as(up)
    range_ = (right.square() + up.square() + ahead.square()).sqrt()
    visible = (spot.abs() <= 1.0).all(-1) & (ahead > 0.0)
    waves = [wave(math.pi * range_ / length) for length in (1.0, 2.0, 4.0) for wave in (torch.sin, torch.cos)]
    across, down = spot.clamp(-1.5, 1.5).unbind(-1)
    near = 1.0 / (0.5 + range_)
    return torch.stack([across, down, visible.to(up), near, right / 4.0, up / 4.0, ahead / 4.0, *waves], -1)


def _spread(part: Tensor) -> Tensor:
    """Places within rectangles [..., 4] of `covered`: the middle, then left, right, above, below; [..., _SPOTS, 2]."""
    aside = torch.tensor([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], dtype=part.dtype, device=part.device) * _ASIDE
    low, high = part.tensor_split(2, -1)
    return (0.5 * (low + high))[..., None, :] + aside * (high - low)[..., None, :]


def bounded(logits: Tensor) -> Tensor:
    """Logits as a map holds them: of mean 0, each at most 1.5 `LARGEST` behind the first, and so within +- `LARGEST`.

    Bounding each by itself would make the first two equal wherever the third is far behind them. Apart from `update`,
    or cells at a bound would never learn.
    """
    behind = (logits - logits.amax(-1, keepdim=True)).clamp_min(-1.5 * LARGEST)
    return behind - behind.mean(-1, keepdim=True)


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
