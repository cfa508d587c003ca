//! Notebooks through the binary, with the real evcxr.
#![cfg(feature = "notebook")]

#[expect(dead_code, reason = "the tests of options use the rest")]
mod notebook_runs;

use notebook_runs::{lacuna, notebook, read, read_json, stderr};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn good_notebook_leaves_its_report_and_check_sees_changes() {
    let out = tempfile::tempdir().unwrap();
    let out = out.path();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/notebooks/ok.ipynb");
    let before = fs::read(&source).unwrap();
    let run = lacuna(&source, out, &[]);
    assert!(run.status.success(), "{}", stderr(&run));
    assert_eq!(fs::read(&source).unwrap(), before, "the source is not touched");

    let executed = read_json(&out.join("ok.ipynb"));
    let outputs = |cell: usize| &executed["cells"][cell]["outputs"];
    // One copy of candle's statics: the second cell counts on.
    assert_eq!(outputs(1)[0]["text"], json!(["TensorId(1)\n"]));
    assert_eq!(outputs(2)[0]["data"]["text/plain"], json!(["TensorId(2)"]));
    assert_eq!(outputs(2)[0]["execution_count"], 2);
    let streams: Vec<&Value> = outputs(3).as_array().unwrap().iter().map(|output| &output["name"]).collect();
    assert!(streams.contains(&&json!("stdout")) && streams.contains(&&json!("stderr")), "{streams:?}");
    assert_eq!(outputs(6)[0]["data"]["application/vnd.lacuna+json"]["rows"], json!([[1, 2.5]]));

    let markdown = read(out.join("ok.md"));
    for expected in [
        "# Cells share one library\n",
        "```rust\n// Types of candle",
        "```text\n[2.0, 3.0]\nno newline at the end\n```",
        "![a square](ok_files/plot_1.svg)",
        "| a | b |\n|--:|--:|\n| 1 | 2.5 |",
    ] {
        assert!(markdown.contains(expected), "no {expected:?} in\n{markdown}");
    }
    assert!(!markdown.contains("progress 1/2") && !markdown.contains('\u{1b}'), "{markdown}");
    assert_eq!(read(out.join("ok.csv")), "a,b\n1,2.5\n");
    assert!(read(out.join("ok_files/plot_1.svg")).starts_with("<svg"));
    assert_eq!(fs::read(out.join("ok_files/plot_1.png")).unwrap(), b"\x89PNG\r\n\x1a\n");
    let report = read_json(&out.join("ok.json"));
    assert_eq!(report["schema"], 1);
    assert_eq!(report["cells"][4]["data"], json!({"rows": [[1, 2.5]]}), "what differs from run to run stands apart");
    assert!(report["environment"]["cells"]["7"]["records"][0]["pid"].is_u64(), "{report}");

    // The same again: only times differ. Three different files: all are named.
    let check = lacuna(&source, out, &["--check"]);
    assert!(check.status.success(), "{}", stderr(&check));
    fs::write(out.join("ok.csv"), "a,b\n1,2.4\n").unwrap();
    fs::write(out.join("ok.md"), markdown.replace("TensorId(2)", "TensorId(3)")).unwrap();
    let executed = read(out.join("ok.ipynb"));
    fs::write(out.join("ok.ipynb"), executed.replace("TensorId(1)", "TensorId(4)")).unwrap();
    let check = lacuna(&source, out, &["--check"]);
    assert_eq!(check.status.code(), Some(4), "{}", stderr(&check));
    let differences =
        ["ok.csv", "-1,2.4\n+1,2.5", "ok.md", "-TensorId(3)\n+TensorId(2)", "ok.ipynb", "\"TensorId(4)\\n\""];
    for expected in differences {
        assert!(stderr(&check).contains(expected), "no {expected:?} in\n{}", stderr(&check));
    }
    assert_eq!(read(out.join("ok.csv")), "a,b\n1,2.4\n", "--check writes nothing");
}

/// Runs a first cell that prints, and a second one that fails; the rest must not run.
fn fails(name: &str, cell: &str, code: i32, expected: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("reports");
    let marker = directory.path().join("third cell ran");
    let third = format!("std::fs::write({:?}, \"\")?;", marker);
    let path = notebook(directory.path(), name, "rust", &["let x = 20;\nprintln!(\"before\");", cell, &third]);
    let run = lacuna(&path, &out, &[]);
    let text = stderr(&run);
    assert_eq!(run.status.code(), Some(code), "{text}");
    for expected in expected.iter().chain(&[name, "cell 2 (id id-1)"]) {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
    assert!(!marker.exists(), "the third cell ran");
    let executed = read_json(&out.join(name));
    assert_eq!(executed["cells"][0]["outputs"][0]["text"], json!(["before\n"]));
    let error = executed["cells"][1]["outputs"].as_array().unwrap().last().unwrap();
    assert_eq!(error["output_type"], "error");
    assert_eq!(executed["cells"][2]["outputs"], json!([]));
    assert!(!out.join(Path::new(name).with_extension("md")).exists(), "half a report");
}

#[test]
fn panic_fails_the_run() {
    fails(
        "panics.ipynb",
        "let y = x * 2;\npanic!(\"not {y}\");",
        1,
        &["panicked", "2 | panic!(\"not {y}\");", "not 40"],
    );
}

#[test]
fn failed_question_mark_fails_the_run() {
    let cell = "println!(\"text\");\nstd::fs::read(\"missing.txt\")?;";
    fails("errs.ipynb", cell, 1, &["returned an error", "No such file or directory"]);
}

#[test]
fn compile_error_fails_the_run() {
    let cell = "// a comment\nlet z: i32 = x;\nlet y: String = x;";
    fails(
        "types.ipynb",
        cell,
        1,
        &["does not compile", "error[E0308]", "line 3 | let y: String = x;", "expected `String`"],
    );
}

#[test]
fn dead_process_fails_the_run() {
    let cell = "unsafe extern \"C\" { safe fn exit(code: i32) -> !; }\neprintln!(\"last words\");\nexit(7);";
    fails("dies.ipynb", cell, 3, &["last words", "exit status: 7"]);
}

#[test]
fn interrupt_keeps_what_had_run() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("reports");
    let flag = directory.path().join("sleeping");
    let sleep = format!(
        "std::fs::write({:?}, std::process::id().to_string())?;\nstd::thread::sleep(std::time::Duration::from_secs(300));",
        flag
    );
    let path = notebook(directory.path(), "sleeps.ipynb", "rust", &["1 + 1", &sleep, "3"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(["notebook", "run"]).arg(&path).arg("--out").arg(&out).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !fs::read_to_string(&flag).is_ok_and(|text| !text.is_empty()) {
        assert!(Instant::now() < deadline, "the second cell never began");
        std::thread::sleep(Duration::from_millis(50));
    }
    let cells: i32 = read(flag).parse().unwrap();
    // One run at a time writes a report.
    let second = lacuna(&path, &out, &[]);
    assert_eq!(second.status.code(), Some(2), "{}", stderr(&second));
    let expected = format!("is being made by another run (process {})", child.id());
    assert!(stderr(&second).contains(&expected), "{}", stderr(&second));
    // SAFETY: both are processes that this test started.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    // SAFETY: signal 0 only asks whether the process exists.
    assert_ne!(unsafe { libc::kill(cells, 0) }, 0, "the process that runs cells is still there");
    let executed = read_json(&out.join("sleeps.ipynb"));
    assert_eq!(executed["cells"][0]["outputs"][0]["data"]["text/plain"], json!(["2"]));
    assert_eq!(executed["cells"][2]["execution_count"], Value::Null);
    assert!(!out.join(".sleeps.lock").exists());
}

#[test]
fn unreadable_notebooks_are_refused_before_anything_runs() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let out = directory.join("reports");
    let corrupt = directory.join("corrupt.ipynb");
    fs::write(&corrupt, "{\"cells\": [").unwrap();
    let list = directory.join("list.ipynb");
    fs::write(
        &list,
        r#"{"nbformat": 4, "nbformat_minor": 5, "metadata": {"language_info": {"name": "rust"}}, "cells": [3]}"#,
    )
    .unwrap();
    let old = directory.join("old.ipynb");
    fs::write(&old, "{\"nbformat\": 2, \"nbformat_minor\": 0, \"metadata\": {}, \"worksheets\": []}").unwrap();
    let python = notebook(directory, "snake.ipynb", "python", &["1 + 1"]);
    let cases = [
        (corrupt, "not JSON"),
        (list, "is not a notebook"),
        (old, "format 2.0"),
        (python, "in python; lacuna runs notebooks in Rust"),
        (directory.join("missing.ipynb"), "cannot read"),
    ];
    for (path, expected) in cases {
        let run = lacuna(&path, &out, &[]);
        let text = stderr(&run);
        assert_eq!(run.status.code(), Some(2), "{text}");
        assert!(text.contains(expected), "no {expected:?} in {text}");
        assert!(text.contains(path.file_name().unwrap().to_str().unwrap()), "{text}");
    }
    assert!(!out.exists());
}
