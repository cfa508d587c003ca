//! Structured pruning: a model without units computes what the model with zeroed units computes, of every family.

mod common;
#[path = "common/random.rs"]
mod random;

use candle_core::{DType, Device, Tensor};
use common::{assert_says, fingerprint, names};
use lacuna::calibrate::{Statistics, calibrate};
use lacuna::checkpoint::{Checkpoint, CheckpointWriter};
use lacuna::importance::Method;
use lacuna::model::{Family, Model};
use lacuna::progress::Progress;
use lacuna::record::Record;
use lacuna::settings::ComparisonGroup;
use lacuna::structured::{Form, GroupNorm, StructuredConfig, Unit, prune_structured, prune_structured_to};
use lacuna::text::Windows;
use random::{llama, with};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

const SHARD: u64 = 48 << 10;
const REMOVABLE: [Unit; 3] = [Unit::Heads, Unit::Neurons, Unit::Channels];

/// A folder with the checkpoint `model`.
struct Place(tempfile::TempDir);

impl Place {
    fn new(config: &Value, dtype: DType) -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        random::write(&place.at("model"), config, dtype, SHARD, 3);
        std::fs::write(place.at("model").join("tokenizer.json"), "{}").unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn model(&self) -> Model {
        random::open(&self.at("model"))
    }

    fn prune(&self, config: &StructuredConfig, out: &str) -> Record {
        prune_structured_to(&self.model(), Some(&windows()), config, &self.at(out), Progress::Hidden).unwrap()
    }

    fn refuses(&self, config: &StructuredConfig) -> String {
        let error = prune_structured_to(&self.model(), None, config, &self.at("out"), Progress::Hidden).unwrap_err();
        assert_eq!(names(self.0.path()), ["model"], "something was left");
        error.to_string()
    }
}

fn windows() -> Windows {
    Windows { name: "tokens".into(), ids: (0..3).map(|i| random::tokens(24, 128, i)).collect(), seqlen: 24 }
}

fn logits(model: &Model) -> Vec<f32> {
    let ids = random::tokens(40, 128, 9);
    model.forward(&ids).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference in units of the root mean square of `b`.
fn relative(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let rms = (b.iter().map(|x| x * x).sum::<f32>() / b.len() as f32).sqrt();
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / rms
}

fn values(checkpoint: &Checkpoint, name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensor = checkpoint.load(name, DType::F32, &Device::Cpu).unwrap();
    (tensor.dims().to_vec(), tensor.flatten_all().unwrap().to_vec1().unwrap())
}

/// The units of a record's entry.
fn units(text: &str) -> Vec<usize> {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse::<usize>().unwrap()..=last.parse().unwrap()
    };
    text.split(',').filter(|text| !text.is_empty()).flat_map(range).collect()
}

fn zeroed(config: &StructuredConfig) -> StructuredConfig {
    StructuredConfig { form: Form::Zero, ..*config }
}

fn moe(changes: Value) -> Value {
    with(with(llama(), json!({"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40})), changes)
}

fn families() -> Vec<(&'static str, Value)> {
    let qwen2_moe = json!({"model_type": "qwen2_moe", "shared_expert_intermediate_size": 56, "mlp_only_layers": [0]});
    let qwen3 = json!({"model_type": "qwen3", "head_dim": 32, "rms_norm_eps": 1e-6});
    let qwen3_moe = with(qwen3.clone(), json!({"model_type": "qwen3_moe"}));
    vec![
        ("llama", llama()),
        ("llama, tied", with(llama(), json!({"tie_word_embeddings": true}))),
        ("llama, one query head a key head", with(llama(), json!({"num_key_value_heads": 4}))),
        ("llama, biases", with(llama(), json!({"attention_bias": true, "mlp_bias": true}))),
        ("mistral", with(llama(), json!({"model_type": "mistral", "sliding_window": 7, "head_dim": 24}))),
        ("qwen2", with(llama(), json!({"model_type": "qwen2"}))),
        ("qwen3", with(llama(), with(qwen3, json!({"tie_word_embeddings": true})))),
        ("mixtral", with(llama(), json!({"model_type": "mixtral", "num_local_experts": 6, "num_experts_per_tok": 2}))),
        ("qwen2_moe", moe(qwen2_moe)),
        ("qwen3_moe", moe(qwen3_moe)),
        ("olmoe", moe(json!({"model_type": "olmoe", "clip_qkv": 1.5}))),
    ]
}

#[test]
fn removed_units_compute_what_zeroed_units_compute() {
    for (family, config) in families() {
        let place = Place::new(&config, DType::F32);
        let dense = logits(&place.model());
        for unit in REMOVABLE {
            // 48 of 64 channels are a multiple of the heads.
            let sparsity = if unit == Unit::Heads { 0.5 } else { 0.25 };
            let settings = StructuredConfig::new(unit, Method::Magnitude, sparsity);
            let (small, zero) = (format!("{family}-{unit}"), format!("{family}-{unit}-zero"));
            let record = place.prune(&settings, &small);
            let zero_record = place.prune(&zeroed(&settings), &zero);
            let (removed, zero) = (random::open(&place.at(&small)), random::open(&place.at(&zero)));
            let (a, b) = (logits(&removed), logits(&zero));
            let difference = relative(&a, &b);
            println!("{family}, {unit}: {difference:e}");
            // A norm over all heads has the epsilon of the others, 1e-5, which is not the right one for fewer heads.
            let tolerance = if family == "olmoe" && unit == Unit::Heads { 1e-4 } else { 1e-5 };
            assert!(difference < tolerance, "{family}, {unit}: {difference}");
            assert!(relative(&b, &dense) > 1e-2, "{family}, {unit}: zeroing them changed nothing");

            // Counts, and the same numbers in both forms.
            let structure = record.structure.as_ref().unwrap();
            assert!(!structure.removed.is_empty());
            for module in &structure.removed {
                let expected = (module.of as f64 * sparsity) as usize;
                assert!(
                    expected > 0 && module.count == expected && units(&module.units).len() == expected,
                    "{module:?}"
                );
            }
            let zero_structure = zero_record.structure.as_ref().unwrap();
            assert_eq!((&record.tensors, &structure.removed), (&zero_record.tensors, &zero_structure.removed));
            assert!(zero_structure.config.is_empty() && record.sparsity() > 0.0);

            // The smaller checkpoint: what is left is bit-exact, and all that goes is what the other one zeroes.
            let [removed, zero] = [&removed, &zero].map(|model| model.checkpoint().unwrap());
            assert!(removed.parameters() < zero.parameters() && removed.parameters() == structure.parameters);
            assert_eq!(removed.shards().len(), zero.shards().len());
            for info in removed.tensors().filter(|info| !info.name.ends_with("norm.weight")) {
                let (_, kept) = values(removed, &info.name);
                let (_, mut rest) = values(zero, &info.name);
                rest.retain(|&value| value != 0.0);
                assert!(kept == rest, "{family}, {unit}: {}", info.name);
            }
            let files = names(removed.dir());
            assert!(files.contains(&"tokenizer.json".into()) && files.contains(&"lacuna.json".into()), "{files:?}");

            // In memory the same.
            let memory = prune_structured(&place.model(), None, &settings, Progress::Hidden).unwrap();
            assert!(logits(&memory.model) == a, "{family}, {unit}: memory and disk differ");
            let [memory, disk] = [memory.record, record].map(|record| Record { environment: [].into(), ..record });
            assert_eq!(memory, disk);
            let memory = prune_structured(&place.model(), None, &zeroed(&settings), Progress::Hidden).unwrap();
            assert!(logits(&memory.model) == b, "{family}, {unit}: memory and disk differ");
        }
    }
}

#[test]
fn config_json_keeps_what_did_not_change() {
    let config = with(llama(), json!({"num_attention_heads": 8, "num_key_value_heads": 4, "torch_dtype": "float32"}));
    let place = Place::new(&config, DType::F32);
    let pruned = |unit, sparsity, out: &str| {
        place.prune(&StructuredConfig::new(unit, Method::Magnitude, sparsity), out);
        Checkpoint::open(place.at(out)).unwrap().config().unwrap()
    };
    let changed = |changes: Value| with(config.clone(), changes).as_object().unwrap().clone();
    let heads = pruned(Unit::Heads, 0.5, "heads");
    assert_eq!(heads, changed(json!({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8})));
    let order: Vec<_> = heads.keys().take(config.as_object().unwrap().len()).collect();
    assert_eq!(order, config.as_object().unwrap().keys().collect::<Vec<_>>());
    assert_eq!(pruned(Unit::Neurons, 0.3, "neurons"), changed(json!({"intermediate_size": 96 - 28})));
    let channels = pruned(Unit::Channels, 0.25, "channels");
    let eps = channels["rms_norm_eps"].as_f64().unwrap();
    assert!((eps / (1e-5 * 64.0 / 48.0) - 1.0).abs() < 1e-12);
    assert_eq!(channels, changed(json!({"hidden_size": 48, "head_dim": 8, "rms_norm_eps": eps})));

    // transformers refuses a Llama of 64 channels and 6 heads; the same arithmetic has another name, too.
    let mistral = json!({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": null,
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8});
    assert_eq!(pruned(Unit::Heads, 0.25, "odd"), changed(mistral));
    assert_eq!(random::open(&place.at("odd")).config().family, Family::Mistral);
    let settings = StructuredConfig::new(Unit::Heads, Method::Magnitude, 0.25);
    place.prune(&zeroed(&settings), "odd-zero");
    let [a, b] = ["odd", "odd-zero"].map(|name| logits(&random::open(&place.at(name))));
    assert!(relative(&a, &b) < 1e-5);

    // Experts have a width of their own, dense layers another, shared experts a third.
    let place = Place::new(&families().remove(8).1, DType::F32);
    let record = place.prune(&StructuredConfig::new(Unit::Neurons, Method::Magnitude, 0.5), "out");
    let expected = json!({"intermediate_size": 48, "moe_intermediate_size": 20, "shared_expert_intermediate_size": 28});
    assert_eq!(serde_json::to_value(record.structure.unwrap().config).unwrap(), expected);
}

/// Scores of units by their definition, one weight at a time: the linears of a unit, `(name, by rows, elements a unit)`.
fn naive(
    model: &Model,
    statistics: Option<&Statistics>,
    norm: GroupNorm,
    units: usize,
    linears: &[(String, bool, usize)],
) -> Vec<f64> {
    let mut scores = vec![0.0; units];
    for (name, by_rows, span) in linears {
        let (shape, weights) = values(model.checkpoint().unwrap(), name);
        let norms = statistics.map(|statistics| statistics.column_norms(name).unwrap());
        for row in 0..shape[0] {
            for col in 0..shape[1] {
                let mut score = weights[row * shape[1] + col].abs();
                if let Some(norms) = &norms {
                    score *= norms[col];
                }
                let score = f64::from(score);
                scores[if *by_rows { row } else { col } / span] +=
                    if norm == GroupNorm::Sum { score } else { score * score };
            }
        }
    }
    scores
}

#[test]
fn the_units_that_go_score_lowest() {
    // Two query heads of 16 elements for each of 4 key heads.
    let config = with(llama(), json!({"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}));
    let place = Place::new(&config, DType::F32);
    let model = place.model();
    let statistics = calibrate(&model, &windows(), Progress::Hidden).unwrap();
    let at = |layer: usize, name: &str| format!("model.layers.{layer}.{name}.weight");
    let attention = |layer| {
        [("q", true, 32), ("k", true, 16), ("v", true, 16), ("o", false, 32)]
            .map(|(name, rows, span)| (at(layer, &format!("self_attn.{name}_proj")), rows, span))
    };
    let mlp = |layer| {
        [("gate", true), ("up", true), ("down", false)]
            .map(|(name, rows)| (at(layer, &format!("mlp.{name}_proj")), rows, 1))
    };
    let stream = |layer| {
        let linears = attention(layer).into_iter().chain(mlp(layer));
        linears.map(|(name, rows, _)| (name, !rows, 1)).collect::<Vec<_>>()
    };
    for method in [Method::Magnitude, Method::Wanda] {
        let statistics = Some(&statistics).filter(|_| method == Method::Wanda);
        for norm in [GroupNorm::Sum, GroupNorm::L2] {
            for (unit, count, linears) in [
                (Unit::Heads, 4, vec![attention(0).to_vec(), attention(1).to_vec()]),
                (Unit::Neurons, 96, vec![mlp(0).to_vec(), mlp(1).to_vec()]),
                (Unit::Channels, 64, vec![[stream(0), stream(1)].concat()]),
            ] {
                let settings = StructuredConfig { norm, ..StructuredConfig::new(unit, method, 0.5) };
                let pruned = prune_structured(&model, Some(&windows()), &settings, Progress::Hidden).unwrap();
                let removed = pruned.record.structure.unwrap().removed;
                assert_eq!(removed.len(), linears.len());
                for (module, linears) in removed.iter().zip(&linears) {
                    let scores = naive(&model, statistics, norm, count, linears);
                    let mut order: Vec<usize> = (0..count).collect();
                    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
                    order.truncate(count / 2);
                    order.sort_unstable();
                    assert_eq!(units(&module.units), order, "{method} {norm} {unit} {}", module.module);
                }
            }
        }
    }
    for method in [Method::Ria, Method::Gradient, Method::Taylor] {
        let settings = StructuredConfig::new(Unit::Neurons, method, 0.25);
        let pruned = prune_structured(&model, Some(&windows()), &settings, Progress::Hidden).unwrap();
        let removed = pruned.record.structure.unwrap().removed;
        assert!(removed.iter().all(|module| module.count == 24), "{method}: {removed:?}");
    }
    let random = |seed| {
        let settings = StructuredConfig { seed, ..StructuredConfig::new(Unit::Neurons, Method::Random, 0.5) };
        prune_structured(&model, None, &settings, Progress::Hidden).unwrap().record.structure.unwrap().removed
    };
    assert!(random(1) == random(1) && random(1) != random(2));
}

#[test]
fn ties_go_by_position() {
    let place = Place::new(&llama(), DType::F32);
    let ones = place.model().config().tensors().into_iter().map(|(name, shape)| {
        let ones = Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        (name, ones)
    });
    let model = place.model().with_tensors(ones).unwrap();
    for (unit, expected) in [(Unit::Heads, "0"), (Unit::Neurons, "0-47"), (Unit::Channels, "0-31")] {
        let settings = StructuredConfig::new(unit, Method::Magnitude, 0.5);
        let removed =
            prune_structured(&model, None, &settings, Progress::Hidden).unwrap().record.structure.unwrap().removed;
        assert!(removed.iter().all(|module| module.units == expected), "{removed:?}");
    }
    let settings = StructuredConfig::new(Unit::Heads, Method::Magnitude, 0.5);
    let pruned = prune_structured(&model, None, &settings, Progress::Hidden).unwrap().model;
    let error = prune_structured_to(&pruned, None, &settings, &place.at("out"), Progress::Hidden).unwrap_err();
    assert_says(error, &["in memory only"]);
}

#[test]
fn nothing_to_remove_is_a_copy() {
    let single = with(llama(), json!({"num_key_value_heads": 1, "tie_word_embeddings": true}));
    let place = Place::new(&single, DType::BF16);
    let same = |out: &str| {
        let mut files = fingerprint(&place.at(out));
        assert!(files.remove("lacuna.json").is_some());
        let source = fingerprint(&place.at("model"));
        assert!(source.iter().map(|(k, (v, _))| (k, v)).eq(files.iter().map(|(k, (v, _))| (k, v))), "{out} differs");
    };
    for unit in REMOVABLE {
        for form in [Form::Remove, Form::Zero] {
            let out = format!("{unit}-{form}");
            let settings = StructuredConfig { form, ..StructuredConfig::new(unit, Method::Wanda, 0.0) };
            let record = place.prune(&settings, &out);
            assert_eq!(record.sparsity(), 0.0);
            same(&out);
        }
    }
    // The only key head cannot go, whatever is asked for: that is said, and nothing is copied.
    let all = StructuredConfig::new(Unit::Heads, Method::Magnitude, 0.99);
    let refused = prune_structured_to(&place.model(), None, &all, &place.at("one"), Progress::Hidden).unwrap_err();
    assert_says(refused, &["no module has more than one of the heads"]);
    assert!(!place.at("one").exists());
}

#[test]
fn channels_of_single_linears_are_zeroed() {
    let place = Place::new(&with(llama(), json!({"attention_bias": true})), DType::F32);
    let source = place.model();
    for unit in [Unit::OutputChannels, Unit::InputChannels] {
        let settings = StructuredConfig::new(unit, Method::Wanda, 0.3);
        assert_eq!(settings.form, Form::Zero);
        let record = place.prune(&settings, unit.to_string().as_str());
        let pruned = Checkpoint::open(place.at(&unit.to_string())).unwrap();
        assert_eq!(record.structure.unwrap().removed.len(), 14);
        for info in pruned.tensors() {
            let (shape, before) = values(source.checkpoint().unwrap(), &info.name);
            let (_, after) = values(&pruned, &info.name);
            assert!(before.iter().zip(&after).all(|(before, after)| *after == 0.0 || before == after));
            if !info.name.ends_with("_proj.weight") {
                let bias = unit == Unit::OutputChannels && info.name.ends_with("bias");
                let zeros = after.iter().filter(|&&value| value == 0.0).count();
                assert_eq!(zeros, if bias { shape[0] * 3 / 10 } else { 0 }, "{}", info.name);
                continue;
            }
            let zero = |row: &[f32]| row.iter().all(|&value| value == 0.0);
            let rows = after.chunks(shape[1]).filter(|row| zero(row)).count();
            let column = |col: &usize| after.iter().skip(*col).step_by(shape[1]).all(|&value| value == 0.0);
            let columns = (0..shape[1]).filter(column).count();
            let expected = if unit == Unit::OutputChannels { (shape[0] * 3 / 10, 0) } else { (0, shape[1] * 3 / 10) };
            assert_eq!((rows, columns), expected, "{}", info.name);
        }
        let error = place_error(&StructuredConfig { form: Form::Remove, ..settings });
        assert_says(error, &[&unit.to_string(), "--zero", "heads, neurons or channels"]);
    }
}

fn place_error(config: &StructuredConfig) -> String {
    config.validate().unwrap_err().to_string()
}

#[test]
fn bf16_in_shards_with_a_stored_tied_head() {
    let place = Place::new(&with(llama(), json!({"tie_word_embeddings": true})), DType::BF16);
    let source = Checkpoint::open(place.at("model")).unwrap();
    assert!(source.shards().len() > 2);
    let frequencies = "model.layers.0.self_attn.rotary_emb.inv_freq";
    let embedding = source.load("model.embed_tokens.weight", DType::BF16, &Device::Cpu).unwrap();
    let ones = Tensor::ones(8, DType::BF16, &Device::Cpu).unwrap();
    let extended = |dir: &Path, extra: &[(&str, &Tensor)]| {
        let mut shards = vec![Vec::new(); source.shards().len()];
        source.tensors().for_each(|info| shards[info.shard].push((info.name.clone(), info.dtype, info.shape.clone())));
        let planned =
            extra.iter().map(|(name, tensor)| ((*name).into(), safetensors::Dtype::BF16, tensor.dims().to_vec()));
        shards.push(planned.collect());
        let mut writer = CheckpointWriter::create(dir, shards).unwrap();
        source.tensors().for_each(|info| writer.write(&info.name, &source.read(&info.name).unwrap()).unwrap());
        extra.iter().for_each(|(name, tensor)| writer.write_tensor(name, tensor).unwrap());
        writer.copy_others(&source).unwrap();
        writer.finish().unwrap();
    };
    extended(&place.at("stored"), &[("lm_head.weight", &embedding), (frequencies, &ones)]);
    extended(&place.at("unknown"), &[("lm_head.weight", &embedding), ("model.extra.weight", &ones)]);

    for (unit, tolerance) in [(Unit::Heads, 1e-5), (Unit::Neurons, 1e-5), (Unit::Channels, 3e-2)] {
        let settings = StructuredConfig::new(unit, Method::Magnitude, 0.5);
        let pruned = [settings, zeroed(&settings)].map(|settings| {
            let out = place.at(&format!("{unit}-{}", settings.form));
            prune_structured_to(&random::open(&place.at("stored")), None, &settings, &out, Progress::Hidden).unwrap();
            random::open(&out)
        });
        // Norms are rounded to bf16 once more.
        let difference = relative(&logits(&pruned[0]), &logits(&pruned[1]));
        assert!(difference < tolerance, "{unit}: {difference}");
        let small = pruned[0].checkpoint().unwrap();
        assert_eq!(small.shards().len(), source.shards().len() + 1);
        assert!(small.tensors().all(|info| info.dtype == safetensors::Dtype::BF16));
        assert_eq!(small.read("lm_head.weight").unwrap(), small.read("model.embed_tokens.weight").unwrap());
        assert_eq!(small.get(frequencies).unwrap().shape, [8]);
        let unknown = random::open(&place.at("unknown"));
        let out = place.at("out");
        let error = prune_structured_to(&unknown, None, &settings, &out, Progress::Hidden).unwrap_err();
        assert_says(error, &["`model.extra.weight`", "zero units instead"]);
        assert!(!out.exists());
    }
}

#[test]
fn what_cannot_be_pruned_is_refused() {
    let settings = |sparsity| StructuredConfig::new(Unit::Neurons, Method::Magnitude, sparsity);
    for sparsity in [1.0, 1.5, -0.1, f64::NAN] {
        assert_says(place_error(&settings(sparsity)), &["sparsity", "one unit must stay"]);
    }
    let scoreless = StructuredConfig::new(Unit::Heads, Method::SparseGpt, 0.5);
    assert_says(place_error(&scoreless), &["sparsegpt", "another method"]);
    let place = Place::new(&llama(), DType::F32);
    // Two key/value heads, 96 neurons: a tenth of the one is none, of the other it is nine.
    let tenth = StructuredConfig::new(Unit::Heads, Method::Magnitude, 0.1);
    assert_says(place.refuses(&tenth), &["rounds down to none of 2 heads", "at least 0.5", "--at-least-one"]);
    let refused = prune_structured(&place.model(), None, &zeroed(&tenth), Progress::Hidden).unwrap_err();
    assert_says(refused, &["rounds down to none"]);
    let one = place.prune(&StructuredConfig { at_least_one: true, ..tenth }, "one");
    assert!(one.structure.unwrap().removed.iter().all(|units| (units.count, units.of) == (1, 2)));
    std::fs::remove_dir_all(place.at("one")).unwrap();
    assert_says(place.refuses(&settings(1.0)), &["one unit must stay"]);
    let wanda = StructuredConfig::new(Unit::Heads, Method::Wanda, 0.5);
    assert_says(place.refuses(&wanda), &["wanda", "calibration text"]);
    let missing = prune_structured_to(&place.model(), None, &settings(0.5), &place.at("no/out"), Progress::Hidden);
    assert_says(missing.unwrap_err(), &["no such directory"]);
    let exists = prune_structured_to(&place.model(), None, &settings(0.5), &place.at("model"), Progress::Hidden);
    assert_says(exists.unwrap_err(), &["already exists"]);

    let gpt_oss = json!({"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2});
    let place = Place::new(&with(llama(), gpt_oss), DType::F32);
    for unit in REMOVABLE {
        let settings = StructuredConfig::new(unit, Method::Magnitude, 0.5);
        assert_says(place.refuses(&settings), &["stacked", "prune whole experts"]);
        assert_says(place.refuses(&zeroed(&settings)), &["stacked"]);
    }

    let biases = json!({"num_attention_heads": 8, "num_key_value_heads": 4, "attention_bias": true});
    let place = Place::new(&with(llama(), biases), DType::F32);
    let odd = StructuredConfig::new(Unit::Heads, Method::Magnitude, 0.25);
    assert_says(place.refuses(&odd), &["64 channels and 6 heads", "another sparsity"]);

    let place = Place::new(&llama(), DType::F32);
    let name = "model.layers.1.mlp.up_proj.weight";
    let nan = Tensor::full(f32::NAN, (96, 64), &Device::Cpu).unwrap();
    let damaged = place.model().with_tensors([(name.to_owned(), nan)]).unwrap();
    for unit in [Unit::Neurons, Unit::Channels] {
        let settings = StructuredConfig::new(unit, Method::Random, 0.5);
        let error = prune_structured(&damaged, None, &settings, Progress::Hidden).unwrap_err();
        assert_says(error, &[name, "not finite"]);
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    let place = Place::new(&moe(json!({"model_type": "qwen3_moe"})), DType::BF16);
    for unit in REMOVABLE {
        let settings = StructuredConfig::new(unit, Method::Wanda, 0.5);
        let runs = [1, 2].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let out = format!("{unit}-{threads}");
            let record = pool.install(|| place.prune(&settings, &out));
            let mut files = fingerprint(&place.at(&out));
            files.remove("lacuna.json");
            let bytes: Vec<_> = files.into_iter().map(|(name, (bytes, _))| (name, bytes)).collect();
            (Record { environment: [].into(), ..record }, bytes)
        });
        assert!(runs[0] == runs[1], "{unit}");
    }
}

#[test]
fn from_the_command_line() {
    let place = Place::new(&llama(), DType::F32);
    let tokens: Vec<_> = (0..3).map(|i| random::tokens(24, 128, i)).collect();
    std::fs::write(place.at("tokens.json"), json!(tokens).to_string()).unwrap();
    let run = |options: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        let output = command.current_dir(place.0.path()).args(["prune", "model"]).args(options).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let wanda =
        ["--method", "wanda", "--calib", "tokens.json", "--windows", "3", "--seqlen", "24", "--sparsity", "0.5"];
    let with = |more: &[&str]| run(&[&wanda[..], more].concat());
    let (code, out, err) = with(&["--structure", "heads", "--group-norm", "sum", "--out", "heads"]);
    assert_eq!(code, Some(0), "{err}");
    assert_says(&out, &["wanda removed 2 of 4 heads", "num_key_value_heads 1", "-> heads"]);
    let (code, out, err) = with(&["--structure", "output-channels", "--zero", "--json", "--out", "rows"]);
    assert_eq!(code, Some(0), "{err}");
    let record: Record = serde_json::from_str(&out).unwrap();
    let pruning = record.pruning.as_ref().unwrap();
    assert_eq!(
        (record.sparsity(), pruning.pattern, pruning.per),
        (0.5, Unit::OutputChannels.into(), ComparisonGroup::Layer)
    );
    let written: Record = serde_json::from_slice(&std::fs::read(place.at("rows/lacuna.json")).unwrap()).unwrap();
    assert_eq!(written, record);

    for (options, code, message) in [
        (&["--structure", "input-channels"][..], 1, "zero them (`--zero`)"),
        (&["--structure", "blocks"], 2, "must be one of heads neurons channels"),
        (&["--structure", "heads", "--per", "row"], 2, "cannot be used with"),
        (&["--structure", "heads", "--masks", "m.pt"], 2, "cannot be used with"),
        (&["--structure", "heads", "--rule", "*=skip"], 2, "cannot be used with"),
        (&["--structure", "heads", "--refine", "dsnot"], 2, "cannot be used with"),
        (&["--zero"], 2, "--structure"),
    ] {
        let (got, _, err) = with(&[options, &["--out", "none"]].concat());
        assert_eq!(got, Some(code), "{err}");
        assert_says(err, &[message]);
        assert!(!place.at("none").exists());
    }
}
