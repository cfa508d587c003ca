//! The header of one safetensors file: 8 bytes of length, JSON, then the tensors' bytes without gaps.
//!
//! Every rule of the format is checked here, because the files come from elsewhere: the reader may then trust offsets.

use super::TensorInfo;
use crate::error::{Error, Problem, Remedy, Result};
use crate::files::stranger;
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::marker::PhantomData;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The format's limit on a header.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes of the length that a file begins with.
pub(super) const LENGTH_BYTES: u64 = 8;
/// No file is larger, and no checkpoint: offsets are signed for the system. Sums of bytes and of elements (two in a byte at
/// most) thus fit into a u64.
const MAX_BYTES: u64 = i64::MAX as u64;
/// The entry of a header that is no tensor's.
const METADATA: &str = "__metadata__";

/// A JSON object's entries as they stand in the text, duplicates included (a map would hide them). Each is checked as it is
/// read: a tree of JSON values would take many times the memory of the text.
pub(super) struct Entries<T>(pub(super) Vec<(String, T)>);

/// The type of the entries of a JSON object.
pub(super) trait Item: Sized {
    /// The value of the entry called `name`, which `map` gives next.
    fn read<'de, A: MapAccess<'de>>(name: &str, map: &mut A) -> Result<Self, A::Error>;
}

impl Item for String {
    fn read<'de, A: MapAccess<'de>>(_: &str, map: &mut A) -> Result<Self, A::Error> {
        map.next_value()
    }
}

/// A tensor's entry; `None` is that of the metadata.
impl Item for Option<TensorEntry> {
    fn read<'de, A: MapAccess<'de>>(name: &str, map: &mut A) -> Result<Self, A::Error> {
        if name == METADATA { map.next_value::<Metadata>().map(|_| None) } else { map.next_value().map(Some) }
    }
}

/// Reads [`Entries`], and leaves the name of an entry whose value is wrong behind.
struct Collect<'a, T> {
    wrong: &'a mut Option<String>,
    items: PhantomData<T>,
}

impl<'a, T> Collect<'a, T> {
    fn new(wrong: &'a mut Option<String>) -> Self {
        Self { wrong, items: PhantomData }
    }
}

impl<'de, T: Item> DeserializeSeed<'de> for Collect<'_, T> {
    type Value = Entries<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Entries<T>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: Item> Visitor<'de> for Collect<'_, T> {
    type Value = Entries<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<T>, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            match T::read(&name, &mut map) {
                Ok(item) => entries.push((name, item)),
                Err(error) => {
                    *self.wrong = Some(name);
                    return Err(error);
                }
            }
        }
        Ok(Entries(entries))
    }
}

impl<'de, T: Item> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut wrong = None;
        let entries = Collect::new(&mut wrong).deserialize(deserializer);
        entries.map_err(|error| match wrong {
            Some(name) => D::Error::custom(format!("entry `{name}` is invalid: {error}")),
            None => error,
        })
    }
}

/// A tensor's entry in a header; the format's readers skip fields that they do not know.
#[derive(Deserialize)]
pub(super) struct TensorEntry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) data_offsets: (u64, u64),
}

/// Strings by strings, checked and not kept.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Check;
        impl<'de> Visitor<'de> for Check {
            type Value = Metadata;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with strings")
            }
            /// As if it were left out: other readers take it so.
            fn visit_unit<E>(self) -> Result<Metadata, E> {
                Ok(Metadata)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                while map.next_entry::<String, String>()?.is_some() {}
                Ok(Metadata)
            }
        }
        deserializer.deserialize_any(Check)
    }
}

/// Reads and checks the header of `file`, the checkpoint's shard number `shard`. The tensors come in offset order.
pub(super) fn read(path: &Path, file: &File, shard: usize) -> Result<Vec<TensorInfo>> {
    /// Enough to tell what else a file may be.
    const BEGINNING: u64 = 64;
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    let mut first = vec![0; BEGINNING.min(size) as usize];
    file.read_exact_at(&mut first, 0).map_err(Error::io("read", path))?;
    // The length of a header may look like the first bytes of something else.
    let is_other = first.get(LENGTH_BYTES as usize).is_some_and(|&byte| byte != b'{');
    if let Some(what) = stranger(&first).or_else(|| other_format(&first)).filter(|_| is_other) {
        return Err(Error::file(path, what));
    }
    first.truncate(LENGTH_BYTES as usize);
    let mut json = vec![0; length(path, size, &first)? as usize];
    file.read_exact_at(&mut json, LENGTH_BYTES).map_err(Error::io("read", path))?;
    parse(path, size, json, shard)
}

/// Weights in other formats, under a name of this one.
fn other_format(first: &[u8]) -> Option<Problem> {
    let begins = |with: &[u8]| first.starts_with(with);
    if begins(b"GGUF") {
        Some("is a GGUF file by its first bytes".remedy("make a checkpoint of it with `lacuna import FILE DIR`"))
    } else if begins(b"PK\x03\x04") || begins(b"\x80\x02") {
        Some(
            "is a file of `torch.save` by its first bytes, not safetensors"
                .remedy("name it pytorch_model.bin, and convert it with transformers' `save_pretrained`"),
        )
    } else {
        None
    }
}

/// Bytes of the JSON that follows the length, which `first` holds: the first [`LENGTH_BYTES`] bytes, or all there are,
/// of a file of `size` bytes. `path` is for messages only.
pub(super) fn length(path: &Path, size: u64, first: &[u8]) -> Result<u64> {
    let Ok(first) = <[u8; LENGTH_BYTES as usize]>::try_from(first) else {
        let problem = format!("{size} bytes are too few for a safetensors file, which begins with 8 bytes of length");
        return Err(broken(path, problem));
    };
    // What `git clone` leaves where the LFS extension is not installed.
    if &first == b"version " {
        return Err(Error::file(
            path,
            "is a Git LFS pointer, not the file".remedy("run `git lfs pull` in its directory"),
        ));
    }
    let Some(rest) = size.checked_sub(LENGTH_BYTES) else {
        return Err(broken(path, format!("{size} bytes are too few for a safetensors file")));
    };
    if size > MAX_BYTES {
        return Err(broken(path, format!("{size} bytes are more than a file can have")));
    }
    let length = u64::from_le_bytes(first);
    if length > MAX_HEADER_BYTES {
        let problem =
            format!("its header claims {length} bytes, the format allows {MAX_HEADER_BYTES}: not safetensors");
        return Err(broken(path, problem));
    }
    if length > rest {
        let problem =
            format!("truncated inside its header, {} bytes are missing", length - rest).remedy("download it again");
        return Err(Error::file(path, problem));
    }
    Ok(length)
}

/// Checks the JSON of a file of `size` bytes, the checkpoint's shard number `shard`. The tensors come in offset order.
/// `path` is for messages only.
pub(super) fn parse(path: &Path, size: u64, json: Vec<u8>, shard: usize) -> Result<Vec<TensorInfo>> {
    if json.first() != Some(&b'{') {
        return Err(broken(path, "its header does not begin with `{`".into()));
    }
    let data_start = LENGTH_BYTES + json.len() as u64;
    let json = String::from_utf8(json).map_err(|e| broken(path, format!("its header is not UTF-8 ({e})")))?;
    let mut wrong = None;
    let mut deserializer = serde_json::Deserializer::from_str(&json);
    let entries = Collect::new(&mut wrong).deserialize(&mut deserializer);
    let entries = entries.and_then(|entries| deserializer.end().map(|()| entries));
    let entries = entries.map_err(|e| match wrong {
        Some(name) if !e.is_eof() && name == METADATA => {
            broken(path, format!("`{METADATA}` must map strings to strings ({e})"))
        }
        Some(name) if !e.is_eof() => {
            Error::tensor(path, name, format!("its header entry is invalid ({e})").remedy(AGAIN))
        }
        _ => broken(path, format!("its header is not valid JSON ({e})")),
    })?;
    drop(json);
    check(path, size, data_start, entries, shard)
}

/// Checks the entries of a header of a file of `size` bytes whose tensors' bytes begin at `data_start`, as [`parse`] does.
pub(super) fn check(
    path: &Path,
    size: u64,
    data_start: u64,
    Entries(entries): Entries<Option<TensorEntry>>,
    shard: usize,
) -> Result<Vec<TensorInfo>> {
    let mut names = HashSet::with_capacity(entries.len());
    if let Some((name, _)) = entries.iter().find(|(name, _)| !names.insert(name.as_str())) {
        return Err(Error::tensor(path, name, "the header has this name twice".remedy("write the file again")));
    }
    drop(names);
    let tensors = entries.into_iter().filter_map(|(name, entry)| Some((name, entry?)));
    let tensors = tensors.map(|(name, entry)| check_entry(path, name, entry, shard, data_start));
    let mut tensors = tensors.collect::<Result<Vec<TensorInfo>>>()?;
    tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    check_layout(path, &tensors, data_start, size)?;
    Ok(tensors)
}

const AGAIN: &str = "the file is damaged, download it again";

fn broken(path: &Path, problem: String) -> Error {
    Error::file(path, problem.remedy(AGAIN))
}

/// Bytes of a tensor; `None` if that is no whole number of bytes or overflows.
pub(super) fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    let elements = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim as u64))?;
    let bits = elements.checked_mul(dtype.bitsize() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

fn check_entry(path: &Path, name: String, entry: TensorEntry, shard: usize, data_start: u64) -> Result<TensorInfo> {
    let TensorEntry { dtype, shape, data_offsets: (begin, end) } = entry;
    let Some(bytes) = byte_len(dtype, &shape) else {
        return Err(Error::tensor(path, name, format!("{dtype} x {shape:?} is not a possible size").remedy(AGAIN)));
    };
    if end < begin || end - begin != bytes {
        let problem = format!("{dtype} x {shape:?} is {bytes} bytes, but its offsets are {begin}..{end}").remedy(AGAIN);
        return Err(Error::tensor(path, name, problem));
    }
    match (data_start.checked_add(begin), data_start.checked_add(end)) {
        (Some(start), Some(end)) => Ok(TensorInfo { name, dtype, shape, shard, range: start..end }),
        _ => Err(Error::tensor(path, name, format!("its offsets {begin}..{end} are out of range").remedy(AGAIN))),
    }
}

/// The tensors, in offset order, must tile the data exactly.
fn check_layout(path: &Path, tensors: &[TensorInfo], data_start: u64, size: u64) -> Result<()> {
    let data_end = tensors.iter().map(|tensor| tensor.range.end).max().unwrap_or(data_start);
    if let Some(tensor) = tensors.iter().find(|tensor| tensor.range.end > size) {
        let range = &tensor.range;
        return Err(Error::tensor(
            path,
            &tensor.name,
            format!(
                "its bytes {}..{} lie beyond the end of the file, which has {size}: {} bytes are missing, the file is \
                 truncated",
                range.start,
                range.end,
                data_end - size
            )
            .remedy("download it again"),
        ));
    }
    let mut end = data_start;
    let mut before = "the header";
    for tensor in tensors {
        let start = tensor.range.start;
        if start < end {
            return Err(Error::tensor(
                path,
                &tensor.name,
                format!("its bytes overlap those of `{before}`").remedy(AGAIN),
            ));
        }
        if start > end {
            let problem = format!("{} bytes between it and `{before}` belong to no tensor", start - end).remedy(AGAIN);
            return Err(Error::tensor(path, &tensor.name, problem));
        }
        (end, before) = (tensor.range.end, &tensor.name);
    }
    if size > end {
        return Err(broken(path, format!("its last {} bytes belong to no tensor", size - end)));
    }
    Ok(())
}

/// The tensors of all shards, in order, and their places by name; `paths` are for messages. They have no more than
/// [`MAX_BYTES`] together.
pub(super) fn join(
    paths: &[PathBuf],
    headers: impl Iterator<Item = Result<Vec<TensorInfo>>>,
) -> Result<(Vec<TensorInfo>, HashMap<String, usize>)> {
    let mut tensors: Vec<TensorInfo> = Vec::new();
    let mut by_name = HashMap::new();
    let mut bytes = 0u64;
    for (path, header) in paths.iter().zip(headers) {
        for tensor in header? {
            bytes = bytes.saturating_add(tensor.bytes());
            if bytes > MAX_BYTES {
                let problem =
                    format!("with it the tensors have more than {MAX_BYTES} bytes, which cannot be").remedy(AGAIN);
                return Err(Error::tensor(path, tensor.name, problem));
            }
            if let Some(other) = by_name.insert(tensor.name.clone(), tensors.len()) {
                let problem = format!("it is also in {}", paths[tensors[other].shard].display())
                    .remedy("remove the file that does not belong here");
                return Err(Error::tensor(path, tensor.name, problem));
            }
            tensors.push(tensor);
        }
    }
    Ok((tensors, by_name))
}

/// Pads a header with spaces until its length is `remainder` modulo `modulus`, both multiples of 8.
pub(super) fn pad(header: &mut Vec<u8>, remainder: u64, modulus: u64) {
    let surplus = (header.len() as u64 % modulus + modulus - remainder) % modulus;
    header.resize(header.len() + ((modulus - surplus) % modulus) as usize, b' ');
    let length = header.len() as u64 - LENGTH_BYTES;
    header[..LENGTH_BYTES as usize].copy_from_slice(&length.to_le_bytes());
}

/// The bytes that stand before the data of `tensors` (name, dtype, shape), which follow one another in this order.
/// Padded with spaces so that the data begin on a multiple of 8.
pub(super) fn write(tensors: &[(String, Dtype, Vec<usize>)]) -> Result<Vec<u8>, String> {
    // transformers refuses a file whose metadata do not say which framework wrote it.
    let mut header = Map::from_iter([(METADATA.to_owned(), json!({"format": "pt"}))]);
    let mut offset = 0u64;
    for (name, dtype, shape) in tensors {
        let end = byte_len(*dtype, shape).and_then(|bytes| offset.checked_add(bytes));
        let end = end.ok_or_else(|| format!("tensor `{name}`: {dtype} x {shape:?} is not a possible size"))?;
        let entry = json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [offset, end]});
        if header.insert(name.clone(), entry).is_some() {
            return Err(format!("two tensors are called `{name}`"));
        }
        offset = end;
    }
    let mut json = Value::Object(header).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() as u64 > MAX_HEADER_BYTES {
        return Err(format!(
            "{} tensors make a header of {} bytes, the format allows {MAX_HEADER_BYTES}",
            tensors.len(),
            json.len()
        ));
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json);
    Ok(bytes)
}
