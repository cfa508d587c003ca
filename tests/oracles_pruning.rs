//! Methods and allocations on SmolLM2-135M against the reference implementations (tests/data/README.md).
//!
//! As `tests/oracles.rs`: `LACUNA_SMOLLM2_GGUF=FILE cargo test --test oracles_pruning -- --ignored --test-threads 1`.
//! Sequential pruning of this model is chaotic in floating point: block 0 is compared strictly, a free-running chain with the
//! spread that the reference itself has over thread counts and tiny perturbations.

#[path = "common/smollm2.rs"]
mod smollm2;

use lacuna::allocate::{Allocation, Owl};
use lacuna::mask::{Mask, MaskSet, Ties};
use lacuna::progress::Progress;
use lacuna::prune::{MasksConfig, Method, PruneConfig, Pruned, masks, outliers, prune};
use serde_json::Value;
use smollm2::{DATA, calibration, differing_bits, nll, smollm2};

fn json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(format!("{DATA}/{path}")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn pruned(config: &PruneConfig) -> (Pruned, f64) {
    let pruned = prune(smollm2(), Some(&calibration()), config, Progress::Hidden).unwrap();
    let nll = nll(&pruned.model);
    println!("{} {} {} {}: nll {nll}", config.method, config.pattern, config.allocation, config.sparsity);
    (pruned, nll)
}

/// Bits of block 0 that differ, of its 3,540,096 hundredths.
fn differing(masks: &[(String, Mask)], oracle: &str) -> u32 {
    let bits =
        masks.iter().take(7).map(|(name, mask)| differing_bits(mask, &format!("smollm2/{oracle}.npz"), name)).sum();
    println!("{oracle}: {bits} bits of block 0 differ");
    bits
}

#[test]
#[ignore = "needs SmolLM2-135M"]
fn smollm2_taylor_and_gradient_equal_the_reference() {
    for (method, oracle, expected) in [
        (Method::Taylor, "mask_taylor_50", 6.929_354_682_582_06),
        (Method::Gradient, "mask_gradient_50", 11.941_632_600_811_854),
    ] {
        let (Pruned { masks, .. }, nll) = pruned(&PruneConfig::new(method, 0.5));
        // Gradients differ in the last digits, which decides near ties: a few in a million weights.
        assert!(differing(&masks, oracle) <= 200, "{method}");
        assert!((nll - expected).abs() < 0.01, "{method}: {nll}");
    }
}

#[test]
#[ignore = "needs SmolLM2-135M"]
fn smollm2_magnitude_with_reference_ties_equals_the_reference() {
    let (Pruned { record, .. }, nll) =
        pruned(&PruneConfig { ties: Ties::Reference, ..PruneConfig::new(Method::Magnitude, 0.5) });
    assert!((record.sparsity() - 0.500_086_786_717_544_4).abs() < 1e-12, "{}", record.sparsity());
    assert!((nll - 5.942_208_710_119_456).abs() < 1e-3, "{nll}");
}

#[test]
#[ignore = "needs SmolLM2-135M"]
fn smollm2_owl_ratios_equal_the_reference() {
    let oracle = json("smollm2/owl.json");
    let owl = Owl::default();
    let ours = outliers(smollm2(), &calibration(), owl, Progress::Hidden).unwrap();
    for (ours, theirs) in ours.iter().zip(numbers(&oracle["outliers_percent"])) {
        assert!((ours - theirs).abs() <= 1e-4 * theirs, "{ours} {theirs}");
    }
    let ours = owl.sparsities(&ours, 0.5).unwrap();
    for (ours, theirs) in ours.iter().zip(numbers(&oracle["sparsities_50"])) {
        assert!((ours - theirs).abs() <= 1e-4, "{ours} {theirs}");
    }
    let (Pruned { record, .. }, nll) =
        pruned(&PruneConfig::new(Method::Wanda, 0.5).with_allocation(Allocation::Owl(owl)));
    assert!((record.sparsity() - 0.499_354_383_680_555_57).abs() < 1e-4, "{}", record.sparsity());
    // At 50% OWL cannot be told from Wanda, whose spread is 3.9946 to 4.0140.
    assert!((3.97..4.03).contains(&nll), "{nll}");
}

#[test]
#[ignore = "needs SmolLM2-135M"]
fn smollm2_masks_of_ten_sparsities_are_nested_and_the_same_on_one_thread() {
    let levels: Vec<f64> = (1..10).map(|i| f64::from(i) / 10.0).collect();
    let config = MasksConfig::new(&[Method::Wanda, Method::Magnitude], &levels);
    let make = || masks(smollm2(), Some(&calibration()), &config, Progress::Hidden).unwrap();
    let sets = make();
    assert_eq!(sets.len(), 18);
    let method = |set: &MaskSet| set.metadata.clone().unwrap().pruning.unwrap().method;
    for pair in sets.windows(2).filter(|pair| method(&pair[0]) == method(&pair[1])) {
        assert!(pair[0].is_nested_in(&pair[1]).unwrap(), "{} {} is not nested", method(&pair[0]), pair[0].sparsity());
    }
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(make);
    assert!(sets == one);
}
