//! The content of `data/` is as its READMEs say, and other code can load it.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mixtral};
use lacuna::checkpoint::{Checkpoint, HeadersOnly, Source, TensorInfo};
use lacuna::evaluate::evaluate;
use lacuna::experts::{ExpertLayout, Locality, Part, Parts};
use lacuna::generate::{GenerateConfig, generate};
use lacuna::model::Model;
use lacuna::progress::Progress;
use lacuna::text::{Consecutive, Tokenizer, Windows, documents, ngram_perplexity};
use lacuna::train::TrainRecord;
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

const PARTS: [&str; 3] = ["train.txt", "valid.txt", "test.txt"];
const MODELS: [&str; 2] = ["tiny-llama", "tiny-moe"];

fn data(path: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(path)
}

fn corpus(part: &str) -> PathBuf {
    data("corpus").join(part)
}

fn sha256(path: &Path) -> String {
    format!("{:x}", Sha256::digest(std::fs::read(path).unwrap()))
}

fn readme(dir: &str) -> String {
    std::fs::read_to_string(data(dir).join("README.md")).unwrap()
}

fn record(model: &str) -> TrainRecord {
    serde_json::from_slice(&std::fs::read(data(model).join("lacuna.json")).unwrap()).unwrap()
}

#[test]
fn the_corpus_is_split_by_document_and_is_what_its_readme_says() {
    let readme = readme("corpus");
    let mut seen = HashMap::new();
    for part in PARTS {
        let (path, documents) = (corpus(part), documents(corpus(part)).unwrap());
        let line = readme.lines().find(|line| line.contains(&format!("`{part}` |"))).unwrap();
        assert!(line.contains(&sha256(&path)) && line.contains(&format!("| {} |", documents.len())), "{line}");
        for document in documents {
            assert!(!document.contains(['\u{2018}', '\u{2019}', '\u{201c}', '\u{201d}', '\r']), "{part}");
            let start: String = document.chars().take(2000).collect();
            if let Some(other) = seen.insert(start, part) {
                assert_eq!(other, part, "one document in two parts");
            }
        }
    }
    let bytes = PARTS.map(|part| std::fs::metadata(corpus(part)).unwrap().len());
    assert!(bytes.iter().sum::<u64>() < 8_000_000 && bytes[0] > 5_000_000, "{bytes:?}");
    // Each part holds both kinds of text from the start.
    for part in PARTS {
        let first: String = documents(corpus(part)).unwrap()[..4].join("\n");
        assert!(first.contains("CHAPTER") && first.contains("Congress"), "{part}");
    }
}

#[test]
fn the_tokenizer_is_the_one_trained_on_the_corpus() {
    let trained = Tokenizer::train_bpe(&documents(corpus("train.txt")).unwrap(), 2048).unwrap().to_json().unwrap();
    for model in MODELS {
        assert!(std::fs::read_to_string(data(model).join("tokenizer.json")).unwrap() == trained, "{model}");
    }
}

#[test]
fn models_are_small_bf16_and_in_hugging_face_layout() {
    for model in MODELS {
        let files: Vec<_> = std::fs::read_dir(data(model)).unwrap().map(|entry| entry.unwrap()).collect();
        let bytes: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
        assert!(bytes < 8_000_000, "{model}: {bytes} bytes");
        let names: HashSet<_> = files.iter().map(|file| file.file_name().into_string().unwrap()).collect();
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "lacuna.json", "README.md"] {
            assert!(names.contains(name), "{model} has no {name}");
        }
        let checkpoint = Checkpoint::open(data(model)).unwrap();
        assert!(checkpoint.tensors().all(|tensor| tensor.dtype == safetensors::Dtype::BF16));
        assert_eq!(checkpoint.parameters(), record(model).parameters);
        assert_eq!(checkpoint.shards().len(), record(model).training.shards);
    }
    assert!(Checkpoint::open(data("tiny-moe")).unwrap().shards().len() >= 2);
    let moe = record("tiny-moe").training.moe.unwrap();
    assert_eq!((moe.experts, moe.top_k), (8, 2));
}

/// All of `test.txt`, unigram and bigram on the same tokens, and the numbers in record and README.
#[test]
fn models_have_learnt_what_they_say() {
    let train = documents(corpus("train.txt")).unwrap();
    for model in MODELS {
        let (record, readme) = (record(model), readme(model));
        for part in PARTS {
            assert_eq!(record.corpus[part], sha256(&corpus(part)), "{model} was trained on this {part}");
        }
        let tokenizer = Tokenizer::open(data(model)).unwrap();
        let seqlen = record.training.seqlen;
        let windows =
            |part: &str| Windows::evaluation(corpus(part), Some(&tokenizer), Consecutive::of(seqlen)).unwrap();
        let (valid, test) = (windows("valid.txt"), windows("test.txt"));
        let train = tokenizer.encode_documents(&train).unwrap();
        let ngram = ngram_perplexity(&train, &valid, &test, tokenizer.vocab_size()).unwrap();
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-5;
        assert!(close(ngram.unigram, record.ngram.unigram) && close(ngram.bigram, record.ngram.bigram));

        let loaded = Model::load(data(model)).unwrap();
        let evaluation = evaluate(&loaded, &test, Progress::Hidden).unwrap().record();
        assert_eq!(evaluation.text, record.test.text);
        assert!(close(evaluation.perplexity, record.test.perplexity), "{evaluation:?} {:?}", record.test);

        let numbers = [ngram.unigram, ngram.bigram, evaluation.perplexity];
        let [unigram, bigram, ours] = numbers;
        assert!(ours < 0.65 * bigram && bigram < 0.2 * unigram, "{model}: {numbers:?}");
        for number in numbers {
            assert!(readme.contains(&format!("{number:.2}")), "{model}'s README does not say {number:.2}");
        }
    }
}

#[test]
fn experts_share_the_work_and_differ() {
    for shares in record("tiny-moe").expert_share {
        assert_eq!(shares.len(), 8);
        assert!(shares.iter().all(|&share| (0.05..0.25).contains(&share)), "{shares:?}");
    }
    let checkpoint = Checkpoint::open(data("tiny-moe")).unwrap();
    let weight = |expert: usize| {
        let name = format!("model.layers.1.block_sparse_moe.experts.{expert}.w1.weight");
        checkpoint.load(&name, DType::F32, &Device::Cpu).unwrap().flatten_all().unwrap()
    };
    let dot = |a: &Tensor, b: &Tensor| (a * b).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    for (a, b) in [(0, 1), (2, 7), (4, 5)] {
        let (a, b) = (weight(a), weight(b));
        let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
        assert!(cosine.abs() < 0.5, "{cosine}");
    }
}

const GPT_OSS: &str = "gpt-oss-120b-headers";

/// gpt-oss-120b without its weights: the shapes of the public model, dealt out to shards as a public report of it says.
struct GptOss {
    files: Vec<String>,
    tensors: Vec<TensorInfo>,
}

impl GptOss {
    const LAYERS: usize = 36;
    const HIDDEN: usize = 2880;
    const EXPERTS: usize = 128;
    const VOCAB: usize = 201_088;
    /// Layer by layer, the shards that hold its mixture.
    const SHARDS: [&[usize]; GptOss::LAYERS] = [
        &[9],
        &[9, 10],
        &[2, 9],
        &[1, 2],
        &[4, 5, 14],
        &[5],
        &[5],
        &[5, 6],
        &[6],
        &[6, 7],
        &[10],
        &[10, 11],
        &[11],
        &[11],
        &[7, 11],
        &[7],
        &[7, 8],
        &[8],
        &[8, 9],
        &[9],
        &[2, 3],
        &[3],
        &[3],
        &[3, 4],
        &[4],
        &[0, 4],
        &[0],
        &[0, 1],
        &[1],
        &[1],
        &[2, 12],
        &[12, 13],
        &[13],
        &[13, 14],
        &[14],
        &[14],
    ];

    fn new() -> Self {
        let mut shards: Vec<Vec<(String, Dtype, Vec<usize>)>> = vec![Vec::new(); 15];
        let (bf16, u8) = (Dtype::BF16, Dtype::U8);
        let (h, e) = (Self::HIDDEN, Self::EXPERTS);
        shards[0].push(("model.embed_tokens.weight".into(), bf16, vec![Self::VOCAB, h]));
        for (layer, own) in Self::SHARDS.iter().enumerate() {
            // Which part stands in which of a layer's shards is not reported; what is split is split by tensors.
            let (first, middle, last) = (own[0], own[own.len() / 2], own[own.len() - 1]);
            let mut add = |shard: usize, name: &str, dtype: Dtype, shape: &[usize]| {
                shards[shard].push((format!("model.layers.{layer}.{name}"), dtype, shape.to_vec()));
            };
            add(first, "input_layernorm.weight", bf16, &[h]);
            add(first, "post_attention_layernorm.weight", bf16, &[h]);
            for (name, rows) in [("q", 4096), ("k", 512), ("v", 512)] {
                add(first, &format!("self_attn.{name}_proj.weight"), bf16, &[rows, h]);
                add(first, &format!("self_attn.{name}_proj.bias"), bf16, &[rows]);
            }
            add(first, "self_attn.o_proj.weight", bf16, &[h, 4096]);
            add(first, "self_attn.o_proj.bias", bf16, &[h]);
            add(first, "self_attn.sinks", bf16, &[64]);
            add(first, "mlp.router.weight", bf16, &[e, h]);
            add(first, "mlp.router.bias", bf16, &[e]);
            for (name, out, shard, scales) in [("gate_up_proj", 2 * h, first, middle), ("down_proj", h, last, last)] {
                add(shard, &format!("mlp.experts.{name}_blocks"), u8, &[e, out, h / 32, 16]);
                add(scales, &format!("mlp.experts.{name}_scales"), u8, &[e, out, h / 32]);
                add(shard, &format!("mlp.experts.{name}_bias"), bf16, &[e, out]);
            }
        }
        shards[14].push(("model.norm.weight".into(), bf16, vec![h]));
        shards[14].push(("lm_head.weight".into(), bf16, vec![Self::VOCAB, h]));

        let mut tensors = Vec::new();
        for (shard, plan) in shards.into_iter().enumerate() {
            let (mut header, mut at) = (Map::new(), 0);
            let mut ranges = Vec::new();
            for (name, dtype, shape) in &plan {
                let bytes = (shape.iter().product::<usize>() * dtype.bitsize() / 8) as u64;
                let entry = json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [at, at + bytes]});
                header.insert(name.clone(), entry);
                ranges.push(at..at + bytes);
                at += bytes;
            }
            let start = 8 + Value::Object(header).to_string().len().next_multiple_of(8) as u64;
            for ((name, dtype, shape), range) in plan.into_iter().zip(ranges) {
                tensors.push(TensorInfo { name, dtype, shape, shard, range: start + range.start..start + range.end });
            }
        }
        Self { files: (0..15).map(|shard| format!("model-{shard:05}-of-00014.safetensors")).collect(), tensors }
    }
}

impl Source for GptOss {
    fn origin(&self) -> String {
        "openai/gpt-oss-120b".into()
    }

    fn files(&self) -> Vec<String> {
        self.files.clone()
    }

    fn index(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn config_json(&self) -> lacuna::Result<Map<String, Value>> {
        let config = json!({
            "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": Self::HIDDEN,
            "intermediate_size": Self::HIDDEN, "num_hidden_layers": Self::LAYERS, "num_local_experts": Self::EXPERTS,
            "num_experts_per_tok": 4, "experts_per_token": 4, "num_attention_heads": 64, "num_key_value_heads": 8,
            "head_dim": 64, "vocab_size": Self::VOCAB, "rms_norm_eps": 1e-5, "rope_theta": 150_000,
            "sliding_window": 128, "swiglu_limit": 7.0, "hidden_act": "silu", "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
            "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": [
                "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
            ]},
        });
        Ok(config.as_object().unwrap().clone())
    }

    fn side_files(&self) -> lacuna::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn side_file(&self, name: &str, _: &mut dyn FnMut(&[u8]) -> lacuna::Result<()>) -> lacuna::Result<()> {
        panic!("{name} was not listed")
    }

    fn stream(
        &self,
        _: usize,
        _: std::ops::Range<u64>,
        _: &mut dyn FnMut(&[u8]) -> lacuna::Result<()>,
    ) -> lacuna::Result<()> {
        unreachable!("there are no weights")
    }

    fn streams(&self) -> usize {
        1
    }

    fn worth_skipping(&self) -> u64 {
        0
    }
}

/// With `LACUNA_MAKE_DATA` set, the files are written; without it, compared.
#[test]
fn gpt_oss_headers_are_those_made_here() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("headers");
    HeadersOnly::save(&GptOss::new(), &made).unwrap();
    for name in ["config.json", "headers.json"] {
        let (made, shipped) = (made.join(name), data(GPT_OSS).join(name));
        if std::env::var_os("LACUNA_MAKE_DATA").is_some() {
            std::fs::copy(&made, &shipped).unwrap();
        }
        assert!(std::fs::read(made).unwrap() == std::fs::read(&shipped).unwrap(), "{} differs", shipped.display());
    }
    assert!(std::fs::metadata(data(GPT_OSS).join("headers.json")).unwrap().len() < 100_000);
}

/// Figures of the public model: 60.77 GiB in 15 shards, 13,236,480 bytes an expert.
#[test]
fn gpt_oss_headers_add_up_to_the_public_figures() {
    let source = HeadersOnly::open(data(GPT_OSS)).unwrap();
    let layout = ExpertLayout::find(&source).unwrap();
    assert_eq!((layout.mixtures.len(), layout.experts, layout.top_k), (36, 128, 4));
    assert_eq!(layout.expert_bytes(&source, 35), 13_236_480);
    let (index, files) = (source.index(), source.files());
    assert_eq!((files.len(), index.len()), (15, 687));
    let total: u64 = index.iter().map(TensorInfo::bytes).sum();
    assert_eq!(total, 65_248_815_744);
    assert!((total as f64 / 2f64.powi(30) - 60.77).abs() < 0.005);
    assert_eq!(Parts::of(index, Some(layout.family)).bytes(Part::Experts), 36 * 128 * 13_236_480);
    let locality = Locality::of(index, &files, layout.family, GptOss::LAYERS);
    assert_eq!(locality.layers.len(), GptOss::LAYERS);
    for layer in &locality.layers {
        let shards: Vec<usize> = layer.shards.iter().map(|shard| shard.shard).collect();
        let row =
            format!("| {} | {} |", layer.layer, shards.iter().map(usize::to_string).collect::<Vec<_>>().join(", "));
        assert_eq!(shards, GptOss::SHARDS[layer.layer]);
        assert!(readme(GPT_OSS).contains(&row), "the README lacks {row}");
    }
    assert_eq!(locality.shard_names(), (0..15).map(|shard| shard.to_string()).collect::<Vec<_>>());
}

/// Most words of a continuation are words: of the training text, that is.
#[test]
fn continuations_are_readable() {
    let text = std::fs::read_to_string(corpus("train.txt")).unwrap();
    let split = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect()
    };
    let known: HashSet<String> = split(&text).into_iter().collect();
    for model in MODELS {
        let loaded = Model::load(data(model)).unwrap();
        let mut words = Vec::new();
        for (seed, prompt) in ["The white whale", "My fellow Americans, tonight", "Call me"].into_iter().enumerate() {
            let config = GenerateConfig { max_new_tokens: 100, temperature: 0.7, top_p: 0.9, seed: seed as u64 };
            words.extend(split(&generate(&loaded, prompt, &config).unwrap()));
        }
        let share = words.iter().filter(|&word| known.contains(word)).count() as f64 / words.len() as f64;
        assert!(words.len() > 100 && share > 0.85, "{model}: {share:.2} of {words:?}");
        let distinct = words.iter().collect::<HashSet<_>>().len();
        assert!(distinct * 3 > words.len(), "{model} repeats itself: {words:?}");
    }
}

/// The tokens and the weights in f32, as candle reads them.
fn candles(model: &str) -> (Vec<u32>, VarBuilder<'static>, String) {
    let ids = Windows::evaluation(
        corpus("test.txt"),
        Some(&Tokenizer::open(data(model)).unwrap()),
        Consecutive::of(256).first(1),
    );
    let mut tensors = HashMap::new();
    for shard in Checkpoint::open(data(model)).unwrap().shards() {
        tensors.extend(candle_core::safetensors::load(shard, &Device::Cpu).unwrap());
    }
    for tensor in tensors.values_mut() {
        *tensor = tensor.to_dtype(DType::F32).unwrap();
    }
    let config = std::fs::read_to_string(data(model).join("config.json")).unwrap();
    (ids.unwrap().ids.remove(0), VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu), config)
}

/// Compares the logits after the first token, some, and a full context.
fn assert_equal_logits(model: &str, ids: &[u32], theirs: impl Fn(&Tensor) -> Tensor) {
    let ours = Model::load(data(model)).unwrap().forward(ids).unwrap();
    for length in [1, 17, ids.len()] {
        let input = Tensor::new(&ids[..length], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let theirs = theirs(&input).flatten_all().unwrap();
        let ours = ours.get(length - 1).unwrap();
        let worst = (&ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 1e-4, "{model}: logits differ by {worst} after {length} tokens");
        assert!(ours.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 3.0, "logits that say something");
    }
}

#[test]
fn unmodified_candle_transformers_computes_the_same_logits_for_the_llama() {
    let (ids, weights, config) = candles("tiny-llama");
    let config = serde_json::from_str::<llama::LlamaConfig>(&config).unwrap().into_config(false);
    let model = llama::Llama::load(weights, &config).unwrap();
    assert_equal_logits("tiny-llama", &ids, |input| {
        let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
        model.forward(input, 0, &mut cache).unwrap()
    });
}

#[test]
fn unmodified_candle_transformers_computes_the_same_logits_for_the_mixture() {
    let (ids, weights, config) = candles("tiny-moe");
    let config: mixtral::Config = serde_json::from_str(&config).unwrap();
    assert_equal_logits("tiny-moe", &ids, |input| {
        // Its cache cannot be emptied, so each input gets a model of its own.
        mixtral::Model::new(&config, weights.clone()).unwrap().forward(input, 0).unwrap()
    });
}
