//! The entry about sparse weights in `config.json`, as compressed-tensors writes it:
//! `quantization_config.sparsity_config`.

use super::SparseFormat;
use crate::error::{Error, Remedy, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Keys under which compressed-tensors looks for the entry, now and in its first versions.
const HOLDERS: [&str; 2] = ["quantization_config", "compression_config"];
const ENTRY: &str = "sparsity_config";
/// The format's name in the entry when a tensor is 2:4, for which compressed-tensors has none.
const OWN: &str = "lacuna-sparse";
/// Formats whose tensors `layout` knows.
const KNOWN: [&str; 3] = ["sparse-bitmask", "sparse-24-bitmask", OWN];
/// The version of the layout of tensors; compressed-tensors has none and ignores it.
const VERSION_KEY: &str = "lacuna_version";
const VERSION: u64 = 1;

/// Returns whether `config.json` in `dir` says that weights are stored sparse.
///
/// # Errors
/// [`Error::File`] when they are in a format or version that is not known.
pub(in crate::checkpoint) fn is_sparse(dir: &Path) -> Result<bool> {
    // Whoever needs a config hears what is wrong with it; a directory of weights may have none.
    let Ok(config) = crate::checkpoint::read_config(dir) else { return Ok(false) };
    let path = dir.join("config.json");
    let entry = HOLDERS.iter().find_map(|holder| config.get(*holder)?.get(ENTRY)).filter(|entry| !entry.is_null());
    let Some(entry) = entry else { return Ok(false) };
    let format = entry.get("format").and_then(Value::as_str).unwrap_or_default();
    if format == "dense" {
        return Ok(false);
    }
    if !KNOWN.contains(&format) {
        let problem = format!(
            "its weights are stored as `{format}` ({ENTRY}.format), and this lacuna reads {}",
            KNOWN.join(", ")
        )
        .remedy("expand them with what wrote them");
        return Err(Error::file(&path, problem));
    }
    match entry.get(VERSION_KEY) {
        None => Ok(true),
        Some(version) if version.as_u64() == Some(VERSION) => Ok(true),
        Some(version) => {
            let problem = format!(
                "its weights are stored in version {version} of the sparse layout ({ENTRY}.{VERSION_KEY}), and this \
                 lacuna reads version {VERSION}"
            )
            .remedy("take a newer lacuna");
            Err(Error::file(&path, problem))
        }
    }
}

/// A configuration as it is for dense weights.
pub(in crate::checkpoint) fn without_marker(mut config: Map<String, Value>) -> Map<String, Value> {
    for holder in HOLDERS {
        let Some(Value::Object(inner)) = config.get_mut(holder) else { continue };
        // The rest may be of a quantization, which stays.
        if inner.shift_remove(ENTRY).is_some()
            && inner
                .iter()
                .all(|(key, value)| key == "version" || key == "quant_method" && value == "compressed-tensors")
        {
            config.shift_remove(holder);
        }
    }
    config
}

/// A configuration for weights of which the tensors `stored` are sparse, `sparsity` of all elements zero.
pub(super) fn with_marker(
    config: Map<String, Value>,
    stored: &[(&str, SparseFormat)],
    sparsity: f64,
) -> Map<String, Value> {
    let mut config = without_marker(config);
    let own = stored.iter().any(|(_, format)| *format == SparseFormat::TwoOfFour);
    let targets: Vec<&str> = stored.iter().map(|(name, _)| name.strip_suffix(".weight").unwrap_or(name)).collect();
    let entry = json!({
        "format": if own { OWN } else { KNOWN[0] },
        "global_sparsity": sparsity,
        "sparsity_structure": "unstructured",
        "targets": targets,
        "ignore": [],
        VERSION_KEY: VERSION,
    });
    let holder = config.entry(HOLDERS[0]).or_insert_with(|| json!({"quant_method": "compressed-tensors"}));
    match holder {
        Value::Object(holder) => {
            holder.insert(ENTRY.to_owned(), entry);
        }
        // `null` is what some configurations have for none.
        other => *other = json!({"quant_method": "compressed-tensors", ENTRY: entry}),
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_marker_comes_and_goes() {
        let stored = [("a.weight", SparseFormat::Bitmask)];
        let plain = map(json!({"model_type": "llama", "x": 1}));
        let marked = with_marker(plain.clone(), &stored, 0.5);
        assert_eq!(marked["quantization_config"]["sparsity_config"]["format"], "sparse-bitmask");
        assert_eq!(marked["quantization_config"]["sparsity_config"]["targets"], json!(["a"]));
        assert_eq!(without_marker(marked.clone()), plain);
        assert_eq!(with_marker(marked.clone(), &stored, 0.5), marked);
        let quantized = map(json!({"quantization_config": {"quant_method": "mxfp4"}}));
        assert_eq!(without_marker(with_marker(quantized.clone(), &stored, 0.5)), quantized);
        let two = with_marker(plain, &[("a.weight", SparseFormat::TwoOfFour)], 0.5);
        assert_eq!(two["quantization_config"]["sparsity_config"]["format"], OWN);
    }
}
