// Runs the Hopper kernels on the CPU, one program at a time, to find wrong indices, masks and barriers without a GPU.
//
// Every thread is a fibre. Instructions that wait (mbarriers, shuffles) hand over to the next fibre; if none can go on,
// that is a deadlock. Shared memory is an array; its addresses are offsets. Matrix descriptors, the 128-byte swizzle and
// the bulk tensor copies are carried out element by element as the PTX manual (sections on wgmma and tensor copies)
// defines them; products are done at once, so missing waits for asynchronous products are not found.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
struct alignas(64) TensorMap { u64 words[16]; };
#define MINUS_INFINITY (-INFINITY)
#define DYNAMIC_SHARED(name) char* name = emulator::shared + 16384
#define STATIC_SHARED(type, name, count) type* name = (type*)(emulator::shared + 1024 * __COUNTER__)  /* only the last may be longer */
struct float2 { float x, y; };
struct uint2 { u32 x, y; };
struct uint4 { u32 x, y, z, w; };
static float2 make_float2(float x, float y) { return {x, y}; }
static uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
static int min(int a, int b) { return a < b ? a : b; }
static int max(int a, int b) { return a > b ? a : b; }
static float __int_as_float(u32 x) { float y; memcpy(&y, &x, 4); return y; }

struct Index { int x = 0; };
static Index threadIdx, blockIdx, gridDim, blockDim;

static int atomicAdd(int* p, int x) {
    *p += x;
    return *p - x;
}
static void add_global(float* to, float x, float y, float z, float w) {
    to[0] += x;
    to[1] += y;
    to[2] += z;
    to[3] += w;
}
static float low(u32 x) { return __int_as_float(x << 16); }
static float high(u32 x) { return __int_as_float(x & 0xffff0000u); }

namespace emulator {
alignas(1024) char shared[1 << 18];
struct Barrier { int expected = 0, pending = 0, bytes = 0; u32 phase = 0; };
Barrier barriers[sizeof(shared) / 8];
struct Warp { int arrived = 0; u64 generation = 0; u32 box[32][8]; };
Warp warps[32];
struct Fibre { ucontext_t context; std::vector<char> stack; bool done = false; };
std::vector<Fibre> fibres;
ucontext_t scheduler;
u64 progress = 0;
void (*body)();

inline void yield() {
    int me = threadIdx.x;
    swapcontext(&fibres[me].context, &scheduler);
}
inline void start() {
    body();
    progress++;
    fibres[threadIdx.x].done = true;
    swapcontext(&fibres[threadIdx.x].context, &scheduler);
}
// Runs `threads` fibres to their ends.
inline void run_program(int threads, void (*function)()) {
    memset(shared, 0xff, sizeof(shared));
    for (auto& b : barriers) b = Barrier();
    for (auto& w : warps) w = Warp();
    fibres.resize(threads);
    body = function;
    for (auto& f : fibres) {
        f.stack.resize(1 << 16);
        f.done = false;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data();
        f.context.uc_stack.ss_size = f.stack.size();
        makecontext(&f.context, start, 0);
    }
    for (bool alive = true; alive;) {
        u64 before = progress;
        alive = false;
        for (int i = 0; i < threads; i++) {
            if (fibres[i].done) continue;
            alive = true;
            threadIdx.x = i;
            swapcontext(&scheduler, &fibres[i].context);
        }
        if (alive && progress == before) {
            printf("deadlock in program %d\n", blockIdx.x);
            for (int i = 0; i < 64; i++)
                if (barriers[i].expected) printf("  barrier %d phase %u pending %d bytes %d\n", i, barriers[i].phase, barriers[i].pending, barriers[i].bytes);
            exit(3);
        }
    }
}
inline void meet(Warp& w, int size) {
    u64 generation = w.generation;
    progress++;
    if (++w.arrived == size) {
        w.arrived = 0;
        w.generation++;
    } else {
        while (w.generation == generation) yield();
    }
}
inline void complete(Barrier& b) {
    if (b.pending == 0 && b.bytes == 0) {
        b.pending = b.expected;
        b.phase ^= 1;
    }
    progress++;
}
inline u32 swizzle(u32 address) { return address ^ (((address >> 7) & 7) << 4); }
inline float half_value(u32 address) {
    uint16_t x;
    memcpy(&x, shared + swizzle(address), 2);
    return __int_as_float((u32)x << 16);
}
inline u32 start_of(u64 d) { return (u32)(d & 0x3fff) << 4; }
inline u32 leading_of(u64 d) { return (u32)(d >> 16 & 0x3fff) << 4; }
inline u32 stride_of(u64 d) { return (u32)(d >> 32 & 0x3fff) << 4; }
}  // namespace emulator

static u32 shared_address(const void* p) { return (u32)((const char*)p - emulator::shared); }
static emulator::Warp& own_warp() { return emulator::warps[threadIdx.x / 32]; }
static void __syncwarp() { emulator::meet(own_warp(), 32); }
static void __syncthreads() {
    static emulator::Warp all;
    emulator::meet(all, (int)emulator::fibres.size());
}
template <class T> static T exchange(T x, int lane) {
    auto& w = own_warp();
    memcpy(w.box[threadIdx.x % 32], &x, 4);
    __syncwarp();
    T y;
    memcpy(&y, w.box[lane], 4);
    __syncwarp();
    return y;
}
template <class T> static T __shfl_sync(u32, T x, int lane) { return exchange(x, lane); }
template <class T> static T __shfl_xor_sync(u32, T x, int mask) { return exchange(x, (threadIdx.x % 32) ^ mask); }
static bool __any_sync(u32, bool x) {
    bool any = false;
    for (int i = 0; i < 32; i++) any |= exchange((int)x, i) != 0;
    return any;
}

static void barrier_init(u32 bar, int count) { emulator::barriers[bar / 8] = {count, count, 0, 0}; }
static void barrier_arrive(u32 bar) {
    auto& b = emulator::barriers[bar / 8];
    if (b.pending == 0) { printf("too many arrivals at barrier %u\n", bar); exit(3); }
    b.pending--;
    emulator::complete(b);
}
static void barrier_expect(u32 bar, u32 bytes) {
    emulator::barriers[bar / 8].bytes += bytes;
    barrier_arrive(bar);
}
static void barrier_wait(u32 bar, u32 parity) {
    while (emulator::barriers[bar / 8].phase == parity) emulator::yield();
}
// words: base, 5 extents, 4 strides in bytes, rows of a box.
static void copy_tile(u32 to, const TensorMap* map, u32 bar, int channel, int row, int block, int head, int batch) {
    const u64* w = map->words;
    for (u64 r = 0; r < w[10]; r++) {
        for (int c = 0; c < 64; c++) {
            u64 at[5] = {(u64)(channel + c), row + r, (u64)block, (u64)head, (u64)batch};
            bool inside = true;
            u64 offset = at[0] * 2;
            for (int i = 0; i < 5; i++) inside &= at[i] < w[1 + i];
            for (int i = 1; i < 5; i++) offset += at[i] * w[5 + i];
            uint16_t x = inside ? *(const uint16_t*)(w[0] + offset) : 0;
            memcpy(emulator::shared + emulator::swizzle(to + r * 128 + c * 2), &x, 2);
        }
    }
    auto& b = emulator::barriers[bar / 8];
    b.bytes -= (int)w[10] * 128;
    emulator::complete(b);
}
static void store_tile(const TensorMap* map, u32 from, int channel, int row, int block, int head, int batch) {
    const u64* w = map->words;
    for (u64 r = 0; r < w[10]; r++) {
        for (int c = 0; c < 64; c++) {
            u64 at[5] = {(u64)(channel + c), row + r, (u64)block, (u64)head, (u64)batch};
            bool inside = true;
            u64 offset = at[0] * 2;
            for (int i = 0; i < 5; i++) inside &= at[i] < w[1 + i];
            for (int i = 1; i < 5; i++) offset += at[i] * w[5 + i];
            if (inside) memcpy((char*)w[0] + offset, emulator::shared + emulator::swizzle(from + r * 128 + c * 2), 2);
        }
    }
}
static void prefetch_tile(const TensorMap*, int, int, int, int, int) {}
static void commit_stores() {}
static void wait_stores_read() {}
static void wait_stores() {}
static void fence_async() {}
static void fence_barriers() {}
// Warpgroups share what the launch allocated; one that asks for more waits for ever.
static int registers[8];
static void set_registers(int n) {
    const int threads = (int)emulator::fibres.size(), groups = threads / 128;
    int sum = 0;
    registers[threadIdx.x / 128] = n;
    for (int i = 0; i < groups; i++) sum += registers[i];
    if (sum > 65536 / threads / 8 * 8 * groups) {
        printf("warpgroups ask for %d registers a thread\n", sum);
        exit(3);
    }
}
template <int N> static void give_registers() { set_registers(N); }
template <int N> static void take_registers() { set_registers(N); }
static void wgmma_fence() {}
static void wgmma_commit() {}
template <int N> static void wgmma_wait() {}
template <int N> static void pin(float (&)[N]) {}
static float exp2_fast(float x) { return exp2f(x); }
static void pair_sync() {
    static emulator::Warp both;
    emulator::meet(both, 256);
}
// Lane i of eight has the address of column i of a matrix; lane c * 4 + i / 2 holds its row c.
static void store_matrices(u32 to, const u32* x, int count) {
    auto& w = own_warp();
    const int lane = threadIdx.x % 32, i = lane % 8;
    for (int m = 0; m < count; m++) w.box[lane][m] = x[m];
    __syncwarp();
    for (int c = 0; c < 8 && lane < 8 * count; c++) {
        u32 pair = w.box[c * 4 + i / 2][lane / 8];
        uint16_t value = i % 2 ? pair >> 16 : pair & 0xffff;
        memcpy(emulator::shared + to + 2 * c, &value, 2);
    }
    __syncwarp();
}
static void store_transposed(u32 to, u32 a, u32 b, u32 c, u32 d) {
    const u32 x[] = {a, b, c, d};
    store_matrices(to, x, 4);
}
static void store_transposed(u32 to, u32 a, u32 b) {
    const u32 x[] = {a, b};
    store_matrices(to, x, 2);
}
static uint4 load_shared(u32 from) { return *(const uint4*)(emulator::shared + from); }
static void store_shared(u32 to, uint4 x) { *(uint4*)(emulator::shared + to) = x; }
static uint16_t to_half(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static u32 pack(float low, float high) { return to_half(low) | (u32)to_half(high) << 16; }

template <int N> struct Logits {
    template <int M> static void multiply(float (&s)[M], u64 a, u64 b, int add) {
        using namespace emulator;
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
        for (int i = 0; i < N / 2; i++) {
            const u32 row = warp * 16 + lane / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            float sum = add ? s[i] : 0.0f;
            for (u32 k = 0; k < 16; k++)
                sum += half_value(start_of(a) + row / 8 * stride_of(a) + row % 8 * 128 + k * 2) *
                       half_value(start_of(b) + column / 8 * stride_of(b) + column % 8 * 128 + k * 2);
            s[i] = sum;
        }
    }
};
struct Values {
    template <int M> static void multiply(float (&o)[M], const u32* p, u64 b) {
        using namespace emulator;
        const int lane = threadIdx.x % 32;
        auto& w = own_warp();
        for (int i = 0; i < 4; i++) w.box[lane][i] = p[i];
        __syncwarp();
        float a[2][16];
        for (int r = 0; r < 2; r++)
            for (int k = 0; k < 16; k++) {
                u32 pair = w.box[lane / 4 * 4 + k % 8 / 2][r + 2 * (k / 8)];
                a[r][k] = __int_as_float(k % 2 ? pair & 0xffff0000u : pair << 16);
            }
        __syncwarp();
        for (int i = 0; i < M; i++) {
            const u32 n = i / 4 * 8 + lane % 4 * 2 + i % 2;
            for (u32 k = 0; k < 16; k++)
                o[i] += a[i / 2 % 2][k] *
                        half_value(start_of(b) + n / 64 * leading_of(b) + n % 64 * 2 + k / 8 * stride_of(b) + k % 8 * 128);
        }
    }
};
template <int N> struct Outer {
    template <int M> static void multiply(float (&o)[M], u64 a, u64 b) {
        using namespace emulator;
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
        for (int i = 0; i < N / 2; i++) {
            const u32 row = warp * 16 + lane / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            for (u32 k = 0; k < 16; k++)
                o[i] += half_value(start_of(a) + row * 2 + k / 8 * stride_of(a) + k % 8 * 128) *
                        half_value(start_of(b) + column / 8 * stride_of(b) + column % 8 * 128 + k * 2);
        }
    }
};
