//! Zeroes for parts of a cluster with extended L2 entries: a bit for each subcluster, and nothing is written or copied.

use qcow2_format::{ClusterMapping, GuestOffset, HostOffset, L2Entry};

use super::Image;
use super::refcounts::Clusters;
use super::state::{State, Step, Stop};
use super::zero::Zeroing;
use crate::error::Result;

impl Image {
    /// Zeroes bytes `from` to `end`, which are in one cluster, are whole subclusters and are not the whole cluster. `false`: its bytes have to be
    /// written, since the cluster is compressed or a raw data file has to hold them.
    pub(super) fn zero_subclusters(&self, from: u64, end: u64, how: Zeroing) -> Result<bool> {
        self.run(|state| state.zero_subclusters(from, end, how))
    }
}

impl State {
    fn zero_subclusters(&mut self, from: u64, end: u64, how: Zeroing) -> Step<bool> {
        let guest = GuestOffset(from);
        let size = self.cluster_size();
        let cluster = from / size;
        let (l1_index, index) = (self.geometry.l1_index(guest), self.geometry.l2_index(guest));
        let backed = self.chain.layer(1).is_some_and(|below| from < below.virtual_size());
        if self.claims.contains(&cluster) {
            return Err(Stop::Wait);
        }
        let (entry, mapping) = match self.l2_table(l1_index)? {
            Some(table) => self.mapping(table, index, cluster)?,
            None => (L2Entry::default(), ClusterMapping::Unallocated),
        };
        let (host, allocated, zero) = match mapping {
            ClusterMapping::Compressed(_) => return Ok(false),
            ClusterMapping::Unallocated => (None, 0, 0),
            ClusterMapping::Zero(host) => (host, 0, u32::MAX),
            ClusterMapping::Data(host) => (Some(host), u32::MAX, 0),
            ClusterMapping::Subclusters { host, allocated, zero } => (host, allocated, zero),
        };
        let wanted = self.subclusters(from % size, end - cluster * size);
        if zero & wanted == wanted || (allocated & wanted == 0 && !backed) {
            return Ok(true);
        }
        if self.raw_data_file() && allocated & wanted != 0 {
            return Ok(false);
        }
        let (allocated, zero) = (allocated & !wanted, zero | wanted);
        let given_back = host.filter(|_| allocated == 0 && how == Zeroing::Unmap);
        let kept = host.filter(|_| given_back.is_none());
        let table = self.own_l2(l1_index)?;
        self.touch(self.entry_place(table, index), self.geometry.l2_entry_size())?;
        let entry = L2Entry::subclusters(kept, entry.copied(), allocated, zero);
        self.set_entry(table, index, entry)?;
        if let Some(host) = given_back {
            let clusters = Clusters {
                first: self.cluster_of(host),
                count: 1,
            };
            if self.rules.data_file {
                self.unlink_data(clusters);
            } else {
                self.unlink(clusters, true);
            }
        }
        let place = kept.map(|host| HostOffset(host.0 + from % size));
        self.chain.zero_written(guest, end - from, place);
        Ok(true)
    }
}
