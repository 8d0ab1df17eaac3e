"""Vector environments: N worlds, one batched step. `gym.make_vec("DecMem-Minecraft-v0", num_envs=N)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from .dream import Dream
from .env import RENDER_FPS
from .rows import Row, Rows


class RowVectorEnv(VectorEnv[Any, Any, NDArray[Any]]):
    """N rows as a vector environment; row i of seed s does what a single environment of seed s + i does.

    Args:
        rows: Backend and settings.
        num_envs: N.
        max_episode_steps: Steps after which an episode is truncated; None: never.
        autoreset_mode: A name or member of `gymnasium.vector.AutoresetMode`.
        render_mode: None or `rgb_array`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": RENDER_FPS}

    def __init__(
        self, rows: Rows, num_envs: int, max_episode_steps: int | None, autoreset_mode: Any, render_mode: str | None
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}: expected at least 1")
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps is {max_episode_steps}: expected at least 1, or None for no limit")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"unknown render_mode {render_mode!r}: a vector environment has rgb_array or None")
        self.num_envs, self.render_mode = num_envs, render_mode
        self.autoreset_mode = _autoreset_mode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space: Space[Any] = rows.observation_space
        self.single_action_space: Space[Any] = rows.action_space
        self.observation_space = batch_space(rows.observation_space, num_envs)
        self.action_space = batch_space(rows.action_space, num_envs)
        self._rows = rows
        self._limit = max_episode_steps
        self._generators: list[np.random.Generator] = []
        self._worlds: list[Row | None] = [None] * num_envs
        self._elapsed = np.zeros(num_envs, np.int64)
        self._over = np.zeros(num_envs, np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes in all rows, or in those of `options["reset_mask"]` (bool [N]).

        Args:
            seed: Row i takes seed + i; or one seed a row.
            options: As for a single environment; `world_seed` may also be a sequence of N.

        Returns:
            Batched observations and infos.
        """
        given = dict(options or {})
        mask = self._mask(given.pop("reset_mask", None))
        seeds: list[int | None]
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} entries: expected one for each of {self.num_envs} environments")
        worlds = given.get("world_seed")
        if worlds is not None and not _is_scalar(worlds) and len(worlds) != self.num_envs:
            raise ValueError(f"options['world_seed'] has {len(worlds)} entries: expected one number or {self.num_envs}")
        if not self._generators:
            self._generators = [np_random(None if s is None else int(s))[0] for s in seeds]
        else:
            for i in np.flatnonzero(mask):
                own_seed = seeds[int(i)]
                if own_seed is not None:
                    self._generators[i] = np_random(int(own_seed))[0]
        infos: dict[str, Any] = {}
        for i in np.flatnonzero(mask):
            own = given if worlds is None or _is_scalar(worlds) else {**given, "world_seed": int(worlds[i])}
            infos = self._add_info(infos, self._rows.info(self._begin(int(i), own)), int(i))
        return self._observe(), infos

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Advance every running row in one batch; finished rows do as `autoreset_mode` says."""
        rows = self._running()
        wanted = list(iterate(self.action_space, actions))
        if len(wanted) != self.num_envs:
            raise ValueError(f"{len(wanted)} actions for {self.num_envs} environments: expected one for each")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._over.any():
            ended = np.flatnonzero(self._over).tolist()
            raise RuntimeError(f"environments {ended} have ended: reset them with options={{'reset_mask': mask}} first")
        moving = np.flatnonzero(~self._over)
        rewards, terminated = np.zeros(self.num_envs), np.zeros(self.num_envs, np.bool_)
        if len(moving):
            rewards[moving], terminated[moving] = self._rows.step(
                [rows[i] for i in moving], [wanted[i] for i in moving]
            )
            self._elapsed[moving] += 1
        truncated = np.zeros(self.num_envs, np.bool_)
        if self._limit is not None:
            truncated[moving] = self._elapsed[moving] >= self._limit
        for i in np.flatnonzero(self._over):  # only NEXT_STEP leaves ended rows for the next step
            self._begin(int(i), None)
        self._over = terminated | truncated
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            for i in np.flatnonzero(self._over):
                last = {"final_obs": self._rows.observe(rows[i]), "final_info": self._rows.info(rows[i])}
                infos = self._add_info(infos, last, int(i))
                self._begin(int(i), None)
        for number, row in enumerate(self._running()):
            infos = self._add_info(infos, self._rows.info(row), number)
        return self._observe(), rewards, terminated, truncated, infos

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """The last frame of every world at full size, or None."""
        if self.render_mode is None:
            return None
        return tuple(row.frame.copy() for row in self._running())

    @property
    def stats(self) -> list[dict[str, Any]]:
        """What `infos` leave out, one dictionary a row."""
        return [self._rows.stats(row) for row in self._running()]

    def close_extras(self, **kwargs: Any) -> None:
        """Free the sessions."""
        for i, row in enumerate(self._worlds):
            if row is not None:
                self._rows.close(row)
                self._worlds[i] = None

    def _begin(self, index: int, options: Mapping[str, Any] | None) -> Row:
        row = self._rows.start(self._generators[index], options)
        old = self._worlds[index]
        if old is not None:
            self._rows.close(old)
        self._worlds[index] = row
        self._elapsed[index], self._over[index] = 0, False
        return row

    def _observe(self) -> Any:
        observations = [self._rows.observe(row) for row in self._running()]
        space = self.single_observation_space
        empty: Any = create_empty_array(space, self.num_envs)
        return concatenate(space, observations, empty)

    def _running(self) -> list[Row]:
        if any(row is None for row in self._worlds):
            raise RuntimeError("no episode is running in some environments: call reset() without a mask first")
        return [row for row in self._worlds if row is not None]

    def _mask(self, mask: Any) -> NDArray[np.bool_]:
        if mask is None:
            return np.ones(self.num_envs, np.bool_)
        array = np.asarray(mask)
        if array.shape != (self.num_envs,) or array.dtype != np.bool_ or not array.any():
            raise ValueError(
                f"options['reset_mask'] is {array.dtype} {array.shape}: expected bool [{self.num_envs}], not all False"
            )
        return array


class DecMemVectorEnv(RowVectorEnv):
    """N dreamed worlds, one batched model step (`gym.make_vec("DecMem-Minecraft-v0", num_envs=N)`).

    Args:
        num_envs: N.
        max_episode_steps: Steps after which an episode is truncated; None: never.
        autoreset_mode: `NEXT_STEP`, `SAME_STEP` or `DISABLED` (a name or `gymnasium.vector.AutoresetMode`).
        render_mode: None or `rgb_array`.
        checkpoint: As for `DecMemEnv`, like all that follow.
        device: `cpu`, `cuda` or `auto`.
        memory_budget: Bytes for the memories of all worlds together; None: the model's, on CUDA half a GiB a world if
            that is more, at most a quarter of the device.
        memory: `memory`, `every`, `content`, `dense`, `window` or `off`.
        steps: Denoising steps a frame.
        guidance: Action guidance scale.
        top_k: Retrieved blocks a query block.
        **settings: See `rows.Settings`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        *,
        autoreset_mode: Any = "NEXT_STEP",
        render_mode: str | None = None,
        checkpoint: str = "tiny",
        device: str = "auto",
        memory_budget: int | None = None,
        memory: str = "memory",
        steps: int | None = None,
        guidance: float | None = None,
        top_k: int | None = None,
        **settings: Any,
    ) -> None:
        sampling = {"memory": memory, "steps": steps, "guidance": guidance, "top_k": top_k}
        dream = Dream(checkpoint, device, memory_budget, worlds=num_envs, **sampling)
        super().__init__(Rows(dream, settings), num_envs, max_episode_steps, autoreset_mode, render_mode)


def _autoreset_mode(mode: Any) -> AutoresetMode:
    if isinstance(mode, AutoresetMode):
        return mode
    for member in AutoresetMode:
        if str(mode) in (member.name, member.value):
            return member
    raise ValueError(f"unknown autoreset_mode {mode!r}: expected {', '.join(m.name for m in AutoresetMode)}")


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, int | np.integer)
