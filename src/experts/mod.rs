//! Structural pruning of mixtures of experts.
mod build;
mod keep;
mod layout;
mod norms;
mod parts;
mod plan;
mod ranking;
mod saliency;
mod scores;
mod verify;

pub use build::{Selection, SuperExpertsKept, plan_model, plan_slices, prune_experts, prune_experts_to, slice};
pub use keep::{Keep, count};
pub use layout::{ExpertLayout, Groups, Role, place};
pub use norms::{router_norms, weight_norms};
pub use parts::{LayerShards, Locality, Part, PartSize, Parts, ShardBytes};
pub use plan::{Estimate, ExpertPlan, Probe, plan, probe};
pub use ranking::{Ranking, SuperExperts};
pub use saliency::{ExpertSaliency, saliency};
pub use scores::{ExpertScores, Metric};
pub use verify::{Mismatch, Verification, verify};
