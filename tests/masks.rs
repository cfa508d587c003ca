//! Masks as artifacts: every format there and back, what damaged or foreign files give, what fits a model, and the commands.

mod common;
#[path = "common/random.rs"]
mod random;

use candle_core::DType;
use common::{assert_says, names};
use lacuna::allocate::Allocation;
use lacuna::checkpoint::{Checkpoint, CheckpointWriter};
use lacuna::mask::{Mask, MaskFormat, MaskMetadata, MaskSet, Pattern, Per, ViolationKind};
use lacuna::progress::Progress;
use lacuna::prune::{MasksConfig, Method, Propagate, PruneConfig, apply, apply_to, masks, prune_to, validate};
use lacuna::record::{ModelRecord, PruningRecord};
use lacuna::text::{Sampling, Windows};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FORMATS: [MaskFormat; 4] = [MaskFormat::Safetensors, MaskFormat::SafetensorsU8, MaskFormat::Npz, MaskFormat::Pt];
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn metadata(sparsity: f64) -> MaskMetadata {
    let model = ModelRecord {
        name: "tiny \"é\"".into(),
        revision: None,
        family: "llama".into(),
        parameters: 1 << 60,
        sha256: "aa".into(),
    };
    let pruning =
        PruningRecord { seed: u64::MAX, ..PruningRecord::new(Method::Wanda, Pattern::Unstructured, sparsity) };
    let mut metadata = MaskMetadata::new(model, pruning);
    metadata.targets.insert("model.layers.1.w.weight".into(), sparsity / 3.0);
    metadata
}

fn some(sparsity: f64) -> MaskSet {
    let mask = |cols: usize, n: usize| Mask::from_fn(3, cols, move |row, col| (row * 7 + col * n).is_multiple_of(3));
    let masks = vec![("model.layers.10.w.weight".into(), mask(9, 2)), ("model.layers.1.w.weight".into(), mask(65, 5))];
    MaskSet { metadata: Some(metadata(sparsity)), masks }
}

fn save(set: &MaskSet, dir: &Path, format: MaskFormat) -> PathBuf {
    let path = dir.join(format!("{format}.{}", format.extension()));
    let _ = std::fs::remove_file(&path);
    set.save_as(&path, format).unwrap();
    path
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_format_there_and_back(
        shapes in prop::collection::vec((1usize..6, 1usize..140), 1..4),
        seed in any::<u64>(),
        sparsity in 0.0f64..1.0,
        known in any::<bool>(),
    ) {
        let bit = |i: usize, row: usize, col: usize| {
            let hash = (seed ^ (i as u64) << 40 ^ (row as u64) << 20 ^ col as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash >> 63 == 1
        };
        let mask = |(i, &(rows, cols)): (usize, &(usize, usize))| {
            // Not in the order of their names.
            (format!("model.layers.{}.weight", 9 - i), Mask::from_fn(rows, cols, |row, col| bit(i, row, col)))
        };
        let masks = shapes.iter().enumerate().map(mask).collect();
        let set = MaskSet { metadata: known.then(|| metadata(sparsity)), masks };
        let dir = tempfile::tempdir().unwrap();
        for format in FORMATS {
            let path = save(&set, dir.path(), format);
            let back = MaskSet::load(&path).unwrap();
            prop_assert_eq!(&back, &set);
            prop_assert_eq!(back.sha256(), set.sha256());
            prop_assert_eq!(back.metadata.as_ref().map(|m| &m.environment), set.metadata.as_ref().map(|m| &m.environment));
            let bytes = std::fs::read(&path).unwrap();
            prop_assert!(std::fs::read(save(&back, dir.path(), format)).unwrap() == bytes);
        }
    }
}

#[test]
fn a_flipped_bit_is_found_and_a_cut_file_refused() {
    let dir = tempfile::tempdir().unwrap();
    let set = some(0.3);
    for format in FORMATS {
        let path = save(&set, dir.path(), format);
        let bytes = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            match MaskSet::load(&path) {
                // Dates, padding; or the name of the metadata itself, without which the file is a foreign one.
                Ok(back) => {
                    assert!(back.masks == set.masks && (back.metadata.is_none() || back == set), "{format}, byte {at}");
                }
                Err(error) => {
                    assert_says(&error, &[path.to_str().unwrap()]);
                    refused += 1;
                }
            }
        }
        assert!(refused > bytes.len() / 4, "{format}: {refused} of {} flips found", bytes.len());
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert_says(MaskSet::load(&path).unwrap_err(), &[path.to_str().unwrap()]);
        }
    }
    // The bits themselves, in the format that has no checksum of its own.
    let path = save(&set, dir.path(), MaskFormat::Safetensors);
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 9; // A whole byte of the last row.
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let says = ["safetensors.safetensors", "wrong checksum", &set.sha256(), "copy it again"];
    assert_says(MaskSet::load(&path).unwrap_err(), &says);
}

#[test]
fn the_checksum_covers_metadata_but_not_the_environment() {
    let (mut other, set) = (some(0.3), some(0.3));
    other.metadata.as_mut().unwrap().environment.insert("date".into(), "1999-01-01".into());
    assert_eq!((&other, other.sha256()), (&set, set.sha256()));
    assert_ne!(some(0.4).sha256(), set.sha256());
    other.masks.reverse();
    assert_eq!(other.sha256(), set.sha256());
    other.masks[0].1 = other.masks[0].1.not();
    assert_ne!(other.sha256(), set.sha256());
}

#[test]
fn names_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let set = some(0.3);
    for name in ["masks", "masks.bin", "masks.safetensors.gz"] {
        let path = dir.path().join(name);
        std::fs::write(&path, "x").unwrap();
        assert_says(MaskSet::load(&path).unwrap_err(), &[name, ".safetensors, .npz or .pt"]);
    }
    assert_says(set.save(dir.path().join("a.bin")).unwrap_err(), &["a.bin", ".npz"]);
    assert_says(set.save_as(dir.path().join("a.npz"), MaskFormat::Pt).unwrap_err(), &["a.npz", "end it with .pt"]);
    let path = dir.path().join("a.npz");
    set.save(&path).unwrap();
    assert_says(set.save(&path).unwrap_err(), &["a.npz", "already exists"]);
    let twice = MaskSet { metadata: None, masks: vec![set.masks[0].clone(), set.masks[0].clone()] };
    assert_says(twice.save(dir.path().join("b.pt")).unwrap_err(), &["layers.10", "two of that name"]);
    assert_eq!(names(dir.path()), ["a.npz", "masks", "masks.bin", "masks.safetensors.gz"]);
}

/// A safetensors file of that header and data.
fn safetensors(path: &Path, header: &str, data: &[u8]) {
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn foreign_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let entry = |dtype: &str, shape: &str, end: usize| {
        format!(r#""w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}"#)
    };
    safetensors(&path, &format!("{{{}}}", entry("BOOL", "[2,2]", 4)), &[0, 1, 1, 0]);
    let set = MaskSet::load(&path).unwrap();
    assert_eq!((&set.metadata, &set.masks), (&None, &vec![("w".to_owned(), Mask::from_fn(2, 2, |r, c| r != c))]));
    let nan = f32::NAN.to_le_bytes();
    let cases: [(String, &[u8], &str); 7] = [
        (entry("U8", "[2,2]", 4), &[0, 1, 2, 0], "holds 2 at row 1, column 0"),
        (entry("F32", "[1,1]", 4), &nan, "is of type F32"),
        (entry("U8", "[4]", 4), &[0; 4], "has shape [4]"),
        (entry("U8", "[0,4]", 0), &[], "has shape [0, 4]"),
        (entry("U8", "[2,2]", 3), &[0; 3], "0..3"),
        (entry("U8", "[2,2]", 4), &[0; 5], "last 1 bytes"),
        (format!("{0},{0}", entry("U8", "[2,2]", 4)), &[0; 4], "`w`"),
    ];
    for (entries, data, says) in cases {
        safetensors(&path, &format!("{{{entries}}}"), data);
        assert_says(MaskSet::load(&path).unwrap_err(), &["m.safetensors", says]);
    }
}

/// Writes the entries of an archive again, changed by `edit`.
fn edited(path: &Path, out: &Path, edit: impl Fn(&str, Vec<u8>) -> Vec<u8>) {
    let mut archive = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut writer = zip::ZipWriter::new(std::fs::File::create(out).unwrap());
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).unwrap();
        let (name, mut bytes) = (entry.name().unwrap().to_string(), Vec::new());
        entry.read_to_end(&mut bytes).unwrap();
        writer.start_file(name.as_str(), zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(&edit(&name, bytes)).unwrap();
    }
    writer.finish().unwrap();
}

/// `bytes` with the first `from` replaced by `to`, which is as long.
fn replaced(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    if let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    bytes
}

#[test]
fn edited_archives() {
    let dir = tempfile::tempdir().unwrap();
    let set = some(0.3);
    let [npz, pt] = [MaskFormat::Npz, MaskFormat::Pt].map(|format| save(&set, dir.path(), format));
    type Case<'a> = (&'a Path, &'a str, &'a [u8], &'a [u8], &'a str);
    let cases: [Case<'_>; 9] = [
        (&npz, "layers.10", &[0, 0, 1], &[0, 2, 1], "holds 2"),
        (&npz, "layers.10", b"|b1", b"|i1", "is of type |i1"),
        (&npz, "layers.10", b"(3, 9)", b"(3, 8)", "not those of [3, 8]"),
        (&npz, "layers.10", b"(3, 9)", b"(27,) ", "not those of [27]"),
        (&npz, "__metadata__", b"wanda", b"Wanda", "wrong checksum"),
        (&pt, "data/0", &[0, 0, 1], &[0, 2, 1], "holds 2"),
        (&pt, "data.pkl", b"BoolStorage", b"HalfStorage", "HalfStorage"),
        (&pt, "data.pkl", b"_rebuild_tensor_v2", b"_rebuild_parameter", "_rebuild_parameter"),
        (&pt, "lacuna.json", b"\"schema\":1", b"\"schema\":2", "has schema 2"),
    ];
    for (path, entry, from, to, says) in cases {
        let out = dir.path().join("edited").with_extension(path.extension().unwrap());
        edited(path, &out, |name, bytes| if name.contains(entry) { replaced(bytes, from, to) } else { bytes });
        let says = if says.contains("[27]") { "has shape [27]" } else { says };
        assert_says(MaskSet::load(&out).unwrap_err(), &["edited", says]);
    }
    // Nothing of the edit itself is refused, nor compression.
    for path in [&npz, &pt] {
        let out = dir.path().join("same").with_extension(path.extension().unwrap());
        edited(path, &out, |_, bytes| bytes);
        assert_eq!(MaskSet::load(&out).unwrap(), set);
    }
    // The second entry of the directory at the end points to the bytes of the first.
    let mut bytes = std::fs::read(&npz).unwrap();
    let entries: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(b"PK\x01\x02")).collect();
    bytes.copy_within(entries[0] + 42..entries[0] + 46, entries[1] + 42);
    std::fs::write(&npz, &bytes).unwrap();
    assert_says(MaskSet::load(&npz).unwrap_err(), &["two entries of the archive share their bytes"]);
    std::fs::write(&npz, "no archive").unwrap();
    assert_says(MaskSet::load(&npz).unwrap_err(), &["npz.npz", "zip archive"]);
}

#[test]
fn the_config_lists_the_linears_of_the_layers() {
    for fixture in
        ["tiny-mixtral", "tiny-olmoe", "tiny-qwen2-moe", "tiny-qwen3-moe", "tiny-gpt-oss", "../../data/tiny-llama"]
    {
        let model = random::open(&Path::new(ROOT).join("tests/data").join(fixture));
        let mut linears = Vec::new();
        for i in 0..model.layers() {
            let layer = model.layer(i).unwrap();
            linears.extend(layer.linears().iter().map(|l| (l.name.clone(), l.weight.dims2().unwrap())));
        }
        assert_eq!(model.config().linears(), linears, "{fixture}");
    }
}

#[test]
fn masks_are_applied_as_they_were_selected() {
    let dir = tempfile::tempdir().unwrap();
    let config = random::with(random::llama(), json!({"num_hidden_layers": 3, "attention_bias": true}));
    random::write(&dir.path().join("model"), &config, DType::BF16, 48 << 10, 1);
    let model = random::open(&dir.path().join("model"));
    let rows: Vec<_> = (0..4).map(|i| random::tokens(32, 128, i)).collect();
    std::fs::write(dir.path().join("tokens.json"), json!(rows).to_string()).unwrap();
    let windows = Windows::calibration(dir.path().join("tokens.json"), None, Sampling::new(4, 32)).unwrap();
    for (pattern, sparsities) in [(Pattern::Unstructured, vec![0.3, 0.57]), (Pattern::NofM { n: 2, m: 4 }, vec![0.5])] {
        let base = MasksConfig::new(&[Method::Wanda, Method::Magnitude], &sparsities);
        let config = MasksConfig { pattern, per: Some(Per::Row), seed: 3, ..base };
        let sets = masks(&model, Some(&windows), &config, Progress::Hidden).unwrap().into_vec();
        assert_eq!(sets.len(), 2 * sparsities.len());
        for set in &sets {
            assert_eq!(validate(&model, set).unwrap(), []);
            let about = set.metadata.as_ref().unwrap().pruning.clone().unwrap();
            let what = format!("{}-{}", about.method, about.sparsity);
            let [by_masks, by_config] =
                ["masks", "config"].map(|how| dir.path().join(format!("{what}-{pattern}-{how}")));
            let record = apply_to(&model, set, &by_masks, Progress::Hidden).unwrap();
            let base = PruneConfig::new(about.method.to_string().parse().unwrap(), about.sparsity);
            let config = PruneConfig { pattern, per: Per::Row, propagate: Propagate::Dense, seed: 3, ..base };
            let expected = prune_to(&model, Some(&windows), &config, &by_config, Progress::Hidden).unwrap();
            assert_eq!((&record.pruning, &record.tensors), (&expected.pruning, &expected.tensors));
            let weights = |dir: &Path| {
                let checkpoint = lacuna::checkpoint::Checkpoint::open(dir).unwrap();
                (checkpoint.sha256().unwrap(), checkpoint.shards().len())
            };
            assert_eq!(weights(&by_masks), weights(&by_config));
            let (memory, disk) = (apply(&model, set).unwrap(), random::open(&by_masks));
            let logits = |model: &lacuna::model::Model| model.forward(&rows[0]).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(logits(&memory), logits(&disk));
        }
        if let [low, high, ..] = &sets[..sparsities.len()] {
            assert!(low.is_nested_in(high).unwrap() && !high.is_nested_in(low).unwrap());
        }
    }
}

#[test]
fn allocations_and_rules_are_validated_by_their_own_targets() {
    let dir = tempfile::tempdir().unwrap();
    random::write(&dir.path().join("model"), &random::llama(), DType::BF16, 1 << 30, 1);
    let model = random::open(&dir.path().join("model"));
    let rows: Vec<_> = (0..4).map(|i| random::tokens(32, 128, i)).collect();
    std::fs::write(dir.path().join("tokens.json"), json!(rows).to_string()).unwrap();
    let windows = Windows::calibration(dir.path().join("tokens.json"), None, Sampling::new(4, 32)).unwrap();
    for allocation in ["uniform", "owl", "global"] {
        for per in [None, Some(Per::Alpha)].into_iter().filter(|per| per.is_none() || allocation == "uniform") {
            let config = MasksConfig {
                per,
                allocation: allocation.parse().unwrap(),
                rules: vec!["*.0.mlp.down_proj.weight=0.25".parse().unwrap(), "*.v_proj.weight=skip".parse().unwrap()],
                ..MasksConfig::new(&[Method::Wanda, Method::Magnitude], &[0.3, 0.6])
            };
            for (_, _, set) in masks(&model, Some(&windows), &config, Progress::Hidden).unwrap() {
                assert_eq!(validate(&model, &set).unwrap(), [], "{allocation}");
                assert_eq!(set.masks.len(), 2 * 7 - 2);
                let path = dir.path().join("set.safetensors");
                set.save(&path).unwrap();
                assert_eq!(MaskSet::load(&path).unwrap(), set);
                std::fs::remove_file(path).unwrap();
                // Of the skipped ones none is missing, of the others each.
                let mut less = set.clone();
                less.masks.pop();
                let found = validate(&model, &less).unwrap();
                assert!(found.iter().any(|violation| violation.kind == ViolationKind::Missing), "{found:?}");
                if per.is_none() {
                    let mut more = set.clone();
                    more.masks.iter_mut().for_each(|(_, mask)| *mask = mask.not());
                    assert!(!validate(&model, &more).unwrap().is_empty(), "{allocation}");
                }
            }
        }
    }
}

#[test]
fn allocations_reach_experts_by_every_metric() {
    let dir = tempfile::tempdir().unwrap();
    let model = random::open(&Path::new(ROOT).join("tests/data/tiny-mixtral"));
    let rows: Vec<_> = (0..4).map(|i| random::tokens(32, 60, i)).collect();
    std::fs::write(dir.path().join("tokens.json"), json!(rows).to_string()).unwrap();
    let windows = Windows::calibration(dir.path().join("tokens.json"), None, Sampling::new(4, 32)).unwrap();
    let methods = [Method::Magnitude, Method::Wanda, Method::Ria, Method::Gradient, Method::Taylor, Method::Random];
    let expert = |name: &str, n: usize| name.contains(&format!(".experts.{n}."));
    for allocation in ["uniform", "owl", "global"] {
        let config = MasksConfig {
            per: Some(Per::Layer),
            allocation: allocation.parse().unwrap(),
            rules: vec!["*.experts.1.*=0.75".parse().unwrap(), "*.experts.2.*=skip".parse().unwrap()],
            ..MasksConfig::new(&methods, &[0.5])
        };
        for (method, _, set) in masks(&model, Some(&windows), &config, Progress::Hidden).unwrap() {
            assert!(!set.masks.iter().any(|(name, _)| expert(name, 2)), "{allocation} {method}");
            let ruled = |(name, mask): &(String, Mask)| !expert(name, 1) || mask.sparsity() == 0.75;
            assert!(set.masks.iter().all(ruled), "{allocation} {method}");
            let others: Vec<&Mask> =
                set.masks.iter().filter(|(name, _)| !expert(name, 1)).map(|(_, mask)| mask).collect();
            let weights = |mask: &Mask| (mask.shape().0 * mask.shape().1) as u64;
            let gone: u64 = others.iter().map(|mask| mask.pruned()).sum();
            let all: u64 = others.iter().map(|mask| weights(mask)).sum();
            let levels: std::collections::BTreeSet<u64> =
                others.iter().map(|mask| mask.pruned() * 1000 / weights(mask)).collect();
            match allocation {
                "uniform" => assert_eq!(levels.len(), 1),
                "owl" => assert!(levels.len() > 1 && gone.abs_diff(all / 2) * 100 < all, "{method}: {gone} of {all}"),
                _ => assert!(levels.len() > 4 && gone == all / 2, "{method}: {gone} of {all}"),
            }
        }
    }
}

#[test]
fn experts_that_no_token_reached_go_by_magnitude_and_not_by_the_common_threshold() {
    let dir = tempfile::tempdir().unwrap();
    let model = random::open(&Path::new(ROOT).join("tests/data/tiny-mixtral"));
    std::fs::write(dir.path().join("tokens.json"), json!([[1, 2, 3, 4]]).to_string()).unwrap();
    let windows = Windows::calibration(dir.path().join("tokens.json"), None, Sampling::new(1, 4)).unwrap();
    let statistics = lacuna::calibrate::calibrate(&model, &windows, Progress::Hidden).unwrap();
    let silent = |name: &str| statistics.column_norms(name).unwrap().iter().all(|norm| *norm == 0.0);
    let made = |allocation: &str| {
        let config = MasksConfig {
            per: Some(Per::Layer),
            allocation: allocation.parse().unwrap(),
            ..MasksConfig::new(&[Method::Wanda, Method::Magnitude], &[0.5])
        };
        masks(&model, Some(&windows), &config, Progress::Hidden).unwrap().into_vec()
    };
    let (uniform, global) = (made("uniform"), made("global"));
    let (mut reached, mut unreached) = (0, 0);
    for (((name, wanda), (_, magnitude)), (_, global)) in
        uniform[0].masks.iter().zip(&uniform[1].masks).zip(&global[0].masks)
    {
        if silent(name) {
            unreached += 1;
            assert_eq!((wanda, global.sparsity()), (magnitude, 0.5), "{name}");
        } else {
            reached += 1;
            assert_ne!(wanda, magnitude, "{name}");
        }
    }
    assert!(reached > 16 && unreached > 3, "{reached} {unreached}");
    // Said, but no reason to fail.
    let out = dir.path().join("out");
    let tokens = dir.path().join("tokens.json");
    let output = Command::new(env!("CARGO_BIN_EXE_lacuna"))
        .args(["prune", "tests/data/tiny-mixtral", "--method", "wanda", "--sparsity", "0.5", "--windows", "1"])
        .args(["--seqlen", "4", "--calib"])
        .arg(&tokens)
        .arg("--out")
        .arg(&out)
        .current_dir(ROOT)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("that no calibration token reached"), "{text}");
}

#[test]
fn masks_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for seed in [1, 2] {
        random::write(&dir.path().join(format!("model{seed}")), &random::llama(), DType::BF16, 1 << 30, seed);
    }
    let model = random::open(&dir.path().join("model1"));
    let config = MasksConfig::new(&[Method::Magnitude], &[0.5]);
    let set = masks(&model, None, &config, Progress::Hidden).unwrap().into_vec().remove(0);
    let mut missing = set.clone();
    let (gone, _) = missing.masks.remove(3);
    let mut extra = set.clone();
    extra.masks.push(("model.norm.weight".into(), Mask::none(1, 64)));
    let mut dense = set.clone();
    dense.masks[5].1 = Mask::none(dense.masks[5].1.shape().0, dense.masks[5].1.shape().1);
    let other = random::open(&dir.path().join("model2"));
    let cases = [
        (&model, &missing, ViolationKind::Missing, gone.as_str()),
        (&model, &extra, ViolationKind::Extra, "model.norm.weight"),
        (&model, &dense, ViolationKind::Sparsity, "model.layers.0.mlp.up_proj.weight"),
        (&other, &set, ViolationKind::Model, "make masks from this model"),
    ];
    let out = dir.path().join("out");
    for (model, set, kind, says) in cases {
        let found = validate(model, set).unwrap();
        assert_eq!(found.iter().map(|violation| violation.kind).collect::<Vec<_>>(), [kind]);
        let error = apply_to(model, set, &out, Progress::Hidden).unwrap_err();
        assert_says(&error, &[model.name(), says, "lacuna validate"]);
        assert_says(apply(model, set).unwrap_err(), &[says]);
    }
    assert_eq!(names(dir.path()), ["model1", "model2"]);
    // Of a file without metadata only names and shapes can be checked.
    let foreign = MaskSet { metadata: None, ..dense };
    let record = apply_to(&other, &foreign, &out, Progress::Hidden).unwrap();
    assert_eq!((record.pruning.unwrap().method, record.tensors[5].zeros), ("masks".parse().unwrap(), 0));
}

/// Writes the tensors of `source` to `out`, those of `name` after `edit`.
fn rewritten(source: &Checkpoint, out: &Path, name: &str, edit: impl Fn(&mut [u8])) {
    let mut writer = CheckpointWriter::like(source, out, None).unwrap();
    for info in source.tensors() {
        let mut bytes = source.read(&info.name).unwrap();
        if info.name == name {
            edit(&mut bytes);
        }
        writer.write(&info.name, &bytes).unwrap();
    }
    writer.copy_others(source).unwrap();
    writer.finish().unwrap();
}

#[test]
fn weights_that_are_not_finite_are_refused_even_where_the_mask_has_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let source = random::write(&dir.path().join("model"), &random::llama(), DType::BF16, 1 << 30, 1);
    let config = MasksConfig::new(&[Method::Magnitude], &[0.5]);
    let set =
        masks(&random::open(&dir.path().join("model")), None, &config, Progress::Hidden).unwrap().into_vec().remove(0);
    // Without metadata, so that it is not refused as that of another model.
    let set = MaskSet { metadata: None, ..set };
    let (name, mask) = &set.masks[9];
    let (_, cols) = mask.shape();
    for pruned in [true, false] {
        let at = (3 * cols..).find(|at| mask.is_pruned(at / cols, at % cols) == pruned).unwrap();
        for (what, bits) in [("nan", 0x7fc0u16), ("infinity", 0xff80)] {
            let path = dir.path().join(format!("{what}-{pruned}"));
            rewritten(&source, &path, name, |bytes| bytes[2 * at..][..2].copy_from_slice(&bits.to_le_bytes()));
            let before = names(dir.path());
            let error = apply_to(&random::open(&path), &set, &dir.path().join("out"), Progress::Hidden).unwrap_err();
            assert_says(&error, &[name, &format!("[{}, {}] is NaN or infinite", at / cols, at % cols), "damaged"]);
            assert_eq!(names(dir.path()), before);
        }
    }
    // So is a tensor that no mask is about.
    let path = dir.path().join("norm");
    rewritten(&source, &path, "model.norm.weight", |bytes| bytes[..2].copy_from_slice(&0x7f80u16.to_le_bytes()));
    let error = apply_to(&random::open(&path), &set, &dir.path().join("out"), Progress::Hidden).unwrap_err();
    assert_says(&error, &["model.norm.weight", "[0] is NaN or infinite"]);
    assert!(!dir.path().join("out").exists());
}

#[test]
fn a_global_threshold_may_leave_nothing_of_a_linear() {
    let dir = tempfile::tempdir().unwrap();
    let small = "model.layers.1.mlp.gate_proj.weight";
    let source = random::write(&dir.path().join("source"), &random::llama(), DType::BF16, 1 << 30, 1);
    // An exponent less by 16: no weight of another linear is as small.
    let path = dir.path().join("model");
    rewritten(&source, &path, small, |bytes| bytes.chunks_mut(2).for_each(|bytes| bytes[1] -= 8));
    let model = random::open(&path);
    let make = |sparsities: &[f64]| {
        let allocation = Allocation::Global;
        let config = MasksConfig { allocation, ..MasksConfig::new(&[Method::Magnitude], sparsities) };
        masks(&model, None, &config, Progress::Hidden).unwrap().into_vec()
    };
    let sets = make(&[0.05, 0.4]);
    for (set, sparsity) in sets.iter().zip([0.05, 0.4]) {
        assert_eq!(validate(&model, set).unwrap(), []);
        let all: usize = set.masks.iter().map(|(_, mask)| mask.shape().0 * mask.shape().1).sum();
        assert_eq!(set.masks.iter().map(|(_, mask)| mask.pruned()).sum::<u64>(), (all as f64 * sparsity) as u64);
        let config = PruneConfig { propagate: Propagate::Dense, ..PruneConfig::new(Method::Magnitude, sparsity) };
        let config = config.with_allocation(Allocation::Global);
        let [by_masks, by_config] = ["masks", "config"].map(|how| dir.path().join(format!("{how}-{sparsity}")));
        let record = apply_to(&model, set, &by_masks, Progress::Hidden).unwrap();
        let expected = prune_to(&model, None, &config, &by_config, Progress::Hidden).unwrap();
        assert_eq!((&record.pruning, &record.tensors), (&expected.pruning, &expected.tensors));
        let sha256 = |dir: &Path| Checkpoint::open(dir).unwrap().sha256().unwrap();
        assert_eq!(sha256(&by_masks), sha256(&by_config));
    }
    let of_small = |set: &MaskSet| set.get(small).unwrap().sparsity();
    // A tenth of all weights are its: the lower threshold takes some of them and of no other, the higher all of them.
    assert!((0.4..0.6).contains(&of_small(&sets[0])), "{}", of_small(&sets[0]));
    assert!(sets[0].masks.iter().all(|(name, mask)| name == small || mask.pruned() == 0));
    assert_eq!(of_small(&sets[1]), 1.0);
    assert!(sets[1].masks.iter().all(|(name, mask)| name == small || (0.2..0.5).contains(&mask.sparsity())));
    let weights = Checkpoint::open(dir.path().join("masks-0.4")).unwrap().read(small).unwrap();
    assert!(weights.iter().all(|byte| *byte == 0));
}

fn lacuna(dir: &Path, args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.current_dir(dir).args(args.split(' ').map(|arg| arg.replace("DATA", &format!("{ROOT}/data"))));
    command
}

#[track_caller]
fn run(dir: &Path, args: &str) -> Output {
    lacuna(dir, args).output().unwrap()
}

#[track_caller]
fn succeeds(dir: &Path, args: &str) -> String {
    let output = run(dir, args);
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn fails(dir: &Path, args: &str, code: i32, says: &[&str]) {
    let output = run(dir, args);
    assert_eq!(output.status.code(), Some(code), "{args}");
    assert_says(
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        says,
    );
}

const MAKE: &str = "masks DATA/tiny-llama --method wanda,magnitude,random --sparsity 0.3..0.7:0.2 \
                    --calib DATA/corpus/valid.txt --windows 2 --seqlen 64 --seed 5";

#[test]
fn commands() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for threads in ["1", "2"] {
        let mut command = lacuna(dir, &format!("{MAKE} --out by{threads}"));
        let output = command.env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let files = names(&dir.join("by1"));
    assert_eq!(files.len(), 3 * 3 * 3 + 1);
    for file in ["wanda-0.30.safetensors", "magnitude-0.50.json", "random-0.70.png", "summary.json"] {
        assert!(files.iter().any(|name| name == file), "{file} is not in {files:?}");
    }
    assert_eq!(names(&dir.join("by2")), files);
    for file in &files {
        let [one, two] = ["by1", "by2"].map(|by| std::fs::read(dir.join(by).join(file)).unwrap());
        assert!(one == two, "{file} depends on the number of threads");
    }
    let summary: Value = serde_json::from_slice(&std::fs::read(dir.join("by1/summary.json")).unwrap()).unwrap();
    assert_eq!((summary["masks"].as_array().unwrap().len(), &summary["masks"][1]["target"]), (9, &json!(0.5)));
    assert_eq!(summary["masks"][1]["sparsity"], 0.5);
    for method in ["wanda", "magnitude", "random"] {
        let [low, middle, high] = ["0.30", "0.50", "0.70"]
            .map(|level| MaskSet::load(dir.join(format!("by1/{method}-{level}.safetensors"))).unwrap());
        assert!(low.is_nested_in(&middle).unwrap() && middle.is_nested_in(&high).unwrap(), "{method}");
    }
    fails(dir, &format!("{MAKE} --out by1"), 1, &["by1", "already exists"]);
    fails(dir, "masks DATA/tiny-llama --method wanda --sparsity 0.5 --out x", 1, &["needs --calib"]);
    fails(dir, "masks DATA/tiny-llama --method magnitude --sparsity 0.9..0.1 --out x", 2, &["0.9..0.1"]);
    fails(dir, "masks", 2, &["<MODEL>", "--out"]);

    let all = "by1/wanda-0.50.safetensors by1/random-0.70.safetensors";
    assert_says(succeeds(dir, &format!("validate DATA/tiny-llama {all}")), &["42 masks, sparsity 0.5", "valid"]);
    succeeds(dir, "masks convert by1/wanda-0.50.safetensors wanda.npz");
    succeeds(dir, "masks convert wanda.npz wanda.pt");
    succeeds(dir, "masks convert --format safetensors-u8 wanda.pt wanda.safetensors");
    assert_says(succeeds(dir, "masks diff wanda.safetensors by1/wanda-0.50.safetensors"), &["1.000000", "equal"]);
    fails(dir, "masks convert wanda.pt wanda.npz", 1, &["wanda.npz", "already exists"]);
    assert_says(succeeds(dir, "masks show wanda.pt"), &["wanda, unstructured per row", "valid.txt", "mlp.down_proj"]);
    let said: Value = serde_json::from_str(&succeeds(dir, "masks show --json wanda.npz")).unwrap();
    assert_eq!(said["statistics"]["all"]["pruned"], 1_179_648);

    // And with its complement: nothing. A composed set has no target.
    succeeds(dir, "masks compose not wanda.npz --out kept.npz");
    succeeds(dir, "masks compose and wanda.npz kept.npz --out nothing.npz");
    succeeds(dir, "masks compose or wanda.npz kept.npz --out all.npz");
    let sparsities = ["nothing", "all"].map(|name| MaskSet::load(dir.join(format!("{name}.npz"))).unwrap().sparsity());
    assert_eq!(sparsities, [0.0, 1.0]);
    assert_says(succeeds(dir, "masks show all.npz"), &["or(wanda 0.5, not(wanda 0.5))"]);

    let mut broken = MaskSet::load(dir.join("wanda.npz")).unwrap();
    let (name, _) = broken.masks.remove(7);
    broken.masks[0].1 = broken.masks[0].1.not().or(&broken.masks[0].1).unwrap();
    broken.save(dir.join("broken.npz")).unwrap();
    std::fs::write(dir.join("cut.pt"), &std::fs::read(dir.join("wanda.pt")).unwrap()[..5000]).unwrap();
    let says = [&name, "missing", "sparsity", "192 of 192 weights", "cut.pt", "cut off"];
    fails(dir, "validate DATA/tiny-llama wanda.npz broken.npz cut.pt", 1, &says);
    let output = run(dir, "validate DATA/tiny-llama broken.npz wanda.pt --json");
    let verdicts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&verdicts[0]["valid"], &verdicts[1]["valid"], output.status.code()),
        (&json!(false), &json!(true), Some(1))
    );
    assert_eq!(verdicts[0]["violations"][1]["tensor"], name.as_str());
    assert_eq!(verdicts[0]["violations"][1]["kind"], "missing");

    assert_says(succeeds(dir, "prune DATA/tiny-llama --masks wanda.pt --out pruned"), &["wanda", "0.5000"]);
    assert!(dir.join("pruned/lacuna.json").exists() && dir.join("pruned/tokenizer.json").exists());
    fails(dir, "prune DATA/tiny-llama --masks broken.npz --out y", 1, &["tiny-llama", "do not fit", "more"]);
    fails(dir, "prune DATA/tiny-llama --masks wanda.pt --sparsity 0.5 --out y", 2, &["--masks"]);
    fails(dir, "prune DATA/tiny-llama --out y", 2, &["--method"]);
    fails(dir, "validate pruned wanda.pt", 1, &["model", "make masks from this model"]);
    assert!(!dir.join("x").exists() && !dir.join("y").exists());
}

#[test]
#[ignore = "needs python3 with numpy, which .ci/run installs"]
fn numpy_reads_ours_and_we_read_theirs() {
    let dir = tempfile::tempdir().unwrap();
    let set = some(0.1 + 0.2);
    let [packed, u8, npz] = [MaskFormat::Safetensors, MaskFormat::SafetensorsU8, MaskFormat::Npz]
        .map(|format| save(&set, dir.path(), format));
    let theirs = dir.path().join("theirs.npz");
    let script = Path::new(ROOT).join("tests/data/check_masks_numpy.py");
    let python = std::env::var("LACUNA_PYTHON").unwrap_or_else(|_| "python3".into());
    let output = Command::new(python).arg(script).args([&packed, &u8, &npz, &theirs]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let back = MaskSet::load(&theirs).unwrap();
    assert_eq!((back.metadata, back.masks), (None, set.masks));
}

/// Files of PyTorch's own (`make_mask_fixtures.py`): its masks have ones where weights stay.
#[test]
fn masks_of_pytorch_and_its_older_files_are_read() {
    let data = Path::new(ROOT).join("tests/data/masks");
    let pruned = |rows, cols| Mask::from_fn(rows, cols, |row, col| (row * 7 + col * 3) % 5 == 0);
    let name = |linear: &str| format!("model.layers.0.self_attn.{linear}.weight");
    let expected = [(name("q_proj"), pruned(8, 6)), (name("k_proj"), pruned(4, 6))];
    for file in ["prune.pt", "prune-legacy.pt", "prune.safetensors", "legacy.pt"] {
        let mut read = MaskSet::load(data.join(file)).unwrap();
        assert_eq!(read.metadata, None);
        read.masks.sort_by_key(|(name, _)| std::cmp::Reverse(name.clone()));
        assert_eq!(read.masks, expected, "{file}");
    }
    // Cut anywhere, an old file is refused: there is no checksum, but every length is known.
    let whole = std::fs::read(data.join("legacy.pt")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let cut = dir.path().join("cut.pt");
    for length in 0..whole.len() {
        std::fs::write(&cut, &whole[..length]).unwrap();
        assert!(MaskSet::load(&cut).is_err(), "{length}");
    }
    // A mask has nothing between 0 and 1.
    let half = [0u8, 0, 0, 0x3f].repeat(4);
    safetensors(
        &dir.path().join("half.safetensors"),
        r#"{"a.weight_mask":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#,
        &half,
    );
    let error = MaskSet::load(dir.path().join("half.safetensors")).unwrap_err();
    assert_says(error, &["`a.weight_mask`", "element 0 is neither 0 nor 1"]);
}

#[test]
fn sets_of_masks_are_found_by_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    random::write(&model, &random::llama(), DType::BF16, 1 << 30, 1);
    let config = MasksConfig::new(&[Method::Magnitude, Method::Random], &[0.5, 0.25]);
    let sets = masks(&random::open(&model), None, &config, Progress::Hidden).unwrap();
    let asked: Vec<(Method, f64)> = sets.iter().map(|(method, sparsity, _)| (method, sparsity)).collect();
    let pairs = [Method::Magnitude, Method::Random].map(|method| [(method, 0.5), (method, 0.25)]).concat();
    assert_eq!((asked, sets.len(), sets.is_empty()), (pairs, 4, false));
    for (method, sparsity, set) in sets.iter() {
        assert!(std::ptr::eq(sets.get(method, sparsity).unwrap(), set));
        let pruning = set.metadata.as_ref().unwrap().pruning.as_ref().unwrap();
        assert_eq!((pruning.method.clone(), pruning.sparsity), (method.into(), sparsity));
    }
    for (method, sparsity) in [(Method::Magnitude, 0.4), (Method::Wanda, 0.5)] {
        let error = sets.get(method, sparsity).unwrap_err();
        assert_says(&error, &[&format!("{method} {sparsity}"), "there are magnitude 0.5, magnitude 0.25, random 0.5"]);
    }
    let by_pair = sets.get(Method::Random, 0.25).unwrap().clone();
    assert_eq!(sets.into_vec()[3], by_pair);
}
