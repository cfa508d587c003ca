// Scores and N:M selection.
//
// Computes: of each m consecutive weights the n with the largest scores stay; of equal scores the first ones go first.
// Launch: 256 threads, any grid; no shared memory. A thread takes 8 weights with one or two 16-byte loads and writes a byte of the mask; where
// m is neither 4 nor 8, or weights are not aligned, a word of the mask at a time with scalar loads.
// Bytes: sizeof(T) read and 1/8 written a weight; norms stay in L1.
// Source: ranks by comparing all pairs of a group, as the CPU's selection does.
#include "common.cuh"

namespace nofm {

/// Bits of the `drop` smallest of M keys, ties by position. Each pair adds one to the rank of the one that goes later.
template <u32 M>
__device__ __forceinline__ u32 smallest(const u32* keys, u32 drop) {
    u32 ranks[M / 4] = {};
#pragma unroll
    for (u32 i = 0; i < M; i++) {
#pragma unroll
        for (u32 j = i + 1; j < M; j++) {
            const bool later = keys[j] < keys[i];
            ranks[i / 4] += later ? 1u << (8 * (i % 4)) : 0;
            ranks[j / 4] += later ? 0 : 1u << (8 * (j % 4));
        }
    }
    u32 bits = 0;
#pragma unroll
    for (u32 i = 0; i < M; i++) bits |= (ranks[i / 4] >> (8 * (i % 4)) & 0xffu) < drop ? 1u << i : 0;
    return bits;
}

template <class T>
__device__ __forceinline__ void vectors(const T* w, const float* norms, u64* mask, u64* bad, u32 rows, u32 cols, u32 drop, u32 m) {
    const u32 width = cols / 8;
    const u64 count = static_cast<u64>(rows) * width, stride = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 at = blockIdx.x * static_cast<u64>(blockDim.x) + threadIdx.x; at < count; at += stride) {
        const u64 row = count <= ALL ? static_cast<u32>(at) / width : at / width;
        const u32 vector = static_cast<u32>(at - row * width);
        Vector<T> weights;
        weights.load(w + 8 * at);
        u32 keys[8];
        weights.scores(norms ? norms + 8 * vector : nullptr, keys);
        const u32 highest = max(max(max(keys[0], keys[1]), max(keys[2], keys[3])), max(max(keys[4], keys[5]), max(keys[6], keys[7])));
        if (highest >= INFINITE) {
            u32 first = 0;
#pragma unroll
            for (u32 i = 8; i-- > 0;) first = keys[i] >= INFINITE ? i : first;
            atomicMin(bad, 8 * at + first);
        }
        const u32 bits = m == 4 ? smallest<4>(keys, drop) | smallest<4>(keys + 4, drop) << 4 : smallest<8>(keys, drop);
        u8* const bytes = reinterpret_cast<u8*>(mask + row * words_of(cols));
        bytes[vector] = static_cast<u8>(bits);
        if (vector + 1 == width) {
            for (u32 i = width; i < 8 * words_of(cols); i++) bytes[i] = 0;
        }
    }
}

template <class T>
__device__ void words(const T* w, const float* norms, u64* mask, u64* bad, u32 rows, u32 cols, u32 drop, u32 m) {
    const u32 width = words_of(cols);
    const u64 count = static_cast<u64>(rows) * width, stride = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 at = blockIdx.x * static_cast<u64>(blockDim.x) + threadIdx.x; at < count; at += stride) {
        const u64 row = at / width, start = row * cols;
        const u32 base = static_cast<u32>(at - row * width) * 64, end = min(64u, cols - base);
        u64 bits = 0;
        for (u32 i = 0; i < end; i++) {
            const u32 col = base + i, group = col - col % m;
            const u32 key = score_at(w, norms, start, col);
            if (key >= INFINITE) atomicMin(bad, start + col);
            u32 sooner = 0;
            for (u32 other = group; other < group + m; other++) {
                const u32 score = score_at(w, norms, start, other);
                sooner += score < key || (score == key && other < col);
            }
            bits |= static_cast<u64>(sooner < drop) << i;
        }
        mask[at] = bits;
    }
}

} // namespace nofm

#define SELECT_NOFM(NAME, T)                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                                                       \
        NAME(const T* w, const float* norms, u64* mask, u64* bad, u32 rows, u32 cols, u32 n, u32 m) {                                       \
        const bool aligned = is_aligned(w, cols) && (!norms || reinterpret_cast<u64>(norms) % 16 == 0);                                     \
        if (aligned && (m == 4 || m == 8)) {                                                                                                \
            nofm::vectors<T>(w, norms, mask, bad, rows, cols, m - n, m);                                                                    \
        } else {                                                                                                                            \
            nofm::words<T>(w, norms, mask, bad, rows, cols, m - n, m);                                                                      \
        }                                                                                                                                   \
    }

SELECT_NOFM(select_nofm_bf16, Bf16)
SELECT_NOFM(select_nofm_f16, F16)
SELECT_NOFM(select_nofm_f32, float)
