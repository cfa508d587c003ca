//! SparseGPT on the linears of one layer of SmolLM2-135M, with random weights and activations.
//!
//! ```text
//! cargo bench --profile dev --bench sparsegpt
//! ```

use divan::{Bencher, black_box};
use lacuna::mask::{Pattern, Ties};
use lacuna::sparsegpt::{Factor, SparseGpt, sparsegpt};

const HIDDEN: usize = 576;
const MLP: usize = 1536;

/// Outputs of the linears that read each input: q, k, v; o; gate, up; down.
const LAYER: [(usize, &[usize]); 4] =
    [(HIDDEN, &[576, 192, 192]), (HIDDEN, &[576]), (HIDDEN, &[1536, 1536]), (MLP, &[576])];

fn main() {
    divan::main();
}

fn uniform(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

/// A positive definite matrix, cheaper to make than a real gram.
fn gram(width: usize) -> Vec<f32> {
    let x = uniform(width);
    let value = |i: usize, j: usize| x[i] * x[j] + 0.5f32.powi(i.abs_diff(j).min(40) as i32);
    (0..width * width).map(|at| value(at / width, at % width)).collect()
}

#[divan::bench(args = [HIDDEN, MLP], sample_count = 10)]
fn factor(bencher: Bencher<'_, '_>, width: usize) {
    let gram = gram(width);
    bencher.bench(|| Factor::new("w", black_box(&gram), width, &SparseGpt::default()).expect("positive definite"));
}

#[divan::bench(args = ["unstructured", "2:4"], sample_count = 10)]
fn layer(bencher: Bencher<'_, '_>, pattern: &str) {
    let pattern: Pattern = pattern.parse().expect("a pattern");
    let grams: Vec<_> = LAYER.iter().map(|&(width, _)| gram(width)).collect();
    let weights = uniform(MLP * MLP);
    let config = SparseGpt::default();
    bencher.bench(|| {
        for (&(width, outputs), gram) in LAYER.iter().zip(&grams) {
            let factor = Factor::new("w", gram, width, &config).expect("positive definite");
            for out in outputs {
                let mut weights = weights[..out * width].to_vec();
                sparsegpt("w", &mut weights, &factor, pattern, 0.5, &config, Ties::ByPosition).expect("finite weights");
                black_box(&weights);
            }
        }
    });
}
