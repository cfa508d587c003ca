//! Entry points of the fuzz targets for headers of safetensors files and `Content-Range`.

use super::{header, http};
use safetensors::SafeTensors;
use std::path::Path;

/// Reads `bytes` as a safetensors file. What is read tiles the file, each tensor with the bytes of its type and shape, and
/// is what the format's own reader finds.
pub fn safetensors_header(bytes: &[u8]) {
    let (path, size) = (Path::new("fuzzed"), bytes.len() as u64);
    let first = &bytes[..bytes.len().min(header::LENGTH_BYTES as usize)];
    let Ok(length) = header::length(path, size, first) else { return };
    let data_start = header::LENGTH_BYTES + length;
    let json = bytes[header::LENGTH_BYTES as usize..data_start as usize].to_vec();
    let Ok(tensors) = header::parse(path, size, json, 3) else { return };
    let mut end = data_start;
    for tensor in &tensors {
        assert_eq!((tensor.range.start, tensor.shard), (end, 3), "{tensor:?}");
        assert_eq!(header::byte_len(tensor.dtype, &tensor.shape), Some(tensor.bytes()), "{tensor:?}");
        end = tensor.range.end;
    }
    assert_eq!(end, size, "bytes of no tensor");
    let theirs = SafeTensors::deserialize(bytes).expect("the format's own reader refuses it");
    assert_eq!(theirs.len(), tensors.len());
    for tensor in &tensors {
        let view = theirs.tensor(&tensor.name).expect("the format's own reader does not find it");
        assert_eq!((view.dtype(), view.shape()), (tensor.dtype, &tensor.shape[..]), "{tensor:?}");
        assert_eq!(view.data(), &bytes[tensor.range.start as usize..tensor.range.end as usize], "{tensor:?}");
    }
}

/// Reads `bytes` as the value of a `Content-Range`. A range is not empty and within the file, and reads the same written out.
pub fn content_range(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Some((range, total)) = http::content_range(text) else { return };
    let known = |number: Option<u64>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    let place = range.as_ref().map_or_else(|| "*".to_owned(), |range| format!("{}-{}", range.start, range.end - 1));
    if let Some(range) = &range {
        assert!(range.start < range.end && total.is_none_or(|total| range.end <= total), "{text:?}: {range:?}");
    }
    let again = http::content_range(&format!("bytes {place}/{}", known(total)));
    assert_eq!(again, Some((range, total)), "{text:?}");
}
