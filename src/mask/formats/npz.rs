//! NumPy's `.npz`: a zip archive with one `.npy` file for each array.

use super::archive::{Archive, ArchiveWriter};
use super::{Codec, Convention, Found, matrix, no_matrix, one, wrong_type};
use crate::error::{Error, Remedy, Result};
use crate::mask::Mask;
use safetensors::Dtype;
use std::fs::File;
use std::path::Path;

/// NumPy's archives.
pub(super) const CODEC: Codec = Codec { extensions: &["npz"], read, write };

/// The array that holds our metadata: the bytes of their JSON.
const METADATA: &str = "__metadata__";
const MAGIC: &[u8] = b"\x93NUMPY";

/// The header of a `.npy` file, and where its data begin.
struct Npy {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
    data: usize,
}

impl Npy {
    fn parse(bytes: &[u8]) -> Result<Npy, String> {
        let rest = bytes.strip_prefix(MAGIC).ok_or("is no .npy file")?;
        let (start, length) = match rest {
            [1, _, a, b, ..] => (10, usize::from(u16::from_le_bytes([*a, *b]))),
            [2 | 3, _, a, b, c, d, ..] => (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
            [version, ..] if *version > 3 => return Err(format!("has .npy version {version}, which is not known")),
            _ => return Err("is cut off in its header".into()),
        };
        let text = bytes.get(start..).and_then(|rest| rest.get(..length)).ok_or("is cut off in its header")?;
        let text = std::str::from_utf8(text).map_err(|_| "has a header that is no text")?;
        let wrong = || format!("has the header {:?}, which is not understood", text.trim_end());
        let value = |key: &str| {
            let (_, after) = text.split_once(&format!("'{key}':"))?;
            Some(after.trim_start())
        };
        let descr = value("descr").ok_or_else(wrong)?;
        let descr = match descr.strip_prefix('\'') {
            Some(descr) => descr.split_once('\'').ok_or_else(wrong)?.0,
            // A list: a structured type.
            None => descr.split_once(']').map_or(descr, |(list, _)| list),
        };
        let fortran = match value("fortran_order").ok_or_else(wrong)? {
            text if text.starts_with("True") => true,
            text if text.starts_with("False") => false,
            _ => return Err(wrong()),
        };
        let shape = value("shape").and_then(|text| text.strip_prefix('(')?.split_once(')')).ok_or_else(wrong)?.0;
        let dims = shape.split(',').map(str::trim).filter(|dim| !dim.is_empty());
        let shape = dims.map(|dim| dim.trim_end_matches('L').parse()).collect::<Result<_, _>>().map_err(|_| wrong())?;
        Ok(Npy { descr: descr.to_owned(), fortran, shape, data: start + length })
    }

    /// The bytes that stand before the data of `count` elements of one byte each.
    fn header(descr: &str, shape: &str) -> Vec<u8> {
        let mut dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
        // The data begin on a multiple of 64, after a newline.
        let padding = 64 - (10 + dict.len() + 1) % 64;
        dict.extend(std::iter::repeat_n(' ', padding % 64));
        dict.push('\n');
        let mut bytes = MAGIC.to_vec();
        bytes.extend([1, 0]);
        // Two numbers of at most 20 digits leave it below 200 bytes.
        bytes.extend((dict.len() as u16).to_le_bytes());
        bytes.extend(dict.into_bytes());
        bytes
    }
}

fn read(path: &Path, file: File) -> Result<Found> {
    let mut archive = Archive::open(path, file)?;
    let (mut metadata, mut masks) = (None, Vec::new());
    let entries = archive.names()?;
    let names = || entries.iter().map(|entry| entry.strip_suffix(".npy").unwrap_or(entry));
    let convention = if names().any(|name| name == METADATA) { Convention::Pruned } else { Convention::of(names()) };
    for (entry, name) in entries.iter().zip(names()) {
        let Some(weight) = convention.weight(name) else { continue };
        let bytes = archive.read(entry)?;
        let problem = |problem: String| Error::tensor(path, name, problem.remedy("was the file written by NumPy?"));
        let Npy { descr, fortran, shape, data } = Npy::parse(&bytes).map_err(problem)?;
        let data = &bytes[data..];
        if name == METADATA && dtype_of(&descr) == Some(Dtype::U8) {
            let text = String::from_utf8(data.to_vec()).map_err(|_| problem("is no text".into()))?;
            metadata = Some(text);
            continue;
        }
        let one = dtype_of(&descr).and_then(|dtype| one(dtype, convention));
        let one = one.ok_or_else(|| wrong_type(path, name, &descr))?;
        let (rows, cols) = matrix(&shape).ok_or_else(|| no_matrix(path, name, &shape))?;
        if rows.checked_mul(cols).and_then(|count| count.checked_mul(one.width())) != Some(data.len()) {
            return Err(problem(format!("has {} bytes, which are not those of {shape:?}", data.len())));
        }
        let strides = if fortran { [1, rows] } else { [cols, 1] };
        let mask = one.bytes(data.to_vec()).and_then(|data| Mask::from_bytes((rows, cols), &data, 0, strides));
        masks.push((weight, convention.mask(mask.map_err(|e| Error::tensor(path, name, e))?)));
    }
    Ok(Found { metadata, masks })
}

/// The type that NumPy's name `descr` stands for; `None` for types that no mask has, and for big-endian ones.
fn dtype_of(descr: &str) -> Option<Dtype> {
    Some(match descr.trim_start_matches(['|', '<', '=']) {
        "b1" | "?" | ">b1" => Dtype::BOOL,
        "u1" | ">u1" => Dtype::U8,
        "f2" => Dtype::F16,
        "f4" => Dtype::F32,
        "f8" => Dtype::F64,
        _ => return None,
    })
}

fn write(path: &Path, file: &mut File, metadata: Option<&str>, masks: &[(String, Mask)]) -> Result<()> {
    let mut archive = ArchiveWriter::new(path, file);
    if let Some(text) = metadata {
        let header = Npy::header("|u1", &format!("{},", text.len()));
        archive.add(&format!("{METADATA}.npy"), &[&header, text.as_bytes()])?;
    }
    for (name, mask) in masks {
        if name == METADATA {
            return Err(Error::tensor(
                path,
                name,
                "this name is taken by the metadata".remedy("choose another format"),
            ));
        }
        let (rows, cols) = mask.shape();
        let header = Npy::header("|b1", &format!("{rows}, {cols}"));
        archive.add(&format!("{name}.npy"), &[&header, &mask.to_bytes()])?;
    }
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let header = Npy::header("|b1", "3, 5");
        assert_eq!(header.len() % 64, 0);
        let npy = Npy::parse(&header).unwrap();
        assert_eq!((npy.descr.as_str(), npy.fortran, npy.shape, npy.data), ("|b1", false, vec![3, 5], header.len()));
        for cut in 0..header.len() {
            assert!(Npy::parse(&header[..cut]).is_err(), "{cut}");
        }
    }
}
