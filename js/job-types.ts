/**
 * The shapes of the calls that make, copy and judge images: options in, results out.
 */

import type { ProfileName } from './inspect-types.js'
import type {
  ByteCount,
  CacheMode,
  Compression,
  Format,
  JobOptions,
  Limits,
  NewEncryption,
  OpenOptions,
  Preallocation,
  SizeOption,
  SourceOptions,
} from './types.js'

/**
 * Options of a new image. Numbers of the format are checked against compat and each other. Where `backing` may lie is not restricted:
 * creating is the caller's own act.
 */
export interface CreateOptions {
  /** Virtual size. May be left out with `backing`: then the size of the backing file. Rounded up to 512 bytes. */
  size?: SizeOption
  /** `'qcow2'` (default; by extension for `.raw`) or `'raw'`. */
  format?: Format
  /** Bytes, a power of two from 512 to 2 MiB. Default 65536. */
  clusterSize?: SizeOption
  /** `'1.1'` (version 3, default) or `'0.10'` (version 2); `'v3'` and `'v2'` mean the same. */
  compat?: '1.1' | '0.10' | 'v3' | 'v2'
  /** 1, 2, 4, 8, 16 (default), 32 or 64. */
  refcountBits?: number
  extendedL2?: boolean
  lazyRefcounts?: boolean
  /** How compressed clusters of this image are compressed. Default `'zlib'`. */
  compressionType?: Compression
  /** Name of the backing file as it is recorded, relative to the new image's folder. */
  backing?: string
  /** Required with `backing`. */
  backingFormat?: Format
  /** Record the backing file without opening it (then `size` is needed). Default false. */
  backingUnchecked?: boolean
  preallocation?: Preallocation
  /** Name of the external data file, which is created, relative to the new image's folder. */
  dataFile?: string
  /** The external data file alone is a valid raw image. */
  dataFileRaw?: boolean
  /** Sets the file's no-copy-on-write attribute where the file system has it. */
  nocow?: boolean
  /** Extent size hint in bytes, where the file system has it; 0 for none. */
  extentSizeHint?: SizeOption
  /** Guest data is encrypted. Not together with compression or `dataFileRaw`. */
  encryption?: NewEncryption
  /** Replace an existing file. Default false: `ERR_QCOW2_EXISTS`. */
  overwrite?: boolean
  /** Sync the file and its folder before the call resolves. Default false. */
  durable?: boolean
  /** The caches that the new files are written with. Said, and not `'unsafe'`, it makes them `durable`. */
  cache?: CacheMode
  signal?: AbortSignal
}

/** What {@link create} made. Sizes are `bigint` where they pass 2^53-1. */
export interface CreateResult {
  path?: string
  format: Format
  virtualSize: number | bigint
  /** Length of the file in bytes. */
  fileSize: number | bigint
}

/** Options of {@link convert}. */
export interface ConvertOptions extends JobOptions, Omit<CreateOptions, 'size' | 'signal' | 'backingUnchecked' | 'format'> {
  /** Make what this destination takes (docs/inspect.md): its recipe where nothing else is said; what contradicts its rules is refused. */
  profile?: ProfileName
  /** Target format: as said, else by the target's extension (`.qcow2`, `.raw`), else `'qcow2'`. */
  format?: Format
  /**
   * Format of the sources: as said, else by extension (`.qcow2`, `.raw`), else by content. An image whose format was found by content may
   * name no other file (`ERR_QCOW2_FORMAT_NOT_SAID`), and a `.raw` that begins with a qcow2 header is refused (`ERR_QCOW2_FORMAT_AMBIGUOUS`).
   * A list has one format for each source.
   */
  sourceFormat?: Format | readonly Format[]
  /** Compress clusters. `true` means the target's compression type. Default: none. */
  compression?: Compression | boolean
  /**
   * Level of the compressor. zlib 1–9: 1 to 3 are fast, 4 to 6 what is done without a level (fast, and no larger than what qemu-img writes), 7 to 9
   * small. zstd 1–22, by default 3.
   */
  level?: number
  /** Convert this snapshot (id or name) instead of the active state. */
  snapshot?: string
  /** Zero areas of at least this many bytes become holes. A multiple of 512; 0 writes every byte. Default 4096. */
  sparseSize?: SizeOption
  /** Workers, 1–64. Default: the processors, at most 8. The output does not depend on it. */
  threads?: number
  /** Most bytes that are copied in a second, 1 or more. Default: none. */
  rateLimit?: SizeOption
  /**
   * Write into an existing target instead of making a new one: a raw file, a block device, or a qcow2 image, whose own backing and data files are
   * opened under `source`'s rules. What it has beyond the source stays. A failure leaves it undefined.
   */
  noCreate?: boolean
  /** With `noCreate`: the target is known to read as zeros. */
  targetIsZero?: boolean
  /**
   * Give the target the persistent bitmaps of the source, which is one image. `true`: one that is inconsistent is refused; `'skip-broken'`: it is left
   * out. Default false.
   */
  bitmaps?: boolean | 'skip-broken'
  /** Write zeros for what cannot be read of the sources, and tell in the result what that was. Default false. */
  salvage?: boolean
  /** Options of `open` for the sources. */
  source?: SourceOptions
  limits?: Limits
}

/** A range that could not be read, and became zeros. In bytes. */
export interface LostRange {
  offset: number | bigint
  length: number | bigint
  /** `'data'`: its bytes could not be read; `'mapping'`: where they are is not known, though they may have been read. */
  what: 'data' | 'mapping'
  /** The system's error number, if it was the system. */
  errno?: number
  message: string
}

/** What a conversion did. All counts in bytes; `bigint` where they pass 2^53-1, or with `source: { bigint: true }`. */
export interface ConvertResult {
  sourceFormats: Format[]
  format: Format
  virtualSize: number | bigint
  /** Length of the written file. */
  fileSize: number | bigint
  /** Guest bytes that were copied as data (plain or compressed). */
  dataBytes: number | bigint
  /** Guest bytes that became zeros or holes. */
  zeroBytes: number | bigint
  /** Clusters that were stored compressed. */
  compressedClusters: number
  /** With `salvage`: what could not be read, by rising offset, at most 10000 ranges. */
  lost?: LostRange[]
  /** How many more there are. */
  lostOmitted?: number
}

/** Options of {@link compare}. */
export interface CompareOptions extends JobOptions {
  strict?: boolean
  formatA?: Format
  formatB?: Format
  /** Options of `open` for both sides. */
  source?: SourceOptions & Pick<OpenOptions, 'snapshot'>
}

/** The answer of {@link compare}. */
export interface CompareResult {
  identical: boolean
  /** First difference: start of the 512-byte sector, or of the differing run in strict mode. */
  offset?: number | bigint
  /** `'size'`: behind the end of the shorter one the longer is not zeros, at `offset`; or, with `strict`, the sizes differ. */
  reason?: 'content' | 'size' | 'allocation'
  /** The virtual sizes differ; without `strict` that is no difference if the rest reads as zeros. */
  sizesDiffer: boolean
}

/** One finding of {@link check}. */
export interface Finding {
  /** Stable name, such as `'LEAK'`, `'REFCOUNT_TOO_LOW'`, `'COPIED_FLAG'`, `'UNALIGNED_DATA'`, `'BEYOND_END_OF_FILE'`. */
  code: string
  severity: 'leak' | 'corruption' | 'error'
  /** Which structure: `'header'`, `'l1'`, `'l2'`, `'refcount-table'`, `'refcount-block'`, `'snapshot-table'`, `'bitmap-directory'`, … */
  table: string
  /** Index of the entry in its table. */
  index?: number | bigint
  /** Offset of the entry or table in the file. */
  offset?: number | bigint
  /** Length in bytes of what `offset` names, where that is the matter. */
  length?: number | bigint
  /** Host cluster index it is about. */
  cluster?: number | bigint
  /** Refcount on disk and references counted, where that is the matter. */
  refcount?: number | bigint
  references?: number | bigint
  /** Guest ranges that it touches. At most 16 are listed. */
  guestRanges: { start: number | bigint; length: number | bigint }[]
  /** Name and id of the snapshot the walk was in, if any. */
  snapshot?: string
  snapshotId?: string
  message: string
  /** The entry's raw value, where that is the matter. */
  value?: bigint
  /** More, in words: what the system or the format says. */
  detail?: string
}

/** Options of {@link check}. */
export interface CheckOptions extends JobOptions, Pick<OpenOptions, 'format' | 'bigint' | 'forceShare' | 'locking' | 'limits' | 'cache'> {
  /** Most findings that are returned (all are counted). Default 10000. */
  maxFindings?: number
  /**
   * What is repaired: `'leaks'`, space that nothing refers to; `'all'`, everything that follows from what refers to what: refcounts and their structure,
   * COPIED flags, the snapshot table. Default: nothing is written.
   */
  repair?: 'leaks' | 'all'
}

/**
 * The counts of qemu-img's JSON, in camelCase, and the findings: with `repair`, those of the image as it is afterwards. `bigint` with that option, or where a number
 * passes 2^53-1.
 */
export interface CheckResult {
  format: Format
  checkErrors: number
  corruptions: number
  leaks: number
  imageEndOffset: number | bigint
  totalClusters: number | bigint
  allocatedClusters: number | bigint
  fragmentedClusters: number | bigint
  compressedClusters: number | bigint
  findings: Finding[]
  /** Findings that were counted but not returned. */
  findingsOmitted: number
  /** What was repaired; 0 without `repair`. */
  leaksFixed: number
  corruptionsFixed: number
  /** With `repair`: more about it. */
  repair?: RepairResult
}

/** What {@link check} repaired. */
export interface RepairResult {
  /** What was found before. */
  found: Finding[]
  /** Findings that were counted but not returned. */
  foundOmitted: number
  /** What was mended, one by one, as it stood before. */
  fixed: Finding[]
  /** Refcount blocks and tables that were made anew in another place. They are among `corruptionsFixed`. */
  rebuilt: number
  /** The image is still marked dirty or corrupt, for something is left that cannot be repaired. */
  stillMarked: boolean
}

/** Options of {@link commit}. */
export interface CommitOptions
  extends JobOptions,
    Pick<OpenOptions, 'format' | 'backingFiles' | 'dataFile' | 'bigint' | 'locking' | 'secret' | 'legacy' | 'limits' | 'cacheSize' | 'cache'> {
  /**
   * The layer that is written to: its path, or its name as the layer above it records it (a relative one begins at that layer's folder, too). Default:
   * the backing file of the image. Given, the image is not emptied.
   */
  base?: string
  /** Leave the image as it is instead of emptying it. Default: false, and true with `base`. */
  drop?: boolean
  /** Most bytes that are copied in a second, 1 or more. Default: none. */
  rateLimit?: SizeOption
}

/** What {@link commit} did. All counts in bytes; `bigint` where they pass 2^53-1, or with that option. */
export interface CommitResult {
  /** Path of the layer that was written to. */
  base: string
  /** Its place in the chain: 1 is the direct backing file. */
  depth: number
  /** Virtual size of the base now. */
  virtualSize: number | bigint
  /** Guest bytes that were written to the base. */
  dataBytes: number | bigint
  /** Guest bytes that the base was made to read as zeros. */
  zeroBytes: number | bigint
  /** The base had to become larger. */
  baseGrown: boolean
  /** The image was emptied, so that the base shows through. */
  emptied: boolean
}

/** Options of {@link rebase}. */
export interface RebaseOptions
  extends JobOptions,
    Pick<OpenOptions, 'format' | 'backingFiles' | 'dataFile' | 'bigint' | 'locking' | 'secret' | 'legacy' | 'limits' | 'cacheSize' | 'cache'> {
  /** Name of the new backing file as it is recorded, relative to the image's folder; `null`: none. */
  backing: string | null
  /** Its format; required unless `backing` is `null`. */
  backingFormat?: Format
  /**
   * Change the name alone: neither backing file is opened, and what the image reads as is the caller's matter. Default false.
   */
  unsafe?: boolean
  /** Compress what is copied, in whole clusters and where they become smaller, by the image's compression type. Default false. */
  compress?: boolean
}

/** What {@link rebase} did, in guest bytes; `bigint` where they pass 2^53-1, or with that option. */
export interface RebaseResult {
  /** The backing file's recorded name now. */
  backing: string | null
  /** Bytes of the old backing file that were written to the image. */
  dataBytes: number | bigint
  /** Bytes that the image was made to say zero for. */
  zeroBytes: number | bigint
  /** Clusters that were compressed; their bytes are among `dataBytes`. */
  compressedClusters: number
}

/** Options of {@link measure}: of the target, and of `open` for a source. */
export interface MeasureOptions
  extends Pick<
    CreateOptions,
    | 'clusterSize'
    | 'compat'
    | 'refcountBits'
    | 'extendedL2'
    | 'preallocation'
    | 'dataFile'
    | 'dataFileRaw'
    | 'backing'
    | 'backingFormat'
    | 'encryption'
  > {
  /** Target format. Default `'raw'` as qemu-img. */
  format?: Format
  sourceFormat?: Format
  snapshot?: string
  source?: SourceOptions
  signal?: AbortSignal
}

/** All in bytes. */
export interface MeasureResult {
  required: number | bigint
  fullyAllocated: number | bigint
  /** Bytes of the persistent bitmaps, where source and target can hold them. */
  bitmaps?: number | bigint
}

/** Options of {@link dd}. */
export interface DdOptions extends JobOptions {
  /** Bytes a block, at least 1. Default 512. */
  blockSize?: SizeOption
  /** Blocks to copy, counted behind those that are skipped. Default: all. */
  count?: ByteCount
  /** Blocks to skip in the source. Default 0. */
  skip?: ByteCount
  sourceFormat?: Format
  /** Target format: as said, else by the target's extension (`.qcow2`, `.raw`), else `'raw'`. */
  format?: Format
  overwrite?: boolean
  durable?: boolean
  /** The caches that the new files are written with. Said, and not `'unsafe'`, it makes them `durable`. */
  cache?: CacheMode
  source?: SourceOptions & Pick<OpenOptions, 'snapshot'>
}

/**
 * Options of {@link bench}: of the run, and of `open` for the disk.
 */
export interface BenchOptions extends JobOptions, Omit<OpenOptions, 'writable' | 'bigint' | 'signal'> {
  /** How many requests. Default 75000; at most 2^31-1. */
  count?: number
  /** How many are under way at a time. Default 64. */
  depth?: number
  /** Bytes a request. Default 4096. */
  size?: SizeOption
  /** Bytes from the begin of one request to that of the next; past the end of the disk it goes on from the beginning. Default, and 0: `size`. */
  step?: SizeOption
  /** Where the first request begins, in bytes. Default 0. */
  offset?: SizeOption
  /** Write instead of reading. What the disk holds there is lost. Default false. */
  write?: boolean
  /** The byte that is written, 0 (default) to 255. */
  pattern?: number
  /** Flush after so many writes; not fewer than `depth`. Default 0: only at the end, when the disk is closed. */
  flushInterval?: number
  /** Whether a flush waits for the writes under way, and further writes for it. Default true. */
  drain?: boolean
  /** Whether each write ends only when it is on the device. Flushes of several at a time are put together. Default false. */
  durable?: boolean
}

/** What a run of {@link bench} measured. */
export interface BenchResult {
  requests: number
  /** Of all requests. */
  bytes: number
  /** From the first request until the last one, and all flushes, had ended. Opening and closing do not count. */
  seconds: number
  requestsPerSecond: number
  bytesPerSecond: number
  /** Those that `flushInterval` asked for; those of `durable` are not counted. */
  flushes: number
  /** What a request took, from the call until its caller went on. */
  latency: Latency
}

/** Times of the requests of a run, in microseconds. Percentiles are exact to 1.6 %. */
export interface Latency {
  mean: number
  /** Half of the requests took no longer. */
  p50: number
  p90: number
  p99: number
  max: number
}
