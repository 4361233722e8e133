//! Telling a file system what will be written.

use std::fs::File;

use qcow2_format::HostOffset;

/// Sets the space of a range aside that is about to be written in full, if this file system writes faster then.
///
/// ext4 delays the choice of blocks, and pays for that with bookkeeping for every page that is written: with the space set aside, large writes
/// take about two thirds of the time, and what is synced later takes no longer. Others choose blocks otherwise (btrfs would even stop compressing
/// the range), so they are left alone. What cannot be had is met again by the write.
pub(super) fn expect(file: &File, offset: HostOffset, length: u64) {
    system::expect(file, offset, length);
}

#[cfg(target_os = "linux")]
mod system {
    use nix::fcntl::{FallocateFlags, fallocate};
    use nix::sys::statfs::{EXT4_SUPER_MAGIC, fstatfs};

    use super::{File, HostOffset};

    pub(super) fn expect(file: &File, offset: HostOffset, length: u64) {
        let (Ok(offset), Ok(length)) = (i64::try_from(offset.0), i64::try_from(length)) else {
            return;
        };
        // Asked each time: it costs a thousandth of what is about to be written.
        if fstatfs(file).is_ok_and(|system| system.filesystem_type() == EXT4_SUPER_MAGIC) {
            // The length stays: readers of a file that grows see no more than what is there.
            let _ = fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use super::{File, HostOffset};

    pub(super) fn expect(_: &File, _: HostOffset, _: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{FileStorage, Storage};

    #[test]
    fn a_range_that_is_expected_changes_neither_length_nor_bytes() {
        let path = std::env::temp_dir().join(format!("qcow2-expect-{}", std::process::id()));
        let storage = FileStorage::create_new(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        storage.write_at(HostOffset(0), b"begin").unwrap();
        storage.set_length(1 << 20).unwrap();
        for (offset, length) in [
            (0, 4096),
            (4096, 1 << 20),
            (8 << 20, 1 << 20),
            (u64::MAX, u64::MAX),
            (5, 0),
        ] {
            storage.expect(HostOffset(offset), length);
        }
        assert_eq!(storage.length().unwrap(), 1 << 20);
        let mut bytes = vec![1; 1 << 20];
        assert_eq!(storage.read_at(HostOffset(0), &mut bytes).unwrap(), bytes.len());
        assert_eq!(&bytes[..5], b"begin");
        assert!(bytes[5..].iter().all(|&byte| byte == 0));
    }
}
