//! `lacuna evaluate`

use super::{Compute, print_json, read_text, seqlen, tokenizer_for};
use lacuna::evaluate::{
    ChoiceScores, GenerationConfig, GenerationScores, Suite, SuiteScores, Task, TaskRecord, evaluate, score_choices,
    score_generation, score_suite, suite_tasks,
};
use lacuna::model::Model;
use lacuna::progress::Progress;
use lacuna::record::EvaluationRecord;
use lacuna::stats::{Bootstrap, Interval, Score};
use lacuna::text::{Bos, Consecutive, Windows};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Score a model: perplexity on a text, accuracy on tasks, with bootstrap intervals
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").args(["text", "task", "suite"]).required(true).multiple(true)))]
#[command(group(clap::ArgGroup::new("examples").args(["task", "suite"]).multiple(true)))]
pub(crate) struct Args {
    /// Directory or hub id
    model: String,
    /// Text: plain, or JSON or parquet with the field `text` or `input_ids` (token ids); .gz and .zst too
    #[arg(long)]
    text: Option<PathBuf>,
    /// Windows to score, from the beginning [default: all]
    #[arg(long, requires = "text")]
    windows: Option<usize>,
    /// Tokens per window [default: those of windows of token ids; else the model's context, at most 2048]
    #[arg(long, requires = "text")]
    seqlen: Option<usize>,
    /// Leave out lines of the text that cannot be read
    #[arg(long, requires = "text")]
    skip_bad_lines: bool,
    /// Multiple choice, JSON or parquet: `question`, `choices`, `answer`, or rows of BoolQ, RTE, HellaSwag, WinoGrande, ARC,
    /// OpenBookQA or PIQA as the hub has them; may be repeated
    #[arg(long, value_name = "FILE.jsonl")]
    task: Vec<PathBuf>,
    /// The table of a paper: `wanda7` and a folder with BoolQ, RTE, HellaSwag, WinoGrande, ARC-e, ARC-c and OpenBookQA
    #[arg(long, num_args = 2, value_names = ["NAME", "DIR"])]
    suite: Vec<String>,
    /// Let the model generate answers to the tasks (`prompt`, `answer`, which may be a list) instead of choosing them
    #[arg(long, requires = "task")]
    generate: bool,
    /// Tokens of a generated answer at most
    #[arg(long, default_value_t = 64, requires = "generate")]
    max_new_tokens: usize,
    /// Text that ends a generated answer; may be repeated [default: an empty line]
    #[arg(long, value_name = "TEXT", requires = "generate")]
    stop: Vec<String>,
    /// The token for the beginning of a text in front of an example: auto (as the tokenizer does, and
    /// lm-evaluation-harness), yes or no
    #[arg(long, default_value_t = Bos::Auto, requires = "examples")]
    bos: Bos,
    /// Examples of each task, from the beginning [default: all]
    #[arg(long, requires = "examples")]
    limit: Option<usize>,
    /// Seed of the bootstrap intervals
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    compute: Compute,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The output of `--json`.
#[derive(Serialize)]
struct Scores {
    #[serde(flatten)]
    evaluation: Option<EvaluationRecord>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tasks: Vec<TaskScores>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suite: Option<SuiteScores>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum TaskScores {
    Choice(ChoiceScores),
    Generation(GenerationScores),
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let bootstrap = Bootstrap { seed: args.seed, ..Bootstrap::default() };
    // A task that cannot be read should not be found out after the text was scored.
    let tasks: Vec<Examples> =
        args.task.iter().map(|path| Examples::read(path, &args)).collect::<lacuna::Result<_>>()?;
    let suite = match &args.suite[..] {
        [name, dir] => {
            let suite: Suite = name.parse()?;
            Some((suite, suite_tasks(suite, Path::new(dir), args.limit)?))
        }
        _ => None,
    };
    let model = args.compute.open(&args.model)?;
    let evaluation = match &args.text {
        None => None,
        Some(text) => {
            let text = read_text(text, args.skip_bad_lines)?;
            let tokenizer = tokenizer_for(&text, &model)?;
            let seqlen = seqlen(&model, &text, args.seqlen);
            let windows =
                Windows::evaluation_of(&text, tokenizer.as_ref(), Consecutive { seqlen, windows: args.windows })?;
            Some(evaluate(&model, &windows, Progress::Stderr)?.bootstrap(&bootstrap)?.record())
        }
    };
    let tasks = tasks.iter().map(|task| task.score(&model, &args, &bootstrap)).collect::<lacuna::Result<Vec<_>>>()?;
    let score =
        |(suite, tasks): &(Suite, Vec<_>)| score_suite(&model, *suite, tasks, args.bos, &bootstrap, Progress::Stderr);
    let suite = suite.as_ref().map(score).transpose()?;
    if args.json {
        return print_json(&Scores { evaluation, tasks, suite });
    }
    if let Some(evaluation) = evaluation {
        println!("nll_nats    {:.6}{}", evaluation.nll_nats, interval(evaluation.nll_interval, 6));
        println!("perplexity  {:.4}{}", evaluation.perplexity, interval(evaluation.perplexity_interval, 4));
        println!("tokens      {}", evaluation.tokens);
    }
    tasks.iter().for_each(TaskScores::print);
    if let Some(suite) = suite {
        print_suite(&suite);
    }
    Ok(())
}

/// The table of a suite: percentages, as the papers have them.
fn print_suite(suite: &SuiteScores) {
    println!("{:<12}{:>9}{:>8}  {:<20}{:>9}", suite.suite, "examples", "acc %", "95%", "acc_norm %");
    for row in &suite.rows {
        let scores = &row.scores;
        let ends = scores.acc.interval;
        let ends = ends.map_or_else(String::new, |ends| format!("[{:.2}, {:.2}]", 100.0 * ends.low, 100.0 * ends.high));
        let norm = if row.normed { format!("{:.2}", 100.0 * scores.acc_norm.value) } else { String::new() };
        let line = format!(
            "{:<12}{:>9}{:>8.2}  {ends:<20}{norm:>9}",
            row.name,
            scores.task.examples,
            100.0 * scores.acc.value
        );
        println!("{}", line.trim_end());
    }
    println!("{:<12}{:>17.2}", "mean", 100.0 * suite.mean);
    for row in suite.rows.iter().filter(|row| row.scores.truncated > 0) {
        println!("truncated   {} examples of {} lost their beginning", row.scores.truncated, row.name);
    }
}

enum Examples {
    Choice(Task<lacuna::evaluate::Choice>),
    Generation(Task<lacuna::evaluate::Prompt>),
}

impl Examples {
    fn read(path: &Path, args: &Args) -> lacuna::Result<Examples> {
        if args.generate {
            return Ok(Examples::Generation(Task::prompts(path, args.limit)?));
        }
        Ok(Examples::Choice(Task::choices(path, args.limit)?))
    }

    fn score(&self, model: &Model, args: &Args, bootstrap: &Bootstrap) -> lacuna::Result<TaskScores> {
        Ok(match self {
            Examples::Choice(task) => {
                TaskScores::Choice(score_choices(model, task, args.bos, bootstrap, Progress::Stderr)?)
            }
            Examples::Generation(task) => {
                let default = GenerationConfig::default();
                let stop = if args.stop.is_empty() { default.stop } else { args.stop.clone() };
                let config = GenerationConfig { max_new_tokens: args.max_new_tokens, stop, bos: args.bos };
                TaskScores::Generation(score_generation(model, task, &config, bootstrap, Progress::Stderr)?)
            }
        })
    }
}

impl TaskScores {
    fn print(&self) {
        let title = |task: &TaskRecord, more: &str| {
            let kind = task.kind.map_or_else(String::new, |kind| format!(" as {kind}"));
            println!("{}{kind}, {} examples{more}", task.name, task.examples);
        };
        let score = |name: &str, Score { value, interval: ends }: &Score| {
            println!("{name:<12}{value:.4}{}", interval(*ends, 4));
        };
        let truncated = match self {
            TaskScores::Choice(scores) => {
                title(&scores.task, &format!(", chance {:.4}", scores.chance));
                score("acc", &scores.acc);
                score("acc_norm", &scores.acc_norm);
                scores.truncated
            }
            TaskScores::Generation(scores) => {
                title(&scores.task, "");
                score("exact_match", &scores.exact_match);
                score("contains", &scores.contains);
                scores.truncated
            }
        };
        if truncated > 0 {
            println!("truncated   {truncated} examples lost their beginning: longer than the model's context");
        }
    }
}

/// ` [low, high] 95%`, or nothing where a single example or window says nothing about the spread.
fn interval(interval: Option<Interval>, digits: usize) -> String {
    interval.map_or_else(String::new, |Interval { low, high, level, .. }| {
        format!(" [{low:.digits$}, {high:.digits$}] {}%", level * 100.0)
    })
}
