"""Seeded voxel terrain (hedge)."""

from __future__ import annotations
from dataclasses import dataclass
import numpy as np

X = Z = 256
Y = 64
WATER = 20


def hash32(a):
    a = np.asarray(a, np.uint64) & 0xFFFFFFFF
    a ^= a >> np.uint64(16)
    a = (a * 0x7FEB352D) & 0xFFFFFFFF
    a ^= a >> np.uint64(15)
    a = (a * 0x846CA68B) & 0xFFFFFFFF
    return a ^ (a >> np.uint64(16))


def noise(seed, salt, cell):
    n = X // cell + 2
    i = np.arange(n, dtype=np.uint64)
    h = hash32(i[:, None] * 0x9E3779B1 + hash32(i[None, :] + hash32(np.uint64(seed * 131 + salt))))
    g = h.astype(np.float64) / 4294967296.0
    p = np.arange(X) / cell
    k = p.astype(int)
    f = p - k
    f = f * f * (3 - 2 * f)
    r = g[k] * (1 - f)[:, None] + g[k + 1] * f[:, None]
    return r[:, k] * (1 - f)[None] + r[:, k + 1] * f[None]


AIR = 0
NAMES = "air grass dirt sand stone snow ice water log leaves dark_leaves cactus sandstone plank brick cobble red blue yellow white black orange purple cyan green pink gold glow tile marble mud dry_grass acacia_log acacia_leaves gravel basalt hay slate copper".split()
ID = {n: i for i, n in enumerate(NAMES)}


@dataclass
class Landmark:
    kind: str
    x: float
    y: float
    z: float


@dataclass
class World:
    seed: int
    blocks: np.ndarray
    spawn: np.ndarray
    landmarks: list
    biome: np.ndarray
    top: np.ndarray

    def ground(self, x: int, z: int):
        """Height of dry open standing ground at a column, or None."""
        y = int(self.top[x, z])
        if y <= WATER or self.blocks[x - 1 : x + 2, z - 1 : z + 2, y : y + 3].any():
            return None
        return float(y)


def generate_world(seed: int) -> World:
    rng = np.random.default_rng([seed, 7])
    s = int(seed)
    h = noise(s, 1, 64) * 9 + noise(s, 2, 32) * 6 + noise(s, 3, 16) * 3 + noise(s, 4, 8) * 1.0
    hill = np.clip(noise(s, 5, 48) * 2.4 - 1.2, 0, 1)
    h = h + hill * hill * 16
    t = noise(s, 6, 80)
    m = noise(s, 7, 80)
    biome = np.where(t > 0.62, np.where(m > 0.5, 1, 2), np.where(t < 0.36, 3, 0)).astype(
        np.uint8
    )  # 0 plains 1 desert 2 savanna 3 ice
    top = (13 + h).astype(int)
    i = np.arange(X)
    edge = np.minimum(np.minimum(i, X - 1 - i)[:, None], np.minimum(i, Z - 1 - i)[None, :])
    top = np.where(edge < 10, np.maximum(top, 30 + (10 - edge) * 3), top)
    top = np.clip(top, 4, Y - 4)
    b = np.zeros((X, Z, Y), np.uint8)
    ys = np.arange(Y)[None, None]
    T = top[:, :, None]
    b[:] = np.where(
        ys < T - 3,
        ID["stone"],
        np.where(ys < T, np.array([ID["dirt"], ID["sand"], ID["dirt"], ID["dirt"]], np.uint8)[biome][:, :, None], 0),
    )
    surf = np.array([ID["grass"], ID["sand"], ID["dry_grass"], ID["snow"]], np.uint8)[biome]
    surf = np.where(top <= WATER, ID["sand"], surf)
    surf = np.where(
        (noise(s, 8, 12) > 0.78) & (top > WATER),
        np.array([ID["gravel"], ID["sandstone"], ID["mud"], ID["ice"]], np.uint8)[biome],
        surf,
    )
    ii, jj = np.meshgrid(i, i, indexing="ij")
    b[ii, jj, top - 1] = surf
    wat = (ys >= T) & (ys < WATER)
    b[wat] = ID["water"]
    wl = np.where((biome == 3) & (top < WATER))
    b[wl[0], wl[1], WATER - 1] = ID["ice"]
    marks = []

    def box(x0, x1, z0, z1, y0, y1, v):
        b[max(x0, 1) : min(x1, X - 1), max(z0, 1) : min(z1, Z - 1), max(y0, 1) : min(y1, Y - 1)] = v

    # trees, cacti, rocks
    for _ in range(900):
        x, z = rng.integers(12, X - 12, 2)
        y = top[x, z]
        if y <= WATER:
            continue
        k = biome[x, z]
        r = rng.random()
        if k == 1:
            if r < 0.5:
                b[x, z, y : y + int(rng.integers(2, 5))] = ID["cactus"]
            continue
        if r < 0.08:
            w = int(rng.integers(1, 3))
            box(x - w, x + w, z - w, z + w, y - 1, y + w, ID[["cobble", "basalt", "slate"][int(rng.integers(3))]])
            continue
        if r < 0.55:
            continue
        hh = int(rng.integers(4, 8))
        log, leaf = (
            ("acacia_log", "acacia_leaves")
            if k == 2
            else ("log", "dark_leaves" if k == 3 or rng.random() < 0.4 else "leaves")
        )
        w = 2 if k != 2 else 3
        if k == 2:
            box(x - w, x + w + 1, z - w, z + w + 1, y + hh - 1, y + hh + 1, ID[leaf])
        elif k == 3:
            for q in range(3):
                box(x - 2 + q, x + 3 - q, z - 2 + q, z + 3 - q, y + hh - 4 + 2 * q, y + hh - 2 + 2 * q, ID[leaf])
        else:
            box(x - 2, x + 3, z - 2, z + 3, y + hh - 2, y + hh, ID[leaf])
            box(x - 1, x + 2, z - 1, z + 2, y + hh, y + hh + 1, ID[leaf])
        b[x, z, y : y + hh] = ID[log]
    mats = "plank brick cobble sandstone marble tile slate copper hay white red blue yellow".split()
    roofs = "red blue orange purple cyan green pink black brick slate".split()
    cols = "red blue yellow white black orange purple cyan green pink gold glow".split()
    cells = [(a, c) for a in range(14, X - 22, 16) for c in range(14, Z - 22, 16)]
    for a, c in cells:
        if rng.random() < 0.25:
            continue
        x = a + int(rng.integers(0, 6))
        z = c + int(rng.integers(0, 6))
        y = int(top[x + 2, z + 2])
        if y <= WATER:
            continue
        m1 = ID[mats[int(rng.integers(len(mats)))]]
        m2 = ID[roofs[int(rng.integers(len(roofs)))]]
        kind = int(rng.integers(7))
        if kind <= 1:  # house
            w, d, hh = int(rng.integers(5, 9)), int(rng.integers(5, 9)), int(rng.integers(3, 6))
            box(x, x + w, z, z + d, y - 3, y + hh, m1)
            box(x + 1, x + w - 1, z + 1, z + d - 1, y, y + hh, 0)
            box(x + w // 2, x + w // 2 + 1, z, z + 1, y, y + 2, 0)
            box(x, x + 1, z + d // 2, z + d // 2 + 2, y + 1, y + 2, 0)
            for q in range(min(w, d) // 2 + 1):
                box(x - 1 + q, x + w + 1 - q, z - 1 + q, z + d + 1 - q, y + hh + q, y + hh + q + 1, m2)
            name = "house"
        elif kind == 2:  # tower
            w = int(rng.integers(3, 5))
            hh = int(rng.integers(9, 18))
            box(x, x + w, z, z + w, y - 2, y + hh, m1)
            for q in range(2, hh, 4):
                box(x, x + w, z, z + w, y + q, y + q + 1, m2)
            box(x - 1, x + w + 1, z - 1, z + w + 1, y + hh, y + hh + 1, m2)
            name = "tower"
        elif kind == 3:  # pyramid
            w = int(rng.integers(4, 8))
            for q in range(w):
                box(x + q, x + 2 * w - q, z + q, z + 2 * w - q, y - 1 + q, y + q, m1 if q % 2 else m2)
            name = "pyramid"
        elif kind == 4:  # arch
            hh = int(rng.integers(4, 7))
            w = int(rng.integers(4, 8))
            box(x, x + 1, z, z + 2, y - 2, y + hh, m1)
            box(x + w, x + w + 1, z, z + 2, y - 2, y + hh, m1)
            box(x, x + w + 1, z, z + 2, y + hh, y + hh + 1, m2)
            name = "arch"
        elif kind == 5:  # wall/ruin
            w = int(rng.integers(6, 12))
            for q in range(w):
                box(x + q, x + q + 1, z, z + 1, y - 2, y + int(rng.integers(1, 5)), m1)
            name = "wall"
        else:  # monument
            hh = int(rng.integers(5, 11))
            for q in range(hh):
                box(x, x + 2, z, z + 2, y + q, y + q + 1, ID[cols[int(rng.integers(len(cols)))]])
            box(x - 1, x + 3, z - 1, z + 3, y - 2, y, m1)
            name = "monument"
        marks.append(Landmark(name, x + 2.0, float(y), z + 2.0))
    order = np.argsort(hash32(np.arange(64 * 64) + s * 7))
    spawn = None
    for o in order:
        x, z = 96 + int(o) // 64, 96 + int(o) % 64
        y = int(top[x, z])
        if y > WATER and abs(int(top[x + 1, z]) - y) <= 1 and not b[x - 1 : x + 2, z - 1 : z + 2, y : y + 3].any():
            spawn = np.array([x + 0.5, y, z + 0.5, 0, 15.0 * int(rng.integers(24))])
            break
    if spawn is None:
        spawn = np.array([128.5, float(max(top[128, 128], WATER)), 128.5, 0, 0])
    return World(s, b, spawn, marks, biome, top)


if __name__ == "__main__":
    import time

    t = time.time()
    w = generate_world(3)
    print(time.time() - t, w.spawn, len(w.landmarks))
