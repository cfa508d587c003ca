//! Cache keys: digests of everything that decides about a result.

use super::Lab;
use crate::cache::Key;
use crate::checkpoint::{Array, Checkpoint, CheckpointWriter};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::prune::PruneConfig;
use crate::text::{Tokenizer, Windows};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use safetensors::Dtype;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;

/// The expensive steps whose results are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Windows of a text.
    Tokens,
    /// Column norms of every linear's input.
    Statistics,
    /// Gram matrices of the inputs of a layer's linears.
    Grams,
    /// Gradients of every linear.
    Gradients,
    /// Masks, or changed weights, of a pruned model.
    Pruned,
    /// Masks of many methods and sparsities.
    Masks,
    /// Losses of a text.
    Evaluation,
    /// Scores on a multiple-choice task.
    Choices,
    /// Scores of generated answers.
    Answers,
    /// Generated text.
    Text,
    /// Scores of experts.
    Experts,
}

crate::error::named!(Stage, "stage",
    Tokens => "tokens", Statistics => "statistics", Grams => "grams", Gradients => "gradients", Pruned => "pruned",
    Masks => "masks", Evaluation => "evaluation", Choices => "choices", Answers => "answers", Text => "text",
    Experts => "experts");

impl Stage {
    /// The version of the stage's code: to be raised whenever the same inputs may give other bytes than before, be it in the
    /// stage's own code, in an operator below it, or in the files that are kept. Versions of the crate tell themselves apart.
    fn version(self) -> u32 {
        match self {
            Stage::Choices | Stage::Answers | Stage::Text | Stage::Experts => 1,
            Stage::Tokens | Stage::Statistics | Stage::Grams | Stage::Gradients | Stage::Evaluation => 2,
            Stage::Pruned | Stage::Masks => 4,
        }
    }
}

/// The identity of the lab's model: its weights and config, its dtype, and the device that computes with it.
#[derive(Clone, Debug)]
pub(super) struct Identity(Value);

impl Identity {
    pub(super) fn of(model: &Model, checkpoint: &Checkpoint) -> Result<Identity> {
        let config = serde_json::Value::Object(checkpoint.config()?).to_string();
        Ok(Identity(json!({
            "weights": checkpoint.sha256()?,
            "config": hex::encode(Sha256::digest(config)),
            "dtype": model.dtype().as_str(),
            "device": processor(model.device()),
        })))
    }
}

/// The properties of a device that the last digits of a matrix product depend on.
fn processor(device: &Device) -> String {
    match device {
        Device::Cpu => {
            #[cfg(target_arch = "x86_64")]
            let features = [
                ("avx2", is_x86_feature_detected!("avx2")),
                ("fma", is_x86_feature_detected!("fma")),
                ("avx512f", is_x86_feature_detected!("avx512f")),
            ];
            #[cfg(not(target_arch = "x86_64"))]
            let features: [(&str, bool); 0] = [];
            let has = features.iter().filter(|(_, has)| *has).map(|(name, _)| format!(" {name}"));
            std::iter::once(std::env::consts::ARCH.to_owned()).chain(has).collect()
        }
        other => format!("{:?}", other.location()),
    }
}

impl Lab {
    /// A stage's key: the model, and `inputs`.
    pub(super) fn key(&self, stage: Stage, inputs: Value) -> Key {
        Key::new(stage.name(), stage.version(), json!({"model": self.identity.0, "of": inputs}))
    }

    pub(super) fn pruned_key(&self, config: &PruneConfig) -> Result<Key> {
        let calibration = self.calibration.as_ref().filter(|_| config.needs_calibration());
        let inputs = json!({"windows": calibration.map(Windows::sha256), "config": serialised(config)?});
        Ok(self.key(Stage::Pruned, inputs))
    }

    pub(super) fn evaluation_key(&self, content: &str, test: &Windows) -> Key {
        self.key(Stage::Evaluation, json!({"content": content, "windows": test.sha256()}))
    }

    /// Identifies a model's weights: `dense` for those of the lab's model, else a hash. Tensors that are shared with
    /// the lab's model need not be read for it.
    pub(super) fn content(&self, model: &Model) -> Result<String> {
        let alike = model.config() == self.model.config()
            && model.dtype() == self.model.dtype()
            && model.device().same_device(self.model.device());
        let mut hash = Sha256::new();
        if let Some(checkpoint) = model.checkpoint() {
            let sha256 = checkpoint.sha256()?;
            if alike && self.model.checkpoint().map(Checkpoint::sha256).transpose()?.as_ref() == Some(&sha256) {
                return Ok("dense".to_owned());
            }
            hash.update(format!("checkpoint\0{sha256}\0{} {}", serialised(model.config())?, model.dtype().as_str()));
            hash.update(processor(model.device()));
            return Ok(hex::encode(hash.finalize()));
        }
        if !alike {
            let device = processor(model.device());
            hash.update(format!("{} {} {device}", serialised(model.config())?, model.dtype().as_str()));
        }
        let names = model.config().divided();
        let digests = names.par_iter().map(|(name, _)| {
            if alike && self.model.shares(model, name)? {
                return Ok(None);
            }
            digest(&model.tensor(name)?).map(Some)
        });
        let mut dense = alike;
        for ((name, shape), digest) in names.iter().zip(digests.collect::<Result<Vec<_>>>()?) {
            if let Some(digest) = digest {
                dense = false;
                hash.update(format!("{name}\0{shape:?}\0"));
                hash.update(digest);
            }
        }
        Ok(if dense { "dense".to_owned() } else { hex::encode(hash.finalize()) })
    }

    /// Windows of a text, which `compute` takes with the model's tokenizer.
    pub(super) fn tokens(
        &self,
        text: &Path,
        inputs: Value,
        compute: impl FnOnce(Option<&Tokenizer>) -> Result<Windows>,
    ) -> Result<Windows> {
        // Without a tokenizer windows of token ids can be read, and nothing else.
        let tokenizer = self.model.checkpoint().map(|checkpoint| checkpoint.dir().join("tokenizer.json"));
        let Some(tokenizer) = tokenizer.filter(|path| path.is_file()) else { return compute(None) };
        let sha256 = |path: &Path| -> Result<String> {
            let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
            Ok(hex::encode(Sha256::digest(bytes)))
        };
        let text_sha256 = self.cache.sha256_of(&[text.to_path_buf()], self.progress, || sha256(text))?;
        // Where its content leaves it open, a file is what it is called.
        let extension = text.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let inputs = json!({
            "text": text_sha256, "extension": extension, "tokenizer": sha256(&tokenizer)?, "windows": inputs,
        });
        let key = Key::new(Stage::Tokens.name(), Stage::Tokens.version(), inputs);
        let name = text.file_name().unwrap_or(text.as_os_str()).to_string_lossy().into_owned();
        let windows = self.stage(
            &key,
            name.clone(),
            |dir, _| {
                let saved = Checkpoint::open_arrays(&dir.join("tokens"))?;
                let seqlen = saved.get("ids")?.shape.last().copied().unwrap_or_default();
                let ids = saved.array("ids", u32::from_le_bytes)?;
                let ids = ids.chunks(seqlen.max(1)).map(<[u32]>::to_vec).collect();
                Ok(Windows { name: name.clone(), seqlen, ids })
            },
            || compute(Some(&self.model.tokenizer()?)),
            |windows, dir| {
                let ids: Vec<u32> = windows.ids.iter().flatten().copied().collect();
                let shape = vec![windows.ids.len(), windows.seqlen];
                let mut writer =
                    CheckpointWriter::arrays(&dir.join("tokens"), vec![("ids".into(), Dtype::U32, shape)])?;
                writer.write_array("ids", Array::U32(&ids))?;
                writer.finish()?;
                Ok(Value::Null)
            },
        )?;
        Ok(windows)
    }
}

/// A configuration as it stands in a key: every field, by its name.
pub(super) fn serialised(config: &impl Serialize) -> Result<Value> {
    serde_json::to_value(config).map_err(|error| Error::file("the cache's key", error))
}

/// SHA-256 of a tensor's values.
fn digest(tensor: &Tensor) -> Result<[u8; 32]> {
    let tensor = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    let mut hash = Sha256::new();
    macro_rules! update {
        ($type:ty) => {
            // In pieces, so that a weight is not held twice.
            for start in (0..tensor.elem_count()).step_by(1 << 16) {
                let len = (tensor.elem_count() - start).min(1 << 16);
                let values: Vec<$type> = tensor.narrow(0, start, len)?.to_vec1()?;
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                hash.update(bytes);
            }
        };
    }
    match tensor.dtype() {
        DType::F32 => update!(f32),
        DType::F16 => update!(half::f16),
        DType::BF16 => update!(half::bf16),
        DType::F64 => update!(f64),
        DType::U8 => update!(u8),
        other => return Err(Error::argument("dtype", other.as_str(), "a model's tensors are floats or packed bytes")),
    }
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocate::Allocation;
    use crate::dsnot::Dsnot;
    use crate::mask::{Pattern, Per, Ties};
    use crate::prune::{Method, Propagate};
    use std::collections::HashSet;

    #[test]
    fn configurations_that_differ_in_any_setting_have_different_keys() {
        let base = PruneConfig::new(Method::Wanda, 0.5);
        let with = |change: &dyn Fn(&mut PruneConfig)| {
            let mut config = base.clone();
            change(&mut config);
            config
        };
        let dsnot = Dsnot::default();
        let configs = [
            base.clone(),
            with(&|config| config.method = Method::Ria),
            with(&|config| config.pattern = Pattern::NofM { n: 2, m: 4 }),
            with(&|config| config.per = Per::Layer),
            with(&|config| config.sparsity = 0.5 + f64::EPSILON),
            with(&|config| config.allocation = Allocation::Global),
            with(&|config| config.allocation = "owl:5:0.08".parse().unwrap()),
            with(&|config| config.allocation = "owl:5:0.09".parse().unwrap()),
            with(&|config| config.rules = vec!["*.o_proj=skip".parse().unwrap()]),
            with(&|config| config.ties = Ties::Reference),
            with(&|config| config.refine = Some(dsnot)),
            with(&|config| config.refine = Some(Dsnot { max_cycles: 49, ..dsnot })),
            with(&|config| config.refine = Some(Dsnot { threshold: 0.2, ..dsnot })),
            with(&|config| config.refine = Some(Dsnot { variance_power: 0.5, ..dsnot })),
            with(&|config| config.refine = Some(Dsnot { keep_sign: true, ..dsnot })),
            with(&|config| config.propagate = Propagate::Dense),
            with(&|config| config.seed = 1),
        ];
        let keys: HashSet<String> = configs.iter().map(|config| serialised(config).unwrap().to_string()).collect();
        assert_eq!(keys.len(), configs.len());
    }
}
