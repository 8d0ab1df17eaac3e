"""Block selection on the CPU by `select.c`: one scan of the pooled keys, scores and top-k together.

The time is that of reading the pooled keys once: in fp32, or of a long history in 8 bits (`Codes`), where only keys
that may be among the best are then read in fp32, so that lists are the same. The torch twin that computes the same is
`naive.py`, also used where there is no compiler.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...conventions.native import built, threads

_SOURCE = Path(__file__).with_name("select.c")
CODE_FACTS = 3  # numbers beside the codes of a block


Runs = Sequence[tuple[int, int]]  # (first, length) in key blocks, in the order of the lists' numbers


class Codes(NamedTuple):
    """8-bit copies of pooled keys, kept by `encode`.

    Attributes:
        codes: uint8 ``[H, NK, D]``, 128 and above for numbers from 0; blocks of a head are contiguous.
        facts: fp32 ``[H, NK, 3]``: the worth of a step, and the norms of what the codes miss and of what they hold.
    """

    codes: Tensor
    facts: Tensor


@functools.lru_cache(maxsize=1)
def load() -> ctypes.CDLL | None:
    """The library with its argument types set, or None without a compiler."""
    path = built(_SOURCE)
    return None if path is None else bind(path)


def bind(path: Path) -> ctypes.CDLL:
    """A built library with its argument types set."""
    library = ctypes.CDLL(str(path))
    pointer, integer, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.select_blocks.argtypes = [
        *[pointer] * 2, *[long] * 3, *[pointer] * 2, long, pointer, integer, pointer, *[integer] * 5, *[pointer] * 2,
        *[integer] * 2, *[pointer] * 2, integer,
    ]  # fmt: skip
    library.select_blocks.restype = integer
    library.encode.argtypes = [*[pointer] * 4, integer, long, *[integer] * 3]
    library.encode.restype = None
    return library


def encode(pooled: Tensor, codes: Tensor, facts: Tensor, pages: Tensor) -> None:
    """Keep the copies of some pages up to date.

    Args:
        pooled: fp32 ``[H, pages, M, D]``, contiguous like the others.
        codes: uint8, likewise: written.
        facts: fp32 ``[H, pages, M, 3]``: written.
        pages: int64 ``[n]``.
    """
    library = load()
    assert library is not None
    heads, stored, blocks, dim = pooled.shape
    pages = pages.contiguous()
    library.encode(
        pooled.data_ptr(), codes.data_ptr(), facts.data_ptr(), pages.data_ptr(), len(pages), stored, heads, blocks, dim
    )


def select_blocks_native(
    q_pooled: Tensor,
    k_pooled: Tensor,
    k: int,
    limit: Tensor,
    first: Tensor | None,
    codes: Codes | None = None,
    runs: Runs | None = None,
) -> tuple[Tensor, Tensor]:
    """Select as :func:`.naive.select_blocks_naive` does; ties go to the lowest index, NaN and -inf are not chosen.

    Args:
        q_pooled: ``[B, H, NQ, D]`` on the CPU.
        k_pooled: ``[B or 1, H, NK, D]``; read in place if fp32 with contiguous channels.
        k: most blocks to select.
        limit: int32 ``[B or 1, NQ]``, one past the last allowed key block.
        first: int32 ``[B or 1, NQ]`` or None, first allowed key block.
        codes: copies of ``k_pooled``, whose batch is 1 then, or None.
        runs: where in ``k_pooled`` and ``codes`` the keys lie, or None: all, in order.

    Returns:
        lists int32 ``[B, H, NQ, k]``, ascending, 0 past the count; counts int32 ``[B, H, NQ]``.

    Raises:
        RuntimeError: the library could not be built.
        MemoryError: no memory for the candidates.
    """
    library = load()
    if library is None:
        raise RuntimeError("select_blocks: backend 'native' needs a C compiler (gcc or clang); use backend='naive'")
    batch, heads, num_queries, dim = q_pooled.shape
    lists = torch.zeros((batch, heads, num_queries, k), dtype=torch.int32)
    counts = torch.zeros((batch, heads, num_queries), dtype=torch.int32)
    runs = ((0, k_pooled.shape[2]),) if runs is None else runs
    num_keys = sum(length for _, length in runs)
    if lists.numel() == 0 or num_keys == 0:
        return lists, counts
    q, keys, limit = q_pooled.float().contiguous(), k_pooled.float(), limit.contiguous()
    if keys.stride(3) != 1:
        keys = keys.contiguous()
    first = None if first is None else first.contiguous()
    copies: tuple[int | None, ...] = (None, None, 0)
    if codes is not None and dim % 8 == 0:
        copies = codes.codes.data_ptr(), codes.facts.data_ptr(), codes.codes.stride(0) // dim
    starts = [0, *itertools.accumulate(length for _, length in runs)]
    run_from, run_row = (ctypes.c_int32 * len(starts))(*starts), (ctypes.c_int64 * len(runs))(*(row for row, _ in runs))
    failed = library.select_blocks(
        q.data_ptr(), keys.data_ptr(), keys.stride(0) if keys.shape[0] > 1 else 0, keys.stride(1), keys.stride(2),
        *copies,
        limit.data_ptr(), num_queries if limit.shape[0] > 1 else 0,
        0 if first is None else first.data_ptr(), num_queries if first is not None and first.shape[0] > 1 else 0,
        batch, heads, num_queries, len(runs), run_from, run_row, dim, k,
        lists.data_ptr(), counts.data_ptr(), threads(torch.get_num_threads()),
    )  # fmt: skip
    if failed:
        raise MemoryError("select_blocks: no memory for the candidates of a scan")
    return lists, counts
