//! Memory for the keys of open images: left out of core dumps and not swapped out, as far as the system grants it (unix; without core dumps: Linux).
#![allow(unsafe_code, reason = "the system is told of pages by their address")]

use std::ops::Deref;

use super::modes::Sectors;

/// Whole pages with nothing else in them: what is asked for them is asked for nobody else. Where pages are larger nothing is granted.
#[repr(align(4096))]
struct Pages<T: ?Sized>(T);

/// A cipher in pages of its own.
pub(super) struct Hidden(Box<Pages<dyn Sectors>>);

impl Hidden {
    pub(super) fn new(sectors: impl Sectors + 'static) -> Self {
        let hidden = Self(Box::new(Pages(sectors)));
        ask(&*hidden.0, true);
        hidden
    }
}

impl Deref for Hidden {
    type Target = dyn Sectors;

    fn deref(&self) -> &Self::Target {
        &self.0.0
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // The key is wiped right behind this.
        ask(&*self.0, false);
    }
}

/// Tells the system to hide pages, or to treat them as any others. It may say no: a limit of locked memory, for example.
#[cfg(all(unix, not(miri)))]
fn ask(pages: &Pages<dyn Sectors>, hide: bool) {
    use std::ptr::NonNull;

    use nix::sys::mman;

    let (address, length) = (NonNull::from(pages).cast(), size_of_val(pages));
    // SAFETY: the pages are live and hold `pages` alone; whether they are locked changes nothing in them.
    let _ = unsafe {
        if hide {
            mman::mlock(address, length)
        } else {
            mman::munlock(address, length)
        }
    };
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let advice = if hide {
            mman::MmapAdvise::MADV_DONTDUMP
        } else {
            mman::MmapAdvise::MADV_DODUMP
        };
        // SAFETY: as above; the advice is about core dumps alone.
        let _ = unsafe { mman::madvise(address, length, advice) };
    }
}

#[cfg(not(all(unix, not(miri))))]
fn ask(_pages: &Pages<dyn Sectors>, _hide: bool) {}
