//! *place*: where written bytes go. In place, to a host cluster that is kept for them, or to a new one.

use qcow2_format::{ClusterMapping, GuestOffset, HostOffset, L2Entry, Table};

use super::Image;
use super::refcounts::Clusters;
use super::state::{State, Step, Stop};

/// Most bytes that are placed at a time.
const MOST: u64 = 4 << 20;

/// Where the begin of a write goes.
#[derive(Debug)]
pub(super) enum Placed {
    /// So many bytes over what is there.
    InPlace { host: u64, length: u64 },
    /// To clusters that lie next to each other and are linked once the bytes are there.
    Linked(Vec<Target>),
}

/// A guest cluster that gets bytes, and another entry.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Number of the guest cluster.
    pub(super) cluster: u64,
    /// Its L2 table and index there.
    pub(super) table: u64,
    pub(super) index: u64,
    /// Where the cluster begins in the file.
    pub(super) host: u64,
    /// What of the cluster is written, in bytes from its begin: the caller's bytes and, around them, what must be copied.
    pub(super) begin: u64,
    pub(super) end: u64,
    /// Its entry then.
    pub(super) entry: L2Entry,
    /// The host cluster is a new one.
    pub(super) allocated: bool,
    /// What loses a reference.
    pub(super) old: Option<Clusters>,
}

/// What a cluster needs to be written, before its place is known.
struct Need {
    host: Option<u64>,
    begin: u64,
    end: u64,
    allocated: u32,
    zero: u32,
    old: Option<Clusters>,
}

/// Clusters that nobody else may change meanwhile. Given back when dropped.
pub(super) struct Claims<'a> {
    image: &'a Image,
    clusters: Vec<u64>,
}

impl<'a> Claims<'a> {
    /// What [`State::place`] has claimed.
    pub(super) fn of(image: &'a Image, targets: &[Target]) -> Self {
        Self {
            image,
            clusters: targets.iter().map(|target| target.cluster).collect(),
        }
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        let mut state = self.image.lock();
        for cluster in &self.clusters {
            state.claims.remove(cluster);
        }
        self.image.changed.notify_all();
    }
}

impl State {
    /// Places as many as possible of `length` bytes at `at`. Clusters to be linked are claimed.
    pub(super) fn place(&mut self, at: u64, length: u64) -> Step<Placed> {
        let l1_index = self.geometry.l1_index(GuestOffset(at));
        if let Some(table) = self.l2_table(l1_index)?
            && let Some(placed) = self.in_place(table, at, length)?
        {
            return Ok(placed);
        }
        if self.claims.contains(&(at >> self.geometry.cluster_bits())) {
            return Err(Stop::Wait);
        }
        let table = self.own_l2(l1_index)?;
        self.targets(table, at, length)
    }

    /// What an entry says, or why it cannot be followed.
    pub(super) fn mapping(&mut self, table: u64, index: u64, cluster: u64) -> Step<(L2Entry, ClusterMapping)> {
        let entry = self.entry(table, index)?;
        let guest = GuestOffset(self.offset_of(cluster));
        let mapping = entry.mapping(&self.rules, guest);
        let mapping =
            mapping.map_err(|fault| self.entry_fault(Table::L2, self.entry_place(table, index), guest, fault))?;
        Ok((entry, mapping))
    }

    fn in_place(&mut self, table: u64, at: u64, length: u64) -> Step<Option<Placed>> {
        let size = self.cluster_size();
        let (mut cluster, mut index) = (at / size, self.geometry.l2_index(GuestOffset(at)));
        let mut from = at % size;
        let (mut begin, mut done) = (None, 0);
        while done < length && index < self.geometry.l2_entries() {
            let to = (from + length - done).min(size);
            let Some(host) = self.direct(table, index, cluster, from..to)? else {
                break;
            };
            match begin {
                None => begin = Some(host + from),
                Some(begin) if begin + done == host => {}
                Some(_) => break,
            }
            done += to - from;
            (cluster, index, from) = (cluster + 1, index + 1, 0);
        }
        Ok(begin.map(|host| Placed::InPlace { host, length: done }))
    }

    /// The host cluster, if bytes of that range of the cluster may be written over what is there.
    fn direct(&mut self, table: u64, index: u64, cluster: u64, range: std::ops::Range<u64>) -> Step<Option<u64>> {
        let (entry, mapping) = self.mapping(table, index, cluster)?;
        let host = match mapping {
            ClusterMapping::Data(host) => host,
            ClusterMapping::Subclusters {
                host: Some(host),
                allocated,
                ..
            } => {
                let wanted = self.subclusters(range.start, range.end);
                if allocated & wanted != wanted {
                    return Ok(None);
                }
                host
            }
            _ => return Ok(None),
        };
        Ok(self.is_own(entry, host)?.then_some(host.0))
    }

    /// Whether nothing else refers to the host cluster of an entry. COPIED says so, but only if the refcount agrees is it believed.
    pub(super) fn is_own(&mut self, entry: L2Entry, host: HostOffset) -> Step<bool> {
        if self.rules.data_file {
            return Ok(true);
        }
        let cluster = self.cluster_of(host);
        if !entry.copied() || self.refcount(cluster)? != 1 {
            return Ok(false);
        }
        if self.guard.has(cluster) || self.is_active_l2(host.0) {
            return Err(self.corrupt(cluster, "a guest cluster lies on the image's own tables"));
        }
        Ok(true)
    }

    /// The subclusters that bytes `begin` to `end` of a cluster touch.
    pub(super) fn subclusters(&self, begin: u64, end: u64) -> u32 {
        let size = self.geometry.subcluster_size();
        mask(begin / size, end.div_ceil(size))
    }

    fn targets(&mut self, table: u64, at: u64, length: u64) -> Step<Placed> {
        let size = self.cluster_size();
        let (first, index) = (at / size, self.geometry.l2_index(GuestOffset(at)));
        let most = ((at + length).div_ceil(size) - first)
            .min(self.geometry.l2_entries() - index)
            .min((MOST / size).max(1));
        let mut needs: Vec<Need> = Vec::new();
        for number in 0..most {
            let from = at.saturating_sub((first + number) * size).min(size);
            let to = (at + length - (first + number) * size).min(size);
            if number > 0
                && (self.claims.contains(&(first + number))
                    || self.direct(table, index + number, first + number, from..to)?.is_some())
            {
                break;
            }
            let need = self.need(table, index + number, first + number, from, to)?;
            if let Some(last) = needs.last() {
                let next_to = match (last.host, need.host) {
                    (None, None) => true,
                    (Some(a), Some(b)) => a + size == b,
                    _ => false,
                };
                if !next_to || last.end != size || need.begin != 0 {
                    break;
                }
            }
            needs.push(need);
        }
        self.touch(
            self.entry_place(table, index),
            needs.len() as u64 * self.geometry.l2_entry_size(),
        )?;
        let allocated = needs.first().is_some_and(|need| need.host.is_none());
        let mut host = needs.first().and_then(|need| need.host).unwrap_or(0);
        if allocated {
            let clusters = self.allocate(needs.len() as u64)?;
            needs.truncate(usize::try_from(clusters.count).unwrap_or(usize::MAX));
            host = self.offset_of(clusters.first);
        } else if self.rules.data_file {
            let first = host / size;
            let count = needs.len() as u64;
            self.relink(Clusters { first, count })?;
        }
        let mut targets = Vec::with_capacity(needs.len());
        for (number, need) in (0u64..).zip(needs) {
            let place = HostOffset(host + number * size);
            let entry = if self.geometry.extended_l2() {
                L2Entry::subclusters(Some(place), true, need.allocated, need.zero)
            } else {
                L2Entry::data(place, true, self.geometry)
            };
            self.claims.insert(first + number);
            targets.push(Target {
                cluster: first + number,
                table,
                index: index + number,
                host: place.0,
                begin: need.begin,
                end: need.end,
                entry,
                allocated,
                old: need.old,
            });
        }
        Ok(Placed::Linked(targets))
    }

    /// What it takes to write bytes `from` to `to` of a cluster that cannot be written in place.
    fn need(&mut self, table: u64, index: u64, cluster: u64, from: u64, to: u64) -> Step<Need> {
        let (entry, mapping) = self.mapping(table, index, cluster)?;
        let (host, allocated, zero) = match mapping {
            ClusterMapping::Unallocated | ClusterMapping::Compressed(_) => (None, 0, 0),
            ClusterMapping::Zero(host) => (host, 0, u32::MAX),
            ClusterMapping::Data(host) => (Some(host), u32::MAX, 0),
            ClusterMapping::Subclusters { host, allocated, zero } => (host, allocated, zero),
        };
        let old = match mapping {
            ClusterMapping::Compressed(descriptor) => {
                let first = self.cluster_of(descriptor.offset);
                let end = self.cluster_of(HostOffset(descriptor.end().0.saturating_sub(1)));
                Some(Clusters {
                    first,
                    count: end.saturating_sub(first) + 1,
                })
            }
            _ => host.map(|host| Clusters {
                first: self.cluster_of(host),
                count: 1,
            }),
        };
        let own = match host {
            Some(host) => self.is_own(entry, host)?.then_some(host.0),
            None => self.rules.data_file.then(|| self.offset_of(cluster)),
        };
        let (begin, end) = self.copied_range(from, to, mapping, allocated, own.is_some());
        let written = self.subclusters(begin, end);
        let kept = if own.is_some() { allocated } else { 0 };
        Ok(Need {
            host: own,
            begin,
            end,
            allocated: kept | written,
            zero: zero & !written,
            old: old.filter(|_| own.is_none()),
        })
    }

    /// What of a cluster is written so that bytes `from` to `to` of it are: up to the edges of subclusters, but not over those that have their bytes
    /// in the same place, which others may be writing to. A new place needs everything that stood in the old one.
    fn copied_range(
        &self,
        from: u64,
        to: u64,
        mapping: ClusterMapping,
        allocated: u32,
        same_place: bool,
    ) -> (u64, u64) {
        let size = self.cluster_size();
        if !self.geometry.extended_l2() || matches!(mapping, ClusterMapping::Compressed(_)) {
            return (0, size);
        }
        let unit = self.geometry.subcluster_size();
        let has = |at: u64| allocated >> (at / unit).min(31) & 1 == 1;
        let (begin, end) = (from / unit * unit, to.next_multiple_of(unit));
        if same_place {
            let begin = if has(from) { from } else { begin };
            let end = if has(to - 1) { to } else { end };
            return (begin, end);
        }
        if allocated == 0 {
            return (begin, end);
        }
        let first = u64::from(allocated.trailing_zeros()) * unit;
        let last = u64::from(32 - allocated.leading_zeros()) * unit;
        (begin.min(first), end.max(last))
    }

    /// Links what was written: the entries name it from now on.
    pub(super) fn link(&mut self, targets: &[Target]) -> Step<()> {
        let (Some(first), Some(last)) = (targets.first(), targets.last()) else {
            return Ok(());
        };
        let begin = self.entry_place(first.table, first.index);
        self.touch(begin, self.entry_place(last.table, last.index + 1) - begin)?;
        for target in targets {
            self.set_entry(target.table, target.index, target.entry)?;
            if let Some(old) = target.old {
                self.unlink(old, false);
            }
        }
        let size = self.cluster_size();
        self.chain.data_written(
            GuestOffset(first.cluster * size + first.begin),
            HostOffset(first.host + first.begin),
            (last.cluster * size + last.end) - (first.cluster * size + first.begin),
        );
        Ok(())
    }
}

/// Bits `from` to `to`.
fn mask(from: u64, to: u64) -> u32 {
    let below = |n: u64| if n >= 32 { u32::MAX } else { (1 << n) - 1 };
    below(to) & !below(from)
}
