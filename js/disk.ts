/**
 * An opened image.
 */

import { channel } from 'node:diagnostics_channel'
import type { Readable } from 'node:stream'
import type { ReadableStream } from 'node:stream/web'
import { debuglog, type InspectOptionsStylized, inspect } from 'node:util'
import type { Handle } from './boundary.js'
import { closeHandle, type OpenedChain, type OpenedLayer } from './chain.js'
import { atEntry, atEntryOf, cancelled, Qcow2Error } from './errors.js'
import { chainLayer, noticesOf, snapshotInfo } from './facts.js'
import { read } from './fast-lane.js'
import { type MapOptions, mapRange, runsOf } from './map.js'
import { closeWhenLost } from './native.js'
import { readArguments } from './read-arguments.js'
import type { Settings } from './settings.js'
import { exact } from './sizes.js'
import type { ReadStreamOptions } from './streams.js'
import type { ByteCount, ChainLayer, Format, Notice, Run, SnapshotInfo } from './types.js'

const debug = debuglog('qcow2')
const opened = channel('qcow2:open')
const closedChannel = channel('qcow2:close')

/** Streams, loaded when one is asked for: with Node.js's own they take longer than opening a disk. */
function streams(): typeof import('./streams.js') {
  return require('./streams.js')
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

/** The internal snapshots of an opened image. */
export interface DiskSnapshots<N extends ByteCount = ByteCount> {
  /** All of them, in the image's order. Open one with the option `snapshot`. */
  list(): SnapshotInfo<N>[]
}

/**
 * An opened image, from {@link open}. Several reads may be under way at once. `N` is `bigint` if it was opened with `{ bigint: true }`,
 * else `number`. An open disk does not keep the process alive; a read under way does.
 */
export class Disk<N extends ByteCount = ByteCount> implements AsyncDisposable {
  /** Size of the disk in bytes, as the guest sees it. */
  readonly virtualSize: N
  /** Cluster size of the top layer in bytes. */
  readonly clusterSize: number
  /** Format of the top layer. */
  readonly format: Format
  /** Every layer, top first. */
  readonly chain: readonly ChainLayer<N>[]
  /** What was found on opening that a reader should know, such as that the image is marked dirty. */
  readonly notices: readonly Notice[]
  /** The internal snapshots. */
  readonly snapshots: DiskSnapshots<N>

  readonly #handle: Handle
  readonly #forget: () => void
  #closing: Promise<void> | undefined
  /** Reads under way: a long one is several requests, which closing must not come between. */
  #reading = 0
  #idle: (() => void) | undefined

  /** @internal */
  constructor({ handle, virtualSize, clusterSize, layers }: OpenedChain, { bigint }: Settings) {
    const top = layers[0] as OpenedLayer
    this.virtualSize = exact(virtualSize, bigint, 'the virtual size', top.path) as N
    this.clusterSize = clusterSize
    this.format = top.facts.format
    this.chain = Object.freeze(layers.map((layer, depth) => Object.freeze(chainLayer(layer, depth, bigint) as ChainLayer<N>)))
    this.notices = Object.freeze(layers.flatMap(({ facts }, depth) => noticesOf(facts, depth)))
    // Only whoever asks for the snapshots is troubled by one of absurd size: it must not keep the active disk from opening.
    const list = () => top.facts.snapshots.map((snapshot) => snapshotInfo(snapshot, bigint, top.path) as SnapshotInfo<N>)
    this.snapshots = Object.freeze({ list })
    this.#handle = handle
    this.#forget = closeWhenLost(this, handle)
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
      this.#refuseClosed()
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
      this.#refuseClosed()
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
      this.#refuseClosed()
      return new (streams().DiskReadStream)(this, options)
    })
  }

  /** The disk's bytes as a web stream of bytes, with the options of {@link Disk.createReadStream}. */
  readable(options?: ReadStreamOptions): ReadableStream<Uint8Array> {
    return atEntry(this.readable, () => {
      this.#refuseClosed()
      return streams().webStream(this, options)
    })
  }

  /**
   * Closes the disk once the reads that it accepted have ended; later ones are refused. Calling it again returns the same promise.
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
    this.#reading++
    try {
      return { bytesRead: await answer, buffer }
    } finally {
      if (--this.#reading === 0) this.#idle?.()
    }
  }

  async #close(): Promise<void> {
    this.#forget()
    if (this.#reading > 0) await new Promise<void>((idle) => (this.#idle = idle))
    await closeHandle(this.#handle)
    closedChannel.publish({ disk: this, path: this.chain[0]?.path })
    debug('close: %s', this.chain[0]?.path ?? 'memory')
  }

  #refuseClosed(): void {
    if (this.#closing !== undefined) throw new Qcow2Error('ERR_QCOW2_CLOSED', 'the disk is closed')
  }
}
