//! Text to token windows: formats, conventions, errors that say what to do.

use lacuna::text::{Tokenizer, Windows, documents, ngram_perplexity};
use lacuna::{Error, Result};
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

#[test]
fn a_missing_or_broken_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    assert_says(&message(Tokenizer::open(dir.path())), &["tokenizer.json", "copy", ".json"]);
    file(&dir, "tokenizer.json", "{\"version\": \"1.0\"}");
    assert_says(&message(Tokenizer::open(dir.path())), &["tokenizer.json", "download"]);
    let text = file(&dir, "a.txt", prose(100));
    assert_says(&message(Windows::evaluation(&text, None, None, 8)), &["a.txt", "no tokenizer", ".json"]);
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
    let all = Windows::evaluation(&path, Some(&tokenizer), None, 16).unwrap();
    assert_eq!(all.ids.len(), expected.len() / 16);
    assert_eq!(all.ids.concat(), expected[..all.ids.len() * 16]);
    assert_eq!((all.name.as_str(), all.seqlen), ("eval.txt", 16));
    let two = Windows::evaluation(&path, Some(&tokenizer), Some(2), 16).unwrap();
    assert_eq!(two.ids, all.ids[..2]);
    let too_many = message(Windows::evaluation(&path, Some(&tokenizer), Some(1000), 16));
    assert_says(&too_many, &[&format!("{} windows of 16", all.ids.len()), "1000", "--windows"]);
}

#[test]
fn calibration_windows_lie_within_long_documents() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    let (long, longer, short) = (prose(90), prose(200).to_uppercase(), "too short".to_owned());
    let path = file(&dir, "c.txt", [&*long, &short, &longer].join("\n<|endoftext|>\n"));
    let windows = Windows::calibration(&path, Some(&tokenizer), 40, 32, 7).unwrap();
    let texts = [tokenizer.encode(&long).unwrap(), tokenizer.encode(&longer).unwrap()];
    let source = |ids: &Vec<u32>| texts.iter().position(|text| text.windows(32).any(|window| window == ids));
    let sources: Vec<_> = windows.ids.iter().map(|ids| source(ids).expect("a window spans documents")).collect();
    assert!(sources.contains(&0) && sources.contains(&1), "both are drawn from");
    assert!(windows.ids.iter().collect::<std::collections::HashSet<_>>().len() > 20, "places differ");

    assert_eq!(Windows::calibration(&path, Some(&tokenizer), 40, 32, 7).unwrap(), windows);
    assert_eq!(Windows::calibration(&path, Some(&tokenizer), 10, 32, 7).unwrap().ids, windows.ids[..10]);
    assert_ne!(Windows::calibration(&path, Some(&tokenizer), 40, 32, 8).unwrap(), windows);
}

#[test]
fn calibration_on_short_documents_takes_them_joined() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    let path = file(&dir, "c.jsonl", "{\"text\": \"the white whale\"}\n".repeat(30));
    let joined = tokenizer.encode(&["the white whale"; 30].join("\n\n")).unwrap();
    let windows = Windows::calibration(&path, Some(&tokenizer), 5, 40, 0).unwrap();
    assert!(windows.ids.iter().all(|ids| joined.windows(40).any(|window| window == ids)));
    let available = joined.len();
    let problem = message(Windows::calibration(&path, Some(&tokenizer), 5, 4000, 0));
    assert_says(&problem, &[&format!("{available} tokens"), "4000", "--seqlen"]);
    assert_says(
        &message(Windows::evaluation(&path, Some(&tokenizer), None, 4000)),
        &[&format!("{available} tokens"), "4000"],
    );
}

#[test]
fn windows_of_token_ids_are_taken_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let bare = file(&dir, "w.json", "[[1, 2, 3], [4, 5, 6], [7, 8, 9]]");
    let named = file(&dir, "n.json", "{\"name\": \"x\", \"input_ids\": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}");
    for path in [&bare, &named] {
        assert_eq!(Windows::calibration(path, None, 2, 3, 5).unwrap().ids, [[1, 2, 3], [4, 5, 6]]);
        assert_eq!(Windows::evaluation(path, None, None, 2).unwrap().ids, [[1, 2], [4, 5], [7, 8]]);
    }
    let windows = Windows::evaluation(&bare, None, None, 3).unwrap();
    windows.check_vocab(10).unwrap();
    assert_says(&message(windows.check_vocab(9)), &["token id = 9", "window 2", "9 tokens"]);
    assert_says(&message(Windows::evaluation(&bare, None, Some(4), 3)), &["3 windows", "4 were"]);
    assert_says(&message(Windows::evaluation(&bare, None, None, 4)), &["3 tokens", "4 were", "--seqlen"]);
    for (content, says) in [
        ("[[1, 2], [3]]", "row 1 has 1"),
        ("[]", "no window"),
        ("[[1, -2]]", "no windows of token ids"),
        ("{\"ids\": [[1, 2]]}", "input_ids"),
        ("[[1, 2]", "no windows of token ids"),
    ] {
        let path = file(&dir, "bad.json", content);
        assert_says(&message(Windows::evaluation(&path, None, None, 2)), &["bad.json", says]);
    }
}

#[test]
fn impossible_sizes() {
    let path = Path::new("never-read.json");
    assert_says(&message(Windows::calibration(path, None, 0, 8, 0)), &["windows = 0"]);
    assert_says(&message(Windows::evaluation(path, None, Some(0), 8)), &["windows = 0"]);
    assert_says(&message(Windows::evaluation(path, None, None, 1)), &["seqlen = 1", "2"]);
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

/// BPE training and batch encoding run in parallel; the thread count must not show.
#[test]
fn the_tokenizer_is_the_same_on_one_thread_and_two() {
    const CHILD: &str = "LACUNA_TEST_TOKENIZER_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let texts: Vec<String> = (1..60).map(|i| prose(40 * i).replace("sea", &format!("sea{}", i % 9))).collect();
        let tokenizer = Tokenizer::train_bpe(&texts, 300).unwrap();
        println!("json {:?} {:?}", tokenizer.to_json().unwrap(), tokenizer.encode_documents(&texts).unwrap());
        return;
    }
    let run = |threads: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["the_tokenizer_is_the_same_on_one_thread_and_two", "--exact", "--nocapture"]);
        let output = command.env(CHILD, "1").env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find(|line| line.contains("json ")).unwrap().split_once("json ").unwrap().1.to_owned()
    };
    assert_eq!(run("1"), run("2"));
}
