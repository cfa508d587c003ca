//! The tensors of a checkpoint that hold its experts, found by the family's names.

use crate::checkpoint::{Source, TensorInfo};
use crate::error::{Error, Remedy, Result};
use crate::model::{MOE_FAMILIES, MoeFamily};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// More than any model has, and few enough to count them.
const MOST_EXPERTS: usize = 1 << 16;

/// The role of a tensor in a mixture.
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

/// The layer and the role of a tensor, by its name; `None` outside mixtures. Layers for multi-token prediction (`mtp.layers`)
/// count on after the `layers` of the model itself.
pub fn place(family: &MoeFamily, layers: usize, name: &str) -> Option<(usize, Role)> {
    let (first, rest) = match name.strip_prefix("model.layers.") {
        Some(rest) => (0, rest),
        None => (layers, name.strip_prefix("mtp.layers.")?),
    };
    let (layer, rest) = rest.split_once('.')?;
    let layer = first.checked_add(canonical(layer)?)?;
    let rest = family.modules().into_iter().find_map(|module| rest.strip_prefix(module)?.strip_prefix('.'))?;
    let (part, rest) = rest.split_once('.')?;
    let role = match part {
        "experts" => match rest.split('.').next().and_then(canonical) {
            Some(expert) => Role::Expert(expert),
            None => Role::Stacked,
        },
        part if part == family.router => Role::Router,
        part if family.shared.contains(&part) => Role::Shared,
        _ => return None,
    };
    Some((layer, role))
}

/// A number as names are written with: `01` is none.
fn canonical(text: &str) -> Option<usize> {
    text.parse().ok().filter(|number: &usize| number.to_string() == text)
}

/// Returns whether a tensor only accompanies a weight: its bias, or the scales of a quantised one.
fn is_companion(name: &str) -> bool {
    let ends = ["bias", "scales", "_scale", "scale_inv", "_scale_2", "qzeros", "g_idx", ".absmax", ".quant_map"];
    name.contains(".quant_state.") || ends.iter().any(|end| name.ends_with(end))
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
#[derive(Clone)]
pub struct ExpertLayout {
    /// The family's names and keys.
    pub family: &'static MoeFamily,
    /// Layers of the model, as `config.json` counts them; those for multi-token prediction come after.
    pub layers: usize,
    /// Routed experts of every mixture, by `config.json`.
    pub experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Groups, where routing is limited to some of them.
    pub groups: Option<Groups>,
    /// Layers with a mixture, and their tensors: role, and position in [`Source::index`].
    pub mixtures: BTreeMap<usize, Vec<(Role, usize)>>,
}

crate::debug::one_line!(ExpertLayout, |layout| {
    let (family, layers) = (layout.family.model_type, layout.mixtures.len());
    format!(
        "ExpertLayout({family}: {} experts in each of {layers} layers, {} for a token)",
        layout.experts, layout.top_k
    )
});

impl ExpertLayout {
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
        if experts > MOST_EXPERTS {
            let key = key.unwrap_or(family.experts_key);
            return Err(Error::file(&path, format!("`{key}` is {experts}, more experts than any model has")));
        }
        let groups = match family.group_keys {
            Some((key, reachable)) if config.get(key).is_some_and(|groups| !groups.is_null()) => {
                let groups = Groups { groups: number(key)?, reachable: number(reachable)? };
                if experts % groups.groups != 0 || groups.reachable > groups.groups {
                    let problem = format!(
                        "{experts} experts in {} groups (`{key}`), of which a token reaches {} (`{reachable}`): \
                         impossible",
                        groups.groups, groups.reachable
                    );
                    return Err(Error::file(&path, problem));
                }
                Some(groups).filter(|groups| groups.groups > 1)
            }
            _ => None,
        };
        let layers = number("num_hidden_layers")?;
        let mut mixtures: BTreeMap<usize, Vec<(Role, usize)>> = BTreeMap::new();
        for (position, info) in source.index().iter().enumerate() {
            if let Some((layer, role)) = place(family, layers, &info.name) {
                mixtures.entry(layer).or_default().push((role, position));
            }
        }
        Self::check_layers(source, family, layers)?;
        // A shared expert alone is no mixture.
        mixtures.retain(|_, tensors| tensors.iter().any(|(role, _)| *role != Role::Shared));
        if mixtures.is_empty() {
            return Err(Error::file(&path, "the config is that of a mixture, but no tensor is an expert's"));
        }
        let layout = ExpertLayout { family, layers, experts, top_k, groups, mixtures };
        layout.check(source)?;
        Ok(layout)
    }

    /// Every layer has a feed-forward part, be it a mixture or dense: else a shard is missing.
    fn check_layers(source: &dyn Source, family: &MoeFamily, layers: usize) -> Result<()> {
        let mut seen = BTreeSet::new();
        for info in source.index() {
            if let Some((layer, rest)) = info.name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'))
                && family.modules().iter().chain(&["mlp"]).any(|module| rest.split('.').next() == Some(*module))
            {
                seen.extend(canonical(layer));
            }
        }
        match (0..layers).find(|layer| !seen.contains(layer)) {
            None => Ok(()),
            Some(layer) => {
                let name = format!("model.layers.{layer}.{}", family.module);
                let problem = format!("no tensor of it is here, and config.json has {layers} layers")
                    .remedy("is a shard missing?");
                Err(Error::tensor(source.origin(), name, problem))
            }
        }
    }

    /// Returns whether tokens can be routed when each mixture keeps `count` experts, as many of each group.
    pub(super) fn routable(&self, count: usize) -> bool {
        let enough = self.top_k <= count && count <= self.experts;
        enough
            && self.groups.is_none_or(|Groups { groups, reachable }| {
                let size = count / groups;
                count.is_multiple_of(groups) && size >= self.family.group_best && reachable * size >= self.top_k
            })
    }

    fn check(&self, source: &dyn Source) -> Result<()> {
        for (&layer, tensors) in &self.mixtures {
            self.check_layer(source, layer, tensors)?;
        }
        Ok(())
    }

    fn check_layer(&self, source: &dyn Source, layer: usize, tensors: &[(Role, usize)]) -> Result<()> {
        let key = self.family.experts_key;
        let shard = |info: &TensorInfo| Path::new(&source.origin()).join(&source.files()[info.shard]);
        // By the name that expert 0 has: which experts have it, and what it looks like in the first of them.
        let mut kinds: BTreeMap<String, (Vec<bool>, &TensorInfo)> = BTreeMap::new();
        let (mut router, mut stacked) = (false, Vec::new());
        for &(role, position) in tensors {
            let info = &source.index()[position];
            let rows = match role {
                Role::Shared => continue,
                Role::Expert(expert) if expert >= self.experts => {
                    let problem = format!("config.json has {} experts (`{key}`)", self.experts);
                    return Err(Error::tensor(shard(info), &info.name, problem));
                }
                Role::Expert(expert) => {
                    let kind = kinds.entry(renumbered(&info.name, 0));
                    let (seen, first) = kind.or_insert_with(|| (vec![false; self.experts], info));
                    // JSON of a quantised weight is as long as its numbers are.
                    let any_length = info.name.contains(".quant_state.");
                    if !any_length && (first.dtype, &first.shape) != (info.dtype, &info.shape) {
                        let problem = format!(
                            "{} x {:?} is not what other experts have, {} x {:?} in `{}`",
                            info.dtype, info.shape, first.dtype, first.shape, first.name
                        );
                        return Err(Error::tensor(shard(info), &info.name, problem));
                    }
                    seen[expert] = true;
                    continue;
                }
                Role::Stacked => {
                    stacked.push(info.name.as_str());
                    info.shape.get(self.family.expert_dim)
                }
                Role::Router => {
                    router |= !info.name.ends_with("bias");
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
        for (first, (seen, _)) in &kinds {
            if let Some(missing) = seen.iter().position(|seen| !seen) {
                let problem = "is missing, while other experts have it".remedy("is the checkpoint complete?");
                return Err(Error::tensor(source.origin(), renumbered(first, missing), problem));
            }
        }
        let missing = |what: String| {
            let name = format!("model.layers.{layer}.{}.{what}", self.family.module);
            Err(Error::tensor(source.origin(), name, "is missing".remedy("is the checkpoint complete?")))
        };
        if !router {
            return missing(self.family.router.to_owned());
        }
        for linear in self.family.linears {
            let separate = format!(".experts.0.{linear}.");
            // Of experts in one tensor, gate and up projection are in the same one, whatever the family calls them otherwise.
            let fused = if linear == self.family.linears[2] { "down_proj" } else { "gate_up_proj" };
            let joined = [linear, fused].map(|linear| format!(".experts.{linear}"));
            let is_stacked = |name: &str| joined.iter().any(|joined| name.contains(joined));
            let found = kinds.keys().any(|name| name.contains(&separate) && !is_companion(name))
                || stacked.iter().any(|name| is_stacked(name) && !is_companion(name));
            if !found {
                return missing(format!("experts.0.{linear}"));
            }
        }
        Ok(())
    }

    /// The tensors of one mixture that pruning changes, with their roles.
    pub fn tensors<'a>(&'a self, source: &'a dyn Source, layer: usize) -> impl Iterator<Item = (Role, &'a TensorInfo)> {
        let tensors = self.mixtures.get(&layer).map_or(&[][..], Vec::as_slice);
        let changed = tensors.iter().filter(|(role, _)| *role != Role::Shared);
        changed.map(|&(role, position)| (role, &source.index()[position]))
    }

    /// SHA-256 in hexadecimal of the routers' bytes, layer by layer: a few megabytes that tell one model from another.
    ///
    /// # Errors
    /// Those of [`Source::stream`].
    pub fn routers_sha256(&self, source: &dyn Source) -> Result<String> {
        let mut hash = Sha256::new();
        for &layer in self.mixtures.keys() {
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
        Ok(hex::encode(hash.finalize()))
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
    fn names_that_checkpoints_have_are_placed() {
        for (model_type, name, expected) in [
            ("gpt_oss", "model.layers.3.mlp.experts.gate_up_proj_blocks", Some((3, Role::Stacked))),
            ("gpt_oss", "model.layers.3.mlp.router.bias", Some((3, Role::Router))),
            ("gpt_oss", "model.layers.3.self_attn.sinks", None),
            ("mixtral", "model.layers.0.block_sparse_moe.experts.7.w2.weight", Some((0, Role::Expert(7)))),
            ("mixtral", "model.layers.0.block_sparse_moe.gate.weight", Some((0, Role::Router))),
            ("mixtral", "model.layers.0.mlp.experts.gate_up_proj", Some((0, Role::Stacked))),
            ("mixtral", "model.layers.0.mlp.gate.weight", Some((0, Role::Router))),
            ("olmoe", "model.layers.0.mlp.experts.down_proj", Some((0, Role::Stacked))),
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
        for (alias, family) in [("experts.01.w1", "mixtral"), ("experts.+1.w1", "mixtral")] {
            let name = format!("model.layers.0.block_sparse_moe.{alias}.weight");
            let role = place(MoeFamily::find(family).unwrap(), 48, &name);
            assert_eq!(role, Some((0, Role::Stacked)), "{name} is not expert 1, and has no 8 rows");
        }
    }

    #[test]
    fn the_row_of_a_family_places_its_tensors() {
        for family in MOE_FAMILIES {
            let place = |name: &str| place(family, 48, &format!("model.layers.5.{}.{name}", family.module));
            for linear in family.linears {
                assert_eq!(place(&format!("experts.3.{linear}.weight")), Some((5, Role::Expert(3))), "{family:?}");
            }
            assert_eq!(place(&format!("{}.weight", family.router)), Some((5, Role::Router)), "{family:?}");
            for shared in family.shared {
                assert_eq!(place(&format!("{shared}.weight")), Some((5, Role::Shared)), "{family:?}");
            }
        }
    }

    #[test]
    fn only_the_expert_is_renumbered() {
        assert_eq!(renumbered("model.layers.1.mlp.experts.12.w1.weight", 3), "model.layers.1.mlp.experts.3.w1.weight");
    }
}
