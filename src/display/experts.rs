//! The experts that stay, in cells.

use super::card::{Card, column, table};
use crate::error::Result;
use crate::experts::{ExpertScores, Keep, Metric, Ranking, Selection};
use crate::report::{HeatMap, Table};
use crate::rich::{Bundle, Rich, shown_in_cells};
use serde_json::{Value, json};

/// Layers in rows, experts in columns.
fn map(title: impl Into<String>, layers: &[usize], values: Vec<Vec<Option<f64>>>) -> HeatMap {
    HeatMap::new(title, values).rows("Layer").columns("Expert").row_names(layers.iter().map(usize::to_string))
}

/// Lists of experts as a table.
fn lists(title: &str, of: &[(usize, &[usize])]) -> Result<Table> {
    let written = |list: &[usize]| list.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
    table(vec![
        column("layer", of.iter().map(|(layer, _)| *layer as u64).collect::<Vec<_>>()),
        column("experts", of.iter().map(|(_, list)| list.len() as u64).collect::<Vec<_>>()),
        column(title, of.iter().map(|(_, list)| written(list)).collect::<Vec<_>>()),
    ])
}

/// A card of the experts that stay, and its picture.
fn keep_card(keep: &Keep, how: &str, json: Value) -> Result<Card> {
    let of: Vec<(usize, &[usize])> = keep.layers().collect();
    let kept: usize = of.iter().map(|(_, list)| list.len()).sum();
    let most = of.iter().flat_map(|(_, list)| list.iter()).max().map_or(0, |most| most + 1);
    let layers: Vec<usize> = of.iter().map(|(layer, _)| *layer).collect();
    let row = |list: &[usize]| (0..most).map(|expert| Some(f64::from(u8::from(list.contains(&expert))))).collect();
    let card =
        Card::new(format!("{kept} experts of {} layers stay{how}", of.len()), json).table(lists("that stay", &of)?);
    if kept == 0 {
        return Ok(card);
    }
    let values = of.iter().map(|(_, list)| row(list)).collect();
    Ok(card.figure(map("Experts that stay", &layers, values).unit("1 stays, 0 goes")))
}

impl Rich for Keep {
    fn bundle(&self) -> Result<Bundle> {
        keep_card(self, "", json!({"keep": self}))?.bundle()
    }
}

impl Rich for Selection {
    fn bundle(&self) -> Result<Bundle> {
        let by: Vec<String> = self
            .by
            .iter()
            .map(|(key, value)| format!("{key} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
            .collect();
        let how = if by.is_empty() { String::new() } else { format!(", chosen by {}", by.join(", ")) };
        keep_card(&self.keep, &how, json!({"keep": self.keep, "by": self.by}))?.bundle()
    }
}

impl Rich for Ranking {
    fn bundle(&self) -> Result<Bundle> {
        let of: Vec<(usize, &[usize])> = self.layers().collect();
        let experts = of.iter().flat_map(|(_, order)| order.iter()).max().map_or(0, |most| most + 1);
        let layers: Vec<usize> = of.iter().map(|(layer, _)| *layer).collect();
        let orders: Vec<Value> = of.iter().map(|(layer, order)| json!({"layer": layer, "experts": order})).collect();
        let card = Card::new(format!("Ranking of {experts} experts in {} layers", of.len()), json!(orders))
            .table(lists("those that stay longest first", &of)?);
        if experts == 0 {
            return card.bundle();
        }
        let place =
            |order: &[usize], expert: usize| order.iter().position(|&other| other == expert).map(|at| at as f64);
        let values = of.iter().map(|(_, order)| (0..experts).map(|expert| place(order, expert)).collect()).collect();
        card.figure(map("Places in the ranking", &layers, values).unit("Place, from 0: the one that stays longest"))
            .bundle()
    }
}

impl Rich for ExpertScores {
    fn bundle(&self) -> Result<Bundle> {
        let names: Vec<String> = self.metrics.keys().map(Metric::to_string).collect();
        let summary = format!(
            "{}: {} experts in each of {} layers, scored by {}",
            self.model,
            self.experts,
            self.layers.len(),
            names.join(", ")
        );
        let json = serde_json::to_value(self).unwrap_or(Value::Null);
        let mut facts = vec![("family", self.family.clone()), ("metrics", names.join(", "))];
        facts.extend(
            self.calibration
                .as_ref()
                .map(|text| ("text", format!("{}, {} windows of {} tokens", text.name, text.windows, text.seqlen))),
        );
        let card = Card::new(summary, json).facts("expert scores", &self.model, facts)?;
        // REAP is what experts are chosen by, if it was measured.
        let metric =
            [Metric::Reap].into_iter().chain(self.metrics.keys().copied()).find(|m| self.metrics.contains_key(m));
        let Some(metric) = metric else { return card.bundle() };
        let card = card.table(Table::expert_scores(self, metric)?);
        let values: Vec<Vec<Option<f64>>> =
            self.get(metric)?.iter().map(|row| row.iter().copied().map(Some).collect()).collect();
        if values.iter().all(Vec::is_empty) {
            return card.bundle();
        }
        card.figure(map(format!("Scores by {metric}"), &self.layers, values).unit(metric.to_string())).bundle()
    }
}

shown_in_cells!(Keep, Selection, Ranking, ExpertScores);
