"""`DecMem-Minecraft-v0`: one dreamed world as a gymnasium environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from .dream import Dream
from .rows import Row, Rows, RowSnapshot
from .window import Window

RENDER_FPS = 10


class RowEnv(gym.Env[Any, Any]):
    """One row as an environment; `DecMemEnv` and `VoxelEnv` say where its frames come from.

    Args:
        rows: Backend and settings.
        render_mode: None, `rgb_array` or `human`.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": RENDER_FPS}

    def __init__(self, rows: Rows, render_mode: str | None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"unknown render_mode {render_mode!r}: expected human, rgb_array or None")
        self.render_mode = render_mode
        self.observation_space, self.action_space = rows.observation_space, rows.action_space
        self._rows = rows
        self._row: Row | None = None
        self._window = Window("decmem-env", RENDER_FPS) if render_mode == "human" else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seeds the generator that draws the world, the walk through it and the model's noise.
            options: None for a fresh voxel world, or one of `world_seed` (int), `clip` (path of an mp4 with its npz),
                `frames` (uint8 [C, H, W, 3], with optional `actions` [C, 25] and `poses` [C, 5]), `image` (path or
                uint8 [H, W, 3]). What has no poses starts at pose 0.

        Returns:
            Observation and info (`pose`, `pose_source`, `frame_index`, `memory_frames`).

        Raises:
            ValueError: Bad options; the message says how to mend them.
            FileNotFoundError: No such clip or image.
        """
        super().reset(seed=seed)
        row = self._rows.start(self.np_random, options)
        self._drop()
        self._row = row
        self._show()
        return self._rows.observe(row), self._rows.info(row)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Generate the next chunk of frames under one action, held over the chunk.

        Args:
            action: In the action space.

        Returns:
            Observation (the last frame), reward, terminated (the task succeeded), False, info.

        Raises:
            ValueError: The action lies outside its space.
        """
        row = self._current()
        rewards, terminated = self._rows.step([row], [action])
        self._show()
        return self._rows.observe(row), float(rewards[0]), bool(terminated[0]), False, self._rows.info(row)

    def render(self) -> NDArray[np.uint8] | None:
        """The last frame at full size, uint8 [H, W, 3], or None (`human` draws in reset and step)."""
        if self.render_mode != "rgb_array":
            return None
        return self._current().frame.copy()

    @property
    def stats(self) -> dict[str, Any]:
        """What `info` leaves out: memory, timings, retrieved lists, world seed, landmark, all frames of the step."""
        return self._rows.stats(self._current())

    @property
    def session(self) -> Any:
        """The model's `Session` of the running episode (a renderer slot in the true world)."""
        return self._current().handle

    def snapshot(self) -> RowSnapshot:
        """Freeze the world: memory, noise, pose, player, task and generator (the time limit is the wrapper's)."""
        return self._rows.snapshot(self._current())

    def restore(self, snapshot: RowSnapshot) -> tuple[Any, dict[str, Any]]:
        """Go back to a snapshot.

        Returns:
            Observation and info of that moment.
        """
        row = self._rows.restore(snapshot)
        self._adopt(row)
        self._show()
        return self._rows.observe(row), self._rows.info(row)

    def fork(self, count: int) -> list[RowEnv]:
        """Independent copies of this world that share the model: the first goes on exactly as this one would.

        Args:
            count: How many, at least 1.

        Returns:
            Environments without wrappers, ready to step.
        """
        children: list[RowEnv] = []
        for row in self._rows.fork(self._current(), count):
            child = RowEnv.__new__(type(self))
            RowEnv.__init__(child, self._rows, None if self.render_mode == "human" else self.render_mode)
            child.spec = self.spec
            child._adopt(row)
            children.append(child)
        return children

    def close(self) -> None:
        """Free the session and the window; closing twice is harmless."""
        self._drop()
        if self._window is not None:
            self._window.close()

    def _adopt(self, row: Row) -> None:
        self._drop()
        self._row = row
        self.np_random = row.rng

    def _current(self) -> Row:
        if self._row is None:
            raise RuntimeError("no episode is running: call reset() first")
        return self._row

    def _drop(self) -> None:
        if self._row is not None:
            self._rows.close(self._row)
            self._row = None

    def _show(self) -> None:
        if self._window is not None:
            self._window.show(self._current().frame)


class DecMemEnv(RowEnv):
    """A neural world with memory (`DecMem-Minecraft-v0`).

    One step is one chunk of the model: one frame at 10 frames a second for the bundled `tiny`, 16 for `wan-1.3b` (the
    observation is the last of them, `unwrapped.stats["frames"]` holds all). The reward is 0 unless a `task` is chosen;
    `terminated` means that the task succeeded; time limits are gymnasium's (`max_episode_steps`).

    `info` holds `pose` (float64 [5]: x, y, z of the feet in blocks, pitch, yaw in degrees), `pose_source` (`truth`,
    `predictor`, `kinematic` or `given`), `frame_index` (frames since the reset) and `memory_frames` (latent frames);
    all else is in `unwrapped.stats`. Replaying seed and actions gives the same frames bit by bit on one machine, build,
    thread count, device and kernel choice.

    Args:
        render_mode: None, `rgb_array` or `human`.
        checkpoint: Bundled name (`tiny`), folder, hub id, or a size with random weights (`debug`, `wan-1.3b`,
            `wan-debug`).
        device: `cpu`, `cuda` or `auto`.
        memory_budget: Bytes for the memories of all worlds of this checkpoint, device and budget; None: the model's.
        memory: What the model may attend to: `memory`, `every`, `content`, `dense`, `window` or `off`
            (`WorldModel.start`).
        steps: Denoising steps a frame; None is the model's default.
        guidance: Action guidance scale; None is the model's default.
        top_k: Retrieved blocks a query block; None is the model's default.
        **settings: `action_mode`, `obs_mode`, `obs_size`, `task`, `pose_source`, `context_frames`, `world_seeds`: see
            `rows.Settings`.

    Example:
        >>> import gymnasium as gym
        >>> import decmem_env
        >>> env = gym.make("DecMem-Minecraft-v0", checkpoint="debug", context_frames=4)
        >>> frame, info = env.reset(seed=0)
        >>> frame, reward, terminated, truncated, info = env.step(1)  # forward
        >>> frame.shape, info["frame_index"]
        ((96, 160, 3), 1)
    """

    def __init__(
        self,
        render_mode: str | None = None,
        *,
        checkpoint: str = "tiny",
        device: str = "auto",
        memory_budget: int | None = None,
        memory: str = "memory",
        steps: int | None = None,
        guidance: float | None = None,
        top_k: int | None = None,
        **settings: Any,
    ) -> None:
        dream = Dream(checkpoint, device, memory_budget, memory=memory, steps=steps, guidance=guidance, top_k=top_k)
        super().__init__(Rows(dream, settings), render_mode)

    @property
    def model(self) -> Any:
        """The `WorldModel`, shared by every environment of the same checkpoint and device."""
        backend: Any = self._rows.backend
        return backend.model
