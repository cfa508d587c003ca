//! The few operations where candle's operators would make several passes: each has a fused CPU path in f32 that can be
//! differentiated; on a GPU kernels of our own serve where no gradient is wanted, and elsewhere candle's operators.

#[cfg(feature = "cuda")]
use super::gpu;
use super::rope::Rope;
use crate::error::Result;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, D, DType, Device, Layout, Result as CandleResult, Shape, Tensor, bail,
};
use rayon::prelude::*;

/// Returns whether an operator has a fused path for tensors like `x`: f32 on the CPU, and on a GPU the types that kernels take.
fn fused(x: &Tensor) -> bool {
    match x.device() {
        Device::Cpu => x.dtype() == DType::F32,
        Device::Cuda(_) => matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16) && x.elem_count() > 0,
        Device::Metal(_) => false,
    }
}

fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> CandleResult<&'a [f32]> {
    match (layout.contiguous_offsets(), storage) {
        (Some((start, end)), CpuStorage::F32(values)) => Ok(&values[start..end]),
        _ => bail!("a fused operation takes contiguous f32 tensors"),
    }
}

/// `e^x` to about 1e-7 relative, written so that the compiler vectorises it (Cephes' `expf` reduction and polynomial).
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding and subtracting it rounds to an integer
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let power = p * r * r + r + 1.0;
    power * f32::from_bits(((n as i32 + 127) << 23) as u32)
}

/// Compiles a kernel twice, for the baseline and for AVX2, and picks at run time. No FMA: results are the same on both.
macro_rules! vectorised {
    (fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        fn $name($($arg: $type),*) {
            #[inline(always)]
            fn body($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) { body($($arg),*) }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2, as just asked.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}

const LANES: usize = 8;

/// Sum in a fixed order of eight lanes, whatever the vector width.
#[inline(always)]
fn lane_sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += f(value);
    }
    lanes.iter().sum()
}

vectorised! {
    fn softmax_row(scores: &[f32], scale: f32, sink: f32, out: &mut [f32]) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let chunks = scores.chunks_exact(LANES);
        for (lane, &value) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane = lane.max(value);
        }
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane = if value > *lane { value } else { *lane };
            }
        }
        let sink = sink / scale;
        let max = lanes.iter().fold(sink, |a, &b| a.max(b));
        for (out, &value) in out.iter_mut().zip(scores) {
            *out = exp((value - max) * scale);
        }
        let inverse = 1.0 / (lane_sum(out, |x| x) + exp((sink - max) * scale));
        for out in out.iter_mut() {
            *out *= inverse;
        }
    }
}

vectorised! {
    fn sum_exp(values: &[f32], max: f32, sum: &mut f64) {
        // Short runs in f32, their sums in f64: rounding does not grow with the vocabulary.
        for chunk in values.chunks(256) {
            *sum += f64::from(lane_sum(chunk, |x| exp(x - max)));
        }
    }
}

/// `ln(sum(exp(values)))`, NaN when a value is.
pub(crate) fn log_sum_exp(values: &[f32]) -> f64 {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, |a, b| if b > a || b.is_nan() { b } else { a });
    let mut sum = 0.0;
    sum_exp(values, max, &mut sum);
    f64::from(max) + sum.ln()
}

/// The query in row `r` of scores stands at position `past + r % queries` and sees the keys up to itself, at most `window` of
/// them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CausalSoftmax {
    pub(crate) scale: f32,
    pub(crate) past: usize,
    pub(crate) window: Option<usize>,
    pub(crate) queries: usize,
}

impl CausalSoftmax {
    /// Keys that the query in row `row` sees.
    fn visible(&self, row: usize) -> std::ops::Range<usize> {
        let end = self.past + row % self.queries + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

impl CausalSoftmax {
    /// The keys that each query sees, as the kernel takes them.
    #[cfg(feature = "cuda")]
    fn seen(&self) -> gpu::Seen {
        let window = self.window.map_or(0, |window| window.max(1));
        gpu::Seen { queries: self.queries, past: self.past, window, scale: self.scale }
    }

    /// The head, of `heads`, that the row belongs to: the heads of a sequence stand below each other.
    fn head(&self, row: usize, heads: usize) -> usize {
        row / self.queries % heads
    }

    /// The softmax of `scores (rows, keys)` with `sinks (heads,)`; a sink of -inf weighs nothing.
    pub(crate) fn rows(&self, scores: &[f32], keys: usize, sinks: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; scores.len()];
        out.par_chunks_mut(keys).zip(scores.par_chunks(keys)).with_min_len(32).enumerate().for_each(
            |(row, (out, scores))| {
                let visible = self.visible(row);
                let sink = sinks[self.head(row, sinks.len())];
                softmax_row(&scores[visible.clone()], self.scale, sink, &mut out[visible]);
            },
        );
        out
    }

    fn forward(&self, scores: &[f32], layout: &Layout, sinks: &[f32]) -> (CpuStorage, Shape) {
        let keys = layout.dims()[layout.dims().len() - 1];
        (CpuStorage::F32(self.rows(scores, keys, sinks)), layout.shape().clone())
    }

    /// Gradient of the scores, and `sum(y * grad)` of each row, from the probabilities `y` without the sink's.
    fn backward(&self, y: &Tensor, grad: &Tensor) -> CandleResult<(Tensor, Tensor)> {
        // In 16 bits the difference would lose its digits.
        let (dtype, y, grad) = (y.dtype(), y.to_dtype(DType::F32)?, grad.to_dtype(DType::F32)?);
        let weighted = (&y * grad)?;
        let mean = weighted.sum_keepdim(D::Minus1)?;
        let scores = ((weighted - y.broadcast_mul(&mean)?)? * self.scale as f64)?;
        Ok((scores.to_dtype(dtype)?, mean))
    }
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        Ok(self.forward(contiguous(storage, layout)?, layout, &[f32::NEG_INFINITY]))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        gpu::causal_softmax(self.seen(), storage, layout, None)
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        Ok(Some(self.backward(y, grad)?.0))
    }
}

/// With sinks `(heads,)`.
impl CustomOp2 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax-with-sinks"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        Ok(self.forward(contiguous(s1, l1)?, l1, contiguous(s2, l2)?))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
    ) -> CandleResult<(CudaStorage, Shape)> {
        gpu::causal_softmax(self.seen(), s1, l1, Some((s2, l2)))
    }

    fn bwd(
        &self,
        _: &Tensor,
        sinks: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let (scores, mean) = self.backward(y, grad)?;
        // The sink's probability is what the others leave, and no gradient reaches it directly.
        let sink = (1.0 - y.to_dtype(DType::F32)?.sum_keepdim(D::Minus1)?)?;
        let slopes = (sink * mean)?.neg()?.reshape(((), sinks.elem_count(), self.queries))?;
        Ok((Some(scores), Some(slopes.sum(2)?.sum(0)?)))
    }
}

/// Softmax over the last dimension. candle's fused one has no gradient, and says nothing when one is asked for.
fn softmax(x: &Tensor) -> Result<Tensor> {
    Ok(if x.track_op() { candle_nn::ops::softmax(x, D::Minus1)? } else { candle_nn::ops::softmax_last_dim(x)? })
}

/// `softmax(scores * scale)` over the last dimension, where the query in row `r` of `scores (.., rows, keys)` stands at
/// position `past + r % queries` and sees the keys up to itself, at most `window` of them. `sinks (heads,)`, where there
/// are any, take part as one more key whose probability is left out; all rows together are `(batch, heads, queries)`.
pub(crate) fn causal_softmax(
    scores: &Tensor,
    scale: f64,
    queries: usize,
    past: usize,
    window: Option<usize>,
    sinks: Option<&Tensor>,
) -> Result<Tensor> {
    let op = CausalSoftmax { scale: scale as f32, past, window, queries };
    if fused(scores) {
        return Ok(match sinks {
            Some(sinks) => scores.contiguous()?.apply_op2(&sinks.to_dtype(DType::F32)?.contiguous()?, op)?,
            None => scores.contiguous()?.apply_op1(op)?,
        });
    }
    let dims = scores.dims();
    let (rows, keys) = (dims[dims.len() - 2], dims[dims.len() - 1]);
    let mask: Vec<f32> = (0..rows)
        .flat_map(|row| {
            let visible = op.visible(row);
            (0..keys).map(move |key| if visible.contains(&key) { 0.0 } else { f32::NEG_INFINITY })
        })
        .collect();
    let mask = Tensor::from_vec(mask, (rows, keys), scores.device())?;
    let masked = (scores.to_dtype(DType::F32)? * scale)?.broadcast_add(&mask)?;
    let Some(sinks) = sinks else { return softmax(&masked) };
    let heads = sinks.elem_count();
    let batch = scores.elem_count() / (heads * queries * keys);
    let column = sinks.to_dtype(DType::F32)?.reshape((1, heads, 1))?.broadcast_as((batch, heads, queries))?;
    let column = column.reshape([&dims[..dims.len() - 1], &[1]].concat())?;
    let probs = softmax(&Tensor::cat(&[masked, column], D::Minus1)?)?;
    Ok(probs.narrow(D::Minus1, 0, keys)?.contiguous()?)
}

vectorised! {
    fn swiglu_rows(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate / (1.0 + exp(-gate)) * up;
        }
    }
}

/// `silu(gate) * up` of as many values.
pub(crate) fn swiglu_values(gate: &[f32], up: &[f32]) -> Vec<f32> {
    const CHUNK: usize = 4096;
    let mut out = vec![0f32; gate.len()];
    out.par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)))
        .for_each(|(out, (gate, up))| swiglu_rows(gate, up, out));
    out
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let out = swiglu_values(contiguous(s1, l1)?, contiguous(s2, l2)?);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
    ) -> CandleResult<(CudaStorage, Shape)> {
        gpu::swiglu((s1, l1), (s2, l2))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let sigmoid = (gate.neg()?.exp()? + 1.0)?.recip()?;
        let silu = (gate * &sigmoid)?;
        // silu' = sigmoid + silu - silu * sigmoid
        let slope = ((&sigmoid + &silu)? - (&silu * &sigmoid)?)?;
        Ok((Some(((grad * up)? * slope)?), Some((grad * silu)?)))
    }
}

/// `silu(gate) * up`, elementwise.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if fused(gate) && gate.shape() == up.shape() && gate.dtype() == up.dtype() {
        return Ok(gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu)?);
    }
    Ok((gate.silu()? * up)?)
}

vectorised! {
    fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let mean = lane_sum(x, |x| x * x) / x.len() as f32;
        let scale = 1.0 / (mean + eps).sqrt();
        for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (x, weight) = (contiguous(s1, l1)?, contiguous(s2, l2)?);
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(weight.len())
            .zip(x.par_chunks(weight.len()))
            .with_min_len(16)
            .for_each(|(out, x)| rms_norm_row(x, weight, self.eps, out));
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        // With r = (mean(x^2) + eps)^-1/2 and g = grad * weight: dx = r g - r^3 x mean(g x), dweight = sum(grad x r).
        let r = ((x.sqr()?.mean_keepdim(D::Minus1)? + self.eps as f64)?.sqrt()?.recip())?;
        let scaled = x.broadcast_mul(&r)?;
        let g = grad.broadcast_mul(weight)?;
        let dot = (&g * &scaled)?.mean_keepdim(D::Minus1)?;
        let dx = (g - scaled.broadcast_mul(&dot)?)?.broadcast_mul(&r)?;
        let dweight = (grad * scaled)?.flatten_to(x.rank() - 2)?.sum(0)?;
        Ok((Some(dx), Some(dweight)))
    }
}

/// Root-mean-square norm over the last dimension of `x`, scaled by `weight (dim,)`.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() && x.dtype() == DType::F32 {
        return Ok(x.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm { eps: eps as f32 })?);
    }
    // candle's fused one has no gradient.
    if x.device().is_cuda() && !x.track_op() && !weight.track_op() {
        return Ok(candle_nn::ops::rms_norm(&x.contiguous()?, &weight.contiguous()?, eps as f32)?);
    }
    let wide = x.to_dtype(DType::F32)?;
    let scale = (wide.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    Ok(wide.broadcast_mul(&scale)?.to_dtype(x.dtype())?.broadcast_mul(weight)?)
}

/// Rotates the halves of each row of `x (.., seq, dim)` (Hugging Face's half-split layout): row `i` of each sequence is position
/// `first + i` of `cos` and `sin (positions, dim / 2)`.
pub(crate) fn rotate(x: &[f32], (cos, sin): (&[f32], &[f32]), (seq, dim, first): (usize, usize, usize)) -> Vec<f32> {
    let half = dim / 2;
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(dim).zip(x.par_chunks(dim)).with_min_len(64).enumerate().for_each(|(row, (out, x))| {
        let at = (first + row % seq) * half;
        let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
        let (x1, x2) = x.split_at(half);
        let (out1, out2) = out.split_at_mut(half);
        for i in 0..half {
            out1[i] = x1[i] * cos[i] - x2[i] * sin[i];
            out2[i] = x2[i] * cos[i] + x1[i] * sin[i];
        }
    });
    out
}

/// [`rotate`] as an operation; its gradient turns the other way.
#[derive(Clone)]
struct Rotate {
    tables: Rope,
    first: usize,
    inverse: bool,
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        let dims = layout.dims();
        let (seq, dim) = (dims[dims.len() - 2], dims[dims.len() - 1]);
        let (cos, sin) = (self.tables.cos(), self.tables.sin(self.inverse));
        if (self.first + seq) * (dim / 2) > cos.len() {
            bail!("position {} is beyond the rotary table", self.first + seq)
        }
        Ok((CpuStorage::F32(rotate(x, (cos, sin), (seq, dim, self.first))), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> CandleResult<(CudaStorage, Shape)> {
        let half = layout.dims()[layout.dims().len() - 1] / 2;
        let [cos, sin] = self.tables.on(&Device::Cuda(storage.device.clone()), half, self.inverse)?;
        gpu::rope(storage, layout, &[cos, sin], self.first)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        Ok(Some(grad.contiguous()?.apply_op1(Rotate { inverse: !self.inverse, ..self.clone() })?))
    }
}

/// [`rotate`] of `x (.., seq, head_dim)`, whose first row is position `first`.
pub(crate) fn rope(x: &Tensor, tables: &Rope, first: usize) -> Result<Tensor> {
    let x = x.contiguous()?;
    if fused(&x) {
        return Ok(x.apply_op1(Rotate { tables: tables.clone(), first, inverse: false })?);
    }
    let dims = x.dims();
    let (seq, half) = (dims[dims.len() - 2], dims[dims.len() - 1] / 2);
    let tables = tables.on(x.device(), half, false)?;
    let [cos, sin] = tables.map(|table| table.narrow(0, first, seq)?.to_dtype(x.dtype()));
    let (cos, sin) = (cos?, sin?);
    let (x1, x2) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let out1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let out2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
    Ok(Tensor::cat(&[out1, out2], D::Minus1)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    fn ramp(shape: (usize, usize), scale: f32) -> Tensor {
        let values: Vec<f32> = (0..shape.0 * shape.1).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * scale).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn max_diff(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn exp_is_within_two_ulps() {
        let worst = (-8000..8000)
            .map(|i| i as f32 / 100.0)
            .map(|x| ((exp(x) as f64 - (x as f64).exp()) / (x as f64).exp()).abs())
            .fold(0.0, f64::max);
        assert!(worst < 2.5e-7, "{worst}");
    }

    #[test]
    fn causal_softmax_equals_masked_softmax_and_rows_repeat_per_head() {
        let scores = ramp((10, 5), 3.0); // two heads of five queries over five keys
        let fused = causal_softmax(&scores, 0.5, 5, 0, Some(3), None).unwrap();
        let wide = causal_softmax(&scores.to_dtype(DType::F64).unwrap(), 0.5, 5, 0, Some(3), None).unwrap();
        assert!(max_diff(&fused, &wide.to_dtype(DType::F32).unwrap()) < 1e-6);
        let rows = fused.to_vec2::<f32>().unwrap();
        assert_eq!(rows[0], [1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(rows[9][..2], [0.0, 0.0], "a window of three keys");
    }

    #[test]
    fn sinks_take_their_share_of_each_heads_rows() {
        let scores = ramp((10, 5), 3.0); // two heads of five queries over five keys
        let sinks = Tensor::new(&[1f32, -2.0], &Device::Cpu).unwrap();
        let fused = causal_softmax(&scores, 0.5, 5, 0, Some(3), Some(&sinks)).unwrap();
        let wide = causal_softmax(&scores.to_dtype(DType::F64).unwrap(), 0.5, 5, 0, Some(3), Some(&sinks)).unwrap();
        assert!(max_diff(&fused, &wide) < 1e-6);
        let first = (scores.to_vec2::<f32>().unwrap()[5][0] * 0.5).exp();
        let rows = fused.to_vec2::<f32>().unwrap();
        assert!((rows[5][0] - first / (first + (-2f32).exp())).abs() < 1e-6, "the second head's first query: {rows:?}");
    }

    /// Gradient of `sum(f(x) * ramp)` by autograd against central differences.
    fn check_gradient(x: Tensor, f: impl Fn(&Tensor) -> Tensor) {
        let var = Var::from_tensor(&x).unwrap();
        let loss = |x: &Tensor| {
            let y = f(x);
            let dims = y.dims2().unwrap();
            (y * ramp(dims, 1.0)).unwrap().sum_all().unwrap()
        };
        let grads = loss(var.as_tensor()).backward().unwrap();
        let grad = grads.get(&var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for i in (0..values.len()).step_by(7) {
            let at = |delta: f32| {
                let mut moved = values.clone();
                moved[i] += delta;
                let x = Tensor::from_vec(moved, x.shape(), &Device::Cpu).unwrap();
                loss(&x).to_scalar::<f32>().unwrap() as f64
            };
            let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((numeric - grad[i] as f64).abs() < 2e-3 * (1.0 + numeric.abs()), "{i}: {numeric} {}", grad[i]);
        }
    }

    #[test]
    fn gradients_equal_finite_differences() {
        check_gradient(ramp((6, 6), 1.0), |x| causal_softmax(x, 0.7, 6, 0, None, None).unwrap());
        let sinks = || Tensor::new(&[0.3f32, -0.4], &Device::Cpu).unwrap();
        check_gradient(ramp((6, 3), 1.0), |x| causal_softmax(x, 0.7, 3, 0, None, Some(&sinks())).unwrap());
        check_gradient(sinks().reshape((1, 2)).unwrap(), |sinks| {
            let sinks = sinks.flatten_all().unwrap();
            causal_softmax(&ramp((6, 3), 1.0), 0.7, 3, 0, None, Some(&sinks)).unwrap()
        });
        check_gradient(ramp((5, 8), 2.0), |x| swiglu(x, &ramp((5, 8), 0.5)).unwrap());
        check_gradient(ramp((5, 8), 2.0), |x| swiglu(&ramp((5, 8), 0.5), x).unwrap());
        check_gradient(ramp((5, 8), 2.0), |x| rms_norm(x, &ramp((1, 8), 0.5).flatten_all().unwrap(), 1e-5).unwrap());
        let table = |f: fn(f32) -> f32| (0..5 * 4).map(|i| f(i as f32)).collect::<Vec<_>>();
        let tables = Rope::of(table(f32::cos), table(f32::sin));
        check_gradient(ramp((5, 8), 1.0), |x| rope(x, &tables, 0).unwrap());
        let x = ramp((5, 8), 1.0);
        let wide = rope(&x.to_dtype(DType::F64).unwrap(), &tables, 0).unwrap().to_dtype(DType::F32).unwrap();
        assert!(max_diff(&wide, &rope(&x, &tables, 0).unwrap()) < 1e-6);
    }
}
