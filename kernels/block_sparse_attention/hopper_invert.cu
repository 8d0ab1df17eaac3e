// Inverse lists (inverse.py) of few query blocks, without sorting: one program for each (batch, head) of the lists.

extern "C" __global__ void __launch_bounds__(1024, 1) block_sparse_invert(
    const int* lists, const int* counts, i64* offsets, int* entries, i64 list_batch, i64 list_head, i64 list_row,
    i64 count_batch, i64 count_head, int heads, int q_blocks, int length, int kv_blocks) {
    DYNAMIC_SHARED(memory);
    int* cursor = (int*)memory;                     // [kv_blocks]
    int* items = cursor + kv_blocks;                // [q_blocks * length]
    int* sums = items + q_blocks * length;          // [1024]
    const int plane = blockIdx.x, me = threadIdx.x;
    auto count = [&](int p, int n) { return counts[p / heads * count_batch + p % heads * count_head + n]; };
    // Inclusive sums over the threads.
    auto scan = [&](int x) {
        sums[me] = x;
        __syncthreads();
        for (int step = 1; step < 1024; step *= 2) {
            const int before = me >= step ? sums[me - step] : 0;
            __syncthreads();
            sums[me] += before;
            __syncthreads();
        }
        return sums[me];
    };
    int listed = 0;
    for (int i = me; i < plane * q_blocks; i += 1024) listed += count(i / q_blocks, i % q_blocks);
    scan(listed);
    const i64 base = sums[1023];
    for (int j = me; j < kv_blocks; j += 1024) cursor[j] = 0;
    __syncthreads();
    const int* list = lists + plane / heads * list_batch + plane % heads * list_head;
    for (int i = me; i < q_blocks * length; i += 1024) {
        const int n = i / length;
        items[i] = i % length < count(plane, n) ? list[n * list_row + i % length] : -1;
        if (items[i] >= 0) atomicAdd(&cursor[items[i]], 1);
    }
    __syncthreads();
    const int share = (kv_blocks + 1023) / 1024, first = min(me * share, kv_blocks), last = min(first + share, kv_blocks);
    int total = 0;
    for (int j = first; j < last; j++) total += cursor[j];
    int at = scan(total) - total;
    for (int j = first; j < last; j++) {
        const int here = cursor[j];
        offsets[(i64)plane * kv_blocks + j] = base + at;
        cursor[j] = at;
        at += here;
    }
    if (plane == (int)gridDim.x - 1 && me == 1023) offsets[(i64)gridDim.x * kv_blocks] = base + at;
    __syncthreads();
    // One query block after the other keeps rows in order; a list names a key block once.
    for (int n = 0; n < q_blocks; n++) {
        for (int i = me; i < length; i += 1024) {
            const int j = items[n * length + i];
            if (j >= 0) entries[base + cursor[j]++] = n;
        }
        __syncthreads();
    }
}
