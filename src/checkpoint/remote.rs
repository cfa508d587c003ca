//! A checkpoint on a hub of which only the headers are read; tensors come by ranges when asked for.

use super::http::{Client, MAX_SMALL_FILE, Target};
use super::hub::{Hub, Spec};
use super::index::Index;
use super::names::Names;
use super::{INDEX, SINGLE, Source, TensorInfo, header, hints, json, writer};
use crate::error::{Error, Remedy, Result};
use crate::progress::Progress;
use crate::sync::on_threads;
use hf_hub::api::RepoInfo;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Requests in flight: enough to fill a line that one connection does not, few enough for a hub to bear.
const STREAMS: usize = 8;
/// A request costs a round trip and some KiB of headers, and a hub counts it.
const WORTH_SKIPPING: u64 = 16 << 10;

/// Attempts to list a hub's files: before anything was read, few are made, so that the user soon hears of a hub that cannot be
/// reached.
const LISTING_ATTEMPTS: u32 = 3;

/// A checkpoint on a hub, pinned to one commit: its headers, read and checked like those of a [`Checkpoint`], and the
/// means to fetch bytes behind them. Made by [`Hub::headers`].
///
/// [`Checkpoint`]: super::Checkpoint
pub struct Remote {
    client: Client,
    commit: String,
    /// All files of the repository.
    listed: BTreeSet<String>,
    shards: Vec<Shard>,
    tensors: Vec<TensorInfo>,
    names: Names,
    notes: Vec<String>,
    config: OnceLock<Map<String, Value>>,
}

struct Shard {
    name: String,
    /// Bytes of the file.
    size: u64,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote")
            .field("origin", &self.origin())
            .field("files", &self.files())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

impl Remote {
    pub(super) fn open(hub: &Hub, spec: Spec, progress: Progress) -> Result<Self> {
        let client = Client::new(hub, spec);
        let (commit, listed) = list(&client)?;
        let mut remote = Self {
            client,
            commit,
            listed,
            shards: Vec::new(),
            tensors: Vec::new(),
            names: Names::default(),
            notes: Vec::new(),
            config: OnceLock::new(),
        };

        // In the order in which a local directory is looked at.
        let (index, names) = if remote.listed.contains(SINGLE) {
            (None, vec![SINGLE.to_owned()])
        } else if remote.listed.contains(INDEX) {
            let index = Index::parse(&remote.path(INDEX), &remote.small_file(INDEX)?)?;
            index.check_shards(|shard| remote.listed.contains(shard))?;
            let names = index.shards().into_iter().map(str::to_owned).collect();
            (Some(index), names)
        } else {
            return Err(no_weights(remote.client.spec(), &remote.listed));
        };
        let headers = remote.read_headers(&names, progress)?;
        let paths: Vec<PathBuf> = names.iter().map(|name| remote.path(name)).collect();
        let (sizes, headers): (Vec<u64>, Vec<_>) = headers.into_iter().unzip();
        (remote.tensors, _) = header::join(&paths, headers.into_iter().map(Ok))?;
        if let Some(index) = index {
            let files: Vec<Vec<String>> = names.iter().map(|name| vec![name.clone()]).collect();
            remote.notes = index.compare(&remote.tensors, &files).notes;
        }
        remote.names = Names::settle(&mut remote.tensors, &paths)?;
        remote.notes.extend(remote.names.note().map(str::to_owned));
        remote.shards = names.into_iter().zip(sizes).map(|(name, size)| Shard { name, size }).collect();
        Ok(remote)
    }

    /// The commit that everything is read of.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// Bytes that have come over the wire so far in the bodies of answers: headers, small files, tensors, and what was
    /// received in vain.
    pub fn received(&self) -> u64 {
        self.client.received()
    }

    /// The path by which messages name a file.
    fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.origin()).join(name)
    }

    fn target<'a>(&self, name: &'a str) -> Target<'a> {
        self.client.file(&self.commit, name)
    }

    fn small_file(&self, name: &str) -> Result<Vec<u8>> {
        self.client.whole(&self.target(name), MAX_SMALL_FILE, self.client.hub().retry.attempts)
    }

    /// Size and tensors of every shard.
    fn read_headers(&self, names: &[String], progress: Progress) -> Result<Vec<(u64, Vec<TensorInfo>)>> {
        let stage = progress.stage("headers", names.len() as u64);
        let mut results = on_threads(names, STREAMS, |shard, name, _| {
            let header = self.read_header(name, shard)?;
            stage.inc(1)?;
            Ok(header)
        });
        results.sort_by_key(|&(shard, _)| shard);
        results.into_iter().map(|(_, header)| header).collect()
    }

    /// Two requests: for the header's length, which also tells the file's, and for the header.
    fn read_header(&self, name: &str, shard: usize) -> Result<(u64, Vec<TensorInfo>)> {
        let (path, target) = (self.path(name), self.target(name));
        let mut first = Vec::new();
        let size = self.client.range(&target, 0..header::LENGTH_BYTES, None, &mut |piece| {
            first.extend_from_slice(piece);
            Ok(())
        })?;
        let end = header::LENGTH_BYTES + header::length(&path, size, &first)?;
        let mut json = Vec::with_capacity((end - header::LENGTH_BYTES) as usize);
        self.client.range(&target, header::LENGTH_BYTES..end, Some(size), &mut |piece| {
            json.extend_from_slice(piece);
            Ok(())
        })?;
        Ok((size, header::parse(&path, size, json, shard)?))
    }
}

impl Source for Remote {
    fn origin(&self) -> String {
        format!("{}@{}", self.client.spec().repo, self.commit)
    }

    fn files(&self) -> Vec<String> {
        self.shards.iter().map(|shard| shard.name.clone()).collect()
    }

    fn index(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn stored_name<'a>(&'a self, name: &'a str) -> Cow<'a, str> {
        self.names.stored(name)
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn config_json(&self) -> Result<Map<String, Value>> {
        const CONFIG: &str = "config.json";
        if let Some(config) = self.config.get() {
            return Ok(config.clone());
        }
        let path = self.path(CONFIG);
        if !self.listed.contains(CONFIG) {
            return Err(Error::file(
                path,
                "missing".remedy("a checkpoint needs it beside its weights, use another revision or a local copy"),
            ));
        }
        let config = json::object(&path, &self.small_file(CONFIG)?)?;
        Ok(self.config.get_or_init(|| config).clone())
    }

    fn side_files(&self) -> Result<Vec<String>> {
        let wanted = |name: &&String| writer::is_side_file(name) && *name != "config.json";
        Ok(self.listed.iter().filter(wanted).cloned().collect())
    }

    fn side_file(&self, name: &str, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        sink(&self.small_file(name)?)
    }

    fn stream(&self, shard: usize, range: Range<u64>, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let Shard { name, size } = &self.shards[shard];
        if range.end > *size {
            let problem =
                format!("bytes {}..{} lie beyond the end of the file, which has {size}", range.start, range.end);
            return Err(Error::file(self.path(name), problem));
        }
        self.client.range(&self.target(name), range, Some(*size), sink).map(|_| ())
    }

    fn streams(&self) -> usize {
        STREAMS
    }

    fn worth_skipping(&self) -> u64 {
        WORTH_SKIPPING
    }
}

/// The commit that the client's revision stands for, and the repository's files.
pub(super) fn list(client: &Client) -> Result<(String, BTreeSet<String>)> {
    let (hub, spec) = (client.hub(), client.spec());
    let name = spec.listing();
    let url = format!("{}/api/{}", hub.endpoint, spec.at(&spec.revision).api_url());
    let attempts = hub.retry.attempts.min(LISTING_ATTEMPTS);
    let text = client.whole(&Target { name: &name, url }, MAX_SMALL_FILE, attempts)?;
    let info: RepoInfo = serde_json::from_slice(&text).map_err(|e| {
        let problem = format!("{} gave an answer for {name} that no hub gives ({e})", hub.endpoint);
        spec.error(problem.remedy("check HF_ENDPOINT"))
    })?;
    // The commit becomes a directory's name.
    if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(spec.error(format!("{} answered with the commit `{}`, which is none", hub.endpoint, info.sha)));
    }
    Ok((info.sha, info.siblings.into_iter().map(|file| file.rfilename).collect()))
}

/// There are no safetensors among `files`.
pub(super) fn no_weights(spec: &Spec, files: &BTreeSet<String>) -> Error {
    spec.error(hints::of_listing(files).map(|hint| format!("it has no {SINGLE} and no {INDEX}; {hint}")))
}
