//! Sparse checkpoints: bit-exact there and back, really smaller, open like dense ones, and refused when damaged.

mod common;

use candle_core::{DType, Device};
use common::{assert_says, fingerprint, names};
use lacuna::checkpoint::{
    Checkpoint, CheckpointWriter, HeadersOnly, Source, SparseFormat, SparseSummary, compress, decompress,
};
use lacuna::progress::Progress;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const CONFIG: &str = "{\n  \"model_type\": \"llama\",\n  \"num_hidden_layers\": 2\n}\n";

/// A tensor: name, type, shape, bytes.
type Spec = (String, Dtype, Vec<usize>, Vec<u8>);

fn spec(name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Spec {
    (name.to_owned(), dtype, shape.to_vec(), bytes)
}

/// Writes a checkpoint of `shards` to `dir`.
fn write(dir: &Path, shards: &[Vec<Spec>]) -> Checkpoint {
    let plan = |(name, dtype, shape, _): &Spec| (name.clone(), *dtype, shape.clone());
    let plans = shards.iter().map(|shard| shard.iter().map(plan).collect()).collect();
    let mut writer = CheckpointWriter::create(dir, plans).unwrap();
    for (name, _, _, bytes) in shards.iter().flatten() {
        writer.write(name, bytes).unwrap();
    }
    writer.add_file("config.json", CONFIG.as_bytes()).unwrap();
    writer.add_file("tokenizer.json", b"{}").unwrap();
    writer.add_file("lacuna.json", b"{\"schema\": 1}").unwrap();
    writer.finish().unwrap();
    Checkpoint::open(dir).unwrap()
}

/// Random elements, each zero with probability `sparsity`; all bit patterns are among the others, `-0.0` and NaN too.
fn elements(dtype: Dtype, count: usize, sparsity: f64, seed: u64) -> Vec<u8> {
    let (mut rng, width) = (ChaCha8Rng::seed_from_u64(seed), dtype.bitsize() / 8);
    let mut element = |_| match () {
        () if rng.random_bool(sparsity) => vec![0; width],
        // -0.0 of every type.
        () if rng.random_bool(0.05) => [vec![0; width - 1], vec![0x80]].concat(),
        () => rng.random::<u64>().to_le_bytes()[..width].to_vec(),
    };
    (0..count).flat_map(&mut element).collect()
}

/// Zeroes the last two of each four elements, but of every third group the first two.
fn make_2_of_4(bytes: &mut [u8], dtype: Dtype) {
    let half = dtype.bitsize() / 8 * 2;
    for (group, bytes) in bytes.chunks_mut(2 * half).enumerate() {
        let from = if group % 3 == 0 { 0 } else { half.min(bytes.len()) };
        let to = (from + half).min(bytes.len());
        bytes[from..to].fill(0);
    }
}

/// The same tensors, whatever the files.
#[track_caller]
fn assert_same(a: &Checkpoint, b: &Checkpoint) {
    let about = |checkpoint: &Checkpoint| -> Vec<_> {
        checkpoint.tensors().map(|t| (t.name.clone(), t.dtype, t.shape.clone(), t.shard)).collect()
    };
    assert_eq!(about(a), about(b));
    for tensor in a.tensors() {
        assert!(a.read(&tensor.name).unwrap() == b.read(&tensor.name).unwrap(), "{}", tensor.name);
    }
    assert_eq!(a.sha256().unwrap(), b.sha256().unwrap());
    assert_eq!((a.bytes(), a.parameters()), (b.bytes(), b.parameters()));
    assert_eq!(a.config().unwrap(), b.config().unwrap());
}

/// The bytes of the weight files of `dir` together.
fn file_bytes(dir: &Path) -> u64 {
    let files = names(dir).into_iter().filter(|name| name.ends_with(".safetensors"));
    files.map(|name| std::fs::metadata(dir.join(name)).unwrap().len()).sum()
}

fn matrix() -> impl Strategy<Value = (usize, usize, usize, f64, bool)> {
    let sparsity = prop_oneof![Just(0.0), Just(1.0), 0.0..1.0];
    (0..6usize, prop_oneof![0..4usize, 5..60usize], prop_oneof![0..3usize, 3..150usize], sparsity, any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn there_and_back_is_bit_exact(
        matrices in proptest::collection::vec(matrix(), 1..6),
        format in 0..3usize,
        seed: u64,
        cuts in proptest::collection::vec((0.0..1.0f64, 0.0..1.0f64), 6),
    ) {
        let parent = tempfile::tempdir().unwrap();
        let [dense, sparse, back] = ["dense", "sparse", "back"].map(|name| parent.path().join(name));
        let dtypes = [Dtype::F64, Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F8_E4M3, Dtype::I32];
        let mut shards: Vec<Vec<Spec>> = vec![vec![spec("norm.weight", Dtype::F32, &[3], elements(Dtype::F32, 3, 0.9, 1))]];
        for (i, (dtype, rows, cols, sparsity, two_of_four)) in matrices.iter().enumerate() {
            let mut bytes = elements(dtypes[*dtype], rows * cols, *sparsity, seed.wrapping_add(i as u64));
            if *two_of_four {
                make_2_of_4(&mut bytes, dtypes[*dtype]);
            }
            // The last has no module.
            let name = if i == 5 { "stack".to_owned() } else { format!("layers.{i}.weight") };
            let tensor = spec(&name, dtypes[*dtype], &[*rows, *cols], bytes);
            if i % 2 == 1 { shards.push(vec![tensor]) } else { shards.last_mut().unwrap().push(tensor) }
        }
        let dense = write(&dense, &shards);
        let format = [None, Some(SparseFormat::Bitmask), Some(SparseFormat::TwoOfFour)][format];
        let before = fingerprint(dense.dir());
        let summary = compress(&dense, &sparse, format, Progress::Hidden).unwrap();
        prop_assert_eq!(fingerprint(dense.dir()), before);
        let sparse = Checkpoint::open(&sparse).unwrap();
        assert_same(&dense, &sparse);
        prop_assert_eq!(SparseSummary::of(&sparse), summary);
        prop_assert_eq!(sparse.is_sparse(), summary.is_sparse());
        let total = summary.total();
        prop_assert!(total.stored_bytes <= total.dense_bytes);
        prop_assert!(file_bytes(sparse.dir()) <= file_bytes(dense.dir()) + 64);

        // Any range of bytes, too, is that of the dense file, which this library wrote.
        for (shard, path) in dense.shards().iter().enumerate() {
            let file = std::fs::read(path).unwrap();
            let start = dense.tensors().filter(|t| t.shard == shard).map(|t| t.range.start).min().unwrap();
            let place = |share: f64| start + (share * (file.len() as u64 - start) as f64) as u64;
            for (a, b) in &cuts {
                let range = place(a.min(*b))..place(a.max(*b));
                let mut bytes = Vec::new();
                sparse.stream(shard, range.clone(), &mut |piece| { bytes.extend_from_slice(piece); Ok(()) }).unwrap();
                prop_assert!(bytes == file[range.start as usize..range.end as usize]);
            }
        }

        if summary.is_sparse() {
            prop_assert_eq!(decompress(&sparse, &back, Progress::Hidden).unwrap(), summary);
            assert_same(&dense, &Checkpoint::open(&back).unwrap());
            prop_assert_eq!(names(&back), names(dense.dir()));
            for name in names(&back) {
                let (there, here) = (std::fs::read(dense.dir().join(&name)).unwrap(), std::fs::read(back.join(&name)).unwrap());
                prop_assert!(there == here, "{}", name);
            }
        } else {
            assert_says(decompress(&sparse, &back, Progress::Hidden).unwrap_err(), &["stored sparse"]);
        }
    }
}

/// Computed from files: headers count.
#[test]
fn half_the_weights_take_at_most_0_57() {
    let parent = tempfile::tempdir().unwrap();
    for (name, dtype, two_of_four, most) in [
        ("bitmask", Dtype::BF16, false, 0.57),
        ("2of4", Dtype::BF16, true, 0.5635),
        ("single", Dtype::F32, false, 0.535),
    ] {
        let mut bytes = elements(dtype, 1024 * 1024, 0.0, 3);
        if two_of_four {
            make_2_of_4(&mut bytes, dtype);
        } else {
            // Exactly half of each row, as a selection leaves it.
            let (width, mut rng) = (dtype.bitsize() / 8, ChaCha8Rng::seed_from_u64(4));
            for row in bytes.chunks_mut(1024 * width) {
                for at in rand::seq::index::sample(&mut rng, 1024, 512) {
                    row[at * width..(at + 1) * width].fill(0);
                }
            }
        }
        let dense = write(&parent.path().join(name), &[vec![spec("up.weight", dtype, &[1024, 1024], bytes)]]);
        let out = parent.path().join(format!("{name}-sparse"));
        let summary = compress(&dense, &out, None, Progress::Hidden).unwrap();
        assert_same(&dense, &Checkpoint::open(&out).unwrap());
        let ratio = file_bytes(&out) as f64 / file_bytes(dense.dir()) as f64;
        assert!(ratio <= most, "{name}: {ratio}");
        assert!((ratio - summary.total().ratio()).abs() < 1e-3, "{name}: {ratio}, {summary:?}");
        assert_eq!(summary.two_of_four.tensors, u64::from(two_of_four), "{name}");
    }
}

/// A checkpoint with two matrices, `a.weight` half zero and `b.weight` 2:4, and what they are stored as.
struct Sparse {
    parent: tempfile::TempDir,
}

impl Sparse {
    fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let a = elements(Dtype::F32, 32 * 65, 0.5, 1);
        let mut b = elements(Dtype::BF16, 32 * 68, 0.0, 2);
        make_2_of_4(&mut b, Dtype::BF16);
        let tensors = vec![spec("a.weight", Dtype::F32, &[32, 65], a), spec("b.weight", Dtype::BF16, &[32, 68], b)];
        let dense = write(&parent.path().join("dense"), &[tensors]);
        compress(&dense, &parent.path().join("sparse"), None, Progress::Hidden).unwrap();
        Sparse { parent }
    }

    fn dir(&self) -> PathBuf {
        self.parent.path().join("sparse")
    }

    /// Writes the file again with other parts.
    fn edit(&self, edit: impl FnOnce(&mut Vec<Spec>)) {
        let path = self.dir().join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let part = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            spec(&name, view.dtype(), view.shape(), view.data().to_vec())
        };
        let mut parts: Vec<Spec> = tensors.tensors().into_iter().map(part).collect();
        parts.sort();
        edit(&mut parts);
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, dtype, shape, bytes) in parts {
            let begin = data.len();
            data.extend(bytes);
            let entry = json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [begin, data.len()]});
            header.insert(name, entry);
        }
        std::fs::write(path, common::safetensors(&Value::Object(header).to_string(), &data)).unwrap();
    }

    fn part<'a>(parts: &'a mut [Spec], name: &str) -> &'a mut Spec {
        parts.iter_mut().find(|part| part.0 == name).unwrap()
    }

    /// The error of opening, or else of each way to read; nothing is written.
    #[track_caller]
    fn refused(&self, says: &[&str]) {
        let (dir, out) = (self.dir(), self.parent.path().join("out"));
        let before = names(self.parent.path());
        let errors = match Checkpoint::open(&dir) {
            Err(error) => vec![error],
            Ok(checkpoint) => {
                let read = checkpoint.tensors().find_map(|tensor| checkpoint.read(&tensor.name).err()).unwrap();
                let load = checkpoint
                    .tensors()
                    .find_map(|tensor| checkpoint.load(&tensor.name, DType::F32, &Device::Cpu).err())
                    .unwrap();
                vec![
                    read,
                    load,
                    checkpoint.sha256().unwrap_err(),
                    decompress(&checkpoint, &out, Progress::Hidden).unwrap_err(),
                ]
            }
        };
        for error in errors {
            assert_says(error, says);
        }
        assert_eq!(names(self.parent.path()), before);
    }
}

#[test]
fn parts_that_contradict_each_other_are_refused() {
    let damaged = |edit: &dyn Fn(&mut Vec<Spec>), says: &[&str]| {
        let sparse = Sparse::new();
        sparse.edit(|parts| edit(parts));
        sparse.refused(&[&["model.safetensors", "compress the model again"], says].concat());
    };
    // A bit more, a bit less, a bit beyond the row.
    damaged(
        &|parts| {
            let bitmask = &mut Sparse::part(parts, "a.bitmask").3;
            let clear = bitmask[9..17].iter().position(|byte| *byte != 0xff).unwrap() + 9;
            bitmask[clear] |= bitmask[clear] + 1;
        },
        &["`a.bitmask`", "row 1 has", "bits set", "values for it"],
    );
    damaged(&|parts| Sparse::part(parts, "a.bitmask").3[8] |= 0x80, &["`a.bitmask`", "row 0"]);
    damaged(
        &|parts| {
            // One bit moves behind the end of its row.
            let bitmask = &mut Sparse::part(parts, "a.bitmask").3;
            let set = bitmask.iter().position(|byte| *byte != 0).unwrap();
            assert!(set < 8);
            bitmask[set] &= bitmask[set] - 1;
            bitmask[8] |= 0x80;
        },
        &["`a.bitmask`", "row 0 has bits set beyond its 65 elements"],
    );
    // Values lost, offsets wrong.
    damaged(
        &|parts| {
            let values = Sparse::part(parts, "a.compressed");
            values.2[0] -= 1;
            values.3.truncate(values.2[0] * 4);
        },
        &["row"],
    );
    damaged(&|parts| Sparse::part(parts, "a.row_offsets").3[0] = 1, &["`a.row_offsets`", "one after another"]);
    damaged(
        &|parts| Sparse::part(parts, "a.row_offsets").3[8..16].fill(0xff),
        &["`a.row_offsets`", "one after another"],
    );
    // Shapes.
    damaged(&|parts| Sparse::part(parts, "a.shape").3[0] = 31, &["`a.bitmask`", "U8 x [32, 9]", "U8 x [31, 9]"]);
    damaged(&|parts| Sparse::part(parts, "a.shape").3[8] = 80, &["`a.bitmask`", "U8 x [32, 10]"]);
    damaged(&|parts| Sparse::part(parts, "a.shape").3[15] = 0x80, &["`a.shape`", "no possible shape"]);
    damaged(
        &|parts| {
            let shape = Sparse::part(parts, "a.shape");
            (shape.2, shape.3) = (vec![1], shape.3[..8].to_vec());
        },
        &["`a.shape`", "only matrices"],
    );
    damaged(&|parts| Sparse::part(parts, "b.weight.indices").2 = vec![9, 32], &["`b.weight.indices`", "U8 x [9, 32]"]);
    damaged(&|parts| Sparse::part(parts, "b.weight.values").2 = vec![32 * 34], &["`b.weight.values`", "a matrix"]);
    // 2:4 positions that are equal, and that descend.
    damaged(
        &|parts| Sparse::part(parts, "b.weight.indices").3[9] = 0b0100_0101,
        &["`b.weight.indices`", "row 1, columns 0 to 3", "do not ascend"],
    );
    damaged(
        &|parts| Sparse::part(parts, "b.weight.indices").3[1] = 0b0001_0100,
        &["`b.weight.indices`", "row 0, columns 12 to 15", "do not ascend"],
    );
    // A part is missing, each in turn; or the tensor is there as well.
    for (missing, told) in [
        ("a.bitmask", "`a.bitmask` is missing"),
        ("a.compressed", "`a.compressed` is missing"),
        ("a.row_offsets", "`a.row_offsets` is missing"),
        ("a.shape", "`a.shape` is missing"),
        ("b.weight.values", "`b.weight.values` is missing"),
        ("b.weight.indices", "`b.weight.indices` is missing"),
    ] {
        damaged(&|parts| parts.retain(|part| part.0 != missing), &[told, "a part of a sparse tensor"]);
    }
    damaged(&|parts| parts.push(spec("a.weight", Dtype::F32, &[1], vec![0; 4])), &["a.weight"]);
}

#[test]
fn a_truncated_file_an_unknown_format_and_an_unknown_version_are_refused() {
    let sparse = Sparse::new();
    let path = sparse.dir().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    sparse.refused(&["model.safetensors", "5 bytes are missing", "download it again"]);
    std::fs::write(&path, &bytes).unwrap();

    let config = sparse.dir().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("lacuna-sparse", "sparse-runs")).unwrap();
    sparse.refused(&["config.json", "`sparse-runs`", "sparse-bitmask", "expand them with what wrote them"]);
    std::fs::write(&config, text.replace("\"lacuna_version\": 1", "\"lacuna_version\": 2")).unwrap();
    sparse.refused(&["config.json", "version 2", "reads version 1", "newer lacuna"]);
    std::fs::write(&config, text).unwrap();
    Checkpoint::open(sparse.dir()).unwrap().sha256().unwrap();
}

#[test]
fn nothing_is_written_where_something_is_or_where_names_clash() {
    let sparse = Sparse::new();
    let dense = Checkpoint::open(sparse.parent.path().join("dense")).unwrap();
    let before = fingerprint(&sparse.dir());
    assert_says(compress(&dense, &sparse.dir(), None, Progress::Hidden).unwrap_err(), &["already exists"]);
    assert_eq!(fingerprint(&sparse.dir()), before);
    let opened = Checkpoint::open(sparse.dir()).unwrap();
    assert_says(decompress(&opened, dense.dir(), Progress::Hidden).unwrap_err(), &["already exists"]);
    let dir = sparse.parent.path().join("clash");
    let clash = write(&dir, &[vec![spec("x.bitmask", Dtype::U8, &[1], vec![1])]]);
    let out = sparse.parent.path().join("out");
    assert_says(compress(&clash, &out, None, Progress::Hidden).unwrap_err(), &["`x.bitmask`", "distinguished"]);
    assert!(!out.exists());
    // Compressing what is compressed reads it as dense: another format can be had without the dense files.
    let summary = compress(&opened, &out, Some(SparseFormat::Bitmask), Progress::Hidden).unwrap();
    assert_eq!((summary.bitmask.tensors, summary.two_of_four.tensors), (2, 0));
    let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization_config"]["sparsity_config"]["format"], "sparse-bitmask");
    assert_same(&dense, &Checkpoint::open(&out).unwrap());
}

/// `sparse-24-bitmask` of compressed-tensors: a bitmask, and values in rows of a half. Its shape is a column.
#[test]
fn reads_sparse_24_bitmask() {
    let sparse = Sparse::new();
    let dense = Checkpoint::open(sparse.parent.path().join("dense")).unwrap();
    let rows = dense.read("b.weight").unwrap();
    sparse.edit(|parts| {
        parts.retain(|part| !part.0.starts_with("b."));
        let (mut values, mut bitmask) = (Vec::new(), Vec::new());
        for row in rows.chunks(68 * 2) {
            let mut bits = [0u8; 9];
            for (at, element) in row.chunks(2).enumerate().filter(|(_, element)| *element != [0, 0]) {
                bits[at / 8] |= 1 << (at % 8);
                values.extend_from_slice(element);
            }
            bitmask.extend(bits);
        }
        parts.push(spec("b.compressed", Dtype::BF16, &[32, 34], values));
        parts.push(spec("b.bitmask", Dtype::U8, &[32, 9], bitmask));
        parts.push(spec("b.shape", Dtype::I64, &[2, 1], [32u64, 68].map(u64::to_le_bytes).concat()));
    });
    let opened = Checkpoint::open(sparse.dir()).unwrap();
    assert_eq!(opened.read("b.weight").unwrap(), rows);
    assert_eq!(opened.sha256().unwrap(), dense.sha256().unwrap());
    sparse.edit(|parts| Sparse::part(parts, "b.bitmask").3[0] = 0);
    sparse.refused(&["`b.bitmask`", "row 0"]);
}

#[test]
fn headers_of_a_sparse_checkpoint_are_those_of_the_dense_one() {
    let sparse = Sparse::new();
    let [dense, opened] = ["dense", "sparse"].map(|name| Checkpoint::open(sparse.parent.path().join(name)).unwrap());
    let [a, b] = ["headers-a", "headers-b"].map(|name| sparse.parent.path().join(name));
    HeadersOnly::save(&dense, &a).unwrap();
    HeadersOnly::save(&opened, &b).unwrap();
    assert_eq!(HeadersOnly::open(&a).unwrap().index(), HeadersOnly::open(&b).unwrap().index());
}

#[track_caller]
fn lacuna(dir: &Path, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_lacuna")).current_dir(dir).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command and returns the most memory that it held, in bytes.
#[expect(clippy::zombie_processes, reason = "wait4 waits for it, and tells its peak memory")]
fn peak_memory(dir: &Path, args: &[&str]) -> u64 {
    let child = Command::new(env!("CARGO_BIN_EXE_lacuna"))
        .current_dir(dir)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: the child is ours and not waited for elsewhere; `usage` is zeroed, which is a valid value of it.
    let (waited, usage) =
        unsafe { (libc::wait4(child.id() as libc::pid_t, &mut status, 0, usage.as_mut_ptr()), usage.assume_init()) };
    assert_eq!((waited, status), (child.id() as libc::pid_t, 0), "{args:?}");
    usage.ru_maxrss as u64 * if cfg!(target_os = "macos") { 1 } else { 1024 }
}

/// One matrix of 128 MiB, of which the first quarter is half zero and the rest is a hole in the file.
#[test]
fn memory_does_not_grow_with_the_model() {
    let parent = tempfile::tempdir().unwrap();
    let (small, large) = (parent.path().join("small"), parent.path().join("large"));
    let values = elements(Dtype::BF16, 4096 * 4096, 0.5, 5);
    for (dir, rows) in [(&small, 256), (&large, 4 * 4096)] {
        std::fs::create_dir(dir).unwrap();
        let (shape, bytes) = ([rows, 4096], rows as u64 * 8192);
        let header = json!({"up.weight": {"dtype": "BF16", "shape": shape, "data_offsets": [0, bytes]}}).to_string();
        let file = common::safetensors(&header, &values[..values.len().min(bytes as usize)]);
        std::fs::write(dir.join("model.safetensors"), &file).unwrap();
        let file = File::options().write(true).open(dir.join("model.safetensors")).unwrap();
        file.set_len(8 + header.len() as u64 + bytes).unwrap();
        std::fs::write(dir.join("config.json"), "{}").unwrap();
    }
    let compress = |name: &str| peak_memory(parent.path(), &["compress", name, "--out", &format!("{name}-sparse")]);
    let expand = |name: &str| {
        peak_memory(parent.path(), &["decompress", &format!("{name}-sparse"), "--out", &format!("{name}-dense")])
    };
    for (what, before, after) in
        [("compress", compress("small"), compress("large")), ("decompress", expand("small"), expand("large"))]
    {
        // 126 MiB more of model, and 34 MiB more of parts.
        assert!(after < before + (24 << 20), "{what}: {before} bytes for 2 MiB, {after} for 128 MiB");
    }
    let hash = |name: &str| Checkpoint::open(parent.path().join(name)).unwrap().sha256().unwrap();
    assert_eq!(hash("large-dense"), hash("large"));
}

/// A build out of ranges of bytes has none to copy there; it gets them expanded.
#[test]
fn experts_of_a_compressed_mixture_are_built_like_those_of_the_dense_one() {
    let parent = tempfile::tempdir().unwrap();
    let (at, model) = (parent.path(), format!("{}/data/tiny-moe", env!("CARGO_MANIFEST_DIR")));
    lacuna(at, &["prune", &model, "--method", "magnitude", "--sparsity", "0.6", "--out", "pruned"]);
    lacuna(at, &["compress", "pruned", "--out", "sparse"]);
    assert!(Checkpoint::open(at.join("sparse")).unwrap().is_sparse());
    for model in ["pruned", "sparse"] {
        let out = format!("{model}-half");
        lacuna(at, &["experts", "build", model, "--keep", "0.5", "--by", "weight-norm", "--out", &out]);
    }
    let [dense, sparse] = ["pruned-half", "sparse-half"].map(|name| Checkpoint::open(at.join(name)).unwrap());
    assert_same(&dense, &sparse);
    lacuna(at, &["experts", "verify", "sparse", "sparse-half"]);
    lacuna(at, &["experts", "verify", "pruned", "sparse-half"]);
}

#[test]
fn commands_take_a_compressed_model_as_they_take_the_dense_one() {
    let parent = tempfile::tempdir().unwrap();
    let (at, root) = (parent.path(), env!("CARGO_MANIFEST_DIR"));
    let (model, text) = (format!("{root}/data/tiny-llama"), format!("{root}/data/corpus/test.txt"));
    for (name, pruning, row) in [("half", ["--sparsity", "0.5"], "bitmask"), ("nm", ["--pattern", "2:4"], "2:4")] {
        let [pruned, sparse, back, again] = ["", "-sparse", "-back", "-again"].map(|end| format!("{name}{end}"));
        let options = [&["prune", &model, "--method", "magnitude", "--out", &pruned], &pruning[..]].concat();
        lacuna(at, &options);
        let printed = lacuna(at, &["compress", &pruned, "--out", &sparse]);
        assert_says(&printed, &["format", "ratio", row, "42 ", "dense", "all", &sparse]);
        // 42 linears of 192 or 512 inputs, where row offsets weigh more than in a larger model.
        let summary = SparseSummary::of(&Checkpoint::open(at.join(&sparse)).unwrap());
        let share = if row == "2:4" { summary.two_of_four } else { summary.bitmask };
        assert_eq!(share.tensors, 42);
        assert!(share.ratio() < 0.585, "{share:?}");
        assert!(file_bytes(&at.join(&sparse)) < file_bytes(&at.join(&pruned)));

        let evaluate = |model: &str| {
            lacuna(at, &["evaluate", model, "--text", &text, "--windows", "2", "--seqlen", "64", "--json"])
        };
        assert_eq!(evaluate(&sparse), evaluate(&pruned));
        let inspected = lacuna(at, &["inspect", &sparse]);
        assert_says(&inspected, &["Stored sparse", row, "model.layers.*.mlp.up_proj.weight", "512 x 192", "stored"]);
        let json: Value = serde_json::from_str(&lacuna(at, &["inspect", &sparse, "--json"])).unwrap();
        let dense: Value = serde_json::from_str(&lacuna(at, &["inspect", &pruned, "--json"])).unwrap();
        assert_eq!(json["stored"][row]["tensors"], 42);
        assert_eq!((&json["bytes"], &json["parts"]), (&dense["bytes"], &dense["parts"]));
        assert!(dense.get("stored").is_none());

        lacuna(at, &["decompress", &sparse, "--out", &back]);
        for file in names(&at.join(&pruned)) {
            let read = |dir: &str| std::fs::read(at.join(dir).join(&file)).unwrap();
            if file != "config.json" {
                assert!(read(&pruned) == read(&back), "{file}");
            }
        }
        assert_same(&Checkpoint::open(at.join(&pruned)).unwrap(), &Checkpoint::open(at.join(&back)).unwrap());
        // Pruned further, it is dense, and says so.
        lacuna(at, &["prune", &sparse, "--method", "magnitude", "--sparsity", "0.7", "--out", &again]);
        let again = Checkpoint::open(at.join(&again)).unwrap();
        assert!(!again.is_sparse() && !again.config().unwrap().contains_key("quantization_config"));
    }
    let output =
        Command::new(env!("CARGO_BIN_EXE_lacuna")).current_dir(at).args(["decompress", "half", "--out", "x"]).output();
    let output = output.unwrap();
    assert!(!output.status.success() && !at.join("x").exists());
    assert_says(String::from_utf8_lossy(&output.stderr), &["half", "stored sparse"]);
}

#[test]
#[ignore = "needs python3 with numpy, which .ci/run installs"]
fn numpy_expands_what_we_compress() {
    let parent = tempfile::tempdir().unwrap();
    let at = parent.path();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny-llama");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/check_sparse_numpy.py");
    let python = std::env::var("LACUNA_PYTHON").unwrap_or_else(|_| "python3".into());
    lacuna(at, &["prune", model, "--method", "magnitude", "--pattern", "2:4", "--out", "pruned"]);
    for format in ["bitmask", "2:4"] {
        lacuna(at, &["compress", "pruned", "--format", format, "--out", "sparse"]);
        let check =
            |dense: &str| Command::new(&python).current_dir(at).args([script, dense, "sparse"]).output().unwrap();
        let output = check("pruned");
        assert!(output.status.success(), "{format}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!check(model).status.success(), "{format}: the dense model is another one");
        std::fs::remove_dir_all(at.join("sparse")).unwrap();
    }
}
