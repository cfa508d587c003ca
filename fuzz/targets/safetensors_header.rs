//! Headers of safetensors files.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lacuna_fuzz::within(bytes, 64 << 10, 256, || lacuna::fuzzing::safetensors_header(bytes))
});
