"""From settings to a source."""

from __future__ import annotations

from collections.abc import Callable

from .settings import VOXEL, PlaySettings
from .source import PlaySource


def source_maker(settings: PlaySettings) -> Callable[[], PlaySource]:
    """What makes the source; called on the engine's thread, since loading takes a while."""

    def make() -> PlaySource:
        if settings.checkpoint == VOXEL:
            from .true_source import TrueSource

            return TrueSource()
        from .dream_source import DreamSource

        return DreamSource.load_model(settings)

    return make
