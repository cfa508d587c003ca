//! One decoder layer of the Llama family: attention and an MLP, with a tap on the input of every linear.

use super::config::{ModelConfig, QkNorm};
use super::linear::{Linear, Mlp, Tap, Wanted};
use super::mixture::Mixture;
use super::ops;
use super::rope::Rope;
use crate::error::Result;
use candle_core::Tensor;

/// Keys and values of the tokens before, for one layer: `(batch, kv_heads, past, head_dim)` each.
#[derive(Clone, Debug, Default)]
pub struct KvCache(Option<(Tensor, Tensor)>);

impl KvCache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |(keys, _)| keys.dims()[2])
    }

    /// Returns whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

/// Grouped-query attention.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) o: Linear,
    pub(crate) q_norm: Option<Tensor>, // (head_dim,) or (heads * head_dim,)
    pub(crate) k_norm: Option<Tensor>, // (head_dim,) or (kv_heads * head_dim,)
    pub(crate) sinks: Option<Tensor>,  // (heads,)
    pub(crate) window: Option<usize>,
}

impl Attention {
    fn forward(
        &self,
        config: &ModelConfig,
        rope: &Rope,
        x: &Tensor, // (batch, seq, hidden)
        cache: Option<&mut KvCache>,
        tap: &mut dyn Tap,
    ) -> Result<Tensor> {
        let (batch, seq, _) = x.dims3()?;
        let (heads, kv, dim) = (config.heads, config.kv_heads, config.head_dim);
        tap.input(&[&self.q, &self.k, &self.v], x)?;
        let project = |linear: &Linear, norm: Option<&Tensor>, heads: usize| -> Result<Tensor> {
            let mut y = linear.forward(x)?; // (batch, seq, heads * head_dim)
            if let (Some(QkNorm::Projection), Some(norm)) = (config.qk_norm, norm) {
                y = ops::rms_norm(&y, norm, config.rms_norm_eps)?;
            }
            if let Some(limit) = config.clip_qkv {
                y = y.clamp(-limit, limit)?;
            }
            let y = y.reshape((batch, seq, heads, dim))?.transpose(1, 2)?.contiguous()?; // (batch, heads, seq, head_dim)
            match (config.qk_norm, norm) {
                (Some(QkNorm::Head), Some(norm)) => ops::rms_norm(&y, norm, config.rms_norm_eps),
                _ => Ok(y),
            }
        };
        let mut q = project(&self.q, self.q_norm.as_ref(), heads)?;
        let mut k = project(&self.k, self.k_norm.as_ref(), kv)?;
        let mut v = project(&self.v, None, kv)?;
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        q = ops::rope(&q, rope, past)?;
        k = ops::rope(&k, rope, past)?;
        if let Some(cache) = cache {
            if let Some((keys, values)) = &cache.0 {
                k = Tensor::cat(&[keys, &k], 2)?;
                v = Tensor::cat(&[values, &v], 2)?;
            }
            cache.0 = Some((k.clone(), v.clone()));
        }
        // Scores of all queries are much memory, and half of them are of keys that are not seen.
        let together = if q.device().is_cpu() { seq } else { QUERIES };
        let y = attend([&q, &k, &v], together, self.window, self.sinks.as_ref())?;
        let y = y.transpose(1, 2)?.reshape((batch, seq, heads * dim))?;
        tap.input(&[&self.o], &y)?;
        self.o.forward(&y)
    }
}

/// Queries of which a GPU makes scores at a time.
const QUERIES: usize = 512;

/// Attention of `q (batch, heads, seq, head_dim)` over `k` and `v`, both `(batch, kv_heads, keys, head_dim)`; the last
/// query stands where the last key does. Computes `together` queries at a time.
fn attend([q, k, v]: [&Tensor; 3], together: usize, window: Option<usize>, sinks: Option<&Tensor>) -> Result<Tensor> {
    let ((batch, heads, seq, dim), (_, kv, keys, _)) = (q.dims4()?, k.dims4()?);
    let (group, past) = (heads / kv, keys - seq);
    // The query heads of one group stand below each other, so that keys and values are never repeated.
    let q = q.reshape((batch * kv, group, seq, dim))?;
    let k = k.reshape((batch * kv, keys, dim))?;
    let v = v.reshape((batch * kv, keys, dim))?;
    let scale = 1.0 / (dim as f64).sqrt();
    let mut pieces = Vec::new();
    for start in (0..seq).step_by(together.max(1)) {
        let count = together.min(seq - start);
        let seen = past + start + count;
        let q = q.narrow(2, start, count)?.reshape((batch * kv, group * count, dim))?;
        let (k, v) = (k.narrow(1, 0, seen)?, v.narrow(1, 0, seen)?);
        let scores = q.matmul(&k.t()?)?; // (batch * kv_heads, group * count, seen)
        let probs = ops::causal_softmax(&scores, scale, count, past + start, window, sinks)?.to_dtype(v.dtype())?;
        pieces.push(probs.matmul(&v)?.reshape((batch, heads, count, dim))?);
    }
    match pieces.as_slice() {
        [all] => Ok(all.clone()),
        pieces => Ok(Tensor::cat(pieces, 2)?),
    }
}

#[derive(Clone, Debug)]
pub(crate) enum FeedForward {
    Dense(Mlp),
    Mixture(Mixture),
}

/// One decoder layer with its weights.
#[derive(Clone, Debug)]
pub struct DecoderLayer {
    pub(crate) attention: Attention,
    pub(crate) feed_forward: FeedForward,
    pub(crate) attention_norm: Tensor,    // (hidden,)
    pub(crate) feed_forward_norm: Tensor, // (hidden,)
}

impl DecoderLayer {
    /// The prunable linears, in the order in which a token meets them. A router or a gate of a shared expert is not among
    /// them, nor are experts that are packed in MXFP4 (gpt-oss).
    pub fn linears(&self) -> Vec<&Linear> {
        let Attention { q, k, v, o, .. } = &self.attention;
        let mut linears = vec![q, k, v, o];
        match &self.feed_forward {
            FeedForward::Dense(mlp) => linears.extend(mlp.linears()),
            FeedForward::Mixture(mixture) => linears.extend(mixture.linears()),
        }
        linears
    }

    /// As [`DecoderLayer::linears`], to be changed.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let Attention { q, k, v, o, .. } = &mut self.attention;
        let mut linears = vec![q, k, v, o];
        match &mut self.feed_forward {
            FeedForward::Dense(mlp) => linears.extend(mlp.linears_mut()),
            FeedForward::Mixture(mixture) => linears.extend(mixture.linears_mut()),
        }
        linears
    }

    /// `x (batch, seq, hidden)` to the same shape, or to `None` when only the taps are wanted.
    pub(crate) fn run(
        &self,
        config: &ModelConfig,
        rope: &Rope,
        x: &Tensor,
        cache: Option<&mut KvCache>,
        tap: &mut dyn Tap,
        wanted: Wanted,
    ) -> Result<Option<Tensor>> {
        let normed = ops::rms_norm(x, &self.attention_norm, config.rms_norm_eps)?;
        let x = (x + self.attention.forward(config, rope, &normed, cache, tap)?)?;
        let normed = ops::rms_norm(&x, &self.feed_forward_norm, config.rms_norm_eps)?;
        let y = match &self.feed_forward {
            FeedForward::Dense(mlp) => mlp.forward(&normed, tap, wanted)?,
            FeedForward::Mixture(mixture) => mixture.forward(&normed, tap, wanted)?,
        };
        Ok(y.map(|y| x + y).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn attention_is_the_same_in_pieces() {
        let random = |shape: (usize, usize, usize, usize)| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let sinks = Tensor::new(&[0.5f32, -1.0, 2.0, 0.0], &Device::Cpu).unwrap();
        for (kv, seq, past, window, sinks) in
            [(4, 10, 0, None, None), (2, 9, 3, None, Some(&sinks)), (1, 7, 5, Some(4), None), (2, 1, 6, None, None)]
        {
            let (q, k, v) = (random((2, 4, seq, 8)), random((2, kv, past + seq, 8)), random((2, kv, past + seq, 8)));
            let whole = attend([&q, &k, &v], seq, window, sinks).unwrap();
            assert_eq!(whole.dims(), [2, 4, seq, 8]);
            for together in [1, 3, 4, 100] {
                let pieces = attend([&q, &k, &v], together, window, sinks).unwrap();
                let difference = (&whole - &pieces).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
                assert!(difference.to_scalar::<f32>().unwrap() < 1e-5, "{kv} {seq} {past} {window:?} {together}");
            }
            // As candle has it in other dtypes.
            let wide = [&q, &k, &v].map(|x| x.to_dtype(DType::F64).unwrap());
            let wide_sinks = sinks.map(|sinks| sinks.to_dtype(DType::F64).unwrap());
            let wide = attend([&wide[0], &wide[1], &wide[2]], 3, window, wide_sinks.as_ref()).unwrap();
            let wide = wide.to_dtype(DType::F32).unwrap();
            let difference = (&whole - &wide).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
            assert!(difference.to_scalar::<f32>().unwrap() < 1e-5, "{kv} {seq} {past} {window:?}");
        }
    }
}
