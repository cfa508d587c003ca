//! A model hub that speaks Hugging Face's API: where it is, who asks, and what its refusals mean.

use crate::error::{Error, Problem, Remedy, Result};
use hf_hub::{Repo, RepoType};
use std::path::PathBuf;
use std::time::Duration;

/// The number of attempts, and the pauses between them, with which failed requests are repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Requests in a row that may bring nothing before it is an error.
    pub attempts: u32,
    /// Pause after the first failure; it doubles with every further one.
    pub delay: Duration,
    /// No pause is longer, not even one that the server asks for.
    pub max_delay: Duration,
    /// A connection over which nothing comes for this long counts as broken.
    pub stall: Duration,
}

impl Default for Retry {
    /// 8 attempts, pauses from 0.5 s to 30 s, 30 s for a stalled connection.
    fn default() -> Self {
        Self {
            attempts: 8,
            delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(30),
            stall: Duration::from_secs(30),
        }
    }
}

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
    pub(super) fn parse(spec: &str) -> Result<Self> {
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
