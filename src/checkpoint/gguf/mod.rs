//! GGUF import for Llama, Qwen2 and Qwen3: dequantised weights under Hugging Face's names, Q and K rows in its order, and
//! `config.json` and `tokenizer.json` rebuilt from the metadata. A split model is read from all its parts.

mod config;
mod metadata;
mod open;
mod sentencepiece;
mod tokenizer;

use super::{CheckpointWriter, dtype_of, plan_shards};
use crate::error::{Error, Remedy, Result};
use crate::progress::Progress;
use candle_core::{DType, Device, Tensor};
use config::{Architecture, LlamaConfig};
use open::Gguf;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Shards as large as transformers makes them.
const SHARD_BYTES: u64 = 5_000_000_000;

/// The summary of an import: the file that was read and the checkpoint that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportSummary {
    /// `general.architecture` of the file.
    pub architecture: String,
    /// Number of decoder layers.
    pub layers: usize,
    /// Number of tensors written.
    pub tensors: usize,
    /// Number of parameters written.
    pub parameters: u64,
    /// Type of the file's tensors (`Q4_1`, `F32`), and how many there are of each.
    pub source_dtypes: BTreeMap<String, usize>,
    /// True if the output layer shares the embedding's weights.
    pub tied_embeddings: bool,
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
}

/// A tensor on its way: from which name, to which, and in which shape.
struct Route {
    gguf: String,
    name: String,
    shape: Vec<usize>,
    /// Heads whose rows llama.cpp has interleaved.
    permuted_heads: Option<usize>,
    /// True if the tensor is filled with zeros when the file does not have it.
    zero: bool,
}

/// Makes a checkpoint at `out` (which must not exist) of the GGUF file `file`, with weights as `dtype`: f32, bf16 or
/// f16. One tensor at a time is in memory.
///
/// # Errors
/// [`Error::File`] when the file is damaged, a part of a model whose other parts are not beside it, of another architecture
/// than `llama`, `qwen2` and `qwen3`, or has a tokenizer or a tensor that has no counterpart; [`Error::Tensor`] when a tensor is missing or misshapen; those of [`CheckpointWriter`].
pub fn import_gguf(file: &Path, out: &Path, dtype: DType, progress: Progress) -> Result<ImportSummary> {
    let target = dtype_of(dtype)?;
    let mut gguf = Gguf::open(file)?;
    let config = LlamaConfig::read(&mut gguf)?;
    let tokenizer = tokenizer::rebuild(&gguf.metadata(), config.vocab_size)?;

    let routes = routes(&config);
    check(&gguf, &routes)?;
    let plan = routes.iter().map(|route| (route.name.clone(), target, route.shape.clone())).collect();
    let mut writer = CheckpointWriter::create(out, plan_shards(plan, SHARD_BYTES))?;
    let stage = progress.stage("importing", routes.len() as u64);
    let mut source_dtypes = BTreeMap::new();
    for route in &routes {
        if route.zero && gguf.info(&route.gguf).is_none() {
            writer.write_tensor(&route.name, &Tensor::zeros(&route.shape[..], DType::F32, &Device::Cpu)?)?;
            stage.inc(1)?;
            continue;
        }
        let quantised = gguf.load(&route.gguf)?;
        *source_dtypes.entry(format!("{:?}", quantised.dtype())).or_default() += 1;
        let mut weight = quantised
            .dequantize(&Device::Cpu)
            .map_err(Error::compute(format!("dequantising tensor `{}`", route.gguf)))?;
        if let Some(heads) = route.permuted_heads {
            weight = unpermute(&weight, heads)?;
        }
        writer.write_tensor(&route.name, &weight)?;
        stage.inc(1)?;
    }

    writer.add_file("config.json", &json_text(&config.to_json(dtype)))?;
    writer.add_file("generation_config.json", &json_text(&tokenizer.generation_config))?;
    writer.add_file("tokenizer.json", &json_text(&tokenizer.tokenizer))?;
    writer.add_file("tokenizer_config.json", &json_text(&tokenizer.tokenizer_config))?;
    writer.finish()?;
    Ok(ImportSummary {
        architecture: config.architecture.name().to_owned(),
        layers: config.layers,
        tensors: routes.len(),
        parameters: routes.iter().map(|route| route.shape.iter().map(|&dim| dim as u64).product::<u64>()).sum(),
        source_dtypes,
        tied_embeddings: config.tied_embeddings,
        vocab_size: config.vocab_size,
    })
}

/// llama.cpp interleaves the two halves of a head's rows, Hugging Face keeps them one after the other:
/// row `2 j + t` of a head there is row `t * head_dim / 2 + j` here.
fn unpermute(weight: &Tensor, heads: usize) -> Result<Tensor> {
    // A bias is a column.
    let rows = weight.dims().first().copied().unwrap_or_default();
    let (half, columns) = (rows / heads / 2, weight.elem_count() / rows.max(1));
    let halves = weight.reshape((heads, half, 2, columns))?.transpose(1, 2)?; // (heads, 2, half, columns)
    Ok(halves.contiguous()?.reshape(weight.dims())?)
}

/// Every tensor of the model, in Hugging Face's order.
fn routes(config: &LlamaConfig) -> Vec<Route> {
    let LlamaConfig { hidden, intermediate, vocab_size: vocab, heads, kv_heads, head_dim, .. } = *config;
    let route = |gguf: String, name: String, shape: &[usize], permuted_heads| Route {
        gguf,
        name,
        shape: shape.to_vec(),
        permuted_heads,
        zero: false,
    };
    let mut routes =
        vec![route("token_embd.weight".into(), "model.embed_tokens.weight".into(), &[vocab, hidden], None)];
    let permuted = |heads: usize| Some(heads).filter(|_| config.architecture == Architecture::Llama);
    for i in 0..config.layers {
        let parts: [(&str, &str, &[usize], Option<usize>); 9] = [
            ("attn_norm", "input_layernorm", &[hidden], None),
            ("attn_q", "self_attn.q_proj", &[heads * head_dim, hidden], permuted(heads)),
            ("attn_k", "self_attn.k_proj", &[kv_heads * head_dim, hidden], permuted(kv_heads)),
            ("attn_v", "self_attn.v_proj", &[kv_heads * head_dim, hidden], None),
            ("attn_output", "self_attn.o_proj", &[hidden, heads * head_dim], None),
            ("ffn_norm", "post_attention_layernorm", &[hidden], None),
            ("ffn_gate", "mlp.gate_proj", &[intermediate, hidden], None),
            ("ffn_up", "mlp.up_proj", &[intermediate, hidden], None),
            ("ffn_down", "mlp.down_proj", &[hidden, intermediate], None),
        ];
        for (gguf, name, shape, heads) in parts {
            let (gguf, name) = (format!("blk.{i}.{gguf}"), format!("model.layers.{i}.{name}"));
            let is_biased = match name.rsplit_once('.') {
                Some((_, "q_proj" | "k_proj" | "v_proj")) => config.qkv_bias,
                Some((_, "o_proj")) => config.o_bias,
                _ => false,
            };
            routes.push(route(format!("{gguf}.weight"), format!("{name}.weight"), shape, heads));
            if is_biased {
                let bias = route(format!("{gguf}.bias"), format!("{name}.bias"), &shape[..1], heads);
                routes.push(Route { zero: config.zero_bias, ..bias });
            }
        }
        if config.architecture == Architecture::Qwen3 {
            for part in ["q_norm", "k_norm"] {
                let (gguf, name) =
                    (format!("blk.{i}.attn_{part}.weight"), format!("model.layers.{i}.self_attn.{part}.weight"));
                routes.push(route(gguf, name, &[head_dim], None));
            }
        }
    }
    routes.push(route("output_norm.weight".into(), "model.norm.weight".into(), &[hidden], None));
    if !config.tied_embeddings {
        routes.push(route("output.weight".into(), "lm_head.weight".into(), &[vocab, hidden], None));
    }
    routes
}

/// Before anything is written: every tensor is there in its shape, and none would be left behind.
fn check(gguf: &Gguf, routes: &[Route]) -> Result<()> {
    let mut left: BTreeSet<&str> = gguf.names().collect();
    for route in routes {
        let Some(dims) = gguf.dims(&route.gguf) else {
            if route.zero {
                continue;
            }
            return Err(Error::tensor(gguf.file(), &route.gguf, "missing".remedy("download the file again")));
        };
        if dims != route.shape {
            let problem = format!("its shape is {dims:?}, the metadata say {:?}", route.shape);
            return Err(Error::tensor(gguf.file_of(&route.gguf), &route.gguf, problem));
        }
        left.remove(route.gguf.as_str());
    }
    // Its meaning went into `rope_scaling`.
    left.remove(config::ROPE_FACTORS);
    match left.first() {
        None => Ok(()),
        Some(name) => {
            let problem = "no tensor of its architecture here"
                .remedy("this model has parts that cannot be imported, get it as safetensors");
            Err(Error::tensor(gguf.file_of(name), *name, problem))
        }
    }
}

fn json_text(value: &serde_json::Value) -> Vec<u8> {
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}
