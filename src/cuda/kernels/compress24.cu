// 2:4 matrices as their kept values and two bits for the place of each, and products with them.
//
// compress24_16: values (rows, cols / 2) and index (rows, ceil(cols / 8)) as sparse checkpoints have them: a nibble a
// group of four, the lower place in its low bits, the even group in a byte's low nibble. 256 threads of 8 weights, any
// grid; 2 1/8 bytes read and 1 1/8 written a weight.
// to_cutlass: the index as CUTLASS's sparse kernels for 16-bit types, and PyTorch's, read it: 16 bits for 16 columns,
// rows and columns of these interleaved (`reorder_meta` of CUTLASS, ColumnMajorInterleaved<2>). 256 threads of 16
// columns; 1/8 byte read and written a weight.
// matvec_24_bf16, matvec_bf16: y = W x for up to 16 vectors, bound by the bytes of W: 9/8 a weight and 2 a weight. A
// row a warp, 256 threads, any grid, 16-byte loads; x stays in the caches. Each lane adds up in f32, by fused products,
// the 8 (of a 2:4 matrix, 16) columns of every 32nd chunk; then lanes fold in halves. Up to 4 vectors are bound by
// memory, more by arithmetic.
// Takes: 29 (compress24_16), 16 (to_cutlass), 60 (matvec_bf16) and 58 registers (matvec_24_bf16), no shared memory.
#include "common.cuh"

namespace two_of_four {

/// The nibble of each set of elements that are not zero, as PyTorch's and CUTLASS's conversions choose it; 0, which is
/// none, where there are more than two.
constexpr u64 NIBBLES = 0x000e0dce098e498eull;

} // namespace two_of_four

extern "C" __global__ void __launch_bounds__(256)
    compress24_16(const u16* w, const u64* mask, u16* values, u8* index, u64* bad_group, u32 rows, u32 cols) {
    const u32 width = (cols + 7) / 8;
    const bool aligned = is_aligned(w, cols) && reinterpret_cast<u64>(values) % 8 == 0;
    const u64 count = static_cast<u64>(rows) * width, stride = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 at = blockIdx.x * static_cast<u64>(blockDim.x) + threadIdx.x; at < count; at += stride) {
        const u64 row = count <= ALL ? static_cast<u32>(at) / width : at / width;
        const u32 eight = static_cast<u32>(at - row * width), col = 8 * eight, here = min(8u, cols - col);
        const u64 start = row * cols + col;
        u32 words[4] = {};
        if (aligned) {
            const uint4 four = __ldg(reinterpret_cast<const uint4*>(w + start));
            words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
        } else {
#pragma unroll
            for (u32 i = 0; i < 8; i++) words[i / 2] |= i < here ? static_cast<u32>(w[start + i]) << (16 * (i % 2)) : 0;
        }
        const u32 pruned = mask ? reinterpret_cast<const u8*>(mask + row * words_of(cols))[eight] : 0;
        u32 places = 0;
        u32 kept[4];
#pragma unroll
        for (u32 group = 0; group < 2; group++) {
            u32 present = 0;
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32& word = words[2 * group + i / 2];
                if (pruned >> (4 * group + i) & 1) word &= i % 2 ? 0xffffu : 0xffff0000u;
                present |= (word >> (16 * (i % 2)) & 0xffffu) != 0 ? 1u << i : 0;
            }
            const u32 nibble = two_of_four::NIBBLES >> (4 * present) & 0xf;
            if (nibble == 0 && 4 * group < here) atomicMin(bad_group, start / 4 + group);
            if (4 * group < here) places |= nibble << (4 * group);
            const u32 a = nibble & 3, b = nibble >> 2;
            kept[group] = permute(words[2 * group], words[2 * group + 1], 0x1010 + 0x22 * a + 0x2200 * b);
        }
        index[at] = static_cast<u8>(places);
        u16* const to = values + start / 2;
        if (aligned) {
            *reinterpret_cast<uint2*>(to) = {kept[0], kept[1]};
        } else {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                if (2 * i < here) to[i] = static_cast<u16>(kept[i / 2] >> (16 * (i % 2)));
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) to_cutlass(const u8* index, u16* meta, u32 rows, u32 cols) {
    const u32 width = cols / 16;
    const u64 count = static_cast<u64>(rows) * width, stride = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 at = blockIdx.x * static_cast<u64>(blockDim.x) + threadIdx.x; at < count; at += stride) {
        u32 row = static_cast<u32>(at / width), col = static_cast<u32>(at % width);
        const u16 places = static_cast<u16>(index[2 * at] | index[2 * at + 1] << 8);
        // Rows of 32 are dealt out to eights, then the corners of each 2 x 2 block change places.
        row = row / 32 * 32 + row % 8 * 4 + row % 32 / 8;
        if (row % 2 == 0 && col % 2 == 1) {
            row++, col--;
        } else if (row % 2 == 1 && col % 2 == 0) {
            row--, col++;
        }
        meta[static_cast<u64>(col / 2) * rows * 2 + row * 2 + col % 2] = places;
    }
}

namespace two_of_four {

__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

/// Adds the products of two pairs, the lower first.
__device__ __forceinline__ float add(float sum, u32 w, u32 x) {
    return __fmaf_rn(high(w), high(x), __fmaf_rn(low(w), low(x), sum));
}

/// The sum over the lanes, the same in each: halves fold.
__device__ __forceinline__ float fold(float sum) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(ALL, sum, step));
    return sum;
}

struct Dense {
    const u16* w;

    static constexpr u32 COLS = 8; // a lane and step

    struct Chunk {
        uint4 w;
    };

    __device__ __forceinline__ Chunk load(u64 at) const { return {__ldg(reinterpret_cast<const uint4*>(w + at))}; }

    static __device__ __forceinline__ float product(const Chunk& chunk, const uint4* x, float sum) {
        const uint4 values = __ldg(x);
#pragma unroll
        for (u32 i = 0; i < 4; i++) sum = add(sum, word_of(chunk.w, i), word_of(values, i));
        return sum;
    }
};

struct Sparse {
    const u16* values;
    const u8* index;

    static constexpr u32 COLS = 16;

    struct Chunk {
        uint4 w;
        u32 places;
    };

    __device__ __forceinline__ Chunk load(u64 at) const {
        return {__ldg(reinterpret_cast<const uint4*>(values + at / 2)),
                __ldg(reinterpret_cast<const u16*>(index + at / 8))};
    }

    static __device__ __forceinline__ float product(const Chunk& chunk, const uint4* x, float sum) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const uint4 values = __ldg(x + half);
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                const u32 group = 2 * half + i, a = chunk.places >> (4 * group) & 3,
                          b = chunk.places >> (4 * group + 2) & 3;
                const u32 picked =
                    permute(word_of(values, 2 * i), word_of(values, 2 * i + 1), 0x1010 + 0x22 * a + 0x2200 * b);
                sum = add(sum, word_of(chunk.w, group), picked);
            }
        }
        return sum;
    }
};

template <u32 BATCH, class W>
__device__ __forceinline__ void multiply(W weights, const u16* x, float* y, u32 rows, u32 cols, u32 batch) {
    const u32 lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (u64 row = blockIdx.x * static_cast<u64>(warps) + threadIdx.x / WARP; row < rows;
         row += static_cast<u64>(gridDim.x) * warps) {
        float sums[BATCH] = {};
#pragma unroll(BATCH == 1 ? 4 : 1)
        for (u32 col = lane * W::COLS; col < cols; col += WARP * W::COLS) {
            const typename W::Chunk chunk = weights.load(row * cols + col);
#pragma unroll
            for (u32 i = 0; i < BATCH; i++) {
                if (i < batch)
                    sums[i] = W::product(chunk, reinterpret_cast<const uint4*>(x + static_cast<u64>(i) * cols + col),
                                         sums[i]);
            }
        }
#pragma unroll
        for (u32 i = 0; i < BATCH; i++) {
            const float sum = fold(sums[i]);
            if (i < batch && lane == 0) y[static_cast<u64>(i) * rows + row] = sum;
        }
    }
}

template <class W>
__device__ __forceinline__ void product(W weights, const u16* x, float* y, u32 rows, u32 cols, u32 batch) {
    if (batch == 1) {
        multiply<1>(weights, x, y, rows, cols, batch);
    } else if (batch <= 4) {
        multiply<4>(weights, x, y, rows, cols, batch);
    } else {
        multiply<16>(weights, x, y, rows, cols, batch);
    }
}

} // namespace two_of_four

extern "C" __global__ void __launch_bounds__(256)
    matvec_bf16(const u16* w, const u16* x, float* y, u32 rows, u32 cols, u32 batch) {
    two_of_four::product(two_of_four::Dense{w}, x, y, rows, cols, batch);
}

extern "C" __global__ void __launch_bounds__(256)
    matvec_24_bf16(const u16* values, const u8* index, const u16* x, float* y, u32 rows, u32 cols, u32 batch) {
    two_of_four::product(two_of_four::Sparse{values, index}, x, y, rows, cols, batch);
}
