"""When a call may skip torch's dispatcher, which costs the CPU as much as the launch of a small kernel."""

from __future__ import annotations

import torch
from torch import Tensor


def is_plain(*tensors: Tensor) -> bool:
    """Whether nothing wants to see the operator: no compiler, no gradient, no subclass of tensors."""
    if torch.compiler.is_compiling():
        return False
    graded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return not graded and all(type(t) is Tensor for t in tensors)
