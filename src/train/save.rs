//! The files that a run writes: its state while it lasts, the model at its end.

use super::{TrainConfig, TrainRecord, Trainer};
use crate::checkpoint::{CheckpointWriter, TensorPlan, dtype_of};
use crate::error::{Error, Remedy, Result};
use crate::settings::FloatType;
use crate::text::{END_OF_TEXT, Tokenizer, write_whole};
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Hugging Face's `config.json`, with the fields that candle-transformers asks for beside.
pub(super) fn config_json(config: &TrainConfig, end_of_text: u32) -> Map<String, Value> {
    let (architecture, model_type) =
        if config.moe.is_some() { ("MixtralForCausalLM", "mixtral") } else { ("LlamaForCausalLM", "llama") };
    let dtype = match config.dtype {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::Bf16 => "bfloat16",
        FloatType::F64 => "float64",
    };
    let mut map = Map::new();
    let mut set = |key: &str, value: Value| drop(map.insert(key.to_owned(), value));
    set("architectures", json!([architecture]));
    set("model_type", model_type.into());
    set("vocab_size", config.vocab_size.into());
    set("hidden_size", config.hidden_size.into());
    set("intermediate_size", config.intermediate_size.into());
    set("num_hidden_layers", config.layers.into());
    set("num_attention_heads", config.heads.into());
    set("num_key_value_heads", config.kv_heads.into());
    set("head_dim", (config.hidden_size / config.heads).into());
    set("hidden_act", "silu".into());
    set("max_position_embeddings", config.seqlen.into());
    set("rms_norm_eps", json!(1e-5));
    set("rope_theta", json!(10000.0));
    set("tie_word_embeddings", config.tie_word_embeddings.into());
    set("attention_dropout", json!(0.0));
    set("initializer_range", json!(0.02));
    match config.moe {
        None => {
            set("attention_bias", false.into());
            set("mlp_bias", false.into());
        }
        Some(moe) => {
            set("num_local_experts", moe.experts.into());
            set("num_experts_per_tok", moe.top_k.into());
            set("router_aux_loss_coef", super::BALANCE.into());
            // candle-transformers wants both; a window as long as the context changes nothing.
            set("sliding_window", config.seqlen.into());
            set("use_flash_attn", false.into());
        }
    }
    set("bos_token_id", end_of_text.into());
    set("eos_token_id", end_of_text.into());
    set("torch_dtype", dtype.into());
    set("use_cache", true.into());
    map
}

/// Writes the model's directory.
pub(super) fn model(
    out: &Path,
    config: &TrainConfig,
    tokenizer: &Tokenizer,
    tensors: &[(String, Tensor)],
    record: &TrainRecord,
) -> Result<()> {
    let dtype = dtype_of(config.dtype.into())?;
    let plan = tensors.iter().map(|(name, tensor)| (name.clone(), dtype, tensor.dims().to_vec())).collect();
    let mut writer = CheckpointWriter::create(out, split(plan, config.shards))?;
    for (name, tensor) in tensors {
        writer.write_tensor(name, tensor)?;
    }
    let end_of_text = tokenizer.id(END_OF_TEXT).unwrap_or_default();
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": config.seqlen,
        "clean_up_tokenization_spaces": false,
    });
    writer.add_file("config.json", &pretty(&config_json(config, end_of_text), out)?)?;
    writer.add_file("tokenizer.json", tokenizer.to_json()?.as_bytes())?;
    writer.add_file("tokenizer_config.json", &pretty(&tokenizer_config, out)?)?;
    writer.add_file("lacuna.json", &pretty(record, out)?)?;
    writer.finish()
}

fn pretty(value: &impl serde::Serialize, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| Error::file(path, error))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Deals the tensors, in order, to `shards` files of about the same size.
fn split(tensors: Vec<TensorPlan>, shards: usize) -> Vec<Vec<TensorPlan>> {
    let size = |(_, _, shape): &TensorPlan| shape.iter().product::<usize>();
    let total: usize = tensors.iter().map(size).sum();
    let mut files = vec![Vec::new(); shards];
    let mut before = 0;
    for tensor in tensors {
        let elements = size(&tensor);
        files[(before * shards / total.max(1)).min(shards - 1)].push(tensor);
        before += elements;
    }
    files.retain(|file| !file.is_empty());
    files
}

const WEIGHTS: &str = "weights";
const FIRST: &str = "first_moments";
const SECOND: &str = "second_moments";

impl Trainer {
    /// The path of the state of an unfinished run: a hidden file beside `out`.
    pub fn state_path(&self) -> PathBuf {
        let name = self.out.file_name().unwrap_or(self.out.as_os_str()).to_string_lossy();
        self.out.with_file_name(format!(".{name}.training"))
    }

    /// SHA-256 of everything that determines the run.
    fn fingerprint(&self) -> Result<String> {
        let identity =
            serde_json::to_vec(&(&self.config, &self.corpus)).map_err(|error| Error::file(&self.out, error))?;
        Ok(hex::encode(Sha256::digest(identity)))
    }

    /// Saves weights, moments and the number of steps taken, all or nothing.
    ///
    /// # Errors
    /// Fails when the file cannot be written.
    pub fn save_state(&self) -> Result<()> {
        let path = self.state_path();
        let weights =
            self.vars.iter().map(|var| Ok(var.flatten_all()?.to_vec1()?)).collect::<Result<Vec<Vec<f32>>>>()?;
        let mut tensors = Vec::new();
        for (kind, values) in [(WEIGHTS, &weights), (FIRST, &self.optimizer.first), (SECOND, &self.optimizer.second)] {
            for (name, values) in self.names.iter().zip(values) {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                tensors.push((format!("{kind}/{name}"), values.len(), bytes));
            }
        }
        let views = tensors
            .iter()
            .map(|(name, len, bytes)| Ok((name.as_str(), TensorView::new(safetensors::Dtype::F32, vec![*len], bytes)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>();
        let metadata =
            HashMap::from([("steps".to_owned(), self.done.to_string()), ("run".to_owned(), self.fingerprint()?)]);
        let bytes = views
            .and_then(|views| safetensors::serialize(views, Some(metadata)))
            .map_err(|error| Error::file(&path, error))?;
        write_whole(&path, &bytes)
    }

    /// Takes up a saved state, if there is one.
    pub(super) fn restore_state(&mut self) -> Result<()> {
        let path = self.state_path();
        if !path.exists() {
            return Ok(());
        }
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let damaged = |what: &dyn std::fmt::Display| {
            Error::file(
                &path,
                format!("is no saved state of a training run ({what})").remedy("remove it to start anew"),
            )
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(&error))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let fingerprint = self.fingerprint()?;
        if metadata.get("run") != Some(&fingerprint) {
            let problem = "is the state of a run with another configuration or corpus"
                .remedy("finish that one with its own arguments, or remove the file to start anew");
            return Err(Error::file(&path, problem));
        }
        let steps = metadata.get("steps").and_then(|steps| steps.parse().ok());
        let done = steps.filter(|&done| done <= self.config.steps).ok_or_else(|| damaged(&"no count of steps"))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| damaged(&error))?;
        let read = |kind: &str, name: &str, len: usize| -> Result<Vec<f32>> {
            let view = file.tensor(&format!("{kind}/{name}")).map_err(|error| damaged(&error))?;
            let values = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            if view.dtype() != safetensors::Dtype::F32 || values.len() != len {
                return Err(damaged(&format!("{kind} of {name} have another size")));
            }
            Ok(values.collect())
        };
        for (i, (name, var)) in self.names.iter().zip(&self.vars).enumerate() {
            let len = var.elem_count();
            var.set(&Tensor::from_vec(read(WEIGHTS, name, len)?, var.shape(), &Device::Cpu)?)?;
            self.optimizer.first[i] = read(FIRST, name, len)?;
            self.optimizer.second[i] = read(SECOND, name, len)?;
        }
        self.done = done;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_of_about_one_size_and_keep_the_order() {
        let plan: Vec<TensorPlan> = [4, 1, 1, 4, 2]
            .iter()
            .enumerate()
            .map(|(i, &n)| (i.to_string(), safetensors::Dtype::F32, vec![n]))
            .collect();
        let names = |shards: usize| -> Vec<String> {
            let files = split(plan.clone(), shards);
            files.iter().map(|file| file.iter().map(|(name, ..)| name.as_str()).collect()).collect()
        };
        assert_eq!(names(1), ["01234"]);
        assert_eq!(names(2), ["012", "34"]);
        assert_eq!(names(12), ["0", "1", "2", "3", "4"], "no empty files");
    }
}
