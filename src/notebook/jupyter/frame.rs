//! Frames of ZMTP 3.0, and the properties in a command READY: what is read of a client before anything is known of it.
//!
//! It needs the standard library only, as the fuzz target of frames is made of this file.

use std::io::{self, ErrorKind, Read};

/// The flag of a frame that another one of the same message follows.
pub(super) const MORE: u8 = 1;
/// The flag of a frame whose length has eight bytes, not one.
pub(super) const LONG: u8 = 2;
/// The flag of a frame that is a command between the sockets, no part of a message.
pub(super) const COMMAND: u8 = 4;

/// Far beyond any cell; a longer frame comes from something that does not speak the protocol.
const LONGEST_FRAME: u64 = 1 << 30;

/// The value of a property, whose name may be written in any case, in a READY command behind its name.
pub(super) fn property(mut rest: &[u8], wanted: &[u8]) -> Option<Vec<u8>> {
    loop {
        let (length, after) = rest.split_first()?;
        let (name, after) = after.split_at_checked(usize::from(*length))?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let (value, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value.to_vec());
        }
        rest = after;
    }
}

/// Appends a frame with these flags; that of its length is set here.
pub(super) fn push_frame(bytes: &mut Vec<u8>, flags: u8, body: &[u8]) {
    match u8::try_from(body.len()) {
        Ok(length) => bytes.extend([flags, length]),
        Err(_) => {
            bytes.push(flags | LONG);
            bytes.extend((body.len() as u64).to_be_bytes());
        }
    }
    bytes.extend(body);
}

/// Reads the flags and the body of one frame.
pub(super) fn read_frame(reader: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut flags = [0];
    reader.read_exact(&mut flags)?;
    let length = if flags[0] & LONG != 0 {
        let mut length = [0; 8];
        reader.read_exact(&mut length)?;
        u64::from_be_bytes(length)
    } else {
        let mut length = [0];
        reader.read_exact(&mut length)?;
        u64::from(length[0])
    };
    if length > LONGEST_FRAME {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("a frame of {length} bytes")));
    }
    // Not allocated up front: the length is only a claim.
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    if body.len() as u64 != length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok((flags[0], body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_is_found_or_nothing_is() {
        let ready = b"\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\x02me";
        assert_eq!(property(ready, b"identity").as_deref(), Some(&b"me"[..]));
        assert_eq!(property(ready, b"socket-type").as_deref(), Some(&b"DEALER"[..]));
        for end in 0..ready.len() {
            assert_eq!(property(&ready[..end], b"identity"), None, "cut after {end} bytes");
        }
        assert_eq!(property(b"\x08Identity\xff\xff\xff\xffme", b"identity"), None);
    }

    #[test]
    fn frames_are_read_as_written() {
        for length in [0, 1, 255, 256, 70_000] {
            let mut bytes = Vec::new();
            push_frame(&mut bytes, MORE, &vec![7; length]);
            let (flags, body) = read_frame(&mut &bytes[..]).unwrap();
            assert_eq!((flags & MORE, body.len()), (MORE, length));
            assert!(read_frame(&mut &bytes[..bytes.len() - 1]).is_err());
        }
        let claim = [&[LONG][..], &u64::MAX.to_be_bytes()].concat();
        assert_eq!(read_frame(&mut &claim[..]).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
