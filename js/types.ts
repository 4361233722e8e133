/**
 * The shapes that users meet. No behaviour lives here: every other file of `js/` and the command line build on these.
 */

/** A position or length in bytes: a safe non-negative integer, or a `bigint`. */
export type ByteCount = number | bigint

/** A size as an option: bytes, or text with a suffix of powers of 1024 such as `'10G'` or `'1.5T'`. */
export type SizeOption = number | bigint | string

/** The image formats that this library reads and writes; `'luks'` is a LUKS1 container around a raw disk. */
export type Format = 'qcow2' | 'raw' | 'luks'

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
  /** Most iterations of PBKDF2 that the key slots of one image may ask for in all: they are tried one after the other. Default 200,000,000. */
  maxKeyIterations?: number
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
  /** How its guest data is encrypted; absent where it is not. */
  encryption?: 'aes' | 'luks'
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

/** A part of a larger file, or a LUKS container whose header is a file of its own, as a source. */
export interface FileWindow {
  path: string
  /** Where the image begins, in bytes. Default 0. */
  offset?: ByteCount
  /** How many bytes belong to it. Default: up to the end of the file. */
  size?: ByteCount
  /** Path of the header of a LUKS container, where that is not its begin. */
  luksHeader?: string | URL
}

/** Where a job may write: a path, a `file:` URL, or {@link MemoryStorage}. */
export type Target = string | URL | MemoryStorage

/** Bytes that live in memory. Made by `memoryStorage()`. */
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

/** A disk without a file: so many zeros. What is written to it is gone. For measurements, and as a source of nothing. */
export interface ZeroSource {
  /** How many bytes. */
  zeros: ByteCount
}

/** Where an image may come from: a path, a `file:` URL, bytes (copied at the call), a part of a file, {@link MemoryStorage}, or zeros. */
export type Source = string | URL | Uint8Array | FileWindow | MemoryStorage | ZeroSource

/**
 * How the caches of the system are used. `'writeback'`: the page cache, and syncs where a promise needs them. `'writethrough'`: every write is durable
 * when it returns. `'none'`: past the page cache (`O_DIRECT`; `ERR_QCOW2_DIRECT_UNSUPPORTED` where the file system or the system has not got it).
 * `'directsync'`: both. `'unsafe'`: the page cache, and nothing is ever synced, so that a power cut, though not a kill, may leave anything.
 */
export type CacheMode = 'writeback' | 'writethrough' | 'none' | 'directsync' | 'unsafe'

/**
 * A password: its bytes, a file that holds nothing else (no line break either), or a function that is asked for each encrypted layer, and answers its
 * bytes, or nothing if it has none for it. Never text, which cannot be wiped from memory. The bytes are copied at the call, and the copy is wiped; yours are yours.
 */
export type Secret = Uint8Array | { file: string } | ((layer?: LayerDescription) => Uint8Array | undefined | Promise<Uint8Array | undefined>)

/** How a new image is encrypted: its guest data, not its tables (docs/encryption.md). Names are those of QEMU's options. */
export interface NewEncryption {
  /** The password that opens it. */
  secret: Secret
  /** `'luks'` (default), or `'aes'`: the old method of qcow2, for programs that know no better; it needs `legacy`. */
  format?: 'luks' | 'aes'
  /** The old method is meant. */
  legacy?: boolean
  /** `'aes-256'` (default), `'aes-128'`, `'aes-192'`, `'serpent-…'`, `'twofish-…'`, `'cast5-128'`. */
  cipher?: string
  /** `'xts'` (default), `'cbc'` or `'ecb'`. */
  cipherMode?: string
  /** `'plain64'` (default), `'plain'` or `'essiv'`. */
  ivGenerator?: string
  /** The hash of `'essiv'`. Default `'sha256'`. */
  ivHash?: string
  /** `'sha256'` (default), `'sha1'`, `'sha224'`, `'sha384'`, `'sha512'` or `'ripemd160'`. */
  hash?: string
  /** Milliseconds of this machine's processor that one try of a password is to take; 0: as little as is ever taken. Default 2000. */
  iterTime?: number
  /** Only `create` with `format: 'luks'`: make the header alone, without a size. The payload is any other file (`luksHeader`). */
  detachedHeader?: boolean
}

/** Options that every call which reads an image takes. */
export interface OpenOptions {
  /** `'qcow2'` (default), `'raw'` or `'luks'`. */
  format?: Format
  /**
   * Write too: nobody else may use the image meanwhile, and an image that was not closed is repaired first. Backing files are only read. Default
   * false.
   */
  writable?: boolean
  /** Open an internal snapshot, by id or name, instead of the active state. Read-only. */
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
  /** The password of encrypted layers. Each that is encrypted needs one; where they differ, a function tells them apart by `layer.depth`. */
  secret?: Secret
  /** Images that are encrypted with the old AES-CBC method are opened too. Nothing tells a wrong password there. Default false. */
  legacy?: boolean
  limits?: Limits
  /** Bytes that are kept in memory of what was read: decoded clusters (half of it, but at least one), tables, and where things are. Default 64 MiB. */
  cacheSize?: SizeOption
  /** The caches that all files of the image are used with. Default `'writeback'`. */
  cache?: CacheMode
  signal?: AbortSignal
}

/** {@link OpenOptions} without what only makes sense for one opened disk: what jobs take for their sources. */
export type SourceOptions = Omit<OpenOptions, 'format' | 'writable' | 'snapshot' | 'signal'>

/** What was found on opening that a reader should know. */
export interface Notice {
  /** Stable, such as `'DIRTY'`, `'CORRUPT'`, `'MAY_BE_TORN'`, `'UNKNOWN_AUTOCLEAR'`, `'REFCOUNT_TABLE'`. */
  code: string
  message: string
  /** Depth of the layer it was found in. */
  depth: number
}

/** One layer of an opened chain. `N` is `bigint` if the option `bigint` is set, else `number`. */
export interface ChainLayer<N extends ByteCount = ByteCount> {
  depth: number
  format: Format
  /** Path of the file; absent for memory. */
  path?: string
  virtualSize: N
  clusterSize?: number
  /** The recorded name of the backing file, if any. */
  backingFile?: string
  backingFormat?: string
  /** Path of the external data file in use, if any. */
  dataFile?: string
}

/** An internal snapshot. Id and name are the image's own words: never use them as a path, and escape them before a terminal sees them. */
export interface SnapshotInfo<N extends ByteCount = ByteCount> {
  id: string
  name: string
  /** Bytes of saved machine state; 0 if none. */
  vmStateSize: N
  /** When it was taken. */
  date: Date
  dateSec: number
  dateNsec: number
  /** The guest's clock in nanoseconds. */
  vmClockNsec: bigint
  /** Instruction count; absent if the entry carries none. */
  icount?: bigint
  /** Virtual size in bytes at that time. */
  diskSize: N
}

/** A maximal guest range with one answer. `N` is `bigint` if the option `bigint` is set, else `number`. */
export interface Run<N extends ByteCount = ByteCount> {
  /** Guest offset in bytes. */
  start: N
  /** Length in bytes. */
  length: N
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
  offset?: N
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
  /**
   * Called at most ten times a second, and once at the end. An exception that it throws cancels the job and becomes its rejection; what
   * the job had finished by then stays.
   */
  onProgress?: (progress: Progress) => void
}

/**
 * A running job: awaitable, iterable (its progress), cancellable. It has begun when it is returned. Iterating yields the newest progress
 * whenever there is a newer one and ends with the job, throwing what the job rejects with; leaving the loop early does not cancel it.
 */
export interface Job<T> extends PromiseLike<T>, AsyncIterable<Progress> {
  /** The newest progress, without waiting. */
  readonly progress: Progress
  /** Asks the job to stop; it then rejects with `ERR_QCOW2_CANCELLED`. After its end this does nothing. */
  cancel(): void
  catch<R = never>(onRejected?: ((reason: unknown) => R | PromiseLike<R>) | null): Promise<T | R>
  finally(onFinally?: (() => void) | null): Promise<T>
}

/** A persistent bitmap as `info` tells it. */
export interface BitmapInfo {
  name: string
  /** Bytes of guest a bit stands for. */
  granularity: number
  flags: ('in-use' | 'auto')[]
}

/** Facts about one image; nothing that it names is opened. `N` is `bigint` if the option `bigint` is set, else `number`. */
export interface ImageInfo<N extends ByteCount = ByteCount> {
  path?: string
  format: Format
  virtualSize: N
  /** Bytes allocated on disk. */
  actualSize?: number
  /** Length of the file in bytes. */
  fileSize: N
  clusterSize?: number
  encrypted: boolean
  dirty: boolean
  corrupt: boolean
  backingFile?: string
  /** `backingFile` resolved against the image's folder. */
  fullBackingFile?: string
  backingFormat?: string
  snapshots: SnapshotInfo<N>[]
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
  /** What the LUKS header of a `'luks'` image says; absent if its cipher is not known here. */
  luks?: LuksInfo
  notices: Notice[]
}

/** A LUKS1 header. Offsets are bytes from its begin. */
export interface LuksInfo {
  cipher: string
  cipherMode: string
  ivGenerator: string
  ivHash?: string
  hash: string
  uuid: string
  payloadOffset: number
  /** Iterations of the digest that tells the master key. */
  digestIterations: number
  /** The header is in a file of its own. */
  detachedHeader: boolean
  /** The eight key slots. */
  slots: { active: boolean; iterations: number; keyOffset: number }[]
}

/** Options of {@link info}. */
export interface InfoOptions extends Pick<OpenOptions, 'format' | 'forceShare' | 'locking' | 'limits' | 'bigint' | 'signal'> {}
