// Block-sparse attention forward for Hopper (sm_90a). Compiled at run time by hopper.py, which defines
//   Q_BLOCK, KV_BLOCK   tokens of a query and of a key block
//   HEAD_DIM            64 or 128
//   WARPGROUPS          consumer warpgroups of 64 query rows: ceil(Q_BLOCK / 64), 1 to 3
//   SUBS, SUB_ROWS      a key block is walked as SUBS pieces of SUB_ROWS rows (a multiple of 16)
//   LAST_COLUMNS        logits columns of the last piece (a multiple of 8); less than SUB_ROWS where the block ends early
//   STAGES              pieces of K and of V in flight
//   CONSUMER_REGISTERS  registers of a consumer thread
//   HAS_SIZES           1 where key blocks have sizes of their own
//   HALF_TO_BITS        cvt instruction that packs two floats
// and puts hopper_instructions.cu in front, with the wgmma wrappers Logits<N>::multiply and Values::multiply.
//
// One program per multiprocessor. A producer warp copies whole query blocks and pieces of key blocks to shared memory
// with the bulk tensor engine, whose block axis makes rows past a block's end read as zeros; the consumers run
// S = Q K^T of one piece while they add P V of the piece before. Programs take whole query blocks first, in step, so
// that the blocks of one head meet in the L2 cache; the blocks of the last, incomplete round are cut into equal
// shares for all programs, whose results `combine` merges.


constexpr int ROWS = WARPGROUPS * 64;
constexpr int HALVES = HEAD_DIM / 64;               // 64 channels are 128 bytes, the width of a swizzled row
constexpr int Q_HALF = ROWS * 128;                  // bytes of 64 channels of a tile
constexpr int KV_HALF = SUB_ROWS * 128;
constexpr int Q_BYTES = Q_HALF * HALVES;
constexpr int KV_BYTES = KV_HALF * HALVES;
constexpr int WARPS = WARPGROUPS * 4;
constexpr int LOGITS = SUB_ROWS / 2;                // accumulators of a thread for a piece's logits
constexpr int OUTPUTS = HEAD_DIM / 2;

// Matrix descriptor of a tile with 128-byte swizzle; offsets in bytes.
__device__ __forceinline__ u64 descriptor(u32 address, u32 leading, u32 stride) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | (u64)1 << 62;
}
struct Ring {
    int slot = 0;
    u32 phase = 0;
    __device__ __forceinline__ void advance() {
        if (++slot == STAGES) { slot = 0; phase ^= 1; }
    }
};

struct Arguments {
    TensorMap q, k, v;
    const int* lists;
    const int* counts;
    const int* sizes;
    unsigned short* out;      // [planes, q_blocks * Q_BLOCK, HEAD_DIM]
    float* lse;               // [planes, q_blocks * Q_BLOCK]
    float* part_out;          // [2 * programs, Q_BLOCK, HEAD_DIM]
    float* part_lse;          // [2 * programs, Q_BLOCK]
    i64 list_batch, list_head, list_row, count_batch, count_head;
    int heads, q_blocks, keys_have_batch, whole, rest;
    float scale;
};

// A share of one query block's list; part < 0 where it is the whole list.
struct Segment {
    int tile, begin, end, part;
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
    __device__ bool next(Segment& s) {
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

template <int N>
__device__ __forceinline__ void multiply_logits(float (&s)[N / 2], u64 q, u64 k) {
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++) {
        Logits<N>::multiply(s, q + (i / 4) * (Q_HALF >> 4) + (i % 4) * 2, k + (i / 4) * (KV_HALF >> 4) + (i % 4) * 2, i > 0);
    }
}

template <int N>
__device__ __forceinline__ void multiply_values(float (&o)[OUTPUTS], const u32 (&p)[LOGITS / 2], u64 v) {
#pragma unroll
    for (int i = 0; i < (N + 15) / 16; i++) Values::multiply(o, p + 4 * i, v + i * (2048 >> 4));
}

// Online softmax of a piece: logits become weights, `shrink` says by what the sums so far must be multiplied.
template <int N>
__device__ __forceinline__ void softmax(
    float (&s)[N / 2], float (&top)[2], float (&sum)[2], float (&shrink)[2], float scale2, int valid) {
    const int column = 2 * (threadIdx.x & 3);
    if (valid < N) {
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            if (valid < 8 * j + 8) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (8 * j + column + (i & 1) >= valid) s[4 * j + i] = MINUS_INFINITY;
                }
            }
        }
    }
    float reference[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float best = top[r];
#pragma unroll
        for (int j = 0; j < N / 8; j++) best = fmaxf(best, fmaxf(s[4 * j + 2 * r], s[4 * j + 2 * r + 1]));
        best = fmaxf(best, __shfl_xor_sync(0xffffffff, best, 1));
        best = fmaxf(best, __shfl_xor_sync(0xffffffff, best, 2));
        // All keys so far may be masked.
        reference[r] = best == MINUS_INFINITY ? 0.0f : best * scale2;
        shrink[r] = exp2_fast(top[r] * scale2 - reference[r]);
        top[r] = best;
        sum[r] *= shrink[r];
    }
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[4 * j + i] = exp2_fast(fmaf(s[4 * j + i], scale2, -reference[i / 2]));
            sum[i / 2] += s[4 * j + i];
        }
    }
}

template <int N>
__device__ __forceinline__ void pack_weights(u32 (&p)[LOGITS / 2], const float (&s)[N / 2]) {
#pragma unroll
    for (int i = 0; i < LOGITS / 2; i++) p[i] = 2 * i < N / 2 ? pack(s[2 * i % (N / 2)], s[2 * i % (N / 2) + 1]) : 0;
}

struct Shared {
    u32 q, k, v, q_full, q_empty, k_full, k_empty, v_full, v_empty, v_ready;
    int* k_valid;             // [STAGES] valid rows of the block from the piece's first row on
    int* v_valid;
};

struct State {
    float o[OUTPUTS], top[2], sum[2];
    u32 p[LOGITS / 2];
    Ring k, v;
    float scale2;
    bool active;              // some row of this warp is one of the query block's
    bool lane0;
};

__device__ __forceinline__ void rescale(float (&o)[OUTPUTS], const float (&shrink)[2]) {
    if (__any_sync(0xffffffff, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
        for (int j = 0; j < OUTPUTS; j++) o[j] *= shrink[(j / 2) & 1];
    }
}

template <int N>
__device__ __forceinline__ void add_values(State& st, const Shared& sh) {
    barrier_wait((HAS_SIZES ? sh.v_ready : sh.v_full) + 8 * st.v.slot, st.v.phase);
    wgmma_fence();
    multiply_values<N>(st.o, st.p, descriptor(sh.v + st.v.slot * KV_BYTES, KV_HALF, 1024));
    wgmma_commit();
}

__device__ __forceinline__ void release_values(State& st, const Shared& sh) {
    if (st.lane0) barrier_arrive(sh.v_empty + 8 * st.v.slot);
    st.v.advance();
}

// Logits of the next piece (N columns); meanwhile, where there is one, P V of the piece before (BEFORE columns).
template <int N, int BEFORE>
__device__ __forceinline__ void step(State& st, const Shared& sh, u64 q) {
    barrier_wait(sh.k_full + 8 * st.k.slot, st.k.phase);
    wgmma_fence();
    float s[N / 2];
    multiply_logits<N>(s, q, descriptor(sh.k + st.k.slot * KV_BYTES, 16, 1024));
    wgmma_commit();
    if constexpr (BEFORE > 0) {
        add_values<BEFORE>(st, sh);
        wgmma_wait<1>();
    } else {
        wgmma_wait<0>();
    }
    pin(s);
    const int valid = sh.k_valid[st.k.slot];
    if (st.lane0) barrier_arrive(sh.k_empty + 8 * st.k.slot);
    st.k.advance();
    float shrink[2] = {1.0f, 1.0f};
    // Rows past the query block are never stored.
    if (st.active) softmax<N>(s, st.top, st.sum, shrink, st.scale2, valid);
    if constexpr (BEFORE > 0) {
        wgmma_wait<0>();
        pin(st.o);
        release_values(st, sh);
        rescale(st.o, shrink);
    }
    pack_weights<N>(st.p, s);
}

template <int N>
__device__ __forceinline__ void finish(State& st, const Shared& sh) {
    add_values<N>(st, sh);
    wgmma_wait<0>();
    pin(st.o);
    release_values(st, sh);
}

__device__ __forceinline__ void consume(const Arguments& a, const Shared& sh, int group) {
    State st;
    const int lane = threadIdx.x & 31, warp = (threadIdx.x >> 5) & 3;
    const int first_row = group * 64 + warp * 16;
    st.scale2 = a.scale * 1.4426950408889634f;
    st.active = first_row < Q_BLOCK;
    st.lane0 = lane == 0;
    const u64 q = descriptor(sh.q + group * 64 * 128, 16, 1024);
    u32 q_phase = 0;
    Schedule schedule(a);
    schedule.start();
    Segment seg;
    while (schedule.next(seg)) {
#pragma unroll
        for (int i = 0; i < OUTPUTS; i++) st.o[i] = 0.0f;
        st.top[0] = st.top[1] = MINUS_INFINITY;
        st.sum[0] = st.sum[1] = 0.0f;
        if (seg.begin < seg.end) {
            barrier_wait(sh.q_full, q_phase);
            q_phase ^= 1;
            constexpr int FIRST = SUBS > 1 ? SUB_ROWS : LAST_COLUMNS;
            step<FIRST, 0>(st, sh, q);
            for (int block = seg.begin;; block++) {
                if constexpr (SUBS > 1) {
#pragma unroll
                    for (int t = 1; t < SUBS - 1; t++) step<SUB_ROWS, SUB_ROWS>(st, sh, q);
                    step<LAST_COLUMNS, SUB_ROWS>(st, sh, q);
                }
                if (block + 1 == seg.end) break;
                step<FIRST, LAST_COLUMNS>(st, sh, q);
            }
            if (st.lane0) barrier_arrive(sh.q_empty);
            finish<LAST_COLUMNS>(st, sh);
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            st.sum[r] += __shfl_xor_sync(0xffffffff, st.sum[r], 1);
            st.sum[r] += __shfl_xor_sync(0xffffffff, st.sum[r], 2);
            const int row = first_row + lane / 4 + 8 * r;
            const float total = st.sum[r], inverse = total > 0.0f ? 1.0f / total : 0.0f;
            const float lse = total > 0.0f ? st.top[r] * a.scale + logf(total) : MINUS_INFINITY;
            if (row >= Q_BLOCK) continue;
            const i64 token = seg.part < 0 ? (i64)seg.tile * Q_BLOCK + row : (i64)seg.part * Q_BLOCK + row;
            const i64 place = token * HEAD_DIM + 2 * (lane & 3);
            if (seg.part < 0) {
                if ((lane & 3) == 0) a.lse[token] = lse;
#pragma unroll
                for (int j = 0; j < HEAD_DIM / 8; j++)
                    *(u32*)(a.out + place + 8 * j) = pack(st.o[4 * j + 2 * r] * inverse, st.o[4 * j + 2 * r + 1] * inverse);
            } else {
                if ((lane & 3) == 0) a.part_lse[token] = lse;
#pragma unroll
                for (int j = 0; j < HEAD_DIM / 8; j++)
                    *(float2*)(a.part_out + place + 8 * j) =
                        make_float2(st.o[4 * j + 2 * r] * inverse, st.o[4 * j + 2 * r + 1] * inverse);
            }
        }
    }
}

__device__ __forceinline__ void produce(const Arguments& a, const Shared& sh) {
    const int lane = threadIdx.x & 31;
    Ring ring;
    u32 q_phase = 1;
    Schedule schedule(a);
    schedule.start();
    Segment seg;
    while (schedule.next(seg)) {
        if (seg.begin >= seg.end) continue;
        const int plane = seg.tile / a.q_blocks, n = seg.tile % a.q_blocks;
        const int batch = plane / a.heads, head = plane % a.heads, key_batch = a.keys_have_batch ? batch : 0;
        const int* list = a.lists + batch * a.list_batch + head * a.list_head + n * a.list_row;
        barrier_wait(sh.q_empty, q_phase);
        q_phase ^= 1;
        if (lane == 0) {
            barrier_expect(sh.q_full, Q_BYTES);
            for (int h = 0; h < HALVES; h++) copy_tile(sh.q + h * Q_HALF, &a.q, sh.q_full, 64 * h, 0, n, head, batch);
        }
        for (int base = seg.begin; base < seg.end; base += 32) {
            int listed = 0, size = KV_BLOCK;
            if (base + lane < seg.end) {
                listed = list[base + lane];
                if (HAS_SIZES) size = min(max(a.sizes[listed], 0), KV_BLOCK);
            }
            const int many = min(32, seg.end - base);
#pragma unroll 1
            for (int i = 0; i < many; i++) {
                const int block = __shfl_sync(0xffffffff, listed, i), rows = __shfl_sync(0xffffffff, size, i);
#pragma unroll 1
                for (int t = 0; t < SUBS; t++) {
                    const u32 k_full = sh.k_full + 8 * ring.slot, v_full = sh.v_full + 8 * ring.slot;
                    barrier_wait(sh.k_empty + 8 * ring.slot, ring.phase ^ 1);
                    if (lane == 0) {
                        sh.k_valid[ring.slot] = rows - t * SUB_ROWS;
                        barrier_expect(k_full, KV_BYTES);
                        for (int h = 0; h < HALVES; h++)
                            copy_tile(sh.k + ring.slot * KV_BYTES + h * KV_HALF, &a.k, k_full, 64 * h, t * SUB_ROWS, block, head, key_batch);
                    }
                    barrier_wait(sh.v_empty + 8 * ring.slot, ring.phase ^ 1);
                    if (lane == 0) {
                        sh.v_valid[ring.slot] = rows - t * SUB_ROWS;
                        barrier_expect(v_full, KV_BYTES);
                        for (int h = 0; h < HALVES; h++)
                            copy_tile(sh.v + ring.slot * KV_BYTES + h * KV_HALF, &a.v, v_full, 64 * h, t * SUB_ROWS, block, head, key_batch);
                    }
                    __syncwarp();
                    ring.advance();
                }
            }
        }
    }
}

// Rows of V past a block's size may hold anything, and 0 * NaN is NaN: a warp overwrites them with zeros.
__device__ __forceinline__ void scrub(const Arguments& a, const Shared& sh, char* memory) {
    const int lane = threadIdx.x & 31;
    Ring ring;
    Schedule schedule(a);
    schedule.start();
    Segment seg;
    while (schedule.next(seg)) {
        for (int i = 0; i < (seg.end - seg.begin) * SUBS; i++) {
            barrier_wait(sh.v_full + 8 * ring.slot, ring.phase);
            const int valid = max(sh.v_valid[ring.slot], 0);
            if (valid < SUB_ROWS) {
                char* tile = memory + (sh.v - shared_address(memory)) + ring.slot * KV_BYTES;
                for (int h = 0; h < HALVES; h++) {
                    for (int byte = valid * 128 + lane * 16; byte < KV_HALF; byte += 512)
                        *(uint4*)(tile + h * KV_HALF + byte) = make_uint4(0, 0, 0, 0);
                }
                fence_async();
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(sh.v_ready + 8 * ring.slot);
            ring.advance();
        }
    }
}

extern "C" __global__ void __launch_bounds__((WARPGROUPS + 1) * 128, 1)
block_sparse_forward(const __grid_constant__ Arguments a) {
    DYNAMIC_SHARED(memory);
    STATIC_SHARED(u64, barriers, 2 + 5 * STAGES);
    STATIC_SHARED(int, valid, 2 * STAGES);
    Shared sh;
    sh.q = (shared_address(memory) + 1023) & ~1023u;
    sh.k = sh.q + Q_BYTES;
    sh.v = sh.k + STAGES * KV_BYTES;
    sh.q_full = shared_address(barriers);
    sh.q_empty = sh.q_full + 8;
    sh.k_full = sh.q_empty + 8;
    sh.k_empty = sh.k_full + 8 * STAGES;
    sh.v_full = sh.k_empty + 8 * STAGES;
    sh.v_empty = sh.v_full + 8 * STAGES;
    sh.v_ready = sh.v_empty + 8 * STAGES;
    sh.k_valid = valid;
    sh.v_valid = valid + STAGES;
    if (threadIdx.x == 0) {
        barrier_init(sh.q_full, 1);
        barrier_init(sh.q_empty, WARPS);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(sh.k_full + 8 * i, 1);
            barrier_init(sh.v_full + 8 * i, 1);
            barrier_init(sh.v_ready + 8 * i, 1);
            barrier_init(sh.k_empty + 8 * i, WARPS);
            barrier_init(sh.v_empty + 8 * i, WARPS);
        }
        fence_barriers();
    }
    __syncthreads();
    const int group = __shfl_sync(0xffffffff, (int)threadIdx.x / 128, 0);
    if (group == WARPGROUPS) {
        give_registers<32>();
        const int warp = (threadIdx.x >> 5) & 3;
        if (warp == 0) produce(a, sh);
        if (HAS_SIZES && warp == 1) scrub(a, sh, memory);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        consume(a, sh, group);
    }
}

// Merges the shares of the query blocks of the last round: one row of one of them per 32 threads.
extern "C" __global__ void block_sparse_combine(
    const float* part_out, const float* part_lse, unsigned short* out, float* lse, int whole, int rest, int programs) {
    const int item = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x & 31;
    if (item >= rest * Q_BLOCK) return;
    const int tile = item / Q_BLOCK, row = item % Q_BLOCK;
    const int first = (int)((i64)tile * programs / rest), last = (int)(((i64)(tile + 1) * programs - 1) / rest);
    float top = MINUS_INFINITY, total = 0.0f, sums[HEAD_DIM / 32];
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 32; j++) sums[j] = 0.0f;
    for (int c = first; c <= last; c++) {
        const i64 token = (2 * (i64)c + tile - (i64)c * rest / programs) * Q_BLOCK + row;
        const float part = part_lse[token];
        if (part == MINUS_INFINITY) continue;
        const float best = fmaxf(top, part), shrink = expf(top - best), weight = expf(part - best);
        top = best;
        total = total * shrink + weight;
#pragma unroll
        for (int j = 0; j < HEAD_DIM / 32; j++)
            sums[j] = sums[j] * shrink + weight * part_out[token * HEAD_DIM + lane * (HEAD_DIM / 32) + j];
    }
    const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
    const i64 token = (i64)(whole + tile) * Q_BLOCK + row;
    if (lane == 0) lse[token] = total > 0.0f ? top + logf(total) : MINUS_INFINITY;
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 32; j += 2)
        *(u32*)(out + token * HEAD_DIM + lane * (HEAD_DIM / 32) + j) = pack(sums[j] * inverse, sums[j + 1] * inverse);
}
