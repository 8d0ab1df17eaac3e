"""CUDA source of the Hopper kernels for given block sizes: constants, wgmma wrappers and the ``.cu`` files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

# Shared memory of a program, less room for barriers and for alignment to 1,024 bytes.
SHARED_BYTES = 232_448 - 3_072


class Plan(NamedTuple):
    """How a kernel tiles a problem.

    Attributes:
        q_block: tokens of a query block.
        kv_block: tokens of a key block.
        dim: head channels, 64 or 128.
        half: "bf16" or "f16".
        sizes: key blocks have sizes of their own.
        gradient: for the gradient of the queries instead of the forward pass.
    """

    q_block: int
    kv_block: int
    dim: int
    half: str
    sizes: bool
    gradient: bool = False

    @property
    def warpgroups(self) -> int:
        """Warpgroups of 64 query rows."""
        return -(-self.q_block // 64)

    @property
    def pieces(self) -> int:
        """Pieces of a key block: as few as the registers of a consumer allow."""
        most = (64 if self.gradient else 80) if self.warpgroups == 3 else (96 if self.gradient else 128)
        return -(-self.kv_block // most)

    @property
    def piece_rows(self) -> int:
        """Rows of a piece, a multiple of 16."""
        return -(-self.kv_block // self.pieces // 16) * 16

    @property
    def last_columns(self) -> int:
        """Logits columns of the last piece, a multiple of 8."""
        return -(-(self.kv_block - (self.pieces - 1) * self.piece_rows) // 8) * 8

    @property
    def q_bytes(self) -> int:
        """Shared memory of a query block, and of its output's gradient."""
        return self.warpgroups * 64 * self.dim * 2 * (1 + self.gradient)

    @property
    def stages(self) -> int:
        """Pieces of keys, and of values, in flight."""
        return min(8, (SHARED_BYTES - self.q_bytes) // (4 * self.piece_rows * self.dim))

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory, with room for alignment."""
        return self.q_bytes + self.stages * 4 * self.piece_rows * self.dim + 1024

    @property
    def registers(self) -> int:
        """Registers of a consumer thread; a producer thread keeps 32.

        Warpgroups can only take what the others of the program gave back: registers beyond those that the launch
        allocated, in units of 8 a thread, are out of reach, and a thread that asks for them waits for ever.
        """
        groups = self.warpgroups + 1
        at_launch = 65536 // (groups * 128) // 8 * 8
        return min(240, (groups * at_launch - 32) // self.warpgroups // 8 * 8)


class ColumnsPlan(NamedTuple):
    """How the forward kernel with queries as columns tiles a problem: bf16, 128 channels.

    Attributes:
        q_block: tokens of a query block, at most 160.
        kv_block: tokens of a key block.
        strip: rows in which key blocks are cut; chunks of 64 rows take as many strips as they hold.
        sizes: key blocks have sizes of their own.
    """

    q_block: int
    kv_block: int
    strip: int
    sizes: bool

    @property
    def columns(self) -> int:
        """Columns of the products."""
        return -(-self.q_block // 8) * 8

    @property
    def stages(self) -> int:
        """Chunks of keys, and of values, in flight."""
        return 4

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory: queries, weights of two chunks, keys and values, room for alignment."""
        return 512 * self.columns + self.stages * 32_768 + 1024


class GradientsPlan(NamedTuple):
    """How the kernel of all gradients tiles a problem: 128 channels.

    Attributes:
        q_block: tokens of a query block.
        kv_block: tokens of a key block.
        strip: rows in which query blocks are cut, as key blocks in :class:`ColumnsPlan`.
        half: "bf16" or "f16".
        sizes: key blocks have sizes of their own.
        query: compute the gradient of the queries too, by additions in memory in any order.
    """

    q_block: int
    kv_block: int
    strip: int
    half: str
    sizes: bool
    query: bool

    @property
    def pieces(self) -> int:
        """Pieces of a key block: as few as the registers of a consumer allow."""
        return -(-self.kv_block // 80)

    @property
    def piece_rows(self) -> int:
        """Rows of a piece, a multiple of 16."""
        return -(-self.kv_block // self.pieces // 16) * 16

    @property
    def last_columns(self) -> int:
        """Columns of the last piece, a multiple of 8."""
        return -(-(self.kv_block - (self.pieces - 1) * self.piece_rows) // 8) * 8

    @property
    def sum_rows(self) -> int:
        """Rows of sums of a query block's gradient: all of its strips, whole."""
        return -(-self.q_block // self.strip) * self.strip

    @property
    def stages(self) -> int:
        """Chunks of queries, and of the output's gradient, in flight."""
        return 4

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory: chunks, keys and values, two weights of two chunks, room for alignment."""
        return self.stages * 32_768 + 1024 * self.piece_rows + 1024


AnyPlan = Plan | ColumnsPlan | GradientsPlan


def best_strip(block: int) -> int:
    """Rows in which to cut blocks so that chunks of 64 waste the fewest."""

    def rows(strip: int) -> float:
        return -(-block // strip) * 64 / (64 // strip)

    return min((64, 32, 21, 16), key=lambda strip: (rows(strip), -strip))


def _operands(first: int, count: int) -> str:
    return ", ".join(f"%{i}" for i in range(first, first + count))


def _logits(columns: int, half: str) -> str:
    """S += Q K^T of 16 channels: 64 queries by ``columns`` keys, both in shared memory."""
    n = columns // 2
    outputs = ", ".join(f'"+f"(s[{i}])' for i in range(n))
    return f"""template <> struct Logits<{columns}> {{
    template <int M> static __device__ __forceinline__ void multiply(float (&s)[M], u64 a, u64 b, int add) {{
        asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{n + 2}, 0;\\n"
            "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{half}.{half} {{{_operands(0, n)}}}, %{n}, %{n + 1}, "
            "p, 1, 1, 0, 0;\\n}}" : {outputs} : "l"(a), "l"(b), "r"(add));
    }}
}};
"""


def _values(dim: int, half: str) -> str:
    """O += P V of 16 keys: 64 queries by ``dim`` channels, P in registers."""
    n = dim // 2
    outputs = ", ".join(f'"+f"(o[{i}])' for i in range(n))
    return f"""struct Values {{
    static __device__ __forceinline__ void multiply(float (&o)[{n}], const u32* p, u64 b) {{
        asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, 1, 0;\\n"
            "wgmma.mma_async.sync.aligned.m64n{dim}k16.f32.{half}.{half} {{{_operands(0, n)}}}, "
            "{{{_operands(n, 4)}}}, %{n + 4}, p, 1, 1, 1;\\n}}"
            : {outputs} : "r"(p[0]), "r"(p[1]), "r"(p[2]), "r"(p[3]), "l"(b));
    }}
}};
"""


def _outer(columns: int, half: str) -> str:
    """O += A^T W of 16 rows: 64 channels of A, by ``columns`` rows of W; both in shared memory."""
    n = columns // 2
    outputs = ", ".join(f'"+f"(o[{i}])' for i in range(n))
    return f"""template <> struct Outer<{columns}> {{
    template <int M> static __device__ __forceinline__ void multiply(float (&o)[M], u64 a, u64 b) {{
        asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, 1, 0;\\n"
            "wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{half}.{half} {{{_operands(0, n)}}}, %{n}, %{n + 1}, "
            "p, 1, 1, 1, 0;\\n}}" : {outputs} : "l"(a), "l"(b));
    }}
}};
"""


def _defines(values: Mapping[str, object]) -> str:
    return "".join(f"#define {name} {value}\n" for name, value in values.items())


def _conversions(half: str) -> dict[str, object]:
    return {"HALF_TO_BITS": f'"cvt.rn.{half}x2.f32"', "HALF_FROM_BITS": f'"cvt.f32.{half}"'}


def _stream(block: int, strip: int, stages: int) -> dict[str, object]:
    """What ``hopper_strips.cu`` asks for."""
    strips = {"STRIP": strip, "STRIPS": -(-block // strip), "SPC": 64 // strip}
    return {"HEAD_DIM": 128, "STREAM_BLOCK": block, "STAGES": stages, **strips}


def constants(plan: AnyPlan) -> str:
    """The definitions that the ``.cu`` files ask for."""
    values: dict[str, object]
    if isinstance(plan, ColumnsPlan):
        values = {"Q_BLOCK": plan.q_block, "COLUMNS": plan.columns, "HAS_SIZES": int(plan.sizes), "REDOES": 0}
        return _defines(values | _stream(plan.kv_block, plan.strip, plan.stages) | _conversions("bf16"))
    if isinstance(plan, GradientsPlan):
        values = {
            "KV_BLOCK": plan.kv_block,
            "PIECE": plan.piece_rows,
            "PIECES": plan.pieces,
            "LAST": plan.last_columns,
            "HAS_SIZES": int(plan.sizes),
            "QUERY_GRADIENT": int(plan.query),
        }
        return _defines(values | _stream(plan.q_block, plan.strip, plan.stages) | _conversions(plan.half))
    values = {
        "Q_BLOCK": plan.q_block,
        "KV_BLOCK": plan.kv_block,
        "HEAD_DIM": plan.dim,
        "WARPGROUPS": plan.warpgroups,
        "SUBS": plan.pieces,
        "SUB_ROWS": plan.piece_rows,
        "LAST_COLUMNS": plan.last_columns,
        "STAGES": plan.stages,
        "CONSUMER_REGISTERS": plan.registers,
        "HAS_SIZES": int(plan.sizes),
        "GRADIENT": int(plan.gradient),
        "REDOES": int(not plan.gradient),
    }
    return _defines(values | _conversions(plan.half))


def kernel_files(plan: AnyPlan) -> list[str]:
    """Names of the files that follow the instructions and the products of a plan."""
    if isinstance(plan, ColumnsPlan):
        kernels = ["hopper_forward_columns.cu", "hopper_combine.cu"]
        return ["hopper_tiles.cu", "hopper_schedule.cu", "hopper_strips.cu", *kernels]
    if isinstance(plan, GradientsPlan):
        kernels = ["hopper_gradients_copy.cu", "hopper_gradients.cu", "hopper_prepare.cu", "hopper_invert.cu"]
        return ["hopper_tiles.cu", "hopper_strips.cu", "hopper_sums.cu", *kernels]
    kernels = ["hopper_query_gradient.cu"] if plan.gradient else ["hopper_forward.cu", "hopper_combine.cu"]
    return ["hopper_tiles.cu", "hopper_schedule.cu", "hopper_common.cu", *kernels]


def _products(plan: AnyPlan) -> list[str]:
    if isinstance(plan, ColumnsPlan):
        return [_logits(plan.columns, "bf16"), _outer(plan.columns, "bf16")]
    if isinstance(plan, GradientsPlan):
        sizes = sorted({plan.last_columns, *([plan.piece_rows] if plan.pieces > 1 else [])})
        return [*(make(n, plan.half) for n in sizes for make in (_logits, _outer)), _values(128, plan.half)]
    columns = {plan.last_columns, *([plan.piece_rows] if plan.pieces > 1 else [])}
    return [*(_logits(n, plan.half) for n in sorted(columns)), _values(plan.dim, plan.half)]


def source(plan: AnyPlan) -> str:
    """Complete CUDA source of a plan's kernels, which includes no headers."""
    folder = Path(__file__).parent
    head, *files = ["hopper_instructions.cu", *kernel_files(plan)]
    texts = [(folder / name).read_text(encoding="utf-8") for name in (head, *files)]
    return "\n".join([constants(plan), texts[0], *_products(plan), *texts[1:]])
