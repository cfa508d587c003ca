// Sums of activations, and of their squares, over the tokens.
//
// Computes: column_sums: per chunk of 64 tokens and column, in f32, token after token; fold_sums: the chunks, in order,
// onto sums in f64. The result is bit for bit that of the CPU.
// Launch: column_sums: 128 threads of 4 columns, grid.x over columns, grid.y over chunks; fold_sums: 64 threads of a
// column. No shared memory.
// Takes: 32 registers.
// Bytes: sizeof(T) read a value, 4/64 written and read again a sum.
#include "common.cuh"

namespace columns {

constexpr u32 TOKENS = 64;
constexpr u32 EACH = 4;

/// Four values, of which `count` are there.
template <class T>
__device__ __forceinline__ void load(const T* x, u32 count, bool aligned, float (&values)[EACH]) {
    if (aligned) {
        constexpr u32 WORDS = sizeof(T);
        u32 words[WORDS];
        if (WORDS == 2) {
            const uint2 two = __ldg(reinterpret_cast<const uint2*>(x));
            words[0] = two.x, words[1] = two.y;
        } else {
            const uint4 four = __ldg(reinterpret_cast<const uint4*>(x));
            words[0] = four.x, words[1] = four.y, words[WORDS - 2] = four.z, words[WORDS - 1] = four.w;
        }
        T each[EACH];
        memcpy(each, words, sizeof(each));
#pragma unroll
        for (u32 i = 0; i < EACH; i++) values[i] = widen(each[i]);
    } else {
#pragma unroll
        for (u32 i = 0; i < EACH; i++) values[i] = i < count ? widen(x[i]) : 0;
    }
}

template <class T>
__device__ void sums(const T* x, u32 tokens, u32 cols, float* partial_squares, float* partial_sums) {
    const bool aligned = cols % EACH == 0 && reinterpret_cast<u64>(x) % (EACH * sizeof(T)) == 0;
    const u32 chunks = (tokens + TOKENS - 1) / TOKENS, width = (cols + EACH - 1) / EACH;
    for (u32 chunk = blockIdx.y; chunk < chunks; chunk += gridDim.y) {
        const u32 first = chunk * TOKENS, height = min(TOKENS, tokens - first);
        for (u32 at = blockIdx.x * blockDim.x + threadIdx.x; at < width; at += gridDim.x * blockDim.x) {
            const u32 col = at * EACH, count = min(EACH, cols - col);
            const T* from = x + static_cast<u64>(first) * cols + col;
            float squares[EACH] = {}, plain[EACH] = {};
#pragma unroll 8
            for (u32 token = 0; token < height; token++, from += cols) {
                float values[EACH];
                load(from, count, aligned, values);
#pragma unroll
                for (u32 i = 0; i < EACH; i++) {
                    // A fused product would round once less than the CPU does.
                    squares[i] = __fadd_rn(squares[i], __fmul_rn(values[i], values[i]));
                    plain[i] = __fadd_rn(plain[i], values[i]);
                }
            }
            const u64 to = static_cast<u64>(chunk) * cols + col;
#pragma unroll
            for (u32 i = 0; i < EACH; i++) {
                if (i < count) {
                    partial_squares[to + i] = squares[i];
                    if (partial_sums) partial_sums[to + i] = plain[i];
                }
            }
        }
    }
}

} // namespace columns

#define COLUMN_SUMS(NAME, T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        NAME(const T* x, u32 tokens, u32 cols, float* partial_squares, float* partial_sums) {                          \
        columns::sums<T>(x, tokens, cols, partial_squares, partial_sums);                                              \
    }

COLUMN_SUMS(column_sums_bf16, Bf16)
COLUMN_SUMS(column_sums_f16, F16)
COLUMN_SUMS(column_sums_f32, float)

extern "C" __global__ void __launch_bounds__(64) fold_sums(const float* partial, u32 chunks, u32 cols, double* sums) {
    for (u32 col = blockIdx.x * blockDim.x + threadIdx.x; col < cols; col += gridDim.x * blockDim.x) {
        double sum = sums[col];
#pragma unroll 8
        for (u32 chunk = 0; chunk < chunks; chunk++)
            sum += static_cast<double>(partial[static_cast<u64>(chunk) * cols + col]);
        sums[col] = sum;
    }
}
