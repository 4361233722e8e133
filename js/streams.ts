/**
 * A disk as a stream of bytes, in Node.js's way and in the web's.
 */

import { addAbortSignal, Readable } from 'node:stream'
import { type ReadableByteStreamController, ReadableStream, type UnderlyingByteSource } from 'node:stream/web'
import type { Disk } from './disk.js'
import { invalid } from './errors.js'
import { checkOptions, count, integer, signal } from './options.js'
import type { ByteCount } from './types.js'

/** Which part of a disk a stream reads, and how. */
export interface ReadStreamOptions {
  /** First byte. Default 0. */
  start?: ByteCount
  /** Last byte: *inclusive*, as in `fs.createReadStream`. Default, and at most: the last byte of the disk. */
  end?: ByteCount
  /** Bytes a chunk, from 512 to 64 MiB. Default 512 KiB. */
  highWaterMark?: number
  /** Destroys the stream when it aborts. */
  signal?: AbortSignal
}

const RULES = { start: count, end: count, highWaterMark: integer(512, 64 << 20), signal }
const CHUNK = 512 * 1024

interface Range {
  start: bigint
  /** Exclusive. */
  stop: bigint
  chunk: number
  signal: AbortSignal | undefined
}

function rangeOf(call: string, disk: Disk, options: ReadStreamOptions | undefined): Range {
  const { start = 0n, end, highWaterMark = CHUNK, signal } = checkOptions(call, options, RULES)
  const size = BigInt(disk.virtualSize)
  if (end !== undefined && start > end) throw invalid('start', `start must not be greater than end: they are ${start} and ${end}`)
  return { start, stop: end === undefined || end >= size ? size : end + 1n, chunk: highWaterMark, signal }
}

/** A Node.js stream over a disk. It does not close the disk. */
export class DiskReadStream extends Readable {
  /** Bytes that were read so far. */
  bytesRead = 0
  readonly #disk: Disk
  readonly #chunk: number
  #at: bigint
  readonly #stop: bigint
  #reading: Promise<void> | undefined

  constructor(disk: Disk<ByteCount>, options: ReadStreamOptions | undefined) {
    const { start, stop, chunk, signal } = rangeOf('createReadStream', disk, options)
    super({ highWaterMark: chunk })
    this.#disk = disk
    this.#chunk = chunk
    this.#at = start
    this.#stop = stop
    // Not by the constructor above: a signal that has aborted already would destroy the stream before it has its fields.
    if (signal !== undefined) addAbortSignal(signal, this)
  }

  override _read(): void {
    this.#reading = this.#next().catch((error) => {
      this.destroy(error as Error)
    })
  }

  /** A read under way writes into a buffer of this stream: it ends before the stream does. */
  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    if (this.#reading === undefined) done(error)
    else this.#reading.then(() => done(error))
  }

  async #next(): Promise<void> {
    const left = this.#stop - this.#at
    if (left <= 0n) {
      this.push(null)
      return
    }
    const length = left < BigInt(this.#chunk) ? Number(left) : this.#chunk
    // Not from Node.js's shared pool of small buffers: its other users would see the bytes arrive.
    const buffer = Buffer.allocUnsafeSlow(length)
    const { bytesRead } = await this.#disk.read(buffer, 0, length, this.#at)
    if (this.destroyed) return
    this.#at += BigInt(bytesRead)
    this.bytesRead += bytesRead
    // Pushing may ask for the next read at once: nothing may come after it.
    this.#reading = undefined
    this.push(bytesRead === 0 ? null : buffer.subarray(0, bytesRead))
  }
}

/** A web stream over a disk. It does not close the disk. */
export function webStream(disk: Disk<ByteCount>, options: ReadStreamOptions | undefined): ReadableStream<Uint8Array> {
  const { start, stop, chunk, signal } = rangeOf('readable', disk, options)
  let at = start
  let abort = (): void => {}
  const forget = (): void => signal?.removeEventListener('abort', abort)
  const source: UnderlyingByteSource = {
    type: 'bytes',
    autoAllocateChunkSize: chunk,
    start(controller: ReadableByteStreamController) {
      abort = () => controller.error(signal?.reason)
      if (signal?.aborted) abort()
      else signal?.addEventListener('abort', abort, { once: true })
    },
    async pull(controller: ReadableByteStreamController) {
      // There is always one: chunks are allocated where the reader brings none.
      const request = controller.byobRequest as unknown as { view: Uint8Array; respond(bytes: number): void }
      const left = stop - at
      const room = request.view.byteLength
      const length = left < BigInt(room) ? Number(left > 0n ? left : 0n) : room
      const { bytesRead } = length === 0 ? { bytesRead: 0 } : await disk.read(request.view, 0, length, at)
      if (signal?.aborted) return
      at += BigInt(bytesRead)
      if (bytesRead === 0) {
        forget()
        controller.close()
      }
      request.respond(bytesRead)
    },
    cancel: forget,
  }
  return new ReadableStream(source)
}
