//! Multiple choice and generation: against lm-evaluation-harness, on the tasks that ship, and from the command line.

mod common;
#[path = "common/random.rs"]
mod random;

use candle_core::{DType, Device};
use lacuna::Error;
use lacuna::evaluate::{
    ChoiceScores, GenerationConfig, Suite, Task, TaskKind, evaluate, score_choices, score_generation, suite_tasks,
};
use lacuna::generate::{GenerateConfig, generate, generate_after};
use lacuna::model::Model;
use lacuna::progress::Progress;
use lacuna::prune::{Method, PruneConfig, prune};
use lacuna::stats::{Bootstrap, Score};
use lacuna::text::{Bos, Consecutive, Tokenizer, Windows};
use proptest::prelude::*;
use random::with;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn data(path: &str) -> PathBuf {
    Path::new(ROOT).join("data").join(path)
}

fn fixture(path: &str) -> PathBuf {
    Path::new(ROOT).join("tests/data/tasks").join(path)
}

fn tiny_llama() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::load(data("tiny-llama").to_str().unwrap()).unwrap())
}

fn choose(model: &Model, path: &Path) -> ChoiceScores {
    score_choices(model, &Task::choices(path, None).unwrap(), Bos::Auto, &Bootstrap::default(), Progress::Hidden)
        .unwrap()
}

/// A task file in a directory of its own.
fn file(lines: &[Value]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("task.jsonl");
    std::fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    (dir, path)
}

/// The tiny Llama with the post-processor that tokenizers of Llama, Mistral and Mixtral have: a BOS in front.
fn with_bos() -> &'static (tempfile::TempDir, Model) {
    static MODEL: OnceLock<(tempfile::TempDir, Model)> = OnceLock::new();
    MODEL.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer_config.json"] {
            std::fs::copy(data("tiny-llama").join(name), dir.path().join(name)).unwrap();
        }
        let mut tokenizer: Value =
            serde_json::from_slice(&std::fs::read(data("tiny-llama/tokenizer.json")).unwrap()).unwrap();
        let bos = json!({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}});
        let [a, b] = [("A", 0), ("B", 1)].map(|(id, kind)| json!({"Sequence": {"id": id, "type_id": kind}}));
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing", "single": [bos, a], "pair": [bos, a, b],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        });
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let model = Model::load(dir.path().to_str().unwrap()).unwrap();
        (dir, model)
    })
}

#[track_caller]
fn assert_near(ours: &[f64], theirs: &Value, what: &str) {
    let theirs: Vec<f64> = serde_json::from_value(theirs.clone()).unwrap();
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (a, b) in ours.iter().zip(&theirs) {
        assert!((a - b).abs() < 1e-4, "{what}: {a} {b}");
    }
}

/// Contexts that end in a space and in a line, an empty one, one of twice the model's context, one that begins with the token
/// for its beginning, choices of one token and of other scripts: as `HFLM.loglikelihood` of lm-eval 0.4.13 scores them
/// (tests/data/README.md), with a tokenizer that adds nothing and with one that adds a BOS.
#[test]
fn log_likelihoods_equal_those_of_lm_evaluation_harness() {
    for (model, file, front) in
        [(tiny_llama(), "loglikelihoods.json", vec![]), (&with_bos().1, "loglikelihoods_bos.json", vec![0])]
    {
        let scores = choose(model, &fixture("choices.jsonl"));
        let expected = std::fs::read(fixture(file)).unwrap();
        let expected: Vec<Value> = serde_json::from_slice(&expected).unwrap();
        assert_eq!(scores.predictions.len(), expected.len());
        for (ours, theirs) in scores.predictions.iter().zip(&expected) {
            let line = ours.line;
            assert_near(&ours.log_likelihoods, &theirs["log_likelihoods"], &format!("{file}, line {line}"));
            assert_eq!(
                json!([ours.predicted, ours.predicted_norm]),
                json!([theirs["predicted"], theirs["predicted_norm"]])
            );
        }
        assert_eq!(scores.truncated, 1, "the long one");
        assert_eq!(scores.task.examples, 10);
        assert_eq!((scores.bos.asked, scores.bos.tokens), (Bos::Auto, front));
    }
}

#[test]
fn a_bos_can_be_asked_for_and_left_out() {
    let (_dir, model) = with_bos();
    let task = Task::choices(fixture("choices.jsonl"), None).unwrap();
    let score = |model: &Model, bos| score_choices(model, &task, bos, &Bootstrap::default(), Progress::Hidden).unwrap();
    assert_eq!(score(model, Bos::No).predictions, score(tiny_llama(), Bos::Auto).predictions);
    let asked = score(tiny_llama(), Bos::Yes);
    assert_eq!(
        asked.predictions,
        score(model, Bos::Auto).predictions,
        "the start token, where the tokenizer adds none"
    );
    assert_eq!(serde_json::to_value(&asked.bos).unwrap(), json!({"asked": "yes", "tokens": [0]}));

    // What is generated follows it, too, and may then follow nothing else.
    let said = |model: &Model, prompt: &str, bos| generate_after(model, prompt, bos, &GenerateConfig::greedy(8));
    let prompt = "The captain of the ship";
    let (with, bos) = said(model, prompt, Bos::Auto).unwrap();
    assert_eq!((bos.asked, bos.tokens), (Bos::Auto, vec![0]));
    assert_eq!(with, said(tiny_llama(), &format!("<|endoftext|>{prompt}"), Bos::No).unwrap().0);
    assert_eq!(with, said(model, &format!("<|endoftext|>{prompt}"), Bos::Auto).unwrap().0, "not a second one");
    assert_ne!(with, said(model, prompt, Bos::No).unwrap().0);
    assert!(!said(model, "", Bos::Auto).unwrap().0.is_empty());
    let error = said(tiny_llama(), "", Bos::Auto).unwrap_err().to_string();
    assert!(error.contains("at least one token") && error.contains("--bos yes"), "{error}");
    let (_dir, path) = file(&[json!({"prompt": prompt, "answer": with.trim()})]);
    for (model, bos, right) in [(model, Bos::Auto, 1.0), (model, Bos::No, 0.0), (tiny_llama(), Bos::Yes, 1.0)] {
        let config = GenerationConfig { max_new_tokens: 8, bos, ..GenerationConfig::default() };
        let task = Task::prompts(&path, None).unwrap();
        let scores = score_generation(model, &task, &config, &Bootstrap::default(), Progress::Hidden).unwrap();
        assert_eq!((scores.exact_match.value, scores.bos.asked), (right, bos));
    }

    // The windows of perplexity have none.
    let tokenizer = model.tokenizer().unwrap();
    let windows = |tokenizer| {
        Windows::evaluation(data("corpus/test.txt"), Some(tokenizer), Consecutive::of(64).first(2)).unwrap()
    };
    assert_eq!(windows(&tokenizer), windows(&tiny_llama().tokenizer().unwrap()));
}

/// Ids as words.
fn say(ids: &[u32]) -> String {
    ids.iter().map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ")
}

/// Writes a tokenizer of the 128 words.
fn write_words(dir: &Path) {
    let vocab: serde_json::Map<String, Value> = (0..128).map(|id| (format!("w{id}"), Value::from(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// An example: its context and what may follow, as ids.
type Ids = (Vec<u32>, Vec<Vec<u32>>);

fn words_task(examples: &[Ids]) -> (tempfile::TempDir, PathBuf) {
    let line = |(context, choices): &Ids| {
        let choices: Vec<String> = choices.iter().map(|choice| say(choice)).collect();
        json!({"query": say(context), "choices": choices, "answer": 0})
    };
    file(&examples.iter().map(line).collect::<Vec<_>>())
}

/// Log-likelihood of `choice` after `context` by a forward pass over the whole sequence, of which the last tokens are kept that
/// have a position.
fn by_whole_sequences(model: &Model, context: &[u32], choice: &[u32]) -> f64 {
    let whole = [context, choice].concat();
    let inputs = &whole[..whole.len() - 1];
    let inputs = &inputs[inputs.len().saturating_sub(model.config().max_position_embeddings)..];
    let logits: Vec<Vec<f32>> = model.forward(inputs).unwrap().to_vec2().unwrap();
    let rows = &logits[logits.len() - choice.len()..];
    let likelihood = |(row, id): (&Vec<f32>, &u32)| {
        let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        f64::from(row[*id as usize]) - total.ln()
    };
    rows.iter().zip(choice).map(likelihood).sum()
}

/// The choices' reading of the context's keys and values, where attention reaches back over a few tokens, has sinks, or
/// goes through experts.
#[test]
fn a_shared_context_gives_what_whole_sequences_give() {
    let ids = |n: usize, seed: u64| random::tokens(n, 128, seed);
    let examples: Vec<Ids> =
        (0..3).map(|i| (ids(9 + 5 * i, i as u64), vec![ids(1, 50), ids(4, 60 + i as u64), ids(12, 70)])).collect();
    let (_dir, task) = words_task(&examples);
    for family in ["tiny-qwen2-moe", "tiny-gpt-oss-f32", "tiny-olmoe"] {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(Path::new(ROOT).join("tests/data").join(family).join(name), dir.path().join(name)).unwrap();
        }
        write_words(dir.path());
        let model = random::open(dir.path());
        let scores = choose(&model, &task);
        for ((context, choices), prediction) in examples.iter().zip(&scores.predictions) {
            for (choice, score) in choices.iter().zip(&prediction.log_likelihoods) {
                let expected = by_whole_sequences(&model, context, choice);
                assert!((score - expected).abs() < 1e-4, "{family}: {score} {expected}");
            }
        }
    }
}

/// Tables of some kinds depend on how long a sequence is, so that those for one example must not be another's. Lengths are from
/// a few tokens to beyond the 64 positions.
#[test]
fn a_score_depends_on_its_own_example_only_with_any_rotary_tables() {
    let ids = |n: usize, seed: u64| random::tokens(n, 128, seed);
    let examples: Vec<Ids> = [(2, 1), (9, 4), (40, 7), (60, 5), (61, 4), (64, 1), (64, 2), (90, 3)]
        .iter()
        .enumerate()
        .map(|(i, &(context, choice))| {
            let seed = 10 * i as u64;
            (ids(context, seed), vec![ids(choice, seed + 1), ids(choice, seed + 2), ids(1, seed + 3)])
        })
        .collect();
    for scaling in [
        json!(null),
        json!({"rope_type": "linear", "factor": 4.0}),
        json!({"rope_type": "dynamic", "factor": 4.0}),
        json!({"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 16}),
        json!({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}),
        json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        random::write(&path, &with(random::llama(), json!({"rope_scaling": scaling})), DType::F32, 1 << 30, 7);
        write_words(&path);
        let model = random::open(&path).resident().unwrap();
        let scores = |examples: &[Ids]| -> Vec<Vec<f64>> {
            let (_dir, task) = words_task(examples);
            choose(&model, &task).predictions.into_iter().map(|prediction| prediction.log_likelihoods).collect()
        };
        let alone: Vec<Vec<f64>> =
            examples.iter().map(|example| scores(std::slice::from_ref(example)).remove(0)).collect();
        for ((context, choices), alone) in examples.iter().zip(&alone) {
            for (choice, score) in choices.iter().zip(alone) {
                let expected = by_whole_sequences(&model, context, choice);
                assert!((score - expected).abs() < 1e-4, "{scaling}: {score} {expected}");
            }
        }
        // Shuffled, fewer, some of them twice.
        let config = ProptestConfig { cases: 3, failure_persistence: None, ..ProptestConfig::default() };
        proptest!(config, |(picked in prop::collection::vec(0..examples.len(), 1..12))| {
            let some: Vec<Ids> = picked.iter().map(|&i| examples[i].clone()).collect();
            let expected: Vec<Vec<f64>> = picked.iter().map(|&i| alone[i].clone()).collect();
            prop_assert_eq!(scores(&some), expected);
        });
    }
}

/// The seven tasks of Wanda's tables, in the rows of the hub, as the harness's own tasks of lm-eval 0.4.13 score them: its
/// prompts, its delimiters, its metrics.
#[test]
fn tasks_of_the_hub_equal_those_of_lm_evaluation_harness() {
    let expected: Value = serde_json::from_slice(&std::fs::read(fixture("hub/scores.json")).unwrap()).unwrap();
    for (name, kind) in [
        ("boolq", TaskKind::BoolQ),
        ("rte", TaskKind::Rte),
        ("hellaswag", TaskKind::HellaSwag),
        ("winogrande", TaskKind::WinoGrande),
        ("arc_easy", TaskKind::Arc),
        ("arc_challenge", TaskKind::Arc),
        ("openbookqa", TaskKind::OpenBookQa),
    ] {
        for (model, tokenizer) in [(tiny_llama(), "plain"), (&with_bos().1, "bos")] {
            let scores = choose(model, &fixture(&format!("hub/{name}.jsonl")));
            let theirs = &expected[tokenizer][name];
            assert_eq!(scores.task.kind, Some(kind));
            assert_near(&[scores.acc.value], &json!([theirs["acc"]]), name);
            assert_eq!(kind.normed(), theirs.get("acc_norm").is_some(), "{name}");
            if kind.normed() {
                assert_near(&[scores.acc_norm.value], &json!([theirs["acc_norm"]]), name);
            }
            let reference = theirs["log_likelihoods"].as_array().unwrap();
            assert_eq!(scores.predictions.len(), reference.len());
            for (ours, theirs) in scores.predictions.iter().zip(reference) {
                assert_near(&ours.log_likelihoods, theirs, &format!("{tokenizer}, {name}, {}", ours.line));
            }
        }
    }
}

#[test]
fn a_suite_is_found_by_its_rows_and_gives_the_table_of_the_papers() {
    let hub = fixture("hub");
    let tasks = suite_tasks(Suite::Wanda7, &hub, None).unwrap();
    let names: Vec<&str> = tasks.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["BoolQ", "RTE", "HellaSwag", "WinoGrande", "ARC-e", "ARC-c", "OBQA"]);
    // The same rows as parquet, under the names that the hub gives them.
    let parquet = suite_tasks(Suite::Wanda7, &fixture("hub-parquet"), None).unwrap();
    for ((name, lines), (_, table)) in tasks.iter().zip(&parquet) {
        assert_eq!((lines.kind, &lines.examples), (table.kind, &table.examples), "{name}");
        assert!(table.name.ends_with("-00000-of-00001.parquet"));
    }

    let table = run(&["evaluate", "data/tiny-llama", "--suite", "wanda7", "tests/data/tasks/hub"], "2");
    insta::assert_snapshot!("wanda7", String::from_utf8_lossy(&table.stdout));
    let json = run(
        &[
            "evaluate",
            "data/tiny-llama",
            "--suite",
            "wanda7",
            "tests/data/tasks/hub-parquet",
            "--limit",
            "2",
            "--bos",
            "yes",
            "--json",
        ],
        "2",
    );
    let scores: Value = serde_json::from_slice(&json.stdout).unwrap();
    let rows: Vec<lacuna::evaluate::SuiteRow> = serde_json::from_value(scores["suite"]["rows"].clone()).unwrap();
    assert!(rows.iter().all(|row| row.scores.task.examples == 2 && row.scores.bos.tokens == [0]));
    let mean = rows.iter().map(|row| row.scores.acc.value).sum::<f64>() / 7.0;
    assert!((scores["suite"]["mean"].as_f64().unwrap() - mean).abs() < 1e-12);

    let dir = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        let to = dir.path().join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(hub.join(from), to).unwrap();
    };
    let problem = || {
        let error = suite_tasks(Suite::Wanda7, dir.path(), None).unwrap_err().to_string();
        error.replace(dir.path().to_str().unwrap(), "DIR")
    };
    for name in ["boolq", "hellaswag", "winogrande", "arc_easy", "openbookqa"] {
        copy(&format!("{name}.jsonl"), &format!("{name}.jsonl"));
    }
    std::fs::write(dir.path().join("notes.json"), "{\"by\": \"someone\"}").unwrap();
    let missing = problem();
    // Parts: the one is taken that is scored, and none to train on; but which of two must be clear.
    copy("arc_challenge.jsonl", "arc/ARC-Challenge-Dev.jsonl");
    copy("arc_challenge.jsonl", "arc/ARC-Challenge-Test.jsonl");
    copy("rte.jsonl", "rte/train.jsonl");
    copy("rte.jsonl", "rte/validation.jsonl");
    let found = suite_tasks(Suite::Wanda7, dir.path(), Some(1)).unwrap();
    assert_eq!((found[1].1.name.as_str(), found[5].1.name.as_str()), ("validation.jsonl", "ARC-Challenge-Test.jsonl"));
    copy("boolq.jsonl", "more/boolq.jsonl");
    let twice = problem();
    std::fs::remove_dir_all(dir.path().join("more")).unwrap();
    std::fs::remove_dir_all(dir.path().join("rte")).unwrap();
    std::fs::write(dir.path().join("rte.parquet"), "PAR1 and no more").unwrap();
    insta::assert_snapshot!("suites_that_cannot_be", [missing, twice, problem()].join("\n"));
}

/// One line each, as a person reads it.
#[test]
fn rows_that_cannot_be_scored() {
    let rows = [
        json!({"passage": "p", "question": "q"}),
        json!({"passage": "p", "question": "q", "label": -1}),
        json!({"passage": "p", "question": "q", "answer": "perhaps"}),
        json!({"sentence1": "a", "sentence2": "b", "label": 2}),
        json!({"premise": "a", "hypothesis": 3, "label": 0}),
        json!({"ctx": "x", "endings": ["a", "b"], "label": ""}),
        json!({"ctx": "x", "endings": "a", "label": "0"}),
        json!({"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}),
        json!({"sentence": "a _", "option1": "a", "option2": "b", "answer": ""}),
        json!({"question": "q", "choices": {"text": ["a", "b"], "label": ["A"]}, "answerKey": "A"}),
        json!({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "E"}),
        json!({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": ""}),
        json!({"question_stem": "q", "choices": {"text": ["a", "b"]}, "answerKey": "A"}),
        json!({"question": {"choices": [{"text": "a", "label": "A"}, 7]}, "answerKey": "A"}),
        json!({"goal": "g", "sol1": "a", "sol2": "b"}),
        json!({"sentence": "just text", "label": 1}),
        json!([1]),
    ];
    let problem = |row: &Value| {
        let (dir, path) = file(std::slice::from_ref(row));
        let said = Task::choices(&path, None).unwrap_err().to_string();
        said.replace(dir.path().to_str().unwrap(), "DIR")
    };
    insta::assert_snapshot!("rows_that_cannot_be_scored", rows.iter().map(problem).collect::<Vec<_>>().join("\n"));
}

/// `acc` of cloze, `acc_norm` of cloze, word order, as the README has them; one example is 0.0167.
const ACCURACY: [(&str, [f64; 3]); 2] = [("tiny-llama", [0.2833, 0.45, 0.8]), ("tiny-moe", [0.3333, 0.3833, 0.8167])];

#[test]
fn tasks_that_ship_are_what_their_readme_says_and_can_be_done() {
    let readme = std::fs::read_to_string(data("tasks/README.md")).unwrap();
    for (name, expected) in ACCURACY {
        let model = Model::load(data(name).to_str().unwrap()).unwrap();
        let [cloze, order] = ["cloze", "word-order"].map(|task| choose(&model, &data(&format!("tasks/{task}.jsonl"))));
        for scores in [&cloze, &order] {
            assert_eq!((scores.task.examples, scores.chance, scores.truncated), (60, 0.25, 0));
            let bytes = std::fs::read(data("tasks").join(&scores.task.name)).unwrap();
            assert_eq!(scores.task.sha256, format!("{:x}", Sha256::digest(bytes)));
            assert!(readme.contains(&scores.task.sha256), "{}", scores.task.name);
        }
        let ours = [cloze.acc, cloze.acc_norm, order.acc];
        let row = readme.lines().find(|line| line.starts_with(&format!("| {name} |"))).unwrap();
        for (Score { value, .. }, expected) in ours.iter().zip(expected) {
            assert!((value - expected).abs() < 0.02, "{name}: {ours:?}");
            assert!(row.contains(&format!("{expected:.4}")), "{row}");
        }
        for score in [cloze.acc_norm, order.acc] {
            assert!(score.interval.unwrap().low > 0.25, "{name} does not beat chance: {ours:?}");
        }
        assert_eq!(order.acc, order.acc_norm, "the choices have the same letters");
    }
}

/// On the same examples, resampled together.
#[test]
fn a_pruned_model_is_worse_by_more_than_chance() {
    let pruned = prune(tiny_llama(), None, &PruneConfig::new(Method::Magnitude, 0.9), Progress::Hidden).unwrap();
    let path = data("tasks/word-order.jsonl");
    let [dense, pruned] = [tiny_llama(), &pruned.model].map(|model| choose(model, &path));
    let difference = Bootstrap::default().paired_difference(&pruned.correct(), &dense.correct()).unwrap();
    assert!((difference.value - (pruned.acc.value - dense.acc.value)).abs() < 1e-12);
    assert!(difference.interval.unwrap().high < 0.0, "{difference:?}");
}

#[test]
fn perplexity_has_an_interval_over_windows() {
    let tokenizer = tiny_llama().tokenizer().unwrap();
    let windows =
        |n| Windows::evaluation(data("corpus/test.txt"), Some(&tokenizer), Consecutive::of(64).first(n)).unwrap();
    let evaluation = evaluate(tiny_llama(), &windows(24), Progress::Hidden).unwrap();
    let means: Vec<f64> = evaluation.losses.iter().map(|losses| losses.iter().sum::<f64>() / 63.0).collect();
    let score = Bootstrap::default().score(&means).unwrap();
    assert!((score.value - evaluation.nll_nats).abs() < 1e-12);
    assert_eq!(evaluation.nll_interval, score.interval);
    let (nll, perplexity) = (score.interval.unwrap(), evaluation.perplexity_interval().unwrap());
    assert_eq!((perplexity.low, perplexity.high), (nll.low.exp(), nll.high.exp()));
    assert!(perplexity.low < evaluation.perplexity && evaluation.perplexity < perplexity.high);
    let record = evaluation.clone().record();
    assert_eq!((record.nll_interval, record.perplexity_interval), (Some(nll), Some(perplexity)));
    let other = evaluation.bootstrap(&Bootstrap { seed: 1, ..Bootstrap::default() }).unwrap();
    assert_ne!(other.nll_interval.unwrap().low, nll.low);

    let one = evaluate(tiny_llama(), &windows(1), Progress::Hidden).unwrap();
    assert_eq!((one.nll_interval, one.record().perplexity_interval), (None, None), "one window has no spread");
}

#[test]
fn generated_answers_are_exact_contained_or_wrong() {
    let model = tiny_llama();
    let prompt = "My fellow Americans, tonight";
    let said = generate(model, prompt, &GenerateConfig::greedy(12)).unwrap();
    let words: Vec<&str> = said.split_whitespace().collect();
    assert!(words.len() > 4, "{said}");
    let (_dir, path) = file(&[
        json!({"prompt": format!("{prompt} "), "answer": format!(" {} ", words.join("  "))}),
        json!({"question": prompt, "target": ["nothing of the kind", words[1..3].join(" ")]}),
        json!({"query": prompt, "answers": ["Queequeg"]}),
        json!({"context": prompt, "choices": ["Queequeg", said.trim()], "answer": "B"}),
    ]);
    let task = Task::prompts(&path, None).unwrap();
    let score = |max_new_tokens: usize, stop: &[&str]| {
        let stop = stop.iter().map(|&stop| stop.to_owned()).collect();
        score_generation(
            model,
            &task,
            &GenerationConfig { max_new_tokens, stop, bos: Bos::Auto },
            &Bootstrap::default(),
            Progress::Hidden,
        )
    };
    let scores = score(12, &[]).unwrap();
    let judged: Vec<_> = scores.predictions.iter().map(|p| (p.line, p.exact_match, p.contains)).collect();
    assert_eq!(judged, [(1, true, true), (2, false, true), (3, false, false), (4, true, true)]);
    assert_eq!((scores.exact_match.value, scores.contains.value), (0.5, 0.75));
    assert!(scores.exact_match.interval.unwrap().contains(0.5));
    assert!(scores.predictions.iter().all(|p| p.text == said), "{scores:?}");
    assert_eq!(scores.truncated, 0);

    // The first of the stops in the text ends it, wherever in a token it stands.
    let stopped = score(12, &["zzzz", words[3], words[2]]).unwrap();
    let end = said.find(words[2]).unwrap().min(said.find(words[3]).unwrap());
    assert_eq!(stopped.predictions[0].text, said[..end]);
    assert_eq!(stopped.exact_match.value, 0.0);

    let tokens = model.tokenizer().unwrap().encode(prompt).unwrap().len();
    assert_eq!(score(257 - tokens, &["\n"]).unwrap().truncated, 4, "room for one token less than the prompt has");
    assert_eq!(score(256 - tokens, &["\n"]).unwrap().truncated, 0);
    for (tokens, stop, says) in
        [(0, "x", "must be from 1 to 255"), (256, "x", "must be from 1 to 255"), (8, "", "stop")]
    {
        let error = score(tokens, &[stop]).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn examples_that_cannot_be_scored_are_named() {
    let choose = |line: Value| {
        let (_dir, path) = file(&[json!({"context": "a", "choices": ["b", "c"], "answer": 0}), line]);
        let task = Task::choices(&path, None)?;
        score_choices(tiny_llama(), &task, Bos::Auto, &Bootstrap::default(), Progress::Hidden)
    };
    let long =
        choose(json!({"context": "a", "choices": ["b", "whale ".repeat(300)], "answer": 0})).unwrap_err().to_string();
    assert!(long.contains("task.jsonl: line 2: choice 1 has") && long.contains("context of 256"), "{long}");
    let answer = choose(json!({"context": "a", "choices": ["b", "c"], "answer": 2})).unwrap_err().to_string();
    assert!(answer.contains("task.jsonl: line 2: `answer` is 2, of 2 choices"), "{answer}");

    let norm = tiny_llama().checkpoint().unwrap().load("model.norm.weight", DType::F32, &Device::Cpu).unwrap();
    let huge = (norm * 1e38).unwrap();
    let broken = tiny_llama().with_tensors([("model.norm.weight".to_owned(), huge)]).unwrap();
    let task = Task::choices(data("tasks/cloze.jsonl"), Some(2)).unwrap();
    let error = score_choices(&broken, &task, Bos::Auto, &Bootstrap::default(), Progress::Hidden).unwrap_err();
    assert!(matches!(&error, Error::Tensor { .. }) && error.to_string().contains("not finite"), "{error}");
}

fn run(args: &[&str], threads: &str) -> Output {
    let binary = env!("CARGO_BIN_EXE_lacuna");
    Command::new(binary).current_dir(ROOT).env("RAYON_NUM_THREADS", threads).args(args).output().unwrap()
}

#[test]
fn the_command_line_prints_scores_with_intervals_and_the_same_bytes_on_any_number_of_threads() {
    let tasks = ["--task", "data/tasks/cloze.jsonl", "--task", "data/tasks/word-order.jsonl", "--limit", "6"];
    let text = ["--text", "data/corpus/test.txt", "--windows", "3", "--seqlen", "32"];
    let all = [&["evaluate", "data/tiny-llama", "--json"][..], &tasks, &text].concat();
    let [one, three] = ["1", "3"].map(|threads| run(&all, threads));
    assert!(one.status.success(), "{}", String::from_utf8_lossy(&one.stderr));
    assert_eq!(one.stdout, three.stdout);
    let scores: Value = serde_json::from_slice(&one.stdout).unwrap();
    assert_eq!((&scores["tokens"], &scores["nll_interval"]["resamples"]), (&json!(93), &json!(10000)));
    let read: Vec<ChoiceScores> = serde_json::from_value(scores["tasks"].clone()).unwrap();
    assert_eq!(read.iter().map(|task| task.predictions.len()).collect::<Vec<_>>(), [6, 6]);
    assert!((read[1].acc.value - read[1].correct().iter().sum::<f64>() / 6.0).abs() < 1e-12);
    assert_eq!(read[0].acc.interval.unwrap().seed, 0);

    let people = run(&[&["evaluate", "data/tiny-llama"][..], &tasks, &text].concat(), "2");
    let people = String::from_utf8(people.stdout).unwrap();
    let acc = format!("acc         {:.4} [", read[1].acc.value);
    for part in ["word-order.jsonl, 6 examples, chance 0.2500\n", &acc, "] 95%\n", "perplexity  "] {
        assert!(people.contains(part), "{people}");
    }
    // One example has no spread.
    let one = run(&["evaluate", "data/tiny-llama", "--task", "data/tasks/cloze.jsonl", "--limit", "1"], "2");
    assert!(!String::from_utf8(one.stdout).unwrap().contains('['));
    let generated = run(
        &[
            "evaluate",
            "data/tiny-llama",
            "--task",
            "data/tasks/cloze.jsonl",
            "--limit",
            "3",
            "--generate",
            "--max-new-tokens",
            "4",
            "--stop",
            ".",
            "--json",
            "--seed",
            "5",
        ],
        "2",
    );
    let generated: Value = serde_json::from_slice(&generated.stdout).unwrap();
    assert_eq!(generated["tasks"][0]["predictions"].as_array().unwrap().len(), 3);
    assert_eq!(generated["tasks"][0]["contains"]["interval"]["seed"], 5);
    assert_eq!(generated.as_object().unwrap().len(), 1, "no perplexity without --text");
}

#[test]
fn what_is_wrong_is_said_before_a_model_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        std::fs::write(dir.path().join(name), content).unwrap();
        dir.path().join(name).to_str().unwrap().to_owned()
    };
    let good = r#"{"question": "x", "choices": ["a", "b"], "answer": 0}"#;
    let bad = write("bad.jsonl", &format!("{good}\n\n{{\"question\": \"x\", \"choices\": [\"a\"], \"answer\": 0}}\n"));
    let cut = write("cut.jsonl", &format!("\u{feff}{good}\n{}", &good[..20]));
    let empty = write("empty.jsonl", "\n \n");
    let list = write("list.jsonl", "[1, 2]\n");
    let no_answer = write("no-answer.jsonl", "{\"prompt\": \"x\"}\n");
    let failures: [(&[&str], i32, &str); 9] = [
        (&["--task", &bad], 1, "bad.jsonl: line 3: `choices` has 1; at least two are needed"),
        (&["--task", &cut], 1, "cut.jsonl: line 2: is not JSON"),
        (&["--task", &empty], 1, "empty.jsonl: holds no example"),
        (&["--task", &list], 1, "list.jsonl: line 1: is no JSON object"),
        (&["--task", &no_answer, "--generate"], 1, "line 1: has none of the fields `answer`, `target`, `answers`"),
        (&["--task", "none.jsonl"], 1, "cannot read none.jsonl"),
        (&["--task", &bad, "--limit", "0"], 1, "limit = 0"),
        (&[], 2, "--text <TEXT>|--task <FILE.jsonl>"),
        (&["--task", &bad, "--stop", "x"], 2, "--generate"),
    ];
    for (args, code, says) in failures {
        let output = run(&[&["evaluate", "no-such-model"], args].concat(), "2");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(says), "{args:?}: {stderr}");
    }
    // The limit counts examples, and what comes after them is not read.
    assert_eq!(Task::choices(&bad, Some(1)).unwrap().examples.len(), 1);
}

/// A model that is read layer by layer scores what the same model in memory scores; without a tokenizer neither can.
#[test]
fn streamed_and_resident_models_agree() {
    let dir = tempfile::tempdir().unwrap();
    let config = with(random::llama(), json!({"vocab_size": 2048, "max_position_embeddings": 256}));
    random::write(&dir.path().join("model"), &config, DType::BF16, 64 << 10, 3);
    let streamed = random::open(&dir.path().join("model"));
    let task = Task::choices(data("tasks/cloze.jsonl"), Some(5)).unwrap();
    let score = |model: &Model| score_choices(model, &task, Bos::Auto, &Bootstrap::default(), Progress::Hidden);
    let error = score(&streamed).unwrap_err().to_string();
    assert!(error.contains("there is no tokenizer"), "{error}");
    Tokenizer::open(data("tiny-llama")).unwrap().save(dir.path().join("model/tokenizer.json")).unwrap();
    assert_eq!(score(&streamed).unwrap(), score(&streamed.resident().unwrap()).unwrap());
}
