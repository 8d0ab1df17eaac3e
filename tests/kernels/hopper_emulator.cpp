#ifdef COLUMNS  // the kernel with queries as columns
#define GRADIENT 0
#define KV_BLOCK STREAM_BLOCK
constexpr int THREADS = 384, Q_ROWS = COLUMNS, K_ROWS = STRIP;
#else
constexpr int THREADS = (WARPGROUPS + 1) * 128, Q_ROWS = ROWS, K_ROWS = SUB_ROWS;
#endif
// Reads a problem from standard input, runs the emulated kernel (included before this file), writes the result.
static Arguments arguments;
static void program() {
#ifdef COLUMNS
    block_sparse_forward_columns(arguments);
#elif GRADIENT
    block_sparse_query_gradient(arguments);
#else
    block_sparse_forward(arguments);
#endif
}

template <class T> static std::vector<T> read(size_t count) {
    std::vector<T> x(count + 64);
    if (fread(x.data(), sizeof(T), count, stdin) != count) exit(2);
    return x;
}

int main() {
    // batch, heads, q_blocks, kv_blocks, list length, programs, whole, rest, key batch, list batch, list heads
    auto n = read<int>(11);
    const int batch = n[0], heads = n[1], q_blocks = n[2], kv_blocks = n[3], length = n[4];
    const int programs = n[5], whole = n[6], rest = n[7], key_batch = n[8], list_batch = n[9], list_heads = n[10];
    const size_t q_tokens = (size_t)q_blocks * Q_BLOCK, k_tokens = (size_t)kv_blocks * KV_BLOCK;
    auto scale = read<float>(1);
    auto q = read<uint16_t>(batch * heads * q_tokens * HEAD_DIM);
    auto k = read<uint16_t>(key_batch * heads * k_tokens * HEAD_DIM), v = read<uint16_t>(key_batch * heads * k_tokens * HEAD_DIM);
    auto lists = read<int>((size_t)list_batch * list_heads * q_blocks * length);
    auto counts = read<int>((size_t)list_batch * list_heads * q_blocks), sizes = read<int>(kv_blocks);
    auto g = read<uint16_t>(GRADIENT * batch * heads * q_tokens * HEAD_DIM);
    auto given_lse = read<float>(GRADIENT * batch * heads * q_tokens), delta = read<float>(GRADIENT * batch * heads * q_tokens);
    std::vector<uint16_t> out(batch * heads * q_tokens * HEAD_DIM, 0x7fc0);
    std::vector<float> lse(batch * heads * q_tokens, NAN), part_out((size_t)2 * programs * Q_BLOCK * HEAD_DIM, NAN),
        part_lse((size_t)2 * programs * Q_BLOCK, NAN);
    auto map = [&](TensorMap& m, void* base, u64 block, u64 blocks, u64 batches, u64 rows) {
        const u64 row = HEAD_DIM * 2;
        const u64 words[] = {(u64)base, HEAD_DIM, block, blocks, (u64)heads, batches,
                             row, row * block, row * block * blocks, row * block * blocks * heads, rows};
        memcpy(&m, words, sizeof(words));
    };
    Arguments& a = arguments;
    map(a.q, q.data(), Q_BLOCK, q_blocks, batch, Q_ROWS);
    map(a.g, g.data(), Q_BLOCK, q_blocks, batch, Q_ROWS);
    map(a.k, k.data(), KV_BLOCK, kv_blocks, key_batch, K_ROWS);
    map(a.v, v.data(), KV_BLOCK, kv_blocks, key_batch, K_ROWS);
    a.lists = lists.data();
    a.counts = counts.data();
    a.sizes = sizes.data();
    a.out = out.data();
    a.lse = GRADIENT ? given_lse.data() : lse.data();
    a.delta = delta.data();
    a.part_out = part_out.data();
    a.part_lse = part_lse.data();
    a.list_row = length;
    a.list_head = list_heads > 1 ? (i64)q_blocks * length : 0;
    a.list_batch = list_batch > 1 ? (i64)list_heads * q_blocks * length : 0;
    a.count_head = list_heads > 1 ? q_blocks : 0;
    a.count_batch = list_batch > 1 ? (i64)list_heads * q_blocks : 0;
    a.heads = heads;
    a.q_blocks = q_blocks;
    a.kv_blocks = kv_blocks;
    std::vector<int> redo(whole + rest + 2 * programs, 0);
    a.redo = REDOES ? nullptr : redo.data();
    a.keys_have_batch = key_batch > 1;
    a.whole = whole;
    a.rest = rest;
    a.scale = scale[0];
    gridDim.x = programs;
    for (blockIdx.x = 0; blockIdx.x < programs; blockIdx.x++) emulator::run_program(THREADS, program);
    blockDim.x = 128;
    for (blockIdx.x = 0; rest && blockIdx.x < (rest * Q_BLOCK + 3) / 4; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < 128; threadIdx.x++)
#if GRADIENT
            block_sparse_add(part_out.data(), out.data(), whole, rest, programs);
#else
            block_sparse_combine(part_out.data(), part_lse.data(), out.data(), lse.data(), whole, rest, programs);
#endif
    fwrite(out.data(), 2, out.size(), stdout);
    fwrite(lse.data(), 4, lse.size(), stdout);
    return 0;
}
