"""What every token knows of the block grid: where the ray through its centre crosses the faces of blocks.

Positions reach attention as relative quantities only (`position`), so the network cannot tell where in a block the
camera stands, nor which way it faces. But worlds of blocks are aligned: every face lies at a whole coordinate, its
texture begins there, its shade depends on the compass, and the block that a player breaks or places is a cell of that
grid. Here each token is given, for the ray through its centre, the world direction, the eye's place within its block,
and for the next `planes` faces along each axis how near the crossing is and where it lies within its block. Where the
player breaks or places, each token is also given the share of it that the cell would cover, for each face that the
hand may meet. Ray maps of cameras are common (Light Field Networks, arXiv 2106.02634; CameraCtrl, arXiv 2404.02101);
the crossings are ours.

These features depend on poses and actions alone, never on what the world holds: which face is really there, the network
has to know. Whoever knows it better may say so (`voxel_hands`): a player that reads the map of solid cells from the
frames meets the right one in 69 of 72 cases (lab book). Then only the told cell counts, and tokens get its outline.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..conventions.actions import Action
from ..conventions.poses import EYE_HEIGHT, HAND_REACH
from .camera import camera_axes
from .config import ModelConfig
from .position import token_order

HANDS = (Action.ATTACK, Action.PLACE)
_ALL_AT_ONCE = 512  # frames; to ask which of them use a hand would wait for the device, and a graph cannot
_NEAR = 3.0  # blocks at which the nearness of a crossing is one half
_PROBES = 4  # rays through a token, each way, that measure how much of it a cell covers
_NOT_TOLD = 1e3  # blocks; farther than any hand reaches
_SHADES = (0.8, 1.0, 0.6)  # by axis of a face, so that an outline has edges where faces meet
_UNMET = 0.3  # of a broken cell, where it may be hidden by what is around it


def views(poses: ArrayLike, cells: ArrayLike | None = None, changes: ArrayLike | None = None) -> NDArray[np.float32]:
    """The part of poses that the grid of blocks sees.

    Args:
        poses: float64 [..., 5], x, y, z of the feet in blocks, pitch and yaw in degrees.
        cells: float64 [..., 3], the cell (x, y, z) that the hand breaks or fills in each frame, NaN where that is not
            known; None: nowhere.
        changes: float64 [..., K, 4], changed cells and their kinds (`changes.told_changes`), NaN for none; None: K = 0.

    Returns:
        float32 [..., 8 + 4 K]: the eye's x, y, z modulo one block, pitch and yaw in radians, the hand's cell and then
        the changed ones from the eye's own, each of these followed by its kind, 0 for none.
    """
    array = np.array(poses, np.float64)
    array[..., 1] += EYE_HEIGHT
    corner = np.floor(array[..., :3])
    told = np.full_like(corner, _NOT_TOLD) if cells is None else np.asarray(cells, np.float64) - corner
    array[..., :3] -= corner
    array[..., 3:] = np.radians(array[..., 3:])
    parts = [array, np.nan_to_num(told, nan=_NOT_TOLD)]
    if changes is not None:
        placed = np.array(changes, np.float64)
        placed[..., :3] -= corner[..., None, :]
        parts.append(np.nan_to_num(placed, nan=0.0).reshape(*array.shape[:-1], -1))
    return np.concatenate(parts, -1).astype(np.float32)


def feature_count(planes: int) -> int:
    """Channels of a token: direction, eye, five for each face; and for each face the cells behind and before it."""
    return 3 + 6 + 3 * planes * (5 + len(HANDS))


def token_rays(config: ModelConfig, probes: int = 1) -> Tensor:
    """Rays through tokens in the camera's axes: right, up, forward = 1.

    Args:
        config: Sizes.
        probes: Rays through a token, each way, evenly spread.

    Returns:
        fp32 [N, probes * probes, 3], tokens in storage order.
    """
    rows, columns = config.grid
    order = token_order(config)
    up = math.tan(math.radians(config.vertical_fov) / 2.0)
    right = up * config.frame_width / config.height
    inside = (torch.arange(probes, dtype=torch.float64) + 0.5) / probes
    x = 2.0 * ((order % columns)[:, None, None] + inside) / columns - 1.0
    y = 1.0 - 2.0 * ((order // columns)[:, None, None] + inside[:, None]) / rows
    x, y = torch.broadcast_tensors(right * x, up * y)
    return torch.stack([x, y, torch.ones_like(x)], -1).flatten(1, 2).float()


def _distances(eye: Tensor, direction: Tensor, planes: int) -> Tensor:
    """Along a ray from `eye` (modulo one), to the next faces of each axis: [..., 3] each to [..., 3, planes]."""
    gap = torch.where(direction > 0, 1.0 - eye, eye)
    count = torch.arange(planes, device=eye.device, dtype=eye.dtype)
    return (gap[..., None] + count) / direction.abs().clamp_min(1e-6)[..., None]


def crossings(view: Tensor, rays: Tensor, planes: int, width: float) -> Tensor:
    """Features of every token.

    Args:
        view: fp32 [..., 8], from `views`.
        rays: fp32 [N, 3], from `token_rays`.
        planes: Faces along each axis.
        width: Angle that a token covers, radians: crossings over which it sweeps many blocks fade.

    Returns:
        fp32 [..., N, 9 + 15 * planes], all within [-1, 1].
    """
    eye = view[..., None, :3]
    direction = torch.nn.functional.normalize(rays @ camera_axes(*view[..., 3:5].unbind(-1)), dim=-1)  # [..., N, 3]
    distance = _distances(eye, direction, planes)
    point = eye[..., None, None, :] + distance[..., None] * direction[..., None, None, :]
    # The two other axes of each face: y, z for x; z, x for y; x, y for z.
    across = torch.stack([torch.roll(point[..., axis, :, :], -axis - 1, -1)[..., :2] for axis in range(3)], -3)
    slope = direction.abs().clamp_min(1e-6)[..., None]
    fade = 1.0 / (1.0 + (0.5 * width * distance / slope).square())
    angle = 2.0 * math.pi * (across - across.floor())
    phase = torch.cat([angle.sin(), angle.cos()], -1) * fade[..., None]
    nearness = _NEAR / (_NEAR + distance)
    where = 2.0 * math.pi * eye.expand_as(direction)
    faces = torch.cat([phase, nearness[..., None]], -1).flatten(-3)
    return torch.cat([direction, where.sin(), where.cos(), faces], -1)


def hand_cells(view: Tensor, probes: Tensor, planes: int) -> Tensor:
    """How much of each token the cells cover that a hand may change.

    The hand follows the ray through the middle of the picture to the first face of something solid in reach
    (`HAND_REACH`): it breaks the cell behind that face, or places into the cell before it. What is solid is not known
    here, so every face that the ray crosses counts, unless the view tells the cell.

    Args:
        view: fp32 [m, 8], from `views`.
        probes: fp32 [N, P, 3], from `token_rays`.
        planes: Faces along each axis.

    Returns:
        fp32 [m, N, 2, 3 * planes], shares of the token's rays that meet the cell behind and the cell before each face.
    """
    axes, eye = camera_axes(*view[..., 3:5].unbind(-1)), view[:, :3]
    forward = axes[:, 2]
    distance = _distances(eye, forward, planes)  # [m, 3, planes]
    point = eye[:, None, None] + distance[..., None] * forward[:, None, None]
    ahead = (forward > 0).to(view.dtype)[:, None]  # [m, 1, 3]
    faces = []
    for axis in range(3):
        cell = point[:, axis].floor()
        # The crossed face lies at a whole number, up to rounding.
        cell[..., axis] = point[:, axis, :, axis].round() - 1.0 + ahead[..., axis]
        before = cell.clone()
        before[..., axis] += 1.0 - 2.0 * ahead[..., axis]
        faces.append(torch.stack([cell, before], 1))
    cells = torch.cat(faces, 2)  # [m, 2, 3 * planes, 3]
    low = (cells - eye[:, None, None])[:, None, None]
    enter, leave = _through(low, _turned(probes, axes)[:, :, :, None, None])
    enter, leave = enter.amax(-1), leave.amin(-1)
    share = (leave > enter.clamp_min(0.0)).to(view.dtype).mean(2)
    told = view[:, None, None, 5:8]
    meant = (cells == told).all(-1) | (told[..., 0] == _NOT_TOLD)
    return share * (meant & (distance.flatten(1) <= HAND_REACH)[:, None])[:, None]


def outlines(view: Tensor, probes: Tensor) -> Tensor:
    """Where the changed cells stand in the picture.

    Args:
        view: fp32 [m, 8 + 4 K], from `views`.
        probes: fp32 [N, P, 3], from `token_rays`.

    Returns:
        fp32 [m, N, P]: for each ray, of the nearest cell that it meets: if that was filled, the shade of the face in
        front; if it was emptied, the shade of the wall behind it, or `_UNMET` where the ray does not come in across
        the axis by which the hand met it, which alone is sure to be open, negative. 0 for other rays.
    """
    axes, eye = camera_axes(*view[..., 3:5].unbind(-1)), view[:, None, :3]
    cells, kind = view[:, 8:].unflatten(-1, (-1, 4)).split((3, 1), -1)
    low, kind = (cells - eye)[:, :, None, None], kind[..., None]  # [m, K, 1, 1, 3] and [m, K, 1, 1]
    enter, leave = _through(low, _turned(probes, axes)[:, None])
    (first, front), (last, back) = enter.max(-1), leave.min(-1)
    hit = (last > first.clamp_min(0.0)) & (kind != 0.0)
    emptied = torch.where(front == -1.0 - kind, _shade(back), _UNMET)
    shown = torch.where(kind > 0.0, _shade(front), -emptied) * hit
    nearest = first.masked_fill(~hit, math.inf).argmin(1, keepdim=True)
    return shown.gather(1, nearest)[:, 0]


def _shade(axis: Tensor) -> Tensor:
    """Of faces across axes; without a table on the host, which a CUDA graph could not read."""
    return sum((axis == number) * shade for number, shade in enumerate(_SHADES))  # type: ignore[return-value]


def _turned(probes: Tensor, axes: Tensor) -> Tensor:
    """Rays [N, P, 3] in the world of cameras [m, 3, 3]: [m, N, P, 3], `_slanted`."""
    return _slanted(torch.einsum("npc,mcw->mnpw", probes, axes))


def _slanted(rays: Tensor) -> Tensor:
    """Rays none of whose entries is 0, which is divided by."""
    return torch.where(rays.abs() < 1e-6, 1e-6, rays)


def _through(low: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Along rays, where each axis enters and leaves the slabs of cells whose lower corners are `low`."""
    first, second = low / rays, (low + 1.0) / rays
    return torch.minimum(first, second), torch.maximum(first, second)


class VoxelRays(nn.Module):
    """Embeds the features; starts without effect.

    Args:
        config: `voxel_planes` faces along each axis; `voxel_hands` for models that can be told cells.
    """

    rays: Tensor
    probes: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.planes, self.emphasis = config.voxel_planes, config.hole_emphasis
        self.crossings = crossings  # compiled for training
        self.width = math.radians(config.vertical_fov) / config.grid[0]
        self.register_buffer("rays", token_rays(config)[:, 0], persistent=False)
        self.register_buffer("probes", token_rays(config, _PROBES), persistent=False)
        self.embed = nn.Linear(feature_count(self.planes), config.width)
        nn.init.zeros_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)
        self.outline = nn.Linear(_PROBES**2, config.width, bias=False) if config.voxel_hands else None
        if self.outline is not None:
            nn.init.zeros_(self.outline.weight)

    def features(self, view: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Features of views [B, F, 8 + 4 K] and actions [B, F, 25] (zeros where dropped).

        Returns:
            fp32 [B, F, N, feature_count], and `outlines` [B, F, N, P].
        """
        rays = self.crossings(view[..., :8], self.rays, self.planes, self.width)
        hands = torch.stack([actions[..., hand] for hand in HANDS], -1).float()
        cells = rays.new_zeros(*rays.shape[:3], len(HANDS) * 3 * self.planes)
        lines = rays.new_zeros(*rays.shape[:3], _PROBES**2)
        if view.is_cuda and hands[..., 0].numel() <= _ALL_AT_ONCE:
            cells = self._cells(view.flatten(0, 1), hands.flatten(0, 1)).view_as(cells)
            if view.shape[-1] > 8:
                lines = outlines(view.flatten(0, 1), self.probes).view_as(lines)
            return torch.cat([rays, cells], -1), lines
        # Few frames, so the others are spared.
        used, changed = (hands > 0.5).any(-1), (view[..., 11::4] != 0.0).any(-1)
        if used.any():
            cells[used] = self._cells(view[used], hands[used])
        if changed.any():
            lines[changed] = outlines(view[changed], self.probes)
        return torch.cat([rays, cells], -1), lines

    def _cells(self, view: Tensor, hands: Tensor) -> Tensor:
        """`hand_cells` of views [m, 8 + 4 K] times what each hand does [m, 2]: [m, N, 6 * planes]."""
        if self.outline is None:
            view = torch.cat([view[:, :5], torch.full_like(view[:, 5:8], _NOT_TOLD)], 1)
        return (hand_cells(view, self.probes, self.planes) * hands[:, None, :, None]).flatten(2)

    def forward(self, view: Tensor, actions: Tensor) -> Tensor:
        """Embed views fp32 [B, F, 8 + 4 K] (`views`) and actions [B, F, 25] for each token: [B, F, N, W]."""
        with torch.no_grad(), torch.autocast(view.device.type, enabled=False):
            features, lines = self.features(view, actions)
        embedded = self.embed(features)
        if self.outline is None:
            return embedded
        if not self.training and self.emphasis != 1.0:
            lines = torch.where(lines < 0.0, self.emphasis * lines, lines)
        return embedded + self.outline(lines)
