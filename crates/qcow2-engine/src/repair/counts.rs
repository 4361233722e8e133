//! Refcounts written to their blocks.

use qcow2_format::Table;

use super::structure::{Block, Structure};
use super::{Repair, RepairMode};
use crate::check::reader::Reader;
use crate::check::{Finding, FindingCode, Severity};
use crate::error::{Error, Result};
use crate::sink::internal;

impl Repair<'_> {
    /// Makes all blocks say what was counted, as far as the mode and what is known of the references allow.
    pub(super) fn write_counts(&mut self, structure: &Structure) -> Result<()> {
        let geometry = self.header.geometry;
        let per_block = self.header.refcount_order.block_entries(geometry);
        let layer = self.layer;
        let reader = Reader::new(&**layer.storage(), self.header)?;
        let mut old = vec![0; geometry.cluster_len()];
        for (index, block) in structure.blocks() {
            self.context.cancel.check()?;
            let first = index * per_block;
            let unused = self.references.counts.next_counted(first);
            let unused = unused.is_none_or(|next| next >= first + per_block);
            if block.new || reader.is_hole(block.offset, geometry.cluster_size()) {
                if unused && !block.new {
                    continue;
                }
                old.fill(0);
            } else {
                self.writer.read(block.offset, &mut old)?;
            }
            self.write_block(block, first, &old)?;
        }
        self.uncounted(structure, per_block);
        Ok(())
    }

    /// Whether every cluster that is referred to has a block: otherwise its refcount stays too low.
    fn uncounted(&mut self, structure: &Structure, per_block: u64) {
        let known: std::collections::HashSet<u64> = structure.blocks().map(|(index, _)| index).collect();
        let mut at = 0;
        while let Some(cluster) = self.references.counts.next_counted(at) {
            let index = cluster / per_block;
            self.all_right &= known.contains(&index);
            at = (index + 1).saturating_mul(per_block);
        }
    }

    fn write_block(&mut self, block: Block, first: u64, old: &[u8]) -> Result<()> {
        let order = self.header.refcount_order;
        let per_block = order.block_entries(self.header.geometry);
        let size = self.header.geometry.cluster_size();
        let mut new = old.to_vec();
        let (mut raised, mut lowered) = (0, 0);
        for (cluster, index) in (first..first + per_block).zip(0usize..) {
            let before = order.get_at(old, index).ok_or_else(outside)?;
            let counted = self.references.counts.get(cluster);
            if before < counted {
                if self.mode == RepairMode::Leaks {
                    self.all_right = false;
                    continue;
                }
                raised += 1;
            } else if before > counted {
                if self.references.hidden {
                    self.all_right = false;
                    continue;
                }
                lowered += 1;
            } else {
                continue;
            }
            order.set_at(&mut new, index, counted).ok_or_else(outside)?;
            if !block.new {
                let leak = before > counted;
                self.fixed(|| {
                    let (code, severity) = if leak {
                        (FindingCode::Leak, Severity::Leak)
                    } else {
                        (FindingCode::RefcountTooLow, Severity::Corruption)
                    };
                    Finding {
                        cluster: Some(cluster),
                        refcount: Some(before),
                        references: Some(counted),
                        offset: cluster.checked_mul(size),
                        ..Finding::new(code, severity, Table::RefcountBlock)
                    }
                });
            }
        }
        if block.new {
            self.writer.mark()?;
            return self.writer.write(block.offset, &new);
        }
        if raised > 0 {
            self.writer.mark()?;
        }
        self.writer.write_changed(block.offset, old, &new)?;
        self.report.corruptions_fixed += raised;
        self.report.leaks_fixed += lowered;
        Ok(())
    }
}

fn outside() -> Error {
    internal("a refcount stands outside its block")
}
