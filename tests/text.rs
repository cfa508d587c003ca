//! Text to token windows: formats, conventions, errors that say what to do.

use lacuna::text::{Consecutive, Sampling, TextFile, Tokenizer, Windows, documents, ngram_perplexity};
use lacuna::{Error, Result};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Enough varied text for a BPE of 300 tokens.
fn prose(words: usize) -> String {
    let stems = ["whale", "ship", "sea", "captain", "harpoon", "the", "of", "white", "and", "sail", "rope", "into"];
    (0..words).map(|i| stems[(i * i + i / 3) % stems.len()]).collect::<Vec<_>>().join(" ")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::train_bpe(&[prose(4000)], 280).unwrap()
}

fn file(dir: &TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{message}` does not say `{part}`");
    }
}

#[test]
fn documents_of_each_format() {
    let dir = tempfile::tempdir().unwrap();
    let text = file(&dir, "a.txt", "\u{feff}one\ntwo\n\nthree\n<|endoftext|>\r\n\n four \n<|endoftext|>\n\n");
    assert_eq!(documents(&text).unwrap(), ["one\ntwo\n\nthree", "four"]);
    let inline = file(&dir, "b.txt", "a line with <|endoftext|> inside is no border\n");
    assert_eq!(documents(&inline).unwrap().len(), 1);
    let lines =
        file(&dir, "c.jsonl", "{\"text\": \"one\\n\\ntwo\", \"id\": 7}\n\n{\"text\": \" \"}\n{\"text\": \"three\"}\n");
    assert_eq!(documents(&lines).unwrap(), ["one\n\ntwo", "three"]);
}

#[test]
fn broken_text_files() {
    let dir = tempfile::tempdir().unwrap();
    assert_says(&message(documents(dir.path().join("none.txt"))), &["cannot read", "none.txt"]);
    assert_says(&message(documents(file(&dir, "empty.txt", ""))), &["empty.txt", "no text"]);
    assert_says(&message(documents(file(&dir, "blank.txt", " \n<|endoftext|>\n"))), &["no text"]);
    assert_says(
        &message(documents(file(&dir, "latin.txt", b"caf\xe9 au lait"))),
        &["latin.txt", "not UTF-8", "byte 3", "iconv"],
    );
    let lines = file(&dir, "x.jsonl", "{\"text\": \"a\"}\n{\"content\": \"b\"}\n");
    assert_says(&message(documents(lines)), &["line 2", "`text`"]);
    let lines = file(&dir, "y.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \n");
    assert_says(&message(documents(lines)), &["line 3", "not JSON"]);
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text").join(name)
}

/// The same documents in every form, under names that say so, that say nothing, and that say something else.
#[test]
fn a_text_is_what_its_content_says() {
    let dir = tempfile::tempdir().unwrap();
    let expected = ["the white whale\n\nsank", "a [ship] {of} the line", "caf\u{e9} \u{1f40b}"];
    let row = |text: &&str| json!({"text": text, "timestamp": "2019-01-01T00:00:00Z", "url": "https://a.example/"});
    let rows: Vec<Value> = expected.iter().map(row).collect();
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let viewer =
        json!({"features": [], "rows": rows.iter().map(|row| json!({"row_idx": 0, "row": row})).collect::<Vec<_>>()});
    let list = serde_json::to_string_pretty(&rows).unwrap();
    let forms: [(&str, Vec<u8>); 14] = [
        ("c4-train.00000-of-01024.json", lines.clone().into()),
        ("c4-train.00000-of-01024.json.gz", gzip(lines.as_bytes())),
        ("twice.json.gz.gz", gzip(&gzip(lines.as_bytes()))),
        ("called-otherwise.jsonl", gzip(lines.as_bytes())),
        ("bom.jsonl", format!("\u{feff}{lines}").into()),
        ("bom.json.gz", gzip(format!("\u{feff}{lines}").as_bytes())),
        ("windows.jsonl", lines.replace('\n', "\r\n").into()),
        ("blank-lines.jsonl", lines.replace('\n', "\n\n").into()),
        ("list.json", list.clone().into()),
        ("list.jsonl", list.into()),
        ("texts.json", json!(expected).to_string().into()),
        ("viewer.json", viewer.to_string().into()),
        ("lines.txt", lines.clone().into()),
        ("no-ending", lines.into()),
    ];
    for (name, content) in forms {
        assert_eq!(documents(file(&dir, name, content)).unwrap(), expected, "{name}");
    }
    let texts = |name: &str| documents(fixture(name)).unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(fixture("rows.json")).unwrap()).unwrap();
    let expected: Vec<&str> = rows.iter().map(|row| row["text"].as_str().unwrap()).collect();
    for name in ["rows.json", "lines.json.zst", "snappy.parquet", "zstd2.parquet", "deltas.parquet"] {
        assert_eq!(texts(name), expected, "{name}");
    }
    let packed = file(&dir, "packed.parquet.gz", gzip(&std::fs::read(fixture("groups.parquet")).unwrap()));
    assert_eq!(documents(packed).unwrap(), expected);
    // What only looks like it is text.
    for (name, content) in [("a.txt", "[1] A note.\n{x}"), ("b.txt", "{\"a\": 1}"), ("c.md", "[the ship](x.html)\n[2]")]
    {
        assert_eq!(documents(file(&dir, name, content)).unwrap(), [content]);
    }
    assert_eq!(documents(file(&dir, "d.txt", "one\r\ntwo\r\n<|endoftext|>\r\nthree")).unwrap(), ["one\ntwo", "three"]);
}

#[test]
fn windows_of_token_ids_in_every_form_say_how_long_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [[1u32, 2, 3], [4, 5, 6]];
    let objects = rows.map(|ids| json!({"input_ids": ids, "attention_mask": [1, 1, 1]}));
    let forms: [(&str, Vec<u8>); 7] = [
        ("a.json", json!(rows).to_string().into()),
        ("b.json", json!({"input_ids": rows}).to_string().into()),
        ("c.json", json!(objects).to_string().into()),
        ("d.jsonl", "[1, 2, 3]\n[4, 5, 6]\n".into()),
        ("e.json", "\u{feff}[1, 2, 3]\r\n[4, 5, 6]\r\n".into()),
        ("f.json", objects.iter().map(|row| format!("{row}\n")).collect::<String>().into()),
        ("g.json.gz", gzip(json!(rows).to_string().as_bytes())),
    ];
    for (name, content) in forms {
        let text = TextFile::read(file(&dir, name, content), false).unwrap();
        assert_eq!((text.seqlen(), &text.skipped), (Some(3), &vec![]), "{name}");
        assert_eq!(Windows::evaluation_of(&text, None, Consecutive::of(3)).unwrap().ids, rows, "{name}");
    }
    let parquet = TextFile::read(fixture("ids.parquet"), false).unwrap();
    assert_eq!(parquet.seqlen(), Some(8));
    let expected: Vec<Vec<u32>> = (0..4).map(|i| (8 * i..8 * i + 8).collect()).collect();
    assert_eq!(Windows::calibration_of(&parquet, None, Sampling::new(4, 8)).unwrap().ids, expected);
    assert_eq!(TextFile::read(fixture("snappy.parquet"), false).unwrap().seqlen(), None);
}

/// Lines that a program cut or wrote wrongly among good ones.
#[test]
fn bad_lines_are_named_counted_and_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let good = |text: &str| json!({"text": text}).to_string();
    let half = r#"{"text": "half an emoji \ud83d"}"#;
    let lines = [half, &good("one"), r#"{"text": "cut"#, "", r#"{"text": null}"#, &good("two"), r#"{"content": "x"}"#];
    for name in ["half.jsonl", "half.json", "half.txt"] {
        let path = file(&dir, name, lines.join("\n"));
        let problem = message(documents(&path));
        assert_says(&problem, &["line 1", "half a character", "4 of 6 are bad", "--skip-bad-lines"]);
        let text = TextFile::read(&path, true).unwrap();
        assert_eq!((text.skipped.as_slice(), text.unit), ([1, 3, 5, 7].as_slice(), "line"), "{name}");
        let tokenizer = tokenizer();
        let windows = Windows::evaluation_of(&text, Some(&tokenizer), Consecutive::of(2)).unwrap();
        assert_eq!(
            windows.ids.concat()[..],
            tokenizer.encode("one\n\ntwo").unwrap()[..windows.ids.len() * 2],
            "{name}"
        );
    }
    let list = file(&dir, "list.json", json!([{"text": "one"}, {"text": 2}, {"text": "three"}]).to_string());
    let text = TextFile::read(&list, true).unwrap();
    assert_eq!((text.skipped.as_slice(), text.unit), ([2].as_slice(), "row"));
    assert_says(
        &message(TextFile::read(&list, false)),
        &["row 2", "the only one of 3 that is bad", "--skip-bad-lines"],
    );
    let nothing = file(&dir, "nothing.jsonl", format!("{half}\n{half}\n"));
    assert_says(&message(TextFile::read(&nothing, true)), &["no text", "2 bad lines"]);
}

/// One line each, as a person reads it; nothing of a parser's own words.
#[test]
fn refusals_of_texts() {
    let dir = tempfile::tempdir().unwrap();
    let good = json!({"text": "good"}).to_string();
    let line = |bad: &str| format!("{good}\n{bad}\n").into_bytes();
    let mut cut = gzip(&line("{}"));
    cut.truncate(cut.len() - 9);
    let mut zst = std::fs::read(fixture("lines.json.zst")).unwrap();
    zst.truncate(200);
    let parquet = std::fs::read(fixture("snappy.parquet")).unwrap();
    let utf16: Vec<u8> = "the whale".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("cut.jsonl", line("{\"text\": \"cut")),
        ("emoji.jsonl", line("{\"text\": \"\\ud83d\"}")),
        ("control.jsonl", line("{\"text\": \"a\u{1}b\"}")),
        ("nan.jsonl", line("{\"text\": NaN}")),
        ("infinity.jsonl", line("{\"text\": \"x\", \"a\": -Infinity}")),
        ("single.jsonl", line("{'text': 'x'}")),
        ("comma.jsonl", line("{\"text\": \"x\" \"a\": 1}")),
        ("trailing.jsonl", line("{\"text\": \"x\"},")),
        ("number.jsonl", line("7")),
        ("fields.jsonl", line("{\"content\": \"x\", \"title\": \"y\"}")),
        ("null.jsonl", line("{\"text\": null}")),
        ("both.jsonl", line("[1, 2]")),
        ("broken.json", b"[\n  {\"text\": \"a\"}\n  {\"text\": \"b\"}\n]".to_vec()),
        ("empty.json", b" ".to_vec()),
        ("none.json", b"[]".to_vec()),
        ("ids.json", b"[[1, 2], [3, 4.5]]".to_vec()),
        ("huge.json", b"[[1, 2], [3, 4294967296]]".to_vec()),
        ("words.json", b"{\"input_ids\": \"1 2 3\"}".to_vec()),
        ("cut.json.gz", cut),
        ("cut.json.zst", zst),
        ("cut.parquet", parquet[..parquet.len() - 3].to_vec()),
        ("utf16.txt", [&[0xff, 0xfe], &utf16[..]].concat()),
        ("unmarked.txt", utf16),
        ("latin.txt", b"caf\xe9".to_vec()),
        ("text.zip", b"PK\x03\x04....".to_vec()),
        ("text.xz", b"\xfd7zXZ\0..".to_vec()),
        ("text.bz2", b"BZh91AY".to_vec()),
        ("text.arrow", b"ARROW1\0\0".to_vec()),
        ("text.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec()),
    ];
    let mut said: Vec<String> = files
        .into_iter()
        .map(|(name, content)| message(TextFile::read(file(&dir, name, content), false)))
        .map(|message| message.replace(&format!("{}/", dir.path().display()), ""))
        .collect();
    for name in ["brotli.parquet", "../tasks/hub-parquet/boolq/validation-00000-of-00001.parquet"] {
        let message = message(TextFile::read(fixture(name), false));
        said.push(message.replace(fixture("").to_str().unwrap(), ""));
    }
    for parser in ["expected", "trailing characters", "EOF", "missing field", "invalid type", "untagged"] {
        assert!(!said.iter().any(|said| said.contains(parser)), "{parser}: {said:#?}");
    }
    insta::assert_snapshot!("refusals_of_texts", said.join("\n"));
}

#[test]
fn the_command_line_skips_bad_lines_and_takes_windows_as_long_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_lacuna"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["evaluate", "data/tiny-llama"])
            .args(args)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let text = std::fs::read_to_string("data/corpus/test.txt").unwrap();
    let good = json!({"text": text.chars().take(4000).collect::<String>()}).to_string();
    let bad = file(&dir, "bad.json", format!("{{\"text\": \"\\ud83d\"}}\n{good}\n{{\"text\"\n"));
    let bad = bad.to_str().unwrap();
    let (fine, _, stderr) = run(&["--text", bad, "--seqlen", "64"]);
    assert!(!fine && stderr.contains("line 1") && stderr.contains("--skip-bad-lines"), "{stderr}");
    let (fine, stdout, stderr) = run(&["--text", bad, "--seqlen", "64", "--windows", "2", "--skip-bad-lines"]);
    assert!(fine && stdout.contains("tokens      126"), "{stdout}{stderr}");
    assert!(stderr.contains("bad.json: 2 bad lines were skipped, the first is line 1"), "{stderr}");

    let rows: Vec<Vec<u32>> = (0..3).map(|i| (i..i + 40).collect()).collect();
    let ids = file(&dir, "ids.json", json!(rows).to_string());
    let (fine, stdout, stderr) = run(&["--text", ids.to_str().unwrap()]);
    assert!(fine && stdout.contains("tokens      117"), "{stdout}{stderr}");
    let (_, stdout, _) = run(&["--text", ids.to_str().unwrap(), "--seqlen", "11"]);
    assert!(stdout.contains("tokens      30"), "{stdout}");
}

#[test]
fn a_missing_or_broken_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    assert_says(&message(Tokenizer::open(dir.path())), &["tokenizer.json", "copy", ".json"]);
    file(&dir, "tokenizer.json", "{\"version\": \"1.0\"}");
    assert_says(&message(Tokenizer::open(dir.path())), &["tokenizer.json", "download"]);
    let text = file(&dir, "a.txt", prose(100));
    assert_says(&message(Windows::evaluation(&text, None, Consecutive::of(8))), &["a.txt", "no tokenizer", ".json"]);
}

#[test]
fn bpe_round_trips_any_text_and_is_saved_whole() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.vocab_size(), 280);
    assert_eq!(tokenizer.id("<|endoftext|>"), Some(0));
    for text in ["the white whale", "  two  spaces\n\nand lines\t", "naïve — 鯨 🐋", "\u{0}\u{7f}"] {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert!(ids.iter().all(|&id| id < 280));
    }
    let text = prose(200);
    assert!(tokenizer.encode(&text).unwrap().len() * 2 < text.len(), "frequent pairs are merged");
    assert_eq!(tokenizer.encode("a<|endoftext|>b").unwrap()[1], 0);

    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path().join("tokenizer.json")).unwrap();
    let opened = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(opened.to_json().unwrap(), tokenizer.to_json().unwrap());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    assert!(matches!(tokenizer.save(dir.path().join("no/such/folder.json")), Err(Error::Io { .. })));
}

#[test]
fn bpe_that_cannot_be() {
    assert_says(&message(Tokenizer::train_bpe(&[prose(100)], 200)), &["vocab = 200", "257"]);
    assert_says(&message(Tokenizer::train_bpe(&["ab ab".into()], 400)), &["vocab = 400", "258"]);
}

#[test]
fn evaluation_windows_do_not_overlap_and_join_documents_by_blank_lines() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    let (a, b) = (prose(70), prose(50));
    let path = file(&dir, "eval.txt", format!("{a}\n<|endoftext|>\n{b}\n"));
    let expected = tokenizer.encode(&format!("{a}\n\n{b}")).unwrap();
    let all = Windows::evaluation(&path, Some(&tokenizer), Consecutive::of(16)).unwrap();
    assert_eq!(all.ids.len(), expected.len() / 16);
    assert_eq!(all.ids.concat(), expected[..all.ids.len() * 16]);
    assert_eq!((all.name.as_str(), all.seqlen), ("eval.txt", 16));
    let two = Windows::evaluation(&path, Some(&tokenizer), Consecutive::of(16).first(2)).unwrap();
    assert_eq!(two.ids, all.ids[..2]);
    let too_many = message(Windows::evaluation(&path, Some(&tokenizer), Consecutive::of(16).first(1000)));
    assert_says(&too_many, &[&format!("{} windows of 16", all.ids.len()), "1000", "--windows"]);
}

#[test]
fn calibration_windows_lie_within_long_documents() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    let (long, longer, short) = (prose(90), prose(200).to_uppercase(), "too short".to_owned());
    let path = file(&dir, "c.txt", [&*long, &short, &longer].join("\n<|endoftext|>\n"));
    let windows = Windows::calibration(&path, Some(&tokenizer), Sampling::new(40, 32).seed(7)).unwrap();
    let texts = [tokenizer.encode(&long).unwrap(), tokenizer.encode(&longer).unwrap()];
    let source = |ids: &Vec<u32>| texts.iter().position(|text| text.windows(32).any(|window| window == ids));
    let sources: Vec<_> = windows.ids.iter().map(|ids| source(ids).expect("a window spans documents")).collect();
    assert!(sources.contains(&0) && sources.contains(&1), "both are drawn from");
    assert!(windows.ids.iter().collect::<std::collections::HashSet<_>>().len() > 20, "places differ");

    assert_eq!(Windows::calibration(&path, Some(&tokenizer), Sampling::new(40, 32).seed(7)).unwrap(), windows);
    assert_eq!(
        Windows::calibration(&path, Some(&tokenizer), Sampling::new(10, 32).seed(7)).unwrap().ids,
        windows.ids[..10]
    );
    assert_ne!(Windows::calibration(&path, Some(&tokenizer), Sampling::new(40, 32).seed(8)).unwrap(), windows);
}

#[test]
fn calibration_on_short_documents_takes_them_joined() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    let path = file(&dir, "c.jsonl", "{\"text\": \"the white whale\"}\n".repeat(30));
    let joined = tokenizer.encode(&["the white whale"; 30].join("\n\n")).unwrap();
    let windows = Windows::calibration(&path, Some(&tokenizer), Sampling::new(5, 40)).unwrap();
    assert!(windows.ids.iter().all(|ids| joined.windows(40).any(|window| window == ids)));
    let available = joined.len();
    let problem = message(Windows::calibration(&path, Some(&tokenizer), Sampling::new(5, 4000)));
    assert_says(&problem, &[&format!("{available} tokens"), "4000", "--seqlen"]);
    assert_says(
        &message(Windows::evaluation(&path, Some(&tokenizer), Consecutive::of(4000))),
        &[&format!("{available} tokens"), "4000"],
    );
}

#[test]
fn windows_of_token_ids_are_taken_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let bare = file(&dir, "w.json", "[[1, 2, 3], [4, 5, 6], [7, 8, 9]]");
    let named = file(&dir, "n.json", "{\"name\": \"x\", \"input_ids\": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}");
    for path in [&bare, &named] {
        assert_eq!(Windows::calibration(path, None, Sampling::new(2, 3).seed(5)).unwrap().ids, [[1, 2, 3], [4, 5, 6]]);
        assert_eq!(Windows::evaluation(path, None, Consecutive::of(2)).unwrap().ids, [[1, 2], [4, 5], [7, 8]]);
    }
    let windows = Windows::evaluation(&bare, None, Consecutive::of(3)).unwrap();
    windows.check_vocab(10).unwrap();
    assert_says(&message(windows.check_vocab(9)), &["token id = 9", "window 2", "9 tokens"]);
    assert_says(&message(Windows::evaluation(&bare, None, Consecutive::of(3).first(4))), &["3 windows", "4 were"]);
    assert_says(&message(Windows::evaluation(&bare, None, Consecutive::of(4))), &["3 tokens", "4 were", "--seqlen"]);
    for (content, says) in [
        ("[[1, 2], [3]]", "row 1 has 1"),
        ("[]", "no window"),
        ("[[1, -2]]", "no windows of token ids"),
        ("{\"ids\": [[1, 2]]}", "input_ids"),
        ("[[1, 2]", "ends in the middle"),
    ] {
        let path = file(&dir, "bad.json", content);
        assert_says(&message(Windows::evaluation(&path, None, Consecutive::of(2))), &["bad.json", says]);
    }
}

#[test]
fn impossible_sizes() {
    let path = Path::new("never-read.json");
    assert_says(&message(Windows::calibration(path, None, Sampling::new(0, 8))), &["windows = 0"]);
    assert_says(&message(Windows::evaluation(path, None, Consecutive::of(8).first(0))), &["windows = 0"]);
    assert_says(&message(Windows::evaluation(path, None, Consecutive::of(1))), &["seqlen = 1", "2"]);
}

#[test]
fn the_hash_is_of_content_and_shape() {
    let windows = |ids: &[&[u32]]| Windows {
        name: "x".into(),
        seqlen: ids[0].len(),
        ids: ids.iter().map(|row| row.to_vec()).collect(),
    };
    let one = windows(&[&[1, 2, 3, 4]]);
    // printf of 01 00.. 04 00.. (u64) and 1 2 3 4 (u32), little-endian, through sha256sum
    assert_eq!(one.sha256(), "efbccc6453efcb5bb419b7c38577704b47ead0bf57ddcb7a1624997d16ea2827");
    assert_ne!(one.sha256(), windows(&[&[1, 2], &[3, 4]]).sha256());
    let record = one.record();
    assert_eq!((record.windows, record.seqlen, record.sha256), (1, 4, one.sha256()));
}

#[test]
fn ngram_perplexities_by_hand() {
    let windows = |ids: Vec<Vec<u32>>| Windows { name: "x".into(), seqlen: ids[0].len(), ids };
    // 0 1 0 1 ...: the unigram cannot know, the bigram can.
    let train = vec![[0, 1].repeat(500)];
    let text = windows(vec![[0u32, 1].repeat(8); 4]);
    let ngram = ngram_perplexity(&train, &text, &text, 2).unwrap();
    assert!((ngram.unigram - 2.0).abs() < 1e-9);
    // (500 + 1 * 0.5) / (500 + 1) or one count less where 1 precedes 0, with the least smoothing, 1
    assert_eq!(ngram.strength, 1.0);
    assert!(ngram.bigram > 1.0 && ngram.bigram < 1.0011, "{}", ngram.bigram);

    // Tokens that were never seen have a probability all the same.
    let unseen = windows(vec![vec![2, 3, 2, 3]]);
    let ngram = ngram_perplexity(&train, &text, &unseen, 4).unwrap();
    assert!((ngram.unigram - 1004.0).abs() < 1e-6, "one in 1000 + 4 tokens: {}", ngram.unigram);
    assert!(ngram_perplexity(&train, &text, &unseen, 3).is_err());
    assert!(ngram_perplexity(&[], &text, &text, 4).is_err());
}
