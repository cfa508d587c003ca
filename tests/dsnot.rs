//! DSnoT against the reference implementation (tests/data/make_dsnot_fixtures.py), and what it promises.

use lacuna::dsnot::{Dsnot, DsnotInputs, refine};
use lacuna::mask::{Mask, Pattern, Per, select};
use serde_json::Value;

/// A mask from scores: exactly those weights go that score 0.
fn mask_of(pruned: &[Vec<bool>]) -> Mask {
    let (rows, cols) = (pruned.len(), pruned[0].len());
    let count = pruned.iter().flatten().filter(|&&pruned| pruned).count();
    let sparsity = (count as f64 + 0.5) / (rows * cols) as f64;
    select("mask", (rows, cols), Pattern::Unstructured, Per::Layer, sparsity, |row, scores| {
        scores.iter_mut().zip(&pruned[row]).for_each(|(score, &pruned)| *score = f32::from(u8::from(!pruned)));
    })
    .unwrap()
}

fn bits(mask: &Mask) -> Vec<Vec<bool>> {
    let (rows, cols) = mask.shape();
    (0..rows).map(|row| (0..cols).map(|col| mask.is_pruned(row, col)).collect()).collect()
}

struct Layer {
    weights: Vec<f32>,
    norms: Vec<f32>,
    sums: Vec<f32>,
    variances: Vec<f32>,
}

impl Layer {
    fn inputs(&self) -> DsnotInputs<'_> {
        DsnotInputs { norms: &self.norms, sums: &self.sums, variances: &self.variances }
    }

    /// Seeded weights `(rows, cols)` and statistics.
    fn random(rows: usize, cols: usize, seed: u64) -> Layer {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        let mut take = |count: usize, low: f32, high: f32| -> Vec<f32> {
            (0..count).map(|_| low + (high - low) * uniform()).collect()
        };
        Layer {
            weights: take(rows * cols, -0.05, 0.05),
            norms: take(cols, 1.0, 20.0),
            sums: take(cols, -30.0, 40.0),
            variances: take(cols, 0.1, 4.0),
        }
    }

    fn wanda(&self, cols: usize, pattern: Pattern, sparsity: f64) -> Mask {
        select("w", (self.weights.len() / cols, cols), pattern, Per::Row, sparsity, |row, scores| {
            let weights = &self.weights[row * cols..];
            scores.iter_mut().zip(weights).zip(&self.norms).for_each(|((s, w), n)| *s = w.abs() * n);
        })
        .unwrap()
    }
}

/// One row by its definition: full stable sorts, pointers from both ends, everything in f64.
fn reference_row(layer: &Layer, weights: &[f32], pruned: &mut [bool], pattern: Pattern, config: &Dsnot) -> u64 {
    let cols = weights.len();
    let contribution = |col: usize| f64::from(weights[col] * layer.sums[col]);
    let wanda = |col: usize| weights[col].abs() * layer.norms[col];
    let before = pruned.to_vec();
    let mut error: f64 = (0..cols).filter(|&col| before[col]).map(contribution).sum();
    let sign = error.signum();
    let regrow = |col: usize| if before[col] { contribution(col) / f64::from(layer.variances[col]) } else { 0.0 };
    let mut order: Vec<usize> = (0..cols).collect();
    order.sort_by(|&a, &b| regrow(a).total_cmp(&regrow(b)));
    let mut kept: Vec<usize> = (0..cols).filter(|&col| !before[col]).collect();
    kept.sort_by(|&a, &b| wanda(a).total_cmp(&wanda(b)));
    let mut losing: Vec<usize> = kept.iter().copied().filter(|&col| contribution(col) < 0.0).collect();
    losing.extend(kept.iter().rev().copied().filter(|&col| contribution(col) > 0.0));
    let (mut grow, mut lose) = ((0, cols - 1), (0, losing.len() - 1));
    let mut touched = before.clone();
    let mut swaps = 0;
    for _ in 0..config.max_cycles {
        if error.abs() <= config.threshold {
            break;
        }
        let grown = if error > 0.0 { (order[grow.1], grow.1 -= 1).0 } else { (order[grow.0], grow.0 += 1).0 };
        let dropped = match pattern {
            Pattern::Unstructured if error < 0.0 => (losing[lose.1], lose.1 -= 1).0,
            Pattern::Unstructured => (losing[lose.0], lose.0 += 1).0,
            Pattern::NofM { m, .. } => {
                let group = grown / m * m..grown / m * m + m;
                group.filter(|&col| !touched[col]).min_by(|&a, &b| wanda(a).total_cmp(&wanda(b))).unwrap()
            }
        };
        let after = error + contribution(dropped) - contribution(grown);
        if (config.keep_sign || pattern != Pattern::Unstructured) && after.signum() != sign {
            break;
        }
        (pruned[grown], pruned[dropped], touched[dropped]) = (false, true, true);
        error = after;
        swaps += 1;
    }
    swaps
}

#[test]
fn masks_equal_the_reference_implementation() {
    let text = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/dsnot.json")).unwrap();
    let fixture: Value = serde_json::from_slice(&text).unwrap();
    let numbers = |name: &str| serde_json::from_value::<Vec<f32>>(fixture[name].clone()).unwrap();
    let layer = Layer {
        weights: numbers("weights"),
        norms: numbers("norms"),
        sums: numbers("sums"),
        variances: numbers("variances"),
    };
    let cases = fixture["cases"].as_array().unwrap();
    for case in cases {
        let mask = |name: &str| -> Vec<Vec<bool>> {
            let rows = case[name].as_array().unwrap().iter().map(|row| row.as_str().unwrap());
            rows.map(|row| row.bytes().map(|bit| bit == b'1').collect()).collect()
        };
        let pattern: Pattern = case["pattern"].as_str().unwrap().parse().unwrap();
        let config = Dsnot {
            max_cycles: case["max_cycles"].as_u64().unwrap() as usize,
            threshold: case["threshold"].as_f64().unwrap(),
            variance_power: 1.0,
            keep_sign: case["keep_sign"].as_bool().unwrap(),
        };
        let mut ours = mask_of(&mask("before"));
        assert_eq!(bits(&ours), mask("before"));
        let swaps = refine("w", &layer.weights, &mut ours, &layer.inputs(), pattern, &config).unwrap();
        assert_eq!(bits(&ours), mask("after"), "{pattern} {config:?}");
        assert_eq!(swaps, case["swaps"].as_u64().unwrap());
    }
    assert!(cases.len() >= 6 && cases.iter().all(|case| case["swaps"].as_u64().unwrap() > 0));
}

#[test]
fn masks_equal_the_definition() {
    let (rows, cols) = (33, 520);
    for (seed, pattern, sparsity) in [
        (1, Pattern::Unstructured, 0.5),
        (2, Pattern::Unstructured, 0.7),
        (3, Pattern::NofM { n: 2, m: 4 }, 0.5),
        (4, Pattern::NofM { n: 4, m: 8 }, 0.5),
    ] {
        for keep_sign in [false, true] {
            let config = Dsnot { keep_sign, ..Dsnot::default() };
            let layer = Layer::random(rows, cols, seed);
            let mut ours = layer.wanda(cols, pattern, sparsity);
            let mut expected = bits(&ours);
            let mut swaps = 0;
            for (weights, pruned) in layer.weights.chunks(cols).zip(&mut expected) {
                swaps += reference_row(&layer, weights, pruned, pattern, &config);
            }
            assert_eq!(refine("w", &layer.weights, &mut ours, &layer.inputs(), pattern, &config).unwrap(), swaps);
            assert!(swaps > rows as u64, "{swaps}");
            assert_eq!(bits(&ours), expected, "{pattern} {keep_sign}");
        }
    }
}

#[test]
fn counts_stay_and_the_expected_error_shrinks() {
    let (rows, cols) = (40, 64); // so narrow that candidates run out
    for (pattern, group) in [
        (Pattern::Unstructured, cols),
        (Pattern::NofM { n: 1, m: 4 }, 4), // one kept weight for up to three to grow
        (Pattern::NofM { n: 1, m: 2 }, 2),
    ] {
        let layer = Layer::random(rows, cols, 7);
        let config = Dsnot { threshold: 0.01, ..Dsnot::default() };
        let mut mask = layer.wanda(cols, pattern, 0.75);
        let before = bits(&mask);
        let swaps = refine("w", &layer.weights, &mut mask, &layer.inputs(), pattern, &config).unwrap();
        let after = bits(&mask);
        let count = |rows: &[Vec<bool>]| -> Vec<usize> {
            rows.iter()
                .flat_map(|row| row.chunks(group))
                .map(|row| row.iter().filter(|&&pruned| pruned).count())
                .collect()
        };
        assert_eq!(count(&before), count(&after), "{pattern}");
        let grown = before.iter().flatten().zip(after.iter().flatten()).filter(|(a, b)| **a && !**b).count();
        assert!(swaps > 0 && swaps == grown as u64, "{pattern}: {swaps} {grown}");
        let errors = |mask: &[Vec<bool>]| -> f32 {
            let row = |(row, pruned): (usize, &Vec<bool>)| -> f32 {
                let of = |col: usize| layer.weights[row * cols + col] * layer.sums[col];
                (0..cols).filter(|&col| pruned[col]).map(of).sum::<f32>().abs()
            };
            mask.iter().enumerate().map(row).sum()
        };
        assert!(errors(&after) < 0.7 * errors(&before), "{pattern}: {} {}", errors(&before), errors(&after));
    }
}

#[test]
fn dead_inputs_are_never_grown() {
    let cols = 32;
    let mut layer = Layer::random(8, cols, 9);
    for col in [0, 5, 6] {
        (layer.norms[col], layer.sums[col], layer.variances[col]) = (0.0, 0.0, 0.0);
    }
    let mut mask = layer.wanda(cols, Pattern::Unstructured, 0.5);
    refine("w", &layer.weights, &mut mask, &layer.inputs(), Pattern::Unstructured, &Dsnot::default()).unwrap();
    assert!((0..8).all(|row| [0, 5, 6].iter().all(|&col| mask.is_pruned(row, col))));
}

#[test]
fn refuses_what_makes_no_sense() {
    let layer = Layer::random(2, 6, 1);
    let run = |layer: &Layer, pattern, config: &Dsnot| {
        let mut mask = Mask::none(2, 6);
        refine("model.w", &layer.weights, &mut mask, &layer.inputs(), pattern, config).unwrap_err().to_string()
    };
    let (free, default) = (Pattern::Unstructured, Dsnot::default());
    assert!(run(&layer, free, &Dsnot { threshold: f64::NAN, ..default }).contains("threshold = NaN"));
    assert!(run(&layer, Pattern::NofM { n: 2, m: 4 }, &default).contains("6 inputs, which 4 does not divide"));
    let short = Layer { sums: vec![0.0; 5], ..Layer::random(2, 6, 1) };
    assert!(run(&short, free, &default).contains("`model.w`: has 6 inputs, and there are 5 sums"));
    let broken = Layer { norms: vec![f32::NAN; 6], ..Layer::random(2, 6, 1) };
    assert!(run(&broken, free, &default).contains("the norms of input 0 are NaN"));
    let narrow = Layer { weights: vec![0.0; 11], ..Layer::random(2, 6, 1) };
    assert!(run(&narrow, free, &default).contains("has 11 values"));
    let mut bad = Layer::random(2, 6, 1);
    bad.weights[7] = f32::INFINITY;
    assert!(run(&bad, free, &default).contains("row 1, column 1 is inf"));
}
