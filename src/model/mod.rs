//! Language models of the Llama family and mixtures of experts: a forward pass with a tap on every linear's input, on
//! routers and on experts, and layers that are loaded one at a time.
//!
//! Tensor names are Hugging Face's. Weights come from a checkpoint when asked for ([`Model::open`]), or stay in memory
//! ([`Model::load`]).

mod changes;
mod config;
mod cross_entropy;
mod family;
mod fields;
#[cfg(feature = "cuda")]
mod gpu;
mod layer;
mod layout;
mod linear;
mod mixture;
mod moe;
pub(crate) mod mxfp4;
mod nearest;
mod notes;
mod ops;
mod options;
mod rope;
mod stacked;
mod stored;
mod stream;

pub use config::{ExpertStorage, ModelConfig, MoeConfig, QkNorm};
pub use family::Family;
pub use layer::{DecoderLayer, KvCache};
pub use linear::{ExpertOutput, Linear, Tap};
pub use moe::{MOE_FAMILIES, MoeFamily};
pub use options::ModelOptions;
pub use rope::{RopeConfig, RopeScaling};
pub use stored::head_differs;
pub use stream::Residency;

pub(crate) use cross_entropy::cross_entropy;
pub(crate) use layout::{EMBEDDING, HEAD, MLP, NORM};
pub(crate) use linear::Wanted;
pub(crate) use ops::{CausalSoftmax, log_sum_exp, rotate, swiglu_values};
pub(crate) use rope::Rope;
pub(crate) use stream::ForwardPass;

use crate::checkpoint::Checkpoint;
use crate::device;
use crate::error::{Error, Remedy, Result};
use crate::progress::Progress;
use crate::record::ModelRecord;
use crate::text::Tokenizer;
use candle_core::{DType, Device, Tensor};
use changes::Changes;
use layer::{Attention, FeedForward};
use layout::{Encoding, Needed};
use linear::Mlp;
use mixture::{ExpertWeights, Mixture, Shared};
use safetensors::Dtype;
use stacked::{Stacked, StackedLinear, StackedWeight};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stream::{CHECKPOINT, TensorCache};

/// A language model: its configuration and where its weights are.
#[derive(Clone)]
pub struct Model {
    name: String,
    config: Arc<ModelConfig>,
    source: WeightSource,
    /// The checkpoint of config and tokenizer, and of the weights unless `changed`.
    checkpoint: Option<Checkpoint>,
    /// True if some weights in memory are no longer those of the checkpoint.
    changed: bool,
    dtype: DType,
    device: Device,
    /// Bytes of the device's memory that it may take; `None` for as many as it has.
    device_memory: Option<u64>,
    /// Sentences on how the checkpoint was read.
    notes: Arc<[String]>,
}

crate::debug::one_line!(rich Model, |model| {
    let changed = if model.changed { ", changed" } else { "" };
    format!("Model({}: {:?}, {} layers, {}{changed})", model.name, model.config.family, model.config.layers, model.dtype.as_str())
});

#[derive(Clone, Debug)]
enum WeightSource {
    /// Each tensor is read when asked for.
    Checkpoint(Checkpoint),
    /// Each tensor is read when asked for, and stays on the device while the cache has room for it; some tensors may be
    /// changed.
    Cached(Checkpoint, Arc<TensorCache>, Option<Arc<Changes>>),
    /// All tensors are in memory, on the device.
    Resident(Arc<HashMap<String, Tensor>>),
}

/// Describes the mismatch between a tensor of `shape` and the one that is `needed`; `None` if it fits.
fn misfit(needed: &Needed, shape: &[usize], bytes: bool) -> Option<String> {
    if shape != needed.shape {
        return Some(format!("has shape {shape:?}, but config.json calls for {:?}", needed.shape));
    }
    match (needed.kind, bytes) {
        (Encoding::Float, true) => Some("holds bytes, but config.json calls for floats".into()),
        (Encoding::Fp4 | Encoding::Scales, false) => Some("holds no bytes, but config.json calls for MXFP4".into()),
        _ => None,
    }
}

/// Token ids as a configuration gives them; `None` for anything else.
fn one_or_several(ids: &serde_json::Value) -> Option<Vec<u32>> {
    // -1 is what some configurations have for none.
    let id = |value: &serde_json::Value| match value.as_i64() {
        Some(-1) => Some(None),
        id => u32::try_from(id?).ok().map(Some),
    };
    match ids {
        serde_json::Value::Array(ids) => {
            ids.iter().map(id).collect::<Option<Vec<_>>>().map(|ids| ids.into_iter().flatten().collect())
        }
        one => id(one).map(|id| id.into_iter().collect()),
    }
}

impl Model {
    /// A model whose layers are read from `checkpoint` as they are needed, in `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::File`] for an unsupported or inconsistent `config.json`; [`Error::Tensor`] when a tensor that the config
    /// calls for is missing or has another shape.
    pub fn open(checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Result<Model> {
        let path = checkpoint.dir().join("config.json");
        let json = checkpoint.config()?;
        checkpoint.check_plain(&json)?;
        let mut config = ModelConfig::from_json(&path, &json)?;
        let mut notes = Vec::new();
        let checkpoint = &stored::resolve(&mut config, checkpoint, &mut notes)?;
        let model = Model {
            name: checkpoint.name().to_owned(),
            config: Arc::new(config),
            source: WeightSource::Checkpoint(checkpoint.clone()),
            checkpoint: Some(checkpoint.clone()),
            changed: false,
            dtype,
            device: device.clone(),
            device_memory: None,
            notes: notes.into(),
        };
        for needed in model.config.needed() {
            let info = checkpoint.get(&needed.name)?;
            if let Some(problem) = misfit(&needed, &info.shape, info.dtype == Dtype::U8) {
                return Err(Error::tensor(checkpoint.dir(), needed.name, problem));
            }
        }
        Ok(model)
    }

    /// This model with at most `bytes` of weights on the device: an LRU cache, from which the tensors that were not
    /// used for longest are evicted. Activations of more than a quarter of `bytes` wait on the host for their turn. A
    /// model that is in memory stays there.
    pub fn within(&self, bytes: u64) -> Model {
        let source = match &self.source {
            WeightSource::Checkpoint(checkpoint) => {
                WeightSource::Cached(checkpoint.clone(), Arc::new(TensorCache::new(bytes)), None)
            }
            WeightSource::Cached(checkpoint, _, changes) => {
                let kept = Arc::new(TensorCache::new(bytes));
                let changes = changes.as_ref().map(|changes| changes.by_name().clone());
                let changes = changes.map(|changes| Arc::new(Changes::new(changes, kept.clone())));
                WeightSource::Cached(checkpoint.clone(), kept, changes)
            }
            WeightSource::Resident(_) => self.source.clone(),
        };
        Model { source, device_memory: Some(bytes), ..self.clone() }
    }

    /// Tensors and bytes of the model on its device, and uses of them.
    pub fn residency(&self) -> Residency {
        match &self.source {
            WeightSource::Checkpoint(_) => Residency { budget_bytes: Some(0), ..Residency::default() },
            WeightSource::Cached(_, kept, _) => kept.residency(),
            WeightSource::Resident(tensors) => Residency {
                tensors: tensors.len() as u64,
                bytes: tensors.values().map(stream::bytes).sum(),
                ..Residency::default()
            },
        }
    }

    /// A model in memory, in f32 on the CPU, from a directory or a hub id. [`Model::options`] loads it otherwise.
    ///
    /// # Errors
    /// As [`ModelOptions::load`].
    pub fn load(spec: impl AsRef<Path>) -> Result<Model> {
        Model::options().load(spec)
    }

    /// Settings of loading a model: dtype, device, and memory for weights.
    pub fn options() -> ModelOptions {
        ModelOptions::default()
    }

    /// The same model with all its tensors in memory.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Tensor`] from reading.
    pub fn resident(&self) -> Result<Model> {
        let load = |needed: Needed| Ok((needed.name.clone(), self.stored(&needed)?));
        let tensors = self.config.needed().into_iter().map(load).collect::<Result<_>>()?;
        Ok(Model { source: WeightSource::Resident(Arc::new(tensors)), ..self.clone() })
    }

    /// A tensor in the encoding that the forward pass reads.
    fn stored(&self, needed: &Needed) -> Result<Tensor> {
        match needed.kind {
            Encoding::Float => self.tensor(&needed.name),
            Encoding::Fp4 | Encoding::Scales => self.packed(&needed.name, needed.kind),
        }
    }

    /// A model in memory of parts of this one's tensors, as `config` calls for them. For the name of each tensor, `part` gives
    /// its new name and, where not all of it stays, the entries of its first dimension that do; `None` drops it.
    ///
    /// # Errors
    /// As [`Model::from_tensors`], and those of reading.
    pub(crate) fn parts(
        &self,
        config: ModelConfig,
        part: impl Fn(&str) -> Option<(String, Option<Vec<u32>>)>,
    ) -> Result<Model> {
        let mut tensors = HashMap::new();
        for needed in self.config.needed() {
            let Some((name, entries)) = part(&needed.name) else { continue };
            let tensor = self.stored(&needed)?;
            let tensor = match entries {
                Some(entries) => tensor.index_select(&Tensor::new(entries, tensor.device())?, 0)?,
                None => tensor,
            };
            tensors.insert(name, tensor);
        }
        self.reshaped(config, tensors)
    }

    /// A model from tensors under Hugging Face's names; they may be variables, every operation can be differentiated.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a tensor is missing or has another shape than `config` calls for.
    pub fn from_tensors(config: ModelConfig, mut tensors: HashMap<String, Tensor>, device: &Device) -> Result<Model> {
        stored::divide(&config, &mut tensors)?;
        let nowhere = Path::new("tensors in memory");
        for needed in config.needed() {
            let problem = match tensors.get(&needed.name) {
                Some(tensor) => misfit(&needed, tensor.dims(), tensor.dtype() == DType::U8),
                None => Some("is missing".into()),
            };
            if let Some(problem) = problem {
                return Err(Error::tensor(nowhere, needed.name, problem));
            }
        }
        let dtype = tensors.get(NORM).map_or(DType::F32, Tensor::dtype);
        Ok(Model {
            name: "model".into(),
            config: Arc::new(config),
            source: WeightSource::Resident(Arc::new(tensors)),
            checkpoint: None,
            changed: false,
            dtype,
            device: device.clone(),
            device_memory: None,
            notes: Arc::default(),
        })
    }

    /// A model in memory that replaces this one: `tensors` of the shapes that `config` calls for, under the same name
    /// and with the same tokenizer.
    ///
    /// # Errors
    /// As [`Model::from_tensors`].
    pub(crate) fn reshaped(&self, config: ModelConfig, tensors: HashMap<String, Tensor>) -> Result<Model> {
        let reshaped = Model::from_tensors(config, tensors, &self.device)?;
        Ok(Model { name: self.name.clone(), checkpoint: self.checkpoint.clone(), changed: true, ..reshaped })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The directory's name, or `owner/name` of a model from a hub.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The checkpoint that holds these weights; `None` when they exist in memory only.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref().filter(|_| !self.changed)
    }

    /// Number of decoder layers.
    pub fn layers(&self) -> usize {
        self.config.layers
    }

    /// Returns whether all tensors are in memory; otherwise each layer is read when it is needed.
    pub fn is_resident(&self) -> bool {
        matches!(self.source, WeightSource::Resident(_))
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

    /// The tokens that end a text, one id or several: `eos_token_id` of `generation_config.json`, else of `config.json`.
    ///
    /// # Errors
    /// [`Error::File`] when either cannot be read, or holds something else there.
    pub fn end_tokens(&self) -> Result<Vec<u32>> {
        let generation = self.checkpoint.as_ref().map(Checkpoint::generation_config).transpose()?.flatten();
        match generation.as_ref().and_then(|config| config.get("eos_token_id")).filter(|ids| !ids.is_null()) {
            Some(ids) => one_or_several(ids).ok_or_else(|| {
                let path = self.location().join("generation_config.json");
                Error::file(path, format!("`eos_token_id` is {ids}, which is no token id and no list of them"))
            }),
            None => self.token_ids("eos_token_id"),
        }
    }

    /// The token that stands before a text of which nothing is given: `bos_token_id` of `config.json`, else the first
    /// `eos_token_id`.
    ///
    /// # Errors
    /// [`Error::File`] when `config.json` cannot be read any more.
    pub fn start_token(&self) -> Result<Option<u32>> {
        let start = self.token_ids("bos_token_id")?.first().copied();
        Ok(start.or(self.token_ids("eos_token_id")?.first().copied()))
    }

    /// The ids that `config.json` holds under `key`, one or several.
    fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(checkpoint) = &self.checkpoint else { return Ok(Vec::new()) };
        let config = checkpoint.config()?;
        let Some(ids) = config.get(key).filter(|ids| !ids.is_null()) else { return Ok(Vec::new()) };
        one_or_several(ids).ok_or_else(|| {
            let path = checkpoint.dir().join("config.json");
            Error::file(path, format!("`{key}` is {ids}, which is no token id and no list of them"))
        })
    }

    /// Name, family, size and content hash, which is empty for weights that exist in memory only.
    ///
    /// # Errors
    /// [`Error::Io`] from reading the weights.
    pub fn record(&self) -> Result<ModelRecord> {
        let parameters = self.config.parameters();
        let sha256 = self.checkpoint().map(Checkpoint::sha256).transpose()?.unwrap_or_default();
        let revision = self.checkpoint.as_ref().and_then(Checkpoint::revision).map(str::to_owned);
        let family = self.config.family.name().into();
        Ok(ModelRecord { name: self.name.clone(), revision, family, parameters, sha256 })
    }

    fn location(&self) -> PathBuf {
        self.checkpoint.as_ref().map_or_else(|| PathBuf::from("tensors in memory"), |c| c.dir().to_path_buf())
    }

    /// The tensor of floats called `name`, in the model's dtype and on its device, read now if it is not in memory.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Tensor`] from reading.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor> {
        match &self.source {
            WeightSource::Checkpoint(checkpoint) => checkpoint.load_finite(name, self.dtype, &self.device),
            WeightSource::Cached(checkpoint, kept, changes) => {
                let read = || checkpoint.load_finite(name, self.dtype, &self.device);
                let changed = changes.as_ref().and_then(|changes| changes.tensor(name, &self.device, read));
                changed.unwrap_or_else(|| kept.tensor(CHECKPOINT, name, read))
            }
            WeightSource::Resident(tensors) => {
                tensors.get(name).cloned().ok_or_else(|| Error::tensor(self.location(), name, "is missing"))
            }
        }
    }

    /// A tensor of MXFP4 bytes, as it is stored.
    fn packed(&self, name: &str, kind: Encoding) -> Result<Tensor> {
        let checkpoint = match &self.source {
            WeightSource::Checkpoint(checkpoint) => checkpoint,
            WeightSource::Cached(checkpoint, kept, changes) => {
                let unkept = Model { source: WeightSource::Checkpoint(checkpoint.clone()), ..self.clone() };
                let read = || unkept.packed(name, kind);
                let changed = changes.as_ref().and_then(|changes| changes.tensor(name, &self.device, read));
                return changed.unwrap_or_else(|| kept.tensor(CHECKPOINT, name, read));
            }
            WeightSource::Resident(_) => return self.tensor(name),
        };
        let (bytes, shape) = (checkpoint.read(name)?, checkpoint.get(name)?.shape.clone());
        let largest = mxfp4::largest_scale(self.dtype);
        if let Some(at) = bytes.iter().position(|&scale| kind == Encoding::Scales && scale > largest) {
            let problem = format!(
                "scale {at} is {}, with which weights are NaN or infinite as {}; the model is damaged",
                bytes[at],
                self.dtype.as_str()
            );
            return Err(Error::tensor(checkpoint.dir(), name, problem));
        }
        Ok(Tensor::from_vec(bytes, shape, &self.device)?)
    }

    /// Decoder layer `i` with its weights, read now if they are not in memory.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Tensor`] from reading.
    pub fn layer(&self, i: usize) -> Result<DecoderLayer> {
        let config = &self.config;
        let prefix = format!("model.layers.{i}");
        let linear = |name: &str, bias: bool| self.read_linear(&format!("{prefix}.{name}"), bias);
        let norm = |name: &str| self.tensor(&format!("{prefix}.{name}.weight"));
        let qk_norm = |name: &str| config.qk_norm.map(|_| norm(name)).transpose();
        let attention = Attention {
            q: linear("self_attn.q_proj", config.qkv_bias)?,
            k: linear("self_attn.k_proj", config.qkv_bias)?,
            v: linear("self_attn.v_proj", config.qkv_bias)?,
            o: linear("self_attn.o_proj", config.o_bias)?,
            q_norm: qk_norm("self_attn.q_norm")?,
            k_norm: qk_norm("self_attn.k_norm")?,
            sinks: config.sinks.then(|| self.tensor(&format!("{prefix}.self_attn.sinks"))).transpose()?,
            window: config.sliding_window.get(i).copied().flatten(),
        };
        let feed_forward = match config.mixture(i) {
            None => FeedForward::Dense(self.mlp(&format!("{prefix}.mlp"), MLP, config.mlp_bias)?),
            Some(moe) => FeedForward::Mixture(self.mixture(&format!("{prefix}.{}", moe.names.module), moe)?),
        };
        Ok(DecoderLayer {
            attention,
            feed_forward,
            attention_norm: norm("input_layernorm")?,
            feed_forward_norm: norm("post_attention_layernorm")?,
        })
    }

    /// The prunable linear called `name`, such as `model.layers.3.mlp.down_proj`, with or without `.weight`, read now if it is
    /// not in memory.
    ///
    /// # Errors
    /// [`Error::Argument`] with the nearest names where there is none; [`Error::Io`] or [`Error::Tensor`] from reading.
    pub fn linear(&self, name: &str) -> Result<Linear> {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let weight = format!("{module}.weight");
        let needed = self.config.needed();
        if !needed.iter().any(|needed| needed.prunable && needed.name == weight) {
            let linears = needed.iter().filter(|needed| needed.prunable).map(|needed| needed.name.as_str());
            let near = nearest::nearest(&weight, linears).join(", ");
            let problem = format!("model `{}` has no prunable linear of that name", self.name)
                .remedy(format!("the nearest are {near}"));
            return Err(Error::argument("linear", name, problem));
        }
        let has = |bias: &str| needed.iter().any(|needed| needed.name == bias);
        let own = format!("{module}.bias");
        // Biases of gpt-oss's experts are in one tensor: `experts.7.down_proj` is row 7 of `experts.down_proj_bias`.
        let of_all = module.split_once(".experts.").and_then(|(mixture, rest)| {
            let (expert, linear) = rest.split_once('.')?;
            Some((format!("{mixture}.experts.{linear}_bias"), expert.parse::<usize>().ok()?))
        });
        let bias = match of_all {
            _ if has(&own) => Some(self.tensor(&own)?),
            Some((biases, expert)) if has(&biases) => Some(self.tensor(&biases)?.get(expert)?),
            _ => None,
        };
        Ok(Linear { weight: self.tensor(&weight)?, bias, name: weight })
    }

    fn read_linear(&self, name: &str, bias: bool) -> Result<Linear> {
        Ok(Linear {
            weight: self.tensor(&format!("{name}.weight"))?,
            bias: bias.then(|| self.tensor(&format!("{name}.bias"))).transpose()?,
            name: format!("{name}.weight"),
        })
    }

    fn mlp(&self, prefix: &str, names: [&str; 3], bias: bool) -> Result<Mlp> {
        let [gate, up, down] = names.map(|name| self.read_linear(&format!("{prefix}.{name}"), bias));
        Ok(Mlp { gate: gate?, up: up?, down: down? })
    }

    fn mixture(&self, prefix: &str, moe: &MoeConfig) -> Result<Mixture> {
        let expert = |expert| self.mlp(&format!("{prefix}.experts.{expert}"), moe.names.linears, false);
        let stacked = |name: &str, mxfp4: bool| self.stacked(&format!("{prefix}.experts"), name, moe.experts, mxfp4);
        let experts = match moe.storage {
            ExpertStorage::Separate => ExpertWeights::Separate((0..moe.experts).map(expert).collect::<Result<_>>()?),
            ExpertStorage::Stacked { mxfp4, limit, alpha } => ExpertWeights::Stacked(Stacked {
                gate_up: stacked("gate_up_proj", mxfp4)?,
                down: stacked("down_proj", mxfp4)?,
                limit,
                alpha,
            }),
        };
        let shared = match moe.names.shared {
            [mlp, gate] if moe.shared_intermediate_size.is_some() => Some(Shared {
                mlp: self.mlp(&format!("{prefix}.{mlp}"), MLP, false)?,
                gate: self.read_linear(&format!("{prefix}.{gate}"), false)?,
            }),
            _ => None,
        };
        Ok(Mixture {
            router: self.read_linear(&format!("{prefix}.{}", moe.names.router), moe.router_bias())?,
            experts,
            shared,
            top_k: moe.top_k,
            norm_topk_prob: moe.norm_topk_prob,
        })
    }

    fn stacked(&self, prefix: &str, linear: &str, experts: usize, mxfp4: bool) -> Result<StackedLinear> {
        let name = format!("{prefix}.{linear}");
        let bias = self.tensor(&format!("{name}_bias"))?;
        let weight = if mxfp4 {
            StackedWeight::Mxfp4 {
                blocks: self.packed(&format!("{name}_blocks"), Encoding::Fp4)?,
                scales: self.packed(&format!("{name}_scales"), Encoding::Scales)?,
            }
        } else {
            let linear = |expert| {
                let name = format!("{prefix}.{expert}.{linear}.weight");
                Ok(Linear { weight: self.tensor(&name)?, bias: Some(bias.get(expert)?), name })
            };
            StackedWeight::Float((0..experts).map(linear).collect::<Result<_>>()?)
        };
        Ok(StackedLinear { weight, bias })
    }

    /// Rotary tables for sequences of `positions` tokens.
    pub(crate) fn rope(&self, positions: usize) -> Rope {
        Rope::new(&self.config.rope, self.config.head_dim, positions)
    }

    /// Token ids, windows of one length, to `(1, seqlen, hidden)` each. The embedding is dropped again.
    ///
    /// # Errors
    /// [`Error::Argument`] for an id outside the vocabulary.
    pub(crate) fn embed(&self, windows: &[Vec<u32>]) -> Result<Vec<Tensor>> {
        self.embed_to(windows, Ok)
    }

    /// As [`Model::embed`]; each window goes where `place` puts it.
    fn embed_to(&self, windows: &[Vec<u32>], place: impl Fn(Tensor) -> Result<Tensor>) -> Result<Vec<Tensor>> {
        let vocab = self.config.vocab_size;
        if let Some(id) = windows.iter().flatten().find(|&&id| id as usize >= vocab) {
            return Err(Error::argument(
                "token id",
                id,
                format!("model `{}` has a vocabulary of {vocab}", self.name)
                    .remedy("were the tokens made by another tokenizer?"),
            ));
        }
        let embedding = self.tensor(EMBEDDING)?;
        let embed = |ids: &Vec<u32>| -> Result<Tensor> {
            let ids = Tensor::new(ids.as_slice(), &self.device)?;
            place(embedding.index_select(&ids, 0)?.unsqueeze(0)?)
        };
        windows.iter().map(embed).collect()
    }

    /// Hidden states `(1, seqlen, hidden)` of each window after the last layer, before the final norm: a forward pass that
    /// holds one layer at a time.
    ///
    /// # Errors
    /// [`Error::Argument`] for an id outside the vocabulary, [`Error::Interrupted`], or what reading a layer fails with.
    pub fn hidden_states(&self, windows: &[Vec<u32>], progress: Progress) -> Result<Vec<Tensor>> {
        let mut hidden = self.embed_for_pass(windows)?;
        let rope = self.rope(windows.iter().map(Vec::len).max().unwrap_or(0));
        let stage = progress.stage("forward", (self.layers() * hidden.len()) as u64);
        let pass = ForwardPass { model: self, rope: &rope, stage: &stage };
        self.each_layer(|_, layer| pass.through(&layer, &mut hidden, Wanted::Output, || (), |()| ()))?;
        Ok(hidden)
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
        for i in 0..self.layers() {
            if let Some(y) = self.layer(i)?.run(&self.config, &rope, &x, None, &mut (), Wanted::Output)? {
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
        for i in 0..self.layers() {
            if let Some(y) = self.layer(i)?.run(&self.config, &rope, &x, None, tap, Wanted::Output)? {
                x = y;
            }
        }
        self.head()?.logits(&x)
    }
}

/// Rows of logits that exist at one time; a vocabulary of 128,000 makes one row half a megabyte.
pub(crate) const LOGIT_ROWS: usize = 64;

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
        self.project(&self.normed(x)?)
    }

    /// `x (.., hidden)` to what the projection reads, of the same shape.
    pub(crate) fn normed(&self, x: &Tensor) -> Result<Tensor> {
        // Hidden states may have waited on the host.
        ops::rms_norm(&device::to_device(x, self.norm.device())?, &self.norm, self.eps)
    }

    /// `normed (.., hidden)` to logits `(.., vocab)` in f32.
    pub(crate) fn project(&self, normed: &Tensor) -> Result<Tensor> {
        let head = Linear { name: HEAD.into(), weight: self.weight.clone(), bias: None };
        Ok(head.forward(normed)?.to_dtype(DType::F32)?)
    }

    /// The gradient `(rows, vocab)` of logits to that of what the projection reads, `(rows, hidden)`. candle's own
    /// `backward` would make a gradient of the projection too, as large as the embedding.
    pub(crate) fn project_back(&self, gradient: &Tensor) -> Result<Tensor> {
        let gradient = gradient.to_device(self.weight.device())?.to_dtype(self.weight.dtype())?;
        Ok(gradient.matmul(&self.weight)?)
    }
}
