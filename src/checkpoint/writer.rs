//! Writing a checkpoint: beside its final place, then renamed into it, so that it is there whole or not at all.

use super::INDEX;
use super::convert::{self, ConversionFailure};
use super::index::{self, is_file_name, shard_name};
use super::names::Names;
use super::parts::{Parts, transpose};
use super::{Checkpoint, header};
use crate::error::{Error, Problem, Remedy, Result};
pub(super) use crate::files::refuse_existing;
use crate::files::{NewDir, folder_of};
use crate::progress::check_interrupt;
use candle_core::{DType, Tensor};
use safetensors::Dtype;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A tensor that will be written: name, type in the file, shape.
pub type TensorPlan = (String, Dtype, Vec<usize>);

/// Extensions of files in a model's directory that hold weights in any form, or that a download left.
const NOT_COPIED: [&str; 18] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "gguf",
    "h5",
    "msgpack",
    "onnx",
    "onnx_data",
    "ckpt",
    "npz",
    "npy",
    "ot",
    "pb",
    "pkl",
    "tflite",
    "lock",
    "part",
];

/// Writes a checkpoint tensor by tensor, in any order. Dropped before [`CheckpointWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub struct CheckpointWriter {
    dir: NewDir,
    shards: Vec<File>,
    slots: HashMap<String, Slot>,
    /// Tensor names in file order, for the index.
    order: Vec<String>,
    /// The names of the tensors in the files.
    names: Names,
    other_files: BTreeSet<String>,
    /// Parts of tensors that may be written one by one.
    parts: Arc<Parts>,
}

#[derive(Debug)]
struct Slot {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: u64,
    bytes: u64,
    /// Bytes that are in the file already.
    filled: u64,
    written: bool,
}

impl CheckpointWriter {
    /// Plans a checkpoint at `out`, which must not exist, and reserves nothing but a hidden directory beside it. One
    /// shard becomes `model.safetensors`, several get Hugging Face's names and an index. Within a shard, tensors with
    /// wider elements come first, so that all are aligned; otherwise the order is kept.
    ///
    /// # Errors
    /// [`Error::File`] when `out` exists, its file system is too small, or the plan is empty or names a tensor twice;
    /// [`Error::Io`] when its parent is missing or not writable.
    pub fn create(out: &Path, shards: Vec<Vec<TensorPlan>>) -> Result<Self> {
        Self::create_named(out, shards, Names::default())
    }

    /// As [`CheckpointWriter::create`], for tensors of `source` or parts of them, which keep the names that they have
    /// in its files.
    ///
    /// # Errors
    /// Those of [`CheckpointWriter::create`].
    pub(crate) fn create_from(source: &Checkpoint, out: &Path, shards: Vec<Vec<TensorPlan>>) -> Result<Self> {
        Self::create_named(out, shards, source.names().clone())
    }

    fn create_named(out: &Path, shards: Vec<Vec<TensorPlan>>, names: Names) -> Result<Self> {
        refuse_existing(out)?;
        if shards.is_empty() || shards.iter().any(Vec::is_empty) {
            return Err(Error::file(out, "a checkpoint needs at least one tensor in every shard"));
        }
        let needed = shards.iter().flatten().filter_map(|(_, dtype, shape)| header::byte_len(*dtype, shape)).sum();
        if let Some(available) = available_bytes(folder_of(out)).filter(|&available| available < needed) {
            return Err(Error::file(out, disk_full(&format!("{needed} bytes are needed, {available} are free"))));
        }
        let mut writer = Self {
            dir: NewDir::create(out)?,
            shards: Vec::new(),
            slots: HashMap::new(),
            order: Vec::new(),
            names,
            other_files: BTreeSet::new(),
            parts: Arc::default(),
        };
        let of = shards.len();
        for (shard, tensors) in shards.into_iter().enumerate() {
            writer.add_shard(shard, of, tensors)?;
        }
        Ok(writer)
    }

    /// Plans the tensors of `source`, in the same shards; floating-point ones (f32, f64, f16, bf16) become `dtype` if
    /// given.
    ///
    /// # Errors
    /// Those of [`CheckpointWriter::create`]; [`Error::Argument`] when `dtype` is not a floating-point type.
    pub fn like(source: &Checkpoint, out: &Path, dtype: Option<DType>) -> Result<Self> {
        let dtype = dtype.map(dtype_of).transpose()?;
        let mut shards = vec![Vec::new(); source.shards().len()];
        for info in source.tensors() {
            let floating = matches!(info.dtype, Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16);
            let dtype = dtype.filter(|_| floating).unwrap_or(info.dtype);
            shards[info.shard].push((info.name.clone(), dtype, info.shape.clone()));
        }
        shards.retain(|shard| !shard.is_empty());
        Ok(Self { parts: source.1.clone(), ..Self::create_from(source, out, shards)? })
    }

    fn add_shard(&mut self, shard: usize, of: usize, mut tensors: Vec<TensorPlan>) -> Result<()> {
        tensors.sort_by_key(|(_, dtype, _)| std::cmp::Reverse(dtype.bitsize()));
        let stored = |(name, dtype, shape): &TensorPlan| (self.names.stored(name).into_owned(), *dtype, shape.clone());
        let stored: Vec<TensorPlan> = tensors.iter().map(stored).collect();
        let header = header::write(&stored).map_err(|problem| Error::file(self.dir.out(), problem))?;
        let mut start = header.len() as u64;
        for (name, dtype, shape) in tensors {
            // `header::write` has refused impossible sizes.
            let bytes = header::byte_len(dtype, &shape).unwrap_or_default();
            let slot = Slot { shard, dtype, shape, start, bytes, filled: 0, written: false };
            if self.slots.insert(name.clone(), slot).is_some() {
                return Err(Error::file(self.dir.out(), format!("two shards were to hold a tensor called `{name}`")));
            }
            self.order.push(name);
            start += bytes;
        }
        let path = self.dir.path().join(shard_name(shard, of));
        let file = File::create_new(&path).map_err(|e| self.write_error("create", e))?;
        file.write_all_at(&header, 0).map_err(|e| self.write_error("write", e))?;
        self.shards.push(file);
        Ok(())
    }

    /// A file that is full must be told from one that is forbidden; both name the final path.
    fn write_error(&self, action: &'static str, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::file(self.dir.out(), disk_full(&error.to_string()))
            }
            _ => Error::io(action, self.dir.out())(error),
        }
    }

    fn slot(&self, name: &str) -> Result<&Slot> {
        let slot = self.slots.get(name);
        let slot = slot.ok_or_else(|| Error::tensor(self.dir.out(), name, "it was not planned for this checkpoint"))?;
        if slot.written { Err(Error::tensor(self.dir.out(), name, "it was already written")) } else { Ok(slot) }
    }

    /// Writes a tensor's bytes, in the planned type.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the tensor was not planned, is written already, or has another length; [`Error::File`]
    /// when the disk is full; [`Error::Io`] when writing fails.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if self.is_part(name) {
            return self.write_part(name, bytes);
        }
        let slot = self.slot(name)?;
        if bytes.len() as u64 != slot.bytes {
            let problem =
                format!("{} bytes were given, {} x {:?} takes {}", bytes.len(), slot.dtype, slot.shape, slot.bytes);
            return Err(Error::tensor(self.dir.out(), name, problem));
        }
        self.shards[slot.shard].write_all_at(bytes, slot.start).map_err(|e| self.write_error("write", e))?;
        self.wrote(name)
    }

    /// Writes the next bytes of a tensor, in the planned type; it is written once all of them are there.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the tensor was not planned, or has fewer bytes left; [`Error::File`] when the disk is full;
    /// [`Error::Io`] when writing fails.
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        // The last rows of a matrix may have no values to add to those that are complete.
        if bytes.is_empty() && self.slots.get(name).is_some_and(|slot| slot.written) {
            return Ok(());
        }
        let slot = self.slot(name)?;
        let filled = slot.filled + bytes.len() as u64;
        if filled > slot.bytes {
            let problem = format!("{filled} bytes were given, {} x {:?} takes {}", slot.dtype, slot.shape, slot.bytes);
            return Err(Error::tensor(self.dir.out(), name, problem));
        }
        let at = slot.start + slot.filled;
        self.shards[slot.shard].write_all_at(bytes, at).map_err(|e| self.write_error("write", e))?;
        if let Some(slot) = self.slots.get_mut(name) {
            slot.filled = filled;
            slot.written = filled == slot.bytes;
        }
        Ok(())
    }

    /// Writes a tensor of f32, f64, f16 or bf16 from any device, converted to the planned type.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the tensor was not planned, is written already, has another shape, or is not of floating
    /// point; [`Error::File`] when the disk is full; [`Error::Io`] when writing fails; [`Error::Compute`] when the
    /// device refuses to give it.
    pub fn write_tensor(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        if self.is_part(name) {
            return self.write_part_tensor(name, tensor);
        }
        let slot = self.slot(name)?;
        if tensor.dims() != slot.shape {
            let problem = format!("its shape is {:?}, planned was {:?}", tensor.dims(), slot.shape);
            return Err(Error::tensor(self.dir.out(), name, problem));
        }
        convert::write(&self.shards[slot.shard], slot.start, tensor, slot.dtype).map_err(|e| self.failure(name, e))?;
        self.wrote(name)
    }

    fn failure(&self, name: &str, failure: ConversionFailure) -> Error {
        match failure {
            ConversionFailure::Io(e) => self.write_error("write", e),
            ConversionFailure::Read(e) => e,
            ConversionFailure::Unsupported(file, memory) => {
                let problem = format!("cannot write {memory} as {file}").remedy("both must be f32, f64, f16 or bf16");
                Error::tensor(self.dir.out(), name, problem)
            }
            ConversionFailure::NotFinite(at) => {
                Error::tensor(self.dir.out(), name, format!("element {at} is NaN or infinite"))
            }
            ConversionFailure::Candle(e) => Error::compute(format!("fetching tensor `{name}`"))(e),
        }
    }

    /// Returns whether `name` is a part of a tensor that was planned, and not a planned tensor itself.
    fn is_part(&self, name: &str) -> bool {
        !self.slots.contains_key(name) && self.parts.get(name).is_some()
    }

    /// The slot that the part called `name` lies in, and where the part begins there, in bytes.
    fn part_slot(&self, name: &str) -> Result<(&super::Part, &Slot, u64)> {
        let unplanned = || Error::tensor(self.dir.out(), name, "it was not planned for this checkpoint");
        let (part, _) = self.parts.get(name).ok_or_else(unplanned)?;
        let slot = self.slot(&part.of)?;
        Ok((part, slot, slot.start + part.start * (slot.dtype.bitsize() / 8) as u64))
    }

    /// Notes that so many bytes of the tensor that `part` lies in are there; a part is to be written once.
    fn wrote_part(&mut self, part: &str, bytes: u64) -> Result<()> {
        let of = self.part_slot(part)?.0.of.clone();
        if let Some(slot) = self.slots.get_mut(&of) {
            slot.filled += bytes;
            slot.written = slot.filled >= slot.bytes;
        }
        Ok(())
    }

    fn write_part(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let (part, slot, at) = self.part_slot(name)?;
        let width = slot.dtype.bitsize() / 8;
        if bytes.len() != part.shape.iter().product::<usize>() * width {
            let problem = format!("{} bytes were given for {:?} of {}", bytes.len(), part.shape, slot.dtype);
            return Err(Error::tensor(self.dir.out(), name, problem));
        }
        let file = &self.shards[slot.shard];
        let written = if part.transposed {
            file.write_all_at(&transpose(bytes, part.shape[0], width), at)
        } else {
            file.write_all_at(bytes, at)
        };
        written.map_err(|e| self.write_error("write", e))?;
        self.wrote_part(name, bytes.len() as u64)
    }

    fn write_part_tensor(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let (part, slot, at) = self.part_slot(name)?;
        if tensor.dims() != part.shape {
            let problem = format!("its shape is {:?}, planned was {:?}", tensor.dims(), part.shape);
            return Err(Error::tensor(self.dir.out(), name, problem));
        }
        let turned =
            if part.transposed { tensor.t().and_then(|tensor| tensor.contiguous()) } else { Ok(tensor.clone()) };
        let turned = turned.map_err(Error::compute("turning a matrix"))?;
        let bytes = (tensor.elem_count() * slot.dtype.bitsize() / 8) as u64;
        convert::write(&self.shards[slot.shard], at, &turned, slot.dtype).map_err(|e| self.failure(name, e))?;
        self.wrote_part(name, bytes)
    }

    fn wrote(&mut self, name: &str) -> Result<()> {
        if let Some(slot) = self.slots.get_mut(name) {
            slot.written = true;
        }
        Ok(())
    }

    /// Adds a file beside the weights (`config.json`, `lacuna.json`), or replaces one added before.
    ///
    /// # Errors
    /// [`Error::Argument`] when `name` is not a plain file name or is one of the weight files; [`Error::File`] when the
    /// disk is full; [`Error::Io`] when writing fails.
    pub fn add_file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if !is_file_name(name) || name == INDEX || name.ends_with(".safetensors") {
            return Err(Error::argument("file name", name, "give a plain name that is not a weight file's"));
        }
        std::fs::write(self.dir.path().join(name), bytes).map_err(|e| self.write_error("write", e))?;
        self.other_files.insert(name.to_owned());
        Ok(())
    }

    /// Copies tokenizer, generation settings, licence and every other file of `source` that holds no weights, except
    /// those added before and what tells how `source` itself was made.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read; those of [`CheckpointWriter::add_file`].
    pub fn copy_others(&mut self, source: &Checkpoint) -> Result<()> {
        for path in side_files(source.dir())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name == "config.json" && source.is_sparse() && !self.other_files.contains(&name) {
                // It says of the weights that they are stored sparse, and here they are not.
                let config = Value::Object(source.config()?);
                self.add_file(&name, format!("{config:#}\n").as_bytes())?;
            } else if !self.other_files.contains(&name) {
                let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
                self.add_file(&name, &bytes)?;
            }
        }
        Ok(())
    }

    /// Adds the record of how the output was made (`lacuna.json`) and the files beside the weights of `source`, and lets the
    /// output appear.
    ///
    /// # Errors
    /// Those of [`CheckpointWriter::copy_others`] and [`CheckpointWriter::finish`]; [`Error::Interrupted`].
    pub(crate) fn finish_with(mut self, source: &Checkpoint, record: &impl Serialize) -> Result<()> {
        let json = serde_json::to_vec_pretty(record).map_err(|error| Error::file(self.dir.out(), error))?;
        self.add_file("lacuna.json", &json)?;
        self.copy_others(source)?;
        check_interrupt()?;
        self.finish()
    }

    /// Flushes everything to the disk and renames it into place.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a planned tensor was not written; [`Error::File`] when the disk is full, or the output
    /// has come to exist meanwhile; [`Error::Io`] when flushing or renaming fails. Nothing is left in any of these cases.
    pub fn finish(mut self) -> Result<()> {
        let missing: Vec<&String> =
            self.order.iter().filter(|name| self.slots.get(*name).is_none_or(|slot| !slot.written)).collect();
        if let Some(first) = missing.first() {
            let problem =
                format!("it was planned but not written ({} of {} are missing)", missing.len(), self.order.len());
            return Err(Error::tensor(self.dir.out(), first.as_str(), problem));
        }
        if self.shards.len() > 1 {
            let of = self.shards.len();
            let placed = self.order.iter().filter_map(|name| {
                Some((self.names.stored(name).into_owned(), shard_name(self.slots.get(name)?.shard, of)))
            });
            let text = index::write(placed, self.slots.values().map(|slot| slot.bytes).sum());
            std::fs::write(self.dir.path().join(INDEX), text).map_err(|e| self.write_error("write", e))?;
            self.other_files.insert(INDEX.to_owned());
        }
        for file in &self.shards {
            file.sync_all().map_err(|e| self.write_error("flush", e))?;
        }
        for name in &self.other_files {
            let path = self.dir.path().join(name);
            File::open(&path).and_then(|file| file.sync_all()).map_err(|e| self.write_error("flush", e))?;
        }
        self.dir.finish()
    }
}

/// safetensors' name of candle's floating-point `dtype`.
///
/// # Errors
/// [`Error::Argument`] for any other type.
pub fn dtype_of(dtype: DType) -> Result<Dtype> {
    match dtype {
        DType::F32 => Ok(Dtype::F32),
        DType::F64 => Ok(Dtype::F64),
        DType::F16 => Ok(Dtype::F16),
        DType::BF16 => Ok(Dtype::BF16),
        other => Err(Error::argument("dtype", other.as_str(), "weights can be f32, f64, f16 or bf16")),
    }
}

/// Deals tensors out to shards of at most `max_bytes` each (a larger tensor gets a shard of its own), keeping the order.
pub fn plan_shards(tensors: Vec<TensorPlan>, max_bytes: u64) -> Vec<Vec<TensorPlan>> {
    deal_out(tensors, max_bytes, |(_, dtype, shape)| header::byte_len(*dtype, shape).unwrap_or(u64::MAX))
}

/// Deals items out to groups of at most `max_bytes` each (a larger item gets a group of its own), keeping the order.
pub(crate) fn deal_out<T>(items: Vec<T>, max_bytes: u64, bytes: impl Fn(&T) -> u64) -> Vec<Vec<T>> {
    let mut groups: Vec<Vec<T>> = Vec::new();
    let mut filled = u64::MAX;
    for item in items {
        let bytes = bytes(&item);
        filled = filled.saturating_add(bytes);
        match groups.last_mut() {
            Some(group) if filled <= max_bytes => group.push(item),
            _ => {
                filled = bytes;
                groups.push(vec![item]);
            }
        }
    }
    groups
}

/// The files of a model's directory that hold no weights, sorted; without what tells how that directory itself was
/// made (`lacuna.json`, `manifest.json`) and whatever a download left.
pub(super) fn side_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if is_side_file(name) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Returns whether a file of that name in a model's directory, or in the root of a repository, holds neither weights
/// nor an account of how they were made.
pub(super) fn is_side_file(name: &str) -> bool {
    is_beside_weights(name) && !["lacuna.json", "manifest.json"].contains(&name)
}

/// Returns whether a name is a plain one, neither of weights in any form nor of a download's leftovers. Everything else
/// may be needed: tokenizers have files of many kinds, and `auto_map` in `config.json` names Python modules.
pub(super) fn is_beside_weights(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let weights = NOT_COPIED.contains(&extension) || name.ends_with(".index.json");
    is_file_name(name) && !weights && !name.starts_with('.')
}

pub(super) fn disk_full(detail: &str) -> Problem {
    format!("the disk is full ({detail})").remedy("free some space, or choose an output directory on another disk")
}

/// Free bytes of the file system under `dir`; `None` if the system does not say.
pub fn available_bytes(dir: &Path) -> Option<u64> {
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    let mut stats = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` ends in NUL, `stats` is large enough, and is read only if the call filled it.
    let stats = unsafe {
        if libc::statvfs(path.as_ptr(), stats.as_mut_ptr()) != 0 {
            return None;
        }
        stats.assume_init()
    };
    // Their types differ between systems.
    u64::try_from(stats.f_bavail as u128 * stats.f_frsize as u128).ok()
}
