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
    # The stride of a token is a 32-bit number: their product to 64 bits is then a single instruction.
    pointers = base + (token.to(tl.int64) * stride.to(tl.int64))[:, None] + dims[None, :]
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
def _load_once(pointers, ok, COPIES: tl.constexpr):
    """Load a number for each walked row, each by one thread, from where it is passed to those that need it.

    Of fewer numbers than threads the compiler takes a load for cheap and repeats it, and the arithmetic of its address,
    in every layout in which the numbers are used: for the columns of a product that is 16 addresses a thread instead of
    one. COPIES of each make it as many numbers as threads.
    """
    if COPIES == 1:
        return tl.load(pointers, mask=ok, other=0)
    else:
        copies = tl.zeros([COPIES, 1], tl.int32)
        mask = ok[None, :] & (copies == 0)
        return tl.max(tl.load(pointers[None, :] + copies, mask=mask, other=0), 0)


@triton.jit
def _flat_keys(
    list_base, sizes_ptr, start, total,
    STEP: tl.constexpr, KV_BLOCK: tl.constexpr, HAS_SIZES: tl.constexpr, GROUP: tl.constexpr, COPIES: tl.constexpr,
):  # fmt: skip
    """Key rows at positions ``start ...`` of the flat run of listed blocks, which of them count, and their marks."""
    position = start + tl.arange(0, STEP)
    ok = position < total
    entry = position // KV_BLOCK
    row = position - entry * KV_BLOCK
    listed = _load_once(list_base + entry, ok, COPIES)
    block = listed & INDEX_MASK if GROUP > 1 else listed
    if HAS_SIZES:
        ok = ok & (row < tl.load(sizes_ptr + block, mask=ok, other=0))
    return block * KV_BLOCK + row, ok, _marks(ok, listed, GROUP)


@triton.jit
def _marks(ok, entry, GROUP: tl.constexpr):
    """What `_pairs` compares with a resident row's own bit: the entry with its members' bits, 0 where not ``ok``."""
    return tl.where(ok, entry, 0) if GROUP > 1 else ok


@triton.jit
def _own_bit(ok, rows, BLOCK: tl.constexpr):
    """The bit of a resident row's block in the entries of merged lists, 0 where not ``ok``."""
    return tl.where(ok, 1 << (rows // BLOCK + INDEX_BITS), 0)


@triton.jit
def _pairs(own, marks, GROUP: tl.constexpr):
    """Which (resident row, walked row) pairs count: the walked row does, and its entry is for the resident row's block.

    It runs for every pair, like the exponential, where each instruction costs: this is one with a predicate.
    """
    return (own[:, None] & marks[None, :]) != 0 if GROUP > 1 else marks[None, :]


@_jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, lists_ptr, counts_ptr, sizes_ptr, out_ptr, lse_ptr,
    q_sb, q_sh, q_st, k_sb, k_sh, k_st, v_sb, v_sh, v_st, l_sb, l_sh, l_st, c_sb, c_sh,
    heads, q_blocks, scale,
    Q_BLOCK: tl.constexpr, KV_BLOCK: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, STEP: tl.constexpr, COPIES: tl.constexpr, GROUP: tl.constexpr, ALIGN: tl.constexpr,
    HAS_SIZES: tl.constexpr, PRECISION: tl.constexpr,
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
    own = _own_bit(rows_ok, rows, Q_BLOCK)
    dims = tl.arange(0, D_PAD)
    q = _load_rows(q_ptr + (b * q_sb + h * q_sh) * ALIGN, token_q, q_st * ALIGN, rows_ok, dims, D, D_PAD)
    # With a positive factor the greatest product is the greatest logit, so the factor need not be applied to find it.
    q = tl.where(scale < 0, -q, q)
    scale2 = tl.maximum(tl.abs(scale), 1e-30) * LOG2E
    k_base = k_ptr + (b * k_sb + h * k_sh) * ALIGN
    v_base = v_ptr + (b * v_sb + h * v_sh) * ALIGN
    k_row = k_st * ALIGN
    v_row = v_st * ALIGN
    list_base = lists_ptr + b * l_sb + h * l_sh + n.to(tl.int64) * l_st
    total = tl.load(counts_ptr + b * c_sb + h * c_sh + n) * KV_BLOCK

    top = tl.full([TILE], float("-inf"), tl.float32)
    weight = tl.zeros([TILE], tl.float32)
    acc = tl.zeros([TILE, D_PAD], tl.float32)
    for start in range(0, total, STEP):
        token, ok, marks = _flat_keys(list_base, sizes_ptr, start, total, STEP, KV_BLOCK, HAS_SIZES, GROUP, COPIES)
        k = _load_rows(k_base, token, k_row, ok, dims, D, D_PAD)
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        # Added, not selected: else the compiler moves the products to the layout of the marks instead of the reverse.
        products += tl.where(_pairs(own, marks, GROUP), 0.0, float("-inf"))
        new_top = tl.maximum(top, tl.max(products, 1))
        # All blocks so far may have had size 0, or be for other members.
        reference = tl.where(new_top == float("-inf"), 0.0, new_top * scale2)
        p = tl.exp2(products * scale2 - reference[:, None])
        shrink = tl.exp2(top * scale2 - reference)
        weight = weight * shrink + tl.sum(p, 1)
        v = _load_rows(v_base, token, v_row, ok, dims, D, D_PAD)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        top = new_top

    empty = weight == 0.0
    weight = tl.where(empty, 1.0, weight)
    lse = tl.where(empty, float("-inf"), (top * scale2 + tl.log2(weight)) * LN2)
    first = plane.to(tl.int64) * q_blocks * Q_BLOCK
    tl.store(lse_ptr + first + token_q, lse, mask=rows_ok)
    _store_rows(out_ptr + first * D, token_q, acc / weight[:, None], rows_ok, dims, D)


@_jit
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, do_ptr, lse_ptr, dlse_ptr, delta_ptr, lists_ptr, counts_ptr, sizes_ptr, dq_ptr,
    q_sb, q_sh, q_st, k_sb, k_sh, k_st, v_sb, v_sh, v_st, do_sb, do_sh, do_st, l_sb, l_sh, l_st, c_sb, c_sh,
    heads, q_blocks, scale,
    Q_BLOCK: tl.constexpr, KV_BLOCK: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, STEP: tl.constexpr, COPIES: tl.constexpr, GROUP: tl.constexpr, ALIGN: tl.constexpr,
    HAS_SIZES: tl.constexpr, PRECISION: tl.constexpr,
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
    own = _own_bit(rows_ok, rows, Q_BLOCK)
    dims = tl.arange(0, D_PAD)
    first = plane.to(tl.int64) * q_blocks * Q_BLOCK
    q = _load_rows(q_ptr + (b * q_sb + h * q_sh) * ALIGN, token_q, q_st * ALIGN, rows_ok, dims, D, D_PAD)
    do_row = do_st * ALIGN
    do = _load_rows(do_ptr + (b * do_sb + h * do_sh) * ALIGN, token_q, do_row, rows_ok, dims, D, D_PAD)
    out = _load_rows(out_ptr + first * D, token_q, tl.full([], D, tl.int32), rows_ok, dims, D, D_PAD)
    lse = tl.load(lse_ptr + first + token_q, mask=rows_ok, other=0.0)
    dlse = tl.load(dlse_ptr + first + token_q, mask=rows_ok, other=0.0)
    delta = tl.sum(out.to(tl.float32) * do.to(tl.float32), 1) - dlse
    empty = lse == float("-inf")
    delta = tl.where(empty, 0.0, delta)
    lse2 = tl.where(empty, 0.0, lse) * LOG2E
    tl.store(delta_ptr + first + token_q, delta, mask=rows_ok)

    k_base = k_ptr + (b * k_sb + h * k_sh) * ALIGN
    v_base = v_ptr + (b * v_sb + h * v_sh) * ALIGN
    k_row = k_st * ALIGN
    v_row = v_st * ALIGN
    list_base = lists_ptr + b * l_sb + h * l_sh + n.to(tl.int64) * l_st
    total = tl.load(counts_ptr + b * c_sb + h * c_sh + n) * KV_BLOCK
    acc = tl.zeros([TILE, D_PAD], tl.float32)
    scale2 = scale * LOG2E
    for start in range(0, total, STEP):
        token, ok, marks = _flat_keys(list_base, sizes_ptr, start, total, STEP, KV_BLOCK, HAS_SIZES, GROUP, COPIES)
        k = _load_rows(k_base, token, k_row, ok, dims, D, D_PAD)
        v = _load_rows(v_base, token, v_row, ok, dims, D, D_PAD)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale2
        p = tl.exp2(tl.where(_pairs(own, marks, GROUP), logits - lse2[:, None], float("-inf")))
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        acc = tl.dot(ds.to(k.dtype), k, acc, input_precision=PRECISION)
    _store_rows(dq_ptr + first * D, token_q, acc * scale, rows_ok, dims, D)


@triton.jit
def _listed_members(
    counts_ptr, entries_ptr, batch, head, group, groups, width, heads, batches, list_batch, list_heads,
    STEP: tl.constexpr,
):  # fmt: skip
    """Which members of a group of key blocks any merged list names: their bits, from ``INDEX_BITS`` up."""
    seen = tl.zeros([STEP], tl.int32)
    for row in range(0, batches):
        slot = (((batch + row) % list_batch) * list_heads + head % list_heads) * groups + group
        count = tl.load(counts_ptr + slot)
        for start in range(0, count, STEP):
            place = start + tl.arange(0, STEP)
            seen |= tl.load(entries_ptr + slot * width + place, mask=place < count, other=0)
    return tl.reduce(seen, 0, _either)


@triton.jit
def _either(a, b):
    """Bits of both."""
    return a | b


@_jit
def key_gradient_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, offsets_ptr, entries_ptr, sizes_ptr, dk_ptr, dv_ptr,
    q_sb, q_sh, q_st, k_sb, k_sh, k_st, v_sb, v_sh, v_st, do_sb, do_sh, do_st,
    heads, q_blocks, kv_blocks, list_batch, list_heads, batches, width, scale,
    Q_BLOCK: tl.constexpr, KV_BLOCK: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, TILE: tl.constexpr,
    TILES: tl.constexpr, STEP: tl.constexpr, COPIES: tl.constexpr, GROUP: tl.constexpr, ALIGN: tl.constexpr,
    HAS_SIZES: tl.constexpr, PRECISION: tl.constexpr,
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
    counted = rows_ok
    if HAS_SIZES:
        member = rows // KV_BLOCK
        counted = rows_ok & (rows - member * KV_BLOCK < tl.load(sizes_ptr + j * GROUP + member, mask=rows_ok, other=0))
    if GROUP > 1:
        # Members that nobody lists may be uninitialised memory: their rows are not read.
        used = _listed_members(
            offsets_ptr, entries_ptr, bk, head, j, groups, width, heads, batches, list_batch, list_heads, STEP
        )
        counted = counted & (((used >> (rows // KV_BLOCK + INDEX_BITS)) & 1) != 0)
    own = _own_bit(counted, rows, KV_BLOCK)
    dims = tl.arange(0, D_PAD)
    k_base = k_ptr + (bk * k_sb + h * k_sh) * ALIGN
    v_base = v_ptr + (bk * v_sb + h * v_sh) * ALIGN
    k = _load_rows(k_base, token_k, k_st * ALIGN, counted, dims, D, D_PAD)
    v = _load_rows(v_base, token_k, v_st * ALIGN, counted, dims, D, D_PAD)
    q_row = q_st * ALIGN
    do_row = do_st * ALIGN
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
            listed = _load_once(entries_ptr + begin + entry, ok, COPIES)
            block = listed & INDEX_MASK if GROUP > 1 else listed
            token = block * Q_BLOCK + (position - entry * Q_BLOCK)
            q = _load_rows(q_base, token, q_row, ok, dims, D, D_PAD)
            do = _load_rows(do_base, token, do_row, ok, dims, D, D_PAD)
            lse2 = _load_once(lse_ptr + first + token, ok, COPIES) * LOG2E
            delta = _load_once(delta_ptr + first + token, ok, COPIES)
            logits = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale2
            pairs = _pairs(own, _marks(ok, listed, GROUP), GROUP)
            if GROUP == 1:
                # Rows of no key (padding, sizes) hold zeros in k; unmasked, exp2(0 - lse) may overflow.
                pairs = pairs & counted[:, None]
            p = tl.exp2(tl.where(pairs, logits - lse2[None, :], float("-inf")))
            dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
            dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
            ds = p * (dp - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    first_key = plane.to(tl.int64) * kv_blocks * KV_BLOCK
    _store_rows(dk_ptr + first_key * D, token_k, dk * scale, rows_ok, dims, D)
    _store_rows(dv_ptr + first_key * D, token_k, dv, rows_ok, dims, D)
