"""Which number type a CPU multiplies fastest in."""

from __future__ import annotations

import torch


def cpu_products() -> torch.dtype:
    """bf16 where the processor has instructions for its products (AVX512-BF16), else fp32.

    Those take half the time of fp32 ones; elsewhere bf16 is emulated and slower. A rule, not a race: the same machine
    always computes the same frames.
    """
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # private in torch so far; it may go
    return torch.bfloat16 if has is not None and has() else torch.float32
