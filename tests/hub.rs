//! Models from a hub: a real HTTP server on this machine that speaks the hub's API, and the library as it is.

mod common;

use common::{assert_says, two_shards};
use lacuna::checkpoint::{Checkpoint, Hub};
use lacuna::progress::Progress;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has and whom it lets in.
#[derive(Default)]
struct Served {
    /// Path in the repository -> bytes.
    files: BTreeMap<String, Vec<u8>>,
    token: Option<&'static str>,
    /// Answer this to whoever has the token.
    forbidden: bool,
    /// Files that are listed but not delivered.
    lost: Option<&'static str>,
    /// Break the connection after this many bytes of a file, once.
    break_after: Option<usize>,
}

/// The server: one repository, `owner/model`, at revisions `main` and [`COMMIT`].
struct Server {
    endpoint: String,
    served: Arc<Mutex<Served>>,
    /// Requests, as `path` and `path range`.
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(served: Served) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (served, log) = (Arc::new(Mutex::new(served)), Arc::new(Mutex::new(Vec::new())));
        let (shared, requests) = (served.clone(), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, requests) = (shared.clone(), requests.clone());
                std::thread::spawn(move || {
                    // A client that hangs up is its own business.
                    let _ = answer(&stream, &shared, &requests);
                });
            }
        });
        Self { endpoint, served, log }
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub { endpoint: self.endpoint.clone(), token: None, cache: cache.to_path_buf() }
    }

    /// Requests so far for paths that end in `end`.
    fn requests(&self, end: &str) -> Vec<String> {
        let log = self.log.lock().unwrap();
        log.iter().filter(|line| line.split(' ').next().unwrap().ends_with(end)).cloned().collect()
    }
}

/// Serves one connection, request after request.
fn answer(stream: &TcpStream, served: &Mutex<Served>, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let range = headers.get("range").cloned();
        log.lock().unwrap().push(format!("{path} {}", range.as_deref().unwrap_or("whole")));
        let mut served = served.lock().unwrap();
        let break_after = if path.contains("/resolve/") && range.as_deref() != Some("bytes=0-0") {
            served.break_after.take()
        } else {
            None
        };
        let (head, body) = respond(&served, &path, &headers);
        drop(served);
        let mut stream = stream;
        stream.write_all(format!("HTTP/1.1 {head}Content-Length: {}\r\n\r\n", body.len()).as_bytes())?;
        match break_after {
            Some(bytes) if bytes < body.len() => {
                stream.write_all(&body[..bytes])?;
                return stream.shutdown(std::net::Shutdown::Both);
            }
            _ => stream.write_all(&body)?,
        }
    }
}

/// Status line and headers, and the body.
fn respond(served: &Served, path: &str, headers: &BTreeMap<String, String>) -> (String, Vec<u8>) {
    let status = |status: &str| (format!("{status}\r\n"), format!("{{\"error\": \"{status}\"}}").into_bytes());
    if let Some(token) = served.token {
        if headers.get("authorization") != Some(&format!("Bearer {token}")) {
            return status("401 Unauthorized");
        }
        if served.forbidden {
            return status("403 Forbidden");
        }
    }
    if [format!("/api/models/owner/model/revision/{COMMIT}"), "/api/models/owner/model/revision/main".into()]
        .iter()
        .any(|known| known == path)
    {
        let siblings: Vec<_> = served.files.keys().map(|file| serde_json::json!({"rfilename": file})).collect();
        let info = serde_json::json!({"sha": COMMIT, "siblings": siblings});
        return ("200 OK\r\nContent-Type: application/json\r\n".into(), info.to_string().into_bytes());
    }
    let file = path
        .strip_prefix("/owner/model/resolve/")
        .and_then(|rest| rest.split_once('/'))
        .filter(|(revision, file)| ["main", COMMIT].contains(revision) && served.lost != Some(*file))
        .and_then(|(_, file)| Some((file, served.files.get(file)?)));
    let Some((name, bytes)) = file else { return status("404 Not Found") };
    let common =
        format!("ETag: \"etag-{}\"\r\nx-repo-commit: {COMMIT}\r\nAccept-Ranges: bytes\r\n", name.replace('.', "-"));
    let range =
        headers.get("range").and_then(|range| range.strip_prefix("bytes=")).and_then(|range| range.split_once('-'));
    let Some((begin, end)) = range else { return (format!("200 OK\r\n{common}"), bytes.clone()) };
    let (begin, end) =
        (begin.parse().unwrap_or(0), end.parse().map_or(bytes.len(), |last: usize| last + 1).min(bytes.len()));
    if begin >= end {
        return status("416 Range Not Satisfiable");
    }
    let content = format!("Content-Range: bytes {begin}-{}/{}\r\n", end - 1, bytes.len());
    (format!("206 Partial Content\r\n{common}{content}"), bytes[begin..end].to_vec())
}

/// The repository's files: a model of two shards and some that nobody needs.
fn repository() -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    two_shards(dir.path());
    let files = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
    let mut files: BTreeMap<String, Vec<u8>> =
        files.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect();
    files.insert("README.md".into(), b"# tiny".to_vec());
    files.insert("pytorch_model.bin".into(), b"not wanted".to_vec());
    files.insert("onnx/config.json".into(), b"not wanted".to_vec());
    files
}

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

#[test]
fn a_sharded_model_is_downloaded_once() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(Served { files: repository(), ..Served::default() });
    let hub = server.hub(cache.path());
    let dir = hub.download("owner/model", Progress::Hidden).unwrap();
    // The layout that Hugging Face's own libraries share.
    assert_eq!(dir, cache.path().join("models--owner--model/snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(cache.path().join("models--owner--model/refs/main")).unwrap(), COMMIT);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!((checkpoint.parameters(), checkpoint.shards().len()), (11, 2));
    assert_eq!(checkpoint.read("c").unwrap(), 9f32.to_le_bytes());
    for file in ["config.json", "tokenizer.json", "README.md"] {
        assert_eq!(std::fs::read(dir.join(file)).unwrap(), repository()[file]);
    }
    assert_eq!(server.requests("pytorch_model.bin").len() + server.requests("onnx/config.json").len(), 0);

    // Whole in the cache: not asked for again, by either name, and no hub is needed.
    let asked = server.log.lock().unwrap().len();
    assert_eq!(hub.download("owner/model", Progress::Hidden).unwrap(), dir);
    assert_eq!(hub.download(&format!("owner/model@{COMMIT}"), Progress::Hidden).unwrap(), dir);
    assert_eq!(server.log.lock().unwrap().len(), asked);
    let nowhere = Hub { endpoint: "http://127.0.0.1:9".into(), ..hub };
    assert_eq!(nowhere.download("owner/model", Progress::Hidden).unwrap(), dir);

    // Without a tokenizer.json the hub is asked whether there is one by now; if it is gone, the cache will do.
    std::fs::remove_file(dir.join("tokenizer.json")).unwrap();
    assert_eq!(nowhere.download("owner/model", Progress::Hidden).unwrap(), dir);
    // Without a shard it will not.
    std::fs::remove_file(dir.join(SHARDS[1])).unwrap();
    assert_says(nowhere.download("owner/model", Progress::Hidden).unwrap_err(), &["cannot reach", "127.0.0.1:9"]);
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let cache = tempfile::tempdir().unwrap();
    let mut files = repository();
    files.retain(|name, _| name == "config.json" || name == "tokenizer.json");
    let values: Vec<f32> = (0..50_000).map(|i| i as f32).collect();
    files.insert("model.safetensors".into(), common::file_of(&[("w", &[50_000], &values)]));
    let server = Server::start(Served { files, ..Served::default() });
    let hub = server.hub(cache.path());
    // The small files come first; break the large one.
    server.served.lock().unwrap().lost = Some("model.safetensors");
    assert_says(hub.download("owner/model", Progress::Hidden).unwrap_err(), &["model.safetensors", "404"]);
    {
        let mut served = server.served.lock().unwrap();
        (served.lost, served.break_after) = (None, Some(123_456));
    }
    assert_says(hub.download("owner/model", Progress::Hidden).unwrap_err(), &["owner/model", "model.safetensors"]);
    let dir = hub.download("owner/model", Progress::Hidden).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!(checkpoint.read("w").unwrap(), values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    let requests = server.requests("model.safetensors");
    assert!(requests.last().unwrap().ends_with(" bytes=123456-"), "{requests:?}");
    assert_eq!(server.requests("config.json").len(), 2, "metadata and content, once");
}

#[test]
fn a_private_model_needs_the_token() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(Served { files: repository(), token: Some("hf_right"), ..Served::default() });
    let hub = server.hub(cache.path());
    let error = hub.download("owner/model", Progress::Hidden).unwrap_err();
    assert_says(error, &["owner/model", "401", "no token", "HF_TOKEN"]);
    let wrong = Hub { token: Some("hf_wrong".into()), ..hub.clone() };
    let error = wrong.download("owner/model", Progress::Hidden).unwrap_err().to_string();
    assert_says(&error, &["401", "the token in use"]);
    assert!(!error.contains("hf_wrong"), "a token is a secret: {error}");
    let right = Hub { token: Some("hf_right".into()), ..hub };
    assert!(Checkpoint::open(right.download("owner/model", Progress::Hidden).unwrap()).is_ok());
}

#[test]
fn a_gated_model_says_where_to_ask() {
    let cache = tempfile::tempdir().unwrap();
    let served = Served { files: repository(), token: Some("hf_t"), forbidden: true, ..Served::default() };
    let server = Server::start(served);
    let hub = Hub { token: Some("hf_t".into()), ..server.hub(cache.path()) };
    let error = hub.download("owner/model", Progress::Hidden).unwrap_err();
    assert_says(error, &["403", "ask for access", &format!("{}/owner/model", server.endpoint)]);
}

#[test]
fn what_the_hub_lacks_is_named() {
    let download = |served: Served, spec: &str| {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(served);
        let error = server.hub(cache.path()).download(spec, Progress::Hidden).unwrap_err().to_string();
        // Nothing claims to be the branch's model.
        assert!(!cache.path().join("models--owner--model/refs/main").exists());
        error
    };
    let full = || Served { files: repository(), ..Served::default() };
    assert_says(download(full(), "owner/other"), &["owner/other", "404", "check the name"]);
    assert_says(download(full(), "owner/model@v9"), &["owner/model", "`v9`", "404"]);
    // The shard is in the index, but not in the repository, or is listed there and not delivered.
    let mut served = full();
    served.files.remove(SHARDS[1]);
    assert_says(download(served, "owner/model"), &["names shard", SHARDS[1], "lacks"]);
    let lost = Served { lost: Some(SHARDS[1]), ..full() };
    assert_says(download(lost, "owner/model"), &[SHARDS[1], "404"]);
    let mut served = full();
    served.files.retain(|name, _| !name.contains("safetensors"));
    assert_says(download(served, "owner/model"), &["no model.safetensors", "converted copy"]);
    let mut served = full();
    served.files.retain(|name, _| !name.contains("safetensors"));
    served.files.insert("model.Q4.gguf".into(), b"GGUF".to_vec());
    assert_says(download(served, "owner/model"), &["lacuna import"]);
}

/// The environment is read where the program is a process of its own.
#[test]
fn the_command_line_finds_hub_token_and_cache_in_the_environment() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(Served { files: repository(), token: Some("hf_env"), ..Served::default() });
    let inspect = |variables: &[(&str, &str)]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command
            .args(["inspect", "owner/model", "--json"])
            .env("HF_ENDPOINT", &server.endpoint)
            .env("NO_PROXY", "127.0.0.1");
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HOME", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied()).output().unwrap()
    };
    let home = cache.path().join("home").display().to_string();
    let refused = inspect(&[("HF_HOME", &home)]);
    assert!(!refused.status.success());
    assert_says(String::from_utf8_lossy(&refused.stderr), &["401", "HF_TOKEN"]);

    let parameters = |output: std::process::Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let inspection: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(inspection["shards"], 2);
        assert_eq!(inspection["family"], "llama");
        inspection["parameters"].as_u64().unwrap()
    };
    assert_eq!(parameters(inspect(&[("HF_HOME", &home), ("HF_TOKEN", "hf_env")])), 11);
    assert!(cache.path().join("home/hub/models--owner--model").is_dir());
    // The token that a login has stored.
    let other = cache.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("token"), "hf_env\n").unwrap();
    let hub_cache = cache.path().join("elsewhere");
    let variables = [("HF_HOME", other.to_str().unwrap()), ("HF_HUB_CACHE", hub_cache.to_str().unwrap())];
    assert_eq!(parameters(inspect(&variables)), 11);
    assert!(hub_cache.join("models--owner--model").is_dir());
    assert!(!other.join("hub").exists());
}
