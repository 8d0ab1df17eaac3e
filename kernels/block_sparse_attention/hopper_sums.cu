// Where the gradient of the queries is added up in fp32, and the kernel that brings it home; after hopper_strips.cu.
//
// A warp adds 16 bytes a thread to eight rows at once. Rows of a strip lie side by side for each group of 16 channels, so
// that these are whole lines of the cache, wherever in its chunk the strip is. Of a strip: groups, rows, the four threads
// of a row, the four channels that each has of a group (accumulators: 2 and 2, eight apart).
struct Sums {
    static constexpr int ROW = 16, GROUP = STRIP * ROW, GROUPS = 8;
    // First of a row's values in the first group; strips are counted over all query blocks.
    static __device__ __forceinline__ i64 place(int strip, int row) { return (i64)strip * (GROUPS * GROUP) + row * ROW; }
};

// Scales, rounds and puts in order: a thread for a row's group.
extern "C" __global__ void block_sparse_sums(const float* sums, unsigned short* grad_q, float scale, int count) {
    const i64 item = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    const int row = (int)(item / Sums::GROUPS), group = (int)(item % Sums::GROUPS);
    if (row >= count) return;
    const int block = row / STREAM_BLOCK, of_block = row % STREAM_BLOCK;
    const float* from = sums + Sums::place(block * STRIPS + of_block / STRIP, of_block % STRIP) + group * Sums::GROUP;
    u32 pairs[8];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 x = *(const uint4*)(from + 4 * i);
        pairs[i] = pack(__int_as_float(x.x) * scale, __int_as_float(x.y) * scale);
        pairs[4 + i] = pack(__int_as_float(x.z) * scale, __int_as_float(x.w) * scale);
    }
    uint4* to = (uint4*)(grad_q + item * Sums::ROW);
    to[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    to[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
}
