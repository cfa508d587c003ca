//! Arrays of numbers that are no model's weights (statistics, losses, tokens), in a directory of their own.

use super::{Checkpoint, CheckpointWriter, TensorPlan};
use crate::error::{Error, Result};
use std::path::Path;

/// Values of one array, row-major.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Array<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    U32(&'a [u32]),
}

impl CheckpointWriter {
    /// Plans arrays, which [`CheckpointWriter::write_array`] then gives, at `dir`, which must not exist.
    ///
    /// # Errors
    /// As [`CheckpointWriter::create`].
    pub(crate) fn arrays(dir: &Path, plan: Vec<TensorPlan>) -> Result<CheckpointWriter> {
        CheckpointWriter::create(dir, vec![plan])
    }

    /// Writes an array of the planned type and size.
    ///
    /// # Errors
    /// As [`CheckpointWriter::write`].
    pub(crate) fn write_array(&mut self, name: &str, array: Array<'_>) -> Result<()> {
        /// Elements that are turned into bytes at a time.
        const PIECE: usize = 1 << 16;
        macro_rules! pieces {
            ($values:expr) => {
                for piece in $values.chunks(PIECE) {
                    let bytes: Vec<u8> = piece.iter().flat_map(|value| value.to_le_bytes()).collect();
                    self.append(name, &bytes)?;
                }
            };
        }
        match array {
            Array::F32(values) => pieces!(values),
            Array::F64(values) => pieces!(values),
            Array::U32(values) => pieces!(values),
        }
        Ok(())
    }
}

impl Checkpoint {
    /// Opens what [`CheckpointWriter::arrays`] wrote to `dir`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub(crate) fn open_arrays(dir: &Path) -> Result<Checkpoint> {
        Checkpoint::open_files(dir, vec![dir.join("model.safetensors")])
    }

    /// An array of f32, f64 or u32 as it was written.
    ///
    /// # Errors
    /// [`Error::Tensor`] when there is none, or its elements have another size; [`Error::Io`].
    pub(crate) fn array<T, const BYTES: usize>(&self, name: &str, of: fn([u8; BYTES]) -> T) -> Result<Vec<T>> {
        if self.get(name)?.dtype.bitsize() != 8 * BYTES {
            return Err(Error::tensor(self.dir(), name, format!("its elements have not {BYTES} bytes")));
        }
        let bytes = self.read(name)?;
        Ok(bytes.as_chunks::<BYTES>().0.iter().map(|&bytes| of(bytes)).collect())
    }
}
