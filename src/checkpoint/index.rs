//! `model.safetensors.index.json`: which shard holds which tensor.

use super::TensorInfo;
use super::header::Entries;
use super::{hints, json};
use crate::error::{Error, Remedy, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap, HashSet, hash_map};
use std::path::{Component, Path, PathBuf};

#[derive(Deserialize)]
struct Text {
    weight_map: Entries<String>,
}

/// A parsed index.
pub(super) struct Index {
    path: PathBuf,
    /// Tensor -> file, as a path inside the directory without `.` and `..`.
    weight_map: HashMap<String, String>,
}

/// The tensors on which an index and the headers of its shards disagree.
#[derive(Debug, Default)]
pub(super) struct Disagreements {
    /// For people, a sentence each.
    pub(super) notes: Vec<String>,
    /// Tensors that are in no shard, each with the shard that the index names. Asking for one is an error.
    pub(super) absent: HashMap<String, String>,
}

impl Index {
    /// Reads and checks an index.
    pub(super) fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &std::fs::read(path).map_err(Error::io("read", path))?)
    }

    /// Checks the text of an index; `path` is for messages only.
    pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let broken = |problem: String| Error::file(path, problem.remedy("its owner has to write it again"));
        let Text { weight_map: Entries(entries) } = serde_json::from_str(json::text(path, text)?).map_err(|e| {
            Error::file(
                path,
                format!("not a valid index ({e})").remedy("is it cut off? Copy it again, or take another revision"),
            )
        })?;
        let mut weight_map = HashMap::with_capacity(entries.len());
        for (tensor, shard) in entries {
            let Some(shard) = inside(&shard) else {
                let problem =
                    format!("it maps tensor `{tensor}` to `{shard}`, which is no file name inside its directory");
                return Err(broken(problem));
            };
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

    /// Returns whether the index lists a tensor that is not among `names`.
    pub(super) fn lists_more_than(&self, names: &HashMap<String, usize>) -> bool {
        self.weight_map.keys().any(|tensor| !names.contains_key(tensor))
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
        let of = format!("{} of {} shards are missing", missing.len(), shards.len());
        let problem = match hints::dangling(&self.path.with_file_name(first)) {
            Some(link) => link.map(|link| format!("it names shard {first}, which is not there ({of}): {link}")),
            None => format!("it names shard {first}, which is not there ({of})").remedy("download what is missing"),
        };
        Err(Error::file(&self.path, problem))
    }

    /// Compares it with the headers of `files`, which are named as in the index. What a header has is read from there, whatever
    /// the index says; so it takes no part in which values a tensor has.
    pub(super) fn compare(&self, tensors: &[TensorInfo], files: &[Vec<String>]) -> Disagreements {
        let (mut unlisted, mut elsewhere) = (Vec::new(), Vec::new());
        for tensor in tensors {
            match self.weight_map.get(&tensor.name) {
                None => unlisted.push(tensor),
                Some(told) if !files[tensor.shard].contains(told) => elsewhere.push((tensor, told)),
                Some(_) => {}
            }
        }
        let there: HashSet<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let absent = self.weight_map.iter().filter(|(name, _)| !there.contains(name.as_str()));
        let absent: HashMap<String, String> = absent.map(|(name, shard)| (name.clone(), shard.clone())).collect();
        let mut notes = Vec::new();
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let of = |number: usize| if number == 1 { "1 tensor".to_owned() } else { format!("{number} tensors") };
        if let Some(first) = unlisted.first() {
            let (number, shard) = (of(unlisted.len()), &files[first.shard][0]);
            notes.push(format!("{name} does not list {number} of the shards, such as `{}` in {shard}", first.name));
        }
        if let Some((first, told)) = elsewhere.first() {
            let (number, shard) = (of(elsewhere.len()), &files[first.shard][0]);
            notes.push(format!(
                "{name} is wrong about where {number} are, such as `{}`, which is in {shard} and not in {told}",
                first.name
            ));
        }
        // In name order, so that the message does not change from run to run.
        if let Some((first, shard)) = absent.iter().min() {
            let number = of(absent.len());
            notes.push(format!(
                "{name} lists {number} that no shard has, such as `{first}`, which should be in {shard}"
            ));
        }
        Disagreements { notes, absent }
    }
}

/// A path inside a directory as an index may write it, without `.` and `..`; `None` for one that leads out of it, so that a
/// name from a file or a server cannot.
pub(super) fn inside(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for component in Path::new(name).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => drop(parts.pop()?),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!parts.is_empty() && !name.contains('\0')).then(|| parts.join("/"))
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
pub(super) fn write(tensors: impl Iterator<Item = (String, String)>, total_size: u64) -> Vec<u8> {
    let weight_map: Map<String, Value> = tensors.map(|(name, shard)| (name, Value::String(shard))).collect();
    let mut text =
        format!("{:#}", json!({"metadata": {"total_size": total_size}, "weight_map": weight_map})).into_bytes();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_their_directory() {
        for (name, expected) in [
            ("model.safetensors", Some("model.safetensors")),
            ("./model.safetensors", Some("model.safetensors")),
            ("././a/./b.safetensors", Some("a/b.safetensors")),
            ("a//b.safetensors", Some("a/b.safetensors")),
            ("a/../b.safetensors", Some("b.safetensors")),
            ("..", None),
            ("../b.safetensors", None),
            ("a/../../b.safetensors", None),
            ("/etc/passwd", None),
            ("", None),
            (".", None),
            ("a/..", None),
            ("a\0b", None),
        ] {
            assert_eq!(inside(name).as_deref(), expected, "{name}");
        }
    }
}
