//! Entry point of the fuzz target for pickles of `torch.save`.

use super::{pickle, pt};
use std::path::Path;

/// Bytes of the storage that every tensor of a fuzzed pickle is a view of.
const STORAGE: usize = 256;

/// Reads `bytes` as the pickle of an archive, or as a file of PyTorch before 1.6 where they begin like one. No mask has more
/// elements than the storage that it is a view of.
pub fn pickle(bytes: &[u8]) {
    let path = Path::new("fuzzed");
    if pickle::is_legacy(bytes) {
        if let Ok(found) = pt::read_legacy(path, bytes) {
            for (name, mask) in &found.masks {
                let (rows, cols) = mask.shape();
                assert!(rows * cols <= bytes.len(), "{name}: {rows} x {cols} of {} bytes", bytes.len());
            }
        }
        return;
    }
    let Ok(entries) = pickle::entries(bytes) else { return };
    let (convention, count) = (pt::convention(&entries), entries.len());
    if let Ok(masks) = pt::masks(path, entries, convention, |_| Ok(vec![0; STORAGE])) {
        assert!(masks.len() <= count);
        for (name, mask) in &masks {
            let (rows, cols) = mask.shape();
            assert!(rows * cols <= STORAGE, "{name}: {rows} x {cols} of {STORAGE} bytes");
        }
    }
}
