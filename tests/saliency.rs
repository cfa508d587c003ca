//! Expert saliency and the forward pass of every family with a mixture, against PyTorch (tests/data/README.md says how the
//! numbers were made).

#[path = "common/fixtures.rs"]
mod fixtures;

use candle_core::{DType, Device, Tensor};
use fixtures::{DATA, FIXTURES, logits, open, reference, windows, worst_logit};
use lacuna::checkpoint::Checkpoint;
use lacuna::evaluate::evaluate;
use lacuna::experts::{ExpertSaliency, saliency};
use lacuna::model::{Model, ModelConfig};
use lacuna::progress::Progress;
use lacuna::text::Windows;
use serde_json::Value;
use std::path::Path;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn logits_equal_those_of_transformers() {
    for (name, count, seqlen) in FIXTURES {
        let windows = windows(name, count, seqlen);
        let worst = worst_logit(&open(name), &windows, &logits(name, "logits.npz"));
        println!("{name}: logits differ by {worst:.1e}");
        assert!(worst < 1e-4, "{name}: logits differ by {worst}");
    }
}

#[test]
fn mxfp4_experts_compute_what_they_unpack_to() {
    let (packed, floats) = (open("tiny-gpt-oss-mxfp4"), open("tiny-gpt-oss-f32"));
    let windows = windows("tiny-gpt-oss-f32", 3, 40);
    for ids in &windows.ids {
        let logits = |model: &Model| model.forward(ids).unwrap().to_vec2::<f32>().unwrap();
        let (a, b) = (logits(&packed), logits(&floats));
        let worst = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-5, "packed and unpacked experts differ by {worst}");
        assert_eq!(a, logits(&packed.resident().unwrap()), "experts that stay packed in memory");
    }
    assert!(worst_logit(&packed, &windows, &logits("tiny-gpt-oss-f32", "logits.npz")) < 1e-4);
    // Packed weights count as weights.
    assert_eq!(packed.record().unwrap().parameters, floats.record().unwrap().parameters);
}

#[test]
fn the_composed_operators_compute_what_the_fused_ones_do() {
    // f64 takes candle's operators throughout, here with a batch of three.
    let checkpoint = Checkpoint::open(format!("{DATA}/tiny-gpt-oss-mxfp4")).unwrap();
    let model = Model::open(&checkpoint, DType::F64, &Device::Cpu).unwrap();
    let ids = Tensor::new(windows("tiny-gpt-oss-f32", 3, 40).ids, &Device::Cpu).unwrap();
    let difference = (model.forward_batch(&ids, &mut ()).unwrap() - logits("tiny-gpt-oss-f32", "logits.npz")).unwrap();
    let worst: f32 = difference.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
    assert!(worst < 1e-4, "{worst}");
}

#[test]
fn every_setting_of_the_fixtures_shows_in_their_logits() {
    for (name, count, seqlen, key, value) in [
        ("tiny-qwen3-moe", 3, 40, "norm_topk_prob", Value::from(false)),
        ("tiny-qwen2-moe", 3, 40, "norm_topk_prob", true.into()),
        ("tiny-qwen2-moe", 3, 40, "use_sliding_window", false.into()),
        ("tiny-olmoe", 3, 40, "norm_topk_prob", true.into()),
        ("tiny-olmoe", 3, 40, "clip_qkv", Value::Null),
        ("tiny-gpt-oss-f32", 3, 40, "swiglu_limit", 7.0.into()),
        ("tiny-gpt-oss-f32", 3, 40, "swiglu_alpha", 1.0.into()),
        ("tiny-gpt-oss-f32", 3, 40, "sliding_window", 9.into()),
        ("tiny-gpt-oss", 4, 64, "num_experts_per_tok", 3.into()),
    ] {
        let checkpoint = Checkpoint::open(format!("{DATA}/{name}")).unwrap();
        let mut json = checkpoint.config().unwrap();
        assert_ne!(json.insert(key.into(), value.clone()), Some(value), "{name}: {key} is that already");
        let config = ModelConfig::from_json(Path::new("config.json"), &json).unwrap();
        let load = |(name, _): (String, _)| (name.clone(), checkpoint.load(&name, DType::F32, &Device::Cpu).unwrap());
        let tensors = config.tensors().into_iter().map(load).collect();
        let model = Model::from_tensors(config, tensors, &Device::Cpu).unwrap();
        let worst = worst_logit(&model, &windows(name, count, seqlen), &logits(name, "logits.npz"));
        assert!(worst > 1e-2, "{name}: {key} moves logits by {worst} only");
    }
}

fn close(what: &str, ours: &[f64], expected: &Value) -> f64 {
    let expected = numbers(expected);
    assert_eq!(ours.len(), expected.len(), "{what}");
    let relative = |(a, b): (&f64, &f64)| (a - b).abs() / b.abs().max(1e-12);
    let worst = ours.iter().zip(&expected).map(relative).fold(0.0, f64::max);
    assert!(worst < 1e-4, "{what}: {ours:?}, not {expected:?}");
    worst
}

#[test]
fn saliency_equals_the_reference() {
    for (name, count, seqlen) in FIXTURES.into_iter().chain([("tiny-gpt-oss-mxfp4", 3, 40)]) {
        let numbers_of = name.replace("mxfp4", "f32");
        let ours = saliency(&open(name), &windows(&numbers_of, count, seqlen), Progress::Hidden).unwrap();
        let expected = reference(&numbers_of);
        let layers = expected["layers"].as_array().unwrap();
        assert_eq!(ours.len(), layers.len(), "{name}: layers with a mixture");
        let mut worst = 0f64;
        for (ours, expected) in ours.iter().zip(layers) {
            let what = |field: &str| format!("{name}, layer {}: {field}", ours.layer);
            assert_eq!(
                (ours.layer as u64, ours.tokens),
                (expected["layer"].as_u64().unwrap(), (count * seqlen) as u64)
            );
            let frequency: Vec<f64> = ours.frequency.iter().map(|&n| n as f64).collect();
            assert_eq!(frequency, numbers(&expected["frequency"]), "{}", what("frequency"));
            worst = worst.max(close(&what("ean"), &ours.ean, &expected["ean"]));
            worst = worst.max(close(&what("reap"), &ours.reap, &expected["reap"]));
            worst = worst.max(close(&what("reap_softmax"), &ours.reap_softmax, &expected["reap_softmax"]));
            // The oracles of the two older fixtures hold no maxima.
            if expected["max_activation"].is_array() {
                worst = worst.max(close(&what("max"), &ours.max_activation, &expected["max_activation"]));
            }
        }
        println!("{name}: saliency differs by {worst:.1e} relative");
    }
}

#[test]
fn an_expert_that_is_never_chosen_has_zeros() {
    let layers = saliency(&open("tiny-gpt-oss-mxfp4"), &windows("tiny-gpt-oss-f32", 3, 40), Progress::Hidden).unwrap();
    let at = layers[0].frequency.iter().position(|&n| n == 0).unwrap();
    let ExpertSaliency { ean, reap, reap_softmax, max_activation, .. } = &layers[0];
    assert_eq!((ean[at], reap[at], reap_softmax[at], max_activation[at]), (0.0, 0.0, 0.0, 0.0));
}

#[test]
fn saliency_is_the_same_on_any_number_of_threads() {
    let of = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| saliency(&open("tiny-qwen2-moe"), &windows("tiny-qwen2-moe", 3, 40), Progress::Hidden).unwrap())
    };
    let one = of(1);
    assert!(of(2) == one && of(5) == one);
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let json = serde_json::json!({"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 4,
        "num_hidden_layers": 1, "num_attention_heads": 1});
    let config = ModelConfig::from_json(Path::new("config.json"), json.as_object().unwrap()).unwrap();
    let ones = |shape: Vec<usize>| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    let tensors = config.tensors().into_iter().map(|(name, shape)| (name, ones(shape))).collect();
    let dense = Model::from_tensors(config, tensors, &Device::Cpu).unwrap();
    let text = |count: usize| Windows { name: "text".into(), seqlen: 4, ids: vec![vec![1; 4]; count] };
    let error = saliency(&dense, &text(1), Progress::Hidden).unwrap_err().to_string();
    assert!(error.contains("model = model") && error.contains("no mixture of experts"), "{error}");
    let error = saliency(&open("tiny-olmoe"), &text(0), Progress::Hidden).unwrap_err().to_string();
    assert!(error.contains("needs calibration text"), "{error}");
    let (olmoe, name) = (open("tiny-olmoe"), "model.layers.1.mlp.experts.3.down_proj.weight");
    let huge = (ones(vec![32, 24]) * 3e38).unwrap();
    let huge = olmoe.with_tensors([(name.to_owned(), huge)]).unwrap();
    let error = saliency(&huge, &windows("tiny-olmoe", 3, 40), Progress::Hidden).unwrap_err().to_string();
    assert!(error.contains("`model.layers.1 expert 3`: its output is not finite"), "{error}");
    let mut wrong = text(1);
    wrong.ids[0][2] = 128;
    let error = saliency(&open("tiny-olmoe"), &wrong, Progress::Hidden).unwrap_err().to_string();
    assert!(error.contains("token id = 128"), "{error}");
}

#[test]
fn windows_and_batches_see_the_same_mixture() {
    // The layer loop of `evaluate`, which takes windows apart, against one batch.
    let (model, windows) = (open("tiny-gpt-oss-mxfp4"), windows("tiny-gpt-oss-f32", 3, 40));
    let ids = Tensor::new(windows.ids.clone(), &Device::Cpu).unwrap();
    let batch = model.forward_batch(&ids, &mut ()).unwrap();
    let log_probs = candle_nn::ops::log_softmax(&batch, 2).unwrap().to_vec3::<f32>().unwrap();
    let evaluation = evaluate(&model, &windows, Progress::Hidden).unwrap();
    for (window, ids) in windows.ids.iter().enumerate() {
        for (position, &id) in ids.iter().skip(1).enumerate() {
            let difference = evaluation.losses[window][position] + f64::from(log_probs[window][position][id as usize]);
            assert!(difference.abs() < 1e-4, "window {window}, token {position}: {difference}");
        }
    }
}
