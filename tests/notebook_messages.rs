//! The compiler's messages about a cell: its own message, in the cell's own lines. One session for all kinds.
#![cfg(feature = "notebook")]

#[expect(dead_code, reason = "the tests of options use the rest")]
mod notebook_runs;

use notebook_runs::{lacuna, notebook, read_json, stderr};
use std::fmt::Write;
use std::process::Command;

/// A kind of mistake, a cell that makes it, and what its message has in any version of the compiler.
const KINDS: [(&str, &str, &[&str]); 34] = [
    (
        "missing import of a struct",
        "let map = BTreeMap::<u8, u8>::new();",
        &["E0433", "line 1 | let map", "use std::collections::BTreeMap"],
    ),
    (
        "missing import, last expression",
        "let a = 1;\nInstant::now()",
        &["E0433", "line 2 | Instant::now()", "use std::time::Instant"],
    ),
    (
        "missing import of a trait",
        "let mut text = String::new();\ntext.write_str(\"x\")?;",
        &["E0599", "line 2 |", "use std::fmt::Write"],
    ),
    ("missing import of a macro", "let p = addr_of!(shared);", &["cannot find macro `addr_of`", "line 1 |"]),
    ("missing import of a constant", "let area = PI * 4.0;", &["E0425", "line 1 |", "std::f64::consts::PI"]),
    ("unknown name", "let y = undefined_name + 1;", &["E0425", "undefined_name", "line 1 |"]),
    ("a name misspelt", "shaerd.len()", &["E0425", "`shaerd`", "similar name", "shared"]),
    (
        "too few arguments",
        "fn add(a: u8, b: u8) -> u8 { a + b }\nlet sum = add(1);",
        &["E0061", "line 2 |", "function defined here"],
    ),
    ("too many arguments of a method", "let n = shared.len(3);", &["E0061", "line 1 |"]),
    (
        "wrong type for a function",
        "fn half(x: f64) -> f64 { x / 2.0 }\nlet h = half(\"one\");",
        &["E0308", "line 2 |", "expected `f64`, found `&str`"],
    ),
    ("wrong type for a method", "let c = shared.contains(5);", &["line 1 |"]),
    ("wrong type for a method of the library", "let f = df!(\"a\" => [1])?.head(\"two\");", &["E0308", "line 1 |"]),
    (
        "a trait bound",
        "#[derive(Debug)]\nstruct Plain;\nlet sorted = { let mut v = vec![Plain]; v.sort(); v };",
        &["E0277", "Ord", "line 3 |"],
    ),
    ("no such method", "shared.length()", &["E0599", "`length`", "line 1 |"]),
    ("no such field", "struct Point { x: u8 }\nlet p = Point { x: 1 };\nlet y = p.y;", &["E0609", "line 3 |"]),
    ("no Display", "#[derive(Debug)]\nstruct Bare;\nprintln!(\"{}\", Bare);", &["E0277", "Bare", "line 3 |"]),
    (
        "a value that cannot be shown",
        "struct Silent;\nSilent",
        &["`Silent` doesn't implement `Debug`", "line 2 | Silent"],
    ),
    (
        "borrowed twice",
        "let mut v = vec![1];\nlet first = &mut v;\nlet second = &mut v;\nfirst.push(2);",
        &["E0499", "line 3 |", "line 2 |"],
    ),
    ("changed while borrowed", "let mut v = vec![1];\nfor x in &v {\n    v.push(*x);\n}", &["E0502", "line 3 |"]),
    ("used after a move", "let a = vec![1];\nlet b = a;\nlet n = a.len();", &["E0382", "line 3 |"]),
    (
        "moved out of a borrow",
        "struct Holder { text: String }\nlet h = Holder { text: String::new() };\nlet r = &h;\nlet t = r.text;",
        &["E0507", "line 4 |"],
    ),
    (
        "does not live long enough",
        "let r;\n{\n    let x = 5;\n    r = &x;\n}\nprintln!(\"{r}\");",
        &["E0597", "line 4 |"],
    ),
    (
        "missing lifetime",
        "fn longer(a: &str, b: &str) -> &str { if a.len() > b.len() { a } else { b } }",
        &["E0106", "line 1 |"],
    ),
    (
        "a closure that may outlive",
        "fn counter() -> impl Fn() -> usize {\n    let n = 3;\n    || n + 1\n}",
        &["E0373", "line 3 |"],
    ),
    (
        "a closure sent to a thread",
        "let local = String::from(\"x\");\nlet r = &local;\nlet t = std::thread::spawn(move || r.len());",
        &["E0597", "line 2 |"],
    ),
    ("a borrow in a variable", "let word: &str = &shared[..2];", &["word", "line 1 |"]),
    ("types to be told", "let list = Vec::new();", &["type", "list"]),
    ("types to be told, of a method", "let n = \"5\".parse()?;", &["type", "line 1 |"]),
    ("a format string", "println!(\"{} {}\", 1);", &["2 positional arguments", "line 1 |"]),
    (
        "a macro of the cell",
        "macro_rules! twice { ($x:expr) => { $x * 2 } }\nlet four = twice!(2, 2);",
        &["no rules expected", "line 2 |"],
    ),
    (
        "an error in what a macro makes",
        "macro_rules! negated { ($x:expr) => { -$x } }\nlet no = negated!(\"a\");",
        &["E0600", "line"],
    ),
    ("a bracket that stays open", "let v = vec![1, 2;\nlet w = 3;", &["line 1 |"]),
    (
        "a match that forgets",
        "let o = Some(1);\nmatch o {\n    Some(n) => println!(\"{n}\"),\n}",
        &["E0004", "line 2 |", "`None`"],
    ),
    (
        "an error and warnings",
        "fn unused() -> u8 {\n    let idle = 1;\n    2\n}\nlet x: u8 = \"300\";",
        &["E0308", "line 5 |", "warning[unused_variables]: unused variable: `idle`"],
    ),
];

#[test]
fn errors_keep_their_message_and_place() {
    let directory = tempfile::tempdir().unwrap();
    // Later cells must not be told of what these would be warned of.
    let before = [
        "let shared = String::from(\"shared\");\nlet word_list = \"a b\";",
        "macro_rules! never_used { () => { 1 } }\nfn never_called() {}",
    ];
    let sources: Vec<&str> = before.into_iter().chain(KINDS.iter().map(|(_, source, _)| *source)).collect();
    let path = notebook(directory.path(), "messages.ipynb", "rust", &sources);
    let out = directory.path().join("out");
    let run = lacuna(&path, &out, &["--allow-errors"]);
    let executed = read_json(&out.join("messages.ipynb"));
    // Which types have a trait changes with the library, and is not what is looked at.
    let is_listed = |line: &&str| line.starts_with("      ") && !line.contains('|') && !line.starts_with("          ");
    let mut shown = String::new();
    let mut wrong = Vec::new();
    for (cell, (kind, source, expected)) in (before.len()..).zip(KINDS) {
        let outputs = executed["cells"][cell]["outputs"].as_array().unwrap();
        let error = outputs.iter().find(|output| output["output_type"] == "error");
        let message = error.and_then(|error| error["evalue"].as_str()).unwrap_or_default();
        let missing: Vec<&&str> = expected.iter().filter(|part| !message.contains(**part)).collect();
        let ours = ["lacuna_cell", "evcxr_", "never_used", "never_called", "/src/lib.rs", "src/lib"];
        let strange: Vec<&&str> = ours.iter().filter(|part| message.contains(**part)).collect();
        let first = message.lines().next().unwrap_or_default();
        if !missing.is_empty() || !strange.is_empty() || !first.starts_with("error") {
            wrong.push(format!("{kind}: without {missing:?}, with {strange:?}\n{source}\n---\n{message}"));
        }
        let message: Vec<&str> = message.lines().filter(|line| !is_listed(line) && !line.contains(" others")).collect();
        let _ = write!(shown, "== {kind}\n{source}\n--\n{}\n\n", message.join("\n"));
    }
    assert!(wrong.is_empty(), "{}\n\n{}", wrong.join("\n\n"), stderr(&run));
    // Its wording is the compiler's, and so another one in another version.
    let version = Command::new("rustc").arg("--version").output().unwrap().stdout;
    if String::from_utf8_lossy(&version).starts_with("rustc 1.95.") {
        insta::assert_snapshot!(shown.trim_end());
    }
}
