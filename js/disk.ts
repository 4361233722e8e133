/**
 * An opened image.
 */

import { channel } from 'node:diagnostics_channel'
import type { Readable, Writable } from 'node:stream'
import type { ReadableStream, WritableStream } from 'node:stream/web'
import { debuglog, type InspectOptionsStylized, inspect } from 'node:util'
import { orAborted } from './abort.js'
import { DiskBitmaps } from './bitmaps.js'
import type { ChainFacts, Handle } from './boundary.js'
import { closeHandle, type OpenedChain, type OpenedLayer } from './chain.js'
import { atCaller, atEntry, atEntryOf, cancelled, Qcow2Error } from './errors.js'
import { chainLayer, noticesOf } from './facts.js'
import { read } from './fast-lane.js'
import { type MapOptions, mapRange, runsOf } from './map.js'
import { call, closeWhenLost } from './native.js'
import { checkOptions, count, flag, oneOf, signal, size } from './options.js'
import { readArguments } from './read-arguments.js'
import type { Settings } from './settings.js'
import { exact } from './sizes.js'
import { DiskSnapshots } from './snapshots.js'
import type { ReadStreamOptions } from './streams.js'
import type { ByteCount, ChainLayer, Format, Notice, Preallocation, Run, SizeOption } from './types.js'
import { type WriteOptions, writeArguments } from './write-arguments.js'
import type { WriteStreamOptions } from './write-streams.js'
import { Flushes, write } from './writing.js'

const debug = debuglog('qcow2')
const opened = channel('qcow2:open')
const closedChannel = channel('qcow2:close')

/** Streams, loaded when one is asked for: with Node.js's own they take longer than opening a disk. */
function streams(): typeof import('./streams.js') {
  return require('./streams.js')
}

function writeStreams(): typeof import('./write-streams.js') {
  return require('./write-streams.js')
}

/** What {@link Disk.read} resolves to. */
export interface ReadResult<B extends NodeJS.ArrayBufferView> {
  /** Fewer than asked for only at the end of the disk; 0 at or beyond it. */
  bytesRead: number
  /** The buffer that was given. */
  buffer: B
}

/** Where {@link Disk.read} reads to and from. */
export interface ReadOptions {
  /** Where in the buffer to begin, in bytes. Default 0. */
  offset?: number
  /** How many bytes to read. Default: as many as the buffer holds from `offset` on. */
  length?: number
  /** Where on the disk to begin, in bytes. Must be given: a disk has no cursor. */
  position: ByteCount
}

/** What {@link Disk.write} resolves to. */
export interface WriteResult<B extends NodeJS.ArrayBufferView> {
  /** As many as were asked for: a write that cannot write everything rejects. */
  bytesWritten: number
  /** The buffer that was given. */
  buffer: B
}

/** What {@link Disk.resize} takes. */
export interface ResizeOptions {
  /** Let the disk become smaller, which drops what lies beyond. Default false: `ERR_QCOW2_SHRINK`. */
  shrink?: boolean
  /** What is set aside for what is new. Default `'off'`. */
  preallocation?: Preallocation
}

const RESIZE_RULES = { shrink: flag, preallocation: oneOf('off', 'metadata', 'falloc', 'full') }
const ZEROES_RULES = { unmap: flag }
const FLUSH_RULES = { signal }

/** What the parts of a disk know of it. */
export interface DiskParts<N extends ByteCount> {
  readonly handle: Handle
  readonly writable: boolean
  readonly bigint: boolean
  readonly path: string | undefined
  readonly layers: readonly OpenedLayer[]
  size(): N
  /** Refuses what comes too late, and if it is a `change` also what a disk that is only read does not do. */
  refuse(change: boolean): void
  /** Makes a change, which closing does not come between. */
  change<T>(work: (disk: Handle) => Promise<T>): Promise<T>
  /** The disk has another size now. */
  resized(virtualSize: bigint): void
  /** A snapshot that was opened on the disk's files, as a disk. */
  view(facts: ChainFacts): Promise<Disk<N>>
}

/**
 * An opened image, from {@link open}. Several requests may be under way at once. `N` is `bigint` if it was opened with `{ bigint: true }`,
 * else `number`. An open disk does not keep the process alive; a request under way does.
 *
 * One that is open for writing holds back what makes it durable until {@link Disk.flush} or {@link Disk.close}: it has to be closed.
 */
export class Disk<N extends ByteCount = ByteCount> implements AsyncDisposable {
  /** Cluster size of the top layer in bytes. */
  readonly clusterSize: number
  /** Format of the top layer. */
  readonly format: Format
  /** Whether the disk can only be read. */
  readonly readOnly: boolean
  /** What was found on opening that a reader should know, such as that the image is marked dirty. */
  readonly notices: readonly Notice[]
  /** The internal snapshots. */
  readonly snapshots: DiskSnapshots<N>
  /** The dirty bitmaps. */
  readonly bitmaps: DiskBitmaps<N>

  readonly #handle: Handle
  readonly #bigint: boolean
  readonly #forget: () => void
  readonly #flushes: Flushes
  #virtualSize: N
  #chain: readonly ChainLayer<N>[]
  #closing: Promise<void> | undefined
  /** What is under way and is several requests, which closing must not come between. */
  #busy = 0
  #idle: (() => void) | undefined

  /** @internal */
  constructor({ handle, virtualSize, clusterSize, layers }: OpenedChain, settings: Settings) {
    const { bigint, writable } = settings
    const top = layers[0] as OpenedLayer
    this.#virtualSize = exact(virtualSize, bigint, 'the virtual size', top.path) as N
    this.clusterSize = clusterSize
    this.format = top.facts.format
    this.readOnly = !writable
    this.#chain = Object.freeze(layers.map((layer, depth) => Object.freeze(chainLayer(layer, depth, bigint) as ChainLayer<N>)))
    this.notices = Object.freeze(layers.flatMap(({ facts }, depth) => noticesOf(facts, depth)))
    this.#handle = handle
    this.#bigint = bigint
    this.#flushes = new Flushes(handle)
    this.#forget = closeWhenLost(this, handle, writable ? (top.path ?? 'an image in memory') : undefined)
    const parts: DiskParts<N> = {
      handle,
      writable,
      bigint,
      path: top.path,
      layers,
      size: () => this.#virtualSize,
      refuse: (change) => this.#refuse(change),
      change: (work) => this.#change(work),
      resized: (size) => this.#resized(size),
      view: (facts) => Disk.adopt({ ...facts, layers }, { ...settings, writable: false }) as Promise<Disk<N>>,
    }
    // Only whoever asks for the snapshots is troubled by one of absurd size: it must not keep the active disk from opening.
    this.snapshots = new DiskSnapshots(parts)
    this.bitmaps = new DiskBitmaps(parts)
  }

  /** @internal */
  static async adopt(chain: OpenedChain, settings: Settings): Promise<Disk> {
    try {
      const disk = new Disk(chain, settings)
      opened.publish({ disk, path: disk.chain[0]?.path, format: disk.format, layers: disk.chain.length })
      debug('open: %s, %d layer(s), %s bytes', disk.chain[0]?.path ?? 'memory', disk.chain.length, String(chain.virtualSize))
      return disk
    } catch (error) {
      await closeHandle(chain.handle).catch(() => {})
      throw error
    }
  }

  /** Size of the disk in bytes, as the guest sees it. */
  get virtualSize(): N {
    return this.#virtualSize
  }

  /** Every layer, top first. */
  get chain(): readonly ChainLayer<N>[] {
    return this.#chain
  }

  /** Whether {@link Disk.close} was called. */
  get closed(): boolean {
    return this.#closing !== undefined
  }

  /**
   * Reads bytes of the disk into `buffer`, with the signatures of `FileHandle.read`. Only `position` has no default: a disk has no cursor.
   *
   * The buffer may be used again, and must not be transferred, once the promise has settled.
   *
   * @returns how many bytes were read: fewer than asked for only at the end of the disk
   * @throws Qcow2Error - `ERR_QCOW2_TRUNCATED`, `ERR_QCOW2_CORRUPT` or `ERR_QCOW2_DECOMPRESS` where the image does not hold what it
   * promises: damaged bytes never read as zeros. `ERR_QCOW2_CLOSED` after {@link Disk.close}
   */
  read<B extends NodeJS.ArrayBufferView>(buffer: B, offset: number, length: number, position: ByteCount): Promise<ReadResult<B>>
  read<B extends NodeJS.ArrayBufferView>(buffer: B, options: ReadOptions): Promise<ReadResult<B>>
  read<B extends NodeJS.ArrayBufferView>(options: ReadOptions & { buffer: B }): Promise<ReadResult<B>>
  read(options: ReadOptions & { buffer?: undefined }): Promise<ReadResult<Buffer>>
  read<B extends NodeJS.ArrayBufferView>(first?: unknown, second?: unknown, third?: unknown, fourth?: unknown): Promise<ReadResult<B>> {
    // Not an async function, and nothing that is not needed: this is the way of every read, and memory answers most in a microsecond.
    let answer: number | Promise<number>
    let buffer: B
    try {
      this.#refuse(false)
      const request = readArguments<B>(first, second, third, fourth)
      buffer = request.buffer
      answer = read(this.#handle, request.target, request.offset, request.length, request.position)
    } catch (error) {
      return Promise.reject(atEntryOf(this.read, error))
    }
    if (typeof answer === 'number') return Promise.resolve({ bytesRead: answer, buffer })
    return this.#later(answer, buffer)
  }

  /**
   * Writes bytes of `buffer` to the disk, with the signatures of `FileHandle.write` for bytes. Only `position` has no default: a disk has no cursor.
   *
   * The bytes are copied before this returns: the buffer may be used again at once. When the promise resolves, all of them are written, every read
   * sees them, and they outlive the process; {@link Disk.flush} makes them outlive a power cut.
   *
   * @throws Qcow2Error - `ERR_QCOW2_READ_ONLY`, `ERR_QCOW2_OUT_OF_RANGE` if the range passes the end of the disk, `ERR_QCOW2_IO` (`ENOSPC`: the disk
   * stays usable), `ERR_QCOW2_POISONED` after a failure that leaves unknown what is on the device. If a write fails, each byte of its range holds
   * what it held or what was to be written
   */
  write<B extends NodeJS.ArrayBufferView>(
    buffer: B,
    offset: number | null | undefined,
    length: number | null | undefined,
    position: ByteCount,
  ): Promise<WriteResult<B>>
  write<B extends NodeJS.ArrayBufferView>(buffer: B, options: WriteOptions): Promise<WriteResult<B>>
  write<B extends NodeJS.ArrayBufferView>(first: unknown, second?: unknown, third?: unknown, fourth?: unknown): Promise<WriteResult<B>> {
    try {
      this.#refuse(true)
      const { buffer, source, offset, length, position } = writeArguments<B>(first, second, third, fourth)
      return write(this.#handle, source, offset, length, position, { bytesWritten: length, buffer })
    } catch (error) {
      return Promise.reject(atEntryOf(this.write, error))
    }
  }

  /**
   * Makes a range read as zeros, without writing them where that can be avoided.
   *
   * @param position - guest offset in bytes
   * @param length - in bytes
   * @param options - `unmap`: give the space back. Default false: what is allocated stays so, and writing to it again cannot fail for want of space
   * @throws Qcow2Error - as {@link Disk.write}
   */
  writeZeroes(position: ByteCount, length: ByteCount, options?: { unmap?: boolean }): Promise<void> {
    return atCaller(this.writeZeroes, () => {
      const [at, bytes] = [count(position, 'position'), count(length, 'length')]
      const { unmap = false } = checkOptions('writeZeroes', options, ZEROES_RULES)
      return this.#change((disk) => call<void>((addon, id) => addon.writeZeroes(id, disk, at, bytes, unmap)))
    })
  }

  /**
   * Says that nobody needs the bytes of a range any longer. Whole clusters of it are given back and read as zeros; the rest keeps its bytes.
   *
   * @param position - guest offset in bytes
   * @param length - in bytes
   * @throws Qcow2Error - as {@link Disk.write}
   */
  discard(position: ByteCount, length: ByteCount): Promise<void> {
    return atCaller(this.discard, () => {
      const [at, bytes] = [count(position, 'position'), count(length, 'length')]
      return this.#change((disk) => call<void>((addon, id) => addon.discard(id, disk, at, bytes)))
    })
  }

  /**
   * Makes durable what was written: everything whose promise had resolved by the time of this call is on the device when it resolves.
   *
   * @param options - `signal` ends the waiting; the flush goes on
   * @throws Qcow2Error - `ERR_QCOW2_IO`: what is on the device is not known then, and later writes fail with `ERR_QCOW2_POISONED`; reads go on
   */
  flush(options?: { signal?: AbortSignal }): Promise<void> {
    return atCaller(this.flush, () => {
      const { signal } = checkOptions('flush', options, FLUSH_RULES)
      if (signal?.aborted) throw cancelled(signal.reason)
      const flushed = this.#change(() => this.#flushes.flush())
      return signal === undefined ? flushed : orAborted(flushed, signal)
    })
  }

  /**
   * Gives the disk another size, a multiple of 512 bytes (a raw file: any). What is new reads as zeros. Requests that were accepted before come first, later ones wait.
   * Durable when the promise resolves.
   *
   * @param size - in bytes, or text such as `'40G'`
   * @throws Qcow2Error - `ERR_QCOW2_SHRINK` without `shrink`; `ERR_QCOW2_RESIZE_SNAPSHOTS` (an image of version 2 with snapshots)
   */
  resize(size: SizeOption, options?: ResizeOptions): Promise<void> {
    return atCaller(this.resize, () => {
      const wanted = sizeOf(size)
      const { shrink = false, preallocation = 'off' } = checkOptions('resize', options, RESIZE_RULES)
      exact(wanted, this.#bigint, 'size', this.#chain[0]?.path)
      return this.#change(async (disk) => {
        this.#resized(await call<bigint>((addon, id) => addon.resize(id, disk, wanted, { shrink, preallocation })))
      })
    })
  }

  /**
   * The disk as runs: maximal ranges with one answer to where their bytes come from, in ascending order and without gaps. They are found as
   * they are asked for, a few hundred at a time, so that a disk of any size may be walked.
   *
   * @param options - `start` (default 0) and `end` (exclusive; default: the end of the disk) in bytes
   * @example
   * ```ts
   * import { open } from 'qcow2'
   * const disk = await open('vm.qcow2')
   * let allocated = 0
   * for await (const run of disk.map()) if (run.data) allocated += run.length
   * await disk.close()
   * ```
   */
  map(options?: MapOptions): AsyncGenerator<Run<N>, void, undefined> {
    const { start, end, signal } = atEntry(this.map, () => {
      this.#refuse(false)
      const range = mapRange(options, BigInt(this.virtualSize))
      if (range.signal?.aborted) throw cancelled(range.signal.reason)
      return range
    })
    // The generator holds the disk, so that it is not collected, and closed, between two batches.
    return runsOf<N>(this, this.#handle, start, end, typeof this.virtualSize === 'bigint', signal)
  }

  /**
   * The disk's bytes as a Node.js stream.
   *
   * @param options - `start` (default 0) and `end` in bytes, both *inclusive* as in `fs.createReadStream`; `highWaterMark` (default 512
   * KiB) is the size of its chunks; `signal` destroys it
   */
  createReadStream(options?: ReadStreamOptions): Readable & { readonly bytesRead: number } {
    return atEntry(this.createReadStream, () => {
      this.#refuse(false)
      return new (streams().DiskReadStream)(this, options)
    })
  }

  /** The disk's bytes as a web stream of bytes, with the options of {@link Disk.createReadStream}. */
  readable(options?: ReadStreamOptions): ReadableStream<Uint8Array> {
    return atEntry(this.readable, () => {
      this.#refuse(false)
      return streams().webStream(this, options)
    })
  }

  /**
   * A Node.js stream that writes to the disk, several requests at a time. It does not close the disk.
   *
   * @param options - `start` in bytes (default 0); `flush` (default false): flush the disk before the stream finishes; `highWaterMark` (default 4 MiB):
   * bytes that wait before `write` says so; `signal` destroys it
   */
  createWriteStream(options?: WriteStreamOptions): Writable & { readonly bytesWritten: number } {
    return atEntry(this.createWriteStream, () => {
      this.#refuse(true)
      return new (writeStreams().DiskWriteStream)(this, options)
    })
  }

  /** A web stream that takes bytes, with the options of {@link Disk.createWriteStream}. */
  writable(options?: WriteStreamOptions): WritableStream<Uint8Array> {
    return atEntry(this.writable, () => {
      this.#refuse(true)
      return writeStreams().webWritable(this, options)
    })
  }

  /**
   * Closes the disk once the requests that it accepted have ended; later ones are refused. Of a disk that is open for writing everything is flushed,
   * freed space given back, bitmaps stored and the image marked clean; if any of it fails this rejects, and the disk is closed nevertheless.
   * Calling it again returns the same promise.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  /** The same as {@link Disk.close}, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  /** @internal */
  [inspect.custom](_depth: number, options: InspectOptionsStylized, print: typeof inspect): string {
    const { virtualSize, clusterSize, format, closed } = this
    const chain = this.chain.map(({ path, format }) => `${path ?? '(memory)'} (${format})`)
    return `Disk ${print({ format, virtualSize, clusterSize, chain, closed }, options)}`
  }

  async #later<B>(answer: Promise<number>, buffer: B): Promise<{ bytesRead: number; buffer: B }> {
    return { bytesRead: await this.#whole(answer), buffer }
  }

  /** Keeps closing waiting until `work` has ended. */
  async #whole<T>(work: Promise<T>): Promise<T> {
    this.#busy++
    try {
      return await work
    } finally {
      if (--this.#busy === 0) this.#idle?.()
    }
  }

  #change<T>(work: (disk: Handle) => Promise<T>): Promise<T> {
    this.#refuse(true)
    return this.#whole(work(this.#handle))
  }

  #resized(virtualSize: bigint): void {
    this.#virtualSize = exact(virtualSize, this.#bigint, 'the virtual size', this.#chain[0]?.path) as N
    const [top, ...below] = this.#chain
    this.#chain = Object.freeze([Object.freeze({ ...(top as ChainLayer<N>), virtualSize: this.#virtualSize }), ...below])
  }

  async #close(): Promise<void> {
    this.#forget()
    if (this.#busy > 0) await new Promise<void>((idle) => (this.#idle = idle))
    await closeHandle(this.#handle)
    closedChannel.publish({ disk: this, path: this.chain[0]?.path })
    debug('close: %s', this.chain[0]?.path ?? 'memory')
  }

  #refuse(change: boolean): void {
    if (this.#closing !== undefined) throw new Qcow2Error('ERR_QCOW2_CLOSED', 'the disk is closed')
    if (!change || !this.readOnly) return
    const path = this.#chain[0]?.path
    throw new Qcow2Error('ERR_QCOW2_READ_ONLY', 'the disk is open for reading: say { writable: true } to open', path === undefined ? {} : { path })
  }
}

function sizeOf(value: unknown): bigint {
  return size(value, 'size')
}
