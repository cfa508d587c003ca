//! Measurements, in cells.

use super::card::{Card, column, percent, table};
use super::facts::{as_json, count, interval, losses, record_facts, record_json, record_summary, scored, spread};
use crate::error::Result;
use crate::evaluate::{ChoiceScores, Evaluation, GenerationScores};
use crate::format::number;
use crate::importance::Scorer;
use crate::mask::place;
use crate::prune::Pruned;
use crate::record::Record;
use crate::report::{Format, Plot, Table};
use crate::rich::{Bundle, Rich, mime, shown_in_cells};
use crate::stats::{Interval, Score};
use serde_json::json;

impl Rich for Interval {
    fn bundle(&self) -> Result<Bundle> {
        Ok(vec![(mime::PLAIN, interval(self, number)), (mime::JSON, as_json(self).to_string())])
    }
}

impl Rich for Score {
    fn bundle(&self) -> Result<Bundle> {
        Ok(vec![(mime::PLAIN, scored(self, number)), (mime::JSON, as_json(self).to_string())])
    }
}

impl Rich for Evaluation {
    fn bundle(&self) -> Result<Bundle> {
        let perplexity = Score { value: self.perplexity, interval: self.perplexity_interval() };
        let nll = Score { value: self.nll_nats, interval: self.nll_interval };
        let summary = format!("Perplexity {} on {}", scored(&perplexity, number), self.text.name);
        let facts = vec![
            ("perplexity", scored(&perplexity, number)),
            ("NLL", format!("{} nats per token", scored(&nll, number))),
            ("tokens", count(self.tokens())),
            ("windows", format!("{} of {} tokens", self.text.windows, self.text.seqlen)),
        ];
        let card = Card::new(summary, as_json(&self.record())).facts("evaluation", &self.text.name, facts)?;
        match &self.window_nll_nats()[..] {
            windows @ [_, _, ..] => card.figure(losses(windows)).bundle(),
            _ => card.bundle(),
        }
    }
}

/// A bar for each of `scores`.
fn bars(title: &str, scores: &[(&str, &Score)]) -> Plot {
    Plot::bars(title, scores.iter().map(|(name, _)| *name))
        .y("Share of the examples (%)")
        .percent_y()
        .values("score", scores.iter().map(|(_, score)| score.value))
        .size(560, 320)
}

impl Rich for ChoiceScores {
    fn bundle(&self) -> Result<Bundle> {
        let acc = scored(&self.acc, percent);
        let facts = vec![
            ("acc", acc.clone()),
            ("acc_norm", scored(&self.acc_norm, percent)),
            ("chance", percent(self.chance)),
            ("examples", count(self.predictions.len() as u64)),
            ("cut at their beginning", count(self.truncated as u64)),
        ];
        let json = json!({
            "task": as_json(&self.task), "acc": as_json(&self.acc), "acc_norm": as_json(&self.acc_norm),
            "chance": self.chance, "truncated": self.truncated, "bos": as_json(&self.bos),
        });
        let plot = bars(&self.task.name, &[("acc", &self.acc), ("acc_norm", &self.acc_norm)]);
        Card::new(format!("{}: acc {acc}, chance {}", self.task.name, percent(self.chance)), json)
            .facts("multiple choice", &self.task.name, facts)?
            .figure(plot.baseline("chance", self.chance))
            .bundle()
    }
}

impl Rich for GenerationScores {
    fn bundle(&self) -> Result<Bundle> {
        let exact = scored(&self.exact_match, percent);
        let facts = vec![
            ("exact match", exact.clone()),
            ("contains", scored(&self.contains, percent)),
            ("examples", count(self.predictions.len() as u64)),
            ("cut at their beginning", count(self.truncated as u64)),
        ];
        let first = &self.predictions[..self.predictions.len().min(10)];
        let examples = table(vec![
            column("line", first.iter().map(|one| one.line as u64).collect::<Vec<_>>()),
            column("generated, of the first examples", first.iter().map(|one| one.text.as_str()).collect::<Vec<_>>()),
            column("exact match", first.iter().map(|one| one.exact_match).collect::<Vec<_>>()),
            column("contains", first.iter().map(|one| one.contains).collect::<Vec<_>>()),
        ])?;
        let json = json!({
            "task": as_json(&self.task), "exact_match": as_json(&self.exact_match),
            "contains": as_json(&self.contains), "truncated": self.truncated, "bos": as_json(&self.bos),
        });
        Card::new(format!("{}: exact match {exact}", self.task.name), json)
            .facts("generation", &self.task.name, facts)?
            .table(examples)
            .figure(bars(&self.task.name, &[("exact match", &self.exact_match), ("contains", &self.contains)]))
            .bundle()
    }
}

impl Rich for Record {
    fn bundle(&self) -> Result<Bundle> {
        let card = Card::new(record_summary(self), record_json(self));
        card.facts("record", &self.model.name, record_facts(self))?.bundle()
    }
}

impl Rich for Vec<Record> {
    fn bundle(&self) -> Result<Bundle> {
        Table::from_records(self)?.bundle()
    }
}

impl Rich for Pruned {
    fn bundle(&self) -> Result<Bundle> {
        let mut kinds: Vec<(String, u64, u64, u64)> = Vec::new(); // kind, tensors, zeros, weights
        for tensor in &self.record.tensors {
            let kind = place(&tensor.name).1;
            let at = kinds.iter().position(|(other, ..)| *other == kind).unwrap_or_else(|| {
                kinds.push((kind, 0, 0, 0));
                kinds.len() - 1
            });
            let (_, tensors, zeros, weights) = &mut kinds[at];
            (*tensors, *zeros, *weights) = (*tensors + 1, *zeros + tensor.zeros, *weights + tensor.elements());
        }
        let zeros = table(vec![
            column("kind", kinds.iter().map(|kind| kind.0.as_str()).collect::<Vec<_>>()),
            column("tensors", kinds.iter().map(|kind| kind.1).collect::<Vec<_>>()),
            column("zeros", kinds.iter().map(|kind| kind.2).collect::<Vec<_>>()),
            column("sparsity", kinds.iter().map(|kind| kind.2 as f64 / kind.3.max(1) as f64).collect::<Vec<_>>()),
        ])?;
        let zeros = zeros.with_format("sparsity", Format::Percent)?.with_heading("sparsity", "sparsity", Some("%"))?;
        Card::new(record_summary(&self.record), record_json(&self.record))
            .facts("pruned", &self.record.model.name, record_facts(&self.record))?
            .table(zeros)
            .bundle()
    }
}

impl Rich for Scorer<'_> {
    fn bundle(&self) -> Result<Bundle> {
        let (rows, cols) = self.shape();
        let scores: Vec<f64> = self.scores().into_iter().map(f64::from).collect();
        let finite: Vec<f64> = scores.iter().copied().filter(|score| score.is_finite()).collect();
        let zeros = finite.iter().filter(|&&score| score == 0.0).count();
        let mean = finite.iter().sum::<f64>() / finite.len().max(1) as f64;
        let broken = scores.len() - finite.len();
        let [least, median, largest] = spread(finite);
        let title = format!("Scores by {}", self.method());
        let shape = format!("{} × {}", count(rows as u64), count(cols as u64));
        let mut facts = vec![
            ("weights", shape.clone()),
            ("least", number(least)),
            ("median", number(median)),
            ("mean", number(mean)),
            ("largest", number(largest)),
            ("zeros", count(zeros as u64)),
        ];
        if broken > 0 {
            facts.push(("not finite", count(broken as u64)));
        }
        let json = json!({
            "method": self.method().to_string(), "rows": rows, "columns": cols, "min": least, "median": median,
            "mean": mean, "max": largest, "zeros": zeros, "not_finite": broken,
        });
        let card = Card::new(format!("{title} of {shape} weights, median {}", number(median)), json).facts(
            "scores",
            &self.method().to_string(),
            facts,
        )?;
        if scores.is_empty() {
            return card.bundle();
        }
        card.figure(Plot::histogram(title, "score", scores).size(760, 360)).bundle()
    }
}

shown_in_cells!(Interval, Score, Evaluation, ChoiceScores, GenerationScores, Record, Pruned, Scorer<'_>);
