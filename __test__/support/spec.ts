/**
 * What the tests' own writer can be asked for: an image as a description, before anything is laid out.
 */
import type { CompressionName } from './codecs.js'

/** One guest cluster. The same object in two states (active, snapshots) is one host cluster that both refer to. */
export type ClusterSpec =
  | { kind: 'data'; data: Uint8Array }
  | { kind: 'zero'; allocated: boolean }
  | {
      kind: 'compressed'
      /** What it decodes to: a whole cluster. */
      data: Uint8Array
      payload: Uint8Array
      /** Sectors that the descriptor claims beyond what the payload needs. */
      extraSectors?: number
    }
  | {
      /** Extended L2 only: bit i of the masks is subcluster i. */
      kind: 'subclusters'
      host: boolean
      allocated: number
      zero: number
      data: Uint8Array
    }

export type Clusters = Map<number, ClusterSpec>

export interface SnapshotSpec {
  id: string
  name: string
  clusters: Clusters
  /** Virtual size then. Written where the extra data has room for it. */
  size: number
  extraSize?: number
  vmStateSize?: number
  icount?: bigint
  dateSec?: number
  dateNsec?: number
  vmClock?: bigint
  /** More L1 entries than the size needs, as saved machine state makes them. */
  moreL1?: number
}

export interface BitmapSpec {
  name: string
  granularityBits: number
  flags: number
  /** Per cluster of the bitmap: all zeros, all ones, or bytes of a whole cluster. */
  table: ('zeros' | 'ones' | Uint8Array)[]
}

export interface ExtensionSpec {
  type: number
  data: Uint8Array
  /** Length to claim instead of the true one. */
  claim?: number
}

export interface ImageSpec {
  version: 2 | 3
  clusterBits: number
  size: number | bigint
  refcountOrder: number
  extendedL2: boolean
  compression: CompressionName
  clusters: Clusters
  snapshots: SnapshotSpec[]
  bitmaps: BitmapSpec[]
  /** Autoclear bit 0: the bitmaps are in step with the data. */
  bitmapsValid: boolean
  backing?: { name: string; format?: string }
  /** External data file: its name, and whether it alone is a raw image. */
  dataFile?: { name?: string; raw: boolean }
  headerLength: number
  featureNames: boolean
  extensions: ExtensionSpec[]
  /** Ends the extensions with an END marker. */
  endMarker: boolean
  dirty: boolean
  corrupt: boolean
  lazyRefcounts: boolean
  /** Further bits for the three feature words. */
  incompatible: bigint
  compatible: bigint
  autoclear: bigint
  cryptMethod: number
  /** L1 entries beyond what the size needs. */
  moreL1: number
  /** Host clusters that stay free (with rubbish in them) between the used ones, at random: a seed, or 0 for none. */
  scatter: number
  /** Bytes after the end of the image. */
  trailing: number
  /** Cuts the file after the last used byte of the last compressed sector. */
  shortTail: boolean
}

/** A plain version 3 image of `size` bytes without any allocation. */
export function imageSpec(change: Partial<ImageSpec> & { size: number | bigint }): ImageSpec {
  const version = change.version ?? 3
  return {
    version,
    clusterBits: 16,
    refcountOrder: 4,
    extendedL2: false,
    compression: 'zlib',
    clusters: new Map(),
    snapshots: [],
    bitmaps: [],
    bitmapsValid: true,
    headerLength: version === 2 ? 72 : 112,
    featureNames: version === 3 && (change.clusterBits ?? 16) > 12,
    extensions: [],
    endMarker: true,
    dirty: false,
    corrupt: false,
    lazyRefcounts: false,
    incompatible: 0n,
    compatible: 0n,
    autoclear: 0n,
    cryptMethod: 0,
    moreL1: 0,
    scatter: 0,
    trailing: 0,
    shortTail: false,
    ...change,
  }
}

/** Guest bytes of one L2 table. */
export function l2Entries(spec: ImageSpec): number {
  return 2 ** spec.clusterBits / (spec.extendedL2 ? 16 : 8)
}

/** L1 entries that `size` bytes need. */
export function l1Needed(spec: ImageSpec, size: number | bigint): number {
  const span = BigInt(2 ** spec.clusterBits) * BigInt(l2Entries(spec))
  return Number((BigInt(size) + span - 1n) / span)
}
