//! Expert pruning: what is planned, sliced, built and verified, for every family and any layout, through faults and kills.

mod common;
#[path = "common/moe.rs"]
mod moe;

use common::{assert_says, fingerprint, names};
use lacuna::checkpoint::{Checkpoint, MANIFEST, Manifest};
use lacuna::experts::{self, Keep, Layout, Ranking, Selection};
use lacuna::progress::Progress;
use moe::Moe;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const FAMILIES: [&str; 9] =
    ["gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe", "deepseek_v2", "deepseek_v3", "glm4_moe"];

fn selection(keep: Keep) -> Selection {
    Selection { keep, by: Map::from_iter([("choice".to_owned(), "list".into())]) }
}

fn build(base: &Checkpoint, keep: &Keep, shard: u64, out: &Path) -> lacuna::Result<lacuna::checkpoint::Copied> {
    let layout = Layout::find(base)?;
    experts::build(base, &layout, &selection(keep.clone()), shard, out, Progress::Hidden)
}

/// What a tensor of the output must hold, found by its name in the base with nothing but slicing of its bytes.
fn expected(base: &Checkpoint, keep: &BTreeMap<usize, Vec<usize>>, blocks: usize, name: &str) -> Vec<u8> {
    let parts: Vec<&str> = name.split('.').collect();
    let Some(at) = parts.iter().position(|part| *part == "layers") else { return base.read(name).unwrap() };
    let layer = parts[at + 1].parse::<usize>().unwrap() + if parts[0] == "mtp" { blocks } else { 0 };
    let Some(kept) = keep.get(&layer) else { return base.read(name).unwrap() };
    if let Some(expert) = parts.iter().position(|part| *part == "experts")
        && let Ok(number) = parts[expert + 1].parse::<usize>()
    {
        let mut parts = parts.clone();
        let original = kept[number].to_string();
        parts[expert + 1] = &original;
        return base.read(&parts.join(".")).unwrap();
    }
    let bytes = base.read(name).unwrap();
    let per_expert = [".experts.", ".gate.", ".router."].iter().any(|part| name.contains(part));
    if !per_expert {
        return bytes;
    }
    let slice = bytes.len() / base.get(name).unwrap().shape[0];
    kept.iter().flat_map(|expert| bytes[expert * slice..(expert + 1) * slice].to_vec()).collect()
}

fn lists(keep: &Keep) -> BTreeMap<usize, Vec<usize>> {
    keep.layers().map(|(layer, list)| (layer, list.to_vec())).collect()
}

#[test]
fn every_family_is_pruned_and_verified() {
    for model_type in FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        let (base, out) = (dir.path().join("base"), dir.path().join("out"));
        let moe = Moe::small(model_type);
        let base = moe.write(&base, 3, 1);
        let before = fingerprint(base.dir());
        let layout = Layout::find(&base).unwrap();
        let mixtures = moe.blocks - moe.dense_blocks() + usize::from(model_type == "qwen3_next");
        assert_eq!((layout.layers.len(), layout.experts, layout.top_k), (mixtures, 8, 2), "{model_type}");

        let keep = Ranking::random(&layout, 3).keep(&layout, 4).unwrap();
        let copied = build(&base, &keep, 8 << 10, &out).unwrap();
        let pruned = Checkpoint::open(&out).unwrap();
        assert!(pruned.shards().len() > 2, "{model_type}");
        assert_eq!(copied.written, pruned.bytes());
        assert_eq!(fingerprint(base.dir()), before, "the base is not touched");

        let lists = lists(&keep);
        for info in pruned.tensors() {
            let bytes = pruned.read(&info.name).unwrap();
            assert_eq!(bytes, expected(&base, &lists, moe.blocks, &info.name), "{model_type} {}", info.name);
            assert_eq!(info.range.start % (info.dtype.bitsize() as u64 / 8), 0, "{} is aligned", info.name);
        }
        // The number of tensors that no name of the output stands for.
        let dropped = if model_type == "gpt_oss" { 0 } else { mixtures * 4 * 3 };
        assert_eq!(pruned.tensors().count(), base.tensors().count() - dropped, "{model_type}");
        let key = layout.family.experts_key;
        let mut config = base.config().unwrap();
        assert_eq!(config.insert(key.into(), 4.into()), Some(8.into()));
        assert_eq!(pruned.config().unwrap(), config);
        assert_eq!(std::fs::read(out.join("tokenizer.json")).unwrap(), b"{\"a\": 1}");

        let found = experts::verify(&base, &out, Progress::Hidden).unwrap();
        assert_eq!((found.mismatch_count, found.tensors), (0, pruned.tensors().count()), "{model_type}: {found:?}");
        assert_eq!(found.bytes, pruned.bytes());

        let slices = dir.path().join("slices");
        let only = keep.only(&[moe.dense_blocks(), moe.blocks - 1]).unwrap();
        experts::slice(&base, &layout, &selection(only), &slices, Progress::Hidden).unwrap();
        let files = [
            format!("layer{}_keep4.safetensors", moe.dense_blocks()),
            format!("layer{}_keep4.safetensors", moe.blocks - 1),
        ];
        assert_eq!(names(&slices), [&files[0], &files[1], MANIFEST], "{model_type}");
        assert_eq!(experts::verify(&base, &slices, Progress::Hidden).unwrap().mismatch_count, 0, "{model_type}");
        let file = std::fs::read(slices.join(&files[0])).unwrap();
        for (name, view) in safetensors::SafeTensors::deserialize(&file).unwrap().tensors() {
            assert_eq!(view.data(), expected(&base, &lists, moe.blocks, &name), "{model_type} {name}");
        }
    }
}

#[test]
fn what_goes_with_a_quantised_weight_may_differ_in_length() {
    let dir = tempfile::tempdir().unwrap();
    let moe = Moe::small("qwen3_moe");
    let mut tensors = moe.tensors();
    for (block, expert) in (0..3).flat_map(|block| (0..8).map(move |expert| (block, expert))) {
        let name = format!("model.layers.{block}.mlp.experts.{expert}.up_proj.weight.quant_state.bitsandbytes__nf4");
        tensors.push((name, "U8", 1, vec![70 + expert % 2]));
    }
    let base = moe::write(&dir.path().join("base"), &moe.config(), tensors, 2, 1);
    let layout = Layout::find(&base).unwrap();
    let keep = Ranking::random(&layout, 1).keep(&layout, 3).unwrap();
    build(&base, &keep, 1 << 30, &dir.path().join("out")).unwrap();
    assert_eq!(experts::verify(&base, &dir.path().join("out"), Progress::Hidden).unwrap().mismatch_count, 0);
}

#[test]
fn keeping_everything_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let base = Moe::small("qwen3_moe").write(&dir.path().join("base"), 2, 1);
    let layout = Layout::find(&base).unwrap();
    let all = Ranking::last(&layout).keep(&layout, 8).unwrap();
    build(&base, &all, 1 << 30, &dir.path().join("out")).unwrap();
    let out = Checkpoint::open(dir.path().join("out")).unwrap();
    assert_eq!(out.sha256().unwrap(), base.sha256().unwrap(), "same names, types, shapes and bytes");
    assert_eq!(out.config().unwrap(), base.config().unwrap());
}

#[test]
fn manifest_says_where_every_byte_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let base = Moe::small("gpt_oss").write(&dir.path().join("base"), 4, 5);
    let layout = Layout::find(&base).unwrap();
    let keep = Ranking::random(&layout, 1).keep(&layout, 3).unwrap();
    let out = dir.path().join("out");
    build(&base, &keep, 4 << 10, &out).unwrap();
    let manifest = Manifest::read(&out).unwrap().unwrap();
    assert_eq!(manifest.about["keep"], serde_json::to_value(&keep).unwrap());
    let pruned = Checkpoint::open(&out).unwrap();
    let mut tensors = 0;
    for file in &manifest.files {
        assert_eq!(std::fs::metadata(out.join(&file.name)).unwrap().len(), file.bytes);
        for tensor in &file.tensors {
            let bytes = pruned.read(&tensor.name).unwrap();
            assert_eq!(tensor.crc32, format!("{:08x}", crc32fast::hash(&bytes)));
            let mut copied = Vec::new();
            for (shard, start, end) in &tensor.source {
                let file = std::fs::read(base.dir().join(&manifest.shards[*shard])).unwrap();
                copied.extend_from_slice(&file[*start as usize..*end as usize]);
            }
            assert_eq!(copied, bytes, "{}", tensor.name);
            tensors += 1;
        }
    }
    assert_eq!(tensors, pruned.tensors().count());
}

#[test]
fn same_bytes_wherever_and_however_often_it_is_built() {
    let dir = tempfile::tempdir().unwrap();
    let base = Moe::small("olmoe").write(&dir.path().join("base"), 3, 2);
    let layout = Layout::find(&base).unwrap();
    let keep = Ranking::first(&layout).keep(&layout, 5).unwrap();
    let bytes = |out: &Path| -> BTreeMap<String, Vec<u8>> {
        fingerprint(out).into_iter().map(|(name, (bytes, _))| (name, bytes)).collect()
    };
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    build(&base, &keep, 8 << 10, &one).unwrap();
    build(&base, &keep, 8 << 10, &two).unwrap();
    assert_eq!(bytes(&one), bytes(&two));
    let again = build(&base, &keep, 8 << 10, &one).unwrap();
    assert_eq!((again.written, again.resumed), (0, Checkpoint::open(&one).unwrap().bytes()), "it is there already");
    let other = Ranking::last(&layout).keep(&layout, 5).unwrap();
    assert_says(build(&base, &other, 8 << 10, &one).unwrap_err(), &["one", "already exists"]);
    assert_eq!(names(dir.path()), ["base", "one", "two"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any layout of tensors over shards, any keep set, any shard size.
    #[test]
    fn any_layout_and_any_keep_verify(
        family in 0..FAMILIES.len(), seed in any::<u64>(), shards in 1usize..6, experts in 1usize..5, max_shard in 1u64..100_000,
        picks in prop::collection::vec(any::<u32>(), 4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let moe = Moe { experts: 4 * experts, ..Moe::small(FAMILIES[family]) };
        let base = moe.write(&dir.path().join("base"), shards, seed);
        let layout = Layout::find(&base).unwrap();
        let count = (2 + picks[0] as usize % (4 * experts - 1)).next_multiple_of(2).clamp(4, 4 * experts);
        let keep = Ranking::random(&layout, seed).keep(&layout, count).unwrap();
        let out = dir.path().join("out");
        build(&base, &keep, max_shard, &out).unwrap();
        let found = experts::verify(&base, &out, Progress::Hidden).unwrap();
        prop_assert_eq!(found.mismatch_count, 0, "{:?}", found);

        // And any byte that is changed is found, and its tensor named.
        let pruned = Checkpoint::open(&out).unwrap();
        let all: Vec<_> = pruned.tensors().cloned().collect();
        let hit = &all[picks[1] as usize % all.len()];
        let at = hit.range.start + u64::from(picks[2]) % hit.bytes();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&pruned.shards()[hit.shard]).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << (picks[3] % 8))], at).unwrap();
        let found = experts::verify(&base, &out, Progress::Hidden).unwrap();
        prop_assert_eq!(found.mismatch_count, 1);
        prop_assert_eq!(&found.mismatches[0].name, &hit.name);
        prop_assert!(found.mismatches[0].problem.contains("has changed since it was written"));
    }
}

#[test]
fn verification_tells_a_changed_base_from_a_changed_output() {
    let dir = tempfile::tempdir().unwrap();
    let base = Moe::small("mixtral").write(&dir.path().join("base"), 2, 1);
    let layout = Layout::find(&base).unwrap();
    let keep = Ranking::first(&layout).keep(&layout, 4).unwrap();
    let out = dir.path().join("out");
    build(&base, &keep, 1 << 30, &out).unwrap();
    let verify = || experts::verify(&Checkpoint::open(base.dir()).unwrap(), &out, Progress::Hidden).unwrap();

    let info = base.get("model.layers.1.block_sparse_moe.experts.2.w1.weight").unwrap();
    let path = &base.shards()[info.shard];
    let whole = std::fs::read(path).unwrap();
    let mut flipped = whole.clone();
    flipped[info.range.start as usize + 5] ^= 4;
    std::fs::write(path, &flipped).unwrap();
    let found = verify();
    assert_eq!(found.mismatch_count, 1);
    assert_eq!(found.mismatches[0].name, info.name);
    assert_says(&found.mismatches[0].problem, &["byte 5", "the base has changed since"]);
    std::fs::write(path, &whole).unwrap();

    // A config that promises other experts; a tokenizer that was changed, on either side, or is gone.
    let swap = |path: PathBuf, bytes: &[u8]| {
        let old = std::fs::read(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let found = verify();
        std::fs::write(path, old).unwrap();
        found.mismatches.into_iter().map(|mismatch| (mismatch.name, mismatch.problem)).collect::<Vec<_>>()
    };
    let found = swap(out.join("config.json"), &std::fs::read(base.dir().join("config.json")).unwrap());
    assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["config.json"; 2], "{found:?}");
    let found = swap(out.join("tokenizer.json"), b"{}");
    assert_eq!(found, [("tokenizer.json".to_owned(), "has changed since it was written".to_owned())]);
    let found = swap(base.dir().join("tokenizer.json"), b"{}");
    assert_eq!(found.len(), 1);
    assert_says(&found[0].1, &["the base's has changed since"]);
    std::fs::remove_file(out.join("tokenizer.json")).unwrap();
    assert_says(&verify().mismatches[0].problem, &["missing in the output"]);
    std::fs::write(out.join("tokenizer.json"), "{\"a\": 1}").unwrap();
    assert_eq!(verify().mismatch_count, 0);

    // A manifest that tells another story.
    type Forge = fn(&mut Manifest);
    let forges: [(Forge, &str); 9] = [
        (|m| m.files[0].bytes += 8, "model.safetensors"),
        (|m| m.files[0].tensors[0].shape = vec![1], "model.safetensors"),
        (
            |m| m.files.push(lacuna::checkpoint::ManifestFile { name: "ghost".into(), bytes: 0, tensors: Vec::new() }),
            "ghost",
        ),
        (|m| m.others.retain(|other| other.name != "config.json"), "config.json"),
        (|m| m.others[0].bytes += 1, "config.json"),
        (|m| m.others[1].name = "../base/tokenizer.json".into(), "tokenizer.json"),
        (|m| m.shards.reverse(), MANIFEST),
        (|m| m.files[0].tensors[7].source[0].1 += 2, "model."),
        (|m| m.files[0].tensors[3].crc32 = "00000000".into(), "model."),
    ];
    for (forge, name) in forges {
        let mut manifest = Manifest::read(&out).unwrap().unwrap();
        forge(&mut manifest);
        let found = swap(out.join(MANIFEST), &serde_json::to_vec(&manifest).unwrap());
        assert!(!found.is_empty() && found[0].0.starts_with(name), "{name}: {found:?}");
    }
    std::fs::remove_file(out.join(MANIFEST)).unwrap();
    assert_says(experts::verify(&base, &out, Progress::Hidden).unwrap_err(), &["manifest.json", "missing"]);
}

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
    let moe = Moe { hidden: 1024, width: 1024, blocks: 4, ..Moe::small("mixtral") };
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
        ("lost layer", layer, half, &["`model.layers.1.block_sparse_moe`", "3 blocks", "is a shard missing?"]),
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
        ("groups", grouped, &["--count", "3", "--by", "first"], &["groups", "keep 2 or 4"]),
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
    /// What the shell script mounts at `disk`; `None`, with a message, where this user may not, or a program is missing.
    fn mount(script: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("mkdir disk && {script}");
        let mounted = Command::new("sh").args(["-c", &script]).current_dir(dir.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        eprintln!("skipped: this user cannot run `{script}`");
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
    let moe = Moe { hidden: 256, width: 512, blocks: 2, ..Moe::small("mixtral") };
    let base = moe.write(&disk.join("base"), 2, 1);
    let layout = Layout::find(&base).unwrap();
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
    let layout = Layout::find(&base).unwrap();
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
