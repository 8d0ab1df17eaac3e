"""Block-sparse attention, block selection and the merge of two softmaxes: the operators of the memory."""

from .block_selection import pool_blocks, select_blocks
from .block_sparse_attention import InverseLists, block_sparse_attention, invert_lists
from .softmax_merge import merge_softmax

__all__ = [
    "InverseLists",
    "block_sparse_attention",
    "invert_lists",
    "merge_softmax",
    "pool_blocks",
    "select_blocks",
]
