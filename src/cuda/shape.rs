//! Sizes of the blocks in which kernels must be launched; any grid computes the same. Tests launch with these, too;
//! `kernels/ABI.md` has all other conditions.

/// The widest row that `select_rows` holds in shared memory.
pub const WIDEST_ROW: usize = 16_384;

/// Threads of a block and bytes of dynamic shared memory for `select_rows`, whose `cols` are at most [`WIDEST_ROW`].
pub fn select_rows(cols: usize) -> (usize, usize) {
    let warps = cols.div_ceil(1024);
    (32 * warps, 2688 * warps)
}

/// Threads of a block and bytes of dynamic shared memory for `sparsegpt_block` with `count` columns.
pub fn sparsegpt_block(count: usize) -> (usize, usize) {
    (256, count * (count + 1) / 2 * size_of::<f32>())
}
