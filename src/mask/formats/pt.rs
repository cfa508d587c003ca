//! PyTorch's `.pt`: a zip archive with a pickle of a dict, and the bytes of each tensor; or, before PyTorch 1.6, pickles and
//! bytes one after the other, which are read only.

use super::archive::{Archive, ArchiveWriter};
use super::pickle::{self, Legacy, TensorRef, Value};
use super::{Codec, Convention, Found, damaged, matrix, no_matrix, one, wrong_type};
use crate::error::{Error, Remedy, Result};
use crate::mask::Mask;
use safetensors::Dtype;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

/// PyTorch's archives.
pub(super) const CODEC: Codec = Codec { extensions: &["pt", "pth"], read, write };

/// The entry with our metadata, which `torch.load` passes over.
const METADATA: &str = "lacuna.json";
/// The folder in archives that we write; PyTorch takes any.
const ROOT: &str = "archive";

/// Bytes that tell the layouts apart.
const BEGINNING: u64 = 64;

fn read(path: &Path, mut file: File) -> Result<Found> {
    let mut bytes = Vec::new();
    file.by_ref().take(BEGINNING).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if pickle::is_legacy(&bytes) {
        file.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        return read_legacy(path, &bytes);
    }
    file.seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?;
    let mut archive = Archive::open(path, file)?;
    let names = archive.names()?;
    let pickles: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix("/data.pkl")).collect();
    let [root] = pickles[..] else {
        let problem = "no file of `torch.save`: it has no data.pkl".remedy("save a dict of boolean tensors");
        return Err(Error::file(path, problem));
    };
    let metadata = format!("{root}/{METADATA}");
    let metadata = match names.contains(&metadata) {
        false => None,
        true => {
            Some(String::from_utf8(archive.read(&metadata)?).map_err(|_| damaged(path, "its metadata are no text"))?)
        }
    };
    let entries = pickle::entries(&archive.read(&format!("{root}/data.pkl"))?).map_err(no_dict(path))?;
    let convention = if metadata.is_some() { Convention::Pruned } else { convention(&entries) };
    let masks = masks(path, entries, convention, |key| archive.read(&format!("{root}/data/{key}")))?;
    Ok(Found { metadata, masks })
}

pub(super) fn read_legacy(path: &Path, bytes: &[u8]) -> Result<Found> {
    let Legacy { entries, storages, data } = pickle::legacy(bytes).map_err(no_dict(path))?;
    let cut = || damaged(path, "its storages are cut off");
    let (mut rest, mut parts) = (&bytes[data..], HashMap::new());
    for (key, storage) in storages {
        let Some(width) = dtype_of(&storage).map(|dtype| dtype.bitsize() / 8) else {
            let problem =
                format!("holds a `{storage}`, whose size is not known").remedy("save a dict of boolean tensors only");
            return Err(Error::file(path, problem));
        };
        let (count, after) = rest.split_first_chunk().ok_or_else(cut)?;
        let length = usize::try_from(u64::from_le_bytes(*count)).ok().and_then(|count| count.checked_mul(width));
        let (storage, after) = length.and_then(|length| after.split_at_checked(length)).ok_or_else(cut)?;
        parts.insert(key, storage);
        rest = after;
    }
    let convention = convention(&entries);
    let part =
        |key: &str| parts.get(key).map(|part| part.to_vec()).ok_or_else(|| damaged(path, "a storage is missing"));
    Ok(Found { metadata: None, masks: masks(path, entries, convention, part)? })
}

fn no_dict(path: &Path) -> impl Fn(String) -> Error {
    move |problem| Error::file(path, problem.remedy("a file of masks is a dict of boolean tensors"))
}

pub(super) fn convention(entries: &[(Value, Value)]) -> Convention {
    Convention::of(entries.iter().filter_map(|(key, _)| match key {
        Value::Text(name) => Some(&**name),
        _ => None,
    }))
}

/// The type of the elements of a class of storages.
fn dtype_of(storage: &str) -> Option<Dtype> {
    Some(match storage.strip_prefix("torch ")?.strip_suffix("Storage")? {
        "Bool" => Dtype::BOOL,
        "Byte" => Dtype::U8,
        "Char" => Dtype::I8,
        "Short" => Dtype::I16,
        "Int" => Dtype::I32,
        "Long" => Dtype::I64,
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::BF16,
        "Float" => Dtype::F32,
        "Double" => Dtype::F64,
        _ => return None,
    })
}

/// The masks among the entries of a dict; `storage_bytes` gives the bytes of one by its key.
pub(super) fn masks(
    path: &Path,
    entries: Vec<(Value, Value)>,
    convention: Convention,
    mut storage_bytes: impl FnMut(&str) -> Result<Vec<u8>>,
) -> Result<Vec<(String, Mask)>> {
    let mut masks = Vec::with_capacity(entries.len());
    // Tensors may share a storage.
    let mut last: Option<(Rc<str>, Rc<Vec<u8>>)> = None;
    for (key, value) in entries {
        let Value::Text(name) = key else {
            return Err(Error::file(path, "a key of its dict is no text".remedy("masks go by the names of weights")));
        };
        let Some(weight) = convention.weight(&name) else { continue };
        let Value::Tensor(tensor) = value else {
            return Err(Error::tensor(path, &*name, "is no tensor".remedy("save a flat dict of boolean tensors only")));
        };
        let TensorRef { storage, key, offset, shape, stride } = &*tensor;
        let one = dtype_of(storage).and_then(|dtype| one(dtype, convention));
        let one = one.ok_or_else(|| wrong_type(path, &name, storage))?;
        let (rows, cols) = matrix(shape).ok_or_else(|| no_matrix(path, &name, shape))?;
        let &[row, col] = &stride[..] else {
            return Err(Error::tensor(path, &*name, "has not as many strides as dimensions".remedy("save it again")));
        };
        let problem = |problem: String| Error::tensor(path, &*name, problem);
        let bytes = match &last {
            Some((other, bytes)) if other == key => bytes.clone(),
            _ => Rc::new(one.bytes(storage_bytes(key)?).map_err(problem)?),
        };
        // Strides of 0 would make a mask of any size of one element.
        if rows.checked_mul(cols).is_none_or(|elements| elements > bytes.len()) {
            let problem =
                format!("is ({rows}, {cols}), expanded from {} elements; save tensor.contiguous()", bytes.len());
            return Err(Error::tensor(path, &*name, problem));
        }
        let mask = Mask::from_bytes((rows, cols), &bytes, *offset, [row, col]).map_err(problem)?;
        masks.push((weight, convention.mask(mask)));
        last = Some((key.clone(), bytes));
    }
    Ok(masks)
}

fn write(path: &Path, file: &mut File, metadata: Option<&str>, masks: &[(String, Mask)]) -> Result<()> {
    let mut archive = ArchiveWriter::new(path, file);
    archive.add(&format!("{ROOT}/data.pkl"), &[&pickled(masks)])?;
    archive.add(&format!("{ROOT}/byteorder"), &[b"little"])?;
    if let Some(text) = metadata {
        archive.add(&format!("{ROOT}/{METADATA}"), &[text.as_bytes()])?;
    }
    for (i, (_, mask)) in masks.iter().enumerate() {
        archive.add(&format!("{ROOT}/data/{i}"), &[&mask.to_bytes()])?;
    }
    archive.add(&format!("{ROOT}/version"), &[b"3\n"])?;
    archive.finish()
}

/// Protocol 2, as `torch.save` writes it: a dict of contiguous boolean tensors, the i-th in storage `i`.
fn pickled(masks: &[(String, Mask)]) -> Vec<u8> {
    let mut out = b"\x80\x02}(".to_vec();
    for (i, (name, mask)) in masks.iter().enumerate() {
        let (rows, cols) = mask.shape();
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(b"ctorch\nBoolStorage\n");
        text(&mut out, &i.to_string());
        text(&mut out, "cpu");
        int(&mut out, rows * cols);
        out.extend(b"tQ");
        int(&mut out, 0); // offset
        for pair in [[rows, cols], [cols, 1]] {
            pair.into_iter().for_each(|size| int(&mut out, size));
            out.push(0x86);
        }
        // requires_grad and backward_hooks.
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn int(out: &mut Vec<u8>, int: usize) {
    match i32::try_from(int) {
        Ok(int) => {
            out.push(b'J');
            out.extend(int.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 8]);
            out.extend((int as u64).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mask of 2^40 elements was made of one byte once.
    #[test]
    fn an_expanded_tensor_is_refused() {
        let tensor = TensorRef {
            storage: "torch BoolStorage".into(),
            key: "0".into(),
            offset: 0,
            shape: vec![1 << 20; 2],
            stride: vec![0, 0],
        };
        let entries = vec![(Value::Text("a".into()), Value::Tensor(Rc::new(tensor)))];
        let error = masks(Path::new("x.pt"), entries, Convention::Pruned, |_| Ok(vec![1])).unwrap_err();
        assert!(error.to_string().contains("expanded from 1 elements; save tensor.contiguous()"), "{error}");
    }
}
