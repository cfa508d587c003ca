// What the kernels share: types, scores, scans. No header is needed, neither of CUDA nor of C++:
// `tests/cuda/emulate.hpp` runs the same text on a CPU and defines LACUNA_EMULATE.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8, "as in Rust");

constexpr u32 WARP = 32;
constexpr u32 ALL = 0xffffffffu;

#ifndef LACUNA_EMULATE
/// One struct of shared memory a kernel.
#define SHARED(Type, name) __shared__ Type name
/// What the launch adds to it, 16-byte aligned.
#define DYNAMIC_SHARED(name) extern __shared__ uint4 name[]
#endif

struct Bf16 {
    u16 bits;
};

struct F16 {
    u16 bits;
};

__device__ __forceinline__ float widen(float x) { return x; }

__device__ __forceinline__ float widen(Bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }

__device__ __forceinline__ float widen(F16 x) {
#ifdef LACUNA_EMULATE
    return emulate::half_to_float(x.bits);
#else
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
#endif
}

/// The score of a weight as bits, which order like it: `|w| * |norm|`, or `|w|` where `norm` is 1. A NaN is above
/// infinity.
__device__ __forceinline__ u32 score_bits(float w, float norm) {
    return __float_as_uint(__fmul_rn(fabsf(w), fabsf(norm)));
}

__device__ __forceinline__ u32 score_bits(float w) { return __float_as_uint(w) & 0x7fffffffu; }

// What the launch does not write is read through the caches for such, and ahead of stores.
__device__ __forceinline__ float fetch(const float* at) { return __ldg(at); }
__device__ __forceinline__ float fetch(const Bf16* at) { return widen(Bf16{__ldg(&at->bits)}); }
__device__ __forceinline__ float fetch(const F16* at) { return widen(F16{__ldg(&at->bits)}); }

template <class T>
__device__ __forceinline__ u32 score_at(const T* w, const float* norms, u64 row_start, u32 col) {
    const float weight = fetch(w + row_start + col);
    return norms ? score_bits(weight, fetch(norms + col)) : score_bits(weight);
}

constexpr u32 INFINITE = 0x7f800000u;

__host__ __device__ constexpr u32 words_of(u32 cols) { return (cols + 63) / 64; }

template <class T>
__device__ __forceinline__ bool is_aligned(const T* w, u32 cols) {
    return cols % 8 == 0 && reinterpret_cast<u64>(w) % 16 == 0;
}

/// Bytes of `a` (0 to 3) and `b` (4 to 7) by the nibbles of `selector`; with a nibble's upper bit, eight copies of the
/// byte's upper bit.
__device__ __forceinline__ u32 permute(u32 a, u32 b, u32 selector) {
#ifdef LACUNA_EMULATE
    return emulate::permute(a, b, selector);
#else
    u32 bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(a), "r"(b), "r"(selector));
    return bytes;
#endif
}

/// The greatest of three, by halves.
__device__ __forceinline__ u32 highest_halves(u32 a, u32 b, u32 c) {
#ifdef LACUNA_EMULATE
    return emulate::highest_halves(emulate::highest_halves(a, b), c);
#else
    return __vimax3_u16x2(a, b, c);
#endif
}

/// About `a / b`.
__device__ __forceinline__ float about_quotient(float a, float b) {
#ifdef LACUNA_EMULATE
    return a / b;
#else
    return __fdividef(a, b);
#endif
}

/// About the square root.
__device__ __forceinline__ float about_root(float x) {
#ifdef LACUNA_EMULATE
    return sqrtf(x);
#else
    float root;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(x));
    return root;
#endif
}

/// The sum over the lanes up to this one.
__device__ __forceinline__ u32 inclusive_scan(u32 value) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 step = 1; step < WARP; step *= 2) {
        const u32 other = __shfl_up_sync(ALL, value, step);
        if (lane >= step) value += other;
    }
    return value;
}

__device__ __forceinline__ u64 inclusive_scan(u64 value) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 step = 1; step < WARP; step *= 2) {
        const u64 other = __shfl_up_sync(ALL, value, step);
        value += lane >= step ? other : 0;
    }
    return value;
}

/// The place of the highest bit that is set.
__device__ __forceinline__ u32 highest_bit(u32 bits) {
#ifdef LACUNA_EMULATE
    return 31 - __clz(bits);
#else
    u32 place;
    asm("bfind.u32 %0, %1;" : "=r"(place) : "r"(bits));
    return place;
#endif
}

/// A pointer of which the compiler shall not know how it was made: from there on it counts up, where it would begin
/// anew each time.
template <class T>
__device__ __forceinline__ const T* settled(const T* at) {
#ifndef LACUNA_EMULATE
    asm("" : "+l"(at));
#endif
    return at;
}

/// The `count` lowest of the bits that are set.
__device__ __forceinline__ u32 lowest_bits(u32 bits, u32 count) {
    const u32 set = __popc(bits);
    if (count >= set) return bits;
    for (u32 extra = set - count; extra > 0; extra--) bits &= ~(0x80000000u >> __clz(bits));
    return bits;
}

__device__ __forceinline__ u64 lowest_bits(u64 bits, u32 count) {
    const u32 low = static_cast<u32>(bits), high = static_cast<u32>(bits >> 32), in_low = __popc(low);
    return lowest_bits(low, count) | static_cast<u64>(count > in_low ? lowest_bits(high, count - in_low) : 0) << 32;
}

template <class T>
struct Is {
    static constexpr bool F16 = false;
};

template <>
struct Is<F16> {
    static constexpr bool F16 = true;
};

/// Eight weights as they lie in memory, and their scores.
template <class T>
struct Vector {
    static constexpr u32 LOADS = sizeof(T) / 2;
    uint4 raw[LOADS];

    __device__ __forceinline__ void load(const T* w) {
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) raw[i] = __ldg(reinterpret_cast<const uint4*>(w) + i);
    }

    __device__ __forceinline__ float weight(u32 i) const;

    /// Bits of the scores; `norms` are those of the eight columns, or null.
    __device__ __forceinline__ void scores(const float* norms, u32 (&keys)[8]) const {
        if (norms) {
            const float4 a = __ldg(reinterpret_cast<const float4*>(norms));
            const float4 b = __ldg(reinterpret_cast<const float4*>(norms) + 1);
            const float each[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
            for (u32 i = 0; i < 8; i++) keys[i] = score_bits(weight(i), each[i]);
        } else {
#pragma unroll
            for (u32 i = 0; i < 8; i++) keys[i] = score_bits(weight(i));
        }
    }
};

/// Word `i` of four; with a constant `i` no array of it is made.
__device__ __forceinline__ u32 word_of(const uint4& v, u32 i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <>
__device__ __forceinline__ float Vector<Bf16>::weight(u32 i) const {
    const u32 pair = word_of(raw[0], i / 2);
    return __uint_as_float(i % 2 ? pair & 0xffff0000u : pair << 16);
}

template <>
__device__ __forceinline__ float Vector<F16>::weight(u32 i) const {
    const u32 pair = word_of(raw[0], i / 2);
    return widen(F16{static_cast<u16>(i % 2 ? pair >> 16 : pair)});
}

template <>
__device__ __forceinline__ float Vector<float>::weight(u32 i) const {
    return __uint_as_float(word_of(raw[i / 4], i % 4));
}
