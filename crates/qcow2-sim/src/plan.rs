//! What is done to an image: operations that depend on nothing but their place in the workload, so that some can be left out.

use crate::random::Random;
use crate::shape::Shape;

/// One operation. Ranges are in bytes and cut at the end of the disk as it is then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes.
    Write {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Writes zeros.
    Zero {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// Whether space is given back.
        unmap: bool,
    },
    /// Discards.
    Discard {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Reads whole sectors, while others may write them.
    Read {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Flushes.
    Flush,
    /// Grows or shrinks.
    Resize {
        /// New size in bytes.
        size: u64,
        /// The new part gets its places.
        preallocate: bool,
    },
    /// Takes a snapshot.
    SnapshotCreate,
    /// Applies one of the snapshots that are there.
    SnapshotApply(u64),
    /// Deletes one.
    SnapshotDelete(u64),
    /// Renames one.
    SnapshotRename(u64),
    /// Adds a bitmap.
    BitmapAdd {
        /// Whether it records.
        enabled: bool,
    },
    /// Clears one of the bitmaps that are there.
    BitmapClear(u64),
    /// Removes one.
    BitmapRemove(u64),
    /// Enables or disables one.
    BitmapEnable(u64, bool),
    /// Closes and opens again.
    Reopen,
    /// Several threads at once; each does its list in order. Only writes, zeroes, discards and flushes, on ranges that no other list touches, and reads of anything.
    Parallel(Vec<Vec<Op>>),
    /// The same, and a snapshot is taken meanwhile.
    SnapshotAmid(Vec<Vec<Op>>),
}

impl Op {
    /// Whether it has several threads.
    pub fn is_parallel(&self) -> bool {
        matches!(self, Self::Parallel(_) | Self::SnapshotAmid(_))
    }
}

/// A workload.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Index into the shapes.
    pub shape: usize,
    /// The operations.
    pub ops: Vec<Op>,
    /// Bytes of metadata that wait for a flush.
    pub dirty_bytes: u64,
}

/// What kind of operations are preferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Focus {
    /// None.
    #[default]
    All,
    /// No threads.
    Sequential,
    /// Threads in most steps.
    Threads,
    /// Snapshots often.
    Snapshots,
    /// Bitmaps often.
    Bitmaps,
    /// Discards and writes to few clusters.
    Reuse,
    /// Resizes often.
    Resize,
    /// Threads that read what others discard.
    Readers,
}

/// A random workload for a shape.
pub fn random(shape_index: usize, shape: &Shape, focus: Focus, random: &mut Random) -> Plan {
    let count = 6 + random.below(22);
    let mut maker = Maker {
        shape,
        focus,
        random,
        size: shape.size,
    };
    let ops = (0..count).map(|_| maker.op()).collect();
    let small = maker.random.one_in(6);
    Plan {
        shape: shape_index,
        ops,
        dirty_bytes: if small { 4096 } else { 8 << 20 },
    }
}

struct Maker<'a> {
    shape: &'a Shape,
    focus: Focus,
    random: &'a mut Random,
    size: u64,
}

impl Maker<'_> {
    fn op(&mut self) -> Op {
        let die = self.random.below(100);
        let focused = self.random.one_in(2);
        match self.focus {
            Focus::Threads if focused => return self.parallel(),
            Focus::Readers if self.random.one_in(4) => return self.readers(),
            Focus::Snapshots if focused && self.shape.snapshots() => return self.snapshot(),
            Focus::Bitmaps if focused && self.shape.bitmaps() => return self.bitmap(),
            Focus::Resize if focused => return self.resize(),
            _ => {}
        }
        match die {
            0..=29 => self.write(0, self.size),
            30..=39 => self.zero(0, self.size),
            40..=53 => self.discard(0, self.size),
            54..=71 => Op::Flush,
            72..=77 => self.resize(),
            78..=85 if self.shape.snapshots() => self.snapshot(),
            86..=90 if self.shape.bitmaps() => self.bitmap(),
            91..=93 => Op::Reopen,
            94..=97 if self.focus != Focus::Sequential => self.parallel(),
            _ => self.write(0, self.size),
        }
    }

    /// A range inside `begin` to `end`, which are whole sectors.
    fn range(&mut self, begin: u64, end: u64, unaligned: bool) -> (u64, u64) {
        let cluster = self.shape.cluster;
        let room = end.saturating_sub(begin).max(512);
        let hot = if self.focus == Focus::Reuse {
            room.min(cluster * 6)
        } else {
            room
        };
        let (offset, length) = match self.random.below(if unaligned { 5 } else { 4 }) {
            // Whole clusters.
            0 | 1 => {
                let first = self.random.below(hot.div_ceil(cluster)) * cluster;
                (first, cluster * (1 + self.random.below(3)))
            }
            // Sectors.
            2 => (self.random.below(hot / 512) * 512, 512 * (1 + self.random.below(8))),
            // Across clusters.
            3 => {
                let middle = (1 + self.random.below(hot.div_ceil(cluster))) * cluster;
                let before = 512 * (1 + self.random.below(cluster.div_ceil(1024)));
                (
                    middle.saturating_sub(before),
                    before + 512 * (1 + self.random.below(cluster.div_ceil(512))),
                )
            }
            _ => (self.random.below(hot), 1 + self.random.below(3000)),
        };
        // The end of a disk is a place of its own.
        let offset = if self.random.one_in(6) {
            room.saturating_sub(length)
        } else {
            offset
        };
        let offset = offset.min(room - 1);
        let offset = if unaligned { offset } else { offset / 512 * 512 };
        (begin + offset, length.min(room - offset).max(1))
    }

    fn write(&mut self, begin: u64, end: u64) -> Op {
        let (offset, length) = self.range(begin, end, true);
        Op::Write { offset, length }
    }

    fn zero(&mut self, begin: u64, end: u64) -> Op {
        let (offset, length) = self.range(begin, end, true);
        let unmap = self.random.one_in(2);
        Op::Zero { offset, length, unmap }
    }

    fn discard(&mut self, begin: u64, end: u64) -> Op {
        let (offset, length) = self.range(begin, end, true);
        Op::Discard { offset, length }
    }

    /// Anywhere.
    fn read(&mut self) -> Op {
        let (offset, length) = self.range(0, self.size, false);
        Op::Read { offset, length }
    }

    fn resize(&mut self) -> Op {
        let sectors = self.shape.most / 512;
        let size = match self.random.below(3) {
            0 => self.shape.size + self.random.below(self.shape.most - self.shape.size) / 512 * 512,
            1 => (sectors / 4 + self.random.below(sectors * 3 / 4)) * 512,
            _ => (self.size + self.shape.cluster * (1 + self.random.below(4))).min(self.shape.most),
        };
        self.size = size;
        let preallocate = self.random.one_in(4);
        Op::Resize { size, preallocate }
    }

    fn snapshot(&mut self) -> Op {
        let which = self.random.number() >> 8;
        match self.random.below(8) {
            0..=3 => Op::SnapshotCreate,
            4 | 5 => Op::SnapshotApply(which),
            6 => Op::SnapshotDelete(which),
            _ if self.random.one_in(2) => Op::SnapshotRename(which),
            _ => Op::SnapshotDelete(which),
        }
    }

    fn bitmap(&mut self) -> Op {
        let which = self.random.number() >> 8;
        let on = !self.random.one_in(3);
        match self.random.below(8) {
            0..=3 => Op::BitmapAdd { enabled: on },
            4 => Op::BitmapClear(which),
            5 => Op::BitmapRemove(which),
            6 => Op::BitmapEnable(which, on),
            _ => Op::Reopen,
        }
    }

    /// Two to four lists: one of them has clusters of its own, others share clusters but no sectors.
    fn parallel(&mut self) -> Op {
        let threads = 2 + self.random.below(3);
        let size = self.size / 512 * 512;
        let share = if self.random.one_in(2) {
            // Neighbours inside of clusters.
            let share = (self.shape.cluster / 2).max(512);
            share.min(size / threads / 512 * 512)
        } else {
            size / threads / 512 * 512
        };
        let base = if share * threads < size {
            self.random.below((size - share * threads) / 512) * 512
        } else {
            0
        };
        let lists = (0..threads)
            .map(|thread| {
                let (begin, end) = (base + thread * share, base + (thread + 1) * share);
                let count = 1 + self.random.below(4);
                (0..count).map(|_| self.parallel_op(begin, end)).collect()
            })
            .collect();
        if self.shape.snapshots() && self.random.one_in(3) {
            return Op::SnapshotAmid(lists);
        }
        Op::Parallel(lists)
    }

    /// A list that discards and writes few clusters again and again, and lists that read them.
    fn readers(&mut self) -> Op {
        let end = (self.shape.cluster * 8).min(self.size / 512 * 512);
        let writes = (0..16).map(|number| match number % 4 {
            0 => Op::Write {
                offset: 0,
                length: end / 1024 * 512,
            },
            1 => Op::Discard { offset: 0, length: end },
            2 => Op::Flush,
            _ => Op::Write {
                offset: end / 1024 * 512,
                length: end / 1024 * 512,
            },
        });
        let mut lists = vec![writes.collect()];
        for _ in 0..2 {
            let reads = (0..12).map(|_| {
                let offset = self.random.below(end / 512) * 512;
                Op::Read {
                    offset,
                    length: 512 * (1 + self.random.below(4)),
                }
            });
            lists.push(reads.collect());
        }
        Op::Parallel(lists)
    }

    fn parallel_op(&mut self, begin: u64, end: u64) -> Op {
        let (offset, length) = self.range(begin, end, false);
        let length = length.next_multiple_of(512).min(end - offset).max(512);
        match self.random.below(10) {
            0..=4 => Op::Write { offset, length },
            5 => Op::Zero {
                offset,
                length,
                unmap: self.random.one_in(2),
            },
            6 => Op::Discard { offset, length },
            7 | 8 => self.read(),
            _ => Op::Flush,
        }
    }
}
