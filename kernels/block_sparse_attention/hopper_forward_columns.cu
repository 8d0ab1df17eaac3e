// Block-sparse attention forward for Hopper (sm_90a), with queries as the columns of every product: S^T = K Q^T in chunks
// of 64 keys, O^T += V^T P^T. An exact block of 147 queries costs 152 columns, not 192 rows. After hopper_strips.cu.
//
// Softmax weights are taken relative to a reference that the first chunks of keys fix; a sum that leaves the range of
// fp32 because later logits are far larger (by 80 or so) is left to the kernel of hopper_forward.cu, by `redo`.

constexpr int N = COLUMNS;
constexpr int WEIGHTS = N * 128;                    // bytes of the weights of a chunk
constexpr float MARGIN = 20.0f;                     // log2 of how far below 1 the first weights lie

struct Shared {
    u32 q, p, k, v, q_full, q_empty, k_full, k_empty, v_full, v_empty, ready;
    int *k_valid, *v_valid;                         // [STAGES][SPC] valid rows of a strip
    float *reference, *inverse, *gather;            // [N], [N], [8][N]
    int* failed;
};

// One warp copies the queries and chunks of keys, another chunks of values, so that keys can be ahead of values.
template <bool VALUES> __device__ __forceinline__ void produce(const Arguments& a, const Shared& sh) {
    const int lane = threadIdx.x & 31;
    constexpr int BATCH = 32 / SPC;                 // chunks whose strips the lanes hold
    Ring ring;
    u32 q_phase = 1;
    Schedule schedule(a);
    schedule.start();
    Segment seg;
    while (schedule.next(seg)) {
        const int n = seg.end - seg.begin, chunks = 2 * pairs_of(n);
        if (chunks == 0) continue;
        const int plane = seg.tile / a.q_blocks, tile = seg.tile % a.q_blocks;
        const int batch = plane / a.heads, head = plane % a.heads, key_batch = a.keys_have_batch ? batch : 0;
        const int* list = a.lists + batch * a.list_batch + head * a.list_head + tile * a.list_row + seg.begin;
        if (!VALUES) {
            barrier_wait(sh.q_empty, q_phase);
            q_phase ^= 1;
            if (lane == 0) {
                barrier_expect(sh.q_full, N * 256);
                for (int h = 0; h < 2; h++) copy_tile(sh.q + h * N * 128, &a.q, sh.q_full, 64 * h, 0, tile, head, batch);
            }
        }
        for (int base = 0; base < chunks; base += BATCH) {
            const int strip = base * SPC + lane, entry = strip / STRIPS, row = strip % STRIPS * STRIP;
            // Past the end of the tensor, which reads as zeros.
            int block = a.kv_blocks, valid = 0;
            if (entry < n) {
                block = list[entry];
                valid = (HAS_SIZES ? min(max(a.sizes[block], 0), STREAM_BLOCK) : STREAM_BLOCK) - row;
            }
            const int many = min(BATCH, chunks - base);
#pragma unroll 1
            for (int c = 0; c < many; c++) {
                const int part = lane - c * SPC;
                const bool mine = part >= 0 && part < SPC;
                const u32 full = (VALUES ? sh.v_full : sh.k_full) + 8 * ring.slot;
                const u32 to = (VALUES ? sh.v : sh.k) + ring.slot * CHUNK + part * STRIP * 128;
                barrier_wait((VALUES ? sh.v_empty : sh.k_empty) + 8 * ring.slot, ring.phase ^ 1);
                if (mine) (VALUES ? sh.v_valid : sh.k_valid)[ring.slot * SPC + part] = valid;
                __syncwarp();
                if (lane == 0) barrier_expect(full, COPIED);
                __syncwarp();
                if (mine) {
                    for (int h = 0; h < 2; h++)
                        copy_tile(to + h * HALF_CHUNK, VALUES ? &a.v : &a.k, full, 64 * h, row, block, head, key_batch);
                }
                ring.advance();
            }
        }
    }
}

// Rows past a block's size may hold anything, and 0 * NaN is NaN: a warp overwrites those of the values with zeros.
__device__ __forceinline__ void scrub(const Arguments& a, const Shared& sh) {
    const int lane = threadIdx.x & 31;
    Ring ring;
    Schedule schedule(a);
    schedule.start();
    Segment seg;
    while (schedule.next(seg)) {
        const int chunks = 2 * pairs_of(seg.end - seg.begin);
        for (int i = 0; i < chunks; i++) {
            barrier_wait(sh.v_full + 8 * ring.slot, ring.phase);
            bool wrote = false;
            for (int s = 0; s < SPC; s++) {
                const int valid = max(sh.v_valid[ring.slot * SPC + s], 0);
                if (valid >= STRIP) continue;
                const u32 strip = sh.v + ring.slot * CHUNK + s * STRIP * 128;
                for (int h = 0; h < 2; h++) {
                    for (int byte = valid * 128 + lane * 16; byte < STRIP * 128; byte += 512)
                        store_shared(strip + h * HALF_CHUNK + byte, make_uint4(0, 0, 0, 0));
                }
                wrote = true;
            }
            if (wrote) fence_async();
            __syncwarp();
            if (lane == 0) barrier_arrive(sh.ready + 8 * ring.slot);
            ring.advance();
        }
    }
}

struct Consumer {
    float o[N / 2], sum[N / 4];
    u32 w[N / 4];
    PairRing k, v;
    float scale2;
    int group, lane, warp;                          // warp: of eight

    // Sum or maximum of a column over a warp's rows is in lanes 0 to 3; brings the eight warps' together.
    __device__ __forceinline__ void put(const Shared& sh, int j, float even, float odd) {
        if (lane < 4) {
            sh.gather[warp * N + 8 * j + 2 * lane] = even;
            sh.gather[warp * N + 8 * j + 2 * lane + 1] = odd;
        }
    }

    __device__ __forceinline__ void fix_reference(const Shared& sh, const float (&s)[N / 2]) {
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            float even = fmaxf(s[4 * j], s[4 * j + 2]), odd = fmaxf(s[4 * j + 1], s[4 * j + 3]);
#pragma unroll
            for (int mask = 4; mask < 32; mask *= 2) {
                even = fmaxf(even, __shfl_xor_sync(0xffffffff, even, mask));
                odd = fmaxf(odd, __shfl_xor_sync(0xffffffff, odd, mask));
            }
            put(sh, j, even, odd);
        }
        pair_sync();
        const int column = threadIdx.x;
        if (column < N) {
            float best = sh.gather[column];
            for (int i = 1; i < 8; i++) best = fmaxf(best, sh.gather[i * N + column]);
            sh.reference[column] = best == MINUS_INFINITY ? 0.0f : fmaf(best, scale2, MARGIN);
        }
        pair_sync();
    }

    __device__ __forceinline__ void add_values(const Shared& sh) {
        const u32 arrived = (HAS_SIZES ? sh.ready : sh.v_full) + 8 * v.slot;
        barrier_wait(arrived, v.phase);
        barrier_wait(arrived + 8, v.phase);
        wgmma_fence();
#pragma unroll
        for (int u = 0; u < 2; u++)
            multiply_weights<N>(o, sh.v + (v.slot + u) * CHUNK + group * HALF_CHUNK, sh.p + u * WEIGHTS);
        wgmma_commit();
    }

    __device__ __forceinline__ void release_values(const Shared& sh) {
        if (lane == 0) {
            barrier_arrive(sh.v_empty + 8 * v.slot);
            barrier_arrive(sh.v_empty + 8 * (v.slot + 1));
        }
        v.advance();
    }

    // Weights of the next pair of chunks; meanwhile those of the pair before multiply the values.
    template <bool FIRST> __device__ __forceinline__ void step(const Shared& sh) {
        const int slot = k.slot + group;
        float s[N / 2];
        barrier_wait(sh.k_full + 8 * slot, k.phase);
        wgmma_fence();
        multiply_rows<N>(s, sh.k + slot * CHUNK, sh.q);
        wgmma_commit();
        if constexpr (FIRST) {
            wgmma_wait<0>();
        } else {
            add_values(sh);
            wgmma_wait<1>();
        }
        pin(s);
        bool ok[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = (warp & 3) * 16 + lane / 4 + 8 * r, part = row / STRIP;
            ok[r] = part < SPC && row % STRIP < sh.k_valid[slot * SPC + min(part, SPC - 1)];
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(sh.k_empty + 8 * slot);
        k.advance();
        if (__any_sync(0xffffffff, !(ok[0] && ok[1]))) {
#pragma unroll
            for (int i = 0; i < N / 2; i++) {
                if (!ok[i / 2 & 1]) s[i] = MINUS_INFINITY;
            }
        }
        if constexpr (FIRST) fix_reference(sh, s);
        const float2* reference = (const float2*)(sh.reference) + (lane & 3);
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            const float2 m = reference[4 * j];
            s[4 * j] = exp2_fast(fmaf(s[4 * j], scale2, -m.x));
            s[4 * j + 1] = exp2_fast(fmaf(s[4 * j + 1], scale2, -m.y));
            s[4 * j + 2] = exp2_fast(fmaf(s[4 * j + 2], scale2, -m.x));
            s[4 * j + 3] = exp2_fast(fmaf(s[4 * j + 3], scale2, -m.y));
            sum[2 * j] += s[4 * j] + s[4 * j + 2];
            sum[2 * j + 1] += s[4 * j + 1] + s[4 * j + 3];
            w[2 * j] = pack(s[4 * j], s[4 * j + 1]);
            w[2 * j + 1] = pack(s[4 * j + 2], s[4 * j + 3]);
        }
        if constexpr (!FIRST) {
            wgmma_wait<0>();
            pin(o);
            release_values(sh);
        }
        // The weights before have been used by both warpgroups.
        pair_sync();
        store_weights<N>(sh.p + group * WEIGHTS, w);
        fence_async();
        pair_sync();
    }

    // Normalises and stores; `listed`: the segment has keys.
    __device__ __forceinline__ void finish(const Arguments& a, const Shared& sh, const Segment& seg, bool listed) {
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
#pragma unroll
            for (int mask = 4; mask < 32; mask *= 2) {
                sum[2 * j] += __shfl_xor_sync(0xffffffff, sum[2 * j], mask);
                sum[2 * j + 1] += __shfl_xor_sync(0xffffffff, sum[2 * j + 1], mask);
            }
            put(sh, j, sum[2 * j], sum[2 * j + 1]);
        }
        if (threadIdx.x == 0) *sh.failed = 0;
        pair_sync();
        const int column = threadIdx.x;
        const i64 first = (i64)(seg.part < 0 ? seg.tile : seg.part) * Q_BLOCK;
        if (column < N) {
            float total = 0.0f;
            for (int i = 0; i < 8; i++) total += sh.gather[i * N + column];
            sh.inverse[column] = listed ? 1.0f / total : 0.0f;
            if (column < Q_BLOCK) {
                if (listed && !(total > 1e-24f && total < 1e30f)) *sh.failed = 1;
                const float lse = (sh.reference[column] + log2f(total)) * 0.6931471805599453f;
                (seg.part < 0 ? a.lse : a.part_lse)[first + column] = listed ? lse : MINUS_INFINITY;
            }
        }
        pair_sync();
        if (threadIdx.x == 0) a.redo[seg.index(a)] = *sh.failed;
        const float2* inverse = (const float2*)(sh.inverse) + (lane & 3);
        if (seg.part < 0) {
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                const float2 x = inverse[4 * j];
                w[2 * j] = pack(o[4 * j] * x.x, o[4 * j + 1] * x.y);
                w[2 * j + 1] = pack(o[4 * j + 2] * x.x, o[4 * j + 3] * x.y);
            }
            store_weights<N>(sh.p + group * WEIGHTS, w);
            pair_sync();
            for (int i = threadIdx.x; i < Q_BLOCK * 16; i += 256) {
                const int row = i / 16, part = i % 16;
                *(uint4*)(a.out + (first + row) * 128 + part * 8) =
                    load_shared(stored_weights(sh.p + part / 8 * WEIGHTS, row, part % 8));
            }
        } else {
            float* out = a.part_out + first * 128 + group * 64 + (warp & 3) * 16 + lane / 4;
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                const float2 x = inverse[4 * j];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int row = 8 * j + 2 * (lane & 3) + (i & 1);
                    if (row < Q_BLOCK) out[row * 128 + 8 * (i / 2)] = o[4 * j + i] * (i & 1 ? x.y : x.x);
                }
            }
        }
    }

    __device__ __forceinline__ void attend(const Arguments& a, const Shared& sh, int own_group) {
        group = own_group;
        lane = threadIdx.x & 31;
        warp = threadIdx.x >> 5;
        scale2 = a.scale * 1.4426950408889634f;
        u32 q_phase = 0;
        Schedule schedule(a);
        schedule.start();
        Segment seg;
        while (schedule.next(seg)) {
            const int pairs = pairs_of(seg.end - seg.begin);
#pragma unroll
            for (int i = 0; i < N / 2; i++) o[i] = 0.0f;
#pragma unroll
            for (int i = 0; i < N / 4; i++) sum[i] = 0.0f;
            if (pairs > 0) {
                barrier_wait(sh.q_full, q_phase);
                q_phase ^= 1;
                step<true>(sh);
#pragma unroll 1
                for (int i = 1; i < pairs; i++) step<false>(sh);
                if (lane == 0) barrier_arrive(sh.q_empty);
                add_values(sh);
                wgmma_wait<0>();
                pin(o);
                release_values(sh);
            }
            // Waits for the other warpgroup's products too.
            finish(a, sh, seg, pairs > 0);
        }
    }
};

extern "C" __global__ void __launch_bounds__(384, 1)
block_sparse_forward_columns(const __grid_constant__ Arguments a) {
    DYNAMIC_SHARED(memory);
    STATIC_SHARED(u64, barriers, 2 + 5 * STAGES);
    STATIC_SHARED(int, valid, 2 * STAGES * SPC + 1);
    STATIC_SHARED(float2, vectors, 10 * N / 2);
    Shared sh;
    sh.q = (shared_address(memory) + 1023) & ~1023u;
    sh.p = sh.q + N * 256;
    sh.k = sh.p + 2 * WEIGHTS;
    sh.v = sh.k + STAGES * CHUNK;
    sh.q_full = shared_address(barriers);
    sh.q_empty = sh.q_full + 8;
    sh.k_full = sh.q_empty + 8;
    sh.k_empty = sh.k_full + 8 * STAGES;
    sh.v_full = sh.k_empty + 8 * STAGES;
    sh.v_empty = sh.v_full + 8 * STAGES;
    sh.ready = sh.v_empty + 8 * STAGES;
    sh.k_valid = valid;
    sh.v_valid = valid + STAGES * SPC;
    sh.failed = valid + 2 * STAGES * SPC;
    sh.reference = (float*)vectors;
    sh.inverse = sh.reference + N;
    sh.gather = sh.inverse + N;
    if (threadIdx.x == 0) {
        barrier_init(sh.q_full, 1);
        barrier_init(sh.q_empty, 8);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(sh.k_full + 8 * i, 1);
            barrier_init(sh.v_full + 8 * i, 1);
            barrier_init(sh.ready + 8 * i, 1);
            barrier_init(sh.k_empty + 8 * i, 4);
            barrier_init(sh.v_empty + 8 * i, 8);
        }
        fence_barriers();
    }
    // Rows of a chunk that no strip covers have weights of 0, and must not hold NaN.
    for (int i = threadIdx.x; i < STAGES * CHUNK / 16; i += 384) store_shared(sh.v + i * 16, make_uint4(0, 0, 0, 0));
    fence_async();
    __syncthreads();
    const int group = __shfl_sync(0xffffffff, (int)threadIdx.x / 128, 0);
    if (group == 2) {
        give_registers<40>();
        const int warp = (threadIdx.x >> 5) & 3;
        if (warp == 0) produce<false>(a, sh);
        if (warp == 2) produce<true>(a, sh);
        if (HAS_SIZES && warp == 1) scrub(a, sh);
    } else {
        take_registers<232>();
        Consumer consumer;
        consumer.attend(a, sh, group);
    }
}
