//! `lacuna masks`

use super::{Compute, Sampling, Share, print_json, print_table};
use anyhow::bail;
use clap::Subcommand;
use lacuna::mask::{MaskFormat, MaskSet, Overlap, Pattern, Per, Sparsity};
use lacuna::progress::Progress;
use lacuna::prune::{MasksConfig, Method, masks};
use lacuna::report::{MaskFile, check_output, write_masks};
use std::path::PathBuf;
use std::str::FromStr;

/// Make masks at many sparsities and by many methods in one pass over a model; compare and convert them
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    make: Make,
}

#[derive(Debug, Subcommand)]
enum Command {
    Show(Show),
    Diff(Diff),
    Convert(Convert),
    Compose(Compose),
}

/// Options for making masks. Those that are required here are not with a subcommand, and may then be missing.
#[derive(Debug, clap::Args)]
struct Make {
    /// Directory or hub id
    #[arg(required = true)]
    model: Option<String>,
    /// Importance metrics, with commas between: magnitude, wanda, ria, gradient, taylor, random
    #[arg(long, required = true, value_delimiter = ',')]
    method: Vec<Method>,
    /// Fractions of zeros: 0.5, or 0.3,0.5, or 0.1..0.9, whose step is 0.1, or 0.1..0.9:0.2; a pattern such as 2:4
    /// prescribes its own
    #[arg(long, required_unless_present = "pattern", allow_negative_numbers = true)]
    sparsity: Option<Levels>,
    /// unstructured, or kept-of-M such as 2:4
    #[arg(long, default_value = "unstructured")]
    pattern: Pattern,
    /// Comparison group of an unstructured selection: row, layer or alpha (Wanda's variant) [default: as each method's
    /// paper]
    #[arg(long)]
    per: Option<Per>,
    #[command(flatten)]
    share: Share,
    /// Calibration text: plain, or JSON or parquet with the field `text` or `input_ids` (token ids); .gz and .zst too
    #[arg(long)]
    calib: Option<PathBuf>,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    compute: Compute,
    /// Format: safetensors (a bit a weight), safetensors-u8, npz or pt
    #[arg(long, default_value = "safetensors")]
    format: MaskFormat,
    /// Directory to make: for each method and sparsity the masks, their statistics and a histogram, and a summary
    #[arg(long, required = true)]
    out: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Print what masks say of themselves, and their statistics
#[derive(Debug, clap::Args)]
struct Show {
    /// .safetensors, .npz or .pt
    file: PathBuf,
    /// Print JSON, with the statistics of each tensor
    #[arg(long)]
    json: bool,
}

/// Compare two files of masks: Jaccard index, and whether one is nested in the other
#[derive(Debug, clap::Args)]
struct Diff {
    /// .safetensors, .npz or .pt
    a: PathBuf,
    /// Another one for the same model
    b: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Write masks in another format
#[derive(Debug, clap::Args)]
struct Convert {
    /// .safetensors, .npz or .pt
    file: PathBuf,
    /// File to make
    out: PathBuf,
    /// Format [default: as the extension of OUT; .safetensors means one bit a weight]
    #[arg(long)]
    format: Option<MaskFormat>,
}

/// Make masks of masks: what all prune (and), what any prunes (or), what one keeps (not)
#[derive(Debug, clap::Args)]
struct Compose {
    /// and, or, not
    operation: Operation,
    /// Files of masks for the same model: two or more, for `not` one
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// File to make: .safetensors, .npz or .pt
    #[arg(long)]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Operation {
    And,
    Or,
    Not,
}

/// Sparsities as people write them.
#[derive(Clone, Debug, PartialEq)]
struct Levels(Vec<f64>);

impl FromStr for Levels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no list of sparsities; write 0.5, 0.3,0.5, 0.1..0.9 or 0.1..0.9:0.2");
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|x| x.is_finite()).ok_or_else(wrong);
        let mut levels = Vec::new();
        for part in text.split(',') {
            let Some((first, rest)) = part.split_once("..") else {
                levels.push(number(part)?);
                continue;
            };
            let (last, step) = rest.split_once(':').unwrap_or((rest, "0.1"));
            let (first, last, step) = (number(first)?, number(last)?, number(step)?);
            let steps = ((last - first) / step + 1e-9).floor();
            if step <= 0.0 || !(0.0..1e4).contains(&steps) {
                return Err(format!("`{part}` is no range from low to high with a step above 0"));
            }
            // To nine decimals, so that the third step of 0.1 is 0.3 and not the sum's 0.30000000000000004.
            levels.extend((0..=steps as u32).map(|i| ((first + f64::from(i) * step) * 1e9).round() / 1e9));
        }
        levels.sort_by(f64::total_cmp);
        match levels.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("`{text}` has {} twice", pair[0])),
            None => Ok(Levels(levels)),
        }
    }
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Some(Command::Show(args)) => show(&args),
        Some(Command::Diff(args)) => diff(&args),
        Some(Command::Convert(args)) => convert(&args),
        Some(Command::Compose(args)) => compose(&args),
        None => make(args.make),
    }
}

fn make(args: Make) -> anyhow::Result<()> {
    let (Some(model), Some(out)) = (args.model, args.out) else { bail!("give a MODEL and --out DIR") };
    let sparsities = match (args.sparsity, args.pattern.sparsity()) {
        (Some(Levels(levels)), _) => levels,
        (None, Some(sparsity)) => vec![sparsity],
        (None, None) => bail!("--pattern unstructured needs --sparsity"),
    };
    check_output(&out)?;
    let config = MasksConfig {
        pattern: args.pattern,
        per: args.per,
        allocation: args.share.allocation,
        rules: args.share.rules()?,
        seed: args.sampling.seed,
        ..MasksConfig::new(&args.method, &sparsities)
    };
    config.validate()?;
    let model = args.compute.open(&model)?;
    let calibration = match &args.calib {
        Some(path) => args.sampling.windows_if(config.needs_calibration(), path, &model)?,
        None if config.needs_calibration() => {
            bail!("--method {} with --allocation {} needs --calib FILE", join(&args.method), config.allocation)
        }
        None => None,
    };
    let sets = masks(&model, calibration.as_ref(), &config, Progress::Stderr)?;
    #[cfg(not(feature = "report"))]
    eprintln!("note: this build draws no histograms (feature `report`)");
    let written = write_masks(&out, &sets.into_vec(), args.format, Progress::Stderr)?;
    if args.json {
        return print_json(&written);
    }
    let row = |file: &MaskFile| {
        [
            file.file.clone(),
            file.per.clone(),
            format!("{}", file.target),
            format!("{:.6}", file.sparsity),
            format!("{:.4} to {:.4}", file.min_row_sparsity, file.max_row_sparsity),
            file.sha256.get(..12).unwrap_or_default().to_owned(),
        ]
    };
    print_table(["masks", "per", "target", "sparsity", "of rows", "sha256"], &[0, 1], written.iter().map(row));
    println!("-> {}", out.display());
    Ok(())
}

fn join(methods: &[Method]) -> String {
    methods.iter().map(Method::to_string).collect::<Vec<_>>().join(",")
}

fn show(args: &Show) -> anyhow::Result<()> {
    let set = MaskSet::load(&args.file)?;
    let (statistics, sha256) = (set.statistics(), set.sha256());
    if args.json {
        let about = serde_json::json!({"sha256": sha256, "metadata": set.metadata, "statistics": statistics});
        return print_json(&about);
    }
    let mut rows: Vec<(&str, String)> = vec![("masks", set.masks.len().to_string()), ("sha256", sha256)];
    match &set.metadata {
        None => rows.push(("made by", "other software; its set bits are taken for pruned weights".into())),
        Some(metadata) => {
            let model = &metadata.model;
            rows.push(("model", format!("{} ({}), SHA-256 {}", model.name, model.family, model.sha256)));
            rows.extend(metadata.composed.clone().map(|composed| ("composed", composed)));
            if let Some(pruning) = &metadata.pruning {
                let selected = format!("{}, {} per {}", pruning.method, pruning.pattern, pruning.per);
                rows.push(("selected by", format!("{selected}, {} {}", pruning.allocation, pruning.sparsity)));
                let calibration = pruning.calibration.as_ref();
                rows.extend(calibration.map(|text| {
                    let windows = format!("{} windows of {} tokens", text.windows, text.seqlen);
                    ("calibration", format!("{}, {windows}, propagate {}", text.name, pruning.propagate))
                }));
            }
            let environment = metadata.environment.iter().map(|(key, value)| match value.as_str() {
                Some(text) => format!("{key} {text}"),
                None => format!("{key} {value}"),
            });
            rows.push(("environment", environment.collect::<Vec<_>>().join(", ")));
        }
    }
    rows.iter().for_each(|(name, value)| println!("{name:12} {value}"));
    for (title, groups) in
        [("all", std::slice::from_ref(&statistics.all)), ("layer", &statistics.layers), ("kind", &statistics.kinds)]
    {
        println!();
        print_table([title, "tensors", "pruned", "elements", "sparsity", "of rows"], &[0], groups.iter().map(sparsity));
    }
    Ok(())
}

fn sparsity(group: &Sparsity) -> [String; 6] {
    [
        group.name.clone(),
        group.tensors.to_string(),
        group.pruned.to_string(),
        group.elements.to_string(),
        format!("{:.6}", group.sparsity),
        format!("{:.4} to {:.4}", group.min_row_sparsity, group.max_row_sparsity),
    ]
}

fn diff(args: &Diff) -> anyhow::Result<()> {
    let comparison = MaskSet::load(&args.a)?.compare(&MaskSet::load(&args.b)?)?;
    if args.json {
        return print_json(&comparison);
    }
    let row = |overlap: &Overlap| {
        let nested = match (overlap.a_in_b, overlap.b_in_a) {
            (true, true) => "equal",
            (true, false) => "A in B",
            (false, true) => "B in A",
            (false, false) => "no",
        };
        let counts = [overlap.pruned_a, overlap.pruned_b, overlap.both].map(|count| count.to_string());
        let [a, b, both] = counts;
        [overlap.name.clone(), format!("{:.6}", overlap.jaccard), a, b, both, nested.to_owned()]
    };
    println!("A  {}\nB  {}\n", args.a.display(), args.b.display());
    let all = std::iter::once(&comparison.all);
    let rows = all.chain(&comparison.tensors).map(row);
    print_table(["tensor", "jaccard", "pruned in A", "pruned in B", "in both", "nested"], &[0], rows);
    Ok(())
}

fn convert(args: &Convert) -> anyhow::Result<()> {
    let format = args.format.map_or_else(|| MaskFormat::of(&args.out), Ok)?;
    MaskSet::load(&args.file)?.save_as(&args.out, format)?;
    Ok(())
}

fn compose(args: &Compose) -> anyhow::Result<()> {
    let Some((first, rest)) = args.files.split_first() else { bail!("give files of masks") };
    let mut set = MaskSet::load(first)?;
    match (args.operation, rest) {
        (Operation::Not, []) => set = set.not(),
        (Operation::Not, _) => bail!("`not` takes one file, {} were given", args.files.len()),
        (Operation::And | Operation::Or, []) => bail!("`and` and `or` take two files or more"),
        (operation, rest) => {
            for file in rest {
                let other = MaskSet::load(file)?;
                set = if matches!(operation, Operation::And) { set.and(&other)? } else { set.or(&other)? };
            }
        }
    }
    set.save(&args.out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels() {
        let levels = |text: &str| text.parse::<Levels>().map(|levels| levels.0);
        assert_eq!(levels("0.1..0.9").unwrap(), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]);
        assert_eq!(levels("0.1..0.9:0.2").unwrap(), [0.1, 0.3, 0.5, 0.7, 0.9]);
        assert_eq!(levels("0.1..0.9:0.3").unwrap(), [0.1, 0.4, 0.7]);
        assert_eq!(levels("0.75, 0.1..0.2,0.125").unwrap(), [0.1, 0.125, 0.2, 0.75]);
        assert_eq!(levels("0.5").unwrap(), [0.5]);
        for text in
            ["", "x", "0.1..", "0.9..0.1", "0.1..0.9:0", "0.1..0.9:-0.1", "0.1,0.1", "0.1..0.3,0.2", "nan", "0..1:1e-9"]
        {
            assert!(levels(text).is_err(), "{text}");
        }
    }
}
