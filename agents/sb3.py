"""Adapter: a gymnasium vector environment as a Stable-Baselines3 `VecEnv`.

SB3 speaks the old vector interface (finished episodes restart within the step), so the environment must be made with
`autoreset_mode="SAME_STEP"`. One process, one batched model step: SB3's own SubprocVecEnv would load the model N times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError:
    raise ImportError('agents need Stable-Baselines3: pip install "decmem-env[rl]"') from None


class SB3VecEnv(VecEnv):
    """A SAME_STEP vector environment for SB3.

    Args:
        env: Made with `autoreset_mode="SAME_STEP"`.

    Raises:
        ValueError: Another autoreset mode.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise ValueError('SB3 needs autoreset_mode="SAME_STEP": pass it to the vector environment')
        self.env = env
        self._actions: Any = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """Start all episodes, with the seeds of `seed` if it was called."""
        given = [seed for seed in self._seeds if seed is not None]
        seeds: Any = self._seeds if given else None
        observations, _ = self.env.reset(seed=seeds)
        self._reset_seeds()
        return observations

    def step_async(self, actions: Any) -> None:
        """Take the actions of the next step."""
        self._actions = actions

    def step_wait(self) -> Any:
        """Observations, float32 rewards, dones and one info a row."""
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        done = terminated | truncated
        rows: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(done):
            rows[i]["terminal_observation"] = infos["final_obs"][i]
            rows[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            rows[i]["is_success"] = bool(terminated[i])
        return observations, rewards.astype(np.float32), done, rows

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the vector environment, once a row."""
        return [getattr(self.env, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the vector environment."""
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Call a method of the vector environment once; its result stands for every row."""
        return [getattr(self.env, method_name)(*args, **kwargs)] * len(self._rows(indices))

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Rows are not wrapped one by one."""
        return [False] * len(self._rows(indices))

    def _rows(self, indices: Any) -> Sequence[int]:
        return list(self._get_indices(indices))
