//! Jupyter's messages: signed JSON between frames of the transport.
//! <https://jupyter-client.readthedocs.io/en/stable/messaging.html>

use super::wire::Frames;
use anyhow::{Context, Result, bail};
use rand::RngCore;
use ring::hmac;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The version of the protocol that the kernel speaks.
pub(super) const PROTOCOL: &str = "5.3";

const DELIMITER: &[u8] = b"<IDS|MSG>";

/// The addresses to listen on, and the key of signatures; Jupyter passes them in a file.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Connection {
    pub(super) ip: String,
    transport: String,
    pub(super) shell_port: u16,
    pub(super) iopub_port: u16,
    pub(super) stdin_port: u16,
    pub(super) control_port: u16,
    pub(super) hb_port: u16,
    /// Empty: messages are not signed.
    key: String,
    #[serde(default = "hmac_sha256")]
    signature_scheme: String,
}

fn hmac_sha256() -> String {
    "hmac-sha256".into()
}

impl Connection {
    /// Reads Jupyter's connection file.
    ///
    /// # Errors
    /// Fails when it cannot be read, or asks for a transport or a signature that the kernel does not have.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read the connection file {name}"))?;
        let connection: Connection =
            serde_json::from_str(&text).with_context(|| format!("{name} is no connection file of Jupyter"))?;
        if connection.transport != "tcp" {
            bail!("{name}: the kernel listens on tcp, not on {}", connection.transport);
        }
        if !connection.key.is_empty() && connection.signature_scheme != hmac_sha256() {
            bail!("{name}: the kernel signs by hmac-sha256, not by {}", connection.signature_scheme);
        }
        Ok(connection)
    }

    fn key(&self) -> Option<hmac::Key> {
        (!self.key.is_empty()).then(|| hmac::Key::new(hmac::HMAC_SHA256, self.key.as_bytes()))
    }

    /// The signature of the parts in hexadecimal; empty without a key.
    fn sign(&self, parts: &[Vec<u8>]) -> String {
        self.key().map(|key| hex::encode(hmac::sign(&key, &parts.concat()))).unwrap_or_default()
    }

    fn is_signed(&self, parts: &[Vec<u8>], signature: &[u8]) -> bool {
        self.key()
            .is_none_or(|key| hex::decode(signature).is_ok_and(|tag| hmac::verify(&key, &parts.concat(), &tag).is_ok()))
    }
}

/// A message from a client.
#[derive(Clone, Debug)]
pub(super) struct Request {
    identities: Frames,
    pub(super) header: Value,
    pub(super) content: Value,
}

impl Request {
    /// Reads a message from its frames.
    ///
    /// # Errors
    /// Fails when it is not one, or its signature is wrong.
    pub(super) fn parse(mut frames: Frames, connection: &Connection) -> Result<Self> {
        let delimiter =
            frames.iter().position(|frame| frame == DELIMITER).context("a message without its delimiter")?;
        let rest = frames.split_off(delimiter);
        let [_, signature, parts @ ..] = rest.as_slice() else { bail!("a message without a signature") };
        let [header, _parent, _metadata, content, ..] = parts else { bail!("a message of {} parts", parts.len()) };
        if !connection.is_signed(&parts[..4], signature) {
            bail!("a message whose signature is wrong");
        }
        let parse = |part: &[u8]| serde_json::from_slice(part).context("a message that is not JSON");
        Ok(Request { identities: frames, header: parse(header)?, content: parse(content)? })
    }

    /// `execute_request` and the like.
    pub(super) fn kind(&self) -> &str {
        self.header["msg_type"].as_str().unwrap_or_default()
    }

    /// The cell's source, of the requests that have one.
    pub(super) fn code(&self) -> &str {
        self.content["code"].as_str().unwrap_or_default()
    }

    /// Byte position of the cursor in [`code`](Self::code); the protocol counts code points.
    pub(super) fn cursor(&self) -> usize {
        let position = self.content["cursor_pos"].as_u64().unwrap_or(u64::MAX) as usize;
        self.code().char_indices().nth(position).map_or(self.code().len(), |(byte, _)| byte)
    }
}

/// The frames of a question to who sent `request`.
pub(super) fn question(request: &Request, session: &str, content: &Value, connection: &Connection) -> Frames {
    let mut frames = request.identities.clone();
    frames.extend(signed("input_request", &request.header, session, content, connection));
    frames
}

/// The frames of the answer to `request`, addressed to who asked.
pub(super) fn reply(request: &Request, session: &str, content: &Value, connection: &Connection) -> Frames {
    let kind = request.kind().replace("_request", "_reply");
    let mut frames = request.identities.clone();
    frames.extend(signed(&kind, &request.header, session, content, connection));
    frames
}

/// The frames of something that all clients see; `parent` is the header of the request that caused it.
pub(super) fn broadcast(kind: &str, parent: &Value, session: &str, content: &Value, connection: &Connection) -> Frames {
    let mut frames = vec![kind.as_bytes().to_vec()];
    frames.extend(signed(kind, parent, session, content, connection));
    frames
}

fn signed(kind: &str, parent: &Value, session: &str, content: &Value, connection: &Connection) -> Frames {
    let header = json!({
        "msg_id": random_id(),
        "session": session,
        "username": "kernel",
        "date": date(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
        "msg_type": kind,
        "version": PROTOCOL,
    });
    let parts: Frames = [&header, parent, &json!({}), content].map(|part| part.to_string().into_bytes()).into();
    let mut frames = vec![DELIMITER.to_vec(), connection.sign(&parts).into_bytes()];
    frames.extend(parts);
    frames
}

/// An identifier that no other message and session has.
pub(super) fn random_id() -> String {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

/// ISO 8601 in UTC.
fn date(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    // Days since 1 March of the year 0, so that a leap day is a year's last; in eras of 400 years.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year_of_era + u64::from(month >= 10), (month + 2) % 12 + 1);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since_epoch.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(key: &str) -> Connection {
        let text = json!({
            "ip": "127.0.0.1", "transport": "tcp", "key": key, "shell_port": 1, "iopub_port": 2, "stdin_port": 3,
            "control_port": 4, "hb_port": 5, "kernel_name": "lacuna",
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn signatures_are_those_of_rfc_4231() {
        let jefe = connection("Jefe");
        let parts = [b"what do ya want ".to_vec(), b"for nothing?".to_vec()];
        let signature = jefe.sign(&parts);
        assert_eq!(signature, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        assert!(jefe.is_signed(&parts, signature.as_bytes()));
        for wrong in ["", "5b", "5bd", "nothing in hexadecimal", &signature.replace('5', "6")] {
            assert!(!jefe.is_signed(&parts, wrong.as_bytes()), "{wrong}");
        }
        assert_eq!(connection("").sign(&parts), "");
    }

    #[test]
    fn dates_are_civil() {
        assert_eq!(date(Duration::ZERO), "1970-01-01T00:00:00.000000Z");
        assert_eq!(date(Duration::from_millis(951_868_799_250)), "2000-02-29T23:59:59.250000Z");
        assert_eq!(date(Duration::from_secs(1_767_225_600)), "2026-01-01T00:00:00.000000Z");
    }

    #[test]
    fn only_signed_messages_are_read() {
        let secret = connection("secret");
        let request = Request {
            identities: vec![b"client".to_vec()],
            header: json!({"msg_type": "execute_request"}),
            content: Value::Null,
        };
        let answer = reply(&request, "session", &json!({"code": "é=1", "cursor_pos": 1}), &secret);
        let read = Request::parse(answer.clone(), &secret).unwrap();
        assert_eq!((read.kind(), read.cursor(), read.identities.len()), ("execute_reply", 2, 1));
        assert!(Request::parse(answer.clone(), &connection("other")).unwrap_err().to_string().contains("signature"));
        assert!(Request::parse(answer[..4].to_vec(), &secret).is_err());
        let plain = broadcast("status", &Value::Null, "session", &json!({}), &connection(""));
        assert_eq!(plain[0], b"status");
        assert_eq!(Request::parse(plain, &connection("")).unwrap().kind(), "status");
    }

    #[test]
    fn foreign_connection_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel.json");
        for (text, expected) in [
            ("{", "no connection file"),
            (
                r#"{"ip": "i", "transport": "ipc", "key": "", "shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}"#,
                "not on ipc",
            ),
        ] {
            fs::write(&path, text).unwrap();
            assert!(Connection::read(&path).unwrap_err().to_string().contains(expected));
        }
    }
}
