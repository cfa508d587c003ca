// Radix selection of scores by their bits: 31 of them, as digits of 11, 10 and 10.
#pragma once

#include "common.cuh"

namespace radix {

constexpr u32 PASSES = 3;
constexpr u32 BINS = 2048;

__host__ __device__ constexpr u32 shift_of(u32 pass) { return pass == 0 ? 20 : pass == 1 ? 10 : 0; }

/// Whether the digits before those of `pass` are the prefix's.
__device__ __forceinline__ bool matches(u32 key, u32 prefix, u32 pass) {
    return pass == 0 || (key ^ prefix) >> shift_of(pass - 1) == 0;
}

__device__ __forceinline__ u32 digit_of(u32 key, u32 pass) {
    return key >> shift_of(pass) & (pass == 0 ? BINS - 1 : BINS / 2 - 1);
}

struct Digit {
    u32 digit;
    u64 left; // how many go of those with the digit
};

/// The first digit up to which `k` are counted, by one warp, of which one lane calls `found`.
template <class Count, class Found>
__device__ __forceinline__ void find(const Count* bins, u64 k, Found found) {
    constexpr u32 EACH = BINS / WARP;
    const u32 lane = threadIdx.x % WARP;
    u64 sum = 0;
    // Each lane begins at another bank.
#pragma unroll 8
    for (u32 i = 0; i < EACH; i++) sum += bins[EACH * lane + (i + lane) % EACH];
    const u64 inclusive = inclusive_scan(sum);
    const u32 reached = __ballot_sync(ALL, inclusive >= k);
    if (reached == 0) return; // of scores that are not finite
    const u32 at = __ffs(reached) - 1;
    u64 before = __shfl_sync(ALL, inclusive - sum, at);
    for (u32 half = 0; half < 2; half++) {
        const u32 bin = EACH * at + WARP * half + lane;
        const u64 count = bins[bin], end = before + inclusive_scan(count);
        if (end >= k && end - count < k) found(Digit{bin, k - (end - count)});
        if (k == 0 && bin == 0) found(Digit{0, 0});
        before = __shfl_sync(ALL, end, WARP - 1);
    }
}

/// The scores of 64 columns from `base` on, two a lane; beyond the row they are above everything.
template <class T>
struct Word {
    u32 first, second;

    __device__ __forceinline__ Word(const T* w, const float* norms, u64 row_start, u32 base, u32 cols) {
        const u32 lane = threadIdx.x % WARP, left = cols - base;
        first = lane < left ? score_at(w, norms, row_start, base + lane) : ALL;
        second = WARP + lane < left ? score_at(w, norms, row_start, base + WARP + lane) : ALL;
    }

    __device__ __forceinline__ u64 below(u32 key) const {
        return __ballot_sync(ALL, first < key) | static_cast<u64>(__ballot_sync(ALL, second < key)) << 32;
    }

    __device__ __forceinline__ u64 equal(u32 key) const {
        return __ballot_sync(ALL, first == key) | static_cast<u64>(__ballot_sync(ALL, second == key)) << 32;
    }
};

} // namespace radix
