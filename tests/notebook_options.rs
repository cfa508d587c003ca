//! `lacuna notebook`: parameters, tags, limits, and what it does with bad input, with the real evcxr.
#![cfg(feature = "notebook")]

mod notebook_runs;

use notebook_runs::{code, lacuna, notebook, notebook_of, read, read_json, stderr, tagged};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// One session for all that a run from top to bottom shows, and one more to see that it gives the same again.
#[test]
fn parameters_tags_and_long_output() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("reports");
    let text = |source: &str| json!({"cell_type": "markdown", "metadata": {}, "source": source});
    let cells = vec![
        text("# Options\n\nWhat a *run* can do. And more.\n\n![a](picture.png) [b](other.ipynb#top)"),
        tagged("let name = \"a\";\nlet count: usize = 2;\nlet levels = [0.1, 0.5];", "parameters"),
        code("println!(\"{name} {count} {levels:?}\");", json!({})),
        tagged("panic!(\"skipped\");", "skip"),
        tagged("panic!(\"exercise {}\", count);", "raises-exception"),
        tagged("let wrong: String = count;", "raises-exception"),
        tagged("Err::<(), _>(std::io::Error::other(\"no such luck\"))?;", "raises-exception"),
        code("println!(\"still {count}\");", json!({"jupyter": {"source_hidden": true}})),
        code("let line = \"0123456789\".repeat(10);\nfor _ in 0..500_000 { println!(\"{line}\"); }", json!({})),
        code("println!(\"\\u{1b}[31mÄpfel 🍎 漢字\\u{1b}[0m\"); print!(\"no newline\");", json!({})),
        code("\"x\".repeat(1_000_000)", json!({})),
    ];
    let path = notebook_of(directory.path(), "options.ipynb", "rust", cells);
    fs::write(directory.path().join("picture.png"), b"foo").unwrap();
    let parameters = directory.path().join("parameters.json");
    fs::write(&parameters, r#"{"count": 5, "name": "loses"}"#).unwrap();
    let file = parameters.to_str().unwrap();
    let options = ["-p", "name=b \"c\"", "-p", "levels=[1, 2.5, 3]", "--params", file, "--html", "--timeout", "300"];
    let started = Instant::now();
    let run = lacuna(&path, &out, &options);
    assert!(run.status.success(), "{}", stderr(&run));
    assert!(started.elapsed() < Duration::from_secs(120), "{:?}", started.elapsed());
    assert!(stderr(&run).contains("cell 4 (Options):"), "cells have names: {}", stderr(&run));

    let executed = read_json(&out.join("options.ipynb"));
    assert_eq!(executed["cells"][2]["metadata"]["tags"], json!(["injected-parameters"]));
    let markdown = read(out.join("options.md"));
    for expected in [
        "![a](../picture.png) [b](../other.ipynb#top)\n",
        "let name = \"b \\\"c\\\"\";\nlet levels = [1.0, 2.5, 3.0];\nlet count: usize = 5;\n```",
        "```text\nb \"c\" 5 [1.0, 2.5, 3.0]\n```",
        "panic!(\"skipped\");\n```\n\n*This cell was not run: it is tagged `skip`.*",
        "```text\nPanic: exercise 5\n  line ",
        "```text\nCompileError: error[E0308]: mismatched types",
        "```text\nError: no such luck\n  line ",
        "<details>\n<summary>Code</summary>\n\n```rust\nprintln!(\"still {count}\");\n```\n\n</details>\n\n```text\nstill 5\n```",
        "[lacuna: 50,36",
        "```text\nÄpfel 🍎 漢字\nno newline\n```",
    ] {
        assert!(markdown.contains(expected), "no {expected:?} in\n{}", &markdown[..markdown.len().min(4000)]);
    }
    // Half a megabyte at the most, of sixty.
    for name in ["options.md", "options.json", "options.ipynb", "options.html"] {
        let bytes = fs::metadata(out.join(name)).unwrap().len();
        assert!(bytes < 500_000, "{name} has {bytes} bytes");
    }
    let report = read_json(&out.join("options.json"));
    assert_eq!(report["parameters"], json!({"name": "b \"c\"", "levels": [1, 2.5, 3], "count": 5}));
    assert_eq!(report["cells"][3], json!({"cell": 5, "skipped": true}));
    assert_eq!(
        report["cells"][4],
        json!({"cell": 6, "error": {"kind": "Panic", "message": "exercise 5\n  line 1 | panic!(\"exercise {}\", count);"}})
    );
    let html = read(out.join("options.html"));
    assert!(html.contains("<h1 id=\"options\">") && html.contains("<img src=\"data:image/png;base64,Zm9v\""));
    let gallery = read(out.join("README.md"));
    let expected = "## [Options](options.md)\n\nWhat a *run* can do.\n\n<a href=\"options.md\"><img src=\"../picture.png\" width=\"480\" \
         alt=\"a\"></a>\n\n[report](options.md) · [web page](options.html)";
    assert!(gallery.contains(expected), "{gallery}");

    let check = lacuna(&path, &out, &[&options[..], &["--check"]].concat());
    assert!(check.status.success(), "{}", stderr(&check));
}

#[test]
fn cells_before_the_one_to_begin_with_keep_their_outputs() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("reports");
    let cells = |last| ["let id = std::process::id();\nprintln!(\"{id}\");", "id + 1", last];
    let path = notebook(directory.path(), "resume.ipynb", "rust", &cells("panic!(\"{id}\");"));
    assert_eq!(lacuna(&path, &out, &["--from-cell", "2"]).status.code(), Some(2), "nothing to go on with");
    assert_eq!(lacuna(&path, &out, &[]).status.code(), Some(1));
    let before = read_json(&out.join("resume.ipynb"));

    notebook(directory.path(), "resume.ipynb", "rust", &cells("println!(\"now {id}\");"));
    for (from, expected) in [("4", "cells 1 to 3"), ("0", "cells 1 to 3")] {
        let run = lacuna(&path, &out, &["--from-cell", from]);
        assert_eq!(run.status.code(), Some(2), "{}", stderr(&run));
        assert!(stderr(&run).contains(expected), "{}", stderr(&run));
    }
    let run = lacuna(&path, &out, &["--from-cell", "3"]);
    assert!(run.status.success(), "{}", stderr(&run));
    assert_eq!(stderr(&run).matches("output of the last run").count(), 2, "{}", stderr(&run));
    let after = read_json(&out.join("resume.ipynb"));
    for cell in [0, 1] {
        assert_eq!(after["cells"][cell], before["cells"][cell]);
    }
    let (old, new) = (&before["cells"][0]["outputs"][0]["text"][0], &after["cells"][2]["outputs"][0]["text"][0]);
    let new = new.as_str().unwrap().strip_prefix("now ").unwrap();
    assert_ne!(old, new, "another process ran the last cell, with a variable of its own");
    assert!(read(out.join("resume.md")).contains(&format!("now {new}")));

    notebook(directory.path(), "resume.ipynb", "rust", &["let id = 1;", "id + 1", "id"]);
    let run = lacuna(&path, &out, &["--from-cell", "3"]);
    assert_eq!(run.status.code(), Some(2), "{}", stderr(&run));
    assert!(stderr(&run).contains("cell 1 has changed since the last run"), "{}", stderr(&run));
}

/// Every file below a directory, by name.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![directory.to_path_buf()];
    while let Some(next) = todo.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(directory).unwrap().display().to_string();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[test]
fn run_from_a_cell_on_gives_the_report_of_a_full_one() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("reports");
    let text = |source: &str| json!({"cell_type": "markdown", "metadata": {}, "source": source});
    let plot = r###"let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\"/>";
lacuna::display::emit(&[("text/plain", "a plot"), ("image/svg+xml", svg), ("application/json",
    r#"{"z": 1, "a": {"environment": {"pid": 1}, "b": 2}}"#)]);"###;
    let cells = vec![
        text("# Resumed\n\nAll the same."),
        tagged("let rows: usize = 2;", "parameters"),
        code("println!(\"{rows} \\u{1b}[31mrows\\u{1b}[0m\");\ndf!(\"z\" => [1, 2], \"a\" => [0.5, 0.25])?", json!({})),
        code(plot, json!({})),
        tagged("panic!(\"no {rows}\")", "raises-exception"),
        code("rows", json!({})),
        code("println!(\"end\"); rows + 1", json!({})),
    ];
    let path = notebook_of(directory.path(), "resumed.ipynb", "rust", cells);
    let options = ["--html", "-p", "rows=3"];
    let run = lacuna(&path, &out, &options);
    assert!(run.status.success(), "{}", stderr(&run));
    let full = files(&out);
    let expected = [
        "README.md",
        "resumed.csv",
        "resumed.html",
        "resumed.ipynb",
        "resumed.json",
        "resumed.md",
        "resumed_files/plot_1.svg",
    ];
    assert_eq!(full.keys().collect::<Vec<_>>(), expected);
    // The last cell that gave something of its own to the report.
    let run = lacuna(&path, &out, &[&options[..], &["--from-cell", "8"]].concat());
    assert!(run.status.success(), "{}", stderr(&run));
    assert_eq!(stderr(&run).matches("output of the last run").count(), 6, "{}", stderr(&run));
    let resumed = files(&out);
    let report = |files: &BTreeMap<String, Vec<u8>>| -> Value {
        let mut report: Value = serde_json::from_slice(&files["resumed.json"]).unwrap();
        report.as_object_mut().unwrap().remove("environment").unwrap();
        report
    };
    assert_eq!(report(&full), report(&resumed), "times apart");
    assert_eq!(full.keys().collect::<Vec<_>>(), resumed.keys().collect::<Vec<_>>());
    for (name, bytes) in full.iter().filter(|(name, _)| *name != "resumed.json") {
        assert!(resumed[name] == *bytes, "{name}:\n{}", String::from_utf8_lossy(&resumed[name]));
    }
}

#[test]
fn files_of_others_stay() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    fs::create_dir(&out).unwrap();
    let path = notebook(directory.path(), "n.ipynb", "rust", &["df!(\"a\" => [1])?"]);
    let source = fs::read(&path).unwrap();
    // Before anything runs.
    for (name, options) in [("n.md", &[][..]), ("n.json", &[]), ("n.ipynb", &["--jobs", "2"]), ("n.html", &["--html"])]
    {
        fs::write(out.join(name), "{}").unwrap();
        let run = lacuna(&path, &out, options);
        assert_eq!(run.status.code(), Some(2), "{}", stderr(&run));
        let expected = format!("{name} is there, and no run of n.ipynb wrote it; move it away");
        assert!(stderr(&run).contains(&expected) && stderr(&run).contains("--out"), "{}", stderr(&run));
        assert_eq!(files(&out), BTreeMap::from([(name.to_owned(), b"{}".to_vec())]));
        fs::remove_file(out.join(name)).unwrap();
    }
    // The notebook's own directory.
    for own in [directory.path(), &out.join("..")] {
        let run = lacuna(&path, own, &[]);
        assert_eq!(run.status.code(), Some(2), "{}", stderr(&run));
        assert!(stderr(&run).contains("the executed notebook would take its place"), "{}", stderr(&run));
    }
    assert_eq!(files(directory.path()), BTreeMap::from([("n.ipynb".to_owned(), source)]));

    // Which tables a notebook has is known at its end; the executed notebook is there by then.
    fs::write(out.join("n.csv"), "mine\n").unwrap();
    let run = lacuna(&path, &out, &[]);
    assert_eq!(run.status.code(), Some(6), "{}", stderr(&run));
    assert!(stderr(&run).contains("n.csv is there, and no run of n.ipynb wrote it"), "{}", stderr(&run));
    assert_eq!(files(&out).keys().collect::<Vec<_>>(), ["n.csv", "n.ipynb"]);
    assert_eq!(read(out.join("n.csv")), "mine\n");
    fs::rename(out.join("n.csv"), out.join("n_2.csv")).unwrap();
    let run = lacuna(&path, &out, &[]);
    assert!(run.status.success(), "{}", stderr(&run));
    assert_eq!(files(&out).keys().collect::<Vec<_>>(), ["README.md", "n.csv", "n.ipynb", "n.json", "n.md", "n_2.csv"]);
    assert_eq!(read(out.join("n_2.csv")), "mine\n");
    // What an earlier run left goes, and nothing else.
    notebook(directory.path(), "n.ipynb", "rust", &["1"]);
    let run = lacuna(&path, &out, &[]);
    assert!(run.status.success(), "{}", stderr(&run));
    assert_eq!(files(&out).keys().collect::<Vec<_>>(), ["README.md", "n.ipynb", "n.json", "n.md", "n_2.csv"]);
}

#[test]
fn cleaning_keeps_links_and_modes() {
    let directory = tempfile::tempdir().unwrap();
    let executed = json!([{"output_type": "stream", "name": "stdout", "text": "private"}]);
    let mut cell = code("1", json!({}));
    cell["outputs"] = executed;
    let path = notebook_of(directory.path(), "private.ipynb", "rust", vec![cell]);
    let mut value = read_json(&path);
    value["metadata"]["lacuna"] = json!({"executed": true});
    fs::write(&path, value.to_string()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let link = directory.path().join("link.ipynb");
    std::os::unix::fs::symlink("private.ipynb", &link).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    let cleaned = command.args(["notebook", "clean"]).arg(&link).output().unwrap();
    assert!(cleaned.status.success(), "{}", stderr(&cleaned));
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("private.ipynb"));
    assert!(path.symlink_metadata().unwrap().is_file());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let after = read_json(&path);
    assert_eq!(after["cells"][0]["outputs"], json!([]));
    assert_eq!(after["metadata"], json!({"language_info": {"name": "rust"}}), "it is no executed notebook any more");
}

/// Starts a process that holds on to the session's pipes, and then `end`s.
fn with_grandchild(pid_file: &Path, end: &str) -> String {
    let spawn = "let child = std::process::Command::new(\"sleep\").arg(\"300\").spawn()?;";
    format!("{spawn}\nstd::fs::write({pid_file:?}, child.id().to_string())?;\n{end}")
}

fn is_gone(pid_file: &Path) -> bool {
    let pid = read(pid_file.to_owned());
    // A zombie, which nobody may have waited for yet, is gone too.
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')),
        Err(_) => true,
    }
}

#[test]
fn endless_cell_is_ended_with_what_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("reports");
    let pid = directory.path().join("pid");
    let cell = with_grandchild(&pid, "loop { std::hint::spin_loop(); }");
    let path = notebook(directory.path(), "loops.ipynb", "rust", &[&cell, "1"]);
    let started = Instant::now();
    // Long enough to compile it on a busy machine.
    let run = lacuna(&path, &out, &["--timeout", "25"]);
    assert_eq!(run.status.code(), Some(5), "{}", stderr(&run));
    assert!(started.elapsed() < Duration::from_secs(100), "{:?}", started.elapsed());
    assert!(stderr(&run).contains("took too long"), "{}", stderr(&run));
    assert!(stderr(&run).contains("ended after 25 s, the --timeout of a cell"), "{}", stderr(&run));
    assert!(is_gone(&pid), "what the cell started lives on");
    let executed = read_json(&out.join("loops.ipynb"));
    assert_eq!(executed["cells"][0]["outputs"][0]["ename"], "Timeout");
    assert_eq!(executed["cells"][1]["execution_count"], Value::Null);
}

#[test]
fn endless_compilation_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("reports");
    let long = "#[allow(long_running_const_eval)]\nconst LONG: u64 = { let mut i = 0; while i < 300_000_000 { i += 1 } i };\nLONG";
    let path = notebook(directory.path(), "compiles.ipynb", "rust", &[long, "2"]);
    let started = Instant::now();
    let run = lacuna(&path, &out, &["--timeout", "8"]);
    assert_eq!(run.status.code(), Some(5), "{}", stderr(&run));
    assert!(started.elapsed() < Duration::from_secs(100), "{:?}", started.elapsed());
    let expected = "ended after 8 s, the --timeout of a cell, while it was compiled";
    assert!(stderr(&run).contains(expected), "{}", stderr(&run));
    let executed = read_json(&out.join("compiles.ipynb"));
    assert_eq!(executed["cells"][0]["outputs"][0]["ename"], "Timeout");
    assert_eq!(executed["cells"][1]["execution_count"], Value::Null);
}

#[test]
fn several_notebooks_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("reports");
    let pid = directory.path().join("pid");
    let dies = notebook(directory.path(), "dies.ipynb", "rust", &[&with_grandchild(&pid, "std::process::abort();")]);
    let cells = vec![
        code("let x = 1;\npanic!(\"first\");", json!({})),
        tagged("let x = 2;", "raises-exception"),
        code("println!(\"and on with {x}\");", json!({})),
    ];
    let fails = notebook_of(directory.path(), "fails.ipynb", "rust", cells);
    let started = Instant::now();
    let run = lacuna(&dies, &out, &[fails.to_str().unwrap(), "--jobs", "2", "--allow-errors"]);
    let text = stderr(&run);
    assert_eq!(run.status.code(), Some(3), "{text}");
    assert!(started.elapsed() < Duration::from_secs(150), "{:?}", started.elapsed());
    assert!(text.lines().all(|line| line.starts_with("dies  | ") || line.starts_with("fails | ")), "{text}");
    assert!(text.contains("dies  | ") && text.contains("ended the process that runs cells"), "{text}");
    assert!(is_gone(&pid), "what the cell started lives on");
    let report = read(out.join("fails.md"));
    assert!(report.contains("Panic: first") && report.contains("and on with 2"), "{report}");
    assert!(!out.join("dies.md").exists(), "half a report");
    assert!(read(out.join("README.md")).contains("(fails.md)"));
}

#[test]
#[cfg(target_os = "linux")]
fn notebooks_do_not_outlive_the_command_that_runs_them() {
    let directory = tempfile::tempdir().unwrap();
    let notebooks = ["a", "b"].map(|name| {
        let flag = directory.path().join(name);
        let cell =
            format!("std::fs::write({flag:?}, std::process::id().to_string())?;\nloop {{ std::thread::park() }}");
        (notebook(directory.path(), &format!("{name}.ipynb"), "rust", &[&cell]), flag)
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(["notebook", "run", "--jobs", "2", "--out"]).arg(directory.path().join("reports"));
    command.args(notebooks.iter().map(|(path, _)| path)).stderr(std::process::Stdio::null());
    let mut run = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !notebooks.iter().all(|(_, flag)| fs::read_to_string(flag).is_ok_and(|text| !text.is_empty())) {
        assert!(Instant::now() < deadline, "the cells never began");
        std::thread::sleep(Duration::from_millis(50));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !notebooks.iter().all(|(_, flag)| is_gone(flag)) {
        assert!(Instant::now() < deadline, "cells live on");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_cannot_run_is_refused_before_anything_runs() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let out = directory.join("reports");
    let parameters = "let steps: usize = 4;\nlet ys = [0.5];";
    let path = notebook_of(directory, "p.ipynb", "rust", vec![tagged(parameters, "parameters")]);
    let plain = notebook(directory, "plain.ipynb", "rust", &["1"]);
    fs::create_dir(directory.join("other")).unwrap();
    let namesake = notebook(&directory.join("other"), "plain.ipynb", "rust", &["1"]);
    let missing = directory.join("missing.json");
    let cases: [(&Path, &[&str], &str); 8] = [
        (&path, &["-p", "step=1"], "p.ipynb: the notebook has no parameter `step`; it has `steps` (an integer, usize)"),
        (&path, &["-p", "ys=[true]"], "parameter `ys` is a JSON list (each item a number, f64), and `[true]` is not"),
        (&path, &["-p", "steps=many"], "parameter `steps` is an integer, usize, and `many` is not; cell 1 sets it"),
        (&path, &["-p", "steps"], "write it as name=value"),
        (&path, &["--params", missing.to_str().unwrap()], "missing.json"),
        (&plain, &["-p", "steps=1"], "tag the cell that holds them `parameters`"),
        (&plain, &[namesake.to_str().unwrap()], "another notebook has the same report"),
        (&plain, &["--timeout", "0"], "a number of seconds above 0"),
    ];
    for (path, options, expected) in cases {
        let run = lacuna(path, &out, options);
        assert_eq!(run.status.code(), Some(2), "{options:?}: {}", stderr(&run));
        assert!(stderr(&run).contains(expected), "no {expected:?} in {}", stderr(&run));
    }
    assert!(!out.exists());
    // No directory can be made where a file is; as with one that is read-only, which the superuser would not notice.
    let file = directory.join("file");
    fs::write(&file, "").unwrap();
    for out in [file.clone(), file.join("reports")] {
        let run = lacuna(&plain, &out, &[]);
        assert_eq!(run.status.code(), Some(2), "{}", stderr(&run));
        assert!(stderr(&run).contains("cannot write reports to"), "{}", stderr(&run));
    }
    assert_eq!(fs::read(&file).unwrap(), b"");
}

#[test]
fn new_notebook_runs_and_is_cleaned() {
    let directory = tempfile::tempdir().unwrap();
    let notebooks = directory.path().join("notebooks");
    fs::create_dir(&notebooks).unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    std::os::unix::fs::symlink(data, directory.path().join("data")).unwrap();
    let lacuna = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        command.arg("notebook").args(arguments).current_dir(&notebooks).output().unwrap()
    };
    let nowhere = lacuna(&["new", "no/such/x"]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert_eq!(
        stderr(&nowhere),
        "error: cannot create no/such/x.ipynb: there is no directory no/such; make it first\n"
    );
    let new = lacuna(&["new", "01_my_question"]);
    assert!(new.status.success(), "{}", stderr(&new));
    let path = notebooks.join("01_my_question.ipynb");
    let fresh = read(path.clone());
    assert!(!lacuna(&["new", "01_my_question.ipynb"]).status.success(), "an existing notebook is not replaced");

    let run = lacuna(&["run", "01_my_question.ipynb", "-p", "sparsities=[0.5]", "-p", "windows=2"]);
    assert!(run.status.success(), "{}", stderr(&run));
    let reports = directory.path().join("reports");
    let report = read(reports.join("01_my_question.md"));
    assert!(report.starts_with("# My question\n") && report.contains("3 models measured"), "{report}");
    assert!(read(reports.join("README.md")).contains("<img src=\"01_my_question_files/plot_1.svg\""));
    assert_eq!(read(path), fresh, "the source is not touched");

    let executed = reports.join("01_my_question.ipynb");
    let name = executed.to_str().unwrap();
    assert!(read(executed.clone()).contains("models measured\\n"));
    assert!(lacuna(&["clean", name]).status.success());
    let cleaned = read(executed.clone());
    let cells = read_json(&executed)["cells"].as_array().unwrap().clone();
    let of_code: Vec<&Value> = cells.iter().filter(|cell| cell["cell_type"] == "code").collect();
    assert!(of_code.len() > 4);
    assert!(of_code.iter().all(|cell| cell["outputs"] == json!([]) && cell["execution_count"].is_null()));
    let before = fs::metadata(&executed).unwrap().modified().unwrap();
    let again = lacuna(&["clean", name, "01_my_question.ipynb"]);
    assert!(again.status.success() && again.stdout.is_empty(), "{}", stderr(&again));
    assert_eq!(fs::metadata(&executed).unwrap().modified().unwrap(), before, "a clean notebook is not written");
    assert_eq!((read(executed), read(notebooks.join("01_my_question.ipynb"))), (cleaned, fresh));
    fs::write(notebooks.join("broken.ipynb"), "{").unwrap();
    let broken = lacuna(&["clean", "broken.ipynb"]);
    assert_eq!(broken.status.code(), Some(2));
    assert!(stderr(&broken).contains("broken.ipynb is not a notebook"), "{}", stderr(&broken));
}
