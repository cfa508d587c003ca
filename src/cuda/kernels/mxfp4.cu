// MXFP4 to weights.
//
// Computes: 4-bit floats (E2M1; the even ones in the low nibbles) times 2^(scale - 127), in groups of 32 that share a
// scale; 255 gives NaN and infinities, as on the CPU. Exact in bf16.
// Launch: 256 threads, any grid; no shared memory. 16 bytes of blocks a thread, as four words that stand a block's
// width apart, so that the stores of a warp are whole lines.
// Takes: 32 registers.
// Bytes: 17/32 read and sizeof(T) written a weight.
// Source: OCP Microscaling Formats (MX) Specification 1.0.
#include "common.cuh"

namespace mxfp4 {

/// The value as f32: E2M1 with its exponent moved; 0 and 0.5 have none.
__device__ __forceinline__ float value(u32 nibble) {
    const u32 magnitude = nibble & 7;
    const u32 bits = magnitude < 2 ? magnitude * 0x3f000000u : ((magnitude >> 1) + 126) << 23 | (magnitude & 1) << 22;
    return __uint_as_float(bits | (nibble & 8) << 28);
}

__device__ __forceinline__ float power(u32 scale) { return __uint_as_float(scale == 0 ? 1u << 22 : scale << 23); }

__device__ __forceinline__ void store(u16* out, const float (&values)[8]) {
    u32 words[4];
    // The lower halves are zero, or those of a NaN.
#pragma unroll
    for (u32 i = 0; i < 4; i++)
        words[i] = permute(__float_as_uint(values[2 * i]), __float_as_uint(values[2 * i + 1]), 0x7632);
    *reinterpret_cast<uint4*>(out) = {words[0], words[1], words[2], words[3]};
}

__device__ __forceinline__ void store(float* out, const float (&values)[8]) {
    reinterpret_cast<float4*>(out)[0] = {values[0], values[1], values[2], values[3]};
    reinterpret_cast<float4*>(out)[1] = {values[4], values[5], values[6], values[7]};
}

template <class T>
__device__ __forceinline__ void dequantise(const u8* blocks, const u8* scales, T* out, u64 groups) {
    constexpr u32 EACH = 4;
    const u64 words = 4 * groups, tile = static_cast<u64>(blockDim.x) * EACH;
    for (u64 first = blockIdx.x * tile; first < words; first += gridDim.x * tile) {
        u32 packed[EACH], scale[EACH];
#pragma unroll
        for (u32 i = 0; i < EACH; i++) {
            const u64 at = first + i * blockDim.x + threadIdx.x;
            packed[i] = at < words ? __ldg(reinterpret_cast<const u32*>(blocks) + at) : 0;
            scale[i] = at < words ? __ldg(scales + at / 4) : 0;
        }
#pragma unroll
        for (u32 i = 0; i < EACH; i++) {
            const u64 at = first + i * blockDim.x + threadIdx.x;
            if (at >= words) continue;
            const float shared = power(scale[i]);
            float values[8];
#pragma unroll
            for (u32 j = 0; j < 8; j++) values[j] = __fmul_rn(value(packed[i] >> (4 * j) & 0xf), shared);
            store(out + 8 * at, values);
        }
    }
}

} // namespace mxfp4

extern "C" __global__ void __launch_bounds__(256)
    mxfp4_dequantise_bf16(const u8* blocks, const u8* scales, u16* out, u64 groups) {
    mxfp4::dequantise(blocks, scales, out, groups);
}

extern "C" __global__ void __launch_bounds__(256)
    mxfp4_dequantise_f32(const u8* blocks, const u8* scales, float* out, u64 groups) {
    mxfp4::dequantise(blocks, scales, out, groups);
}
