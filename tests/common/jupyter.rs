//! A client of a Jupyter kernel: the part of ZeroMQ's protocol (ZMTP 3.0) and of Jupyter's that a test needs.

use ring::hmac;
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// A connection to one of the kernel's sockets; a thread reads it.
pub(crate) struct Channel {
    stream: TcpStream,
    messages: Receiver<Vec<Vec<u8>>>,
}

impl Channel {
    /// Connects as a socket of the type `kind`, with an identity as Jupyter's clients have one.
    fn connect(port: u16, kind: &str) -> io::Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        let mut greeting = [0; 64];
        (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
        greeting[12..16].copy_from_slice(b"NULL");
        stream.write_all(&greeting)?;
        stream.read_exact(&mut greeting)?;
        let mut ready = b"\x05READY".to_vec();
        for (name, value) in [("Socket-Type", kind), ("Identity", "test")] {
            ready.push(name.len() as u8);
            ready.extend(name.as_bytes());
            ready.extend((value.len() as u32).to_be_bytes());
            ready.extend(value.as_bytes());
        }
        stream.write_all(&frame(COMMAND, &ready))?;
        let mut reader = io::BufReader::new(stream.try_clone()?);
        let (sender, messages) = mpsc::channel();
        std::thread::spawn(move || {
            let mut frames = Vec::new();
            while let Ok((flags, body)) = read_frame(&mut reader) {
                if flags & COMMAND == 0 {
                    frames.push(body);
                }
                if flags & (COMMAND | MORE) == 0 && sender.send(std::mem::take(&mut frames)).is_err() {
                    return;
                }
            }
        });
        Ok(Channel { stream, messages })
    }

    pub(crate) fn send(&mut self, frames: &[Vec<u8>]) {
        let last = frames.len() - 1;
        let bytes: Vec<u8> =
            frames.iter().enumerate().flat_map(|(i, body)| frame(if i < last { MORE } else { 0 }, body)).collect();
        self.stream.write_all(&bytes).unwrap();
    }

    pub(crate) fn receive(&self, patience: Duration) -> Result<Vec<Vec<u8>>, RecvTimeoutError> {
        self.messages.recv_timeout(patience)
    }
}

fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![flags | if body.len() > 255 { LONG } else { 0 }];
    match u8::try_from(body.len()) {
        Ok(length) => bytes.push(length),
        Err(_) => bytes.extend((body.len() as u64).to_be_bytes()),
    }
    bytes.extend(body);
    bytes
}

fn read_frame(reader: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut flags = [0];
    reader.read_exact(&mut flags)?;
    let mut length = [0; 8];
    reader.read_exact(if flags[0] & LONG != 0 { &mut length } else { &mut length[7..] })?;
    let mut body = vec![0; u64::from_be_bytes(length) as usize];
    reader.read_exact(&mut body)?;
    Ok((flags[0], body))
}

/// Signed frames of a request, without addresses.
fn signed(key: &str, header: &Value, metadata: &Value, content: &Value) -> Vec<Vec<u8>> {
    let parts: Vec<Vec<u8>> =
        [header, &json!({}), metadata, content].iter().map(|part| part.to_string().into_bytes()).collect();
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), &parts.concat());
    let signature: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    [vec![b"<IDS|MSG>".to_vec(), signature.into_bytes()], parts].concat()
}

/// A message from the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) kind: String,
    /// Identifier of the request that it belongs to.
    pub(crate) parent: String,
    pub(crate) content: Value,
}

impl Message {
    /// Reads a message, whose signature must be right.
    fn read(frames: &[Vec<u8>], key: &str) -> Self {
        let start = frames.iter().position(|frame| frame == b"<IDS|MSG>").expect("a delimiter");
        let part = |number: usize| -> Value { serde_json::from_slice(&frames[start + 1 + number]).unwrap() };
        assert_eq!(frames[start..], signed_again(&frames[start..], key), "the kernel signs");
        let [header, parent, content] = [part(1), part(2), part(4)];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Message { kind: text(&header["msg_type"]), parent: text(&parent["msg_id"]), content }
    }
}

fn signed_again(frames: &[Vec<u8>], key: &str) -> Vec<Vec<u8>> {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), &frames[2..].concat());
    let mut frames = frames.to_vec();
    frames[1] = tag.as_ref().iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect();
    frames
}

/// The results of a cell, as a client sees them.
#[derive(Debug)]
pub(crate) struct Executed {
    pub(crate) reply: Value,
    /// The messages that were published for it, in order.
    pub(crate) published: Vec<Message>,
}

impl Executed {
    pub(crate) fn kinds(&self) -> Vec<&str> {
        self.published.iter().map(|message| message.kind.as_str()).collect()
    }

    /// The first message of the kind.
    pub(crate) fn content(&self, kind: &str) -> &Value {
        let found = self.published.iter().find(|message| message.kind == kind);
        &found.unwrap_or_else(|| panic!("no {kind} in {self:?}")).content
    }

    /// Everything printed to `stream`.
    pub(crate) fn text(&self, stream: &str) -> String {
        let parts = self.published.iter().filter(|m| m.kind == "stream" && m.content["name"] == stream);
        parts.map(|message| message.content["text"].as_str().unwrap()).collect()
    }

    /// The value as plain text.
    pub(crate) fn value(&self) -> &str {
        self.content("execute_result")["data"]["text/plain"].as_str().unwrap()
    }
}

/// A kernel that was started as Jupyter starts it, and a client of it.
pub(crate) struct Kernel {
    process: Child,
    key: String,
    pub(crate) started: Instant,
    pub(crate) shell: Channel,
    pub(crate) control: Channel,
    pub(crate) heartbeat: Channel,
    iopub: Channel,
    /// Number of the last request.
    count: u32,
    _directory: tempfile::TempDir,
}

impl Kernel {
    /// Starts `lacuna kernel serve` and connects to it.
    pub(crate) fn start(lacuna: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let connection_file = directory.path().join("kernel.json");
        // All at once, so that they differ.
        let listeners: Vec<TcpListener> = (0..5).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(listeners);
        let key = format!("key of {}", ports[0]);
        let connection = json!({
            "ip": "127.0.0.1", "transport": "tcp", "key": key, "signature_scheme": "hmac-sha256", "kernel_name": "lacuna",
            "shell_port": ports[0], "iopub_port": ports[1], "stdin_port": ports[2], "control_port": ports[3],
            "hb_port": ports[4],
        });
        std::fs::write(&connection_file, connection.to_string()).unwrap();
        let started = Instant::now();
        let process =
            Command::new(lacuna).args(["kernel", "serve"]).arg(&connection_file).stdin(Stdio::null()).spawn().unwrap();
        let connect = |port: u16, kind: &str| {
            loop {
                match Channel::connect(port, kind) {
                    Ok(channel) => return channel,
                    Err(error) => assert!(started.elapsed() < PATIENCE, "{kind}: {error}"),
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let mut iopub = connect(ports[1], "SUB");
        iopub.send(&[vec![1]]);
        Kernel {
            key,
            started,
            shell: connect(ports[0], "DEALER"),
            control: connect(ports[3], "DEALER"),
            heartbeat: connect(ports[4], "REQ"),
            iopub,
            count: 0,
            process,
            _directory: directory,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Frames of a new request that is signed with `key`, and its identifier.
    pub(crate) fn request_with(&mut self, key: &str, kind: &str, content: &Value) -> (String, Vec<Vec<u8>>) {
        self.count += 1;
        let id = format!("request {}", self.count);
        let header = json!({"msg_id": id, "session": "test", "username": "test", "msg_type": kind, "version": "5.3"});
        (id, signed(key, &header, &json!({}), content))
    }

    /// Sends a request as another client has written it, and waits for the answer.
    pub(crate) fn replay(&mut self, channel: &str, header: &Value, metadata: &Value, content: &Value) -> Value {
        let frames = signed(&self.key, header, metadata, content);
        let channel = if channel == "control" { &mut self.control } else { &mut self.shell };
        channel.send(&frames);
        let frames = channel.receive(PATIENCE).unwrap_or_else(|_| panic!("no answer to {header}"));
        let message = Message::read(&frames, &self.key);
        assert_eq!(message.parent, header["msg_id"].as_str().unwrap(), "{message:?}");
        message.content
    }

    fn request(&mut self, kind: &str, content: &Value) -> (String, Vec<Vec<u8>>) {
        let key = self.key.clone();
        self.request_with(&key, kind, content)
    }

    /// Asks on the shell channel, and waits for the answer.
    pub(crate) fn ask(&mut self, kind: &str, content: &Value) -> Value {
        let (id, frames) = self.request(kind, content);
        self.shell.send(&frames);
        self.answer(&self.shell, &id)
    }

    /// Asks on the control channel, and waits for the answer.
    pub(crate) fn command(&mut self, kind: &str, content: &Value) -> Value {
        let (id, frames) = self.request(kind, content);
        self.control.send(&frames);
        self.answer(&self.control, &id)
    }

    fn answer(&self, channel: &Channel, id: &str) -> Value {
        let frames = channel.receive(PATIENCE).unwrap_or_else(|_| panic!("no answer to {id}"));
        let message = Message::read(&frames, &self.key);
        assert_eq!(message.parent, id, "{message:?}");
        message.content
    }

    /// Sends a cell, and returns its identifier.
    pub(crate) fn send_cell(&mut self, code: &str) -> String {
        let content = json!({"code": code, "silent": false, "store_history": true, "user_expressions": {},
                             "allow_stdin": false, "stop_on_error": true});
        let (id, frames) = self.request("execute_request", &content);
        self.shell.send(&frames);
        id
    }

    /// The next message that the kernel publishes.
    pub(crate) fn next_published(&self) -> Message {
        let frames = self.iopub.receive(PATIENCE).expect("a published message");
        Message::read(&frames[1..], &self.key)
    }

    /// Waits until the cell prints `text` on a line.
    pub(crate) fn wait_for_text(&self, id: &str, text: &str) -> String {
        loop {
            let message = self.next_published();
            let printed = message.content["text"].as_str().unwrap_or_default();
            if message.parent == id && message.kind == "stream" && printed.contains(text) {
                return printed.to_owned();
            }
            assert_ne!(message.kind, "error", "{message:?}");
        }
    }

    /// Waits for the end of a cell that was sent.
    pub(crate) fn finish(&mut self, id: &str) -> Executed {
        let mut published = Vec::new();
        loop {
            let message = self.next_published();
            if message.parent != id {
                continue;
            }
            let idle = message.content["execution_state"] == "idle";
            published.push(message);
            if idle {
                break;
            }
        }
        Executed { reply: self.answer(&self.shell, id), published }
    }

    /// Runs a cell to its end.
    pub(crate) fn run(&mut self, code: &str) -> Executed {
        let id = self.send_cell(code);
        self.finish(&id)
    }

    /// Runs a cell that must succeed.
    pub(crate) fn succeed(&mut self, code: &str) -> Executed {
        let executed = self.run(code);
        assert_eq!(executed.reply["status"], "ok", "{code}: {executed:?}");
        executed
    }

    /// Runs a cell that must fail, as reply and as published error; returns its content.
    pub(crate) fn fail(&mut self, code: &str, name: &str) -> Value {
        let executed = self.run(code);
        assert_failed(&executed, name);
        executed.reply
    }

    /// Waits for the process to end.
    pub(crate) fn end(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the kernel is still there");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The cell failed, as the reply and the published error say alike.
pub(crate) fn assert_failed(executed: &Executed, name: &str) {
    assert_eq!((&executed.reply["status"], &executed.reply["ename"]), (&json!("error"), &json!(name)), "{executed:?}");
    let error = executed.content("error");
    for field in ["ename", "evalue", "traceback"] {
        assert_eq!(error[field], executed.reply[field]);
    }
    assert!(!executed.kinds().contains(&"execute_result"), "{executed:?}");
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.kill();
    }
}
