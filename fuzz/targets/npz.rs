//! Masks in NumPy's archives: what is read is written, and reads the same.
#![no_main]

use lacuna::mask::MaskSet;
use std::fs;

/// The most bytes that one byte of a deflated entry stands for.
const DEFLATED: usize = 1032;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let path = lacuna_fuzz::scratch("input.npz");
    fs::write(&path, bytes).expect("the input cannot be written");
    let Ok(masks) = lacuna_fuzz::within(bytes, 256 << 10, 4 * DEFLATED, || MaskSet::load(&path)) else { return };
    let again = lacuna_fuzz::scratch("again.npz");
    masks.save(&again).expect("what was read cannot be written");
    assert_eq!(MaskSet::load(&again).expect("what was written cannot be read"), masks);
    fs::remove_file(&again).expect("the output cannot be removed");
});
