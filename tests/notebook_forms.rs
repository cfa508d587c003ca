//! Reports of values in every form, of texts and tags, and of notebooks as Jupyter and editors leave them. One session.
#![cfg(feature = "notebook")]

#[expect(dead_code, reason = "the tests of options use the rest")]
mod notebook_runs;

use notebook_runs::{code, lacuna, notebook_of, read, read_json, stderr, tagged};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A picture of one pixel, as a cell hands it over and as a page holds it.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/// A cell whose value has these forms, as a type of somebody's own hands them over.
fn forms(forms: &[(&str, &str)]) -> String {
    let prints: String = forms
        .iter()
        .map(|(mime, text)| format!("println!(\"EVCXR_BEGIN_CONTENT {mime}\\n{{}}\\nEVCXR_END_CONTENT\", {text:?});"))
        .collect();
    format!("struct Own;\nimpl Own {{ fn evcxr_display(&self) {{ {prints} }} }}\nOwn")
}

fn text(source: &str) -> Value {
    json!({"cell_type": "markdown", "metadata": {}, "source": source})
}

#[test]
fn nothing_that_a_cell_shows_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("reports");
    let mut pasted = text("Pasted: ![seen](attachment:my%20picture.png) and [to two of four](#two-of-four).");
    pasted["attachments"] = json!({"my picture.png": {"image/png": PIXEL}});
    let cells = vec![
        text(
            "# Forms\n\nEvery form of a value. And $x^2$ costs $5.\n\n$$\\frac{a}{b}$$\n\n## Two of four\n\n```rust\nnever closed",
        ),
        pasted,
        code(&forms(&[("text/html", "<b>bold</b><script>let x = \"1 < 2\";</script>\n<p>second</p>")]), json!({})),
        code(&forms(&[("text/html", "<i>x</i>"), ("text/plain", "said in plain")]), json!({})),
        code(&forms(&[("text/latex", "\\int_0^1 x\\,dx")]), json!({})),
        code(&forms(&[("image/jpeg", "/9j/4AAQ")]), json!({})),
        code(&forms(&[("image/png", PIXEL), ("text/html", "<img>")]), json!({})),
        code(
            &forms(&[("application/vnd.plotly.v1+json", "{\"data\": [1, 2]}"), ("text/plain", "a plotly chart")]),
            json!({}),
        ),
        code(&forms(&[("audio/wav", "UklGRg==")]), json!({})),
        code(
            "for i in 0..2 {\n    println!(\"table {i}\");\n    display(&df!(\"a\" => [i])?);\n    display(&Plot::line(\"x\", \"y\").series(\"s\", [(0.0, \
             1.0), (1.0, f64::from(i))]));\n}\nprintln!(\"between\");\ndf!(\"b\" => [1.5])?",
            json!({}),
        ),
        code("for i in 0..=100 { print!(\"\\rstep {i}%\"); }\nprintln!();", json!({})),
        code("let hidden_input = 1; hidden_input", json!({"tags": ["hide-input"]})),
        tagged("println!(\"hidden output\");", "hide-output"),
        tagged("println!(\"removed {}\", \"output\");", "remove-output"),
        tagged("println!(\"removed {}\", \"cell\");", "remove_cell"),
        tagged("let removed_input = 2; removed_input", "remove-input"),
        tagged("panic!(\"not run\");", "skip-execution"),
        tagged("std::time::SystemTime::now()", "no-check"),
    ];
    let path = notebook_of(directory.path(), "forms.ipynb", "rust", cells);
    let run = lacuna(&path, &out, &["--html"]);
    assert!(run.status.success(), "{}", stderr(&run));

    let markdown = read(out.join("forms.md"));
    insta::assert_snapshot!(without_time(&markdown));
    let report = read_json(&out.join("forms.json"));
    let cell = |number: usize| report["cells"].as_array().unwrap().iter().find(|cell| cell["cell"] == number).unwrap();
    assert_eq!(cell(3)["other"]["text/html"], "<b>bold</b><script>let x = \"1 < 2\";</script>\n<p>second</p>");
    assert_eq!(cell(8)["other"]["application/vnd.plotly.v1+json"], json!({"data": [1, 2]}));
    let kinds: Vec<String> = cell(10)["outputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|output| match (&output["stdout"], &output["files"][0]) {
            (Value::String(text), _) => text.clone(),
            (_, file) => file.as_str().unwrap().to_owned(),
        })
        .collect();
    let (plot, table) = ("forms_files/plot_", "forms");
    let expected = [
        "table 0\n".to_owned(),
        format!("{table}.csv"),
        format!("{plot}3.svg"),
        "table 1\n".to_owned(),
        format!("{table}_2.csv"),
        format!("{plot}4.svg"),
        "between\n".to_owned(),
        format!("{table}_3.csv"),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(cell(10)["data"]["columns"][0]["name"], "b", "the last is the cell's value");
    let files = cell(10)["files"].as_array().unwrap();
    for file in files.iter().chain(report["attachments"].as_array().unwrap()) {
        assert!(out.join(file.as_str().unwrap()).is_file(), "{file}");
    }
    assert_eq!(fs::read(out.join("forms_files/plot_1.jpg")).unwrap(), [0xff, 0xd8, 0xff, 0xe0, 0, 0x10]);
    assert_eq!(cell(15)["stdout"], "removed cell\n", "programs see what people do not");
    let times = &report["environment"]["cells"]["12"];
    assert!(times["compile_seconds"].as_f64().unwrap() > 0.0 && times["run_seconds"].as_f64().is_some(), "{times}");

    let page = read(out.join("forms.html"));
    for expected in [
        "<msup><mi>x</mi><mn>2</mn></msup>",
        "<mfrac>",
        "costs $5.",
        "id=\"two-of-four\"",
        "href=\"#two-of-four\"",
        "<iframe class=\"value\" sandbox=\"allow-scripts\"",
        "&lt;b>bold&lt;/b>",
        "data:image/jpeg;base64,/9j/4AAQ",
        "<audio controls",
        "<summary>Output</summary>",
        &format!("<img src=\"data:image/png;base64,{PIXEL}\" alt=\"seen\""),
    ] {
        assert!(page.contains(expected), "no {expected:?} in\n{page}");
    }
    for absent in ["https://", "http://www.w3.org/1999/xhtml", "removed cell", "attachment:"] {
        assert!(!page.contains(absent), "{absent}");
    }

    // Of the cell that tells the time nothing is compared; a change elsewhere is seen.
    let check = lacuna(&path, &out, &["--html", "--check"]);
    assert!(check.status.success(), "{}", stderr(&check));
}

fn without_time(markdown: &str) -> String {
    let time = |line: &str| match line.starts_with("SystemTime {") {
        true => "SystemTime { … }".to_owned(),
        false => line.to_owned(),
    };
    markdown.lines().map(time).collect::<Vec<_>>().join("\n")
}

/// A notebook of one cell, as `change` leaves it.
fn changed(directory: &Path, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let path = notebook_of(directory, name, "rust", vec![code("6 * 7", json!({}))]);
    let mut value = read_json(&path);
    change(&mut value);
    fs::write(&path, value.to_string()).unwrap();
    path
}

#[test]
fn what_jupyter_reads_is_a_notebook() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let out = directory.join("out");
    let odd = changed(directory, "odd.ipynb", |notebook| {
        let cells = notebook["cells"].as_array_mut().unwrap();
        cells[0]["metadata"] = json!({"scrolled": "auto", "collapsed": 1, "tags": "parameters", "x": {"y": [null]}});
        cells[0]["unknown"] = json!(1);
        cells.push(
            json!({"cell_type": "code", "id": "id-0", "metadata": {}, "source": ["let a = 1;\n", "a"], "outputs": []}),
        );
        cells.push(json!({"cell_type": "code", "id": "YWJj=", "metadata": {}, "source": "2", "outputs": [], "execution_count": "3"}));
        cells.push(json!({"cell_type": "code", "source": "3"}));
        notebook["metadata"]["orig_nbformat"] = json!(4);
    });
    let text = read(odd.clone());
    let mut utf16: Vec<u8> = vec![0xff, 0xfe];
    utf16.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
    let wide = directory.join("wide.ipynb");
    fs::write(&wide, &utf16).unwrap();
    let marked = directory.join("marked.ipynb");
    fs::write(&marked, format!("\u{feff}{text}")).unwrap();

    let run = lacuna(&odd, &out, &[]);
    let said = stderr(&run);
    assert!(run.status.success(), "{said}");
    for expected in [
        "the id `id-0` of cell 2 is that of another cell, too; the cell is run as `id-0-2`",
        "the id `YWJj=` of cell 3 is none in notebooks; the cell is run as `YWJj-`",
    ] {
        assert!(said.contains(expected), "no {expected:?} in {said}");
    }
    let executed = read_json(&out.join("odd.ipynb"));
    let ids: Vec<&str> =
        executed["cells"].as_array().unwrap().iter().map(|cell| cell["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["id-0", "id-0-2", "YWJj-", "cell-4"]);
    assert_eq!(executed["cells"][0]["metadata"]["scrolled"], "auto");
    for (cell, value) in ["42", "1", "2", "3"].into_iter().enumerate() {
        assert_eq!(executed["cells"][cell]["outputs"][0]["data"]["text/plain"], json!([value]), "cell {cell}");
    }
    for path in [&wide, &marked] {
        let run = lacuna(path, &out, &[]);
        assert!(run.status.success(), "{}", stderr(&run));
    }

    // Cleaning changes outputs and nothing else, in the encoding that the file has.
    let clean = |path: &Path| {
        Command::new(env!("CARGO_BIN_EXE_lacuna")).args(["notebook", "clean"]).arg(path).output().unwrap()
    };
    for (path, before) in [(&wide, utf16), (&marked, format!("\u{feff}{text}").into_bytes())] {
        let cleaned = clean(path);
        assert!(cleaned.status.success(), "{}", stderr(&cleaned));
        let after = fs::read(path).unwrap();
        assert_eq!(after[..2], before[..2], "{}", path.display());
        let again = clean(path);
        assert!(again.status.success() && fs::read(path).unwrap() == after, "{}", stderr(&again));
    }

    for (name, bytes, expected) in [
        ("half.ipynb", b"\xff\xfe{".as_slice(), "half.ipynb"),
        ("latin.ipynb", b"{\"cells\": [\"caf\xe9\"]}", "latin.ipynb"),
        ("empty.ipynb", b"", "empty.ipynb"),
        ("list.ipynb", b"[]", "list.ipynb"),
        ("old.ipynb", b"{\"nbformat\": 3, \"worksheets\": []}", "notebook format 3"),
    ] {
        let path = directory.join(name);
        fs::write(&path, bytes).unwrap();
        let run = lacuna(&path, &out, &[]);
        assert_eq!(run.status.code(), Some(2), "{name}: {}", stderr(&run));
        assert!(stderr(&run).contains(expected), "{name}: {}", stderr(&run));
        let cleaned = clean(&path);
        assert!(!cleaned.status.success() && fs::read(&path).unwrap() == bytes, "{name} is as it was");
    }
}
