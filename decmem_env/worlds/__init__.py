"""The voxel ground truth: seeded worlds, a renderer, a player and walks through them (no gymnasium)."""

from .native import native_library
from .renderer import RenderedFrames, Renderer
from .simulator import Simulator, step_all
from .structures import Landmark
from .terrain import World, generate_world
from .trajectories import Trajectories, sample_trajectories, smooth_jitter

VERSION = 1  # of blocks, textures and physics: golden hashes in the tests keep it frozen

__all__ = [
    "VERSION",
    "Landmark",
    "RenderedFrames",
    "Renderer",
    "Simulator",
    "Trajectories",
    "World",
    "generate_world",
    "native_library",
    "sample_trajectories",
    "smooth_jitter",
    "step_all",
]
