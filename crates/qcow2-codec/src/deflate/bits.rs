//! Bits into bytes, lowest first.

/// Writes into a buffer whose length was known to suffice, with 8 bytes to spare; what would lie behind it is dropped.
pub(super) struct Bits<'a> {
    out: &'a mut [u8],
    at: usize,
    pending: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    /// Goes on behind `written` bits of `out`.
    pub(super) fn new(out: &'a mut [u8], written: usize) -> Self {
        let at = written >> 3;
        let count = u32::try_from(written & 7).unwrap_or(0);
        let pending = out.get(at).map_or(0, |&byte| u64::from(byte) & ((1 << count) - 1));
        Self {
            out,
            at,
            pending,
            count,
        }
    }

    /// Adds bits; `value` has none above `count`. Between two flushes there is room for 57 - 7 of them.
    #[inline(always)]
    pub(super) fn add(&mut self, value: u64, count: u32) {
        self.pending |= value << (self.count & 63);
        self.count = self.count.wrapping_add(count);
    }

    /// Writes the whole bytes and keeps the rest.
    #[inline(always)]
    pub(super) fn flush(&mut self) {
        if let Some(bytes) = self.out.get_mut(self.at..self.at.wrapping_add(8)) {
            bytes.copy_from_slice(&self.pending.to_le_bytes());
        }
        self.at = self.at.wrapping_add((self.count >> 3) as usize);
        self.pending >>= self.count & 56;
        self.count &= 7;
    }

    /// Adds bits one group at a time.
    pub(super) fn put(&mut self, value: u64, count: u32) {
        self.add(value, count);
        self.flush();
    }

    /// Goes to the next whole byte and copies `bytes`.
    pub(super) fn copy(&mut self, bytes: &[u8]) {
        self.count = self.count.next_multiple_of(8);
        self.flush();
        if let Some(out) = self.out.get_mut(self.at..self.at.wrapping_add(bytes.len())) {
            out.copy_from_slice(bytes);
        }
        self.at = self.at.wrapping_add(bytes.len());
    }

    /// Bits written, those from before included.
    pub(super) fn written(&self) -> usize {
        self.at * 8 + self.count as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_follow_each_other_lowest_first() {
        let mut out = [0xFF; 32];
        let mut bits = Bits::new(&mut out, 0);
        for (value, count) in [(1, 1), (0, 2), (0b1011, 4), (0x1234, 16), (0, 0), (0x7F, 7)] {
            bits.put(value, count);
        }
        assert_eq!(bits.written(), 30);
        assert_eq!(
            u32::from_le_bytes(out[..4].try_into().unwrap()) & 0x3FFF_FFFF,
            1 | 0b1011 << 3 | 0x1234 << 7 | 0x7F << 23
        );
    }

    #[test]
    fn writing_goes_on_in_the_middle_of_a_byte() {
        let mut out = [0; 32];
        Bits::new(&mut out, 0).put(0b101, 3);
        Bits::new(&mut out, 3).put(0b11, 2);
        assert_eq!(out[0], 0b11101);
    }

    #[test]
    fn copied_bytes_begin_at_a_whole_byte() {
        let mut out = [0; 32];
        let mut bits = Bits::new(&mut out, 0);
        bits.put(1, 1);
        bits.copy(&[7, 8]);
        bits.put(3, 2);
        assert_eq!(bits.written(), 26);
        assert_eq!(out[..4], [1, 7, 8, 3]);
    }

    #[test]
    fn what_does_not_fit_is_dropped() {
        let mut out = [0; 9];
        let mut bits = Bits::new(&mut out, 0);
        for _ in 0..100 {
            bits.put(0xFFFF_FFFF, 32);
            bits.copy(&[1, 2, 3]);
        }
        assert_eq!(bits.written(), 5600);
    }
}
