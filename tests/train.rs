//! `lacuna train`: the run is a function of corpus and configuration, however often it is stopped.

use lacuna::evaluate::evaluate;
use lacuna::model::Model;
use lacuna::progress::Progress;
use lacuna::settings::FloatType;
use lacuna::text::{Consecutive, Tokenizer, Windows};
use lacuna::train::{ExpertsConfig, TrainConfig, TrainRecord, Trainer, train};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Sentences of a small grammar: something to learn that no bigram knows, in a few seconds.
fn sentences(count: usize, seed: u64) -> String {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut below = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let people = ["Ahab", "Starbuck", "Queequeg", "Ishmael", "Pip"];
    let verbs = ["saw", "struck", "hunted", "feared", "followed", "lost"];
    let things = ["the whale", "a sail", "the harpoon", "the sea", "an albatross", "the boat"];
    let sentence = |_| {
        // What somebody does at night is what they did by day.
        let (person, verb) = (people[below(5)], verbs[below(6)]);
        let (day, night) = (things[below(6)], things[below(6)]);
        format!("{person} {verb} {day} by day, and at night {person} {verb} {night}.")
    };
    (0..count).map(sentence).collect::<Vec<_>>().join(" ")
}

fn corpus(dir: &TempDir) -> PathBuf {
    let corpus = dir.path().join("corpus");
    std::fs::create_dir(&corpus).unwrap();
    let train: Vec<String> = (0..20).map(|i| sentences(40, i)).collect();
    std::fs::write(corpus.join("train.txt"), train.join("\n<|endoftext|>\n")).unwrap();
    std::fs::write(corpus.join("valid.txt"), sentences(60, 100)).unwrap();
    std::fs::write(corpus.join("test.txt"), sentences(60, 200)).unwrap();
    corpus
}

fn config(steps: usize) -> TrainConfig {
    TrainConfig {
        layers: 2,
        hidden_size: 32,
        heads: 4,
        kv_heads: 2,
        intermediate_size: 64,
        moe: None,
        tie_word_embeddings: true,
        vocab_size: 300,
        seqlen: 32,
        batch: 8,
        steps,
        warmup: 1,
        learning_rate: 0.01,
        seed: 5,
        dtype: FloatType::Bf16,
        shards: 1,
    }
}

fn mixture(steps: usize) -> TrainConfig {
    let moe = Some(ExpertsConfig { experts: 4, top_k: 2 });
    TrainConfig { moe, tie_word_embeddings: false, shards: 2, intermediate_size: 32, ..config(steps) }
}

/// The binary's arguments for a configuration of [`config`]'s shape.
fn command(corpus: &Path, out: &Path, config: &TrainConfig) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(["train", "--tie", "--family", "llama", "--save-every", "1", "--dtype", config.dtype.name()]);
    for (name, value) in [
        ("--layers", config.layers),
        ("--hidden", config.hidden_size),
        ("--heads", config.heads),
        ("--kv-heads", config.kv_heads),
        ("--intermediate", config.intermediate_size),
        ("--vocab", config.vocab_size),
        ("--seqlen", config.seqlen),
        ("--batch", config.batch),
        ("--steps", config.steps),
        ("--warmup", config.warmup),
        ("--seed", config.seed as usize),
    ] {
        command.args([name, &value.to_string()]);
    }
    command.args(["--lr", &config.learning_rate.to_string()]);
    command.arg("--corpus").arg(corpus).arg("--out").arg(out).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Every file of a model; of the record, what comparisons look at.
fn contents(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(out).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if path.ends_with("lacuna.json") {
            let mut record: TrainRecord = serde_json::from_slice(&bytes).unwrap();
            record.environment.clear();
            bytes = serde_json::to_vec(&record).unwrap();
        }
        (path.file_name().unwrap().to_string_lossy().into_owned(), bytes)
    });
    files.collect()
}

#[track_caller]
fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (contents(a), contents(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(b[name] == *bytes, "{name} differs");
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_model_learns_more_than_its_bigrams_and_the_record_says_what_was_saved() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, out) = (corpus(&dir), dir.path().join("model"));
    let record = train(&corpus, &out, &config(150), 1000, Progress::Hidden).unwrap();
    let (model, ngram) = (record.test.perplexity, record.ngram);
    assert!(model < 0.8 * ngram.bigram && ngram.bigram < 0.5 * ngram.unigram, "{model} {ngram:?}");
    assert_eq!(
        names(&out),
        ["config.json", "lacuna.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    );
    assert_eq!(names(dir.path()), ["corpus", "model"], "the state goes when the run is over");

    // The record is of the bf16 weights in the file.
    let saved = Model::load(out.to_str().unwrap()).unwrap();
    assert!(saved.config().tie_word_embeddings);
    let tokenizer = Tokenizer::open(&out).unwrap();
    let windows = Windows::evaluation(corpus.join("test.txt"), Some(&tokenizer), Consecutive::of(32)).unwrap();
    assert_eq!(evaluate(&saved, &windows, Progress::Hidden).unwrap().record(), record.test);
    // As text: serde_json may read a float one bit off.
    let written = std::fs::read_to_string(out.join("lacuna.json")).unwrap();
    assert_eq!(written.trim_end(), serde_json::to_string_pretty(&record).unwrap());
    assert!(serde_json::from_str::<TrainRecord>(&written).is_ok());
    assert_eq!(record.seen_tokens, 150 * 8 * 32);
}

#[test]
fn a_mixture_learns_and_uses_its_experts() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, out) = (corpus(&dir), dir.path().join("model"));
    let record = train(&corpus, &out, &mixture(120), 1000, Progress::Hidden).unwrap();
    assert!(record.test.perplexity < 0.8 * record.ngram.bigram, "{} {:?}", record.test.perplexity, record.ngram);
    assert_eq!(record.expert_share.len(), 2);
    for shares in &record.expert_share {
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9 && shares.len() == 4);
        assert!(shares.iter().all(|&share| share > 0.05), "the load is balanced: {shares:?}");
    }
    let shards =
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"];
    assert!(shards.iter().all(|shard| out.join(shard).exists()), "{:?}", names(&out));
    assert_eq!(Model::load(out.to_str().unwrap()).unwrap().config().moe.as_ref().unwrap().experts, 4);
}

#[test]
fn a_run_that_was_stopped_ends_in_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(&dir);
    for config in [config(7), mixture(5)] {
        let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
        train(&corpus, &whole, &config, 1000, Progress::Hidden).unwrap();

        let mut trainer = Trainer::open(&corpus, &parts, &config).unwrap();
        for _ in 0..3 {
            trainer.step().unwrap();
        }
        trainer.save_state().unwrap();
        trainer.step().unwrap(); // and is lost
        let state = trainer.state_path();
        drop(trainer);
        assert!(state.exists() && !parts.exists());
        assert_eq!(Trainer::open(&corpus, &parts, &config).unwrap().done(), 3);
        train(&corpus, &parts, &config, 2, Progress::Hidden).unwrap();
        assert_same(&whole, &parts);
        assert!(!state.exists());
        std::fs::remove_dir_all(whole).unwrap();
        std::fs::remove_dir_all(parts).unwrap();
    }
}

#[test]
fn another_seed_gives_other_weights() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(&dir);
    let weights = |name: &str, config: &TrainConfig| {
        let out = dir.path().join(name);
        train(&corpus, &out, config, 1000, Progress::Hidden).unwrap();
        std::fs::read(out.join("model.safetensors")).unwrap()
    };
    let first = weights("a", &config(2));
    assert_eq!(first, weights("b", &config(2)));
    assert_ne!(first, weights("c", &TrainConfig { seed: 6, ..config(2) }));
}

#[test]
fn one_thread_or_two_the_bytes_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(&dir);
    // Three passes a step, matrices large enough to be split.
    let config = TrainConfig { hidden_size: 64, intermediate_size: 128, seqlen: 64, batch: 40, ..config(3) };
    let run = |threads: &str| {
        let out = dir.path().join(threads);
        let output = command(&corpus, &out, &config).env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        out
    };
    assert_same(&run("1"), &run("2"));
}

fn wait_for(path: &Path, child: &mut Child) {
    let started = Instant::now();
    while !path.exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended before {} was there", path.display());
        assert!(started.elapsed() < Duration::from_secs(120), "no {}", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn killed_and_interrupted_runs_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(&dir);
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let config = config(60);
    train(&corpus, &whole, &config, 1000, Progress::Hidden).unwrap();
    let state = dir.path().join(".parts.training");

    let mut child = command(&corpus, &parts, &config).spawn().unwrap();
    wait_for(&state, &mut child);
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(state.exists() && !parts.exists());

    // Interrupted runs say so, and keep what they have.
    let before = std::fs::metadata(&state).unwrap().modified().unwrap();
    let child = command(&corpus, &parts, &config).spawn().unwrap();
    while std::fs::metadata(&state).is_ok_and(|file| file.modified().unwrap() == before) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(state.exists() && !parts.exists());

    let output = command(&corpus, &parts, &config).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_same(&whole, &parts);
    assert_eq!(names(dir.path()), ["corpus", "parts", "whole"]);
}

#[test]
fn what_cannot_be_trained_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (corpus, out) = (corpus(&dir), dir.path().join("model"));
    let problem = |config: &TrainConfig| Trainer::open(&corpus, &out, config).err().expect("an error").to_string();
    let base = config(5);
    for (config, says) in [
        (TrainConfig { kv_heads: 3, ..base.clone() }, "kv-heads = 3"),
        (TrainConfig { heads: 32, kv_heads: 1, ..base.clone() }, "hidden = 32"),
        (TrainConfig { layers: 0, ..base.clone() }, "layers = 0"),
        (TrainConfig { warmup: 5, ..base.clone() }, "warmup = 5"),
        (TrainConfig { learning_rate: f64::NAN, ..base.clone() }, "lr = NaN"),
        (TrainConfig { dtype: FloatType::F64, ..base.clone() }, "dtype = f64"),
        (TrainConfig { vocab_size: 100, ..base.clone() }, "vocab = 100"),
        (TrainConfig { seqlen: 100_000, ..base.clone() }, "100000"),
        (TrainConfig { moe: Some(ExpertsConfig { experts: 2, top_k: 3 }), ..base.clone() }, "top-k = 3"),
    ] {
        let problem = problem(&config);
        assert!(problem.contains(says), "`{problem}` does not say `{says}`");
    }
    let diverging = TrainConfig { learning_rate: 1e30, ..base.clone() };
    let mut trainer = Trainer::open(&corpus, &out, &diverging).unwrap();
    let problem = (0..5).find_map(|_| trainer.step().err()).expect("the loss is finite").to_string();
    assert!(problem.starts_with("lr = "), "{problem}");

    // A state of another run is not mixed with this one, nor is a damaged one used.
    let mut trainer = Trainer::open(&corpus, &out, &base).unwrap();
    trainer.step().unwrap();
    trainer.save_state().unwrap();
    let state = trainer.state_path();
    assert!(problem_of(&corpus, &out, &TrainConfig { seed: 9, ..base.clone() }).contains("another configuration"));
    let bytes = std::fs::read(&state).unwrap();
    std::fs::write(&state, &bytes[..bytes.len() / 2]).unwrap();
    assert!(problem_of(&corpus, &out, &base).contains("no saved state"));
    std::fs::remove_file(state).unwrap();

    std::fs::create_dir(&out).unwrap();
    assert!(problem_of(&corpus, &out, &base).contains("exists"));
    std::fs::remove_file(corpus.join("valid.txt")).unwrap();
    std::fs::remove_dir(&out).unwrap();
    assert!(problem_of(&corpus, &out, &base).contains("valid.txt"));
}

fn problem_of(corpus: &Path, out: &Path, config: &TrainConfig) -> String {
    Trainer::open(corpus, out, config).err().expect("an error").to_string()
}
