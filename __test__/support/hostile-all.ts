/** The whole catalogue of damaged files that one file alone can show. What needs several files, or a file system, is in the spec. */
import { Catalogue, type HostileFile } from './hostile.js'
import { featureEntries, headerEntries } from './hostile-header.js'
import { mappingEntries, specialMappings, streamEntries } from './hostile-mapping.js'
import { backingNameEntries, bitmapEntries, extensionEntries, snapshotEntries } from './hostile-tables.js'

export function hostileFiles(): HostileFile[] {
  const catalogue = new Catalogue()
  for (const clusterBits of [9, 16, 21]) headerEntries(catalogue, clusterBits)
  featureEntries(catalogue)
  for (const clusterBits of [9, 16]) mappingEntries(catalogue, clusterBits)
  specialMappings(catalogue)
  streamEntries(catalogue)
  for (const clusterBits of [9, 16]) snapshotEntries(catalogue, clusterBits)
  extensionEntries(catalogue)
  backingNameEntries(catalogue)
  bitmapEntries(catalogue)
  return catalogue.files
}
