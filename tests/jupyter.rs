//! The kernel as Jupyter starts it, with the real evcxr, and what makes it known to Jupyter.
#![cfg(all(feature = "notebook", unix))]

mod common {
    pub(crate) mod jupyter;
    pub(crate) mod skip;
}

use common::jupyter::{Kernel, assert_failed};
use common::skip::skipped_without;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const LACUNA: &str = env!("CARGO_BIN_EXE_lacuna");

/// One kernel for all of it, because each takes seconds to start; a second one beside it.
#[test]
fn kernels_serve_their_clients() {
    let mut kernel = Kernel::start(Path::new(LACUNA));
    answers_at_once(&mut kernel);
    let mut other = Kernel::start(Path::new(LACUNA));
    shows_what_cells_do(&mut kernel);
    tells_failures(&mut kernel);
    helps_with_unfinished_code(&mut kernel);
    answers_vs_code(&mut kernel);
    survives_the_end_of_its_cells(&mut kernel);
    ends_compilations(&mut kernel);
    #[cfg(target_os = "linux")]
    assert_ne!(slot(&kernel), slot(&other), "two kernels, two slots");
    do_not_disturb_each_other(&mut kernel, &mut other);
    ends_with_all_it_started(kernel, other);
}

fn answers_at_once(kernel: &mut Kernel) {
    let info = kernel.ask("kernel_info_request", &json!({}));
    let elapsed = kernel.started.elapsed();
    assert!(elapsed < Duration::from_secs(3), "kernel_info took {elapsed:?}");
    let language = &info["language_info"];
    assert_eq!(
        (&info["status"], &language["name"], &language["file_extension"]),
        (&json!("ok"), &json!("rust"), &json!(".rs"))
    );
    assert_eq!(kernel.command("kernel_info_request", &json!({})), info, "also on the control channel");
    assert_eq!(kernel.ask("comm_info_request", &json!({})), json!({"status": "ok", "comms": {}}));

    kernel.heartbeat.send(&[vec![], b"beat".to_vec()]);
    assert_eq!(kernel.heartbeat.receive(Duration::from_secs(5)).unwrap(), [vec![], b"beat".to_vec()]);

    // Not signed as agreed: no answer, and no harm.
    let (_, forged) = kernel.request_with("a guess", "kernel_info_request", &json!({}));
    kernel.shell.send(&forged);
    kernel.shell.send(&[b"<IDS|MSG>".to_vec()]);
    assert!(kernel.shell.receive(Duration::from_millis(300)).is_err(), "an answer to a forged request");
    assert_eq!(kernel.ask("kernel_info_request", &json!({})), info);
}

fn shows_what_cells_do(kernel: &mut Kernel) {
    let cell =
        kernel.succeed("println!(\"gone before\");\neprintln!(\"aside\");\nlet x = 20;\nprint!(\"no end\");\nx + 22");
    let kinds = cell.kinds();
    assert_eq!((kinds[0], kinds[1], kinds[kinds.len() - 1]), ("status", "execute_input", "status"), "{kinds:?}");
    assert_eq!(cell.text("stdout"), "gone before\nno end");
    assert_eq!(cell.text("stderr"), "aside\n");
    assert_eq!(cell.value(), "42");
    assert_eq!(
        (&cell.reply["execution_count"], cell.content("execute_input")["execution_count"].as_u64()),
        (&json!(1), Some(1))
    );
    // The prelude is there, and lacuna's statics exist once.
    let table = kernel.succeed("let table = df!(\"layer\" => [0, 1], \"zeros\" => [0.5, 0.25])?;\ntable.height()");
    assert_eq!(table.value(), "2");
    let silent = kernel.succeed("fn twice(x: i32) -> i32 { 2 * x }");
    assert!(!silent.kinds().contains(&"execute_result"));
    // Much text does not take a message a line, and its middle is left out with a word.
    let lines = kernel.succeed("for i in 0..60_000 { println!(\"{i}\") }");
    assert!(lines.kinds().len() < 1000, "{} messages", lines.kinds().len());
    let text = lines.text("stdout");
    let (head, tail) = text.split_once("\n[lacuna: ").expect("something is left out");
    let (left_out, tail) = tail.split_once(" bytes left out here; print less, or write them to a file]\n").unwrap();
    assert!(left_out.bytes().all(|c| c.is_ascii_digit() || !c.is_ascii_alphanumeric()), "{left_out}");
    let first: Vec<&str> = head.lines().collect();
    assert!((0..10_000).all(|i| first[i] == i.to_string()), "the beginning keeps its order");
    assert!(tail.starts_with(|c: char| c.is_ascii_digit()) && tail.ends_with("\n59998\n59999\n"));
    // A text within the bound is there as a whole, also where it is longer than what is shown at once.
    let whole = kernel.succeed("for i in 0..20_000 { println!(\"{i}\") }").text("stdout");
    let expected: String = (0..20_000).map(|i| format!("{i}\n")).collect();
    assert!(whole == expected, "{} bytes of {}", whole.len(), expected.len());
}

fn tells_failures(kernel: &mut Kernel) {
    let error = kernel.fail("let y: u8 = -1;", "CompileError");
    let text = error["traceback"].to_string();
    assert!(text.contains("E0600") && text.contains("line 1 | let y: u8 = -1;"), "{text}");
    let error = kernel.fail("let z = 3;\npanic!(\"oh {z}\");", "Panic");
    assert_eq!(
        (&error["evalue"], &error["traceback"]),
        (&json!("oh 3"), &json!(["Panic: oh 3", "  line 2 | panic!(\"oh {z}\");"]))
    );
    let error = kernel.fail("Err::<(), _>(\"no luck\")?;", "Error");
    assert!(error["evalue"].as_str().unwrap().contains("no luck"), "{error}");
    // What earlier cells defined is still there.
    assert_eq!(kernel.succeed("twice(x)").value(), "40");

    // Of several cells that were sent, those behind a failure do not run.
    let bad = kernel.send_cell("std::thread::sleep(std::time::Duration::from_millis(500)); panic!()");
    let never = kernel.send_cell("let never = 1;");
    assert_failed(&kernel.finish(&bad), "Panic");
    let never = kernel.finish(&never);
    // A number would make JupyterLab say that it has run.
    assert_eq!((&never.reply, never.kinds()), (&json!({"status": "aborted"}), vec!["status", "status"]));
    kernel.fail("never", "CompileError");
}

fn helps_with_unfinished_code(kernel: &mut Kernel) {
    let complete = kernel.ask("is_complete_request", &json!({"code": "fn f() {"}));
    assert_eq!((&complete["status"], &complete["indent"]), (&json!("incomplete"), &json!("    ")));
    // Positions are code points, not bytes.
    let code = "let é = vec![1, 2]; é.is_emp";
    let found = kernel.ask("complete_request", &json!({"code": code, "cursor_pos": code.chars().count()}));
    let matches: Vec<&str> = found["matches"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(matches.iter().any(|name| name.starts_with("is_empty")), "{found}");
    assert_eq!((&found["cursor_start"], &found["cursor_end"]), (&json!(22), &json!(28)), "{found}");
}

/// Messages in the form of VS Code's: no user name, an older version of the protocol, metadata of its own, a word's end as the
/// place of the mouse, and interrupts on the control channel, also while nothing runs.
fn answers_vs_code(kernel: &mut Kernel) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/vscode.jsonl");
    for line in fs::read_to_string(path).unwrap().lines() {
        let message: Value = serde_json::from_str(line).unwrap();
        let channel = message["channel"].as_str().unwrap();
        let answer = kernel.replay(channel, &message["header"], &message["metadata"], &message["content"]).to_string();
        assert!(answer.contains(message["reply"].as_str().unwrap()), "{line}\n{answer}");
    }
    // What it runs silently is published to nobody, and counts as nothing.
    assert_eq!(kernel.succeed("édité.len()").value(), "2");
}

fn survives_the_end_of_its_cells(kernel: &mut Kernel) {
    let stop = "let interrupted = 1;\nprintln!(\"pid {}\", std::process::id());\nstd::process::Command::new(\"sleep\").arg(\"600\").status()";
    let endless = kernel.send_cell(stop);
    kernel.wait_for_text(&endless, "pid");
    assert_eq!(kernel.command("interrupt_request", &json!({})), json!({"status": "ok"}));
    let asked = Instant::now();
    assert_failed(&kernel.finish(&endless), "Interrupted");
    assert!(asked.elapsed() < Duration::from_secs(5), "the interrupt took {:?}", asked.elapsed());
    assert_eq!(kernel.succeed("twice(4)").value(), "8", "functions are still there");
    // Nothing runs: variables stay.
    kernel.succeed("let kept = 5;");
    kernel.command("interrupt_request", &json!({}));
    assert_eq!(kernel.succeed("kept").value(), "5");

    let endless = kernel.send_cell(stop);
    let text = kernel.wait_for_text(&endless, "pid");
    let cells: i32 = text.trim().strip_prefix("pid ").unwrap().parse().unwrap();
    // SAFETY: it is a process that this test's kernel started.
    unsafe { libc::kill(cells, libc::SIGKILL) };
    let killed = kernel.finish(&endless);
    assert_failed(&killed, "KernelDied");
    assert!(killed.reply["traceback"].to_string().contains("Run the cells again"), "{killed:?}");
    assert_eq!(kernel.succeed("1 + twice(1)").value(), "3");
    let error = kernel.fail("std::process::abort()", "KernelDied");
    assert!(error["traceback"].to_string().contains("Variables of earlier cells are gone"), "{error}");
    assert_eq!(kernel.succeed("twice(1)").value(), "2");
}

/// The directory that a kernel compiles in, by the lock it holds.
#[cfg(target_os = "linux")]
fn slot(kernel: &Kernel) -> PathBuf {
    let open = fs::read_dir(format!("/proc/{}/fd", kernel.id())).unwrap().flatten();
    let is_lock = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("slot-") && name.ends_with(".lock")
    };
    let found = open.filter_map(|entry| fs::read_link(entry.path()).ok()).find(is_lock);
    found.expect("a kernel holds its slot's lock")
}

fn do_not_disturb_each_other(kernel: &mut Kernel, other: &mut Kernel) {
    for round in 0..2 {
        let code = |number: i32| {
            format!("let shared = {number};\nstd::thread::sleep(std::time::Duration::from_millis(200));\nshared")
        };
        let (a, b) = (kernel.send_cell(&code(round)), other.send_cell(&code(round + 100)));
        assert_eq!(kernel.finish(&a).value(), round.to_string());
        assert_eq!(other.finish(&b).value(), (round + 100).to_string());
    }
}

/// Compiles for minutes.
const LONG: &str =
    "#[allow(long_running_const_eval)]\nconst LONG: u64 = { let mut i = 0; while i < 300_000_000 { i += 1 } i };\nLONG";

fn ends_compilations(kernel: &mut Kernel) {
    kernel.succeed("let kept = 7;");
    let long = kernel.send_cell(LONG);
    let compilers = wait_for_compiler(kernel.id());
    assert_eq!(kernel.command("interrupt_request", &json!({})), json!({"status": "ok"}));
    let asked = Instant::now();
    let ended = kernel.finish(&long);
    assert!(asked.elapsed() < Duration::from_secs(5), "the interrupt took {:?}", asked.elapsed());
    assert_failed(&ended, "Interrupted");
    assert!(ended.reply["evalue"].as_str().unwrap().contains("still there"), "{ended:?}");
    all_gone(&compilers);
    assert_eq!(kernel.succeed("kept + twice(1)").value(), "9");
    kernel.fail("LONG", "CompileError");
}

/// Until rustc compiles the cell; what the kernel has started by then, the process that runs cells among it.
fn wait_for_compiler(kernel: u32) -> BTreeSet<u32> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = descendants(kernel);
        let names: Vec<String> = processes().into_iter().filter(|p| found.contains(&p.0)).map(|p| p.2).collect();
        if names.iter().any(|name| name.ends_with("rustc")) {
            let cells = BTreeSet::from([cells_process(kernel)]);
            return &found - &cells;
        }
        assert!(Instant::now() < deadline, "nothing is compiled: {names:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The process that runs a kernel's cells, which is the same program.
fn cells_process(kernel: u32) -> u32 {
    let of_kernel = processes().into_iter().find(|(_, parent, name)| *parent == kernel && name.ends_with("lacuna"));
    of_kernel.expect("a kernel runs cells in a process of its own").0
}

/// Every process that has not ended: its id, its parent's, and its program.
fn processes() -> Vec<(u32, u32, String)> {
    let output = Command::new("ps").args(["-A", "-o", "pid=,ppid=,stat=,comm="]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let parse = |line: &str| {
        let mut fields = line.split_whitespace();
        let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (!fields.next()?.starts_with('Z')).then(|| (id, parent, fields.collect::<Vec<_>>().join(" ")))
    };
    text.lines().filter_map(parse).collect()
}

/// Everything that a process has started, and what that has started.
fn descendants(root: u32) -> BTreeSet<u32> {
    let processes = processes();
    let mut found = BTreeSet::new();
    let mut todo = vec![root];
    while let Some(next) = todo.pop() {
        let children = processes.iter().filter(|(_, parent, _)| *parent == next).map(|(process, ..)| *process);
        todo.extend(children.filter(|process| found.insert(*process)));
    }
    found
}

fn ends_with_all_it_started(mut kernel: Kernel, mut other: Kernel) {
    let started = descendants(kernel.id());
    assert!(!started.is_empty(), "a kernel runs cells in a process of its own");
    let endless = kernel.send_cell("println!(\"here\");\nloop { std::hint::spin_loop() }");
    kernel.wait_for_text(&endless, "here");
    let answer = kernel.command("shutdown_request", &json!({"restart": false}));
    assert_eq!(answer, json!({"status": "ok", "restart": false}));
    assert!(kernel.end(Duration::from_secs(5)).success());
    all_gone(&started);
    // Nobody can ask a killed kernel to clean up.
    other.send_cell(LONG);
    let mut started = wait_for_compiler(other.id());
    started.insert(cells_process(other.id()));
    other.kill();
    all_gone(&started);
}

fn all_gone(gone: &BTreeSet<u32>) {
    let deadline = Instant::now() + Duration::from_secs(5);
    let left = || processes().into_iter().filter(|(id, ..)| gone.contains(id)).collect::<Vec<_>>();
    while !left().is_empty() {
        assert!(Instant::now() < deadline, "processes {:?} are still there", left());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// `lacuna kernel ...` in the environment of a fresh user, whose compiled cells are this test's.
fn lacuna(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(LACUNA);
    let real = std::env::home_dir().unwrap();
    for (name, directory) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup"), ("XDG_CACHE_HOME", ".cache")] {
        if std::env::var_os(name).is_none() {
            command.env(name, real.join(directory));
        }
    }
    for name in ["JUPYTER_DATA_DIR", "JUPYTER_PATH", "XDG_DATA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        command.env_remove(name);
    }
    command.env("HOME", home).arg("kernel").args(arguments);
    command
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Everything below a directory, by name.
fn tree(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut todo = vec![directory.to_path_buf()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(next).unwrap().flatten() {
            found.insert(entry.path().strip_prefix(directory).unwrap().to_path_buf());
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn uninstall_removes_what_install_wrote() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let kernels = home.join(".local/share/jupyter/kernels");
    fs::create_dir_all(kernels.join("python3")).unwrap();
    fs::write(kernels.join("python3/kernel.json"), "{}").unwrap();
    let cache = home.join(".cache");
    fs::create_dir(&cache).unwrap();
    let before = tree(home);
    let lacuna = |home: &Path, arguments: &[&str]| {
        let mut command = lacuna(home, arguments);
        command.env("XDG_CACHE_HOME", &cache);
        command
    };
    let collected = |arguments: &[&str]| {
        let mut command = Command::new(LACUNA);
        let output = command.arg("cache").args(arguments).env("XDG_CACHE_HOME", &cache).env_remove("LACUNA_CACHE_DIR");
        said(&output.output().unwrap())
    };

    let installed = lacuna(home, &["install", "--user"]).output().unwrap();
    assert!(installed.status.success(), "{}", said(&installed));
    let directory = kernels.join("lacuna");
    assert!(said(&installed).contains(directory.to_str().unwrap()), "{}", said(&installed));
    let files: Vec<String> = tree(&directory).iter().map(|path| path.display().to_string()).collect();
    assert_eq!(files, ["doc", "kernel.json", "logo-32x32.png", "logo-64x64.png", "logo-svg.svg"]);
    let spec: Value = serde_json::from_slice(&fs::read(directory.join("kernel.json")).unwrap()).unwrap();
    // A target directory may be a link to another; a kernelspec names the program itself.
    let program = fs::canonicalize(LACUNA).unwrap();
    assert_eq!(spec["argv"], json!([program, "kernel", "serve", "{connection_file}"]));
    assert_eq!(
        (&spec["display_name"], &spec["language"], &spec["interrupt_mode"]),
        (&json!("Lacuna (Rust)"), &json!("rust"), &json!("message"))
    );

    let listed = collected(&["ls"]);
    assert!(listed.contains("\ncompiled cells: ") && listed.contains(", 1 slot, used "), "{listed}");
    let removed = lacuna(home, &["uninstall"]).output().unwrap();
    assert!(removed.status.success() && said(&removed).starts_with("removed "), "{}", said(&removed));
    assert!(
        said(&removed).contains(&format!("of compiled cells in {}/lacuna/kernel/", cache.display())),
        "{}",
        said(&removed)
    );
    assert_eq!(tree(home), before, "compiled cells are gone, too");
    let again = lacuna(home, &["uninstall"]).output().unwrap();
    assert!(again.status.success() && said(&again).contains("no lacuna kernel is installed there"), "{}", said(&again));

    // Into a prefix, and out of the virtual environment that it is.
    let prefix = home.join("venv");
    let installed = lacuna(home, &["install", "--prefix"]).arg(&prefix).output().unwrap();
    assert!(installed.status.success(), "{}", said(&installed));
    assert!(prefix.join("share/jupyter/kernels/lacuna/kernel.json").is_file());
    // What another kernelspec of the same program needs stays.
    fs::create_dir_all(&directory).unwrap();
    fs::copy(prefix.join("share/jupyter/kernels/lacuna/kernel.json"), directory.join("kernel.json")).unwrap();
    let removed = lacuna(home, &["uninstall", "--sys-prefix"]).env("VIRTUAL_ENV", &prefix).output().unwrap();
    assert!(removed.status.success(), "{}", said(&removed));
    let expected = format!("compiled cells stay, for {}", directory.display());
    assert!(said(&removed).contains(&expected) && cache.join("lacuna/kernel").is_dir(), "{}", said(&removed));
    let gone = [collected(&["gc", "--older-than", "1h"]), collected(&["gc", "--older-than", "0s"])];
    assert!(!gone[0].contains("compiled cells") && gone[1].contains("\ncompiled cells: "), "{gone:?}");
    assert!(!cache.join("lacuna").exists());
    assert!(tree(&prefix.join("share/jupyter/kernels")).is_empty());
}

#[test]
fn places_that_cannot_be_written_are_named() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    fs::write(home.join("file"), "").unwrap();
    let mut places = vec![home.join("file")];
    // Nobody writes there, not even root.
    places.extend(Path::new("/proc/self").is_dir().then(|| PathBuf::from("/proc")));
    for place in places {
        let refused = lacuna(home, &["install", "--prefix"]).arg(&place).output().unwrap();
        let text = said(&refused);
        assert!(!refused.status.success(), "{text}");
        assert!(text.contains("cannot write in") && text.contains(place.to_str().unwrap()), "{text}");
        assert!(text.contains("--user, --prefix and --sys-prefix"), "{text}");
    }
    let refused = lacuna(home, &["install", "--sys-prefix"]).output().unwrap();
    assert!(
        !refused.status.success() && said(&refused).contains("no virtual environment is active"),
        "{}",
        said(&refused)
    );
    let refused = lacuna(home, &["serve"]).arg(home.join("gone.json")).output().unwrap();
    assert!(!refused.status.success() && said(&refused).contains("gone.json"), "{}", said(&refused));
    assert_eq!(tree(home), BTreeSet::from([PathBuf::from("file")]));
}

/// A toolchain of links to the real one, without the standard library's source.
fn toolchain_without_source(directory: &Path) -> PathBuf {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
    let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout).unwrap().trim());
    let toolchain = directory.join("toolchain");
    fs::create_dir_all(toolchain.join("lib/rustlib")).unwrap();
    symlink(sysroot.join("bin"), toolchain.join("bin")).unwrap();
    for (below, left_out) in [("lib", "rustlib"), ("lib/rustlib", "src")] {
        for entry in fs::read_dir(sysroot.join(below)).unwrap().flatten().filter(|entry| entry.file_name() != left_out)
        {
            symlink(entry.path(), toolchain.join(below).join(entry.file_name())).unwrap();
        }
    }
    toolchain
}

#[test]
fn missing_source_of_the_standard_library_is_said() {
    let packaged = fs::read_dir("/usr/src").into_iter().flatten().flatten();
    if packaged.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("rustc-")) {
        return skipped_without(
            "a machine where no package has put the source into /usr/src, where it is always found",
        );
    }
    let home = tempfile::tempdir().unwrap();
    let toolchain = toolchain_without_source(home.path());
    let lacuna = |arguments: &[&str]| {
        let mut command = lacuna(home.path(), arguments);
        command.env("LACUNA_TOOLCHAIN", &toolchain).env_remove("RUST_SRC_PATH");
        command
    };
    let diagnosed = lacuna(&["doctor"]).output().unwrap();
    let text = said(&diagnosed);
    assert_eq!(diagnosed.status.code(), Some(1), "{text}");
    assert!(text.contains("FAILURE  rust-src") && text.contains("-> rustup component add rust-src"), "{text}");
    let diagnosed = lacuna(&["doctor", "--json"]).output().unwrap();
    let checks: Vec<Value> = serde_json::from_slice(&diagnosed.stdout).unwrap();
    let failed: Vec<&Value> = checks.iter().filter(|check| check["status"] == "failure").map(|c| &c["name"]).collect();
    assert_eq!((diagnosed.status.code(), failed), (Some(1), vec![&json!("rust-src")]));

    // Without rustup and apt-get on the PATH it cannot be installed, either.
    let refused = lacuna(&["install", "--user"]).env("PATH", toolchain.join("bin")).output().unwrap();
    let text = said(&refused);
    assert!(!refused.status.success(), "{text}");
    assert!(text.contains("the standard library's source") && text.contains("apt-get install rust-web-src"), "{text}");
    assert!(!home.path().join(".local/share/jupyter/kernels/lacuna").exists());
}
