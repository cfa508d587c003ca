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
mod download;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod gguf;
mod header;
mod headers;
mod hints;
mod http;
mod hub;
mod index;
mod json;
mod kinds;
mod names;
mod parts;
mod quantised;
mod remote;
mod rewrite;
mod source;
mod sparse;
mod strangers;
mod writer;

pub use gguf::{ImportSummary, import_gguf};
pub use headers::HeadersOnly;
pub use hub::{Hub, Retry};
pub use kinds::TensorKind;
pub use remote::Remote;
pub use rewrite::{
    Copied, MANIFEST, MANIFEST_SCHEMA, Manifest, ManifestFile, ManifestTensor, OtherFile, OutputFile, OutputTensor,
    Rewrite, Seconds, Segment, SideFiles,
};
pub(crate) use source::same_bytes;
pub use source::{Source, open_source};
pub(crate) use sparse::pack_two_of_four_16;
pub use sparse::{Share, SparseFormat, SparseSummary, Stored, compress, decompress};

pub(crate) use arrays::Array;
pub(crate) use hints::dangling;
pub(crate) use index::shard_name;
pub(crate) use names::family_names;
pub(crate) use parts::Part;
pub(crate) use rewrite::{index_text, is_free_name, parent, sum_of, sum_of_file};
pub(crate) use writer::deal_out;

pub use writer::{CheckpointWriter, TensorPlan, available_bytes, dtype_of, plan_shards};

use crate::error::{Error, Problem, Remedy, Result};
use crate::progress::{Progress, check_interrupt};
use candle_core::{DType, Device, Tensor};
use convert::ConversionFailure;
use index::{Disagreements, Index};
use names::Names;
use parts::Parts;
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use sparse::Storage;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The file of an unsharded checkpoint.
const SINGLE: &str = "model.safetensors";
/// The index of a sharded one, under the name that Hugging Face's libraries look for.
const INDEX: &str = "model.safetensors.index.json";
/// Bytes of a sparse tensor that a thread expands at a time; whole elements of every type.
const EXPAND_BYTES: usize = 1 << 20;

/// A tensor's name, type and shape, and the place of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, as Hugging Face's libraries call it: without the prefixes of wrappers that were around the model when it was
    /// saved (`_orig_mod.`, `module.`, `base_model.model.`), and with the `model.` that a base class leaves out.
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
pub struct Checkpoint(Arc<Inner>, Arc<Parts>);

crate::debug::one_line!(rich Checkpoint, |checkpoint| {
    let (tensors, files) = (checkpoint.0.tensors.len(), checkpoint.0.shards.len());
    format!("Checkpoint({}: {tensors} tensors in {files} files)", checkpoint.0.dir.display())
});

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    name: String,
    /// The commit, of a download.
    revision: Option<String>,
    shards: Vec<PathBuf>,
    /// Open for as long as the checkpoint, so that what was checked is what is read.
    files: Vec<File>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
    /// The stored form of each tensor, if any is stored sparse; `tensors` then has the places that they would have in a
    /// dense file.
    storage: Option<Vec<Storage>>,
    names: Names,
    disagreements: Disagreements,
    sha256: OnceLock<String>,
}

impl Inner {
    fn open(dir: &Path, shards: Vec<PathBuf>) -> Result<Self> {
        let files: Vec<File> =
            shards.iter().map(|path| File::open(path).map_err(Error::io("open", path))).collect::<Result<_>>()?;
        let headers =
            shards.iter().zip(&files).enumerate().map(|(shard, (path, file))| header::read(path, file, shard));
        let (tensors, by_name) = header::join(&shards, headers)?;
        let (name, revision) = name_of(dir);
        Ok(Self {
            dir: dir.to_path_buf(),
            name,
            revision,
            shards,
            files,
            tensors,
            by_name,
            storage: None,
            names: Names::default(),
            disagreements: Disagreements::default(),
            sha256: OnceLock::new(),
        })
    }

    /// Calls the tensors what their family calls them.
    fn settle_names(mut self) -> Result<Self> {
        self.names = Names::settle(&mut self.tensors, &self.shards)?;
        self.by_name = self.tensors.iter().enumerate().map(|(at, info)| (info.name.clone(), at)).collect();
        Ok(self)
    }
}

/// Finds the weights in a directory: an index with the names of each shard, or `None` for a single file.
fn locate(dir: &Path, notes: &mut Vec<String>) -> Result<Option<(Index, Vec<Vec<String>>)>> {
    let there = |shard: &str| dir.join(shard).is_file();
    // transformers looks in this order too.
    let single = there(SINGLE);
    if single && !dir.join(INDEX).is_file() {
        return Ok(None);
    }
    if !single && !dir.join(INDEX).is_file() {
        let hint = if HeadersOnly::is_at(dir) {
            "only headers are here, which do for `lacuna inspect` and for plans".remedy("give the checkpoint itself")
        } else {
            hints::of_directory(dir)
        };
        let problem = hint.map(|hint| format!("neither {SINGLE} nor {INDEX} is in this directory; {hint}"));
        return Err(Error::file(dir, problem));
    }
    let index = Index::read(&dir.join(INDEX)).and_then(|index| index.check_shards(there).map(|()| index));
    let index = match index {
        Ok(index) => index,
        Err(_) if single => {
            notes.push(format!("{SINGLE} is read, and not {INDEX}, which does not fit the files that are here"));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if single && !index.shards().contains(SINGLE) {
        let path = dir.join(SINGLE);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let (_, by_name) = header::join(std::slice::from_ref(&path), std::iter::once(header::read(&path, &file, 0)))?;
        if !index.lists_more_than(&by_name) {
            notes.push(format!(
                "both {SINGLE} and the shards of {INDEX} are here; the former is read, as transformers does"
            ));
            return Ok(None);
        }
        notes.push(format!("{SINGLE} is not read: it lacks tensors that the shards of {INDEX} have"));
    }
    // Two names may be links to one file.
    let mut files: Vec<((u64, u64), Vec<String>)> = Vec::new();
    for shard in index.shards() {
        let path = dir.join(shard);
        let metadata = std::fs::metadata(&path).map_err(Error::io("open", &path))?;
        let file = (metadata.dev(), metadata.ino());
        match files.iter_mut().find(|(known, _)| *known == file) {
            Some((_, names)) => names.push(shard.to_owned()),
            None => files.push((file, vec![shard.to_owned()])),
        }
    }
    Ok(Some((index, files.into_iter().map(|(_, names)| names).collect())))
}

/// Returns the model's name and its commit: in a hub's cache the repository and the folder's name, elsewhere the
/// directory's own name and no commit.
fn name_of(dir: &Path) -> (String, Option<String>) {
    let text = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    // `.` and `..` have no name.
    let full = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    let full = match full.components().any(|part| part == std::path::Component::ParentDir) {
        true => full.canonicalize().unwrap_or(full),
        false => full,
    };
    let Some(name) = text(&full) else { return ("model".into(), None) };
    let repo =
        full.parent().filter(|parent| parent.ends_with("snapshots")).and_then(|parent| hub_name(parent.parent()?));
    match repo {
        Some(repo) => (repo, Some(name)),
        None => (name, None),
    }
}

/// `owner/name` of a folder of a hub's cache, or of one inside it.
fn hub_name(dir: &Path) -> Option<String> {
    let folder = dir.ancestors().find_map(|dir| dir.file_name()?.to_str()?.strip_prefix("models--"))?;
    let (owner, name) = folder.split_once("--")?;
    (!owner.is_empty() && !name.is_empty()).then(|| format!("{owner}/{name}"))
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
        let mut notes = Vec::new();
        let located = locate(dir, &mut notes)?;
        let shards = match &located {
            Some((_, files)) => files.iter().map(|names| dir.join(&names[0])).collect(),
            None => vec![dir.join(SINGLE)],
        };
        let mut inner = Inner::open(dir, shards)?;
        if let Some((index, files)) = located {
            inner.disagreements = index.compare(&inner.tensors, &files);
        }
        inner.disagreements.notes.splice(0..0, notes);
        if sparse::is_sparse(dir)? {
            let stored = std::mem::take(&mut inner.tensors);
            let (tensors, by_name, storage) = sparse::dense_view(&inner.shards, &inner.files, stored)?;
            (inner.tensors, inner.by_name, inner.storage) = (tensors, by_name, Some(storage));
        }
        Ok(Self(Arc::new(inner.settle_names()?), Arc::default()))
    }

    /// Opens the weight files `shards` of `dir`, and checks every header.
    pub(crate) fn open_files(dir: &Path, shards: Vec<PathBuf>) -> Result<Self> {
        Ok(Self(Arc::new(Inner::open(dir, shards)?.settle_names()?), Arc::default()))
    }

    /// Opens the directory `spec` if there is one, else downloads `owner/name[@revision]` from a hub into its cache,
    /// with the environment's settings ([`Hub::from_env`]), and opens that.
    ///
    /// # Errors
    /// [`Error::Argument`] when `spec` is neither; [`Error::Hub`] when the hub does not deliver; those of
    /// [`Checkpoint::open`].
    pub fn resolve(spec: impl AsRef<Path>, progress: Progress) -> Result<Self> {
        let path = spec.as_ref();
        let checkpoint = match path.exists() {
            true => Self::open(path)?,
            // What is no UTF-8 is no id either, and the hub says so.
            false => Self::open(Hub::from_env()?.download(&path.to_string_lossy(), progress)?)?,
        };
        progress.notes(&checkpoint.notes());
        Ok(checkpoint)
    }

    /// The model's name: the directory's, or `owner/name` where the directory is a download of that repository.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The commit that it was downloaded of.
    pub fn revision(&self) -> Option<&str> {
        self.0.revision.as_deref()
    }

    /// Oddities of the files that do no harm, one sentence each: names of a wrapped model, an index that lists a tensor
    /// that no shard has, settings of a quantisation that was undone.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.0.disagreements.notes.clone();
        notes.extend(self.0.names.note().map(str::to_owned));
        notes.extend(self.config().ok().and_then(|config| quantised::note(&config, &self.0.tensors)));
        notes
    }

    /// The name that the tensor called `name` has in the file.
    pub fn stored_name<'a>(&'a self, name: &'a str) -> Cow<'a, str> {
        self.0.names.stored(name)
    }

    pub(crate) fn names(&self) -> &Names {
        &self.0.names
    }

    /// Fails where the weights are not what the names and `config.json` make of them: quantised, or with an adapter beside them.
    ///
    /// # Errors
    /// [`Error::File`] saying what they are and what to do.
    pub(crate) fn check_plain(&self, config: &Map<String, Value>) -> Result<()> {
        match self.no_plain_weights(config) {
            Some(problem) => Err(Error::file(self.dir(), problem)),
            None => Ok(()),
        }
    }

    fn no_plain_weights(&self, config: &Map<String, Value>) -> Option<Problem> {
        let has_file = |name: &str| self.dir().join(name).exists();
        quantised::problem(config, &self.0.tensors, &has_file).or_else(|| quantised::adapter(&self.0.tensors))
    }

    /// The error for a missing tensor `name`, with the likely reason in this checkpoint.
    fn missing(&self, name: &str) -> Error {
        if let Some(shard) =
            self.0.disagreements.absent.get(&*self.stored_name(name)).or(self.0.disagreements.absent.get(name))
        {
            let problem = format!("{INDEX} says it is in this shard, but the shard's header lacks it")
                .remedy("index and shard are of different versions of the model, take both from one");
            return Error::tensor(self.dir().join(shard), name, problem);
        }
        let config = self.config().unwrap_or_default();
        let problem =
            self.no_plain_weights(&config).unwrap_or_else(|| strangers::problem(name, &config, &self.0.tensors));
        Error::tensor(self.dir(), name, problem.map(|cause| format!("not in this checkpoint: {cause}")))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// The weight files.
    pub fn shards(&self) -> &[PathBuf] {
        &self.0.shards
    }

    /// The contents of `config.json`; for a sparse checkpoint, without the entries that mark it as one.
    ///
    /// # Errors
    /// [`Error::File`] when it is missing or not a JSON object.
    pub fn config(&self) -> Result<Map<String, Value>> {
        let config = read_config(self.dir())?;
        Ok(if self.is_sparse() { sparse::without_marker(config) } else { config })
    }

    /// The contents of `generation_config.json`, if it is there.
    ///
    /// # Errors
    /// [`Error::File`] when it is not a JSON object, [`Error::Io`] when it cannot be read.
    pub fn generation_config(&self) -> Result<Option<Map<String, Value>>> {
        let path = self.dir().join("generation_config.json");
        match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            text => json::object(&path, &text.map_err(Error::io("read", &path))?).map(Some),
        }
    }

    /// Returns whether the checkpoint was opened as a sparse one: its files then hold other tensors than it shows.
    pub fn is_sparse(&self) -> bool {
        self.0.storage.is_some()
    }

    /// The stored form of the tensor `info`, if that differs from the tensor itself.
    fn storage(&self, info: &TensorInfo) -> Option<&Storage> {
        self.0.storage.as_ref()?.get(*self.0.by_name.get(&info.name)?)
    }

    /// Format and bytes of the tensor `info` in its file.
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
        let stored = self.0.by_name.get(name).map(|&at| &self.0.tensors[at]);
        stored.or_else(|| Some(&self.1.get(name)?.1)).ok_or_else(|| self.missing(name))
    }

    /// Returns whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.0.by_name.contains_key(name) || self.1.get(name).is_some()
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
        Ok(match self.part(name) {
            Some(part) if part.transposed => parts::transpose(&bytes, part.stored_shape()[0], info.dtype.bitsize() / 8),
            _ => bytes,
        })
    }

    /// Fills `buffer` with the tensor's bytes that begin `at` bytes into it, in the order in which they are stored.
    fn read_at(&self, info: &TensorInfo, at: u64, buffer: &mut [u8]) -> Result<()> {
        if let Some(part) = self.part(&info.name) {
            let whole = self.get(&part.of)?;
            return self.read_at(whole, info.range.start - whole.range.start + at, buffer);
        }
        let Some(storage) = self.storage(info) else { return self.read_stored(info, at, buffer) };
        let pieces = buffer.par_chunks_mut(EXPAND_BYTES).enumerate();
        pieces.try_for_each(|(piece, out)| storage.read(self, info, at + (piece * EXPAND_BYTES) as u64, out))
    }

    /// Reads bytes of a tensor that is in the file as it is, such as a part of a sparse one, from byte `at` of the
    /// tensor.
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
        let part = self.part(name).filter(|part| part.transposed);
        let shape = part.map_or_else(|| info.shape.clone(), parts::Part::stored_shape);
        let tensor = convert::read(&read, info.dtype, &shape, dtype, finite).map_err(|e| {
            let shard = &self.0.shards[info.shard];
            match e {
                ConversionFailure::Io(e) => self.read_error(info, e),
                ConversionFailure::Read(e) => e,
                ConversionFailure::Unsupported(src, dst) => Error::tensor(
                    shard,
                    name,
                    format!("cannot load {src} as {dst}").remedy("both must be f32, f64, f16 or bf16"),
                ),
                ConversionFailure::NotFinite(at) => {
                    let place = place(at, &shape);
                    let problem =
                        format!("element {place} is NaN or infinite as {}; the model is damaged", dtype.as_str());
                    Error::tensor(shard, name, problem)
                }
                ConversionFailure::Candle(e) => Error::compute(format!("loading tensor `{name}`"))(e),
            }
        })?;
        let tensor = match part {
            Some(_) => tensor.t().and_then(|tensor| tensor.contiguous()).map_err(Error::compute("turning a matrix"))?,
            None => tensor,
        };
        crate::device::to_device(&tensor, device)
            .map_err(Error::compute(format!("moving tensor `{name}` to the device")))
    }

    fn read_error(&self, info: &TensorInfo, error: std::io::Error) -> Error {
        let shard = &self.0.shards[info.shard];
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return Error::tensor(
                shard,
                &info.name,
                "the file has become shorter since it was opened".remedy("open it again"),
            );
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
        Ok(self.0.sha256.get_or_init(|| hex::encode(all.finalize())).clone())
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

/// Reads `config.json` in `dir`.
fn read_config(dir: &Path) -> Result<Map<String, Value>> {
    let path = dir.join("config.json");
    let text = match std::fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let problem = hints::dangling(&path)
                .unwrap_or_else(|| "missing".remedy("a checkpoint needs it beside its weights, download it too"));
            return Err(Error::file(&path, problem));
        }
        text => text.map_err(Error::io("read", &path))?,
    };
    json::object(&path, &text)
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
    if let Some(problem) = hints::dangling(dir) {
        return Err(Error::file(dir, problem));
    }
    let metadata = std::fs::metadata(dir).map_err(Error::io("open checkpoint", dir))?;
    if metadata.is_dir() {
        return Ok(());
    }
    let extension = dir.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let problem = match extension {
        "bin" | "pt" | "pth" | "ckpt" => {
            "a file of PyTorch".remedy("give the directory that holds config.json and safetensors weights")
        }
        "gguf" => "a GGUF file".remedy("make a checkpoint of it with `lacuna import FILE.gguf DIR`"),
        "safetensors" => "a single file".remedy("give the directory that holds it, config.json and the tokenizer"),
        _ => "not a directory".remedy("give the directory that holds config.json and model.safetensors"),
    };
    Err(Error::file(dir, problem))
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
