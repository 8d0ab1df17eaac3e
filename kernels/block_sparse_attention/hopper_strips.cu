// What the Hopper kernels share that stream rows through shared memory in chunks of 64; compiled at run time, with
//   STREAM_BLOCK        tokens of a streamed block
//   STRIP, STRIPS       a block is cut into STRIPS strips of STRIP rows; rows past its end read as zeros
//   SPC                 strips of a chunk: a chunk may end one block and begin the next, so that M = 64 is not padded
//   STAGES              chunks in flight, an even number: two consumer warpgroups take turns
// 128 channels. Each warpgroup multiplies its own chunk by what is resident, with the resident rows as columns; the
// weights of both go to shared memory, and each warpgroup multiplies those of both by one half of the channels.

constexpr int HALF_CHUNK = 64 * 128;                // bytes of 64 channels of a chunk
constexpr int CHUNK = 2 * HALF_CHUNK;
constexpr int COPIED = SPC * STRIP * 256;           // bytes of a chunk that the copy engine writes

// Slots of a ring of pairs of chunks.
struct PairRing {
    int slot = 0;
    u32 phase = 0;
    __device__ __forceinline__ void advance() {
        slot += 2;
        if (slot == STAGES) { slot = 0; phase ^= 1; }
    }
};

__device__ __forceinline__ int pairs_of(int blocks) { return (max(blocks, 0) * STRIPS + 2 * SPC - 1) / (2 * SPC); }

// S = A B^T over 128 channels: A a chunk, B resident in a tile of ROWS.
template <int N, int ROWS = N>
__device__ __forceinline__ void multiply_rows(float (&s)[N / 2], u32 chunk, u32 resident) {
    const u64 a = descriptor(chunk, 16, 1024), b = descriptor(resident, 16, 1024);
#pragma unroll
    for (int i = 0; i < 8; i++)
        Logits<N>::multiply(s, a + (i / 4) * (HALF_CHUNK >> 4) + (i % 4) * 2, b + (i / 4) * (ROWS * 128 >> 4) + (i % 4) * 2, i > 0);
}

// O += A^T W over the 64 rows of a chunk: 64 channels of A, weights W stored by store_weights.
template <int N>
__device__ __forceinline__ void multiply_weights(float (&o)[N / 2], u32 half_chunk, u32 weights) {
    const u64 a = descriptor(half_chunk, HALF_CHUNK, 1024), b = descriptor(weights, 16, 1024);
#pragma unroll
    for (int i = 0; i < 4; i++) Outer<N>::multiply(o, a + i * (2048 >> 4), b + i * 2);
}

// Stores 64 x N accumulators, packed in pairs along N, as N rows of 64: of every eight columns the pairs of row r and of
// row r + 8.
template <int N, int M>
__device__ __forceinline__ void store_weights(u32 to, const u32 (&w)[M]) {
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, row = lane & 7;
    to += ((lane >> 4) * 8 + row) * 128 + (((2 * warp + (lane >> 3 & 1)) ^ row) << 4);
#pragma unroll
    for (int j = 0; j + 1 < N / 8; j += 2)
        store_transposed(to + j * 1024, w[2 * j], w[2 * j + 1], w[2 * j + 2], w[2 * j + 3]);
    if constexpr (N / 8 % 2) store_transposed(to + (N / 8 - 1) * 1024, w[N / 4 - 2], w[N / 4 - 1]);
}

// Address of 16 bytes (8 of 64 values) of a row that store_weights has written.
__device__ __forceinline__ u32 stored_weights(u32 from, int row, int part) { return from + row * 128 + ((part ^ (row & 7)) << 4); }
