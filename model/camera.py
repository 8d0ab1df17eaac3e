"""The camera's axes on the device, for what asks where rays and planes of the picture lie in the world."""

from __future__ import annotations

import torch
from torch import Tensor


def camera_axes(pitch: Tensor, yaw: Tensor) -> Tensor:
    """Image right, image up and forward in world axes: rows of [..., 3, 3], from angles [...] in radians.

    The rotation of `conventions.poses.camera_to_world`, with right for left.
    """
    cp, sp, cy, sy = pitch.cos(), pitch.sin(), yaw.cos(), yaw.sin()
    rows = ((-cy, torch.zeros_like(cp), -sy), (-sy * sp, cp, cy * sp), (-sy * cp, -sp, cy * cp))
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
