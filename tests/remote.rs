//! Checkpoints on a hub that are read by ranges: a real HTTP server on this machine that fails in every way it can.

mod common;
#[path = "common/server.rs"]
mod server;

use common::{assert_says, file_of, index_of};
use lacuna::Error;
use lacuna::checkpoint::{Checkpoint, Hub, Remote, Retry, Source};
use lacuna::progress::Progress;
use proptest::prelude::*;
use server::{Access, COMMIT, Fault, Server};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SHARDS: [&str; 3] =
    ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"];

/// A model of three shards, the first with 1.2 MB, and files beside it.
fn model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..300_000).map(|i| i as f32).collect();
    type Tensors<'a> = &'a [(&'a str, &'a [usize], &'a [f32])];
    let shards: [Tensors; 3] = [
        &[("a", &[300, 900], &values[..270_000]), ("b", &[30_000], &values[270_000..])],
        &[("c", &[2, 2], &[1., 2., 3., 4.])],
        &[("d", &[1], &[5.])],
    ];
    for (name, tensors) in SHARDS.iter().zip(shards) {
        std::fs::write(dir.path().join(name), file_of(tensors)).unwrap();
    }
    let map = [("a", SHARDS[0]), ("b", SHARDS[0]), ("c", SHARDS[1]), ("d", SHARDS[2])];
    for (name, text) in [
        ("model.safetensors.index.json", index_of(&map).as_str()),
        ("config.json", r#"{"model_type": "llama"}"#),
        ("tokenizer.json", "{\"tokens\": []}"),
        ("tokenizer_config.json", "{}"),
        ("LICENSE", "as is"),
        ("README.md", "# model"),
        ("lacuna.json", "{}"),
        ("manifest.json", "{}"),
        (".gitattributes", "*"),
        ("picture.png", "png"),
        ("modeling_tiny.py", "import torch"),
        ("qwen.tiktoken", "IQ== 0"),
        ("merges.txt", "a b"),
        ("added_tokens", "no extension"),
        ("pytorch_model.bin", "weights"),
        ("rust_model.ot", "weights"),
        ("model.gguf", "weights"),
        ("unfinished.part", "weights"),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    std::fs::create_dir(dir.path().join("onnx")).unwrap();
    std::fs::write(dir.path().join("onnx/config.json"), "{}").unwrap();
    dir
}

fn serve(dir: &Path) -> (Server, Hub) {
    let server = Server::serve_dir(dir);
    let hub = server.hub(Path::new("no/such/cache"));
    (server, hub)
}

fn headers(hub: &Hub) -> lacuna::Result<Remote> {
    hub.headers("owner/model", Progress::Hidden)
}

/// The bytes that a source hands over, and checks of the pieces.
fn bytes(source: &dyn Source, shard: usize, range: Range<u64>) -> lacuna::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.stream(shard, range, &mut |piece| {
        assert!(!piece.is_empty() && piece.len() <= 1 << 20);
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(bytes)
}

/// Requests for bytes of weights, as `range`s.
fn ranges(server: &Server, shard: &str) -> Vec<String> {
    server.requests(shard).into_iter().map(|request| request.range.unwrap()).collect()
}

#[test]
fn headers_are_those_of_the_local_checkpoint() {
    let dir = model();
    let local = Checkpoint::open(dir.path()).unwrap();
    let (server, hub) = serve(dir.path());
    let remote = headers(&hub).unwrap();
    assert_eq!(remote.index(), local.index());
    assert_eq!(remote.files(), SHARDS);
    assert_eq!(remote.files(), local.files());
    assert_eq!(remote.origin(), format!("owner/model@{COMMIT}"));
    assert_eq!(remote.commit(), COMMIT);

    // The listing and the index, and of every shard its header in two requests, of that commit.
    let mut small = 8 * SHARDS.len() as u64;
    for (shard, name) in SHARDS.iter().enumerate() {
        let data =
            local.tensors().filter(|tensor| tensor.shard == shard).map(|tensor| tensor.range.start).min().unwrap();
        assert_eq!(ranges(&server, name), ["bytes=0-7".to_owned(), format!("bytes=8-{}", data - 1)]);
        small += data - 8;
    }
    assert_eq!(server.sent_of(".safetensors"), small);
    let log = server.log();
    assert_eq!(log.len(), 2 + 2 * SHARDS.len(), "{log:?}");
    assert!(log[1..].iter().all(|request| request.path.starts_with(&format!("/owner/model/resolve/{COMMIT}/"))));
    assert_eq!(remote.received(), server.sent());

    // A single file, another revision.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), file_of(&[("w", &[2], &[1., 2.])])).unwrap();
    let (_server, hub) = serve(dir.path());
    let remote = hub.headers(&format!("owner/model@{COMMIT}"), Progress::Hidden).unwrap();
    assert_eq!(remote.index(), Checkpoint::open(dir.path()).unwrap().index());
    assert_says(remote.config_json().unwrap_err(), &["config.json", "missing"]);
}

#[test]
fn a_real_checkpoint_has_the_same_headers() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny-moe");
    let (_server, hub) = serve(&dir);
    let (local, remote) = (Checkpoint::open(&dir).unwrap(), headers(&hub).unwrap());
    assert_eq!(remote.index(), local.index());
    assert_eq!(remote.config_json().unwrap(), local.config().unwrap());
}

#[test]
fn files_beside_the_weights_are_those_that_a_download_would_copy() {
    let dir = model();
    let (server, hub) = serve(dir.path());
    let remote = headers(&hub).unwrap();
    assert_eq!(remote.config_json().unwrap(), Checkpoint::open(dir.path()).unwrap().config().unwrap());
    remote.config_json().unwrap();
    assert_eq!(server.requests("config.json").len(), 1, "kept after the first time");

    let cache = tempfile::tempdir().unwrap();
    let hub = Hub { cache: cache.path().to_path_buf(), ..hub };
    let downloaded = Checkpoint::open(hub.download("owner/model", Progress::Hidden).unwrap()).unwrap();
    let files = remote.side_files().unwrap();
    assert_eq!(files, downloaded.side_files().unwrap());
    // `auto_map` in a config names Python modules, and tokenizers have files of many kinds.
    assert_eq!(files, Checkpoint::open(dir.path()).unwrap().side_files().unwrap());
    let text =
        ["LICENSE", "README.md", "added_tokens", "merges.txt", "modeling_tiny.py", "picture.png", "qwen.tiktoken"];
    assert_eq!(files, [&text[..], &["tokenizer.json", "tokenizer_config.json"]].concat());
    let mut bytes = Vec::new();
    let mut sink = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    remote.side_file(&files[7], &mut sink).unwrap();
    assert_eq!(bytes, b"{\"tokens\": []}");
}

#[test]
fn a_model_that_is_whole_in_the_cache_is_read_there() {
    let (dir, cache) = (model(), tempfile::tempdir().unwrap());
    let server = Server::serve_dir(dir.path());
    let hub = server.hub(cache.path());
    assert_eq!(hub.source("owner/model", Progress::Hidden).unwrap().origin(), format!("owner/model@{COMMIT}"));
    let snapshot = hub.download("owner/model", Progress::Hidden).unwrap();
    let asked = server.log().len();
    let source = hub.source("owner/model", Progress::Hidden).unwrap();
    assert_eq!(source.origin(), snapshot.display().to_string());
    assert_eq!(server.log().len(), asked);
    // Not if a shard is missing.
    std::fs::remove_file(snapshot.join(SHARDS[2])).unwrap();
    assert_eq!(hub.source("owner/model", Progress::Hidden).unwrap().origin(), format!("owner/model@{COMMIT}"));
    // A directory is a directory.
    let local = lacuna::checkpoint::open_source(dir.path().to_str().unwrap(), Progress::Hidden).unwrap();
    assert_eq!(local.origin(), dir.path().display().to_string());
    let error = lacuna::checkpoint::open_source("no/such/place", Progress::Hidden).map(|_| ()).unwrap_err();
    assert_says(error, &["no/such/place", "owner/name"]);
}

#[test]
fn any_range_is_that_of_the_file() {
    let dir = model();
    let (server, hub) = serve(dir.path());
    let remote = headers(&hub).unwrap();
    let files: Vec<Vec<u8>> = SHARDS.iter().map(|name| std::fs::read(dir.path().join(name)).unwrap()).collect();
    let place = (0..SHARDS.len()).prop_flat_map(|shard| (Just(shard), 0..=files[shard].len(), 0..=files[shard].len()));
    let config = ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&place, |(shard, a, b)| {
        let (begin, end) = (a.min(b), a.max(b));
        let (sent, received, asked) = (server.sent(), remote.received(), server.log().len());
        let got = bytes(&remote, shard, begin as u64..end as u64).unwrap();
        prop_assert!(got == files[shard][begin..end]);
        prop_assert_eq!(server.sent() - sent, (end - begin) as u64);
        prop_assert_eq!(remote.received() - received, (end - begin) as u64);
        prop_assert_eq!(server.log().len() - asked, usize::from(begin < end), "one request, none for nothing");
        Ok(())
    });
    result.unwrap();
    let size = files[2].len() as u64;
    assert_says(bytes(&remote, 2, 0..size + 1).unwrap_err(), &[SHARDS[2], "beyond the end"]);
}

/// 1.2 MB of a shard, and what lies between two bytes that a server has sent.
const ALL: Range<u64> = 100..1_200_000;

#[test]
fn a_transfer_goes_on_where_it_stopped() {
    let dir = model();
    let expected = std::fs::read(dir.path().join(SHARDS[0])).unwrap()[ALL.start as usize..ALL.end as usize].to_vec();
    let asked = ALL.end - ALL.start;
    let pause = Duration::from_millis(1);
    // Faults, and how many bytes may come twice or in vain beside the bodies of errors.
    let cases: [(&str, Vec<Fault>); 10] = [
        ("cut", vec![Fault::Cut(500_000)]),
        ("cut in the head", vec![Fault::Cut(0)]),
        // More often than attempts without progress are allowed.
        ("cut again and again", (1..20).map(|i| Fault::Cut(i * 1000)).collect()),
        ("errors", vec![Fault::Status(500), Fault::Status(502), Fault::Status(504)]),
        ("errors between progress", [Fault::Status(503), Fault::Cut(9999), Fault::Status(408)].repeat(3)),
        ("busy", vec![Fault::Busy(0), Fault::Busy(3600)]),
        ("closed too soon", vec![Fault::Short(1)]),
        ("ended too soon", vec![Fault::Chunked(-77_777)]),
        ("no length", vec![Fault::Chunked(0)]),
        ("slow", vec![Fault::Trickle(20_000, pause)]),
    ];
    for (name, faults) in cases {
        let (server, hub) = serve(dir.path());
        let remote = headers(&hub).unwrap();
        let (received, sent) = (remote.received(), server.sent());
        let errors = faults.iter().filter(|fault| matches!(fault, Fault::Status(_) | Fault::Busy(_))).count() as u64;
        server.faults(faults);
        assert!(bytes(&remote, 0, ALL).unwrap() == expected, "{name}");
        assert_eq!(server.faults_left(), 0, "{name}");
        // Nothing is asked for twice: the rest of every broken range, and no more.
        let ranges = ranges(&server, SHARDS[0]);
        assert!(ranges[2..].iter().all(|range| range.ends_with(&format!("-{}", ALL.end - 1))), "{name}: {ranges:?}");
        let received = remote.received() - received;
        assert!((asked..=asked + errors * 100).contains(&received), "{name}: {received} of {asked}");
        // What was written to a socket before it broke need not all have come.
        assert!(server.sent() - sent >= received, "{name}");
    }
}

#[test]
fn a_stalled_connection_is_given_up() {
    let dir = model();
    let (server, hub) = serve(dir.path());
    let hub = Hub { retry: Retry { stall: Duration::from_millis(300), ..hub.retry.clone() }, ..hub };
    let remote = headers(&hub).unwrap();
    let received = remote.received();
    server.faults(vec![Fault::Stall(300_000), Fault::Stall(0)]);
    let start = Instant::now();
    let expected = std::fs::read(dir.path().join(SHARDS[0])).unwrap()[ALL.start as usize..ALL.end as usize].to_vec();
    assert!(bytes(&remote, 0, ALL).unwrap() == expected);
    assert!(start.elapsed() >= Duration::from_millis(600), "both stalls were waited for");
    assert_eq!(remote.received() - received, ALL.end - ALL.start);
    assert_eq!(ranges(&server, SHARDS[0])[3..], [format!("bytes={}-1199999", 300_100), "bytes=300100-1199999".into()]);
}

#[test]
fn pauses_double_and_obey_the_server_within_limits() {
    let dir = model();
    let (server, hub) = serve(dir.path());
    let (ms, second) = (Duration::from_millis, Duration::from_secs(1));
    let retry = Retry { attempts: 5, delay: ms(40), max_delay: ms(150), stall: 20 * second };
    let remote = headers(&Hub { retry: retry.clone(), ..hub.clone() }).unwrap();
    let time = |remote: &Remote, faults: Vec<Fault>| {
        server.faults(faults);
        let start = Instant::now();
        bytes(remote, 1, 0..8).unwrap();
        start.elapsed()
    };
    // 40 + 80 + 150 + 150.
    assert!(time(&remote, vec![Fault::Status(503); 4]) >= ms(420));
    // An hour is too long, and no pause at all is what the server says.
    let hour = time(&remote, vec![Fault::Busy(3600)]);
    assert!(hour >= ms(150) && hour < 10 * second, "{hour:?}");
    let patient = Hub { retry: Retry { delay: 10 * second, max_delay: 10 * second, ..retry }, ..hub };
    let remote = headers(&patient).unwrap();
    assert!(time(&remote, vec![Fault::Busy(0)]) < 5 * second);
    let asked = time(&remote, vec![Fault::Busy(1)]);
    assert!(asked >= second && asked < 5 * second, "{asked:?}");
}

#[test]
fn what_another_attempt_would_not_mend_is_an_error_at_once() {
    let dir = model();
    for (fault, parts) in [
        (Fault::Whole, ["whole file", "200"]),
        (Fault::LyingRange, ["is of `bytes 1", "100-1199999"]),
        (Fault::Surplus(1), ["more bytes than asked", "100-1199999"]),
        (Fault::Chunked(5), ["more bytes than asked", "100-1199999"]),
        (Fault::Status(401), ["401", "HF_TOKEN"]),
        (Fault::Status(403), ["403", "ask for access"]),
        (Fault::Status(404), ["404", "check the name"]),
        (Fault::Status(418), ["418", "try again later"]),
    ] {
        let (server, hub) = serve(dir.path());
        let remote = headers(&hub).unwrap();
        server.faults(vec![fault]);
        let error = bytes(&remote, 0, ALL).unwrap_err();
        assert!(matches!(error, Error::Hub { .. }), "{error:?}");
        assert_says(&error, &["owner/model", SHARDS[0]]);
        assert_says(&error, &parts);
        assert_eq!(ranges(&server, SHARDS[0]).len(), 3, "{fault:?} was not tried again");
        // The next request is another matter.
        assert_eq!(bytes(&remote, 0, 0..10).unwrap().len(), 10);
    }
}

#[test]
fn a_server_that_keeps_failing_is_an_error_in_the_end() {
    let dir = model();
    let (server, hub) = serve(dir.path());
    let remote = headers(&hub).unwrap();
    server.faults([vec![Fault::Cut(1000)], vec![Fault::Status(503); 4]].concat());
    let mut got = 0;
    let error = remote.stream(0, ALL, &mut |piece| {
        got += piece.len();
        Ok(())
    });
    assert_says(error.unwrap_err(), &["owner/model", SHARDS[0], "503", "4 attempts", "try again later"]);
    assert_eq!((got, server.faults_left()), (1000, 0));

    // Nobody is there: soon told, by default too.
    let nowhere = Hub { endpoint: "http://127.0.0.1:9".into(), ..hub };
    assert_says(
        headers(&nowhere).unwrap_err(),
        &["cannot reach http://127.0.0.1:9", "`main`", "3 attempts", "HF_ENDPOINT"],
    );
}

#[test]
fn small_files_are_asked_for_again_too() {
    let dir = model();
    let (server, hub) = serve(dir.path());
    server.faults_at("/revision/main", vec![Fault::Status(503), Fault::Cut(10)]);
    server.faults_at("index.json", vec![Fault::Cut(20), Fault::Status(500)]);
    server.faults_at("config.json", vec![Fault::Busy(0)]);
    server.faults(vec![Fault::Cut(3); 4]);
    let remote = headers(&hub).unwrap();
    assert_eq!(remote.index(), Checkpoint::open(dir.path()).unwrap().index());
    assert_eq!(remote.config_json().unwrap()["model_type"], "llama");
    assert_eq!(server.faults_left(), 0);
}

#[test]
fn what_the_taker_says_ends_the_transfer() {
    let dir = model();
    let (server, hub) = serve(dir.path());
    let remote = headers(&hub).unwrap();
    let mut pieces = 0;
    let error = remote.stream(0, ALL, &mut |_| {
        pieces += 1;
        Err(Error::argument("disk", "full", "stop"))
    });
    assert_says(error.unwrap_err(), &["disk", "stop"]);
    assert_eq!((pieces, ranges(&server, SHARDS[0]).len()), (1, 3));
}

#[test]
fn storage_elsewhere_gets_the_range_but_not_the_token() {
    let dir = model();
    let server = Server::serve_dir(dir.path()).with_storage();
    server.access().token = Some("hf_right");
    let hub = Hub { token: Some("hf_right".into()), ..server.hub(Path::new("no/such/cache")) };
    let remote = headers(&hub).unwrap();
    assert_eq!(remote.index(), Checkpoint::open(dir.path()).unwrap().index());
    bytes(&remote, 0, ALL).unwrap();
    bytes(&remote, 0, 5..10).unwrap();
    let (storage, hub_log): (Vec<_>, Vec<_>) = server.log().into_iter().partition(|request| request.storage);
    assert!(storage.iter().all(|request| request.authorization.is_none()));
    assert!(hub_log.iter().all(|request| request.authorization.as_deref() == Some("Bearer hf_right")));
    assert_eq!(storage.len(), 2 * SHARDS.len() + 2);
    assert_eq!(storage.iter().filter(|request| request.range.as_deref() == Some("bytes=100-1199999")).count(), 1);
    // The hub is asked once for every file; its link serves from then on.
    assert_eq!(hub_log.iter().filter(|request| request.path.ends_with(".safetensors")).count(), SHARDS.len());

    // A link that has expired is asked for again, in the middle of a transfer too.
    server.expire_links();
    server.faults(vec![Fault::Cut(1000)]);
    let expected = std::fs::read(dir.path().join(SHARDS[0])).unwrap();
    assert!(bytes(&remote, 0, ALL).unwrap() == expected[ALL.start as usize..ALL.end as usize]);
    let expiring = AtomicUsize::new(0);
    let mut got = Vec::new();
    server.faults(vec![Fault::Cut(1000)]);
    remote
        .stream(0, ALL, &mut |piece| {
            if expiring.fetch_add(1, Ordering::Relaxed) == 0 {
                server.expire_links();
            }
            got.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
    assert!(got == expected[ALL.start as usize..ALL.end as usize]);

    // Links that are never good are no reason to ask for ever, and are not shown.
    server.faults(vec![Fault::Status(403)]);
    let asked = server.log().len();
    let error = bytes(&remote, 1, 0..8).unwrap_err().to_string();
    assert_says(&error, &[SHARDS[1], "403", &server.storage(), &server.endpoint]);
    assert!(!error.contains("signature") && !error.contains("hf_right"), "{error}");
    assert_eq!(server.log().len() - asked, 3, "the old link, the hub, the new link");
}

#[test]
fn streams_share_a_remote() {
    let dir = model();
    let server = Server::serve_dir(dir.path()).with_storage();
    let remote = headers(&server.hub(Path::new("no/such/cache"))).unwrap();
    let expected = std::fs::read(dir.path().join(SHARDS[0])).unwrap();
    server.expire_links();
    server.faults(vec![Fault::Cut(7), Fault::Nothing, Fault::Status(500), Fault::Nothing, Fault::Short(9)]);
    std::thread::scope(|scope| {
        for part in 0..remote.streams() as u64 {
            let (remote, expected) = (&remote, &expected);
            scope.spawn(move || {
                let range = part * 150_000..(part + 1) * 150_000;
                assert!(bytes(remote, 0, range.clone()).unwrap() == expected[range.start as usize..range.end as usize]);
            });
        }
    });
}

#[test]
fn private_models_need_the_token_for_headers_too() {
    let dir = model();
    let (server, hub) = serve(dir.path());
    *server.access() = Access { token: Some("hf_t"), ..Access::default() };
    assert_says(headers(&hub).unwrap_err(), &["owner/model", "401", "no token", "HF_TOKEN"]);
    let known = Hub { token: Some("hf_t".into()), ..hub };
    assert!(headers(&known).is_ok());
    server.access().forbidden = true;
    assert_says(headers(&known).unwrap_err(), &["403", "ask for access"]);
}

/// Damage is told in the same words as for a local directory.
#[test]
fn damaged_files_are_refused_as_on_a_disk() {
    let damage = |change: &dyn Fn(&Path), parts: &[&str]| {
        let dir = model();
        change(dir.path());
        let (_server, hub) = serve(dir.path());
        let remote = headers(&hub).unwrap_err().to_string();
        let local = Checkpoint::open(dir.path()).unwrap_err().to_string();
        let origin = format!("owner/model@{COMMIT}");
        assert_eq!(remote.replace(&origin, ""), local.replace(&dir.path().display().to_string(), ""));
        assert_says(remote, &[parts, &[&origin]].concat());
    };
    let shorter = |dir: &Path| {
        let bytes = std::fs::read(dir.join(SHARDS[0])).unwrap();
        std::fs::write(dir.join(SHARDS[0]), &bytes[..bytes.len() - 10]).unwrap();
    };
    damage(&shorter, &[SHARDS[0], "`b`", "10 bytes are missing"]);
    damage(&|dir| std::fs::write(dir.join(SHARDS[1]), b"").unwrap(), &[SHARDS[1], "0 bytes are too few"]);
    damage(&|dir| std::fs::write(dir.join(SHARDS[1]), b"1234").unwrap(), &[SHARDS[1], "4 bytes are too few"]);
    damage(
        &|dir| std::fs::write(dir.join(SHARDS[1]), 900u64.to_le_bytes()).unwrap(),
        &[SHARDS[1], "inside its header"],
    );
    damage(&|dir| std::fs::write(dir.join(SHARDS[1]), 0u64.to_le_bytes()).unwrap(), &[SHARDS[1], "begin with `{`"]);
    damage(&|dir| std::fs::write(dir.join(SHARDS[1]), [255; 64]).unwrap(), &[SHARDS[1], "not safetensors"]);
    damage(&|dir| std::fs::remove_file(dir.join(SHARDS[1])).unwrap(), &["index.json", SHARDS[1], "1 of 3"]);
    let twice = |dir: &Path| assert!(std::fs::copy(dir.join(SHARDS[1]), dir.join(SHARDS[2])).unwrap() > 0);
    damage(&twice, &[SHARDS[2], "also in"]);
    let elsewhere = index_of(&[("a", SHARDS[0]), ("b", SHARDS[0]), ("c", SHARDS[1]), ("e", SHARDS[2])]);
    let index = |dir: &Path| dir.join("model.safetensors.index.json");
    // An index that leaves something out does no harm, and is told of.
    let (dir, origin) = (model(), format!("owner/model@{COMMIT}"));
    std::fs::write(index(dir.path()), &elsewhere).unwrap();
    let (_server, hub) = serve(dir.path());
    let (remote, local) = (headers(&hub).unwrap(), Checkpoint::open(dir.path()).unwrap());
    assert_eq!((remote.index(), remote.notes()), (local.index(), local.notes()));
    assert_says(&remote.notes()[0], &["does not list 1 tensor", "`d`", SHARDS[2]]);
    assert_eq!(remote.origin(), origin);
    damage(&|dir| std::fs::write(index(dir), "{}").unwrap(), &["index.json", "not a valid index"]);
}

#[test]
fn https_is_spoken() {
    let dir = model();
    let (_server, hub) = serve(dir.path());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    let greeting = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut greeting = [0; 3];
        stream.read_exact(&mut greeting).unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        greeting
    });
    let error = headers(&Hub { endpoint: endpoint.clone(), token: Some("hf_secret".into()), ..hub }).unwrap_err();
    assert_says(&error, &["cannot reach", &endpoint, "HF_ENDPOINT"]);
    assert_eq!(greeting.join().unwrap(), [22, 3, 1], "a TLS handshake");
}
