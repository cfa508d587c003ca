// Selection among all weights of a linear.
//
// Computes: the k smallest scores of the whole matrix go, ties by position (row, then column).
// Launch, in this order: layer_begin; three times layer_count, layer_digit; layer_ties, layer_offsets, layer_mask.
// Nothing comes back to the host between them. `state`: how many go of those that match the prefix, the prefix, the
// pass, and from STATE on a histogram.
// Takes: up to 32 registers.
// Bytes: sizeof(T) read five times, 1/8 written a weight. Shared memory: 8 KiB in layer_count, 16 KiB in layer_digit, 2
// KiB in layer_offsets.
// Source: radix selection as in select_rows_any, with histograms of the blocks added up in device memory.
#include "radix.cuh"

namespace layer {

constexpr u32 LEFT = 0, PREFIX = 1, PASS = 2, STATE = 8;
constexpr u32 TILE = 4096;

struct Bins {
    u32 bins[radix::BINS];
};

template <class T>
__device__ void count(Bins& s, const T* w, const float* norms, u64* state, u64* bad, u64 count, u32 cols) {
    const u32 prefix = static_cast<u32>(state[PREFIX]), pass = static_cast<u32>(state[PASS]);
    for (u32 i = threadIdx.x; i < radix::BINS; i += blockDim.x) s.bins[i] = 0;
    __syncthreads();
    u64 first_bad = ~0ull;
    for (u64 tile = static_cast<u64>(blockIdx.x) * TILE; tile < count; tile += static_cast<u64>(gridDim.x) * TILE) {
        const u32 first = static_cast<u32>(tile % cols), in_row = cols - first;
#pragma unroll 8
        for (u32 at = threadIdx.x; at < TILE && at < count - tile; at += blockDim.x) {
            const float weight = fetch(w + tile + at);
            const u32 col = at < in_row ? first + at : (at - in_row) % cols;
            const u32 key = norms ? score_bits(weight, fetch(norms + col)) : score_bits(weight);
            if (key >= INFINITE) first_bad = min(first_bad, tile + at);
            if (radix::matches(key, prefix, pass)) atomicAdd(&s.bins[radix::digit_of(key, pass)], 1);
        }
    }
    if (first_bad != ~0ull) atomicMin(bad, first_bad);
    __syncthreads();
    for (u32 i = threadIdx.x; i < radix::BINS; i += blockDim.x) {
        if (s.bins[i]) atomicAdd(&state[STATE + i], static_cast<u64>(s.bins[i]));
    }
}

/// Ties of each row.
template <class T>
__device__ void ties(const T* w, const float* norms, const u64* state, u64* ties, u32 rows, u32 cols) {
    const u32 warps = blockDim.x / WARP, threshold = static_cast<u32>(state[PREFIX]);
    for (u64 row = blockIdx.x * static_cast<u64>(warps) + threadIdx.x / WARP; row < rows;
         row += static_cast<u64>(gridDim.x) * warps) {
        u64 sum = 0;
#pragma unroll 4
        for (u64 base = 0; base < cols; base += 64) {
            sum += __popcll(radix::Word<T>(w, norms, row * cols, static_cast<u32>(base), cols).equal(threshold));
        }
        if (threadIdx.x % WARP == 0) ties[row] = sum;
    }
}

template <class T>
__device__ void mask(const T* w, const float* norms, const u64* state, const u64* offsets, u64* mask, u32 rows,
                     u32 cols) {
    const u32 warps = blockDim.x / WARP, words = words_of(cols), threshold = static_cast<u32>(state[PREFIX]);
    const u64 need = state[LEFT];
    for (u64 row = blockIdx.x * static_cast<u64>(warps) + threadIdx.x / WARP; row < rows;
         row += static_cast<u64>(gridDim.x) * warps) {
        u64 before = offsets[row];
#pragma unroll 4
        for (u32 word = 0; word < words; word++) {
            const radix::Word<T> scores(w, norms, row * cols, 64 * word, cols);
            const u64 ties = scores.equal(threshold);
            u64 go = scores.below(threshold);
            if (before < need) go |= lowest_bits(ties, static_cast<u32>(min(need - before, u64{64})));
            before += __popcll(ties);
            if (threadIdx.x % WARP == 0) mask[row * words + word] = go;
        }
    }
}

} // namespace layer

extern "C" __global__ void __launch_bounds__(256) layer_begin(u64* state, u64 k) {
    for (u32 i = threadIdx.x; i < layer::STATE + radix::BINS; i += blockDim.x) state[i] = i == layer::LEFT ? k : 0;
}

namespace layer {

struct Histogram {
    u64 bins[radix::BINS];
};

} // namespace layer

extern "C" __global__ void __launch_bounds__(256) layer_digit(u64* state) {
    SHARED(layer::Histogram, s);
    const u32 pass = static_cast<u32>(state[layer::PASS]);
    const u64 left = state[layer::LEFT], prefix = state[layer::PREFIX];
#pragma unroll 8
    for (u32 i = threadIdx.x; i < radix::BINS; i += blockDim.x) {
        s.bins[i] = state[layer::STATE + i];
        state[layer::STATE + i] = 0;
    }
    __syncthreads();
    if (threadIdx.x >= WARP) return;
    radix::find(s.bins, left, [&](radix::Digit digit) {
        state[layer::LEFT] = digit.left;
        state[layer::PREFIX] = prefix | digit.digit << radix::shift_of(pass);
        state[layer::PASS] = pass + 1;
    });
}

namespace layer {

struct Sums {
    u64 sums[256];
};

} // namespace layer

/// Turns the ties of each row into those of the rows before it.
extern "C" __global__ void __launch_bounds__(256) layer_offsets(u64* ties, u32 rows) {
    SHARED(layer::Sums, s);
    const u32 threads = blockDim.x, each = rows / threads + 1;
    const u32 first = min(threadIdx.x * each, rows), last = min(first + each, rows);
    u64 sum = 0;
    for (u32 row = first; row < last; row++) sum += ties[row];
    s.sums[threadIdx.x] = sum;
    __syncthreads();
    u64 before = 0;
    for (u32 i = 0; i < threadIdx.x; i++) before += s.sums[i];
    for (u32 row = first; row < last; row++) {
        const u64 here = ties[row];
        ties[row] = before;
        before += here;
    }
}

#define SELECT_LAYER(SUFFIX, T)                                                                                        \
    extern "C" __global__ void __launch_bounds__(512)                                                                  \
        layer_count_##SUFFIX(const T* w, const float* norms, u64* state, u64* bad, u64 count, u32 cols) {              \
        SHARED(layer::Bins, shared);                                                                                   \
        layer::count<T>(shared, w, norms, state, bad, count, cols);                                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        layer_ties_##SUFFIX(const T* w, const float* norms, const u64* state, u64* ties, u32 rows, u32 cols) {         \
        layer::ties<T>(w, norms, state, ties, rows, cols);                                                             \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) layer_mask_##SUFFIX(                                             \
        const T* w, const float* norms, const u64* state, const u64* offsets, u64* mask, u32 rows, u32 cols) {         \
        layer::mask<T>(w, norms, state, offsets, mask, rows, cols);                                                    \
    }

SELECT_LAYER(bf16, Bf16)
SELECT_LAYER(f16, F16)
SELECT_LAYER(f32, float)
