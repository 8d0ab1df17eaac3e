"""The ray marcher of `raymarch.c` in torch, all rays at once: slow, needs no compiler, runs on any device.

Operation by operation the same as the C source, so that frames agree to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

SX, SZ, SY = 256, 256, 64
FAR = 60.0
MAX_STEPS = 180
TEXELS = 341
_RAYS = 1 << 19  # rays marched at a time

_OFFSETS = (0, 256, 320, 336, 340)
_MASK = 0xFFFFFFFF


def render(
    worlds: Tensor,
    index: Tensor,
    cameras: Tensor,
    atlas: Tensor,
    size: tuple[int, int, int],
    rgb: Tensor,
    depth: Tensor | None,
    ids: Tensor | None,
) -> None:
    """Render frame by frame; `size` is height, width, samples; the arrays are those of `raymarch.c`."""
    height, width, samples = size
    flat_worlds, flat_atlas = worlds.reshape(-1), atlas.reshape(-1, 3)
    for frame in range(len(cameras)):
        camera, base = cameras[frame], int(index[frame]) * SX * SZ * SY
        up = camera[6:9]
        cone = 2.0 * torch.sqrt(up[0] * up[0] + up[1] * up[1] + up[2] * up[2]) / float(height * samples)
        total = torch.zeros(height * width, 3, device=rgb.device)
        for j in range(samples):
            for i in range(samples):
                directions = _directions(camera, height, width, (i + 0.5) / samples, (j + 0.5) / samples)
                total += _march(flat_worlds, base, flat_atlas, camera[:3], directions, cone)[0]
        rgb[frame] = (total * (1.0 / (samples * samples)) + 0.5).to(torch.uint8).reshape(height, width, 3)
        if depth is not None or ids is not None:
            directions = _directions(camera, height, width, 0.5, 0.5)
            _, distance, hit = _march(flat_worlds, base, flat_atlas, camera[:3], directions, cone)
            if depth is not None:
                depth[frame] = distance.reshape(height, width)
            if ids is not None:
                ids[frame] = hit.to(torch.uint8).reshape(height, width)


def _directions(camera: Tensor, height: int, width: int, across: float, down: float) -> Tensor:
    """Unit directions through the same spot of every pixel, float32 [H * W, 3]."""
    column = torch.arange(width, dtype=torch.float32, device=camera.device) + across
    row = torch.arange(height, dtype=torch.float32, device=camera.device) + down
    a = (2.0 * column / float(width) - 1.0)[None, :]
    b = (1.0 - 2.0 * row / float(height))[:, None]
    dx, dy, dz = (camera[9 + k] + a * camera[3 + k] + b * camera[6 + k] for k in range(3))
    r = 1.0 / torch.sqrt(dx * dx + dy * dy + dz * dz)
    return torch.stack((dx * r, dy * r, dz * r), -1).reshape(-1, 3)


def _march(
    worlds: Tensor, base: int, atlas: Tensor, eye: Tensor, directions: Tensor, cone: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Colour [n, 3] (0 to 255), distance [n] (infinite for sky) and block id [n] of each ray."""
    parts = [_march_some(worlds, base, atlas, eye, part, cone) for part in directions.split(_RAYS)]
    colour, distance, hit = zip(*parts, strict=True)
    return torch.cat(colour), torch.cat(distance), torch.cat(hit)


def _march_some(
    worlds: Tensor, base: int, atlas: Tensor, eye: Tensor, direction: Tensor, cone: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n, device = len(direction), direction.device
    limit = torch.tensor([SX, SY, SZ], device=device)
    start = torch.floor(eye).long()
    step = torch.where(direction < 0, -1, 1)
    inverse = torch.where(direction == 0, 1e30, 1.0 / direction.abs())
    ahead, behind = (start + 1).float() - eye, eye - start.float()
    crossing = torch.where(step > 0, ahead, behind) * inverse

    # What a finished ray found; the arrays below hold the rays still under way, named by `alive`.
    hit = torch.zeros(n, dtype=torch.long, device=device)
    hit_t = torch.zeros(n, device=device)
    hit_axis = torch.full((n,), -1, dtype=torch.long, device=device)
    hit_cell = torch.zeros(n, 3, dtype=torch.long, device=device)
    alive = torch.arange(n, device=device)
    cell, t = start.repeat(n, 1), torch.zeros(n, device=device)
    axis = torch.full((n,), -1, dtype=torch.long, device=device)
    for _ in range(MAX_STEPS):
        x, y, z = cell.unbind(-1)
        outside = ((y >= SY) & (step[:, 1] > 0)) | (y < 0) | (x < 0) | (x >= SX) | (z < 0) | (z >= SZ)
        safe = cell.clamp(min=0).minimum(limit - 1)
        found = worlds[base + (safe[:, 0] * SZ + safe[:, 2]) * SY + safe[:, 1]].long()
        solid = (found != 0) & (y < SY) & ~outside & (axis >= 0)
        done = alive[solid]
        hit[done], hit_t[done], hit_axis[done], hit_cell[done] = found[solid], t[solid], axis[solid], cell[solid]
        going = ~(outside | solid)
        alive, cell, step, inverse, crossing = (v[going] for v in (alive, cell, step, inverse, crossing))
        tx, ty, tz = crossing.unbind(-1)
        axis = torch.where((tx <= ty) & (tx <= tz), 0, torch.where(tz <= ty, 2, 1))
        chosen = torch.nn.functional.one_hot(axis, 3).bool()
        t = crossing.gather(1, axis[:, None])[:, 0]
        crossing = torch.where(chosen, crossing + inverse, crossing)
        cell = torch.where(chosen, cell + step, cell)
        near = ~(t > FAR)
        alive, cell, step, inverse, crossing = (v[near] for v in (alive, cell, step, inverse, crossing))
        axis, t = axis[near], t[near]
        if not len(alive):
            break

    colour = _sky(direction)
    rays = torch.nonzero(hit)[:, 0]
    colour[rays] = _surface(
        atlas, eye, direction[rays], cone, hit[rays], hit_t[rays], hit_axis[rays], hit_cell[rays], colour[rays]
    )
    return colour, torch.where(hit > 0, hit_t, torch.inf), hit


def _sky(direction: Tensor) -> Tensor:
    dx, dy, dz = direction.unbind(-1)
    s = 1.0 - torch.where(dy < 0, 0.0, dy)
    s = s * s
    colour = torch.stack((90.0 + 106.0 * s, 146.0 + 74.0 * s, 226.0 + 18.0 * s), -1)
    sun = dx * _f32(0.4851) + dy * _f32(0.7276) + dz * _f32(0.4851) > _f32(0.988)
    return torch.where(sun[:, None], torch.tensor([255.0, 244.0, 200.0], device=direction.device), colour)


def _surface(
    atlas: Tensor,
    eye: Tensor,
    direction: Tensor,
    cone: Tensor,
    block: Tensor,
    t: Tensor,
    axis: Tensor,
    cell: Tensor,
    back: Tensor,
) -> Tensor:
    """Texture, tint, shade and fog of the faces that were hit."""
    point = eye + direction * t[:, None]
    inner = point - torch.floor(point)
    vertical = axis == 1
    u = torch.where(axis == 0, inner[:, 2], inner[:, 0])
    v = torch.where(vertical, inner[:, 2], 1.0 - inner[:, 1])
    facing = direction.abs().gather(1, axis[:, None])[:, 0]
    down = direction[:, 1] < 0
    face = torch.where(vertical, torch.where(down, 1, 2), 0)
    footprint = cone * t * 16.0 / (_f32(0.35) + _f32(0.65) * facing)
    lod = torch.stack([footprint >= _f32(edge) for edge in (1.2, 2.4, 4.8, 9.6)]).sum(0)
    size = torch.full_like(lod, 16) >> lod
    offset = torch.tensor(_OFFSETS, device=lod.device)[lod]
    iu = (u * size.float()).long().minimum(size - 1)
    iv = (v * size.float()).long().minimum(size - 1)
    texel = atlas[(block * 3 + face) * TEXELS + offset + iv * size + iu].float()

    x, y, z = cell.unbind(-1)
    noise = _mix((x * 73856093 & _MASK) ^ (y * 19349663 & _MASK) ^ (z * 83492791 & _MASK))
    tint = _f32(0.93) + _f32(0.14) * (noise & 255).float() / 255.0
    east, south = direction[:, 0] < 0, direction[:, 2] < 0
    shade = torch.where(
        vertical,
        torch.where(down, 1.0, 0.5),
        torch.where(axis == 0, torch.where(east, 0.86, 0.62), torch.where(south, 0.78, 0.68)),
    )
    fog = t / FAR
    fog = (fog * fog * fog).clamp(max=1.0)[:, None]
    lit = (texel * (tint * shade)[:, None]).clamp(max=255.0)
    return lit * (1.0 - fog) + back * fog


def _f32(value: float) -> float:
    """The float32 nearest to a constant of the C source."""
    return float(torch.tensor(value, dtype=torch.float32))


def _mix(h: Tensor) -> Tensor:
    """The integer hash of the C source, on int64 that hold 32 bits."""
    h = h ^ (h >> 16)
    h = (h * 0x7FEB352D) & _MASK
    h = h ^ (h >> 15)
    h = (h * (0x846CA68B - (1 << 32))) & _MASK  # the same modulo 2^32, without overflowing int64
    return h ^ (h >> 16)
