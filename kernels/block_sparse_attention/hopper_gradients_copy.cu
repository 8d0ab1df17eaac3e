// How the kernel of hopper_gradients.cu, which follows, finds its work and fills shared memory; after hopper_sums.cu.
// Defined from outside: KV_BLOCK; PIECE rows of a piece of a key block (a multiple of 16), PIECES of a block.

constexpr int PIECE_HALF = PIECE * 128, PIECE_BYTES = 2 * PIECE_HALF, WEIGHTS = PIECE * 128;

struct Arguments {
    TensorMap q, g, k, v;     // g: gradient of the output
    TensorMap grad_k_map, grad_v_map;
    const i64* offsets;       // [list_batch * list_heads * kv_blocks + 1]: query blocks that list a key block are
    const int* entries;       //     entries[offsets[i]] to entries[offsets[i + 1]]
    const int* sizes;
    const float2* rows;       // [batch * heads * q_blocks * Q_BLOCK]: log-sum-exp in base 2, delta; of prepare
    float* grad_q;            // zero at first; of hopper_sums.cu, times 1 / scale
    unsigned short *grad_k, *grad_v;
    int* counter;             // 0 at first
    int heads, q_blocks, kv_blocks, key_batch, list_batch, list_heads, repeats, fetch;
    float scale;
};

struct Shared {
    u32 k, v, q, g, p, ds, tile_full, tile_empty, tile_ready, full, empty;
    int *first_token, *valid, *strip; // [STAGES][SPC] of a strip: its first row, rows, number over all query blocks
    int* tile;                // key block over all heads (-1: there are no more), piece, chunks, valid keys
};

// The query blocks of a key block of one (batch, head); keys that `repeats` batches share are listed by each of them.
struct Lists {
    const Arguments& a;
    int head, batch, block;
    __device__ Lists(const Arguments& a, int item) : a(a) {
        const int plane = item / a.kv_blocks;
        block = item % a.kv_blocks;
        head = plane % a.heads;
        batch = plane / a.heads * a.repeats;
    }
    __device__ i64 row(int repeat) const {
        const int b = a.list_batch > 1 ? batch + repeat : 0, h = a.list_heads > 1 ? head : 0;
        return (i64)(b * a.list_heads + h) * a.kv_blocks + block;
    }
    __device__ int count(int repeat) const { return (int)(a.offsets[row(repeat) + 1] - a.offsets[row(repeat)]); }
    __device__ int total() const {
        int n = 0;
        for (int i = 0; i < a.repeats; i++) n += count(i);
        return n;
    }
    // The entry of an index below `total`, and its batch.
    __device__ int entry(int index, int& of_batch) const {
        int repeat = 0;
        for (int n; repeat + 1 < a.repeats && index >= (n = count(repeat)); repeat++) index -= n;
        of_batch = batch + repeat;
        return a.entries[a.offsets[row(repeat)] + index];
    }
};

__device__ __forceinline__ void produce(const Arguments& a, const Shared& sh) {
    const int lane = threadIdx.x & 31;
    constexpr int BATCH = 32 / SPC;                 // chunks whose strips the lanes hold
    const int items = a.key_batch * a.heads * a.kv_blocks;
    Ring ring;
    u32 tile_phase = 1;
    auto fetch = [&]() {
        int first = 0;
        if (lane == 0) first = atomicAdd(a.counter, a.fetch);
        return __shfl_sync(0xffffffff, first, 0);
    };
    int following = fetch();
    for (int first; (first = following) < items;) {
        following = fetch();
        const int own = first + lane;
        const int listed = lane < a.fetch && own < items ? Lists(a, own).total() : 0;
        for (int i = 0; i < a.fetch; i++) {
            const int n = __shfl_sync(0xffffffff, listed, i), item = first + i;
            const int chunks = (n * STRIPS + SPC - 1) / SPC, slots = 2 * pairs_of(n);
            if (n == 0) continue;
            const Lists lists(a, item);
            const int size = HAS_SIZES ? min(max(a.sizes[lists.block], 0), KV_BLOCK) : KV_BLOCK;
            const int key_batch = lists.batch / a.repeats;
            // The keys before are still in use.
            for (int t = lane; t < 2 * PIECES; t += 32) {
                prefetch_tile(&a.k, t % 2 * 64, t / 2 * PIECE, lists.block, lists.head, key_batch);
                prefetch_tile(&a.v, t % 2 * 64, t / 2 * PIECE, lists.block, lists.head, key_batch);
            }
#pragma unroll 1
            for (int t = 0; t < PIECES; t++) {
                barrier_wait(sh.tile_empty, tile_phase);
                tile_phase ^= 1;
                if (lane == 0) {
                    sh.tile[0] = item;
                    sh.tile[1] = t;
                    sh.tile[2] = chunks;
                    sh.tile[3] = size - t * PIECE;
                    barrier_expect(sh.tile_full, 2 * PIECE_BYTES);
                    for (int h = 0; h < 2; h++) {
                        copy_tile(sh.k + h * PIECE_HALF, &a.k, sh.tile_full, 64 * h, t * PIECE, lists.block, lists.head, key_batch);
                        copy_tile(sh.v + h * PIECE_HALF, &a.v, sh.tile_full, 64 * h, t * PIECE, lists.block, lists.head, key_batch);
                    }
                }
                for (int base = 0; base < slots; base += BATCH) {
                    const int strip = base * SPC + lane, index = strip / STRIPS, row = strip % STRIPS * STRIP;
                    // Past the end of the tensor, which reads as zeros.
                    int block = a.q_blocks, batch = 0, valid = 0, token = 0, number = 0;
                    if (index < n) {
                        block = lists.entry(index, batch);
                        valid = STREAM_BLOCK - row;
                        const int of_all = (batch * a.heads + lists.head) * a.q_blocks + block;
                        token = of_all * STREAM_BLOCK + row;
                        number = of_all * STRIPS + strip % STRIPS;
                    }
                    const int many = min(BATCH, slots - base);
#pragma unroll 1
                    for (int c = 0; c < many; c++) {
                        const int part = lane - c * SPC;
                        const u32 full = sh.full + 8 * ring.slot, to = ring.slot * CHUNK + part * STRIP * 128;
                        barrier_wait(sh.empty + 8 * ring.slot, ring.phase ^ 1);
                        // The last pair may have one chunk only.
                        const bool there = base + c < chunks, mine = there && part >= 0 && part < SPC;
                        if (mine) {
                            sh.valid[ring.slot * SPC + part] = valid;
                            sh.first_token[ring.slot * SPC + part] = token;
                            sh.strip[ring.slot * SPC + part] = number;
                        }
                        __syncwarp();
                        if (lane == 0) barrier_expect(full, there ? 2 * COPIED : 0);
                        __syncwarp();
                        if (mine) {
                            for (int h = 0; h < 2; h++) {
                                copy_tile(sh.q + to + h * HALF_CHUNK, &a.q, full, 64 * h, row, block, lists.head, batch);
                                copy_tile(sh.g + to + h * HALF_CHUNK, &a.g, full, 64 * h, row, block, lists.head, batch);
                            }
                        }
                        ring.advance();
                    }
                }
            }
        }
    }
    barrier_wait(sh.tile_empty, tile_phase);
    if (lane == 0) {
        sh.tile[0] = -1;
        barrier_arrive(sh.tile_full);
    }
}

// Rows of keys past a block's size may hold anything, and 0 * NaN is NaN: a warp overwrites them with zeros.
__device__ __forceinline__ void scrub(const Shared& sh) {
    const int lane = threadIdx.x & 31;
    for (u32 phase = 0;; phase ^= 1) {
        barrier_wait(sh.tile_full, phase);
        const bool more = sh.tile[0] >= 0;
        for (int h = 0; more && h < 2; h++) {
            for (int byte = max(sh.tile[3], 0) * 128 + lane * 16; byte < PIECE_HALF; byte += 512)
                store_shared(sh.k + h * PIECE_HALF + byte, make_uint4(0, 0, 0, 0));
        }
        fence_async();
        __syncwarp();
        if (lane == 0) barrier_arrive(sh.tile_ready);
        if (!more) return;
    }
}

// Gradients of key blocks that nothing lists.
__device__ __forceinline__ void clear(const Arguments& a, int warp, int warps) {
    const int lane = threadIdx.x & 31, items = a.key_batch * a.heads * a.kv_blocks;
    for (int base = warp * 32; base < items; base += warps * 32) {
        const int own = base + lane;
        const bool empty = own < items && Lists(a, own).total() == 0;
        for (int i = 0; i < 32; i++) {
            if (!__shfl_sync(0xffffffff, (int)empty, i)) continue;
            const i64 first = (i64)(base + i) * KV_BLOCK * 128;
            for (int j = lane; j < KV_BLOCK * 16; j += 32) {
                *(uint4*)(a.grad_k + first + j * 8) = make_uint4(0, 0, 0, 0);
                *(uint4*)(a.grad_v + first + j * 8) = make_uint4(0, 0, 0, 0);
            }
        }
    }
}
