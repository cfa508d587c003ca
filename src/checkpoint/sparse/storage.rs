//! The stored form of a dense tensor, from which all of its bytes or any part of them are read.

use super::codec::{self, GROUP, Width};
use super::{SparseFormat, Stored};
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::{Error, Remedy, Result};

/// The remedy for parts that contradict each other.
pub(super) const AGAIN: &str = "download them again, or compress the model again";

/// The stored form of a tensor.
#[derive(Debug)]
pub(in crate::checkpoint) enum Storage {
    /// Itself.
    Dense(TensorInfo),
    /// Kept values in the order of rows, a bit for each element, and where in the values each row begins (without it each
    /// row keeps a half).
    Bitmask { values: TensorInfo, bitmask: TensorInfo, offsets: Option<TensorInfo>, shape: TensorInfo },
    /// Two values of each four elements, and four bits for their places.
    TwoOfFour { values: TensorInfo, indices: TensorInfo },
}

impl Storage {
    pub(in crate::checkpoint) fn stored(&self) -> Stored {
        match self {
            Storage::Dense(info) => Stored { format: None, bytes: info.bytes() },
            Storage::Bitmask { values, bitmask, offsets, shape } => Stored {
                format: Some(SparseFormat::Bitmask),
                bytes: values.bytes() + bitmask.bytes() + offsets.as_ref().map_or(0, TensorInfo::bytes) + shape.bytes(),
            },
            Storage::TwoOfFour { values, indices } => {
                Stored { format: Some(SparseFormat::TwoOfFour), bytes: values.bytes() + indices.bytes() }
            }
        }
    }

    /// Fills `out` with the bytes of the dense tensor `info` that begin `at` bytes into it, which it has. Reads the rows
    /// that they lie in, and of their values no others.
    ///
    /// # Errors
    /// [`Error::Tensor`] when positions and values contradict each other; [`Error::Io`] when reading fails.
    pub(in crate::checkpoint) fn read(
        &self,
        files: &Checkpoint,
        info: &TensorInfo,
        at: u64,
        out: &mut [u8],
    ) -> Result<()> {
        if let Storage::Dense(info) = self {
            return files.read_stored(info, at, out);
        }
        let [_, cols] = info.shape[..] else {
            return Err(Error::tensor(files.dir(), &info.name, "only a matrix can be stored sparse"));
        };
        let Some(width) = Width::of(info.dtype) else {
            let problem = format!("elements of {} cannot be stored sparse", info.dtype);
            return Err(Error::tensor(files.dir(), &info.name, problem));
        };
        let bytes = width.bytes() as u64;
        let (first, end) = (at / bytes, (at + out.len() as u64).div_ceil(bytes));
        if first == end {
            return Ok(());
        }
        let rows = Rows { files, width, cols, first, end };
        if at.is_multiple_of(bytes) && (out.len() as u64).is_multiple_of(bytes) {
            out.fill(0);
            return rows.read(self, out);
        }
        // A part of an element: only a stream of bytes asks for it.
        let mut whole = vec![0; ((end - first) * bytes) as usize];
        rows.read(self, &mut whole)?;
        let skip = (at - first * bytes) as usize;
        out.copy_from_slice(&whole[skip..skip + out.len()]);
        Ok(())
    }
}

/// Elements `first..end` of a matrix.
struct Rows<'a> {
    files: &'a Checkpoint,
    width: Width,
    cols: usize,
    first: u64,
    end: u64,
}

impl Rows<'_> {
    fn read(&self, storage: &Storage, out: &mut [u8]) -> Result<()> {
        match storage {
            Storage::Dense(_) => Ok(()),
            Storage::Bitmask { values, bitmask, offsets, .. } => {
                self.read_bitmask(values, bitmask, offsets.as_ref(), out)
            }
            Storage::TwoOfFour { values, indices } => self.read_two_of_four(values, indices, out),
        }
    }

    /// The rows that the elements lie in.
    fn span(&self) -> (u64, u64) {
        (self.first / self.cols as u64, (self.end - 1) / self.cols as u64 + 1)
    }

    /// The range of elements of row `row` that were asked for.
    fn part(&self, row: u64) -> (usize, usize) {
        let (cols, begin) = (self.cols as u64, row * self.cols as u64);
        (self.first.saturating_sub(begin) as usize, (self.end - begin).min(cols) as usize)
    }

    fn damaged(&self, part: &TensorInfo, problem: String) -> Error {
        Error::tensor(&self.files.shards()[part.shard], &part.name, problem.remedy(AGAIN))
    }

    /// Reads bytes `from..to` of a stored tensor.
    fn bytes(&self, part: &TensorInfo, from: u64, to: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (to - from) as usize];
        self.files.read_stored(part, from, &mut bytes)?;
        Ok(bytes)
    }

    fn read_bitmask(
        &self,
        values: &TensorInfo,
        bitmask: &TensorInfo,
        offsets: Option<&TensorInfo>,
        out: &mut [u8],
    ) -> Result<()> {
        let ((top, bottom), stride) = (self.span(), codec::stride(self.cols));
        let masks = self.bytes(bitmask, top * stride as u64, bottom * stride as u64)?;
        let starts = match offsets {
            Some(offsets) => self.row_starts(offsets, values, top, bottom)?,
            None => (top..=bottom).map(|row| row * (self.cols / 2) as u64).collect(),
        };
        let masks: Vec<&[u8]> = masks.chunks_exact(stride).collect();
        for ((row, mask), start) in (top..).zip(&masks).zip(starts.windows(2)) {
            let ones = codec::ones_before(mask, stride * 8);
            if ones as u64 != start[1] - start[0] {
                let problem = format!(
                    "row {row} has {ones} bits set, and `{}` has {} values for it",
                    values.name,
                    start[1] - start[0]
                );
                return Err(self.damaged(bitmask, problem));
            }
            if codec::ones_before(mask, self.cols) != ones {
                return Err(self.damaged(bitmask, format!("row {row} has bits set beyond its {} elements", self.cols)));
            }
        }
        // The first and last row may be asked for in part.
        let (Some(first), Some(last)) = (masks.first(), masks.last()) else { return Ok(()) };
        let from = starts[0] + codec::ones_before(first, self.part(top).0) as u64;
        let to = starts[masks.len() - 1] + codec::ones_before(last, self.part(bottom - 1).1) as u64;
        let bytes = self.width.bytes();
        let kept = self.bytes(values, from * bytes as u64, to * bytes as u64)?;
        let (mut kept, mut out) = (kept.as_slice(), out);
        for (row, mask) in (top..).zip(masks) {
            let (first, end) = self.part(row);
            let (part, rest) = out.split_at_mut((end - first) * bytes);
            let used = codec::unpack_bitmask(self.width, mask, first, kept, part);
            (kept, out) = (&kept[used * bytes..], rest);
        }
        Ok(())
    }

    /// Positions among the values at which rows `top..bottom` begin, and at which the last one ends.
    fn row_starts(&self, offsets: &TensorInfo, values: &TensorInfo, top: u64, bottom: u64) -> Result<Vec<u64>> {
        let (rows, total) = (offsets.elements(), values.elements());
        let bytes = self.bytes(offsets, top * 8, (bottom + 1).min(rows) * 8)?;
        let mut starts: Vec<u64> = bytes.as_chunks().0.iter().map(|start| u64::from_le_bytes(*start)).collect();
        if bottom == rows {
            starts.push(total);
        }
        let first = if top == 0 { starts.first() } else { None };
        // A negative number is a large one here.
        if first.is_some_and(|&start| start != 0)
            || !starts.is_sorted()
            || starts.last().is_some_and(|&end| end > total)
        {
            let problem =
                format!("the rows from {top} to {} do not lie one after another in the {total} values", bottom - 1);
            return Err(self.damaged(offsets, problem));
        }
        Ok(starts)
    }

    fn read_two_of_four(&self, values: &TensorInfo, indices: &TensorInfo, out: &mut [u8]) -> Result<()> {
        let ((top, bottom), stride, group) = (self.span(), codec::stride(self.cols), GROUP as u64);
        let places = self.bytes(indices, top * stride as u64, bottom * stride as u64)?;
        let (first_group, end_group) = (self.first / group, self.end.div_ceil(group));
        let pair = 2 * self.width.bytes() as u64;
        let kept = self.bytes(values, first_group * pair, end_group * pair)?;
        let mut out = out;
        for (row, places) in (top..).zip(places.chunks_exact(stride)) {
            let (first, end) = self.part(row);
            let (part, rest) = out.split_at_mut((end - first) * self.width.bytes());
            let before = (row * self.cols as u64 + first as u64) / group - first_group;
            let kept = &kept[(before * pair) as usize..];
            codec::unpack_two_of_four(self.width, places, first, kept, part).map_err(|group| {
                let columns = format!("{} to {}", group * GROUP, group * GROUP + GROUP - 1);
                self.damaged(indices, format!("row {row}, columns {columns}: the two positions do not ascend"))
            })?;
            out = rest;
        }
        Ok(())
    }
}
