//! `lacuna experts`

use super::{Compute, Sampling, parse_bytes, print_json};
use anyhow::{Context, bail};
use clap::Subcommand;
use lacuna::checkpoint::{Source, open_source};
use lacuna::error::Error;
use lacuna::experts::{
    self, ExpertLayout, ExpertScores, Keep, Metric, Probe, Ranking, Selection, SuperExperts, SuperExpertsKept,
};
use lacuna::progress::Progress;
use lacuna::record::ranges;
#[cfg(feature = "report")]
use lacuna::report::Table;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

/// Drop experts of a mixture: score, plan, slice, build, verify
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Score(Score),
    Plan(PlanArgs),
    Slice(Slice),
    Build(Build),
    Verify(Verify),
}

/// Options for the experts that stay.
#[derive(Debug, clap::Args)]
struct Choice {
    /// Fraction of each layer's experts that stays
    #[arg(long, value_name = "FRACTION", group = "how_many", allow_negative_numbers = true)]
    keep: Option<f64>,
    /// Number of each layer's experts that stays
    #[arg(long, value_name = "N", group = "how_many")]
    count: Option<usize>,
    /// JSON file of the experts that stay: {"0": [1, 5], ..} by layer, or a list of lists
    #[arg(long, value_name = "FILE", group = "how_many", conflicts_with = "by")]
    keep_list: Option<PathBuf>,
    /// Criterion: first, last, random, router-norm, weight-norm; with --scores also frequency, ean, reap, reap-softmax,
    /// max-activation
    #[arg(long)]
    by: Option<By>,
    /// Scores that `lacuna experts score` wrote
    #[arg(long, value_name = "DIR")]
    scores: Option<PathBuf>,
    /// Judge super-experts by their score, as any other
    #[arg(long, requires = "scores")]
    ignore_super_experts: bool,
    /// Seed of a random choice [default: 0]
    #[arg(long)]
    seed: Option<u64>,
}

/// The criterion by which experts stay.
#[derive(Clone, Copy, Debug)]
enum By {
    First,
    Last,
    Random,
    Score(Metric),
}

impl FromStr for By {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "first" => Ok(By::First),
            "last" => Ok(By::Last),
            "random" => Ok(By::Random),
            _ => text.parse().map(By::Score).map_err(|_| {
                let known =
                    "first, last, random, router-norm, weight-norm, frequency, ean, reap, reap-softmax, max-activation";
                Error::argument("by", text, format!("must be one of {known}"))
            }),
        }
    }
}

impl Choice {
    /// A plan may be made for any experts; an output is made of those that somebody chose.
    fn decided(&self) -> anyhow::Result<()> {
        if self.by.is_none() && self.keep_list.is_none() {
            bail!("which experts stay? give --by METRIC or --keep-list FILE");
        }
        Ok(())
    }

    fn select(&self, source: &dyn Source, layout: &ExpertLayout) -> anyhow::Result<Selection> {
        // What would be ignored was meant for something else.
        let (scored, random) = (matches!(self.by, Some(By::Score(_))), matches!(self.by, Some(By::Random)));
        if self.scores.is_some() && !scored {
            bail!("--scores needs --by METRIC, one of those that were scored");
        }
        if self.seed.is_some() && !random {
            bail!("--seed needs --by random");
        }
        let count = match (&self.keep_list, self.keep, self.count) {
            (Some(path), ..) => {
                let by = Map::from_iter([("choice".to_owned(), "list".into())]);
                return Ok(Selection { keep: Keep::read(layout, path)?, by });
            }
            (_, Some(fraction), _) => experts::count(layout.experts, fraction)?,
            (_, _, Some(count)) => count,
            _ => bail!("how many experts stay? give --keep FRACTION, --count N or --keep-list FILE"),
        };
        let mut by = Map::new();
        let mut found = None;
        let mut name = |choice: &str| by.insert("choice".to_owned(), choice.into());
        let ranking = match self.by.unwrap_or(By::First) {
            By::First => {
                name("first");
                Ranking::first(layout)
            }
            By::Last => {
                name("last");
                Ranking::last(layout)
            }
            By::Random => {
                name("random");
                let seed = self.seed.unwrap_or_default();
                by.insert("seed".to_owned(), seed.into());
                Ranking::random(layout, seed)
            }
            By::Score(metric) => {
                name(&metric.to_string());
                let scores = match &self.scores {
                    Some(path) => {
                        let scores = ExpertScores::read(path)?;
                        scores.check_model(source, layout)?;
                        scores
                    }
                    None => ExpertScores::data_free(source, layout, metric, Progress::Stderr)?,
                };
                let protect = !self.ignore_super_experts && !metric.data_free();
                let supers = if protect { SuperExperts::Protect } else { SuperExperts::Ignore };
                if let Some(text) = &scores.calibration {
                    by.insert("calibration".to_owned(), serde_json::to_value(text)?);
                    by.insert("super_experts_protected".to_owned(), protect.into());
                }
                if scores.metrics.contains_key(&Metric::MaxActivation) {
                    found = Some(scores.super_experts()?);
                }
                Ranking::by_score(layout, &scores, metric, supers)?
            }
        };
        let selection = Selection { keep: ranking.keep(layout, count)?, by };
        Ok(match found {
            Some(found) => selection.with_super_experts(&found),
            None => selection,
        })
    }
}

fn parse_shard_bytes(text: &str) -> Result<u64, String> {
    parse_bytes(text).and_then(|bytes| if bytes > 0 { Ok(bytes) } else { Err("a shard holds something".into()) })
}

/// Measure on a text what each expert does: frequency, ean, reap, reap-softmax, max-activation; and router-norm
#[derive(Debug, clap::Args)]
struct Score {
    /// Directory or hub id
    model: String,
    /// Calibration text: plain, or JSON or parquet with the field `text` or `input_ids` (token ids); .gz and .zst too
    #[arg(long)]
    calib: PathBuf,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    compute: Compute,
    /// Directory to make, for --scores of plan, slice and build
    #[arg(long)]
    out: PathBuf,
    /// Print every score as JSON
    #[arg(long)]
    json: bool,
}

/// Say what a build will read, write and need; or measure one layer
#[derive(Debug, clap::Args)]
struct PlanArgs {
    /// Directory or hub id; of a hub, only headers are read
    model: String,
    #[command(flatten)]
    choice: Choice,
    /// Longest weight file
    #[arg(long, default_value = "5GB", value_parser = parse_shard_bytes)]
    max_shard_size: u64,
    /// Output directory of the later build: its disk is measured
    #[arg(long, default_value = "pruned")]
    out: PathBuf,
    /// Slice one layer to a scratch directory beside the output, and say what it cost
    #[arg(long, requires = "layer")]
    probe: bool,
    /// The layer to measure
    #[arg(long, requires = "probe")]
    layer: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Write the kept experts of single layers, one file each
#[derive(Debug, clap::Args)]
struct Slice {
    /// Directory or hub id
    model: String,
    #[command(flatten)]
    choice: Choice,
    /// Layers, as 0,3,8-11 [default: all with a mixture]
    #[arg(long, value_parser = parse_layers)]
    layers: Option<Layers>,
    /// Directory to make
    #[arg(long)]
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug)]
struct Layers(Vec<usize>);

fn parse_layers(text: &str) -> Result<Layers, String> {
    let wrong = || format!("`{text}` names no layers; write 0,3,8-11");
    let mut layers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) =
            (first.trim().parse().map_err(|_| wrong())?, last.trim().parse().map_err(|_| wrong())?);
        if first > last || last > 100_000 {
            return Err(wrong());
        }
        layers.extend(first..=last);
    }
    layers.sort_unstable();
    layers.dedup();
    Ok(Layers(layers))
}

/// Write a loadable checkpoint without the other experts; the same command again goes on after a kill
#[derive(Debug, clap::Args)]
struct Build {
    /// Directory or hub id; of a hub, only what stays is downloaded, straight into the output
    model: String,
    #[command(flatten)]
    choice: Choice,
    /// Longest weight file
    #[arg(long, default_value = "5GB", value_parser = parse_shard_bytes)]
    max_shard_size: u64,
    /// Directory to make
    #[arg(long)]
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Derive every tensor of an output again from its base and compare; exit code 1 if any differs
#[derive(Debug, clap::Args)]
struct Verify {
    /// Directory or hub id that the output was made from
    base: String,
    /// Output of `build` or `slice`
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Score(args) => score(&args).map(|()| ExitCode::SUCCESS),
        Command::Plan(args) => plan(&args).map(|()| ExitCode::SUCCESS),
        Command::Slice(args) => slice(&args).map(|()| ExitCode::SUCCESS),
        Command::Build(args) => build(&args).map(|()| ExitCode::SUCCESS),
        Command::Verify(args) => verify(&args),
    }
}

fn open(spec: &str) -> anyhow::Result<(Box<dyn Source>, ExpertLayout)> {
    let source = open_source(spec, Progress::Stderr)?;
    let layout = ExpertLayout::find(&*source)?;
    Ok((source, layout))
}

fn score(args: &Score) -> anyhow::Result<()> {
    // Before a download; the rest is checked before the forward pass.
    if args.out.symlink_metadata().is_ok() {
        bail!("{}: already exists; remove it, or choose another output directory", args.out.display());
    }
    let model = args.compute.open(&args.model)?;
    let windows = args.sampling.windows(&args.calib, &model)?;
    let scores = ExpertScores::calibrate_to(&model, &windows, &args.out, Progress::Stderr)?;
    if args.json {
        return print_json(&scores);
    }
    #[cfg(feature = "report")]
    print!("{}", Table::expert_scores(&scores, Metric::Reap)?.text());
    #[cfg(not(feature = "report"))]
    eprintln!("note: this build has no tables (feature `report`); --json prints every score");
    let supers = scores.super_experts()?;
    if !supers.is_empty() {
        println!("super-experts (layer/expert): {}", pairs(&supers));
    }
    println!("{} layers of {} experts -> {}", scores.layers.len(), scores.experts, args.out.display());
    Ok(())
}

fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    let (source, layout) = open(&args.model)?;
    let source = &*source;
    let selection = args.choice.select(source, &layout)?;
    if let Some(layer) = args.layer {
        let probe =
            experts::probe(source, &layout, &selection, args.max_shard_size, layer, &args.out, Progress::Stderr)?;
        return show(&probe, args.json, Probe::to_markdown);
    }
    let plan = experts::plan(source, &layout, &selection.keep, args.max_shard_size, &args.out)?;
    if args.json {
        let mut json = serde_json::to_value(&plan)?;
        json["by"] = selection.by.into();
        return print_json(&json);
    }
    print!("{}", plan.to_markdown());
    // A plan for just any experts says what it takes, not which ones.
    if args.choice.decided().is_ok() {
        println!("\nThe experts that would stay:\n");
        let of = |(layer, kept): (usize, &[usize])| [layer.to_string(), ranges(kept)];
        super::print_table(["layer", "experts"], &[1], selection.keep.layers().map(of));
    }
    if let Some(supers) = selection.super_experts() {
        println!("\n{}", super_experts(&supers, ["would stay", "would be dropped"]));
    }
    Ok(())
}

/// A sentence on the super-experts that stay and that are dropped.
fn super_experts(supers: &SuperExpertsKept, [stay, drop]: [&str; 2]) -> String {
    let SuperExpertsKept { kept, dropped } = supers;
    if kept.is_empty() && dropped.is_empty() {
        return "super-experts (layer/expert): none".into();
    }
    let of = |list: &[(usize, usize)], verb: &str| match pairs(list) {
        list if list.is_empty() => format!("none {verb}"),
        list => format!("{list} {verb}"),
    };
    format!("super-experts (layer/expert): {}; {}", of(kept, stay), of(dropped, drop))
}

fn pairs(list: &[(usize, usize)]) -> String {
    list.iter().map(|(layer, expert)| format!("{layer}/{expert}")).collect::<Vec<_>>().join(", ")
}

fn show<T: serde::Serialize>(value: &T, json: bool, markdown: impl Fn(&T) -> String) -> anyhow::Result<()> {
    if json {
        return print_json(value);
    }
    print!("{}", markdown(value));
    Ok(())
}

fn slice(args: &Slice) -> anyhow::Result<()> {
    args.choice.decided()?;
    let (source, layout) = open(&args.model)?;
    let mut selection = args.choice.select(&*source, &layout)?;
    if let Some(Layers(layers)) = &args.layers {
        selection.keep = selection.keep.only(layers)?;
    }
    let copied = resumable(experts::slice(&*source, &layout, &selection, &args.out, Progress::Stderr))?;
    report(&copied, &selection, args.json)
}

fn build(args: &Build) -> anyhow::Result<()> {
    args.choice.decided()?;
    let (source, layout) = open(&args.model)?;
    let selection = args.choice.select(&*source, &layout)?;
    let copied = experts::prune_experts_to(&*source, &selection, args.max_shard_size, &args.out, Progress::Stderr);
    report(&resumable(copied)?, &selection, args.json)
}

/// An interrupt leaves what was copied.
fn resumable<T>(result: lacuna::Result<T>) -> anyhow::Result<T> {
    match result {
        Err(Error::Interrupted) => Err(Error::Interrupted)
            .context("interrupted; what was copied is kept, and the same command goes on from there"),
        result => Ok(result?),
    }
}

fn report(copied: &lacuna::checkpoint::Copied, selection: &Selection, json: bool) -> anyhow::Result<()> {
    let files: Vec<Value> =
        copied.manifest.files.iter().map(|file| json!({"name": file.name, "bytes": file.bytes})).collect();
    if json {
        return print_json(&json!({
            "files": files, "written_bytes": copied.written,
            "shared_bytes": copied.shared, "resumed_bytes": copied.resumed, "seconds": copied.seconds,
            "super_experts": selection.super_experts(),
        }));
    }
    let bytes: u64 = copied.manifest.files.iter().map(|file| file.bytes).sum();
    println!("{} files, {}", files.len(), super::size(bytes));
    if let Some(supers) = selection.super_experts() {
        println!("{}", super_experts(&supers, ["stay", "are dropped"]));
    }
    if copied.resumed > 0 {
        println!("{} of that were there already", super::size(copied.resumed));
    }
    if copied.written > 0 {
        let seconds = copied.seconds.total;
        println!(
            "{} written in {seconds:.1} s, {:.0} MB/s",
            super::size(copied.written),
            copied.written as f64 / 1e6 / seconds
        );
    }
    if copied.shared > 0 {
        println!("{} of that take no space: the file system shares them with the source", super::size(copied.shared));
    }
    Ok(())
}

fn verify(args: &Verify) -> anyhow::Result<ExitCode> {
    let source = open_source(&args.base, Progress::Stderr)?;
    let found = experts::verify(&*source, &args.out, Progress::Stderr)?;
    if args.json {
        print_json(&found)?;
    } else {
        for mismatch in &found.mismatches {
            println!("{}: {}", mismatch.name, mismatch.problem);
        }
        println!(
            "mismatch_count {} ({} tensors, {} compared)",
            found.mismatch_count,
            found.tensors,
            super::size(found.bytes)
        );
    }
    Ok(if found.mismatch_count == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_written_as_people_do() {
        assert_eq!(parse_layers("8-10,0, 3,9").unwrap().0, [0, 3, 8, 9, 10]);
        for wrong in ["", "a", "3-1", "1-"] {
            assert!(parse_layers(wrong).is_err(), "{wrong}");
        }
    }
}
