//! SparseGPT against its definition in f64, and what it promises about counts, ties, dead inputs and damping.

use lacuna::mask::{Mask, Pattern, Ties};
use lacuna::model::{Linear, Model};
use lacuna::progress::Progress;
use lacuna::prune::{Method, PruneConfig, prune, prune_to};
use lacuna::sparsegpt::{Factor, SparseGpt, sparsegpt};
use lacuna::text::{Sampling, Windows};

/// Seeded numbers around zero, roughly normal.
fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (0..6).map(|_| uniform()).sum()).collect()
}

/// `2 / 4 * X^T X` of inputs that hang together, with some inputs that are always zero.
fn gram(width: usize, tokens: usize, dead: &[usize], seed: u64) -> Vec<f32> {
    let noise = normal(tokens * width, seed);
    let common = normal(tokens, seed + 1);
    let x = |token: usize, col: usize| {
        let scale = if col % 7 == 3 { 4.0 } else { 1.0 };
        if dead.contains(&col) { 0.0 } else { f64::from(scale * (noise[token * width + col] + common[token])) }
    };
    let mut gram = vec![0f32; width * width];
    for i in 0..width {
        for j in 0..width {
            gram[i * width + j] = (0..tokens).map(|token| 0.5 * x(token, i) * x(token, j)).sum::<f64>() as f32;
        }
    }
    gram
}

/// Lower Cholesky factor by its definition.
fn cholesky(a: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let n = a.len();
    let mut l = vec![vec![0.0; n]; n];
    for i in 0..n {
        for j in 0..=i {
            let rest = a[i][j] - (0..j).map(|k| l[i][k] * l[j][k]).sum::<f64>();
            l[i][j] = if i == j { rest.sqrt() } else { rest / l[j][j] };
        }
    }
    l
}

/// Upper Cholesky factor of the inverse, by inverting first, as the reference does.
fn reference_factor(gram: &[f32], n: usize, damping: f64) -> Vec<Vec<f64>> {
    let mut h: Vec<Vec<f64>> = gram.chunks(n).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect();
    (0..n).filter(|&i| gram[i * n + i] == 0.0).for_each(|i| h[i][i] = 1.0);
    let damp = damping * (0..n).map(|i| h[i][i]).sum::<f64>() / n as f64;
    (0..n).for_each(|i| h[i][i] += damp);
    // Gauss-Jordan.
    let mut inverse: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for i in 0..n {
        let pivot = h[i][i];
        (0..n).for_each(|k| (h[i][k] /= pivot, inverse[i][k] /= pivot).0);
        for j in (0..n).filter(|&j| j != i) {
            let factor = h[j][i];
            for k in 0..n {
                h[j][k] -= factor * h[i][k];
                inverse[j][k] -= factor * inverse[i][k];
            }
        }
    }
    // A = U^T U with an upper U is the transposed lower factor.
    let lower = cholesky(&inverse);
    (0..n).map(|i| (0..n).map(|j| lower[j][i]).collect()).collect()
}

/// The reference's loop, in f64: weights and mask.
fn reference(
    weights: &[f32],
    gram: &[f32],
    n: usize,
    pattern: Pattern,
    sparsity: f64,
    block_size: usize,
    ties: bool,
) -> (Vec<f64>, Vec<bool>) {
    let u = reference_factor(gram, n, 0.01);
    let rows = weights.len() / n;
    let mut w: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
    (0..w.len()).filter(|i| gram[i % n * n + i % n] == 0.0).for_each(|i| w[i] = 0.0);
    let mut mask = vec![false; w.len()];
    for i1 in (0..n).step_by(block_size) {
        let i2 = (i1 + block_size).min(n);
        if pattern == Pattern::Unstructured {
            let mut order: Vec<(f64, usize)> = (0..rows)
                .flat_map(|row| (i1..i2).map(move |col| (row, col)))
                .map(|(row, col)| (w[row * n + col].powi(2) / u[col][col].powi(2), row * n + col))
                .collect();
            order.sort_by(|a, b| a.0.total_cmp(&b.0));
            let k = (order.len() as f64 * sparsity) as usize;
            let threshold = order[k].0;
            for (i, (score, at)) in order.into_iter().enumerate() {
                mask[at] = if ties { score <= threshold } else { i < k };
            }
        }
        for i in i1..i2 {
            for row in 0..rows {
                let w = &mut w[row * n..(row + 1) * n];
                if let Pattern::NofM { n: keep, m } = pattern
                    && i % m == 0
                {
                    let mut order: Vec<usize> = (i..i + m).collect();
                    order.sort_by(|&a, &b| (w[a] / u[a][a]).powi(2).total_cmp(&(w[b] / u[b][b]).powi(2)));
                    order[..m - keep].iter().for_each(|&col| mask[row * n + col] = true);
                }
                if mask[row * n + i] {
                    let error = w[i] / u[i][i];
                    (i..n).for_each(|j| w[j] -= error * u[i][j]);
                    w[i] = 0.0;
                }
            }
        }
    }
    (w, mask)
}

fn bits(mask: &Mask) -> Vec<bool> {
    let (rows, cols) = mask.shape();
    (0..rows * cols).map(|i| mask.is_pruned(i / cols, i % cols)).collect()
}

#[test]
fn the_factor_is_that_of_the_inverse() {
    // Below, at and above one tile, and with a ragged one.
    for n in [1, 5, 64, 128, 300] {
        let dead = if n > 5 { vec![2, n - 1] } else { vec![] };
        let gram = gram(n, 2 * n + 1, &dead, 1);
        let factor = Factor::new("w", &gram, n, &SparseGpt::default()).unwrap();
        assert_eq!((factor.dead(), factor.damping(), factor.width()), (&dead[..], 0.01, n));
        let expected = reference_factor(&gram, n, 0.01);
        for (i, (row, expected)) in factor.upper().chunks(n).zip(&expected).enumerate() {
            for (ours, theirs) in row.iter().zip(expected) {
                let scale = expected[i].abs();
                assert!((f64::from(*ours) - theirs).abs() <= 1e-6 * scale, "{n}: row {i}: {ours} {theirs}");
            }
        }
    }
}

#[test]
fn weights_and_mask_equal_the_definition() {
    let (rows, n) = (70, 200); // two chunks of rows
    let gram = gram(n, 600, &[7, 150], 3);
    let weights = normal(rows * n, 5);
    let (unstructured, two_of_four) = (Pattern::Unstructured, Pattern::NofM { n: 2, m: 4 });
    for (pattern, sparsity, block_size, ties) in [
        (unstructured, 0.5, 128, false),
        (unstructured, 0.3, 128, true),
        (unstructured, 0.7, 48, false), // ends within a word, and a ragged last block
        (unstructured, 0.5, usize::MAX, false),
        (unstructured, 0.0, 128, false),
        (two_of_four, 0.5, 128, false),
        (Pattern::NofM { n: 1, m: 8 }, 0.0, 40, false),
    ] {
        let config = SparseGpt { block_size, ..SparseGpt::default() };
        let factor = Factor::new("w", &gram, n, &config).unwrap();
        let mut ours = weights.clone();
        let result = sparsegpt(
            "w",
            &mut ours,
            &factor,
            pattern,
            sparsity,
            &config,
            if ties { Ties::Reference } else { Ties::ByPosition },
        )
        .unwrap();
        let (expected, mask) = reference(&weights, &gram, n, pattern, sparsity, block_size.min(n), ties);
        assert_eq!(result.mask.shape(), (rows, n));
        let pruned = mask.iter().filter(|&&pruned| pruned).count() as u64;
        assert_eq!(result.mask.pruned(), pruned, "{pattern} {sparsity} {block_size} {ties}");
        if pattern == unstructured && !ties {
            let exact: usize = (0..n)
                .step_by(block_size.min(n))
                .map(|i| ((rows * block_size.min(n - i)) as f64 * sparsity) as usize)
                .sum();
            assert_eq!(pruned, exact as u64);
        }
        // One pair that f32 orders otherwise would show in its whole row.
        assert_eq!(bits(&result.mask), mask, "{pattern} {sparsity} {block_size} {ties}");
        let worst = ours.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(worst < 2e-5, "{pattern} {sparsity} {block_size} {ties}: {worst}");
        result.mask.for_each_pruned(|index| assert_eq!(ours[index].to_bits(), 0));
    }
}

#[test]
fn the_output_is_closer_than_without_an_update() {
    let (rows, n) = (16, 96);
    let gram = gram(n, 300, &[], 9);
    let weights = normal(rows * n, 11);
    let factor = Factor::new("w", &gram, n, &SparseGpt::default()).unwrap();
    let mut updated = weights.clone();
    let config = SparseGpt::default();
    let mask =
        sparsegpt("w", &mut updated, &factor, Pattern::Unstructured, 0.5, &config, Ties::ByPosition).unwrap().mask;
    let mut zeroed = weights.clone();
    mask.for_each_pruned(|index| zeroed[index] = 0.0);
    // tr(D H D^T) is the squared error of the output.
    let loss = |pruned: &[f32]| -> f64 {
        let delta: Vec<f64> = pruned.iter().zip(&weights).map(|(a, b)| f64::from(a - b)).collect();
        let row = |delta: &[f64]| -> f64 { (0..n * n).map(|i| delta[i / n] * f64::from(gram[i]) * delta[i % n]).sum() };
        delta.chunks(n).map(row).sum()
    };
    assert!(loss(&updated) < 0.5 * loss(&zeroed), "{} {}", loss(&updated), loss(&zeroed));
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let (rows, n) = (150, 330);
    let gram = gram(n, 400, &[3], 21);
    let weights = normal(rows * n, 23);
    for pattern in [Pattern::Unstructured, Pattern::NofM { n: 2, m: 4 }] {
        let n = if pattern == Pattern::Unstructured { n } else { 328 };
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let config = SparseGpt::default();
                let gram: Vec<f32> = gram.chunks(330).take(n).flat_map(|row| &row[..n]).copied().collect();
                let factor = Factor::new("w", &gram, n, &config).unwrap();
                let mut ours = weights[..rows * n].to_vec();
                let mask = sparsegpt("w", &mut ours, &factor, pattern, 0.5, &config, Ties::ByPosition).unwrap().mask;
                (ours.iter().map(|w| w.to_bits()).collect::<Vec<_>>(), mask)
            })
        };
        let one = run(1);
        assert!([2, 3].iter().all(|&threads| run(threads) == one), "{pattern}");
    }
}

#[test]
fn dead_inputs_go_first_and_an_unseen_linear_loses_by_magnitude() {
    let (rows, n) = (8, 12);
    let dead = [1, 4, 5, 10];
    let factor = Factor::new("w", &gram(n, 50, &dead, 2), n, &SparseGpt::default()).unwrap();
    let weights = normal(rows * n, 3);
    let run = |factor: &Factor, sparsity: f64| {
        let mut ours = weights.clone();
        let config = SparseGpt::default();
        let mask =
            sparsegpt("w", &mut ours, factor, Pattern::Unstructured, sparsity, &config, Ties::ByPosition).unwrap().mask;
        (ours, mask)
    };
    // A third of the inputs is dead: exactly those go at a third, and nothing else changes.
    let (ours, mask) = run(&factor, 1.0 / 3.0);
    for i in 0..rows * n {
        let gone = dead.contains(&(i % n));
        assert_eq!((mask.is_pruned(i / n, i % n), ours[i]), (gone, if gone { 0.0 } else { weights[i] }));
    }
    // Below that, dead weights are zero without being selected.
    let (ours, mask) = run(&factor, 0.25);
    assert_eq!((mask.pruned(), ours.iter().filter(|&&w| w == 0.0).count()), (24, 32));

    let unseen = Factor::new("expert", &[0.0; 144], n, &SparseGpt::default()).unwrap();
    let (ours, mask) = run(&unseen, 0.5);
    let mut magnitudes: Vec<f32> = weights.iter().map(|w| w.abs()).collect();
    magnitudes.sort_by(f32::total_cmp);
    for i in 0..rows * n {
        let gone = weights[i].abs() < magnitudes[rows * n / 2];
        assert_eq!((mask.is_pruned(i / n, i % n), ours[i]), (gone, if gone { 0.0 } else { weights[i] }));
    }
}

#[test]
fn damping_is_raised_where_it_must_be() {
    // One input twice, and a negative eigenvalue of 0.3 times the mean diagonal: 0.01 and 0.1 do not do, 1 does.
    let gram = [1.0, 1.3, 1.3, 1.0];
    let factor = Factor::new("w", &gram, 2, &SparseGpt::default()).unwrap();
    assert_eq!(factor.damping(), 1.0);
    let config = SparseGpt::default();
    let mut weights = [1.0f32, 0.5, -0.25, 2.0];
    let result = sparsegpt("w", &mut weights, &factor, Pattern::Unstructured, 0.5, &config, Ties::ByPosition).unwrap();
    assert_eq!((result.damping, result.mask.pruned()), (1.0, 2));
    // Rank one: none will not do, and little will.
    let none = SparseGpt { damping: 0.0, ..SparseGpt::default() };
    assert!(Factor::new("w", &[1.0, 1.0, 1.0, 1.0], 2, &none).unwrap().damping() > 0.0);
    let error = Factor::new("model.w", &[1.0, 9.0, 9.0, 1.0], 2, &SparseGpt::default()).unwrap_err().to_string();
    assert!(error.contains("`model.w`: is not positive definite, even with 1 times"), "{error}");
}

#[test]
fn refuses_what_makes_no_sense() {
    let config = SparseGpt::default();
    let new = |gram: &[f32], config: &SparseGpt| Factor::new("model.w", gram, 2, config).unwrap_err().to_string();
    assert!(new(&[1.0, f32::NAN, f32::NAN, 1.0], &config).contains("`model.w`: the value for inputs 0 and 1 is NaN"));
    assert!(new(&[1.0; 3], &config).contains("has 3 values, and the linear has 2 inputs"));
    assert!(new(&[1.0; 4], &SparseGpt { damping: f64::NAN, ..config }).contains("damping = NaN"));
    assert!(new(&[1.0; 4], &SparseGpt { block_size: 0, ..config }).contains("block_size = 0"));

    let identity: Vec<f32> = (0..36).map(|i| f32::from(u8::from(i % 7 == 0))).collect();
    let factor = Factor::new("w", &identity, 6, &config).unwrap();
    let run = |weights: &mut [f32], pattern, sparsity, config: &SparseGpt| {
        sparsegpt("model.w", weights, &factor, pattern, sparsity, config, Ties::ByPosition).unwrap_err().to_string()
    };
    let unstructured = Pattern::Unstructured;
    assert!(run(&mut [1.0; 6], unstructured, 1.0, &config).contains("sparsity = 1"));
    assert!(run(&mut [1.0; 7], unstructured, 0.5, &config).contains("`model.w`: has 7 values"));
    assert!(run(&mut [1.0, f32::INFINITY, 1.0, 1.0, 1.0, 1.0], unstructured, 0.5, &config).contains("row 0, column 1"));
    let groups = Pattern::NofM { n: 2, m: 4 };
    assert!(run(&mut [1.0; 6], groups, 0.5, &config).contains("6 inputs, which 4 does not divide"));
    let odd = SparseGpt { block_size: 4, ..config };
    assert!(run(&mut [1.0; 6], Pattern::NofM { n: 1, m: 3 }, 0.5, &odd).contains("block_size = 4"));
}

#[test]
fn a_model_in_memory_has_the_weights_that_are_written_in_bf16() {
    let root = env!("CARGO_MANIFEST_DIR");
    let model = Model::load(format!("{root}/data/tiny-llama")).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let windows =
        Windows::calibration(format!("{root}/data/corpus/train.txt"), Some(&tokenizer), Sampling::new(2, 64)).unwrap();
    let config = PruneConfig::n_of_m(Method::SparseGpt, 2, 4);
    let pruned = prune(&model, Some(&windows), &config, Progress::Hidden).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    prune_to(&model, Some(&windows), &config, &out, Progress::Hidden).unwrap();
    // From a thread of a pool, which must not wait for another.
    let (pool, again) = (rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap(), dir.path().join("again"));
    pool.install(|| prune_to(&model, Some(&windows), &config, &again, Progress::Hidden)).unwrap();
    let bytes = |out: &std::path::Path| std::fs::read(out.join("model.safetensors")).unwrap();
    assert!(bytes(&out) == bytes(&again));
    let written = Model::load(out.to_str().unwrap()).unwrap();
    for i in 0..model.layers() {
        let (ours, theirs) = (pruned.model.layer(i).unwrap(), written.layer(i).unwrap());
        for (ours, theirs) in ours.linears().into_iter().zip(theirs.linears()) {
            let values = |linear: &Linear| linear.weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert!(values(ours) == values(theirs), "{}", ours.name);
        }
    }
}
