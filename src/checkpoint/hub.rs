//! Checkpoints from a model hub that speaks Hugging Face's API, through its shared cache.

use super::http::{Client, MAX_SMALL_FILE, Target};
use super::index::Index;
use super::writer::is_beside_weights;
use super::{Checkpoint, INDEX, Remote, Retry, SINGLE, Source, check_is_directory, download, hints};
use crate::error::{Error, Problem, Remedy, Result};
use crate::progress::Progress;
use hf_hub::api::RepoInfo;
use hf_hub::{Cache, Repo, RepoType};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Attempts to list a hub's files: before anything was read, few are made, so that the user soon hears of a hub that cannot be
/// reached.
const LISTING_ATTEMPTS: u32 = 3;

/// A hub, the token for it, and the cache that downloads go to.
#[derive(Clone)]
pub struct Hub {
    /// Base URL, without a slash at the end.
    pub endpoint: String,
    /// Access token, for private and gated models.
    pub token: Option<String>,
    /// Directory with one `models--owner--name` per model, as Hugging Face's libraries lay it out and share it.
    pub cache: PathBuf,
    /// Attempts and pauses for requests that fail.
    pub retry: Retry,
    /// True if only the cache is used, and nothing is asked of the hub.
    pub offline: bool,
}

impl std::fmt::Debug for Hub {
    /// Without the token, which must not reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "..");
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("token", &token)
            .field("cache", &self.cache)
            .field("retry", &self.retry)
            .field("offline", &self.offline)
            .finish()
    }
}

/// `owner/name[@revision]`.
pub(super) struct Spec {
    pub(super) repo: String,
    pub(super) revision: String,
}

impl Spec {
    fn parse(spec: &str) -> Result<Self> {
        let (repo, revision) = spec.split_once('@').unwrap_or((spec, "main"));
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with(['.', '-'])
                && !part.contains("..")
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let mut parts = repo.split('/');
        let named = matches!((parts.next(), parts.next(), parts.next()), (Some(owner), Some(name), None) if plain(owner) && plain(name));
        // A branch may be called `refs/pr/1`.
        if !named || !revision.split('/').all(plain) {
            let problem = "no such directory, and not a hub id either"
                .remedy("that would be `owner/name` or `owner/name@revision`");
            return Err(Error::argument("model", spec, problem));
        }
        Ok(Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }

    pub(super) fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.clone(), RepoType::Model, revision.to_owned())
    }

    /// The name that messages give to the listing of the repository's files.
    pub(super) fn listing(&self) -> String {
        format!("revision `{}`", self.revision)
    }

    pub(super) fn error(&self, problem: impl Into<Problem>) -> Error {
        Error::hub(&self.repo, problem)
    }
}

impl Hub {
    /// The hub that the environment describes, as for Hugging Face's libraries: `HF_ENDPOINT`; `HF_TOKEN` (else the
    /// token that their login stored, in `HF_TOKEN_PATH` or `HF_HOME`); `HF_HUB_CACHE` (else `HF_HOME/hub`, where `HF_HOME` is
    /// `huggingface` in `XDG_CACHE_HOME` or `~/.cache` unless it is set); `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE`.
    ///
    /// # Errors
    /// [`Error::Argument`] when none of these says where the cache is, and there is no home directory.
    pub fn from_env() -> Result<Self> {
        Self::from_vars(&|name| std::env::var(name).ok(), std::env::home_dir())
    }

    /// As [`Hub::from_env`], with the variables that `var` gives.
    fn from_vars(var: &dyn Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Result<Self> {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let home = home.filter(|home| !home.as_os_str().is_empty());
        let user = || var("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".cache")));
        let hf_home = var("HF_HOME").map(PathBuf::from).or_else(|| Some(user()?.join("huggingface")));
        let cache = var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
        let cache = cache.or_else(|| Some(hf_home.as_ref()?.join("hub"))).ok_or_else(|| {
            let problem = "is not set, and there is no home directory, so that it is not known where models from a \
                           hub are kept"
                .remedy("set HF_HUB_CACHE (or HF_HOME, or HOME) to a directory");
            Error::argument("HF_HUB_CACHE", "\"\"", problem)
        })?;
        let token_file = var("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(hf_home?.join("token")));
        let stored =
            || Some(std::fs::read_to_string(token_file?).ok()?.trim().to_owned()).filter(|token| !token.is_empty());
        let yes = |name: &str| {
            let value = var(name).map(|value| value.trim().to_ascii_uppercase());
            value.is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.as_str()))
        };
        Ok(Self {
            endpoint: var("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".into())
                .trim_end_matches('/')
                .to_owned(),
            token: var("HF_TOKEN").map(|token| token.trim().to_owned()).or_else(stored),
            cache,
            retry: Retry::default(),
            offline: yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE"),
        })
    }

    /// Downloads the safetensors weights and every file beside them that holds none (config, tokenizer, code) of `owner/name[@revision]`, whatever of it the cache lacks,
    /// and returns the directory. A model that is whole in the cache is not asked for again; one that was interrupted
    /// goes on where it stopped. Offline, what the cache has must do.
    ///
    /// # Errors
    /// [`Error::Argument`] when `spec` has another form; [`Error::Hub`] when the hub refuses, does not know the model or
    /// its revision, has no safetensors of it, or cannot be reached, or offline, the cache lacks weights; [`Error::Interrupted`].
    pub fn download(&self, spec: &str, progress: Progress) -> Result<PathBuf> {
        let spec = Spec::parse(spec)?;
        let cache = Cache::new(self.cache.clone());
        if let Some(dir) = whole_snapshot(&cache, &spec) {
            return Ok(dir);
        }
        let cached = cached_snapshot(&cache, &spec);
        if self.offline {
            return cached.filter(|dir| is_complete(dir)).ok_or_else(|| self.offline_error(&spec));
        }
        let client = Client::new(self, spec);
        let spec = client.spec();
        let (commit, files) = match list(&client) {
            Ok(listing) => listing,
            // Its tokenizer may have another form, or none, and the weights are what was asked for.
            Err(error) => match cached.filter(|dir| client.is_unreachable() && is_complete(dir)) {
                Some(dir) => return Ok(dir),
                None => return Err(error),
            },
        };

        // All files of one commit, even if the branch moves on meanwhile.
        let repo = cache.repo(spec.at(&commit));
        let dir = repo.pointer_path(&commit);
        let fetch = |file: &str| download::fetch(&client, &repo, &dir, &client.file(&commit, file), progress);
        // Small files first: where the weights are, the rest is too.
        for file in files.iter().filter(|file| is_beside_weights(file)) {
            fetch(file)?;
        }
        if files.contains(SINGLE) {
            fetch(SINGLE)?;
        } else if files.contains(INDEX) {
            fetch(INDEX)?;
            for shard in Index::read(&dir.join(INDEX))?.shards() {
                if !files.contains(shard) {
                    return Err(spec.error(
                        format!("{INDEX} names shard {shard}, which the repository lacks")
                            .remedy("tell its owner, or use another revision"),
                    ));
                }
                fetch(shard)?;
            }
        } else {
            return Err(no_weights(spec, &files));
        }
        // Only now does the branch's name stand for this commit.
        cache.repo(spec.at(&spec.revision)).create_ref(&commit).map_err(Error::io("write the cache", &self.cache))?;
        check_is_directory(&dir)?;
        Ok(dir)
    }

    /// The error for a model that the cache lacks while the hub must not be asked.
    fn offline_error(&self, spec: &Spec) -> Error {
        let what = match cached_snapshot(&Cache::new(self.cache.clone()), spec) {
            Some(_) => "is not whole in",
            None => "is not in",
        };
        let cache = self.cache.display();
        spec.error(
            format!("{} {what} the cache {cache}, and HF_HUB_OFFLINE forbids to ask a hub for it", spec.listing())
                .remedy(
                    "unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), or set HF_HUB_CACHE to the cache that has it",
                ),
        )
    }

    /// Reads config, index and headers of `owner/name[@revision]`, all of one commit, and no weights.
    ///
    /// # Errors
    /// [`Error::Argument`] when `spec` has another form; [`Error::Hub`] when the hub refuses, does not know the model or
    /// its revision, has no safetensors of it, or cannot be reached; [`Error::File`] or [`Error::Tensor`] when its files
    /// break a rule of the format, as for [`Checkpoint::open`]; [`Error::Interrupted`].
    pub fn headers(&self, spec: &str, progress: Progress) -> Result<Remote> {
        let spec = Spec::parse(spec)?;
        if self.offline { Err(self.offline_error(&spec)) } else { Remote::open(self, spec, progress) }
    }

    /// The cached download of `owner/name[@revision]` if it has config and weights, else its headers from the hub.
    ///
    /// # Errors
    /// Those of [`Hub::headers`] and of [`Checkpoint::open`].
    pub fn source(&self, spec: &str, progress: Progress) -> Result<Box<dyn Source>> {
        let cached = cached_snapshot(&Cache::new(self.cache.clone()), &Spec::parse(spec)?);
        match cached.filter(|dir| is_complete(dir)) {
            Some(dir) => Ok(Box::new(Checkpoint::open(dir)?)),
            None => Ok(Box::new(self.headers(spec, progress)?)),
        }
    }

    /// Explains the status `code` in answer to a request for `what`, and the remedy.
    pub(super) fn denied(&self, spec: &Spec, what: &str, code: u16) -> Problem {
        let (endpoint, repo) = (&self.endpoint, &spec.repo);
        let token = if self.token.is_some() { "the token in use" } else { "no token, as none is set" };
        match code {
            401 => format!("{endpoint} refuses {what} (401) with {token}")
                .remedy("check the name, and set HF_TOKEN to a token that may read it"),
            403 => format!("{endpoint} forbids {what} (403) with {token}")
                .remedy(format!("ask for access on {endpoint}/{repo} and set HF_TOKEN to a token of that account")),
            404 => format!("{endpoint} does not have {what} (404)").remedy("check the name and the revision"),
            _ => format!("{endpoint} answered {code} for {what}").remedy("try again later"),
        }
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

/// The directory in the cache that the revision, a branch or a commit, stood for last time.
fn cached_snapshot(cache: &Cache, spec: &Spec) -> Option<PathBuf> {
    let folder = cache.path().join(spec.at(&spec.revision).folder_name());
    let commit =
        std::fs::read_to_string(folder.join("refs").join(&spec.revision)).unwrap_or_else(|_| spec.revision.clone());
    let dir = folder.join("snapshots").join(commit.trim());
    dir.is_dir().then_some(dir)
}

/// The directory in the cache, if nothing of the model can be missing there.
fn whole_snapshot(cache: &Cache, spec: &Spec) -> Option<PathBuf> {
    cached_snapshot(cache, spec).filter(|dir| is_complete(dir) && dir.join("tokenizer.json").exists())
}

/// There are no safetensors among `files`.
pub(super) fn no_weights(spec: &Spec, files: &BTreeSet<String>) -> Error {
    spec.error(hints::of_listing(files).map(|hint| format!("it has no {SINGLE} and no {INDEX}; {hint}")))
}

/// Returns whether config and all weights are there.
fn is_complete(dir: &Path) -> bool {
    let weights = dir.join(SINGLE).exists()
        || Index::read(&dir.join(INDEX)).is_ok_and(|index| index.shards().iter().all(|shard| dir.join(shard).exists()));
    weights && dir.join("config.json").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_owner_slash_name_and_maybe_a_revision() {
        let spec = Spec::parse("HuggingFaceTB/SmolLM2-135M@refs/pr/1").unwrap();
        assert_eq!((spec.repo.as_str(), spec.revision.as_str()), ("HuggingFaceTB/SmolLM2-135M", "refs/pr/1"));
        assert_eq!(Spec::parse("a/b").unwrap().revision, "main");
        for wrong in [
            "",
            "gpt2",
            "./model",
            "/tmp/model",
            "a/b/c",
            "a/b@",
            "a/b@../x",
            "../b",
            "a/b c",
            "a/..",
            "a//b",
            "a/b@x//y",
        ] {
            let error = Spec::parse(wrong).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("owner/name"), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_environment_says_where_the_cache_is_or_an_error_says_what_to_set() {
        let hub = |vars: &[(&str, &str)], home: Option<&str>| {
            let var = |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            Hub::from_vars(&var, home.map(PathBuf::from))
        };
        let cache = |vars: &[(&str, &str)], home| hub(vars, home).unwrap().cache.display().to_string();
        assert_eq!(cache(&[], Some("/h")), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("XDG_CACHE_HOME", "/x")], Some("/h")), "/x/huggingface/hub");
        assert_eq!(cache(&[("HF_HOME", "/hf")], Some("/h")), "/hf/hub");
        assert_eq!(cache(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/hf")], None), "/c");
        assert_eq!(cache(&[("HUGGINGFACE_HUB_CACHE", "/c")], None), "/c");
        for home in [None, Some("")] {
            let error = hub(&[("HF_HUB_CACHE", " ")], home).unwrap_err().to_string();
            assert!(error.contains("no home directory") && error.contains("set HF_HUB_CACHE"), "{error}");
        }
        for (value, offline) in [("1", true), ("true", true), ("YES", true), ("on", true), ("0", false), ("", false)] {
            for name in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
                assert_eq!(hub(&[(name, value)], Some("/h")).unwrap().offline, offline, "{name}={value}");
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        std::fs::write(&file, "hf_stored\n").unwrap();
        let at = file.to_str().unwrap();
        let token = |vars: &[(&str, &str)]| hub(vars, Some("/no/such/home")).unwrap().token;
        assert_eq!(token(&[("HF_TOKEN_PATH", at)]).as_deref(), Some("hf_stored"));
        assert_eq!(token(&[("HF_TOKEN_PATH", at), ("HF_TOKEN", "hf_own")]).as_deref(), Some("hf_own"));
        assert_eq!(token(&[]), None);
    }

    #[test]
    fn the_token_stays_out_of_debug_output() {
        let hub = Hub {
            endpoint: "http://h".into(),
            token: Some("hf_secret".into()),
            ..Hub::from_vars(&|_| None, Some("/h".into())).unwrap()
        };
        assert!(!format!("{hub:?}").contains("secret"));
    }
}
