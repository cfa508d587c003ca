//! The CUDA kernels, from the sources that nvcc compiles, against their reference implementations on the CPU: threads run one at a time, in
//! several orders.

mod cuda;
#[path = "common/skip.rs"]
mod skip;

use cuda::{Buffer, Kernel, SEEDS, available};
use half::{bf16, f16};
use lacuna::bench::{shape, twin};
use lacuna::mask::{Mask, Pattern};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

trait Element: Copy {
    const NAME: &'static str;
    fn of(x: f32) -> Self;
    fn wide(self) -> f32;
}

macro_rules! element {
    ($type:ty, $name:literal, $of:expr, $wide:expr) => {
        impl Element for $type {
            const NAME: &'static str = $name;
            fn of(x: f32) -> Self {
                $of(x)
            }
            fn wide(self) -> f32 {
                $wide(self)
            }
        }
    };
}

element!(bf16, "bf16", bf16::from_f32, bf16::to_f32);
element!(f16, "f16", f16::from_f32, f16::to_f32);
element!(f32, "f32", std::convert::identity, std::convert::identity);

#[derive(Clone, Copy, Debug)]
enum Kind {
    Normal,
    /// Few values, so that most are ties.
    Few,
    /// Half of them zeros, of both signs.
    Zeros,
    Equal,
    /// The same upper halves.
    Close,
    /// Denormals and what is next to them.
    Tiny,
    /// Many orders of magnitude.
    Wide,
    /// The columns that are sampled have greater weights than the others.
    Raised,
    /// They have smaller ones.
    Sunken,
}

const KINDS: [Kind; 9] = [
    Kind::Normal,
    Kind::Few,
    Kind::Zeros,
    Kind::Equal,
    Kind::Close,
    Kind::Tiny,
    Kind::Wide,
    Kind::Raised,
    Kind::Sunken,
];

fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (a, b): (f32, f32) = (rng.random::<f32>().max(1e-9), rng.random());
    (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
}

fn values<T: Element>(kind: Kind, n: usize, rng: &mut ChaCha8Rng) -> Vec<T> {
    let mut value = |i: usize| match kind {
        Kind::Normal => normal(rng) * 0.05,
        Kind::Few => rng.random_range(-3..4) as f32 * 0.25,
        Kind::Zeros => [0.0, -0.0, normal(rng), normal(rng)][rng.random_range(0..4)],
        Kind::Equal => -0.75,
        Kind::Close => 1.0 + rng.random_range(0..1 << 13) as f32 * f32::EPSILON,
        Kind::Tiny => f32::from_bits(rng.random_range(0..1 << 24)) * [1.0, -1.0][rng.random_range(0..2)],
        Kind::Wide => normal(rng) * 2f32.powi(rng.random_range(-14..14)),
        Kind::Raised => normal(rng) * if i % 8 < 2 { 100.0 } else { 1.0 },
        Kind::Sunken => normal(rng) * if i % 8 < 2 { 0.01 } else { 1.0 },
    };
    (0..n).map(|i| T::of(value(i))).collect()
}

fn norms(cols: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..cols).map(|_| normal(rng).abs() * [1.0, 1.0, 30.0][rng.random_range(0..3)]).collect()
}

fn wide<T: Element>(values: &[T]) -> Vec<f32> {
    values.iter().map(|x| x.wide()).collect()
}

/// The words of a mask as the kernels write them.
fn words(mask: &Mask) -> Vec<u64> {
    let (_, cols) = mask.shape();
    let row = |bytes: &[u8]| -> Vec<u64> {
        bytes.chunks(8).map(|word| word.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))).collect()
    };
    mask.to_packed().chunks(cols.div_ceil(8).max(1)).flat_map(row).collect()
}

/// Weights, the norms that scale their scores, and their place in memory.
struct Matrix<T> {
    values: Vec<T>,
    norms: Option<Vec<f32>>,
    rows: usize,
    cols: usize,
    /// Bytes off from alignment.
    skew: usize,
}

impl<T: Element> Matrix<T> {
    fn new(kind: Kind, rows: usize, cols: usize, scored: bool, rng: &mut ChaCha8Rng) -> Self {
        let values = values(kind, rows * cols, rng);
        Matrix { values, norms: scored.then(|| norms(cols, rng)), rows, cols, skew: 0 }
    }

    fn words(&self) -> usize {
        self.cols.div_ceil(64)
    }

    fn buffers(&self) -> (Buffer<T>, Option<Buffer<f32>>) {
        (Buffer::skewed(&self.values, self.skew), self.norms.as_deref().map(Buffer::new))
    }

    fn bad(&self) -> Option<u64> {
        twin::first_bad(&wide(&self.values), self.norms.as_deref(), self.cols).unwrap()
    }
}

fn kernel(name: &str, grid: u32, block: u32) -> Kernel<'_> {
    Kernel { name, grid: (grid, 1), block, shared: 0 }
}

fn address<T: Copy>(buffer: &Option<Buffer<T>>) -> u64 {
    buffer.as_ref().map_or(0, Buffer::arg)
}

/// Runs a row selection in several orders and compares; `fast` is the kernel for aligned rows.
fn rows_are_the_twins<T: Element>(m: &Matrix<T>, ks: &[u32], fast: bool, what: &str) {
    let expected = match m.bad() {
        Some(bad) => Err(bad),
        None => Ok(twin::select_rows(&wide(&m.values), m.norms.as_deref(), m.cols, ks).unwrap()),
    };
    let name = format!("select_rows{}_{}", if fast { "" } else { "_any" }, T::NAME);
    let (block, shared) = if fast { shape::select_rows(m.cols) } else { (256, 0) };
    for &seed in if m.cols > 4096 { &SEEDS[..3] } else { &SEEDS[..] } {
        let (w, norms) = m.buffers();
        let masks = Buffer::<u64>::poisoned(ks.len() * m.rows * m.words(), seed);
        let (bad, levels) = (Buffer::new(&[u64::MAX]), Buffer::new(ks));
        // From one block for all rows to one each.
        let grid = (m.rows as u32).min(1 + seed as u32);
        let shape = [m.rows as u64, m.cols as u64, levels.arg(), ks.len() as u64];
        let arguments = [&[w.arg(), address(&norms), masks.arg(), bad.arg()][..], &shape].concat();
        Kernel { name: &name, grid: (grid, 1), block: block as u32, shared: shared as u64 }.run(seed, &arguments);
        match &expected {
            Err(at) => assert_eq!(bad.read(), [*at], "{name} {what}"),
            Ok(expected) => {
                assert_eq!(bad.read(), [u64::MAX]);
                let expected: Vec<u64> = expected.iter().flat_map(words).collect();
                let found = masks.read();
                let differ = found.iter().zip(&expected).position(|(a, b)| a != b);
                assert!(differ.is_none(), "{name} {what}: {ks:?} of {} x {}, word {differ:?}", m.rows, m.cols);
            }
        }
    }
}

fn levels(cols: usize, n: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let mut ks: Vec<u32> = (0..n).map(|_| rng.random_range(0..=cols as u32)).collect();
    if n > 2 {
        (ks[0], ks[1]) = (0, cols as u32);
    }
    ks.sort_unstable();
    ks
}

fn select_rows_of<T: Element>(fast: bool, widths: &[usize]) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for &cols in widths {
        for kind in KINDS {
            for scored in [false, true] {
                let rows = rng.random_range(1..4);
                let mut m = Matrix::<T>::new(kind, rows, cols, scored, &mut rng);
                m.skew = if fast || cols % 3 == 0 { 0 } else { size_of::<T>() };
                let n = [1, 10][usize::from(rng.random_bool(0.3))];
                let mut ks = levels(cols, n, &mut rng);
                if n == 1 {
                    ks = vec![[cols / 2, cols / 10, cols * 9 / 10, ks[0] as usize][rng.random_range(0..4)] as u32];
                }
                rows_are_the_twins(&m, &ks, fast, &format!("{kind:?} scored {scored}"));
            }
        }
    }
}

#[test]
fn rows_bf16() {
    if available() {
        select_rows_of::<bf16>(true, &[8, 16, 64, 72, 1000, 1024, 1032, 4096, 11008]);
    }
}

#[test]
fn rows_f16_and_f32() {
    if available() {
        select_rows_of::<f16>(true, &[8, 136, 2048, 2056]);
        select_rows_of::<f32>(true, &[8, 136, 2048, 2056]);
    }
}

#[test]
fn rows_of_the_greatest_width_and_their_extremes() {
    if !available() {
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let m = Matrix::<bf16>::new(Kind::Normal, 2, 16384, true, &mut rng);
    rows_are_the_twins(&m, &[0, 1, 2, 8192, 16383, 16384], true, "widest");
    // Scores up to the greatest finite one.
    let mut m = Matrix::<f32>::new(Kind::Normal, 3, 256, false, &mut rng);
    m.values.iter_mut().step_by(3).for_each(|x| *x = f32::MAX);
    m.values[5] = -f32::MAX;
    rows_are_the_twins(&m, &[1, 100, 170, 200, 255], true, "greatest");
    rows_are_the_twins(&m, &[1, 100, 170, 200, 255], false, "greatest");
    let mut m = Matrix::<f16>::new(Kind::Normal, 3, 256, false, &mut rng);
    m.values.iter_mut().step_by(3).for_each(|x| *x = f16::MAX);
    rows_are_the_twins(&m, &[1, 100, 170, 200, 255], true, "greatest");
}

#[test]
fn rows_of_any_width() {
    if available() {
        select_rows_of::<bf16>(false, &[1, 7, 63, 64, 65, 515, 2049]);
        select_rows_of::<f16>(false, &[3, 130]);
        select_rows_of::<f32>(false, &[3, 130, 20000]);
    }
}

/// Puts values that are not finite into a matrix, or makes scores overflow.
fn spoil<T: Element>(m: &mut Matrix<T>, rng: &mut ChaCha8Rng) {
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..m.values.len());
        m.values[at] = T::of([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN][rng.random_range(0..4)]);
    }
    if let Some(norms) = &mut m.norms
        && rng.random_bool(0.5)
    {
        let at = rng.random_range(0..norms.len());
        norms[at] = [f32::MAX, f32::NAN, f32::INFINITY][rng.random_range(0..3)];
    }
}

#[test]
fn scores_that_are_not_finite_are_told() {
    fn run<T: Element>(rng: &mut ChaCha8Rng) {
        for scored in [false, true] {
            for cols in [64, 1040] {
                let mut m = Matrix::<T>::new(Kind::Normal, 4, cols, scored, rng);
                spoil(&mut m, rng);
                rows_are_the_twins(&m, &[10], true, "spoilt");
                rows_are_the_twins(&m, &[10], false, "spoilt");
                groups_are_the_twins(&m, 2, 4);
                groups_are_the_twins(&m, 3, 16);
                layer_is_the_twins(&m, 11);
            }
        }
    }
    if available() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        (0..3).for_each(|_| run::<bf16>(&mut rng));
        run::<f16>(&mut rng);
        run::<f32>(&mut rng);
    }
}

fn groups_are_the_twins<T: Element>(m: &Matrix<T>, n: usize, group: usize) {
    let expected = match m.bad() {
        Some(bad) => Err(bad),
        None => Ok(twin::select_nofm(&wide(&m.values), m.norms.as_deref(), m.cols, n, group).unwrap()),
    };
    let name = format!("select_nofm_{}", T::NAME);
    for seed in [0, 1, 2] {
        let ((w, norms), bad) = (m.buffers(), Buffer::new(&[u64::MAX]));
        let mask = Buffer::<u64>::poisoned(m.rows * m.words(), seed);
        let shape = [m.rows as u64, m.cols as u64, n as u64, group as u64];
        let arguments = [&[w.arg(), address(&norms), mask.arg(), bad.arg()][..], &shape].concat();
        kernel(&name, 2, 256).run(seed, &arguments);
        match &expected {
            Err(at) => assert_eq!(bad.read(), [*at], "{name}"),
            Ok(expected) => {
                assert_eq!(bad.read(), [u64::MAX]);
                assert_eq!(mask.read(), words(expected), "{name} {n}:{group}, {} x {}", m.rows, m.cols);
            }
        }
    }
}

#[test]
fn groups() {
    fn run<T: Element>(rng: &mut ChaCha8Rng) {
        for kind in KINDS {
            for (n, group, cols) in [
                (2, 4, 8),
                (2, 4, 72),
                (1, 4, 100),
                (3, 4, 1024),
                (4, 8, 200),
                (1, 2, 66),
                (3, 5, 135),
                (20, 32, 96),
                (7, 64, 192),
            ] {
                let mut m = Matrix::<T>::new(kind, rng.random_range(1..6), cols, rng.random_bool(0.7), rng);
                m.skew = if rng.random_bool(0.3) { size_of::<T>() } else { 0 };
                groups_are_the_twins(&m, n, group);
            }
        }
    }
    if available() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        run::<bf16>(&mut rng);
        run::<f16>(&mut rng);
        run::<f32>(&mut rng);
    }
}

fn layer_is_the_twins<T: Element>(m: &Matrix<T>, k: u64) {
    let expected = match m.bad() {
        Some(bad) => Err(bad),
        None => Ok(twin::select_layer(&wide(&m.values), m.norms.as_deref(), m.cols, k).unwrap()),
    };
    let [count, ties_of, go] = ["count", "ties", "mask"].map(|step| format!("layer_{step}_{}", T::NAME));
    for seed in [0, 1, 2] {
        let ((w, norms), bad) = (m.buffers(), Buffer::new(&[u64::MAX]));
        let threads = if seed == 0 { 32 } else { 256 };
        let (state, ties) = (Buffer::<u64>::poisoned(8 + 2048, seed), Buffer::<u64>::poisoned(m.rows, seed));
        let mask = Buffer::<u64>::poisoned(m.rows * m.words(), seed);
        let (rows, cols, all) = (m.rows as u64, m.cols as u64, m.values.len() as u64);
        let scored = [w.arg(), address(&norms)];
        kernel("layer_begin", 1, 256).run(seed, &[state.arg(), k]);
        for _ in 0..3 {
            kernel(&count, 3, 512).run(seed, &[&scored[..], &[state.arg(), bad.arg(), all, cols]].concat());
            kernel("layer_digit", 1, threads).run(seed, &[state.arg()]);
        }
        if let Err(at) = &expected {
            assert_eq!(bad.read(), [*at], "{count}");
            continue;
        }
        kernel(&ties_of, 2, 256).run(seed, &[&scored[..], &[state.arg(), ties.arg(), rows, cols]].concat());
        kernel("layer_offsets", 1, threads).run(seed, &[ties.arg(), rows]);
        kernel(&go, 2, 256).run(seed, &[&scored[..], &[state.arg(), ties.arg(), mask.arg(), rows, cols]].concat());
        assert_eq!(mask.read(), words(expected.as_ref().unwrap()), "{go}: {k} of {rows} x {cols}");
        assert_eq!(bad.read(), [u64::MAX]);
    }
}

#[test]
fn layers() {
    fn run<T: Element>(rng: &mut ChaCha8Rng) {
        for kind in KINDS {
            for (rows, cols) in [(1, 1), (300, 3), (17, 65), (3, 1999), (1, 9000)] {
                let mut m = Matrix::<T>::new(kind, rows, cols, rng.random_bool(0.5), rng);
                m.skew = size_of::<T>();
                let n = (rows * cols) as u64;
                let k = [0, n, n / 2, rng.random_range(0..=n)][rng.random_range(0..4)];
                layer_is_the_twins(&m, k);
            }
        }
    }
    if available() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        run::<bf16>(&mut rng);
        run::<f16>(&mut rng);
        run::<f32>(&mut rng);
    }
}

fn random_mask(rows: usize, cols: usize, share: f64, rng: &mut ChaCha8Rng) -> Mask {
    let bits: Vec<bool> = (0..rows * cols).map(|_| rng.random_bool(share)).collect();
    Mask::from_fn(rows, cols, |row, col| bits[row * cols + col])
}

#[test]
fn masks_are_applied() {
    if !available() {
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for (rows, cols, skew) in [(1, 1, 0), (3, 8, 0), (5, 72, 0), (5, 72, 1), (7, 65, 0), (2, 1024, 0), (4, 100, 1)] {
        for share in [0.0, 0.1, 0.5, 1.0] {
            let mask = random_mask(rows, cols, share, &mut rng);
            let bits = Buffer::new(&words(&mask));
            let w: Vec<u32> = (0..rows * cols).map(|_| rng.random()).collect();
            let halves: Vec<u16> = w.iter().map(|x| *x as u16).collect();
            let (mut expected, mut expected_halves) = (w.clone(), halves.clone());
            twin::apply_mask(&mut expected, &mask);
            twin::apply_mask(&mut expected_halves, &mask);
            for seed in SEEDS {
                let (whole, half) = (Buffer::skewed(&w, 4 * skew), Buffer::skewed(&halves, 2 * skew));
                let shape = [bits.arg(), rows as u64, cols as u64];
                kernel("apply_mask_32", 2, 256).run(seed, &[&[whole.arg()][..], &shape].concat());
                kernel("apply_mask_16", 1, 256).run(seed, &[&[half.arg()][..], &shape].concat());
                assert_eq!(whole.read(), expected);
                assert_eq!(half.read(), expected_halves);
            }
        }
    }
}

#[test]
fn sums_of_columns_are_bit_for_bit_the_cpus() {
    fn run<T: Element>(rng: &mut ChaCha8Rng) {
        for (tokens, cols, skew) in [(1, 1, 0), (64, 8, 0), (65, 12, 0), (130, 7, 0), (200, 1030, 0), (129, 16, 1)] {
            let x: Vec<T> = values(Kind::Wide, tokens * cols, rng);
            let (squares, sums) = twin::column_sums(&wide(&x), cols);
            let chunks = tokens.div_ceil(64);
            for seed in [0, 1, 2] {
                let (w, none) = (Buffer::skewed(&x, skew * size_of::<T>()), seed == 2);
                let partial: [Buffer<f32>; 2] = std::array::from_fn(|_| Buffer::poisoned(chunks * cols, seed));
                let second = if none { 0 } else { partial[1].arg() };
                let name = format!("column_sums_{}", T::NAME);
                let arguments = [w.arg(), tokens as u64, cols as u64, partial[0].arg(), second];
                Kernel { name: &name, grid: (2, 2), block: 128, shared: 0 }.run(seed, &arguments);
                for (partial, expected) in partial.iter().zip([&squares, &sums]).take(if none { 1 } else { 2 }) {
                    let folded = Buffer::new(&vec![0f64; cols]);
                    let arguments = [partial.arg(), chunks as u64, cols as u64, folded.arg()];
                    kernel("fold_sums", 2, 64).run(seed, &arguments);
                    let bits = |sums: &[f64]| sums.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&folded.read()), bits(expected), "{name} {tokens} x {cols}");
                }
            }
        }
    }
    if available() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        run::<bf16>(&mut rng);
        run::<f16>(&mut rng);
        run::<f32>(&mut rng);
    }
}

#[test]
fn sparsegpt_blocks_are_bit_for_bit_the_cpus() {
    if !available() {
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let patterns = [Pattern::Unstructured, Pattern::NofM { n: 2, m: 4 }, Pattern::NofM { n: 3, m: 8 }];
    for (rows, cols, first, count) in
        [(1, 8, 0, 8), (9, 136, 0, 128), (20, 256, 128, 128), (5, 200, 72, 40), (3, 144, 48, 96)]
    {
        for pattern in patterns.into_iter().chain([Pattern::NofM { n: 20, m: 32 }, Pattern::NofM { n: 5, m: 12 }]) {
            if let Pattern::NofM { m, .. } = pattern
                && count % m != 0
            {
                continue;
            }
            let mut upper: Vec<f32> = (0..count * count).map(|_| normal(&mut rng) * 0.1).collect();
            for i in 0..count {
                upper[i * count + i] = 0.3 + rng.random::<f32>();
                upper[i * count..i * count + i].fill(0.0);
            }
            let weights: Vec<f32> = values(Kind::Normal, rows * cols, &mut rng);
            let mut mask = match pattern {
                Pattern::Unstructured => random_mask(rows, cols, 0.5, &mut rng),
                Pattern::NofM { .. } => Mask::none(rows, cols),
            };
            let given = words(&mask);
            let mut expected = weights.clone();
            let errors = twin::sparsegpt_block(&mut expected, first, &upper, pattern, &mut mask);
            for seed in SEEDS {
                let (w, u, bits) = (Buffer::new(&weights), Buffer::new(&upper), Buffer::new(&given));
                let lost = Buffer::<f32>::poisoned(rows * count, seed);
                let masks = match pattern {
                    Pattern::Unstructured => [bits.arg(), 0, 0, 0],
                    Pattern::NofM { n, m } => [0, bits.arg(), n as u64, m as u64],
                };
                let shape = [w.arg(), rows as u64, cols as u64, first as u64, count as u64, u.arg()];
                let arguments = [&shape[..], &masks, &[lost.arg()]].concat();
                let (block, shared) = shape::sparsegpt_block(count);
                Kernel { name: "sparsegpt_block", grid: (2, 1), block: block as u32, shared: shared as u64 }
                    .run(seed, &arguments);
                assert_eq!(bits.read(), words(&mask), "{pattern} {rows} x {cols}");
                let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same(&w.read(), &expected), "{pattern} {rows} x {cols}");
                assert!(same(&lost.read(), &errors), "{pattern} {rows} x {cols}");
            }
        }
    }
}

/// Returns whether `found` is `expected` but for the rounding to `T`, and for that of exponents in f32, which may be 50.
fn close<T: Element>(found: &[T], expected: &[f32]) -> bool {
    // Half a unit in the last place, and of numbers below the normal ones; the CPU has nothing below e^-87 (1.7e-38).
    let (half_unit, least) = match T::NAME {
        "bf16" => (1.0 / 256.0, 2e-38),
        "f16" => (1.0 / 2048.0, 3e-8),
        _ => (0.0, 2e-38),
    };
    let close = |found: f32, expected: f32| {
        (found - expected).abs() <= (half_unit + 1e-5) * expected.abs() + least || (found.is_nan() && expected.is_nan())
    };
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| close(a.wide(), *b))
}

fn forward_of<T: Element>() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut normals = |n: usize, scale: f32| -> Vec<T> { (0..n).map(|_| T::of(normal(&mut rng) * scale)).collect() };
    let name = |name: &str| format!("{name}_{}", T::NAME);
    let seeds = |seed: u64| (1 + 2 * seed as u32, seed);

    // Heads, queries, past, window and what the addresses are off; eight at a time and one by one.
    let cases = [
        (1, 1, 0, None, 0),
        (3, 5, 0, None, 0),
        (2, 8, 0, None, 0),
        (2, 40, 24, None, 0),
        (2, 64, 0, Some(5), 0),
        (3, 7, 300, Some(11), 0),
        (1, 16, 0, None, 1),
        (2, 3, 269, Some(400), 0),
    ];
    for (heads, queries, past, window, skew) in cases {
        let (rows, keys) = (2 * heads * queries, past + queries + [0, 8][queries % 2]);
        let mut scores = normals(rows * keys, 6.0);
        scores[0] = T::of(f32::NEG_INFINITY); // which is then all that the first row may see, unless there is a past
        if past > 0 {
            scores[keys + 1] = T::of(f32::NAN);
            scores[2 * keys - 1] = T::of(f32::NAN);
        }
        for sinks in [None, Some(wide(&normals(heads, 2.0)))] {
            let expected = twin::causal_softmax(&wide(&scores), keys, (queries, past, window), 0.3, sinks.as_deref());
            for (grid, seed) in SEEDS.map(seeds) {
                let (from, sinks) = (Buffer::skewed(&scores, skew * size_of::<T>()), sinks.as_deref().map(Buffer::new));
                let to = Buffer::<T>::poisoned(scores.len(), seed);
                let sizes = [heads, rows, keys, queries, past, window.unwrap_or(0)].map(|size| size as u64);
                let arguments =
                    [&[from.arg(), to.arg(), address(&sinks)][..], &sizes, &[u64::from(0.3f32.to_bits())]].concat();
                kernel(&name("causal_softmax"), grid, 256).run(seed, &arguments);
                assert!(close(&to.read(), &expected), "{} {heads} {queries} {past} {window:?}", T::NAME);
            }
        }
    }

    for (rows, seq, half, first, skew) in [(6, 3, 8, 2, 0), (10, 5, 32, 0, 0), (4, 4, 3, 7, 0), (6, 2, 16, 1, 1)] {
        let (x, positions) = (normals(rows * 2 * half, 1.0), first + seq);
        let angles = |f: fn(f32) -> f32| (0..positions * half).map(|i| f(i as f32 * 0.37)).collect::<Vec<f32>>();
        let (cos, sin) = (angles(f32::cos), angles(f32::sin));
        let expected = twin::rope(&wide(&x), (&cos, &sin), (seq, 2 * half, first));
        for (grid, seed) in SEEDS.map(seeds) {
            let from = Buffer::skewed(&x, skew * size_of::<T>());
            let (to, cos, sin) = (Buffer::<T>::poisoned(x.len(), seed), Buffer::new(&cos), Buffer::new(&sin));
            let sizes = [rows, seq, half, first].map(|size| size as u64);
            let arguments = [&[from.arg(), to.arg(), cos.arg(), sin.arg()][..], &sizes].concat();
            kernel(&name("rope"), grid, 256).run(seed, &arguments);
            assert!(close(&to.read(), &expected), "{} {rows} {seq} {half} {first}", T::NAME);
        }
    }

    for (count, skew) in [(1, 0), (8, 0), (1027, 0), (5003, 0), (300, 1)] {
        let (mut gate, up) = (normals(count, 3.0), normals(count, 1.0));
        gate[count / 2] = T::of(-80.0);
        let expected = twin::swiglu(&wide(&gate), &wide(&up));
        for (grid, seed) in SEEDS.map(seeds) {
            let (a, b) = (Buffer::new(&gate), Buffer::skewed(&up, skew * size_of::<T>()));
            let to = Buffer::<T>::poisoned(count, seed);
            kernel(&name("swiglu"), grid, 256).run(seed, &[a.arg(), b.arg(), to.arg(), count as u64]);
            assert!(close(&to.read(), &expected), "{} {count}", T::NAME);
        }
    }
}

#[test]
fn between_the_products_of_a_forward_pass() {
    if available() {
        forward_of::<bf16>();
        forward_of::<f16>();
        forward_of::<f32>();
    }
}

#[test]
fn mxfp4_becomes_weights() {
    if !available() {
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    for groups in [1, 2, 257, 600] {
        let blocks: Vec<u8> = (0..16 * groups).map(|_| rng.random()).collect();
        let scales: Vec<u8> =
            (0..groups).map(|i| if i % 5 == 0 { [0, 1, 254, 255][i / 5 % 4] } else { rng.random() }).collect();
        let expected = twin::mxfp4_dequantise(&blocks, &scales);
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        for seed in SEEDS {
            let (b, s) = (Buffer::new(&blocks), Buffer::new(&scales));
            let (whole, half) =
                (Buffer::<f32>::poisoned(32 * groups, seed), Buffer::<bf16>::poisoned(32 * groups, seed));
            kernel("mxfp4_dequantise_f32", 2, 256).run(seed, &[b.arg(), s.arg(), whole.arg(), groups as u64]);
            kernel("mxfp4_dequantise_bf16", 1, 256).run(seed, &[b.arg(), s.arg(), half.arg(), groups as u64]);
            assert!(whole.read().iter().zip(&expected).all(|(a, b)| same(*a, *b)));
            assert!(half.read().iter().zip(&expected).all(|(a, b)| same(a.to_f32(), bf16::from_f32(*b).to_f32())));
        }
    }
}

/// The mask of a random pair in each group of four, of which some weights are zero anyhow.
fn two_of_four(rows: usize, cols: usize, rng: &mut ChaCha8Rng) -> (Vec<u16>, Mask) {
    const PAIRS: [[usize; 2]; 6] = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];
    let pairs: Vec<[usize; 2]> = (0..rows * cols / 4).map(|_| PAIRS[rng.random_range(0..6)]).collect();
    let mask = Mask::from_fn(rows, cols, |row, col| pairs[(row * cols + col) / 4].contains(&(col % 4)));
    let weight = |_| if rng.random_bool(0.1) { 0 } else { bf16::from_f32(normal(rng)).to_bits() };
    ((0..rows * cols).map(weight).collect(), mask)
}

#[test]
fn two_of_four_is_compressed_and_multiplied() {
    if !available() {
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    for (rows, cols, skew) in [(1, 4, 0), (3, 8, 0), (5, 36, 0), (9, 1040, 0), (9, 1040, 2), (70, 64, 0), (17, 528, 0)]
    {
        let (w, mask) = two_of_four(rows, cols, &mut rng);
        let (values, index) = twin::compress24(&w, Some(&mask), cols).unwrap();
        let bits = Buffer::new(&words(&mask));
        let shape = [rows as u64, cols as u64];
        for seed in SEEDS {
            let (weights, bad) = (Buffer::skewed(&w, skew), Buffer::new(&[u64::MAX]));
            let (kept, places) =
                (Buffer::<u16>::poisoned(values.len(), seed), Buffer::<u8>::poisoned(index.len(), seed));
            let arguments = [&[weights.arg(), bits.arg(), kept.arg(), places.arg(), bad.arg()][..], &shape].concat();
            kernel("compress24_16", 2, 256).run(seed, &arguments);
            assert_eq!((kept.read(), places.read(), bad.read()), (values.clone(), index.clone(), vec![u64::MAX]));
        }
        let mut full = w.clone();
        let at = rng.random_range(0..rows * cols / 4);
        full[4 * at..4 * at + 4].fill(1);
        let first = twin::compress24(&full, None, cols).unwrap_err();
        let (weights, bad) = (Buffer::new(&full), Buffer::new(&[u64::MAX]));
        let (kept, places) = (Buffer::<u16>::poisoned(values.len(), 0), Buffer::<u8>::poisoned(index.len(), 0));
        let arguments = [&[weights.arg(), 0, kept.arg(), places.arg(), bad.arg()][..], &shape].concat();
        kernel("compress24_16", 2, 256).run(2, &arguments);
        assert_eq!(bad.read(), [first]);
        if cols % 16 != 0 {
            continue;
        }
        let mut dense = w.clone();
        twin::apply_mask(&mut dense, &mask);
        let as_floats = |bits: &[u16]| bits.iter().map(|bits| bf16::from_bits(*bits)).collect::<Vec<_>>();
        for batch in [1, 3, 16] {
            let x: Vec<bf16> = self::values(Kind::Normal, batch * cols, &mut rng);
            let (full, half) =
                (twin::matvec(&as_floats(&dense), &x, cols), twin::matvec24(&as_floats(&values), &index, &x, cols));
            let close = full.iter().zip(&half).all(|(a, b)| (a - b).abs() < 1e-4 * cols as f32);
            assert!(close && full.iter().any(|y| *y != 0.0));
            for seed in [0, 1, 2] {
                let (w, kept, places) = (Buffer::new(&dense), Buffer::new(&values), Buffer::new(&index));
                let (input, y) = (Buffer::new(&x), [0, 1].map(|i| Buffer::<f32>::poisoned(batch * rows, seed + i)));
                let rest = [rows as u64, cols as u64, batch as u64];
                let arguments = [&[w.arg(), input.arg(), y[0].arg()][..], &rest].concat();
                kernel("matvec_bf16", 2, 256).run(seed, &arguments);
                let arguments = [&[kept.arg(), places.arg(), input.arg(), y[1].arg()][..], &rest].concat();
                kernel("matvec_24_bf16", 2, 256).run(seed, &arguments);
                assert_eq!(y[0].read(), full);
                assert_eq!(y[1].read(), half);
            }
        }
    }
}

/// `make_cutlass_fixtures.py` makes the same.
fn cutlass_weights(rows: usize, cols: usize) -> Vec<u16> {
    const PAIRS: [[usize; 2]; 6] = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];
    let mut bits = vec![0; rows * cols];
    for group in 0..rows * cols / 4 {
        let state = ((group as u32).wrapping_mul(2_654_435_761) >> 13) as usize;
        let pair = PAIRS[state % 6].map(|place| 4 * group + place);
        for (at, every) in pair.into_iter().zip([7, 11]) {
            if !state.is_multiple_of(every) {
                bits[at] = 0x3f80 + (at % 97) as u16;
            }
        }
    }
    bits
}

#[test]
fn metadata_is_in_the_order_that_pytorch_gives_it_for_cutlass() {
    let cases: serde_json::Value = serde_json::from_str(include_str!("data/cutlass_24.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let numbers = |key: &str| -> Vec<u16> {
            case[key].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u16).collect()
        };
        let [rows, cols] = ["rows", "cols"].map(|key| case[key].as_u64().unwrap() as usize);
        let (values, index) = twin::compress24(&cutlass_weights(rows, cols), None, cols).unwrap();
        assert_eq!(values, numbers("values"));
        assert_eq!(twin::to_cutlass(&index, rows, cols).unwrap(), numbers("meta"), "{rows} x {cols}");
        if available() {
            for seed in SEEDS {
                let (places, meta) = (Buffer::new(&index), Buffer::<u16>::poisoned(rows * cols / 16, seed));
                kernel("to_cutlass", 1, 256).run(seed, &[places.arg(), meta.arg(), rows as u64, cols as u64]);
                assert_eq!(meta.read(), numbers("meta"), "{rows} x {cols}");
            }
        }
    }
    assert!(twin::to_cutlass(&[], 16, 32).unwrap_err().to_string().contains("multiples of 32"));
}

#[test]
fn a_missing_barrier_shows() {
    if !available() {
        return;
    }
    let results: Vec<Vec<u32>> = SEEDS
        .iter()
        .map(|&seed| {
            let out = Buffer::<u32>::poisoned(64, 0);
            kernel("wrong::no_barrier", 1, 64).run(seed, &[out.arg()]);
            out.read()
        })
        .collect();
    assert!(results.iter().any(|result| *result != results[0]), "{results:?}");
    let out = Buffer::<u32>::poisoned(64, 0);
    let error = |name, seed| kernel(name, 1, 64).try_run(seed, &[out.arg()]).unwrap_err();
    for seed in SEEDS {
        assert!(error("wrong::barrier_for_some", seed).contains("5 of 64 threads wait at the barrier of line"));
        assert!(error("wrong::different_barriers", seed).contains("threads wait at the barriers of line"));
        assert!(error("wrong::ballot_for_some", seed).contains("wait for lanes of their warp"));
    }
}
