"""Block-sparse attention and block selection: the two operators of the memory."""

from .block_selection import pool_blocks, select_blocks
from .block_sparse_attention import InverseLists, block_sparse_attention, invert_lists

__all__ = ["InverseLists", "block_sparse_attention", "invert_lists", "pool_blocks", "select_blocks"]
