//! Images as text: 16 bytes a line behind their offset, zeros left out, so that a reproducer can be read and reviewed.

use std::fmt::Write as _;

/// An input: what is asked of which image, with which choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The target's name.
    pub target: String,
    /// Seed of the choices that the target makes.
    pub choices: u64,
    /// The image.
    pub bytes: Vec<u8>,
}

impl Input {
    /// As text.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "target {}\nchoices {}\nlength {}\n",
            self.target,
            self.choices,
            self.bytes.len()
        );
        let mut last: &[u8] = &[];
        let mut skipped = false;
        for (row, line) in self.bytes.chunks(16).enumerate() {
            if line.iter().all(|byte| *byte == 0) {
                (last, skipped) = (&[], false);
            } else if line == last {
                if !skipped {
                    text.push_str("*\n");
                }
                skipped = true;
            } else {
                let _ = write!(text, "{:x} ", row * 16);
                line.iter().for_each(|byte| {
                    let _ = write!(text, "{byte:02x}");
                });
                // Where the row of equal lines ends is the next line, or zeros: `end` says it for those.
                text.push('\n');
                (last, skipped) = (line, false);
            }
            let next = self.bytes.get((row + 1) * 16..).unwrap_or_default();
            if skipped && (next.len() < 16 || next[..16] != *last) {
                let _ = writeln!(text, "end {:x}", (row + 1) * 16);
            }
        }
        text
    }

    /// From text.
    ///
    /// # Panics
    /// If it is none of [`Input::to_text`].
    pub fn from_text(text: &str) -> Self {
        let mut input = Self {
            target: String::new(),
            choices: 0,
            bytes: Vec::new(),
        };
        let mut last = (0, Vec::new());
        for line in text.lines().filter(|line| !line.starts_with('#') && *line != "*") {
            let (word, rest) = line.split_once(' ').unwrap();
            match word {
                "target" => input.target = rest.into(),
                "choices" => input.choices = rest.parse().unwrap(),
                "length" => input.bytes.resize(rest.parse().unwrap(), 0),
                "end" => {
                    let end = usize::from_str_radix(rest, 16).unwrap().min(input.bytes.len());
                    for at in last.0..end {
                        input.bytes[at] = last.1[(at - last.0) % 16];
                    }
                }
                _ => {
                    let at = usize::from_str_radix(word, 16).unwrap();
                    let bytes: Vec<u8> = (0..rest.len() / 2)
                        .map(|i| u8::from_str_radix(&rest[2 * i..2 * i + 2], 16).unwrap())
                        .collect();
                    input.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
                    last = (at, bytes);
                }
            }
        }
        input
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeds;

    #[test]
    fn a_text_is_the_image_again() {
        for number in 0..seeds::COUNT {
            let mut bytes = seeds::image(number);
            bytes.extend([7; 5]);
            let input = Input {
                target: "read".into(),
                choices: 5,
                bytes,
            };
            assert!(Input::from_text(&input.to_text()) == input, "seed {number}");
        }
    }
}
