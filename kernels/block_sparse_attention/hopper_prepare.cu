// What the gradients need of every query, 32 threads each: log-sum-exp in base 2 (infinite where there are no keys) and
// delta, the product of output and its gradient less the log-sum-exp's gradient. Clears what the main kernel adds to.
extern "C" __global__ void block_sparse_prepare(
    const unsigned short* out, const unsigned short* grad_out, const float* lse, const float* grad_lse, float2* rows,
    float* sums, int* counter, int count, int places) {
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x & 31;
    if (row == 0 && lane == 0) *counter = 0;
    if (QUERY_GRADIENT && row < places) *(uint4*)(sums + (i64)row * 128 + lane * 4) = make_uint4(0, 0, 0, 0);
    if (row >= count) return;
    const uint2 x = *(const uint2*)(out + (i64)row * 128 + lane * 4), y = *(const uint2*)(grad_out + (i64)row * 128 + lane * 4);
    float sum = low(x.x) * low(y.x) + high(x.x) * high(y.x) + low(x.y) * low(y.y) + high(x.y) * high(y.y);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum += __shfl_xor_sync(0xffffffff, sum, mask);
    const bool none = lse[row] == MINUS_INFINITY;
    if (lane == 0)
        rows[row] = none ? make_float2(-MINUS_INFINITY, 0.0f) : make_float2(lse[row] * 1.4426950408889634f, sum - grad_lse[row]);
}
