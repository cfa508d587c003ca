//! Facts that several displays tell: numbers with their intervals, records, losses of windows.

use super::card::percent;
use crate::format::{number, thousands};
use crate::record::Record;
use crate::report::Plot;
use crate::stats::{Interval, Score};
use serde_json::Value;

/// A count with its thousands set apart; empty where it is too large to be one.
pub(super) fn count(n: impl TryInto<i128>) -> String {
    n.try_into().map_or_else(|_| String::new(), thousands)
}

/// `24.91 to 25.78 (95%)`.
pub(super) fn interval(of: &Interval, write: fn(f64) -> String) -> String {
    format!(
        "{} to {} ({}%)",
        write(of.low),
        write(of.high),
        number(of.level * 100.0).trim_end_matches('0').trim_end_matches('.')
    )
}

/// A value with its interval, if it has one.
pub(super) fn scored(score: &Score, write: fn(f64) -> String) -> String {
    match &score.interval {
        Some(of) => format!("{}, {}", write(score.value), interval(of, write)),
        None => write(score.value),
    }
}

/// A value as JSON; null where it has a number that is not finite.
pub(super) fn as_json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

/// Least, median and largest of `values`, sorted here.
pub(super) fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let at = |i: usize| values.get(i).copied().unwrap_or(0.0);
    [at(0), at(values.len() / 2), at(values.len().saturating_sub(1))]
}

/// Mean loss of each window in nats.
pub(super) fn losses(windows: &[f64]) -> Plot {
    Plot::curves("Loss of each window")
        .x("Window, in the order of the text")
        .y("Loss (nats per token)")
        .points("window", windows.iter().enumerate().map(|(i, &loss)| (i as f64, loss)))
        .baseline("mean", windows.iter().sum::<f64>() / windows.len().max(1) as f64)
        .size(760, 320)
}

/// The facts of a record: the model, its pruning, and the results.
pub(super) fn record_facts(record: &Record) -> Vec<(&'static str, String)> {
    let mut facts = vec![("family", record.model.family.clone()), ("parameters", count(record.model.parameters))];
    match &record.pruning {
        None => facts.push(("method", "dense".into())),
        Some(pruning) => {
            let refined = pruning.refine.as_ref().map_or(String::new(), |refine| format!(", refined by {refine}"));
            facts.push(("method", format!("{}{refined}", pruning.method)));
            facts.push(("pattern", format!("{}, per {}", pruning.pattern, pruning.per)));
            facts.push(("target sparsity", format!("{}, {}", percent(pruning.sparsity), pruning.allocation)));
            facts.push(("sparsity", percent(record.sparsity())));
            facts.extend(pruning.calibration.as_ref().map(|text| {
                ("calibration", format!("{}, {} windows of {} tokens", text.name, text.windows, text.seqlen))
            }));
        }
    }
    if let Some(evaluation) = &record.evaluation {
        let score = Score { value: evaluation.perplexity, interval: evaluation.perplexity_interval };
        facts.push(("perplexity", format!("{} on {}", scored(&score, number), evaluation.text.name)));
        facts.push(("NLL", format!("{} nats per token", number(evaluation.nll_nats))));
    }
    facts
}

/// The record as its file has it; where a number is not finite, with null.
pub(super) fn record_json(record: &Record) -> Value {
    crate::report::record_json(record).unwrap_or_else(|_| as_json(record))
}

pub(super) fn record_summary(record: &Record) -> String {
    let how = match &record.pruning {
        None => "dense".to_owned(),
        Some(pruning) => format!("{} {}, {} zeros", pruning.method, pruning.pattern, percent(record.sparsity())),
    };
    let perplexity = record.perplexity().map_or(String::new(), |value| format!(", perplexity {}", number(value)));
    format!("{}: {how}{perplexity}", record.model.name)
}
