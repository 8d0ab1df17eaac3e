// Block-sparse attention forward for Hopper (sm_90a), after hopper_common.cu: S = Q K^T of one piece of a key block runs
// while P V of the piece before is added.

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
    barrier_wait((HAS_SIZES ? sh.ready : sh.v_full) + 8 * st.v.slot, st.v.phase);
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

struct Forward {
__device__ __forceinline__ static void run(const Arguments& a, const Shared& sh, int group) {
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
};

extern "C" __global__ void __launch_bounds__((WARPGROUPS + 1) * 128, 1)
block_sparse_forward(const __grid_constant__ Arguments a) {
    DYNAMIC_SHARED(memory);
    run_program<Forward>(a, memory);
}
