//! The commands, from plans to outputs: what they print, what faults and kills leave, and what is shared.

use crate::build;
use crate::common::skip::{skipped, skipped_without};
use crate::common::{assert_says, fingerprint, names};
use crate::moe::{self, Moe};
use lacuna::checkpoint::{Checkpoint, MANIFEST, Manifest};
use lacuna::experts::{self, ExpertLayout, Ranking};
use lacuna::progress::Progress;
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A command line, run in `dir`.
fn lacuna(dir: &Path, args: &[&str]) -> Output {
    command(dir, args).output().unwrap()
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.current_dir(dir).args(args).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn commands_plan_build_slice_and_verify() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Moe::small("qwen3_moe").write(&dir.join("base"), 3, 1);
    let json = |args: &[&str]| -> Value {
        let output = lacuna(dir, args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let planned = json(&["experts", "plan", "base", "--keep", "0.5", "--by", "last", "--out", "out", "--json"]);
    let built = json(&["experts", "build", "base", "--keep", "0.5", "--by", "last", "--out", "out", "--json"]);
    let size: u64 = names(&dir.join("out"))
        .iter()
        .filter(|name| name.ends_with("safetensors"))
        .map(|name| std::fs::metadata(dir.join("out").join(name)).unwrap().len())
        .sum();
    assert_eq!(planned["output_bytes"], size, "what was planned is what was written");
    assert_eq!(built["written_bytes"], Checkpoint::open(dir.join("out")).unwrap().bytes());
    assert_eq!(planned["read_bytes"], built["written_bytes"], "no byte is read that is dropped");
    assert_eq!((&planned["kept"], &planned["experts"], &planned["top_k"]), (&json!(4), &json!(8), &json!(2)));
    assert!(planned["estimate"]["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(json(&["experts", "verify", "base", "out", "--json"])["mismatch_count"], 0);
    let probe = json(&["experts", "plan", "base", "--keep", "0.5", "--layer", "1", "--probe", "--json"]);
    assert_eq!(probe["read_bytes"], (4 * 3 * 32 * 32 + 4 * 32) * 2);
    assert!(probe["seconds"]["total"].as_f64().unwrap() > 0.0 && probe["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    assert_eq!(names(dir), ["base", "out"], "a probe leaves nothing");

    let output = lacuna(dir, &["experts", "plan", "base", "--keep", "0.5", "--layer", "1", "--probe"]);
    assert_says(
        text(&output.stdout),
        &["| experts kept ", "| peak RSS ", "| whole model", "- layers have equally long ranges"],
    );
    json(&[
        "experts", "slice", "base", "--count", "2", "--by", "first", "--layers", "0,2", "--out", "slices", "--json",
    ]);
    assert_eq!(names(&dir.join("slices")), ["layer0_keep2.safetensors", "layer2_keep2.safetensors", MANIFEST]);
    let output = lacuna(dir, &["experts", "verify", "base", "slices"]);
    assert_says(text(&output.stdout), &["mismatch_count 0"]);

    std::fs::write(dir.join("keep.json"), "[[7, 0], [3, 1], [2, 4]]").unwrap();
    json(&["experts", "build", "base", "--keep-list", "keep.json", "--out", "listed", "--json"]);
    assert_eq!(Manifest::read(&dir.join("listed")).unwrap().unwrap().about["keep"]["0"], json!([0, 7]), "sorted");
}

/// The staging directory of `out` in `dir` as a kill leaves it: some pieces done, in `dir/.out.partial`.
fn half_built(dir: &Path, args: &[&str]) {
    let mut child = command(dir, args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let journal = dir.join(".out.partial/journal");
    while std::fs::metadata(&journal).map_or(0, |metadata| metadata.len()) < 24 {
        assert!(child.try_wait().unwrap().is_none(), "it has ended before it could be killed");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(dir.join(".out.partial/data").is_dir(), "it was killed too late");
}

#[test]
fn what_a_crash_left_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Half of the weights are zeros, which are not written.
    let moe = Moe { hidden: 1024, width: 1024, layers: 4, ..Moe::small("mixtral") };
    let base = moe.write(&dir.join("base"), 2, 1);
    for shard in base.shards() {
        let file = std::fs::OpenOptions::new().write(true).open(shard).unwrap();
        for info in base.tensors().filter(|info| &base.shards()[info.shard] == shard && info.name.contains("w1")) {
            file.write_all_at(&vec![0; info.bytes() as usize], info.range.start).unwrap();
        }
    }
    let build = |by: &'static str| ["experts", "build", "base", "--keep", "0.5", "--by", by, "--out", "out"];
    let verified = |what: &str| {
        let output = lacuna(dir, &build("last"));
        assert!(output.status.success(), "{what}: {}", text(&output.stderr));
        let found =
            experts::verify(&Checkpoint::open(base.dir()).unwrap(), &dir.join("out"), Progress::Hidden).unwrap();
        assert_eq!(found.mismatch_count, 0, "{what}: {:?}", found.mismatches[0]);
        assert_eq!(names(dir), ["base", "out"], "{what}");
        std::fs::remove_dir_all(dir.join("out")).unwrap();
    };
    let partial = dir.join(".out.partial");
    let weights = partial.join("data/model.safetensors");
    let garbage = || {
        let size = std::fs::metadata(&weights).unwrap().len();
        let file = std::fs::OpenOptions::new().write(true).open(&weights).unwrap();
        file.write_all_at(&vec![0xff; size as usize - 65_536], 65_536).unwrap();
    };

    half_built(dir, &build("last"));
    garbage();
    std::fs::write(partial.join("boot"), "another").unwrap();
    verified("bytes that never reached the disk");

    // The same, and killed again once it was found out.
    half_built(dir, &build("last"));
    garbage();
    std::fs::write(partial.join("boot"), "another").unwrap();
    let mut child = command(dir, &build("last")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while std::fs::read(partial.join("boot")).is_ok_and(|boot| boot == b"another") {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    verified("killed after the check");

    half_built(dir, &build("last"));
    garbage();
    std::fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(100_000).unwrap();
    verified("a file of another length");

    // And killed once it was made as long as it should be: the journal must not say that anything is in it.
    half_built(dir, &build("last"));
    std::fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(100_000).unwrap();
    let size = base.bytes();
    let mut child = command(dir, &build("last")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while std::fs::metadata(&weights).is_ok_and(|metadata| metadata.len() < size / 4) {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    verified("killed after the repair");

    half_built(dir, &build("first"));
    std::fs::write(partial.join("identity"), "").unwrap();
    verified("nobody's directory");

    half_built(dir, &build("last"));
    std::fs::remove_dir_all(partial.join("data")).unwrap();
    verified("a directory without data");

    half_built(dir, &build("last"));
    std::fs::write(partial.join("data/modeling_old.py"), "import os").unwrap();
    verified("a file that the base no longer has");
}

#[test]
fn an_output_is_done_only_while_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Moe::small("mixtral").write(&dir.join("base"), 3, 1);
    let build = ["experts", "build", "base", "--keep", "0.5", "--by", "first", "--out", "out"];
    let refused = |says: &str| {
        let output = lacuna(dir, &build);
        assert_eq!(output.status.code(), Some(1));
        assert_says(text(&output.stderr), &[says]);
    };
    assert!(lacuna(dir, &build).status.success());
    let config = dir.join("base/config.json");
    let old = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, old.replace("\"hidden_size\":32", "\"hidden_size\":33")).unwrap();
    refused("already exists, made with other arguments");
    std::fs::write(&config, old).unwrap();
    let tokenizer = dir.join("base/tokenizer.json");
    std::fs::write(&tokenizer, "{}").unwrap();
    refused("already exists, made with other arguments");
    std::fs::write(&tokenizer, "{\"a\": 1}").unwrap();
    let output = lacuna(dir, &build);
    assert_says(text(&output.stdout), &["were there already"]);
    // Killed after the rename, and before the rest was removed.
    let partial = dir.join(".out.partial");
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join("identity"), Manifest::read(&dir.join("out")).unwrap().unwrap().identity).unwrap();
    assert!(lacuna(dir, &build).status.success());
    assert_eq!(names(dir), ["base", "out"]);
    std::fs::remove_file(dir.join("out/model.safetensors")).unwrap();
    refused("already exists; remove it");
}

#[test]
fn bad_input_is_named_and_leaves_nothing() {
    type Damage = fn(&Path);
    let truncate: Damage = |dir| {
        let path = dir.join("base/model-00002-of-00003.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    };
    let lie: Damage = |dir| {
        let path = dir.join("base/model.safetensors.index.json");
        let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        index["weight_map"]["model.norm.weight"] = "model-00009-of-00003.safetensors".into();
        std::fs::write(&path, index.to_string()).unwrap();
    };
    let reshape: Damage = |dir| {
        let moe = Moe::small("mixtral");
        let mut tensors = moe.tensors();
        let router = tensors.iter_mut().find(|tensor| tensor.0.ends_with("1.block_sparse_moe.gate.weight")).unwrap();
        router.3 = vec![7, 32];
        moe::write(&dir.join("base"), &moe.config(), tensors, 3, 1);
    };
    let lose: Damage = |dir| {
        let moe = Moe::small("mixtral");
        let mut tensors = moe.tensors();
        tensors.retain(|tensor| !tensor.0.ends_with("2.block_sparse_moe.experts.5.w3.weight"));
        moe::write(&dir.join("base"), &moe.config(), tensors, 3, 1);
    };
    let stack: Damage = |dir| {
        let moe = Moe::small("gpt_oss");
        let mut tensors = moe.tensors();
        let bias = tensors.iter_mut().find(|tensor| tensor.0.ends_with("0.mlp.experts.down_proj_bias")).unwrap();
        bias.3[0] = 9;
        moe::write(&dir.join("base"), &moe.config(), tensors, 3, 1);
    };
    let odd: Damage = |dir| {
        let moe = Moe::small("mixtral");
        let mut tensors = moe.tensors();
        let expert =
            tensors.iter_mut().find(|tensor| tensor.0.ends_with("0.block_sparse_moe.experts.3.w2.weight")).unwrap();
        expert.3 = vec![16, 64];
        moe::write(&dir.join("base"), &moe.config(), tensors, 3, 1);
    };
    static WITHOUT: fn(&Path, &str) = |dir, part| {
        let moe = Moe::small("mixtral");
        let mut tensors = moe.tensors();
        tensors.retain(|tensor| !(tensor.0.contains(part) && tensor.0.contains("layers.1.")));
        moe::write(&dir.join("base"), &moe.config(), tensors, 3, 1);
    };
    let layer: Damage = |dir| WITHOUT(dir, "layers.1.");
    let linear: Damage = |dir| WITHOUT(dir, ".w3.");
    static CONFIG: fn(&Path, &str, Value) = |dir, key, value| {
        let moe = Moe::small("deepseek_v3");
        let mut config = moe.config();
        config[key] = value;
        moe::write(&dir.join("base"), &config, moe.tensors(), 3, 1);
    };
    // A shard is lost in which the weights were; what goes with them is not.
    let bias_only: Damage = |dir| {
        let moe = Moe::small("gpt_oss");
        let mut tensors = moe.tensors();
        tensors.retain(|tensor| !tensor.0.ends_with("1.mlp.experts.down_proj_blocks"));
        moe::write(&dir.join("base"), &moe.config(), tensors, 3, 1);
    };
    let correction_only: Damage = |dir| {
        let moe = Moe::small("glm4_moe");
        let mut tensors = moe.tensors();
        tensors.retain(|tensor| !tensor.0.ends_with("2.mlp.gate.weight"));
        moe::write(&dir.join("base"), &moe.config(), tensors, 3, 1);
    };
    let thirds: Damage = |dir| CONFIG(dir, "n_group", 3.into());
    let fraction: Damage = |dir| CONFIG(dir, "n_group", 8.5.into());
    let absurd: Damage = |dir| CONFIG(dir, "n_routed_experts", 100_000_000_000_000_000u64.into());
    let dense: Damage = |dir| std::fs::write(dir.join("base/config.json"), r#"{"model_type": "llama"}"#).unwrap();
    let uneven: Damage = |dir| std::fs::write(dir.join("keep.json"), "[[0, 1], [0, 1, 2], [0, 1]]").unwrap();
    let twice: Damage = |dir| std::fs::write(dir.join("keep.json"), "[[0, 1], [1, 1], [0, 1]]").unwrap();
    let nothing: Damage = |_| {};
    let exists: Damage = |dir| std::fs::create_dir(dir.join("out")).unwrap();
    let grouped: Damage = |dir| {
        Moe::small("deepseek_v3").write(&dir.join("base"), 3, 1);
    };
    let half = &["--keep", "0.5", "--by", "first"][..];
    let list = &["--keep-list", "keep.json"][..];
    let cases: [(&str, Damage, &[&str], &[&str]); 27] = [
        (
            "truncated shard",
            truncate,
            half,
            &["model-00002-of-00003.safetensors", "100 bytes are missing", "download it again"],
        ),
        ("lying index", lie, half, &["model-00009-of-00003.safetensors", "not there"]),
        (
            "router of another shape",
            reshape,
            half,
            &["`model.layers.1.block_sparse_moe.gate.weight`", "[7, 32]", "8 experts"],
        ),
        ("lost expert", lose, half, &["`model.layers.2.block_sparse_moe.experts.5.w3.weight`", "missing"]),
        ("stacked tensor of another shape", stack, half, &["`model.layers.0.mlp.experts.down_proj_bias`", "[9, 32]"]),
        (
            "expert of another shape",
            odd,
            half,
            &["`model.layers.0.block_sparse_moe.experts.3.w2.weight`", "[16, 64]", "other experts have"],
        ),
        ("lost layer", layer, half, &["`model.layers.1.block_sparse_moe`", "3 layers", "is a shard missing?"]),
        ("lost linear", linear, half, &["`model.layers.1.block_sparse_moe.experts.0.w3`", "missing"]),
        ("weights without their blocks", bias_only, half, &["`model.layers.1.mlp.experts.0.down_proj`", "missing"]),
        ("router without its weight", correction_only, half, &["`model.layers.2.mlp.gate`", "missing"]),
        ("groups that do not divide", thirds, half, &["config.json", "8 experts in 3 groups", "impossible"]),
        ("groups that are no number", fraction, half, &["config.json", "`n_group`", "whole number"]),
        (
            "absurd number of experts",
            absurd,
            half,
            &["config.json", "`n_routed_experts`", "more experts than any model"],
        ),
        (
            "scores that would be ignored",
            nothing,
            &["--keep", "0.5", "--by", "first", "--scores", "x"],
            &["--scores needs --by METRIC"],
        ),
        (
            "seed that would be ignored",
            nothing,
            &["--keep", "0.5", "--by", "first", "--seed", "1"],
            &["--seed needs --by random"],
        ),
        ("dense model", dense, half, &["config.json", "`llama`", "no mixture"]),
        ("unequal counts", uneven, list, &["layer 1", "3 experts", "one number for all layers"]),
        ("repeated expert", twice, list, &["layer 1", "expert 1 twice"]),
        ("no such list", nothing, list, &["keep.json", "No such file"]),
        ("too few for top-k", nothing, &["--count", "1", "--by", "first"], &["each token needs 2"]),
        ("fraction above one", nothing, &["--keep", "1.5", "--by", "first"], &["keep = 1.5", "at most 1"]),
        ("negative fraction", nothing, &["--keep", "-0.5", "--by", "first"], &["keep = -0.5", "above 0"]),
        ("NaN", nothing, &["--keep", "nan", "--by", "first"], &["keep = NaN"]),
        ("groups", grouped, &["--count", "3", "--by", "first"], &["groups", "keep 4"]),
        (
            "calibrated metric without scores",
            nothing,
            &["--keep", "0.5", "--by", "reap"],
            &["reap", "lacuna experts score"],
        ),
        ("no metric", nothing, &["--keep", "0.5"], &["which experts stay?"]),
        ("output exists", exists, half, &["out", "already exists"]),
    ];
    for (what, damage, args, says) in cases {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        Moe::small("mixtral").write(&dir.join("base"), 3, 1);
        damage(dir);
        let before = (names(dir), fingerprint(&dir.join("base")));
        let output = lacuna(dir, &[&["experts", "build", "base", "--out", "out"], args].concat());
        let error = text(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{what}: {:?} {error}", output.status);
        assert!(!error.contains("panicked"), "{what}: {error}");
        assert_says(format!("{what}: {error}"), says);
        assert!((names(dir), fingerprint(&dir.join("base"))) == before, "{what} left {:?}", names(dir));
    }
}

#[test]
fn another_output_in_progress_is_not_mixed_up() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    Moe::small("mixtral").write(&dir.join("base"), 3, 1);
    let partial = dir.join(".out.partial");
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join("identity"), "of another").unwrap();
    let build = ["experts", "build", "base", "--keep", "0.5", "--by", "first", "--out", "out"];
    assert_says(text(&lacuna(dir, &build).stderr), &[".out.partial", "unfinished output of other arguments", "remove"]);
    std::fs::remove_file(partial.join("identity")).unwrap();
    let lock = std::fs::File::create(partial.join("lock")).unwrap();
    lock.lock().unwrap();
    assert_says(text(&lacuna(dir, &build).stderr), &[".out.partial", "another process"]);
    drop(lock);
    assert!(lacuna(dir, &build).status.success());
    assert_eq!(names(dir), ["base", "out"]);
}

/// A file system of its own in `disk`, unmounted at the end.
struct Disk(tempfile::TempDir);

impl Disk {
    /// The file system that the shell script mounts at `disk`; `None`, and the test is skipped, where this user may not, or a
    /// program is missing.
    #[track_caller]
    fn mount(script: &str) -> Option<Self> {
        /// Of a shell that does not find a program.
        const NOT_FOUND: Option<i32> = Some(127);
        let dir = tempfile::tempdir().unwrap();
        let script = format!("mkdir disk && {script}");
        let output = Command::new("sh").args(["-c", &script]).current_dir(dir.path()).output().unwrap();
        let said = text(&output.stderr);
        match output.status.code() {
            Some(0) => return Some(Self(dir)),
            NOT_FOUND => skipped(format!("the programs of `{script}`: {said}")),
            _ => skipped_without(format!("the right to run `{script}`: {said}")),
        }
        None
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

#[test]
fn blocks_are_shared_where_the_file_system_can() {
    let made = Disk::mount("truncate -s 400M image && mkfs.xfs -q -m reflink=1 image && mount -o loop image disk");
    let Some(mounted) = made else { return };
    let disk = mounted.path();
    // Experts are whole blocks long, as in real models; what stands before them is not.
    let moe = Moe { hidden: 256, width: 512, layers: 2, ..Moe::small("mixtral") };
    let base = moe.write(&disk.join("base"), 2, 1);
    let layout = ExpertLayout::find(&base).unwrap();
    let keep = Ranking::random(&layout, 2).keep(&layout, 4).unwrap();
    let out = disk.join("out");
    let copied = build(&base, &keep, 1 << 30, &out).unwrap();
    assert!(copied.shared > copied.written / 3, "{} of {} bytes are shared", copied.shared, copied.written);
    assert_eq!(experts::verify(&base, &out, Progress::Hidden).unwrap().mismatch_count, 0);

    // What is shared is not the same file: a change of one leaves the other.
    let before = base.sha256().unwrap();
    let path = out.join("model.safetensors");
    let size = std::fs::metadata(&path).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&vec![0; size as usize / 2], size / 2).unwrap();
    assert_eq!(Checkpoint::open(base.dir()).unwrap().sha256().unwrap(), before);
}

#[test]
fn a_full_disk_is_named_and_nothing_is_lost() {
    let Some(mounted) = Disk::mount("mount -t tmpfs -o size=1m tmpfs disk") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (base, out) = (dir.path().join("base"), mounted.path().join("out"));
    let moe = Moe { hidden: 128, width: 128, ..Moe::small("mixtral") };
    let base = moe.write(&base, 2, 1);
    let layout = ExpertLayout::find(&base).unwrap();
    let keep = Ranking::first(&layout).keep(&layout, 2).unwrap();
    // All of it: known before anything is begun.
    let all = Ranking::first(&layout).keep(&layout, 8).unwrap();
    assert_says(build(&base, &all, 1 << 30, &out).unwrap_err(), &["disk/out", "disk is full", "are free"]);
    assert_eq!(names(&mounted.path()), [""; 0]);

    // The weights fit; the tokenizer, which comes after them, does not.
    std::fs::write(base.dir().join("vocab.txt"), vec![b'x'; 1 << 20]).unwrap();
    let error = build(&base, &keep, 1 << 30, &out).unwrap_err();
    assert_says(error, &["disk/out", "disk is full", "the same command goes on"]);
    assert_eq!(names(&mounted.path()), [".out.partial"], "nothing is under the final name");
    let grown = Command::new("mount").args(["-o", "remount,size=8m"]).arg(mounted.path()).status().unwrap();
    assert!(grown.success());
    let copied = build(&base, &keep, 1 << 30, &out).unwrap();
    assert_eq!((copied.written, copied.resumed), (0, Checkpoint::open(&out).unwrap().bytes()), "nothing is lost");
    assert_eq!(experts::verify(&base, &out, Progress::Hidden).unwrap().mismatch_count, 0);
    assert_eq!(names(&mounted.path()), ["out"]);
}
