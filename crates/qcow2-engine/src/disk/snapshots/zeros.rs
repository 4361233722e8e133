//! Zero clusters out of all tables: version 2 has no entry that says zero.

use qcow2_format::{ClusterMapping, GuestOffset, L1Entry};

use super::Mark;
use super::counts::{Counts, Freed};
use super::tree::Tree;
use crate::disk::Image;
use crate::disk::refcounts::Clusters;
use crate::error::{Error, Result};
use crate::progress::JobContext;

/// What stands in the tables of the disk and of its snapshots that version 2 cannot say.
#[derive(Debug, Default)]
pub(in crate::disk) struct Survey {
    /// There are compressed clusters.
    pub(in crate::disk) compressed: bool,
    /// Guest ranges of the disk that hide what lies below by saying zero: begin and end.
    pub(in crate::disk) hiding: Vec<(u64, u64)>,
    /// A snapshot that has such ranges.
    pub(in crate::disk) hiding_snapshot: Option<String>,
    /// There are entries that say zero.
    pub(in crate::disk) zeros: bool,
}

impl Image {
    /// Looks at every entry. `below`: how many bytes lie below the disk. Everything is on disk.
    pub(in crate::disk) fn survey(&self, below: u64, job: &JobContext) -> Result<Survey> {
        let mut survey = Survey::default();
        let cluster = self.geometry.cluster_size();
        for (name, tree) in self.trees()? {
            tree.look(|guest, mapping| {
                job.cancel.check()?;
                match mapping {
                    ClusterMapping::Compressed(_) => survey.compressed = true,
                    ClusterMapping::Zero(_) => survey.zeros = true,
                    _ => {}
                }
                if !matches!(mapping, ClusterMapping::Zero(_)) || guest.0 >= below {
                    return Ok(());
                }
                if let Some(name) = &name {
                    survey.hiding_snapshot.get_or_insert_with(|| name.clone());
                } else {
                    match survey.hiding.last_mut() {
                        Some(last) if last.1 == guest.0 => last.1 += cluster,
                        _ => survey.hiding.push((guest.0, guest.0.saturating_add(cluster))),
                    }
                }
                Ok(())
            })?;
        }
        // Tables come in the file's order.
        survey.hiding.sort_unstable();
        Ok(survey)
    }

    /// Makes every entry that says zero say nothing, which reads the same where nothing lies below; gives back the places that such clusters kept.
    pub(in crate::disk) fn drop_zeros(&self) -> Result<()> {
        self.quiesce()?;
        let trees = self.trees()?;
        let mut counts = Counts::new(self, false);
        let mut mark = Mark::new(self);
        mark.set()?;
        mark.changed = true;
        let mut kept: Vec<(Clusters, u64)> = Vec::new();
        for (_, tree) in &trees {
            tree.drop_zeros(&mut counts, &mut kept)?;
        }
        self.barrier()?;
        // What a table referred to, everybody who shares the table did.
        let mut freed = Freed::default();
        for (clusters, times) in kept {
            for _ in 0..times {
                counts.lower(clusters, &mut freed)?;
            }
        }
        if freed.any_alone {
            let (place, entries) = {
                let state = self.lock();
                (state.header.durable.l1.0, state.l1.entries())
            };
            let active = Tree::new(self, place, entries.iter())?;
            active.mark_copied(&mut counts)?;
        }
        counts.write()?;
        self.barrier()?;
        mark.clear()?;
        self.lock().forget_tables();
        self.chain.forget();
        counts.give_back(&mut freed);
        Ok(())
    }

    /// The tables of the disk, and those of the snapshots with their names.
    fn trees(&self) -> Result<Vec<(Option<String>, Tree<'_>)>> {
        let layer = self.chain.layer(0).ok_or(Error::Closed)?;
        let (place, entries, snapshots) = {
            let state = self.lock();
            (state.header.durable.l1.0, state.l1.entries(), state.snapshots.clone())
        };
        let mut trees = vec![(None, Tree::new(self, place, entries.iter())?)];
        for snapshot in snapshots {
            let (l1, _) = layer.snapshot_l1(&snapshot, self.chain.virtual_size())?;
            let l1 = l1.iter().copied().collect::<Vec<L1Entry>>();
            let tree = Tree::new(self, snapshot.l1_offset.0, l1.into_iter())?;
            let name = String::from_utf8_lossy(&snapshot.name).into_owned();
            trees.push((Some(name), tree));
        }
        Ok(trees)
    }
}

impl Tree<'_> {
    /// Shows what every entry that is not empty means.
    fn look(&self, mut see: impl FnMut(GuestOffset, ClusterMapping) -> Result<()>) -> Result<()> {
        self.walk(|tree, number, bytes| {
            tree.entries(number, bytes, |guest, mapping, _| see(guest, mapping))?;
            Ok(false)
        })
    }

    /// Empties the entries that say zero. `kept` gets the places that they had, and how many share the table.
    fn drop_zeros(&self, counts: &mut Counts<'_>, kept: &mut Vec<(Clusters, u64)>) -> Result<()> {
        self.walk(|tree, number, bytes| {
            let mut times = 1;
            counts.look(tree.table_cluster(number), |_, count| times = count)?;
            let mut changed = false;
            tree.entries(number, bytes, |_, mapping, entry| {
                let ClusterMapping::Zero(host) = mapping else {
                    return Ok(());
                };
                entry.fill(0);
                changed = true;
                let Some(host) = host else { return Ok(()) };
                let first = host.0 >> tree.image().geometry.cluster_bits();
                match kept.last_mut() {
                    Some((last, shared)) if last.first + last.count == first && *shared == times => last.count += 1,
                    _ => kept.push((Clusters { first, count: 1 }, times)),
                }
                Ok(())
            })?;
            Ok(changed)
        })
    }
}
