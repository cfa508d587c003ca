//! Values of `Content-Range`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lacuna_fuzz::within(bytes, 4 << 10, 16, || lacuna::fuzzing::content_range(bytes))
});
