//! Checkpoints in Hugging Face's layout: a directory with `config.json`, a tokenizer, and safetensors weights in one
//! file or in shards with an index. The only module that opens weight files; it never changes its input.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use lacuna::checkpoint::{Checkpoint, CheckpointWriter};
//!
//! # fn main() -> lacuna::Result<()> {
//! # let parent = tempfile::tempdir().map_err(lacuna::Error::io("create", "a temporary directory"))?;
//! # let dir = parent.path().join("tiny");
//! let weight = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?; // (out, in)
//! let plan = vec![("weight".to_owned(), safetensors::Dtype::BF16, vec![2, 2])];
//! let mut writer = CheckpointWriter::create(&dir, vec![plan])?;
//! writer.write_tensor("weight", &weight)?;
//! writer.finish()?;
//!
//! let checkpoint = Checkpoint::open(&dir)?;
//! let back = checkpoint.load("weight", DType::F32, &Device::Cpu)?;
//! assert_eq!(back.to_vec2::<f32>()?, [[1., 2.], [3., 4.]]);
//! assert_eq!(checkpoint.parameters(), 4);
//! # Ok(())
//! # }
//! ```

mod arrays;
mod convert;
mod gguf;
mod header;
mod headers;
mod http;
mod hub;
mod index;
mod kinds;
mod remote;
mod rewrite;
mod source;
mod sparse;
mod writer;

pub use gguf::{ImportSummary, import_gguf};
pub use headers::HeadersOnly;
pub use http::Retry;
pub use hub::Hub;
pub use kinds::TensorKind;
pub use remote::Remote;
pub use rewrite::{
    Copied, MANIFEST, MANIFEST_SCHEMA, Manifest, ManifestFile, ManifestTensor, OtherFile, OutputFile, OutputTensor,
    Rewrite, Seconds, Segment, SideFiles,
};
pub use source::{Source, open_source};
pub(crate) use sparse::pack_two_of_four_16;
pub use sparse::{Share, SparseFormat, SparseSummary, Stored, compress, decompress};

pub(crate) use arrays::Array;
pub(crate) use index::shard_name;
pub(crate) use rewrite::{index_text, is_free_name, parent, sum_of, sum_of_file};
pub(crate) use writer::deal_out;

pub use writer::{CheckpointWriter, TensorPlan, available_bytes, dtype_of, plan_shards};

use crate::progress::{Progress, check_interrupt};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use convert::Failure;
use index::{INDEX, Index};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use sparse::Storage;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The file of an unsharded checkpoint.
const SINGLE: &str = "model.safetensors";
/// Bytes of a sparse tensor that a thread expands at a time; whole elements of every type.
const EXPAND_BYTES: usize = 1 << 20;

/// Where a tensor's bytes are, and what they mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, as Hugging Face's libraries call it.
    pub name: String,
    /// Type of an element in the file.
    pub dtype: Dtype,
    /// `(out, in)` for a linear's weight.
    pub shape: Vec<usize>,
    /// Index into [`Checkpoint::shards`].
    pub shard: usize,
    /// Its bytes, as offsets from the beginning of the shard's file.
    pub range: Range<u64>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }

    /// Number of bytes in the file, or if it were dense there.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// A checkpoint whose headers were read and checked; tensors are read when asked for. Cloning is cheap.
#[derive(Clone)]
pub struct Checkpoint(Arc<Inner>);

crate::debug::one_line!(rich Checkpoint, |checkpoint| {
    let (tensors, files) = (checkpoint.0.tensors.len(), checkpoint.0.shards.len());
    format!("Checkpoint({}: {tensors} tensors in {files} files)", checkpoint.0.dir.display())
});

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    shards: Vec<PathBuf>,
    /// Open for as long as the checkpoint, so that what was checked is what is read.
    files: Vec<File>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    /// What each tensor is stored as, if any is stored sparse; `tensors` then has the places that they had in a dense file.
    storage: Option<Vec<Storage>>,
    sha256: OnceLock<String>,
}

impl Inner {
    fn open(dir: &Path, shards: Vec<PathBuf>) -> Result<Self> {
        let files: Vec<File> =
            shards.iter().map(|path| File::open(path).map_err(Error::io("open", path))).collect::<Result<_>>()?;
        let headers =
            shards.iter().zip(&files).enumerate().map(|(shard, (path, file))| header::read(path, file, shard));
        let (tensors, by_name) = header::join(&shards, headers)?;
        let (dir, sha256) = (dir.to_path_buf(), OnceLock::new());
        Ok(Self { dir, shards, files, tensors, by_name, storage: None, sha256 })
    }
}

impl Checkpoint {
    /// Opens a local directory with `model.safetensors`, or with `model.safetensors.index.json` and its shards, and
    /// checks every header. One that [`compress`] or llm-compressor wrote is shown as if it were dense.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Tensor`] when there are no weights, a shard is missing, truncated or breaks a rule of
    /// the format, or index and shards disagree; [`Error::Io`] when a file cannot be read.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        check_is_directory(dir)?;
        // transformers looks in this order too.
        let (index, shards) = if dir.join(SINGLE).is_file() {
            (None, vec![dir.join(SINGLE)])
        } else if dir.join(INDEX).is_file() {
            let index = Index::read(&dir.join(INDEX))?;
            index.check_shards(|shard| dir.join(shard).is_file())?;
            let shards = index.shards().into_iter().map(|shard| dir.join(shard)).collect();
            (Some(index), shards)
        } else {
            return Err(Error::file(dir, format!("neither {SINGLE} nor {INDEX} is in this directory; {}", hint(dir))));
        };
        let mut inner = Inner::open(dir, shards)?;
        if let Some(index) = index {
            index.check_tensors(&inner.tensors, &inner.shards)?;
        }
        if sparse::is_sparse(dir)? {
            let stored = std::mem::take(&mut inner.tensors);
            let (tensors, by_name, storage) = sparse::dense_view(&inner.shards, &inner.files, stored)?;
            (inner.tensors, inner.by_name, inner.storage) = (tensors, by_name, Some(storage));
        }
        Ok(Self(Arc::new(inner)))
    }

    /// Opens the weight files `shards` of `dir`, and checks every header.
    pub(crate) fn open_files(dir: &Path, shards: Vec<PathBuf>) -> Result<Self> {
        Ok(Self(Arc::new(Inner::open(dir, shards)?)))
    }

    /// Opens the directory `spec` if there is one, else downloads `owner/name[@revision]` from a hub into its cache,
    /// with the environment's settings ([`Hub::from_env`]), and opens that.
    ///
    /// # Errors
    /// [`Error::Argument`] when `spec` is neither; [`Error::Hub`] when the hub does not deliver; those of
    /// [`Checkpoint::open`].
    pub fn resolve(spec: &str, progress: Progress) -> Result<Self> {
        let path = Path::new(spec);
        if path.exists() { Self::open(path) } else { Self::open(Hub::from_env().download(spec, progress)?) }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// The weight files.
    pub fn shards(&self) -> &[PathBuf] {
        &self.0.shards
    }

    /// What `config.json` holds; of a sparse checkpoint, without what tells that it is one.
    ///
    /// # Errors
    /// [`Error::File`] when it is missing or not a JSON object.
    pub fn config(&self) -> Result<Map<String, Value>> {
        let config = read_config(self.dir())?;
        Ok(if self.is_sparse() { sparse::without_marker(config) } else { config })
    }

    /// Whether it was opened as a sparse checkpoint, and its files therefore hold other tensors than it shows.
    pub fn is_sparse(&self) -> bool {
        self.0.storage.is_some()
    }

    /// What the tensor `info` is stored as, if not as itself.
    fn storage(&self, info: &TensorInfo) -> Option<&Storage> {
        self.0.storage.as_ref()?.get(*self.0.by_name.get(&info.name)?)
    }

    /// How the tensor `info` lies in its file.
    fn stored_as(&self, info: &TensorInfo) -> Stored {
        let dense = Stored { format: None, bytes: info.bytes() };
        self.storage(info).map_or(dense, Storage::stored)
    }

    /// All tensors: shard by shard, in the order of their bytes.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.0.tensors.iter()
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`Error::Tensor`] when there is none.
    pub fn get(&self, name: &str) -> Result<&TensorInfo> {
        let missing =
            || Error::tensor(self.dir(), name, "not in this checkpoint; does config.json belong to these weights?");
        self.0.by_name.get(name).map(|&at| &self.0.tensors[at]).ok_or_else(missing)
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.0.by_name.contains_key(name)
    }

    /// The tensor's bytes, as they are in the file, or expanded; only these are read.
    ///
    /// # Errors
    /// [`Error::Tensor`] when there is no such tensor, its file has shrunk, or its sparse parts contradict each other;
    /// [`Error::Io`] when reading fails.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.get(name)?;
        let mut bytes = vec![0; info.bytes() as usize];
        self.read_at(info, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `buffer` with the tensor's bytes that begin `at` bytes into it.
    fn read_at(&self, info: &TensorInfo, at: u64, buffer: &mut [u8]) -> Result<()> {
        let Some(storage) = self.storage(info) else { return self.read_stored(info, at, buffer) };
        let pieces = buffer.par_chunks_mut(EXPAND_BYTES).enumerate();
        pieces.try_for_each(|(piece, out)| storage.read(self, info, at + (piece * EXPAND_BYTES) as u64, out))
    }

    /// The same of a tensor that is in the file as it is, such as a part of a sparse one.
    fn read_stored(&self, info: &TensorInfo, at: u64, buffer: &mut [u8]) -> Result<()> {
        let file = &self.0.files[info.shard];
        file.read_exact_at(buffer, info.range.start + at).map_err(|e| self.read_error(info, e))
    }

    /// Reads the tensor as `dtype`, one of f32, f64, f16, bf16, to `device`. The file may hold any of these. Takes the
    /// memory of the result only; f64 and f32 are rounded to nearest even.
    ///
    /// # Errors
    /// [`Error::Tensor`] when there is no such tensor or its type is not one of the four; [`Error::Io`] when reading
    /// fails; [`Error::Compute`] when the device refuses it.
    pub fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.load_checked(name, dtype, device, false)
    }

    /// Like [`Checkpoint::load`], and fails when an element is NaN or infinite (as `dtype`), as no trained weight is.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming the first such element; those of [`Checkpoint::load`].
    pub fn load_finite(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.load_checked(name, dtype, device, true)
    }

    fn load_checked(&self, name: &str, dtype: DType, device: &Device, finite: bool) -> Result<Tensor> {
        let info = self.get(name)?;
        let read = |at, buffer: &mut [u8]| self.read_at(info, at, buffer);
        let tensor = convert::read(&read, info.dtype, &info.shape, dtype, finite).map_err(|e| {
            let shard = &self.0.shards[info.shard];
            match e {
                Failure::Io(e) => self.read_error(info, e),
                Failure::Read(e) => e,
                Failure::Unsupported(src, dst) => Error::tensor(
                    shard,
                    name,
                    format!("cannot load {src} as {dst}; both must be f32, f64, f16 or bf16"),
                ),
                Failure::NotFinite(at) => {
                    let place = place(at, &info.shape);
                    let problem =
                        format!("element {place} is NaN or infinite as {}; the model is damaged", dtype.as_str());
                    Error::tensor(shard, name, problem)
                }
                Failure::Candle(e) => Error::compute(format!("loading tensor `{name}`"))(e),
            }
        })?;
        crate::cuda::to_device(&tensor, device).map_err(Error::compute(format!("moving tensor `{name}` to the device")))
    }

    fn read_error(&self, info: &TensorInfo, error: std::io::Error) -> Error {
        let shard = &self.0.shards[info.shard];
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return Error::tensor(shard, &info.name, "the file has become shorter since it was opened; open it again");
        }
        Error::io("read", shard)(error)
    }

    /// SHA-256 in hexadecimal of what the checkpoint holds: for every tensor, in the order of names, its name, type,
    /// shape and the SHA-256 of its bytes. The same however the tensors are sharded. Computed once.
    ///
    /// # Errors
    /// [`Error::Io`] when reading fails, [`Error::Interrupted`].
    pub fn sha256(&self) -> Result<String> {
        if let Some(sha256) = self.0.sha256.get() {
            return Ok(sha256.clone());
        }
        let mut order: Vec<&TensorInfo> = self.tensors().collect();
        order.sort_by(|a, b| a.name.cmp(&b.name));
        let digests: Vec<_> = order.par_iter().map(|info| self.digest(info)).collect::<Result<_>>()?;
        let mut all = Sha256::new();
        for (info, digest) in order.iter().zip(digests) {
            all.update(format!("{}\0{}\0{:?}\0", info.name, info.dtype, info.shape));
            all.update(digest);
        }
        let hex = all.finalize().iter().fold(String::new(), |mut hex, byte| {
            // Writing to a string cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        Ok(self.0.sha256.get_or_init(|| hex).clone())
    }

    /// Takes over what [`Checkpoint::sha256`] gave for the same files before, so that they need not be read for it.
    pub(crate) fn assume_sha256(&self, sha256: String) {
        // One that was computed meanwhile is the same.
        let _ = self.0.sha256.set(sha256);
    }

    fn digest(&self, info: &TensorInfo) -> Result<[u8; 32]> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; info.bytes().min(1 << 20) as usize];
        let mut at = 0;
        while at < info.bytes() {
            check_interrupt()?;
            let piece = (info.bytes() - at).min(buffer.len() as u64);
            let buffer = &mut buffer[..piece as usize];
            self.read_at(info, at, buffer)?;
            hasher.update(buffer);
            at += piece;
        }
        Ok(hasher.finalize().into())
    }

    /// Number of elements of all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors().map(TensorInfo::elements).sum()
    }

    /// Bytes of all tensors, dense.
    pub fn bytes(&self) -> u64 {
        self.tensors().map(TensorInfo::bytes).sum()
    }
}

/// What `config.json` in `dir` holds.
fn read_config(dir: &Path) -> Result<Map<String, Value>> {
    let path = dir.join("config.json");
    let text = match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::file(&path, "missing; a checkpoint needs it beside its weights, download it too"));
        }
        text => text.map_err(Error::io("read", &path))?,
    };
    serde_json::from_slice(&text).map_err(|e| Error::file(&path, format!("not a JSON object ({e})")))
}

/// `[row, column]` of a flat index.
fn place(mut at: usize, shape: &[usize]) -> String {
    let mut place = vec![0; shape.len()];
    for (place, &dim) in place.iter_mut().zip(shape).rev() {
        *place = at % dim.max(1);
        at /= dim.max(1);
    }
    format!("{place:?}")
}

fn check_is_directory(dir: &Path) -> Result<()> {
    let metadata = std::fs::metadata(dir).map_err(Error::io("open checkpoint", dir))?;
    if metadata.is_dir() {
        return Ok(());
    }
    let extension = dir.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let remedy = match extension {
        "gguf" => "a GGUF file; make a checkpoint of it with `lacuna import FILE.gguf DIR`",
        "safetensors" => "a single file; give the directory that holds it, config.json and the tokenizer",
        _ => "not a directory; give the directory that holds config.json and model.safetensors",
    };
    Err(Error::file(dir, remedy))
}

/// What may be done about a directory without safetensors.
fn hint(dir: &Path) -> &'static str {
    let has = |extension: &str| {
        std::fs::read_dir(dir).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.path().extension().is_some_and(|found| found == extension))
        })
    };
    if headers::HeadersOnly::is_at(dir) {
        "only headers are here, which do for `lacuna inspect` and for plans; give the checkpoint itself"
    } else if has("gguf") {
        "make a checkpoint of its GGUF file with `lacuna import FILE.gguf DIR`"
    } else if has("bin") || has("pt") || has("pth") {
        "convert its PyTorch weights with transformers' `save_pretrained`"
    } else if has("safetensors") {
        "its safetensors files need an index beside them"
    } else {
        "is it the right one?"
    }
}

/// The dtype to compute with that holds exactly what is stored as `dtype`; `None` for what is not floats of 16 bits or more.
pub(crate) fn float_dtype(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F64 => Some(DType::F64),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}
