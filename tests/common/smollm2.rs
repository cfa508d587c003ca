//! SmolLM2-135M and its reference numbers (tests/data/README.md).
#![allow(dead_code, clippy::allow_attributes, reason = "most test files use a part of it")]

use candle_core::npy::NpzTensors;
use candle_core::{DType, Device, Tensor};
use lacuna::checkpoint::{Checkpoint, import_gguf};
use lacuna::evaluate::evaluate;
use lacuna::mask::Mask;
use lacuna::model::Model;
use lacuna::progress::Progress;
use lacuna::text::{Consecutive, Sampling, Windows};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub(crate) const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

pub(crate) fn npz(path: &str, name: &str) -> Tensor {
    let path = format!("{DATA}/{path}");
    NpzTensors::new(&path).unwrap().get(name).unwrap().unwrap_or_else(|| panic!("{path} holds no {name}"))
}

pub(crate) fn json_windows(path: &str, windows: usize, seqlen: usize) -> Windows {
    Windows::evaluation(format!("{DATA}/{path}"), None, Consecutive::of(seqlen).first(windows)).unwrap()
}

/// SmolLM2-135M in f32, imported once.
pub(crate) fn smollm2() -> &'static Model {
    static MODEL: OnceLock<(tempfile::TempDir, Model)> = OnceLock::new();
    let (_, model) = MODEL.get_or_init(|| {
        let gguf = std::env::var_os("LACUNA_SMOLLM2_GGUF").map(PathBuf::from);
        let gguf = gguf.expect("LACUNA_SMOLLM2_GGUF names the GGUF file; scripts/smollm2.sh fetches it");
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("smollm2");
        import_gguf(&gguf, &out, DType::F32, Progress::Hidden).unwrap();
        let model = Model::open(&Checkpoint::open(&out).unwrap(), DType::F32, &Device::Cpu).unwrap();
        (dir, model)
    });
    model
}

pub(crate) fn calibration() -> Windows {
    Windows::calibration(Path::new(DATA).join("smollm2/calib.json"), None, Sampling::new(16, 512)).unwrap()
}

pub(crate) fn nll(model: &Model) -> f64 {
    evaluate(model, &json_windows("smollm2/eval.json", 8, 512), Progress::Hidden).unwrap().nll_nats
}

/// `model.layers.0.self_attn.q_proj.weight` as the oracles call it: `block0.self_attn.q_proj`.
pub(crate) fn oracle_name(name: &str) -> String {
    name.replace("model.layers.", "block").replace(".weight", "")
}

pub(crate) fn differing_bits(mask: &Mask, oracle: &str, name: &str) -> u32 {
    let rows: Vec<Vec<u8>> = npz(oracle, &oracle_name(name)).to_vec2().unwrap();
    // Rows are whole bytes in this model, so that packing by row and packing flat agree.
    mask.to_packbits().iter().zip(rows.concat()).map(|(ours, theirs)| (ours ^ theirs).count_ones()).sum()
}
