from __future__ import annotations
import ctypes, hashlib, os, subprocess, tempfile
from pathlib import Path
from typing import NamedTuple
import numpy as np, torch
from decmem_env.conventions import poses as P
from .terrain import NAMES, hash32

PAL = dict(
    air=(0, 0, 0),
    grass=(96, 150, 56),
    dirt=(126, 92, 62),
    sand=(216, 200, 146),
    stone=(128, 128, 128),
    snow=(236, 242, 248),
    ice=(150, 190, 240),
    water=(48, 86, 190),
    log=(104, 82, 50),
    leaves=(58, 112, 36),
    dark_leaves=(40, 84, 52),
    cactus=(46, 128, 52),
    sandstone=(206, 186, 126),
    plank=(176, 138, 84),
    brick=(152, 84, 68),
    cobble=(118, 118, 122),
    red=(176, 40, 36),
    blue=(48, 62, 168),
    yellow=(232, 196, 46),
    white=(228, 230, 232),
    black=(32, 32, 38),
    orange=(232, 124, 28),
    purple=(128, 48, 172),
    cyan=(30, 146, 158),
    green=(86, 124, 30),
    pink=(232, 138, 172),
    gold=(244, 206, 60),
    glow=(248, 224, 150),
    tile=(90, 140, 150),
    marble=(224, 218, 210),
    mud=(92, 72, 64),
    dry_grass=(168, 160, 76),
    acacia_log=(120, 108, 98),
    acacia_leaves=(128, 140, 40),
    gravel=(140, 132, 128),
    basalt=(70, 70, 76),
    hay=(196, 166, 40),
    slate=(84, 92, 108),
    copper=(196, 116, 84),
)


def atlas() -> np.ndarray:
    out = np.zeros((len(NAMES), 3, 341, 3), np.uint8)
    i, j = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")

    def rnd(salt):
        return hash32(i * 16 + j + salt * 977).astype(np.float64) / 4294967296.0

    for n, name in enumerate(NAMES):
        base = np.array(PAL[name], float)
        for f in range(3):
            r = rnd(n * 3 + f)
            r2 = np.kron(rnd(n * 3 + f + 500)[:8, :8], np.ones((2, 2)))
            m = 1 + 0.22 * (r - 0.5) + 0.16 * (r2 - 0.5)
            col = np.ones((16, 16, 3)) * base
            if name in ("brick", "slate", "tile", "sandstone", "basalt"):
                row = i // 4
                off = (row % 2) * 4
                mort = (i % 4 == 3) | ((j + off) % 8 == 7)
                m = np.where(mort, 0.62, m)
            elif name in ("plank", "hay", "acacia_log", "log"):
                m = (
                    m * np.where(i % 4 == 3, 0.68, 1.0) * (1 + 0.12 * np.sin(0) * 0)
                    if name in ("plank", "hay")
                    else m * np.where(j % 4 == 3, 0.66, 1.0)
                )
                if f and name.endswith("log"):
                    m = 1 + 0.3 * (((np.maximum(abs(i - 7.5), abs(j - 7.5))).astype(int) % 3) - 1) * 0.6
            elif name in ("cobble", "gravel", "stone", "marble"):
                m = 1 + 0.42 * (r2 - 0.5) + 0.16 * (r - 0.5)
            elif name in ("leaves", "dark_leaves", "acacia_leaves", "grass", "dry_grass"):
                m = 1 + 0.5 * (r2 - 0.5) + 0.3 * (r - 0.5)
                if name in ("grass", "dry_grass") and f == 0:
                    depth = 4 + (hash32(j + n * 31) % np.uint64(3)).astype(int)
                    col = np.where((i < depth)[..., None], base, np.array(PAL["dirt"], float))
            elif name in ("red", "blue", "yellow", "white", "black", "orange", "purple", "cyan", "green", "pink"):
                m = 1 + 0.18 * (r - 0.5) + 0.14 * np.where((i // 2 + j // 2) % 2 == 0, 1, -1) * 0.5
                m = np.where((i == 0) | (j == 0), m * 0.78, m)
            elif name in ("gold", "glow", "copper", "ice"):
                m = (
                    m
                    * np.where((i == 0) | (j == 0) | (i == 15) | (j == 15), 0.72, 1.0)
                    * np.where(abs(i - j) < 2, 1.15, 1.0)
                )
            elif name == "cactus":
                m = m * np.where(j % 5 == 2, 0.6, 1.0)
            elif name == "sand":
                m = m * np.where((i + (j // 3)) % 5 == 0, 0.88, 1.0)
            tex = np.clip(col * m[..., None], 0, 255)
            o = 0
            for lod in range(5):
                s = 16 >> lod
                mip = tex.reshape(s, 1 << lod, s, 1 << lod, 3).mean((1, 3))
                out[n, f, o : o + s * s] = (mip.reshape(-1, 3) + 0.5).astype(np.uint8)
                o += s * s
    return out


class RenderedFrames(NamedTuple):
    rgb: torch.Tensor
    depth: torch.Tensor | None
    block_ids: torch.Tensor | None


SOURCE = Path(__file__).with_name("raymarch.c").read_text()
_lib = None


def lib():
    global _lib
    if _lib is None:
        d = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "decmem"
        d.mkdir(parents=True, exist_ok=True)
        so = d / f"ray-{hashlib.sha256(SOURCE.encode()).hexdigest()[:12]}.so"
        if not so.exists():
            with tempfile.TemporaryDirectory() as t:
                (Path(t) / "a.c").write_text(SOURCE)
                subprocess.run(
                    [
                        "cc",
                        "-O3",
                        "-march=native",
                        "-ffp-contract=off",
                        "-fopenmp",
                        "-shared",
                        "-fPIC",
                        "-o",
                        t + "/a.so",
                        t + "/a.c",
                        "-lm",
                    ],
                    check=True,
                )
                os.replace(t + "/a.so", str(so) + ".tmp")
                os.replace(str(so) + ".tmp", so)
        _lib = ctypes.CDLL(str(so))
    return _lib


class Renderer:
    """Renders voxel worlds from player poses, on the CPU or a CUDA device.

    Args:
        height: Pixels, up to 352.
        width: Pixels, up to 640.
        samples: Rays a pixel along each side (2 gives 2x2).
        vertical_fov: Degrees; pixels are square.
        device: `cpu` or a CUDA device.
    """

    def __init__(
        self,
        height: int = 96,
        width: int = 160,
        samples: int = 2,
        vertical_fov: float = P.VERTICAL_FOV,
        device: str | torch.device = "cpu",
    ) -> None:
        self.height, self.width, self.samples, self.device = height, width, samples, torch.device(device)
        self._tangent = float(np.tan(np.radians(vertical_fov / 2.0)))
        self._atlas = torch.from_numpy(atlas()).to(self.device)
        self._cuda = None
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                self._cuda = torch.cuda._compile_kernel(SOURCE, "render", nvcc_options=["--fmad=false"])

    def _cameras(self, poses: torch.Tensor) -> torch.Tensor:
        """Eye, right, up (both scaled to the image plane) and forward of each pose, fp32 [N, 12]."""
        pitch, yaw = torch.deg2rad(poses[:, 3]), torch.deg2rad(-poses[:, 4])
        cp, sp, cy, sy = pitch.cos(), pitch.sin(), yaw.cos(), yaw.sin()
        up, side = self._tangent, self._tangent * self.width / self.height
        zero = torch.zeros_like(cp)
        eye = [poses[:, 0], poses[:, 1] + P.EYE_HEIGHT, poses[:, 2]]
        right = [-cy * side, zero, sy * side]
        above = [sy * sp * up, cp * up, cy * sp * up]
        ahead = [sy * cp, -sp, cy * cp]
        return torch.stack([*eye, *right, *above, *ahead], -1).float().contiguous()

    def render(self, blocks, world_index, poses, depth=False, block_ids=False):
        n, height, width = len(poses), self.height, self.width
        cams = self._cameras(torch.as_tensor(poses, dtype=torch.float64).to(self.device))
        wi = torch.as_tensor(world_index, dtype=torch.int64).to(self.device)
        rgb = torch.empty(n, height, width, 3, dtype=torch.uint8, device=self.device)
        d = torch.empty(n, height, width, device=self.device) if depth else None
        ids = torch.empty(n, height, width, dtype=torch.uint8, device=self.device) if block_ids else None
        extra = int(depth) + 2 * int(block_ids)
        if self._cuda is not None:
            threads = n * ((width + 7) // 8) * ((height + 3) // 4) * 32
            grid = ((threads + 127) // 128, 1, 1)
            outputs = (rgb, rgb if d is None else d, rgb if ids is None else ids)
            self._cuda(
                grid, (128, 1, 1), (blocks, wi, cams, self._atlas, height, width, self.samples, n, extra, *outputs)
            )
        else:

            def pointer(t):
                return ctypes.c_void_p(None if t is None else t.data_ptr())

            arrays = (pointer(t) for t in (blocks, wi, cams, self._atlas))
            lib().render(*arrays, height, width, self.samples, n, extra, pointer(rgb), pointer(d), pointer(ids))
        return RenderedFrames(rgb, d, ids)
