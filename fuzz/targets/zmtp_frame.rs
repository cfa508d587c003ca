//! Frames of ZMTP, and the properties of a command READY.
#![no_main]

#[expect(dead_code, reason = "the flags of frames mean nothing here")]
#[path = "../../src/notebook/jupyter/frame.rs"]
mod frame;

use frame::{LONG, property, push_frame, read_frame};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lacuna_fuzz::within(bytes, 4 << 10, 8, || frames(bytes));
    lacuna_fuzz::within(bytes, 4 << 10, 8, || properties(bytes));
});

/// Frames take bytes from the input in turn, and read the same when they are written; one that is cut off is an error.
fn frames(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        let before = rest;
        let Ok((flags, body)) = read_frame(&mut rest) else { return };
        let taken = &before[..before.len() - rest.len()];
        assert!(taken.ends_with(&body));
        assert!(read_frame(&mut &taken[..taken.len() - 1]).is_err(), "a frame without its end");
        let mut written = Vec::new();
        push_frame(&mut written, flags & !LONG, &body);
        // A short body may have come with a long length.
        let (again, same) = read_frame(&mut &written[..]).expect("what was written cannot be read");
        assert_eq!((again & !LONG, same), (flags & !LONG, body));
    }
}

/// A property is a part of the input, behind its length.
fn properties(bytes: &[u8]) {
    if let Some(value) = property(bytes, b"identity") {
        let told = [&(value.len() as u32).to_be_bytes()[..], &value].concat();
        assert!(bytes.windows(told.len()).any(|window| window == told));
    }
}
