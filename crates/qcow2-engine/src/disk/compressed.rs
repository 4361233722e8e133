//! Compressed clusters: packed into new host clusters, several of which may share one, and linked once their bytes are there.

use qcow2_format::{ClusterMapping, CompressedDescriptor, GuestOffset, HostOffset, L2Entry};

use super::refcounts::Clusters;
use super::{Disk, Image, Top};
use crate::error::{Error, Result};

/// Where the compressed forms go.
#[derive(Default)]
struct Packed {
    /// New clusters and how many of the forms touch each.
    counts: Vec<(u64, u64)>,
    /// Bytes that lie next to each other, by where they begin.
    rows: Vec<(u64, Vec<u8>)>,
    /// The descriptor of each form.
    descriptors: Vec<CompressedDescriptor>,
}

impl Disk {
    /// Gives guest clusters that the top has nothing for their bytes in a compressed form, each smaller than a cluster: its guest offset and the form, by
    /// the image's compression type. Waits for the requests accepted before and holds later ones. Durable after the next [`Disk::flush`].
    ///
    /// # Errors
    /// [`Error::State`] with code `COMPRESSION_UNSUPPORTED` for a raw file, `COMPRESSION_DATA_FILE`; [`Error::Invalid`] for a cluster that the top has
    /// something for; as [`Disk::write`].
    pub fn write_compressed(&self, forms: &[(GuestOffset, &[u8])]) -> Result<()> {
        let _alone = self.alone()?;
        let Top::Image(image) = &self.top else {
            return Err(Error::State {
                code: "COMPRESSION_UNSUPPORTED",
                path: self.chain.layer(0).and_then(crate::Layer::path),
                reason: "a raw file holds no compressed clusters".into(),
            });
        };
        for (at, form) in forms {
            let size = image.geometry.cluster_size();
            if !at.is_aligned(size) || at.0 >= self.chain.virtual_size() || form.is_empty() || form.len() as u64 >= size
            {
                return Err(Error::Invalid {
                    argument: "forms",
                    reason: format!("{} compressed bytes at {at} are no cluster", form.len()),
                });
            }
        }
        image.write_compressed(forms)
    }
}

impl Image {
    fn write_compressed(&self, forms: &[(GuestOffset, &[u8])]) -> Result<()> {
        if self.guest.is_encrypted() {
            return Err(Error::State {
                code: "COMPRESSION_ENCRYPTION",
                path: self.storage.path().map(Into::into),
                reason: "compressed clusters cannot be encrypted".into(),
            });
        }
        if self.data_file.is_some() {
            return Err(Error::State {
                code: "COMPRESSION_DATA_FILE",
                path: self.storage.path().map(Into::into),
                reason: "an external data file holds no compressed clusters".into(),
            });
        }
        let size = self.geometry.cluster_size();
        for (at, _) in forms {
            self.begin_change(*at, size.min(self.chain.virtual_size().saturating_sub(at.0)))?;
        }
        let mut packed = Packed::default();
        let outcome = self
            .pack(forms, &mut packed)
            .and_then(|()| self.link_packed(forms, &packed));
        // What a reader keeps of a place where something else stood before.
        self.chain.forget();
        outcome
    }

    /// Finds a place for every form and writes them. What fails is given back.
    fn pack(&self, forms: &[(GuestOffset, &[u8])], packed: &mut Packed) -> Result<()> {
        let written = self.place_forms(forms, packed).and_then(|()| {
            packed
                .rows
                .iter()
                .try_for_each(|(at, bytes)| self.write_file(HostOffset(*at), bytes))
        });
        let counted = written.and_then(|()| {
            self.run(|state| {
                for &(cluster, _) in &packed.counts {
                    state.refcount(cluster)?;
                }
                for &(cluster, count) in &packed.counts {
                    state.set_refcount(cluster, count)?;
                    if count == 0 {
                        // Nothing went there.
                        state.hint = state.hint.min(cluster);
                    }
                }
                Ok(())
            })
        });
        if counted.is_err() {
            for &(first, _) in &packed.counts {
                // If that fails too they leak, which a check repairs.
                let _ = self.run(|state| {
                    state.refcount(first)?;
                    state.set_refcount(first, 1)?;
                    state.release(Clusters { first, count: 1 })
                });
            }
        }
        counted
    }

    fn place_forms(&self, forms: &[(GuestOffset, &[u8])], packed: &mut Packed) -> Result<()> {
        let (bits, size) = (self.geometry.cluster_bits(), self.geometry.cluster_size());
        let most = self.lock().order.max();
        // From where to where there is room.
        let (mut at, mut end) = (0u64, 0u64);
        let mut left: u64 = forms.iter().map(|(_, form)| form.len() as u64).sum();
        for (_, form) in forms {
            let length = form.len() as u64;
            let touched = packed.counts.iter().rev().find(|(cluster, _)| *cluster == at >> bits);
            if at < end && !at.is_multiple_of(size) && touched.is_some_and(|(_, count)| *count >= most) {
                // This cluster's refcount counts no further.
                at = at.next_multiple_of(size);
                packed.rows.push((at, Vec::new()));
            }
            while end - at < length {
                let new = self.run(|state| state.allocate(left.div_ceil(size).max(1)))?;
                packed
                    .counts
                    .extend((new.first..new.first + new.count).map(|cluster| (cluster, 0)));
                let begin = new.first << bits;
                if at == 0 || begin != end {
                    at = begin;
                    packed.rows.push((at, Vec::new()));
                }
                end = begin + (new.count << bits);
            }
            let descriptor = CompressedDescriptor::new(HostOffset(at), length, self.geometry).ok_or(Error::Limit {
                limit: "fileLength",
                allowed: 1 << 55,
                wanted: at,
            })?;
            for cluster in at >> bits..=(at + length - 1) >> bits {
                if let Some((_, count)) = packed.counts.iter_mut().rev().find(|(other, _)| *other == cluster) {
                    *count += 1;
                }
            }
            if let Some((_, bytes)) = packed.rows.last_mut() {
                bytes.extend_from_slice(form);
            }
            packed.descriptors.push(descriptor);
            at += length;
            left -= length;
        }
        for (begin, bytes) in &mut packed.rows {
            // Whoever reads a form reads up to the end of its last sector.
            let whole = (*begin + bytes.len() as u64).next_multiple_of(512) - *begin;
            bytes.resize(usize::try_from(whole).unwrap_or(usize::MAX), 0);
        }
        packed.rows.retain(|(_, bytes)| !bytes.is_empty());
        Ok(())
    }

    fn link_packed(&self, forms: &[(GuestOffset, &[u8])], packed: &Packed) -> Result<()> {
        for ((at, _), descriptor) in forms.iter().zip(&packed.descriptors) {
            let entry = L2Entry::compressed(*descriptor, self.geometry);
            self.run(|state| {
                let index = state.geometry.l2_index(*at);
                let cluster = at.0 >> state.geometry.cluster_bits();
                let table = state.own_l2(state.geometry.l1_index(*at))?;
                let (_, mapping) = state.mapping(table, index, cluster)?;
                let nothing = ClusterMapping::Subclusters {
                    host: None,
                    allocated: 0,
                    zero: 0,
                };
                if mapping != ClusterMapping::Unallocated && mapping != nothing {
                    return Err(super::state::Stop::Fail(Error::Invalid {
                        argument: "forms",
                        reason: format!("the image has something for the cluster at {at} already"),
                    }));
                }
                state.set_entry(table, index, entry)
            })?;
        }
        Ok(())
    }
}
