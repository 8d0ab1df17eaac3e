"""Visible mask: which pixels of a frame show a surface that a context frame had shown.

Measures, "Visible mask": a pixel's true surface point is reprojected with true depth into every context frame and
counts if it was visible there (depth within max(0.1 block, 1 %), apparent size within a factor 2); sky counts if that
direction was sky there. Depth here is the distance along the pixel's ray in blocks; sky is infinite.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..conventions.poses import VERTICAL_FOV, camera_to_world, normalised_intrinsics, world_to_camera_cv

DEPTH_TOLERANCE = 0.1  # blocks
DEPTH_SHARE = 0.01
SIZE_FACTOR = 2.0
MINIMUM_SHARE = 0.3  # of the pixels; frames with fewer are not scored

_WORK_CUDA, _WORK_CPU = 1 << 22, 1 << 17  # points projected at a time


def visible_mask(
    depth: torch.Tensor,
    pose: NDArray[np.float64],
    context_depth: torch.Tensor,
    context_poses: NDArray[np.float64],
    vertical_fov: float = VERTICAL_FOV,
) -> torch.Tensor:
    """Pixels of one view whose surface was visible in at least one context view.

    Args:
        depth: float32 [H, W], blocks along the ray, infinite for sky.
        pose: [5].
        context_depth: float32 [C, H, W].
        context_poses: [C, 5].
        vertical_fov: Degrees.

    Returns:
        bool [H, W] on the depth's device.
    """
    height, width = depth.shape
    device = depth.device
    focal = normalised_intrinsics(height, width, vertical_fov)
    fx, fy = float(focal[0, 0] * width), float(focal[1, 1] * height)
    rays = _rays(height, width, fx, fy, device)  # [H, W, 3] unit, OpenCV axes
    rays = rays.reshape(-1, 3)
    sky = ~torch.isfinite(depth.reshape(-1))
    distance = torch.where(sky, torch.ones_like(depth.reshape(-1)), depth.reshape(-1))
    seen = torch.zeros(height * width, dtype=torch.bool, device=device)

    # Relative transforms in float64 on the CPU: positions may be far from the origin.
    to_world = camera_to_world(pose) * np.array([-1.0, -1.0, 1.0, 1.0])
    relative = world_to_camera_cv(context_poses) @ to_world
    rotation = torch.as_tensor(relative[:, :3, :3], dtype=torch.float32, device=device)
    offset = torch.as_tensor(relative[:, :3, 3], dtype=torch.float32, device=device)
    step = max(1, (_WORK_CUDA if depth.is_cuda else _WORK_CPU) // (height * width))
    for start in range(0, len(context_poses), step):
        part = slice(start, start + step)
        direction = torch.einsum("cij,nj->cni", rotation[part], rays)
        point = direction * distance[None, :, None] + torch.where(sky[:, None], 0.0, 1.0) * offset[part, None]
        seen |= _shown(point, sky, distance, context_depth[part], fx, fy).any(0)
    return seen.reshape(height, width)


def _shown(
    point: torch.Tensor,
    sky: torch.Tensor,
    distance: torch.Tensor,
    context_depth: torch.Tensor,
    fx: float,
    fy: float,
) -> torch.Tensor:
    """Whether each point [C, N, 3] (camera axes of its context view) is what that view shows there, bool [C, N]."""
    count, height, width = context_depth.shape
    x, y, z = point.unbind(-1)
    ahead = z > 1e-4
    depth_z = z.clamp_min(1e-4)
    u = fx * x / depth_z + width / 2 - 0.5  # in pixels, centre of the first pixel at 0
    v = fy * y / depth_z + height / 2 - 0.5
    inside = ahead & (u >= -0.5) & (u < width - 0.5) & (v >= -0.5) & (v < height - 0.5)
    flat = context_depth.reshape(count, -1)

    def look(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        index = rows.clamp(0, height - 1).long() * width + columns.clamp(0, width - 1).long()
        return flat.gather(1, index)

    nearest = look(v.round(), u.round())
    reach = point.norm(dim=-1)
    tolerance = (DEPTH_SHARE * reach).clamp_min(DEPTH_TOLERANCE)
    # Between pixel centres a plane's inverse depth is linear in the image: on grazing ground the nearest pixel alone
    # would be off by more than 1 %.
    left, top = u.floor(), v.floor()
    a, b = (u - left).clamp(0, 1), (v - top).clamp(0, 1)
    corners = []
    for rows in (top, top + 1):
        for columns in (left, left + 1):
            ray = torch.stack(
                ((columns - (width / 2 - 0.5)) / fx, (rows - (height / 2 - 0.5)) / fy, torch.ones_like(rows)), -1
            ).norm(dim=-1)
            corners.append(ray / look(rows, columns))  # 1 / z; 0 for sky
    inverse = (corners[0] * (1 - a) + corners[1] * a) * (1 - b) + (corners[2] * (1 - a) + corners[3] * a) * b
    surface = (reach / depth_z) / inverse.clamp_min(1e-9)  # back to distance along the ray
    same = ((nearest - reach).abs() <= tolerance) | ((surface - reach).abs() <= tolerance)
    size = reach / distance
    same &= (size <= SIZE_FACTOR) & (size >= 1 / SIZE_FACTOR)
    return inside & torch.where(sky, ~torch.isfinite(nearest), same)


def _rays(height: int, width: int, fx: float, fy: float, device: torch.device) -> torch.Tensor:
    """Unit rays through the pixel centres in OpenCV camera axes, float32 [H, W, 3]."""
    u = (torch.arange(width, device=device, dtype=torch.float32) + 0.5 - width / 2) / fx
    v = (torch.arange(height, device=device, dtype=torch.float32) + 0.5 - height / 2) / fy
    grid_v, grid_u = torch.meshgrid(v, u, indexing="ij")
    rays = torch.stack((grid_u, grid_v, torch.ones_like(grid_u)), -1)
    return rays / rays.norm(dim=-1, keepdim=True)
