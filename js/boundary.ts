/**
 * The native functions as the façade uses them. `index.d.ts` is what the addon really has; js/native.ts joins the two.
 */

import type {
  AmendSpec,
  DiskBitmapFacts,
  EncryptionSpec,
  Handle,
  LayerSpec,
  NewSnapshotSpec,
  SnapshotChoiceSpec,
  SnapshotFacts,
  SourceSpec,
} from './boundary-layers.js'
import type { CacheMode, Compression, Format, Preallocation } from './types.js'

export type * from './boundary-layers.js'

/** Where an image is written. */
export interface TargetSpec {
  path?: string
  memory?: Handle
  /** A disk that is open for writing. */
  disk?: Handle
  overwrite: boolean
  durable: boolean
  inPlace: boolean
  cache?: CacheMode
}

/** A new image. Numbers are checked in JavaScript for their range, in the core against each other. */
export interface CreateSpec {
  format: Format
  size?: bigint
  clusterSize: number
  version: 2 | 3
  refcountBits: number
  extendedL2: boolean
  lazyRefcounts: boolean
  compressionType: Compression
  backing?: string
  backingFormat?: string
  preallocation: Preallocation
  /** The data file's name as it is recorded, and where it is made. */
  dataFile?: string
  dataFilePath?: string
  dataFileRaw: boolean
  nocow: boolean
  extentSizeHint?: bigint
  encryption?: EncryptionSpec
}

/** What was made. */
export interface CreateFacts {
  virtualSize: bigint
  fileSize: bigint
}

/** A conversion. */
export interface ConvertSpec {
  create: CreateSpec
  compression?: Compression
  level?: number
  sparseSize: number
  threads: number
  /** The chain below the target. */
  backing?: Handle
  targetIsZero: boolean
  rangeStart?: bigint
  rangeLength?: bigint
  maxOutput?: bigint
  rateLimit?: number
  salvage: boolean
  /** Names of bitmaps that the target gets. */
  bitmaps?: string[]
}

/** A range of a source that could not be read. */
export interface LostFacts {
  offset: bigint
  length: bigint
  mapping: boolean
  errno: number
  reason: string
}

/** What a conversion did. */
export interface ConvertFacts extends CreateFacts {
  dataBytes: bigint
  zeroBytes: bigint
  compressedClusters: bigint
  lost: LostFacts[]
  lostOmitted: bigint
}

/** The answer of a comparison. */
export interface CompareFacts {
  identical: boolean
  offset?: bigint
  reason?: 'content' | 'size' | 'allocation'
  sizesDiffer: boolean
}

/** One finding of a check. */
export interface FindingFacts {
  code: string
  severity: 'leak' | 'corruption' | 'error'
  table: string
  index?: bigint
  offset?: bigint
  length?: bigint
  cluster?: bigint
  refcount?: bigint
  references?: bigint
  guestRanges: { start: bigint; length: bigint }[]
  snapshot?: string
  snapshotId?: string
  message: string
  value?: bigint
  detail?: string
}

/** The answer of a check. */
export interface CheckFacts {
  checkErrors: bigint
  corruptions: bigint
  leaks: bigint
  imageEndOffset: bigint
  totalClusters: bigint
  allocatedClusters: bigint
  fragmentedClusters: bigint
  compressedClusters: bigint
  findings: FindingFacts[]
  findingsOmitted: bigint
}

/** What a commit did. Sizes in bytes. */
export interface CommitFacts {
  virtualSize: bigint
  dataBytes: bigint
  zeroBytes: bigint
  grown: boolean
  emptied: boolean
}

/** The answer of a repair. */
export interface RepairFacts {
  before: CheckFacts
  after: CheckFacts
  fixed: FindingFacts[]
  leaksFixed: bigint
  corruptionsFixed: bigint
  rebuilt: bigint
  stillMarked: boolean
}

/** What a rebase did, in guest bytes. */
export interface RebaseFacts {
  dataBytes: bigint
  zeroBytes: bigint
  compressedClusters: bigint
}

/** What is measured: a chain or a size, and the target. */
export interface MeasureSpec {
  chain?: Handle
  size?: bigint
  format: Format
  clusterSize: number
  version: 2 | 3
  refcountBits: number
  extendedL2: boolean
  preallocation: Preallocation
  dataFile: boolean
  dataFileRaw: boolean
  backing: boolean
  encryption?: EncryptionSpec
}

/** The answer of a measurement, in bytes. */
export interface MeasureFacts {
  required: bigint
  fullyAllocated: bigint
  bitmaps?: bigint
}

/** A digest. The bytes of hashes are those of the arrays. */
export interface DigestFacts {
  virtualSize: bigint
  root: BigUint64Array
  blocks: bigint
  zeroBlocks: bigint
  /** Of each run of leaves, how many blocks are zeros and how many hashes follow. */
  runs?: BigUint64Array
  hashes?: BigUint64Array
}

/** What a disk is verified against, beside the bytes. */
export interface VerifySpec {
  algorithm: string
  blockSize: number
  virtualSize?: bigint
  start?: bigint
  end?: bigint
  maxRanges: number
}

/** The answer of a verification. */
export interface VerifyFacts {
  identical: boolean
  virtualSize: bigint
  checked: bigint
  differentBlocks: bigint
  /** Begin and end of each range. */
  different: BigUint64Array
  omitted: bigint
}

/** The addon. Asynchronous functions take the call's number first and answer through the callback that `start` was given. */
export interface Addon {
  memoryCreate(bytes?: Uint8Array): Handle
  memorySize(memory: Handle): number
  memoryRead(memory: Handle, buffer: Uint8Array, position: number): number
  memoryWrite(memory: Handle, bytes: Uint8Array, position: number): void
  memoryTruncate(memory: Handle, size: number): void
  memoryClose(memory: Handle): void
  probeFormat(id: number, source: SourceSpec): void
  inspectHead(id: number, source: SourceSpec, complete: boolean): void
  survey(id: number, chain: Handle, most: number): void
  openLayer(id: number, source: SourceSpec, options: LayerSpec, luksHeader?: SourceSpec): void
  attachDataFile(id: number, layer: Handle, source: SourceSpec): void
  unlockLayer(id: number, layer: Handle, secret: Uint8Array, legacy: boolean): void
  openChain(id: number, layers: Handle[], options: { snapshot?: string; cacheBytes: number; maxChainDepth: number; withoutBacking?: boolean }): void
  read(id: number, chain: Handle, target: Uint8Array, offset: number, length: number, positionLow: number, positionHigh: number): void
  tryRead(chain: Handle, target: Uint8Array, offset: number, length: number, positionLow: number, positionHigh: number): number
  openDisk(id: number, layers: Handle[], cacheBytes: number, withoutBacking?: boolean): void
  write(id: number, disk: Handle, source: Uint8Array, offset: number, length: number, positionLow: number, positionHigh: number): void
  writeZeroes(id: number, disk: Handle, position: bigint, length: bigint, unmap: boolean): void
  discard(id: number, disk: Handle, position: bigint, length: bigint): void
  flush(id: number, disk: Handle): void
  amend(id: number, disk: Handle, options: AmendSpec): void
  resize(id: number, disk: Handle, size: bigint, options: { shrink: boolean; preallocation: Preallocation }): void
  snapshotList(disk: Handle): SnapshotFacts[]
  snapshotCreate(id: number, disk: Handle, snapshot: NewSnapshotSpec): void
  snapshotApply(id: number, disk: Handle, which: SnapshotChoiceSpec): void
  snapshotDelete(id: number, disk: Handle, which: SnapshotChoiceSpec): void
  snapshotRename(id: number, disk: Handle, which: SnapshotChoiceSpec, name: string): void
  snapshotOpen(id: number, disk: Handle, which: SnapshotChoiceSpec): void
  bitmapList(disk: Handle): DiskBitmapFacts[]
  bitmapAdd(id: number, disk: Handle, bitmap: { name: string; granularity?: bigint; enabled: boolean }): void
  bitmapRemove(id: number, disk: Handle, name: string): void
  bitmapClear(id: number, disk: Handle, name: string): void
  bitmapEnable(id: number, disk: Handle, name: string, enabled: boolean): void
  bitmapMerge(id: number, disk: Handle, target: string, source: string): void
  bitmapMergeFrom(id: number, disk: Handle, target: string, source: Handle, name: string): void
  bitmapDirty(id: number, disk: Handle, name: string, start: bigint, max: number): void
  map(id: number, chain: Handle, start: bigint, length: bigint, max: number): void
  create(id: number, target: TargetSpec, options: CreateSpec): void
  convert(id: number, sources: Handle[], target: TargetSpec, options: ConvertSpec): void
  compare(id: number, a: Handle, b: Handle, options: { strict: boolean }): void
  digest(id: number, chain: Handle, options: { algorithm: string; blockSize: number; leaves?: bigint }): void
  verify(id: number, chain: Handle, root: Uint8Array, runs: Uint8Array, hashes: Uint8Array, options: VerifySpec): void
  rebase(
    id: number,
    disk: Handle,
    old: Handle | undefined,
    options: { backing?: string; backingFormat?: string; unchecked: boolean; compress: boolean },
  ): void
  commit(id: number, top: Handle, base: Handle, options: { empty: boolean; rateLimit?: number }): void
  check(id: number, layer: Handle, options: { maxFindings: number }): void
  repair(id: number, source: SourceSpec, layer: LayerSpec, options: { all: boolean; maxFindings: number }): void
  measure(id: number, options: MeasureSpec): void
  close(id: number, handle: Handle): void
}
