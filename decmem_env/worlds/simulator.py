from __future__ import annotations
import numpy as np
from decmem_env.conventions.actions import Action, CAMERA_STEP_DEGREES, validate_vector
from decmem_env.conventions import poses as P
from .terrain import X, Y, Z, ID

HALF = 0.3
HEIGHT = 1.8
GRAVITY = 0.22
JUMP = 0.66
TERMINAL = 1.5
PASS = np.zeros(256, bool)
PASS[[0, ID["water"]]] = True


class Simulator:
    def __init__(s, worlds, poses=None, copy=True):
        s.worlds = list(worlds)
        n = len(s.worlds)
        s.blocks = np.stack([w.blocks for w in s.worlds]) if copy else [w.blocks for w in s.worlds]
        s.poses = np.stack([w.spawn for w in s.worlds]).astype(np.float64) if poses is None else np.array(poses, float)
        s.vy = np.zeros(n)
        s.edits = []
        s.n = n
        s.row = np.arange(n)
        s.flat = s.blocks.reshape(-1) if copy else None
        s.index = np.arange(n)

    @classmethod
    def shared(cls, worlds, index, poses):
        s = cls.__new__(cls)
        s.worlds = [worlds[i] for i in index]
        s.blocks = worlds[0].blocks[None] if len(worlds) == 1 else np.stack([w.blocks for w in worlds])
        s.flat = s.blocks.reshape(-1)
        s.index = np.asarray(index)
        s.poses = np.array(poses, float)
        s.n = len(s.index)
        s.vy = np.zeros(s.n)
        s.edits = []
        return s

    def teleport(s, i, pose):
        s.poses[i] = P.validate_poses(pose)
        s.vy[i] = 0.0

    def snapshot(s):
        return dict(blocks=s.blocks.copy(), poses=s.poses.copy(), vy=s.vy.copy(), edits=list(s.edits))

    def restore(s, state):
        s.blocks[...] = state["blocks"]
        s.poses = state["poses"].copy()
        s.vy = state["vy"].copy()
        s.edits = list(state["edits"])

    def get(s, x, y, z):
        i = s.index if x.ndim == 1 else s.index[:, None]
        inside = (x >= 0) & (x < X) & (z >= 0) & (z < Z)
        b = s.flat[((i * X + np.clip(x, 0, X - 1)) * Z + np.clip(z, 0, Z - 1)) * Y + np.clip(y, 0, Y - 1)]
        return np.where(inside & (y >= 0), np.where(y < Y, b, 0), 1)

    def hits(s, x, y, z):
        """Whether the player's box at feet (x, y, z) overlaps a solid block, [n]."""
        e = 1e-6
        xs = np.floor(np.stack([x - HALF + e, x + HALF - e], -1)).astype(int)
        zs = np.floor(np.stack([z - HALF + e, z + HALF - e], -1)).astype(int)
        ys = np.floor(np.stack([y + e, y + 0.9, y + HEIGHT - e], -1)).astype(int)
        X8 = np.repeat(xs, 6, -1)
        Z8 = np.tile(np.repeat(zs, 3, -1), (1, 2))
        Y8 = np.tile(ys, (1, 4))
        return (~PASS[s.get(X8, Y8, Z8)]).any(-1)

    def step(s, actions):
        a = validate_vector(actions).astype(np.float64)
        p = s.poses.copy()
        p[:, 3] = np.clip(p[:, 3] + CAMERA_STEP_DEGREES * a[:, Action.CAMERA_PITCH], -P.MAX_PITCH, P.MAX_PITCH)
        p[:, 4] = P.wrap_degrees(p[:, 4] + CAMERA_STEP_DEGREES * a[:, Action.CAMERA_YAW])
        f = a[:, Action.FORWARD] - a[:, Action.BACK]
        r = a[:, Action.RIGHT] - a[:, Action.LEFT]
        m = np.maximum(np.hypot(f, r), 1)
        yaw = np.radians(p[:, 4])
        fx, fy, fz = (np.floor(p[:, i]).astype(int) for i in range(3))
        wet = s.get(fx, np.floor(p[:, 1] + 0.4).astype(int), fz) == ID["water"]
        sp = P.WALK_SPEED * np.where(wet, 0.5, 1.0) / m
        dx = (-np.sin(yaw) * f - np.cos(yaw) * r) * sp
        dz = (np.cos(yaw) * f - np.sin(yaw) * r) * sp
        x, y, z = p[:, 0], p[:, 1], p[:, 2]
        ground = s.hits(x, y - 0.02, z)
        for ax in (0, 2):
            nx = x + dx if ax == 0 else x
            nz = z + dz if ax == 2 else z
            h = s.hits(nx, y, nz)
            up = np.floor(y + 1e-6) + 1.0
            can = h & (ground | wet) & ~s.hits(nx, up, nz) & ~s.hits(x, up, z) & ((dx if ax == 0 else dz) != 0)
            y = np.where(can, up, y)
            ok = ~h | can
            x = np.where(ok, nx, x)
            z = np.where(ok, nz, z)
        s.vy = np.where(ground & (s.vy <= 0), np.where(a[:, Action.JUMP] > 0.5, JUMP, 0.0), s.vy)
        s.vy = np.where(wet, np.where(a[:, Action.JUMP] > 0.5, 0.3, 0.04), s.vy)
        rest = ~s.hits(x, y - 0.02, z) | (s.vy > 0)
        vy = np.where(rest, s.vy, 0.0)
        # falls are substepped a block at most
        left = vy.copy()
        for _ in range(2):
            d = np.clip(left, -1, 1)
            ny = y + d
            h = s.hits(x, ny, z)
            land = np.where(d < 0, np.floor(ny) + 1.0, np.floor(ny + HEIGHT) - HEIGHT - 1e-6)
            y = np.where(h, np.where(s.hits(x, land, z), y, land), ny)
            left = np.where(h, 0, left - d)
            vy = np.where(h, 0, vy)
        s.vy = np.where(rest, np.maximum(vy - GRAVITY, -TERMINAL), 0.0)
        s.vy = np.where(s.hits(x, y - 0.02, z) & (s.vy < 0), 0.0, s.vy)
        p[:, 0], p[:, 1], p[:, 2] = x, y, z
        s.poses = p
        for i in np.flatnonzero((a[:, Action.ATTACK] > 0.5) | (a[:, Action.PLACE] > 0.5)):
            s._edit(int(i), a[i, Action.ATTACK] > 0.5)
        return s.poses.copy()

    def _edit(s, i, attack):
        o = s.poses[i, :3] + [0, P.EYE_HEIGHT, 0]
        d = P.look_vector(s.poses[i])
        b = s.blocks[s.index[i]]
        prev = None
        for t in np.arange(0, 5.0, 0.02):
            c = tuple(np.floor(o + d * t).astype(int))
            if not (0 <= c[0] < X and 0 <= c[2] < Z and 0 <= c[1] < Y):
                prev = None
                continue
            v = int(b[c[0], c[2], c[1]])
            if v and v != ID["water"]:
                if attack and c[1] > 0:
                    b[c[0], c[2], c[1]] = 0
                    s.edits.append((i, *c, 0))
                elif not attack and prev is not None:
                    b[prev[0], prev[2], prev[1]] = ID["orange"]
                    if s.hits(*s.poses[:, :3].T)[i]:
                        b[prev[0], prev[2], prev[1]] = 0
                    else:
                        s.edits.append((i, *prev, ID["orange"]))
                return
            prev = c
