//! A kernel in a cache with an unusual path, whose build is replaced while it runs; and what it says about an item under the
//! cursor. One session for all of it, because each takes seconds to start.
#![cfg(all(feature = "notebook", target_os = "linux"))]

mod common {
    #[expect(dead_code, reason = "the tests of the kernel use the rest")]
    pub(crate) mod jupyter;
}

use common::jupyter::Kernel;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const LACUNA: &str = env!("CARGO_BIN_EXE_lacuna");

/// A build of its own: other names for what cargo has left, none of which is changed.
fn build(directory: &Path) -> PathBuf {
    let (debug, of_cargo) = (directory.join("target dir/debug"), Path::new(LACUNA).parent().unwrap());
    fs::create_dir_all(debug.join("deps")).unwrap();
    let link = |from: &Path, to: PathBuf| {
        if fs::hard_link(from, &to).is_err() {
            fs::copy(from, to).unwrap();
        }
    };
    for entry in fs::read_dir(of_cargo.join("deps")).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|end| end == "rmeta" || end == "so") {
            link(&path, debug.join("deps").join(entry.file_name()));
        }
    }
    link(Path::new(LACUNA), debug.join("lacuna"));
    link(&of_cargo.join("deps/liblacuna.so"), debug.join("liblacuna.so"));
    debug
}

/// The program of `build`, as a script that sets the cache.
fn script(directory: &Path, build: &Path, cache: &Path) -> PathBuf {
    let quoted = |path: &Path| format!("'{}'", path.to_str().unwrap().replace('\'', r"'\''"));
    let text =
        format!("#!/bin/sh\nexport XDG_CACHE_HOME={}\nexec {} \"$@\"\n", quoted(cache), quoted(&build.join("lacuna")));
    let path = directory.join("script");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_session_outlives_its_build() {
    let directory = tempfile::tempdir().unwrap();
    let build = build(directory.path());
    let cache = directory.path().join("ca che/it's Ä🍎 $HOME #;-x");
    let script = script(directory.path(), &build, &cache);
    let mut kernel = Kernel::start(&script);
    assert_eq!(kernel.succeed("let before = 40usize; before + 2").value(), "42");

    // What cargo does while it builds.
    let lock = File::create(build.join(".cargo-lock")).unwrap();
    lock.lock().unwrap();
    fs::remove_file(build.join("deps/liblacuna.so")).unwrap();
    fs::write(build.join("deps/liblacuna.so"), "half of another library").unwrap();
    assert_eq!(kernel.succeed("let table = df!(\"a\" => [1, 2])?;\ntable.height() + before").value(), "42");
    kernel.fail("std::process::abort()", "KernelDied");
    assert_eq!(kernel.succeed("df!(\"a\" => [1, 2])?.height()").value(), "2", "another process for the cells");
    // Another session begins with the same build, in a directory with another unusual name, and does not wait.
    let notebooks = directory.path().join("-note \"books\"\\ %41,é");
    fs::create_dir(&notebooks).unwrap();
    let cell = json!({"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": null,
        "source": "std::fs::write(\"here\", \"1\")?;\n6 * 7"});
    let notebook =
        json!({"cells": [cell], "metadata": {"language_info": {"name": "rust"}}, "nbformat": 4, "nbformat_minor": 5});
    fs::write(notebooks.join("a b.ipynb"), notebook.to_string()).unwrap();
    let run = Command::new(&script).args(["notebook", "run", "a b.ipynb"]).current_dir(&notebooks).output().unwrap();
    assert!(run.status.success() && !said(&run).contains("waiting"), "{}", said(&run));
    assert!(fs::read_to_string(notebooks.join("reports/a b.md")).unwrap().contains("42"));
    assert!(notebooks.join("here").is_file(), "cells run where the notebook is");

    inspects_what_is_under_the_cursor(&mut kernel);
    completes_what_is_there(&mut kernel);

    // The build is over, and another session sweeps up what no session holds; this one holds its own.
    drop(lock);
    let collected =
        Command::new(&script).args(["cache", "gc", "--older-than", "0s"]).env_remove("LACUNA_CACHE_DIR").output();
    assert!(collected.unwrap().status.success());
    assert_eq!(kernel.succeed("1 + 1").value(), "2");
}

/// The answer about the item at `|`.
fn inspect(kernel: &mut Kernel, marked: &str) -> Value {
    let cursor = marked.chars().position(|c| c == '|').unwrap();
    let code = marked.replacen('|', "", 1);
    kernel.ask("inspect_request", &json!({"code": code, "cursor_pos": cursor, "detail_level": 0}))
}

fn inspects_what_is_under_the_cursor(kernel: &mut Kernel) {
    kernel.succeed("let table = df!(\"a\" => [1, 2])?;\nlet name = String::from(\"x\");");
    for (marked, expected) in [
        ("na|me.len()", "String"),
        ("|name.len()", "String"),
        ("name|.len()", "String"),
        ("name.le|n()", "fn len(&self) -> usize"),
        ("name.|len()", "fn len(&self) -> usize"),
        ("let é = \"🍎\";\nname.len|()", "fn len(&self) -> usize"),
        ("table.height(|)", "fn height(&self) -> usize"),
        ("table.column(na|me.as_str())", "String"),
        ("let s: Str|ing = name;", "struct String"),
        ("let other| = name.len();\nother", "usize"),
        ("println!(\"{}\", name.le|n());", "fn len(&self) -> usize"),
        ("fn twice(x: usize) -> usize {\n    let y = x;\n    y|.pow(2)\n}", "usize"),
        ("twi|ce(2);\nfn twice(x: usize) -> usize { 2 * x }", "fn twice(x: usize) -> usize"),
        ("d|f!(\"a\" => [1])", "macro_rules! df"),
        ("Lab::op|en", "fn open"),
    ] {
        let answer = inspect(kernel, marked);
        let plain = answer["data"]["text/plain"].as_str().unwrap_or_default();
        assert!(answer["found"] == true && plain.contains(expected), "{marked}: {answer}");
    }
    for marked in ["// na|me", "\"na|me\"", "le|t x = 1;", "4|2", "name + | 1", "|"] {
        assert_eq!(inspect(kernel, marked)["found"], false, "{marked}");
    }
    // Hidden lines of an example, in all three forms.
    let answer = inspect(kernel, "L|ab");
    for form in ["text/plain", "text/markdown", "text/html"] {
        let text = answer["data"][form].as_str().unwrap_or_default();
        assert!(text.contains("struct Lab") && !text.contains("\n# "), "{form}: {text}");
    }
    let position = json!({"code": "name", "cursor_pos": 99, "detail_level": 1});
    assert_eq!(kernel.ask("inspect_request", &position)["found"], true, "behind the end is at the end");
}

fn completes_what_is_there(kernel: &mut Kernel) {
    let mut matches = |code: &str| -> Vec<String> {
        let found = kernel.ask("complete_request", &json!({"code": code, "cursor_pos": code.chars().count()}));
        found["matches"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    for (code, expected) in [
        (":de", ":dep"),
        ("let é = \"🍎\"; name.is_emp", "is_empty"),
        ("std::collections::HashM", "HashMap"),
        ("lacuna::prel", "prelude"),
        ("struct P { width: u8 }\nlet p = P { width: 1 };\np.wid", "width"),
        ("tabl", "table"),
    ] {
        let found = matches(code);
        assert!(found.iter().any(|name| name.starts_with(expected)), "{code}: {found:?}");
    }
    for code in ["", "e", "l", "lacuna_", "evcxr"] {
        let found = matches(code);
        let is_ours = |name: &&String| name.starts_with("evcxr") || name.to_lowercase().starts_with("lacuna_cell_");
        assert_eq!(found.iter().find(is_ours), None, "{code}");
    }
}
