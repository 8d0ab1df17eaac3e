"""Block-sparse attention on the CPU by `attend.c`: keys and values are read in place, the next ones in advance.

The torch twin that computes the same is `cpu.py`, also used where there is no compiler and for other types than queries
in fp32 with keys and values in fp32 or fp16.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from ...conventions.native import built, threads

_SOURCE = Path(__file__).with_name("attend.c")


@functools.lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The library with its argument types set, or None without a compiler."""
    path = built(_SOURCE)
    return None if path is None else bind(path)


def bind(path: Path) -> ctypes.CDLL:
    """A built library with its argument types set."""
    library = ctypes.CDLL(str(path))
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.attend.argtypes = [
        *[pointer] * 5,
        integer,
        *[pointer] * 5,
        *[integer] * 7,
        ctypes.c_float,
        *[pointer] * 2,
        integer,
    ]
    library.attend.restype = library.channels.restype = integer
    return library


def takes(dim: int) -> bool:
    """Whether the library is there and takes heads of so many channels: they fill registers."""
    library = load()
    return library is not None and dim % library.channels() == 0


def serves(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the library `takes` these tensors: contiguous channels; q is fp32, k and v both that or both fp16."""
    stored = (torch.float32, torch.float16)
    if q.dtype != torch.float32 or k.dtype not in stored or v.dtype != k.dtype or k.stride(3) != 1 or v.stride(3) != 1:
        return False
    return takes(q.shape[3])


def _strides(x: Tensor, *axes: int) -> ctypes.Array[ctypes.c_int64]:
    """Strides of axes, 0 over those of length one, which all rows and heads share."""
    return (ctypes.c_int64 * len(axes))(*(x.stride(a) if x.shape[a] > 1 or a == 2 else 0 for a in axes))


def block_sparse_attention_native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Tensor,
    counts: Tensor,
    kv_sizes: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attend as :func:`.naive.block_sparse_attention_naive` does (same arguments), without gradients.

    Args:
        q: fp32 ``[B, H, Tq, D]`` that `serves` takes, like k and v.
        k: fp32 or fp16 ``[B or 1, H, Tk, D]``, any strides.
        v: like ``k``.
        lists: int32 ``[B or 1, H or 1, NQ, L]``.
        counts: int32 ``[B or 1, H or 1, NQ]``.
        kv_sizes: int32 ``[NK]`` or None.
        q_block: tokens of a query block.
        kv_block: tokens of a key block.
        scale: factor on the logits.

    Returns:
        Output ``[B, H, Tq, D]`` and log-sum-exp ``[B, H, Tq]``, fp32. The same bits whatever the number of threads.

    Raises:
        MemoryError: no memory for the weights of a query block.
    """
    library = load()
    assert library is not None
    batch, heads, tokens, dim = q.shape
    q, lists, counts = q.contiguous(), lists.contiguous(), counts.contiguous()
    sizes = None if kv_sizes is None else kv_sizes.contiguous()
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3])
    failed = library.attend(
        q.data_ptr(), k.data_ptr(), _strides(k, 0, 1, 2), v.data_ptr(), _strides(v, 0, 1, 2),
        k.dtype == torch.float16,
        lists.data_ptr(), _strides(lists, 0, 1, 2), counts.data_ptr(), _strides(counts, 0, 1),
        None if sizes is None else sizes.data_ptr(),
        batch, heads, tokens // q_block, q_block, kv_block, lists.shape[3], dim, scale,
        out.data_ptr(), lse.data_ptr(), threads(torch.get_num_threads()),
    )  # fmt: skip
    if failed:
        raise MemoryError("block_sparse_attention: no memory for the weights of a query block")
    return out, lse
