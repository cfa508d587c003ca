// Selection per row for rows of any width and alignment.
//
// Computes: what select_rows computes, and is taken where that one's needs are not met.
// Launch: a block of 256 threads a row at a time, any grid; 8.3 KiB of shared memory.
// Takes: 45 registers.
// Bytes: each row is read four times a level, from the caches if it fits there, and 1/8 written a weight and level.
// Source: radix selection, three digits from histograms in shared memory; ties by running counts.
#include "radix.cuh"

namespace rows_any {

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;

struct Shared {
    u32 bins[radix::BINS];
    radix::Digit digit;
    u32 ties[WARPS];
};

/// Looks for scores that are not finite, by the whole block; tells `bad` of the first.
template <class T>
__device__ bool spoilt(const T* w, const float* norms, u64* bad, u64 start, u32 cols) {
    bool found = false;
    for (u64 col = threadIdx.x; col < cols && !found; col += THREADS) {
        if (score_at(w, norms, start, static_cast<u32>(col)) >= INFINITE) {
            atomicMin(bad, start + col);
            found = true;
        }
    }
    return __syncthreads_or(found);
}

template <class T>
__device__ void select(Shared& s, const T* w, const float* norms, u64* masks, u64* bad, u32 rows, u32 cols,
                       const u32* ks, u32 levels) {
    const u32 tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP, words = words_of(cols);
    for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
        const u64 start = static_cast<u64>(row) * cols;
        if (spoilt(w, norms, bad, start, cols)) continue;
        for (u32 level = 0; level < levels; level++) {
            u32 threshold = 0, need = ks[level];
            for (u32 pass = 0; pass < radix::PASSES; pass++) {
                for (u32 i = tid; i < radix::BINS; i += THREADS) s.bins[i] = 0;
                __syncthreads();
                for (u64 col = tid; col < cols; col += THREADS) {
                    const u32 key = score_at(w, norms, start, static_cast<u32>(col));
                    if (radix::matches(key, threshold, pass)) atomicAdd(&s.bins[radix::digit_of(key, pass)], 1);
                }
                __syncthreads();
                if (warp == 0) radix::find(s.bins, need, [&](radix::Digit digit) { s.digit = digit; });
                __syncthreads();
                threshold |= s.digit.digit << radix::shift_of(pass);
                need = static_cast<u32>(s.digit.left);
            }
            u64* const mask = masks + (static_cast<u64>(level) * rows + row) * words;
            // A word a warp; every warp knows how many ties the words before its own have.
            u32 before = 0;
            for (u32 first = 0; first < words; first += WARPS) {
                const u32 word = first + warp;
                u64 go = 0, ties = 0;
                if (word < words) {
                    const radix::Word<T> scores(w, norms, start, 64 * word, cols);
                    go = scores.below(threshold);
                    ties = scores.equal(threshold);
                }
                if (lane == 0) s.ties[warp] = __popcll(ties);
                __syncthreads();
                u32 mine = before;
                for (u32 i = 0; i < WARPS; i++) {
                    mine += i < warp ? s.ties[i] : 0;
                    before += s.ties[i];
                }
                __syncthreads();
                if (mine < need) go |= lowest_bits(ties, need - mine);
                if (lane == 0 && word < words) mask[word] = go;
            }
        }
    }
}

} // namespace rows_any

#define SELECT_ROWS_ANY(NAME, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        NAME(const T* w, const float* norms, u64* masks, u64* bad, u32 rows, u32 cols, const u32* ks, u32 levels) {    \
        SHARED(rows_any::Shared, shared);                                                                              \
        rows_any::select<T>(shared, w, norms, masks, bad, rows, cols, ks, levels);                                     \
    }

SELECT_ROWS_ANY(select_rows_any_bf16, Bf16)
SELECT_ROWS_ANY(select_rows_any_f16, F16)
SELECT_ROWS_ANY(select_rows_any_f32, float)
