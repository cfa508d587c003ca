//! `lacuna prune` and `lacuna evaluate` as a user runs them: what they write, on any number of threads, and what they
//! leave behind when something is wrong: nothing.

mod common;
#[path = "common/random.rs"]
mod random;

use candle_core::DType;
use common::skip::{skipped, skipped_without};
use common::{assert_says, fingerprint, names};
use lacuna::checkpoint::{Checkpoint, TensorInfo};
use lacuna::record::Record;
use lacuna::text::Tokenizer;
use random::with;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const BIN: &str = env!("CARGO_BIN_EXE_lacuna");
/// Small, so that there are several shards.
const SHARD: u64 = 48 << 10;

/// A folder with `model`, `tokens.json`, and `out`, where outputs go.
struct Place(tempfile::TempDir);

impl Place {
    fn new(config: &Value, windows: usize, seqlen: usize) -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        random::write(&place.at("model"), config, DType::BF16, SHARD, 1);
        let vocab = config["vocab_size"].as_u64().unwrap() as u32;
        let rows: Vec<_> = (0..windows).map(|i| random::tokens(seqlen, vocab, i as u64)).collect();
        std::fs::write(place.at("tokens.json"), json!(rows).to_string()).unwrap();
        std::fs::create_dir(place.at("out")).unwrap();
        place
    }

    fn small() -> Place {
        Place::new(&random::llama(), 4, 32)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `lacuna COMMAND MODEL --option value ...`, run here, so that paths are relative.
    fn command(&self, command: &str, model: &str, options: &[(&str, &str)]) -> Command {
        let mut process = Command::new(BIN);
        process.current_dir(self.0.path()).args([command, model]).stdin(Stdio::null());
        for (option, value) in options {
            process.args([&format!("--{option}"), *value]);
        }
        process
    }

    fn evaluate(&self, model: &str, text: &str, seqlen: usize) -> Command {
        self.command("evaluate", model, &[("text", text), ("windows", "2"), ("seqlen", &seqlen.to_string())])
    }

    /// `lacuna prune` with usual options, those in `options` changed or added; an empty value leaves one out.
    fn prune(&self, options: &[(&str, &str)]) -> Command {
        let usual =
            [("method", "wanda"), ("sparsity", "0.5"), ("calib", "tokens.json"), ("windows", "4"), ("seqlen", "32")];
        let mut all: Vec<(&str, &str)> = usual.into_iter().chain([("out", "out/pruned")]).collect();
        for (option, value) in options {
            all.retain(|(known, _)| known != option);
            if !value.is_empty() {
                all.push((option, value));
            }
        }
        self.command("prune", "model", &all)
    }
}

#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// For each element of a bf16 tensor, true if it is zero.
fn zeros(checkpoint: &Checkpoint, name: &str) -> Vec<bool> {
    checkpoint.read(name).unwrap().chunks(2).map(|bytes| bytes == [0, 0]).collect()
}

fn pruned(tensor: &TensorInfo) -> bool {
    tensor.name.contains("_proj") || tensor.name.contains("experts")
}

fn count(zeros: &[bool]) -> usize {
    zeros.iter().filter(|&&zero| zero).count()
}

#[test]
fn every_method_pattern_and_propagation() {
    let place = Place::small();
    let before = fingerprint(&place.at("model"));
    let source = Checkpoint::open(place.at("model")).unwrap();
    assert!(source.shards().len() > 1);
    let mut cases = Vec::new();
    for method in ["magnitude", "wanda", "random"] {
        for (pattern, per) in [("unstructured", "row"), ("unstructured", "layer"), ("2:4", ""), ("4:8", "")] {
            for propagate in ["pruned", "dense"] {
                cases.push((method, pattern, per, propagate));
            }
        }
    }
    cases.par_iter().for_each(|&(method, pattern, per, propagate)| {
        let what = format!("{method}-{pattern}-{per}-{propagate}").replace(':', "of");
        let out = format!("out/{what}");
        let unstructured = pattern == "unstructured";
        let sparsity = if unstructured { "0.57" } else { "" };
        let options = [
            ("method", method),
            ("pattern", pattern),
            ("per", per),
            ("propagate", propagate),
            ("sparsity", sparsity),
            ("out", &out),
        ];
        let printed = succeeds(&mut place.prune(&options));
        assert_says(printed, &[method, pattern, &out]);

        let model = random::open(&place.at(&out));
        let result = model.checkpoint().unwrap();
        assert_eq!(
            source.tensors().map(|t| &t.name).collect::<Vec<_>>(),
            result.tensors().map(|t| &t.name).collect::<Vec<_>>()
        );
        assert_eq!(names(&place.at("model")).len() + 1, names(&place.at(&out)).len(), "lacuna.json more");
        let record: Record =
            serde_json::from_slice(&std::fs::read(place.at(&out).join("lacuna.json")).unwrap()).unwrap();
        for tensor in source.tensors() {
            let (old, new) = (source.read(&tensor.name).unwrap(), result.read(&tensor.name).unwrap());
            if !pruned(tensor) {
                assert!(old == new, "{what}: {}", tensor.name);
                continue;
            }
            let zeros = zeros(result, &tensor.name);
            for ((old, new), zero) in old.chunks(2).zip(new.chunks(2)).zip(&zeros) {
                assert!(*zero || old == new, "{what}: {}: a kept weight has changed", tensor.name);
            }
            let cols = tensor.shape[1];
            let (group, each) = match (pattern, per) {
                ("2:4", _) => (4, 2),
                ("4:8", _) => (8, 4),
                (_, "row") => (cols, cols * 57 / 100),
                _ => (zeros.len(), zeros.len() * 57 / 100),
            };
            assert!(zeros.chunks(group).all(|group| count(group) == each), "{what}: {}", tensor.name);
            let recorded = record.tensors.iter().find(|recorded| recorded.name == tensor.name).unwrap();
            assert_eq!((recorded.zeros as usize, recorded.shape.as_slice()), (count(&zeros), tensor.shape.as_slice()));
        }

        assert_eq!(record.tensors.len(), source.tensors().filter(|tensor| pruned(tensor)).count());
        assert_eq!((record.schema, record.model.name.as_str(), record.model.family.as_str()), (1, "model", "llama"));
        assert_eq!((record.model.parameters, record.model.sha256), (source.parameters(), source.sha256().unwrap()));
        let pruning = record.pruning.unwrap();
        let names = [&pruning.method as &dyn std::fmt::Display, &pruning.pattern, &pruning.per, &pruning.propagate];
        let expected = [method, pattern, if unstructured { per } else { "row" }, propagate];
        assert_eq!(names.map(ToString::to_string), expected);
        assert_eq!(pruning.sparsity, if unstructured { 0.57 } else { 0.5 });
        assert_eq!(pruning.calibration.map(|text| (text.windows, text.seqlen)), (method == "wanda").then_some((4, 32)));
        assert!(record.environment.contains_key("prune_seconds"));

        let scored: Value =
            serde_json::from_str(&succeeds(place.evaluate(&out, "tokens.json", 32).arg("--json"))).unwrap();
        let (nll, perplexity) = (scored["nll_nats"].as_f64().unwrap(), scored["perplexity"].as_f64().unwrap());
        assert_eq!(scored["tokens"], 62);
        assert!((3.0..8.0).contains(&nll) && (perplexity - nll.exp()).abs() < 1e-9 * perplexity, "{what}: {scored}");
    });
    assert_eq!(names(&place.at("out")).len(), cases.len(), "and nothing else: {:?}", names(&place.at("out")));
    assert_eq!(fingerprint(&place.at("model")), before);
}

#[test]
fn masks_are_nested_over_sparsities() {
    let place = Place::small();
    let runs: Vec<(&str, usize)> = ["magnitude", "wanda", "random"]
        .iter()
        .flat_map(|&method| (1..10).map(move |tenths| (method, tenths)))
        .collect();
    runs.par_iter().for_each(|(method, tenths)| {
        let (sparsity, out) = (format!("0.{tenths}"), format!("out/{method}{tenths}"));
        let options = [("method", *method), ("sparsity", &sparsity), ("propagate", "dense"), ("out", &out)];
        succeeds(&mut place.prune(&options));
    });
    let open = |method: &str, tenths: usize| Checkpoint::open(place.at(&format!("out/{method}{tenths}"))).unwrap();
    for (method, tenths) in runs.into_iter().filter(|(_, tenths)| *tenths > 1) {
        let (less, more) = (open(method, tenths - 1), open(method, tenths));
        for tensor in more.tensors().filter(|tensor| pruned(tensor)) {
            let (less, more) = (zeros(&less, &tensor.name), zeros(&more, &tensor.name));
            assert!(count(&less) < count(&more));
            let nested = less.iter().zip(&more).all(|(less, more)| *more || !*less);
            assert!(nested, "{method} at 0.{tenths}: {}: a weight has come back", tensor.name);
        }
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let mixture = json!({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2});
    for config in [random::llama(), with(random::llama(), mixture)] {
        let place = Place::new(&config, 7, 48);
        for (method, per) in [("wanda", "row"), ("wanda", "layer"), ("random", "layer")] {
            let run = |threads: &str| {
                let out = format!("out/{method}-{per}-{threads}");
                let options = [("method", method), ("per", per), ("windows", "7"), ("seqlen", "48"), ("out", &out)];
                succeeds(place.prune(&options).env("RAYON_NUM_THREADS", threads));
                let mut files = fingerprint(&place.at(&out));
                let (record, _) = files.remove("lacuna.json").unwrap();
                let mut record: Value = serde_json::from_slice(&record).unwrap();
                assert_eq!(record["environment"]["threads"].to_string(), threads);
                record.as_object_mut().unwrap().remove("environment");
                let bytes = files.into_iter().map(|(name, (bytes, _))| (name, bytes));
                (bytes.collect::<Vec<_>>(), record.to_string())
            };
            let one = run("1");
            assert!(one.0.len() > 3);
            assert!(one == run("2") && one == run("3"), "{method} per {per}: {config}");
        }
    }
}

/// One thing that is wrong: what was done to the folder, the options of `prune`, and what the message must hold.
struct Bad {
    what: &'static str,
    damage: fn(&Place),
    options: &'static [(&'static str, &'static str)],
    says: &'static [&'static str],
    /// True if `evaluate` must refuse the model too, with the same message.
    evaluate: bool,
}

/// In the middle of the small model.
const SHARD_2: &str = "model-00002-of-00004.safetensors";

/// Overwrites the second element of a bf16 tensor.
fn spoil(place: &Place, name: &str, value: u16) {
    let checkpoint = Checkpoint::open(place.at("model")).unwrap();
    let tensor = checkpoint.get(name).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&checkpoint.shards()[tensor.shard]).unwrap();
    file.write_all_at(&value.to_le_bytes(), tensor.range.start + 2).unwrap();
}

/// Rewrites the header of a shard: `edit` gets the offsets of its last tensor.
fn edit_last_offsets(place: &Place, edit: fn(u64, u64) -> (u64, u64)) {
    let path = place.at("model").join(SHARD_2);
    let bytes = std::fs::read(&path).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..end]).unwrap();
    let (_, last) = header.iter_mut().filter(|(name, _)| *name != "__metadata__").last().unwrap();
    let at = |i: usize| last["data_offsets"][i].as_u64().unwrap();
    let (begin, end_of_data) = edit(at(0), at(1));
    last["data_offsets"] = json!([begin, end_of_data]);
    std::fs::write(path, common::safetensors(&Value::Object(header).to_string(), &bytes[end..])).unwrap();
}

fn set(place: &Place, changes: Value) {
    std::fs::write(place.at("model/config.json"), with(random::llama(), changes).to_string()).unwrap();
}

fn tokenizer(place: &Place, text: &str) {
    Tokenizer::train_bpe(&["a text, a text".into()], 260).unwrap().save(place.at("model/tokenizer.json")).unwrap();
    std::fs::write(place.at("text.txt"), text).unwrap();
}

const UNTOUCHED: fn(&Place) = |_| ();

const BAD: &[Bad] = &[
    Bad {
        what: "truncated shard",
        damage: |place| {
            let shard = std::fs::OpenOptions::new().write(true).open(place.at("model").join(SHARD_2)).unwrap();
            shard.set_len(shard.metadata().unwrap().len() - 100).unwrap();
        },
        options: &[],
        says: &[SHARD_2, "`model.layers.", "100 bytes are missing", "download it again"],
        evaluate: true,
    },
    Bad {
        what: "index that names a missing shard",
        damage: |place| std::fs::remove_file(place.at("model").join(SHARD_2)).unwrap(),
        options: &[],
        says: &["model.safetensors.index.json", SHARD_2, "download"],
        evaluate: true,
    },
    Bad {
        what: "offsets that overlap",
        damage: |place| edit_last_offsets(place, |begin, end| (begin - 64, end - 64)),
        options: &[],
        says: &[SHARD_2, "`model.layers.", "overlap"],
        evaluate: true,
    },
    Bad {
        what: "offsets out of range",
        damage: |place| edit_last_offsets(place, |begin, end| (begin + (1 << 40), end + (1 << 40))),
        options: &[],
        says: &[SHARD_2, "`model.layers."],
        evaluate: true,
    },
    Bad {
        what: "a weight that is NaN",
        damage: |place| spoil(place, "model.layers.1.mlp.up_proj.weight", 0x7fc0),
        options: &[("method", "magnitude")],
        says: &["safetensors", "`model.layers.1.mlp.up_proj.weight`", "[0, 1]", "NaN", "damaged"],
        evaluate: true,
    },
    Bad {
        what: "an infinite weight outside the layers",
        damage: |place| spoil(place, "lm_head.weight", 0x7f80),
        options: &[("method", "random")],
        says: &["safetensors", "`lm_head.weight`", "[0, 1]", "infinite", "damaged"],
        evaluate: true,
    },
    Bad {
        what: "unknown family",
        damage: |place| set(place, json!({"model_type": "mamba"})),
        options: &[],
        says: &["config.json", "`mamba`", "llama", "mixtral"],
        evaluate: true,
    },
    Bad {
        what: "weights that are not what the config calls for",
        damage: |place| set(place, json!({"num_key_value_heads": 4})),
        options: &[],
        says: &["`model.layers.0.self_attn.k_proj.weight`", "[32, 64]", "[64, 64]", "config.json"],
        evaluate: true,
    },
    Bad {
        what: "text without a tokenizer",
        damage: |place| std::fs::write(place.at("text.txt"), "some text").unwrap(),
        options: &[("calib", "text.txt")],
        says: &["tokenizer.json", "copy", ".json"],
        evaluate: false,
    },
    Bad {
        what: "text shorter than one window",
        damage: |place| tokenizer(place, "a short text"),
        options: &[("calib", "text.txt")],
        says: &["text.txt", "one window needs 32", "--seqlen"],
        evaluate: false,
    },
    Bad {
        what: "too few windows of tokens",
        damage: UNTOUCHED,
        options: &[("windows", "5")],
        says: &["tokens.json", "4 windows", "5 were asked for", "--windows"],
        evaluate: false,
    },
    Bad {
        what: "tokens that the model does not have",
        damage: |place| std::fs::write(place.at("alien.json"), json!([vec![128; 32]]).to_string()).unwrap(),
        options: &[("calib", "alien.json"), ("windows", "1")],
        says: &["128", "vocabulary", "tokenizer"],
        evaluate: false,
    },
    Bad {
        what: "Wanda without text",
        damage: UNTOUCHED,
        options: &[("calib", "")],
        says: &["wanda", "--calib"],
        evaluate: false,
    },
    Bad { what: "sparsity 1", damage: UNTOUCHED, options: &[("sparsity", "1.0")], says: SPARSITY, evaluate: false },
    Bad { what: "sparsity -0.1", damage: UNTOUCHED, options: &[("sparsity", "-0.1")], says: SPARSITY, evaluate: false },
    Bad { what: "sparsity NaN", damage: UNTOUCHED, options: &[("sparsity", "NaN")], says: SPARSITY, evaluate: false },
    Bad { what: "sparsity 2", damage: UNTOUCHED, options: &[("sparsity", "2")], says: SPARSITY, evaluate: false },
    Bad {
        what: "sparsity that is no number",
        damage: UNTOUCHED,
        options: &[("sparsity", "half")],
        says: &["--sparsity", "half"],
        evaluate: false,
    },
    Bad {
        what: "N:M that does not divide",
        damage: UNTOUCHED,
        options: &[("pattern", "2:5"), ("sparsity", "")],
        says: &["pattern = 2:5", "_proj.weight`", "64 inputs", "5 does not divide"],
        evaluate: false,
    },
    Bad {
        what: "N:M with another sparsity",
        damage: UNTOUCHED,
        options: &[("pattern", "2:4"), ("sparsity", "0.6")],
        says: &["sparsity = 0.6", "2:4", "0.5"],
        evaluate: false,
    },
    Bad {
        what: "output that exists",
        damage: UNTOUCHED,
        options: &[("out", "model")],
        says: &["model", "already exists", "choose another"],
        evaluate: false,
    },
    Bad {
        // The superuser may write anywhere, but not below a file.
        what: "output that cannot be made",
        damage: UNTOUCHED,
        options: &[("out", "tokens.json/pruned")],
        says: &["tokens.json", "not a directory"],
        evaluate: false,
    },
    Bad {
        what: "output in a missing directory",
        damage: UNTOUCHED,
        options: &[("out", "nowhere/pruned")],
        says: &["nowhere", "no such directory", "create it"],
        evaluate: false,
    },
];

const SPARSITY: &[&str] = &["sparsity = ", "at least 0 and below 1"];

/// Runs a command that must fail, and checks that it leaves everything as it was.
#[track_caller]
fn fails(place: &Place, what: &str, command: &mut Command, says: &[&str]) {
    let state = || (names(place.0.path()), names(&place.at("out")), fingerprint(&place.at("model")));
    let before = state();
    let output = command.output().unwrap();
    let error = said(&output);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{what}: {:?}: {error}", output.status);
    assert!(!error.contains("panicked") && error.contains("error: "), "{what}: {error}");
    assert_says(format!("{what}: {error}"), says);
    assert!(state() == before, "{what}: has left or changed something: {:?}", state().1);
}

#[test]
fn bad_input_is_refused_and_nothing_is_left() {
    BAD.par_iter().for_each(|bad| {
        let place = Place::small();
        (bad.damage)(&place);
        fails(&place, bad.what, &mut place.prune(bad.options), bad.says);
        if bad.evaluate {
            fails(&place, bad.what, &mut place.evaluate("model", "tokens.json", 32), bad.says);
        }
    });
    let place = Place::small();
    tokenizer(&place, "a short text");
    fails(&place, "short text", &mut place.evaluate("model", "text.txt", 32), &["text.txt", "one window needs 32"]);
}

/// A file system of its own, in a mount namespace that ends with the command; its contents are printed afterwards.
#[test]
fn full_and_read_only_disks() {
    let isolated = |place: &Place, mount: &str, command: &Command| {
        let script = format!(
            "mount -t tmpfs {mount} tmpfs out && touch out/mounted || exit 99; {}\"$@\"; code=$?; ls -A out; exit $code",
            if mount.is_empty() { "mount -o remount,ro out || exit 99; " } else { "" }
        );
        let mut shell = Command::new("unshare");
        shell.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh", BIN]);
        shell.args(command.get_args()).current_dir(place.0.path());
        shell.output()
    };
    let full: &[&str] = &["out/pruned", "the disk is full", "free some space"];
    let cases = [
        ("too small from the beginning", "-o size=64k", 0, full),
        ("full on the way", "-o size=1m", 2 << 20, full),
        ("read-only", "", 0, &["out", "read-only filesystem"]),
    ];
    for (what, mount, beside, says) in cases {
        let place = Place::small();
        // Copied with the model, after the weights.
        std::fs::write(place.at("model/vocab.txt"), vec![b'x'; beside]).unwrap();
        let before = fingerprint(&place.at("model"));
        let output = match isolated(&place, mount, &place.prune(&[])) {
            Ok(output) if output.status.code() != Some(99) && !said(&output).starts_with("unshare:") => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return skipped("unshare"),
            other => return skipped_without(format!("the right to mount a file system: {other:?}")),
        };
        assert_eq!(output.status.code(), Some(1), "{what}: {}", said(&output));
        assert_says(said(&output), says);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "mounted\n", "{what}: something was left");
        assert!(fingerprint(&place.at("model")) == before);
    }
}

/// A run that takes a few seconds.
fn long() -> Place {
    let larger = json!({"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3});
    Place::new(&with(random::llama(), larger), 96, 64)
}

const LONG: &[(&str, &str)] = &[("windows", "96"), ("seqlen", "64")];

/// Starts `prune` and sends `signal` in the middle, once the hidden output is there.
fn signalled(place: &Place, signal: i32) -> Output {
    let mut child: Child =
        place.prune(LONG).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
    let started = Instant::now();
    while names(&place.at("out")).is_empty() {
        assert!(started.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(), "it has not begun");
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(child.try_wait().unwrap().is_none(), "it was over before the signal");
    // SAFETY: a plain system call; the child has not been waited for, so its id is its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    child.wait_with_output().unwrap()
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let place = long();
    let before = fingerprint(&place.at("model"));
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let output = signalled(&place, signal);
        assert_eq!(output.status.code(), Some(130), "{}", said(&output));
        assert_says(said(&output), &["interrupted; nothing half-written was left"]);
        assert_eq!(names(&place.at("out")), [""; 0]);
    }
    assert!(fingerprint(&place.at("model")) == before);
}

#[test]
fn a_killed_run_leaves_no_output_and_does_not_block_the_next() {
    let place = long();
    let before = fingerprint(&place.at("model"));
    let output = signalled(&place, libc::SIGKILL);
    assert_eq!(output.status.code(), None, "killed");
    let left = names(&place.at("out"));
    assert!(left.len() == 1 && left[0].starts_with(".pruned."), "{left:?}");
    succeeds(&mut place.prune(LONG));
    assert_eq!(names(&place.at("out")), [left[0].as_str(), "pruned"]);
    Checkpoint::open(place.at("out/pruned")).unwrap();
    assert!(fingerprint(&place.at("model")) == before);
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny-moe");
    let mut child =
        Command::new(BIN).args(["inspect", model]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take()); // as `| head -0` does
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success() && !said(&output).contains("panicked"), "{}", said(&output));
}
