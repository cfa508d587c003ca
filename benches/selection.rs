//! The cost of selection beside a sort, of ten sparsities beside one, alone and with the calibration that a sweep of them
//! shares, and of a Wanda pass beside a plain forward pass.
//!
//! ```text
//! cargo bench --profile dev --bench selection -- MODEL CALIB.json [PYTHON]
//! ```
//!
//! MODEL is a checkpoint directory, CALIB.json holds at least 16 windows of 512 token ids, PYTHON an interpreter with torch,
//! which sorts the rows as Wanda's reference code does; without it that ratio is left out. All in turn; the median counts.

#[path = "common/median.rs"]
mod median;

use candle_core::{DType, Device};
use lacuna::calibrate::calibrate;
use lacuna::checkpoint::Checkpoint;
use lacuna::importance::{Inputs, Method, Scorer};
use lacuna::mask::{Criterion, Mask, Pattern, Per, Ties, select_levels};
use lacuna::model::Model;
use lacuna::progress::Progress;
use lacuna::text::{Sampling, Windows};
use median::median;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Runs of a selection, which takes milliseconds, and of a pass, which takes seconds.
const SELECTIONS: usize = 300;
const PASSES: usize = 5;

fn seconds<T>(f: impl FnOnce() -> T) -> f64 {
    let started = Instant::now();
    let kept = f();
    let seconds = started.elapsed().as_secs_f64();
    drop(kept);
    seconds
}

/// A linear of the first layer: its name, shape, weights and the norms of its input.
struct Scored {
    name: String,
    shape: (usize, usize),
    weights: Vec<f32>,
    norms: Vec<f32>,
}

impl Scored {
    fn select(&self, pattern: Pattern, per: Per, sparsities: &[f64]) -> Vec<Mask> {
        let inputs = Inputs { norms: Some(&self.norms), ..Inputs::default() };
        let scorer = Scorer::new(Method::Wanda, &self.name, &self.weights, self.shape, inputs).expect("norms");
        let criterion = Criterion { pattern, per, ties: Ties::ByPosition };
        select_levels(&self.name, self.shape, criterion, sparsities, |row, scores| scorer.row(row, scores))
            .expect("finite")
    }
}

fn main() -> lacuna::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [dir, calib, python @ ..] = args.as_slice() else {
        println!("nothing to do: cargo bench --profile dev --bench selection -- MODEL CALIB.json [PYTHON]");
        return Ok(());
    };
    let model = Model::open(&Checkpoint::open(dir)?, DType::F32, &Device::Cpu)?;
    let windows = Windows::calibration(calib, None, Sampling::new(16, 512))?;

    let (mut plain, mut wanda, mut statistics) = (Vec::new(), Vec::new(), None);
    for _ in 0..PASSES {
        plain.push(seconds(|| model.hidden_states(&windows.ids, Progress::Hidden)));
        wanda.push(seconds(|| statistics = calibrate(&model, &windows, Progress::Hidden).ok()));
    }
    let (plain, wanda) = (median(plain), median(wanda));
    println!("forward pass {plain:.2} s, Wanda pass {wanda:.2} s: ratio {:.2}", wanda / plain);

    let statistics = statistics.expect("a calibrated model");
    let mut linears = Vec::new();
    for linear in model.layer(0)?.linears() {
        linears.push(Scored {
            name: linear.name.clone(),
            shape: linear.weight.dims2()?,
            weights: linear.weight.flatten_all()?.to_vec1()?,
            norms: statistics.column_norms(&linear.name).expect("norms"),
        });
    }
    let ten: Vec<f64> = (0..10).map(|i| 0.05 + 0.1 * f64::from(i)).collect();
    let all = |pattern, per, sparsities: &[f64]| {
        seconds(|| linears.iter().map(|linear| linear.select(pattern, per, sparsities)).collect::<Vec<_>>())
    };
    let cases = [
        ("per row, one sparsity", Pattern::Unstructured, Per::Row, &[0.5][..]),
        ("per row, ten", Pattern::Unstructured, Per::Row, &ten),
        ("per layer, one sparsity", Pattern::Unstructured, Per::Layer, &[0.5]),
        ("per layer, ten", Pattern::Unstructured, Per::Layer, &ten),
        ("2:4", Pattern::NofM { n: 2, m: 4 }, Per::Row, &[0.5]),
    ];
    let mut times = vec![Vec::new(); cases.len()];
    for _ in 0..SELECTIONS {
        for ((_, pattern, per, sparsities), times) in cases.iter().zip(&mut times) {
            times.push(all(*pattern, *per, sparsities));
        }
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    for ((name, ..), median) in cases.iter().zip(&medians) {
        println!("layer 0, {name:24} {:8.2} ms", median * 1e3);
    }
    println!("selecting ten / one: {:.2} per row, {:.2} per layer", medians[1] / medians[0], medians[3] / medians[2]);
    // One calibration serves all sparsities of a sweep; the layers of a model have one shape.
    let sweep = |case: usize| wanda + medians[case] * model.layers() as f64;
    println!("sweep of ten / of one: {:.3} per row, {:.3} per layer", sweep(1) / sweep(0), sweep(3) / sweep(2));
    if let Some(python) = python.first() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/selection_torch.py");
        let output = Command::new(python).arg(script).arg(dir).output().expect("PYTHON starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        let sort: f64 = text.trim().parse().expect("seconds");
        println!("layer 0, torch.sort of the rows    {:8.2} ms", sort * 1e3);
        println!("sort / selection per row: {:.1}", sort / medians[0]);
    }
    Ok(())
}
