//! From the tensors that are in the files to those that they stand for.

use super::codec::{self, GROUP, Width};
use super::storage::{AGAIN, Storage};
use crate::checkpoint::{TensorInfo, header};
use crate::error::{Error, Remedy, Result};
use safetensors::Dtype;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Suffixes that the name of a tensor, or of its module, has in the names of the tensors that it is stored as.
pub(super) const VALUES: &str = ".values";
pub(super) const INDICES: &str = ".indices";
pub(super) const COMPRESSED: &str = ".compressed";
pub(super) const BITMASK: &str = ".bitmask";
pub(super) const ROW_OFFSETS: &str = ".row_offsets";
pub(super) const SHAPE: &str = ".shape";
/// The suffix that compressed-tensors cuts off a weight's name.
pub(super) const WEIGHT: &str = ".weight";

/// The dense tensors of a sparse checkpoint: their places in the files that they would be in, by name, and what each is
/// stored as.
pub(in crate::checkpoint) type DenseView = (Vec<TensorInfo>, HashMap<String, usize>, Vec<Storage>);

/// Returns whether a tensor of this name would be taken for a part of a sparse one.
pub(super) fn is_part(name: &str) -> bool {
    [VALUES, INDICES, COMPRESSED, BITMASK, ROW_OFFSETS].iter().any(|part| name.ends_with(part))
}

/// Finds what the `stored` tensors stand for; those of a shard stay in it, in their order.
///
/// # Errors
/// [`Error::Tensor`] when parts are missing or contradict each other; [`Error::Io`] when a shape cannot be read.
pub(in crate::checkpoint) fn dense_view(
    paths: &[PathBuf],
    files: &[File],
    stored: Vec<TensorInfo>,
) -> Result<DenseView> {
    let by_name = stored.iter().map(|info| (info.name.as_str(), info)).collect();
    let parts = Parts { paths, files, by_name };
    let mut shards: Vec<Vec<(TensorInfo, Storage)>> = paths.iter().map(|_| Vec::new()).collect();
    for info in &stored {
        if let Some(tensor) = parts.tensor(info)? {
            shards[info.shard].push(tensor);
        }
    }
    let (mut tensors, mut by_name, mut storage) = (Vec::new(), HashMap::new(), Vec::new());
    for (path, shard) in paths.iter().zip(shards) {
        let plans: Vec<_> = shard.iter().map(|(info, _)| (info.name.clone(), info.dtype, info.shape.clone())).collect();
        let header = header::write(&plans).map_err(|problem| Error::file(path, problem.remedy(AGAIN)))?;
        let mut at = header.len() as u64;
        for (mut info, stored) in shard {
            // Checked where the header was written.
            let bytes = header::byte_len(info.dtype, &info.shape).unwrap_or_default();
            info.range = at..at + bytes;
            at += bytes;
            if by_name.insert(info.name.clone(), tensors.len()).is_some() {
                let problem = format!("it is there twice, in {} a second time", path.display()).remedy(AGAIN);
                return Err(Error::tensor(path, info.name, problem));
            }
            tensors.push(info);
            storage.push(stored);
        }
    }
    Ok((tensors, by_name, storage))
}

struct Parts<'a> {
    paths: &'a [PathBuf],
    files: &'a [File],
    by_name: HashMap<&'a str, &'a TensorInfo>,
}

impl Parts<'_> {
    /// The tensor whose place `info` holds; `None` for a part that goes with another one.
    fn tensor(&self, info: &TensorInfo) -> Result<Option<(TensorInfo, Storage)>> {
        if let Some(base) = info.name.strip_suffix(COMPRESSED) {
            return self.bitmask(info, base).map(Some);
        }
        if let Some(base) = info.name.strip_suffix(VALUES) {
            return self.two_of_four(info, base).map(Some);
        }
        for (suffix, leader) in [(BITMASK, COMPRESSED), (ROW_OFFSETS, COMPRESSED), (INDICES, VALUES)] {
            if let Some(base) = info.name.strip_suffix(suffix) {
                return self.companion(info, base, leader).map(|_| None);
            }
        }
        let shape = info.name.strip_suffix(SHAPE);
        if shape.is_some_and(|base| self.by_name.contains_key(format!("{base}{COMPRESSED}").as_str())) {
            return Ok(None);
        }
        Ok(Some((info.clone(), Storage::Dense(info.clone()))))
    }

    fn path(&self, info: &TensorInfo) -> &Path {
        &self.paths[info.shard]
    }

    fn wrong(&self, part: &TensorInfo, problem: String) -> Error {
        Error::tensor(self.path(part), &part.name, problem.remedy(AGAIN))
    }

    /// The part `suffix` of the tensor that `of` is a part of.
    fn companion(&self, of: &TensorInfo, base: &str, suffix: &str) -> Result<&TensorInfo> {
        let name = format!("{base}{suffix}");
        let found = self.by_name.get(name.as_str()).copied();
        found.ok_or_else(|| self.wrong(of, format!("it is a part of a sparse tensor, whose part `{name}` is missing")))
    }

    fn expect(&self, part: &TensorInfo, dtype: Dtype, shape: &[usize]) -> Result<()> {
        if part.dtype == dtype && part.shape == shape {
            return Ok(());
        }
        let problem = format!("it is {} x {:?}, and its tensor needs {dtype} x {shape:?}", part.dtype, part.shape);
        Err(self.wrong(part, problem))
    }

    fn bitmask(&self, values: &TensorInfo, base: &str) -> Result<(TensorInfo, Storage)> {
        let (bitmask, shape) = (self.companion(values, base, BITMASK)?, self.companion(values, base, SHAPE)?);
        let (rows, cols) = self.matrix(shape)?;
        self.expect(bitmask, Dtype::U8, &[rows, codec::stride(cols)])?;
        let offsets = if values.shape.len() == 1 {
            let offsets = self.companion(values, base, ROW_OFFSETS)?;
            self.expect(offsets, Dtype::I64, &[rows])?;
            if values.elements() > rows as u64 * cols as u64 {
                let problem = format!("it has {} values, more than {rows} x {cols} elements", values.elements());
                return Err(self.wrong(values, problem));
            }
            Some(offsets.clone())
        } else {
            // `sparse-24-bitmask`, where every row keeps a half.
            self.expect(values, values.dtype, &[rows, cols / 2])?;
            None
        };
        let info = self.dense(values, format!("{base}{WEIGHT}"), rows, cols)?;
        let (values, bitmask, shape) = (values.clone(), bitmask.clone(), shape.clone());
        Ok((info, Storage::Bitmask { values, bitmask, offsets, shape }))
    }

    fn two_of_four(&self, values: &TensorInfo, base: &str) -> Result<(TensorInfo, Storage)> {
        let indices = self.companion(values, base, INDICES)?;
        let [rows, half] = values.shape[..] else {
            return Err(self.wrong(values, format!("its shape is {:?}, and 2:4 values are a matrix", values.shape)));
        };
        // Stored, it takes as many bytes at least.
        let cols = half.saturating_mul(2);
        if !cols.is_multiple_of(GROUP) {
            return Err(self.wrong(values, format!("rows of {half} values are not two of each four")));
        }
        self.expect(indices, Dtype::U8, &[rows, codec::stride(cols)])?;
        let info = self.dense(values, base.to_owned(), rows, cols)?;
        Ok((info, Storage::TwoOfFour { values: values.clone(), indices: indices.clone() }))
    }

    /// The tensor whose kept values are `values`; its place is found later.
    fn dense(&self, values: &TensorInfo, name: String, rows: usize, cols: usize) -> Result<TensorInfo> {
        let (dtype, shape) = (values.dtype, vec![rows, cols]);
        if Width::of(dtype).is_none() || header::byte_len(dtype, &shape).is_none() {
            return Err(self.wrong(values, format!("{dtype} x {shape:?} is not a possible size")));
        }
        Ok(TensorInfo { name, dtype, shape, shard: values.shard, range: 0..0 })
    }

    /// Rows and columns, from the tensor that holds them.
    fn matrix(&self, shape: &TensorInfo) -> Result<(usize, usize)> {
        if shape.dtype != Dtype::I64 || shape.elements() != 2 {
            let problem =
                format!("it is {} x {:?}, and only matrices, of two I64, are stored sparse", shape.dtype, shape.shape);
            return Err(self.wrong(shape, problem));
        }
        let mut bytes = [0; 16];
        self.files[shape.shard]
            .read_exact_at(&mut bytes, shape.range.start)
            .map_err(Error::io("read", self.path(shape)))?;
        let dims: Vec<usize> =
            bytes.as_chunks().0.iter().filter_map(|dim| usize::try_from(i64::from_le_bytes(*dim)).ok()).collect();
        match dims[..] {
            [rows, cols] if rows.checked_mul(cols).is_some() => Ok((rows, cols)),
            _ => Err(self.wrong(shape, "it holds no possible shape".into())),
        }
    }
}
