//! Two ratios that a change must not make worse, measured on the fixtures of this repository within seconds: the time of
//! selecting ten sparsities by Wanda's score over that of sorting the same rows, and the time of a calibration for Wanda over
//! that of a forward pass. One that is above its bound ends the program with an error.
//!
//! ```text
//! cargo bench --profile dev --bench guard [-- SELECTION WANDA]
//! ```
//!
//! SELECTION and WANDA are bounds in place of those below. What is compared runs in turn, and the median of the ratios of
//! neighbours counts, so that whatever else the machine does slows both.

#[path = "common/median.rs"]
mod median;

use candle_core::{DType, Device};
use lacuna::calibrate::calibrate;
use lacuna::checkpoint::Checkpoint;
use lacuna::importance::{Inputs, Method, Scorer};
use lacuna::mask::{Criterion, Pattern, Per, Ties, select_levels};
use lacuna::model::Model;
use lacuna::progress::Progress;
use lacuna::text::{Sampling, Windows};
use median::median;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::process::ExitCode;
use std::time::Instant;

/// The greatest ratios: 0.11 and 1.0 were measured, and machines differ.
const BOUNDS: [f64; 2] = [0.4, 2.0];
/// Pairs of measurements.
const PAIRS: usize = 15;

fn seconds<T>(f: impl FnOnce() -> T) -> f64 {
    let started = Instant::now();
    let kept = f();
    let seconds = started.elapsed().as_secs_f64();
    drop(kept);
    seconds
}

/// The median of the ratios `one / other`, measured in turn, after a first pair that warms up.
fn ratio<A, B>(mut one: impl FnMut() -> A, mut other: impl FnMut() -> B) -> f64 {
    let ratios = (0..=PAIRS).map(|_| seconds(&mut one) / seconds(&mut other));
    median(ratios.skip(1).collect())
}

/// Ten sparsities of a matrix, each row against itself, over a sort of its rows: both on one thread.
fn selection() -> lacuna::Result<f64> {
    const SHAPE: (usize, usize) = (192, 1024);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut draw = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let weights = draw(SHAPE.0 * SHAPE.1);
    let norms: Vec<f32> = draw(SHAPE.1).into_iter().map(f32::abs).collect();
    let inputs = Inputs { norms: Some(&norms), ..Inputs::default() };
    let scorer = Scorer::new(Method::Wanda, "w", &weights, SHAPE, inputs)?;
    let criterion = Criterion { pattern: Pattern::Unstructured, per: Per::Row, ties: Ties::ByPosition };
    let ten: Vec<f64> = (0..10).map(|i| 0.05 + 0.1 * f64::from(i)).collect();
    let select = || select_levels("w", SHAPE, criterion, &ten, |row, scores| scorer.row(row, scores));
    let sort = || {
        let mut scores = vec![0.0f32; SHAPE.1];
        let mut least = 0.0;
        for row in 0..SHAPE.0 {
            scorer.row(row, &mut scores);
            scores.sort_unstable_by(f32::total_cmp);
            least += scores[0];
        }
        least
    };
    select()?;
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    Ok(one_thread.install(|| ratio(select, sort)))
}

/// The statistics that Wanda needs of a model, over its plain forward pass.
fn wanda() -> lacuna::Result<f64> {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/data");
    let checkpoint = Checkpoint::open(format!("{data}/tiny-llama"))?;
    let model = Model::open(&checkpoint, DType::F32, &Device::Cpu)?;
    let tokenizer = model.tokenizer()?;
    let windows = Windows::calibration(format!("{data}/corpus/train.txt"), Some(&tokenizer), Sampling::new(16, 128))?;
    calibrate(&model, &windows, Progress::Hidden)?;
    let pass = || calibrate(&model, &windows, Progress::Hidden);
    Ok(ratio(pass, || model.hidden_states(&windows.ids, Progress::Hidden)))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let given: Result<Vec<f64>, _> = arguments.iter().map(|argument| argument.parse()).collect();
    let bounds = match given.as_deref() {
        Ok([]) => BOUNDS,
        Ok(&[selection, wanda]) => [selection, wanda],
        _ => {
            eprintln!("error: give no bounds or two numbers: SELECTION WANDA");
            return ExitCode::from(2);
        }
    };
    let ratios = [("selecting ten sparsities / a sort", selection()), ("a Wanda pass / a forward pass", wanda())];
    let mut code = ExitCode::SUCCESS;
    for ((name, ratio), bound) in ratios.into_iter().zip(bounds) {
        match ratio {
            Ok(ratio) if ratio <= bound => println!("{name}: {ratio:.2}, at most {bound} is allowed"),
            Ok(ratio) => {
                eprintln!("error: {name}: {ratio:.2}, but at most {bound} is allowed; find what made it slower");
                code = ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("error: {name}: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
