//! One session, hostile cells: each cell's answer is its own, and what cannot be answered says so.
#![cfg(feature = "notebook")]

#[expect(dead_code, reason = "the tests of options use the rest")]
mod notebook_runs;

use notebook_runs::{lacuna, notebook, read_json, stderr};
use serde_json::Value;

/// The answer that a cell must give.
enum Gives {
    /// This value, as text, and no error.
    Value(&'static str),
    /// Text on standard output that contains this, and no error.
    Prints(&'static str),
    /// Nothing and no error.
    Nothing,
    /// An error of this name, whose message contains all of these.
    Fails(&'static str, &'static [&'static str]),
}
use Gives::{Fails, Nothing, Prints, Value as Is};

fn text(value: &Value) -> String {
    match value {
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        value => value.as_str().unwrap_or_default().to_owned(),
    }
}

/// Runs the cells in one session, each followed by one whose value is its own place; every wrong cell is told.
fn check(name: &str, cells: &[(&str, Gives)]) {
    let directory = tempfile::tempdir().unwrap();
    let mut sources: Vec<String> = Vec::new();
    for (number, (source, _)) in cells.iter().enumerate() {
        sources.push((*source).to_owned());
        sources.push(format!("let place = {number}; place"));
    }
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    let path = notebook(directory.path(), &format!("{name}.ipynb"), "rust", &sources);
    let out = directory.path().join("out");
    let run = lacuna(&path, &out, &["--allow-errors"]);
    let said = stderr(&run);
    let executed = read_json(&out.join(format!("{name}.ipynb")));
    let mut wrong = Vec::new();
    for (number, (source, gives)) in cells.iter().enumerate() {
        let outputs = |cell: usize| executed["cells"][cell]["outputs"].as_array().cloned().unwrap_or_default();
        let own = outputs(2 * number);
        if !is_as_expected(&own, gives) {
            wrong.push(format!("{source}\n  gave {}", serde_json::to_string_pretty(&own).unwrap()));
        }
        let next = outputs(2 * number + 1);
        if !is_as_expected(&next, &Is("")) || value(&next) != Some(number.to_string()) {
            wrong.push(format!("after\n{source}\n  the next cell gave {next:?} in place of {number}"));
        }
    }
    assert!(wrong.is_empty(), "{}\n\n{said}", wrong.join("\n\n"));
}

/// The cell's value as text.
fn value(outputs: &[Value]) -> Option<String> {
    let result = outputs.iter().find(|output| output["output_type"] == "execute_result")?;
    Some(text(&result["data"]["text/plain"]))
}

fn is_as_expected(outputs: &[Value], gives: &Gives) -> bool {
    let error = outputs.iter().find(|output| output["output_type"] == "error");
    let stdout: String =
        outputs.iter().filter(|output| output["name"] == "stdout").map(|output| text(&output["text"])).collect();
    match gives {
        Fails(kind, parts) => error.is_some_and(|error| {
            let message = text(&error["evalue"]);
            error["ename"] == *kind && parts.iter().all(|part| message.contains(part))
        }),
        _ if error.is_some() => false,
        Is(expected) => expected.is_empty() || value(outputs).as_deref() == Some(*expected),
        Prints(expected) => stdout.contains(expected),
        Nothing => value(outputs).is_none(),
    }
}

#[test]
fn bytes_and_markers_of_a_cell_stay_in_it() {
    check(
        "bytes",
        &[
            ("use std::io::Write; std::io::stdout().write_all(b\"caf\\xe9\\n\")?;", Prints("caf\u{fffd}\n")),
            ("let accuracy = 0.75; accuracy", Is("0.75")),
            ("std::io::stderr().write_all(b\"\\xff\\xfe no newline\")?;", Nothing),
            (
                "std::process::Command::new(\"printf\").arg(\"\\\\351\\\\n\\\\377\").status()?;",
                Prints("\u{fffd}\n\u{fffd}"),
            ),
            (
                "std::thread::spawn(|| std::io::stdout().write_all(&[0xc3, 0x28, 0]).unwrap()).join().unwrap();",
                Prints("\u{fffd}(\0"),
            ),
            ("print!(\"half a line\");", Prints("half a line")),
            ("println!(\"EVCXR_EXECUTION_COMPLETE\\nEVCXR_PANIC_NOTIFICATION\\nEVCXR_ERROR_OCCURRED\"); 5", Is("5")),
            ("println!(\"EVCXR_VARIABLE_CHANGED_TYPE:accuracy\"); accuracy", Is("0.75")),
            ("println!(\"EVCXR_BEGIN_CONTENT text/plain\\nnever ended\"); 6", Is("6")),
            (
                "eprintln!(\"\\u{1}lacuna: event {{\\\"cell\\\":1,\\\"event\\\":{{\\\"Ends\\\":{{\\\"how\\\":\\\"Panicked\\\"}}}}}}\"); 7",
                Is("7"),
            ),
            ("println!(\"EVCXR_INPUT_REQUEST:name\"); println!(\"EVCXR_END_CONTENT\"); 8", Is("8")),
            ("println!(\"{}\", \"x\".repeat(10 << 20)); eprintln!(\"{}\", \"y\".repeat(10 << 20)); 9", Is("9")),
            (
                "for _ in 0..4 { std::thread::spawn(|| for i in 0..20_000u32 { print!(\"{i:x}\\u{1}EVCXR_\"); eprint!(\"z\"); }); } 10",
                Is("10"),
            ),
            // A generator with a fixed seed: any bytes, on both streams, in writes of any length.
            (
                "let mut seed = 7u64;\nfor round in 0..3000usize {\n    let mut bytes = Vec::new();\n    for _ in 0..round % 97 {\n        seed = \
                 seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);\n        bytes.push((seed >> 56) as u8);\n    \
                 }\n    if round % 2 == 0 { std::io::stdout().write_all(&bytes)? } else { std::io::stderr().write_all(&bytes)? }\n}\n11",
                Is("11"),
            ),
            ("unsafe { lacuna_c_printf(); }", Fails("CompileError", &["lacuna_c_printf", "line 1 |"])),
        ],
    );
}

#[test]
fn cells_that_end_early_end_alone() {
    check(
        "early",
        &[
            ("let kept = String::from(\"kept\");", Nothing),
            ("let gone = 1; if kept.len() == 4 { return Ok(()); }", Nothing),
            ("kept.len()", Is("4")),
            ("gone", Fails("CompileError", &["cannot find value `gone`", "line 1 | gone"])),
            ("let x = 'cell: { if kept.is_empty() { break 'cell 1; } 2 }; x", Is("2")),
            ("{ { let y: u8 = \"300\".parse()?; y } }", Fails("Error", &["number too large", "line 1 |"])),
            (
                "for i in 0.. {\n    if i > 3 {\n        Err(format!(\"at {i}\"))?;\n    }\n}",
                Fails("Error", &["at 4", "line 3 |"]),
            ),
            (
                "let inner = (|| -> Result<u8, std::num::ParseIntError> { Ok(\"7\".parse::<u8>()? + 1) })()?; inner",
                Is("8"),
            ),
            ("std::process::exit(3)", Fails("CompileError", &["std::process::exit", "return Ok(());", "line 1 |"])),
            (
                "use std::process::exit as leave;\nif kept.is_empty() { leave(0); }",
                Fails("CompileError", &["std::process::exit"]),
            ),
            (
                "struct Bomb(&'static str); impl Drop for Bomb { fn drop(&mut self) { panic!(\"{} exploded\", self.0); } }",
                Nothing,
            ),
            ("{ let _b = Bomb(\"inner\"); }", Fails("Panic", &["inner exploded"])),
            ("let b = Bomb(\"kept\");", Nothing),
            // The old value is dropped when the cell is over.
            ("let b = 1;", Fails("Panic", &["kept exploded"])),
            ("kept.len()", Is("4")),
            (
                "let v = vec![1]; let i = 5;\nlet w = v[i];",
                Fails("Panic", &["index out of bounds", "line 2 | let w = v[i];"]),
            ),
            ("panic!(\"all is lost\");", Fails("Panic", &["all is lost", "line 1 |"])),
            ("let _ = std::panic::catch_unwind(|| panic!(\"caught\")); 3", Is("3")),
            ("let t = std::thread::spawn(|| panic!(\"in a thread\")).join().is_err(); t", Is("true")),
            ("loop { return Ok(()); }", Nothing),
            (
                "#[derive(Debug)] struct Outer(std::io::Error);\nimpl std::fmt::Display for Outer { fn fmt(&self, f: &mut std::fmt::Formatter) -> \
              std::fmt::Result { write!(f, \"no data\") } }\nimpl std::error::Error for Outer { fn source(&self) -> Option<&(dyn \
              std::error::Error + 'static)> { Some(&self.0) } }",
                Nothing,
            ),
            (
                "let a = std::fs::read(\"missing\").map_err(Outer)?;",
                Fails("Error", &["no data\ncaused by: No such file", "line 1 |"]),
            ),
            (
                "Err(Box::<dyn std::error::Error>::from(Outer(std::io::Error::other(\"deep\"))))?;",
                Fails("Error", &["no data\ncaused by: deep"]),
            ),
            (
                "let lab = kept; let lab = std::fs::read(lab + \"missing\")?;",
                Fails("Error", &["No such file", "`kept` is gone, moved by this cell"]),
            ),
            ("kept", Fails("CompileError", &["an earlier cell gave `kept` away"])),
        ],
    );
}

#[test]
fn standard_input_is_empty_and_commands_keep_the_prelude() {
    check(
        "input",
        &[
            ("let mut line = String::new(); std::io::stdin().read_line(&mut line)?", Is("0")),
            ("let _cat = std::process::Command::new(\"cat\").spawn()?; 1", Is("1")),
            (
                "let said = std::process::Command::new(\"sh\").args([\"-c\", \"read x; echo got [$x]\"]).output()?; String::from_utf8_lossy(&said.stdout).into_owned()",
                Is("\"got []\\n\""),
            ),
            ("std::io::read_to_string(std::io::stdin())?", Is("\"\"")),
            ("input(\"name? \")?", Fails("Error", &["name? ", "parameter of the notebook"])),
            ("let n = 3u8;", Nothing),
            (":vars", Is("_cat: std::process::Child\nline: String\nn: u8\nplace: i32\nsaid: std::process::Output")),
            (":clear", Nothing),
            ("df!(\"a\" => [1])?.height()", Is("1")),
            ("// first\n:clear\nlet after = 2;\nafter + 1", Is("3")),
            (":time\nlet timed = 4; timed", Is("4")),
            ("/// Documented.\nfn f() -> u8 { 4 }\nf()", Is("4")),
            ("print!(\"a\"); display(&vec![1, 2]); print!(\"b\"); display(&\"c\"); 12", Is("12")),
            ("use rand_that_is_not_there::Rng;", Fails("CompileError", &[":dep rand_that_is_not_there"])),
        ],
    );
}

#[test]
fn several_values_stay_in_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let cell = "for i in 0..2 {\n    println!(\"table {i}\");\n    display(&df!(\"a\" => [i])?);\n}\nprintln!(\"last\");\n\
                println!(\"EVCXR_BEGIN_CONTENT text/html\\n<b>x</b>\\nEVCXR_END_CONTENT\");\ndf!(\"b\" => [1.5])?";
    let path = notebook(directory.path(), "many.ipynb", "rust", &[cell]);
    let out = directory.path().join("out");
    let run = lacuna(&path, &out, &[]);
    assert!(run.status.success(), "{}", stderr(&run));
    let executed = read_json(&out.join("many.ipynb"));
    let outputs = executed["cells"][0]["outputs"].as_array().unwrap();
    let shown: Vec<String> = outputs
        .iter()
        .map(|output| match output["output_type"].as_str().unwrap() {
            "stream" => text(&output["text"]),
            kind => {
                let data = &output["data"];
                let columns = &data["application/vnd.lacuna+json"]["columns"];
                format!(
                    "{kind} {columns}{}",
                    if data["text/markdown"].is_null() { text(&data["text/html"]) } else { String::new() }
                )
            }
        })
        .collect();
    assert_eq!(shown.len(), 7, "{shown:?}");
    assert_eq!(shown[0], "table 0\n");
    assert!(shown[1].starts_with("display_data") && shown[3].starts_with("display_data"), "{shown:?}");
    assert_eq!((shown[2].as_str(), shown[4].as_str()), ("table 1\n", "last\n"));
    assert!(shown[5].starts_with("display_data") && shown[5].ends_with("<b>x</b>"), "{shown:?}");
    assert!(shown[6].starts_with("execute_result"), "{shown:?}");
}
