// Scores, selection per row and packed masks in one pass over the weights.
//
// Computes: of each row the ks[level] smallest scores go, ties by position; one mask a level.
// Launch: a block a row at a time, on a persistent grid: the next row's weights are on their way while this one is
// selected. 32 weights a thread, `32 * ceil(cols / 1024)` threads; dynamic shared memory `2688 * ceil(cols / 1024)`
// bytes.
// Takes: 56 registers (f32: 40) and 3.8 KiB of shared memory besides; nothing is spilt.
// Bytes: sizeof(T) read and 1/8 written a weight and level; norms stay in L1.
// Source: selection by sampling (Floyd and Rivest 1975, "Algorithm 489: SELECT") on the upper halves of the scores'
// bits, then exact among the few scores that share theirs with the threshold. About 21 instructions a weight in rows of
// 4096, 19 in rows of 11008, counted in the machine code for sm_90 (bf16 with norms, one level); 5 are the score.
//
// The upper 16 bits of a score are its key; the row's keys lie in shared memory, two in a word. A sample of a quarter
// of the keys gives a bracket for the key in which the level's count is reached, two exact counts check it (else it is
// halved until it holds), a histogram of the keys within finds that key. Keys below it go, those above stay. Of the
// scores of the key itself, the lower halves decide; these are compared all with all while they are few (they are 0.2%
// of a row), and found by bisection when they are many. 16-bit weights without norms are their own keys: equal keys are
// ties, which go by position after a scan.
#include "common.cuh"

namespace rows {

constexpr u32 VECTORS = 4; // of 8 weights, a thread
// Of a thread's keys in shared memory: no two threads of eight meet in a bank.
constexpr u32 STRIDE = VECTORS + 1;
constexpr u32 SAMPLE_BINS = 512; // of 64 keys
constexpr u32 BINS = 256;        // of one key
constexpr u32 FEW = 128;         // scores that are compared all with all
constexpr u32 MOST_WARPS = 16;
constexpr u32 PADDING = 0x7fff7fffu; // keys of no weight: never below anything

struct Pick {
    u32 bin, need, count;
};

struct alignas(16) Shared {
    u32 sample[SAMPLE_BINS];
    u32 bins[BINS];
    u32 few[FEW];
    u32 ties[VECTORS * MOST_WARPS]; // per vector and warp, those before
    u32 totals[3];                  // of counts: one in use, one being read, one clear
    u32 lo, hi;                     // the bracket
    Pick pick;
    u32 listed, highest, inverse_lowest;
};

/// Adds up over the block, with one barrier: three cells take turns.
struct Counter {
    u32* totals;
    u32 turn;

    __device__ __forceinline__ u32 sum(u32 value) {
        value = __reduce_add_sync(ALL, value);
        if (threadIdx.x % WARP == 0) atomicAdd(&totals[turn], value);
        __syncthreads();
        const u32 total = totals[turn];
        // Read by all before this barrier, and used again after the next one.
        if (threadIdx.x == 0) totals[turn == 0 ? 2 : turn - 1] = 0;
        turn = turn == 2 ? 0 : turn + 1;
        return total;
    }
};

/// Which of this thread's keys are below a bound of at most 0x8000: bit `8 v + i` for key `i` of vector `v`. The
/// subtraction leaves the upper bit of each half set where it is; a byte permutation spreads those of four keys over a
/// byte each, from which each takes its place. 17 instructions for 16 keys.
struct Below {
    u32 limit, bits;

    __device__ __forceinline__ explicit Below(u32 bound) : limit((0x7fffu + bound) * 0x10001u), bits(0) {}

    /// Vectors `2 pair` and the next.
    __device__ __forceinline__ void add(u32 pair, const uint4& a, const uint4& b) {
        u32 both = 0;
#pragma unroll
        for (u32 h = 0; h < 4; h++)
            both |= permute(limit - word_of(a, h), limit - word_of(b, h), 0xfbd9) & 0x02020101u << (2 * h);
        bits |= ((both | both >> 16) & 0xffffu) << (16 * pair);
    }
};

__device__ __forceinline__ u32 below(const uint4* keys, u32 bound) {
    Below first(bound);
#pragma unroll
    for (u32 pair = 0; pair < VECTORS / 2; pair++) {
        first.add(pair, keys[2 * pair], keys[2 * pair + 1]);
    }
    return first.bits;
}

struct Two {
    u32 first, second;
};

__device__ __forceinline__ Two below(const uint4* keys, u32 one, u32 other) {
    Below first(one), second(other);
#pragma unroll
    for (u32 pair = 0; pair < VECTORS / 2; pair++) {
        const uint4 a = keys[2 * pair], b = keys[2 * pair + 1];
        first.add(pair, a, b);
        second.add(pair, a, b);
    }
    return {first.bits, second.bits};
}

/// The column of bit `e` of this thread's masks.
__device__ __forceinline__ u32 column(u32 e) { return 8 * (threadIdx.x + (e / 8) * blockDim.x) + e % 8; }

/// Where the key of the `k`-th smallest of `cols` scores should be, by one warp: 2.5 standard deviations of its rank in
/// the sample to either side. The lower half of the lanes looks for one end and the upper half for the other: the 16
/// bins in which it lies, the bin, and linear within.
__device__ __forceinline__ void bracket(Shared& s, u32 k, u32 cols, u32 infinite) {
    const u32 lane = threadIdx.x % WARP, half = lane / 16;
    u32 sum = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const uint4 four = reinterpret_cast<const uint4*>(s.sample)[4 * lane + i];
        sum += four.x + four.y + four.z + four.w;
    }
    const u32 inclusive = inclusive_scan(sum);
    const float samples = static_cast<float>(cols / 4),
                share = about_quotient(static_cast<float>(k), static_cast<float>(cols));
    const float centre = samples * share, reach = about_root(0.75f * centre * (1 - share)) * 2.5f + 2;
    const u32 total = cols / 4, low = static_cast<u32>(max(centre - reach, 0.0f)),
              high = static_cast<u32>(centre + reach);
    const u32 low_at = __ballot_sync(ALL, inclusive > low), high_at = __ballot_sync(ALL, inclusive > high);
    const u32 rank = half ? high : low, reached = half ? high_at : low_at, at = reached ? __ffs(reached) - 1 : 0;
    const u32 count = s.sample[16 * at + lane % 16];
    u32 end = count;
#pragma unroll
    for (u32 step = 1; step < 16; step *= 2) {
        const u32 other = __shfl_up_sync(ALL, end, step);
        end += lane % 16 >= step ? other : 0;
    }
    const u32 before_all = __shfl_sync(ALL, inclusive, at == 0 ? 0 : at - 1);
    end += at == 0 ? 0 : before_all;
    const u32 before = end - count;
    if (end > rank && before <= rank) {
        const float within = about_quotient(static_cast<float>(rank - before), static_cast<float>(count));
        const u32 key = 64 * (16 * at + lane % 16) + static_cast<u32>(64 * within);
        if (half) {
            s.hi = min(key + 8, infinite); // above `lo` in any case
        } else {
            s.lo = centre <= reach ? 0 : min(key, infinite - 1);
        }
    }
    if (lane == 0 && high >= total) s.hi = infinite;
}

/// The bin in which `k` is reached, `before` being below the first, by one warp.
__device__ __forceinline__ void pick_bin(Shared& s, u32 k, u32 before) {
    const u32 lane = threadIdx.x % WARP;
    const uint4 a = reinterpret_cast<const uint4*>(s.bins)[2 * lane],
                b = reinterpret_cast<const uint4*>(s.bins)[2 * lane + 1];
    const u32 counts[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    u32 sum = 0;
#pragma unroll
    for (u32 i = 0; i < 8; i++) sum += counts[i];
    const u32 inclusive = before + inclusive_scan(sum);
    const u32 reached = __ballot_sync(ALL, inclusive >= k);
    if (lane == static_cast<u32>(__ffs(reached)) - 1) {
        u32 end = inclusive - sum;
        Pick pick = {0, 0, 0};
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            if (end < k) pick = {8 * lane + i, k - end, counts[i]};
            end += counts[i];
        }
        s.pick = pick;
    }
}

/// The first `need` of the set bits of the whole block, by column.
__device__ __forceinline__ u32 first_by_position(Shared& s, u32 bits, u32 need) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    // Two counts of at most 256 in each half.
    const u32 low = __popc(bits & 0xffu) | __popc(bits & 0xff00u) << 16;
    const u32 high = __popc(bits & 0xff0000u) | __popc(bits & 0xff000000u) << 16;
    const u32 low_to = inclusive_scan(low), high_to = inclusive_scan(high);
    if (lane == WARP - 1) {
        s.ties[warp] = low_to & 0xffffu;
        s.ties[warps + warp] = low_to >> 16;
        s.ties[2 * warps + warp] = high_to & 0xffffu;
        s.ties[3 * warps + warp] = high_to >> 16;
    }
    __syncthreads();
    if (warp == 0) {
        const u32 all = VECTORS * warps, a = lane < all ? s.ties[lane] : 0,
                  b = WARP + lane < all ? s.ties[WARP + lane] : 0;
        const u32 a_to = inclusive_scan(a), b_to = __shfl_sync(ALL, a_to, WARP - 1) + inclusive_scan(b);
        if (lane < all) s.ties[lane] = a_to - a;
        if (WARP + lane < all) s.ties[WARP + lane] = b_to - b;
    }
    __syncthreads();
    const u32 low_from = low_to - low, high_from = high_to - high;
    const u32 from[VECTORS] = {low_from & 0xffffu, low_from >> 16, high_from & 0xffffu, high_from >> 16};
    u32 first = 0;
#pragma unroll
    for (u32 v = 0; v < VECTORS; v++) {
        const u32 before = s.ties[v * warps + warp] + from[v];
        if (before < need) first |= lowest_bits(bits >> (8 * v) & 0xffu, need - before) << (8 * v);
    }
    return first;
}

/// A row's weights, for the lower halves of a few scores.
template <class T>
struct Row {
    const T* w;
    const float* norms;

    __device__ __forceinline__ u32 low(u32 e) const { return score_at(w, norms, 0, column(e)) & 0xffffu; }
};

struct Many {
    u32 go, turn;
};

/// Of many scores that share a key (`bits`), those that go: bisection of the lower halves, then ties by position. Not
/// inlined, as its registers would count for all; by value, as references would lie in memory.
template <class T>
__device__ __noinline__ Many among_many(Shared& s, Counter counter, Row<T> row, u32 bits, u32 need) {
    u32 lowest = 0xffffu, highest = 0;
    for (u32 rest = bits; rest; rest &= rest - 1) {
        const u32 low = row.low(__ffs(rest) - 1);
        lowest = min(lowest, low);
        highest = max(highest, low);
    }
    if (bits) {
        atomicMax(&s.highest, highest);
        atomicMax(&s.inverse_lowest, 0xffffu - lowest);
    }
    __syncthreads();
    // Fewer than `need` are below `lo`, and as many at least below `hi`.
    u32 lo = 0xffffu - s.inverse_lowest, hi = s.highest + 1, below_lo = 0;
    while (hi - lo > 1) {
        const u32 mid = (lo + hi) / 2;
        u32 count = 0;
        for (u32 rest = bits; rest; rest &= rest - 1) count += row.low(__ffs(rest) - 1) < mid;
        count = counter.sum(count);
        (count < need ? lo : hi) = mid;
        below_lo = count < need ? count : below_lo;
    }
    u32 go = 0, ties = 0;
    for (u32 rest = bits; rest; rest &= rest - 1) {
        const u32 low = row.low(__ffs(rest) - 1), bit = rest & -rest;
        go |= low < lo ? bit : 0;
        ties |= low == lo ? bit : 0;
    }
    go |= first_by_position(s, ties, need - below_lo);
    if (threadIdx.x == 0) s.highest = s.inverse_lowest = 0; // read by all before the barriers of the scan
    return {go, counter.turn};
}

/// Packs the upper halves of eight scores.
__device__ __forceinline__ uint4 pack(const u32 (&keys)[8]) {
    return {permute(keys[0], keys[1], 0x7632), permute(keys[2], keys[3], 0x7632), permute(keys[4], keys[5], 0x7632),
            permute(keys[6], keys[7], 0x7632)};
}

/// Tells of the first of the thread's scores that are not finite.
__device__ __noinline__ void tell(const u16* keys_at, u64* bad, u64 start, u32 cols, u32 infinite) {
#pragma unroll 1
    for (u32 e = 0; e < 8 * VECTORS && column(e) < cols; e++) {
        if (keys_at[e] >= infinite) {
            atomicMin(bad, start + column(e));
            return;
        }
    }
}

template <class T, bool SCORED>
__device__ __forceinline__ void select(Shared& s, uint4* dynamic, const T* w, const float* norms, u64* masks, u64* bad,
                                       u32 rows, u32 cols, const u32* ks, u32 levels) {
    const u32 tid = threadIdx.x, threads = blockDim.x, vectors = cols / 8, words = words_of(cols);
    // The thread's keys, and the bytes of the mask.
    uint4* const keys = dynamic + STRIDE * tid;
    const u16* const keys_at = reinterpret_cast<const u16*>(keys);
    u64* const marks = reinterpret_cast<u64*>(dynamic + STRIDE * threads);
    constexpr bool EXACT = !SCORED && sizeof(T) == 2;
    // Without norms, a 16-bit float but for its sign is the key itself.
    constexpr u32 infinite = EXACT && Is<T>::F16 ? 0x7c00u : INFINITE >> 16;

    const uint4 zeros = {0, 0, 0, 0};
    for (u32 i = tid; i < SAMPLE_BINS / 4; i += threads) reinterpret_cast<uint4*>(s.sample)[i] = zeros;
    for (u32 i = tid; i < BINS / 4; i += threads) reinterpret_cast<uint4*>(s.bins)[i] = zeros;
    for (u32 v = 0; v < VECTORS; v++) keys[v] = {PADDING, PADDING, PADDING, PADDING};
    if (tid < 3) s.totals[tid] = 0;
    if (tid == 0) s.listed = s.highest = s.inverse_lowest = 0;
    __syncthreads();
    Counter counter = {s.totals, 0};

    // Longer ones would take the registers of another block.
    constexpr bool AHEAD = sizeof(T) == 2;
    Vector<T> ahead[VECTORS];
    auto fetch = [&](u32 row) {
        const T* from = w + static_cast<u64>(row) * cols + 8 * tid;
#pragma unroll
        for (u32 v = 0; v < VECTORS; v++, from = settled(from + 8 * threads)) {
            if (tid + v * threads < vectors) ahead[v].load(from);
        }
    };
    if (AHEAD && blockIdx.x < rows) fetch(blockIdx.x);
    for (u32 row = blockIdx.x; row < rows; row += gridDim.x) {
        const u64 start = static_cast<u64>(row) * cols;
        u32 highest = 0;
#pragma unroll
        for (u32 v = 0; v < VECTORS; v++) {
            const u32 at = tid + v * threads;
            if (at < vectors) {
                if (!AHEAD) ahead[v].load(w + start + 8 * at);
                uint4 four;
                if (EXACT) {
                    const uint4 raw = ahead[v].raw[0];
                    four = {raw.x & PADDING, raw.y & PADDING, raw.z & PADDING, raw.w & PADDING};
                } else {
                    u32 scores[8];
                    ahead[v].scores(SCORED ? norms + 8 * at : nullptr, scores);
                    four = pack(scores);
                }
                keys[v] = four;
                atomicAdd(&s.sample[four.x >> 6 & 0x1ff], 1);
                atomicAdd(&s.sample[four.x >> 22], 1);
                highest = highest_halves(highest_halves(highest, four.x, four.y), four.z, four.w);
            }
        }
        if (AHEAD && gridDim.x < rows - row) fetch(row + gridDim.x);
        const bool spoilt = (highest & 0xffffu) >= infinite || highest >> 16 >= infinite;
        if (__syncthreads_or(spoilt)) {
            if (spoilt) tell(keys_at, bad, start, cols, infinite);
            for (u32 i = tid; i < SAMPLE_BINS / 4; i += threads) reinterpret_cast<uint4*>(s.sample)[i] = zeros;
            __syncthreads();
            continue;
        }
        for (u32 level = 0; level < levels; level++) {
            const u32 k = __ldg(ks + level);
            u32 go;
            bool list = false;
            u32 need = 0, count = 0;
            if (k == 0 || k >= cols) {
                go = k == 0 ? 0 : below(keys, infinite);
            } else {
                if (tid < WARP) bracket(s, k, cols, infinite);
                __syncthreads();
                // Fewer than k keys are below `lo`, and as many at least below `hi`, once these are checked.
                u32 lo = s.lo, hi = s.hi;
                const Two two = below(keys, lo, hi);
                u32 below_lo = two.first, below_hi = two.second;
                const u32 counts = counter.sum(__popc(below_lo) | __popc(below_hi) << 16);
                u32 before = counts & 0xffffu;
                if (before >= k) {
                    hi = lo, below_hi = below_lo;
                    lo = 0, below_lo = 0, before = 0;
                } else if (counts >> 16 < k) {
                    lo = hi, below_lo = below_hi, before = counts >> 16;
                    hi = infinite, below_hi = below(keys, infinite);
                }
                while (hi - lo > BINS) {
                    const u32 mid = (lo + hi) / 2, below_mid = below(keys, mid);
                    const u32 count_mid = counter.sum(__popc(below_mid));
                    if (count_mid < k) {
                        lo = mid, below_lo = below_mid, before = count_mid;
                    } else {
                        hi = mid, below_hi = below_mid;
                    }
                }
                const u32 within = below_hi & ~below_lo;
                u32* const bins = s.bins - lo;
                for (u32 rest = within; rest;) {
                    const u32 e = highest_bit(rest);
                    rest ^= 1u << e;
                    atomicAdd(&bins[keys_at[e]], 1);
                }
                __syncthreads();
                if (tid < WARP) pick_bin(s, k, before);
                __syncthreads();
                for (u32 i = tid; i < BINS / 4; i += threads) reinterpret_cast<uint4*>(s.bins)[i] = zeros;
                const u32 key = lo + s.pick.bin;
                need = s.pick.need, count = s.pick.count;
                list = !EXACT && need < count && count <= FEW;
                u32 ties = 0;
                go = below_lo;
                for (u32 rest = within; rest;) {
                    const u32 e = highest_bit(rest), bit = 1u << e, mine = keys_at[e];
                    rest ^= bit;
                    if (mine < key) go |= bit;
                    if (mine == key) ties |= bit;
                }
                const Row<T> weights = {w + start, norms};
                if (need == count) {
                    go |= ties;
                } else if (EXACT) {
                    go |= first_by_position(s, ties, need);
                } else if (!list) {
                    const Many many = among_many(s, counter, weights, ties, need);
                    go |= many.go;
                    counter.turn = many.turn;
                } else {
                    for (; ties; ties &= ties - 1) {
                        const u32 e = __ffs(ties) - 1;
                        s.few[atomicAdd(&s.listed, 1)] = weights.low(e) << 16 | column(e);
                    }
                }
            }
            u8* const bytes = reinterpret_cast<u8*>(marks);
#pragma unroll
            for (u32 v = 0; v < VECTORS; v++) bytes[tid + v * threads] = static_cast<u8>(go >> (8 * v));
            __syncthreads();
            if (list) {
                for (u32 i = tid; i < count; i += threads) {
                    const u32 mine = s.few[i];
                    u32 sooner = 0;
                    for (u32 j = 0; j < count; j++) sooner += s.few[j] < mine;
                    const u32 col = mine & 0xffffu;
                    if (sooner < need) atomicOr(reinterpret_cast<u32*>(marks) + col / 32, 1u << (col % 32));
                }
                if (tid == 0) s.listed = 0;
                __syncthreads();
            }
            u64* const mask = masks + (static_cast<u64>(level) * rows + row) * words;
            for (u32 i = tid; i < words; i += threads) mask[i] = marks[i];
            if (level + 1 == levels) {
                for (u32 i = tid; i < SAMPLE_BINS / 4; i += threads) reinterpret_cast<uint4*>(s.sample)[i] = zeros;
            }
            __syncthreads();
        }
    }
}

} // namespace rows

// 512 threads at most; bounds that leave 56 registers a thread, so that three blocks for 11008 columns are on a
// multiprocessor.
#define SELECT_ROWS(NAME, T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(576, 2)                                                               \
        NAME(const T* w, const float* norms, u64* masks, u64* bad, u32 rows, u32 cols, const u32* ks, u32 levels) {    \
        SHARED(rows::Shared, shared);                                                                                  \
        DYNAMIC_SHARED(dynamic);                                                                                       \
        if (norms) {                                                                                                   \
            rows::select<T, true>(shared, dynamic, w, norms, masks, bad, rows, cols, ks, levels);                      \
        } else {                                                                                                       \
            rows::select<T, false>(shared, dynamic, w, nullptr, masks, bad, rows, cols, ks, levels);                   \
        }                                                                                                              \
    }

SELECT_ROWS(select_rows_bf16, Bf16)
SELECT_ROWS(select_rows_f16, F16)
SELECT_ROWS(select_rows_f32, float)
