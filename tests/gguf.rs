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
const BLOCKS: usize = 11;

/// What goes into a file; tests change it before it is written.
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
    /// A small Llama: norms in F32, embedding in Q8_0, linears in Q4_1, Q and K of block 0 in F32.
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
            ("llama.block_count", Value::U32(BLOCKS as u32)),
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
        for i in 0..BLOCKS {
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

    /// What the file's blocks decode to, row by row.
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

    assert_eq!((summary.blocks, summary.tensors, summary.tied_embeddings), (BLOCKS, 2 + 9 * BLOCKS, true));
    assert_eq!(summary.parameters, checkpoint.parameters());
    assert_eq!(summary.source_dtypes["Q8_0"], 1);
    assert_eq!(summary.source_dtypes["F16"], BLOCKS);
    assert!(!checkpoint.contains("lm_head.weight"));
    // Blocks in numeric order: 10 comes last.
    let last = checkpoint.tensors().map(|tensor| tensor.name.as_str()).nth(9 * BLOCKS).unwrap();
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
    for block in [0, 10] {
        for (part, ours, heads) in [("attn_q", "q_proj", HEADS), ("attn_k", "k_proj", KV_HEADS)] {
            let theirs = gguf.rows(&format!("blk.{block}.{part}.weight"));
            let ours = load(&format!("model.layers.{block}.self_attn.{ours}.weight"));
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
    assert_eq!((&config["num_key_value_heads"], &config["num_hidden_layers"]), (&KV_HEADS.into(), &BLOCKS.into()));
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
    refused(llama().with("general.architecture", string("qwen2")), &["model.gguf", "`qwen2`", "only `llama`"]);
    refused(llama().with("llama.expert_count", Value::U32(8)), &["mixture of experts"]);
    refused(llama().with("tokenizer.ggml.model", string("llama")), &["SentencePiece", "as safetensors"]);
    refused(llama().with("tokenizer.ggml.pre", string("tekken")), &["`tekken`", "tokens would be wrong"]);
    refused(llama().with("llama.rope.scaling.type", string("longrope")), &["`longrope`"]);
    refused(llama().with("llama.rope.dimension_count", Value::U32(8)), &["llama.rope.dimension_count", "16"]);
    refused(llama().with("llama.attention.head_count", Value::U32(0)), &["llama.attention.head_count", "positive"]);
    refused(llama().with("llama.block_count", string("many")), &["llama.block_count", "one number"]);
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
