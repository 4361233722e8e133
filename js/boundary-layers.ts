/**
 * What is said of layers, chains and their parts across the boundary to the addon.
 */

import type { CacheMode, Compression, Format, LuksInfo } from './types.js'

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
