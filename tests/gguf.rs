//! GGUF import: names, the order of Q and K rows, config and tokenizer, and what is refused.

mod common;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use common::{assert_says, fingerprint, names};
use lacuna::checkpoint::{Checkpoint, ImportSummary, import_gguf};
use lacuna::progress::Progress;
use std::collections::BTreeMap;
use std::path::Path;

const HIDDEN: usize = 64;
const FF: usize = 96;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const LAYERS: usize = 11;

/// The content of a file; tests change it before it is written.
struct Gguf {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, QTensor>,
}

/// GPT-2's printable stand-ins for the 256 bytes, in the order of its vocabulary.
fn byte_tokens() -> Vec<String> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut tokens: Vec<String> =
        (0..256).filter(|&b| printable(b)).map(|b| char::from_u32(b).unwrap().into()).collect();
    let others = (0..256u32).filter(|&b| !printable(b)).count() as u32;
    tokens.extend((0..others).map(|i| char::from_u32(256 + i).unwrap().to_string()));
    tokens
}

/// Distinct numbers, so that no two rows are equal.
fn weight(rows: usize, columns: usize, seed: usize) -> Tensor {
    let values = (0..rows * columns).map(|i| ((i * 7919 + seed * 104_729) % 100_003) as f32 / 50_000.0 - 1.0);
    Tensor::from_iter(values, &Device::Cpu).unwrap().reshape((rows, columns)).unwrap()
}

impl Gguf {
    /// A small Llama: norms in F32, embedding in Q8_0, linears in Q4_1, Q and K of layer 0 in F32.
    fn llama() -> Self {
        let mut vocab = vec!["<|endoftext|>".to_owned(), "<|im_start|>".to_owned(), "<tool>".to_owned()];
        vocab.extend(byte_tokens());
        vocab.extend(["Ġt", "he", "Ġthe", "12"].map(str::to_owned));
        let mut types = vec![1; vocab.len()];
        types[..3].copy_from_slice(&[3, 3, 4]);
        let strings = |strings: &[String]| Value::Array(strings.iter().cloned().map(Value::String).collect());
        let merges = ["Ġ t", "h e", "Ġt he", "1 2"].map(str::to_owned);
        let rows = vocab.len();
        let metadata = [
            ("general.architecture", Value::String("llama".into())),
            ("llama.block_count", Value::U32(LAYERS as u32)),
            ("llama.context_length", Value::U32(128)),
            ("llama.embedding_length", Value::U32(HIDDEN as u32)),
            ("llama.feed_forward_length", Value::U32(FF as u32)),
            ("llama.attention.head_count", Value::U32(HEADS as u32)),
            ("llama.attention.head_count_kv", Value::U32(KV_HEADS as u32)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.rope.freq_base", Value::F32(100_000.0)),
            ("llama.rope.dimension_count", Value::U32(HEAD_DIM as u32)),
            ("tokenizer.ggml.model", Value::String("gpt2".into())),
            ("tokenizer.ggml.pre", Value::String("smollm".into())),
            ("tokenizer.ggml.tokens", strings(&vocab)),
            ("tokenizer.ggml.token_type", Value::Array(types.into_iter().map(Value::I32).collect())),
            ("tokenizer.ggml.merges", strings(&merges)),
            ("tokenizer.ggml.bos_token_id", Value::U32(1)),
            ("tokenizer.ggml.eos_token_id", Value::U32(0)),
        ];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let mut gguf = Self { metadata, tensors: BTreeMap::new() };
        gguf.set("token_embd.weight", &weight(rows, HIDDEN, 1), GgmlDType::Q8_0);
        gguf.set("output_norm.weight", &norm(2), GgmlDType::F32);
        for i in 0..LAYERS {
            let kind = if i == 0 { GgmlDType::F32 } else { GgmlDType::Q4_1 };
            let seed = 100 * (i + 1);
            let mut set = |name: &str, tensor: Tensor, kind| gguf.set(&format!("blk.{i}.{name}.weight"), &tensor, kind);
            set("attn_norm", norm(seed), GgmlDType::F32);
            set("ffn_norm", norm(seed + 1), GgmlDType::F32);
            set("attn_q", weight(HEADS * HEAD_DIM, HIDDEN, seed + 2), kind);
            set("attn_k", weight(KV_HEADS * HEAD_DIM, HIDDEN, seed + 3), kind);
            set("attn_v", weight(KV_HEADS * HEAD_DIM, HIDDEN, seed + 4), GgmlDType::Q4_1);
            set("attn_output", weight(HIDDEN, HEADS * HEAD_DIM, seed + 5), GgmlDType::Q4_1);
            set("ffn_gate", weight(FF, HIDDEN, seed + 6), GgmlDType::Q4_1);
            set("ffn_up", weight(FF, HIDDEN, seed + 7), GgmlDType::F16);
            set("ffn_down", weight(HIDDEN, FF, seed + 8), GgmlDType::Q4_1);
        }
        gguf
    }

    fn set(&mut self, name: &str, tensor: &Tensor, kind: GgmlDType) {
        self.tensors.insert(name.to_owned(), QTensor::quantize(tensor, kind).unwrap());
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.metadata.insert(key.to_owned(), value);
        self
    }

    fn without(mut self, name: &str) -> Self {
        assert!(self.metadata.remove(name).is_some() || self.tensors.remove(name).is_some());
        self
    }

    fn write(&self, path: &Path) {
        let metadata: Vec<_> = self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        gguf_file::write(&mut std::fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
    }

    /// The values of the file's quantised blocks, row by row.
    fn rows(&self, name: &str) -> Vec<Vec<f32>> {
        self.tensors[name].dequantize(&Device::Cpu).unwrap().to_vec2().unwrap()
    }

    fn import(&self, parent: &Path, dtype: DType) -> (lacuna::Result<ImportSummary>, std::path::PathBuf) {
        let (file, out) = (parent.join("model.gguf"), parent.join("out"));
        self.write(&file);
        (import_gguf(&file, &out, dtype, Progress::Hidden), out)
    }
}

fn norm(seed: usize) -> Tensor {
    weight(1, HIDDEN, seed).flatten_all().unwrap()
}

#[test]
fn a_llama_is_imported_under_hugging_face_names_in_its_row_order() {
    let parent = tempfile::tempdir().unwrap();
    let gguf = Gguf::llama();
    let (input, out) = (parent.path().join("in"), parent.path().join("out"));
    std::fs::create_dir(&input).unwrap();
    gguf.write(&input.join("model.gguf"));
    let before = fingerprint(&input);
    let summary = import_gguf(&input.join("model.gguf"), &out, DType::F32, Progress::Hidden).unwrap();
    assert_eq!(fingerprint(&input), before, "the input is as it was");
    let checkpoint = Checkpoint::open(&out).unwrap();

    assert_eq!((summary.layers, summary.tensors, summary.tied_embeddings), (LAYERS, 2 + 9 * LAYERS, true));
    assert_eq!(summary.parameters, checkpoint.parameters());
    assert_eq!(summary.source_dtypes["Q8_0"], 1);
    assert_eq!(summary.source_dtypes["F16"], LAYERS);
    assert!(!checkpoint.contains("lm_head.weight"));
    // Layers in numeric order: 10 comes last.
    let last = checkpoint.tensors().map(|tensor| tensor.name.as_str()).nth(9 * LAYERS).unwrap();
    assert_eq!(last, "model.layers.10.mlp.down_proj.weight");

    let load = |name: &str| checkpoint.load(name, DType::F32, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
    for (theirs, ours) in [
        ("token_embd", "model.embed_tokens"),
        ("blk.10.attn_v", "model.layers.10.self_attn.v_proj"),
        ("blk.3.attn_output", "model.layers.3.self_attn.o_proj"),
        ("blk.2.ffn_gate", "model.layers.2.mlp.gate_proj"),
        ("blk.2.ffn_up", "model.layers.2.mlp.up_proj"),
        ("blk.2.ffn_down", "model.layers.2.mlp.down_proj"),
    ] {
        assert!(gguf.rows(&format!("{theirs}.weight")) == load(&format!("{ours}.weight")), "{ours}");
    }
    // convert_hf_to_gguf.py: reshape(heads, 2, half, in).swapaxes(1, 2), so their row 2 j + t is our row t half + j.
    let half = HEAD_DIM / 2;
    for layer in [0, 10] {
        for (part, ours, heads) in [("attn_q", "q_proj", HEADS), ("attn_k", "k_proj", KV_HEADS)] {
            let theirs = gguf.rows(&format!("blk.{layer}.{part}.weight"));
            let ours = load(&format!("model.layers.{layer}.self_attn.{ours}.weight"));
            assert_eq!(ours.len(), heads * HEAD_DIM);
            for (head, t, j) in (0..heads).flat_map(|h| (0..2).flat_map(move |t| (0..half).map(move |j| (h, t, j)))) {
                assert!(
                    ours[head * HEAD_DIM + t * half + j] == theirs[head * HEAD_DIM + 2 * j + t],
                    "{part} {head} {t} {j}"
                );
            }
        }
    }
    let norm = checkpoint.load("model.layers.10.post_attention_layernorm.weight", DType::F32, &Device::Cpu).unwrap();
    let expected = gguf.tensors["blk.10.ffn_norm.weight"].dequantize(&Device::Cpu).unwrap();
    assert_eq!(norm.to_vec1::<f32>().unwrap(), expected.to_vec1::<f32>().unwrap());

    let config = checkpoint.config().unwrap();
    assert_eq!(config["rms_norm_eps"].as_f64().unwrap(), f64::from(1e-5f32), "the very f32");
    assert_eq!(config["rope_theta"], 100_000.0);
    assert_eq!((&config["model_type"], &config["head_dim"]), (&"llama".into(), &HEAD_DIM.into()));
    assert_eq!((&config["num_key_value_heads"], &config["num_hidden_layers"]), (&KV_HEADS.into(), &LAYERS.into()));
    assert_eq!((&config["tie_word_embeddings"], &config["torch_dtype"]), (&true.into(), &"float32".into()));
    assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&1.into(), &0.into()));
}

#[test]
fn the_tokenizer_splits_digits_merges_and_knows_its_special_tokens() {
    let parent = tempfile::tempdir().unwrap();
    let (summary, out) = Gguf::llama().import(parent.path(), DType::F16);
    summary.unwrap();
    assert!(Checkpoint::open(&out).unwrap().tensors().all(|tensor| tensor.dtype == safetensors::Dtype::F16));
    let tokenizer = tokenizers::Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
    let tokens = |text: &str| tokenizer.encode(text, true).unwrap().get_tokens().to_vec();
    assert_eq!(tokens("the the"), ["t", "he", "Ġthe"]);
    // Digits stand alone, even though there is a merge of these two.
    assert_eq!(tokens("12"), ["1", "2"]);
    assert_eq!(tokens("<|im_start|>he<tool>"), ["<|im_start|>", "he", "<tool>"]);
    let text = "the 12 \u{fc}ber\n\u{1f40b}<tool>";
    let ids = tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    assert_eq!(tokenizer.decode(&[1, ids[0]], true).unwrap(), "t", "control tokens are special");
}

#[test]
fn a_start_token_and_an_output_layer_are_kept() {
    let parent = tempfile::tempdir().unwrap();
    let mut gguf = Gguf::llama().with("tokenizer.ggml.add_bos_token", Value::Bool(true));
    let rows = gguf.rows("token_embd.weight").len();
    gguf.set("output.weight", &weight(rows, HIDDEN, 9), GgmlDType::Q8_0);
    let (summary, out) = gguf.import(parent.path(), DType::BF16);
    assert!(!summary.unwrap().tied_embeddings);
    let checkpoint = Checkpoint::open(&out).unwrap();
    assert_eq!(checkpoint.get("lm_head.weight").unwrap().shape, [rows, HIDDEN]);
    assert_eq!(checkpoint.config().unwrap()["tie_word_embeddings"], false);
    let tokenizer = tokenizers::Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer.encode("he", true).unwrap().get_tokens(), ["<|im_start|>", "he"]);
    assert_eq!(tokenizer.encode("he", false).unwrap().get_tokens(), ["he"]);
}

#[test]
fn what_cannot_be_imported_is_refused_by_name_and_leaves_nothing() {
    let refused = |gguf: Gguf, says: &[&str]| {
        let parent = tempfile::tempdir().unwrap();
        let (result, _) = gguf.import(parent.path(), DType::F32);
        assert_says(result.unwrap_err(), says);
        assert_eq!(names(parent.path()), ["model.gguf"]);
    };
    let string = |text: &str| Value::String(text.into());
    let llama = Gguf::llama;
    refused(
        llama().with("general.architecture", string("gemma")),
        &["model.gguf", "`gemma`", "only `llama`", "`qwen3`"],
    );
    refused(llama().with("llama.expert_count", Value::U32(8)), &["mixture of experts"]);
    refused(llama().with("tokenizer.ggml.model", string("llama")), &["`tokenizer.ggml.scores` is missing"]);
    refused(llama().with("tokenizer.ggml.model", string("t5")), &["`t5`", "SentencePiece", "as safetensors"]);
    refused(llama().with("tokenizer.ggml.pre", string("tekken")), &["`tekken`", "tokens would be wrong"]);
    refused(llama().with("llama.rope.scaling.type", string("longrope")), &["`longrope`"]);
    refused(llama().with("llama.rope.dimension_count", Value::U32(8)), &["llama.rope.dimension_count", "16"]);
    refused(llama().with("llama.attention.head_count", Value::U32(0)), &["llama.attention.head_count", "positive"]);
    refused(llama().with("llama.block_count", string("many")), &["llama.block_count", "one number"]);
    // The first ended the process, the second took all memory.
    refused(llama().with("general.alignment", Value::U32(0)), &["`general.alignment` is 0", "download"]);
    refused(llama().with("llama.block_count", Value::I32(i32::MAX)), &["2147483647 layers", "damaged"]);
    refused(llama().with("tokenizer.ggml.merges", Value::Array(vec![string("no such")])), &["no tokenizer"]);
    refused(llama().with("tokenizer.ggml.bos_token_id", Value::U32(99_999)), &["bos", "99999"]);
    refused(llama().without("llama.embedding_length"), &["llama.embedding_length", "missing"]);
    refused(llama().without("blk.7.ffn_up.weight"), &["`blk.7.ffn_up.weight`", "missing"]);
    refused(llama().with("llama.feed_forward_length", Value::U32(128)), &["ffn_gate", "[96, 64]", "[128, 64]"]);
    let mut extra = llama();
    extra.set("blk.0.attn_q.bias", &norm(1), GgmlDType::F32);
    refused(extra, &["`blk.0.attn_q.bias`", "as safetensors"]);
}

#[test]
fn a_damaged_file_is_refused_and_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let (file, out) = (parent.path().join("model.gguf"), parent.path().join("out"));
    Gguf::llama().write(&file);
    let bytes = std::fs::read(&file).unwrap();
    let import = || import_gguf(&file, &out, DType::F32, Progress::Hidden).unwrap_err();
    // In the data, in the metadata, and not GGUF at all.
    std::fs::write(&file, &bytes[..bytes.len() - 2000]).unwrap();
    assert_says(import(), &["model.gguf", "download"]);
    std::fs::write(&file, &bytes[..2000]).unwrap();
    assert_says(import(), &["not a GGUF file that can be read"]);
    std::fs::write(&file, b"PK\x03\x04, a zip").unwrap();
    assert_says(import(), &["not a GGUF file that can be read"]);
    assert_eq!(names(parent.path()), ["model.gguf"]);

    std::fs::write(&file, &bytes).unwrap();
    std::fs::create_dir(&out).unwrap();
    assert_says(import(), &["out", "already exists"]);
    assert_eq!(names(&out), [""; 0]);
    let missing = import_gguf(&parent.path().join("none.gguf"), &parent.path().join("o"), DType::F32, Progress::Hidden);
    assert_says(missing.unwrap_err(), &["none.gguf", "No such file"]);
}

#[test]
fn a_split_model_is_read_from_all_its_parts() {
    let parent = tempfile::tempdir().unwrap();
    let whole = Gguf::llama();
    let (result, whole_out) = whole.import(parent.path(), DType::F32);
    result.unwrap();
    let part = |number: u16, count: u16| parent.path().join(format!("m-{:05}-of-{count:05}.gguf", number + 1));
    let write = |number: u16, count: u16, file: &Path| {
        let mut gguf = Gguf::llama();
        let names: Vec<String> = gguf.tensors.keys().cloned().collect();
        for (at, name) in names.iter().enumerate() {
            if at % usize::from(count) != usize::from(number) {
                gguf.tensors.remove(name);
            }
        }
        if number > 0 {
            gguf.metadata.clear();
        }
        gguf.metadata.insert("split.no".into(), Value::U16(number));
        gguf.metadata.insert("split.count".into(), Value::U16(count));
        gguf.write(file);
    };
    (0..3).for_each(|number| write(number, 3, &part(number, 3)));
    // Whichever is given.
    for number in 0..3 {
        let out = parent.path().join(format!("out{number}"));
        let summary = import_gguf(&part(number, 3), &out, DType::F32, Progress::Hidden).unwrap();
        assert_eq!(summary.tensors, Checkpoint::open(&whole_out).unwrap().tensors().count());
        let hash = |dir: &Path| Checkpoint::open(dir).unwrap().sha256().unwrap();
        assert_eq!(hash(&out), hash(&whole_out));
    }
    let refused = |file: &Path| import_gguf(file, &parent.path().join("no"), DType::F32, Progress::Hidden).unwrap_err();
    write(1, 4, &part(1, 3));
    assert_says(refused(&part(0, 3)), &["m-00002-of-00003.gguf", "part 2 of 4", "should be part 2 of 3"]);
    std::fs::remove_file(part(1, 3)).unwrap();
    assert_says(refused(&part(2, 3)), &["part 3 of 3", "first m-00002-of-00003.gguf", "one directory"]);
    let other = parent.path().join("renamed.gguf");
    std::fs::rename(part(0, 3), &other).unwrap();
    assert_says(refused(&other), &["part 1 of 3", "NAME-00001-of-00003.gguf", "llama-gguf-split --merge"]);
}

#[test]
fn what_is_no_gguf_or_of_a_type_that_is_not_read_is_named() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("model.gguf");
    let refused = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        import_gguf(&file, &parent.path().join("out"), DType::F32, Progress::Hidden).unwrap_err().to_string()
    };
    assert_says(
        refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        &["Git LFS pointer", "git lfs pull"],
    );
    assert_says(refused(b""), &["is empty"]);
    assert_says(refused(b"<!DOCTYPE html><html>"), &["web page"]);
    // The type of a tensor stands after its name and dimensions.
    Gguf::llama().write(&file);
    let bytes = std::fs::read(&file).unwrap();
    for (name, kind, called) in [
        ("blk.3.ffn_up.weight", 20u32, "IQ4_NL"),
        ("blk.0.attn_norm.weight", 23, "IQ4_XS"),
        ("token_embd.weight", 34, "TQ1_0"),
        ("output_norm.weight", 39, "MXFP4"),
        ("blk.9.attn_v.weight", 77, "number 77"),
    ] {
        let at = bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap() + name.len();
        let dims = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let mut changed = bytes.clone();
        changed[at + 4 + 8 * dims..][..4].copy_from_slice(&kind.to_le_bytes());
        let error = refused(&changed);
        assert_says(&error, &[&format!("`{name}`"), called, "1 of ", "llama-quantize"]);
        assert!(!error.contains("backtrace") && !error.contains('\n'), "{error}");
    }
    // Dimensions whose product overflows.
    let mut changed = bytes.clone();
    let at = bytes.windows(17).position(|window| window == b"token_embd.weight").unwrap() + 17 + 4;
    changed[at..at + 16].copy_from_slice(&[1u64 << 32; 2].map(u64::to_le_bytes).concat());
    assert_says(refused(&changed), &["`token_embd.weight`", "[4294967296, 4294967296] is not possible"]);
    // Cut anywhere, it is refused, and at once.
    for cut in (0..bytes.len()).step_by(997) {
        assert!(refused(&bytes[..cut]).contains("model.gguf"), "{cut}");
    }
}

#[test]
fn qwen2_and_qwen3_are_imported_as_themselves() {
    for (name, class) in [("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")] {
        let mut gguf = Gguf::llama();
        let metadata = std::mem::take(&mut gguf.metadata);
        gguf.metadata =
            metadata.into_iter().map(|(key, value)| (key.replacen("llama.", &format!("{name}."), 1), value)).collect();
        gguf.metadata.insert("general.architecture".into(), Value::String(name.into()));
        gguf.metadata.insert("tokenizer.ggml.pre".into(), Value::String("qwen2".into()));
        let ramp = |n: usize, seed: usize| weight(1, n, seed).squeeze(0).unwrap();
        for i in 0..LAYERS {
            if name == "qwen2" {
                for (part, rows) in [("q", HEADS * HEAD_DIM), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM)] {
                    gguf.set(&format!("blk.{i}.attn_{part}.bias"), &ramp(rows, i), GgmlDType::F32);
                }
            } else {
                for part in ["q", "k"] {
                    gguf.set(&format!("blk.{i}.attn_{part}_norm.weight"), &ramp(HEAD_DIM, i), GgmlDType::F32);
                }
            }
        }
        let q = gguf.tensors["blk.0.attn_q.weight"].dequantize(&Device::Cpu).unwrap();
        let parent = tempfile::tempdir().unwrap();
        let (result, out) = gguf.import(parent.path(), DType::F32);
        assert_eq!(result.unwrap().architecture, name);
        let checkpoint = Checkpoint::open(&out).unwrap();
        let config = checkpoint.config().unwrap();
        assert_eq!((&config["model_type"], &config["architectures"][0]), (&name.into(), &class.into()));
        // Their rows are in Hugging Face's order already.
        let back = checkpoint.load("model.layers.0.self_attn.q_proj.weight", DType::F32, &Device::Cpu).unwrap();
        assert_eq!(back.to_vec2::<f32>().unwrap(), q.to_vec2::<f32>().unwrap());
        if name == "qwen2" {
            // llama.cpp does without them, Hugging Face's family never.
            for i in 0..LAYERS {
                ["q", "k", "v"].iter().for_each(|part| drop(gguf.tensors.remove(&format!("blk.{i}.attn_{part}.bias"))));
            }
            let bare = tempfile::tempdir().unwrap();
            let (result, out) = gguf.import(bare.path(), DType::F32);
            result.unwrap();
            assert!(
                Checkpoint::open(&out)
                    .unwrap()
                    .read("model.layers.3.self_attn.v_proj.bias")
                    .unwrap()
                    .iter()
                    .all(|&b| b == 0)
            );
        }
        let own = if name == "qwen2" { "q_proj.bias" } else { "q_norm.weight" };
        let loaded = checkpoint.load(&format!("model.layers.7.self_attn.{own}"), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(loaded.to_vec1::<f32>().unwrap(), ramp(loaded.elem_count(), 7).to_vec1::<f32>().unwrap());
        let model = lacuna::model::Model::open(&checkpoint, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(model.tokenizer().unwrap().encode("the 12").unwrap().len(), 5, "digits one by one");
        let tokenizer: serde_json::Value =
            serde_json::from_slice(&std::fs::read(out.join("tokenizer.json")).unwrap()).unwrap();
        assert_eq!(tokenizer["normalizer"]["type"], "NFC");
    }
}

/// A vocabulary that SentencePiece has trained, and what it makes of a page (`make_sentencepiece_fixture.py`).
#[test]
fn a_sentencepiece_vocabulary_becomes_the_same_tokenizer() {
    let fixture: serde_json::Value = serde_json::from_str(include_str!("data/sentencepiece.json")).unwrap();
    let list = |key: &str| fixture[key].as_array().unwrap();
    let tokens: Vec<Value> = list("tokens").iter().map(|token| Value::String(token.as_str().unwrap().into())).collect();
    let rows = tokens.len();
    let mut gguf = Gguf::llama();
    let numbers =
        |key: &str, of: &dyn Fn(&serde_json::Value) -> Value| Value::Array(list(key).iter().map(of).collect());
    gguf.metadata.extend([
        ("tokenizer.ggml.model".to_owned(), Value::String("llama".into())),
        ("tokenizer.ggml.pre".to_owned(), Value::String("default".into())),
        ("tokenizer.ggml.tokens".to_owned(), Value::Array(tokens)),
        ("tokenizer.ggml.scores".to_owned(), numbers("scores", &|score| Value::F32(score.as_f64().unwrap() as f32))),
        ("tokenizer.ggml.token_type".to_owned(), numbers("types", &|kind| Value::I32(kind.as_i64().unwrap() as i32))),
        ("tokenizer.ggml.bos_token_id".to_owned(), Value::U32(1)),
        ("tokenizer.ggml.eos_token_id".to_owned(), Value::U32(2)),
        ("tokenizer.ggml.unknown_token_id".to_owned(), Value::U32(0)),
    ]);
    gguf.metadata.remove("tokenizer.ggml.merges");
    gguf.set("token_embd.weight", &weight(rows, HIDDEN, 1), GgmlDType::Q8_0);
    let parent = tempfile::tempdir().unwrap();
    let (result, out) = gguf.import(parent.path(), DType::F32);
    result.unwrap();
    let tokenizer = lacuna::text::Tokenizer::open(&out).unwrap();
    let ids = |value: &serde_json::Value| {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect::<Vec<_>>()
    };
    let texts = list("texts");
    assert!(texts.len() > 20 && texts.iter().map(|text| text["text"].as_str().unwrap().len()).sum::<usize>() > 3000);
    for text in texts {
        let (text, expected) = (text["text"].as_str().unwrap(), ids(&text["ids"]));
        assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected).unwrap(), text, "{text:?}");
    }
    let whole = tokenizers::Tokenizer::from_file(out.join("tokenizer.json")).unwrap();
    let with_bos = whole.encode("a", true).unwrap();
    assert_eq!(with_bos.get_ids()[0], 1, "a text begins with <s>");
}
