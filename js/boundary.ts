/**
 * The native functions as the façade uses them. `index.d.ts` is what the addon really has; js/native.ts joins the two.
 */

import type { CacheMode, Compression, Format, LuksInfo, Preallocation } from './types.js'

/** An opened layer, chain or memory storage. */
export type Handle = number

/** Where the bytes of one layer are. */
export interface SourceSpec {
  path?: string
  memory?: Handle
  /** So many bytes that are zeros. */
  zeros?: bigint
  offset?: bigint
  size?: bigint
  /** May it be a block device? Regular files always may. */
  devices?: boolean
  /** Is it written too? Default false. */
  writable?: boolean
  cache?: CacheMode
}

/** How a layer is opened. */
export interface LayerSpec {
  format: Format
  forceShare: boolean
  locking: 'auto' | 'on' | 'off'
  /** Is it written too? Default false. */
  writable?: boolean
  /** Facts alone are wanted: nothing that needs a key or a data file. */
  metadataOnly: boolean
  /** Keep going where `check` wants to report. */
  forCheck: boolean
  maxVirtualSize?: bigint
  maxMemory: number
  maxChainDepth: number
  maxKeyIterations?: number
}

/** What the first and last bytes of a file say. */
export interface HeadFacts extends Identity {
  formats: string[]
  length: bigint
  header?: HeaderFacts
  bootSector?: { fat: boolean; fault?: string }
  fixedVhd: boolean
  vmdk?: VmdkFacts
}

/** What a walk through the mappings of a disk tells. */
export interface SurveyFacts {
  compressed: boolean
  missingGuest?: bigint
  missingHost?: bigint
  complete: boolean
}

/** The descriptor of a VMDK, as it stands there. */
export interface VmdkFacts {
  createType?: string
  extents: string[]
  fault?: string
  cut: boolean
  inFooter: boolean
}

/** The fixed fields of a qcow2 header, as they stand there. */
export interface HeaderFacts {
  version: number
  backingOffset: bigint
  incompatible: bigint
  /** What stands at byte 72, in any version. */
  at72: bigint
  features: { kind: 'incompatible' | 'compatible' | 'autoclear'; bit: number; name?: string }[]
}

/** How a new image is encrypted. */
export interface EncryptionSpec {
  method: 'luks' | 'aes'
  secret: Uint8Array
  cipher: string
  cipherMode: string
  ivGenerator: string
  ivHash?: string
  hash: string
  iterTime: number
  detachedHeader?: boolean
}

/** What becomes of the key slots of an image. */
export interface KeySlotSpec {
  secret: Uint8Array
  newSecret?: Uint8Array
  oldSecret?: Uint8Array
  slot?: number
  iterTime: number
  force: boolean
}

/** What is changed of an image's format; what is left out stays. */
export interface AmendSpec {
  compat?: string
  refcountBits?: number
  lazyRefcounts?: boolean
  dataFileRaw?: boolean
  dataFile?: string
  size?: bigint
  keySlot?: KeySlotSpec
}

/** A snapshot as its table has it. */
export interface SnapshotFacts {
  id: string
  name: string
  vmStateSize: bigint
  dateSec: number
  dateNsec: number
  vmClockNsec: bigint
  icount?: bigint
  diskSize: bigint
}

/** What is known of a layer once it is open. */
export interface LayerFacts {
  handle: Handle
  format: Format
  virtualSize: bigint
  fileSize: bigint
  actualSize?: bigint
  /** What its tables take in memory while it is open. */
  tableBytes: number
  clusterSize?: number
  /** What makes two files the same. */
  device?: bigint
  inode?: bigint
  version?: number
  refcountBits?: number
  compressionType?: Compression
  lazyRefcounts?: boolean
  extendedL2?: boolean
  dirty?: boolean
  corrupt?: boolean
  encryption?: 'aes' | 'luks'
  luks?: LuksInfo
  backingFile?: string
  backingFormat?: string
  /** The recorded name of the data file. */
  dataFile?: string
  needsDataFile?: boolean
  dataFileRaw?: boolean
  snapshots: SnapshotFacts[]
  bitmaps: { name: string; granularity: number; inUse: boolean; auto: boolean }[]
  notices: { code: string; message: string }[]
}

/** What makes two files the same. */
export interface Identity {
  device?: bigint
  inode?: bigint
}

/** An opened chain. */
export interface ChainFacts {
  handle: Handle
  virtualSize: bigint
  clusterSize: number
}

/** A new snapshot. */
export interface NewSnapshotSpec {
  name: string
  allowDuplicate: boolean
  dateSec?: number
  dateNsec?: number
  vmClockNsec?: bigint
  icount?: bigint
}

/** Which snapshot is meant: by its id, by its name, or by either, the id first. */
export interface SnapshotChoiceSpec {
  text: string
  by: 'id' | 'name' | 'any'
}

/** A bitmap of a disk that is written. */
export interface DiskBitmapFacts {
  name: string
  granularity: number
  enabled: boolean
  inconsistent: boolean
  dirtyBytes: bigint
}

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
