/**
 * The shapes that users meet. No behaviour lives here: every other file of `js/` and the command line build on these.
 */

/** A position or length in bytes: a safe non-negative integer, or a `bigint`. */
export type ByteCount = number | bigint

/** A size as an option: bytes, or text with a suffix of powers of 1024 such as `'10G'` or `'1.5T'`. */
export type SizeOption = number | bigint | string

/** The image formats that this library reads and writes. */
export type Format = 'qcow2' | 'raw'

/** How clusters are compressed. `lz4` is this library's own extension (docs/lz4.md). */
export type Compression = 'zlib' | 'zstd' | 'lz4'

/** What of a new file's space is reserved when it is made. */
export type Preallocation = 'off' | 'metadata' | 'falloc' | 'full'

/** Bounds on what an image may ask for. Reaching one is `ERR_QCOW2_LIMIT`. */
export interface Limits {
  /** Largest virtual size in bytes that is opened. Default: no bound beyond the format's. */
  maxVirtualSize?: SizeOption
  /** Most layers in a chain, the top included. Default 200. */
  maxChainDepth?: number
  /** Most bytes of caches and tables for one opened chain. Default 256 MiB. */
  maxMemory?: SizeOption
  /** Most bytes that a conversion may write. Default: none. */
  maxOutputSize?: SizeOption
}

/** A file that an image names, as its layer recorded it. */
export interface NamedFile {
  /** What the image uses the file for. */
  kind: 'backing' | 'data'
  /** The name as recorded, never interpreted as a protocol. */
  name: string
  /** The name resolved against the folder of the layer that records it. */
  path: string
  /** The format that is recorded, if any. */
  format?: string
}

/** The layer that names a file. */
export interface LayerDescription {
  /** 0 is the top. */
  depth: number
  format: Format
  /** Path of the layer's file; absent for memory. */
  path?: string
}

/**
 * Which files an image may name. `'same-directory'`: regular files in the folder of the layer that names them (after resolving its real
 * path). `'deny'`: none. A list: regular files inside these folders. A function decides each by itself: no, yes, another path, or a
 * path with its format.
 */
export type BackingFiles =
  | 'same-directory'
  | 'deny'
  | readonly string[]
  | ((file: NamedFile, layer: LayerDescription) => GateAnswer | Promise<GateAnswer>)

/** The answer of a {@link BackingFiles} function. */
export type GateAnswer = boolean | string | { path: string; format: Format }

/** A part of a larger file, as a source. */
export interface FileWindow {
  path: string
  /** Where the image begins, in bytes. Default 0. */
  offset?: ByteCount
  /** How many bytes belong to it. Default: up to the end of the file. */
  size?: ByteCount
}

/** Bytes that live in memory. See {@link memoryStorage}. */
export interface MemoryStorage {
  readonly kind: 'memory'
  /** Length in bytes. */
  size(): number
  /** Copies bytes from `position` on into `buffer` and returns how many there were. */
  read(buffer: Uint8Array, position: number): number
  /** Copies `buffer` to `position` and grows the storage where needed. */
  write(buffer: Uint8Array, position: number): void
  /** Sets the length; new bytes read as zeros. */
  truncate(size: number): void
  /** A copy of everything. */
  toUint8Array(): Uint8Array
  /** Frees the bytes. Images that are still open on it keep them. */
  close(): void
}

/** Where an image may come from. A `Uint8Array` is copied at the call. */
export type Source = string | URL | Uint8Array | FileWindow | MemoryStorage

/** Options that every call which reads an image takes. */
export interface OpenOptions {
  /** `'qcow2'` (default) or `'raw'`. */
  format?: Format
  /** Open an internal snapshot, by id or name, instead of the active state. */
  snapshot?: string
  /** Default `'same-directory'`. */
  backingFiles?: BackingFiles
  /** May the external data file be opened? `false` (default), `true`: the recorded name through the gate; a path: that file. */
  dataFile?: boolean | string
  /** Sizes and run fields as `bigint`. Needed beyond 2^53-1. Default false. */
  bigint?: boolean
  /** Read without locks although another process may be writing: what is read may be torn. Default false. */
  forceShare?: boolean
  /** `'auto'` (default): locks where the system has them; `'on'`: fail where it has not; `'off'`. */
  locking?: 'auto' | 'on' | 'off'
  limits?: Limits
  /** Byte budget of the table caches. Default 32 MiB. */
  cacheSize?: SizeOption
  signal?: AbortSignal
}

/** What was found on opening that a reader should know. */
export interface Notice {
  /** Stable, such as `'DIRTY'`, `'CORRUPT'`, `'MAY_BE_TORN'`, `'UNKNOWN_AUTOCLEAR'`, `'REFCOUNT_TABLE'`. */
  code: string
  message: string
  /** Depth of the layer it was found in. */
  depth: number
}

/** One layer of an opened chain. */
export interface ChainLayer {
  depth: number
  format: Format
  /** Path of the file; absent for memory. */
  path?: string
  virtualSize: number | bigint
  clusterSize?: number
  /** The recorded name of the backing file, if any. */
  backingFile?: string
  backingFormat?: string
  /** Path of the external data file in use, if any. */
  dataFile?: string
}

/** An internal snapshot. */
export interface SnapshotInfo {
  id: string
  name: string
  /** Bytes of saved machine state; 0 if none. */
  vmStateSize: number | bigint
  /** When it was taken. */
  date: Date
  dateSec: number
  dateNsec: number
  /** The guest's clock in nanoseconds. */
  vmClockNsec: bigint
  /** Instruction count; absent if the entry carries none. */
  icount?: bigint
  /** Virtual size in bytes at that time. */
  diskSize: number | bigint
}

/** A maximal guest range with one answer. */
export interface Run {
  /** Guest offset in bytes. */
  start: number | bigint
  /** Length in bytes. */
  length: number | bigint
  /** Layer that answered. For an unallocated run: the lowest layer. */
  depth: number
  /** Allocated in some layer of the chain (a zero cluster is). */
  present: boolean
  /** Reads as zeros. */
  zero: boolean
  /** Has bytes of its own in a file. */
  data: boolean
  compressed: boolean
  /** Offset in the file at `path`, where the bytes stand as they are. */
  offset?: number | bigint
  /** The file of `offset`; absent for memory. */
  path?: string
}

/** Progress of a job, in bytes of its work. */
export interface Progress {
  phase: string
  done: number
  total: number
}

/** Options that every job takes. */
export interface JobOptions {
  signal?: AbortSignal
  /** Called at most ten times a second, and once at the end. */
  onProgress?: (progress: Progress) => void
}

/** A running job: awaitable, iterable (its progress), cancellable. */
export interface Job<T> extends PromiseLike<T>, AsyncIterable<Progress> {
  /** The newest progress, without waiting. */
  readonly progress: Progress
  /** Asks the job to stop; it then rejects with `ERR_QCOW2_CANCELLED`. */
  cancel(): void
  catch<R = never>(onRejected?: ((reason: unknown) => R | PromiseLike<R>) | null): Promise<T | R>
  finally(onFinally?: (() => void) | null): Promise<T>
}

/** Options of a new image. Numbers of the format are checked against compat and each other. */
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
  /** Replace an existing file. Default false: `ERR_QCOW2_EXISTS`. */
  overwrite?: boolean
  /** Sync the file and its folder before the call resolves. Default false. */
  durable?: boolean
  /** Where `backing` may lie is not restricted here: creating is the caller's own act. */
  signal?: AbortSignal
}

/** What {@link create} made. */
export interface CreateResult {
  path?: string
  format: Format
  virtualSize: number | bigint
  /** Length of the file in bytes. */
  fileSize: number
}

/** Options of {@link convert}. */
export interface ConvertOptions extends JobOptions, Omit<CreateOptions, 'size' | 'signal' | 'backingUnchecked' | 'format'> {
  /** Target format: as said, else by the target's extension, else `qcow2`. */
  format?: Format
  /** Source format: as said, else by extension, else by content. */
  sourceFormat?: Format
  /** Compress clusters. `true` means the target's compression type. Default: none. */
  compression?: Compression | boolean
  /** Level of the compressor: zlib 1–9, zstd 1–22. */
  level?: number
  /** Convert this snapshot (id or name) instead of the active state. */
  snapshot?: string
  /** Zero areas of at least this many bytes become holes. A multiple of 512; 0 writes every byte. Default 4096. */
  sparseSize?: SizeOption
  /** Workers, 1–64. Default: the processors, at most 8. The output does not depend on it. */
  threads?: number
  /** Write into an existing target (raw or a block device) instead of making a new one. */
  noCreate?: boolean
  /** With `noCreate`: the target is known to read as zeros. */
  targetIsZero?: boolean
  /** Options of `open` for the sources. */
  source?: Omit<OpenOptions, 'format' | 'snapshot' | 'signal'>
  limits?: Limits
}

/** What a conversion did. All counts in bytes. */
export interface ConvertResult {
  sourceFormats: Format[]
  format: Format
  virtualSize: number | bigint
  /** Length of the written file. */
  fileSize: number
  /** Guest bytes that were copied as data (plain or compressed). */
  dataBytes: number
  /** Guest bytes that became zeros or holes. */
  zeroBytes: number
  /** Clusters that were stored compressed. */
  compressedClusters: number
}

/** Options of {@link compare}. */
export interface CompareOptions extends JobOptions {
  strict?: boolean
  formatA?: Format
  formatB?: Format
  /** Options of `open` for both sides. */
  source?: Omit<OpenOptions, 'format' | 'signal'>
}

/** The answer of {@link compare}. */
export interface CompareResult {
  identical: boolean
  /** First difference: start of the 512-byte sector, or of the differing run in strict mode. */
  offset?: number | bigint
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
  /** Host cluster index it is about. */
  cluster?: number | bigint
  /** Refcount on disk and references counted, where that is the matter. */
  refcount?: number | bigint
  references?: number | bigint
  /** Guest ranges that it touches. At most 16 are listed. */
  guestRanges: { start: number | bigint; length: number | bigint }[]
  /** Name of the snapshot the walk was in, if any. */
  snapshot?: string
  message: string
  /** The entry's raw value, where that is the matter. */
  value?: bigint
}

/** Options of {@link check}. */
export interface CheckOptions extends JobOptions, Omit<OpenOptions, 'signal' | 'snapshot'> {
  /** Most findings that are returned (all are counted). Default 10000. */
  maxFindings?: number
}

/** The counts of qemu-img's JSON, in camelCase, and the findings. */
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
}

/** Options of {@link measure}: of the target, and of `open` for a source. */
export interface MeasureOptions
  extends Pick<
    CreateOptions,
    'clusterSize' | 'compat' | 'refcountBits' | 'extendedL2' | 'preallocation' | 'dataFile' | 'dataFileRaw' | 'backing' | 'backingFormat'
  > {
  /** Target format. Default `'raw'` as qemu-img. */
  format?: Format
  sourceFormat?: Format
  snapshot?: string
  source?: Omit<OpenOptions, 'format' | 'snapshot' | 'signal'>
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
  /** Bytes a block. Default 512. */
  blockSize?: SizeOption
  /** Blocks to copy. Default: all. */
  count?: ByteCount
  /** Blocks to skip in the source. Default 0. */
  skip?: ByteCount
  sourceFormat?: Format
  /** Default `'raw'`. */
  format?: Format
  overwrite?: boolean
  source?: Omit<OpenOptions, 'format' | 'signal'>
}

/** A persistent bitmap as `info` tells it. */
export interface BitmapInfo {
  name: string
  /** Bytes of guest a bit stands for. */
  granularity: number
  flags: ('in-use' | 'auto')[]
}

/** Facts about one image; nothing that it names is opened. */
export interface ImageInfo {
  path?: string
  format: Format
  virtualSize: number | bigint
  /** Bytes allocated on disk. */
  actualSize?: number
  /** Length of the file in bytes. */
  fileSize: number | bigint
  clusterSize?: number
  encrypted: boolean
  dirty: boolean
  corrupt: boolean
  backingFile?: string
  /** `backingFile` resolved against the image's folder. */
  fullBackingFile?: string
  backingFormat?: string
  snapshots: SnapshotInfo[]
  bitmaps: BitmapInfo[]
  /** Only of qcow2. */
  compat?: '0.10' | '1.1'
  refcountBits?: number
  compressionType?: Compression
  lazyRefcounts?: boolean
  extendedL2?: boolean
  dataFile?: string
  dataFileRaw?: boolean
  encryption?: 'aes' | 'luks'
  notices: Notice[]
}

/** Options of {@link info}. */
export interface InfoOptions extends Pick<OpenOptions, 'format' | 'forceShare' | 'locking' | 'limits' | 'bigint' | 'signal'> {}
