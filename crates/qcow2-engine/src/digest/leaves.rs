//! The leaves of a tree, kept: what a manifest holds.

use qcow2_codec::Hash;

use super::shape::{DigestShape, ZeroHashes};
use super::tree::Tree;
use crate::error::{Error, Result};

/// Blocks that are zeros, and the hashes of those that follow them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafRun {
    /// Blocks of nothing but zeros.
    pub zeros: u64,
    /// Blocks behind them whose hashes are listed.
    pub hashes: u64,
}

/// The leaves of a whole disk, in order. Blocks of zeros take no space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaves {
    /// Which blocks are zeros.
    pub runs: Vec<LeafRun>,
    /// The hashes of all others.
    pub hashes: Vec<Hash>,
}

/// What is known of some block and those behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected<'a> {
    /// So many blocks of zeros.
    Zeros(u64),
    /// So many hashes.
    Hashes(&'a [Hash]),
}

impl Leaves {
    pub(super) fn push_zeros(&mut self, count: u64) {
        match self.runs.last_mut() {
            Some(run) if run.hashes == 0 => run.zeros = run.zeros.saturating_add(count),
            _ => self.runs.push(LeafRun {
                zeros: count,
                hashes: 0,
            }),
        }
    }

    pub(super) fn push_hash(&mut self, hash: Hash) {
        self.hashes.push(hash);
        match self.runs.last_mut() {
            Some(run) => run.hashes += 1,
            None => self.runs.push(LeafRun { zeros: 0, hashes: 1 }),
        }
    }

    /// Bytes that it takes in memory.
    pub(super) fn memory(&self) -> u64 {
        (size_of_val(&*self.runs) as u64).saturating_add(size_of_val(&*self.hashes) as u64)
    }

    /// The root that these leaves have.
    ///
    /// # Errors
    /// They are not as many as the disk has blocks.
    pub(super) fn root(&self, shape: DigestShape, zeros: &ZeroHashes) -> Result<Hash> {
        let count = self.runs.iter().try_fold((0u64, 0u64), |(blocks, hashes), run| {
            let hashes = hashes.checked_add(run.hashes)?;
            Some((blocks.checked_add(run.zeros)?.checked_add(run.hashes)?, hashes))
        });
        if count != Some((shape.blocks(), self.hashes.len() as u64)) {
            return Err(bad_manifest(format!(
                "the manifest has not as many leaves as a disk of {} bytes has blocks, which are {}",
                shape.virtual_size,
                shape.blocks()
            )));
        }
        let mut tree = Tree::new(shape, zeros);
        let mut hashes = self.hashes.iter();
        for run in &self.runs {
            tree.zeros(run.zeros);
            let listed = usize::try_from(run.hashes).unwrap_or(usize::MAX);
            hashes.by_ref().take(listed).for_each(|hash| tree.leaf(*hash));
        }
        Ok(tree.root())
    }

    /// A cursor at the first block.
    pub(super) fn cursor(&self) -> Cursor<'_> {
        Cursor {
            runs: self.runs.iter(),
            run: LeafRun::default(),
            hashes: &self.hashes,
        }
    }
}

/// Goes through leaves, forwards.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    runs: std::slice::Iter<'a, LeafRun>,
    /// What is left of the run.
    run: LeafRun,
    /// What is left of the hashes.
    hashes: &'a [Hash],
}

impl<'a> Cursor<'a> {
    /// The next up to `most` blocks of one kind. `None`: there are no more.
    pub(super) fn next(&mut self, most: u64) -> Option<Expected<'a>> {
        while self.run == LeafRun::default() {
            self.run = *self.runs.next()?;
        }
        if self.run.zeros > 0 {
            let count = self.run.zeros.min(most);
            self.run.zeros -= count;
            return Some(Expected::Zeros(count));
        }
        let count = self.run.hashes.min(most);
        self.run.hashes -= count;
        let (hashes, rest) = self.hashes.split_at_checked(usize::try_from(count).ok()?)?;
        self.hashes = rest;
        Some(Expected::Hashes(hashes))
    }

    /// Passes `count` blocks by.
    pub(super) fn skip(&mut self, mut count: u64) {
        while count > 0 {
            match self.next(count) {
                Some(Expected::Zeros(passed)) => count -= passed,
                Some(Expected::Hashes(passed)) => count -= passed.len() as u64,
                None => return,
            }
        }
    }
}

/// A manifest that contradicts itself.
pub(super) fn bad_manifest(reason: String) -> Error {
    Error::State {
        code: "MANIFEST",
        path: None,
        reason,
    }
}
