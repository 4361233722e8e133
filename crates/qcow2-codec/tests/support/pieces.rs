//! The decoder that a 4 KiB window has to suffice for.

use flate2::{Decompress, FlushDecompress, Status};

/// C zlib with a 12-bit window, fed and emptied in pieces, so that it can see no more history than its own window.
pub fn inflate_in_pieces(compressed: &[u8]) -> Option<Vec<u8>> {
    let mut state = Decompress::new_with_window_bits(false, 12);
    let mut out = Vec::new();
    let mut piece = [0; 999];
    let mut fed = 0;
    loop {
        let (read, written) = (state.total_in(), state.total_out());
        let end = (fed + 1000).min(compressed.len());
        let status = state
            .decompress(&compressed[fed..end], &mut piece, FlushDecompress::None)
            .ok()?;
        let produced = usize::try_from(state.total_out() - written).unwrap();
        out.extend_from_slice(&piece[..produced]);
        fed += usize::try_from(state.total_in() - read).unwrap();
        if status == Status::StreamEnd {
            return Some(out);
        }
        assert!(produced > 0 || state.total_in() > read, "no progress");
    }
}
