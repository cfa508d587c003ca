// Runs CUDA kernels on a CPU, from the text that nvcc compiles.
//
// Blocks run one after the other. Each thread of a block is a fiber, which runs until it waits: for the block's
// barrier, or for the other lanes of its warp in a collective. Which one runs next is taken from a seed, so that
// results that depend on it differ between seeds. Shared memory holds other bytes before each block and ends where
// memory ends. What a GPU would not report is an error here: a barrier or a collective that not all threads reach, or
// that they reach in different places.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#include <utility>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define LACUNA_EMULATE
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
};

namespace emulate {

constexpr unsigned LANES = 32;
constexpr size_t STACK = 64 << 10, SHARED_BYTES = 64 << 10, PAGE = 4096;

struct Fiber;
#if defined(__x86_64__)
using Context = void*;
extern "C" void lacuna_switch(void** save, void* to);
asm(R"(
.text
.globl lacuna_switch
.hidden lacuna_switch
.type lacuna_switch,@function
lacuna_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#else
using Context = ucontext_t;
#endif

/// Memory of which the last byte is followed by a page that cannot be touched.
class Fenced {
    char* pages = nullptr;
    size_t bytes = 0;

  public:
    Fenced(size_t size) : bytes((size + PAGE - 1) / PAGE * PAGE) {
        void* memory = mmap(nullptr, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        pages = memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
        if (pages) mprotect(pages + bytes, PAGE, PROT_NONE);
    }
    ~Fenced() {
        if (pages) munmap(pages, bytes + PAGE);
    }
    Fenced(const Fenced&) = delete;
    char* end() const { return pages + bytes; }
    size_t size() const { return bytes; }
    bool there() const { return pages != nullptr; }
};

/// What the lanes of a warp lay before each other. Two take turns: nobody is two collectives ahead.
struct Meeting {
    unsigned arrived = 0, kind = 0;
    uint64_t values[LANES];
};

struct Warp {
    Meeting meetings[2];
    unsigned turn[LANES] = {};
};

class Machine {
  public:
    dim3 thread{}, block{}, threads{}, blocks{};

    Machine(unsigned size, uint64_t seed, void (*kernel)(void**), void** arguments)
        : seed(seed), state(seed * 0x9e3779b97f4a7c15ull + 1), count(size), kernel(kernel), arguments(arguments),
          stacks(STACK * size), still(SHARED_BYTES), dynamic(SHARED_BYTES), fibers(size), warps(size / LANES) {}

    bool ready() const { return stacks.there() && still.there() && dynamic.there(); }
    const char* error() const { return problem[0] ? problem : nullptr; }

    /// Runs one block; false when something is wrong.
    bool run(size_t dynamic_bytes) {
        poison(still);
        poison(dynamic);
        dynamic_size = (dynamic_bytes + 15) / 16 * 16;
        waiting = finished = 0;
        for (auto& warp : warps) warp = Warp();
        runnable.clear();
        for (unsigned i = 0; i < count; i++) {
            start(i);
            runnable.push_back(i);
        }
        // Each thread of a block waits some thousand times; one that waits for what never comes true does so for ever.
        for (uint64_t turns = 0; !runnable.empty() && !problem[0]; turns++) {
            if (turns > uint64_t{count} << 17) fail("the threads of a block wait for each other without an end");
            current = next();
            thread.x = current;
            enter(current);
        }
        if (!problem[0] && finished < count) {
            fail("%u of %u threads wait at the barrier of line %u, %u have ended, and the others wait for lanes of "
                 "their warp",
                 waiting, count, barrier_line, finished);
        }
        return !problem[0];
    }

    /// All threads of the block, and whether `flag` is set for any.
    bool barrier(unsigned line, bool flag) {
        if (waiting == 0) {
            barrier_line = line;
            any = false;
        } else if (line != barrier_line) {
            fail("threads wait at the barriers of line %u and of line %u", barrier_line, line);
        }
        any |= flag;
        if (++waiting < count) {
            held.push_back(current);
            leave();
        } else {
            waiting = 0;
            result = any;
            runnable.insert(runnable.end(), held.begin(), held.end());
            held.clear();
            pause();
        }
        return result;
    }

    /// What each lane of the warp brings.
    const uint64_t* meet(unsigned mask, unsigned kind, uint64_t value) {
        if (mask != 0xffffffffu) fail("a collective of the lanes %08x; only whole warps are emulated", mask);
        const unsigned id = current, lane = id % LANES, first = id - lane;
        Warp& warp = warps[id / LANES];
        Meeting& meeting = warp.meetings[warp.turn[lane]++ % 2];
        if (meeting.arrived == 0) meeting.kind = kind;
        if (meeting.kind != kind) fail("lanes of a warp are in the collectives %u and %u", meeting.kind, kind);
        meeting.values[lane] = value;
        if (++meeting.arrived < LANES) {
            leave();
        } else {
            meeting.arrived = 0;
            for (unsigned other = first; other < first + LANES; other++) {
                if (other != id) runnable.push_back(other);
            }
            pause();
        }
        return meeting.values;
    }

    /// Lets another thread go first, now and then.
    void pause() {
        if (seed > 1 && random() % 8 == 0 && !runnable.empty()) {
            runnable.push_back(current);
            leave();
        }
    }

    char* shared(size_t size) { return still.end() - (size + 15) / 16 * 16; }
    char* launched() { return dynamic.end() - dynamic_size; }

    template <class... A>
    void fail(const char* format, A... values) {
        if (!problem[0]) snprintf(problem, sizeof(problem), format, values...);
    }

  private:
    struct Place {
        Context context;
    };

    uint64_t seed, state;
    unsigned count, current = 0, waiting = 0, finished = 0, barrier_line = 0;
    bool any = false, result = false;
    char problem[256] = {};
    void (*kernel)(void**);
    void** arguments;
    Fenced stacks, still, dynamic;
    size_t dynamic_size = 0;
    std::vector<Place> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned> runnable, held;
    Context scheduler{};

    uint64_t random() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state >> 11;
    }

    void poison(Fenced& memory) {
        uint64_t word = random() | 0x8000000000000001ull;
        for (char* at = memory.end() - memory.size(); at < memory.end(); at += sizeof(word)) {
            memcpy(at, &word, sizeof(word));
            word = word * 6364136223846793005ull + 1442695040888963407ull;
        }
    }

    /// By seed: the first of those that can run, the last, or any.
    unsigned next() {
        const size_t at = seed == 0 ? 0 : seed == 1 ? runnable.size() - 1 : random() % runnable.size();
        const unsigned id = runnable[at];
        if (seed == 0) {
            runnable.erase(runnable.begin());
        } else {
            runnable[at] = runnable.back();
            runnable.pop_back();
        }
        return id;
    }

    static void body();
    char* stack_of(unsigned id) { return stacks.end() - STACK * (count - id - 1); }

#if defined(__x86_64__)
    void start(unsigned id) {
        void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack_of(id) - 64) & ~uintptr_t{15});
        *top = reinterpret_cast<void*>(&Machine::body);
        fibers[id].context = top - 6;
    }
    void enter(unsigned id) { lacuna_switch(&scheduler, fibers[id].context); }
    void leave() { lacuna_switch(&fibers[current].context, scheduler); }
#else
    void start(unsigned id) {
        ucontext_t& context = fibers[id].context;
        getcontext(&context);
        context.uc_stack.ss_sp = stack_of(id) - STACK;
        context.uc_stack.ss_size = STACK;
        context.uc_link = nullptr;
        makecontext(&context, &Machine::body, 0);
    }
    void enter(unsigned id) { swapcontext(&scheduler, &fibers[id].context); }
    void leave() { swapcontext(&fibers[current].context, &scheduler); }
#endif
};

inline thread_local Machine* machine = nullptr;

inline void Machine::body() {
    machine->kernel(machine->arguments);
    machine->finished++;
    machine->leave();
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<A*>(arguments[I])...);
}

template <class... A>
void call(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>());
}

enum Kind : unsigned { SYNC, BALLOT, SHUFFLE, UP, XOR, ADD };

template <class T>
uint64_t to_bits(T value) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <class T>
T of_bits(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof(T));
    return value;
}

/// As the device has it: any NaN that arithmetic makes is this one.
inline float canonical(float x) { return x == x ? x : of_bits<float>(0x7fffffff); }

inline float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ff;
    if (exponent == 31) return of_bits<float>(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0) return of_bits<float>(sign | to_bits(float(mantissa) * 0x1p-24f));
    return of_bits<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

/// To the nearest, of two the even one.
inline uint16_t float_to_bf16(float x) {
    const uint32_t bits = to_bits(x);
    return x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fff;
}

inline uint16_t float_to_half(float x) {
    const uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (x != x) return 0x7fff;
    if (magnitude >= 0x47800000) return sign | 0x7c00;
    // Below 2^-14 the last place is always 2^-24.
    if (magnitude < 0x38800000) return sign | uint16_t(nearbyintf(of_bits<float>(magnitude) * 0x1p24f));
    return sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

inline unsigned permute(unsigned a, unsigned b, unsigned selector) {
    const uint64_t both = uint64_t(b) << 32 | a;
    unsigned out = 0;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned nibble = selector >> (4 * i) & 15, byte = both >> (8 * (nibble & 7)) & 255;
        out |= (nibble & 8 ? (byte & 128 ? 255 : 0) : byte) << (8 * i);
    }
    return out;
}

inline unsigned highest_halves(unsigned a, unsigned b) {
    const unsigned low = (a & 0xffff) > (b & 0xffff) ? a : b, high = a >> 16 > b >> 16 ? a : b;
    return (low & 0xffff) | (high & 0xffff0000);
}

} // namespace emulate

#define threadIdx (emulate::machine->thread)
#define blockIdx (emulate::machine->block)
#define blockDim (emulate::machine->threads)
#define gridDim (emulate::machine->blocks)
#define SHARED(Type, name) Type& name = *reinterpret_cast<Type*>(emulate::machine->shared(sizeof(Type)))
#define DYNAMIC_SHARED(name) uint4* const name = reinterpret_cast<uint4*>(emulate::machine->launched())
#define __syncthreads() (emulate::machine->barrier(__LINE__, false))
#define __syncthreads_or(flag) (emulate::machine->barrier(__LINE__, (flag) != 0))

inline void __syncwarp() { emulate::machine->meet(~0u, emulate::SYNC, 0); }

inline unsigned __ballot_sync(unsigned mask, bool flag) {
    const uint64_t* flags = emulate::machine->meet(mask, emulate::BALLOT, flag);
    unsigned bits = 0;
    for (unsigned i = 0; i < emulate::LANES; i++) bits |= unsigned(flags[i]) << i;
    return bits;
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
    const uint64_t* values = emulate::machine->meet(mask, emulate::ADD, value);
    unsigned sum = 0;
    for (unsigned i = 0; i < emulate::LANES; i++) sum += unsigned(values[i]);
    return sum;
}

template <class T>
T __shfl_sync(unsigned mask, T value, unsigned from) {
    return emulate::of_bits<T>(
        emulate::machine->meet(mask, emulate::SHUFFLE, emulate::to_bits(value))[from % emulate::LANES]);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned step) {
    const unsigned lane = emulate::machine->thread.x % emulate::LANES;
    const uint64_t* values = emulate::machine->meet(mask, emulate::UP, emulate::to_bits(value));
    return emulate::of_bits<T>(values[lane >= step ? lane - step : lane]);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned step) {
    const unsigned lane = emulate::machine->thread.x % emulate::LANES;
    return emulate::of_bits<T>(emulate::machine->meet(mask, emulate::XOR, emulate::to_bits(value))[lane ^ step]);
}

template <class T, class F>
T emulate_atomic(T* at, F change) {
    emulate::machine->pause();
    const T old = *at;
    *at = change(old);
    return old;
}

template <class T>
T atomicAdd(T* at, decltype(T()) value) {
    return emulate_atomic(at, [=](T old) { return old + value; });
}
template <class T>
T atomicOr(T* at, decltype(T()) value) {
    return emulate_atomic(at, [=](T old) { return old | value; });
}
template <class T>
T atomicMax(T* at, decltype(T()) value) {
    return emulate_atomic(at, [=](T old) { return old > value ? old : value; });
}
template <class T>
T atomicMin(T* at, decltype(T()) value) {
    return emulate_atomic(at, [=](T old) { return old < value ? old : value; });
}

template <class T>
T __ldg(const T* at) {
    if (reinterpret_cast<uintptr_t>(at) % alignof(T) != 0)
        emulate::machine->fail("a load of %zu bytes that is not aligned", sizeof(T));
    return *at;
}

template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
    return a < b ? b : a;
}

inline float __uint_as_float(unsigned bits) { return emulate::of_bits<float>(bits); }
inline unsigned __float_as_uint(float x) { return unsigned(emulate::to_bits(x)); }
inline float __fmul_rn(float a, float b) { return emulate::canonical(a * b); }
inline float __fadd_rn(float a, float b) { return emulate::canonical(a + b); }
inline float __fsub_rn(float a, float b) { return emulate::canonical(a - b); }
inline float __fdiv_rn(float a, float b) { return emulate::canonical(a / b); }
inline float __fmaf_rn(float a, float b, float c) { return emulate::canonical(fmaf(a, b, c)); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __ffs(unsigned bits) { return __builtin_ffs(int(bits)); }
inline int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
