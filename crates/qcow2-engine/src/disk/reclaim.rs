//! Giving space back: later than everything that could still name or read it.
//!
//! The quarantine is what was unlinked and is not reclaimed yet. A refcount is lowered only once the unlink is durable, every older ticket has ended
//! and the host hole is punched: until then the cluster counts as used, so nobody can be given it. Clusters of a data file have no refcounts; there
//! a range leaves the quarantine when it is linked again, and its hole is not punched.

use qcow2_format::HostOffset;

use super::Image;
use super::refcounts::Clusters;
use super::state::{State, Step, Stop};
use super::weaken::Weaken;
use crate::error::Result;

/// Host clusters that lost one reference each.
#[derive(Clone, Copy, Debug)]
struct Unlink {
    clusters: Clusters,
    /// Tickets below may still be read from there.
    ticket: u64,
    /// A host hole is wanted if nothing else refers to them.
    punch: bool,
    /// They are in the data file.
    data: bool,
}

/// What was unlinked, by how far its unlink has come.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    open: Vec<Unlink>,
    sealed: Vec<Unlink>,
    durable: Vec<Unlink>,
    /// Holes that are being punched in the data file.
    punching: Vec<Clusters>,
    /// Tests only: see [`Weaken::NO_QUARANTINE`].
    pub(super) skip: bool,
    /// Tests only: see [`Weaken::NO_PUNCH_CANCEL`].
    pub(super) punch_always: bool,
}

impl Quarantine {
    /// A flush writes what was unlinked so far.
    pub(super) fn seal(&mut self) {
        self.sealed.append(&mut self.open);
    }

    /// What was sealed is durable.
    pub(super) fn settle(&mut self) {
        self.durable.append(&mut self.sealed);
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.sealed.is_empty() && self.durable.is_empty()
    }

    /// Whether something waits for nothing but its turn.
    pub(super) fn has_durable(&self) -> bool {
        !self.durable.is_empty()
    }

    /// A range of the data file is linked again. `false`: its hole is being punched just now.
    pub(super) fn relink(&mut self, clusters: Clusters) -> bool {
        if self.punch_always {
            return true;
        }
        if self.punching.iter().any(|punching| overlap(punching, &clusters)) {
            return false;
        }
        for list in [&mut self.open, &mut self.sealed, &mut self.durable] {
            let mut kept = Vec::with_capacity(list.len());
            for unlink in list.drain(..) {
                if unlink.data && overlap(&unlink.clusters, &clusters) {
                    kept.extend(without(unlink.clusters, clusters).map(|clusters| Unlink { clusters, ..unlink }));
                } else {
                    kept.push(unlink);
                }
            }
            *list = kept;
        }
        true
    }

    fn push(&mut self, unlink: Unlink) {
        let list = if self.skip { &mut self.durable } else { &mut self.open };
        // Rows that were unlinked in order are one.
        if let Some(last) = list.last_mut()
            && last.clusters.first + last.clusters.count == unlink.clusters.first
            && (last.ticket, last.punch, last.data) == (unlink.ticket, unlink.punch, unlink.data)
        {
            last.clusters.count += unlink.clusters.count;
            return;
        }
        list.push(unlink);
    }
}

fn overlap(a: &Clusters, b: &Clusters) -> bool {
    a.first < b.first + b.count && b.first < a.first + a.count
}

/// The parts of `a` that are not in `b`.
fn without(a: Clusters, b: Clusters) -> impl Iterator<Item = Clusters> {
    let left = (a.first, b.first.clamp(a.first, a.first + a.count));
    let right = ((b.first + b.count).clamp(a.first, a.first + a.count), a.first + a.count);
    [left, right]
        .into_iter()
        .filter(|(from, to)| from < to)
        .map(|(from, to)| Clusters {
            first: from,
            count: to - from,
        })
}

impl State {
    /// Clusters of the image lost one reference each. `punch`: their bytes are nobody's any more.
    pub(super) fn unlink(&mut self, clusters: Clusters, punch: bool) {
        let ticket = self.chain.tickets().now();
        self.quarantine.push(Unlink {
            clusters,
            ticket,
            punch,
            data: false,
        });
    }

    /// Clusters of the data file are named no more.
    pub(super) fn unlink_data(&mut self, clusters: Clusters) {
        let ticket = self.chain.tickets().now();
        self.quarantine.push(Unlink {
            clusters,
            ticket,
            punch: true,
            data: true,
        });
    }

    /// Makes sure that no hole is punched where the data file is linked again.
    pub(super) fn relink(&mut self, clusters: Clusters) -> Step<()> {
        if self.quarantine.relink(clusters) {
            return Ok(());
        }
        Err(Stop::Wait)
    }

    /// Takes an unlink that may be reclaimed out of the quarantine, with what of it is to be punched.
    fn next_reclaim(&mut self, heed_tickets: bool) -> Step<Option<(Unlink, Vec<Clusters>)>> {
        let oldest = self
            .chain
            .tickets()
            .oldest()
            .filter(|_| heed_tickets)
            .unwrap_or(u64::MAX);
        let Some(at) = self
            .quarantine
            .durable
            .iter()
            .position(|unlink| unlink.ticket <= oldest)
        else {
            return Ok(None);
        };
        let Some(&unlink) = self.quarantine.durable.get(at) else {
            return Ok(None);
        };
        let mut holes: Vec<Clusters> = Vec::new();
        if unlink.data {
            holes.push(unlink.clusters);
        } else {
            self.touch_refcounts(unlink.clusters)?;
            for cluster in unlink.clusters.first..unlink.clusters.first + unlink.clusters.count {
                // What a hostile image's guest let go of may be a table of ours.
                if !unlink.punch || self.is_table(cluster) || self.refcount(cluster)? != 1 {
                    continue;
                }
                match holes.last_mut() {
                    Some(last) if last.first + last.count == cluster => last.count += 1,
                    _ => holes.push(Clusters {
                        first: cluster,
                        count: 1,
                    }),
                }
            }
        }
        self.quarantine.durable.swap_remove(at);
        if unlink.data {
            self.quarantine.punching.push(unlink.clusters);
        }
        Ok(Some((unlink, holes)))
    }

    /// Whether a cluster is one of the image's own structures, whatever a hostile entry makes of it.
    fn is_table(&mut self, cluster: u64) -> bool {
        self.guard.has(cluster) || self.is_active_l2(self.offset_of(cluster))
    }

    fn lower(&mut self, clusters: Clusters, tables: bool) -> Step<()> {
        self.touch_refcounts(clusters)?;
        for cluster in clusters.first..clusters.first + clusters.count {
            let ours = if tables {
                self.guard.has(cluster)
            } else {
                self.is_table(cluster)
            };
            if ours {
                continue;
            }
            let count = self.refcount(cluster)?;
            // None left: somebody else's mistake, which a check reports. There is nothing to take away.
            let Some(count) = count.checked_sub(1) else { continue };
            self.set_refcount(cluster, count)?;
            if count == 0 {
                self.hint = self.hint.min(cluster).max(1);
                if tables {
                    self.drop_tables(self.offset_of(cluster), self.cluster_size());
                }
            }
        }
        Ok(())
    }
}

impl Image {
    /// Reclaims what may be. What cannot be reclaimed for an error leaks, which a check repairs: nothing else depends on it.
    ///
    /// # Errors
    /// What forbids lowering a refcount.
    pub(super) fn reclaim(&self) -> Result<()> {
        let heed_tickets = !self.weaken.has(Weaken::NO_TICKETS);
        while let Some((unlink, holes)) = self.run(|state| state.next_reclaim(heed_tickets))? {
            let storage = if unlink.data { self.data() } else { &self.storage };
            for hole in &holes {
                let (offset, length) = (
                    hole.first << self.geometry.cluster_bits(),
                    hole.count << self.geometry.cluster_bits(),
                );
                // Space that cannot be given back is still free for the image.
                let _ = storage.punch(HostOffset(offset), length);
                self.wrote(unlink.data);
            }
            if unlink.data {
                let mut state = self.lock();
                state.quarantine.punching.retain(|other| *other != unlink.clusters);
                self.changed.notify_all();
                continue;
            }
            // What is punched held guest data: no table of it is kept.
            self.run(|state| state.lower(unlink.clusters, !unlink.punch))?;
        }
        Ok(())
    }
}
