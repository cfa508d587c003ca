//! Expert pruning that is killed at random instants, from a disk and from a hub, and over a link that fails.

mod common;
#[path = "common/moe.rs"]
mod moe;
#[path = "common/server.rs"]
mod server;

use common::names;
use lacuna::checkpoint::{Checkpoint, Rewrite, Source};
use lacuna::experts::{self, ExpertLayout, Ranking, Selection};
use lacuna::progress::Progress;
use moe::Moe;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Map;
use server::{Fault, Server};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const KILLS: usize = 50;

/// The most times that one output is killed. The loss by a kill does not depend on the size of the output, so on a machine
/// that is busy enough for every kill to hit the same output, the ratio would tell of the machine.
const KILLS_PER_OUTPUT: usize = 10;

/// A gpt-oss of some 190 MB, of which half stays.
fn large(dir: &Path) -> Checkpoint {
    let moe = Moe { layers: 6, experts: 16, hidden: 1024, width: 1024, ..Moe::small("gpt_oss") };
    moe.write(dir, 3, 9)
}

struct Runner<'a> {
    dir: &'a Path,
    /// `base`, or a hub id.
    model: &'a str,
    endpoint: String,
}

impl Runner<'_> {
    fn start(&self, out: &str) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command.current_dir(self.dir).args(["experts", "build", self.model, "--keep", "0.5", "--by", "random"]);
        command.args(["--out", out, "--max-shard-size", "40MB"]).stdin(Stdio::null()).stdout(Stdio::null());
        command.env("HF_ENDPOINT", &self.endpoint).env("HF_HUB_CACHE", self.dir.join("cache"));
        command.stderr(Stdio::piped()).spawn().unwrap()
    }

    fn finish(&self, out: &str) {
        let output = self.start(out).wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Bytes that the process has handed to write calls; it must not be running.
fn written(child: &Child) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
}

/// Bytes written by a process that is left to end; what the last reading misses is a manifest.
fn written_by_end(child: &mut Child) -> u64 {
    loop {
        let now = written(child);
        if child.try_wait().unwrap().is_some() {
            return now;
        }
    }
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: plain system call on a child that has not been waited for.
    unsafe { libc::kill(child.id() as i32, signal) };
}

/// Waits until a stopped process has stopped, or has ended.
fn stopped(child: &mut Child) -> bool {
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        match stat.rsplit(") ").next().unwrap().chars().next().unwrap() {
            'T' => return true,
            'Z' => return false,
            _ => std::thread::sleep(Duration::from_micros(200)),
        }
    }
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    common::fingerprint(dir).into_iter().map(|(name, (bytes, _))| (name, bytes)).collect()
}

/// Builds until `kills` runs were killed, a new output whenever one is complete. Every output is what an undisturbed run
/// makes, and little is written twice.
fn killed(runner: &Runner, kills: usize) {
    let started = Instant::now();
    runner.finish("undisturbed");
    let whole = started.elapsed();
    let expected = contents(&runner.dir.join("undisturbed"));
    let bytes: u64 = expected.values().map(|bytes| bytes.len() as u64).sum();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let (mut killed, mut killed_here, mut wrote, mut outputs) = (0, 0, 0, 0);
    let mut out = "out-0".to_owned();
    while killed < kills {
        let mut child = runner.start(&out);
        if killed_here == KILLS_PER_OUTPUT {
            wrote += written_by_end(&mut child);
            assert!(runner.dir.join(&out).exists(), "a run that is left alone gets to the end");
        } else {
            std::thread::sleep(whole.mul_f64(rng.random::<f64>() / 6.0));
            signal(&child, libc::SIGSTOP);
            let running = stopped(&mut child);
            wrote += written(&child);
            if running {
                signal(&child, libc::SIGKILL);
                killed += 1;
                killed_here += 1;
            }
            let status = child.wait().unwrap();
            assert!(!running || !status.success());
        }
        let done = runner.dir.join(&out).exists();
        if done {
            assert!(contents(&runner.dir.join(&out)) == expected, "{out} differs");
            // What a kill after the rename leaves goes with the next run.
            runner.finish(&out);
            std::fs::remove_dir_all(runner.dir.join(&out)).unwrap();
            outputs += 1;
            killed_here = 0;
            out = format!("out-{outputs}");
        }
    }
    wrote += written_by_end(&mut runner.start(&out));
    assert!(contents(&runner.dir.join(&out)) == expected, "{out} differs");
    assert!(names(runner.dir).iter().all(|name| !name.ends_with(".partial")), "{:?}", names(runner.dir));
    outputs += 1;
    let ratio = wrote as f64 / (outputs as u64 * bytes) as f64;
    eprintln!("{killed} kills, {outputs} outputs of {bytes} bytes, written {ratio:.3} times");
    assert!(ratio <= 1.1, "{ratio} times the bytes were written, with {killed} kills over {outputs} outputs");
}

#[test]
fn build_is_killed_at_any_instant() {
    let dir = tempfile::tempdir().unwrap();
    let base = large(&dir.path().join("base"));
    let before = base.sha256().unwrap();
    killed(&Runner { dir: dir.path(), model: "base", endpoint: String::new() }, KILLS);
    assert_eq!(Checkpoint::open(base.dir()).unwrap().sha256().unwrap(), before);
}

#[test]
fn an_interrupt_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    large(&dir.path().join("base"));
    let runner = Runner { dir: dir.path(), model: "base", endpoint: String::new() };
    let child = runner.start("out");
    let journal = dir.path().join(".out.partial/journal");
    while std::fs::metadata(&journal).map_or(0, |metadata| metadata.len()) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    signal(&child, libc::SIGINT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the same command goes on from there") && !said.contains("nothing half-written"), "{said}");
    assert_eq!(names(dir.path()), [".out.partial", "base"]);
    runner.finish("out");
    assert_eq!(names(dir.path()), ["base", "out"]);
}

#[test]
fn fetch_is_killed_at_any_instant() {
    let dir = tempfile::tempdir().unwrap();
    let base = large(&dir.path().join("base"));
    let server = Server::serve_dir(base.dir()).with_storage();
    let runner = Runner { dir: dir.path(), model: "owner/model", endpoint: server.endpoint.clone() };
    killed(&runner, KILLS);
}

#[test]
fn fetch_takes_what_stays_and_little_else() {
    for (family, keep) in [("gpt_oss", 8), ("qwen3_moe", 8), ("mixtral", 3)] {
        let dir = tempfile::tempdir().unwrap();
        let moe = Moe { layers: 3, experts: 16, hidden: 256, width: 256, ..Moe::small(family) };
        let base = moe.write(&dir.path().join("base"), 4, 3);
        let server = Server::serve_dir(base.dir());
        let remote = server.hub(&dir.path().join("cache")).headers("owner/model", Progress::Hidden).unwrap();
        assert_eq!(remote.index(), base.index());
        let headers = server.sent_of(".safetensors");
        let layout = ExpertLayout::find(&remote).unwrap();
        let keep = Ranking::random(&layout, 1).keep(&layout, keep).unwrap();
        let selection = Selection { keep: keep.clone(), by: Map::new() };
        let planned: Rewrite = experts::plan_model(&remote, &layout, &keep, 1 << 20).unwrap();
        let (local, fetched) = (dir.path().join("local"), dir.path().join("fetched"));
        experts::prune_experts_to(&base, &selection, 1 << 20, &local, Progress::Hidden).unwrap();
        experts::prune_experts_to(&remote, &selection, 1 << 20, &fetched, Progress::Hidden).unwrap();
        let received = server.sent_of(".safetensors") - headers;
        assert_eq!(received, planned.read_bytes(&remote), "{family}: what was planned is what was received");
        let kept = planned.data_bytes();
        assert!(received as f64 <= 1.01 * kept as f64, "{family}: {received} bytes for {kept}");
        let weights =
            |out: &Path| -> Vec<_> { contents(out).into_iter().filter(|(name, _)| name != "manifest.json").collect() };
        assert!(weights(&local) == weights(&fetched), "{family}: a fetch makes what a build makes");
        assert_eq!(experts::verify(&remote, &fetched, Progress::Hidden).unwrap().mismatch_count, 0);
    }
}

#[test]
fn a_failing_link_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let base = Moe { hidden: 256, width: 256, ..Moe::small("mixtral") }.write(&dir.path().join("base"), 3, 3);
    let server = Server::serve_dir(base.dir()).with_storage();
    let remote = server.hub(&dir.path().join("cache")).headers("owner/model", Progress::Hidden).unwrap();
    let layout = ExpertLayout::find(&remote).unwrap();
    let keep = Ranking::last(&layout).keep(&layout, 4).unwrap();
    let selection = Selection { keep, by: Map::new() };
    let build = |source: &dyn Source, out: &str| {
        experts::prune_experts_to(source, &selection, 1 << 20, &dir.path().join(out), Progress::Hidden)
    };
    build(&base, "local").unwrap();
    let slow = Fault::Trickle(4096, Duration::from_millis(1));
    let passing = [Fault::Cut(1000), Fault::Status(500), Fault::Status(503), Fault::Busy(1), Fault::Short(10), slow];
    server.faults(passing.into_iter().flat_map(|fault| [fault, Fault::Nothing]).collect());
    build(&remote, "fetched").unwrap();
    assert_eq!(server.faults_left(), 0, "every fault was met");
    let local = Checkpoint::open(dir.path().join("local")).unwrap().sha256().unwrap();
    assert_eq!(Checkpoint::open(dir.path().join("fetched")).unwrap().sha256().unwrap(), local);

    // What cannot be right is an error; what had come until then is not asked for again.
    for (number, fault) in [Fault::LyingRange, Fault::Surplus(7), Fault::Whole].into_iter().enumerate() {
        let out = format!("lied-{number}");
        server.faults([[Fault::Nothing; 5].as_slice(), &[fault]].concat());
        let error = build(&remote, &out).unwrap_err().to_string();
        assert!(error.contains("owner/model") && error.contains(".safetensors"), "{fault:?}: {error}");
        assert!(!dir.path().join(&out).exists());
        let copied = build(&remote, &out).unwrap();
        assert!(copied.resumed > 0, "{fault:?}");
        assert_eq!(Checkpoint::open(dir.path().join(&out)).unwrap().sha256().unwrap(), local);
    }
}
