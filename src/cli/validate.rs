//! `lacuna validate`

use super::print_json;
use super::print_table;
use candle_core::{DType, Device};
use lacuna::checkpoint::Checkpoint;
use lacuna::mask::{MaskSet, Violation};
use lacuna::model::Model;
use lacuna::progress::Progress;
use lacuna::prune::validate;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Check that masks fit a model and are what they say; the exit code is 1 when anything is wrong
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory or hub id
    model: String,
    /// Files of masks: .safetensors, .npz or .pt
    #[arg(required = true)]
    masks: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The result for one file.
#[derive(Serialize)]
struct Verdict {
    file: PathBuf,
    valid: bool,
    /// The reason why it could not be read.
    error: Option<String>,
    tensors: usize,
    sparsity: Option<f64>,
    violations: Vec<Violation>,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let checkpoint = Checkpoint::resolve(&args.model, Progress::Stderr)?;
    let model = Model::open(&checkpoint, DType::F32, &Device::Cpu)?;
    let mut verdicts = Vec::with_capacity(args.masks.len());
    for file in args.masks {
        let verdict = match MaskSet::load(&file) {
            Ok(set) => {
                let violations = validate(&model, &set)?;
                let (tensors, sparsity) = (set.masks.len(), Some(set.sparsity()));
                Verdict { file, valid: violations.is_empty(), error: None, tensors, sparsity, violations }
            }
            Err(error) => {
                let error = Some(error.to_string());
                Verdict { file, valid: false, error, tensors: 0, sparsity: None, violations: Vec::new() }
            }
        };
        verdicts.push(verdict);
    }
    if args.json {
        print_json(&verdicts)?;
    } else {
        verdicts.iter().for_each(print);
    }
    Ok(if verdicts.iter().all(|verdict| verdict.valid) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(verdict: &Verdict) {
    let Verdict { file, error, tensors, violations, .. } = verdict;
    if let Some(error) = error {
        println!("invalid: {error}");
        return;
    }
    let masks = format!("{}: {tensors} masks, sparsity {:.6}", file.display(), verdict.sparsity.unwrap_or_default());
    if violations.is_empty() {
        println!("{masks}, valid");
        return;
    }
    println!("{masks}, {} violation(s):", violations.len());
    let row = |violation: &Violation| {
        let tensor = violation.tensor.clone().unwrap_or_else(|| "(all)".into());
        [tensor, violation.kind.to_string(), violation.problem.clone()]
    };
    print_table(["tensor", "kind", "problem"], &[0, 1, 2], violations.iter().map(row));
}
