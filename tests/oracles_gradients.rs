//! Gradients of SmolLM2-135M against PyTorch's whole-model autograd (tests/data/README.md), and the memory they take.
//!
//! As `tests/oracles.rs`: `LACUNA_SMOLLM2_GGUF=FILE cargo test --test oracles_gradients -- --ignored --test-threads 1`.

#[path = "common/smollm2.rs"]
mod smollm2;

use candle_core::npy::NpzTensors;
use lacuna::gradients::{Accumulate, Gradients, gradients};
use lacuna::progress::Progress;
use lacuna::text::{Sampling, Windows};
use serde_json::Value;
use smollm2::{oracle_name, smollm2};
use std::time::Instant;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/smollm2");

/// Peak resident memory of this process in MB, since [`forget_peak`].
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

fn forget_peak() {
    // Not on every system, where the peak is then that of the whole test.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn l2(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// Every fourth row of a linear of ours against those of the reference: `|a - b| / |b|`.
fn distance(ours: &Gradients, kind: &str, linear: &str) -> f64 {
    let path = format!("{DATA}/gradients.npz");
    let theirs = NpzTensors::new(path).unwrap().get(&format!("{kind}_{}", oracle_name(linear))).unwrap().unwrap();
    let (_, columns) = theirs.dims2().unwrap();
    let theirs: Vec<f32> = theirs.flatten_all().unwrap().to_vec1().unwrap();
    let ours = ours.get(linear).unwrap().unwrap();
    let rows = ours.chunks(columns).step_by(4);
    let difference: Vec<f32> = rows.flatten().zip(&theirs).map(|(ours, theirs)| ours - theirs).collect();
    assert_eq!(difference.len(), theirs.len());
    let distance = l2(&difference) / l2(&theirs);
    println!("{kind} {linear}: {distance:e}");
    distance
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(format!("{DATA}/gradients.json")).unwrap()).unwrap()
}

fn compute(windows: usize, accumulate: Accumulate) -> Gradients {
    let windows = Windows::calibration(format!("{DATA}/calib.json"), None, Sampling::new(windows, 512)).unwrap();
    gradients(smollm2(), &windows, accumulate, Progress::Stderr).unwrap()
}

/// Largest relative difference of the gradients' lengths in the layers below `layers`.
fn worst_length(ours: &Gradients, layers: usize, theirs: impl Fn(&str) -> f64) -> f64 {
    let below = |name: &&str| (0..layers).any(|i| name.starts_with(&format!("model.layers.{i}.")));
    let difference = |name| (l2(&ours.get(name).unwrap().unwrap()) / theirs(&oracle_name(name)) - 1.0).abs();
    let worst = ours.names().filter(below).map(difference).fold(0.0, f64::max);
    println!("lengths in {layers} layers differ by {worst:e} at most");
    worst
}

#[test]
#[ignore = "needs SmolLM2-135M"]
fn smollm2_gradients_of_a_window_equal_double_precision() {
    let reference = &reference()["window0_f64"];
    let ours = compute(1, Accumulate::Sum);
    assert!((ours.loss_nats - number(&reference["loss"])).abs() < 1e-6, "{}", ours.loss_nats);
    assert!(worst_length(&ours, 30, |name| number(&reference["l2"][name])) < 5e-5);
    for linear in ["model.layers.0.self_attn.k_proj.weight", "model.layers.20.self_attn.v_proj.weight"] {
        assert!(distance(&ours, "window0", linear) < 5e-5);
    }
}

#[test]
#[ignore = "needs SmolLM2-135M"]
fn smollm2_summed_gradients_equal_the_reference_in_a_fraction_of_its_memory() {
    forget_peak();
    let started = Instant::now();
    let ours = compute(16, Accumulate::Sum);
    let (seconds, peak) = (started.elapsed().as_secs_f64(), peak_mb());
    println!("{seconds:.1} s, peak {peak:.0?} MB, loss {}", ours.loss_nats);
    // The reference's pass peaks at 5.4 GB.
    assert!(peak.is_none_or(|peak| peak < 1000.0), "{peak:?} MB");

    let reference = reference();
    let losses = reference["calib_loss_per_window"].as_array().unwrap();
    for (window, (ours, theirs)) in ours.losses.iter().zip(losses).enumerate() {
        assert!((ours - number(theirs)).abs() < 1e-5 * ours, "window {window}: {ours} {theirs}");
    }
    assert_eq!((ours.losses.len(), ours.names().count()), (16, 210));
    // Double precision tells the two apart: PyTorch's f32 elements are 1.5e-4 (layer 0) and 2.3e-4 (layer 15) from it.
    for layer in [0, 15] {
        assert!(distance(&ours, "sum", &format!("model.layers.{layer}.self_attn.k_proj.weight")) < 1e-4);
    }
    assert!(worst_length(&ours, 30, |name| number(&reference["sum_f64"]["l2"][name])) < 1e-4);
    assert!(worst_length(&ours, 1, |name| number(&reference["fingerprints"][name]["sum_grad_l2"])) < 1e-4);
    for name in ours.names() {
        // A sum cancels almost to nothing: its scale is the length, that of random signs.
        let values = ours.get(name).unwrap().unwrap();
        let sum: f64 = values.iter().map(|&x| f64::from(x)).sum();
        let theirs = number(&reference["fingerprints"][oracle_name(name)]["sum_grad_sum"]);
        assert!((sum - theirs).abs() < 5e-3 * l2(&values), "{name}: {sum} {theirs}");
    }
}
