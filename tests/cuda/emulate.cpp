// All kernels, for the host: built and loaded by tests/cuda_kernels.rs.

#include "emulate.hpp"

#include "apply_mask.cu"
#include "column_sums.cu"
#include "compress24.cu"
#include "forward.cu"
#include "mxfp4.cu"
#include "select_layer.cu"
#include "select_nofm.cu"
#include "select_rows.cu"
#include "select_rows_any.cu"
#include "sparsegpt.cu"

// Kernels that are wrong, to show that this is seen.
namespace wrong {

struct Shared {
    u32 values[64];
};

/// Reads what another thread writes, without a barrier between.
void no_barrier(u32* out) {
    SHARED(Shared, s);
    s.values[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = s.values[(threadIdx.x + 1) % blockDim.x];
}

void barrier_for_some(u32* out) {
    if (threadIdx.x < 5) __syncthreads();
    out[threadIdx.x] = 1;
}

void different_barriers(u32* out) {
    if (threadIdx.x < 5) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}

void ballot_for_some(u32* out) { out[threadIdx.x] = threadIdx.x % 2 ? __ballot_sync(ALL, true) : 0; }

/// One beyond the end of shared memory.
void beyond_shared(u32* out) {
    SHARED(Shared, s);
    s.values[threadIdx.x] = 0;
    out[threadIdx.x] = s.values[threadIdx.x + 1];
}

void beyond_buffer(u32* out) { out[threadIdx.x + 1] = threadIdx.x; }

} // namespace wrong

namespace {

struct Entry {
    const char* name;
    void (*call)(void**);
};

#define ENTRY(kernel) {#kernel, [](void** arguments) { emulate::call(kernel, arguments); }}
#define TYPES(kernel) ENTRY(kernel##_bf16), ENTRY(kernel##_f16), ENTRY(kernel##_f32)

const Entry ENTRIES[] = {
    TYPES(select_rows),
    TYPES(select_rows_any),
    ENTRY(layer_begin),
    TYPES(layer_count),
    ENTRY(layer_digit),
    TYPES(layer_ties),
    ENTRY(layer_offsets),
    TYPES(layer_mask),
    TYPES(select_nofm),
    ENTRY(apply_mask_16),
    ENTRY(apply_mask_32),
    TYPES(column_sums),
    ENTRY(fold_sums),
    TYPES(causal_softmax),
    TYPES(rope),
    TYPES(swiglu),
    ENTRY(sparsegpt_block),
    ENTRY(compress24_16),
    ENTRY(to_cutlass),
    ENTRY(matvec_bf16),
    ENTRY(matvec_24_bf16),
    ENTRY(mxfp4_dequantise_bf16),
    ENTRY(mxfp4_dequantise_f32),
    ENTRY(wrong::no_barrier),
    ENTRY(wrong::barrier_for_some),
    ENTRY(wrong::different_barriers),
    ENTRY(wrong::ballot_for_some),
    ENTRY(wrong::beyond_shared),
    ENTRY(wrong::beyond_buffer),
};

} // namespace

/// Launches a kernel; its arguments are cells of 8 bytes. 0, or 1 and what is wrong in `error`.
extern "C" int lacuna_launch(const char* name, u32 grid_x, u32 grid_y, u32 block, u64 shared, u64 seed,
                             void** arguments, char* error, u64 room) {
    for (const Entry& entry : ENTRIES) {
        if (strcmp(entry.name, name) != 0) continue;
        emulate::Machine machine(block, seed, entry.call, arguments);
        if (block == 0 || block % emulate::LANES != 0 || block > 1024 || shared > 48 << 10 || !machine.ready()) {
            snprintf(error, room, "%s cannot be launched with %u threads and %llu bytes", name, block, shared);
            return 1;
        }
        emulate::machine = &machine;
        machine.threads = {block, 1, 1};
        machine.blocks = {grid_x, grid_y, 1};
        const u64 blocks = static_cast<u64>(grid_x) * grid_y;
        for (u64 i = 0; i < blocks; i++) {
            const u64 at = seed % 2 ? blocks - 1 - i : i;
            machine.block = {static_cast<u32>(at % grid_x), static_cast<u32>(at / grid_x), 0};
            if (!machine.run(shared)) break;
        }
        emulate::machine = nullptr;
        if (!machine.error()) return 0;
        snprintf(error, room, "%s: %s", name, machine.error());
        return 1;
    }
    snprintf(error, room, "no kernel is called %s", name);
    return 1;
}
