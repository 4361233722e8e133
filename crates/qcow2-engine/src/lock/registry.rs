//! Who uses which file in this process: what locks of the system do not tell where there are none, or nobody wanted them.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use super::{LockMode, locked, permissions};
use crate::error::Result;
use crate::storage::{Identity, Storage};

/// What makes two storages the same bytes: the file, from a place on; or the storage itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    File(Identity, u64),
    Itself(usize),
}

#[derive(Default)]
struct Users {
    by_key: HashMap<Key, Vec<(u64, LockMode)>>,
    last: u64,
}

static USERS: LazyLock<Mutex<Users>> = LazyLock::new(Mutex::default);

fn users() -> MutexGuard<'static, Users> {
    USERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One use of a file, until this is dropped.
#[derive(Debug)]
pub(super) struct Use {
    key: Key,
    number: u64,
}

impl Use {
    /// Notes a use, unless it and another one in this process exclude each other. The caller keeps `storage` as long as what this returns.
    pub(super) fn begin(storage: &Arc<dyn Storage>, mode: LockMode) -> Result<Self> {
        let key = match storage.identity() {
            Some(identity) => Key::File(identity, storage.base().0),
            None => Key::Itself(Arc::as_ptr(storage).cast::<()>().addr()),
        };
        let mut users = users();
        let others = users.by_key.get(&key).map_or(&[][..], Vec::as_slice);
        for (_, other) in others {
            if let Some((permission, shared)) = excluded(mode, *other) {
                drop(users);
                return Err(locked(&**storage, permission, shared, Some("this process".to_owned())));
            }
        }
        users.last += 1;
        let number = users.last;
        users.by_key.entry(key).or_default().push((number, mode));
        Ok(Self { key, number })
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut users = users();
        if let Some(uses) = users.by_key.get_mut(&self.key) {
            uses.retain(|(number, _)| *number != self.number);
            if uses.is_empty() {
                users.by_key.remove(&self.key);
            }
        }
    }
}

/// The permission that `mode` cannot have because of `other`, and whether that is because it is in use.
fn excluded(mode: LockMode, other: LockMode) -> Option<(i64, bool)> {
    let ((uses, forbids), (used, forbidden)) = (permissions(mode), permissions(other));
    let first = |of: &[i64], other: &[i64]| of.iter().copied().find(|one| other.contains(one));
    first(uses, forbidden)
        .map(|permission| (permission, false))
        .or_else(|| first(forbids, used).map(|permission| (permission, true)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn one_writer_or_any_number_of_readers_and_whoever_does_not_care() {
        use LockMode::{ForceShare, ReadOnly, Write};
        for (one, two, together) in [
            (ReadOnly, ReadOnly, true),
            (ReadOnly, ForceShare, true),
            (ForceShare, ForceShare, true),
            (Write, ForceShare, true),
            (ForceShare, Write, true),
            (Write, ReadOnly, false),
            (ReadOnly, Write, false),
            (Write, Write, false),
        ] {
            let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
            let first = Use::begin(&storage, one).unwrap();
            let second = Use::begin(&storage, two);
            assert_eq!(second.is_ok(), together, "{one:?} and {two:?}");
            // A use that was refused, or has ended, is in nobody's way.
            drop((first, second));
            assert!(Use::begin(&storage, Write).is_ok());
            let other: Arc<dyn Storage> = Arc::new(MemoryStorage::default());
            let _writer = Use::begin(&storage, Write).unwrap();
            assert!(Use::begin(&other, Write).is_ok());
        }
    }
}
