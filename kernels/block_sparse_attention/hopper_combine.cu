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
