//! Gradients of SmolLM2-135M against PyTorch's whole-model autograd (tests/data/README.md), and the memory they take.
//!
//! As `tests/oracles.rs`: `LACUNA_SMOLLM2_GGUF=FILE cargo test --test oracles_gradients -- --ignored --test-threads 1`.

#[path = "common/smollm2.rs"]
mod smollm2;

use candle_core::npy::NpzTensors;
use lacuna::gradients::{Accumulate, Gradients, gradients};
use lacuna::progress::Progress;
use serde_json::Value;
use smollm2::{calibration, smollm2};
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

/// Every fourth row of a k_proj of ours against the reference: `|a - b| / |b|`.
fn distance(ours: &Gradients, block: usize, oracle: &str) -> f64 {
    let path = format!("{DATA}/gradients_k_proj.npz");
    let theirs = NpzTensors::new(path).unwrap().get(oracle).unwrap().unwrap();
    let (_, columns) = theirs.dims2().unwrap();
    let theirs: Vec<f32> = theirs.flatten_all().unwrap().to_vec1().unwrap();
    let ours = ours.get(&format!("model.layers.{block}.self_attn.k_proj.weight")).unwrap().unwrap();
    let rows = ours.chunks(columns).step_by(4);
    let difference: Vec<f32> = rows.flatten().zip(&theirs).map(|(ours, theirs)| ours - theirs).collect();
    assert_eq!(difference.len(), theirs.len());
    l2(&difference) / l2(&theirs)
}

#[test]
#[ignore = "needs SmolLM2-135M"]
fn smollm2_gradients_equal_the_reference_in_a_fraction_of_its_memory() {
    let model = smollm2();
    let windows = calibration();

    let reference = std::fs::read(format!("{DATA}/gradients.json")).unwrap();
    let reference: Value = serde_json::from_slice(&reference).unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    for accumulate in [Accumulate::Sum, Accumulate::Max] {
        forget_peak();
        let started = Instant::now();
        let ours = gradients(model, &windows, accumulate, Progress::Stderr).unwrap();
        let (seconds, peak) = (started.elapsed().as_secs_f64(), peak_mb());
        println!("{accumulate:?}: {seconds:.1} s, peak {peak:.0?} MB, loss {}", ours.loss_nats);
        // The reference's pass peaks at 5.4 GB.
        assert!(peak.is_none_or(|peak| peak < 1000.0), "{peak:?} MB");

        for (window, (ours, theirs)) in
            ours.losses.iter().zip(reference["calib_loss_per_window"].as_array().unwrap()).enumerate()
        {
            assert!((ours - number(theirs)).abs() < 1e-5 * ours, "window {window}: {ours} {theirs}");
        }
        assert_eq!(ours.names().count(), 210);
        let (mut worst, mut worst_sum) = (0f64, 0f64);
        for name in ours.names() {
            let theirs = &reference["fingerprints"][name.replace("model.layers.", "block").replace(".weight", "")];
            let values = ours.get(name).unwrap().unwrap();
            let length = l2(&values);
            let key = if accumulate == Accumulate::Sum { "sum_grad_l2" } else { "max_abs_grad_l2" };
            worst = worst.max((length / number(&theirs[key]) - 1.0).abs());
            if accumulate == Accumulate::Sum {
                // The sum cancels to almost nothing; its scale is that of `values.len()` random signs.
                let sum: f64 = values.iter().map(|&x| f64::from(x)).sum();
                worst_sum = worst_sum.max((sum - number(&theirs["sum_grad_sum"])).abs() / length);
            }
        }
        println!("lengths differ by {worst:e} at most, sums by {worst_sum:e} lengths");
        assert!(worst < 1e-4, "{worst:e}");
        assert!(worst_sum < 1e-2, "{worst_sum:e}");
        let cases: &[(usize, &str)] = match accumulate {
            Accumulate::Sum => &[(0, "sum_grad"), (15, "sum_grad_b15")],
            Accumulate::Max => &[(0, "max_abs_grad")],
        };
        for &(block, oracle) in cases {
            let distance = distance(&ours, block, oracle);
            println!("{oracle}: {distance:e}");
            assert!(distance < 1e-4, "{oracle}: {distance:e}");
        }
    }
}
