//! The order in which experts are kept: one order gives every number of experts, each a subset of the next.

use super::keep::Keep;
use super::layout::ExpertLayout;
use super::scores::{ExpertScores, Metric};
use crate::error::{Error, Remedy, Result};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// The experts of each layer, those that are kept longest first.
#[derive(Clone, PartialEq, Eq)]
pub struct Ranking(BTreeMap<usize, Vec<usize>>);

crate::debug::one_line!(rich Ranking, |ranking| {
    let experts = ranking.0.values().map(Vec::len).max().unwrap_or(0);
    format!("Ranking({experts} experts in {} layers)", ranking.0.len())
});

/// The treatment of super-experts, whose loss breaks a model whatever their score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperExperts {
    /// They are kept before all others.
    Protect,
    /// They are treated as any other.
    Ignore,
}

crate::error::listed!(SuperExperts, Protect, Ignore);

impl Ranking {
    fn of(layout: &ExpertLayout, mut order: impl FnMut(usize) -> Vec<usize>) -> Self {
        Ranking(layout.mixtures.keys().map(|&layer| (layer, order(layer))).collect())
    }

    /// The first experts first.
    pub fn first(layout: &ExpertLayout) -> Self {
        Self::of(layout, |_| (0..layout.experts).collect())
    }

    /// The last experts first.
    pub fn last(layout: &ExpertLayout) -> Self {
        Self::of(layout, |_| (0..layout.experts).rev().collect())
    }

    /// A random order for each layer, the same for the same seed.
    pub fn random(layout: &ExpertLayout, seed: u64) -> Self {
        Self::of(layout, |layer| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(layer as u64);
            let mut order: Vec<usize> = (0..layout.experts).collect();
            order.shuffle(&mut rng);
            order
        })
    }

    /// The highest scores first, ties by position.
    ///
    /// # Errors
    /// [`Error::Argument`] when the scores are of another layout, or lack `metric`, or the one that tells super-experts.
    pub fn by_score(
        layout: &ExpertLayout,
        scores: &ExpertScores,
        metric: Metric,
        supers: SuperExperts,
    ) -> Result<Self> {
        scores.check(layout)?;
        let values = scores.get(metric)?;
        let protected = match supers {
            SuperExperts::Protect => scores.super_experts()?,
            SuperExperts::Ignore => Vec::new(),
        };
        let mut rows = values.iter();
        Ok(Self::of(layout, |layer| {
            let row = rows.next().map_or(&[][..], Vec::as_slice);
            let unprotected = |expert: usize| !protected.contains(&(layer, expert));
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| unprotected(a).cmp(&unprotected(b)).then(row[b].total_cmp(&row[a])).then(a.cmp(&b)));
            order
        }))
    }

    /// Layers and all experts of each, those that are kept longest first.
    pub fn layers(&self) -> impl Iterator<Item = (usize, &[usize])> {
        self.0.iter().map(|(&layer, order)| (layer, order.as_slice()))
    }

    /// The best `count` experts of each layer; where routing is by groups, as many of each group.
    ///
    /// # Errors
    /// [`Error::Argument`] when `count` is 0, more than there are, or no multiple of the number of groups.
    pub fn keep(&self, layout: &ExpertLayout, count: usize) -> Result<Keep> {
        let groups = layout.groups.map_or(1, |groups| groups.groups);
        if count == 0 || count > layout.experts {
            let least = (1..=layout.experts).find(|&count| layout.routable(count)).unwrap_or(layout.experts);
            let problem = format!("a layer has {} experts", layout.experts)
                .remedy(format!("keep at least {least} and at most all"));
            return Err(Error::argument("keep", format!("{count} experts"), problem));
        }
        if !count.is_multiple_of(groups) {
            // The nearest numbers that make a model, which all of them do.
            let fits = |count: &usize| layout.routable(*count);
            let below = (1..count).rev().find(fits);
            let near: Vec<String> =
                below.into_iter().chain((count..=layout.experts).find(fits)).map(|count| count.to_string()).collect();
            let problem = format!("the {groups} groups of experts must keep equally many")
                .remedy(format!("keep {}", near.join(" or ")));
            return Err(Error::argument("keep", format!("{count} experts"), problem));
        }
        let size = layout.experts / groups;
        let best = |order: &Vec<usize>| -> Vec<usize> {
            let of_group = |group: usize| {
                let members = order.iter().copied().filter(move |expert| expert / size == group);
                members.take(count / groups)
            };
            (0..groups).flat_map(of_group).collect()
        };
        Keep::new(layout, self.0.iter().map(|(&layer, order)| (layer, best(order))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experts::layout::Groups;
    use crate::model::MoeFamily;

    fn layout(groups: Option<Groups>) -> ExpertLayout {
        let mixtures = (0..4).map(|layer| (layer, Vec::new())).collect();
        ExpertLayout {
            family: MoeFamily::find("deepseek_v3").unwrap(),
            layers: 4,
            experts: 8,
            top_k: 2,
            groups,
            mixtures,
        }
    }

    fn scores(metric: Metric, rows: Vec<Vec<f64>>) -> ExpertScores {
        let (model, family) = ("m".to_owned(), "deepseek_v3".to_owned());
        let metrics = BTreeMap::from([(metric, rows)]);
        let routers_sha256 = String::new();
        ExpertScores { model, family, routers_sha256, calibration: None, layers: (0..4).collect(), experts: 8, metrics }
    }

    #[test]
    fn smaller_keeps_are_subsets_of_larger_ones() {
        let layout = layout(Some(Groups { groups: 2, reachable: 1 }));
        let rows = (0..4).map(|layer| (0..8).map(|e| f64::from((e * 5 + layer) % 7)).collect()).collect();
        let scores = scores(Metric::Reap, rows);
        let by_score = Ranking::by_score(&layout, &scores, Metric::Reap, SuperExperts::Ignore).unwrap();
        for ranking in [Ranking::first(&layout), Ranking::last(&layout), Ranking::random(&layout, 7), by_score] {
            for (fewer, more) in [(2, 4), (4, 6), (6, 8)] {
                let (fewer, more) = (ranking.keep(&layout, fewer).unwrap(), ranking.keep(&layout, more).unwrap());
                for (layer, kept) in fewer.layers() {
                    assert!(kept.iter().all(|expert| more.get(layer).unwrap().contains(expert)));
                    assert_eq!(kept.iter().filter(|&&expert| expert < 4).count() * 2, kept.len(), "groups are equal");
                }
            }
        }
        assert_eq!(Ranking::random(&layout, 7), Ranking::random(&layout, 7));
        assert_ne!(Ranking::random(&layout, 7), Ranking::random(&layout, 8));
        assert_ne!(Ranking::random(&layout, 7).0[&0], Ranking::random(&layout, 7).0[&1]);
        for (count, message) in [(0, "at least 4"), (9, "at most all"), (3, "equally many; keep 4"), (5, "keep 4 or 6")]
        {
            assert!(Ranking::first(&layout).keep(&layout, count).unwrap_err().to_string().contains(message));
        }
    }

    #[test]
    fn highest_scores_stay_and_ties_go_by_position() {
        let layout = layout(None);
        let rows = vec![vec![1.0, 3.0, 3.0, 0.0, 2.0, 3.0, 0.0, 0.0]; 4];
        let scores = scores(Metric::Ean, rows);
        let ranking = Ranking::by_score(&layout, &scores, Metric::Ean, SuperExperts::Ignore).unwrap();
        assert_eq!(ranking.0[&2], [1, 2, 5, 4, 0, 3, 6, 7]);
        let error = Ranking::by_score(&layout, &scores, Metric::Reap, SuperExperts::Ignore).unwrap_err().to_string();
        assert!(error.contains("these scores hold ean"), "{error}");
    }

    #[test]
    fn super_experts_of_early_layers_stay() {
        let layout = layout(None);
        // The threshold is the 99.5th percentile of 32 values, between the two largest; that of layer 3 is too late.
        let mut activations = vec![vec![1.0; 8]; 4];
        (activations[1][6], activations[3][7]) = (100.0, 100.5);
        let mut scores = scores(Metric::Reap, vec![(0..8).map(|e| f64::from(8 - e)).collect(); 4]);
        scores.metrics.insert(Metric::MaxActivation, activations.clone());
        assert_eq!(scores.super_experts().unwrap(), [], "100 is below the percentile");
        activations[3][7] = 1.0;
        scores.metrics.insert(Metric::MaxActivation, activations);
        assert_eq!(scores.super_experts().unwrap(), [(1, 6)]);
        let ranking = |supers| Ranking::by_score(&layout, &scores, Metric::Reap, supers).unwrap();
        assert_eq!(ranking(SuperExperts::Protect).keep(&layout, 2).unwrap().get(1).unwrap(), [0, 6]);
        assert_eq!(ranking(SuperExperts::Ignore).keep(&layout, 2).unwrap().get(1).unwrap(), [0, 1]);
    }
}
