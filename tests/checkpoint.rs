//! Reading and writing checkpoints: round trips, damaged files, and output that is there whole or not at all.

mod common;

use candle_core::{DType, Device, Tensor};
use common::skip::skipped_without;
use common::{assert_says, file_of, fingerprint, index_of, names, safetensors, two_shards};
use lacuna::checkpoint::{Checkpoint, CheckpointWriter, plan_shards};
use proptest::prelude::*;
use safetensors::Dtype;
use std::path::Path;

fn single(dir: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
}

/// Opens a directory with this one file and returns the error.
#[track_caller]
fn refused(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    single(dir.path(), bytes);
    let before = fingerprint(dir.path());
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert_eq!(fingerprint(dir.path()), before);
    assert_says(&error, &["model.safetensors"]);
    error
}

fn entry(name: &str, begin: usize, end: usize) -> String {
    format!(r#""{name}":{{"dtype":"F32","shape":[{}],"data_offsets":[{begin},{end}]}}"#, (end - begin) / 4)
}

#[test]
fn reads_shards_through_their_index() {
    let dir = tempfile::tempdir().unwrap();
    two_shards(dir.path());
    let before = fingerprint(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.tensors().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!((checkpoint.parameters(), checkpoint.bytes(), checkpoint.shards().len()), (11, 44, 2));
    assert_eq!((checkpoint.get("c").unwrap().shard, checkpoint.get("c").unwrap().shape.as_slice()), (1, &[1][..]));
    assert_eq!(checkpoint.read("c").unwrap(), 9f32.to_le_bytes());
    let a = checkpoint.load("a", DType::F32, &Device::Cpu).unwrap();
    assert_eq!(a.to_vec2::<f32>().unwrap(), [[1., 2., 3.], [4., 5., 6.]]);
    assert_eq!(checkpoint.config().unwrap()["model_type"], "llama");
    assert_says(checkpoint.get("d").unwrap_err(), &["`d`", "not in this checkpoint"]);
    assert!(!checkpoint.contains("d"));
    assert_eq!(fingerprint(dir.path()), before);
}

#[test]
fn the_hash_is_of_the_tensors_and_not_of_their_sharding() {
    let parent = tempfile::tempdir().unwrap();
    let (sharded, whole, other) = (parent.path().join("s"), parent.path().join("w"), parent.path().join("o"));
    two_shards(&sharded);
    let a: &[f32] = &[1., 2., 3., 4., 5., 6.];
    single(&whole, &file_of(&[("c", &[1], &[9.]), ("a", &[2, 3], a), ("b", &[4], &[0.5, -0.5, 0., 7.])]));
    single(&other, &file_of(&[("c", &[1], &[9.]), ("a", &[3, 2], a), ("b", &[4], &[0.5, -0.5, 0., 7.])]));
    let hash = |dir: &Path| Checkpoint::open(dir).unwrap().sha256().unwrap();
    assert_eq!(hash(&sharded), hash(&whole));
    assert_ne!(hash(&whole), hash(&other), "another shape is another model");
    assert_eq!(hash(&whole).len(), 64);
}

/// Each is a rule of the format.
#[test]
fn damaged_headers_are_refused() {
    assert_says(refused(b"1234567"), &["7 bytes are too few", "download it again"]);
    assert_says(
        refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        &["Git LFS pointer", "git lfs pull"],
    );
    assert_says(refused(&200_000_000u64.to_le_bytes()), &["200000000", "not safetensors"]);
    assert_says(refused(&[&1000u64.to_le_bytes()[..], b"{}"].concat()), &["truncated", "998 bytes are missing"]);
    assert_says(refused(&safetensors("[1]", b"")), &["does not begin with `{`"]);
    assert_says(refused(&safetensors("{\"a\": ", b"")), &["not valid JSON"]);
    assert_says(refused(&[&3u64.to_le_bytes()[..], b"{\xff}"].concat()), &["not UTF-8"]);
    assert_says(refused(&safetensors(r#"{"__metadata__":{"format":1}}"#, b"")), &["`__metadata__`", "strings"]);

    let twice = format!("{{{},{}}}", entry("a", 0, 8), entry("a", 8, 16));
    assert_says(refused(&safetensors(&twice, &[0; 16])), &["`a`", "this name twice"]);
    let overlapping = format!("{{{},{}}}", entry("a", 0, 8), entry("b", 4, 12));
    assert_says(refused(&safetensors(&overlapping, &[0; 12])), &["`b`", "overlap those of `a`"]);
    let hole = format!("{{{},{}}}", entry("a", 0, 8), entry("b", 12, 16));
    assert_says(refused(&safetensors(&hole, &[0; 16])), &["4 bytes between it and `a`"]);
    let first_hole = format!("{{{}}}", entry("a", 4, 8));
    assert_says(refused(&safetensors(&first_hole, &[0; 8])), &["4 bytes between it and `the header`"]);
    let trailing = format!("{{{}}}", entry("a", 0, 8));
    assert_says(refused(&safetensors(&trailing, &[0; 11])), &["last 3 bytes belong to no tensor"]);
    let outside = format!("{{{},{}}}", entry("a", 0, 8), entry("b", 8, 4096));
    assert_says(refused(&safetensors(&outside, &[0; 96])), &["`b`", "beyond the end", "4000 bytes are missing"]);

    let with = |entry: &str| refused(&safetensors(&format!(r#"{{"a":{entry}}}"#), &[0; 8]));
    assert_says(with(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#), &["`a`", "is 12 bytes", "0..8"]);
    assert_says(with(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#), &["`a`", "8..0"]);
    assert_says(with(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,2]}"#), &["`a`", "not a possible size"]);
    assert_says(with(r#"{"dtype":"Q4","shape":[2],"data_offsets":[0,8]}"#), &["`a`", "Q4"]);
    assert_says(with(r#"{"dtype":"F32","data_offsets":[0,8]}"#), &["`a`", "shape"]);
    assert_says(with(r#"{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}"#), &["`a`", "duplicate field"]);
    assert_says(refused(&safetensors(r#"{"a":{"dtype":"F32","#, b"")), &["not valid JSON"]);
    assert_says(refused(&safetensors(r#"{} {}"#, b"")), &["not valid JSON"]);
    assert_says(with(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#), &["`a`", "-2"]);
    let huge = u64::MAX / 2;
    assert_says(
        with(&format!(r#"{{"dtype":"F32","shape":[{huge},{huge}],"data_offsets":[0,8]}}"#)),
        &["not a possible size"],
    );
    let last = u64::MAX;
    let bytes = last - 3;
    assert_says(
        with(&format!(r#"{{"dtype":"U8","shape":[3],"data_offsets":[{bytes},{last}]}}"#)),
        &["`a`", "out of range"],
    );
}

#[test]
fn a_truncated_shard_says_how_much_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    two_shards(dir.path());
    let shard = dir.path().join("model-00001-of-00002.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 18]).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    // `b`, 16 bytes, is gone, and 2 bytes of `a`.
    assert_says(error, &["model-00001-of-00002.safetensors", "`a`", "18 bytes are missing", "download it again"]);
}

#[test]
fn a_file_that_shrinks_while_open_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    two_shards(dir.path());
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let shard = std::fs::OpenOptions::new().write(true).open(&checkpoint.shards()[1]).unwrap();
    shard.set_len(10).unwrap();
    assert_says(checkpoint.read("c").unwrap_err(), &["`c`", "shorter"]);
    assert_says(checkpoint.load("c", DType::F32, &Device::Cpu).unwrap_err(), &["`c`", "shorter"]);
}

#[test]
fn index_and_shards_must_agree() {
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let refused = |index: &str, extra: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        two_shards(dir.path());
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        extra(dir.path());
        Checkpoint::open(dir.path()).unwrap_err().to_string()
    };
    let nothing: &dyn Fn(&Path) = &|_| {};
    let good = index_of(&[("a", shards[0]), ("b", shards[0]), ("c", shards[1])]);

    let error = refused(&good, &|dir| std::fs::remove_file(dir.join(shards[1])).unwrap());
    assert_says(error, &["index.json", shards[1], "not there", "1 of 2"]);
    // What is not asked for does no harm, and is told of.
    let noted = |index: &str, parts: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        two_shards(dir.path());
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.tensors().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_says(checkpoint.notes().join("\n"), parts);
        checkpoint
    };
    let lost = index_of(&[("a", shards[0]), ("b", shards[0]), ("c", shards[1]), ("d", shards[1])]);
    let lost = noted(&lost, &["lists 1 tensor that no shard has", "`d`", shards[1]]);
    assert_says(lost.read("d").unwrap_err(), &[shards[1], "`d`", "header lacks it"]);
    let unknown = index_of(&[("a", shards[0]), ("c", shards[1])]);
    noted(&unknown, &["does not list 1 tensor", "`b`", shards[0]]);
    let elsewhere = index_of(&[("a", shards[0]), ("b", shards[1]), ("c", shards[1])]);
    noted(&elsewhere, &["wrong about where 1 tensor", "`b`", "and not in model-00002"]);
    let error = refused(&good, &|dir| std::fs::write(dir.join(shards[1]), file_of(&[("a", &[1], &[9.])])).unwrap());
    assert_says(error, &[shards[1], "`a`", "also in", shards[0]]);
    let escape = index_of(&[("a", "../secret.safetensors")]);
    assert_says(refused(&escape, nothing), &["`a`", "no file name"]);
    let twice = format!(r#"{{"weight_map": {{"a": "{0}", "a": "{0}"}}}}"#, shards[0]);
    assert_says(refused(&twice, nothing), &["`a` twice"]);
    assert_says(refused("{", nothing), &["not a valid index"]);
    assert_says(refused("{}", nothing), &["weight_map"]);
    assert_says(refused(r#"{"weight_map": {"a": [3]}}"#, nothing), &["not a valid index", "`a`", "a string"]);
    assert_says(refused(r#"{"weight_map": {}}"#, nothing), &["no tensor"]);
}

#[test]
fn what_is_no_checkpoint_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| Checkpoint::open(path).unwrap_err().to_string();
    assert_says(open(&dir.path().join("nothing")), &["nothing", "No such file"]);
    assert_says(open(dir.path()), &["neither model.safetensors"]);
    std::fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    assert_says(open(dir.path()), &["save_pretrained"]);
    std::fs::write(dir.path().join("m.gguf"), "x").unwrap();
    assert_says(open(dir.path()), &["lacuna import"]);
    assert_says(open(&dir.path().join("m.gguf")), &["lacuna import"]);
    single(dir.path(), &file_of(&[("a", &[1], &[1.])]));
    assert_says(open(&dir.path().join("model.safetensors")), &["give the directory"]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_says(checkpoint.config().unwrap_err(), &["config.json", "missing"]);
    std::fs::write(dir.path().join("config.json"), "[]").unwrap();
    assert_says(checkpoint.config().unwrap_err(), &["config.json", "not a JSON object"]);
}

#[test]
fn every_floating_type_loads_as_every_other() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("m");
    let types =
        [(Dtype::F64, DType::F64), (Dtype::F32, DType::F32), (Dtype::F16, DType::F16), (Dtype::BF16, DType::BF16)];
    // Exact in all four; long enough for several pieces and an odd end.
    let values: Vec<f32> = (0..200_003).map(|i| (i % 257) as f32 / 4.0 - 32.0).collect();
    let source = Tensor::from_vec(values, 200_003, &Device::Cpu).unwrap();
    let plan = types.iter().map(|(file, _)| (file.to_string(), *file, vec![200_003])).collect();
    let mut writer = CheckpointWriter::create(&out, vec![plan]).unwrap();
    for (file, memory) in types {
        // From another type than the planned one, in turn.
        let from = if memory == DType::F32 { DType::F64 } else { DType::F32 };
        writer.write_tensor(&file.to_string(), &source.to_dtype(from).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(&out).unwrap();
    let expected = source.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    for (file, _) in types {
        for (_, memory) in types {
            let tensor = checkpoint.load(&file.to_string(), memory, &Device::Cpu).unwrap();
            assert_eq!(tensor.dtype(), memory);
            assert!(tensor.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap() == expected, "{file} as {memory:?}");
        }
    }
    assert_says(checkpoint.load("F32", DType::U8, &Device::Cpu).unwrap_err(), &["`F32`", "cannot load"]);
}

#[test]
fn a_view_is_written_in_its_own_order() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("m");
    let tensor = Tensor::arange(0f32, 12., &Device::Cpu).unwrap().reshape((3, 4)).unwrap();
    let plan = vec![("t".into(), Dtype::F32, vec![4, 3]), ("n".into(), Dtype::F32, vec![2, 4])];
    let mut writer = CheckpointWriter::create(&out, vec![plan]).unwrap();
    writer.write_tensor("t", &tensor.t().unwrap()).unwrap();
    writer.write_tensor("n", &tensor.narrow(0, 1, 2).unwrap()).unwrap();
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(&out).unwrap();
    let load = |name| checkpoint.load(name, DType::F32, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(load("t"), [[0., 4., 8.], [1., 5., 9.], [2., 6., 10.], [3., 7., 11.]]);
    assert_eq!(load("n"), [[4., 5., 6., 7.], [8., 9., 10., 11.]]);
}

#[test]
fn nan_and_infinity_are_found_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut values = vec![0.5f32; 100 * 1000];
    single(dir.path(), &file_of(&[("w", &[100, 1000], &values)]));
    let load = || Checkpoint::open(dir.path()).unwrap().load_finite("w", DType::F32, &Device::Cpu);
    assert!(load().is_ok());
    values[97_531] = f32::NAN;
    single(dir.path(), &file_of(&[("w", &[100, 1000], &values)]));
    assert_says(load().unwrap_err(), &["`w`", "[97, 531]", "NaN"]);
    values[97_531] = 1e6;
    single(dir.path(), &file_of(&[("w", &[100, 1000], &values)]));
    assert!(load().is_ok());
    let narrow = Checkpoint::open(dir.path()).unwrap().load_finite("w", DType::F16, &Device::Cpu);
    assert_says(narrow.unwrap_err(), &["[97, 531]", "as f16"]);
}

fn plan_of(name: &str, elements: usize) -> Vec<Vec<(String, Dtype, Vec<usize>)>> {
    vec![vec![(name.to_owned(), Dtype::F32, vec![elements])]]
}

#[test]
fn an_output_that_exists_is_refused_and_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("m");
    two_shards(&out);
    let before = fingerprint(&out);
    assert_says(CheckpointWriter::create(&out, plan_of("a", 1)).unwrap_err(), &["already exists", "another output"]);
    assert_eq!((fingerprint(&out), names(parent.path())), (before, vec!["m".to_owned()]));

    // Somebody else takes the name while we write.
    let out = parent.path().join("n");
    let mut writer = CheckpointWriter::create(&out, plan_of("a", 1)).unwrap();
    writer.write("a", &[0; 4]).unwrap();
    std::fs::write(&out, "theirs").unwrap();
    assert_says(writer.finish().unwrap_err(), &["has come to exist"]);
    assert_eq!(std::fs::read(&out).unwrap(), b"theirs");
    assert_eq!(names(parent.path()), ["m", "n"]);
}

/// Permissions do not bind root, so the parents here are ones that nobody can write to.
#[test]
fn an_output_that_cannot_be_written_is_an_error() {
    let parent = tempfile::tempdir().unwrap();
    std::fs::write(parent.path().join("file"), "x").unwrap();
    let create = |out: &str| CheckpointWriter::create(&parent.path().join(out), plan_of("a", 1)).unwrap_err();
    assert_says(create("file/m"), &["file", "create an output directory in"]);
    assert_says(create("missing/m"), &["missing", "create it before"]);
    assert_eq!(names(parent.path()), ["file"]);
    let proc = CheckpointWriter::create(Path::new("/proc/m"), plan_of("a", 1)).unwrap_err();
    assert_says(proc, &["/proc"]);
}

#[test]
fn an_unfinished_output_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("m");
    let mut writer = CheckpointWriter::create(&out, plan_of("a", 2)).unwrap();
    assert_says(writer.write("a", &[0; 4]).unwrap_err(), &["`a`", "4 bytes", "takes 8"]);
    assert_says(writer.write("b", &[0; 4]).unwrap_err(), &["`b`", "not planned"]);
    let wrong = Tensor::zeros((1, 2), DType::F32, &Device::Cpu).unwrap();
    assert_says(writer.write_tensor("a", &wrong).unwrap_err(), &["`a`", "[1, 2]", "[2]"]);
    assert_says(writer.add_file("../x", b"").unwrap_err(), &["../x", "plain name"]);
    assert!(writer.add_file("model.safetensors", b"").is_err());
    assert!(names(parent.path()).iter().all(|name| name.starts_with(".m.")), "{:?}", names(parent.path()));
    assert_says(writer.finish().unwrap_err(), &["`a`", "not written"]);
    assert_eq!(names(parent.path()), [""; 0]);
    drop(CheckpointWriter::create(&out, plan_of("a", 2)).unwrap());
    assert_eq!(names(parent.path()), [""; 0]);

    let mut writer = CheckpointWriter::create(&out, plan_of("a", 2)).unwrap();
    writer.write("a", &[0; 8]).unwrap();
    assert_says(writer.write("a", &[0; 8]).unwrap_err(), &["`a`", "already written"]);
    let twice = vec![plan_of("a", 1).remove(0), plan_of("a", 1).remove(0)];
    assert_says(CheckpointWriter::create(&out, twice).unwrap_err(), &["`a`"]);
    assert!(CheckpointWriter::create(&out, vec![]).is_err());
}

/// A file system of its own, unmounted at the end.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// `None`, and the test is skipped, where this user may not mount.
    #[track_caller]
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        skipped_without("the right to mount a tmpfs");
        None
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_an_error_that_leaves_nothing() {
    let Some(disk) = Tmpfs::new("1m") else { return };
    let out = disk.0.path().join("m");
    // Known before anything is written.
    let error = CheckpointWriter::create(&out, plan_of("a", 1 << 20)).unwrap_err();
    assert_says(error, &["disk is full", "4194304 bytes are needed", "free some space"]);
    assert_eq!(names(disk.0.path()), [""; 0]);

    // Filled by somebody else meanwhile.
    let mut writer = CheckpointWriter::create(&out, plan_of("a", 1 << 17)).unwrap();
    std::fs::write(disk.0.path().join("other"), vec![1u8; 700 << 10]).unwrap();
    let tensor = Tensor::ones(1 << 17, DType::F32, &Device::Cpu).unwrap();
    assert_says(writer.write_tensor("a", &tensor).unwrap_err(), &["disk is full", "free some space"]);
    assert_says(writer.write("a", &vec![1; 1 << 19]).unwrap_err(), &["disk is full"]);
    drop(writer);
    assert_eq!(names(disk.0.path()), ["other"]);
}

#[test]
fn like_keeps_the_layout_and_copies_what_is_no_weight() {
    let parent = tempfile::tempdir().unwrap();
    let (source, out) = (parent.path().join("s"), parent.path().join("o"));
    two_shards(&source);
    for other in ["lacuna.json", "vocab.txt", "pytorch_model.bin", ".hidden", "model.gguf"] {
        std::fs::write(source.join(other), other).unwrap();
    }
    std::fs::create_dir(source.join("folder")).unwrap();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let mut writer = CheckpointWriter::like(&checkpoint, &out, Some(DType::BF16)).unwrap();
    for name in ["c", "a", "b"] {
        writer.write_tensor(name, &checkpoint.load(name, DType::F32, &Device::Cpu).unwrap()).unwrap();
    }
    writer.add_file("config.json", b"{\"new\": true}").unwrap();
    writer.copy_others(&checkpoint).unwrap();
    writer.add_file("lacuna.json", b"{}").unwrap();
    writer.finish().unwrap();
    let expected = [
        "config.json",
        "lacuna.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "vocab.txt",
    ];
    assert_eq!(names(&out), expected);
    assert_eq!(std::fs::read(out.join("config.json")).unwrap(), b"{\"new\": true}");
    assert_eq!(std::fs::read(out.join("lacuna.json")).unwrap(), b"{}");
    let copy = Checkpoint::open(&out).unwrap();
    assert!(copy.tensors().all(|tensor| tensor.dtype == Dtype::BF16));
    assert_eq!(copy.get("c").unwrap().shard, 1);
    let b = copy.load("b", DType::F32, &Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(b, [0.5, -0.5, 0., 7.]);
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 22);
    assert_says(
        CheckpointWriter::like(&checkpoint, &parent.path().join("x"), Some(DType::U8)).unwrap_err(),
        &["dtype"],
    );
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&out), mode(&source.join("folder")), "an ordinary directory's permissions");
}

#[test]
fn shards_are_planned_by_size() {
    let plan = |bytes: &[usize]| -> Vec<Vec<usize>> {
        let tensors = bytes.iter().enumerate().map(|(i, &n)| (format!("t{i}"), Dtype::U8, vec![n])).collect();
        plan_shards(tensors, 10).iter().map(|shard| shard.iter().map(|(_, _, shape)| shape[0]).collect()).collect()
    };
    assert_eq!(plan(&[4, 6, 1, 20, 3, 3, 3, 3]), vec![vec![4, 6], vec![1], vec![20], vec![3, 3, 3], vec![3]]);
    assert_eq!(plan(&[]), Vec::<Vec<usize>>::new());
}

const TYPES: [Dtype; 9] =
    [Dtype::BOOL, Dtype::U8, Dtype::F8_E4M3, Dtype::I16, Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::I64, Dtype::F64];

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any set of tensors, in any shards, written in any order, comes back byte for byte; the reference reader
    /// (the safetensors crate) accepts every shard.
    #[test]
    fn tensors_round_trip(
        tensors in prop::collection::vec((0usize..4, 0usize..9, prop::collection::vec(0usize..5, 0..4), any::<u64>()), 1..12),
        reversed in any::<bool>(),
    ) {
        let parent = tempfile::tempdir().unwrap();
        let out = parent.path().join("m");
        let mut shards = vec![Vec::new(); 4];
        let mut bytes = Vec::new();
        for (i, (shard, dtype, shape, seed)) in tensors.into_iter().enumerate() {
            let (name, dtype) = (format!("layer.{i}.\"ü\\"), TYPES[dtype]);
            let length = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            bytes.push((name.clone(), (0..length).map(|j| (seed.rotate_left(j as u32) >> 7) as u8).collect::<Vec<u8>>()));
            shards[shard].push((name, dtype, shape));
        }
        shards.retain(|shard| !shard.is_empty());
        let planned = shards.clone();
        let mut writer = CheckpointWriter::create(&out, shards).unwrap();
        if reversed {
            bytes.reverse();
        }
        for (name, bytes) in &bytes {
            writer.write(name, bytes).unwrap();
        }
        writer.finish().unwrap();

        let checkpoint = Checkpoint::open(&out).unwrap();
        prop_assert_eq!(checkpoint.shards().len(), planned.len());
        prop_assert_eq!(checkpoint.tensors().count(), bytes.len());
        for (name, bytes) in &bytes {
            prop_assert_eq!(&checkpoint.read(name).unwrap(), bytes);
        }
        for (at, shard) in planned.iter().enumerate() {
            for (name, dtype, shape) in shard {
                let info = checkpoint.get(name).unwrap();
                prop_assert_eq!((info.shard, info.dtype, &info.shape), (at, *dtype, shape));
                prop_assert_eq!(info.range.start % (dtype.bitsize() as u64 / 8), 0, "aligned");
            }
        }
        for path in checkpoint.shards() {
            let file = std::fs::read(path).unwrap();
            let reference = safetensors::SafeTensors::deserialize(&file).unwrap();
            for (name, view) in reference.tensors() {
                prop_assert_eq!(view.data(), checkpoint.read(&name).unwrap());
            }
        }
    }

    /// No byte of a header can be changed so that opening panics or reading goes outside the file.
    #[test]
    fn a_mutated_file_opens_or_is_refused(position in 0usize..140, value in any::<u8>(), cut in 0usize..200) {
        let dir = tempfile::tempdir().unwrap();
        let mut file = file_of(&[("a", &[2], &[1., 2.]), ("b", &[1], &[3.])]);
        let position = position % file.len();
        file[position] = value;
        file.truncate(file.len().saturating_sub(cut.saturating_sub(150)));
        single(dir.path(), &file);
        if let Ok(checkpoint) = Checkpoint::open(dir.path()) {
            for tensor in checkpoint.tensors() {
                prop_assert_eq!(checkpoint.read(&tensor.name).unwrap().len() as u64, tensor.bytes());
            }
        }
    }
}
