"""Optimisers: Muon for the matrices of the blocks, AdamW for everything else.

Muon (Jordan et al. 2024): momentum, then the nearest orthogonal matrix by five Newton-Schulz steps in bf16. Its updates
are scaled by 0.2 sqrt(max(rows, columns)) as in Moonlight (arXiv 2502.16982), which is the usual size of AdamW's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .config import OptimiserConfig

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate the orthogonal polar factor of each matrix by Newton-Schulz iterations.

    Args:
        matrices: [N, R, C], any float type.
        steps: Iterations.

    Returns:
        bf16 [N, R, C] with singular values of about 0.7 to 1.2.
    """
    a, b, c = _COEFFICIENTS
    x = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-12)).bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon, batched over matrices of the same shape.

    Args:
        params: 2-D parameters. A fused projection of k stacked square matrices is orthogonalised part by part.
        lr: Learning rate.
        momentum: Nesterov momentum.
        weight_decay: Decoupled.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            same: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    same[tuple(p.shape)].append(p)
            for (rows, columns), params in same.items():
                grads = [p.grad.float() for p in params]  # type: ignore[union-attr]
                buffers = []
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p, dtype=torch.float32)
                    buffers.append(self.state[p]["momentum"])
                torch._foreach_lerp_(buffers, grads, 1.0 - group["momentum"])
                updates = torch.stack(torch._foreach_lerp(grads, buffers, group["momentum"]))
                parts = rows // columns if rows > columns and rows % columns == 0 and rows // columns == 3 else 1
                size = rows // parts
                update = orthogonalise(updates.view(-1, size, columns)).view(len(params), rows, columns)
                scale = 0.2 * max(size, columns) ** 0.5
                if group["weight_decay"]:
                    torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
                deltas = list(update.to(params[0].dtype).unbind(0))
                torch._foreach_add_(params, deltas, alpha=-group["lr"] * scale)


def is_block_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon should train a parameter: a true matrix inside a transformer block (no table, no embedding)."""
    inside = any(part in ("blocks", "layers") for part in name.split("."))
    return inside and parameter.ndim == 2 and min(parameter.shape) >= 16 and "table" not in name and "embed" not in name


class Optimisers:
    """The two optimisers behind one door.

    Args:
        module: Whose parameters to train.
        config: Rates.
        fused: Use the fused AdamW (CUDA).
        betas: Of AdamW.
    """

    def __init__(
        self,
        module: nn.Module,
        config: OptimiserConfig,
        fused: bool = False,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        matrices = [(n, p) for n, p in named if config.muon and is_block_matrix(n, p)]
        taken = {n for n, _ in matrices}
        rest = [(n, p) for n, p in named if n not in taken]
        self.params = [p for _, p in named]
        self.muon_ratio = config.muon_ratio
        self.all: list[torch.optim.Optimizer] = []
        self.names: list[list[str]] = []
        if matrices:
            self.all.append(Muon([p for _, p in matrices], config.lr, weight_decay=config.weight_decay))
            self.names.append([n for n, _ in matrices])
        decayed = [(n, p) for n, p in rest if p.ndim >= 2 and min(p.shape[:2]) >= 16]
        plain = [(n, p) for n, p in rest if p.ndim < 2 or min(p.shape[:2]) < 16]
        groups = [
            {"params": [p for _, p in part], "weight_decay": decay}
            for part, decay in ((decayed, config.weight_decay), (plain, 0.0))
            if part
        ]
        if groups:
            self.all.append(torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=1e-8, fused=fused))
            self.names.append([n for n, _ in decayed + plain])

    def step(self, lr: float) -> None:
        """Update every parameter with this rate and forget the gradients."""
        for optimiser in self.all:
            for group in optimiser.param_groups:
                group["lr"] = lr * (self.muon_ratio if isinstance(optimiser, Muon) else 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def moments(self) -> dict[str, Tensor]:
        """State tensors by "parameter.moment", for saving."""
        result = {}
        for optimiser, names in zip(self.all, self.names, strict=True):
            params = [p for group in optimiser.param_groups for p in group["params"]]
            for name, parameter in zip(names, params, strict=True):
                for key, value in optimiser.state.get(parameter, {}).items():
                    result[f"{name}.{key}"] = value if torch.is_tensor(value) else torch.tensor(float(value))
        return result

    def load_moments(self, moments: dict[str, Tensor]) -> None:
        """Inverse of `moments`; a parameter without saved moments starts afresh."""
        for optimiser, names in zip(self.all, self.names, strict=True):
            params = [p for group in optimiser.param_groups for p in group["params"]]
            fused = bool(optimiser.param_groups[0].get("fused"))
            for name, parameter in zip(names, params, strict=True):
                keys = ("momentum",) if isinstance(optimiser, Muon) else ("step", "exp_avg", "exp_avg_sq")
                if not all(f"{name}.{key}" in moments for key in keys):
                    continue
                state = optimiser.state[parameter]
                for key in keys:
                    value = moments[f"{name}.{key}"].float()
                    # AdamW keeps its step counter on the CPU unless it is fused.
                    state[key] = value.to("cpu" if key == "step" and not fused else parameter.device).clone()
