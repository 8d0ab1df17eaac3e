// Gradients of block-sparse attention for Hopper (sm_90a), after hopper_gradients_copy.cu: programs own pieces of key
// blocks and stream the query blocks that list them. A chunk of 64 queries against N keys:
//   P = exp2(Q K^T - lse), dS = P * (dO V^T - delta), then dV^T += dO^T P, dK^T += Q^T dS, and dQ += dS K in memory.
// Defined from outside: LAST columns of the last piece; QUERY_GRADIENT, 0 where another kernel computes dQ, in an order
// that is always the same.

// Groups of channels of dQ that are added before the next products need registers.
constexpr int BESIDE = 5;

struct Consumer {
    PairRing ring;
    float scale, scale2, lse2[2], delta[2];
    int group, lane, warp, strip[2];                // warp: of the group's four

    // dV^T += dO^T P and dK^T += Q^T dS of a pair of chunks or one, half of the channels each warpgroup.
    template <int N, int COUNT>
    __device__ __forceinline__ void add_keys(const Shared& sh, int slot, float (&dk)[N / 2], float (&dv)[N / 2]) {
        wgmma_fence();
#pragma unroll
        for (int u = 0; u < COUNT; u++) {
            const u32 half = (slot + u) * CHUNK + group * HALF_CHUNK;
            multiply_weights<N>(dv, sh.g + half, sh.p + u * WEIGHTS);
            multiply_weights<N>(dk, sh.q + half, sh.ds + u * WEIGHTS);
        }
        wgmma_commit();
    }

    __device__ __forceinline__ void release(const Shared& sh, int slot) {
        __syncwarp();
        if (lane == 0) {
            barrier_arrive(sh.empty + 8 * slot);
            barrier_arrive(sh.empty + 8 * (slot + 1));
        }
    }

    // Where this thread's rows of a chunk come from; -1 for none.
    __device__ __forceinline__ void look_up(const Arguments& a, const Shared& sh, int slot) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = warp * 16 + lane / 4 + 8 * r, part = row / STRIP, place = slot * SPC + min(part, SPC - 1);
            const bool ok = part < SPC && row % STRIP < sh.valid[place];
            strip[r] = ok ? sh.strip[place] : -1;
            const float2 x = ok ? a.rows[sh.first_token[place] + row % STRIP] : make_float2(-MINUS_INFINITY, 0.0f);
            lse2[r] = x.x;
            delta[r] = x.y;
        }
    }

    // Adds groups of channels of the rows that strips `of` cover.
    template <int FIRST, int LAST_GROUP>
    __device__ __forceinline__ void add_queries(const Arguments& a, const float (&dq)[64], const int (&of)[2]) const {
#pragma unroll
        for (int r = 0; QUERY_GRADIENT && r < 2; r++) {
            if (of[r] < 0) continue;
            float* to = a.grad_q + Sums::place(of[r], (warp * 16 + lane / 4 + 8 * r) % STRIP) + 4 * (lane & 3);
#pragma unroll
            for (int g = FIRST; g < LAST_GROUP; g++) {
                const int c = 8 * g + 2 * r;
                add_global(to + g * Sums::GROUP, dq[c], dq[c + 1], dq[c + 4], dq[c + 5]);
            }
        }
    }

    template <int N> __device__ __forceinline__ void run_tile(const Arguments& a, const Shared& sh) {
        const int item = sh.tile[0], piece = sh.tile[1], chunks = sh.tile[2], keys = sh.tile[3];
        const int pairs = (chunks + 1) / 2, own = (chunks + 1 - group) / 2;
        float dk[N / 2], dv[N / 2], s[N / 2], dp[N / 2], dq[64];
#pragma unroll
        for (int i = 0; i < N / 2; i++) dk[i] = dv[i] = 0.0f;
        barrier_wait(sh.full + 8 * (ring.slot + group), ring.phase);
        wgmma_fence();
        multiply_rows<N, PIECE>(s, sh.q + (ring.slot + group) * CHUNK, sh.k);
        multiply_rows<N, PIECE>(dp, sh.g + (ring.slot + group) * CHUNK, sh.v);
        wgmma_commit();
        look_up(a, sh, ring.slot + group);
        wgmma_wait<0>();
        int slot = 0, before = 0;
        // While the weights of a pair of chunks are computed, those of the pair before multiply queries and gradients.
#pragma unroll 1
        for (int i = 0;; i++) {
            pin(s);
            pin(dp);
            before = slot;
            slot = ring.slot;
            u32 p[N / 4], ds[(N + 15) / 16 * 4];
            const int column = 2 * (lane & 3);
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int c = 4 * j + i;
                    s[c] = exp2_fast(fmaf(s[c], scale2, -lse2[i / 2]));
                    dp[c] = s[c] * (dp[c] - delta[i / 2]);
                }
                if (keys < 8 * j + 8) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (8 * j + column + (i & 1) >= keys) s[4 * j + i] = dp[4 * j + i] = 0.0f;
                    }
                }
                p[2 * j] = pack(s[4 * j], s[4 * j + 1]);
                p[2 * j + 1] = pack(s[4 * j + 2], s[4 * j + 3]);
                ds[2 * j] = pack(dp[4 * j], dp[4 * j + 1]);
                ds[2 * j + 1] = pack(dp[4 * j + 2], dp[4 * j + 3]);
            }
            if constexpr (N % 16) ds[N / 4] = ds[N / 4 + 1] = 0;
            if constexpr (QUERY_GRADIENT) {
                const u64 k = descriptor(sh.k, PIECE_HALF, 1024);
#pragma unroll
                for (int c = 0; c < 64; c++) dq[c] = 0.0f;
                wgmma_fence();
#pragma unroll
                for (int c = 0; c < (N + 15) / 16; c++) Values::multiply(dq, ds + 4 * c, k + c * (2048 >> 4));
                wgmma_commit();
                wgmma_wait<1>();
            } else {
                wgmma_wait<0>();
            }
            if (i > 0) release(sh, before);
            // Both warpgroups have used the weights of the pair before, the copy engine the gradients of the tile before.
            if (i == 0 && threadIdx.x == 0) wait_stores_read();
            pair_sync();
            store_weights<N>(sh.p + group * WEIGHTS, p);
            store_weights<N>(sh.ds + group * WEIGHTS, ds);
            fence_async();
            if constexpr (QUERY_GRADIENT) {
                wgmma_wait<0>();
                pin(dq);
            }
            ring.advance();
            if (i + 1 == own) break;
            const int next = ring.slot + group;
            barrier_wait(sh.full + 8 * next, ring.phase);
            wgmma_fence();
            multiply_rows<N, PIECE>(s, sh.q + next * CHUNK, sh.k);
            wgmma_commit();
            // The weights of both warpgroups are there.
            pair_sync();
            // Additions take as long as products: most of them beside these, the rest beside those that follow.
            const int of[2] = {strip[0], strip[1]};
            look_up(a, sh, next);
            add_queries<0, BESIDE>(a, dq, of);
            wgmma_fence();
            multiply_rows<N, PIECE>(dp, sh.g + next * CHUNK, sh.v);
            wgmma_commit();
            add_keys<N, 2>(sh, slot, dk, dv);
            add_queries<BESIDE, Sums::GROUPS>(a, dq, of);
            wgmma_wait<1>();
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(sh.tile_empty);
        if (own < pairs) {
            // The last pair has no chunk for this warpgroup; no query block fits in one chunk, so there is one before.
            pair_sync();
            add_keys<N, 2>(sh, slot, dk, dv);
            add_queries<0, Sums::GROUPS>(a, dq, strip);
            wgmma_wait<0>();
            pin(dk);
            pin(dv);
            release(sh, slot);
            slot = ring.slot;
            pair_sync();
            ring.advance();
        }
        pair_sync();
        if (chunks % 2) {
            add_keys<N, 1>(sh, slot, dk, dv);
            if (own == pairs) add_queries<0, Sums::GROUPS>(a, dq, strip);
            wgmma_wait<0>();
            pin(dk);
            pin(dv);
        } else {
            add_keys<N, 2>(sh, slot, dk, dv);
            add_queries<0, Sums::GROUPS>(a, dq, strip);
            wgmma_wait<0>();
            pin(dk);
            pin(dv);
        }
        release(sh, slot);
        u32 w[N / 4];
#pragma unroll
        for (int i = 0; i < N / 4; i++) w[i] = pack(dv[2 * i], dv[2 * i + 1]);
        pair_sync();
        store_weights<N>(sh.p + group * WEIGHTS, w);
#pragma unroll
        for (int i = 0; i < N / 4; i++) w[i] = pack(dk[2 * i] * scale, dk[2 * i + 1] * scale);
        store_weights<N>(sh.ds + group * WEIGHTS, w);
        fence_async();
        pair_sync();
        if (threadIdx.x == 0) {
            const int plane = item / a.kv_blocks, block = item % a.kv_blocks;
            for (int h = 0; h < 2; h++) {
                const int head = plane % a.heads, batch = plane / a.heads;
                store_tile(&a.grad_v_map, sh.p + h * WEIGHTS, 64 * h, piece * PIECE, block, head, batch);
                store_tile(&a.grad_k_map, sh.ds + h * WEIGHTS, 64 * h, piece * PIECE, block, head, batch);
            }
            commit_stores();
        }
    }

    __device__ __forceinline__ void run(const Arguments& a, const Shared& sh, int own_group) {
        group = own_group;
        lane = threadIdx.x & 31;
        warp = threadIdx.x >> 5 & 3;
        scale = a.scale;
        scale2 = a.scale * 1.4426950408889634f;
        for (u32 phase = 0;; phase ^= 1) {
            barrier_wait(sh.tile_full, phase);
            if (sh.tile[0] < 0) break;
            if (HAS_SIZES) barrier_wait(sh.tile_ready, phase);
            if (PIECES > 1 && sh.tile[1] < PIECES - 1)
                run_tile<PIECES == 1 ? LAST : PIECE>(a, sh);
            else
                run_tile<LAST>(a, sh);
        }
        if (threadIdx.x == 0) wait_stores();
    }
};

extern "C" __global__ void __launch_bounds__(384, 1) block_sparse_gradients(const __grid_constant__ Arguments a) {
    DYNAMIC_SHARED(memory);
    STATIC_SHARED(u64, barriers, 3 + 2 * STAGES);
    STATIC_SHARED(int, numbers, 4 + 3 * STAGES * SPC);
    Shared sh;
    sh.q = (shared_address(memory) + 1023) & ~1023u;
    sh.g = sh.q + STAGES * CHUNK;
    sh.k = sh.g + STAGES * CHUNK;
    sh.v = sh.k + PIECE_BYTES;
    sh.p = sh.v + PIECE_BYTES;
    sh.ds = sh.p + 2 * WEIGHTS;
    sh.tile_full = shared_address(barriers);
    sh.tile_empty = sh.tile_full + 8;
    sh.tile_ready = sh.tile_empty + 8;
    sh.full = sh.tile_ready + 8;
    sh.empty = sh.full + 8 * STAGES;
    sh.tile = numbers;
    sh.valid = numbers + 4;
    sh.first_token = sh.valid + STAGES * SPC;
    sh.strip = sh.first_token + STAGES * SPC;
    if (threadIdx.x == 0) {
        barrier_init(sh.tile_full, 1);
        barrier_init(sh.tile_empty, 8);
        barrier_init(sh.tile_ready, 1);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(sh.full + 8 * i, 1);
            barrier_init(sh.empty + 8 * i, 8);
        }
        fence_barriers();
    }
    // Rows of a chunk that no strip covers have weights of 0, and must not hold NaN.
    for (int i = threadIdx.x; i < 2 * STAGES * CHUNK / 16; i += 384) store_shared(sh.q + i * 16, make_uint4(0, 0, 0, 0));
    fence_async();
    __syncthreads();
    const int group = __shfl_sync(0xffffffff, (int)threadIdx.x / 128, 0);
    if (group == 2) {
        give_registers<40>();
        const int warp = (threadIdx.x >> 5) & 3;
        if (warp == 0) produce(a, sh);
        if (HAS_SIZES && warp == 1) scrub(sh);
        if (warp >= 2) clear(a, blockIdx.x * 2 + warp - 2, gridDim.x * 2);
    } else {
        take_registers<232>();
        Consumer consumer;
        consumer.run(a, sh, group);
    }
}
