//! Which cluster is likely to be read next.

/// Readers of one disk that are followed at the same time.
const STREAMS: usize = 4;
/// How far from where a reader is it may go on, in clusters.
const NEAR: u64 = 64;
/// Steps of one length in a row before anything is foretold. Positions at random have two now and then.
const SURE: u32 = 2;

/// Readers that go through a disk in steps of one length. Positions are guest offsets of clusters.
#[derive(Debug, Default)]
pub(super) struct Streams {
    streams: [Stream; STREAMS],
    turn: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    last: u64,
    step: i64,
    /// Steps of that length in a row.
    steps: u32,
    /// Steps from `last` on that were foretold.
    ahead: u32,
}

impl Streams {
    /// A cluster of `size` bytes at `at` is read. Gives `foretell` the positions of those that come next, at most `most` ahead of this one and each
    /// only once, as long as it says that it took them.
    pub(super) fn notice(&mut self, at: u64, size: u64, most: u32, mut foretell: impl FnMut(u64) -> bool) {
        if self.streams.iter().any(|stream| stream.steps > 0 && stream.last == at) {
            return;
        }
        let expected = |stream: &Stream| stream.steps > 0 && stream.last.checked_add_signed(stream.step) == Some(at);
        let near = |stream: &Stream| stream.steps > 0 && stream.last.abs_diff(at) <= size.saturating_mul(NEAR);
        let found = self.streams.iter().position(expected);
        let found = found.or_else(|| self.streams.iter().position(near));
        let index = found.unwrap_or(self.turn);
        self.turn = (if found.is_none() { self.turn + 1 } else { self.turn }) % STREAMS;
        let Some(stream) = self.streams.get_mut(index) else {
            return;
        };
        let moved = i128::from(at) - i128::from(stream.last);
        if found.is_some() && moved == i128::from(stream.step) {
            stream.steps = stream.steps.saturating_add(1);
            stream.ahead = stream.ahead.saturating_sub(1);
        } else {
            stream.step = i64::try_from(moved).unwrap_or(0);
            (stream.steps, stream.ahead) = (1, 0);
        }
        stream.last = at;
        if stream.steps <= SURE || stream.step == 0 {
            return;
        }
        // The longer it has gone on, the further.
        let most = most.min(1u32.checked_shl(stream.steps - SURE).unwrap_or(u32::MAX));
        while stream.ahead < most {
            let far = stream.step.checked_mul(i64::from(stream.ahead) + 1);
            let next = far.and_then(|far| at.checked_add_signed(far));
            if !next.is_some_and(&mut foretell) {
                break;
            }
            stream.ahead += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 64 << 10;

    fn foretold(streams: &mut Streams, positions: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut all = Vec::new();
        for at in positions {
            streams.notice(at, SIZE, 8, |next| {
                all.push(next);
                true
            });
        }
        all
    }

    #[test]
    fn what_comes_next_in_steps_of_one_length_is_foretold_once_and_not_further_than_asked() {
        for step in [SIZE as i64, 5 * SIZE as i64, -3 * SIZE as i64] {
            let place = |n: i64| (1000 * SIZE as i64 + n * step).cast_unsigned();
            // Each cluster is read in sixteen parts.
            let reads = (0..40).flat_map(|n| [place(n); 16]);
            let all = foretold(&mut Streams::default(), reads);
            let first = (0..40).find(|&n| place(n) == all[0]).unwrap();
            assert!((3..=4).contains(&first), "begins soon: {first}");
            let expected: Vec<u64> = (first..48).map(place).collect();
            assert_eq!(all, expected);
        }
    }

    #[test]
    fn two_readers_at_once_are_followed_both() {
        let reads = (0..20).flat_map(|n| [n * SIZE, (5000 + 2 * n) * SIZE]);
        let all = foretold(&mut Streams::default(), reads);
        assert!(all.contains(&(19 * SIZE)) && all.contains(&(5038 * SIZE)), "{all:?}");
    }

    #[test]
    fn nothing_is_foretold_of_reads_here_and_there() {
        let mut number = 7u64;
        let reads = std::iter::repeat_with(|| {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (number >> 40) % 256 * SIZE
        });
        let all = foretold(&mut Streams::default(), reads.take(1000));
        assert!(all.len() < 50, "{}", all.len());
    }

    #[test]
    fn what_is_refused_is_foretold_again_and_ends_are_not_passed() {
        let mut streams = Streams::default();
        foretold(&mut streams, (0..10).map(|n| n * SIZE));
        let mut asked = Vec::new();
        for at in [10, 11] {
            streams.notice(at * SIZE, SIZE, 100, |next| {
                asked.push(next / SIZE);
                false
            });
        }
        assert_eq!(asked[0], asked[1], "{asked:?}");
        for (from, step) in [(3 * SIZE as i64, -(SIZE as i64)), (i64::MAX - 9, 3)] {
            let reads = (0..4).map(|n| (from + n * step).cast_unsigned());
            let below = foretold(&mut Streams::default(), reads);
            assert!(below.iter().all(|&at| at != u64::MAX), "{below:?}");
        }
    }
}
