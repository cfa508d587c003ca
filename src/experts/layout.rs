//! Where a checkpoint keeps its experts, found by the family's names.

use crate::checkpoint::{Source, TensorInfo};
use crate::model::{MOE_FAMILIES, MoeFamily};
use crate::{Error, Result};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// What a tensor of a mixture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Belongs to the expert of this number.
    Expert(usize),
    /// Holds all experts, one after another along [`MoeFamily::expert_dim`].
    Stacked,
    /// Has one row per expert.
    Router,
    /// Every token passes through it.
    Shared,
}

/// The block and the role of a tensor, by its name; `None` outside mixtures. Blocks for multi-token prediction (`mtp.layers`)
/// count on after the `blocks` of the model itself.
pub fn place(family: &MoeFamily, blocks: usize, name: &str) -> Option<(usize, Role)> {
    let (first, rest) = match name.strip_prefix("model.layers.") {
        Some(rest) => (0, rest),
        None => (blocks, name.strip_prefix("mtp.layers.")?),
    };
    let (block, rest) = rest.split_once('.')?;
    let block = first + block.parse::<usize>().ok()?;
    let rest = rest.strip_prefix(family.module)?.strip_prefix('.')?;
    let (part, rest) = rest.split_once('.')?;
    let role = match part {
        "experts" => match rest.split('.').next().and_then(|number| number.parse().ok()) {
            Some(expert) => Role::Expert(expert),
            None => Role::Stacked,
        },
        part if part == family.router => Role::Router,
        part if family.shared.contains(&part) => Role::Shared,
        _ => return None,
    };
    Some((block, role))
}

/// `name` with the number of its expert replaced.
pub(super) fn renumbered(name: &str, expert: usize) -> String {
    match name.split_once(".experts.").and_then(|(before, after)| Some((before, after.split_once('.')?.1))) {
        Some((before, after)) => format!("{before}.experts.{expert}.{after}"),
        None => name.to_owned(),
    }
}

/// Group-limited routing: experts are dealt out to groups in order, and a token reaches a limited number of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Number of groups.
    pub groups: usize,
    /// Groups that a token may reach.
    pub reachable: usize,
}

/// The mixtures of a checkpoint.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The family's names and keys.
    pub family: &'static MoeFamily,
    /// Routed experts of every mixture, by `config.json`.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Groups, where routing is limited to some of them.
    pub groups: Option<Groups>,
    /// Blocks with a mixture, and their tensors: role, and position in [`Source::index`].
    pub layers: BTreeMap<usize, Vec<(Role, usize)>>,
}

impl Layout {
    /// Finds the mixtures of `source`, and checks that every one has a router and all its experts.
    ///
    /// # Errors
    /// [`Error::File`] when `config.json` is of no known family of mixtures or lacks a key; [`Error::Tensor`] when an
    /// expert is missing, one too many, or a tensor has another number of experts than the config says.
    pub fn find(source: &dyn Source) -> Result<Self> {
        let config = source.config_json()?;
        let path = Path::new(&source.origin()).join("config.json");
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let family = MoeFamily::find(model_type).ok_or_else(|| {
            let known: Vec<_> = MOE_FAMILIES.iter().map(|family| family.model_type).collect();
            let problem = format!("`model_type` is `{model_type}`, which is no mixture of experts that is known: ");
            Error::file(&path, problem + &known.join(", "))
        })?;
        let number = |key: &str| number(&path, &config, key);
        let key = family.experts_keys().into_iter().find(|key| config.contains_key(*key));
        let experts = number(key.unwrap_or(family.experts_key))?;
        let top_k = number(family.top_k_keys[0])?;
        let groups = match family.group_keys {
            Some((groups, reachable)) if config.get(groups).and_then(Value::as_u64).unwrap_or(1) > 1 => {
                Some(Groups { groups: number(groups)?, reachable: number(reachable)? })
            }
            _ => None,
        };
        let blocks = number("num_hidden_layers")?;
        let mut layers: BTreeMap<usize, Vec<(Role, usize)>> = BTreeMap::new();
        for (position, info) in source.index().iter().enumerate() {
            if let Some((block, role)) = place(family, blocks, &info.name) {
                layers.entry(block).or_default().push((role, position));
            }
        }
        // A shared expert alone is no mixture.
        layers.retain(|_, tensors| tensors.iter().any(|(role, _)| *role != Role::Shared));
        if layers.is_empty() {
            return Err(Error::file(&path, "the config is that of a mixture, but no tensor is an expert's"));
        }
        let layout = Layout { family, experts, top_k, groups, layers };
        layout.check(source)?;
        Ok(layout)
    }

    fn check(&self, source: &dyn Source) -> Result<()> {
        let index = source.index();
        let shard = |info: &TensorInfo| Path::new(&source.origin()).join(&source.files()[info.shard]);
        let key = self.family.experts_key;
        for (layer, tensors) in &self.layers {
            let mut suffixes: BTreeMap<String, Vec<bool>> = BTreeMap::new();
            let mut router = false;
            for &(role, position) in tensors {
                let info = &index[position];
                let rows = match role {
                    Role::Shared => continue,
                    Role::Expert(expert) if expert >= self.experts => {
                        let problem = format!("config.json has {} experts (`{key}`)", self.experts);
                        return Err(Error::tensor(shard(info), &info.name, problem));
                    }
                    Role::Expert(expert) => {
                        let suffix = renumbered(&info.name, 0);
                        suffixes.entry(suffix).or_insert_with(|| vec![false; self.experts])[expert] = true;
                        continue;
                    }
                    Role::Stacked => info.shape.get(self.family.expert_dim),
                    Role::Router => {
                        router = true;
                        info.shape.first()
                    }
                };
                if rows != Some(&self.experts) {
                    let problem = format!(
                        "its shape {:?} does not have the {} experts of config.json (`{key}`)",
                        info.shape, self.experts
                    );
                    return Err(Error::tensor(shard(info), &info.name, problem));
                }
            }
            for (first, seen) in suffixes {
                if let Some(missing) = seen.iter().position(|seen| !seen) {
                    let problem = "is missing, while other experts have it; is the checkpoint complete?";
                    return Err(Error::tensor(source.origin(), renumbered(&first, missing), problem));
                }
            }
            if !router || tensors.iter().all(|(role, _)| matches!(role, Role::Router | Role::Shared)) {
                let what = if router { "experts" } else { self.family.router };
                let name = format!("model.layers.{layer}.{}.{what}", self.family.module);
                return Err(Error::tensor(source.origin(), name, "is missing; is the checkpoint complete?"));
            }
        }
        Ok(())
    }

    /// The tensors of one mixture that pruning changes, with their roles.
    pub fn tensors<'a>(&'a self, source: &'a dyn Source, layer: usize) -> impl Iterator<Item = (Role, &'a TensorInfo)> {
        let tensors = self.layers.get(&layer).map_or(&[][..], Vec::as_slice);
        let changed = tensors.iter().filter(|(role, _)| *role != Role::Shared);
        changed.map(|&(role, position)| (role, &source.index()[position]))
    }

    /// SHA-256 in hexadecimal of the routers' bytes, layer by layer: a few megabytes that tell one model from another.
    ///
    /// # Errors
    /// Those of [`Source::stream`].
    pub fn routers_sha256(&self, source: &dyn Source) -> Result<String> {
        let mut hash = Sha256::new();
        for &layer in self.layers.keys() {
            let mut routers: Vec<&TensorInfo> =
                self.tensors(source, layer).filter(|(role, _)| *role == Role::Router).map(|(_, info)| info).collect();
            routers.sort_by(|a, b| a.name.cmp(&b.name));
            for info in routers {
                source.stream(info.shard, info.range.clone(), &mut |bytes| {
                    hash.update(bytes);
                    Ok(())
                })?;
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Bytes of one expert of `layer`, without its rows in the router.
    pub fn expert_bytes(&self, source: &dyn Source, layer: usize) -> u64 {
        let tensors = self.tensors(source, layer).filter(|(role, _)| *role != Role::Router);
        tensors.map(|(_, info)| info.bytes()).sum::<u64>() / self.experts as u64
    }
}

fn number(path: &Path, config: &Map<String, Value>, key: &str) -> Result<usize> {
    match config.get(key).and_then(Value::as_u64) {
        Some(number) if number > 0 => Ok(number as usize),
        _ => Err(Error::file(path, format!("`{key}` is missing, or not a positive whole number"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_family_are_placed() {
        for (model_type, name, expected) in [
            ("gpt_oss", "model.layers.3.mlp.experts.gate_up_proj_blocks", Some((3, Role::Stacked))),
            ("gpt_oss", "model.layers.3.mlp.router.bias", Some((3, Role::Router))),
            ("gpt_oss", "model.layers.3.self_attn.sinks", None),
            ("mixtral", "model.layers.0.block_sparse_moe.experts.7.w2.weight", Some((0, Role::Expert(7)))),
            ("mixtral", "model.layers.0.block_sparse_moe.gate.weight", Some((0, Role::Router))),
            ("qwen2_moe", "model.layers.1.mlp.shared_expert.up_proj.weight", Some((1, Role::Shared))),
            ("qwen2_moe", "model.layers.1.mlp.shared_expert_gate.weight", Some((1, Role::Shared))),
            ("qwen3_moe", "model.layers.1.mlp.experts.12.down_proj.weight", Some((1, Role::Expert(12)))),
            ("qwen3_moe", "model.layers.0.mlp.down_proj.weight", None),
            ("qwen3_next", "mtp.layers.0.mlp.experts.1.up_proj.weight", Some((48, Role::Expert(1)))),
            ("olmoe", "model.layers.1.mlp.gate.weight", Some((1, Role::Router))),
            ("deepseek_v2", "model.layers.1.mlp.shared_experts.up_proj.weight", Some((1, Role::Shared))),
            ("deepseek_v3", "model.layers.4.mlp.gate.e_score_correction_bias", Some((4, Role::Router))),
            ("deepseek_v3", "model.layers.4.mlp.experts.9.up_proj.weight_scale_inv", Some((4, Role::Expert(9)))),
            ("glm4_moe", "model.layers.46.mlp.gate.e_score_correction_bias", Some((46, Role::Router))),
        ] {
            let family = MoeFamily::find(model_type).unwrap();
            assert_eq!(place(family, 48, name), expected, "{model_type} {name}");
        }
        let tested = [
            "gpt_oss",
            "mixtral",
            "qwen2_moe",
            "qwen3_moe",
            "qwen3_next",
            "olmoe",
            "deepseek_v2",
            "deepseek_v3",
            "glm4_moe",
        ];
        assert_eq!(MOE_FAMILIES.iter().map(|family| family.model_type).collect::<Vec<_>>().len(), tested.len());
    }

    #[test]
    fn only_the_expert_is_renumbered() {
        assert_eq!(renumbered("model.layers.1.mlp.experts.12.w1.weight", 3), "model.layers.1.mlp.experts.3.w1.weight");
    }
}
