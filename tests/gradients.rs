//! Gradients by layer against whole-model autograd and finite differences, on every family.

#[path = "common/random.rs"]
mod random;

use candle_core::{DType, Device, Tensor, Var};
use lacuna::checkpoint::Checkpoint;
use lacuna::evaluate::evaluate;
use lacuna::gradients::{Accumulate, Gradients, gradients};
use lacuna::model::Model;
use lacuna::progress::Progress;
use lacuna::text::{Consecutive, Windows};
use random::with;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const CPU: Device = Device::Cpu;
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

fn windows(ids: Vec<Vec<u32>>) -> Windows {
    Windows { name: "random".into(), seqlen: ids[0].len(), ids }
}

fn random_windows(count: usize, seqlen: usize, seed: u64) -> Windows {
    windows((0..count).map(|i| random::tokens(seqlen, 128, seed + i as u64)).collect())
}

/// A random model of a family. The directory goes with the second value.
fn family(config: &Value, seed: u64) -> (Model, tempfile::TempDir) {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("model");
    random::write(&dir, config, DType::F32, u64::MAX, seed);
    (random::open(&dir), parent)
}

fn compute(model: &Model, windows: &Windows, accumulate: Accumulate) -> Gradients {
    gradients(model, windows, accumulate, Progress::Hidden).unwrap()
}

fn weights(model: &Model) -> BTreeMap<String, Tensor> {
    let layers = (0..model.layers()).map(|i| model.layer(i).unwrap());
    layers
        .flat_map(|layer| layer.linears().into_iter().cloned().collect::<Vec<_>>())
        .map(|l| (l.name, l.weight))
        .collect()
}

/// Loss and accumulated gradients by one graph of the whole model per window, with candle's own cross entropy.
fn whole_model(model: &Model, windows: &Windows, accumulate: Accumulate) -> (f64, BTreeMap<String, Vec<f32>>) {
    let vars: BTreeMap<String, Var> =
        weights(model).into_iter().map(|(name, weight)| (name, Var::from_tensor(&weight).unwrap())).collect();
    let replaced = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone()));
    let model = model.with_tensors(replaced).unwrap();
    let mut totals: BTreeMap<String, Vec<f32>> =
        vars.iter().map(|(name, var)| (name.clone(), vec![0.0; var.elem_count()])).collect();
    let mut sum = 0.0;
    for ids in &windows.ids {
        let predicted = ids.len() - 1;
        let input = Tensor::new(ids.as_slice(), &CPU).unwrap();
        let logits = model.forward_batch(&input.unsqueeze(0).unwrap(), &mut ()).unwrap().squeeze(0).unwrap();
        let targets = input.narrow(0, 1, predicted).unwrap();
        let loss = candle_nn::loss::cross_entropy(&logits.narrow(0, 0, predicted).unwrap(), &targets).unwrap();
        sum += f64::from(loss.to_scalar::<f32>().unwrap());
        let store = loss.backward().unwrap();
        for (name, var) in &vars {
            let Some(gradient) = store.get(var) else { continue };
            let values: Vec<f32> = gradient.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap();
            for (total, x) in totals.get_mut(name).unwrap().iter_mut().zip(values) {
                *total = if accumulate == Accumulate::Sum { *total + x } else { total.max(x.abs()) };
            }
        }
    }
    (sum / windows.ids.len() as f64, totals)
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

/// `|a - b| / |b|`; 0 where both are 0.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference = norm(a.iter().zip(b).map(|(a, b)| a - b));
    if difference == 0.0 { 0.0 } else { difference / norm(b.iter().copied()) }
}

fn check_against_whole_model(what: &str, model: &Model, windows: &Windows, tolerance: f64) {
    for accumulate in [Accumulate::Sum, Accumulate::Max] {
        let ours = compute(model, windows, accumulate);
        let (loss, theirs) = whole_model(model, windows, accumulate);
        assert!((ours.loss_nats - loss).abs() < 1e-6 * loss, "{what}: {} {loss}", ours.loss_nats);
        assert_eq!(ours.losses.len(), windows.ids.len());
        assert_eq!(ours.names().count(), theirs.len(), "{what}");
        assert!(theirs.values().any(|gradient| norm(gradient.iter().copied()) > 1e-4), "{what}: nothing to compare");
        for (name, theirs) in &theirs {
            let ours = ours.get(name).unwrap().unwrap();
            let distance = distance(&ours, theirs);
            assert!(distance < tolerance, "{what}: {accumulate:?} {name}: {distance:e}");
        }
    }
}

#[test]
fn fixtures_of_every_mixture_equal_whole_model_autograd() {
    for name in ["mixtral", "olmoe", "qwen2-moe", "qwen3-moe", "gpt-oss", "gpt-oss-f32", "gpt-oss-mxfp4"] {
        let dir = format!("{DATA}/tiny-{name}");
        let model = Model::open(&Checkpoint::open(&dir).unwrap(), DType::F32, &CPU).unwrap();
        let tokens = if name == "gpt-oss-mxfp4" { format!("{dir}/../tiny-gpt-oss-f32") } else { dir };
        let windows = Windows::evaluation(format!("{tokens}/tokens.json"), None, Consecutive::of(40).first(3)).unwrap();
        check_against_whole_model(name, &model, &windows, 1e-5);
    }
}

fn dense_families() -> Vec<Value> {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32});
    vec![
        random::llama(),
        with(random::llama(), json!({"tie_word_embeddings": true, "rope_scaling": llama3})),
        with(random::llama(), json!({"model_type": "mistral", "sliding_window": 7, "head_dim": 24})),
        with(random::llama(), json!({"model_type": "qwen2"})),
        with(random::llama(), json!({"model_type": "qwen3", "head_dim": 32, "attention_bias": true})),
    ]
}

#[test]
fn dense_families_equal_whole_model_autograd() {
    // Long enough that the head sees several pieces of a window, the last one short.
    for (seed, config) in dense_families().into_iter().enumerate() {
        let (model, _dir) = family(&config, seed as u64);
        let windows = random_windows(3, 140, 10 * seed as u64);
        check_against_whole_model(&config["model_type"].to_string(), &model, &windows, 1e-5);
        let ours = compute(&model, &windows, Accumulate::Sum);
        let expected: Vec<String> = (0..model.layers())
            .flat_map(|i| model.layer(i).unwrap().linears().iter().map(|l| l.name.clone()).collect::<Vec<_>>())
            .collect();
        assert_eq!(ours.names().collect::<Vec<_>>(), expected);
        assert_eq!(ours.get("model.norm.weight").unwrap(), None);
    }
}

/// Outside f32 the model is composed of candle's operators, so this is another path with another gradient.
#[test]
fn other_dtypes_give_the_same_gradients() {
    let gpt_oss =
        json!({"model_type": "gpt_oss", "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 6});
    for config in [dense_families()[2].clone(), with(random::llama(), gpt_oss)] {
        let windows = random_windows(2, 40, 5);
        let (model, _dir) = family(&config, 3);
        let single = compute(&model, &windows, Accumulate::Sum);
        for (dtype, tolerance) in [(DType::F64, 1e-5), (DType::BF16, 0.1)] {
            let model = Model::open(model.checkpoint().unwrap(), dtype, &CPU).unwrap();
            let other = compute(&model, &windows, Accumulate::Sum);
            for name in single.names() {
                // What one expert gets of a text are a few tokens, over which bf16's rounding does not even out.
                let few = dtype == DType::BF16 && name.contains(".experts.");
                let tolerance = if few { 2.0 * tolerance } else { tolerance };
                let distance = distance(&other.get(name).unwrap().unwrap(), &single.get(name).unwrap().unwrap());
                assert!(distance < tolerance, "{dtype:?} {name}: {distance:e}");
            }
        }
    }
}

#[test]
fn slopes_equal_finite_differences_of_the_loss() {
    // Every token goes to both experts: the loss has no steps.
    let experts = json!({"model_type": "qwen2_moe", "num_experts": 2, "num_experts_per_tok": 2,
        "moe_intermediate_size": 40, "shared_expert_intermediate_size": 56, "mlp_only_layers": [0]});
    for config in [random::llama(), with(random::llama(), experts)] {
        let (model, _dir) = family(&config, 11);
        let windows = random_windows(2, 48, 70);
        let sum = compute(&model, &windows, Accumulate::Sum);
        for (name, weight) in weights(&model) {
            let gradient = sum.get(&name).unwrap().unwrap();
            let length = norm(gradient.iter().copied());
            assert!(length > 1e-4, "{name}");
            // Along the gradient, and along its signs, where every element counts the same.
            let along: Vec<f32> = gradient.iter().map(|x| x / length as f32).collect();
            let signs: Vec<f32> = gradient.iter().map(|x| x.signum() / (gradient.len() as f32).sqrt()).collect();
            for direction in [along, signs] {
                let slope: f64 = gradient.iter().zip(&direction).map(|(&g, &d)| f64::from(g) * f64::from(d)).sum();
                let direction = Tensor::from_vec(direction, weight.shape(), &CPU).unwrap();
                let loss = |step: f64| {
                    let moved = (&weight + (&direction * step).unwrap()).unwrap();
                    let moved = model.with_tensors([(name.clone(), moved)]).unwrap();
                    evaluate(&moved, &windows, Progress::Hidden).unwrap().nll_nats * windows.ids.len() as f64
                };
                const STEP: f64 = 0.02;
                let numeric = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
                assert!((numeric - slope).abs() < 0.01 * slope, "{} {name}: {numeric} {slope}", config["model_type"]);
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let experts = json!({"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2});
    for config in [random::llama(), with(random::llama(), experts)] {
        let (model, _dir) = family(&config, 4);
        let windows = random_windows(5, 90, 33);
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| compute(&model, &windows, Accumulate::Sum))
        };
        let (one, others) = (on(1), [on(2), on(3)]);
        for other in others {
            assert_eq!(one.losses, other.losses);
            for name in one.names() {
                let bits = |gradients: &Gradients| -> Vec<u32> {
                    gradients.get(name).unwrap().unwrap().iter().map(|x| x.to_bits()).collect()
                };
                assert!(bits(&one) == bits(&other), "{name}");
            }
        }
    }
}

#[test]
fn experts_that_no_token_reaches_have_no_slope() {
    let dir = format!("{DATA}/tiny-olmoe");
    let model = Model::open(&Checkpoint::open(dir).unwrap(), DType::F32, &CPU).unwrap();
    // Two tokens reach four of the eight experts at most.
    let sum = compute(&model, &windows(vec![vec![3, 70]]), Accumulate::Sum);
    let lengths = |kind: &str| -> Vec<f64> {
        let of = |e| format!("model.layers.1.mlp.experts.{e}.{kind}.weight");
        (0..8).map(|e| norm(sum.get(&of(e)).unwrap().unwrap().into_iter())).collect()
    };
    for kind in ["gate_proj", "up_proj", "down_proj"] {
        let lengths = lengths(kind);
        let zero = lengths.iter().filter(|&&length| length == 0.0).count();
        assert!((4..8).contains(&zero), "{kind}: {lengths:?}");
    }
}

#[test]
fn bad_input_is_refused_with_layer_and_window() {
    let (model, _dir) = family(&random::llama(), 9);
    let run = |model: &Model, ids: Vec<Vec<u32>>| {
        let error = gradients(model, &windows(ids), Accumulate::Sum, Progress::Hidden).unwrap_err();
        (matches!(error, lacuna::Error::Argument { .. }), error.to_string())
    };
    let good = || vec![vec![1, 2, 3], vec![4, 5, 6]];
    for (ids, problem) in [
        (vec![vec![1]], "windows = 1 x 1: gradients need"),
        (vec![vec![1, 2, 3], vec![4, 5]], "as many in all"),
        (vec![vec![1, 2, 3], vec![4, 128, 6]], "token id = 128: window 1 of random holds it"),
    ] {
        let (argument, error) = run(&model, ids);
        assert!(argument && error.contains(problem), "{error}");
    }
    let none = Windows { name: "none".into(), seqlen: 3, ids: Vec::new() };
    assert!(gradients(&model, &none, Accumulate::Max, Progress::Hidden).is_err());
    let half = Model::open(model.checkpoint().unwrap(), DType::F16, &CPU).unwrap();
    assert!(run(&half, good()).1.starts_with("dtype = f16"));

    // `row` of a tensor is NaN.
    let damaged = |name: &str, row: usize| {
        let tensor = model.checkpoint().unwrap().load(name, DType::F32, &CPU).unwrap();
        let (rows, columns) = tensor.dims2().unwrap();
        let mut values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        values[row * columns] = f32::NAN;
        let tensor = Tensor::from_vec(values, (rows, columns), &CPU).unwrap();
        model.with_tensors([(name.to_owned(), tensor)]).unwrap()
    };
    for (name, row, expected) in [
        ("model.embed_tokens.weight", 5, ["`model.embed_tokens`", "for window 1"]),
        ("model.layers.0.mlp.up_proj.weight", 0, ["`model.layers.0`", "for window 0"]),
        ("model.layers.1.self_attn.v_proj.weight", 0, ["`model.layers.1`", "for window 0"]),
        ("lm_head.weight", 7, ["`logits`", "the loss of window 0 is NaN"]),
    ] {
        let (argument, error) = run(&damaged(name, row), good());
        assert!(!argument && expected.iter().all(|part| error.contains(part)), "{name}: {error}");
    }
}
