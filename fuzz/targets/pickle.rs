//! Pickles of `torch.save`, in archives and in files of PyTorch before 1.6.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    lacuna_fuzz::within(bytes, 64 << 10, 512, || lacuna::fuzzing::pickle(bytes))
});
