// Pruned weights become zero, in place.
//
// Computes: w[row][col] = 0 where the mask's bit is set; all bits of the weight, so that a sign goes too.
// Launch: 256 threads, any grid; no shared memory. 16-byte accesses where rows are aligned, 8 weights a thread and
// step.
// Takes: 24 registers.
// Bytes: 1/8 read a weight; of each 8 weights that lose any, sizeof(T) read and at most sizeof(T) written.
#include "common.cuh"

namespace apply {

/// The two low bits, each as the 16 bits of a weight.
__device__ __forceinline__ u32 spread_16(u32 bits) { return (bits & 1 ? 0xffffu : 0) | (bits & 2 ? 0xffff0000u : 0); }

__device__ __forceinline__ void clear(uint4* at, u32 x, u32 y, u32 z, u32 w) {
    const uint4 old = *at, kept = {old.x & ~x, old.y & ~y, old.z & ~z, old.w & ~w};
    if (((old.x ^ kept.x) | (old.y ^ kept.y) | (old.z ^ kept.z) | (old.w ^ kept.w)) != 0) *at = kept;
}

__device__ __forceinline__ void clear_eight(u16* w, u32 bits) {
    clear(reinterpret_cast<uint4*>(w), spread_16(bits), spread_16(bits >> 2), spread_16(bits >> 4),
          spread_16(bits >> 6));
}

__device__ __forceinline__ void clear_eight(u32* w, u32 bits) {
    for (u32 half = 0; half < 2; half++, bits >>= 4) {
        clear(reinterpret_cast<uint4*>(w) + half, bits & 1 ? ALL : 0, bits & 2 ? ALL : 0, bits & 4 ? ALL : 0,
              bits & 8 ? ALL : 0);
    }
}

template <class T>
__device__ void mask(T* w, const u64* mask, u32 rows, u32 cols) {
    const bool aligned = is_aligned(w, cols);
    const u32 width = (cols + 7) / 8;
    const u64 count = static_cast<u64>(rows) * width, stride = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 at = blockIdx.x * static_cast<u64>(blockDim.x) + threadIdx.x; at < count; at += stride) {
        const u64 row = count <= ALL ? static_cast<u32>(at) / width : at / width;
        const u32 eight = static_cast<u32>(at - row * width);
        const u32 bits = reinterpret_cast<const u8*>(mask + row * words_of(cols))[eight];
        if (bits == 0) continue;
        T* const first = w + row * cols + 8 * eight;
        if (aligned) {
            clear_eight(first, bits);
        } else {
            for (u32 rest = bits; rest; rest &= rest - 1) {
                const u32 i = __ffs(rest) - 1;
                if (first[i] != 0) first[i] = 0;
            }
        }
    }
}

} // namespace apply

extern "C" __global__ void __launch_bounds__(256) apply_mask_16(u16* w, const u64* mask, u32 rows, u32 cols) {
    apply::mask(w, mask, rows, cols);
}

extern "C" __global__ void __launch_bounds__(256) apply_mask_32(u32* w, const u64* mask, u32 rows, u32 cols) {
    apply::mask(w, mask, rows, cols);
}
