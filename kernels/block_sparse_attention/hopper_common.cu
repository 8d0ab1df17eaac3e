// What the Hopper kernels of block-sparse attention share; compiled at run time by hopper.py, which defines
//   Q_BLOCK, KV_BLOCK   tokens of a query and of a key block
//   HEAD_DIM            64 or 128
//   WARPGROUPS          consumer warpgroups of 64 query rows: ceil(Q_BLOCK / 64), 1 to 3
//   SUBS, SUB_ROWS      a key block is walked as SUBS pieces of SUB_ROWS rows (a multiple of 16)
//   LAST_COLUMNS        logits columns of the last piece (a multiple of 8); less than SUB_ROWS where the block ends early
//   STAGES              pieces of K and of V in flight
//   CONSUMER_REGISTERS  registers of a consumer thread
//   HAS_SIZES           1 where key blocks have sizes of their own
//   GRADIENT            1 where the gradient of the output is kept beside the queries
//   HALF_TO_BITS        cvt instruction that packs two floats
// and puts hopper_instructions.cu, the wgmma wrappers Logits<N>::multiply and Values::multiply, and hopper_schedule.cu in
// front.
//
// One program per multiprocessor. A producer warp copies whole query blocks and pieces of key blocks to shared memory
// with the bulk tensor engine, whose block axis makes rows past a block's end read as zeros; consumer warpgroups
// compute.

constexpr int ROWS = WARPGROUPS * 64;
constexpr int HALVES = HEAD_DIM / 64;               // 64 channels are 128 bytes, the width of a swizzled row
constexpr int Q_HALF = ROWS * 128;                  // bytes of 64 channels of a tile
constexpr int KV_HALF = SUB_ROWS * 128;
constexpr int Q_BYTES = Q_HALF * HALVES;
constexpr int KV_BYTES = KV_HALF * HALVES;
constexpr int WARPS = WARPGROUPS * 4;
constexpr int LOGITS = SUB_ROWS / 2;                // accumulators of a thread for a piece's logits
constexpr int OUTPUTS = HEAD_DIM / 2;

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

// Addresses in shared memory. Barriers tell that a tile has arrived (full), has been used (empty), or has had its rows
// past the block's size overwritten (ready).
struct Shared {
    u32 q, g, k, v, q_full, q_empty, k_full, k_empty, v_full, v_empty, ready;
    int* k_valid;             // [STAGES] valid rows of the block from the piece's first row on
    int* v_valid;
};

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
            barrier_expect(sh.q_full, Q_BYTES * (1 + GRADIENT));
            for (int h = 0; h < HALVES; h++) {
                copy_tile(sh.q + h * Q_HALF, &a.q, sh.q_full, 64 * h, 0, n, head, batch);
                if (GRADIENT) copy_tile(sh.g + h * Q_HALF, &a.g, sh.q_full, 64 * h, 0, n, head, batch);
            }
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

// Rows past a block's size may hold anything, and 0 * NaN is NaN: a warp overwrites them with zeros in the tile that
// weights multiply, V forward and K for the gradient.
__device__ __forceinline__ void scrub(const Arguments& a, const Shared& sh, char* memory) {
    const int lane = threadIdx.x & 31;
    const u32 tiles = GRADIENT ? sh.k : sh.v, full = GRADIENT ? sh.k_full : sh.v_full;
    const int* valid_rows = GRADIENT ? sh.k_valid : sh.v_valid;
    Ring ring;
    Schedule schedule(a);
    schedule.start();
    Segment seg;
    while (schedule.next(seg)) {
        for (int i = 0; i < (seg.end - seg.begin) * SUBS; i++) {
            barrier_wait(full + 8 * ring.slot, ring.phase);
            const int valid = max(valid_rows[ring.slot], 0);
            if (valid < SUB_ROWS) {
                char* tile = memory + (tiles - shared_address(memory)) + ring.slot * KV_BYTES;
                for (int h = 0; h < HALVES; h++) {
                    for (int byte = valid * 128 + lane * 16; byte < KV_HALF; byte += 512)
                        *(uint4*)(tile + h * KV_HALF + byte) = make_uint4(0, 0, 0, 0);
                }
                fence_async();
            }
            __syncwarp();
            if (lane == 0) barrier_arrive(sh.ready + 8 * ring.slot);
            ring.advance();
        }
    }
}

// Sets up shared memory and gives every warp its role; `Consumer::run` computes.
template <class Consumer> __device__ __forceinline__ void run_program(const Arguments& a, char* memory) {
    STATIC_SHARED(u64, barriers, 2 + 5 * STAGES);
    STATIC_SHARED(int, valid, 2 * STAGES);
    Shared sh;
    sh.q = (shared_address(memory) + 1023) & ~1023u;
    sh.g = sh.q + Q_BYTES;
    sh.k = sh.q + Q_BYTES * (1 + GRADIENT);
    sh.v = sh.k + STAGES * KV_BYTES;
    sh.q_full = shared_address(barriers);
    sh.q_empty = sh.q_full + 8;
    sh.k_full = sh.q_empty + 8;
    sh.k_empty = sh.k_full + 8 * STAGES;
    sh.v_full = sh.k_empty + 8 * STAGES;
    sh.v_empty = sh.v_full + 8 * STAGES;
    sh.ready = sh.v_empty + 8 * STAGES;
    sh.k_valid = valid;
    sh.v_valid = valid + STAGES;
    if (threadIdx.x == 0) {
        barrier_init(sh.q_full, 1);
        barrier_init(sh.q_empty, WARPS);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(sh.k_full + 8 * i, 1);
            barrier_init(sh.v_full + 8 * i, 1);
            barrier_init(sh.ready + 8 * i, 1);
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
        Consumer::run(a, sh, group);
    }
}
