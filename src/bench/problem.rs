//! The operations that are run, and inputs that find mistakes.

use super::rounded;
use crate::mask::{Mask, count_of};
use candle_core::DType;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fmt;

/// An operation with a kernel.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Op {
    /// A copy of the weights: what memory can do.
    Copy,
    /// Selection per row at these counts, ascending.
    Rows(Vec<u32>),
    /// Selection per layer at this count.
    Layer(usize),
    /// The `n` largest of each `m` stay.
    NofM(usize, usize),
    /// A mask of half of the weights, applied.
    Apply,
    /// Sums of squares of each column.
    Sums,
    /// The weights, as activations, times themselves.
    Gram,
    /// The columns of a block of SparseGPT.
    SparseGpt,
    /// 2:4 weights to values and places.
    Compress24,
    /// Products with vectors, of 2:4 weights as they are or compressed.
    Matvec { batch: usize, compressed: bool },
    /// Products in bf16 by NVIDIA's libraries, with any number of vectors.
    Matmul { batch: usize, compressed: bool },
    /// Weights from MXFP4.
    Mxfp4,
    /// Softmax of scores, of which the last `queries` rows of each head see the keys before them.
    Softmax { queries: usize, window: Option<usize> },
    /// Rows of heads, rotated by their position in sequences of `seq` that begin at `first`.
    Rope { seq: usize, first: usize },
    /// The weights, as gates, times as many others.
    SwiGlu,
}

/// The factor of scores before their softmax.
pub(super) const SOFTMAX_SCALE: f32 = 0.3;

impl Op {
    /// The dense product that a product of compressed weights is compared with.
    pub(super) fn dense(&self) -> Option<Op> {
        match *self {
            Op::Matvec { batch, compressed: true } => Some(Op::Matvec { batch, compressed: false }),
            Op::Matmul { batch, compressed: true } => Some(Op::Matmul { batch, compressed: false }),
            _ => None,
        }
    }
}

/// The kind of the values in an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// Bell-shaped, as weights are.
    Normal,
    /// Eight different values only.
    Ties,
    /// Zeros, some of them negative.
    Zeros,
    /// Below the smallest normal number, so that scores underflow.
    Subnormal,
    /// With one NaN.
    Nan,
    /// With one infinity.
    Infinite,
}

/// An operation and its inputs.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) op: Op,
    pub(super) data: Data,
    /// The type in which weights are stored.
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// `(rows, cols)`, exact in `dtype`; of MXFP4 a value from 0 to 255 for each byte of the blocks.
    pub(super) weights: Vec<f32>,
    /// `(cols,)` where scores have norms; of MXFP4 a scale for each group.
    pub(super) norms: Option<Vec<f32>>,
    /// `(batch, cols)` for products, `(cols, cols)` the factor of SparseGPT; sinks `(heads,)` or none of a softmax, cos and then sin
    /// of a rotation, the values that gates multiply.
    pub(super) other: Vec<f32>,
    /// The weights that are pruned, for [`Op::Apply`] and [`Op::SparseGpt`].
    pub(super) mask: Option<Mask>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { op, data, dtype, rows, cols, norms, .. } = self;
        let norms = if norms.is_some() { " with norms" } else { "" };
        write!(f, "{op:?} of {data:?} {rows} x {cols} {}{norms}", dtype.as_str())
    }
}

/// The result of an operation.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Output {
    Masks(Vec<Mask>),
    /// The flat index of the first score that is not finite.
    Bad(u64),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Compressed(Vec<u16>, Vec<u8>),
}

impl Output {
    /// Makes it wrong in one place.
    #[cfg(test)]
    pub(super) fn spoil(&mut self) {
        match self {
            Output::Masks(masks) => {
                for mask in masks {
                    let (rows, cols) = mask.shape();
                    let before = mask.clone();
                    let last = |row, col| (row, col) == (rows - 1, cols - 1);
                    *mask = Mask::from_fn(rows, cols, |row, col| before.is_pruned(row, col) != last(row, col));
                }
            }
            Output::Bad(at) => *at += 1,
            Output::F32(values) => values.iter_mut().for_each(|value| *value = *value * 1.01 + 1.0),
            Output::F64(values) => values.iter_mut().for_each(|value| *value = *value * 1.01 + 1.0),
            Output::Compressed(_, index) => index.iter_mut().for_each(|byte| *byte ^= 1),
        }
    }
}

/// Several problems that are timed together.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) problems: Vec<Problem>,
    /// Copies of each.
    pub(super) copies: usize,
}

impl Problem {
    pub(super) fn new(
        op: Op,
        data: Data,
        dtype: DType,
        (rows, cols): (usize, usize),
        norms: bool,
        seed: u64,
    ) -> Problem {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Twelve uniform numbers make a bell; four bytes of one draw serve for four.
        let mut normal = || {
            let sum: u32 = (0..3).flat_map(|_| rng.random::<u32>().to_le_bytes()).map(u32::from).sum();
            (sum as f32 - 1530.0) / 256.0
        };
        let scale = if data == Data::Subnormal { 1e-39 } else { 0.02 };
        let value = |normal: f32| match data {
            Data::Ties => (normal * 2.0).round() / 8.0,
            Data::Zeros => 0.0f32.copysign(normal),
            _ => normal * scale,
        };
        let mut weights: Vec<f32> = (0..rows * cols).map(|_| rounded(dtype, value(normal()))).collect();
        if let (Data::Nan | Data::Infinite, false) = (data, weights.is_empty()) {
            let at = weights.len() * 2 / 3;
            weights[at] = if data == Data::Nan { f32::NAN } else { f32::NEG_INFINITY };
        }
        let norms = norms.then(|| (0..cols).map(|_| normal().abs() * 10.0 + 0.01).collect());
        let mut problem = Problem { op, data, dtype, rows, cols, weights, norms, other: Vec::new(), mask: None };
        match problem.op {
            Op::Apply => problem.mask = Some(Mask::from_fn(rows, cols, |row, col| (row * 31 + col * 17) % 7 < 4)),
            Op::SparseGpt => {
                problem.mask = Some(Mask::from_fn(rows, cols, |row, col| (row * 31 + col * 17) % 7 < 4));
                // Dominant on the diagonal, as factors of gram matrices are.
                let upper = |at: usize, x: f32| match (at / cols).cmp(&(at % cols)) {
                    std::cmp::Ordering::Less => x * 0.05,
                    std::cmp::Ordering::Equal => 1.0 + x.abs(),
                    std::cmp::Ordering::Greater => 0.0,
                };
                problem.other = (0..cols * cols).map(|at| upper(at, normal())).collect();
            }
            Op::Compress24 => problem.make_two_of_four(seed),
            Op::Matvec { batch, .. } | Op::Matmul { batch, .. } => {
                problem.make_two_of_four(seed);
                problem.other = (0..batch * cols).map(|_| rounded(DType::BF16, normal())).collect();
            }
            Op::Mxfp4 => {
                let mut byte = || (normal().abs() * 85.0) as u8;
                problem.weights = (0..rows * cols / 2).map(|_| f32::from(byte())).collect();
                problem.norms = Some((0..rows * cols / 32).map(|_| f32::from(byte().clamp(100, 150))).collect());
            }
            Op::Softmax { queries, window } => {
                problem.weights.iter_mut().for_each(|score| *score = rounded(dtype, *score * 500.0));
                let heads = if window.is_some() { rows / queries } else { 0 };
                problem.other = (0..heads).map(|_| normal() * 3.0).collect();
            }
            Op::Rope { seq, first } => {
                let angles: Vec<f32> = (0..(first + seq) * cols / 2).map(|_| normal() * 3.0).collect();
                problem.other = angles.iter().map(|x| x.cos()).chain(angles.iter().map(|x| x.sin())).collect();
            }
            Op::SwiGlu => problem.other = (0..rows * cols).map(|_| rounded(dtype, normal())).collect(),
            _ => {}
        }
        problem
    }

    /// Keeps two of each four at random, and fewer in one group of eight.
    fn make_two_of_four(&mut self, seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(!seed);
        for weights in self.weights.chunks_mut(4) {
            let [places, fewer] = rng.random::<u16>().to_le_bytes().map(usize::from);
            let (first, second) = (places % 4, (places % 4 + 1 + places / 4 % 3) % 4);
            let kept = |at: usize| (at == first && fewer >= 8) || (at == second && fewer >= 32);
            weights.iter_mut().enumerate().filter(|(at, _)| !kept(*at)).for_each(|(_, weight)| *weight = 0.0);
        }
    }

    /// The fewest bytes to read and write.
    pub(super) fn bytes(&self) -> u64 {
        let (count, words) = (self.rows * self.cols, self.rows * self.cols.div_ceil(64) * 8);
        let weights = count * self.dtype.size_in_bytes();
        let bytes = match &self.op {
            Op::Copy => 2 * weights,
            Op::Rows(ks) => weights + words * ks.len(),
            // Three passes find the threshold, one counts ties, one packs.
            Op::Layer(_) => weights + words,
            Op::NofM(..) => weights + words,
            Op::Apply => 2 * weights + words,
            Op::Sums => weights,
            Op::Gram => weights + self.cols * self.cols * size_of::<f32>(),
            Op::SparseGpt => 3 * weights + words,
            Op::Compress24 => weights + weights / 2 + count / 8,
            Op::Matvec { compressed: false, .. } => weights,
            Op::Matvec { compressed: true, .. } => weights / 2 + count / 8,
            Op::Matmul { batch, compressed } => {
                let vectors = batch * (self.rows + self.cols) * self.dtype.size_in_bytes();
                vectors + if *compressed { weights / 2 + count / 8 } else { weights }
            }
            Op::Mxfp4 => count / 2 + count / 32 + weights,
            // Half of the keys are seen.
            Op::Softmax { .. } => weights + weights / 2,
            Op::Rope { .. } => 2 * weights,
            Op::SwiGlu => 3 * weights,
        };
        bytes as u64
    }
}

/// Ten counts of `n`, ascending.
fn ten(n: usize) -> Vec<u32> {
    (1..=10).map(|i| count_of(n, f64::from(i) / 11.0) as u32).collect()
}

/// Problems that find mistakes: odd and huge widths, one row, ties, zeros, numbers that are none.
pub(super) fn checks(seed: u64) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |op: Op, data, dtype, shape, norms| {
        let own = seed.wrapping_mul(1000).wrapping_add(problems.len() as u64);
        problems.push(Problem::new(op, data, dtype, shape, norms, own));
    };
    let all = [Data::Normal, Data::Ties, Data::Zeros, Data::Subnormal, Data::Nan, Data::Infinite];
    for data in all {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            for (rows, cols) in [(1, 1), (3, 17), (37, 1000), (5, 4096), (2, 16_392), (1, 70_001)] {
                add(Op::Rows(ten(cols)), data, dtype, (rows, cols), cols % 2 == 0);
            }
            add(Op::Rows(vec![0, 5, 64]), data, dtype, (9, 64), true);
            for (rows, cols) in [(1, 33), (67, 520)] {
                add(Op::Layer(rows * cols * 3 / 5), data, dtype, (rows, cols), rows > 1);
            }
            for (n, m) in [(2, 4), (4, 8), (3, 5), (1, 32)] {
                add(Op::NofM(n, m), data, dtype, (11, m * 23), n != 2);
            }
        }
    }
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for (rows, cols) in [(1, 7), (65, 200), (33, 4096)] {
            add(Op::Apply, Data::Normal, dtype, (rows, cols), false);
        }
        for (rows, cols) in [(1, 5), (63, 100), (200, 1030)] {
            add(Op::Sums, Data::Normal, dtype, (rows, cols), false);
            add(Op::Gram, Data::Normal, dtype, (rows, cols.min(200)), false);
        }
    }
    for (rows, cols) in [(1, 128), (77, 100), (300, 128)] {
        add(Op::SparseGpt, Data::Normal, DType::F32, (rows, cols), false);
    }
    for (rows, cols) in [(3, 16), (32, 4096), (5, 11_008)] {
        add(Op::Compress24, Data::Normal, DType::BF16, (rows, cols), false);
        for compressed in [false, true] {
            for batch in [1, 16] {
                add(Op::Matvec { batch, compressed }, Data::Normal, DType::BF16, (rows, cols), false);
            }
        }
    }
    add(Op::Mxfp4, Data::Normal, DType::BF16, (5, 96), false);
    add(Op::Mxfp4, Data::Normal, DType::F32, (64, 2880), false);
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for (queries, keys, window) in
            [(1, 1, None), (5, 13, None), (64, 64, Some(7)), (33, 2048, None), (40, 333, Some(50))]
        {
            add(Op::Softmax { queries, window }, Data::Normal, dtype, (3 * queries, keys), false);
        }
        for (seq, first, cols) in [(1, 0, 2), (7, 5, 64), (3, 100, 30)] {
            add(Op::Rope { seq, first }, Data::Normal, dtype, (4 * seq, cols), false);
        }
        for shape in [(1, 1), (3, 1027), (64, 512)] {
            add(Op::SwiGlu, Data::Normal, dtype, shape, false);
        }
    }
    // Last, as they call libraries of others. Rows and columns are multiples of 16, batches of 8.
    for (rows, cols, batch) in [(16, 64, 8), (48, 208, 24), (336, 4096, 16), (80, 11_008, 40), (2064, 144, 264)] {
        for compressed in [false, true] {
            add(Op::Matmul { batch, compressed }, Data::Normal, DType::BF16, (rows, cols), false);
        }
    }
    problems
}

/// The operations that are timed, on the linears of a model of this shape.
pub(super) fn timings((hidden, intermediate, blocks): (usize, usize, usize), seed: u64) -> Vec<Case> {
    let square = (hidden, hidden);
    let linears =
        [square, square, square, square, (intermediate, hidden), (intermediate, hidden), (hidden, intermediate)];
    let all = |name: &str, norms: bool, op: &dyn Fn(usize) -> Op| {
        let problem = |(i, &shape): (usize, &(usize, usize))| {
            Problem::new(op(shape.1), Data::Normal, DType::BF16, shape, norms, seed + i as u64)
        };
        let problems = linears.iter().enumerate().map(problem).collect();
        Case { name: format!("{name}, {blocks} blocks"), problems, copies: blocks }
    };
    let one = |name: &str, op: Op, dtype: DType, (rows, cols): (usize, usize)| {
        let problem = Problem::new(op, Data::Normal, dtype, (rows, cols), false, seed);
        Case { name: format!("{name}, {rows} x {cols}"), problems: vec![problem], copies: 4 }
    };
    let half = |cols: usize| vec![(cols / 2) as u32];
    let product = |batch: usize, compressed: bool| {
        let name = if compressed { "2:4 product" } else { "dense product" };
        one(&format!("{name}, batch {batch}"), Op::Matvec { batch, compressed }, DType::BF16, (intermediate, hidden))
    };
    let matmul = |batch: usize, compressed: bool| {
        let name = if compressed { "2:4 matmul" } else { "dense matmul" };
        one(&format!("{name}, {batch} tokens"), Op::Matmul { batch, compressed }, DType::BF16, (intermediate, hidden))
    };
    vec![
        all("copy", false, &|_| Op::Copy),
        all("Wanda 50% per row", true, &|cols| Op::Rows(half(cols))),
        all("Wanda, ten sparsities", true, &|cols| Op::Rows(ten(cols))),
        all("magnitude 50% per row", false, &|cols| Op::Rows(half(cols))),
        all("Wanda 2:4", true, &|_| Op::NofM(2, 4)),
        all("Wanda 4:8", true, &|_| Op::NofM(4, 8)),
        all("apply mask", false, &|_| Op::Apply),
        one("magnitude 50% per layer", Op::Layer(hidden * intermediate / 2), DType::BF16, (intermediate, hidden)),
        one("sums of columns", Op::Sums, DType::BF16, (2048, intermediate)),
        one("gram matrix", Op::Gram, DType::BF16, (2048, hidden)),
        one("SparseGPT block", Op::SparseGpt, DType::F32, (intermediate, hidden.min(128))),
        one("compress 2:4", Op::Compress24, DType::BF16, (intermediate, hidden)),
        product(1, false),
        product(1, true),
        product(16, false),
        product(16, true),
        one("causal softmax", Op::Softmax { queries: 2048, window: None }, DType::BF16, (8 * 2048, 2048)),
        one("rotary embedding", Op::Rope { seq: 2048, first: 0 }, DType::BF16, (hidden.div_ceil(128) * 2048, 128)),
        one("SwiGLU", Op::SwiGlu, DType::BF16, (2048, intermediate)),
        one("MXFP4", Op::Mxfp4, DType::BF16, (intermediate, hidden)),
        matmul(16, false),
        matmul(16, true),
        matmul(256, false),
        matmul(256, true),
        matmul(4096, false),
        matmul(4096, true),
    ]
}
