//! Who holds a lock, as far as the system tells: for the message alone.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::{major, minor};

/// Name and id of another process that has `byte` of `file` locked, if the system shows it.
pub(super) fn of(file: &File, byte: i64) -> Option<String> {
    let metadata = file.metadata().ok()?;
    let (device, inode) = (metadata.dev(), metadata.ino());
    let place = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let own = std::process::id().to_string();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let id = process.file_name();
        let Some(id) = id
            .to_str()
            .filter(|id| id.bytes().all(|b| b.is_ascii_digit()) && *id != own)
        else {
            continue;
        };
        // Processes of others show nothing, and some end meanwhile.
        let Ok(open) = fs::read_dir(process.path().join("fdinfo")) else {
            continue;
        };
        let holds = |info: String| info.lines().any(|line| covers(line, &place, byte));
        if open
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .any(holds)
        {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let name = name.trim_end().replace(char::is_control, "\u{fffd}");
            return Some(format!("{name} (process {id})"));
        }
    }
    None
}

/// Whether a line such as `lock: 1: OFDLCK ADVISORY READ -1 08:01:1234 201 201` is of a lock that covers `byte` of the file at `place`.
fn covers(line: &str, place: &str, byte: i64) -> bool {
    let Some(fields) = line.strip_prefix("lock:") else {
        return false;
    };
    let mut fields = fields.split_whitespace().skip_while(|field| *field != place);
    let range = (fields.next(), fields.next(), fields.next());
    let (Some(_), Some(begin), Some(end)) = range else {
        return false;
    };
    let begin = begin.parse::<i64>().unwrap_or(i64::MAX);
    let end = if end == "EOF" {
        i64::MAX
    } else {
        end.parse().unwrap_or(-1)
    };
    (begin..=end).contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_told_by_its_file_and_range() {
        let line = "lock:\t1: OFDLCK  ADVISORY  READ -1 fe:01:1234 200 203";
        assert!(covers(line, "fe:01:1234", 201));
        assert!(!covers(line, "fe:01:1234", 204));
        assert!(!covers(line, "fe:01:123", 201));
        assert!(covers("lock: 2: POSIX ADVISORY WRITE 77 fe:01:1 0 EOF", "fe:01:1", 100));
        assert!(!covers("pos:\t0", "fe:01:1", 0));
    }
}
