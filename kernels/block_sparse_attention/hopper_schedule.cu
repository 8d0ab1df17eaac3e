// Which query blocks a program works on, for all Hopper kernels that own query blocks; after hopper_instructions.cu.
//
// Programs take whole query blocks first, in step, so that the blocks of one head meet in the L2 cache; the blocks of the
// last, incomplete round are cut into equal shares for all programs, whose results another kernel merges. Defined from
// outside: REDOES, 1 where a.redo, unless null, says which segments to work on.

struct Arguments {
    TensorMap q, g, k, v;     // g: gradient of the output, in the gradient kernel
    const int* lists;
    const int* counts;
    const int* sizes;
    unsigned short* out;      // [planes, q_blocks * Q_BLOCK, HEAD_DIM]: attention output, or gradient of the queries
    float* lse;               // [planes, q_blocks * Q_BLOCK]: written forward, read for the gradient
    const float* delta;       // [planes, q_blocks * Q_BLOCK], for the gradient
    float* part_out;          // [2 * programs, Q_BLOCK, HEAD_DIM]: results of shares
    float* part_lse;          // [2 * programs, Q_BLOCK]
    int* redo;                // [whole + rest + 2 * programs], by segment: hopper_forward_columns.cu leaves it to another
    i64 list_batch, list_head, list_row, count_batch, count_head;
    int heads, q_blocks, kv_blocks, keys_have_batch, whole, rest;
    float scale;
};

// A share of one query block's list; part < 0 where it is the whole list.
struct Segment {
    int tile, begin, end, part;
    __device__ int index(const Arguments& a) const { return part < 0 ? tile : a.whole + a.rest + part; }
};

// The segments of this program, the same for every role.
struct Schedule {
    const Arguments& a;
    int tile, programs;
    __device__ Schedule(const Arguments& a) : a(a), tile(blockIdx.x), programs(gridDim.x) {}
    __device__ int count(int t) const {
        int plane = t / a.q_blocks;
        return a.counts[(i64)(plane / a.heads) * a.count_batch + (i64)(plane % a.heads) * a.count_head + t % a.q_blocks];
    }
    // Kernels that redo what another could not do skip the segments that it did.
    __device__ bool next(Segment& s) {
        while (advance(s)) {
            if (!REDOES || !a.redo || a.redo[s.index(a)]) return true;
        }
        return false;
    }
    __device__ bool advance(Segment& s) {
        if (tile < a.whole) {
            s = {tile, 0, count(tile), -1};
            tile += programs;
            if (tile >= a.whole) tile = a.whole + (int)((i64)blockIdx.x * a.rest / programs);
            return true;
        }
        int index = tile - a.whole;
        // In units of 1 / programs of a query block.
        i64 low = (i64)blockIdx.x * a.rest - (i64)index * programs, high = low + a.rest;
        if (index >= a.rest || high <= 0) return false;
        low = low < 0 ? 0 : low;
        high = high > programs ? programs : high;
        i64 n = count(tile);
        s = {tile, (int)(low * n / programs), (int)(high * n / programs),
             (int)(2 * blockIdx.x + index - (i64)blockIdx.x * a.rest / programs)};
        tile++;
        return true;
    }
    // Programs without a whole block start at their share.
    __device__ void start() {
        if (tile >= a.whole) tile = a.whole + (int)((i64)blockIdx.x * a.rest / programs);
    }
};

