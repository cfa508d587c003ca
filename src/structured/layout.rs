//! The units that each dimension of a tensor counts, and the entries of `config.json` for fewer units.

use super::{Form, StructuredConfig, Unit};
use crate::error::{Error, Remedy, Result};
use crate::model::{EMBEDDING, Family, HEAD, MLP, ModelConfig, NORM, QkNorm};
use serde_json::Value;

/// The units that a dimension counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    /// Channels of the residual stream.
    Channels,
    /// Elements of all query heads of a layer.
    Queries,
    /// Elements of all key heads, or of all value heads, of a layer.
    Keys,
    /// Neurons of an MLP.
    Neurons,
    /// Units that are never pruned here: tokens, experts, elements of one head.
    Other,
}

/// The purpose of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The weight of a prunable linear; its elements have scores.
    Linear,
    /// Its bias.
    Bias,
    /// The scale of an RMS norm.
    Norm,
    /// Embedding, output head or router: it loses what the linears lose.
    Table,
}

/// A tensor's place in a model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place<'a> {
    /// `model.layers.0.self_attn.q_proj`
    path: &'a str,
    /// `model.layers.0.self_attn`
    module: &'a str,
    role: Role,
    /// The second counts for matrices only.
    axes: [Axis; 2],
}

/// The units that a dimension of a tensor counts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    /// The module whose units they are.
    pub(super) module: String,
    /// Elements of the dimension for each unit.
    pub(super) span: usize,
}

/// The place of the tensor called `name`; `None` for one that the family does not have.
pub(super) fn place<'a>(config: &ModelConfig, name: &'a str) -> Option<Place<'a>> {
    use Axis::{Channels, Keys, Neurons, Other, Queries};
    let (path, kind) = name.rsplit_once('.')?;
    let (module, leaf) = path.rsplit_once('.').unwrap_or(("", path));
    let of = |role, axes| Some(Place { path, module, role, axes });
    if name == EMBEDDING || name == HEAD {
        return of(Role::Table, [Other, Channels]);
    }
    if name == NORM {
        return of(Role::Norm, [Channels, Other]);
    }
    if !module.starts_with("model.layers.") {
        return None;
    }
    let moe = config.moe.as_ref().map(|moe| moe.names);
    let position = |names: [&str; 3]| names.iter().position(|&name| name == leaf);
    let per_head = config.qk_norm != Some(QkNorm::Projection);
    let axes = match leaf {
        "input_layernorm" | "post_attention_layernorm" => return of(Role::Norm, [Channels, Other]),
        "q_norm" | "k_norm" if per_head => return of(Role::Norm, [Other, Other]),
        "q_norm" => return of(Role::Norm, [Queries, Other]),
        "k_norm" => return of(Role::Norm, [Keys, Other]),
        "q_proj" => [Queries, Channels],
        "k_proj" | "v_proj" => [Keys, Channels],
        "o_proj" => [Channels, Queries],
        _ if moe.is_some_and(|names| names.router == leaf || names.shared.contains(&leaf)) => {
            return of(Role::Table, [Other, Channels]);
        }
        _ => match position(MLP).or_else(|| position(moe?.linears))? {
            2 => [Channels, Neurons],
            _ => [Neurons, Channels],
        },
    };
    match kind {
        "weight" => of(Role::Linear, axes),
        "bias" => of(Role::Bias, [axes[0], Other]),
        _ => None,
    }
}

impl Place<'_> {
    /// Returns whether the tensor's elements have scores.
    pub(super) fn is_linear(&self) -> bool {
        self.role == Role::Linear
    }

    /// Returns whether the tensor is the scale of a norm.
    pub(super) fn is_norm(&self) -> bool {
        self.role == Role::Norm
    }

    /// The units that each of its dimensions counts.
    pub(super) fn groups(&self, config: &ModelConfig, unit: Unit) -> [Option<Group>; 2] {
        let group = |module: &str, span| Some(Group { module: module.to_owned(), span });
        let own = || group(&format!("{}.weight", self.path), 1);
        match unit {
            Unit::OutputChannels if matches!(self.role, Role::Linear | Role::Bias) => [own(), None],
            Unit::InputChannels if self.role == Role::Linear => [None, own()],
            Unit::OutputChannels | Unit::InputChannels => [None, None],
            Unit::Heads | Unit::Neurons | Unit::Channels => self.axes.map(|axis| match (unit, axis) {
                (Unit::Heads, Axis::Queries) => group(self.module, config.heads / config.kv_heads * config.head_dim),
                (Unit::Heads, Axis::Keys) => group(self.module, config.head_dim),
                (Unit::Neurons, Axis::Neurons) => group(self.module, 1),
                (Unit::Channels, Axis::Channels) => group("model", 1),
                _ => None,
            }),
        }
    }
}

/// The configuration of the model that is left.
///
/// Without some channels, `h'` of `h`, an RMS norm divides by fewer: its mean of squares grows by `h / h'` although the
/// pruned channels were zero. Scaling by `sqrt(h / h')` ([`super::cut`]) and an epsilon larger by `h / h'` undo that:
/// `w sqrt(h/h') x / sqrt(sum x^2 / h' + eps h/h') = w x / sqrt(sum x^2 / h + eps)`. All norms of a model share an
/// epsilon, so those on q and k get one too large when channels are pruned, and the one over all heads of a layer
/// (OLMoE) one too small when heads are pruned: `q / sqrt(mean q^2 + eps)` is off by `eps (h/h' - 1) / (2 mean q^2)`
/// relatively, some rounding errors of f32 for queries of order one.
///
/// # Errors
/// [`Error::Argument`] for a Llama with biases that transformers would refuse.
pub(super) fn resized(config: &ModelConfig, settings: &StructuredConfig) -> Result<ModelConfig> {
    let mut new = config.clone();
    if settings.form == Form::Zero {
        return Ok(new);
    }
    let kept = |units: usize| units - settings.count(units);
    match settings.unit {
        Unit::Heads => {
            new.kv_heads = kept(config.kv_heads);
            new.heads = config.heads / config.kv_heads * new.kv_heads;
        }
        Unit::Neurons => {
            // In some families experts have a width of their own, and the other one counts for dense layers only.
            let dense = (0..config.layers).any(|layer| config.mixture(layer).is_none());
            if dense || !has_expert_width(config.family) {
                new.intermediate_size = kept(config.intermediate_size);
            }
            if let Some(moe) = &mut new.moe {
                moe.intermediate_size = kept(moe.intermediate_size);
                moe.shared_intermediate_size = moe.shared_intermediate_size.map(kept);
            }
        }
        Unit::Channels => {
            new.hidden_size = kept(config.hidden_size);
            new.rms_norm_eps *= config.hidden_size as f64 / new.hidden_size as f64;
        }
        Unit::OutputChannels | Unit::InputChannels => {}
    }
    let odd = !new.hidden_size.is_multiple_of(new.heads);
    if odd && config.family == Family::Llama && (new.hidden_size, new.heads) != (config.hidden_size, config.heads) {
        if config.qkv_bias || config.o_bias || config.mlp_bias {
            let problem = format!(
                "leaves {} channels and {} heads, and transformers loads a Llama with biases only if the one is a \
                 multiple of the other",
                new.hidden_size, new.heads
            )
            .remedy(format!("choose another sparsity, or zero the {} instead of removing them", settings.unit));
            return Err(Error::argument("sparsity", settings.sparsity, problem));
        }
        new.family = Family::Mistral;
    }
    Ok(new)
}

/// Returns whether `config.json` has a width of experts apart from that of dense layers.
fn has_expert_width(family: Family) -> bool {
    matches!(family, Family::Qwen2Moe | Family::Qwen3Moe)
}

/// The values of `config.json` that differ between two configurations, and those that must no longer be left out.
pub(super) fn changes(old: &ModelConfig, new: &ModelConfig) -> Vec<(String, Value)> {
    let mut changes = Vec::new();
    let mut set = |key: &str, value: Value| changes.push((key.to_owned(), value));
    if new.family != old.family {
        set("model_type", new.family.name().into());
        set("architectures", vec!["MistralForCausalLM"].into());
        // What a Mistral is without these keys differs from what a Llama is.
        set("sliding_window", Value::Null);
        set("max_position_embeddings", new.max_position_embeddings.into());
    }
    if new.hidden_size != old.hidden_size {
        set("hidden_size", new.hidden_size.into());
        set("rms_norm_eps", new.rms_norm_eps.into());
    }
    if new.intermediate_size != old.intermediate_size {
        set("intermediate_size", new.intermediate_size.into());
    }
    if (new.hidden_size, new.heads) != (old.hidden_size, old.heads) {
        set("num_attention_heads", new.heads.into());
        set("num_key_value_heads", new.kv_heads.into());
        set("head_dim", new.head_dim.into());
    }
    if let (Some(old), Some(moe)) = (&old.moe, &new.moe) {
        if has_expert_width(new.family) && moe.intermediate_size != old.intermediate_size {
            set("moe_intermediate_size", moe.intermediate_size.into());
        }
        if let Some(width) = moe.shared_intermediate_size.filter(|_| moe != old) {
            set("shared_expert_intermediate_size", width.into());
        }
    }
    changes
}
