//! Models from a hub: a real HTTP server on this machine that speaks the hub's API, and the library as it is.

mod common;

#[path = "common/server.rs"]
mod server;

use common::{assert_says, two_shards};
use lacuna::checkpoint::{Checkpoint, Hub};
use lacuna::progress::Progress;
use server::{Access, COMMIT, Fault, Server};
use std::path::Path;

/// The repository's files: a model of two shards and some that nobody needs.
fn repository() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    two_shards(dir.path());
    std::fs::create_dir(dir.path().join("onnx")).unwrap();
    for (name, text) in
        [("README.md", "# tiny"), ("pytorch_model.bin", "not wanted"), ("onnx/config.json", "not wanted")]
    {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// Removes the safetensors files and their index.
fn remove_weights(dir: &Path) {
    for name in common::names(dir).iter().filter(|name| name.contains("safetensors")) {
        std::fs::remove_file(dir.join(name)).unwrap();
    }
}

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

#[test]
fn a_sharded_model_is_downloaded_once() {
    let cache = tempfile::tempdir().unwrap();
    let files = repository();
    let server = Server::serve_dir(files.path());
    let hub = server.hub(cache.path());
    let dir = hub.download("owner/model", Progress::Hidden).unwrap();
    // The layout that Hugging Face's own libraries share.
    assert_eq!(dir, cache.path().join("models--owner--model/snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(cache.path().join("models--owner--model/refs/main")).unwrap(), COMMIT);
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!((checkpoint.parameters(), checkpoint.shards().len()), (11, 2));
    assert_eq!(checkpoint.read("c").unwrap(), 9f32.to_le_bytes());
    for file in ["config.json", "tokenizer.json", "README.md"] {
        assert_eq!(std::fs::read(dir.join(file)).unwrap(), std::fs::read(files.path().join(file)).unwrap());
    }
    assert_eq!(server.requests("pytorch_model.bin").len() + server.requests("onnx/config.json").len(), 0);

    // Whole in the cache: not asked for again, by either name, and no hub is needed.
    let asked = server.log().len();
    assert_eq!(hub.download("owner/model", Progress::Hidden).unwrap(), dir);
    assert_eq!(hub.download(&format!("owner/model@{COMMIT}"), Progress::Hidden).unwrap(), dir);
    assert_eq!(server.log().len(), asked);
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
    let files = repository();
    remove_weights(files.path());
    let values: Vec<f32> = (0..50_000).map(|i| i as f32).collect();
    let weights = common::file_of(&[("w", &[50_000], &values)]);
    std::fs::write(files.path().join("model.safetensors"), &weights).unwrap();
    let server = Server::serve_dir(files.path());
    let hub = server.hub(cache.path());
    // The small files come first; break the large one.
    server.access().lost = Some("model.safetensors");
    assert_says(hub.download("owner/model", Progress::Hidden).unwrap_err(), &["model.safetensors", "404"]);
    server.access().lost = None;
    // What breaks off is gone on with at once; what the hub then refuses for good, in another run.
    server.faults(vec![Fault::Cut(100_000), Fault::Cut(23_456), Fault::Status(410)]);
    assert_says(
        hub.download("owner/model", Progress::Hidden).unwrap_err(),
        &["owner/model", "model.safetensors", "410"],
    );
    assert_eq!(server.faults_left(), 0);
    let dir = hub.download("owner/model", Progress::Hidden).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!(checkpoint.read("w").unwrap(), values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
    let requests = server.requests("model.safetensors");
    let rest = format!("bytes=123456-{}", weights.len() - 1);
    assert_eq!(requests.last().unwrap().range.as_deref(), Some(rest.as_str()), "{requests:?}");
    assert_eq!(server.requests("config.json").len(), 2, "metadata and content, once");
    let blobs = common::names(&cache.path().join("models--owner--model/blobs"));
    assert!(blobs.iter().all(|name| !name.ends_with(".part")), "{blobs:?}");
}

/// Weights have the SHA-256 of their content as ETag, so that a blob can be checked.
#[test]
fn what_is_not_what_the_hub_promised_is_not_kept() {
    let cache = tempfile::tempdir().unwrap();
    let files = repository();
    remove_weights(files.path());
    let weights = common::file_of(&[("w", &[4], &[1.0, 2.0, 3.0, 4.0])]);
    std::fs::write(files.path().join("model.safetensors"), &weights).unwrap();
    let server = Server::serve_dir(files.path());
    let hub = server.hub(cache.path());
    server.access().promised = Some("0".repeat(64));
    let error = hub.download("owner/model", Progress::Hidden).unwrap_err();
    assert_says(error, &["model.safetensors", "another SHA-256", "run again"]);
    let blobs = || common::names(&cache.path().join("models--owner--model/blobs"));
    assert!(blobs().iter().all(|name| !name.starts_with("000") || name.ends_with(".lock")), "{:?}", blobs());
    server.access().promised = Some(hex_of(&weights));
    let dir = hub.download("owner/model", Progress::Hidden).unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights);
    assert!(blobs().contains(&hex_of(&weights)));
}

#[test]
fn several_downloads_of_one_model_share_the_work() {
    let cache = tempfile::tempdir().unwrap();
    let files = repository();
    let server = Server::serve_dir(files.path());
    let hub = server.hub(cache.path());
    let dirs: Vec<_> = std::thread::scope(|scope| {
        let download = || hub.download("owner/model", Progress::Hidden).unwrap();
        let running: Vec<_> = (0..4).map(|_| scope.spawn(download)).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(dirs.iter().all(|dir| *dir == dirs[0] && Checkpoint::open(dir).is_ok()));
    let content = |request: &&server::Request| request.range.as_deref() != Some("bytes=0-0");
    assert_eq!(server.requests(SHARDS[0]).iter().filter(content).count(), 1);
}

fn hex_of(bytes: &[u8]) -> String {
    use sha2::Digest;
    format!("{:x}", sha2::Sha256::digest(bytes))
}

#[test]
fn a_private_model_needs_the_token() {
    let cache = tempfile::tempdir().unwrap();
    let files = repository();
    let server = Server::serve_dir(files.path());
    server.access().token = Some("hf_right");
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
    let files = repository();
    let server = Server::serve_dir(files.path());
    *server.access() = Access { token: Some("hf_t"), forbidden: true, ..Access::default() };
    let hub = Hub { token: Some("hf_t".into()), ..server.hub(cache.path()) };
    let error = hub.download("owner/model", Progress::Hidden).unwrap_err();
    assert_says(error, &["403", "ask for access", &format!("{}/owner/model", server.endpoint)]);
}

#[test]
fn what_the_hub_lacks_is_named() {
    let download = |files: &tempfile::TempDir, lost: Option<&'static str>, spec: &str| {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::serve_dir(files.path());
        server.access().lost = lost;
        let hub = server.hub(cache.path());
        let error = hub.download(spec, Progress::Hidden).unwrap_err().to_string();
        // Nothing claims to be the branch's model.
        assert!(!cache.path().join("models--owner--model/refs/main").exists());
        // Its headers are missed with the same words.
        let without_download = hub.headers(spec, Progress::Hidden).unwrap_err().to_string();
        (error, without_download)
    };
    let says = |(error, without_download): (String, String), parts: &[&str]| {
        assert_says(error, parts);
        assert_says(without_download, parts);
    };
    let files = repository();
    says(download(&files, None, "owner/other"), &["owner/other", "404", "check the name"]);
    says(download(&files, None, "owner/model@v9"), &["owner/model", "`v9`", "404"]);
    // The shard is in the index, but not in the repository, or is listed there and not delivered.
    says(download(&files, Some(SHARDS[1]), "owner/model"), &[SHARDS[1], "404"]);
    std::fs::remove_file(files.path().join(SHARDS[1])).unwrap();
    let (error, without_download) = download(&files, None, "owner/model");
    assert_says(error, &["names shard", SHARDS[1], "lacks"]);
    assert_says(without_download, &["index.json", "names shard", SHARDS[1], "1 of 2"]);
    remove_weights(files.path());
    says(
        download(&files, None, "owner/model"),
        &["no model.safetensors", "pytorch_model.bin", "convert its PyTorch weights"],
    );
    std::fs::write(files.path().join("model.Q4.gguf"), b"GGUF").unwrap();
    says(download(&files, None, "owner/model"), &["lacuna import"]);
}

/// The environment is read where the program is a process of its own.
#[test]
fn the_command_line_finds_hub_token_and_cache_in_the_environment() {
    let cache = tempfile::tempdir().unwrap();
    let files = repository();
    let server = Server::serve_dir(files.path());
    server.access().token = Some("hf_env");
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command.args(arguments).env("HF_ENDPOINT", &server.endpoint).env("NO_PROXY", "127.0.0.1");
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HOME", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied()).output().unwrap()
    };
    let inspect = |variables: &[(&str, &str)]| run(&["inspect", "owner/model", "--json"], variables);
    // This config makes no model, which shows once all is there.
    let download = |variables: &[(&str, &str)]| {
        let output = run(&["generate", "owner/model", "--prompt", "a"], variables);
        assert_says(String::from_utf8_lossy(&output.stderr), &["config.json"]);
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
    assert!(!cache.path().join("home").exists(), "headers need no cache");
    download(&[("HF_HOME", &home), ("HF_TOKEN", "hf_env")]);
    assert!(cache.path().join("home/hub/models--owner--model").is_dir());
    // The token that a login has stored.
    let other = cache.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("token"), "hf_env\n").unwrap();
    let hub_cache = cache.path().join("elsewhere");
    let variables = [("HF_HOME", other.to_str().unwrap()), ("HF_HUB_CACHE", hub_cache.to_str().unwrap())];
    assert_eq!(parameters(inspect(&variables)), 11);
    download(&variables);
    assert!(hub_cache.join("models--owner--model").is_dir());
    assert!(!other.join("hub").exists());
}
