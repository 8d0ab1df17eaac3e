// Gradient of the queries for Hopper (sm_90a), after hopper_common.cu: for every piece of a listed key block S = Q K^T
// and dP = dO V^T, then dS = P * (dP - delta) and dQ += dS K. With weights and logits of one piece alone in registers
// the warpgroups fill each other's gaps.

struct QueryGradient {
    float dq[OUTPUTS], lse2[2], delta[2];
    Ring ring;
    float scale2;
    bool lane0;

    template <int N> __device__ __forceinline__ void step(const Shared& sh, u64 q, u64 g) {
        const u32 at = 8 * ring.slot;
        const u32 k = sh.k + ring.slot * KV_BYTES;
        float s[N / 2], dp[N / 2];
        barrier_wait((HAS_SIZES ? sh.ready : sh.k_full) + at, ring.phase);
        barrier_wait(sh.v_full + at, ring.phase);
        wgmma_fence();
        multiply_logits<N>(s, q, descriptor(k, 16, 1024));
        multiply_logits<N>(dp, g, descriptor(sh.v + ring.slot * KV_BYTES, 16, 1024));
        wgmma_commit();
        wgmma_wait<0>();
        pin(s);
        pin(dp);
        const int valid = sh.k_valid[ring.slot];
        if (lane0) barrier_arrive(sh.v_empty + at);
        const int column = 2 * (threadIdx.x & 3);
        u32 ds[LOGITS / 2];
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int c = 4 * j + i;
                s[c] = exp2_fast(fmaf(s[c], scale2, -lse2[i / 2])) * (dp[c] - delta[i / 2]);
            }
            if (valid < 8 * j + 8) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    if (8 * j + column + (i & 1) >= valid) s[4 * j + i] = 0.0f;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < LOGITS / 2; i++) ds[i] = 2 * i < N / 2 ? pack(s[2 * i % (N / 2)], s[2 * i % (N / 2) + 1]) : 0;
        wgmma_fence();
        multiply_values<N>(dq, ds, descriptor(k, KV_HALF, 1024));
        wgmma_commit();
        wgmma_wait<0>();
        pin(dq);
        if (lane0) barrier_arrive(sh.k_empty + at);
        ring.advance();
    }

    __device__ __forceinline__ void attend(const Arguments& a, const Shared& sh, int group) {
        const int lane = threadIdx.x & 31, warp = (threadIdx.x >> 5) & 3;
        const int first_row = group * 64 + warp * 16 + lane / 4;
        scale2 = a.scale * 1.4426950408889634f;
        lane0 = lane == 0;
        const u64 q = descriptor(sh.q + group * 64 * 128, 16, 1024), g = descriptor(sh.g + group * 64 * 128, 16, 1024);
        u32 q_phase = 0;
        Schedule schedule(a);
        schedule.start();
        Segment seg;
        while (schedule.next(seg)) {
#pragma unroll
            for (int i = 0; i < OUTPUTS; i++) dq[i] = 0.0f;
            if (seg.begin < seg.end) {
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const int row = first_row + 8 * r;
                    const i64 token = (i64)seg.tile * Q_BLOCK + row;
                    // Rows past the block, and rows whose keys all have size 0, have weights of 0.
                    const float lse = row < Q_BLOCK ? a.lse[token] : MINUS_INFINITY;
                    lse2[r] = lse == MINUS_INFINITY ? -MINUS_INFINITY : lse * 1.4426950408889634f;
                    delta[r] = row < Q_BLOCK ? a.delta[token] : 0.0f;
                }
                barrier_wait(sh.q_full, q_phase);
                q_phase ^= 1;
#pragma unroll 1
                for (int block = seg.begin; block < seg.end; block++) {
#pragma unroll
                    for (int t = 0; t < SUBS - 1; t++) step<SUB_ROWS>(sh, q, g);
                    step<LAST_COLUMNS>(sh, q, g);
                }
                if (lane0) barrier_arrive(sh.q_empty);
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int row = first_row + 8 * r;
                if (row >= Q_BLOCK) continue;
                const i64 token = (i64)(seg.part < 0 ? seg.tile : seg.part) * Q_BLOCK + row;
                const i64 place = token * HEAD_DIM + 2 * (lane & 3);
#pragma unroll
                for (int j = 0; j < HEAD_DIM / 8; j++) {
                    const float x = dq[4 * j + 2 * r] * a.scale, y = dq[4 * j + 2 * r + 1] * a.scale;
                    if (seg.part < 0)
                        *(u32*)(a.out + place + 8 * j) = pack(x, y);
                    else
                        *(float2*)(a.part_out + place + 8 * j) = make_float2(x, y);
                }
            }
        }
    }

    __device__ __forceinline__ static void run(const Arguments& a, const Shared& sh, int group) {
        QueryGradient self;
        self.attend(a, sh, group);
    }
};

extern "C" __global__ void __launch_bounds__((WARPGROUPS + 1) * 128, 1)
block_sparse_query_gradient(const __grid_constant__ Arguments a) {
    DYNAMIC_SHARED(memory);
    run_program<QueryGradient>(a, memory);
}

// Adds the shares of the query blocks of the last round: one row of one of them per 32 threads.
extern "C" __global__ void block_sparse_add(const float* part_out, unsigned short* out, int whole, int rest, int programs) {
    const int item = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x & 31;
    if (item >= rest * Q_BLOCK) return;
    const int tile = item / Q_BLOCK, row = item % Q_BLOCK;
    const int first = (int)((i64)tile * programs / rest), last = (int)(((i64)(tile + 1) * programs - 1) / rest);
    float sums[HEAD_DIM / 32];
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 32; j++) sums[j] = 0.0f;
    for (int c = first; c <= last; c++) {
        const i64 token = (2 * (i64)c + tile - (i64)c * rest / programs) * Q_BLOCK + row;
#pragma unroll
        for (int j = 0; j < HEAD_DIM / 32; j++) sums[j] += part_out[token * HEAD_DIM + lane * (HEAD_DIM / 32) + j];
    }
    const i64 token = (i64)(whole + tile) * Q_BLOCK + row;
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 32; j += 2)
        *(u32*)(out + token * HEAD_DIM + lane * (HEAD_DIM / 32) + j) = pack(sums[j], sums[j + 1]);
}
