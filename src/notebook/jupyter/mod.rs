//! The kernel that Jupyter starts: [`Session`] behind Jupyter's protocol.
//!
//! Sockets are served before evcxr is there, so that a client sees a living kernel at once; cells wait in a queue. The
//! main thread runs them, and everything else that needs the session: evcxr's child is bound to the thread that made it.

mod complete;
mod cursor;
mod documentation;
mod frame;
mod message;
mod wire;

use super::document::contents;
use super::install::documentation_link;
use super::outcome::{CellError, ErrorKind, Live, Outcome};
use super::output::{Output, Stream};
use super::processes::{self, end};
use super::session::{Audience, Session};
use super::watch::{Phase, Watch};
use anyhow::Result;
use lacuna::progress::Transcript;
use lacuna::sync::locked;
use message::{Connection, PROTOCOL, Request};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::Path;
use std::process::Child;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use wire::{Frames, Peer, Socket, SocketKind};

/// Lines that a cell prints within this time travel together: a client that gets each on its own falls behind.
const TEXT_INTERVAL: Duration = Duration::from_millis(40);

/// Text that is not sent within the interval, because there is so much of it.
const TEXT_BYTES: usize = 1 << 20;

/// The consequence of an interrupt, or of the end of the process, for the next cell.
const VARIABLES_GONE: &str = "Variables of earlier cells are gone; imports, functions and types are still there. \
                              Run the cells again that define what you need";

/// The consequence of an interrupt of a compilation.
const VARIABLES_KEPT: &str = "interrupted while it was compiled. Variables of earlier cells are still there";

/// Serves the clients of a connection file until one asks for the end; then the process exits.
///
/// # Errors
/// Fails when the connection file cannot be used, or its ports cannot be bound. Other failures are reported to the
/// clients.
pub(super) fn serve(connection_file: &Path) -> Result<()> {
    let connection = Connection::read(connection_file)?;
    set_signals();
    end_with_parent();
    let address = |port: u16| (connection.ip.as_str(), port);
    let iopub = Socket::bind(address(connection.iopub_port), SocketKind::Pub, |_, _| {})?;
    let (answered, answers) = mpsc::channel();
    let stdin = Socket::bind(address(connection.stdin_port), SocketKind::Router, move |_, frames| {
        // It only fails when the process is about to end.
        let _ = answered.send(frames);
    })?;
    let kernel = Arc::new(Kernel {
        connection: connection.clone(),
        id: message::random_id(),
        iopub,
        stdin,
        answers: Mutex::new(answers),
        asking: Mutex::default(),
        process: OnceLock::new(),
        watch: OnceLock::new(),
        text: Mutex::default(),
    });
    let (sender, queue) = mpsc::channel();
    Socket::bind(address(connection.hb_port), SocketKind::Rep, |peer, frames| {
        let _ = peer.send(&frames);
    })?;
    let control = kernel.clone();
    Socket::bind(address(connection.control_port), SocketKind::Router, move |peer, frames| {
        control.control(peer, frames)
    })?;
    let shell = kernel.clone();
    Socket::bind(address(connection.shell_port), SocketKind::Router, move |peer, frames| {
        shell.shell(peer, frames, &sender)
    })?;
    let writer = kernel.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(TEXT_INTERVAL);
            writer.send_text();
        }
    });
    kernel.work(&queue);
    Ok(())
}

/// A Ctrl-C in the terminal that Jupyter runs in is Jupyter's, which asks for an interrupt. Other signals end the kernel, as a command line would not.
fn set_signals() {
    extern "C" fn nothing(_signal: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: the handler does nothing. (An ignored signal would be ignored in cells, too.)
    unsafe {
        libc::signal(libc::SIGINT, handler as libc::sighandler_t);
        libc::signal(libc::SIGTERM, libc::SIG_DFL);
        libc::signal(libc::SIGHUP, libc::SIG_DFL);
    }
}

/// Jupyter says who it is; when it was killed, nobody else will end its kernels.
fn end_with_parent() {
    if std::env::var_os("JPY_PARENT_PID").is_none() {
        return;
    }
    let parent = std::os::unix::process::parent_id();
    std::thread::spawn(move || {
        while std::os::unix::process::parent_id() == parent {
            std::thread::sleep(Duration::from_secs(1));
        }
        std::process::exit(1);
    });
}

struct Kernel {
    connection: Connection,
    /// In the header of each message.
    id: String,
    iopub: Socket,
    stdin: Socket,
    /// The messages that clients send to `stdin`.
    answers: Mutex<Receiver<Frames>>,
    /// The request that runs and who sent it, if that client can be asked.
    asking: Mutex<Option<Task>>,
    /// The process that runs cells, once there is one.
    process: OnceLock<Arc<Mutex<Child>>>,
    /// Ends cells that are interrupted, and what a cell has started when that process dies: evcxr would wait for it.
    watch: OnceLock<Watch>,
    /// Text that the cell has printed and that was not sent yet.
    text: Mutex<Text>,
}

#[derive(Default)]
struct Text {
    /// Header of the request that runs.
    parent: Value,
    parts: Vec<(Stream, String)>,
    bytes: usize,
    /// Bytes of each stream that went into `parts`.
    shown: [usize; 2],
    /// Its progress, which clients show in one place that is written anew.
    progress: Transcript,
    shows_progress: bool,
}

/// A request for the main thread.
type Task = (Peer, Request);

impl Kernel {
    fn publish(&self, kind: &str, parent: &Value, content: &Value) {
        self.iopub.publish(&message::broadcast(kind, parent, &self.id, content, &self.connection));
    }

    fn status(&self, state: &str, parent: &Value) {
        self.publish("status", parent, &json!({"execution_state": state}));
    }

    /// A client that has gone away needs no answer.
    fn reply(&self, peer: &Peer, request: &Request, content: &Value) {
        let _ = peer.send(&message::reply(request, &self.id, content, &self.connection));
    }

    fn parse(&self, frames: Frames) -> Option<Request> {
        // As other kernels do: whoever sends what is not signed gets no answer.
        Request::parse(frames, &self.connection).ok()
    }

    /// A message on the shell channel: answered here, or by the main thread.
    fn shell(&self, peer: &Peer, frames: Frames, queue: &Sender<Task>) {
        let Some(request) = self.parse(frames) else { return };
        if matches!(request.kind(), "execute_request" | "complete_request" | "inspect_request") {
            // It only fails when the process is about to end.
            let _ = queue.send((peer.clone(), request));
            return;
        }
        self.status("busy", &request.header);
        match request.kind() {
            "kernel_info_request" => self.reply(peer, &request, &kernel_info()),
            "is_complete_request" => self.reply(peer, &request, &complete::answer(request.code())),
            "history_request" => self.reply(peer, &request, &json!({"status": "ok", "history": []})),
            "comm_info_request" => self.reply(peer, &request, &json!({"status": "ok", "comms": {}})),
            "comm_open" => {
                let id = &request.content["comm_id"];
                self.publish("comm_close", &request.header, &json!({"comm_id": id, "data": {}}));
            }
            "shutdown_request" => self.shut_down(peer, &request),
            _ => {}
        }
        self.status("idle", &request.header);
    }

    /// A message on the control channel, which is read while a cell runs.
    fn control(&self, peer: &Peer, frames: Frames) {
        let Some(request) = self.parse(frames) else { return };
        self.status("busy", &request.header);
        match request.kind() {
            "kernel_info_request" => self.reply(peer, &request, &kernel_info()),
            "interrupt_request" => {
                self.interrupt();
                self.reply(peer, &request, &json!({"status": "ok"}));
            }
            "shutdown_request" => self.shut_down(peer, &request),
            _ => {}
        }
        self.status("idle", &request.header);
    }

    /// Ends the cell, if there is one; variables cannot be saved, so a process that runs none is left alone.
    fn interrupt(&self) {
        if let Some(watch) = self.watch.get() {
            watch.interrupt();
        }
    }

    fn shut_down(&self, peer: &Peer, request: &Request) {
        if let Some(process) = self.process.get() {
            end(&mut locked(process));
        }
        processes::end_compilation();
        let restart = request.content["restart"].as_bool().unwrap_or(false);
        let content = json!({"status": "ok", "restart": restart});
        self.reply(peer, request, &content);
        self.publish("shutdown_reply", &request.header, &content);
        self.status("idle", &request.header);
        // The system sends what is written; only an end with unread input may cut it off.
        std::thread::sleep(Duration::from_millis(50));
        std::process::exit(0);
    }

    /// Answers the requests that need the session, in their order.
    fn work(self: &Arc<Self>, queue: &Receiver<Task>) {
        let mut count = 0;
        // What had been sent when a cell failed.
        let mut behind_failure: VecDeque<Task> = VecDeque::new();
        // Before the first cell comes: that one should not wait for it.
        let mut session = self.start();
        loop {
            let aborted = behind_failure.pop_front();
            let (is_aborted, task) = (aborted.is_some(), aborted.map_or_else(|| queue.recv(), Ok));
            let Ok((peer, request)) = task else { return };
            if session.is_err() {
                // What was wrong may have been put right: a full disk, a missing toolchain.
                session = self.start();
            }
            self.status("busy", &request.header);
            let content = match (request.kind(), &mut session) {
                // As in "run all": cells that were sent before another one failed do not run.
                ("execute_request", _) if is_aborted => json!({"status": "aborted"}),
                ("execute_request", session) => {
                    let may_ask = request.content["allow_stdin"].as_bool().unwrap_or(true);
                    *locked(&self.asking) = may_ask.then(|| (peer.clone(), request.clone()));
                    let content = self.execute(session, &request, &mut count);
                    *locked(&self.asking) = None;
                    content
                }
                ("complete_request", Ok(session)) => complete::completions(session, &request),
                (_, Ok(session)) => complete::inspection(session, &request),
                (_, Err(error)) => json!({"status": "error", "ename": "Error", "evalue": error}),
            };
            let failed = request.kind() == "execute_request" && content["status"] == "error";
            if failed && request.content["stop_on_error"].as_bool().unwrap_or(true) {
                // Before the answer: what its reader sends next is to run.
                behind_failure.extend(queue.try_iter());
            }
            self.reply(&peer, &request, &content);
            self.status("idle", &request.header);
        }
    }

    fn start(self: &Arc<Self>) -> Result<Session, String> {
        let kernel = self.clone();
        let asking = self.clone();
        let session = Session::start(Audience {
            on_live: Box::new(move |live| kernel.live(live)),
            on_question: Box::new(move |prompt, is_secret| asking.ask(prompt, is_secret)),
        });
        let session = session.map_err(|error| format!("{error:#}\n`lacuna kernel doctor` says what is missing"))?;
        let _ = self.process.set(session.process());
        let _ = self.watch.set(Watch::new(&session));
        Ok(session)
    }

    /// Runs a cell, and gives the answer to its request.
    fn execute(&self, session: &mut Result<Session, String>, request: &Request, count: &mut u64) -> Value {
        let flag = |name: &str, default: bool| request.content[name].as_bool().unwrap_or(default);
        let silent = flag("silent", false);
        if !silent && flag("store_history", true) {
            *count += 1;
        }
        if !silent {
            let input = json!({"code": request.code(), "execution_count": *count});
            self.publish("execute_input", &request.header, &input);
        }
        *locked(&self.text) = Text { parent: request.header.clone(), ..Text::default() };
        let outcome = match session {
            Ok(session) => self.run(session, request.code()),
            Err(error) => Err(CellError { kind: ErrorKind::Died, message: error.clone() }),
        };
        if let Ok(outcome) = &outcome {
            self.rest(outcome);
        }
        self.send_text();
        let error = match outcome {
            Ok(outcome) => {
                // Other values have been shown when they came.
                for output in &outcome.outputs {
                    if let Output::Result(bundle) = output
                        && !(silent || outcome.is_value_seen)
                    {
                        let result = json!({"execution_count": *count, "data": contents(bundle), "metadata": {}});
                        self.publish("execute_result", &request.header, &result);
                    }
                }
                outcome.error
            }
            Err(error) => Some(error),
        };
        let Some(error) = error else {
            return json!({"status": "ok", "execution_count": *count, "payload": [], "user_expressions": {}});
        };
        let first = error.message.lines().next().unwrap_or_default();
        let mut traceback: Vec<String> = error.message.lines().map(str::to_owned).collect();
        // Notebooks show the traceback only; other kinds say what they are.
        if matches!(error.kind, ErrorKind::Panic | ErrorKind::Error) {
            traceback.splice(..1.min(traceback.len()), [format!("{}: {first}", error.kind.name())]);
        }
        let mut content = json!({"ename": error.kind.name(), "evalue": first, "traceback": traceback});
        self.publish("error", &request.header, &content);
        content["status"] = json!("error");
        content["execution_count"] = json!(*count);
        content
    }

    /// Runs a cell that can be interrupted, after which the session is ready for the next one.
    fn run(&self, session: &mut Session, code: &str) -> Result<Outcome, CellError> {
        if let Some(watch) = self.watch.get() {
            watch.begin(None);
        }
        let mut outcome = session.run(code);
        let ended = self.watch.get().and_then(|watch| watch.end().what);
        let died = outcome.error.as_ref().is_some_and(|error| error.kind == ErrorKind::Died);
        let message = match ended {
            Some(Phase::Compilation) if outcome.error.is_some() => Some(VARIABLES_KEPT.to_owned()),
            Some(Phase::Process) => {
                // A cell that had just ended did not notice.
                let restarted = if died { Ok(()) } else { session.restart() };
                Some(match restarted {
                    Ok(()) => format!("interrupted. {VARIABLES_GONE}"),
                    Err(error) => format!("interrupted; the next cell cannot run: {error:#}. Restart the kernel"),
                })
            }
            // It was over before it could be ended.
            _ => None,
        };
        if let Some(message) = message {
            return Err(CellError { kind: ErrorKind::Interrupted, message });
        }
        if died && let Some(error) = &mut outcome.error {
            error.message = format!("{}\n{VARIABLES_GONE}", error.message.trim_end());
        }
        Ok(outcome)
    }

    /// Asks the client that sent the cell, and waits for its answer, or for the end of the cell's process.
    fn ask(&self, prompt: &str, is_secret: bool) -> Option<String> {
        let (peer, request) = locked(&self.asking).clone()?;
        let client = self.stdin.peer(peer.identity())?;
        let answers = locked(&self.answers);
        // To a question that was given up.
        answers.try_iter().for_each(drop);
        self.send_text();
        let content = json!({"prompt": prompt, "password": is_secret});
        client.send(&message::question(&request, &self.id, &content, &self.connection)).ok()?;
        loop {
            match answers.recv_timeout(Duration::from_millis(50)) {
                Ok(frames) => {
                    if let Some(reply) = self.parse(frames).filter(|reply| reply.kind() == "input_reply") {
                        return reply.content["value"].as_str().map(str::to_owned);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let is_over = |process: &Arc<Mutex<Child>>| matches!(locked(process).try_wait(), Ok(Some(_)));
                    if self.process.get().is_none_or(is_over) {
                        return None;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Sends progress and values of a cell as they come, and gathers its text, which is sent once there is much of it.
    fn live(&self, live: Live<'_>) {
        let mut text = locked(&self.text);
        match live {
            Live::Progress(line) => {
                text.progress.add(line);
                let kind = if text.shows_progress { "update_display_data" } else { "display_data" };
                text.shows_progress = true;
                let place = format!("progress of {}", text.parent["msg_id"].as_str().unwrap_or_default());
                let data = json!({"text/plain": text.progress.text()});
                let content = json!({"data": data, "metadata": {}, "transient": {"display_id": place}});
                self.publish(kind, &text.parent, &content);
            }
            Live::Display(bundle) => {
                self.send(&mut text);
                let content = json!({"data": contents(bundle), "metadata": {}, "transient": {}});
                self.publish("display_data", &text.parent, &content);
            }
            Live::Text(stream, part) => {
                text.shown[stream as usize] += part.len();
                text.bytes += part.len();
                match text.parts.last_mut() {
                    Some((last, before)) if *last == stream => before.push_str(part),
                    _ => text.parts.push((stream, part.to_owned())),
                }
                if text.bytes > TEXT_BYTES {
                    self.send(&mut text);
                }
            }
        }
    }

    /// Sends the part of a long text that was held back while it was printed: its end, and a word on the omission.
    fn rest(&self, outcome: &Outcome) {
        let mut text = locked(&self.text);
        for stream in [Stream::Stdout, Stream::Stderr] {
            let all = outcome.text(stream);
            if let Some(rest) = all.get(text.shown[stream as usize]..).filter(|rest| !rest.is_empty()) {
                text.parts.push((stream, rest.to_owned()));
            }
        }
    }

    fn send_text(&self) {
        self.send(&mut locked(&self.text));
    }

    /// Sends under the lock, so that parts keep their order.
    fn send(&self, text: &mut Text) {
        text.bytes = 0;
        for (stream, part) in std::mem::take(&mut text.parts) {
            self.publish("stream", &text.parent, &json!({"name": stream.name(), "text": part}));
        }
    }
}

/// The description of the language that clients need to colour cells and to save notebooks.
fn kernel_info() -> Value {
    let mut links = Vec::new();
    if let Some(url) = documentation_link() {
        links.push(json!({"text": "Lacuna: API reference", "url": url}));
    }
    let others = [
        ("Rust's standard library", "https://doc.rust-lang.org/std/"),
        ("candle", "https://docs.rs/candle-core"),
        ("polars", "https://docs.rs/polars"),
    ];
    links.extend(others.map(|(text, url)| json!({"text": text, "url": url})));
    json!({
        "status": "ok",
        "protocol_version": PROTOCOL,
        "implementation": "lacuna",
        "implementation_version": env!("CARGO_PKG_VERSION"),
        "language_info": {
            "name": "rust",
            "version": env!("CARGO_PKG_RUST_VERSION"),
            "mimetype": "text/x-rust",
            "file_extension": ".rs",
            "pygments_lexer": "rust",
            "codemirror_mode": "rust",
        },
        "banner": concat!("lacuna ", env!("CARGO_PKG_VERSION"), ": pruning language models, in Rust"),
        "debugger": false,
        "help_links": links,
    })
}
