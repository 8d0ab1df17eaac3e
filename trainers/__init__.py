"""Stage trainers: autoencoder, dense_short, dense, decmem."""

from __future__ import annotations

from typing import Any

__all__ = ["run_stage", "stage_names"]


def __getattr__(name: str) -> Any:
    # Worker processes import this package; they need neither the models nor their start-up time.
    if name == "run_stage":
        from .stages import run_stage

        return run_stage
    if name == "stage_names":
        from .config import stage_names

        return stage_names
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
