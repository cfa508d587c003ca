//! GGUF files, which are imported: a checkpoint that comes of it opens, and is as large as it is said to be.
#![no_main]

use lacuna::candle_core::DType;
use lacuna::checkpoint::{Checkpoint, import_gguf};
use lacuna::progress::Progress;
use std::fs;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (path, out) = (lacuna_fuzz::scratch("input.gguf"), lacuna_fuzz::scratch("out"));
    fs::write(&path, bytes).expect("the input cannot be written");
    let import = || import_gguf(&path, &out, DType::F32, Progress::Hidden);
    let Ok(summary) = lacuna_fuzz::within(bytes, 1 << 20, 512, import) else { return };
    let checkpoint = Checkpoint::open(&out).expect("what was written cannot be opened");
    assert_eq!((checkpoint.tensors().count(), checkpoint.parameters()), (summary.tensors, summary.parameters));
    fs::remove_dir_all(&out).expect("the output cannot be removed");
});
