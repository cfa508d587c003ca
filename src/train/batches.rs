//! The order of the training windows: a function of seed and step alone, so that a resumed run needs no state of a
//! generator.

use crate::random::below;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::BTreeMap;

/// Windows of the training stream. An epoch cuts the stream at a random phase into windows that do not overlap, and takes
/// each once, in random order.
pub(super) struct Batches {
    stream: Vec<u32>,
    seqlen: usize,
    seed: u64,
    /// Starts of the windows, in order, of the epochs in use.
    epochs: BTreeMap<usize, Vec<usize>>,
}

impl Batches {
    /// `None` when the stream is shorter than one window and the token after it.
    pub(super) fn new(stream: Vec<u32>, seqlen: usize, seed: u64) -> Option<Self> {
        (stream.len() > seqlen).then_some(Batches { stream, seqlen, seed, epochs: BTreeMap::new() })
    }

    /// Windows per epoch: what is whole at every phase.
    fn per_epoch(&self) -> usize {
        ((self.stream.len() - 1) / self.seqlen).saturating_sub(1).max(1)
    }

    /// The windows of one step, `(batch, seqlen + 1)`: inputs and, one further, targets.
    pub(super) fn step(&mut self, step: usize, batch: usize) -> Vec<Vec<u32>> {
        let per_epoch = self.per_epoch();
        (step * batch..(step + 1) * batch)
            .map(|index| {
                let start = self.epoch(index / per_epoch)[index % per_epoch];
                self.stream[start..start + self.seqlen + 1].to_vec()
            })
            .collect()
    }

    fn epoch(&mut self, epoch: usize) -> &[usize] {
        // A step touches its own epoch and at most the following ones.
        self.epochs.retain(|&old, _| old + 1 >= epoch);
        let count = self.per_epoch();
        let (length, seqlen, seed) = (self.stream.len(), self.seqlen, self.seed);
        self.epochs.entry(epoch).or_insert_with(|| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            // Stream 0 made the weights.
            rng.set_stream(epoch as u64 + 1);
            let phase = below(&mut rng, (length - count * seqlen).min(seqlen));
            let mut starts: Vec<usize> = (0..count).map(|i| phase + i * seqlen).collect();
            for i in (1..count).rev() {
                starts.swap(i, below(&mut rng, i + 1));
            }
            starts
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Batches;

    #[test]
    fn an_epoch_takes_each_window_once_and_the_next_one_another_way() {
        let mut batches = Batches::new((0..1000).collect(), 9, 1).unwrap();
        let count = batches.per_epoch();
        assert_eq!(count, 110);
        let starts = |batches: &mut Batches, epoch: usize| -> Vec<u32> {
            (epoch * count..(epoch + 1) * count).map(|step| batches.step(step, 1)[0][0]).collect()
        };
        let (first, second) = (starts(&mut batches, 0), starts(&mut batches, 1));
        assert_ne!(first, second);
        for mut starts in [first.clone(), second] {
            starts.sort_unstable();
            assert!(starts.windows(2).all(|pair| pair[1] - pair[0] == 9), "{starts:?}");
        }
        // Steps are a function of their number: asked for out of order, in other batch sizes, they are the same.
        let mut again = Batches::new((0..1000).collect(), 9, 1).unwrap();
        let eleventh: Vec<u32> = again.step(1, 10).iter().map(|window| window[0]).collect();
        assert_eq!(eleventh, first[10..20]);
        assert_eq!(again.step(0, 1)[0], (first[0]..first[0] + 10).collect::<Vec<_>>());
    }

    #[test]
    fn the_smallest_stream_is_one_window() {
        assert!(Batches::new(vec![1; 8], 8, 0).is_none());
        let mut batches = Batches::new((0..9).collect(), 8, 0).unwrap();
        assert_eq!(batches.step(5, 2), [(0..9).collect::<Vec<_>>(), (0..9).collect()]);
    }
}
