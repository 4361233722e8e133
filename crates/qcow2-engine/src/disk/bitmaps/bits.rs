//! The bits of one bitmap in memory: chunks, of which only those that are neither empty nor full take space.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bits of a chunk: 512 bytes, so that a cluster of bitmap data is whole chunks.
pub(super) const CHUNK: u64 = 4096;
const WORDS: usize = 64;
/// Memory that a chunk takes with its place in the map, about, in bytes.
const PLACE: u64 = 40;
const MIXED: u64 = PLACE + 8 * WORDS as u64;

#[derive(Debug)]
enum Chunk {
    Full,
    /// So many of its bits are set.
    Mixed(Box<[u64; WORDS]>, u64),
}

/// What a stretch of bits is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Zeros,
    Ones,
    Mixed,
}

/// So many bits, numbered from 0.
#[derive(Debug, Default)]
pub(super) struct Bits {
    chunks: BTreeMap<u64, Chunk>,
    length: u64,
    set: u64,
    mixed: u64,
}

impl Bits {
    /// `length` bits, none of them set.
    pub(super) fn new(length: u64) -> Self {
        Self {
            length,
            ..Self::default()
        }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// How many are set.
    pub(super) fn count(&self) -> u64 {
        self.set
    }

    /// Bytes of memory, about.
    pub(super) fn memory(&self) -> u64 {
        self.chunks.len() as u64 * PLACE + self.mixed * (MIXED - PLACE)
    }

    /// Sets a range, as far as there are bits. `changed` is told the chunks in which any was not set.
    pub(super) fn insert(&mut self, range: Range<u64>, mut changed: impl FnMut(u64)) {
        let end = range.end.min(self.length);
        let mut at = range.start;
        while at < end {
            let index = at / CHUNK;
            let begin = index * CHUNK;
            let to = (begin + CHUNK).min(end);
            if self.insert_in(index, at - begin..to - begin) {
                changed(index);
            }
            at = to;
        }
    }

    /// Whether that changed anything.
    fn insert_in(&mut self, index: u64, range: Range<u64>) -> bool {
        let before = match self.chunks.get_mut(&index) {
            Some(Chunk::Full) => return false,
            _ if range == (0..CHUNK) => match self.chunks.insert(index, Chunk::Full) {
                Some(Chunk::Mixed(_, count)) => {
                    self.mixed -= 1;
                    count
                }
                _ => 0,
            },
            Some(Chunk::Mixed(words, count)) => {
                let before = *count;
                *count += set(words, &range);
                if *count == CHUNK {
                    self.chunks.insert(index, Chunk::Full);
                    self.mixed -= 1;
                    self.set += CHUNK - before;
                    return true;
                }
                self.set += *count - before;
                return *count != before;
            }
            None => {
                let mut words = Box::new([0; WORDS]);
                let count = set(&mut words, &range);
                self.chunks.insert(index, Chunk::Mixed(words, count));
                self.mixed += 1;
                self.set += count;
                return count > 0;
            }
        };
        self.set += CHUNK - before;
        true
    }

    /// Sets a chunk to what bitmap data says; bits behind the end do not count.
    pub(super) fn load(&mut self, index: u64, data: &[u8]) {
        let mut words = Box::new([0; WORDS]);
        for (word, bytes) in words.iter_mut().zip(data.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let room = self.length.saturating_sub(index * CHUNK).min(CHUNK);
        for (number, word) in (0u64..).zip(words.iter_mut()) {
            *word &= below(room.saturating_sub(number * 64));
        }
        let count = words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        let chunk = match count {
            0 => return,
            CHUNK => Chunk::Full,
            _ => {
                self.mixed += 1;
                Chunk::Mixed(words, count)
            }
        };
        self.chunks.insert(index, chunk);
        self.set += count;
    }

    /// Clears all; `changed` is told the chunks in which any was set.
    pub(super) fn clear(&mut self, changed: impl FnMut(u64)) {
        self.chunks.keys().copied().for_each(changed);
        *self = Self::new(self.length);
    }

    /// There are `length` bits from now on; new ones are not set.
    pub(super) fn resize(&mut self, length: u64) {
        self.length = length;
        for (index, chunk) in self.chunks.split_off(&(length / CHUNK)) {
            let (words, count) = match chunk {
                Chunk::Full => (Box::new([u64::MAX; WORDS]), CHUNK),
                Chunk::Mixed(words, count) => {
                    self.mixed -= 1;
                    (words, count)
                }
            };
            self.set -= count;
            let mut data = [0; WORDS * 8];
            fill(&words, &mut data);
            self.load(index, &data);
        }
    }

    /// What the chunks of a range are; they are put into `data` if they are mixed. Bits behind the end are no ones.
    pub(super) fn piece(&self, chunks: Range<u64>, data: &mut [u8]) -> Piece {
        let count = chunks.end.saturating_sub(chunks.start);
        let (mut full, mut any) = (0, false);
        for (_, chunk) in self.chunks.range(chunks.clone()) {
            any = true;
            full += u64::from(matches!(chunk, Chunk::Full));
        }
        match (any, full == count) {
            (false, _) => return Piece::Zeros,
            (true, true) => return Piece::Ones,
            (true, false) => data.fill(0),
        }
        for (index, chunk) in self.chunks.range(chunks.clone()) {
            let at = usize::try_from((index - chunks.start) * 512).unwrap_or(usize::MAX);
            let Some(place) = data.get_mut(at..).and_then(|rest| rest.get_mut(..512)) else {
                break;
            };
            match chunk {
                Chunk::Full => place.fill(0xff),
                Chunk::Mixed(words, _) => fill(words, place),
            }
        }
        Piece::Mixed
    }

    /// The first run of set bits that ends behind `from`, without what is before.
    pub(super) fn run(&self, from: u64) -> Option<Range<u64>> {
        let start = self.next(from)?;
        let mut end = start;
        let first = start / CHUNK;
        for (number, (&index, chunk)) in (first..).zip(self.chunks.range(first..)) {
            if index != number {
                break;
            }
            match chunk {
                Chunk::Full => end = (index + 1) * CHUNK,
                Chunk::Mixed(words, _) => {
                    let begin = end.max(index * CHUNK) - index * CHUNK;
                    let clear = find(words, begin, |word| !word);
                    end = index * CHUNK + clear.unwrap_or(CHUNK);
                    if clear.is_some() {
                        break;
                    }
                }
            }
        }
        Some(start..end.min(self.length))
    }

    /// The first set bit from `from` on.
    fn next(&self, from: u64) -> Option<u64> {
        self.chunks.range(from / CHUNK..).find_map(|(&index, chunk)| {
            let begin = from.saturating_sub(index * CHUNK);
            match chunk {
                Chunk::Full => Some(index * CHUNK + begin),
                Chunk::Mixed(words, _) => find(words, begin, |word| word).map(|bit| index * CHUNK + bit),
            }
        })
    }

    /// Whether a bit is set.
    #[cfg(test)]
    fn has(&self, bit: u64) -> bool {
        self.next(bit) == Some(bit)
    }
}

/// The lowest `count` bits.
fn below(count: u64) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// Sets bits of a chunk; how many of them were not set.
fn set(words: &mut [u64; WORDS], range: &Range<u64>) -> u64 {
    let mut count = 0;
    let last = range.end.div_ceil(64);
    for (number, word) in (0..last).zip(words.iter_mut()).skip((range.start / 64) as usize) {
        let base = number * 64;
        let mask = below(range.end - base) & !below(range.start.saturating_sub(base));
        count += u64::from((mask & !*word).count_ones());
        *word |= mask;
    }
    count
}

/// The first bit from `from` on that is one after `view`.
fn find(words: &[u64; WORDS], from: u64, view: impl Fn(u64) -> u64) -> Option<u64> {
    let first = from / 64;
    for (number, word) in (0u64..).zip(words).skip(first as usize) {
        let mut word = view(*word);
        if number == first {
            word &= !below(from % 64);
        }
        if word != 0 {
            return Some(number * 64 + u64::from(word.trailing_zeros()));
        }
    }
    None
}

fn fill(words: &[u64; WORDS], data: &mut [u8]) {
    for (place, word) in data.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "small numbers")]
mod tests {
    use super::*;

    /// Numbers that a seed repeats.
    fn random(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *state >> 20
    }

    fn same(bits: &Bits, model: &[bool]) {
        assert_eq!(bits.length(), model.len() as u64);
        assert_eq!(bits.count(), model.iter().filter(|&&bit| bit).count() as u64);
        let (mut at, mut seen) = (0, vec![false; model.len()]);
        while let Some(run) = bits.run(at) {
            assert!(run.start < run.end && run.start >= at);
            seen[run.start as usize..run.end as usize].fill(true);
            at = run.end;
            assert!(!bits.has(at), "a run ends where a bit is not set");
        }
        assert_eq!(seen, model);
    }

    #[test]
    fn bits_are_what_an_array_of_them_says() {
        let mut seed = 7;
        let mut model = vec![false; 5 * 4096 + 17];
        let mut bits = Bits::new(model.len() as u64);
        for round in 0..600 {
            let from = random(&mut seed) % model.len() as u64;
            let length = random(&mut seed) % [3, 70, 4100, 9000][round % 4];
            let to = (from + length).min(model.len() as u64);
            let mut changed = Vec::new();
            bits.insert(from..from + length, |chunk| changed.push(chunk));
            let expected: Vec<u64> = (0..6)
                .filter(|chunk| (from..to).any(|bit| bit / CHUNK == *chunk && !model[bit as usize]))
                .collect();
            assert_eq!(changed, expected);
            model[from as usize..to as usize].fill(true);
            match random(&mut seed) % 12 {
                0 => {
                    let length = random(&mut seed) % (6 * 4096);
                    model.resize(length as usize, false);
                    bits.resize(length);
                }
                1 => {
                    bits.clear(|_| ());
                    model.fill(false);
                }
                2 => {
                    let mut copy = Bits::new(bits.length());
                    for index in 0..6 {
                        let mut data = [0; 512];
                        match bits.piece(index..index + 1, &mut data) {
                            Piece::Zeros => {}
                            Piece::Ones => copy.load(index, &[0xff; 512]),
                            Piece::Mixed => copy.load(index, &data),
                        }
                    }
                    bits = copy;
                }
                _ => {}
            }
            if model.is_empty() {
                model.resize(4096, false);
                bits.resize(4096);
            }
            same(&bits, &model);
        }
    }

    #[test]
    fn what_is_empty_or_full_takes_no_space() {
        let mut bits = Bits::new(1 << 32);
        assert_eq!(bits.memory(), 0);
        bits.insert(0..CHUNK * 1000, |_| ());
        assert!(bits.memory() < 64_000, "{}", bits.memory());
        assert_eq!(bits.piece(0..1000, &mut []), Piece::Ones);
        assert_eq!(bits.piece(1000..2000, &mut []), Piece::Zeros);
    }

    #[test]
    fn bits_of_the_file_behind_the_end_do_not_count() {
        let mut bits = Bits::new(CHUNK + 3);
        bits.load(0, &[0xff; 512]);
        bits.load(1, &[0xff; 512]);
        assert_eq!((bits.count(), bits.run(0)), (CHUNK + 3, Some(0..CHUNK + 3)));
    }
}
