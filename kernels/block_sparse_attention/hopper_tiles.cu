// Matrix descriptors, and rings of STAGES slots in shared memory.

// Matrix descriptor of a tile with 128-byte swizzle; offsets in bytes.
__device__ __forceinline__ u64 descriptor(u32 address, u32 leading, u32 stride) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)(leading >> 4) << 16 | (u64)(stride >> 4) << 32 | (u64)1 << 62;
}
struct Ring {
    int slot = 0;
    u32 phase = 0;
    __device__ __forceinline__ void advance() {
        if (++slot == STAGES) { slot = 0; phase ^= 1; }
    }
};
