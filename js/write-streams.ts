/**
 * Writing to a disk as to a stream, in Node.js's way and in the web's.
 */

import { addAbortSignal, Writable } from 'node:stream'
import { WritableStream, type WritableStreamDefaultController } from 'node:stream/web'
import { isAnyArrayBuffer, isArrayBufferView } from 'node:util/types'
import type { Disk } from './disk.js'
import { invalid } from './errors.js'
import { type Checked, checkOptions, count, flag, integer, signal } from './options.js'
import { kindOf } from './sizes.js'
import type { ByteCount } from './types.js'

/** Where a stream writes, and how. */
export interface WriteStreamOptions {
  /** Where on the disk to begin, in bytes. Default 0. */
  start?: ByteCount
  /** Flush the disk before the stream finishes. Default false. */
  flush?: boolean
  /** Bytes that wait before `write` says so, from 512 to 64 MiB. Default 4 MiB. */
  highWaterMark?: number
  /** Destroys the stream when it aborts. */
  signal?: AbortSignal
}

const RULES = { start: count, flush: flag, highWaterMark: integer(512, 64 << 20), signal }
const WAITING = 4 << 20
/** Requests of one stream that are under way at a time. */
const UNDER_WAY = 4
/** Small chunks are put together up to this many bytes. */
const TOGETHER = 1 << 20

/** Writes chunks one behind the other, several at a time. */
class Pump {
  readonly #disk: Disk<ByteCount>
  readonly #flush: boolean
  #at: bigint
  readonly #under = new Set<Promise<void>>()
  #failure: { error: unknown } | undefined

  constructor(disk: Disk<ByteCount>, { start = 0n, flush = false }: Checked<typeof RULES>) {
    this.#disk = disk
    this.#at = start
    this.#flush = flush
  }

  /** Begins to write a chunk, which may be used again at once. Resolves when the next may come; rejects if this or an earlier one failed. */
  async write(chunk: NodeJS.ArrayBufferView): Promise<void> {
    this.#refuse()
    const writing = this.#disk.write(chunk, { position: this.#at }).then(
      () => {},
      (error) => {
        this.#failure ??= { error }
      },
    )
    this.#at += BigInt(chunk.byteLength)
    this.#under.add(writing)
    writing.then(() => this.#under.delete(writing))
    if (this.#under.size >= UNDER_WAY) await Promise.race(this.#under)
    this.#refuse()
  }

  /** Waits for everything, and flushes if that was asked for. */
  async finish(): Promise<void> {
    await this.settle()
    this.#refuse()
    if (this.#flush) await this.#disk.flush()
  }

  /** Waits until nothing is under way. */
  async settle(): Promise<void> {
    await Promise.all(this.#under)
  }

  #refuse(): void {
    if (this.#failure !== undefined) throw this.#failure.error
  }
}

/** A Node.js stream that writes to a disk. It does not close the disk. */
export class DiskWriteStream extends Writable {
  /** Bytes that were handed to the disk so far. */
  bytesWritten = 0
  readonly #pump: Pump

  constructor(disk: Disk<ByteCount>, options: WriteStreamOptions | undefined) {
    const checked = checkOptions('createWriteStream', options, RULES)
    super({ highWaterMark: checked.highWaterMark ?? WAITING })
    this.#pump = new Pump(disk, checked)
    // Not by the constructor above: a signal that has aborted already would destroy the stream before it has its fields.
    if (checked.signal !== undefined) addAbortSignal(checked.signal, this)
  }

  override _write(chunk: Uint8Array, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#write([chunk]).then(() => done(), done)
  }

  override _writev(chunks: { chunk: Uint8Array }[], done: (error?: Error | null) => void): void {
    this.#write(chunks.map(({ chunk }) => chunk)).then(() => done(), done)
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#pump.finish().then(() => done(), done)
  }

  /** Requests that are under way end before the stream does. */
  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#pump.settle().then(() => done(error))
  }

  async #write(chunks: Uint8Array[]): Promise<void> {
    for (const bytes of together(chunks)) {
      await this.#pump.write(bytes)
      this.bytesWritten += bytes.length
    }
  }
}

/** Chunks as they are where they are large, small ones put together. */
function* together(chunks: readonly Uint8Array[]): Generator<Uint8Array> {
  for (let at = 0; at < chunks.length; ) {
    let [next, length] = [at + 1, chunks[at]?.length ?? 0]
    while (next < chunks.length && length + (chunks[next]?.length ?? 0) <= TOGETHER) length += chunks[next++]?.length ?? 0
    yield next === at + 1 ? (chunks[at] as Uint8Array) : Buffer.concat(chunks.slice(at, next), length)
    at = next
  }
}

/** A web stream that writes to a disk. It does not close the disk. */
export function webWritable(disk: Disk<ByteCount>, options: WriteStreamOptions | undefined): WritableStream<Uint8Array> {
  const checked = checkOptions('writable', options, RULES)
  const { signal } = checked
  const pump = new Pump(disk, checked)
  let abort = (): void => {}
  const forget = (): void => signal?.removeEventListener('abort', abort)
  // Not Node.js's strategy of bytes: it fails for what is no chunk before that can be told.
  const size = (chunk: Partial<Uint8Array> | undefined): number => chunk?.byteLength ?? 1
  return new WritableStream<Uint8Array>(
    {
      start(controller: WritableStreamDefaultController) {
        abort = () => controller.error(signal?.reason)
        if (signal?.aborted) abort()
        else signal?.addEventListener('abort', abort, { once: true })
      },
      write: (chunk) => pump.write(bytesOf(chunk)),
      close: () => pump.finish().finally(forget),
      abort: () => pump.settle().finally(forget),
    },
    { highWaterMark: checked.highWaterMark ?? WAITING, size },
  )
}

function bytesOf(chunk: unknown): NodeJS.ArrayBufferView {
  if (isArrayBufferView(chunk)) return chunk
  if (isAnyArrayBuffer(chunk)) return new Uint8Array(chunk)
  throw invalid('chunk', `a chunk must be a Uint8Array: it is ${kindOf(chunk)}`)
}
