"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averaged copy of a module's parameters and float buffers, kept in fp32 from the first step on.

    Args:
        module: Whose weights to follow.
        decay: Per step, once warmed up: the decay of update n is min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.updates = module, decay, 0
        self._live = {n: p.data for n, p in module.named_parameters()}
        self._buffers = {n: b for n, b in module.named_buffers() if b.is_floating_point()}
        self.average = {n: t.detach().clone().float() for n, t in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Follow the module by one step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.values()), list(self._live.values()), 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged weights into the module for the duration of the block."""
        kept = {n: t.clone() for n, t in self._live.items()}
        buffers = {n: t.clone() for n, t in self._buffers.items()}
        with torch.no_grad():
            for name, tensor in self._live.items():
                tensor.copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self._live.items():
                    tensor.copy_(kept[name])
                for name, tensor in self._buffers.items():
                    tensor.copy_(buffers[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Averaged parameters by name."""
        return dict(self.average)

    def load_state_dict(self, state: dict[str, Tensor], updates: int) -> None:
        """Restore from `state_dict` and the number of updates done."""
        for name, tensor in self.average.items():
            tensor.copy_(state[name])
        self.updates = updates
