//! GGUF files: one, or all parts of a split model, and why one cannot be read.

use super::metadata::Metadata;
use crate::error::without_backtrace;
use crate::error::{Error, Remedy, Result};
use crate::files::stranger;
use candle_core::Device;
use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{Content, TensorInfo};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The bytes that a file begins with.
const MAGIC: &[u8] = b"GGUF";
/// More than any file has room for, and few enough that no number of bytes overflows.
const MAX_ELEMENTS: u64 = 1 << 56;

/// A model in one file or several.
pub(super) struct Gguf {
    parts: Vec<Part>,
    /// The part that each tensor is in.
    places: BTreeMap<String, usize>,
}

struct Part {
    path: PathBuf,
    reader: BufReader<File>,
    content: Content,
}

impl Gguf {
    /// Opens `file`, and if it is one part of several, the others beside it.
    pub(super) fn open(file: &Path) -> Result<Self> {
        let first = Part::open(file)?;
        let (number, count) = first.split()?;
        let mut parts = Vec::with_capacity(count);
        if count > 1 {
            for path in siblings(file, number, count)? {
                let part = Part::open(&path)?;
                let (its, of) = part.split()?;
                if (its, of) != (parts.len(), count) {
                    let problem = format!(
                        "says that it is part {} of {of}, and should be part {} of {count}",
                        its + 1,
                        parts.len() + 1
                    )
                    .remedy("download the parts again, all of one model");
                    return Err(Error::file(&path, problem));
                }
                parts.push(part);
            }
        } else {
            parts.push(first);
        }
        let mut places = BTreeMap::new();
        for (at, part) in parts.iter().enumerate() {
            for name in part.content.tensor_infos.keys() {
                if places.insert(name.clone(), at).is_some() {
                    return Err(Error::tensor(
                        &part.path,
                        name,
                        "is in two parts".remedy("download the parts again, all of one model"),
                    ));
                }
            }
        }
        Ok(Gguf { parts, places })
    }

    /// The first part, which has the metadata of all.
    pub(super) fn file(&self) -> &Path {
        &self.parts[0].path
    }

    pub(super) fn metadata(&self) -> Metadata<'_> {
        Metadata::new(&self.parts[0].path, &self.parts[0].content.metadata)
    }

    /// Names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.parts[*self.places.get(name)?].content.tensor_infos.get(name)
    }

    /// Dimensions of a tensor, the rows first.
    pub(super) fn dims(&self, name: &str) -> Option<&[usize]> {
        Some(self.info(name)?.shape.dims())
    }

    /// The file that has the tensor.
    pub(super) fn file_of(&self, name: &str) -> &Path {
        &self.parts[self.places.get(name).copied().unwrap_or_default()].path
    }

    /// Reads a tensor.
    pub(super) fn load(&mut self, name: &str) -> Result<QTensor> {
        let Some(&at) = self.places.get(name) else {
            return Err(Error::tensor(self.file(), name, "missing".remedy("download the file again")));
        };
        let Part { path, reader, content } = &mut self.parts[at];
        content.tensor(reader, name, &Device::Cpu).map_err(|e| {
            Error::tensor(
                &*path,
                name,
                format!("cannot be read ({})", without_backtrace(&e)).remedy("download the file again"),
            )
        })
    }
}

impl Part {
    fn open(path: &Path) -> Result<Part> {
        let opened = File::open(path).map_err(|error| match crate::checkpoint::dangling(path) {
            Some(problem) => Error::file(path, problem),
            None => Error::io("open", path)(error),
        })?;
        if opened.metadata().map_err(Error::io("open", path))?.is_dir() {
            return Err(Error::file(path, "is a directory".remedy("give the GGUF file in it")));
        }
        let mut reader = BufReader::new(opened);
        let mut first = Vec::new();
        reader.by_ref().take(64).read_to_end(&mut first).map_err(Error::io("read", path))?;
        if let Some(what) = stranger(&first) {
            return Err(Error::file(path, what));
        }
        if !first.starts_with(MAGIC) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            let remedy = if name.contains("part") || name.contains("split") {
                "if it is a piece of a file that was cut, join the pieces with `cat` in their order"
            } else {
                "give a GGUF file"
            };
            return Err(Error::file(
                path,
                "not a GGUF file that can be read, as it does not begin with `GGUF`".remedy(remedy),
            ));
        }
        reader.seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?;
        // candle divides by it. What else is wrong with the metadata it says itself.
        if pass_metadata(&mut reader).is_ok_and(|passed| passed.alignment == Some(0)) {
            return Err(Error::file(path, "metadata `general.alignment` is 0; the file is damaged, download it again"));
        }
        reader.seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?;
        let content = Content::read(&mut reader).map_err(|error| explain(path, &mut reader, &error))?;
        // Nor does it look for overflows.
        let elements = |dims: &[usize]| dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim as u64));
        let possible = |dims: &[usize]| elements(dims).is_some_and(|elements| elements < MAX_ELEMENTS);
        let dims = content.tensor_infos.iter().map(|(name, info)| (name, info.shape.dims()));
        if let Some((name, dims)) = dims.filter(|(_, dims)| !possible(dims)).min() {
            return Err(Error::tensor(
                path,
                name,
                format!("its shape {dims:?} is not possible; download the file again"),
            ));
        }
        Ok(Part { path: path.to_path_buf(), reader, content })
    }

    /// Returns the number of this part, from 0, and the number of parts.
    fn split(&self) -> Result<(usize, usize)> {
        let metadata = Metadata::new(&self.path, &self.content.metadata);
        let count = metadata.integer("split.count")?.unwrap_or(1).max(1);
        let number = metadata.integer("split.no")?.unwrap_or(0);
        if number >= count || count > 99_999 {
            let problem = format!("says that it is part {} of {count}", number + 1).remedy("download it again");
            return Err(Error::file(&self.path, problem));
        }
        Ok((number, count))
    }
}

/// The paths of all `count` parts, of which `file` is number `number`, from 0: `NAME-00001-of-00002.gguf`.
fn siblings(file: &Path, number: usize, count: usize) -> Result<Vec<PathBuf>> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let ending = |number: usize| format!("-{:05}-of-{count:05}.gguf", number + 1);
    let Some(stem) = name.strip_suffix(&ending(number)) else {
        let problem = format!("is part {} of {count} of a model, and the others are not known by its name", number + 1)
            .remedy(format!(
                "name them as they were (this one NAME{}), or join them with llama.cpp's `llama-gguf-split --merge \
                 FIRST.gguf OUT.gguf`",
                ending(number)
            ));
        return Err(Error::file(file, problem));
    };
    let paths: Vec<PathBuf> =
        (0..count).map(|number| file.with_file_name(format!("{stem}{}", ending(number)))).collect();
    let missing: Vec<&PathBuf> = paths.iter().filter(|path| !path.exists()).collect();
    match missing.first() {
        None => Ok(paths),
        Some(first) => {
            let first = first.file_name().unwrap_or_default().to_string_lossy();
            let problem = format!(
                "is part {} of {count} of a model, and {} of the others are missing here, first {first}",
                number + 1,
                missing.len()
            )
            .remedy("download all parts into one directory");
            Err(Error::file(file, problem))
        }
    }
}

/// Explains why `path`, whose reading failed with `error`, cannot be read: names a tensor's type, if that is the
/// reason.
fn explain(path: &Path, reader: &mut BufReader<File>, error: &candle_core::Error) -> Error {
    let types = reader.seek(SeekFrom::Start(0)).and_then(|_| tensor_types(reader)).unwrap_or_default();
    let unknown: Vec<&(String, u32)> = types.iter().filter(|(_, kind)| !is_known(*kind)).collect();
    if let Some((name, kind)) = unknown.first() {
        let problem = format!(
            "its type is {}, which is not read here ({} of {} tensors have such a type)",
            type_name(*kind),
            unknown.len(),
            types.len()
        )
        .remedy(
            "take a file of type F32, F16, BF16, Q8_0 or Q2_K to Q6_K, or make one with llama.cpp's `llama-quantize \
             --allow-requantize IN.gguf OUT.gguf F16`",
        );
        return Error::tensor(path, name, problem);
    }
    let problem = format!("not a GGUF file that can be read ({})", without_backtrace(error))
        .remedy("it may be cut off, download it again");
    Error::file(path, problem)
}

/// A little-endian number of `width` bytes, 8 at most.
fn number(reader: &mut BufReader<File>, width: usize) -> io::Result<u64> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes[..width])?;
    Ok(u64::from_le_bytes(bytes))
}

/// A string behind its length of `width` bytes.
fn string(reader: &mut BufReader<File>, width: usize) -> io::Result<String> {
    let length = number(reader, width)?;
    let mut text = Vec::new();
    // Whatever length is claimed, no more is held than is there.
    if reader.by_ref().take(length).read_to_end(&mut text)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The facts that [`pass_metadata`] finds.
struct Passed {
    tensors: u64,
    /// Bytes of a length.
    width: usize,
    /// `general.alignment`, if it is there.
    alignment: Option<u64>,
}

/// Passes what stands before the tensors' entries.
fn pass_metadata(reader: &mut BufReader<File>) -> io::Result<Passed> {
    number(reader, MAGIC.len())?;
    let width = if number(reader, 4)? == 1 { 4 } else { 8 };
    let (tensors, entries) = (number(reader, width)?, number(reader, width)?);
    let mut alignment = None;
    for _ in 0..entries {
        let key = string(reader, width)?;
        let kind = number(reader, 4)? as u32;
        match value_bytes(kind) {
            Some(bytes) if key == "general.alignment" => alignment = Some(number(reader, bytes as usize)?),
            _ => skip_values(reader, kind, 1, width, 0)?,
        }
    }
    Ok(Passed { tensors, width, alignment })
}

/// Name and type of every tensor, until the file ends.
fn tensor_types(reader: &mut BufReader<File>) -> io::Result<Vec<(String, u32)>> {
    let Passed { tensors, width, .. } = pass_metadata(reader)?;
    let mut types = Vec::new();
    for _ in 0..tensors {
        let name = match string(reader, width) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            name => name?,
        };
        // Dimensions, of the width of lengths, then the type and the offset.
        let dims = number(reader, 4)?;
        io::copy(&mut reader.by_ref().take(dims * width as u64), &mut io::sink())?;
        types.push((name, number(reader, 4)? as u32));
        reader.seek_relative(8)?;
    }
    Ok(types)
}

/// Bytes of a value of the type `kind` of metadata, if all have the same.
fn value_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Passes `count` values of the type `kind` of metadata.
fn skip_values(reader: &mut BufReader<File>, kind: u32, count: u64, width: usize, depth: usize) -> io::Result<()> {
    let pass = |reader: &mut BufReader<File>, bytes: u64| match i64::try_from(bytes) {
        Ok(bytes) => reader.seek_relative(bytes),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    };
    match kind {
        8 => {
            for _ in 0..count {
                let bytes = number(reader, width)?;
                pass(reader, bytes)?;
                // Beyond the end there is nothing to pass.
                if reader.fill_buf()?.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Ok(())
        }
        9 if depth < 8 => {
            for _ in 0..count {
                let kind = number(reader, 4)? as u32;
                let count = number(reader, width)?;
                skip_values(reader, kind, count, width, depth + 1)?;
            }
            Ok(())
        }
        _ => match value_bytes(kind) {
            Some(size) => pass(reader, count.saturating_mul(size)),
            None => Err(io::ErrorKind::InvalidData.into()),
        },
    }
}

/// ggml's numbers of the types that candle reads.
fn is_known(kind: u32) -> bool {
    matches!(kind, 0..=3 | 6..=15 | 30)
}

/// ggml's name of a type.
fn type_name(kind: u32) -> String {
    const NAMES: [(u32, &str); 20] = [
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (31, "Q4_0_4_4"),
        (32, "Q4_0_4_8"),
        (33, "Q4_0_8_8"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
    ];
    NAMES
        .iter()
        .find(|(number, _)| *number == kind)
        .map_or_else(|| format!("number {kind}"), |(_, name)| (*name).to_owned())
}
