//! The choices that a run is configured by and that its record keeps: each has a name, for users to write and for files.
//!
//! The module of its algorithm says what each choice does, and re-exports it.

use crate::entries::Entries;
use crate::error::{Error, Remedy, Result};
use candle_core::DType;
use glob::Pattern as Glob;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// Serialises types as the text that they are printed and parsed as.
macro_rules! as_text {
    ($($type:ty),+ $(,)?) => { $(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                String::schema_name()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                String::json_schema(generator)
            }
        }
    )+ };
}

as_text!(
    Method,
    Origin,
    Pattern,
    Zeros,
    Per,
    ComparisonGroup,
    Ties,
    Allocation,
    Rule,
    Dsnot,
    Propagate,
    Unit,
    GroupNorm,
    Form,
    FloatType
);

/// The data that a method reads besides the weights.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    Weights,
    /// Statistics of the inputs of a linear.
    Inputs,
    /// Gradients of the dense model's loss.
    Gradients,
}

/// Declares [`Method`]: for each its name, the data that it reads, and the comparison group of its paper.
macro_rules! methods {
    ($($(#[$doc:meta])+ $method:ident = $name:literal, reads $reads:ident, compares $group:ident;)+) => {
        /// An importance metric.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Method {
            $($(#[$doc])+ $method),+
        }

        crate::error::named!(Method, "method", $($method => $name),+);

        impl Method {
            fn reads(self) -> Reads {
                match self { $(Method::$method => Reads::$reads),+ }
            }

            /// The comparison group of its paper, for unstructured zeros.
            pub(crate) fn group(self) -> ComparisonGroup {
                match self { $(Method::$method => ComparisonGroup::$group),+ }
            }
        }
    };
}

methods! {
    /// `|W|` (Han et al. 2015).
    Magnitude = "magnitude", reads Weights, compares Layer;
    /// `|W_ij| * ||X_j||_2` (Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models").
    Wanda = "wanda", reads Inputs, compares Row;
    /// `(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * ||X_j||_2 ^ 0.5` (Zhang et al. 2024, "Plug-and-Play: An Efficient
    /// Post-training Pruning Method for Large Language Models", relative importance and activations).
    Ria = "ria", reads Inputs, compares Row;
    /// `|dL/dW|` of the dense model, summed over windows.
    Gradient = "gradient", reads Gradients, compares Layer;
    /// `|W * dL/dW|`, the first-order Taylor term of removing a weight (Molchanov et al. 2019).
    Taylor = "taylor", reads Gradients, compares Layer;
    /// Uniform, seeded: the baseline that any metric must beat.
    Random = "random", reads Weights, compares Layer;
    /// Optimal brain surgery by columns (Frantar and Alistarh 2023, "SparseGPT"). It updates the weights that stay, so
    /// it prunes a model, and gives no scores: [`crate::sparsegpt`].
    SparseGpt = "sparsegpt", reads Inputs, compares Columns;
}

impl Method {
    /// Returns whether the method needs calibration text.
    pub fn needs_calibration(self) -> bool {
        self.reads() != Reads::Weights
    }

    /// Returns whether the method needs statistics of the inputs of a linear.
    pub fn needs_inputs(self) -> bool {
        self.reads() == Reads::Inputs
    }

    /// Returns whether the method needs gradients of the dense model's loss.
    pub fn needs_gradients(self) -> bool {
        self.reads() == Reads::Gradients
    }
}

/// The origin of the scores by which weights or units were pruned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// An importance metric.
    Method(Method),
    /// Masks that were given, under the name that says what they are: `and(wanda 0.5, magnitude 0.5)`, or `masks`.
    Masks(String),
}

impl From<Method> for Origin {
    fn from(method: Method) -> Self {
        Origin::Method(method)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Method(method) => method.fmt(f),
            Origin::Masks(name) => f.pad(name),
        }
    }
}

impl FromStr for Origin {
    type Err = Error;

    /// The name of a [`Method`], or any other text.
    fn from_str(text: &str) -> Result<Self> {
        Ok(text.parse().map_or_else(|_| Origin::Masks(text.to_owned()), Origin::Method))
    }
}

/// The shape that zeros must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Zeros anywhere.
    Unstructured,
    /// Of each `m` consecutive inputs, `n` are kept: 2:4 keeps two of four, as NVIDIA and the literature write it.
    NofM {
        /// Kept per group.
        n: usize,
        /// Group size.
        m: usize,
    },
}

impl Pattern {
    /// The sparsity that the pattern prescribes, if it does.
    pub fn sparsity(self) -> Option<f64> {
        match self {
            Pattern::Unstructured => None,
            Pattern::NofM { n, m } => Some(1.0 - n as f64 / m as f64),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Unstructured => f.write_str("unstructured"),
            Pattern::NofM { n, m } => write!(f, "{n}:{m}"),
        }
    }
}

impl FromStr for Pattern {
    type Err = Error;

    /// `unstructured`, or `n:m` with `0 < n < m`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::argument("pattern", text, "write `unstructured`, or kept-of-M such as `2:4` with 0 < n < m");
        if text == "unstructured" {
            return Ok(Pattern::Unstructured);
        }
        let (n, m) = text.split_once(':').ok_or_else(wrong)?;
        match (n.parse(), m.parse()) {
            (Ok(n), Ok(m)) if 0 < n && n < m => Ok(Pattern::NofM { n, m }),
            _ => Err(wrong()),
        }
    }
}

/// The smallest parts of a model that are pruned: single weights in a pattern, or whole units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Zeros {
    /// Single weights.
    Pattern(Pattern),
    /// Whole units.
    Units(Unit),
}

impl Zeros {
    /// Single weights, anywhere.
    pub const UNSTRUCTURED: Zeros = Zeros::Pattern(Pattern::Unstructured);
}

impl From<Pattern> for Zeros {
    fn from(pattern: Pattern) -> Self {
        Zeros::Pattern(pattern)
    }
}

impl From<Unit> for Zeros {
    fn from(unit: Unit) -> Self {
        Zeros::Units(unit)
    }
}

impl fmt::Display for Zeros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Zeros::Pattern(pattern) => pattern.fmt(f),
            Zeros::Units(unit) => unit.fmt(f),
        }
    }
}

impl FromStr for Zeros {
    type Err = Error;

    /// A [`Pattern`], or the name of a [`Unit`].
    fn from_str(text: &str) -> Result<Self> {
        match text.parse() {
            Ok(unit) => Ok(Zeros::Units(unit)),
            Err(_) => text.parse().map(Zeros::Pattern),
        }
    }
}

/// The comparison group of an unstructured selection (Wanda, section 3): the weights that compete with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Per {
    /// The weights of one output row: each row loses `floor(in * sparsity)`.
    Row,
    /// All weights of the linear: it loses `floor(out * in * sparsity)`.
    Layer,
    /// Wanda's variant: each row loses its smallest scores up to a share `alpha` of their sum, the share that gives the
    /// linear its sparsity to within 0.001 ([`crate::mask::select_alpha`]).
    Alpha,
}

crate::error::named!(Per, "per", Row => "row", Layer => "layer", Alpha => "alpha");

/// The weights or units whose scores were compared with each other: the "comparison group" of Wanda's paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ComparisonGroup {
    /// The inputs of one output; for an N:M pattern those of one group.
    Row,
    /// All weights, or all units, of one linear.
    Layer,
    /// The inputs of one output, up to a share of their scores ([`Per::Alpha`]).
    Alpha,
    /// All weights of some columns, as SparseGPT goes through a linear.
    Columns,
    /// The units of one attention or MLP.
    Module,
    /// The units of the whole model.
    Model,
}

crate::error::named!(ComparisonGroup, "per",
    Row => "row", Layer => "layer", Alpha => "alpha", Columns => "columns", Module => "module", Model => "model");

impl ComparisonGroup {
    /// The group that a selection by a method compares.
    pub fn of(method: Method, pattern: Pattern, per: Per) -> ComparisonGroup {
        match (pattern, method, per) {
            (Pattern::NofM { .. }, ..) => ComparisonGroup::Row,
            (Pattern::Unstructured, Method::SparseGpt, _) => ComparisonGroup::Columns,
            (Pattern::Unstructured, _, Per::Row) => ComparisonGroup::Row,
            (Pattern::Unstructured, _, Per::Layer) => ComparisonGroup::Layer,
            (Pattern::Unstructured, _, Per::Alpha) => ComparisonGroup::Alpha,
        }
    }
}

/// The rule of an unstructured selection for scores that equal its threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ties {
    /// The counts are exact; of equal scores, the first by position are pruned.
    #[default]
    ByPosition,
    /// As in the reference implementation of magnitude pruning and of SparseGPT, a weight is pruned if
    /// `score <= sorted[int(n * sparsity)]`: one more than asked for, and all its equals.
    Reference,
}

crate::error::named!(Ties, "ties", ByPosition => "by-position", Reference => "reference");

/// The distribution of a target sparsity over the linears.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Allocation {
    /// Every linear gets it.
    #[default]
    Uniform,
    /// Layers with more outliers keep more (Yin et al. 2024, "Outlier Weighed Layerwise Sparsity"): see [`Owl`].
    Owl(Owl),
    /// One threshold over the scores of all linears: each loses what lies below it.
    Global,
}

impl fmt::Display for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Allocation::Uniform => f.write_str("uniform"),
            Allocation::Owl(Owl { m, lambda }) => write!(f, "owl:{m}:{lambda}"),
            Allocation::Global => f.write_str("global"),
        }
    }
}

impl FromStr for Allocation {
    type Err = Error;

    /// `uniform`, `global`, `owl`, or `owl:M:LAMBDA`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |problem: &str| Error::argument("allocation", text, problem);
        match text.split(':').collect::<Vec<_>>()[..] {
            ["uniform"] => Ok(Allocation::Uniform),
            ["global"] => Ok(Allocation::Global),
            ["owl"] => Ok(Allocation::Owl(Owl::default())),
            ["owl", m, lambda] => match (m.parse(), lambda.parse()) {
                (Ok(m), Ok(lambda)) if [m, lambda].iter().all(|x: &f64| x.is_finite() && *x > 0.0) => {
                    Ok(Allocation::Owl(Owl { m, lambda }))
                }
                _ => Err(wrong("M and LAMBDA of owl:M:LAMBDA must be positive numbers")),
            },
            _ => Err(wrong("must be one of uniform, global, owl, owl:M:LAMBDA")),
        }
    }
}

/// Constants of OWL; the defaults are those of the paper for sparsities around 70%.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Owl {
    /// A score is an outlier above `m` times the mean of its layer.
    pub m: f64,
    /// The kept share of a layer moves by at most this much around the mean.
    pub lambda: f64,
}

impl Default for Owl {
    fn default() -> Self {
        Owl { m: 5.0, lambda: 0.08 }
    }
}

/// The treatment of the linears that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// This fraction of zeros, in `[0, 1)`.
    Sparsity(f64),
    /// They are left as they are.
    Skip,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Sparsity(sparsity) => write!(f, "{sparsity}"),
            Target::Skip => f.write_str("skip"),
        }
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.parse() {
            _ if text == "skip" => Ok(Target::Skip),
            Ok(sparsity) if (0.0..1.0).contains(&sparsity) => Ok(Target::Sparsity(sparsity)),
            _ => Err(Error::argument("sparsity", text, "a rule gives a sparsity in [0, 1), or `skip`")),
        }
    }
}

/// A rule for linears by name: `*.down_proj=0.3`, `model.layers.0.*=skip`. The glob's `*` also matches dots; it is compared
/// with the weight's name, with and without its `.weight`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub(crate) glob: Glob,
    pub(crate) target: Target,
}

impl Rule {
    /// A rule for the names that `glob` matches.
    ///
    /// # Errors
    /// [`Error::Argument`] for a malformed glob.
    pub fn new(glob: &str, target: Target) -> Result<Rule> {
        let wrong = |error| Error::argument("rule", glob, format!("is no glob: {error}"));
        Ok(Rule { glob: Glob::new(glob).map_err(wrong)?, target })
    }

    /// Rules from a JSON object of globs and targets, in its order: `{"*.down_proj": 0.3, "model.layers.0.*": "skip"}`.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::File`] for anything but such an object.
    pub fn read(path: &Path) -> Result<Vec<Rule>> {
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        let form = "one JSON object of globs, such as {\"*.down_proj\": 0.3, \"*.o_proj\": \"skip\"}";
        let wrong = |error: serde_json::Error| Error::file(path, error.remedy(format!("it must hold {form}")));
        let Entries::<String, serde_json::Value>(entries) = serde_json::from_slice(&text).map_err(wrong)?;
        let rule = |(glob, target): &(String, serde_json::Value)| {
            let text = target.as_str().map_or_else(|| target.to_string(), str::to_owned);
            Rule::new(glob, text.parse()?)
        };
        entries.iter().map(|entry| rule(entry).map_err(|error| Error::file(path, error))).collect()
    }

    /// Returns whether the rule leaves the linears that it matches unpruned.
    pub fn is_skip(&self) -> bool {
        self.target == Target::Skip
    }

    pub(crate) fn matches(&self, linear: &str) -> bool {
        self.glob.matches(linear) || self.glob.matches(linear.strip_suffix(".weight").unwrap_or(linear))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.glob, self.target)
    }
}

impl FromStr for Rule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (glob, target) = text.rsplit_once('=').ok_or_else(|| {
            Error::argument("rule", text, "write GLOB=SPARSITY or GLOB=skip, such as *.down_proj=0.3")
        })?;
        Rule::new(glob, target.parse()?)
    }
}

/// Settings of DSnoT.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dsnot {
    /// Swaps that a row makes at most.
    pub max_cycles: usize,
    /// A row whose expected error is at most this is left alone; in the units of [`crate::dsnot::DsnotInputs::sums`] times weights.
    pub threshold: f64,
    /// The contribution of a weight to be grown is divided by this power of its input's variance.
    pub variance_power: f64,
    /// True if a row ends before the swap that would turn the sign of its error. N:M always does.
    pub keep_sign: bool,
}

impl Default for Dsnot {
    /// The reference implementation's: 50 cycles, threshold 0.1, variance to the power of 1, and signs may turn.
    fn default() -> Self {
        Dsnot { max_cycles: 50, threshold: 0.1, variance_power: 1.0, keep_sign: false }
    }
}

impl Dsnot {
    /// Checks the settings on their own.
    ///
    /// # Errors
    /// [`Error::Argument`] for a threshold or a power that is negative or not finite.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [("threshold", self.threshold), ("variance_power", self.variance_power)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::argument(name, value, "must be a number of at least 0"));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Dsnot {
    /// `dsnot:MAX_CYCLES:THRESHOLD:VARIANCE_POWER`, with `:keep-sign` behind it where that is set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Dsnot { max_cycles, threshold, variance_power, keep_sign } = self;
        write!(f, "dsnot:{max_cycles}:{threshold}:{variance_power}{}", if *keep_sign { ":keep-sign" } else { "" })
    }
}

impl FromStr for Dsnot {
    type Err = Error;

    /// As it is printed; `dsnot` alone is the reference implementation's.
    fn from_str(text: &str) -> Result<Self> {
        let form = "write dsnot, or dsnot:MAX_CYCLES:THRESHOLD:VARIANCE_POWER with :keep-sign behind it or without";
        let wrong = || Error::argument("refine", text, form);
        let parts: Vec<&str> = text.split(':').collect();
        let (numbers, keep_sign) = match parts.as_slice() {
            ["dsnot"] => return Ok(Dsnot::default()),
            ["dsnot", numbers @ .., "keep-sign"] => (numbers, true),
            ["dsnot", numbers @ ..] => (numbers, false),
            _ => return Err(wrong()),
        };
        let [cycles, threshold, power] = numbers else { return Err(wrong()) };
        let (Ok(max_cycles), Ok(threshold), Ok(variance_power)) = (cycles.parse(), threshold.parse(), power.parse())
        else {
            return Err(wrong());
        };
        let dsnot = Dsnot { max_cycles, threshold, variance_power, keep_sign };
        dsnot.validate()?;
        Ok(dsnot)
    }
}

/// The inputs of a layer during calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Propagate {
    /// The outputs of the pruned layers before it, as in the reference implementations: sequential calibration.
    Pruned,
    /// The outputs of the dense layers before it, one-shot calibration: one forward pass serves every method and ratio.
    Dense,
}

crate::error::named!(Propagate, "propagate", Pruned => "pruned" | "sequential", Dense => "dense" | "one-shot");

/// A unit that is pruned as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// A key/value head with all query heads that read it: rows of q, k and v with their biases, columns of o.
    Heads,
    /// A neuron of an MLP, also of an expert's: rows of gate and up with their biases, the column of down.
    Neurons,
    /// A channel of the residual stream, throughout the model: a column of the embedding, of whatever reads the stream and
    /// of the output head, a row of o and down with their biases, an element of each norm.
    Channels,
    /// An output of one linear: a row and its bias. It can be zeroed, not removed.
    OutputChannels,
    /// An input of one linear: a column. It can be zeroed, not removed.
    InputChannels,
}

crate::error::named!(
    Unit, "structure",
    Heads => "heads", Neurons => "neurons", Channels => "channels",
    OutputChannels => "output-channels", InputChannels => "input-channels",
);

/// The norm that joins the scores of a unit's weights to the score of the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupNorm {
    /// Their sum.
    Sum,
    /// The root of the sum of their squares.
    L2,
}

crate::error::named!(GroupNorm, "group norm", Sum => "sum", L2 => "l2");

/// The form of the result: pruned units are cut out or zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// They are cut out of the tensors; the model is smaller and computes what the zeroed one computes.
    Remove,
    /// Their weights are zero; shapes stay.
    Zero,
}

crate::error::named!(Form, "form", Remove => "remove", Zero => "zero");

impl Unit {
    /// Returns whether a model without some of these units is still a model of its family.
    pub fn is_removable(self) -> bool {
        matches!(self, Unit::Heads | Unit::Neurons | Unit::Channels)
    }

    /// The units that are compared with each other.
    pub fn per(self) -> ComparisonGroup {
        match self {
            Unit::Heads | Unit::Neurons => ComparisonGroup::Module,
            Unit::Channels => ComparisonGroup::Model,
            Unit::OutputChannels | Unit::InputChannels => ComparisonGroup::Layer,
        }
    }
}

/// A dtype of weights, or of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// 32 bits.
    F32,
    /// 16 bits with the exponents of f32.
    Bf16,
    /// 16 bits.
    F16,
    /// 64 bits.
    F64,
}

crate::error::named!(FloatType, "dtype", F32 => "f32", Bf16 => "bf16", F16 => "f16", F64 => "f64");

impl From<FloatType> for DType {
    fn from(dtype: FloatType) -> DType {
        match dtype {
            FloatType::F32 => DType::F32,
            FloatType::Bf16 => DType::BF16,
            FloatType::F16 => DType::F16,
            FloatType::F64 => DType::F64,
        }
    }
}

impl TryFrom<DType> for FloatType {
    type Error = Error;

    /// # Errors
    /// [`Error::Argument`] for a dtype that no model computes in.
    fn try_from(dtype: DType) -> Result<FloatType> {
        match dtype {
            DType::F32 => Ok(FloatType::F32),
            DType::BF16 => Ok(FloatType::Bf16),
            DType::F16 => Ok(FloatType::F16),
            DType::F64 => Ok(FloatType::F64),
            other => Err(Error::argument("dtype", other.as_str(), "models compute in f32, bf16, f16 or f64")),
        }
    }
}
