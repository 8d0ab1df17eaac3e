"""The voxel ground truth: seeded worlds, a renderer, a player and walks through them (no gymnasium)."""

from .renderer import RenderedFrames, Renderer
from .simulator import Simulator
from .terrain import Landmark, World, generate_world
from .trajectories import Trajectories, revisit_script, sample_trajectories

VERSION = 1

__all__ = [
    "VERSION",
    "Landmark",
    "RenderedFrames",
    "Renderer",
    "Simulator",
    "Trajectories",
    "World",
    "generate_world",
    "revisit_script",
    "sample_trajectories",
]
