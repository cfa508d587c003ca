//! What ships in `data/` is what its READMEs say, and others can load it.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mixtral};
use lacuna::checkpoint::Checkpoint;
use lacuna::evaluate::evaluate;
use lacuna::generate::{GenerateConfig, generate};
use lacuna::model::Model;
use lacuna::progress::Progress;
use lacuna::text::{Tokenizer, Windows, documents, ngram_perplexity};
use lacuna::train::TrainRecord;
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
        let windows = |part: &str| Windows::evaluation(corpus(part), Some(&tokenizer), None, seqlen).unwrap();
        let (valid, test) = (windows("valid.txt"), windows("test.txt"));
        let train = tokenizer.encode_documents(&train).unwrap();
        let ngram = ngram_perplexity(&train, &valid, &test, tokenizer.vocab_size()).unwrap();
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-5;
        assert!(close(ngram.unigram, record.ngram.unigram) && close(ngram.bigram, record.ngram.bigram));

        let loaded = Model::load(data(model).to_str().unwrap()).unwrap();
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
        let loaded = Model::load(data(model).to_str().unwrap()).unwrap();
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
    let ids = Windows::evaluation(corpus("test.txt"), Some(&Tokenizer::open(data(model)).unwrap()), Some(1), 256);
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
    let ours = Model::load(data(model).to_str().unwrap()).unwrap().forward(ids).unwrap();
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
