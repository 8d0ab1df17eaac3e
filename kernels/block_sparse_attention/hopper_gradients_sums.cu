// The warpgroup that adds up the gradient of the queries; after hopper_gradients_copy.cu, before hopper_gradients.cu.
// Additions in memory make a warp wait: here no other work waits with it.
// Defined from outside: QUERY_GRADIENT, 0 where another kernel computes dQ, in an order that is always the same.

constexpr int THREADS = QUERY_GRADIENT ? 512 : 384;
// Warps that use what a program copies.
constexpr int USERS = QUERY_GRADIENT ? 12 : 8;

struct Queries {
    PairRing ring;
    u32 pair_phase = 0;
    int lane, warp;

    // dQ = dS K of a chunk.
    __device__ __forceinline__ void multiply(float (&dq)[64], u32 weights, u32 keys) const {
        const u64 a = descriptor(weights, 16, 1024), b = descriptor(keys, PIECE_HALF, 1024);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < PIECE / 16; i++) Stored::multiply(dq, a + i * (2048 >> 4), b + i * (2048 >> 4), i > 0);
        wgmma_commit();
        wgmma_wait<0>();
        pin(dq);
    }

    __device__ __forceinline__ void run_pair(const Arguments& a, const Shared& sh, int many, bool last) {
        barrier_wait(sh.weights_full, pair_phase);
        pair_phase ^= 1;
        // Where this thread's rows belong; -1 for none.
        int strip[2][2];
#pragma unroll
        for (int u = 0; u < 2; u++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int row = warp * 16 + lane / 4 + 8 * r, part = row / STRIP;
                const int place = (ring.slot + u) * SPC + min(part, SPC - 1);
                const bool ok = u < many && part < SPC && row % STRIP < sh.valid[place];
                strip[u][r] = ok ? sh.strip[place] : -1;
            }
        }
        __syncwarp();
        if (lane == 0) {
            barrier_arrive(sh.empty + 8 * ring.slot);
            barrier_arrive(sh.empty + 8 * (ring.slot + 1));
        }
#pragma unroll
        for (int u = 0; u < 2; u++) {
            if (u == many) break;
            float dq[64];
            multiply(dq, sh.ds + u * WEIGHTS, sh.k);
            if (u + 1 == many) {
                __syncwarp();
                if (lane == 0) {
                    barrier_arrive(sh.weights_empty);
                    if (last) barrier_arrive(sh.tile_empty);
                }
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (strip[u][r] < 0) continue;
                float* to = a.grad_q + Sums::place(strip[u][r], (warp * 16 + lane / 4 + 8 * r) % STRIP) + 4 * (lane & 3);
#pragma unroll
                for (int g = 0; g < Sums::GROUPS; g++) {
                    const int c = 8 * g + 2 * r;
                    add_global(to + g * Sums::GROUP, dq[c], dq[c + 1], dq[c + 4], dq[c + 5]);
                }
            }
        }
        ring.advance();
    }

    __device__ __forceinline__ void run(const Arguments& a, const Shared& sh) {
        lane = threadIdx.x & 31;
        warp = threadIdx.x >> 5 & 3;
        for (u32 phase = 0;; phase ^= 1) {
            barrier_wait(sh.tile_full, phase);
            if (sh.tile[0] < 0) break;
            if (HAS_SIZES) barrier_wait(sh.tile_ready, phase);
            const int chunks = sh.tile[2];
#pragma unroll 1
            for (int i = 0; i < chunks; i += 2) run_pair(a, sh, min(chunks - i, 2), i + 2 >= chunks);
        }
    }
};
