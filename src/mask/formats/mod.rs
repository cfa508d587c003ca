//! Masks as files: safetensors (one bit or one byte a weight), NumPy's `.npz`, PyTorch's `.pt`. `docs/masks.md` defines them.
//!
//! Readers take files from elsewhere: everything is checked before it is believed, and a problem names file and tensor.

mod archive;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod npz;
mod pickle;
mod pt;
mod safetensors;

use super::set::{sha256, strip};
use super::{MASKS_SCHEMA, Mask, MaskMetadata, MaskSet};
use crate::checkpoint::family_names;
use crate::error::{Error, Remedy, Result};
use crate::exact_json::exact_floats;
use crate::files;
use ::safetensors::Dtype;
use serde_json::Value;
use std::collections::HashSet;
use std::fmt::Display;
use std::fs::File;
use std::path::Path;

/// Writes masks with our metadata, if there are any, to an empty file.
type Write = fn(&Path, &mut File, metadata: Option<&str>, masks: &[(String, Mask)]) -> Result<()>;

/// Reading and writing one format.
struct Codec {
    /// Extensions of its files, without the dot; the first is written.
    extensions: &'static [&'static str],
    read: fn(&Path, File) -> Result<Found>,
    write: Write,
}

/// Declares [`MaskFormat`]: for each its name and its codec.
macro_rules! formats {
    ($($(#[$doc:meta])+ $format:ident = $name:literal, $codec:path;)+) => {
        /// A file format for masks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum MaskFormat {
            $($(#[$doc])+ $format),+
        }

        crate::error::named!(MaskFormat, "mask format", $($format => $name),+);

        impl MaskFormat {
            fn codec(self) -> Codec {
                match self { $(MaskFormat::$format => $codec),+ }
            }
        }
    };
}

formats! {
    /// safetensors, one bit a weight.
    Safetensors = "safetensors", safetensors::PACKED;
    /// safetensors, one byte a weight.
    SafetensorsU8 = "safetensors-u8", safetensors::BYTES;
    /// NumPy's archive of boolean arrays.
    Npz = "npz", npz::CODEC;
    /// PyTorch's archive of a dict of boolean tensors.
    Pt = "pt", pt::CODEC;
}

impl MaskFormat {
    /// The format that the extension of a file's name means; of two with the same extension the first, which for `.safetensors`
    /// is the packed one.
    ///
    /// # Errors
    /// [`Error::File`] for an extension that no format has.
    pub fn of(path: impl AsRef<Path>) -> Result<MaskFormat> {
        let path = path.as_ref();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let has = |format: &MaskFormat| extension.is_some_and(|it| format.codec().extensions.contains(&it));
        MaskFormat::all().into_iter().find(has).ok_or_else(|| {
            let mut known: Vec<String> =
                MaskFormat::all().iter().map(|format| format!(".{}", format.extension())).collect();
            known.dedup();
            let last = known.pop().unwrap_or_default();
            Error::file(path, "no file of masks by its name".remedy(format!("give it {} or {last}", known.join(", "))))
        })
    }

    /// The extension of such files, without the dot.
    pub fn extension(self) -> &'static str {
        self.codec().extensions[0]
    }
}

/// The contents of a mask file: the text of our metadata, if there is any, and the masks in the file's order.
struct Found {
    metadata: Option<String>,
    masks: Vec<(String, Mask)>,
}

/// The meaning of a one in a mask file, and the names of its masks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Convention {
    /// A weight that is pruned; a mask has its weight's name.
    Pruned,
    /// A weight that stays, as a parametrisation of `torch.nn.utils.prune` does: the mask is called as its weight and
    /// [`KEPT`], is of its type, and stands among the other tensors of the model.
    Kept,
}

/// The end of a name that PyTorch adds to that of a weight for its mask.
const KEPT: &str = "_mask";

impl Convention {
    /// The convention of a file of other software with tensors of these names.
    fn of<'a>(mut names: impl Iterator<Item = &'a str>) -> Convention {
        let is_torch = |name: &str| name.strip_suffix(KEPT).is_some_and(|weight| weight.ends_with("weight"));
        if names.any(is_torch) { Convention::Kept } else { Convention::Pruned }
    }

    /// The weight that the tensor `name` is a mask of; `None` if it is no mask.
    fn weight(self, name: &str) -> Option<String> {
        match self {
            Convention::Pruned => Some(name.to_owned()),
            Convention::Kept => name.strip_suffix(KEPT).filter(|weight| weight.ends_with("weight")).map(str::to_owned),
        }
    }

    /// A mask of pruned weights of one that was read.
    fn mask(self, read: Mask) -> Mask {
        match self {
            Convention::Pruned => read,
            Convention::Kept => read.not(),
        }
    }
}

/// The bytes of a one in some type.
#[derive(Clone, Copy)]
struct One(&'static [u8]);

/// A one of `dtype`, `None` for a type that no mask of this convention has.
fn one(dtype: Dtype, convention: Convention) -> Option<One> {
    Some(One(match dtype {
        Dtype::BOOL | Dtype::U8 => &[1],
        _ if convention == Convention::Pruned => return None,
        Dtype::F16 => &[0, 0x3c],
        Dtype::BF16 => &[0x80, 0x3f],
        Dtype::F32 => &[0, 0, 0x80, 0x3f],
        Dtype::F64 => &[0, 0, 0, 0, 0, 0, 0xf0, 0x3f],
        _ => return None,
    }))
}

impl One {
    /// Bytes of an element.
    fn width(self) -> usize {
        self.0.len()
    }

    /// Elements as a byte each.
    fn bytes(self, elements: Vec<u8>) -> Result<Vec<u8>, String> {
        if self.width() == 1 {
            return Ok(elements);
        }
        let byte = |(at, element): (usize, &[u8])| match element {
            one if one == self.0 => Ok(1),
            other if other.iter().all(|&byte| byte == 0) => Ok(0),
            _ => Err(format!("its element {at} is neither 0 nor 1, and a mask has nothing else")),
        };
        elements.chunks_exact(self.width()).enumerate().map(byte).collect()
    }
}

impl MaskSet {
    /// Reads masks in the format that the extension means. Metadata of ours are checked against the checksum; a file
    /// without them is of other software, and its set bits are taken for pruned weights, or where masks are called
    /// `.weight_mask`, as PyTorch's `prune` does, for those that stay.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Tensor`] for an unknown extension, a damaged file, a wrong checksum, or a tensor that is
    /// no boolean matrix; [`Error::Io`] when reading fails.
    pub fn load(path: impl AsRef<Path>) -> Result<MaskSet> {
        let path = path.as_ref();
        let format = MaskFormat::of(path)?;
        let file = File::open(path).map_err(Error::io("open", path))?;
        if file.metadata().map_err(Error::io("read", path))?.is_dir() {
            return Err(Error::file(path, "a directory".remedy("give a file of masks")));
        }
        let Found { metadata, mut masks } = (format.codec().read)(path, file)?;
        if masks.is_empty() {
            return Err(Error::file(path, "holds no mask"));
        }
        if metadata.is_none() {
            // As the model's own are, where something was wrapped around it.
            let names = family_names(masks.iter().map(|(name, _)| name.as_str()));
            masks.iter_mut().zip(names).for_each(|((name, _), family)| *name = family);
        }
        check_names(path, &masks)?;
        let metadata = metadata.map(|text| check_metadata(path, &text, &masks)).transpose()?;
        Ok(MaskSet { metadata, masks })
    }

    /// Writes the masks to `path`, which must not exist, in the format that its extension means. Equal masks with equal
    /// metadata give equal bytes.
    ///
    /// # Errors
    /// [`Error::File`] when `path` exists, has an unknown extension, or the disk is full; [`Error::Tensor`] for two masks of
    /// one name; [`Error::Io`] when writing fails. Nothing is left in any of these cases.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        self.save_as(path, MaskFormat::of(path)?)
    }

    /// As [`MaskSet::save`], in `format`, whose extension `path` must have.
    ///
    /// # Errors
    /// As [`MaskSet::save`].
    pub fn save_as(&self, path: impl AsRef<Path>, format: MaskFormat) -> Result<()> {
        let path = path.as_ref();
        if MaskFormat::of(path)?.extension() != format.extension() {
            let problem = format!("{format} was asked for, which this name does not say")
                .remedy(format!("end it with .{}", format.extension()));
            return Err(Error::file(path, problem));
        }
        check_names(path, &self.masks)?;
        let metadata = self.metadata.as_ref().map(|metadata| self.metadata_text(path, metadata)).transpose()?;
        let metadata = metadata.as_deref();
        files::create(path, |file| (format.codec().write)(path, file, metadata, &self.masks))
    }

    fn metadata_text(&self, path: &Path, metadata: &MaskMetadata) -> Result<String> {
        let mut value = serde_json::to_value(metadata).map_err(|e| Error::file(path, e))?;
        if let Some(object) = value.as_object_mut() {
            object.insert("sha256".into(), self.sha256().into());
        }
        Ok(value.to_string())
    }
}

fn check_names(path: &Path, masks: &[(String, Mask)]) -> Result<()> {
    let mut seen = HashSet::new();
    match masks.iter().find(|(name, _)| !seen.insert(name)) {
        Some((name, _)) => Err(Error::tensor(path, name, "there are two of that name".remedy("keep one"))),
        None => Ok(()),
    }
}

/// Parses our metadata, and checks them and the masks against the checksum.
fn check_metadata(path: &Path, text: &str, masks: &[(String, Mask)]) -> Result<MaskMetadata> {
    let broken = |problem: String| Error::file(path, format!("its metadata {problem}").remedy("make the file again"));
    let mut value: Value = serde_json::from_str(text).map_err(|e| broken(format!("are no JSON ({e})")))?;
    exact_floats(text, &mut value).ok_or_else(|| broken("name one key twice".into()))?;
    match value.get("schema").and_then(Value::as_u64) {
        Some(schema) if schema == u64::from(MASKS_SCHEMA) => {}
        Some(schema) => {
            let problem = format!("has schema {schema}, this lacuna reads schema {MASKS_SCHEMA}")
                .remedy("use another version of lacuna");
            return Err(Error::file(path, problem));
        }
        None => return Err(broken("have no `schema` number".into())),
    }
    let told = value.get("sha256").and_then(Value::as_str).map(str::to_owned);
    let told = told.ok_or_else(|| broken("have no `sha256`".into()))?;
    let metadata: MaskMetadata =
        serde_json::from_value(value.clone()).map_err(|e| broken(format!("are not those of masks ({e})")))?;
    strip(&mut value);
    let is = sha256(Some(&value), masks);
    if is != told {
        let problem =
            format!("wrong checksum: its content has SHA-256 {is}, its metadata say {told}. It was damaged or edited")
                .remedy("copy it again or make it again");
        return Err(Error::file(path, problem));
    }
    Ok(metadata)
}

/// A file that does not hold what its format promises.
fn damaged(path: &Path, problem: impl Display) -> Error {
    Error::file(path, problem.remedy("the file is damaged, copy it again or make it again"))
}

/// The shape of a mask; `None` for what is no matrix with elements.
fn matrix(shape: &[usize]) -> Option<(usize, usize)> {
    match *shape {
        [rows, cols] if rows > 0 && cols > 0 => Some((rows, cols)),
        _ => None,
    }
}

/// A tensor that is no matrix.
fn no_matrix(path: &Path, name: &str, shape: &[usize]) -> Error {
    Error::tensor(path, name, format!("has shape {shape:?}").remedy("a mask is a matrix (out, in), as its weight is"))
}

/// A tensor of another type than a mask can have.
fn wrong_type(path: &Path, name: &str, dtype: impl Display) -> Error {
    Error::tensor(
        path,
        name,
        format!("is of type {dtype}").remedy("a mask is boolean or u8, 1 for pruned: convert it before saving"),
    )
}
