// Scores and N:M selection.
//
// Computes: of each m consecutive weights the n with the largest scores stay; of equal scores the first ones go first.
// Launch: 256 threads, any grid; no shared memory. A block takes a row at a time and a thread 8 weights of it, with one
// or two 16-byte loads, for which it writes a byte of the mask; where m is neither 4 nor 8, or weights are not aligned,
// a word of the mask at a time with scalar loads.
// Takes: 32 registers. For 2:4 about 12 instructions a weight, for N:8 about 20, counted in the machine code for sm_90.
// Bytes: sizeof(T) read and 1/8 written a weight; norms stay in L1.
// Source: ranks by comparing all pairs of a group, as the CPU's selection does.
#include "common.cuh"

namespace nofm {

/// The upper bit: whether `b` is below `a`; of equals the first one is. Keys have 31 bits.
__device__ __forceinline__ u32 later(u32 a, u32 b) { return b - a; }

/// The upper bit: whether fewer than DROP of the three upper bits are set.
template <u32 DROP>
__device__ __forceinline__ u32 fewer(u32 a, u32 b, u32 c) {
    return DROP == 1 ? ~(a | b | c) : DROP == 2 ? ~((a & b) | (a & c) | (b & c)) : ~(a & b & c);
}

/// The upper bits of four words, as the low bits of one.
__device__ __forceinline__ u32 gather(u32 a, u32 b, u32 c, u32 d) {
    // A byte of ones for each that is set, of which each keeps another bit; their sum comes to stand in the upper byte.
    const u32 bytes = permute(permute(a, b, 0x00fb), permute(c, d, 0xfb00), 0x7610);
    return (bytes & 0x08040201u) * 0x01010101u >> 24;
}

/// Bits of the DROP smallest of four keys, ties by position: who has fewer than DROP before it.
template <u32 DROP>
__device__ __forceinline__ u32 of_four(const u32* k) {
    const u32 ab = later(k[0], k[1]), ac = later(k[0], k[2]), ad = later(k[0], k[3]);
    const u32 bc = later(k[1], k[2]), bd = later(k[1], k[3]), cd = later(k[2], k[3]);
    return gather(fewer<DROP>(ab, ac, ad), fewer<DROP>(~ab, bc, bd), fewer<DROP>(~ac, ~bc, cd),
                  fewer<DROP>(~ad, ~bd, ~cd));
}

/// Bits of the `drop` smallest of eight keys, ties by position.
__device__ __forceinline__ u32 of_eight(const u32* k, u32 drop) {
    // How many go before each: those that stand before it, but for each pair that is the other way round.
    u32 ranks[8] = {0, 1, 2, 3, 4, 5, 6, 7};
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
#pragma unroll
        for (u32 j = i + 1; j < 8; j++) {
            const u32 turned = later(k[i], k[j]) >> 31;
            ranks[i] += turned;
            ranks[j] -= turned;
        }
    }
    const u32 low = gather(ranks[0] - drop, ranks[1] - drop, ranks[2] - drop, ranks[3] - drop);
    return low | gather(ranks[4] - drop, ranks[5] - drop, ranks[6] - drop, ranks[7] - drop) << 4;
}

/// Aligned weights in groups of 4 of which DROP go, or where that is 0 of 8 of which `drop` go.
template <class T, u32 DROP>
__device__ __forceinline__ void vectors(const T* w, const float* norms, u64* mask, u64* bad, u32 rows, u32 cols,
                                        u32 drop) {
    const u32 width = cols / 8;
    for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
        const u64 start = static_cast<u64>(row) * cols;
        u8* const bytes = reinterpret_cast<u8*>(mask + static_cast<u64>(row) * words_of(cols));
#pragma unroll 2
        for (u32 at = threadIdx.x; at < width; at += blockDim.x) {
            Vector<T> weights;
            weights.load(w + start + 8 * at);
            u32 keys[8];
            weights.scores(norms ? norms + 8 * at : nullptr, keys);
            const u32 highest = max(max(max(keys[0], keys[1]), max(keys[2], keys[3])),
                                    max(max(keys[4], keys[5]), max(keys[6], keys[7])));
            if (highest >= INFINITE) {
                u32 first = 0;
#pragma unroll
                for (u32 i = 8; i-- > 0;) first = keys[i] >= INFINITE ? i : first;
                atomicMin(bad, start + 8 * at + first);
            }
            bytes[at] =
                static_cast<u8>(DROP == 0 ? of_eight(keys, drop) : of_four<DROP>(keys) | of_four<DROP>(keys + 4) << 4);
        }
        for (u32 at = width + threadIdx.x; at < 8 * words_of(cols); at += blockDim.x) bytes[at] = 0;
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

#define SELECT_NOFM(NAME, T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        NAME(const T* w, const float* norms, u64* mask, u64* bad, u32 rows, u32 cols, u32 n, u32 m) {                  \
        const bool aligned = is_aligned(w, cols) && (!norms || reinterpret_cast<u64>(norms) % 16 == 0);                \
        if (aligned && m == 4 && n == 2) {                                                                             \
            nofm::vectors<T, 2>(w, norms, mask, bad, rows, cols, 0);                                                   \
        } else if (aligned && m == 4 && n == 1) {                                                                      \
            nofm::vectors<T, 3>(w, norms, mask, bad, rows, cols, 0);                                                   \
        } else if (aligned && m == 4 && n == 3) {                                                                      \
            nofm::vectors<T, 1>(w, norms, mask, bad, rows, cols, 0);                                                   \
        } else if (aligned && m == 8) {                                                                                \
            nofm::vectors<T, 0>(w, norms, mask, bad, rows, cols, 8 - n);                                               \
        } else {                                                                                                       \
            nofm::words<T>(w, norms, mask, bad, rows, cols, m - n, m);                                                 \
        }                                                                                                              \
    }

SELECT_NOFM(select_nofm_bf16, Bf16)
SELECT_NOFM(select_nofm_f16, F16)
SELECT_NOFM(select_nofm_f32, float)
