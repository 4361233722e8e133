/**
 * All hundred entries of the catalogue as files: a case is a folder with an image in it and, where the entry needs them, the files around it.
 * `scripts/hostile-images.mjs` writes them out; 33-hostile-verdicts.spec.ts asks everything of each.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Catalogue, type HostileFile } from './hostile.js'
import { aroundEntries } from './hostile-around.js'
import { featureEntries, headerEntries } from './hostile-header.js'
import { luksEntries } from './hostile-luks.js'
import { mappingEntries, specialMappings, streamEntries } from './hostile-mapping.js'
import { backingNameEntries, bitmapEntries, extensionEntries, snapshotEntries } from './hostile-tables.js'

/** The image's name in the folder of its case. */
export const IMAGE = 'image.qcow2'

export interface HostileCase {
  /** Number in the catalogue. */
  entry: number
  /** Number, which of its forms, and the cluster size where it depends on it: unique. */
  name: string
  /** Writes the image, and what lies around it, into an empty folder. */
  write(folder: string): void
}

function ofFile({ name, make }: HostileFile): HostileCase {
  return {
    // What is refused by name alone is one of the encryption methods, 14.
    entry: Number.parseInt(name, 10) || 14,
    name,
    write: (folder) => writeFileSync(join(folder, IMAGE), make().bytes),
  }
}

export function hostileCases(): HostileCase[] {
  const catalogue = new Catalogue()
  for (const clusterBits of [9, 12, 16, 21]) headerEntries(catalogue, clusterBits)
  featureEntries(catalogue)
  for (const clusterBits of [9, 12, 16, 21]) mappingEntries(catalogue, clusterBits)
  specialMappings(catalogue)
  streamEntries(catalogue)
  for (const clusterBits of [9, 12, 16, 21]) snapshotEntries(catalogue, clusterBits)
  extensionEntries(catalogue)
  backingNameEntries(catalogue)
  bitmapEntries(catalogue)
  const cases = [...catalogue.files.map(ofFile), ...aroundEntries(), ...luksEntries()]
  return cases.sort((a, b) => a.entry - b.entry)
}

/** A name that a file system takes. */
export function slug(name: string): string {
  return name
    .replace(/(?<=[ .])\./g, ' dot')
    .replace(/[^A-Za-z0-9]+/g, '-')
    .replace(/^-|-$/g, '')
    .toLowerCase()
}
