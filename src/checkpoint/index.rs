//! `model.safetensors.index.json`: which shard holds which tensor.

use super::TensorInfo;
use super::header::Entries;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap, hash_map};
use std::path::{Component, Path, PathBuf};

/// The file name that Hugging Face's libraries look for.
pub(super) const INDEX: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Text {
    weight_map: Entries<String>,
}

/// A parsed index.
pub(super) struct Index {
    path: PathBuf,
    weight_map: HashMap<String, String>,
}

impl Index {
    /// Reads and checks an index.
    pub(super) fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &std::fs::read(path).map_err(Error::io("read", path))?)
    }

    /// Checks the text of an index; `path` is for messages only.
    pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let broken = |problem: String| Error::file(path, format!("{problem}; download it again"));
        let Text { weight_map: Entries(entries) } =
            serde_json::from_slice(text).map_err(|e| broken(format!("not a valid index ({e})")))?;
        let mut weight_map = HashMap::with_capacity(entries.len());
        for (tensor, shard) in entries {
            if !is_file_name(&shard) {
                return Err(broken(format!("it maps tensor `{tensor}` to `{shard}`, which is no file name")));
            }
            match weight_map.entry(tensor) {
                hash_map::Entry::Occupied(tensor) => {
                    return Err(broken(format!("it names tensor `{}` twice", tensor.key())));
                }
                hash_map::Entry::Vacant(vacant) => vacant.insert(shard),
            };
        }
        if weight_map.is_empty() {
            return Err(broken("it names no tensor".into()));
        }
        Ok(Self { path: path.to_path_buf(), weight_map })
    }

    /// The shards' file names, sorted.
    pub(super) fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }

    /// Fails if a shard is not `there`.
    pub(super) fn check_shards(&self, there: impl Fn(&str) -> bool) -> Result<()> {
        let shards = self.shards();
        let missing: Vec<&str> = shards.iter().copied().filter(|shard| !there(shard)).collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let problem = format!(
            "it names shard {first}, which is not there ({} of {} shards are missing); download what is missing",
            missing.len(),
            shards.len()
        );
        Err(Error::file(&self.path, problem))
    }

    /// Fails if the shards' headers and the index disagree about which tensor is where.
    pub(super) fn check_tensors(&self, tensors: &[TensorInfo], shards: &[PathBuf]) -> Result<()> {
        let names: BTreeSet<(&str, &str)> = tensors
            .iter()
            .filter_map(|tensor| Some((shards[tensor.shard].file_name()?.to_str()?, tensor.name.as_str())))
            .collect();
        for tensor in tensors {
            let shard = &shards[tensor.shard];
            match self.weight_map.get(&tensor.name) {
                None => {
                    let problem = format!("{INDEX} does not know it; index and shards are of different models");
                    return Err(Error::tensor(shard, &tensor.name, problem));
                }
                Some(told) if shard.file_name().and_then(|name| name.to_str()) != Some(told) => {
                    let problem = format!("it stands here, but {INDEX} says it is in {told}; download them again");
                    return Err(Error::tensor(shard, &tensor.name, problem));
                }
                Some(_) => {}
            }
        }
        // In name order, so that the message does not change from run to run.
        let lost =
            self.weight_map.iter().filter(|(name, shard)| !names.contains(&(shard.as_str(), name.as_str()))).min();
        match lost {
            None => Ok(()),
            Some((name, shard)) => {
                let problem =
                    format!("{INDEX} says it is in this shard, but the shard's header lacks it; download it again");
                Err(Error::tensor(self.path.with_file_name(shard), name, problem))
            }
        }
    }
}

/// One path component, so that a name from a file or a server cannot point outside its directory.
pub(super) fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) && !name.contains('/')
}

/// Hugging Face's name of shard `shard` (from 0) of `of`.
pub(crate) fn shard_name(shard: usize, of: usize) -> String {
    if of == 1 { "model.safetensors".into() } else { format!("model-{:05}-of-{of:05}.safetensors", shard + 1) }
}

/// The text of an index; `total_size` in bytes.
pub(super) fn write<'a>(tensors: impl Iterator<Item = (&'a str, String)>, total_size: u64) -> Vec<u8> {
    let weight_map: Map<String, Value> = tensors.map(|(name, shard)| (name.to_owned(), Value::String(shard))).collect();
    let mut text =
        format!("{:#}", json!({"metadata": {"total_size": total_size}, "weight_map": weight_map})).into_bytes();
    text.push(b'\n');
    text
}
