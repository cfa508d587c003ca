//! Headers without weights: enough to inspect and to plan, where the weights are somewhere else.
//!
//! A directory with `config.json` and `headers.json`, which holds the header of every shard as it stands in the file:
//!
//! ```json
//! {"schema": 1, "files": [{"name": "model-00001-of-00002.safetensors", "bytes": 4096, "header_bytes": 1016,
//!   "header": {"model.norm.weight": {"dtype": "BF16", "shape": [1536], "data_offsets": [0, 3072]}}}]}
//! ```

use super::header::{self, Entries, LENGTH_BYTES, TensorEntry};
use super::index::inside;
use super::names::Names;
use super::source::Source;
use super::{INDEX, SINGLE, TensorInfo};
use crate::error::{Error, Remedy, Result};
use safetensors::Dtype;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::{File, Permissions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The file with the headers.
const HEADERS: &str = "headers.json";
const CONFIG: &str = "config.json";
const SCHEMA: u64 = 1;

/// A checkpoint's headers, checked like those of a [`Checkpoint`](super::Checkpoint), without its weights.
#[derive(Clone)]
pub struct HeadersOnly {
    dir: PathBuf,
    files: Vec<String>,
    tensors: Vec<TensorInfo>,
    names: Names,
}

crate::debug::one_line!(rich HeadersOnly, |headers| {
    let (tensors, files) = (headers.tensors.len(), headers.files.len());
    format!("HeadersOnly({}: {tensors} tensors of {files} files)", headers.dir.display())
});

#[derive(Deserialize)]
struct Document {
    schema: u64,
    files: Vec<Shard>,
}

#[derive(Deserialize)]
struct Shard {
    name: String,
    /// Bytes of the whole file.
    bytes: u64,
    header_bytes: u64,
    header: Entries<Option<TensorEntry>>,
}

impl HeadersOnly {
    /// Returns whether `dir` holds headers and no weights.
    pub fn is_at(dir: &Path) -> bool {
        dir.join(HEADERS).is_file() && !dir.join(SINGLE).exists() && !dir.join(INDEX).exists()
    }

    /// Opens a directory that [`HeadersOnly::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`] when `headers.json` cannot be read; [`Error::File`] or [`Error::Tensor`] when it is of another
    /// schema, or a header breaks a rule of the safetensors format.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join(HEADERS);
        let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let Document { schema, files: shards } =
            serde_json::from_slice(&text).map_err(|e| Error::file(&path, format!("holds no headers ({e})")))?;
        if schema != SCHEMA {
            let problem =
                format!("has schema {schema}, and this lacuna reads schema {SCHEMA}").remedy("save the headers again");
            return Err(Error::file(&path, problem));
        }
        let mut names = HashSet::new();
        let is_plain = |name: &str| inside(name).as_deref() == Some(name);
        if let Some(shard) = shards.iter().find(|shard| !is_plain(&shard.name) || !names.insert(&shard.name)) {
            let problem =
                format!("`{}` is no file name, or stands there twice", shard.name).remedy("save the headers again");
            return Err(Error::file(&path, problem));
        }
        let files: Vec<String> = shards.iter().map(|shard| shard.name.clone()).collect();
        let paths: Vec<PathBuf> = files.iter().map(|name| dir.join(name)).collect();
        let headers = shards.into_iter().zip(&paths).enumerate();
        let headers = headers.map(|(number, (shard, path))| shard.tensors(path, number));
        let (mut tensors, _) = header::join(&paths, headers)?;
        let names = Names::settle(&mut tensors, &paths)?;
        Ok(Self { dir: dir.to_path_buf(), files, tensors, names })
    }

    /// Writes the headers and `config.json` of `source` to `out`, which must not exist and appears when both are whole.
    ///
    /// # Errors
    /// [`Error::File`] when `out` exists; [`Error::Io`] when it cannot be written; those of [`Source::config_json`].
    pub fn save(source: &dyn Source, out: &Path) -> Result<()> {
        let name = out.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::file(out, "cannot be an output directory".remedy("give it a name")))?;
        if out.symlink_metadata().is_ok() {
            return Err(Error::file(out, "already exists".remedy("remove it, or choose another output directory")));
        }
        let parent = out.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        let config = format!("{:#}\n", Value::Object(source.config_json()?));
        let mut temp = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .suffix(".tmp")
            // As `mkdir` would; tempfile's own choice, 0700, would outlive the rename.
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(parent)
            // tempfile adds the temporary path, which tells the user nothing.
            .map_err(|e| Error::io("create an output directory in", parent)(io::Error::from(e.kind())))?;
        for (name, text) in [(CONFIG, config), (HEADERS, text(source))] {
            let path = temp.path().join(name);
            std::fs::write(&path, text)
                .and_then(|()| File::open(&path)?.sync_all())
                .map_err(Error::io("write", out))?;
        }
        File::open(temp.path()).and_then(|dir| dir.sync_all()).map_err(Error::io("flush", out))?;
        std::fs::rename(temp.path(), out).map_err(Error::io("rename into place", out))?;
        temp.disable_cleanup(true);
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(Error::io("flush", parent))
    }
}

impl Shard {
    /// Its tensors, checked as those of the file would be.
    fn tensors(self, path: &Path, number: usize) -> Result<Vec<TensorInfo>> {
        let length = header::length(path, self.bytes, &self.header_bytes.to_le_bytes())?;
        let text = |(name, tensor): &(String, Option<TensorEntry>)| {
            let TensorEntry { dtype, shape, data_offsets } = tensor.as_ref()?;
            Some(entry(name, *dtype, shape, *data_offsets).len() as u64 + 1)
        };
        // Commas stand between entries only, and braces around them.
        let least = self.header.0.iter().filter_map(text).sum::<u64>() + 1;
        if least > length {
            let problem = format!("{least} bytes of header do not fit into {length}").remedy("save the headers again");
            return Err(Error::file(path, problem));
        }
        header::check(path, self.bytes, LENGTH_BYTES + length, self.header, number)
    }
}

/// A tensor's entry in a header, as short as it can be.
fn entry(name: &str, dtype: Dtype, shape: &[usize], (begin, end): (u64, u64)) -> String {
    let entry = json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [begin, end]});
    format!("{}:{entry}", Value::from(name))
}

/// `headers.json`: a line for every tensor.
fn text(source: &dyn Source) -> String {
    let shard = |(number, name): (usize, String)| {
        let tensors: Vec<_> = source.index().iter().filter(|tensor| tensor.shard == number).collect();
        let start = tensors.iter().map(|tensor| tensor.range.start).min().unwrap_or(LENGTH_BYTES + 2);
        let bytes = tensors.iter().map(|tensor| tensor.range.end).max().unwrap_or(start);
        let entry = |tensor: &&TensorInfo| {
            let offsets = (tensor.range.start - start, tensor.range.end - start);
            entry(&source.stored_name(&tensor.name), tensor.dtype, &tensor.shape, offsets)
        };
        let (name, header_bytes) = (Value::from(name), start - LENGTH_BYTES);
        let entries = tensors.iter().map(entry).collect::<Vec<_>>().join(",\n");
        format!("{{\"name\":{name},\"bytes\":{bytes},\"header_bytes\":{header_bytes},\"header\":{{\n{entries}}}}}")
    };
    let shards: Vec<String> = source.files().into_iter().enumerate().map(shard).collect();
    format!("{{\"schema\":{SCHEMA},\"files\":[\n{}]}}\n", shards.join(",\n"))
}

impl Source for HeadersOnly {
    fn origin(&self) -> String {
        self.dir.display().to_string()
    }

    fn files(&self) -> Vec<String> {
        self.files.clone()
    }

    fn index(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn stored_name<'a>(&'a self, name: &'a str) -> Cow<'a, str> {
        self.names.stored(name)
    }

    fn notes(&self) -> Vec<String> {
        self.names.note().map(str::to_owned).into_iter().collect()
    }

    fn config_json(&self) -> Result<Map<String, Value>> {
        super::read_config(&self.dir)
    }

    /// None: they stay with the weights.
    fn side_files(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn side_file(&self, name: &str, _: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        Err(Error::file(self.dir.join(name), "only headers are here".remedy("give the checkpoint itself")))
    }

    fn stream(&self, shard: usize, _: Range<u64>, _: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let problem =
            "only headers are here, no weights: enough to inspect and plan".remedy("give the checkpoint itself");
        Err(Error::file(self.dir.join(&self.files[shard]), problem))
    }

    fn has_weights(&self) -> bool {
        false
    }

    fn streams(&self) -> usize {
        1
    }

    fn worth_skipping(&self) -> u64 {
        0
    }
}
