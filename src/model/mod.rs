//! Language models of the Llama family and Mixtral: a forward pass with a tap on every linear's input, and blocks that are
//! loaded one at a time.
//!
//! Tensor names are Hugging Face's. Weights come from a checkpoint when asked for ([`Model::open`]), or stay in memory
//! ([`Model::load`]).

mod block;
mod config;
mod mixtral;
mod moe;
mod ops;
mod rope;

pub use block::{Block, KvCache, Linear, Tap};
pub use config::{Family, ModelConfig, MoeConfig, RopeConfig, RopeScaling, SlidingWindow};
pub use moe::{MOE_FAMILIES, MoeFamily};

pub(crate) use block::Wanted;
pub(crate) use ops::log_sum_exp;
pub(crate) use rope::Rope;

use crate::checkpoint::Checkpoint;
use crate::progress::{Progress, Stage};
use crate::record::ModelRecord;
use crate::text::Tokenizer;
use crate::{Error, Result};
use block::{Attention, FeedForward, Mlp};
use candle_core::{DType, Device, Tensor};
use mixtral::Mixture;
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A language model: its configuration and where its weights are.
#[derive(Clone, Debug)]
pub struct Model {
    name: String,
    config: Arc<ModelConfig>,
    source: Source,
    /// Where config and tokenizer are, and the weights unless `changed`.
    checkpoint: Option<Checkpoint>,
    /// Whether some weights in memory are no longer those of the checkpoint.
    changed: bool,
    dtype: DType,
    device: Device,
}

#[derive(Clone, Debug)]
enum Source {
    /// Each tensor is read when asked for.
    Checkpoint(Checkpoint),
    /// All tensors are in memory, on the device.
    Resident(Arc<HashMap<String, Tensor>>),
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

impl Model {
    /// A model whose blocks are read from `checkpoint` as they are needed, in `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::File`] for an unsupported or inconsistent `config.json`; [`Error::Tensor`] when a tensor that the config
    /// calls for is missing or has another shape.
    pub fn open(checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Result<Model> {
        let path = checkpoint.dir().join("config.json");
        let config = ModelConfig::from_json(&path, &checkpoint.config()?)?;
        let name =
            checkpoint.dir().file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        let model = Model {
            name,
            config: Arc::new(config),
            source: Source::Checkpoint(checkpoint.clone()),
            checkpoint: Some(checkpoint.clone()),
            changed: false,
            dtype,
            device: device.clone(),
        };
        for (tensor, shape) in model.config.tensors() {
            let info = checkpoint.get(&tensor)?;
            if info.shape != shape {
                let problem = format!("has shape {:?}, but config.json calls for {shape:?}", info.shape);
                return Err(Error::tensor(checkpoint.dir(), tensor, problem));
            }
        }
        Ok(model)
    }

    /// A model in memory, in f32 on the CPU, from a directory or a hub id.
    ///
    /// # Errors
    /// As [`Checkpoint::resolve`] and [`Model::open`].
    pub fn load(spec: &str) -> Result<Model> {
        let checkpoint = Checkpoint::resolve(spec, Progress::Stderr)?;
        Model::open(&checkpoint, DType::F32, &Device::Cpu)?.resident()
    }

    /// The same model with all its tensors in memory.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Tensor`] from reading.
    pub fn resident(&self) -> Result<Model> {
        let names = self.config.tensors().into_iter().map(|(name, _)| name);
        let tensors = names.map(|name| Ok((name.clone(), self.tensor(&name)?))).collect::<Result<_>>()?;
        Ok(Model { source: Source::Resident(Arc::new(tensors)), ..self.clone() })
    }

    /// A model from tensors under Hugging Face's names; they may be variables, every operation can be differentiated.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a tensor is missing or has another shape than `config` calls for.
    pub fn from_tensors(config: ModelConfig, tensors: HashMap<String, Tensor>, device: &Device) -> Result<Model> {
        let nowhere = Path::new("tensors in memory");
        for (name, shape) in config.tensors() {
            match tensors.get(&name) {
                Some(tensor) if tensor.dims() == shape => {}
                Some(tensor) => {
                    let problem = format!("has shape {:?}, but the config calls for {shape:?}", tensor.dims());
                    return Err(Error::tensor(nowhere, name, problem));
                }
                None => return Err(Error::tensor(nowhere, name, "is missing")),
            }
        }
        let dtype = tensors.get(NORM).map_or(DType::F32, Tensor::dtype);
        Ok(Model {
            name: "model".into(),
            config: Arc::new(config),
            source: Source::Resident(Arc::new(tensors)),
            checkpoint: None,
            changed: false,
            dtype,
            device: device.clone(),
        })
    }

    /// The same model in memory with some tensors replaced; shapes must agree.
    ///
    /// # Errors
    /// As [`Model::resident`] and [`Model::from_tensors`].
    pub fn with_tensors(&self, replaced: impl IntoIterator<Item = (String, Tensor)>) -> Result<Model> {
        let model = self.resident()?;
        let Source::Resident(tensors) = &model.source else { return Ok(model) };
        let mut tensors = tensors.as_ref().clone();
        for (name, tensor) in replaced {
            match tensors.get(&name) {
                Some(old) if old.dims() == tensor.dims() => drop(tensors.insert(name, tensor)),
                _ => {
                    return Err(Error::tensor(
                        self.location(),
                        name,
                        "cannot be replaced: no such tensor of that shape",
                    ));
                }
            }
        }
        Ok(Model { source: Source::Resident(Arc::new(tensors)), changed: true, ..model })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The directory's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The checkpoint that holds these weights; `None` when they exist in memory only.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref().filter(|_| !self.changed)
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.config.blocks
    }

    /// Dtype of the forward pass.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Device of the forward pass.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The tokenizer beside the weights.
    ///
    /// # Errors
    /// [`Error::File`] when there is none.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.checkpoint {
            Some(checkpoint) => Tokenizer::open(checkpoint.dir()),
            None => Err(Error::file("tokenizer.json", "a model made from tensors has no tokenizer")),
        }
    }

    /// The tokens that end a text: `eos_token_id` of `config.json`, one id or several.
    ///
    /// # Errors
    /// [`Error::File`] when `config.json` cannot be read any more.
    pub fn end_tokens(&self) -> Result<Vec<u32>> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(Vec::new()) };
        let id = |value: &serde_json::Value| value.as_u64().map(|id| id as u32);
        Ok(match checkpoint.config()?.get("eos_token_id") {
            Some(serde_json::Value::Array(ids)) => ids.iter().filter_map(id).collect(),
            Some(one) => id(one).into_iter().collect(),
            None => Vec::new(),
        })
    }

    /// Name, family, size and content hash, which is empty for weights that exist in memory only.
    ///
    /// # Errors
    /// [`Error::Io`] from reading the weights.
    pub fn record(&self) -> Result<ModelRecord> {
        let parameters = self.config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum();
        let sha256 = self.checkpoint().map(Checkpoint::sha256).transpose()?.unwrap_or_default();
        Ok(ModelRecord { name: self.name.clone(), family: self.config.family.name().into(), parameters, sha256 })
    }

    fn location(&self) -> PathBuf {
        self.checkpoint.as_ref().map_or_else(|| PathBuf::from("tensors in memory"), |c| c.dir().to_path_buf())
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        match &self.source {
            Source::Checkpoint(checkpoint) => checkpoint.load_finite(name, self.dtype, &self.device),
            Source::Resident(tensors) => {
                tensors.get(name).cloned().ok_or_else(|| Error::tensor(self.location(), name, "is missing"))
            }
        }
    }

    /// Block `i` with its weights, read now if they are not in memory.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Tensor`] from reading.
    pub fn block(&self, i: usize) -> Result<Block> {
        let config = &self.config;
        let prefix = format!("model.layers.{i}");
        let linear = |name: &str, bias: bool| -> Result<Linear> {
            let name = format!("{prefix}.{name}");
            Ok(Linear {
                weight: self.tensor(&format!("{name}.weight"))?,
                bias: bias.then(|| self.tensor(&format!("{name}.bias"))).transpose()?,
                name: format!("{name}.weight"),
            })
        };
        let norm = |name: &str| self.tensor(&format!("{prefix}.{name}.weight"));
        let attention = Attention {
            q: linear("self_attn.q_proj", config.qkv_bias)?,
            k: linear("self_attn.k_proj", config.qkv_bias)?,
            v: linear("self_attn.v_proj", config.qkv_bias)?,
            o: linear("self_attn.o_proj", config.o_bias)?,
            q_norm: config.qk_norm.then(|| norm("self_attn.q_norm")).transpose()?,
            k_norm: config.qk_norm.then(|| norm("self_attn.k_norm")).transpose()?,
            window: config.sliding_window.filter(|window| i >= window.from_block).map(|window| window.tokens),
        };
        let mlp = |prefix: &str, [gate, up, down]: [&str; 3]| -> Result<Mlp> {
            let linear = |name: &str| linear(&format!("{prefix}.{name}"), config.mlp_bias);
            Ok(Mlp { gate: linear(gate)?, up: linear(up)?, down: linear(down)? })
        };
        let feed_forward = match config.moe {
            None => FeedForward::Dense(mlp("mlp", ["gate_proj", "up_proj", "down_proj"])?),
            Some(moe) => FeedForward::Mixture(Mixture {
                router: linear("block_sparse_moe.gate", false)?,
                experts: (0..moe.experts)
                    .map(|expert| mlp(&format!("block_sparse_moe.experts.{expert}"), ["w1", "w3", "w2"]))
                    .collect::<Result<_>>()?,
                top_k: moe.top_k,
            }),
        };
        Ok(Block {
            attention,
            feed_forward,
            attention_norm: norm("input_layernorm")?,
            feed_forward_norm: norm("post_attention_layernorm")?,
        })
    }

    /// Rotary tables for sequences of `positions` tokens.
    pub(crate) fn rope(&self, positions: usize) -> Rope {
        Rope::new(&self.config, positions)
    }

    /// Token ids, windows of one length, to `(1, seqlen, hidden)` each. The embedding is dropped again.
    ///
    /// # Errors
    /// [`Error::Argument`] for an id outside the vocabulary.
    pub(crate) fn embed(&self, windows: &[Vec<u32>]) -> Result<Vec<Tensor>> {
        let vocab = self.config.vocab_size;
        if let Some(id) = windows.iter().flatten().find(|&&id| id as usize >= vocab) {
            return Err(Error::argument(
                "token id",
                id,
                format!(
                    "model `{}` has a vocabulary of {vocab}; were the tokens made by another tokenizer?",
                    self.name
                ),
            ));
        }
        let embedding = self.tensor(EMBEDDING)?;
        let embed = |ids: &Vec<u32>| -> Result<Tensor> {
            let ids = Tensor::new(ids.as_slice(), &self.device)?;
            Ok(embedding.index_select(&ids, 0)?.unsqueeze(0)?)
        };
        windows.iter().map(embed).collect()
    }

    /// The final norm and the output projection.
    pub(crate) fn head(&self) -> Result<Head> {
        Ok(Head {
            norm: self.tensor(NORM)?,
            weight: self.tensor(if self.config.tie_word_embeddings { EMBEDDING } else { HEAD })?,
            eps: self.config.rms_norm_eps,
        })
    }

    /// Logits `(seq, vocab)` in f32 for one sequence.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty sequence or an id outside the vocabulary.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        if ids.is_empty() {
            return Err(Error::argument("ids", "[]", "a forward pass needs at least one token"));
        }
        let mut x = self.embed(&[ids.to_vec()])?.remove(0);
        let rope = self.rope(ids.len());
        for i in 0..self.blocks() {
            if let Some(y) = self.block(i)?.run(&self.config, &rope, &x, None, &mut (), Wanted::Output)? {
                x = y;
            }
        }
        self.head()?.logits(&x.squeeze(0)?)
    }

    /// Logits `(batch, seq, vocab)` in f32 for `ids (batch, seq)` in u32; differentiable, and seen by `tap`.
    ///
    /// # Errors
    /// [`Error::Compute`] for shapes that do not fit, or an id outside the vocabulary.
    pub fn forward_batch(&self, ids: &Tensor, tap: &mut dyn Tap) -> Result<Tensor> {
        let (batch, seq) = ids.dims2()?;
        let embedding = self.tensor(EMBEDDING)?;
        let mut x = embedding.index_select(&ids.flatten_all()?, 0)?.reshape((batch, seq, self.config.hidden_size))?;
        let rope = self.rope(seq);
        for i in 0..self.blocks() {
            if let Some(y) = self.block(i)?.run(&self.config, &rope, &x, None, tap, Wanted::Output)? {
                x = y;
            }
        }
        self.head()?.logits(&x)
    }
}

/// Passes each window `(1, seqlen, hidden)` through a block, several at a time: a window is large enough for one thread, and
/// whole windows in parallel leave no operator single-threaded. Each window has a tap of its own; `each` gets the taps in
/// the order of the windows, so that sums do not depend on the number of threads. Windows become the block's outputs,
/// unless only taps are wanted.
pub(crate) fn pass<T: Tap + Default + Send>(
    model: &Model,
    block: &Block,
    rope: &Rope,
    hidden: &mut [Tensor],
    wanted: Wanted,
    stage: &Stage,
    mut each: impl FnMut(T),
) -> Result<()> {
    let together = if model.device.is_cpu() { rayon::current_num_threads() } else { 1 };
    for windows in hidden.chunks_mut(together) {
        let taps: Vec<T> = windows
            .par_iter_mut()
            .map(|x| {
                let mut tap = T::default();
                if let Some(y) = block.run(&model.config, rope, x, None, &mut tap, wanted)? {
                    *x = y;
                }
                Ok(tap)
            })
            .collect::<Result<_>>()?;
        taps.into_iter().for_each(&mut each);
        stage.inc(windows.len() as u64)?;
    }
    Ok(())
}

/// Final norm and output projection.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    norm: Tensor,   // (hidden,)
    weight: Tensor, // (vocab, hidden)
    eps: f64,
}

impl Head {
    /// `x (.., hidden)` to logits `(.., vocab)` in f32.
    pub(crate) fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let head = Linear { name: HEAD.into(), weight: self.weight.clone(), bias: None };
        Ok(head.forward(&ops::rms_norm(x, &self.norm, self.eps)?)?.to_dtype(DType::F32)?)
    }
}

impl ModelConfig {
    /// Name and shape of every tensor that the forward pass reads.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let hidden = self.hidden_size;
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = vec![(EMBEDDING.to_owned(), vec![self.vocab_size, hidden])];
        for i in 0..self.blocks {
            let prefix = format!("model.layers.{i}");
            let mut add = |name: &str, shape: Vec<usize>| tensors.push((format!("{prefix}.{name}"), shape));
            add("input_layernorm.weight", vec![hidden]);
            for (name, out, input, bias) in [
                ("q", q, hidden, self.qkv_bias),
                ("k", kv, hidden, self.qkv_bias),
                ("v", kv, hidden, self.qkv_bias),
                ("o", hidden, q, self.o_bias),
            ] {
                add(&format!("self_attn.{name}_proj.weight"), vec![out, input]);
                if bias {
                    add(&format!("self_attn.{name}_proj.bias"), vec![out]);
                }
            }
            if self.qk_norm {
                add("self_attn.q_norm.weight", vec![self.head_dim]);
                add("self_attn.k_norm.weight", vec![self.head_dim]);
            }
            add("post_attention_layernorm.weight", vec![hidden]);
            let mut mlp = |prefix: &str, names: [&str; 3]| {
                let [gate, up, down] = names;
                for (name, out, input) in [
                    (gate, self.intermediate_size, hidden),
                    (up, self.intermediate_size, hidden),
                    (down, hidden, self.intermediate_size),
                ] {
                    add(&format!("{prefix}.{name}.weight"), vec![out, input]);
                    if self.mlp_bias {
                        add(&format!("{prefix}.{name}.bias"), vec![out]);
                    }
                }
            };
            match self.moe {
                None => mlp("mlp", ["gate_proj", "up_proj", "down_proj"]),
                Some(moe) => {
                    for expert in 0..moe.experts {
                        mlp(&format!("block_sparse_moe.experts.{expert}"), ["w1", "w3", "w2"]);
                    }
                    add("block_sparse_moe.gate.weight", vec![moe.experts, hidden]);
                }
            }
        }
        tensors.push((NORM.to_owned(), vec![hidden]));
        if !self.tie_word_embeddings {
            tensors.push((HEAD.to_owned(), vec![self.vocab_size, hidden]));
        }
        tensors
    }
}
