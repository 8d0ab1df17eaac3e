"""Launch the Hopper (sm_90a) kernels: wgmma and bulk tensor copies for blocks of tens to hundreds of tokens."""

from __future__ import annotations

import ctypes
import functools
import struct
import warnings

import torch
from torch import Tensor

from . import cuda_driver
from .hopper_source import AnyPlan, ColumnsPlan, GradientsPlan, Plan, best_strip, source
from .inverse import InverseLists, invert_lists

# Two or three warpgroups of 64 query rows; a key block's pieces are unrolled. Smaller blocks suit the Triton kernel.
Q_BLOCKS, KV_BLOCKS = (65, 192), (40, 320)
# Query blocks that would waste a quarter of the rows of wgmma, and whose columns the registers hold.
COLUMN_Q_BLOCKS = (129, 160)
# "columns" where it serves, or always "rows"; "together", one kernel for all gradients, or "apart" (one H200, DecMem's
# shape: 467 against 386 useful TFLOP/s forward, 261 against 111 backward).
FORWARD: str = "columns"
GRADIENTS: str = "together"
# Rows of a strip of those two kernels; None for the best.
STRIP: int | None = None
# Shared memory in which lists are inverted; larger ones are sorted.
INVERT_SHARED_BYTES = 200_000
# A last round that fills fewer programs than this is cut into equal shares for all.
_SHARE_BELOW = 0.9


@functools.cache
def _programs(device: int) -> int:
    """Multiprocessors of a Hopper device; 0 for others."""
    properties = torch.cuda.get_device_properties(device)
    return int(properties.multi_processor_count) if (properties.major, properties.minor) == (9, 0) else 0


def unsupported(q: Tensor, k: Tensor, v: Tensor, q_block: int, kv_block: int, scale: float) -> str | None:
    """Why this kernel cannot serve a call, or None if it can.

    Args:
        q: ``[B, H, Tq, D]``.
        k: ``[B or 1, H, Tk, D]``.
        v: like ``k``.
        q_block: tokens of a query block.
        kv_block: tokens of a key block.
        scale: factor on the logits.
    """
    if q.device.type != "cuda" or not _programs(q.device.index or 0):
        return f"{q.device} is not a GPU of compute capability 9.0"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"{q.dtype} is neither bfloat16 nor float16"
    if q.shape[3] not in (64, 128):
        return f"{q.shape[3]} head channels are neither 64 nor 128"
    for name, block, (low, high) in (("q_block", q_block, Q_BLOCKS), ("kv_block", kv_block, KV_BLOCKS)):
        if not low <= block <= high:
            return f"{name} {block} is not in {low}..{high}"
    if scale <= 0.0:
        return f"scale {scale} is not positive"
    if q.numel() == 0 or k.numel() == 0:
        return "there are no queries or no keys"
    for x in (q, k, v):
        strides = [x.stride(axis) for axis in range(3) if x.shape[axis] > 1 or axis == 2]
        if x.stride(3) != 1 or any(s % 8 or s <= 0 for s in strides) or x.data_ptr() % 16:
            return f"rows of strides {x.stride()} are not 16-byte aligned"
    return None


def _names(plan: AnyPlan) -> tuple[str, ...]:
    """The main kernel of a plan and the small ones beside it."""
    if isinstance(plan, ColumnsPlan):
        return "forward_columns", "combine"
    if isinstance(plan, GradientsPlan):
        return "gradients", "prepare", "invert", "sums"
    return ("query_gradient", "add") if plan.gradient else ("forward", "combine")


@functools.cache
def _kernels(plan: AnyPlan, device: int) -> tuple[ctypes.c_void_p, ...] | None:
    """The compiled kernels, or None (said once) where they cannot be built."""
    try:
        module = cuda_driver.Module(cuda_driver.compile_source(source(plan), "sm_90a"))
        shared = {"invert": INVERT_SHARED_BYTES}
        main, *small = _names(plan)
        kernels = [module.kernel(f"block_sparse_{main}", plan.shared_bytes)]
        kernels += [module.kernel(f"block_sparse_{name}", shared.get(name, 0)) for name in small]
        return tuple(kernels)
    except (cuda_driver.CudaError, OSError) as error:
        text = f"block_sparse_attention: no Hopper kernel for {plan}, the Triton kernel is used instead: {error}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return None


def make_plan(q: Tensor, q_block: int, kv_block: int, sizes: bool, gradient: bool) -> Plan:
    """Tiling of a call."""
    return Plan(q_block, kv_block, q.shape[3], "bf16" if q.dtype == torch.bfloat16 else "f16", sizes, gradient)


def available(q: Tensor, q_block: int, kv_block: int, sizes: bool, gradient: bool) -> bool:
    """Whether the kernel for a supported call can be built here (builds it)."""
    with torch.cuda.device(q.device):
        return _kernels(make_plan(q, q_block, kv_block, sizes, gradient), q.device.index or 0) is not None


def split_rounds(tiles: int, programs: int) -> tuple[int, int]:
    """How many query blocks programs take whole, in rounds, and how many are cut into shares for all programs."""
    rest = tiles % programs
    return (tiles, 0) if rest >= _SHARE_BELOW * programs else (tiles - rest, rest)


def forward(
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
    """Attend; arguments and results as :func:`.triton.forward`, within what :func:`unsupported` allows.

    Args:
        q: ``[B, H, Tq, D]``, bf16 or fp16.
        k: ``[B or 1, H, Tk, D]``.
        v: like ``k``.
        lists: int32 ``[B or 1, H or 1, NQ, L]``.
        counts: int32 ``[B or 1, H or 1, NQ]``.
        kv_sizes: int32 ``[NK]`` or None.
        q_block: tokens of a query block.
        kv_block: tokens of a key block.
        scale: factor on the logits.

    Returns:
        Output ``[B, H, Tq, D]``, contiguous, and log-sum-exp fp32 ``[B, H, Tq]``.

    Raises:
        cuda_driver.CudaError: the kernel cannot be built or launched.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    plan = make_plan(q, q_block, kv_block, kv_sizes is not None, False)
    columns = _columns_plan(q, q_block, kv_block, kv_sizes is not None)
    _launch(plan, q, q, k, v, lists, counts, kv_sizes, out, lse, lse, scale, columns)
    return out, lse


def _columns_plan(q: Tensor, q_block: int, kv_block: int, sizes: bool) -> ColumnsPlan | None:
    """The faster plan for query blocks that fill rows badly, where it serves and compiles."""
    low, high = COLUMN_Q_BLOCKS
    if FORWARD != "columns" or q.dtype != torch.bfloat16 or q.shape[3] != 128 or not low <= q_block <= high:
        return None
    plan = ColumnsPlan(q_block, kv_block, STRIP or best_strip(kv_block), sizes)
    with torch.cuda.device(q.device):
        return plan if _kernels(plan, q.device.index or 0) else None


def query_gradient(
    grad_out: Tensor,
    delta: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    lists: Tensor,
    counts: Tensor,
    kv_sizes: Tensor | None,
    q_block: int,
    kv_block: int,
    scale: float,
) -> Tensor:
    """Gradient of the queries, deterministic.

    Args:
        grad_out: like ``q``, aligned like it.
        delta: fp32 ``[B, H, Tq]``, contiguous: product of output and its gradient, less the log-sum-exp's gradient.
        q: as given to :func:`forward`, like all arguments without a word of their own.
        k: see ``q``.
        v: see ``q``.
        lse: contiguous log-sum-exp of :func:`forward`.
        lists: see ``q``.
        counts: see ``q``.
        kv_sizes: see ``q``.
        q_block: see ``q``.
        kv_block: see ``q``.
        scale: see ``q``.

    Returns:
        Like ``q``, contiguous.

    Raises:
        cuda_driver.CudaError: the kernel cannot be built or launched.
    """
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    plan = make_plan(q, q_block, kv_block, kv_sizes is not None, True)
    _launch(plan, q, grad_out, k, v, lists, counts, kv_sizes, grad_q, lse, delta, scale)
    return grad_q


def gradients_plan(q: Tensor, q_block: int, kv_block: int, sizes: bool) -> GradientsPlan | None:
    """The plan of the kernel of all gradients, where it serves and compiles.

    The gradient of the queries is added up in memory, in an order that may differ from run to run, unless PyTorch is
    told to use deterministic algorithms.
    """
    if GRADIENTS != "together" or q.shape[3] != 128:
        return None
    half = "bf16" if q.dtype == torch.bfloat16 else "f16"
    query = not torch.are_deterministic_algorithms_enabled()
    plan = GradientsPlan(q_block, kv_block, STRIP or best_strip(q_block), half, sizes, query)
    with torch.cuda.device(q.device):
        return plan if _kernels(plan, q.device.index or 0) else None


def _stride(x: Tensor, axis: int) -> int:
    return x.stride(axis) if x.shape[axis] > 1 else 0


def _invert(plan: GradientsPlan, lists: Tensor, counts: Tensor, kv_blocks: int) -> InverseLists:
    """Inverse lists, in one launch where they fit in shared memory."""
    batch, heads, q_blocks, length = lists.shape
    shared = 4 * (kv_blocks + q_blocks * length + 1024)
    if shared > INVERT_SHARED_BYTES:
        return invert_lists(lists, counts, kv_blocks)
    lists, counts = (x if x.stride(-1) == 1 else x.contiguous() for x in (lists, counts))
    offsets = torch.empty(batch * heads * kv_blocks + 1, dtype=torch.int64, device=lists.device)
    entries = torch.empty(lists.numel(), dtype=torch.int32, device=lists.device)
    device = lists.device.index or 0
    with torch.cuda.device(device):
        kernels = _kernels(plan, device)
        if kernels is None:
            raise cuda_driver.CudaError(f"the Hopper kernel for {plan} could not be built")
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in (lists, counts, offsets, entries)]
        strides = [_stride(lists, 0), _stride(lists, 1), lists.stride(2), _stride(counts, 0), _stride(counts, 1)]
        numbers = [ctypes.c_int(x) for x in (heads, q_blocks, length, kv_blocks)]
        longs = [ctypes.c_int64(x) for x in strides]
        cuda_driver.launch(kernels[2], batch * heads, 1024, shared, *pointers, *longs, *numbers)
    return InverseLists(offsets, entries)


def gradients(
    plan: GradientsPlan,
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    lists: Tensor,
    counts: Tensor,
    inverse: InverseLists | None,
    kv_sizes: Tensor | None,
    scale: float,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of :func:`forward`.

    Args:
        plan: from :func:`gradients_plan`.
        grad_out: like ``out``, contiguous.
        grad_lse: fp32 ``[B, H, Tq]``.
        q: as given to :func:`forward`, like all arguments without a word of their own.
        k: see ``q``.
        v: see ``q``.
        out: contiguous output of :func:`forward`.
        lse: contiguous log-sum-exp of :func:`forward`.
        lists: see ``q``.
        counts: see ``q``.
        inverse: of ``lists``, None to compute it.
        kv_sizes: see ``q``.
        scale: see ``q``.

    Returns:
        Gradients of q (None unless ``plan.query``), k and v, contiguous.

    Raises:
        cuda_driver.CudaError: the kernel cannot be built or launched.
    """
    batch, heads, tokens, _ = q.shape
    key_batch, kv_blocks = k.shape[0], k.shape[2] // plan.kv_block
    inverse = inverse or _invert(plan, lists, counts, kv_blocks)
    device = q.device.index or 0
    grad_lse = grad_lse.contiguous()
    rows = torch.empty((batch, heads, tokens, 2), dtype=torch.float32, device=q.device)
    count = batch * heads * tokens
    places = count // plan.q_block * plan.sum_rows
    sums = torch.empty((places, 128) if plan.query else 1, dtype=torch.float32, device=q.device)
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device) if plan.query else None
    grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=q.device) for x in (k, v))
    counter = torch.empty(1, dtype=torch.int32, device=q.device)
    items = key_batch * heads * kv_blocks
    # Programs fetch so many key blocks at a time that about one of them is listed.
    fetch = min(32, max(1, items // max(1, inverse.entries.numel())))
    sizes = inverse.entries if kv_sizes is None else kv_sizes
    with torch.cuda.device(device):
        kernels = _kernels(plan, device)
        if kernels is None:
            raise cuda_driver.CudaError(f"the Hopper kernel for {plan} could not be built")
        pointers = [ctypes.c_void_p(x.data_ptr()) for x in (out, grad_out, lse, grad_lse, rows, sums, counter)]
        numbers = [ctypes.c_int(count), ctypes.c_int(places)]
        cuda_driver.launch(kernels[1], -(-max(count, places) // 4), 128, 0, *pointers, *numbers)
        tensors = (inverse.offsets, inverse.entries, sizes, rows, sums, grad_k, grad_v, counter)
        fields = struct.pack(
            "<8Q8if", *(x.data_ptr() for x in tensors), heads, tokens // plan.q_block, kv_blocks, key_batch,
            lists.shape[0], lists.shape[1], batch // key_batch, fetch, scale,
        )  # fmt: skip
        maps = [(q, plan.q_block, plan.strip), (grad_out, plan.q_block, plan.strip)]
        maps += [(x, plan.kv_block, plan.piece_rows) for x in (k, v, grad_k, grad_v)]
        argument = cuda_driver.struct_arguments(maps, fields)
        cuda_driver.launch(kernels[0], _programs(device), 384, plan.shared_bytes, argument)
        if grad_q is not None:
            pointers = [ctypes.c_void_p(x.data_ptr()) for x in (sums, grad_q)]
            arguments = (*pointers, ctypes.c_float(scale), ctypes.c_int(count))
            cuda_driver.launch(kernels[3], -(-count // 32), 256, 0, *arguments)
    return grad_q, grad_k, grad_v


def _launch(
    plan: Plan,
    q: Tensor,
    grad_out: Tensor,
    k: Tensor,
    v: Tensor,
    lists: Tensor,
    counts: Tensor,
    kv_sizes: Tensor | None,
    out: Tensor,
    lse: Tensor,
    delta: Tensor,
    scale: float,
    columns: ColumnsPlan | None = None,
) -> None:
    """Launch a plan's kernel, and the one that merges shares where there are any; the result goes to ``out``.

    With ``columns``, that kernel goes first and ``plan``'s does again what the first could not.
    """
    batch, heads, tokens, dim = q.shape
    lists, counts = (x if x.stride(-1) == 1 else x.contiguous() for x in (lists, counts))
    q_blocks = tokens // plan.q_block
    device = q.device.index or 0
    with torch.cuda.device(device):
        kernels = _kernels(plan, device)
        if kernels is None:
            raise cuda_driver.CudaError(f"the Hopper kernel for {plan} could not be built")
        programs = _programs(device)
        whole, rest = split_rounds(batch * heads * q_blocks, programs)
        parts = 2 * programs if rest else 0
        part_out = torch.empty((parts, plan.q_block, dim), dtype=torch.float32, device=q.device)
        part_lse = torch.empty((parts, plan.q_block), dtype=torch.float32, device=q.device)

        sizes = counts if kv_sizes is None else kv_sizes
        total = whole + rest + 2 * programs
        redo = torch.empty(total, dtype=torch.int32, device=q.device) if columns else None
        fields = struct.pack(
            "<9Q5q6if", *(x.data_ptr() for x in (lists, counts, sizes, out, lse, delta, part_out, part_lse)),
            0 if redo is None else redo.data_ptr(),
            _stride(lists, 0), _stride(lists, 1), lists.stride(2), _stride(counts, 0), _stride(counts, 1),
            heads, q_blocks, k.shape[2] // plan.kv_block, int(k.shape[0] > 1), whole, rest, scale,
        )  # fmt: skip
        fast = _kernels(columns, device) if columns else None
        if columns and fast:
            maps = [(q, plan.q_block, columns.columns)] * 2
            maps += [(x, plan.kv_block, columns.strip) for x in (k, v)]
            argument = cuda_driver.struct_arguments(maps, fields)
            cuda_driver.launch(fast[0], programs, 384, columns.shared_bytes, argument)
        rows = plan.warpgroups * 64
        maps = [(q, plan.q_block, rows), (grad_out, plan.q_block, rows)]
        maps += [(k, plan.kv_block, plan.piece_rows), (v, plan.kv_block, plan.piece_rows)]
        argument = cuda_driver.struct_arguments(maps, fields)
        cuda_driver.launch(kernels[0], programs, (plan.warpgroups + 1) * 128, plan.shared_bytes, argument)
        if rest:
            tensors = (part_out, out) if plan.gradient else (part_out, part_lse, out, lse)
            values = [ctypes.c_void_p(x.data_ptr()) for x in tensors]
            numbers = [ctypes.c_int(x) for x in (whole, rest, programs)]
            cuda_driver.launch(kernels[1], -(-rest * plan.q_block // 4), 128, 0, *values, *numbers)
