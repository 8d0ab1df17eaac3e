// Reads a problem from standard input, runs the emulated kernel of all gradients (included before this file), writes them.
static Arguments arguments;
static const uint16_t *given_out, *given_grad;
static const float *given_lse, *given_grad_lse;
static int count, places;
static uint16_t* grad_q;
static void program() { block_sparse_gradients(arguments); }
static const int *given_lists, *given_counts;
static int length;
static void invert() {
    auto& a = arguments;
    const i64 row = length, head = a.q_blocks * row;
    block_sparse_invert(
        given_lists, given_counts, (i64*)a.offsets, (int*)a.entries, a.list_heads * head, head, row,
        (i64)a.list_heads * a.q_blocks, a.q_blocks, a.list_heads, a.q_blocks, length, a.kv_blocks);
}
static void prepare() {
    auto& a = arguments;
    block_sparse_prepare(given_out, given_grad, given_lse, given_grad_lse, (float2*)a.rows, a.grad_q, a.counter, count, places);
}
static void bring_home() { block_sparse_sums(arguments.grad_q, grad_q, arguments.scale, count); }

template <class T> static std::vector<T> read(size_t count) {
    std::vector<T> x(count + 64);
    if (fread(x.data(), sizeof(T), count, stdin) != count) exit(2);
    return x;
}

int main() {
    // batch, heads, q_blocks, kv_blocks, list length, programs, fetch, key batch, list batch, list heads
    auto n = read<int>(10);
    const int batch = n[0], heads = n[1], q_blocks = n[2], kv_blocks = n[3], programs = n[5], key_batch = n[7];
    const size_t queries = (size_t)batch * heads * q_blocks * STREAM_BLOCK, keys = (size_t)key_batch * heads * kv_blocks * KV_BLOCK;
    auto scale = read<float>(1);
    auto q = read<uint16_t>(queries * 128), k = read<uint16_t>(keys * 128), v = read<uint16_t>(keys * 128);
    auto g = read<uint16_t>(queries * 128), out = read<uint16_t>(queries * 128);
    auto lse = read<float>(queries), grad_lse = read<float>(queries);
    const size_t lists_size = (size_t)n[8] * n[9] * q_blocks * n[4];
    auto lists = read<int>(lists_size), counts = read<int>(lists_size / n[4]), sizes = read<int>(kv_blocks);
    std::vector<i64> offsets((size_t)n[8] * n[9] * kv_blocks + 1, -1);
    std::vector<int> entries(lists_size, -1);
    const size_t blocks = (size_t)batch * heads * q_blocks;
    std::vector<float> sums(blocks * STRIPS * STRIP * 128 + 4, NAN);
    std::vector<uint16_t> home(queries * 128 + 8, 0x7fc0);
    std::vector<float2> rows(queries);
    std::vector<uint16_t> grad_k(keys * 128, 0x7fc0), grad_v(keys * 128, 0x7fc0);
    int counter = 7;
    auto map = [&](TensorMap& m, void* base, u64 block, u64 blocks, u64 batches, u64 box) {
        const u64 row = 256, words[] = {(u64)base, 128, block, blocks, (u64)heads, batches, row, row * block,
                                        row * block * blocks, row * block * blocks * heads, box};
        memcpy(&m, words, sizeof(words));
    };
    Arguments& a = arguments;
    map(a.q, q.data(), STREAM_BLOCK, q_blocks, batch, STRIP);
    map(a.g, g.data(), STREAM_BLOCK, q_blocks, batch, STRIP);
    map(a.k, k.data(), KV_BLOCK, kv_blocks, key_batch, PIECE);
    map(a.v, v.data(), KV_BLOCK, kv_blocks, key_batch, PIECE);
    map(a.grad_k_map, grad_k.data(), KV_BLOCK, kv_blocks, key_batch, PIECE);
    map(a.grad_v_map, grad_v.data(), KV_BLOCK, kv_blocks, key_batch, PIECE);
    a.offsets = offsets.data();
    a.entries = entries.data();
    a.sizes = sizes.data();
    a.rows = rows.data();
    // As the copies of 16 bytes need it.
    a.grad_q = (float*)(((u64)sums.data() + 15) & ~(u64)15);
    grad_q = (uint16_t*)(((u64)home.data() + 15) & ~(u64)15);
    a.grad_k = grad_k.data();
    a.grad_v = grad_v.data();
    a.counter = &counter;
    a.heads = heads;
    a.q_blocks = q_blocks;
    a.kv_blocks = kv_blocks;
    a.key_batch = key_batch;
    a.list_batch = n[8];
    a.list_heads = n[9];
    a.repeats = batch / key_batch;
    a.fetch = n[6];
    a.scale = scale[0];
    given_out = out.data();
    given_grad = g.data();
    given_lse = lse.data();
    given_grad_lse = grad_lse.data();
    count = (int)queries;
    places = (int)(blocks * STRIPS * STRIP);
    blockDim.x = 128;
    for (blockIdx.x = 0; blockIdx.x * 4 < places; blockIdx.x++)
        emulator::run_program(128, prepare);
    given_lists = lists.data();
    given_counts = counts.data();
    length = n[4];
    gridDim.x = n[8] * n[9];
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) emulator::run_program(1024, invert);
    gridDim.x = programs;
    for (blockIdx.x = 0; blockIdx.x < programs; blockIdx.x++) emulator::run_program(384, program);
    for (blockIdx.x = 0; blockIdx.x * 16 < count; blockIdx.x++) emulator::run_program(128, bring_home);
    fwrite(grad_q, 2, queries * 128, stdout);
    fwrite(grad_k.data(), 2, grad_k.size(), stdout);
    fwrite(grad_v.data(), 2, grad_v.size(), stdout);
    fwrite(offsets.data(), 8, offsets.size(), stdout);
    fwrite(entries.data(), 4, entries.size(), stdout);
    return 0;
}
