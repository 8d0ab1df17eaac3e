"""Frames of voxel worlds from player poses: C on the CPU, CUDA on a GPU, torch where there is no compiler."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..conventions.poses import EYE_HEIGHT, VERTICAL_FOV
from . import cuda, native, twin
from .terrain import X, Y, Z
from .textures import texture_atlas

BACKENDS = ("c", "cuda", "torch")


class RenderedFrames(NamedTuple):
    """Frames on the renderer's device.

    Attributes:
        rgb: uint8 [N, H, W, 3].
        depth: float32 [N, H, W], blocks along the ray through the pixel's centre, infinite for sky; or None.
        block_ids: uint8 [N, H, W], block at the pixel's centre, 0 for sky; or None.
    """

    rgb: Tensor
    depth: Tensor | None
    block_ids: Tensor | None


class Renderer:
    """Renders voxel worlds from player poses, on the CPU or a CUDA device.

    Args:
        height: Pixels.
        width: Pixels.
        samples: Rays a pixel along each side (2 gives 2x2).
        vertical_fov: Degrees; pixels are square.
        device: `cpu` or a CUDA device.
        backend: One of `BACKENDS`; None takes `cuda` on a GPU and `c` on a CPU, or `torch` where no compiler works.

    Raises:
        ValueError: A size, angle or backend that makes no sense.
    """

    def __init__(
        self,
        height: int = 96,
        width: int = 160,
        samples: int = 2,
        vertical_fov: float = VERTICAL_FOV,
        device: str | torch.device = "cpu",
        backend: str | None = None,
    ) -> None:
        if min(height, width, samples) < 1:
            raise ValueError(f"renderer: {height}x{width} pixels with {samples} samples: expected positive numbers")
        if not 0.0 < vertical_fov < 180.0:
            raise ValueError(f"renderer: a vertical field of view of {vertical_fov:g} degrees: expected 0 to 180")
        self.height, self.width, self.samples = height, width, samples
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.backend = backend or self._best()
        if self.backend not in BACKENDS:
            raise ValueError(f"unknown renderer backend {backend!r}: expected one of {', '.join(BACKENDS)}")
        if self.backend != "torch" and self.device.type != {"c": "cpu", "cuda": "cuda"}[self.backend]:
            raise ValueError(f"renderer backend {self.backend!r} does not run on {self.device}")
        self._tangent = float(np.tan(np.radians(vertical_fov / 2.0)))
        self._atlas = torch.from_numpy(texture_atlas()).to(self.device)

    def render(
        self,
        blocks: Tensor,
        world_index: ArrayLike | Tensor,
        poses: ArrayLike | Tensor,
        depth: bool = False,
        block_ids: bool = False,
    ) -> RenderedFrames:
        """Render N frames.

        Args:
            blocks: uint8 [W, 256, 256, 64] on the renderer's device, contiguous.
            world_index: int64 [N], the world of each frame.
            poses: float64 [N, 5].
            depth: Also return depth.
            block_ids: Also return block ids.

        Returns:
            The frames.

        Raises:
            ValueError: Wrong shapes, types or device, or a world that is not there.
        """
        camera = self._cameras(torch.as_tensor(poses, dtype=torch.float64).to(self.device))
        index = torch.as_tensor(world_index, dtype=torch.int64)
        self._check(blocks, index, len(camera))
        index = index.to(self.device).contiguous()
        shape = (len(camera), self.height, self.width)
        rgb = torch.empty(*shape, 3, dtype=torch.uint8, device=self.device)
        far = torch.empty(shape, device=self.device) if depth else None
        ids = torch.empty(shape, dtype=torch.uint8, device=self.device) if block_ids else None
        if len(camera):
            size = (self.height, self.width, self.samples)
            run = {"c": _render_c, "cuda": cuda.render, "torch": twin.render}[self.backend]
            run(blocks, index, camera, self._atlas, size, rgb, far, ids)
        return RenderedFrames(rgb, far, ids)

    def _best(self) -> str:
        if self.device.type == "cuda":
            return "cuda"
        if self.device.type == "cpu":
            if native.load() is not None:
                return "c"
            _warn_once()
        return "torch"

    def _cameras(self, poses: Tensor) -> Tensor:
        """Eye, right, up (both scaled to the image's edges) and forward of each pose, float32 [N, 12].

        The axes are those of `conventions.poses.camera_to_world`, computed in float64 on the renderer's device.
        """
        if poses.ndim != 2 or poses.shape[1] != 5:
            raise ValueError(f"poses have shape {tuple(poses.shape)}: expected [N, 5] = x, y, z, pitch, yaw")
        pitch, yaw = torch.deg2rad(poses[:, 3]), torch.deg2rad(-poses[:, 4])
        cp, sp, cy, sy = pitch.cos(), pitch.sin(), yaw.cos(), yaw.sin()
        up, side = self._tangent, self._tangent * self.width / self.height
        zero = torch.zeros_like(cp)
        eye = [poses[:, 0], poses[:, 1] + EYE_HEIGHT, poses[:, 2]]
        right = [-cy * side, zero, sy * side]
        above = [sy * sp * up, cp * up, cy * sp * up]
        ahead = [sy * cp, -sp, cy * cp]
        return torch.stack([*eye, *right, *above, *ahead], -1).float().contiguous()

    def _check(self, blocks: Tensor, index: Tensor, frames: int) -> None:
        if blocks.dtype != torch.uint8 or blocks.ndim != 4 or tuple(blocks.shape[1:]) != (X, Z, Y):
            raise ValueError(f"blocks are {blocks.dtype} {tuple(blocks.shape)}: expected uint8 [worlds, {X}, {Z}, {Y}]")
        if blocks.device != self.device or not blocks.is_contiguous():
            raise ValueError(f"blocks lie on {blocks.device}: expected a contiguous tensor on {self.device}")
        if index.shape != (frames,):
            raise ValueError(
                f"world_index has shape {tuple(index.shape)}: expected one world for each of {frames} poses"
            )
        # On a GPU the check would wait for the device at every call; there the caller's numbers are trusted.
        if index.device.type == "cpu" and frames and not 0 <= int(index.min()) <= int(index.max()) < len(blocks):
            raise ValueError(
                f"world_index names worlds {int(index.min())} to {int(index.max())}, but there are {len(blocks)}"
            )


def _render_c(
    worlds: Tensor,
    index: Tensor,
    cameras: Tensor,
    atlas: Tensor,
    size: tuple[int, int, int],
    rgb: Tensor,
    depth: Tensor | None,
    ids: Tensor | None,
) -> None:
    library = native.load()
    if library is None:
        raise RuntimeError("the C renderer could not be built: install gcc or clang, or use backend='torch'")
    extra = (depth is not None) + 2 * (ids is not None)
    inputs = (array.data_ptr() for array in (worlds, index, cameras, atlas))
    outputs = (None if array is None else array.data_ptr() for array in (rgb, depth, ids))
    library.render(*inputs, *size, len(cameras), extra, *outputs, native.threads(torch.get_num_threads()))


_warned = False


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "no C compiler works here: voxel worlds are rendered in torch, much slower (install gcc or clang)",
            RuntimeWarning,
            stacklevel=4,
        )
