//! A hub on this machine: an HTTP server that speaks the hub's API and serves the files of a directory, by ranges, as
//! they are on the disk at that moment. It may send clients on to a second listener, as hubs do with their storage, and
//! it fails on demand.

#![allow(dead_code, reason = "each test file uses some of this")]

use lacuna::checkpoint::{Hub, Retry};
use serde_json::json;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// The one repository, at revisions `main` and [`COMMIT`].
pub(crate) const REPO: &str = "owner/model";
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A fault of one answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Nothing, so that a later answer is hit.
    Nothing,
    /// The connection breaks after so many bytes of the body.
    Cut(u64),
    /// Another status, and no file.
    Status(u16),
    /// 429, with the request to wait so many seconds.
    Busy(u64),
    /// The connection closes so many bytes before the length that was promised.
    Short(u64),
    /// So many bytes more than asked, and `Content-Length` says so.
    Surplus(u64),
    /// So many bytes more than asked, or fewer, in chunks, so that no length is promised.
    Chunked(i64),
    /// `Content-Range` is of the bytes one further.
    LyingRange,
    /// The whole file, with 200: `Range` is ignored.
    Whole,
    /// Nothing comes after so many bytes, and the connection stays open.
    Stall(u64),
    /// Pieces of so many bytes, with pauses.
    Trickle(u64, Duration),
}

/// A request that came in.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// True if it came to the second listener.
    pub(crate) storage: bool,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

/// Whom the server lets in, and what it keeps back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    pub(crate) token: Option<&'static str>,
    /// Answer 403 to whoever has the token.
    pub(crate) forbidden: bool,
    /// A file that is listed but not delivered.
    pub(crate) lost: Option<&'static str>,
    /// The ETag of weights, in place of their name's.
    pub(crate) promised: Option<String>,
}

#[derive(Debug)]
struct State {
    dir: PathBuf,
    /// The second listener's address, if weights are there.
    storage: Mutex<Option<String>>,
    /// Only links with this number are good.
    signature: Mutex<u64>,
    access: Mutex<Access>,
    log: Mutex<Vec<Request>>,
    sent: Mutex<BTreeMap<String, u64>>,
    /// Each for the next answer to a path with that end.
    faults: Mutex<VecDeque<(String, Fault)>>,
}

/// The server; it runs until the process ends.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) endpoint: String,
    state: Arc<State>,
}

impl Server {
    pub(crate) fn serve_dir(dir: &Path) -> Self {
        let state = Arc::new(State {
            dir: dir.to_path_buf(),
            storage: Mutex::default(),
            signature: Mutex::default(),
            access: Mutex::default(),
            log: Mutex::default(),
            sent: Mutex::default(),
            faults: Mutex::default(),
        });
        Self { endpoint: listen(&state, false), state }
    }

    /// Sends clients on to a second listener, by signed links, for the weights.
    pub(crate) fn with_storage(self) -> Self {
        let endpoint = listen(&self.state, true);
        *lock(&self.state.storage) = Some(endpoint);
        self
    }

    /// Address of the second listener.
    pub(crate) fn storage(&self) -> String {
        lock(&self.state.storage).clone().unwrap()
    }

    /// Signed links that were given out so far are no longer good.
    pub(crate) fn expire_links(&self) {
        *lock(&self.state.signature) += 1;
    }

    /// This server as a hub, without a token, impatient with failures.
    pub(crate) fn hub(&self, cache: &Path) -> Hub {
        let (delay, max_delay) = (Duration::from_millis(2), Duration::from_millis(20));
        let retry = Retry { attempts: 4, delay, max_delay, stall: Duration::from_secs(20) };
        Hub { endpoint: self.endpoint.clone(), token: None, cache: cache.to_path_buf(), retry, offline: false }
    }

    pub(crate) fn access(&self) -> MutexGuard<'_, Access> {
        lock(&self.state.access)
    }

    /// Each of `faults` befalls one of the next answers with bytes of weights, in this order. Probes for an ETag
    /// (`bytes=0-0`) are spared.
    pub(crate) fn faults(&self, faults: Vec<Fault>) {
        self.faults_at(".safetensors", faults);
    }

    /// The same for answers to paths that end in `end`.
    pub(crate) fn faults_at(&self, end: &str, faults: Vec<Fault>) {
        lock(&self.state.faults).extend(faults.into_iter().map(|fault| (end.to_owned(), fault)));
    }

    /// The number of faults that have not come to pass.
    pub(crate) fn faults_left(&self) -> usize {
        lock(&self.state.faults).len()
    }

    /// Bytes of bodies sent so far.
    pub(crate) fn sent(&self) -> u64 {
        lock(&self.state.sent).values().sum()
    }

    /// Those of paths that end in `end`.
    pub(crate) fn sent_of(&self, end: &str) -> u64 {
        lock(&self.state.sent).iter().filter(|(path, _)| path.ends_with(end)).map(|(_, bytes)| bytes).sum()
    }

    /// All requests so far.
    pub(crate) fn log(&self) -> Vec<Request> {
        lock(&self.state.log).clone()
    }

    /// Requests so far for paths that end in `end`.
    pub(crate) fn requests(&self, end: &str) -> Vec<Request> {
        self.log().into_iter().filter(|request| request.path.ends_with(end)).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

fn listen(state: &Arc<State>, storage: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let state = state.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = state.clone();
            std::thread::spawn(move || {
                // A client that hangs up is its own business.
                let _ = serve(&stream, &state, storage);
            });
        }
    });
    endpoint
}

/// One connection, request after request.
fn serve(mut stream: &TcpStream, state: &State, storage: bool) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let (path, query) = line.split(' ').nth(1).map(|url| url.split_once('?').unwrap_or((url, ""))).unwrap();
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let (path, header) = (path.to_owned(), |name: &str| headers.get(name).cloned());
        let request = Request { storage, path, range: header("range"), authorization: header("authorization") };
        let Answer { mut head, mut body, spared } = state.answer(&request, query);
        let fault = if spared || request.range.as_deref() == Some("bytes=0-0") {
            Fault::Nothing
        } else {
            state.fault(&request.path)
        };
        lock(&state.log).push(request.clone());

        let mut length = body.len();
        match fault {
            Fault::Status(status) => (head, body) = error(&status.to_string()),
            Fault::Busy(seconds) => {
                (head, body) = error("429 Too Many Requests");
                head += &format!("Retry-After: {seconds}\r\n");
            }
            Fault::Short(bytes) => body = body.longer(-(bytes as i64)),
            Fault::Surplus(bytes) => body = body.longer(bytes as i64),
            Fault::Chunked(bytes) => body = body.longer(bytes),
            Fault::LyingRange => head = head.replace("Content-Range: bytes ", "Content-Range: bytes 1"),
            Fault::Whole => {
                head = "200 OK\r\n".into();
                body = body.whole();
            }
            _ => {}
        }
        if !matches!(fault, Fault::Short(_)) {
            length = body.len();
        }
        let chunked = matches!(fault, Fault::Chunked(_));
        let framing =
            if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {length}") };
        stream.write_all(format!("HTTP/1.1 {head}{framing}\r\n\r\n").as_bytes())?;
        if chunked {
            write!(stream, "{:x}\r\n", body.len())?;
        }
        let (end, piece, pause) = match fault {
            Fault::Cut(bytes) | Fault::Stall(bytes) => (bytes.min(body.len()), 64 << 10, Duration::ZERO),
            Fault::Trickle(bytes, pause) => (body.len(), bytes, pause),
            _ => (body.len(), 64 << 10, Duration::ZERO),
        };
        let mut at = 0;
        while at < end {
            let bytes = body.read(at..end.min(at + piece))?;
            at += bytes.len() as u64;
            // Counted before the client can have them.
            *lock(&state.sent).entry(request.path.clone()).or_default() += bytes.len() as u64;
            stream.write_all(&bytes)?;
            std::thread::sleep(pause);
        }
        if chunked {
            stream.write_all(b"\r\n0\r\n\r\n")?;
        }
        match fault {
            Fault::Cut(_) | Fault::Short(_) => return stream.shutdown(Shutdown::Both),
            // Until the client has had enough.
            Fault::Stall(_) => return reader.read(&mut [0]).map(|_| ()),
            _ => {}
        }
    }
}

/// The part of an answer after its head.
enum Body {
    Bytes(Vec<u8>),
    File(File, Range<u64>),
}

impl Body {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, range) => range.end - range.start,
        }
    }

    fn longer(self, bytes: i64) -> Self {
        match self {
            Self::File(file, range) => {
                Self::File(file, range.start..range.end.saturating_add_signed(bytes).max(range.start))
            }
            body => body,
        }
    }

    fn whole(self) -> Self {
        match self {
            Self::File(file, _) => {
                let size = file.metadata().unwrap().len();
                Self::File(file, 0..size)
            }
            body => body,
        }
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes[range.start as usize..range.end as usize].to_vec()),
            Self::File(file, all) => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                file.read_exact_at(&mut bytes, all.start + range.start)?;
                Ok(bytes)
            }
        }
    }
}

struct Answer {
    /// Status and headers.
    head: String,
    body: Body,
    /// True if faults pass it by.
    spared: bool,
}

fn error(status: &str) -> (String, Body) {
    (format!("{status}\r\n"), Body::Bytes(json!({"error": status}).to_string().into_bytes()))
}

impl State {
    fn fault(&self, path: &str) -> Fault {
        let mut faults = lock(&self.faults);
        let at = faults.iter().position(|(end, _)| path.ends_with(end));
        at.and_then(|at| faults.remove(at)).map_or(Fault::Nothing, |(_, fault)| fault)
    }

    fn answer(&self, request: &Request, query: &str) -> Answer {
        let status = |status: &str| {
            let (head, body) = error(status);
            Answer { head, body, spared: true }
        };
        let Request { path, range, .. } = request;
        if request.storage {
            // As storage with signed links does.
            if request.authorization.is_some() {
                return status("400 Bad Request");
            }
            if query != format!("signature={}", lock(&self.signature)) {
                return status("403 Forbidden");
            }
            let file = path.strip_prefix("/blobs/").unwrap_or_default();
            return self.file(file, range.as_deref()).unwrap_or_else(&status);
        }
        let access = self.access.lock().unwrap().clone();
        if let Some(token) = access.token {
            if request.authorization != Some(format!("Bearer {token}")) {
                return status("401 Unauthorized");
            }
            if access.forbidden {
                return status("403 Forbidden");
            }
        }
        if [COMMIT, "main"].iter().any(|known| *path == format!("/api/models/{REPO}/revision/{known}")) {
            let siblings: Vec<_> = files(&self.dir, "").iter().map(|file| json!({"rfilename": file})).collect();
            let info = json!({"sha": COMMIT, "siblings": siblings}).to_string();
            let head = "200 OK\r\nContent-Type: application/json\r\n".to_owned();
            return Answer { head, body: Body::Bytes(info.into_bytes()), spared: false };
        }
        let file = path
            .strip_prefix(&format!("/{REPO}/resolve/"))
            .and_then(|rest| rest.split_once('/'))
            .filter(|(revision, file)| ["main", COMMIT].contains(revision) && access.lost != Some(*file));
        let Some((_, file)) = file else { return status("404 Not Found") };
        let storage = lock(&self.storage).clone();
        match storage.filter(|_| file.ends_with(".safetensors")) {
            None => self.file(file, range.as_deref()).unwrap_or_else(status),
            Some(storage) => {
                let link = format!("{storage}/blobs/{file}?signature={}", lock(&self.signature));
                let linked = format!("x-linked-etag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\n", self.etag(file));
                let head = format!("302 Found\r\nLocation: {link}\r\n{linked}");
                Answer { head, body: Body::Bytes(Vec::new()), spared: true }
            }
        }
    }

    fn etag(&self, name: &str) -> String {
        let promised = self.access.lock().unwrap().promised.clone().filter(|_| name.ends_with(".safetensors"));
        promised.unwrap_or_else(|| format!("etag-{}", name.replace(['.', '/'], "-")))
    }

    fn file(&self, name: &str, range: Option<&str>) -> std::result::Result<Answer, &'static str> {
        let path = self.dir.join(name);
        let file = File::open(&path).ok().filter(|_| path.is_file()).ok_or("404 Not Found")?;
        let size = file.metadata().unwrap().len();
        let common = format!("ETag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\nAccept-Ranges: bytes\r\n", self.etag(name));
        let Some((begin, end)) = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) else {
            return Ok(Answer { head: format!("200 OK\r\n{common}"), body: Body::File(file, 0..size), spared: false });
        };
        let begin: u64 = begin.parse().unwrap();
        let end = end.parse().map_or(size, |last: u64| last + 1).min(size);
        if begin >= end {
            let head = format!("416 Range Not Satisfiable\r\nContent-Range: bytes */{size}\r\n");
            return Ok(Answer { head, body: Body::Bytes(Vec::new()), spared: true });
        }
        let head = format!("206 Partial Content\r\n{common}Content-Range: bytes {begin}-{}/{size}\r\n", end - 1);
        Ok(Answer { head, body: Body::File(file, begin..end), spared: false })
    }
}

/// Paths of all files below `dir`, each after `prefix`.
fn files(dir: &Path, prefix: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            paths.extend(files(&entry.path(), &format!("{name}/")));
        } else {
            paths.push(name);
        }
    }
    paths.sort();
    paths
}
