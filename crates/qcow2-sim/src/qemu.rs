//! A second opinion: `qemu-img check`.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qcow2_engine::Storage;

use crate::again::bytes;
use crate::judge::Files;
use crate::open;
use crate::shape::Begin;

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A folder that goes away.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Has qemu-img check a state, recovered before. Whether it could.
///
/// # Errors
/// What it found, other than leaks.
pub fn check(files: &Files, begin: &Begin) -> Result<bool, String> {
    open::recover(&files.image, files.data.as_ref(), begin).map_err(|error| format!("recovery fails: {error}"))?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = Folder(std::env::temp_dir().join(format!("qcow2-sim-{}-{number}", std::process::id())));
    let fail = |error: std::io::Error| format!("{}: {error}", folder.0.display());
    std::fs::create_dir_all(&folder.0).map_err(fail)?;
    let write = |name: &str, storage: &Arc<dyn Storage>| -> Result<(), String> {
        std::fs::write(folder.0.join(name), bytes(storage)?).map_err(fail)
    };
    write("image", &files.image)?;
    if let Some(data) = &files.data {
        write("data", data)?;
    }
    if let Some((backing, _)) = &begin.backing {
        let backing: Arc<dyn Storage> = backing.clone();
        write("base", &backing)?;
    }
    let output = Command::new("qemu-img")
        .args(["check", "-f", "qcow2", "image"])
        .current_dir(&folder.0)
        .output();
    match output {
        // 3: leaks alone.
        Ok(output) if matches!(output.status.code(), Some(0 | 3)) => Ok(true),
        Ok(output) => Err(format!(
            "qemu-img check: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("qemu-img: {error}")),
    }
}
