"""The pygame viewer: play a dream or the true world, record, replay, save, compare.

```python
from decmem_env.viewer import play
play(checkpoint="tiny", seed=8_000_000)
play(checkpoint="voxel", script="W*20 L*24", headless=True, record="recording")
```
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from .settings import PlaySettings, add_options, settings_from

__all__ = ["PlaySettings", "add_options", "play"]


def play(options: argparse.Namespace | None = None, **settings: Any) -> int:
    """Open the viewer and return when it is closed.

    Args:
        options: A parsed command line that `add_options` prepared; None takes the defaults.
        **settings: Fields of `PlaySettings`; they go before `options`.

    Returns:
        Exit code: 0, 1 if the model failed, 3 if a replay differs from its recording.

    Raises:
        ValueError: Settings that contradict each other, a bad action string, no recording where one was named.
        ImportError: pygame is missing.
    """
    chosen = PlaySettings(**settings) if options is None else settings_from(options, **settings)
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if chosen.headless:
        os.environ["SDL_VIDEODRIVER"] = "dummy"
    try:
        import pygame  # noqa: F401
    except ImportError:
        raise ImportError('the viewer needs pygame: pip install "decmem-env[play]"') from None
    from .app import App
    from .sources import source_maker

    return App(chosen, source_maker(chosen)).run()
