//! The sparsity of each linear: uniform, OWL, one threshold over all linears, and rules by name.

use crate::error::{Error, Remedy, Result};
use crate::mask::bad_score;
pub use crate::settings::{Allocation, Owl, Rule, Target};

use std::collections::{BTreeMap, HashMap};

impl Owl {
    /// Outlier share of a layer in percent: scores above `m` times their mean, over `linears`' scores taken together.
    pub fn outliers<'a>(&self, linears: impl Iterator<Item = &'a [f32]> + Clone) -> f64 {
        let count: usize = linears.clone().map(<[f32]>::len).sum();
        let sum: f64 = linears.clone().flatten().map(|&score| f64::from(score)).sum();
        let bound = sum / count.max(1) as f64 * self.m;
        let above = linears.flatten().filter(|&&score| f64::from(score) > bound).count();
        100.0 * above as f64 / count.max(1) as f64
    }

    /// Sparsity of each layer, from the [`Owl::outliers`] of each; their mean is `sparsity`. Where that is so low that a layer
    /// would fall below 0, all move around the mean by less. (The reference implementation sets such a layer to 0.01, so that the
    /// mean is missed, and that layer's sparsity jumps down as the target goes up.)
    ///
    /// # Errors
    /// [`Error::Argument`] when a layer would lose all its weights.
    pub fn sparsities(&self, outliers: &[f64], sparsity: f64) -> Result<Vec<f64>> {
        let min = outliers.iter().copied().fold(f64::INFINITY, f64::min);
        let max = outliers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // Layers that are all alike have no order: each keeps the same.
        let range = if max > min { max - min } else { 1.0 };
        let kept: Vec<f64> = outliers.iter().map(|share| (share - min) / range * 2.0 * self.lambda).collect();
        let mean = kept.iter().sum::<f64>() / kept.len().max(1) as f64;
        let most = kept.iter().copied().fold(0.0, f64::max) - mean;
        let scale = if most > sparsity { sparsity / most } else { 1.0 };
        kept.iter()
            .map(|kept| match sparsity - (kept - mean) * scale {
                layer if layer < 1.0 => Ok(layer.max(0.0)),
                layer => {
                    let problem = format!("gives a layer a sparsity of {layer:.3} with lambda {}", self.lambda)
                        .remedy("lower one");
                    Err(Error::argument("sparsity", sparsity, problem))
                }
            })
            .collect()
    }
}

/// The rules' targets by linear; of the rules that match one linear, the last counts.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Ruled(HashMap<String, Target>);

crate::debug::one_line!(Ruled, |ruled| format!("Ruled({} linears)", ruled.0.len()));

impl Ruled {
    /// Applies `rules` to the linears of a model, by name.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the rule that matches none of them, as it is misspelt or for another model; or when none of
    /// the linears is left.
    pub(crate) fn new<'a>(rules: &[Rule], linears: impl Iterator<Item = &'a str> + Clone) -> Result<Ruled> {
        // There may be a rule for each of thousands of linears: names are looked up, only globs are tried.
        let (mut names, mut globs): (HashMap<&str, Vec<usize>>, Vec<usize>) = (HashMap::new(), Vec::new());
        for (i, rule) in rules.iter().enumerate() {
            match rule.glob.as_str() {
                glob if glob.contains(['*', '?', '[']) => globs.push(i),
                name => names.entry(name).or_default().push(i),
            }
        }
        let mut used = vec![false; rules.len()];
        let mut targets = HashMap::new();
        for linear in linears.clone() {
            let short = linear.strip_suffix(".weight").unwrap_or(linear);
            let named = [linear, short].into_iter().filter_map(|name| names.get(name)).flatten().copied();
            let mut last = None;
            for i in named {
                (used[i], last) = (true, last.max(Some(i)));
            }
            for &i in globs.iter().rev() {
                if used[i] && last > Some(i) {
                    continue;
                }
                if rules[i].matches(linear) {
                    (used[i], last) = (true, last.max(Some(i)));
                }
            }
            if let Some(i) = last {
                targets.insert(linear.to_owned(), rules[i].target);
            }
        }
        if let Some(unused) = used.iter().position(|used| !used) {
            let example = linears.clone().next().unwrap_or_default();
            let problem = format!("matches no linear of this model, whose first is `{example}`");
            return Err(Error::argument("rule", &rules[unused], problem));
        }
        if !rules.is_empty() && linears.clone().all(|linear| targets.get(linear) == Some(&Target::Skip)) {
            let all = rules.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            let problem = "skips every linear of this model, so that there is nothing to prune";
            return Err(Error::argument("rule", all, problem));
        }
        Ok(Ruled(targets))
    }

    /// The target of a linear; `None` when no rule matches it.
    pub(crate) fn get(&self, linear: &str) -> Option<Target> {
        self.0.get(linear).copied()
    }
}

/// The number of weights that each linear loses when the `floor(n * sparsity)` smallest of all scores are pruned, for
/// each of several sparsities; ties are broken by position, in the order of the linears. Exact, in three passes over
/// the scores that hold one linear's at a time.
#[derive(Debug)]
pub(crate) struct GlobalThreshold {
    sparsities: Vec<f64>,
    pass: ThresholdPass,
}

#[derive(Debug)]
enum ThresholdPass {
    /// Scores by the upper half of their bits.
    Upper { counts: Vec<u64> },
    /// Per level, those with the threshold's upper half, by the lower half.
    Lower { levels: Vec<Level> },
    /// Per level, the threshold, and how many scores equal to it are still to be pruned.
    Count { thresholds: Vec<(u32, u64)>, lost: BTreeMap<String, Vec<u64>> },
}

#[derive(Debug)]
struct Level {
    upper: u32,
    /// The number of scores with that upper half that are pruned.
    rest: u64,
    counts: Vec<u64>,
}

impl GlobalThreshold {
    /// The number of passes in which all scores are added.
    pub(crate) const PASSES: usize = 3;

    /// The beginning of the first pass.
    pub(crate) fn new(sparsities: &[f64]) -> Self {
        GlobalThreshold { sparsities: sparsities.to_vec(), pass: ThresholdPass::Upper { counts: vec![0; 1 << 16] } }
    }

    /// Adds the scores `(out, width)` of one linear, which must be finite and not negative, to the pass.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a score that is not.
    pub(crate) fn add(&mut self, linear: &str, width: usize, scores: &[f32]) -> Result<()> {
        if let Some(at) = scores.iter().position(|score| !(score.is_finite() && *score >= 0.0)) {
            return Err(bad_score(linear, at / width.max(1), at % width.max(1), scores[at]));
        }
        let keys = scores.iter().map(|score| score.abs().to_bits());
        match &mut self.pass {
            ThresholdPass::Upper { counts } => keys.for_each(|key| counts[(key >> 16) as usize] += 1),
            ThresholdPass::Lower { levels } => {
                for level in levels {
                    keys.clone()
                        .filter(|key| key >> 16 == level.upper)
                        .for_each(|key| level.counts[(key & 0xffff) as usize] += 1);
                }
            }
            ThresholdPass::Count { thresholds, lost } => {
                let losses = thresholds.iter_mut().map(|(threshold, ties)| {
                    let below = keys.clone().filter(|key| *key < *threshold).count() as u64;
                    let equal = (keys.clone().filter(|key| *key == *threshold).count() as u64).min(*ties);
                    *ties -= equal;
                    below + equal
                });
                lost.insert(linear.to_owned(), losses.collect());
            }
        }
        Ok(())
    }

    /// Ends a pass; the next one begins.
    pub(crate) fn next_pass(&mut self) {
        /// The bin in which `rest` is reached, and what of it is left there.
        fn reach(counts: &[u64], mut rest: u64) -> (u32, u64) {
            for (bin, &count) in counts.iter().enumerate() {
                if rest <= count {
                    return (bin as u32, rest);
                }
                rest -= count;
            }
            (counts.len() as u32, 0)
        }
        self.pass = match &self.pass {
            ThresholdPass::Upper { counts } => {
                let n: u64 = counts.iter().sum();
                let level = |sparsity: &f64| {
                    let (upper, rest) = reach(counts, (n as f64 * sparsity) as u64);
                    Level { upper, rest, counts: vec![0; 1 << 16] }
                };
                ThresholdPass::Lower { levels: self.sparsities.iter().map(level).collect() }
            }
            ThresholdPass::Lower { levels } => {
                let threshold = |level: &Level| {
                    let (lower, ties) = reach(&level.counts, level.rest);
                    ((level.upper << 16) + lower, ties)
                };
                ThresholdPass::Count { thresholds: levels.iter().map(threshold).collect(), lost: BTreeMap::new() }
            }
            ThresholdPass::Count { .. } => return,
        };
    }

    /// After the last pass: what each linear loses at each sparsity.
    pub(crate) fn lost(self) -> BTreeMap<String, Vec<u64>> {
        match self.pass {
            ThresholdPass::Count { lost, .. } => lost,
            _ => BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn allocations_parse_and_print() {
        for text in ["uniform", "global", "owl:5:0.08", "owl:3:0.2"] {
            assert_eq!(text.parse::<Allocation>().unwrap().to_string(), text);
        }
        assert_eq!("owl".parse::<Allocation>().unwrap(), Allocation::Owl(Owl::default()));
        for text in ["", "owl:5", "owl:0:1", "owl:a:b", "owl:inf:1", "layerwise"] {
            assert!(text.parse::<Allocation>().unwrap_err().to_string().contains("allocation = "), "{text}");
        }
    }

    #[test]
    fn owl_keeps_more_where_outliers_are() {
        let owl = Owl::default();
        let layer = [[0f32; 50], [0.0; 50]];
        assert_eq!(owl.outliers(layer.iter().map(|scores| &scores[..])), 0.0);
        let mut layer = [[1f32; 50], [1.0; 50]];
        layer[1][7] = 100.0; // mean 1.99
        assert_eq!(owl.outliers(layer.iter().map(|scores| &scores[..])), 1.0);

        // Kept shares 0, 0.08 and 0.16 around their mean 0.08.
        let sparsities = owl.sparsities(&[1.0, 2.0, 3.0], 0.7).unwrap();
        for (ours, expected) in sparsities.iter().zip([0.78, 0.7, 0.62]) {
            assert!((ours - expected).abs() < 1e-12, "{sparsities:?}");
        }
        // Kept shares 0 and 0.16, drawn together until the second layer loses nothing.
        assert_eq!(owl.sparsities(&[1.0, 3.0], 0.05).unwrap(), [0.1, 0.0]);
        assert!((owl.sparsities(&[2.0, 2.0], 0.6).unwrap()[0] - 0.6).abs() < 1e-12, "no layer stands out");
        assert!(owl.sparsities(&[1.0, 3.0], 0.95).unwrap_err().to_string().contains("lower one"));
    }

    #[test]
    fn rules_match_names_and_the_last_counts() {
        let rules: Vec<Rule> = ["*.mlp.*=0.3", "*.down_proj=skip", "model.layers.1.*=0.7"]
            .iter()
            .map(|rule| rule.parse().unwrap())
            .collect();
        let linears = [
            ("model.layers.0.mlp.up_proj.weight", Some(Target::Sparsity(0.3))),
            ("model.layers.0.mlp.down_proj.weight", Some(Target::Skip)),
            ("model.layers.1.mlp.down_proj.weight", Some(Target::Sparsity(0.7))),
            ("model.layers.10.self_attn.q_proj.weight", None),
        ];
        let names = linears.iter().map(|(name, _)| *name);
        let ruled = Ruled::new(&rules, names.clone()).unwrap();
        assert!(linears.iter().all(|(name, expected)| ruled.get(name) == *expected), "{ruled:?}");
        // A name is a rule like any other, with or without its `.weight`.
        let more = ["model.layers.1.mlp.down_proj=0.1", "model.layers.0.mlp.up_proj.weight=skip", "*.up_proj=0.2"];
        let more: Vec<Rule> = rules.iter().cloned().chain(more.iter().map(|rule| rule.parse().unwrap())).collect();
        let ruled = Ruled::new(&more, names).unwrap();
        let of = |i: usize| ruled.get(linears[i].0);
        assert_eq!((of(0), of(2)), (Some(Target::Sparsity(0.2)), Some(Target::Sparsity(0.1))));
        assert_eq!(rules[1].to_string(), "*.down_proj=skip");
        for wrong in ["*.down_proj", "a=1", "a=-0.1", "a=nan", "[=0.5"] {
            assert!(wrong.parse::<Rule>().is_err(), "{wrong}");
        }
        let error = Ruled::new(&rules, ["model.layers.0.mlp.down_proj.weight"].into_iter()).unwrap_err().to_string();
        assert!(error.contains("model.layers.1.*=0.7: matches no linear"), "{error}");
        let all = ["*=skip".parse().unwrap()];
        assert!(Ruled::new(&all, ["a", "b"].into_iter()).unwrap_err().to_string().contains("skips every linear"));
    }

    #[test]
    fn owl_keeps_the_mean_at_low_targets() {
        let mut before = vec![0.0; 3];
        for target in [0.0, 0.005, 0.02, 0.1, 0.11, 0.3] {
            let sparsities = Owl::default().sparsities(&[0.0, 0.1, 10.0], target).unwrap();
            assert!((sparsities.iter().sum::<f64>() / 3.0 - target).abs() < 1e-12, "{target}: {sparsities:?}");
            // Masks of ascending targets are nested.
            assert!(sparsities.iter().zip(&before).all(|(now, before)| now >= before), "{target}: {sparsities:?}");
            before = sparsities;
        }
    }

    #[test]
    fn rules_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rules.json");
        std::fs::write(&path, r#"{"*": 0.5, "*.q_proj": "skip"}"#).unwrap();
        let rules = Rule::read(&path).unwrap();
        assert_eq!(rules.iter().map(ToString::to_string).collect::<Vec<_>>(), ["*=0.5", "*.q_proj=skip"]);
        for (text, problem) in [
            ("[1]", "one JSON object"),
            (r#"{"*": 1.5}"#, "[0, 1)"),
            (r#"{"*": null}"#, "[0, 1)"),
            (r#"{"*": 0.5, "*": 0.6}"#, "`*` is there twice"),
            ("{", "EOF"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Rule::read(&path).unwrap_err().to_string();
            assert!(error.contains("rules.json") && error.contains(problem), "{error}");
        }
    }

    proptest! {
        #[test]
        fn global_counts_are_those_of_one_stable_sort(
            linears in proptest::collection::vec(proptest::collection::vec(0u32..40, 1..60), 1..5),
            sparsities in proptest::collection::vec(0.0f64..1.0, 1..4),
        ) {
            let linears: Vec<Vec<f32>> =
                linears.iter().map(|linear| linear.iter().map(|&x| x as f32 / 64.0).collect()).collect();
            let mut threshold = GlobalThreshold::new(&sparsities);
            for _ in 0..GlobalThreshold::PASSES {
                for (i, linear) in linears.iter().enumerate() {
                    threshold.add(&i.to_string(), 1, linear).unwrap();
                }
                threshold.next_pass();
            }
            let lost = threshold.lost();
            let mut all: Vec<(f32, usize)> =
                linears.iter().enumerate().flat_map(|(i, linear)| linear.iter().map(move |&x| (x, i))).collect();
            all.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (level, sparsity) in sparsities.iter().enumerate() {
                let k = (all.len() as f64 * sparsity) as usize;
                for i in 0..linears.len() {
                    let expected = all[..k].iter().filter(|(_, of)| *of == i).count() as u64;
                    prop_assert_eq!(lost[&i.to_string()][level], expected);
                }
            }
        }
    }
}
