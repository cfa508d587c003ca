//! Checkpoints as people have them: names of wrapped models, indices that say too much or too little, quantised weights,
//! directories that hold something else, models from a hub's cache. Each is read as transformers reads it, or refused with a
//! message that says what it is. The numbers are transformers' (`tests/data/make_checkpoint_names_fixtures.py`).

mod common;

use candle_core::{DType, Device};
use common::{assert_says, names};
use lacuna::checkpoint::{Checkpoint, Hub, compress, decompress, open_source};
use lacuna::evaluate::evaluate;
use lacuna::mask::Pattern;
use lacuna::model::Model;
use lacuna::progress::Progress;
use lacuna::text::Windows;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Name, dtype, shape and bytes.
type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

/// The numbers that the script makes: multiples of 1e-5 around zero.
fn values(count: usize, seed: i64, scale: f32) -> Vec<u8> {
    let value = |i: i64| (((i * 7919 + seed * 104_729) % 100_003 - 50_001) as f64 / 200_000.0) as f32 * scale;
    (0..count as i64).flat_map(|i| value(i).to_le_bytes()).collect()
}

/// The script's model.
fn tensors(seed: i64) -> Vec<Tensor> {
    let mut all = Vec::new();
    let mut matrix = |name: String, out: usize, input: usize, seed: i64, scale: f32| {
        all.push((name, "F32", vec![out, input], values(out * input, seed, scale)));
    };
    matrix("model.embed_tokens.weight".into(), 128, 32, seed, 4.0);
    for layer in 0..2 {
        let linears = [
            ("self_attn.q_proj", 32, 32),
            ("self_attn.k_proj", 16, 32),
            ("self_attn.v_proj", 16, 32),
            ("self_attn.o_proj", 32, 32),
            ("mlp.gate_proj", 48, 32),
            ("mlp.up_proj", 48, 32),
            ("mlp.down_proj", 32, 48),
        ];
        for (number, (name, out, input)) in linears.into_iter().enumerate() {
            let seed = seed + 10 * layer + number as i64 + 1;
            matrix(format!("model.layers.{layer}.{name}.weight"), out, input, seed, 1.0);
        }
    }
    matrix("lm_head.weight".into(), 128, 32, seed + 50, 1.0);
    let one = 1f32.to_le_bytes().repeat(32);
    for norm in [
        "layers.0.input_layernorm",
        "layers.0.post_attention_layernorm",
        "layers.1.input_layernorm",
        "layers.1.post_attention_layernorm",
        "norm",
    ] {
        all.push((format!("model.{norm}.weight"), "F32", vec![32], one.clone()));
    }
    all
}

fn renamed(rename: impl Fn(&str) -> String) -> Vec<Tensor> {
    tensors(0).into_iter().map(|(name, dtype, shape, bytes)| (rename(&name), dtype, shape, bytes)).collect()
}

fn file(tensors: &[Tensor]) -> Vec<u8> {
    file_with(tensors, json!({"format": "pt"}))
}

fn file_with(tensors: &[Tensor], metadata: Value) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    header.insert("__metadata__".into(), metadata);
    for (name, dtype, shape, bytes) in tensors {
        let end = data.len() + bytes.len();
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [data.len(), end]}));
        data.extend(bytes);
    }
    common::safetensors(&Value::Object(header).to_string(), &data)
}

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "hidden_act": "silu", "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
    })
}

/// A directory with this model in one file.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        place.write("config.json", config().to_string());
        place
    }

    fn single(tensors: &[Tensor]) -> Self {
        let place = Place::new();
        place.write("model.safetensors", file(tensors));
        place
    }

    /// Two shards and an index, which `change` may change.
    fn sharded(tensors: &[Tensor], change: impl Fn(&mut BTreeMap<String, String>)) -> Self {
        let place = Place::new();
        let mut map = BTreeMap::new();
        for (shard, part) in SHARDS.iter().zip([&tensors[..10], &tensors[10..]]) {
            place.write(shard, file(part));
            map.extend(part.iter().map(|(name, ..)| (name.clone(), (*shard).to_owned())));
        }
        change(&mut map);
        place.write(INDEX, json!({"metadata": {}, "weight_map": map}).to_string());
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        fs::write(self.at(name), bytes).unwrap();
    }

    /// The config with these fields added.
    fn configure(self, fields: Value) -> Self {
        let mut config = config();
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        self.write("config.json", config.to_string());
        self
    }

    fn model(&self) -> lacuna::Result<Model> {
        Model::open(&Checkpoint::open(self.path())?, DType::F32, &Device::Cpu)
    }

    fn refusal(&self) -> String {
        self.model().unwrap_err().to_string()
    }

    fn notes(&self) -> Vec<String> {
        Checkpoint::open(self.path()).unwrap().notes()
    }
}

/// The messages that people read in each of several situations, for a snapshot.
#[derive(Default)]
struct Refusals(String);

impl Refusals {
    fn add(&mut self, situation: &str, place: &Place) {
        self.say(situation, &place.refusal(), place.path());
    }

    /// A message with `DIR` in place of the directory, whose name is another in every run.
    fn say(&mut self, situation: &str, message: &str, dir: &Path) {
        assert!(!message.contains("backtrace") && !message.contains('\n'), "{message}");
        self.0 += &format!("# {situation}\n{}\n\n", message.replace(dir.to_str().unwrap(), "DIR"));
    }

    #[track_caller]
    fn assert_are(self, name: &str) {
        insta::with_settings!({omit_expression => true}, { insta::assert_snapshot!(name, self.0.trim_end()) });
    }
}

fn windows() -> Windows {
    let id = |i: u32| (i * 37 + i * i % 101) % 128;
    let ids = (0..4).map(|window| (window * 64..(window + 1) * 64).map(id).collect()).collect();
    Windows { name: "ids".into(), seqlen: 64, ids }
}

/// transformers' loss of one of the script's layouts.
fn expected(layout: &str) -> f64 {
    let text = include_str!("data/checkpoint_names.json");
    serde_json::from_str::<Value>(text).unwrap()["nll"][layout].as_f64().unwrap()
}

#[track_caller]
fn assert_reads(place: &Place, layout: &str) {
    let nll = evaluate(&place.model().unwrap(), &windows(), Progress::Hidden).unwrap().nll_nats;
    assert!((nll - expected(layout)).abs() < 1e-6, "{nll} is not {} ({layout})", expected(layout));
}

fn lacuna(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lacuna")).args(args).output().unwrap()
}

type Rename = fn(&str) -> String;

/// Names as wrappers leave them.
const WRAPPED: [(&str, Rename); 9] = [
    ("base class", |name| name.replacen("model.", "", 1)),
    ("torch.compile", |name| format!("_orig_mod.{name}")),
    ("data parallel", |name| format!("module.{name}")),
    ("PEFT", |name| format!("base_model.model.{name}")),
    ("compiled, data parallel", |name| format!("module._orig_mod.{name}")),
    ("PEFT, compiled, base class", |name| format!("_orig_mod.base_model.model.{}", name.replacen("model.", "", 1))),
    ("compiled layers", |name| {
        name.replace("layers.0.", "layers.0._orig_mod.").replace("layers.1.", "layers.1._orig_mod.")
    }),
    ("FSDP", |name| {
        format!(
            "_fsdp_wrapped_module.{}",
            name.replace("layers.0.", "layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.")
        )
    }),
    ("Lightning", |name| format!("model.{name}")),
];

#[test]
fn wrapped_models_load_in_one_file_and_in_shards_and_say_so() {
    for (what, rename) in WRAPPED {
        let tensors = renamed(rename);
        let places = [Place::single(&tensors), Place::sharded(&tensors, |_| {})];
        for place in places {
            assert_reads(&place, "plain");
            let notes = place.notes();
            assert!(notes.len() == 1 && notes[0].contains("wrapped model"), "{what}: {notes:?}");
        }
    }
    assert_eq!(Place::single(&tensors(0)).notes(), Vec::<String>::new());
    assert_reads(&Place::single(&tensors(0)), "plain");
}

/// The tensor names in the headers of a directory's files.
fn stored_names(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for name in names(dir).iter().filter(|name| name.ends_with(".safetensors")) {
        let bytes = fs::read(dir.join(name)).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        all.extend(header.keys().filter(|name| *name != "__metadata__").cloned());
    }
    all.sort();
    all
}

#[test]
fn what_is_written_has_the_names_of_the_input() {
    for (what, rename) in WRAPPED {
        let tensors = renamed(rename);
        let place = if what.contains("PEFT") { Place::sharded(&tensors, |_| {}) } else { Place::single(&tensors) };
        let before = stored_names(place.path());
        let model = place.model().unwrap();
        let out = place
            .0
            .path()
            .parent()
            .unwrap()
            .join(format!("{}-out", place.path().file_name().unwrap().to_str().unwrap()));
        let mut config = lacuna::prune::PruneConfig::new(lacuna::importance::Method::Magnitude, 0.5);
        config.pattern = Pattern::NofM { n: 2, m: 4 };
        lacuna::prune::prune_to(&model, None, &config, &out, Progress::Hidden).unwrap();
        assert_eq!(stored_names(&out), before, "{what}");
        if out.join(INDEX).exists() {
            let index: Value = serde_json::from_slice(&fs::read(out.join(INDEX)).unwrap()).unwrap();
            assert_eq!(index["weight_map"].as_object().unwrap().len(), before.len());
            assert!(before.iter().all(|name| index["weight_map"].get(name).is_some()), "{what}");
        }
        // Stored sparse and back.
        let (sparse, dense) = (out.with_extension("sparse"), out.with_extension("dense"));
        let pruned = Checkpoint::open(&out).unwrap();
        assert!(compress(&pruned, &sparse, None, Progress::Hidden).unwrap().is_sparse());
        let opened = Checkpoint::open(&sparse).unwrap();
        assert_eq!(opened.sha256().unwrap(), pruned.sha256().unwrap(), "{what}");
        decompress(&opened, &dense, Progress::Hidden).unwrap();
        assert_eq!(stored_names(&dense), before, "{what}");
        for dir in [out, sparse, dense] {
            fs::remove_dir_all(dir).unwrap();
        }
    }
}

#[test]
fn names_of_no_model_and_of_two_are_refused() {
    let mut refusals = Refusals::default();
    let mut both = tensors(0);
    both.extend(renamed(|name| format!("module.{name}")));
    refusals.add("two models in one file", &Place::single(&both));
    refusals.add("a prefix that is not known", &Place::single(&renamed(|name| format!("teacher.{name}"))));
    refusals.add(
        "Mistral's own names",
        &Place::single(&[
            zeros("layers.0.attention.wq.weight".into(), "F32", &[4, 4], 32),
            zeros("tok_embeddings.weight".into(), "F32", &[4, 4], 32),
        ]),
    );
    refusals.add(
        "another family's names",
        &Place::single(&[zeros("transformer.h.0.attn.c_attn.weight".into(), "F32", &[4, 4], 32)]),
    );
    refusals.add(
        "pruned by PyTorch, not made permanent",
        &Place::single(&quantised(|base, shape| {
            [".weight_orig", ".weight_mask"].map(|end| zeros(format!("{base}{end}"), "F32", shape, 32)).into()
        })),
    );
    refusals.add(
        "parametrised",
        &Place::single(&quantised(|base, shape| {
            vec![zeros(format!("{base}.parametrizations.weight.original0"), "F32", shape, 32)]
        })),
    );
    let joined = |name: &str| name.replace("self_attn.q_proj", "self_attn.qkv_proj");
    refusals.add("joined projections", &Place::single(&renamed(joined)));
    let deeper = Place::single(&tensors(0)).configure(json!({"num_hidden_layers": 3}));
    refusals.add("fewer layers than config.json has", &deeper);
    let biased = Place::single(&tensors(0)).configure(json!({"attention_bias": true}));
    refusals.add("no biases, where config.json has some", &biased);
    let wider = Place::single(&tensors(0)).configure(json!({"intermediate_size": 64}));
    refusals.add("another width than config.json's", &wider);
    let headless = |config: Value, head: Option<Tensor>| {
        let mut left = tensors(0);
        left.retain(|(known, ..)| known != "lm_head.weight");
        left.extend(head);
        Place::single(&left).configure(config)
    };
    refusals.add("no head", &headless(json!({}), None));
    refusals.add("saved by the base class, without a head", &headless(json!({"architectures": ["LlamaModel"]}), None));
    refusals.add(
        "another head",
        &headless(
            json!({"architectures": ["LlamaForSequenceClassification"]}),
            Some(zeros("score.weight".into(), "F32", &[2, 32], 32)),
        ),
    );
    let mut lora = renamed(|name| format!("base_model.model.{name}"));
    let added = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight";
    lora.push(zeros(added.into(), "F32", &[8, 32], 32));
    refusals.add("an adapter inside", &Place::single(&lora));
    refusals.assert_are("names");
}

#[test]
fn indices_may_say_too_much_and_too_little() {
    let shard = SHARDS[1].to_owned();
    let more = Place::sharded(&tensors(0), |map| drop(map.insert("mtp.fc.weight".into(), shard.clone())));
    assert_reads(&more, "lists more");
    assert_says(&more.notes()[0], &["lists 1 tensor that no shard has", "`mtp.fc.weight`", SHARDS[1]]);

    let mut buffers = tensors(0);
    buffers.insert(3, ("model.layers.0.self_attn.rotary_emb.inv_freq".into(), "F32", vec![4], values(4, 1, 1.0)));
    let less = Place::sharded(&buffers, |map| drop(map.remove("model.layers.0.self_attn.rotary_emb.inv_freq")));
    assert_reads(&less, "lists less");
    assert_says(&less.notes()[0], &["does not list 1 tensor", "inv_freq", SHARDS[0]]);

    let dotted = Place::sharded(&tensors(0), |map| map.values_mut().for_each(|shard| *shard = format!("./{shard}")));
    assert_reads(&dotted, "plain");
    assert!(dotted.notes().is_empty());

    let nested =
        Place::sharded(&tensors(0), |map| map.values_mut().for_each(|shard| *shard = format!("weights/{shard}")));
    fs::create_dir(nested.at("weights")).unwrap();
    SHARDS.iter().for_each(|shard| fs::rename(nested.at(shard), nested.at("weights").join(shard)).unwrap());
    assert_reads(&nested, "plain");
    let source = open_source(nested.path().to_str().unwrap(), Progress::Hidden).unwrap();
    assert_eq!(source.files(), SHARDS.map(|shard| format!("weights/{shard}")));

    let wrong = Place::sharded(&tensors(0), |map| drop(map.insert("lm_head.weight".into(), SHARDS[0].into())));
    assert_reads(&wrong, "plain");
    assert_says(&wrong.notes()[0], &["wrong about where 1 tensor", "`lm_head.weight`", SHARDS[1]]);

    // What is needed must be there.
    let mut without = tensors(0);
    without.retain(|(name, ..)| name != "model.norm.weight");
    let lost = Place::sharded(&without, |map| drop(map.insert("model.norm.weight".into(), SHARDS[1].into())));
    let mut refusals = Refusals::default();
    refusals.add("a tensor that is needed is in no shard", &lost);
    let gone = Place::sharded(&tensors(0), |_| {});
    fs::remove_file(gone.at(SHARDS[1])).unwrap();
    refusals.add("a shard is missing", &gone);
    symlink("../../blobs/0123", gone.at(SHARDS[1])).unwrap();
    refusals.add("a shard is a link to nothing", &gone);
    let doubled = Place::sharded(&tensors(0), |_| {});
    doubled.write(SHARDS[1], file(&tensors(0)[9..]));
    refusals.add("a tensor is in two shards", &doubled);
    let text = format!("{{\"weight_map\": {{\"a\": {:?}, \"a\": {:?}}}}}", SHARDS[0], SHARDS[1]);
    doubled.write(INDEX, text);
    refusals.add("a tensor stands twice in the index", &doubled);
    doubled.write(INDEX, "{\"weight_map\": {}}");
    refusals.add("an empty index", &doubled);
    doubled.write(INDEX, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n");
    refusals.add("the index is a pointer", &doubled);
    doubled.write(INDEX, "[1]");
    refusals.add("the index is something else", &doubled);
    for name in ["../other.safetensors", "/etc/passwd", "a/../../b.safetensors", "", "."] {
        let place = Place::sharded(&tensors(0), |map| drop(map.insert("model.norm.weight".into(), name.into())));
        refusals.add(&format!("the index leaves the directory by `{name}`"), &place);
    }
    let again = refusals.0.contains("download it again");
    refusals.assert_are("indices");
    assert!(!again, "the same bytes would come");
}

#[test]
fn links_are_followed() {
    let place = Place::sharded(&tensors(0), |_| {});
    let blobs = tempfile::tempdir().unwrap();
    for name in [SHARDS[0], SHARDS[1], INDEX, "config.json"] {
        fs::rename(place.at(name), blobs.path().join(name)).unwrap();
        symlink(blobs.path().join(name), place.at(name)).unwrap();
    }
    assert_reads(&place, "plain");

    // Two names, one file.
    let twice = Place::sharded(&tensors(0), |_| {});
    twice.write(SHARDS[0], file(&tensors(0)));
    fs::remove_file(twice.at(SHARDS[1])).unwrap();
    symlink(SHARDS[0], twice.at(SHARDS[1])).unwrap();
    assert_reads(&twice, "plain");
    assert!(twice.notes().is_empty(), "{:?}", twice.notes());
}

#[test]
fn a_single_file_beside_an_index_is_read_if_it_is_whole() {
    let both = Place::sharded(&tensors(0), |_| {});
    both.write("model.safetensors", file(&tensors(900)));
    assert_reads(&both, "both");
    assert_says(&both.notes()[0], &["both model.safetensors and", "as transformers does"]);

    let stray = Place::sharded(&tensors(0), |_| {});
    stray.write("model.safetensors", file(&tensors(9)[20..]));
    assert_reads(&stray, "plain");
    assert_says(&stray.notes()[0], &["model.safetensors is not read", "lacks tensors"]);

    // The index of an earlier version.
    let stale = Place::sharded(&tensors(0), |_| {});
    SHARDS.iter().for_each(|shard| fs::remove_file(stale.at(shard)).unwrap());
    stale.write("model.safetensors", file(&tensors(900)));
    assert_reads(&stale, "other");
}

/// A tensor of zeros.
fn zeros(name: String, dtype: &'static str, shape: &[usize], bits: usize) -> Tensor {
    (name, dtype, shape.to_vec(), vec![0; shape.iter().product::<usize>() * bits / 8])
}

/// The model with every projection replaced.
fn quantised(replace: impl Fn(&str, &[usize]) -> Vec<Tensor>) -> Vec<Tensor> {
    let each = |tensor: Tensor| match tensor.0.strip_suffix("_proj.weight") {
        Some(_) => replace(tensor.0.strip_suffix(".weight").unwrap(), &tensor.2),
        None => vec![tensor],
    };
    tensors(0).into_iter().flat_map(each).collect()
}

#[test]
fn quantised_checkpoints_are_named() {
    let packed = |base: &str, shape: &[usize]| {
        vec![
            zeros(format!("{base}.qweight"), "I32", &[shape[1] / 8, shape[0]], 32),
            zeros(format!("{base}.scales"), "F16", &[1, shape[0]], 16),
        ]
    };
    let bytes = |base: &str, shape: &[usize]| {
        vec![
            zeros(format!("{base}.weight"), "U8", &[shape[0] * shape[1] / 2, 1], 8),
            zeros(format!("{base}.weight.absmax"), "F32", &[8], 32),
        ]
    };
    let int8 = |base: &str, shape: &[usize]| {
        vec![zeros(format!("{base}.weight"), "I8", shape, 8), zeros(format!("{base}.SCB"), "F32", &[shape[0]], 32)]
    };
    let fp8 = |base: &str, shape: &[usize]| {
        vec![
            zeros(format!("{base}.weight"), "F8_E4M3", shape, 8),
            zeros(format!("{base}.weight_scale_inv"), "F32", &[1, 1], 32),
        ]
    };
    let ct = |base: &str, shape: &[usize]| {
        vec![
            zeros(format!("{base}.weight_packed"), "I32", &[shape[0], shape[1] / 8], 32),
            zeros(format!("{base}.weight_scale"), "F16", &[shape[0], 1], 16),
        ]
    };
    let cast = |base: &str, shape: &[usize]| vec![zeros(format!("{base}.weight"), "F8_E5M2", shape, 8)];
    let mlx = |base: &str, shape: &[usize]| vec![zeros(format!("{base}.weight"), "U32", &[shape[0], shape[1] / 8], 32)];
    let experts = |base: &str, shape: &[usize]| {
        vec![
            zeros(format!("{base}_blocks"), "U8", &[shape[0], shape[1] / 32, 16], 8),
            zeros(format!("{base}_scales"), "U8", &[shape[0], shape[1] / 32], 8),
        ]
    };
    let mut refusals = Refusals::default();
    let mut add = |situation: &str, fields: Value, tensors: Vec<Tensor>| {
        refusals.add(situation, &Place::single(&tensors).configure(fields));
    };
    let of = |config: Value| json!({"quantization_config": config});
    add("GPTQ", of(json!({"quant_method": "gptq", "bits": 4, "group_size": 128})), quantised(packed));
    add("AWQ", of(json!({"quant_method": "awq", "bits": 4})), quantised(packed));
    add("bitsandbytes in 4 bits", of(json!({"quant_method": "bitsandbytes", "load_in_4bit": true})), quantised(bytes));
    add("bitsandbytes in 8 bits", of(json!({"load_in_8bit": true})), quantised(int8));
    add("FP8", of(json!({"quant_method": "fp8", "weight_block_size": [128, 128]})), quantised(fp8));
    add("llm-compressor", of(json!({"quant_method": "compressed-tensors", "config_groups": {}})), quantised(ct));
    add("MXFP4 of a Llama", of(json!({"quant_method": "mxfp4"})), quantised(experts));
    add("a method that is not known", of(json!({"quant_method": "brandnew"})), quantised(packed));
    add("MLX", json!({"quantization": {"bits": 4, "group_size": 64}}), quantised(mlx));
    // Where config.json says nothing, the names and types do.
    add("packed, config.json is silent", json!({}), quantised(packed));
    add("cast to FP8, config.json is silent", json!({}), quantised(cast));
    add("8 bits, config.json is silent", json!({}), quantised(int8));
    let told = Place::single(&quantised(packed));
    told.write("quantize_config.json", "{}");
    refusals.add("packed, and a file beside it says by what", &told);
    let unknown = refusals.0.contains("does config.json belong");
    refusals.assert_are("quantised");
    assert!(!unknown, "each has a name");

    // What was dequantised, and kept its settings, is plain.
    let undone = Place::single(&tensors(0)).configure(of(json!({"quant_method": "gptq", "bits": 4})));
    assert_reads(&undone, "plain");
    assert_says(&undone.notes()[0], &["GPTQ", "plain floats"]);
}

#[test]
fn directories_with_something_else_are_told_apart() {
    let mut refusals = Refusals::default();
    let adapter = Place::new();
    adapter.write("adapter_config.json", r#"{"peft_type": "LORA", "base_model_name_or_path": "acme/base", "r": 8}"#);
    adapter.write("adapter_model.safetensors", file(&[zeros("a.lora_A.weight".into(), "F32", &[8, 32], 32)]));
    refusals.add("an adapter", &adapter);
    let dangling = Place::new();
    symlink("../../blobs/0123", dangling.at("model.safetensors")).unwrap();
    refusals.add("a link to nothing", &dangling);
    let config = Place::single(&tensors(0));
    fs::remove_file(config.at("config.json")).unwrap();
    refusals.add("no config.json", &config);
    symlink("gone.json", config.at("config.json")).unwrap();
    refusals.add("config.json is a link to nothing", &config);
    refusals.add("config.json alone", &Place::new());
    for file in [
        "consolidated.safetensors",
        "consolidated.00.pth",
        "model.fp16.safetensors",
        "model.safetensors.index.fp16.json",
        "pytorch_model.bin",
        "mine.safetensors",
        SHARDS[0],
        "tf_model.h5",
        "flax_model.msgpack",
        "m-Q4_K_M.gguf",
        "model.onnx",
        "model_index.json",
        "checkpoint-500/model.safetensors",
        "global_step5/mp_rank_00_model_states.pt",
        "mp_rank_00_model_states.pt",
    ] {
        let place = Place::new();
        place.write(file, "x");
        refusals.add(file, &place);
    }
    let place = Place::new();
    for name in ["model.gguf", "model.safetensors", "pytorch_model.bin", "README.md", "gone"] {
        if name != "gone" {
            place.write(name, "x");
        }
        let error = Checkpoint::open(place.at(name)).unwrap_err().to_string();
        refusals.say(&format!("not a directory, {name}"), &error, place.path());
    }
    for (what, bytes) in [
        ("empty", &b""[..]),
        ("a pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"),
        ("a web page", b"<!DOCTYPE html><html></html>"),
        ("cut off", &file(&tensors(0))[..4000]),
        ("a pickle", b"\x80\x02}q\x00X\x01\0\0\0a"),
    ] {
        place.write("model.safetensors", bytes);
        refusals.add(&format!("model.safetensors is {what}"), &place);
    }
    refusals.assert_are("directories");
}

/// A hub's cache with the model as `acme/tiny-model`.
fn hub_cache() -> tempfile::TempDir {
    let cache = tempfile::tempdir().unwrap();
    let model = cache.path().join("models--acme--tiny-model");
    let snapshot = model.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::write(model.join("refs/main"), COMMIT).unwrap();
    fs::write(snapshot.join("config.json"), config().to_string()).unwrap();
    fs::write(snapshot.join("model.safetensors"), file(&tensors(0))).unwrap();
    cache
}

#[test]
fn a_model_is_recorded_under_the_name_that_people_give_it() {
    let cache = hub_cache();
    let folder = cache.path().join("models--acme--tiny-model");
    let snapshot = folder.join("snapshots").join(COMMIT);
    let checkpoint = Checkpoint::open(&snapshot).unwrap();
    assert_eq!((checkpoint.name(), checkpoint.revision()), ("acme/tiny-model", Some(COMMIT)));
    let record = Model::open(&checkpoint, DType::F32, &Device::Cpu).unwrap().record().unwrap();
    assert_eq!((record.name.as_str(), record.revision.as_deref()), ("acme/tiny-model", Some(COMMIT)));
    assert_says(Checkpoint::open(&folder).unwrap_err(), &["hub's cache", "give `acme/tiny-model`", COMMIT]);

    let place = Place::single(&tensors(0));
    let name = place.path().file_name().unwrap().to_str().unwrap();
    fs::create_dir(place.at("sub")).unwrap();
    for path in [place.at(""), place.at("sub/.."), place.at("."), place.at("./sub/../.")] {
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!((checkpoint.name(), checkpoint.revision()), (name, None), "{}", path.display());
    }
    let inside = Command::new(env!("CARGO_BIN_EXE_lacuna"))
        .args(["doctor", ".", "--json"])
        .current_dir(place.path())
        .output()
        .unwrap();
    let found: Value = serde_json::from_slice(&inside.stdout).unwrap();
    assert_eq!(found["model"], name);
}

#[test]
fn offline_and_without_a_home_the_cache_will_do() {
    let cache = hub_cache();
    let run = |vars: &[(&str, &str)], args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command.args(args).env_clear().envs(vars.iter().copied());
        // The test's own libraries.
        command.envs(std::env::vars().filter(|(name, _)| name == "LD_LIBRARY_PATH"));
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let at = cache.path().to_str().unwrap();
    // Nothing listens there.
    let nowhere = ("HF_ENDPOINT", "http://127.0.0.1:9");
    for args in [&["inspect", "acme/tiny-model", "--json"][..], &["doctor", "acme/tiny-model", "--json"]] {
        for more in [nowhere, ("HF_HUB_OFFLINE", "1")] {
            let (code, stdout, stderr) = run(
                &[("HF_HUB_CACHE", at), more, ("TRANSFORMERS_OFFLINE", if args[0] == "doctor" { "yes" } else { "0" })],
                args,
            );
            assert_eq!(code, Some(0), "{args:?} {stderr}");
            assert!(serde_json::from_str::<Value>(&stdout).is_ok(), "{stdout}");
        }
    }
    for args in [
        &["inspect", "acme/other"][..],
        &["generate", "acme/other", "--prompt", "a"],
        &["experts", "plan", "acme/other@v1", "--keep", "2"],
    ] {
        let (code, _, stderr) = run(&[("HF_HUB_CACHE", at), ("HF_HUB_OFFLINE", "true"), nowhere], args);
        if args[0] != "experts" {
            assert_eq!(code, Some(1), "{stderr}");
            assert_says(&stderr, &["acme/other", "HF_HUB_OFFLINE forbids", at]);
        }
    }
    // The hub itself asks for nothing: a server that counts would see it.
    let hub = Hub {
        endpoint: "http://127.0.0.1:9".into(),
        token: None,
        cache: cache.path().to_path_buf(),
        retry: Default::default(),
        offline: true,
    };
    assert!(hub.download("acme/tiny-model", Progress::Hidden).is_ok());
    assert!(hub.source(&format!("acme/tiny-model@{COMMIT}"), Progress::Hidden).is_ok());
    assert_says(hub.headers("acme/tiny-model", Progress::Hidden).map(|_| ()).unwrap_err(), &["HF_HUB_OFFLINE"]);
}

#[test]
fn json_as_python_and_editors_leave_it_is_read_or_explained() {
    let plain = Place::single(&tensors(0));
    let text = config().to_string();
    plain.write("config.json", text.replacen('{', r#"{"time_step_limit": [0.0, Infinity], "x": NaN, "#, 1));
    assert_reads(&plain, "plain");
    plain.write("config.json", format!("\u{feff}{text}"));
    assert_reads(&plain, "plain");
    let mut eps = config();
    eps["rms_norm_eps"] = json!(0.125);
    plain.write("config.json", eps.to_string().replace("0.125", "NaN"));
    assert_says(plain.refusal(), &["config.json", "`rms_norm_eps`", "NaN", "not a number"]);
    plain.write("config.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n");
    assert_says(plain.refusal(), &["config.json", "git lfs pull"]);
    plain.write("config.json", "");
    assert_says(plain.refusal(), &["config.json", "is empty"]);
    plain.write("config.json", text);
    plain.write("model.safetensors", file_with(&tensors(0), Value::Null));
    assert_reads(&plain, "plain");

    plain.write("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n");
    assert_says(plain.model().unwrap().tokenizer().unwrap_err(), &["tokenizer.json", "git lfs pull"]);
    plain.write("tokenizer.json", "<!DOCTYPE html><html></html>");
    assert_says(plain.model().unwrap().tokenizer().unwrap_err(), &["tokenizer.json", "web page"]);
    fs::remove_file(plain.at("tokenizer.json")).unwrap();
    symlink("../blobs/1", plain.at("tokenizer.json")).unwrap();
    assert_says(plain.model().unwrap().tokenizer().unwrap_err(), &["is a link to ../blobs/1"]);
}

#[test]
fn generation_ends_at_the_tokens_of_generation_config() {
    let place = Place::single(&tensors(0));
    let ends = |text: &str| {
        place.write("generation_config.json", text);
        place.model().unwrap().end_tokens()
    };
    assert_eq!(place.model().unwrap().end_tokens().unwrap(), [2], "config.json's");
    assert_eq!(ends(r#"{"eos_token_id": 7}"#).unwrap(), [7]);
    assert_eq!(ends(r#"{"eos_token_id": [5, 7], "temperature": 0.6}"#).unwrap(), [5, 7]);
    assert_eq!(ends(r#"{"eos_token_id": null}"#).unwrap(), [2]);
    assert_eq!(ends("{}").unwrap(), [2]);
    for wrong in [r#"{"eos_token_id": "</s>"}"#, r#"{"eos_token_id": [1, 2.5]}"#, r#"{"eos_token_id": [[1]]}"#, "[1]"] {
        assert_says(ends(wrong).unwrap_err(), &["generation_config.json"]);
    }
    place.write("generation_config.json", r#"{"bos_token_id": 3, "eos_token_id": 7}"#);
    assert_eq!(place.model().unwrap().start_token().unwrap(), Some(1), "config.json's, as before");
}

#[test]
fn the_doctor_lists_everything_in_the_way() {
    let doctor = |place: &Place, more: &[&str]| {
        let output = lacuna(&[&["doctor", place.path().to_str().unwrap()], more].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let healthy = Place::single(&tensors(0));
    let (code, text) = doctor(&healthy, &[]);
    assert_eq!(code, Some(0), "{text}");
    assert_says(
        &text,
        &["llama, 21 tensors", "note     tokenizer: there is no tokenizer.json", "every command can use it"],
    );

    let mut spare = renamed(|name| format!("_orig_mod.{name}"));
    spare.push(zeros("mtp.fc.weight".into(), "F32", &[2, 2], 32));
    let (code, text) = doctor(&Place::single(&spare), &["--quick"]);
    assert_eq!(code, Some(0), "{text}");
    assert_says(&text, &["wrapped model", "1 tensor is not part of the model", "`mtp.fc.weight`", "were not read"]);

    let sick = Place::single(&{
        let mut all = tensors(0);
        all[3].3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        all
    });
    sick.write("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n");
    sick.write("generation_config.json", "{");
    let (code, text) = doctor(&sick, &["--json"]);
    assert_eq!(code, Some(1));
    let found: Value = serde_json::from_str(&text).unwrap();
    let about: Vec<_> = found["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["about"].as_str().unwrap(), f["severity"].as_str().unwrap()))
        .collect();
    assert_eq!(about, [("tokenizer", "problem"), ("generation", "problem"), ("weights", "problem")], "{text}");
    assert_says(&text, &["git lfs pull", "NaN or infinite"]);

    let (code, text) = doctor(&Place::new(), &[]);
    assert_eq!(code, Some(1));
    assert_says(&text, &["PROBLEM  weights:", "neither model.safetensors"]);
    assert_eq!(lacuna(&["doctor"]).status.code(), Some(2));
}

#[test]
fn mixtures_are_cut_under_the_names_that_they_have() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-mixtral");
    let dir = tempfile::tempdir().unwrap();
    let (base, out) = (dir.path().join("base"), dir.path().join("out"));
    fs::create_dir(&base).unwrap();
    fs::copy(data.join("config.json"), base.join("config.json")).unwrap();
    let source = Checkpoint::open(&data).unwrap();
    let dtype = |dtype: safetensors::Dtype| -> &'static str { Box::leak(dtype.to_string().into_boxed_str()) };
    let wrapped: Vec<Tensor> = source
        .tensors()
        .map(|info| {
            let name = format!("_orig_mod.{}", info.name.replacen("model.", "", 1));
            (name, dtype(info.dtype), info.shape.clone(), source.read(&info.name).unwrap())
        })
        .collect();
    fs::write(base.join("model.safetensors"), file(&wrapped)).unwrap();
    let base = Checkpoint::open(&base).unwrap();
    let layout = lacuna::experts::ExpertLayout::find(&base).unwrap();
    let lists = layout.mixtures.keys().map(|&layer| (layer, vec![0, 2])).collect();
    let keep = lacuna::experts::Keep::new(&layout, lists).unwrap();
    lacuna::experts::prune_experts_to(&base, &keep.into(), u64::MAX, &out, Progress::Hidden).unwrap();
    assert!(stored_names(&out).iter().all(|name| name.starts_with("_orig_mod.") && !name.contains("model.")));
    assert!(lacuna::experts::verify(&base, &out, Progress::Hidden).unwrap().mismatches.is_empty());
}
