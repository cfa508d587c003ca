//! The factor of the inverse Hessian that SparseGPT reads.

use super::SparseGpt;
use crate::error::{Error, Remedy, Result};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{
    LltError, LltParams, LltRegularization, cholesky_in_place, cholesky_in_place_scratch,
};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{Accum, Auto, Mat, MatMut, MatRef, Par, Spec};
use rayon::prelude::*;

/// Rows and columns that are worked on at once. Work is cut up by this size and not by the number of threads, so that the
/// sums are the same on any number of them.
const TILE: usize = 128;

/// The largest damping that is tried: a matrix that is not positive definite with its mean diagonal added is no gram
/// matrix.
const MOST_DAMPING: f64 = 1.0;

/// The upper Cholesky factor `U` of the inverse Hessian, `H^-1 = U^T U`, of what enters a linear. Linears with the same
/// input share it.
#[derive(Clone, Debug)]
pub struct Factor {
    width: usize,
    /// `(in, in)`, row-major; zero below the diagonal.
    upper: Vec<f32>,
    dead: Vec<usize>,
    damping: f64,
}

impl Factor {
    /// Factors `gram (in, in)`, which is `H = (2 / windows) * sum X^T X` in row-major order; what stands below its diagonal
    /// is not read. `name` is the linear, or one of those that share the input.
    ///
    /// The diagonal of an input that was always zero becomes 1, and its weights become 0 ([`crate::sparsegpt::sparsegpt`]).
    /// If *all* inputs were zero, as for an expert that no token was routed to, the data say nothing about any weight: `H`
    /// is then the identity, which makes SparseGPT a selection by magnitude that changes no kept weight.
    ///
    /// To the diagonal, `config.damping` times its mean is added; ten times more as long as the sum is not positive definite.
    ///
    /// # Errors
    /// [`Error::Argument`] for a damping that is negative or not finite; [`Error::Tensor`] naming `name` for a gram of
    /// another size, with values that are not finite, or that is not positive definite with any sensible damping.
    pub fn new(name: &str, gram: &[f32], width: usize, config: &SparseGpt) -> Result<Factor> {
        config.validate()?;
        if width == 0 || gram.len() != width * width {
            let problem = format!("has {} values, and the linear has {width} inputs", gram.len());
            return Err(Error::tensor("gram", name, problem));
        }
        if let Some(at) = gram.par_iter().position_first(|value| !value.is_finite()) {
            let problem = format!(
                "the value for inputs {} and {} is {}: an activation is not finite or its square overflowed",
                at / width,
                at % width,
                gram[at]
            )
            .remedy("check the checkpoint, or calibrate in f32");
            return Err(Error::tensor("gram", name, problem));
        }
        let diagonal = |i: usize| gram[i * width + i];
        let mut dead: Vec<usize> = (0..width).filter(|&i| diagonal(i) == 0.0).collect();
        let lifted = dead.clone();
        if dead.len() == width {
            dead.clear();
        }
        let sum: f64 = (0..width).map(|i| f64::from(diagonal(i))).sum::<f64>() + lifted.len() as f64;
        let mean = sum / width as f64;
        let mut damping = config.damping;
        let upper = loop {
            match factor(gram, width, &lifted, damping * mean) {
                Some(upper) => break upper,
                None if damping < MOST_DAMPING => damping = (damping * 10.0).clamp(1e-4, MOST_DAMPING),
                None => {
                    let problem =
                        format!("is not positive definite, even with {damping} times its mean diagonal added")
                            .remedy("calibrate on more text, or in f32");
                    return Err(Error::tensor("gram", name, problem));
                }
            }
        };
        Ok(Factor { width, upper, dead, damping })
    }

    /// Number of inputs.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The damping that was needed, as a fraction of the mean diagonal. Above the configured one, the caller should say so.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Inputs that were always zero, ascending.
    pub fn dead(&self) -> &[usize] {
        &self.dead
    }

    /// `U (in, in)`, row-major.
    pub fn upper(&self) -> &[f32] {
        &self.upper
    }
}

/// `U` with `(H + damp I)^-1 = U^T U`, or `None` where that is not positive definite.
///
/// With the order of the inputs reversed, `H = L L^T` becomes `H = R R^T` with an upper triangular `R`, and `U = R^-1`. So one
/// factorisation and a triangular inverse give what the reference takes two factorisations and a full inverse for.
fn factor(gram: &[f32], n: usize, lifted: &[usize], damp: f64) -> Option<Vec<f32>> {
    let mut lower = vec![0f64; n * n];
    lower.par_iter_mut().zip(gram.par_iter().rev()).for_each(|(to, &from)| *to = f64::from(from));
    lifted.iter().for_each(|&i| lower[(n - 1 - i) * (n + 1)] = 1.0);
    (0..n).for_each(|i| lower[i * (n + 1)] += damp);
    cholesky(&mut lower, n)?;
    inverse(&lower, n)
}

/// Turns the lower triangle of `a (n, n)`, row-major, into its Cholesky factor. What stands above is left undefined.
fn cholesky(a: &mut [f64], n: usize) -> Option<()> {
    for k0 in (0..n).step_by(TILE) {
        let k1 = (k0 + TILE).min(n);
        let width = k1 - k0;
        let view = MatRef::from_row_major_slice(a, n, n);
        let mut corner: Mat<f64> = view.submatrix(k0, k0, width, width).to_owned();
        small_cholesky(corner.as_mut()).ok()?;
        for (i, row) in a[k0 * n..k1 * n].chunks_exact_mut(n).enumerate() {
            (0..=i).for_each(|j| row[k0 + j] = corner[(i, j)]);
        }
        let below = &mut a[k1 * n..];
        below.par_chunks_mut(TILE * n).for_each(|rows| {
            let height = rows.len() / n;
            let rows = MatMut::from_row_major_slice_mut(rows, height, n).subcols_mut(k0, width);
            solve_lower_triangular_in_place(corner.as_ref(), rows.transpose_mut(), Par::Seq);
        });
        let panel: Vec<f64> = below.chunks_exact(n).flat_map(|row| &row[k0..k1]).copied().collect();
        let panel = MatRef::from_row_major_slice(&panel, n - k1, width);
        below.par_chunks_mut(TILE * n).enumerate().for_each(|(i, rows)| {
            let (above, height) = (i * TILE, rows.len() / n);
            let rows = MatMut::from_row_major_slice_mut(rows, height, n).subcols_mut(k1, above + height);
            let (left, right) = (panel.subrows(above, height), panel.subrows(0, above + height));
            matmul(rows, Accum::Add, left, right.transpose(), -1.0, Par::Seq);
        });
    }
    Some(())
}

/// The Cholesky factor of one tile, in its lower triangle.
fn small_cholesky(tile: MatMut<'_, f64>) -> std::result::Result<(), LltError> {
    let params = Spec::new(<LltParams as Auto<f64>>::auto());
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(tile.nrows(), Par::Seq, params));
    let exact = LltRegularization { dynamic_regularization_delta: 0.0, dynamic_regularization_epsilon: 0.0 };
    cholesky_in_place(tile, exact, Par::Seq, MemStack::new(&mut memory), params).map(|_| ())
}

/// The inverse of the lower triangle of `lower (n, n)`, with the order of rows and columns reversed; `None` when it overflows.
fn inverse(lower: &[f64], n: usize) -> Option<Vec<f32>> {
    let lower = MatRef::from_row_major_slice(lower, n, n);
    let mut upper = vec![0f32; n * n];
    // Rows of the inverse do not depend on each other: row block X solves X L = E, so L^T X^T = E^T.
    let finite = upper.par_chunks_mut(TILE / 2 * n).enumerate().map(|(i, reversed)| {
        let (i1, height) = (n - i * TILE / 2, reversed.len() / n);
        let i0 = i1 - height;
        let mut rows = Mat::from_fn(i1, height, |i, j| f64::from(u8::from(i == i0 + j)));
        solve_upper_triangular_in_place(lower.submatrix(0, 0, i1, i1).transpose(), rows.as_mut(), Par::Seq);
        for (reversed, j) in reversed.chunks_exact_mut(n).zip((0..height).rev()) {
            let row = rows.col(j).iter().take(i0 + j + 1);
            reversed.iter_mut().rev().zip(row).for_each(|(to, &from)| *to = from as f32);
        }
        reversed.iter().all(|value| value.is_finite())
    });
    finite.reduce(|| true, |a, b| a && b).then_some(upper)
}
