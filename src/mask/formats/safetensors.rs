//! safetensors: packed bits with our metadata, or one byte a weight, with or without.

use super::{Codec, Convention, Found, damaged, matrix, no_matrix, one, wrong_type};
use crate::error::{Error, Remedy, Result};
use crate::files::write_error;
use crate::mask::Mask;
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The format's limit on a header.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// MaskEntry of the metadata that holds ours, as JSON.
const OURS: &str = "lacuna.masks";
/// MaskEntry of the metadata that holds the columns of packed masks, a JSON object by name.
const COLUMNS: &str = "lacuna.columns";

/// One bit a weight.
pub(super) const PACKED: Codec = Codec {
    extensions: &["safetensors"],
    read,
    write: |path, file, metadata, masks| write(path, file, metadata, masks, Packing::Packed),
};
/// One byte a weight.
pub(super) const BYTES: Codec =
    Codec { write: |path, file, metadata, masks| write(path, file, metadata, masks, Packing::Bytes), ..PACKED };

/// The contents of a byte.
#[derive(Clone, Copy, PartialEq)]
enum Packing {
    /// Eight weights of a row.
    Packed,
    /// One weight.
    Bytes,
}

/// A header's entries as they stand there, duplicates included.
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, MaskEntry)>,
}

#[derive(Deserialize)]
struct MaskEntry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header { metadata: BTreeMap::new(), tensors: Vec::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value()?;
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

fn read(path: &Path, file: File) -> Result<Found> {
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    let read_at = |start: u64, bytes: u64| -> Result<Vec<u8>> {
        let mut buffer = vec![0; bytes as usize];
        file.read_exact_at(&mut buffer, start).map_err(Error::io("read", path))?;
        Ok(buffer)
    };
    let Some(rest) = size.checked_sub(8) else {
        return Err(damaged(path, format!("{size} bytes are too few for a safetensors file")));
    };
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).map_err(Error::io("read", path))?;
    let length = u64::from_le_bytes(length);
    if length > rest.min(MAX_HEADER_BYTES) {
        return Err(damaged(path, format!("its header claims {length} bytes of {rest}")));
    }
    let header: Header = serde_json::from_slice(&read_at(8, length)?)
        .map_err(|e| damaged(path, format!("its header is not that of a safetensors file ({e})")))?;
    let Header { mut metadata, mut tensors } = header;
    tensors.sort_by_key(|(_, entry)| entry.data_offsets);
    let columns: Option<BTreeMap<String, usize>> = match metadata.get(COLUMNS) {
        Some(text) => {
            Some(serde_json::from_str(text).map_err(|e| damaged(path, format!("`{COLUMNS}` is unreadable ({e})")))?)
        }
        None => None,
    };
    let convention = match metadata.contains_key(OURS) || columns.is_some() {
        true => Convention::Pruned,
        false => Convention::of(tensors.iter().map(|(name, _)| name.as_str())),
    };
    let mut masks = Vec::with_capacity(tensors.len());
    let mut end = 0;
    for (name, MaskEntry { dtype, shape, data_offsets: (start, stop) }) in tensors {
        let problem =
            |problem: String| Error::tensor(path, &name, problem.remedy("the file is damaged, copy it again"));
        let Some(weight) = convention.weight(&name) else {
            // What else a module has.
            end = stop;
            continue;
        };
        let one = one(dtype, convention).ok_or_else(|| wrong_type(path, &name, dtype))?;
        let (rows, width) = matrix(&shape).ok_or_else(|| no_matrix(path, &name, &shape))?;
        let bytes = rows.checked_mul(width).and_then(|count| count.checked_mul(one.width())).map(|bytes| bytes as u64);
        if start != end || stop.checked_sub(start) != bytes || stop > rest - length {
            let problem_text = format!(
                "its bytes {start}..{stop} of {} do not follow those before ({end}), or are not those of {shape:?}",
                rest - length
            );
            return Err(problem(problem_text));
        }
        end = stop;
        let bytes = read_at(8 + length + start, stop - start)?;
        let mask = match &columns {
            None => one
                .bytes(bytes)
                .and_then(|bytes| Mask::from_bytes((rows, width), &bytes, 0, [width, 1]))
                .map_err(|e| Error::tensor(path, &name, e))?,
            Some(columns) => {
                let cols = *columns.get(&name).ok_or_else(|| problem(format!("`{COLUMNS}` lacks it")))?;
                if cols.div_ceil(8) != width {
                    return Err(problem(format!("{cols} columns do not take {width} bytes a row")));
                }
                Mask::from_packed(rows, cols, &bytes).map_err(problem)?
            }
        };
        masks.push((weight, convention.mask(mask)));
    }
    if end != rest - length {
        return Err(damaged(path, format!("its last {} bytes belong to no tensor", rest - length - end)));
    }
    Ok(Found { metadata: metadata.remove(OURS), masks })
}

fn write(
    path: &Path,
    file: &mut File,
    metadata: Option<&str>,
    masks: &[(String, Mask)],
    layout: Packing,
) -> Result<()> {
    // transformers refuses a file whose metadata do not say which framework wrote it.
    let mut about = Map::from_iter([("format".to_owned(), Value::from("pt"))]);
    about.extend(metadata.map(|text| (OURS.to_owned(), text.into())));
    if layout == Packing::Packed {
        let columns: Map<String, Value> =
            masks.iter().map(|(name, mask)| (name.clone(), mask.shape().1.into())).collect();
        about.insert(COLUMNS.to_owned(), Value::Object(columns).to_string().into());
    }
    let mut header = Map::from_iter([("__metadata__".to_owned(), Value::Object(about))]);
    let mut offset = 0u64;
    for (name, mask) in masks {
        let (rows, cols) = mask.shape();
        let width = if layout == Packing::Packed { cols.div_ceil(8) } else { cols };
        let end = offset + rows as u64 * width as u64;
        header.insert(name.clone(), json!({"dtype": "U8", "shape": [rows, width], "data_offsets": [offset, end]}));
        offset = end;
    }
    if let Some((name, _)) = masks.iter().find(|(name, _)| name == "__metadata__") {
        return Err(Error::tensor(path, name, "this name is reserved by safetensors".remedy("choose another format")));
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() as u64 > MAX_HEADER_BYTES {
        let problem =
            format!("{} masks make a header of {} bytes, more than safetensors allows", masks.len(), json.len());
        return Err(Error::file(path, problem.remedy("choose another format")));
    }
    let mut out = BufWriter::new(file);
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(write_error(path));
    put(&(json.len() as u64).to_le_bytes())?;
    put(&json)?;
    for (_, mask) in masks {
        put(&if layout == Packing::Packed { mask.to_packed() } else { mask.to_bytes() })?;
    }
    out.flush().map_err(write_error(path))
}
