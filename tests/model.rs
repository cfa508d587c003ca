//! The forward pass against candle-transformers, an independent f64 Llama, and itself with a cache.

#[path = "common/random.rs"]
mod random;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral, mixtral, qwen2, qwen3};
use lacuna::Error;
use lacuna::checkpoint::{Checkpoint, TensorInfo};
use lacuna::generate::{GenerateConfig, generate};
use lacuna::model::Model;
use lacuna::progress::Progress;
use lacuna::prune::{Method, PruneConfig, prune};
use lacuna::text::{Tokenizer, Windows};
use random::with;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

const CPU: Device = Device::Cpu;
const SEQ: usize = 24;

/// Logits of the last token, from a model of candle's and ids `(1, seq)`.
type Last = Box<dyn Fn(&Tensor) -> candle_core::Result<Tensor>>;

/// candle's model over the same files; `config` is what candle shall read.
fn candle(family: &str, dir: &Path, config: Value) -> Last {
    let files = [dir.join("model.safetensors")];
    // SAFETY: nothing changes the file while it is mapped.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&files, DType::F32, &CPU) }.unwrap();
    fn parse<T: serde::de::DeserializeOwned>(config: Value) -> T {
        serde_json::from_value(config).unwrap()
    }
    // A model keeps the keys that it has seen: each sequence gets a fresh clone.
    match family {
        "llama" => {
            let config = parse::<llama::LlamaConfig>(config).into_config(false);
            let model = llama::Llama::load(weights, &config).unwrap();
            Box::new(move |ids| model.forward(ids, 0, &mut llama::Cache::new(false, DType::F32, &config, &CPU)?))
        }
        "mistral" => {
            let model = mistral::Model::new(&parse(config), weights).unwrap();
            Box::new(move |ids| model.clone().forward(ids, 0))
        }
        "qwen2" => {
            let model = qwen2::ModelForCausalLM::new(&parse(config), weights).unwrap();
            Box::new(move |ids| model.clone().forward(ids, 0))
        }
        "qwen3" => {
            let model = qwen3::ModelForCausalLM::new(&parse(config), weights).unwrap();
            Box::new(move |ids| model.clone().forward(ids, 0))
        }
        "mixtral" => {
            let model = mixtral::Model::new(&parse(config), weights).unwrap();
            Box::new(move |ids| model.clone().forward(ids, 0))
        }
        other => panic!("no such family: {other}"),
    }
}

fn rows(logits: &Tensor) -> Vec<Vec<f32>> {
    logits.to_vec2().unwrap()
}

fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!((a.len(), a[0].len()), (b.len(), b[0].len()));
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn spread(logits: &[Vec<f32>]) -> f32 {
    let n = (logits.len() * logits[0].len()) as f32;
    (logits.iter().flatten().map(|x| x * x).sum::<f32>() / n).sqrt()
}

/// A config with the fields that candle needs besides.
fn mistral_config() -> Value {
    with(random::llama(), json!({"model_type": "mistral", "sliding_window": 7, "head_dim": 24}))
}

fn mixtral_config() -> Value {
    let experts = json!({"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2,
        "sliding_window": 4096, "use_flash_attn": false});
    with(random::llama(), experts)
}

fn qwen_config(family: &str) -> Value {
    let window =
        json!({"model_type": family, "sliding_window": 4096, "use_sliding_window": false, "max_window_layers": 2});
    with(random::llama(), window)
}

fn qwen3_config() -> Value {
    with(qwen_config("qwen3"), json!({"head_dim": 32, "attention_bias": false, "tie_word_embeddings": true}))
}

fn qwen2_moe_config() -> Value {
    let experts = json!({"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 56, "mlp_only_layers": [0]});
    with(qwen_config("qwen2_moe"), experts)
}

fn olmoe_config() -> Value {
    let experts = json!({"model_type": "olmoe", "num_experts": 8, "num_experts_per_tok": 2, "clip_qkv": 1.5});
    with(random::llama(), experts)
}

fn gpt_oss_config() -> Value {
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "truncate": false});
    let experts = json!({"model_type": "gpt_oss", "num_local_experts": 8, "num_experts_per_tok": 2,
        "sliding_window": 6, "rope_scaling": yarn});
    with(random::llama(), experts)
}

#[test]
fn logits_equal_those_of_candle_transformers() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32});
    let cases = [
        ("llama", random::llama(), json!({})),
        ("llama", with(random::llama(), json!({"tie_word_embeddings": true})), json!({})),
        ("llama", with(random::llama(), json!({"rope_scaling": llama3})), json!({})),
        // candle's window leaves out the query itself; Hugging Face's, and ours, counts it.
        ("mistral", mistral_config(), json!({"sliding_window": 6})),
        ("mistral", with(mistral_config(), json!({"sliding_window": null})), json!({})),
        ("qwen2", qwen_config("qwen2"), json!({})),
        ("qwen2", with(qwen_config("qwen2"), json!({"tie_word_embeddings": true})), json!({})),
        ("qwen3", qwen3_config(), json!({})),
        ("qwen3", with(qwen3_config(), json!({"attention_bias": true, "tie_word_embeddings": false})), json!({})),
        ("mixtral", mixtral_config(), json!({})),
    ];
    for (seed, (family, config, for_candle)) in cases.into_iter().enumerate() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("model");
        random::write(&dir, &config, DType::F32, u64::MAX, seed as u64);
        let ids = random::tokens(SEQ, 128, 100 + seed as u64);
        let streaming = random::open(&dir);
        let ours = rows(&streaming.forward(&ids).unwrap());

        let last = candle(family, &dir, with(config.clone(), for_candle));
        // candle gives the logits of the last token only.
        let logits = |n: usize| last(&Tensor::new(&ids[..n], &CPU)?.unsqueeze(0)?)?.flatten_all()?.to_vec1::<f32>();
        let theirs: Vec<Vec<f32>> = (1..=SEQ).map(|n| logits(n).unwrap()).collect();

        assert!((0.3..3.0).contains(&spread(&ours)), "{config}: logits of {}", spread(&ours));
        let difference = difference(&ours, &theirs);
        assert!(difference <= 1e-4, "{config}: logits differ by {difference}");
        let resident = rows(&streaming.resident().unwrap().forward(&ids).unwrap());
        assert!(ours == resident, "{config}: a model in memory computes something else");
    }
}

/// A Llama in f64, from the definition. `frequencies (head_dim / 2,)` and `attention`, the factor on cos and sin, are
/// what the rotary scaling is reduced to.
struct Reference {
    model: lacuna::checkpoint::Checkpoint,
    config: Value,
    frequencies: Vec<f64>,
    attention: f64,
}

impl Reference {
    fn weight(&self, name: &str) -> Vec<f64> {
        self.model.load(name, DType::F64, &CPU).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn linear(&self, x: &[Vec<f64>], name: &str) -> Vec<Vec<f64>> {
        let weight = self.weight(name);
        let dot = |row: &[f64], x: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum();
        x.iter().map(|x| weight.chunks(x.len()).map(|row| dot(row, x)).collect()).collect()
    }

    fn norm(&self, x: &[Vec<f64>], name: &str) -> Vec<Vec<f64>> {
        let weight = self.weight(name);
        let eps = self.config["rms_norm_eps"].as_f64().unwrap();
        let norm = |x: &Vec<f64>| {
            let root = (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt();
            x.iter().zip(&weight).map(|(x, w)| x / root * w).collect()
        };
        x.iter().map(norm).collect()
    }

    /// The first half of a head is the real part, the second the imaginary one.
    fn rotate(&self, head: &[f64], position: usize) -> Vec<f64> {
        let half = head.len() / 2;
        let rotated = |i: usize| {
            let (sin, cos) = (position as f64 * self.frequencies[i % half]).sin_cos();
            let other = if i < half { -head[i + half] } else { head[i - half] };
            self.attention * (head[i] * cos + other * sin)
        };
        (0..head.len()).map(rotated).collect()
    }

    fn logits(&self, ids: &[u32]) -> Vec<Vec<f32>> {
        let size = |key: &str| self.config[key].as_u64().unwrap() as usize;
        let (heads, kv, dim) = (size("num_attention_heads"), size("num_key_value_heads"), 2 * self.frequencies.len());
        let add = |x: &[Vec<f64>], y: &[Vec<f64>]| -> Vec<Vec<f64>> {
            x.iter().zip(y).map(|(x, y)| x.iter().zip(y).map(|(x, y)| x + y).collect()).collect()
        };
        let embedding = self.weight("model.embed_tokens.weight");
        let rows: Vec<&[f64]> = embedding.chunks(size("hidden_size")).collect();
        let mut x: Vec<Vec<f64>> = ids.iter().map(|&id| rows[id as usize].to_vec()).collect();
        for layer in 0..size("num_hidden_layers") {
            let name = |name: &str| format!("model.layers.{layer}.{name}.weight");
            let normed = self.norm(&x, &name("input_layernorm"));
            let [q, k, v] = ["q", "k", "v"].map(|p| self.linear(&normed, &name(&format!("self_attn.{p}_proj"))));
            let head = |x: &[Vec<f64>], t: usize, head: usize| x[t][head * dim..(head + 1) * dim].to_vec();
            let mixed: Vec<Vec<f64>> = (0..ids.len())
                .map(|t| {
                    let attend = |h: usize| {
                        let (query, group) = (self.rotate(&head(&q, t, h), t), h / (heads / kv));
                        let score = |s: usize| {
                            let key = self.rotate(&head(&k, s, group), s);
                            query.iter().zip(&key).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt()
                        };
                        let exp: Vec<f64> = (0..=t).map(|s| score(s).exp()).collect();
                        let sum: f64 = exp.iter().sum();
                        (0..dim).map(|d| (0..=t).map(|s| exp[s] / sum * v[s][group * dim + d]).sum()).collect()
                    };
                    (0..heads).flat_map(|h| -> Vec<f64> { attend(h) }).collect()
                })
                .collect();
            x = add(&x, &self.linear(&mixed, &name("self_attn.o_proj")));
            let normed = self.norm(&x, &name("post_attention_layernorm"));
            let [gate, up] = ["gate", "up"].map(|p| self.linear(&normed, &name(&format!("mlp.{p}_proj"))));
            let silu = |g: f64| g / (1.0 + (-g).exp());
            let product = |(g, u): (&Vec<f64>, &Vec<f64>)| g.iter().zip(u).map(|(&g, u)| silu(g) * u).collect();
            let inner: Vec<Vec<f64>> = gate.iter().zip(&up).map(product).collect();
            x = add(&x, &self.linear(&inner, &name("mlp.down_proj")));
        }
        let logits = self.linear(&self.norm(&x, "model.norm.weight"), "lm_head.weight");
        logits.into_iter().map(|row| row.into_iter().map(|x| x as f32).collect()).collect()
    }
}

/// Frequencies and factor are those of Python's transformers 5.23, with `s` the object below, `n` the sequence length:
/// ```text
/// c = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=64,
///                 rope_parameters={"rope_theta": 1000.0, **s})
/// ROPE_INIT_FUNCTIONS[s["rope_type"]](c, "cpu", n)
/// ```
#[test]
fn rotary_scalings_equal_those_of_transformers() {
    // All but the first two frequencies of YaRN, and all of linear, are divided by 4.
    let stretched = |first: f64, second: f64| {
        let rest = [
            0.04445698484778404,
            0.018747353926301003,
            0.007905694656074047,
            0.0033338037319481373,
            0.0014058533124625683,
            0.0005928434547968209,
        ];
        [[first, second].as_slice(), &rest].concat()
    };
    let dynamic = vec![
        1.0,
        0.38194048404693604,
        0.14587853848934174,
        0.05571692809462547,
        0.021280551329255104,
        0.008127904497087002,
        0.003104375908151269,
        0.0011856869095936418,
    ];
    let llama3 = vec![
        1.0,
        0.19387108087539673,
        0.02222849242389202,
        0.009373676963150501,
        0.0039528473280370235,
        0.0016669018659740686,
        0.0007029266562312841,
        0.00029642172739841044,
    ];
    let yarn = |more: Value| {
        with(
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0}),
            more,
        )
    };
    let cases = [
        (json!({"rope_type": "linear", "factor": 4.0}), SEQ, stretched(0.25, 0.10542412847280502), 1.0),
        (json!({"rope_type": "dynamic", "factor": 2.0}), 96, dynamic.clone(), 1.0),
        // Dynamic scaling goes by the model's context, whatever else is there.
        (json!({"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}), 96, dynamic, 1.0),
        (
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32}),
            SEQ,
            llama3,
            1.0,
        ),
        (yarn(json!({})), SEQ, stretched(1.0, 0.26356032490730286), 1.138629436111989),
        (yarn(json!({"truncate": false, "attention_factor": 0.9})), SEQ, stretched(1.0, 0.1295299381017685), 0.9),
        (
            yarn(json!({"mscale": 1.0, "mscale_all_dim": 0.5})),
            SEQ,
            stretched(1.0, 0.26356032490730286),
            1.0648216253695715,
        ),
    ];
    for (scaling, seq, frequencies, attention) in cases {
        // Both layouts of config.json.
        for key in ["rope_scaling", "rope_parameters"] {
            let parent = tempfile::tempdir().unwrap();
            let dir = parent.path().join("model");
            let mut config = with(random::llama(), json!({key: scaling}));
            if key == "rope_parameters" {
                config[key]["rope_theta"] = config.as_object_mut().unwrap().remove("rope_theta").unwrap();
            }
            let model = random::write(&dir, &config, DType::F32, u64::MAX, 7);
            let ids = random::tokens(seq, 128, 8);
            let ours = rows(&random::open(&dir).forward(&ids).unwrap());
            let reference = Reference { model, config, frequencies: frequencies.clone(), attention };
            let difference = difference(&ours, &reference.logits(&ids));
            assert!(difference <= 1e-4, "{key} {scaling}: logits differ by {difference}");
        }
    }
}

/// The most likely continuation, with a full forward pass for each token.
fn recomputed(model: &Model, mut ids: Vec<u32>, new: usize) -> Vec<u32> {
    let prompt = ids.len();
    for _ in 0..new {
        let logits = rows(&model.forward(&ids).unwrap()).pop().unwrap();
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        ids.push(best as u32);
    }
    ids.split_off(prompt)
}

#[test]
fn generation_with_a_cache_equals_full_forward_passes() {
    let vocab = json!({"vocab_size": 270});
    let documents: Vec<String> = ["the cat sat on the mat", "the dog ate the other cat", "that mat is the other dog's"]
        .map(str::to_owned)
        .into();
    let tokenizer = Tokenizer::train_bpe(&documents, 270).unwrap();
    let dense = [random::llama(), mistral_config(), qwen_config("qwen2"), qwen3_config()];
    let mixtures = [mixtral_config(), qwen2_moe_config(), olmoe_config(), gpt_oss_config()];
    for config in dense.into_iter().chain(mixtures) {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("model");
        random::write(&dir, &with(config.clone(), vocab.clone()), DType::F32, u64::MAX, 3);
        tokenizer.save(dir.join("tokenizer.json")).unwrap();
        let model = random::open(&dir).resident().unwrap();
        let prompt = "the other cat";
        let expected = recomputed(&model, tokenizer.encode(prompt).unwrap(), 30);
        assert!(expected.iter().collect::<HashSet<_>>().len() > 3, "{config}: too dull a text to tell: {expected:?}");
        let generated = generate(&model, prompt, &GenerateConfig::greedy(30)).unwrap();
        assert_eq!(generated, tokenizer.decode(&expected).unwrap(), "{config}");

        // The token that comes up last for the first time.
        let first = (0..30).rev().find(|&i| !expected[..i].contains(&expected[i])).unwrap();
        let end = with(config.clone(), json!({"vocab_size": 270, "eos_token_id": [expected[first]]}));
        std::fs::write(dir.join("config.json"), end.to_string()).unwrap();
        let ended = generate(&random::open(&dir), prompt, &GenerateConfig::greedy(30)).unwrap();
        assert_eq!(ended, tokenizer.decode(&expected[..first]).unwrap(), "{config}: must end before eos_token_id");
    }
}

/// Writes `config` with random weights, changes some tensors of it by `change` and opens what came of it.
fn open_changed(config: &Value, change: impl Fn(&mut BTreeMap<String, Tensor>)) -> String {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("model");
    let checkpoint = random::write(&dir, config, DType::F32, u64::MAX, 5);
    let load = |info: &TensorInfo| (info.name.clone(), checkpoint.load(&info.name, DType::F32, &CPU).unwrap());
    let mut tensors: BTreeMap<String, Tensor> = checkpoint.tensors().map(load).collect();
    change(&mut tensors);
    safetensors::serialize_to_file(&tensors, None, &dir.join("model.safetensors")).unwrap();
    let error = Model::open(&Checkpoint::open(&dir).unwrap(), DType::F32, &CPU).unwrap_err();
    assert!(matches!(error, Error::Tensor { .. }), "{error}");
    error.to_string()
}

#[test]
fn mixtures_that_are_not_what_the_config_says_are_refused_by_name() {
    let cut = |tensors: &mut BTreeMap<String, Tensor>, name: &str, dim: usize| {
        let tensor = tensors[name].narrow(dim, 0, tensors[name].dims()[dim] - 1).unwrap().contiguous().unwrap();
        tensors.insert(name.into(), tensor);
    };
    let qwen = "model.layers.1.mlp.";
    let gpt = "model.layers.0.mlp.";
    let cases: [(Value, String, Option<usize>, &str); 8] = [
        (qwen2_moe_config(), format!("{qwen}experts.3.up_proj.weight"), Some(0), "has shape [39, 64], but"),
        (qwen2_moe_config(), format!("{qwen}experts.7.down_proj.weight"), None, "not in this checkpoint"),
        (
            qwen2_moe_config(),
            format!("{qwen}gate.weight"),
            Some(0),
            "has shape [7, 64], but config.json calls for [8, 64]",
        ),
        (qwen2_moe_config(), format!("{qwen}shared_expert_gate.weight"), None, "not in this checkpoint"),
        (mixtral_config(), "model.layers.1.block_sparse_moe.experts.0.w2.weight".into(), Some(1), "has shape [64, 95]"),
        (olmoe_config(), "model.layers.0.self_attn.k_norm.weight".into(), Some(0), "calls for [32]"),
        (
            gpt_oss_config(),
            format!("{gpt}experts.gate_up_proj"),
            Some(0),
            "[7, 64, 192], but config.json calls for [8,",
        ),
        (gpt_oss_config(), format!("{gpt}router.bias"), Some(0), "has shape [7], but config.json calls for [8]"),
    ];
    for (config, name, dim, problem) in cases {
        let error = open_changed(&config, |tensors| match dim {
            Some(dim) => cut(tensors, &name, dim),
            None => drop(tensors.remove(&name)),
        });
        assert!(error.contains(&format!("tensor `{name}`")) && error.contains(problem), "{error}");
    }
}

/// The MXFP4 fixture with one tensor changed.
fn damaged_mxfp4(change: impl Fn(&mut BTreeMap<String, Tensor>)) -> Result<Model, Error> {
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny-gpt-oss-mxfp4"));
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(source.join("config.json"), dir.path().join("config.json")).unwrap();
    let mut tensors =
        candle_core::safetensors::load(source.join("model.safetensors"), &CPU).unwrap().into_iter().collect();
    change(&mut tensors);
    safetensors::serialize_to_file(&tensors, None, &dir.path().join("model.safetensors")).unwrap();
    Model::open(&Checkpoint::open(dir.path()).unwrap(), DType::F32, &CPU)?.resident()
}

#[test]
fn mxfp4_tensors_that_make_no_weights_are_refused_by_name() {
    damaged_mxfp4(|_| ()).unwrap();
    let scales = "model.layers.1.mlp.experts.down_proj_scales";
    type Edit = fn(&Tensor) -> Tensor;
    let edits: [(&str, Edit, &str); 3] = [
        (scales, |t| t.ones_like().unwrap().affine(255.0, 0.0).unwrap(), "scale 0 is 255, with which weights are NaN"),
        (scales, |t| t.to_dtype(DType::F32).unwrap(), "holds no bytes"),
        (
            "model.layers.0.mlp.experts.gate_up_proj_blocks",
            |t| t.narrow(3, 0, 15).unwrap().contiguous().unwrap(),
            "1, 16]",
        ),
    ];
    for (name, edit, problem) in edits {
        let error = damaged_mxfp4(|tensors| {
            let tensor = edit(&tensors[name]);
            tensors.insert(name.into(), tensor);
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&format!("tensor `{name}`")) && error.contains(problem), "{error}");
    }
    let name = "model.layers.0.mlp.router.weight";
    let error =
        damaged_mxfp4(|tensors| drop(tensors.insert(name.into(), Tensor::zeros((8, 32), DType::U8, &CPU).unwrap())));
    let error = error.unwrap_err().to_string();
    assert!(error.contains(&format!("tensor `{name}`: holds bytes")), "{error}");
}

#[test]
fn linears_of_mixtures_are_pruned_shared_experts_included() {
    let windows =
        Windows { name: "random".into(), seqlen: 32, ids: (0..4).map(|i| random::tokens(32, 128, i)).collect() };
    let gpt_oss = (gpt_oss_config(), 2 * (4 + 8 * 2)); // gate and up are one linear there
    for (config, linears) in
        [(qwen2_moe_config(), (4 + 3) + (4 + 8 * 3 + 3)), (olmoe_config(), 2 * (4 + 8 * 3)), gpt_oss]
    {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("model");
        random::write(&dir, &config, DType::F32, u64::MAX, 6);
        let pruned =
            prune(&random::open(&dir), Some(&windows), &PruneConfig::new(Method::Wanda, 0.5), Progress::Hidden);
        let pruned = pruned.unwrap();
        assert_eq!((pruned.masks.len(), pruned.record.sparsity()), (linears, 0.5), "{config}");
        assert!(pruned.masks.iter().all(|(name, _)| !name.contains("gate.weight")), "routers and gates are left alone");
        let shared = |(name, _): &&(String, _)| name.contains(".shared_expert.");
        assert_eq!(pruned.masks.iter().filter(shared).count(), if config["model_type"] == "qwen2_moe" { 3 } else { 0 });
    }
    let packed = damaged_mxfp4(|_| ()).unwrap();
    let error = prune(&packed, Some(&windows), &PruneConfig::new(Method::Wanda, 0.5), Progress::Hidden);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("packed in MXFP4") && error.contains("prune whole experts"), "{error}");
}

#[test]
fn linears_are_found_by_name_and_are_those_of_their_layer() {
    for name in ["tiny-mixtral", "tiny-qwen2-moe", "tiny-gpt-oss"] {
        let model = Model::load(format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let floats = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for i in 0..model.layers() {
            for linear in model.layer(i).unwrap().linears() {
                let found = model.linear(linear.name.strip_suffix(".weight").unwrap()).unwrap();
                assert_eq!((&found.name, found.shape().unwrap()), (&linear.name, linear.weight.dims2().unwrap()));
                assert_eq!(floats(&found.weight), floats(&linear.weight), "{name} {}", linear.name);
                assert_eq!(found.bias.as_ref().map(floats), linear.bias.as_ref().map(floats), "{name} {}", linear.name);
                assert_eq!(model.linear(&linear.name).unwrap().name, linear.name);
            }
        }
    }
    let model = Model::load(format!("{}/data/tiny-llama", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let error = model.linear("model.layers.3.mlp.dwn_proj").unwrap_err().to_string();
    assert!(error.contains("nearest are model.layers.3.mlp.down_proj.weight, "), "{error}");
    assert!(model.linear("model.norm").is_err(), "a norm is no linear");
}

#[test]
fn a_linear_scores_its_weights_as_the_scorer_does() {
    use lacuna::prelude::*;
    let root = env!("CARGO_MANIFEST_DIR");
    let model = Model::load(format!("{root}/data/tiny-llama")).unwrap();
    let ids = random::tokens(32, 100, 1);
    let windows = Windows { name: "random".into(), seqlen: 32, ids: vec![ids] };
    let statistics = calibrate(&model, &windows, Progress::Hidden).unwrap();
    let linear = model.linear("model.layers.1.mlp.down_proj").unwrap();
    let weights: Vec<f32> = linear.weight.flatten_all().unwrap().to_vec1().unwrap();
    let norms = statistics.column_norms(&linear.name).unwrap();
    let expected: Vec<f32> = weights.iter().enumerate().map(|(i, w)| w.abs() * norms[i % norms.len()]).collect();
    assert_eq!(linear.scores(Method::Wanda, &statistics, None).unwrap(), expected);
    let error = linear.scores(Method::Taylor, &statistics, None).unwrap_err().to_string();
    assert!(error.contains("needs its gradient"), "{error}");
}
