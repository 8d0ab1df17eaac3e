"""The network of a PPO policy, and how a saved one is read.

SB3's zip holds pickled Python objects beside the weights. `load_policy` reads the weights only (SB3 loads them with
`weights_only=True`) and builds the network itself: a policy from somebody else cannot run code here, and one trained
under another version of Python still loads.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

try:
    from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
    from stable_baselines3.common.save_util import load_from_zip_file
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
except ImportError:
    raise ImportError('agents need Stable-Baselines3: pip install "decmem-env[rl]"') from None

OBSERVATION_SIZE = (64, 64)


class FrameAndGoal(BaseFeaturesExtractor):
    """Features of `obs_mode="frame_goal"`: a small convolutional net beside a goal net of its own.

    SB3's default would join three goal numbers to 256 picture features, and PPO of 20,000 steps would overlook them.
    """

    def __init__(self, space: spaces.Dict, picture: int = 32, goal: int = 64) -> None:
        super().__init__(space, picture + goal)
        shape = space["frame"].shape  # SB3 has moved the channels to the front
        assert shape is not None
        channels, height, width = shape
        self.picture = nn.Sequential(
            nn.Conv2d(channels, 16, 8, 4),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * _after(height) * _after(width), picture),
            nn.Tanh(),
        )
        self.goal = nn.Sequential(nn.Linear(3, goal), nn.Tanh(), nn.Linear(goal, goal), nn.Tanh())

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """Features [B, picture + goal]; SB3 has scaled the frame to [0, 1]."""
        return torch.cat([self.picture(observations["frame"]), self.goal(observations["goal"])], 1)


def _after(side: int) -> int:
    return ((side - 8) // 4 + 1 - 4) // 2 + 1


def policy_settings(with_goal: bool) -> dict[str, Any] | None:
    """`policy_kwargs` of PPO: SB3's own network for frames alone, `FrameAndGoal` where a goal is shown beside them."""
    return {"features_extractor_class": FrameAndGoal, "net_arch": [64]} if with_goal else None


def load_policy(path: str | Path, device: str = "cpu") -> ActorCriticPolicy:
    """Load the policy of a training run.

    Args:
        path: A `policy.zip` of `agents.ppo`.
        device: Where it shall run.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file holds no policy of ours.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"policy {path} does not exist: train one with python -m decmem_env.agents.ppo")
    try:
        _, params, _ = load_from_zip_file(path, load_data=False, device=device)
        weights: dict[str, Any] = dict(params["policy"])  # type: ignore[call-overload]
        with_goal = any(name.startswith("features_extractor.goal.") for name in weights)
        # As SB3's own wrapper leaves them: channels first.
        frame = spaces.Box(0, 255, (3, *OBSERVATION_SIZE), np.uint8)
        goal = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        space: Any = spaces.Dict({"frame": frame, "goal": goal}) if with_goal else frame
        kind: Any = MultiInputActorCriticPolicy if with_goal else ActorCriticCnnPolicy
        actions = spaces.Discrete(len(weights["action_net.bias"]))
        policy: ActorCriticPolicy = kind(space, actions, lambda _: 0.0, **(policy_settings(with_goal) or {}))
        policy.load_state_dict(weights)
    except (ValueError, KeyError, zipfile.BadZipFile, RuntimeError) as error:
        raise ValueError(f"policy {path} cannot be read ({error}): train it again") from None
    policy.set_training_mode(False)
    return policy.to(device)
