"""The engine: transformer, memory, autoencoder, sessions."""

from .checkpoint import CheckpointError
from .config import ModelConfig
from .session import Session
from .snapshot import Snapshot, SnapshotError
from .world_model import WorldModel

__all__ = ["CheckpointError", "ModelConfig", "Session", "Snapshot", "SnapshotError", "WorldModel"]
