/**
 * What the core knows of a layer, in the words of the API.
 */

import type { LayerFacts, SnapshotFacts } from './boundary.js'
import type { OpenedLayer } from './chain.js'
import { exact } from './sizes.js'
import { beside } from './source.js'
import type { ChainLayer, ImageInfo, LuksInfo, Notice, SnapshotInfo } from './types.js'

/** One layer of an opened chain. */
export function chainLayer({ facts, path, dataFile }: OpenedLayer, depth: number, bigint: boolean): ChainLayer {
  return withoutAbsent({
    depth,
    format: facts.format,
    path,
    virtualSize: exact(facts.virtualSize, bigint, `the virtual size of layer ${depth}`, path),
    clusterSize: facts.clusterSize,
    backingFile: facts.backingFile,
    backingFormat: facts.backingFormat,
    dataFile,
  })
}

/** Everything about one image. */
export function imageInfo(facts: LayerFacts, path: string | undefined, bigint: boolean): ImageInfo {
  const common = {
    path,
    format: facts.format,
    virtualSize: exact(facts.virtualSize, bigint, 'the virtual size', path),
    actualSize: facts.actualSize === undefined || facts.actualSize === null ? undefined : Number(facts.actualSize),
    fileSize: exact(facts.fileSize, bigint, 'the length of the file', path),
    clusterSize: facts.clusterSize,
    encrypted: Boolean(facts.encryption),
    dirty: facts.dirty ?? false,
    corrupt: facts.corrupt ?? false,
    backingFile: facts.backingFile,
    fullBackingFile: facts.backingFile ? beside(path, facts.backingFile) : undefined,
    backingFormat: facts.backingFormat,
    snapshots: facts.snapshots.map((snapshot) => snapshotInfo(snapshot, bigint, path)),
    bitmaps: facts.bitmaps.map(({ name, granularity, inUse, auto }) => ({
      name,
      granularity,
      flags: [...(inUse ? (['in-use'] as const) : []), ...(auto ? (['auto'] as const) : [])],
    })),
    notices: noticesOf(facts, 0),
  }
  const luks = facts.luks === undefined || facts.luks === null ? undefined : luksInfo(facts.luks)
  if (facts.format === 'raw') return withoutAbsent(common)
  if (facts.format === 'luks') return withoutAbsent({ ...common, encryption: 'luks', luks })
  return withoutAbsent({
    ...common,
    compat: facts.version === 2 ? ('0.10' as const) : ('1.1' as const),
    refcountBits: facts.refcountBits,
    compressionType: facts.compressionType,
    lazyRefcounts: facts.lazyRefcounts,
    extendedL2: facts.extendedL2,
    dataFile: facts.dataFile,
    dataFileRaw: facts.needsDataFile ? facts.dataFileRaw : undefined,
    encryption: facts.encryption,
    luks,
  })
}

/** A LUKS header, in plain objects. */
function luksInfo({ slots, ...rest }: LuksInfo): LuksInfo {
  return withoutAbsent({ ...rest, slots: slots.map((slot) => ({ ...slot })) })
}

/** An internal snapshot. */
export function snapshotInfo(facts: SnapshotFacts, bigint: boolean, path: string | undefined): SnapshotInfo {
  return withoutAbsent({
    id: facts.id,
    name: facts.name,
    vmStateSize: exact(facts.vmStateSize, bigint, `the saved state of snapshot ${facts.id}`, path),
    date: new Date(facts.dateSec * 1000 + Math.floor(facts.dateNsec / 1e6)),
    dateSec: facts.dateSec,
    dateNsec: facts.dateNsec,
    vmClockNsec: facts.vmClockNsec,
    icount: facts.icount,
    diskSize: exact(facts.diskSize, bigint, `the size of snapshot ${facts.id}`, path),
  })
}

/** What was noticed in a layer. */
export function noticesOf(facts: LayerFacts, depth: number): Notice[] {
  return facts.notices.map(({ code, message }) => ({ code, message, depth }))
}

/** Absent fields are really absent: `'dataFile' in info` is false, and nothing prints `undefined`. */
export function withoutAbsent<T extends object>(object: { [K in keyof T]: T[K] | undefined | null }): T {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined && value !== null)) as T
}
