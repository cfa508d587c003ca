//! Files on a hub, whole or by ranges, by the one client and with the one policy for failures that this library has: requests that are repeated when they fail, go on where they broke off, and follow
//! the hub to the storage that it points to.

use super::hub::{Hub, Spec};
use crate::error::{Error, Remedy, Result};
use crate::progress::{POLL, check_interrupt, wait};
use crate::sync::locked;
use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use ureq::http::Uri;
use ureq::http::response::Parts;
use ureq::{Agent, RequestBuilder, typestate::WithoutBody};

/// Listings, indices, tokenizers: the largest have some 30 MB.
pub(super) const MAX_SMALL_FILE: usize = 256 << 20;
/// Bytes that are read from a connection at a time, and how many such pieces may wait for whoever takes them.
const PIECE: usize = 128 << 10;
const PIECES_AHEAD: usize = 4;
/// Redirects in a row; more are a loop.
const MAX_REDIRECTS: usize = 8;
/// The most bytes that are read of the body of an error, so that its connection can be used again.
const MAX_ERROR_BODY: u64 = 64 << 10;

/// A file: what messages call it, and its URL at the hub.
pub(super) struct Target<'a> {
    pub(super) name: &'a str,
    pub(super) url: String,
}

/// Whoever takes the bytes.
type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// Requests to a hub for one repository.
pub(super) struct Client {
    agent: Agent,
    hub: Hub,
    spec: Spec,
    /// URL at the hub -> where it redirected to: a signed link, good for some time.
    links: Mutex<HashMap<String, String>>,
    received: Arc<AtomicU64>,
    /// A request was given up because the hub could not be reached, or was not able to answer.
    unreachable: AtomicBool,
}

/// What a hub tells about a file.
pub(super) struct Described {
    /// The name of its content, without quotes; `None` for a file without bytes.
    pub(super) etag: Option<String>,
    /// Its bytes, if that was told.
    pub(super) size: Option<u64>,
}

/// The reason why an attempt failed.
enum RequestFailure {
    /// Another one may do better, after this pause if the server asked for one. `progress`: it had brought something.
    Passing { problem: String, pause: Option<Duration>, progress: bool },
    /// Another one would not.
    Final(Error),
}

impl From<Error> for RequestFailure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl RequestFailure {
    fn passing(problem: impl Into<String>) -> Self {
        Self::Passing { problem: problem.into(), pause: None, progress: false }
    }

    fn after(mut self, some: bool) -> Self {
        if let Self::Passing { progress, .. } = &mut self {
            *progress = some;
        }
        self
    }
}

/// An answer whose body is still coming.
struct Reply {
    head: Parts,
    pieces: Receiver<io::Result<Vec<u8>>>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Client {
    pub(super) fn new(hub: &Hub, spec: Spec) -> Self {
        let stall = Some(hub.retry.stall);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // Followed here, because the token must not follow, and because the link is used again.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Ranges are of the file, not of some encoding of it.
            .accept_encoding("identity")
            .user_agent(concat!("lacuna/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(stall)
            .timeout_connect(stall)
            .timeout_per_read(stall)
            .timeout_per_write(stall)
            .max_idle_connections(32)
            .max_idle_connections_per_host(16)
            .build()
            .new_agent();
        Self {
            agent,
            hub: hub.clone(),
            spec,
            links: Mutex::default(),
            received: Arc::default(),
            unreachable: AtomicBool::new(false),
        }
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(super) fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Bytes of bodies that came over the wire, whatever became of them.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// The file `name` of a commit.
    pub(super) fn file<'a>(&self, commit: &str, name: &'a str) -> Target<'a> {
        let url = format!("{}/{}/resolve/{commit}/{}", self.hub.endpoint, self.spec.repo, encode(name));
        Target { name, url }
    }

    /// Returns whether a request was given up because the hub could not be reached, or was not able to answer.
    pub(super) fn is_unreachable(&self) -> bool {
        self.unreachable.load(Ordering::Relaxed)
    }

    /// The ETag and size of a file, of which no more than a byte is read.
    pub(super) fn describe(&self, target: &Target<'_>) -> Result<Described> {
        self.persist(target, self.hub.retry.attempts, || {
            let mut url = target.url.clone();
            for _ in 0..=MAX_REDIRECTS {
                let reply = self.exchange(target, &url, Some(&(0..1)))?;
                let unquoted = |name| reply.header(name).map(|etag| etag.trim_start_matches("W/").replace('"', ""));
                let (sent_of, number) = (reply.header("content-range"), |name| reply.header(name)?.parse().ok());
                let total = sent_of.and_then(content_range).and_then(|(_, total)| total);
                match reply.head.status.as_u16() {
                    // Where the content is stored, it may have another ETag.
                    301 | 302 | 303 | 307 | 308 => {
                        if let Some(etag) = unquoted("x-linked-etag") {
                            return Ok(Described { etag: Some(etag), size: number("x-linked-size") });
                        }
                        url =
                            reply.header("location").and_then(|location| follow(&url, location)).ok_or_else(|| {
                                self.spec.error(format!("{} redirects {} to nowhere", origin(&url), target.name))
                            })?;
                    }
                    416 if total == Some(0) => return Ok(Described { etag: None, size: Some(0) }),
                    status @ (200 | 206) => {
                        let Some(etag) = unquoted("x-linked-etag").or_else(|| unquoted("etag")) else {
                            let problem = format!("{} tells no ETag of {}", origin(&url), target.name);
                            return Err(self.spec.error(problem.remedy("check HF_ENDPOINT")).into());
                        };
                        let whole = if status == 200 { number("content-length") } else { total };
                        return Ok(Described { etag: Some(etag), size: number("x-linked-size").or(whole) });
                    }
                    _ => return Err(self.refused(target, &url, &reply)),
                }
            }
            Err(self.spec.error(format!("{} redirects {} in a circle", origin(&url), target.name)).into())
        })
    }

    /// A whole file of at most `limit` bytes.
    pub(super) fn whole(&self, target: &Target<'_>, limit: usize, attempts: u32) -> Result<Vec<u8>> {
        self.persist(target, attempts, || {
            let reply = self.open(target, None)?;
            let mut bytes = Vec::new();
            while let Some(piece) = wait(&reply.pieces)? {
                bytes.extend(piece.map_err(|e| self.broke_off(target, &e))?);
                if bytes.len() > limit {
                    let problem = format!("{} has more than {limit} bytes, too many for such a file", target.name);
                    return Err(self.spec.error(problem).into());
                }
            }
            // Read to an end that the server had declared, or ureq would have failed.
            Ok(bytes)
        })
    }

    /// Hands the bytes `range` of a file of `size` bytes to `sink` as they come, each once, and returns the size. If that
    /// is `None`, the range may go beyond the file's end.
    pub(super) fn range(
        &self,
        target: &Target<'_>,
        range: Range<u64>,
        size: Option<u64>,
        sink: Sink<'_>,
    ) -> Result<u64> {
        let mut at = range.start;
        if range.is_empty() {
            return Ok(size.unwrap_or(range.end));
        }
        self.persist(target, self.hub.retry.attempts, || {
            let before = at;
            self.attempt(target, &mut at, range.end, size, sink).map_err(|failure| failure.after(at > before))
        })
    }

    /// One request for the bytes from `at` to `end`; `at` moves with what `sink` has taken.
    fn attempt(
        &self,
        target: &Target<'_>,
        at: &mut u64,
        end: u64,
        size: Option<u64>,
        sink: Sink<'_>,
    ) -> Result<u64, RequestFailure> {
        let asked = *at..end;
        let reply = self.open(target, Some(&asked))?;
        let wrong = |problem: String| {
            let problem = format!("{problem} for bytes {}-{} of {}", asked.start, asked.end - 1, target.name).remedy(
                "what is between here and the hub does not serve ranges properly, check HF_ENDPOINT and proxies, or \
                 download the model",
            );
            RequestFailure::Final(self.spec.error(problem))
        };
        let told = reply.header("content-range").unwrap_or_default();
        let (sent, total) = content_range(told).unwrap_or_default();
        let status = reply.head.status.as_u16();
        let (end, total) = match (status, sent, total.or(size)) {
            // There is nothing at or behind its start.
            (416, None, Some(total)) if size.is_none() && total <= asked.start => return Ok(total),
            (206, Some(sent), Some(total)) => {
                let end = if size.is_none() { asked.end.min(total) } else { asked.end };
                if sent != (asked.start..end) || size.is_some_and(|size| size != total) {
                    return Err(wrong(format!("the answer is of `{told}`")));
                }
                (end, total)
            }
            (206, ..) => return Err(wrong(format!("the answer is of `{told}`, which is no range"))),
            (416, ..) => return Err(wrong("the answer is that there is no such range".into())),
            _ => return Err(wrong(format!("the answer is the whole file ({status})"))),
        };
        let surplus = || wrong("there came more bytes than asked".into());
        let length = reply.header("content-length").and_then(|length| length.parse::<u64>().ok());
        if length.is_some_and(|length| length > end - asked.start) {
            return Err(surplus());
        }
        while let Some(piece) = wait(&reply.pieces)? {
            let piece = piece.map_err(|e| self.broke_off(target, &e))?;
            if piece.len() as u64 > end - *at {
                return Err(surplus());
            }
            sink(&piece)?;
            *at += piece.len() as u64;
        }
        if *at < end {
            let problem = format!("the answer for {} ended {} bytes too soon", target.name, end - *at);
            return Err(RequestFailure::passing(problem));
        }
        Ok(total)
    }

    /// Repeats `attempt` until it succeeds, fails for good, or has failed `attempts` times in a row without progress.
    fn persist<T>(
        &self,
        target: &Target<'_>,
        attempts: u32,
        mut attempt: impl FnMut() -> Result<T, RequestFailure>,
    ) -> Result<T> {
        let mut failed = 0;
        loop {
            let (problem, pause, progress) = match attempt() {
                Ok(value) => return Ok(value),
                Err(RequestFailure::Final(error)) => return Err(error),
                Err(RequestFailure::Passing { problem, pause, progress }) => (problem, pause, progress),
            };
            // Perhaps the hub knows a better place by now.
            self.links().remove(&target.url);
            failed = if progress { 0 } else { failed + 1 };
            if failed >= attempts {
                self.unreachable.store(true, Ordering::Relaxed);
                let problem = format!("{problem} ({attempts} attempts in a row brought nothing)")
                    .remedy("check the network and HF_ENDPOINT, or try again later");
                return Err(self.spec.error(problem));
            }
            self.pause(failed, pause)?;
        }
    }

    /// Waits before another attempt: as long as the server asked, else longer with every failure. Without chance, so that
    /// a run can be repeated.
    fn pause(&self, failed: u32, asked: Option<Duration>) -> Result<()> {
        let retry = &self.hub.retry;
        let doubled = retry.delay.saturating_mul(1u32.checked_shl(failed.saturating_sub(1)).unwrap_or(u32::MAX));
        let until = Instant::now() + asked.unwrap_or(doubled).min(retry.max_delay);
        loop {
            check_interrupt()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(POLL));
        }
    }

    /// The answer, a success or 416, to a request that goes where the hub points to.
    fn open(&self, target: &Target<'_>, range: Option<&Range<u64>>) -> Result<Reply, RequestFailure> {
        let mut known = self.links().get(&target.url).cloned();
        let mut url = known.clone().unwrap_or_else(|| target.url.clone());
        let mut redirects = 0;
        loop {
            let reply = self.exchange(target, &url, range)?;
            match reply.head.status.as_u16() {
                200 | 206 | 416 => {
                    if url != target.url {
                        self.links().insert(target.url.clone(), url);
                    }
                    return Ok(reply);
                }
                301 | 302 | 303 | 307 | 308 => {
                    redirects += 1;
                    let next = reply.header("location").and_then(|location| follow(&url, location));
                    let Some(next) = next.filter(|_| redirects <= MAX_REDIRECTS) else {
                        let problem = format!("{} redirects {} to nowhere, or in a circle", origin(&url), target.name)
                            .remedy("check HF_ENDPOINT");
                        return Err(self.spec.error(problem).into());
                    };
                    url = next;
                }
                // A link of before has expired; the hub gives another.
                400 | 401 | 403 | 404 | 410 if known.is_some() => {
                    let mut links = self.links();
                    // Another stream may have renewed it.
                    if links.get(&target.url) == known.as_ref() {
                        links.remove(&target.url);
                    }
                    known = links.get(&target.url).cloned();
                    url = known.clone().unwrap_or_else(|| target.url.clone());
                    redirects = 0;
                }
                _ => return Err(self.refused(target, &url, &reply)),
            }
        }
    }

    /// The failure that an answer means which is neither a success nor a redirect.
    fn refused(&self, target: &Target<'_>, url: &str, reply: &Reply) -> RequestFailure {
        let status = reply.head.status.as_u16();
        if matches!(status, 408 | 429 | 500 | 502 | 503 | 504) {
            let pause = reply.header("retry-after").and_then(|seconds| seconds.trim().parse().ok());
            return RequestFailure::Passing {
                problem: format!("{} answered {status} for {}", origin(url), target.name),
                pause: pause.map(Duration::from_secs),
                progress: false,
            };
        }
        let problem = if self.is_hub(url) {
            self.hub.denied(&self.spec, target.name, status)
        } else {
            let (storage, hub) = (origin(url), &self.hub.endpoint);
            format!("{storage} answered {status} for {}, though {hub} has just pointed there", target.name)
                .remedy("try again later")
        };
        self.spec.error(problem).into()
    }

    /// Sends one request. It runs in a thread of its own, so that Ctrl-C need not wait for it; the thread ends when
    /// nobody takes its pieces any more, or nothing comes for too long.
    fn exchange(&self, target: &Target<'_>, url: &str, range: Option<&Range<u64>>) -> Result<Reply, RequestFailure> {
        let mut request = self.agent.get(url);
        if let Some(range) = range {
            request = request.header("Range", format!("bytes={}-{}", range.start, range.end - 1));
        }
        // Storage is another host, which has no business with the token: the link is signed.
        if let Some(token) = self.hub.token.as_ref().filter(|_| self.is_hub(url)) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let (head_sender, head) = channel();
        let (sender, pieces) = sync_channel(PIECES_AHEAD);
        let received = self.received.clone();
        let cannot = |problem: String| format!("cannot reach {} for {} ({problem})", origin(url), target.name);
        std::thread::Builder::new()
            .name("hub".into())
            .spawn(move || transfer(request, &head_sender, &sender, &received))
            .map_err(|e| RequestFailure::passing(cannot(e.to_string())))?;
        match wait(&head)? {
            Some(Ok(head)) => Ok(Reply { head, pieces }),
            Some(Err(error)) => {
                let problem = cannot(error.to_string());
                let passing = match error {
                    // What rustls makes of a certificate that it does not trust.
                    ureq::Error::Io(e) => e.kind() != io::ErrorKind::InvalidData,
                    ureq::Error::Timeout(_)
                    | ureq::Error::HostNotFound
                    | ureq::Error::ConnectionFailed
                    | ureq::Error::Protocol(_) => true,
                    _ => false,
                };
                if passing {
                    return Err(RequestFailure::passing(problem));
                }
                let problem = problem.remedy("check HF_ENDPOINT and HF_TOKEN, or give a local directory");
                Err(self.spec.error(problem).into())
            }
            None => Err(RequestFailure::passing(cannot("the request ended without an answer".into()))),
        }
    }

    fn broke_off(&self, target: &Target<'_>, error: &io::Error) -> RequestFailure {
        RequestFailure::passing(format!("the transfer of {} broke off ({error})", target.name))
    }

    fn is_hub(&self, url: &str) -> bool {
        origin(url) == origin(&self.hub.endpoint)
    }

    fn links(&self) -> MutexGuard<'_, HashMap<String, String>> {
        locked(&self.links)
    }
}

/// The thread of one request. Whoever has lost interest has dropped the other ends.
fn transfer(
    request: RequestBuilder<WithoutBody>,
    head: &Sender<Result<Parts, ureq::Error>>,
    pieces: &SyncSender<io::Result<Vec<u8>>>,
    received: &AtomicU64,
) {
    let (parts, body) = match request.call() {
        Ok(response) => response.into_parts(),
        Err(e) => {
            let _ = head.send(Err(e));
            return;
        }
    };
    let mut body = body.into_reader();
    if !parts.status.is_success() {
        let bytes = io::copy(&mut body.take(MAX_ERROR_BODY), &mut io::sink()).unwrap_or_default();
        received.fetch_add(bytes, Ordering::Relaxed);
        let _ = head.send(Ok(parts));
        return;
    }
    if head.send(Ok(parts)).is_err() {
        return;
    }
    let mut buffer = vec![0; PIECE];
    loop {
        let piece = match body.read(&mut buffer) {
            Ok(0) => return,
            Ok(bytes) => {
                received.fetch_add(bytes as u64, Ordering::Relaxed);
                Ok(buffer[..bytes].to_vec())
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => Err(e),
        };
        let over = piece.is_err();
        if pieces.send(piece).is_err() || over {
            return;
        }
    }
}

/// A file's name as it stands in a URL.
fn encode(name: &str) -> String {
    let mut url = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url
}

/// Scheme, host and port of a URL: all that a message may show of a signed one. Empty if it is none.
fn origin(url: &str) -> String {
    let parse = || {
        let uri: Uri = url.parse().ok()?;
        let (scheme, host) = (uri.scheme_str()?.to_ascii_lowercase(), uri.host()?.to_ascii_lowercase());
        let usual = if scheme == "https" { 443 } else { 80 };
        let port = uri.port_u16().filter(|&port| port != usual).map(|port| format!(":{port}")).unwrap_or_default();
        Some(format!("{scheme}://{host}{port}"))
    };
    parse().unwrap_or_default()
}

/// Returns the URL that `location`, the redirect of `url`, points to; `None` if that is no URL, or would give up
/// encryption.
fn follow(url: &str, location: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let next = if location.starts_with("//") {
        format!("{}:{location}", uri.scheme_str()?)
    } else if location.starts_with('/') {
        format!("{}://{}{location}", uri.scheme_str()?, uri.authority()?)
    } else {
        location.to_owned()
    };
    let scheme = origin(&next).split(':').next()?.to_owned();
    let kept = scheme == "https" || scheme == "http" && uri.scheme_str() == Some("http");
    kept.then_some(next)
}

/// `bytes 0-7/99` as `0..8` and 99; either may be unknown (`*`).
pub(super) fn content_range(text: &str) -> Option<(Option<Range<u64>>, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let total = if total == "*" { None } else { Some(total.parse::<u64>().ok()?) };
    if range == "*" {
        return Some((None, total));
    }
    let (first, last) = range.split_once('-')?;
    let range = first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?;
    let possible = !range.is_empty() && total.is_none_or(|total| range.end <= total);
    possible.then_some((Some(range), total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (url, expected) in [
            ("https://Hub.co:443/a?sig=secret", "https://hub.co"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            // The host is what follows the @.
            ("http://hub.co@elsewhere.co/x", "http://elsewhere.co"),
            ("no url", ""),
            ("/path", ""),
        ] {
            assert_eq!(origin(url), expected, "{url}");
        }
    }

    #[test]
    fn redirects_are_absolute_or_of_the_host_and_never_give_up_encryption() {
        let to = |location| follow("https://hub.co/a/resolve/main/f", location);
        assert_eq!(to("/b/resolve/main/f?x=1").as_deref(), Some("https://hub.co/b/resolve/main/f?x=1"));
        assert_eq!(to("//cdn.co/f").as_deref(), Some("https://cdn.co/f"));
        assert_eq!(to("https://cdn.co/f?sig=1").as_deref(), Some("https://cdn.co/f?sig=1"));
        assert_eq!(to("http://cdn.co/f"), None);
        assert_eq!(to("ftp://cdn.co/f"), None);
        assert_eq!(to("f"), None);
        assert_eq!(follow("http://127.0.0.1:1/a", "http://127.0.0.1:2/b").as_deref(), Some("http://127.0.0.1:2/b"));
    }

    #[test]
    fn content_ranges_are_read_strictly() {
        assert_eq!(content_range("bytes 0-7/99"), Some((Some(0..8), Some(99))));
        assert_eq!(content_range("bytes 5-5/*"), Some((Some(5..6), None)));
        assert_eq!(content_range("bytes */99"), Some((None, Some(99))));
        for wrong in ["", "0-7/99", "bytes 7-0/99", "bytes 0-99/99", "bytes 0-/99", "bytes -1-2/9", "bytes 1/9"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
        assert_eq!(content_range("bytes 0-18446744073709551615/*"), None);
    }

    #[test]
    fn names_are_encoded_for_urls() {
        assert_eq!(encode("model-00001-of-00002.safetensors"), "model-00001-of-00002.safetensors");
        assert_eq!(encode("a b?c#d%é"), "a%20b%3Fc%23d%25%C3%A9");
    }
}
