//! The head of a zstd frame, as far as it has to be judged before the library may look at it (RFC 8878, 3.1.1 and 3.1.2).

use crate::{CodecError, Compression};

const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// Skippable frames have this magic number with any low four bits.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;

const SINGLE_SEGMENT: u8 = 0x20;
const DICTIONARY_ID_SIZE: u8 = 0x03;

/// The largest window that is taken. What zstd itself, and so QEMU, takes without being told otherwise. It is no amount of
/// memory here: frames are decoded straight into the cluster, which is their window.
pub(super) const MAX_WINDOW_LOG: u32 = 27;

pub(super) enum Frame {
    /// Holds data.
    Data,
    /// Holds nothing for us.
    Skippable,
}

/// What stands at the start of `input`.
pub(super) fn judge(input: &[u8]) -> Result<Frame, CodecError> {
    let magic = *input.first_chunk::<4>().ok_or(CUT)?;
    if u32::from_le_bytes(magic) & !0xF == SKIPPABLE_MAGIC {
        return Ok(Frame::Skippable);
    }
    if magic != MAGIC {
        return Err(corrupt("no zstd frame"));
    }
    let descriptor = *input.get(4).ok_or(CUT)?;
    let mut at = 5;
    // A single segment has no window of its own: its content is the window, and its size is bounded by the output.
    if descriptor & SINGLE_SEGMENT == 0 {
        check_window(*input.get(at).ok_or(CUT)?)?;
        at += 1;
    }
    check_dictionary(input.get(at..).ok_or(CUT)?, descriptor)?;
    Ok(Frame::Data)
}

/// `descriptor`: five bits of exponent, three of mantissa in eighths; the smallest window is 2^10.
fn check_window(descriptor: u8) -> Result<(), CodecError> {
    let exponent = 10 + u32::from(descriptor >> 3);
    let log = if descriptor & 7 == 0 { exponent } else { exponent + 1 };
    if log > MAX_WINDOW_LOG {
        return Err(CodecError::Window {
            log,
            max: MAX_WINDOW_LOG,
        });
    }
    Ok(())
}

fn check_dictionary(field: &[u8], descriptor: u8) -> Result<(), CodecError> {
    let id = match descriptor & DICTIONARY_ID_SIZE {
        0 => 0,
        1 => u32::from(*field.first().ok_or(CUT)?),
        2 => u32::from(u16::from_le_bytes(*field.first_chunk().ok_or(CUT)?)),
        _ => u32::from_le_bytes(*field.first_chunk().ok_or(CUT)?),
    };
    // Id 0 is "none, or not said".
    if id == 0 {
        Ok(())
    } else {
        Err(CodecError::Dictionary { id })
    }
}

const CUT: CodecError = corrupt("the input ends inside a frame header");

const fn corrupt(reason: &'static str) -> CodecError {
    CodecError::Corrupt {
        compression: Compression::Zstd,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(descriptor: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(descriptor);
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn windows_up_to_2_to_the_27_are_taken_and_no_larger() {
        assert!(judge(&head(0, &[17 << 3])).is_ok());
        assert_eq!(
            judge(&head(0, &[17 << 3 | 1])).err(),
            Some(CodecError::Window { log: 28, max: 27 })
        );
        assert_eq!(
            judge(&head(0, &[18 << 3])).err(),
            Some(CodecError::Window { log: 28, max: 27 })
        );
        assert_eq!(
            judge(&head(0, &[31 << 3 | 7])).err(),
            Some(CodecError::Window { log: 42, max: 27 })
        );
    }

    #[test]
    fn a_dictionary_is_refused_by_its_id_in_every_width() {
        for (descriptor, field, id) in [
            (0x21, vec![7], 7),
            (0x22, vec![1, 2], 0x201),
            (0x23, vec![1, 2, 3, 4], 0x0403_0201),
        ] {
            assert_eq!(
                judge(&head(descriptor, &field)).err(),
                Some(CodecError::Dictionary { id })
            );
            let none = vec![0; field.len()];
            assert!(judge(&head(descriptor, &none)).is_ok());
        }
    }

    #[test]
    fn every_cut_of_a_header_is_an_error() {
        let whole = head(0x03, &[17 << 3, 0, 0, 0, 0]);
        assert!(judge(&whole).is_ok());
        for len in 0..whole.len() {
            assert!(judge(&whole[..len]).is_err(), "{len}");
        }
    }
}
