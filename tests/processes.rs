//! Tests with processes of their own, which are killed, interrupted for good, end by a signal, or have another number of
//! threads. The processes are this program, too: `LACUNA_TEST_PART` names the part that it plays.

mod common;
mod cuda;
#[path = "processes/harness.rs"]
mod harness;
#[path = "common/random.rs"]
mod random;
#[path = "common/server.rs"]
mod server;

use candle_core::{DType, Device};
use common::{file_of, index_of, skip};
use cuda::{Buffer, Kernel};
use lacuna::Error;
use lacuna::cache::{Cache, Collect, Uses};
use lacuna::checkpoint::{Hub, Retry, Source};
use lacuna::gradients::{Accumulate, gradients};
use lacuna::lab::Lab;
use lacuna::prelude::*;
use lacuna::progress::interrupt;
use server::{Fault, Server};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// The environment variable with the name of the part that a process plays, and one for what it needs to know.
const PART: &str = "LACUNA_TEST_PART";
const DETAIL: &str = "LACUNA_TEST_DETAIL";

fn main() -> ExitCode {
    let Ok(part) = std::env::var(PART) else {
        return harness::run(&[
            ("a_killed_process_leaves_nothing_that_counts_and_several_at_once_agree", killed_and_several_at_once),
            ("an_interruption_ends_gradients", interrupted_gradients),
            ("an_interruption_need_not_wait_for_the_network", interrupted_transfer),
            ("the_tokenizer_is_the_same_on_one_thread_and_two", tokenizer_on_threads),
            ("touching_what_is_not_its_own_ends_the_process", touching_what_is_not_its_own),
        ]);
    };
    let detail = std::env::var(DETAIL).unwrap();
    match part.as_str() {
        "fill a cache" => fill_a_cache(&detail),
        "interrupt gradients" => interrupt_gradients(),
        "interrupt a transfer" => interrupt_a_transfer(),
        "train a tokenizer" => train_a_tokenizer(),
        "run a wrong kernel" => run_a_wrong_kernel(&detail),
        other => panic!("there is no part `{other}`"),
    }
    ExitCode::SUCCESS
}

/// This program in a part.
fn process(part: &str, detail: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(PART, part).env(DETAIL, detail).stdin(Stdio::null());
    command
}

fn assert_succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn data(name: &str) -> String {
    format!("{}/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A lab whose grams take a while.
fn lab(cache: Cache) -> Lab {
    let model = data("tiny-llama");
    let lab = Lab::open_on(&model, DType::F32, &Device::Cpu, cache).unwrap().with_progress(Progress::Hidden);
    lab.calibrate_on(data("corpus/train.txt"), Sampling::new(48, 128)).unwrap()
}

/// SparseGPT at a sparsity, from the dense model's grams.
fn config(sparsity: f64) -> PruneConfig {
    PruneConfig::new(Method::SparseGpt, sparsity).propagating(Propagate::Dense)
}

fn record(lab: &Lab) -> Record {
    let test = lab.windows(data("corpus/test.txt"), Consecutive::of(64).first(3)).unwrap();
    lab.record(&config(0.5), &test).unwrap()
}

fn fill_a_cache(dir: &str) {
    record(&lab(Cache::at(dir, 1 << 30)));
}

fn killed_and_several_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let names = || -> Vec<String> {
        // It is made by the first process.
        let list = fs::read_dir(&cache).into_iter().flatten();
        list.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let entries = |stage: &str| names().iter().filter(|name| name.starts_with(&format!("{stage}-"))).count();
    let unfinished = || -> Vec<PathBuf> {
        names().iter().filter(|name| name.starts_with(".grams-")).map(|name| cache.join(name)).collect()
    };
    let start = || {
        let mut process = process("fill a cache", cache.to_str().unwrap());
        process.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    // Killed while calibration writes its grams layer by layer.
    let started = Instant::now();
    let mut killed = start();
    while unfinished().iter().all(|staging| !staging.join("block-1").exists()) {
        assert!(started.elapsed() < Duration::from_secs(120) && killed.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!((unfinished().len(), entries("grams"), entries("pruned")), (1, 0, 0));

    // Three start over at the same time.
    let several = [(); 3].map(|()| start());
    assert!(several.into_iter().all(|mut process| process.wait().unwrap().success()));
    let again = lab(Cache::at(&cache, 1 << 30));
    let found = record(&again);
    again.prune(&config(0.6)).unwrap();
    let uses = |stage: &str| {
        let Uses { computed, disk_hits, memory_hits } = again.cache().of_stage(stage.parse().unwrap()).uses;
        [computed, disk_hits, memory_hits]
    };
    assert_eq!((uses("grams"), uses("evaluation")), ([0, 1, 0], [0, 1, 0]));
    // Times and hosts are not compared.
    let told = |record: Record| serde_json::to_string(&Record { environment: BTreeMap::new(), ..record }).unwrap();
    assert_eq!(told(found), told(record(&lab(Cache::none()))));

    // What the killed one left is no entry; it is collected when it is certain that nobody works on it.
    let kept = Cache::at(&cache, 1 << 30);
    assert!(kept.entries().unwrap().iter().all(|kept| !kept.name.starts_with('.')));
    kept.collect(&Collect::default()).unwrap();
    let [left] = &unfinished()[..] else { panic!("{:?}", unfinished()) };
    File::open(left).unwrap().set_modified(SystemTime::now() - Duration::from_secs(2 * 86_400)).unwrap();
    let gone = kept.collect(&Collect::default()).unwrap();
    assert!(gone.len() == 1 && gone[0].stage == "unfinished" && unfinished().is_empty(), "{gone:?}");
}

fn interrupt_gradients() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    random::write(&path, &random::llama(), DType::F32, u64::MAX, 9);
    let windows = Windows { name: "random".into(), seqlen: 8, ids: vec![random::tokens(8, 128, 0)] };
    interrupt();
    let error = gradients(&random::open(&path), &windows, Accumulate::Sum, Progress::Hidden).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
}

fn interrupted_gradients() {
    assert_succeeds(&mut process("interrupt gradients", ""));
}

fn interrupt_a_transfer() {
    let dir = tempfile::tempdir().unwrap();
    let values = vec![1.0; 300_000];
    fs::write(dir.path().join("model-00001-of-00001.safetensors"), file_of(&[("a", &[300, 1000], &values)])).unwrap();
    let index = index_of(&[("a", "model-00001-of-00001.safetensors")]);
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    fs::write(dir.path().join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    let server = Server::serve_dir(dir.path());
    let hub = server.hub(Path::new("no/such/cache"));
    let long = Duration::from_secs(60);
    let retry = Retry { attempts: 9, delay: long, max_delay: long, ..hub.retry };
    let remote = Hub { retry, ..hub }.headers("owner/model", Progress::Hidden).unwrap();
    server.faults(vec![Fault::Stall(1000), Fault::Status(503)]);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let waits = [(); 2].map(|()| scope.spawn(|| remote.stream(0, 100..1_200_000, &mut |_| Ok(()))));
        std::thread::sleep(Duration::from_millis(300));
        interrupt();
        for wait in waits {
            assert!(matches!(wait.join().unwrap(), Err(Error::Interrupted)));
        }
    });
    assert_eq!(server.faults_left(), 0, "one stream stalled, one paused");
    assert!(start.elapsed() < Duration::from_secs(10));
}

fn interrupted_transfer() {
    assert_succeeds(&mut process("interrupt a transfer", ""));
}

fn train_a_tokenizer() {
    let stems = ["whale", "ship", "sea", "captain", "harpoon", "the", "of", "white", "and", "sail", "rope", "into"];
    let prose = |words: usize, sea: &str| {
        let words = (0..words).map(|i| stems[(i * i + i / 3) % stems.len()]);
        words.map(|word| if word == "sea" { sea } else { word }).collect::<Vec<_>>().join(" ")
    };
    let texts: Vec<String> = (1..60).map(|i| prose(40 * i, &format!("sea{}", i % 9))).collect();
    let tokenizer = Tokenizer::train_bpe(&texts, 300).unwrap();
    println!("{:?} {:?}", tokenizer.to_json().unwrap(), tokenizer.encode_documents(&texts).unwrap());
}

/// BPE training and batch encoding run in parallel; the thread count must not show.
fn tokenizer_on_threads() {
    let run = |threads: &str| {
        let output = process("train a tokenizer", "").env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success() && !output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert!(run("1") == run("2"));
}

fn run_a_wrong_kernel(name: &str) {
    let out = Buffer::<u32>::new(&[0; 64]);
    Kernel { name, grid: (1, 1), block: 64, shared: 0 }.run(0, &[out.arg()]);
}

/// As the emulation of CUDA's kernels (`tests/cuda_kernels.rs`) promises.
fn touching_what_is_not_its_own() {
    if !cuda::available() {
        return;
    }
    for name in ["wrong::beyond_shared", "wrong::beyond_buffer"] {
        let output = process("run a wrong kernel", name).output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{name}: {output:?}");
    }
}
