//! The part of ZeroMQ that a kernel needs: sockets that clients connect to over TCP, without encryption (ZMTP 3.0, the
//! mechanism NULL). A thread reads each connection; whole messages go to a callback or out to the connections.
//!
//! The crate `zeromq` 0.6 would be the library for it, but a kernel behind it stops working (each was tried):
//! - One subscriber that does not read stops the output of all of them: 87 messages a second became none, and a message
//!   was still waiting after 17 s. Here such a client is given up after [`PATIENCE`].
//! - It does not know PING: a client with heartbeats lost its connection at each of them, 14 times in 9 s.
//! - A command frame of four bytes whose name claims more panics in the task that receives, before any signature is
//!   looked at, and the socket is closed.
//!
//! libzmq, the reference, needs a C++ compiler wherever lacuna is built.

use super::frame::{COMMAND, MORE, property, push_frame, read_frame};
use anyhow::{Context, Result, bail};
use lacuna::sync::locked;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A message is a list of frames.
pub(super) type Frames = Vec<Vec<u8>>;

/// The type that a socket announces; each accepts the type that Jupyter's clients use at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketKind {
    Router,
    Rep,
    Pub,
}

impl SocketKind {
    fn name(self) -> &'static [u8] {
        match self {
            SocketKind::Router => b"ROUTER",
            SocketKind::Rep => b"REP",
            SocketKind::Pub => b"PUB",
        }
    }
}

/// A client that reads nothing for so long is given up, so that the kernel goes on for the others.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(10) };

/// A connected client, to answer it.
#[derive(Clone)]
pub(super) struct Peer(Arc<PeerState>);

struct PeerState {
    stream: Mutex<TcpStream>,
    /// The client's name for itself, the same on each socket; may be empty.
    identity: Vec<u8>,
    /// Beginnings of the messages that it wants (of a [`SocketKind::Pub`] socket).
    topics: Mutex<Vec<Vec<u8>>>,
}

impl Peer {
    /// Sends one message.
    pub(super) fn send(&self, frames: &[Vec<u8>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (number, frame) in frames.iter().enumerate() {
            push_frame(&mut bytes, if number + 1 < frames.len() { MORE } else { 0 }, frame);
        }
        self.write(&bytes)
    }

    /// A client that got half a message could not read the next one, so a failure is the end of the connection.
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stream = locked(&self.0.stream);
        let written = stream.write_all(bytes);
        if written.is_err() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        written
    }

    /// The client's name for itself on each socket.
    pub(super) fn identity(&self) -> &[u8] {
        &self.0.identity
    }

    fn wants(&self, frames: &[Vec<u8>]) -> bool {
        let first = frames.first().map_or(&[][..], Vec::as_slice);
        locked(&self.0.topics).iter().any(|topic| first.starts_with(topic))
    }

    fn subscribe(&self, topic: &[u8]) {
        locked(&self.0.topics).push(topic.to_vec());
    }

    fn unsubscribe(&self, topic: &[u8]) {
        let mut topics = locked(&self.0.topics);
        if let Some(at) = topics.iter().position(|known| known == topic) {
            topics.swap_remove(at);
        }
    }
}

/// A bound socket.
#[derive(Clone)]
pub(super) struct Socket {
    peers: Arc<Mutex<Vec<Peer>>>,
}

impl Socket {
    /// Listens at `address`; `on_message` gets what clients send, on a thread of each client's own.
    ///
    /// # Errors
    /// Fails when the address cannot be bound.
    pub(super) fn bind(
        address: (&str, u16),
        kind: SocketKind,
        on_message: impl Fn(&Peer, Frames) + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener =
            TcpListener::bind(address).with_context(|| format!("cannot listen at {}:{}", address.0, address.1))?;
        let socket = Socket { peers: Arc::default() };
        let (peers, on_message) = (socket.peers.clone(), Arc::new(on_message));
        std::thread::Builder::new().name(format!("{kind:?}")).spawn(move || {
            for stream in listener.incoming().flatten() {
                let (peers, on_message) = (peers.clone(), on_message.clone());
                // A client that speaks something else, or goes away, ends its own thread only.
                let _ = std::thread::Builder::new().spawn(move || serve(stream, kind, &peers, &*on_message));
            }
        })?;
        Ok(socket)
    }

    /// The connection of the client that calls itself `identity`; the only one there is, if it has no name.
    pub(super) fn peer(&self, identity: &[u8]) -> Option<Peer> {
        let peers = locked(&self.peers);
        let named = peers.iter().rev().find(|peer| peer.identity() == identity && !identity.is_empty());
        named.or_else(|| peers.last().filter(|_| peers.len() == 1)).cloned()
    }

    /// Sends to every client that has subscribed; those that are gone are forgotten.
    pub(super) fn publish(&self, frames: &[Vec<u8>]) {
        locked(&self.peers).retain(|peer| !peer.wants(frames) || peer.send(frames).is_ok());
    }
}

fn serve(
    mut stream: TcpStream,
    kind: SocketKind,
    peers: &Mutex<Vec<Peer>>,
    on_message: &(dyn Fn(&Peer, Frames) + Send + Sync),
) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let identity = shake_hands(&mut stream, kind)?;
    let peer =
        Peer(Arc::new(PeerState { stream: Mutex::new(stream.try_clone()?), identity, topics: Mutex::default() }));
    locked(peers).push(peer.clone());
    let ended = receive(&mut stream, kind, &peer, on_message);
    locked(peers).retain(|other| !Arc::ptr_eq(&other.0, &peer.0));
    ended
}

fn receive(
    stream: &mut TcpStream,
    kind: SocketKind,
    peer: &Peer,
    on_message: &(dyn Fn(&Peer, Frames) + Send + Sync),
) -> Result<()> {
    let mut reader = io::BufReader::new(stream);
    let mut frames = Frames::new();
    loop {
        let (flags, body) = match read_frame(&mut reader) {
            Ok(frame) => frame,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if flags & COMMAND != 0 {
            let mut answer = Vec::new();
            if let Some(rest) = body.strip_prefix(b"\x04PING") {
                // Behind the name stands a time to live, and what the answer repeats.
                push_frame(&mut answer, COMMAND, &[b"\x04PONG", rest.get(2..).unwrap_or_default()].concat());
                peer.write(&answer)?;
            }
            continue;
        }
        frames.push(body);
        if flags & MORE != 0 {
            continue;
        }
        let message = std::mem::take(&mut frames);
        match (kind, message.first().and_then(|frame| frame.split_first())) {
            (SocketKind::Pub, Some((1, topic))) => peer.subscribe(topic),
            (SocketKind::Pub, Some((0, topic))) => peer.unsubscribe(topic),
            (SocketKind::Pub, _) => {}
            _ => on_message(peer, message),
        }
    }
}

/// The greeting of both sides, then what each is. Returns what the client calls itself.
fn shake_hands(stream: &mut TcpStream, kind: SocketKind) -> Result<Vec<u8>> {
    let mut greeting = [0; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting)?;
    let mut theirs = [0; 64];
    stream.read_exact(&mut theirs)?;
    if theirs[0] != 0xff || theirs[10] < 3 || !theirs[12..].starts_with(b"NULL\0") {
        bail!("a client that does not speak ZMTP 3 with the mechanism NULL");
    }
    let mut ready = b"\x05READY".to_vec();
    for (name, value) in [(&b"Socket-Type"[..], kind.name()), (b"Identity", b"")] {
        ready.push(name.len() as u8);
        ready.extend(name);
        ready.extend((value.len() as u32).to_be_bytes());
        ready.extend(value);
    }
    let mut bytes = Vec::new();
    push_frame(&mut bytes, COMMAND, &ready);
    stream.write_all(&bytes)?;
    let (flags, body) = read_frame(stream)?;
    if flags & COMMAND == 0 || !body.starts_with(b"\x05READY") {
        bail!("a client that does not announce its type of socket");
    }
    Ok(property(&body[b"\x05READY".len()..], b"identity").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::frame::LONG;
    use super::*;
    use std::net::TcpListener;
    use std::sync::mpsc;

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    /// The client's side of [`shake_hands`], which is the same but for the name.
    fn connect(port: u16) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        shake_hands(&mut stream, SocketKind::Router).unwrap();
        stream
    }

    #[test]
    fn messages_come_and_go() {
        let port = free_port();
        let _socket = Socket::bind(("127.0.0.1", port), SocketKind::Router, |peer, mut frames| {
            frames.reverse();
            peer.send(&frames).unwrap();
        })
        .unwrap();
        // Something else at the port does no harm.
        TcpStream::connect(("127.0.0.1", port)).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        for broken in
            [&[COMMAND, 0][..], &[COMMAND, 4, 4, b'P', b'I', b'N'], &[LONG, 255, 255, 255, 255, 255, 255, 255, 255]]
        {
            connect(port).write_all(broken).unwrap();
        }
        let mut client = connect(port);
        let mut bytes = Vec::new();
        push_frame(&mut bytes, COMMAND, b"\x04PING\0\0abc");
        push_frame(&mut bytes, MORE, b"first");
        push_frame(&mut bytes, 0, &vec![b'x'; 300]);
        client.write_all(&bytes).unwrap();
        assert_eq!(read_frame(&mut client).unwrap(), (COMMAND, b"\x04PONGabc".to_vec()));
        assert_eq!(read_frame(&mut client).unwrap(), (MORE | LONG, vec![b'x'; 300]));
        assert_eq!(read_frame(&mut client).unwrap(), (0, b"first".to_vec()));
    }

    #[test]
    fn only_subscribers_hear() {
        let port = free_port();
        let socket = Socket::bind(("127.0.0.1", port), SocketKind::Pub, |_, _| {}).unwrap();
        let (done, dones) = mpsc::channel();
        for topic in [&b"\x01"[..], b"\x01stream", b"\x01status"] {
            let mut client = connect(port);
            let mut bytes = Vec::new();
            push_frame(&mut bytes, 0, topic);
            client.write_all(&bytes).unwrap();
            let done = done.clone();
            std::thread::spawn(move || {
                // A read that times out says that nothing came.
                client.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
                done.send((topic, read_frame(&mut client).is_ok())).unwrap();
            });
        }
        std::thread::sleep(Duration::from_millis(300));
        socket.publish(&[b"stream".to_vec(), b"text".to_vec()]);
        let mut heard: Vec<_> = dones.iter().take(3).collect();
        heard.sort();
        assert_eq!(heard, [(&b"\x01"[..], true), (b"\x01status", false), (b"\x01stream", true)]);
    }

    #[test]
    fn client_that_does_not_read_is_given_up() {
        let port = free_port();
        let socket = Socket::bind(("127.0.0.1", port), SocketKind::Pub, |_, _| {}).unwrap();
        let mut clients = [connect(port), connect(port)];
        for client in &mut clients {
            let mut subscription = Vec::new();
            push_frame(&mut subscription, 0, &[1]);
            client.write_all(&subscription).unwrap();
        }
        let [_stalled, mut reader] = clients;
        let started = std::time::Instant::now();
        while locked(&socket.peers).iter().filter(|peer| peer.wants(&[])).count() < 2 {
            assert!(started.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(5));
        }
        let reading = std::thread::spawn(move || ((0..400).all(|_| read_frame(&mut reader).is_ok()), reader));
        for _ in 0..400 {
            socket.publish(&[vec![b'x'; 100_000]]);
        }
        let (everything, _reader) = reading.join().unwrap();
        assert!(everything, "the other client gets everything");
        assert_eq!(locked(&socket.peers).len(), 1);
    }
}
