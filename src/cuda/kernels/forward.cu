// What a forward pass does between its products.
//
// Computes: causal_softmax: of each row softmax(scores * scale) over the keys that its query sees, zeros elsewhere; rope:
// the halves of each head rotated; swiglu: silu(gate) * up. All in f32, rounded once.
// Launch: 256 threads, any grid, no shared memory. A warp a row of scores, which it reads twice (the second time from
// the caches); eight elements a thread where they are aligned.
// Takes: at most 40 registers.
// Bytes: causal_softmax sizeof(T) written, and read of the keys that are seen, half of them; rope 2 sizeof(T); swiglu 3
// sizeof(T).
// Source: softmax with one pass for maximum and sum: Milakov and Gimelshein 2018, "Online normalizer calculation for
// softmax"; rotary embedding as Hugging Face's Llama has it; a sink: gpt-oss.
#include "common.cuh"

namespace forward {

constexpr u32 EIGHT = 8;

__device__ __forceinline__ float about_exp(float x) {
#ifdef LACUNA_EMULATE
    return expf(x);
#else
    return __expf(x);
#endif
}

__device__ __forceinline__ float infinite() { return __uint_as_float(INFINITE); }

__device__ __forceinline__ void narrow(float x, float* to) { *to = x; }

__device__ __forceinline__ void narrow(float x, Bf16* to) {
#ifdef LACUNA_EMULATE
    to->bits = emulate::float_to_bf16(x);
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
#endif
}

__device__ __forceinline__ void narrow(float x, F16* to) {
#ifdef LACUNA_EMULATE
    to->bits = emulate::float_to_half(x);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
#endif
}

/// One element, or eight that lie as `uint4` can be read.
template <class T, u32 EACH>
struct Piece {
    float values[EACH];

    __device__ __forceinline__ void load(const T* at) {
        if constexpr (EACH == EIGHT) {
            Vector<T> raw;
            raw.load(at);
#pragma unroll
            for (u32 i = 0; i < EACH; i++) values[i] = raw.weight(i);
        } else {
            values[0] = fetch(at);
        }
    }

    __device__ __forceinline__ void store(T* at) const {
        T each[EACH];
#pragma unroll
        for (u32 i = 0; i < EACH; i++) narrow(values[i], each + i);
        if constexpr (EACH == EIGHT) {
            constexpr u32 STORES = EACH * sizeof(T) / sizeof(uint4);
            uint4 raw[STORES];
            memcpy(raw, each, sizeof(each));
#pragma unroll
            for (u32 i = 0; i < STORES; i++) reinterpret_cast<uint4*>(at)[i] = raw[i];
        } else {
            *at = each[0];
        }
    }
};

/// A sum of exponentials, of what they are less than their greatest.
struct Sum {
    float highest, sum;

    /// The same sum, less a greater one.
    __device__ __forceinline__ float below(float other) const {
        return highest == other ? sum : sum * about_exp(highest - other);
    }

    __device__ __forceinline__ void add(Sum other) {
        const float most = fmaxf(highest, other.highest);
        sum = below(most) + other.below(most);
        highest = most;
    }
};

/// One row, by a warp.
template <class T, u32 EACH>
__device__ __forceinline__ void softmax(const T* from, T* to, u32 keys, u32 begin, u32 end, float scale, float sink) {
    const u32 lane = threadIdx.x % WARP;
    Sum own = {-infinite(), 0};
    Piece<T, EACH> piece;
    for (u32 at = begin / EACH * EACH + lane * EACH; at < end; at += WARP * EACH) {
        piece.load(from + at);
        Sum eight = {-infinite(), 0};
#pragma unroll
        for (u32 i = 0; i < EACH; i++) {
            const u32 key = at + i;
            piece.values[i] = key >= begin && key < end ? piece.values[i] * scale : -infinite();
            eight.highest = fmaxf(eight.highest, piece.values[i]);
        }
#pragma unroll
        for (u32 i = 0; i < EACH; i++) {
            const float x = piece.values[i];
            eight.sum += x == -infinite() ? 0 : about_exp(x - eight.highest);
        }
        own.add(eight);
    }
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) {
        own.add({__shfl_xor_sync(ALL, own.highest, step), __shfl_xor_sync(ALL, own.sum, step)});
    }
    if (sink > -infinite()) own.add({sink, 1});
    const float factor = 1 / own.sum;
    for (u32 at = lane * EACH; at < keys; at += WARP * EACH) {
        const bool seen = at + EACH > begin && at < end;
        if (seen) piece.load(from + at);
#pragma unroll
        for (u32 i = 0; i < EACH; i++) {
            const u32 key = at + i;
            const bool is = seen && key >= begin && key < end;
            piece.values[i] = is ? about_exp(piece.values[i] * scale - own.highest) * factor : 0;
        }
        piece.store(to + at);
    }
}

template <class T>
__device__ __forceinline__ void causal_softmax(const T* scores, T* out, const float* sinks, u32 heads, u32 rows, u32 keys,
                                               u32 queries, u32 past, u32 window, float scale) {
    const bool aligned = is_aligned(scores, keys) && is_aligned(out, keys);
    const u32 warps = blockDim.x / WARP;
    for (u32 row = blockIdx.x * warps + threadIdx.x / WARP; row < rows; row += gridDim.x * warps) {
        const u32 end = past + row % queries + 1, begin = window && window < end ? end - window : 0;
        const float sink = sinks ? fetch(sinks + row / queries % heads) : -infinite();
        const u64 first = static_cast<u64>(row) * keys;
        if (aligned) {
            softmax<T, EIGHT>(scores + first, out + first, keys, begin, end, scale, sink);
        } else {
            softmax<T, 1>(scores + first, out + first, keys, begin, end, scale, sink);
        }
    }
}

/// Rows of `2 half` elements; row `r` stands at position `first + r % seq`.
template <class T, u32 EACH>
__device__ __forceinline__ void rotate(const T* x, T* out, const float* cos, const float* sin, u64 pieces, u32 seq,
                                       u32 half, u32 first) {
    const u32 width = half / EACH;
    const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
    for (u64 at = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; at < pieces; at += step) {
        const u64 row = at / width;
        const u32 col = static_cast<u32>(at % width) * EACH;
        const u64 low = row * 2 * half + col, angle = static_cast<u64>(first + static_cast<u32>(row % seq)) * half + col;
        Piece<T, EACH> a, b, left, right;
        a.load(x + low);
        b.load(x + low + half);
#pragma unroll
        for (u32 i = 0; i < EACH; i++) {
            const float c = __ldg(cos + angle + i), s = __ldg(sin + angle + i);
            left.values[i] = a.values[i] * c - b.values[i] * s;
            right.values[i] = b.values[i] * c + a.values[i] * s;
        }
        left.store(out + low);
        right.store(out + low + half);
    }
}

template <class T>
__device__ __forceinline__ void rope(const T* x, T* out, const float* cos, const float* sin, u32 rows, u32 seq, u32 half,
                                     u32 first) {
    const u64 pairs = static_cast<u64>(rows) * half;
    if (is_aligned(x, half) && is_aligned(out, half)) {
        rotate<T, EIGHT>(x, out, cos, sin, pairs / EIGHT, seq, half, first);
    } else {
        rotate<T, 1>(x, out, cos, sin, pairs, seq, half, first);
    }
}

template <class T, u32 EACH>
__device__ __forceinline__ void gated(const T* gate, const T* up, T* out, u64 begin, u64 end) {
    const u64 step = static_cast<u64>(gridDim.x) * blockDim.x * EACH;
    for (u64 at = begin + (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x) * EACH; at < end; at += step) {
        Piece<T, EACH> a, b;
        a.load(gate + at);
        b.load(up + at);
#pragma unroll
        for (u32 i = 0; i < EACH; i++) a.values[i] = a.values[i] / (1 + about_exp(-a.values[i])) * b.values[i];
        a.store(out + at);
    }
}

template <class T>
__device__ __forceinline__ void swiglu(const T* gate, const T* up, T* out, u64 count) {
    const bool aligned = is_aligned(gate, 0) && is_aligned(up, 0) && is_aligned(out, 0);
    const u64 eights = aligned ? count / EIGHT * EIGHT : 0;
    gated<T, EIGHT>(gate, up, out, 0, eights);
    gated<T, 1>(gate, up, out, eights, count);
}

} // namespace forward

#define FORWARD(NAME, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        causal_softmax_##NAME(const T* scores, T* out, const float* sinks, u32 heads, u32 rows, u32 keys, u32 queries, \
                              u32 past, u32 window, float scale) {                                                     \
        forward::causal_softmax<T>(scores, out, sinks, heads, rows, keys, queries, past, window, scale);               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        rope_##NAME(const T* x, T* out, const float* cos, const float* sin, u32 rows, u32 seq, u32 half, u32 first) {  \
        forward::rope<T>(x, out, cos, sin, rows, seq, half, first);                                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        swiglu_##NAME(const T* gate, const T* up, T* out, u64 count) {                                                 \
        forward::swiglu<T>(gate, up, out, count);                                                                      \
    }

FORWARD(bf16, Bf16)
FORWARD(f16, F16)
FORWARD(f32, float)
