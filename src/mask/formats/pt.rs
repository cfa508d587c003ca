//! PyTorch's `.pt`: a zip archive with a pickle of a dict, and the bytes of each tensor.

use super::archive::{Archive, ArchiveWriter};
use super::pickle::{self, TensorRef, Value};
use super::{Found, damaged, matrix, no_matrix, wrong_type};
use crate::mask::Mask;
use crate::{Error, Result};
use std::fs::File;
use std::path::Path;
use std::rc::Rc;

/// The entry with our metadata, which `torch.load` passes over.
const METADATA: &str = "lacuna.json";
/// The folder in archives that we write; PyTorch takes any.
const ROOT: &str = "archive";

pub(super) fn read(path: &Path, file: File) -> Result<Found> {
    let mut archive = Archive::open(path, file)?;
    let names = archive.names()?;
    let pickles: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix("/data.pkl")).collect();
    let [root] = pickles[..] else {
        let problem =
            "no file of `torch.save`: it has no data.pkl; save a dict of boolean tensors with PyTorch 1.6 or newer";
        return Err(Error::file(path, problem));
    };
    let metadata = format!("{root}/{METADATA}");
    let metadata = match names.contains(&metadata) {
        false => None,
        true => {
            Some(String::from_utf8(archive.read(&metadata)?).map_err(|_| damaged(path, "its metadata are no text"))?)
        }
    };
    let entries = pickle::entries(&archive.read(&format!("{root}/data.pkl"))?);
    let entries = entries
        .map_err(|problem| Error::file(path, format!("{problem}; a file of masks is a dict of boolean tensors")))?;
    let mut masks = Vec::with_capacity(entries.len());
    // Tensors may share a storage.
    let mut last: Option<(String, Rc<Vec<u8>>)> = None;
    for (key, value) in entries {
        let Value::Text(name) = key else {
            return Err(Error::file(path, "a key of its dict is no text; masks go by the names of weights"));
        };
        let Value::Tensor(tensor) = value else {
            return Err(Error::tensor(path, &*name, "is no tensor; save a flat dict of boolean tensors only"));
        };
        let TensorRef { storage, key, offset, shape, stride } = &*tensor;
        if !matches!(storage.as_str(), "torch BoolStorage" | "torch ByteStorage") {
            return Err(wrong_type(path, &name, storage));
        }
        let (rows, cols) = matrix(shape).ok_or_else(|| no_matrix(path, &name, shape))?;
        let &[row, col] = &stride[..] else {
            return Err(Error::tensor(path, &*name, "has not as many strides as dimensions; save it again"));
        };
        let bytes = match &last {
            Some((other, bytes)) if other == key => bytes.clone(),
            _ => archive.read(&format!("{root}/data/{key}"))?.into(),
        };
        let mask = Mask::from_bytes((rows, cols), &bytes, *offset, [row, col]);
        masks.push((name.to_string(), mask.map_err(|problem| Error::tensor(path, &*name, problem))?));
        last = Some((key.clone(), bytes));
    }
    Ok(Found { metadata, masks })
}

pub(super) fn write(path: &Path, file: &mut File, metadata: Option<&str>, masks: &[(String, Mask)]) -> Result<()> {
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
