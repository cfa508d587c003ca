// Radix selection of scores by their bits: 31 of them, as digits of 11, 10 and 10.
#pragma once

#include "common.cuh"

namespace radix {

constexpr u32 PASSES = 3;
constexpr u32 BINS = 2048;

__host__ __device__ constexpr u32 shift_of(u32 pass) { return pass == 0 ? 20 : pass == 1 ? 10 : 0; }

/// Whether the digits before those of `pass` are the prefix's.
__device__ __forceinline__ bool matches(u32 key, u32 prefix, u32 pass) { return pass == 0 || (key ^ prefix) >> shift_of(pass - 1) == 0; }

__device__ __forceinline__ u32 digit_of(u32 key, u32 pass) { return key >> shift_of(pass) & (pass == 0 ? BINS - 1 : BINS / 2 - 1); }

struct Digit {
    u32 digit;
    u64 left; // how many go of those with the digit
};

/// The first digit up to which `k` are counted, by one warp; the lane that finds it calls `found`.
template <class Count, class Found>
__device__ __forceinline__ void find(const Count* bins, u64 k, Found found) {
    const u32 lane = threadIdx.x % WARP, each = BINS / WARP;
    u64 sum = 0;
    for (u32 i = 0; i < each; i++) sum += bins[each * lane + i];
    const u64 inclusive = inclusive_scan(sum);
    const u32 reached = __ballot_sync(ALL, inclusive >= k);
    if (lane == static_cast<u32>(__ffs(reached)) - 1) {
        u64 before = inclusive - sum;
        u32 bin = each * lane;
        while (before + bins[bin] < k) before += bins[bin++];
        found(Digit{bin, k - before});
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
