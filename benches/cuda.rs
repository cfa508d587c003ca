//! Selection, packing, gram matrices and a forward pass, on one linear or one small model.
//!
//! ```text
//! cargo bench --profile dev --bench cuda
//! ```

use divan::Bencher;
use divan::counter::ItemsCount;
use lacuna::calibrate::gram;
use lacuna::mask::{Criterion, Mask, Pattern, Per, Ties, select_levels};
use lacuna::model::Model;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn main() {
    divan::main();
}

/// The shape of an MLP projection of SmolLM2-135M.
const SHAPE: (usize, usize) = (1536, 576);

/// Scores like those of normally distributed weights.
fn scores() -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut normal = || (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
    (0..SHAPE.0 * SHAPE.1).map(|_| normal().abs()).collect()
}

fn selected(scores: &[f32], pattern: Pattern, per: Per, sparsities: &[f64]) -> Vec<Mask> {
    let criterion = Criterion { pattern, per, ties: Ties::ByPosition };
    let fill = |row: usize, out: &mut [f32]| out.copy_from_slice(&scores[row * SHAPE.1..(row + 1) * SHAPE.1]);
    select_levels("w", SHAPE, criterion, sparsities, fill).expect("the scores are finite")
}

#[divan::bench(args = [1, 10])]
fn per_row(bencher: Bencher<'_, '_>, levels: usize) {
    let (scores, sparsities) = (scores(), sparsities(levels));
    let bencher = bencher.counter(ItemsCount::new(scores.len()));
    bencher.bench(|| selected(&scores, Pattern::Unstructured, Per::Row, &sparsities));
}

#[divan::bench(args = [1, 10])]
fn per_layer(bencher: Bencher<'_, '_>, levels: usize) {
    let (scores, sparsities) = (scores(), sparsities(levels));
    let bencher = bencher.counter(ItemsCount::new(scores.len()));
    bencher.bench(|| selected(&scores, Pattern::Unstructured, Per::Layer, &sparsities));
}

fn sparsities(levels: usize) -> Vec<f64> {
    if levels == 1 { vec![0.5] } else { (0..levels).map(|i| 0.05 + 0.9 * i as f64 / levels as f64).collect() }
}

#[divan::bench(args = ["2:4", "4:8"])]
fn n_of_m(bencher: Bencher<'_, '_>, pattern: &str) {
    let (scores, pattern) = (scores(), pattern.parse().expect("a pattern"));
    let bencher = bencher.counter(ItemsCount::new(scores.len()));
    bencher.bench(|| selected(&scores, pattern, Per::Row, &[0.5]));
}

#[divan::bench]
fn packbits(bencher: Bencher<'_, '_>) {
    let mask = selected(&scores(), Pattern::Unstructured, Per::Row, &[0.5]).remove(0);
    bencher.counter(ItemsCount::new(SHAPE.0 * SHAPE.1)).bench(|| mask.to_packbits());
}

/// Of the input of an MLP projection in a window of 512 tokens.
#[divan::bench(args = [576, 1536])]
fn gram_matrix(bencher: Bencher<'_, '_>, width: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let x: Vec<f32> = (0..512 * width).map(|_| rng.random::<f32>() - 0.5).collect();
    bencher.counter(ItemsCount::new(512usize)).bench(|| gram(&x, 512, width));
}

/// Tokens through the model that ships with the crate.
#[divan::bench]
fn forward(bencher: Bencher<'_, '_>) {
    let model = Model::load(concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny-llama")).expect("the model ships with us");
    let tokens: Vec<u32> = (0..model.config().max_position_embeddings.min(256) as u32).collect();
    bencher.counter(ItemsCount::new(tokens.len())).bench(|| model.forward(&tokens).expect("a forward pass"));
}
