// SparseGPT within a block of columns: what goes, what each pruned weight costs, and what the others in the block make
// up for.
//
// Computes: column after column, error = w / U[i][i] for a pruned weight, w[j] -= error * U[i][j] for the columns
// behind it in the block. The products with the columns behind the block are a matrix product of the caller. Bit for
// bit what the CPU computes: no product is fused.
// Launch: a row a warp, 256 threads, any grid; the upper triangle of U in dynamic shared memory, `count * (count + 1) /
// 2 * 4` bytes (33 KiB for 128 columns), and 1 KiB more. A lane holds columns lane, lane + 32, ...
// Takes: 48 registers.
// Bytes: 4 read, 4 written and 4 of errors written a weight; U once a block. Arithmetic: count / 2 products a pruned
// weight.
// Source: Frantar and Alistarh 2023, "SparseGPT", algorithm 1; N:M chosen at the first column of each group.
#include "common.cuh"

namespace sparsegpt {

constexpr u32 WIDTH = 128;
constexpr u32 SLOTS = WIDTH / WARP;
constexpr u32 WARPS = 8;

struct Shared {
    float scores[WARPS][WARP];
};

/// Where row `i` of the triangle would have its column 0.
__device__ __forceinline__ u32 row_of(u32 i, u32 count) { return i * count - i * (i + 1) / 2; }

/// Bits of the `m - n` weights with the lowest w^2 / U_jj^2 of the group that begins at column `first`, ties by
/// position.
__device__ __forceinline__ u32 choose(float (&scores)[WARP], const float (&w)[SLOTS], const float* u, u32 first,
                                      u32 count, u32 n, u32 m) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 slot = 0; slot < SLOTS; slot++) {
        const u32 col = slot * WARP + lane;
        if (col >= first && col < first + m) {
            const float d = u[row_of(col, count) + col];
            scores[col - first] = __fdiv_rn(__fmul_rn(w[slot], w[slot]), __fmul_rn(d, d));
        }
    }
    __syncwarp();
    u32 sooner = 0;
    if (lane < m) {
        const float mine = scores[lane];
        for (u32 other = 0; other < m; other++)
            sooner += scores[other] < mine || (scores[other] == mine && other < lane);
    }
    // The lanes meet here, so that none writes the next group's scores while others read these.
    return __ballot_sync(ALL, lane < m && sooner < m - n);
}

} // namespace sparsegpt

extern "C" __global__ void __launch_bounds__(256)
    sparsegpt_block(float* weights, u32 rows, u32 cols, u32 first, u32 count, const float* upper, const u64* mask,
                    u64* mask_out, u32 n, u32 m, float* errors) {
    using namespace sparsegpt;
    SHARED(sparsegpt::Shared, s);
    DYNAMIC_SHARED(dynamic);
    float* const u = reinterpret_cast<float*>(dynamic);
    for (u32 at = threadIdx.x; at < count * count; at += blockDim.x) {
        const u32 i = at / count, j = at % count;
        if (j >= i) u[row_of(i, count) + j] = upper[at];
    }
    __syncthreads();
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (u64 row = blockIdx.x * static_cast<u64>(warps) + warp; row < rows;
         row += static_cast<u64>(gridDim.x) * warps) {
        float* const here = weights + row * cols + first;
        float w[SLOTS], lost[SLOTS] = {};
        u32 pruned[SLOTS] = {};
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; slot++) {
            const u32 col = slot * WARP + lane;
            w[slot] = col < count ? here[col] : 0;
            if (mask) {
                const u32 at = first + col;
                pruned[slot] =
                    __ballot_sync(ALL, col < count && (mask[row * words_of(cols) + at / 64] >> (at % 64) & 1));
            }
        }
        u32 group = 0; // bits of the group that is being gone through
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; slot++) {
            for (u32 l = 0; l < WARP && slot * WARP + l < count; l++) {
                const u32 i = slot * WARP + l;
                bool goes = pruned[slot] >> l & 1;
                if (!mask) {
                    if (i % m == 0) {
                        group = choose(s.scores[warp], w, u, i, count, n, m);
                        if (lane == 0) {
                            const u32 at = first + i;
                            u64* const words = mask_out + row * words_of(cols) + at / 64;
                            words[0] |= static_cast<u64>(group) << (at % 64);
                            if (at % 64 + m > 64) words[1] |= static_cast<u64>(group) >> (64 - at % 64);
                        }
                    }
                    goes = group >> (i % m) & 1;
                }
                if (!goes) continue;
                const float* const u_i = u + row_of(i, count);
                const float error = __fdiv_rn(__shfl_sync(ALL, w[slot], l), u_i[i]);
#pragma unroll
                for (u32 other = slot; other < SLOTS; other++) {
                    const u32 col = other * WARP + lane;
                    if (col > i && col < count) w[other] = __fsub_rn(w[other], __fmul_rn(error, u_i[col]));
                }
                if (lane == l) {
                    w[slot] = 0;
                    lost[slot] = error;
                }
            }
        }
#pragma unroll
        for (u32 slot = 0; slot < SLOTS; slot++) {
            const u32 col = slot * WARP + lane;
            if (col < count) {
                here[col] = w[slot];
                errors[row * count + col] = lost[slot];
            }
        }
    }
}
