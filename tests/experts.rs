//! Expert pruning: what is planned, sliced, built and verified, for every family and any layout, through faults and kills.

#[path = "experts/commands.rs"]
mod commands;
mod common;
#[path = "common/moe.rs"]
mod moe;

use common::{assert_says, fingerprint, names};
use lacuna::checkpoint::{Checkpoint, MANIFEST, Manifest};
use lacuna::experts::{self, ExpertLayout, Keep, Ranking, Selection};
use lacuna::model::Model;
use lacuna::progress::Progress;
use moe::Moe;
use proptest::prelude::*;
use serde_json::Map;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const FAMILIES: [&str; 9] =
    ["gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe", "deepseek_v2", "deepseek_v3", "glm4_moe"];

fn selection(keep: Keep) -> Selection {
    Selection { keep, by: Map::from_iter([("choice".to_owned(), "list".into())]) }
}

fn build(base: &Checkpoint, keep: &Keep, shard: u64, out: &Path) -> lacuna::Result<lacuna::checkpoint::Copied> {
    experts::prune_experts_to(base, &selection(keep.clone()), shard, out, Progress::Hidden)
}

/// The bytes that a tensor of the output must hold, found by its name in the base with nothing but slicing.
fn expected(base: &Checkpoint, keep: &BTreeMap<usize, Vec<usize>>, layers: usize, name: &str) -> Vec<u8> {
    let parts: Vec<&str> = name.split('.').collect();
    let Some(at) = parts.iter().position(|part| *part == "layers") else { return base.read(name).unwrap() };
    let layer = parts[at + 1].parse::<usize>().unwrap() + if parts[0] == "mtp" { layers } else { 0 };
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

#[test]
fn experts_are_not_taken_from_a_model_that_has_others_or_none() {
    let root = env!("CARGO_MANIFEST_DIR");
    let model = |name: &str| Model::load(format!("{root}/{name}")).unwrap();
    let mixtral = model("tests/data/tiny-mixtral");
    let keep = |experts: usize, list: &[usize], layers: std::ops::Range<usize>| {
        let dir = tempfile::tempdir().unwrap();
        let layout =
            ExpertLayout::find(&Moe { experts, layers: 5, ..Moe::small("mixtral") }.write(dir.path(), 1, 1)).unwrap();
        Keep::new(&layout, layers.map(|layer| (layer, list.to_vec())).collect()).unwrap()
    };
    for (keep, says) in [
        (keep(16, &[0, 12], 0..4), "names expert 12; there are 8"),
        (keep(8, &[0, 1], 0..1), "has no list"),
        (keep(8, &[0, 1], 0..5), "layer 4"),
    ] {
        let error = experts::prune_experts(&mixtral, &keep).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    let error = experts::prune_experts(&model("data/tiny-llama"), &keep(8, &[0, 1], 0..2)).unwrap_err();
    assert_says(error, &["tiny-llama", "no mixtures"]);
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
        let layout = ExpertLayout::find(&base).unwrap();
        let mixtures = moe.layers - moe.dense_layers() + usize::from(model_type == "qwen3_next");
        assert_eq!((layout.mixtures.len(), layout.experts, layout.top_k), (mixtures, 8, 2), "{model_type}");

        let keep = Ranking::random(&layout, 3).keep(&layout, 4).unwrap();
        let copied = build(&base, &keep, 8 << 10, &out).unwrap();
        let pruned = Checkpoint::open(&out).unwrap();
        assert!(pruned.shards().len() > 2, "{model_type}");
        assert_eq!(copied.written, pruned.bytes());
        assert_eq!(fingerprint(base.dir()), before, "the base is not touched");

        let lists = lists(&keep);
        for info in pruned.tensors() {
            let bytes = pruned.read(&info.name).unwrap();
            assert_eq!(bytes, expected(&base, &lists, moe.layers, &info.name), "{model_type} {}", info.name);
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
        let only = keep.only(&[moe.dense_layers(), moe.layers - 1]).unwrap();
        experts::slice(&base, &layout, &selection(only), &slices, Progress::Hidden).unwrap();
        let files = [
            format!("layer{}_keep4.safetensors", moe.dense_layers()),
            format!("layer{}_keep4.safetensors", moe.layers - 1),
        ];
        assert_eq!(names(&slices), [&files[0], &files[1], MANIFEST], "{model_type}");
        assert_eq!(experts::verify(&base, &slices, Progress::Hidden).unwrap().mismatch_count, 0, "{model_type}");
        let file = std::fs::read(slices.join(&files[0])).unwrap();
        for (name, view) in safetensors::SafeTensors::deserialize(&file).unwrap().tensors() {
            assert_eq!(view.data(), expected(&base, &lists, moe.layers, &name), "{model_type} {name}");
        }
    }
}

#[test]
fn what_goes_with_a_quantised_weight_may_differ_in_length() {
    let dir = tempfile::tempdir().unwrap();
    let moe = Moe::small("qwen3_moe");
    let mut tensors = moe.tensors();
    for (layer, expert) in (0..3).flat_map(|layer| (0..8).map(move |expert| (layer, expert))) {
        let name = format!("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight.quant_state.bitsandbytes__nf4");
        tensors.push((name, "U8", 1, vec![70 + expert % 2]));
    }
    let base = moe::write(&dir.path().join("base"), &moe.config(), tensors, 2, 1);
    let layout = ExpertLayout::find(&base).unwrap();
    let keep = Ranking::random(&layout, 1).keep(&layout, 3).unwrap();
    build(&base, &keep, 1 << 30, &dir.path().join("out")).unwrap();
    assert_eq!(experts::verify(&base, &dir.path().join("out"), Progress::Hidden).unwrap().mismatch_count, 0);
}

#[test]
fn keeping_everything_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let base = Moe::small("qwen3_moe").write(&dir.path().join("base"), 2, 1);
    let layout = ExpertLayout::find(&base).unwrap();
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
    let layout = ExpertLayout::find(&base).unwrap();
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
    let layout = ExpertLayout::find(&base).unwrap();
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
        let layout = ExpertLayout::find(&base).unwrap();
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
    let layout = ExpertLayout::find(&base).unwrap();
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
