//! What is written to a damaged image: by a repair, and by a guest.

use std::sync::Arc;

use qcow2_engine::{
    CheckOptions, CheckReport, Disk, DiskOptions, Error, Finding, FindingCode, JobContext, Layer, LayerOptions,
    RepairMode, RepairOptions, Severity, SnapshotChoice, Storage, check, repair,
};
use qcow2_format::{GuestOffset, Version};

use super::{Asked, Outcome, WINDOW, chain, limits};
use crate::capped::Capped;

impl Asked<'_> {
    pub(super) fn disk(&self) -> Result<(Disk, Arc<Capped>), Error> {
        let storage = Arc::new(Capped::new(self.bytes.to_vec()));
        let options = LayerOptions {
            writable: true,
            limits: limits(),
            ..LayerOptions::default()
        };
        let layer = Layer::open_qcow2(storage.clone(), &options)?;
        let options = DiskOptions {
            without_backing: true,
            ..DiskOptions::default()
        };
        Ok((Disk::open(vec![layer], options)?, storage))
    }

    /// A repair ends, and a second one does not make it worse; where nothing but leaks and errors was found, no byte of a guest becomes another one.
    pub(super) fn repair(&mut self) -> Outcome {
        let before = self.guest(self.bytes.to_vec());
        let capped = Arc::new(Capped::new(self.bytes.to_vec()));
        let storage: Arc<dyn Storage> = capped.clone();
        let mode = if self.random.one_in(4) {
            RepairMode::Leaks
        } else {
            RepairMode::All
        };
        let options = RepairOptions {
            limits: limits(),
            ..RepairOptions::new(mode)
        };
        let first = repair(&storage, None, options, &JobContext::quiet())?;
        self.judge(&first.before);
        let options = RepairOptions {
            limits: limits(),
            ..RepairOptions::new(mode)
        };
        let second = repair(&storage, None, options, &JobContext::quiet())?;
        let sum = |report: &CheckReport| report.corruptions + report.check_errors;
        if sum(&second.after) > sum(&first.after) {
            self.wrong(format!(
                "a second repair makes it worse: {} then {}",
                sum(&first.after),
                sum(&second.after)
            ));
        }
        let after = self.guest(capped.to_vec());
        // Where tables lie in guests' clusters, mending the ones changes the others: a check has called that corrupt.
        if first.before.corruptions == 0 {
            for (at, (old, new)) in before.iter().zip(&after).enumerate() {
                match (old, new) {
                    (Some(old), Some(new)) if old != new => {
                        self.wrong(format!("cluster {at} has other bytes after a repair"));
                    }
                    (Some(_), None) => self.wrong(format!("cluster {at} cannot be read after a repair")),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The clusters of the disk that can be read.
    fn guest(&self, bytes: Vec<u8>) -> Vec<Option<Vec<u8>>> {
        let options = LayerOptions {
            limits: limits(),
            ..LayerOptions::default()
        };
        let Ok(chain) = Layer::open_qcow2(Arc::new(Capped::new(bytes)), &options).and_then(|layer| chain(layer, None))
        else {
            return Vec::new();
        };
        let cluster = chain.cluster_size().unwrap_or(512);
        let end = chain.virtual_size().min(WINDOW);
        (0..end.div_ceil(cluster))
            .map(|index| {
                let mut bytes = vec![0; cluster.min(end - index * cluster) as usize];
                chain.read(GuestOffset(index * cluster), &mut bytes).ok().map(|_| bytes)
            })
            .collect()
    }

    /// Operations against a byte model. What a check calls sound keeps every byte; of anything else, what was just written is what is read.
    pub(super) fn operations(&mut self) -> Outcome {
        let options = LayerOptions {
            for_check: true,
            limits: limits(),
            ..LayerOptions::default()
        };
        let layer = Layer::open_qcow2(Arc::new(Capped::new(self.bytes.to_vec())), &options)?;
        let report = check(&layer, &CheckOptions::default(), &JobContext::quiet())?;
        let version = layer.header().map_or(Version::V3, |header| header.version);
        drop(layer);
        let sound = report.corruptions == 0 && report.check_errors == 0;
        let mut model = self.guest(self.bytes.to_vec());
        let (disk, storage) = self.disk()?;
        let cluster = disk.chain().cluster_size().unwrap_or(512);
        let end = disk.chain().virtual_size().min(WINDOW);
        for _ in 0..12 {
            let index = self.random.below(end.div_ceil(cluster));
            let at = index * cluster;
            let length = cluster.min(end.saturating_sub(at));
            if length == 0 {
                break;
            }
            let byte = self.random.number() as u8;
            let (outcome, now) = match self.random.below(7) {
                0 => (
                    disk.write_zeroes(GuestOffset(at), length, self.random.one_in(2)),
                    Some(vec![0; length as usize]),
                ),
                1 => (disk.discard(GuestOffset(at), length), None),
                2 => {
                    let taken = disk
                        .snapshots()
                        .first()
                        .map(|one| String::from_utf8_lossy(&one.id).into_owned());
                    let outcome = match taken {
                        Some(id) if version == Version::V3 => disk.snapshot_delete(&SnapshotChoice::Id(id)),
                        _ => disk.flush(),
                    };
                    if let Err(error) = outcome {
                        self.error(&error);
                    }
                    continue;
                }
                _ => (
                    disk.write(GuestOffset(at), &vec![byte; length as usize]),
                    Some(vec![byte; length as usize]),
                ),
            };
            match outcome {
                Err(error) => {
                    self.error(&error);
                    if let Some(slot) = model.get_mut(index as usize) {
                        *slot = None;
                    }
                }
                Ok(()) => {
                    let mut found = vec![0; length as usize];
                    if let Some(wanted) = &now {
                        match disk.chain().read(GuestOffset(at), &mut found) {
                            Ok(_) if found == *wanted => {}
                            Ok(_) => self.wrong(format!("cluster {index} was written and reads as other bytes")),
                            // A table that lies where others do may be changed under it: then it is refused.
                            Err(error) if sound => {
                                self.wrong(format!("cluster {index} was written and does not read: {error}"));
                            }
                            Err(error) => self.error(&error),
                        }
                    }
                    if let Some(slot) = model.get_mut(index as usize) {
                        *slot = now;
                    }
                }
            }
        }
        disk.close()?;
        drop(disk);
        if sound {
            let after = self.guest(storage.to_vec());
            for (at, (wanted, found)) in model.iter().zip(&after).enumerate() {
                if wanted.is_some() && wanted != found {
                    self.wrong(format!("cluster {at} of a sound image is not what was written"));
                }
            }
            let layer = Layer::open_qcow2(storage, &options)?;
            let after = check(&layer, &CheckOptions::default(), &JobContext::quiet())?;
            // A flag that is missing is harmless: a hostile image's plain cluster may share its place with packed bytes, which no check calls wrong.
            let bad = |finding: &Finding| finding.severity != Severity::Leak && finding.code != FindingCode::CopiedFlag;
            if after.findings.iter().any(bad) {
                self.wrong(format!(
                    "a sound image is corrupt after it was written: {:?}",
                    after.findings
                ));
            }
        }
        Ok(())
    }
}
