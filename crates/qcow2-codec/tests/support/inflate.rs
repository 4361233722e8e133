//! A slow inflate written from RFC 1951 alone. It exists to say how far back a stream reaches, which no library tells.

pub struct Inflated {
    pub bytes: Vec<u8>,
    pub max_distance: usize,
    pub blocks: usize,
}

/// Panics on a stream that is not deflate: the tests give it only the output of our own encoder.
pub fn inflate(input: &[u8]) -> Inflated {
    let mut bits = Bits { input, at: 0 };
    let mut out = Inflated {
        bytes: Vec::new(),
        max_distance: 0,
        blocks: 0,
    };
    loop {
        let last = bits.take(1) == 1;
        out.blocks += 1;
        match bits.take(2) {
            0 => stored(&mut bits, &mut out),
            1 => compressed(&mut bits, &mut out, &fixed()),
            2 => {
                let codes = dynamic(&mut bits);
                compressed(&mut bits, &mut out, &codes);
            }
            _ => panic!("block type 3"),
        }
        if last {
            return out;
        }
    }
}

struct Bits<'a> {
    input: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: usize) -> usize {
        let mut value = 0;
        for shift in 0..count {
            value |= usize::from(self.input[self.at / 8] >> (self.at % 8) & 1) << shift;
            self.at += 1;
        }
        value
    }
}

/// A canonical Huffman code: how many symbols have each length, and the symbols in order.
struct Code {
    counts: [usize; 16],
    symbols: Vec<usize>,
}

impl Code {
    fn new(lengths: &[usize]) -> Self {
        let mut counts = [0; 16];
        for &length in lengths {
            counts[length] += 1;
        }
        counts[0] = 0;
        let mut symbols: Vec<usize> = (0..lengths.len()).filter(|&symbol| lengths[symbol] > 0).collect();
        symbols.sort_by_key(|&symbol| (lengths[symbol], symbol));
        Self { counts, symbols }
    }

    fn read(&self, bits: &mut Bits<'_>) -> usize {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for count in &self.counts[1..] {
            code |= bits.take(1);
            if code < first + count {
                return self.symbols[index + code - first];
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        panic!("no such code");
    }
}

fn fixed() -> (Code, Code) {
    let lengths: Vec<usize> = (0..288)
        .map(|symbol| match symbol {
            0..=143 => 8,
            144..=255 => 9,
            256..=279 => 7,
            _ => 8,
        })
        .collect();
    (Code::new(&lengths), Code::new(&[5; 30]))
}

fn dynamic(bits: &mut Bits<'_>) -> (Code, Code) {
    const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    let (literals, distances, lengths) = (bits.take(5) + 257, bits.take(5) + 1, bits.take(4) + 4);
    let mut meta = [0; 19];
    for &at in &ORDER[..lengths] {
        meta[at] = bits.take(3);
    }
    let meta = Code::new(&meta);
    let mut lengths = Vec::new();
    while lengths.len() < literals + distances {
        let (value, times) = match meta.read(bits) {
            16 => (*lengths.last().unwrap(), 3 + bits.take(2)),
            17 => (0, 3 + bits.take(3)),
            18 => (0, 11 + bits.take(7)),
            length => (length, 1),
        };
        lengths.extend(std::iter::repeat_n(value, times));
    }
    assert_eq!(lengths.len(), literals + distances);
    (Code::new(&lengths[..literals]), Code::new(&lengths[literals..]))
}

fn stored(bits: &mut Bits<'_>, out: &mut Inflated) {
    bits.at = bits.at.next_multiple_of(8);
    let len = bits.take(16);
    assert_eq!(bits.take(16), len ^ 0xFFFF);
    let start = bits.at / 8;
    out.bytes.extend_from_slice(&bits.input[start..start + len]);
    bits.at += len * 8;
}

fn compressed(bits: &mut Bits<'_>, out: &mut Inflated, (literals, distances): &(Code, Code)) {
    loop {
        match literals.read(bits) {
            256 => return,
            literal @ 0..=255 => out.bytes.push(u8::try_from(literal).unwrap()),
            symbol => {
                let length = length(symbol, bits);
                let distance = distance(distances.read(bits), bits);
                assert!(distance <= out.bytes.len(), "a match before the start");
                out.max_distance = out.max_distance.max(distance);
                for _ in 0..length {
                    out.bytes.push(out.bytes[out.bytes.len() - distance]);
                }
            }
        }
    }
}

fn length(symbol: usize, bits: &mut Bits<'_>) -> usize {
    match symbol {
        257..=264 => symbol - 254,
        285 => 258,
        _ => {
            let extra = (symbol - 261) / 4;
            3 + ((4 + (symbol - 265) % 4) << extra) + bits.take(extra)
        }
    }
}

fn distance(symbol: usize, bits: &mut Bits<'_>) -> usize {
    if symbol < 4 {
        return symbol + 1;
    }
    let extra = symbol / 2 - 1;
    1 + ((2 + symbol % 2) << extra) + bits.take(extra)
}
