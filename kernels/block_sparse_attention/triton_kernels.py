"""The Triton kernels of block-sparse attention (sm_80 and up); launched by ``triton.py``, the maths is in ``naive.py``.

All three kernels hold one tile of a block (queries, or keys for dK and dV) and walk a *flat run*: the tokens of the
listed blocks one after another, ``step`` rows at a time, gathered by pointer. Blocks of 10 or 147 tokens therefore
cost no padding on the walked side. Where blocks are small, GROUP neighbouring ones share a tile, which walks their
merged list (``grouping.py``); bits in its entries say which of them an entry is for.

Sizes that vary from call to call (history, list length, batch) are plain integers, never specialised, so that a growing
history does not recompile. Strides come divided by ALIGN, which tells the compiler that rows are 16-byte aligned.
"""

import triton
import triton.language as tl

from .grouping import INDEX_BITS as _INDEX_BITS

INDEX_BITS = tl.constexpr(_INDEX_BITS)
INDEX_MASK = tl.constexpr((1 << _INDEX_BITS) - 1)
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

_STRIDES = [f"{name}_{axis}" for name in ("q", "k", "v", "do", "l", "c") for axis in ("sb", "sh", "st")]
_RUNTIME = [*_STRIDES, "heads", "q_blocks", "kv_blocks", "list_batch", "list_heads", "batches", "width"]


def _jit(function):  # type: ignore[no-untyped-def]
    """`triton.jit` that never specialises on the sizes that vary at run time."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    pointers = [n for n in ("lists_ptr", "counts_ptr", "sizes_ptr", "lse_ptr", "delta_ptr") if n in names]
    return triton.jit(
        function, do_not_specialize=[n for n in _RUNTIME if n in names], do_not_specialize_on_alignment=pointers
    )


@triton.jit
def _load_rows(base, token, stride, ok, dims, D: tl.constexpr, D_PAD: tl.constexpr):
    """Gather rows of D channels, zero where not ``ok`` (whatever the memory holds there) and in padded channels."""
    pointers = base + token.to(tl.int64)[:, None] * stride + dims[None, :]
    if D == D_PAD:
        return tl.load(pointers, mask=ok[:, None], other=0.0)
    else:
        return tl.load(pointers, mask=ok[:, None] & (dims < D)[None, :], other=0.0)


@triton.jit
def _store_rows(base, token, value, ok, dims, D: tl.constexpr):
    """Store rows of D channels into a contiguous [T, D] array, in its own type."""
    pointers = base + token.to(tl.int64)[:, None] * D + dims[None, :]
    tl.store(pointers, value.to(base.dtype.element_ty), mask=ok[:, None] & (dims < D)[None, :])


@triton.jit
def _flat_keys(
    list_base, sizes_ptr, start, total,
    STEP: tl.constexpr, KV_BLOCK: tl.constexpr, HAS_SIZES: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Key rows at positions ``start ...`` of the flat run of listed blocks, which of them count, and member bits."""
    position = start + tl.arange(0, STEP)
    ok = position < total
    entry = position // KV_BLOCK
    row = position - entry * KV_BLOCK
    block = tl.load(list_base + entry, mask=ok, other=0)
    bits = block >> INDEX_BITS
    if GROUP > 1:
        block = block & INDEX_MASK
    if HAS_SIZES:
        ok = ok & (row < tl.load(sizes_ptr + block, mask=ok, other=0))
    return block * KV_BLOCK + row, ok, bits


@triton.jit
def _pairs(ok, bits, member, GROUP: tl.constexpr):
    """Which (resident row, walked row) pairs count: the walked row does, and its entry is for the row's block."""
    if GROUP > 1:
        return ok[None, :] & (((bits[None, :] >> member[:, None]) & 1) != 0)
    else:
        return ok[None, :]


@_jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, lists_ptr, counts_ptr, sizes_ptr, out_ptr, lse_ptr,
    q_sb, q_sh, q_st, k_sb, k_sh, k_st, v_sb, v_sh, v_st, l_sb, l_sh, l_st, c_sb, c_sh,
    heads, q_blocks, scale,
    Q_BLOCK: tl.constexpr, KV_BLOCK: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr, ALIGN: tl.constexpr, HAS_SIZES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: one tile of one query block; online softmax over its listed keys."""
    program = tl.program_id(0)
    tile = program % TILES
    groups = (q_blocks + GROUP - 1) // GROUP
    n = (program // TILES) % groups
    plane = program // TILES // groups
    h = (plane % heads).to(tl.int64)
    b = (plane // heads).to(tl.int64)

    rows = tile * TILE + tl.arange(0, TILE)
    token_q = n * (GROUP * Q_BLOCK) + rows
    rows_ok = (rows < GROUP * Q_BLOCK) & (token_q < q_blocks * Q_BLOCK)
    member = rows // Q_BLOCK
    dims = tl.arange(0, D_PAD)
    q = _load_rows(q_ptr + (b * q_sb + h * q_sh) * ALIGN, token_q, q_st.to(tl.int64) * ALIGN, rows_ok, dims, D, D_PAD)
    k_base = k_ptr + (b * k_sb + h * k_sh) * ALIGN
    v_base = v_ptr + (b * v_sb + h * v_sh) * ALIGN
    k_row = k_st.to(tl.int64) * ALIGN
    v_row = v_st.to(tl.int64) * ALIGN
    list_base = lists_ptr + b * l_sb + h * l_sh + n.to(tl.int64) * l_st
    total = tl.load(counts_ptr + b * c_sb + h * c_sh + n) * KV_BLOCK

    top = tl.full([TILE], float("-inf"), tl.float32)
    weight = tl.zeros([TILE], tl.float32)
    acc = tl.zeros([TILE, D_PAD], tl.float32)
    scale2 = scale * LOG2E
    for start in range(0, total, STEP):
        token, ok, bits = _flat_keys(list_base, sizes_ptr, start, total, STEP, KV_BLOCK, HAS_SIZES, GROUP)
        k = _load_rows(k_base, token, k_row, ok, dims, D, D_PAD)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        logits = tl.where(_pairs(ok, bits, member, GROUP), logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        if HAS_SIZES or GROUP > 1:
            # All blocks so far may have had size 0, or be for other members.
            reference = tl.where(new_top == float("-inf"), 0.0, new_top)
        else:
            reference = new_top
        p = tl.exp2(logits - reference[:, None])
        shrink = tl.exp2(top - reference)
        weight = weight * shrink + tl.sum(p, 1)
        v = _load_rows(v_base, token, v_row, ok, dims, D, D_PAD)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        top = new_top

    empty = weight == 0.0
    weight = tl.where(empty, 1.0, weight)
    lse = tl.where(empty, float("-inf"), (top + tl.log2(weight)) * LN2)
    first = plane.to(tl.int64) * q_blocks * Q_BLOCK
    tl.store(lse_ptr + first + token_q, lse, mask=rows_ok)
    _store_rows(out_ptr + first * D, token_q, acc / weight[:, None], rows_ok, dims, D)


@_jit
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, do_ptr, lse_ptr, dlse_ptr, delta_ptr, lists_ptr, counts_ptr, sizes_ptr, dq_ptr,
    q_sb, q_sh, q_st, k_sb, k_sh, k_st, v_sb, v_sh, v_st, do_sb, do_sh, do_st, l_sb, l_sh, l_st, c_sb, c_sh,
    heads, q_blocks, scale,
    Q_BLOCK: tl.constexpr, KV_BLOCK: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr, ALIGN: tl.constexpr, HAS_SIZES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: dQ of one tile of one query block; also writes delta, which the key gradient needs."""
    program = tl.program_id(0)
    tile = program % TILES
    groups = (q_blocks + GROUP - 1) // GROUP
    n = (program // TILES) % groups
    plane = program // TILES // groups
    h = (plane % heads).to(tl.int64)
    b = (plane // heads).to(tl.int64)

    rows = tile * TILE + tl.arange(0, TILE)
    token_q = n * (GROUP * Q_BLOCK) + rows
    rows_ok = (rows < GROUP * Q_BLOCK) & (token_q < q_blocks * Q_BLOCK)
    member = rows // Q_BLOCK
    dims = tl.arange(0, D_PAD)
    first = plane.to(tl.int64) * q_blocks * Q_BLOCK
    q = _load_rows(q_ptr + (b * q_sb + h * q_sh) * ALIGN, token_q, q_st.to(tl.int64) * ALIGN, rows_ok, dims, D, D_PAD)
    do_row = do_st.to(tl.int64) * ALIGN
    do = _load_rows(do_ptr + (b * do_sb + h * do_sh) * ALIGN, token_q, do_row, rows_ok, dims, D, D_PAD)
    out = _load_rows(out_ptr + first * D, token_q, D, rows_ok, dims, D, D_PAD)
    lse = tl.load(lse_ptr + first + token_q, mask=rows_ok, other=0.0)
    dlse = tl.load(dlse_ptr + first + token_q, mask=rows_ok, other=0.0)
    delta = tl.sum(out.to(tl.float32) * do.to(tl.float32), 1) - dlse
    empty = lse == float("-inf")
    delta = tl.where(empty, 0.0, delta)
    lse2 = tl.where(empty, 0.0, lse) * LOG2E
    tl.store(delta_ptr + first + token_q, delta, mask=rows_ok)

    k_base = k_ptr + (b * k_sb + h * k_sh) * ALIGN
    v_base = v_ptr + (b * v_sb + h * v_sh) * ALIGN
    k_row = k_st.to(tl.int64) * ALIGN
    v_row = v_st.to(tl.int64) * ALIGN
    list_base = lists_ptr + b * l_sb + h * l_sh + n.to(tl.int64) * l_st
    total = tl.load(counts_ptr + b * c_sb + h * c_sh + n) * KV_BLOCK
    acc = tl.zeros([TILE, D_PAD], tl.float32)
    scale2 = scale * LOG2E
    for start in range(0, total, STEP):
        token, ok, bits = _flat_keys(list_base, sizes_ptr, start, total, STEP, KV_BLOCK, HAS_SIZES, GROUP)
        k = _load_rows(k_base, token, k_row, ok, dims, D, D_PAD)
        v = _load_rows(v_base, token, v_row, ok, dims, D, D_PAD)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        p = tl.exp2(tl.where(_pairs(ok, bits, member, GROUP), logits - lse2[:, None], float("-inf")))
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION)
    _store_rows(dq_ptr + first * D, token_q, acc * scale, rows_ok, dims, D)


@_jit
def key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, offsets_ptr, entries_ptr, sizes_ptr, dk_ptr, dv_ptr,
    q_sb, q_sh, q_st, k_sb, k_sh, k_st, v_sb, v_sh, v_st, do_sb, do_sh, do_st,
    heads, q_blocks, kv_blocks, list_batch, list_heads, batches, width, scale,
    Q_BLOCK: tl.constexpr, KV_BLOCK: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr, ALIGN: tl.constexpr, HAS_SIZES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: dK and dV of one tile of keys; walks the queries of the inverse list (transposed logits).

    The inverse lists are rows of ``entries_ptr`` between ``offsets_ptr``'s bounds or, merged, rows of ``width`` entries
    of which ``offsets_ptr`` says how many count.
    Keys shared by all batch rows (``batches`` > 1) sum over the rows in a fixed order.
    """
    program = tl.program_id(0)
    tile = program % TILES
    groups = (kv_blocks + GROUP - 1) // GROUP
    j = (program // TILES) % groups
    plane = program // TILES // groups
    head = plane % heads
    h = head.to(tl.int64)
    bk = (plane // heads).to(tl.int64)

    rows = tile * TILE + tl.arange(0, TILE)
    token_k = j * (GROUP * KV_BLOCK) + rows
    rows_ok = (rows < GROUP * KV_BLOCK) & (token_k < kv_blocks * KV_BLOCK)
    member = rows // KV_BLOCK
    counted = rows_ok
    if HAS_SIZES:
        own = j * GROUP + member
        counted = rows_ok & (rows - member * KV_BLOCK < tl.load(sizes_ptr + own, mask=rows_ok, other=0))
    dims = tl.arange(0, D_PAD)
    k_base = k_ptr + (bk * k_sb + h * k_sh) * ALIGN
    v_base = v_ptr + (bk * v_sb + h * v_sh) * ALIGN
    k = _load_rows(k_base, token_k, k_st.to(tl.int64) * ALIGN, counted, dims, D, D_PAD)
    v = _load_rows(v_base, token_k, v_st.to(tl.int64) * ALIGN, counted, dims, D, D_PAD)
    q_row = q_st.to(tl.int64) * ALIGN
    do_row = do_st.to(tl.int64) * ALIGN
    dk = tl.zeros([TILE, D_PAD], tl.float32)
    dv = tl.zeros([TILE, D_PAD], tl.float32)
    scale2 = scale * LOG2E
    for row in range(0, batches):
        b = bk + row
        q_base = q_ptr + (b * q_sb + h * q_sh) * ALIGN
        do_base = do_ptr + (b * do_sb + h * do_sh) * ALIGN
        first = (b * heads + h) * q_blocks * Q_BLOCK
        slot = ((b % list_batch) * list_heads + head % list_heads) * groups + j
        if GROUP > 1:
            begin = slot * width
            total = tl.load(offsets_ptr + slot) * Q_BLOCK
        else:
            begin = tl.load(offsets_ptr + slot)
            total = (tl.load(offsets_ptr + slot + 1) - begin).to(tl.int32) * Q_BLOCK
        for start in range(0, total, STEP):
            position = start + tl.arange(0, STEP)
            ok = position < total
            entry = position // Q_BLOCK
            block = tl.load(entries_ptr + begin + entry, mask=ok, other=0)
            bits = block >> INDEX_BITS
            if GROUP > 1:
                block = block & INDEX_MASK
            token = block * Q_BLOCK + (position - entry * Q_BLOCK)
            q = _load_rows(q_base, token, q_row, ok, dims, D, D_PAD)
            do = _load_rows(do_base, token, do_row, ok, dims, D, D_PAD)
            lse2 = tl.load(lse_ptr + first + token, mask=ok, other=0.0) * LOG2E
            delta = tl.load(delta_ptr + first + token, mask=ok, other=0.0)
            logits = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2
            # Rows of no key (padding, sizes) hold zeros in k; unmasked, exp2(0 - lse) may overflow.
            pairs = _pairs(ok, bits, member, GROUP) & counted[:, None]
            p = tl.exp2(tl.where(pairs, logits - lse2[None, :], float("-inf")))
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
            dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            ds = p * (dp - delta[None, :])
            if GROUP > 1:
                # Members that nobody lists may be uninitialised memory.
                ds = tl.where(pairs, ds, 0.0)
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    first_key = plane.to(tl.int64) * kv_blocks * KV_BLOCK
    _store_rows(dk_ptr + first_key * D, token_k, dk * scale, rows_ok, dims, D)
    _store_rows(dv_ptr + first_key * D, token_k, dv, rows_ok, dims, D)
