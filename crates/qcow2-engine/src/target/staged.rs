//! A file without its name yet.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Published, failed};
use crate::error::{Error, Result};
use crate::storage::{CacheMode, FileStorage, Storage};

/// Symbolic links that are followed before they are taken for a loop.
const MAX_LINKS: u32 = 40;
/// Temporary names that are tried.
const ATTEMPTS: u32 = 100;

/// A file in the folder of its final name. Dropped before it is published, it is gone.
#[derive(Debug)]
pub(super) struct Staged {
    storage: Arc<FileStorage>,
    /// A second handle on the same file, for what a storage does not do.
    file: File,
    name: PathBuf,
    /// Its name until then; none if the system can do without.
    temporary: Option<Temporary>,
    overwrite: bool,
    /// What the file takes over from the one it replaces.
    replaced: Option<fs::Metadata>,
}

/// A file that is removed unless it gets its final name.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Already renamed, or in a folder that lets nothing go: neither can be helped here.
        let _ = fs::remove_file(&self.0);
    }
}

impl Staged {
    /// Begins a file that will be called `name`, in place of `replaced` if that is there.
    pub(super) fn begin(
        name: PathBuf,
        overwrite: bool,
        replaced: Option<&FileStorage>,
        cache: CacheMode,
    ) -> Result<Self> {
        let replaced = replaced.and_then(Storage::file).map(File::metadata).transpose();
        let replaced = replaced.map_err(failed("stat", Some(&name)))?;
        let (file, temporary) = open_beside(&name, replaced.is_some()).map_err(failed("open", Some(&name)))?;
        let second = file.try_clone().map_err(failed("open", Some(&name)))?;
        Ok(Self {
            storage: Arc::new(FileStorage::from_file(second, &name)?.with_cache(cache)?),
            file,
            name,
            temporary,
            overwrite,
            replaced,
        })
    }

    pub(super) fn storage(&self) -> Arc<dyn Storage> {
        self.storage.clone()
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Whether both are to be called the same.
    pub(super) fn has_name_of(&self, other: &Self) -> bool {
        let whole = |name: &Path| Some((fs::canonicalize(folder(name)).ok()?, name.file_name()?.to_owned()));
        self.name == other.name || whole(&self.name).is_some_and(|name| Some(name) == whole(&other.name))
    }

    /// Gives the file its name.
    pub(super) fn publish(self, durable: bool) -> Result<Published> {
        let new = self.replaced.is_none();
        if let Some(replaced) = &self.replaced {
            system::take_over(&self.file, replaced).map_err(failed("chmod", Some(&self.name)))?;
        }
        match &self.temporary {
            Some(Temporary(temporary)) => self.rename(temporary)?,
            None if self.overwrite => {
                let temporary = Temporary(self.link_temporary()?);
                self.rename(&temporary.0)?;
            }
            None => {
                system::link(&self.file, &self.name).map_err(|error| self.refused(error))?;
            }
        }
        if durable {
            system::sync_folder(folder(&self.name)).map_err(failed("fsync", Some(&self.name)))?;
        }
        Ok(Published {
            new: new.then(|| self.name.clone()),
        })
    }

    fn rename(&self, temporary: &Path) -> Result<()> {
        if self.overwrite {
            return fs::rename(temporary, &self.name).map_err(failed("rename", Some(&self.name)));
        }
        // A second link, unlike a rename, never replaces what somebody made meanwhile.
        match fs::hard_link(temporary, &self.name) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(exists(&self.name)),
            Err(_) => {
                // A file system without links: look, then rename.
                if fs::symlink_metadata(&self.name).is_ok() {
                    return Err(exists(&self.name));
                }
                fs::rename(temporary, &self.name).map_err(failed("rename", Some(&self.name)))
            }
        }
    }

    fn link_temporary(&self) -> Result<PathBuf> {
        let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
        for _ in 0..ATTEMPTS {
            let name = temporary_name(&self.name);
            match system::link(&self.file, &name) {
                Ok(()) => return Ok(name),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
                Err(error) => return Err(failed("link", Some(&self.name))(error)),
            }
        }
        Err(failed("link", Some(&self.name))(last))
    }

    fn refused(&self, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::AlreadyExists {
            exists(&self.name)
        } else {
            failed("link", Some(&self.name))(error)
        }
    }
}

/// Opens a file in the folder of `name`, without a name of its own where the system can do that. Until it takes over the mode of what it
/// replaces, nobody else may open it.
fn open_beside(name: &Path, private: bool) -> io::Result<(File, Option<Temporary>)> {
    if let Some(file) = system::open_nameless(folder(name))? {
        return Ok((file, None));
    }
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    for _ in 0..ATTEMPTS {
        let temporary = temporary_name(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        system::mode(&mut options, if private { 0o600 } else { 0o644 });
        match options.open(&temporary) {
            Ok(file) => return Ok((file, Some(Temporary(temporary)))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// A name in the same folder that nobody can guess.
fn temporary_name(name: &Path) -> PathBuf {
    let random = RandomState::new().hash_one(std::process::id());
    folder(name).join(OsString::from(format!(".qcow2-{random:016x}.tmp")))
}

fn folder(name: &Path) -> &Path {
    match name.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// What `path` names once symbolic links are followed; it need not be there.
pub(super) fn final_name(path: &Path) -> io::Result<PathBuf> {
    let mut name = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::symlink_metadata(&name) {
            Ok(metadata) if metadata.is_symlink() => name = folder(&name).join(fs::read_link(&name)?),
            _ => return Ok(name),
        }
    }
    // The system has a number for it, which callers go by.
    Err(fs::metadata(path)
        .err()
        .unwrap_or_else(|| io::Error::other("too many levels of symbolic links")))
}

/// The refusal of a name that is taken.
pub(super) fn exists(path: &Path) -> Error {
    Error::State {
        code: "EXISTS",
        path: Some(path.to_owned()),
        reason: "the target exists: overwrite must be asked for".to_owned(),
    }
}

#[cfg(unix)]
mod system {
    use std::fs::{File, Metadata, OpenOptions, Permissions};
    use std::io;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
    use std::path::Path;

    pub(super) use nameless::{link, open_nameless};

    pub(super) fn mode(options: &mut OpenOptions, mode: u32) {
        options.mode(mode);
    }

    /// Gives `file` mode and owner of `other`.
    pub(super) fn take_over(file: &File, other: &Metadata) -> io::Result<()> {
        let own = file.metadata()?;
        let mut mode = other.mode() & 0o7777;
        if (own.uid(), own.gid()) != (other.uid(), other.gid())
            && fchown(file, Some(other.uid()), Some(other.gid())).is_err()
        {
            // Only root gives files away. The group can be kept if it is one of ours; what a mode grants to the wrong owner cannot.
            mode &= 0o777;
            if own.gid() != other.gid() && fchown(file, None, Some(other.gid())).is_err() {
                mode &= 0o707;
            }
        }
        file.set_permissions(Permissions::from_mode(mode))
    }

    /// Makes the names in a folder durable.
    pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    #[cfg(target_os = "linux")]
    mod nameless {
        use std::fs::{File, OpenOptions};
        use std::io;
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::OpenOptionsExt;
        use std::path::{Path, PathBuf};

        use nix::errno::Errno;
        use nix::fcntl::{AT_FDCWD, AtFlags};
        use nix::libc;

        /// A file in `folder` that has no name: whatever happens, nothing of it stays. `None`: not on this file system.
        pub(in super::super) fn open_nameless(folder: &Path) -> io::Result<Option<File>> {
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(0o644).custom_flags(libc::O_TMPFILE);
            match options.open(folder) {
                // Without /proc it could not be named later.
                Ok(file) => Ok(handle(&file).exists().then_some(file)),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL | Errno::ENOSYS) => Ok(None),
                    _ => Err(error),
                },
            }
        }

        /// Gives a nameless file a name that nobody has.
        pub(in super::super) fn link(file: &File, name: &Path) -> io::Result<()> {
            let flags = AtFlags::AT_SYMLINK_FOLLOW;
            Ok(nix::unistd::linkat(AT_FDCWD, &handle(file), AT_FDCWD, name, flags)?)
        }

        fn handle(file: &File) -> PathBuf {
            PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
        }
    }

    #[cfg(not(target_os = "linux"))]
    mod nameless {
        use std::fs::File;
        use std::io;
        use std::path::Path;

        pub(in super::super) fn open_nameless(_: &Path) -> io::Result<Option<File>> {
            Ok(None)
        }

        pub(in super::super) fn link(_: &File, _: &Path) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

#[cfg(not(unix))]
mod system {
    use std::fs::{File, Metadata, OpenOptions};
    use std::io;
    use std::path::Path;

    pub(super) fn mode(_: &mut OpenOptions, _: u32) {}

    pub(super) fn take_over(_: &File, _: &Metadata) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn sync_folder(_: &Path) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn open_nameless(_: &Path) -> io::Result<Option<File>> {
        Ok(None)
    }

    pub(super) fn link(_: &File, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
