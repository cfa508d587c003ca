//! The names that a notebook cell or a short program needs: `use lacuna::prelude::*;`.

pub use crate::allocate::{Allocation, Owl, Rule};
pub use crate::cache::Cache;
pub use crate::calibrate::{Statistics, calibrate};
pub use crate::checkpoint::{Checkpoint, HeadersOnly, Source};
#[cfg(feature = "report")]
pub use crate::display::{EvcxrDisplay as _, display, input, password};
pub use crate::error::{Error, Result};
pub use crate::evaluate::{
    ChoiceScores, Evaluation, GenerationScores, Task, evaluate, score_choices, score_generation,
};
pub use crate::experts::{
    self, ExpertLayout, ExpertScores, Keep, Locality, Metric, Parts, Ranking, Selection, SuperExperts,
};
#[cfg(feature = "report")]
pub use crate::frames::{Aggregate, Frames as _, Join, Order};
pub use crate::generate::{GenerateConfig, generate};
pub use crate::gradients::{Accumulate, Gradients, gradients};
pub use crate::lab::Lab;
pub use crate::mask::{Mask, MaskFormat, MaskSet, Pattern, Per};
pub use crate::model::Model;
pub use crate::progress::Progress;
pub use crate::prune::{MasksConfig, Method, Propagate, PruneConfig, Pruned, apply, apply_to, masks, prune, prune_to};
pub use crate::record::Record;
#[cfg(feature = "report")]
pub use crate::report::{Format, HeatMap, Plot, Report, Table};
pub use crate::report::{read_records, write_record};
pub use crate::stats::{Bootstrap, Interval, Score};
pub use crate::structured::{GroupNorm, Structured, StructuredConfig, Unit, prune_structured, prune_structured_to};
pub use crate::text::{Bos, Consecutive, Sampling, Tokenizer, Windows};
pub use candle_core::{DType, Device, Tensor};
#[cfg(feature = "report")]
pub use polars::{
    df,
    prelude::{DataFrame, Series},
};
