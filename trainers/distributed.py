"""The little of data parallelism that these models need: same start, averaged gradients, different worlds.

Started by torchrun (RANK, WORLD_SIZE, LOCAL_RANK); without it everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ranks:
    """This process among its peers.

    Args:
        device: "cpu", "cuda" or "cuda:N"; a bare "cuda" becomes this rank's own GPU.
    """

    def __init__(self, device: str) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        if device == "cuda" and self.size > 1:
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        if device == "cuda":
            device = "cuda:0"
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._started = False
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            self._started = True

    @property
    def main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def broadcast(self, module: nn.Module) -> None:
        """Give every rank the weights and buffers of rank 0."""
        if self.size > 1:
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.data, 0)

    def average_gradients(self, params: Sequence[Tensor]) -> None:
        """Average gradients over ranks in one flat message."""
        if self.size == 1:
            return
        grads = [p.grad for p in params if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.size
        torch._foreach_copy_(
            grads, [v.view_as(g) for v, g in zip(flat.split([g.numel() for g in grads]), grads, strict=True)]
        )

    def mean(self, value: float) -> float:
        """Average a number over ranks."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return float(tensor) / self.size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.mean(float(flag)) > 0.0

    def of_main(self, *values: float) -> tuple[float, ...]:
        """What rank 0 says: clocks differ, and what depends on one must be the same everywhere."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return tuple(tensor.tolist())

    def close(self) -> None:
        """Leave the group that this object started."""
        if self._started:
            dist.destroy_process_group()
