/**
 * The first bytes of a stream.
 */

import { orAborted } from './abort.js'
import { cancelled, invalid, Qcow2Error } from './errors.js'
import type { ByteStream } from './inspect-types.js'
import { kindOf } from './sizes.js'

/** Whether a source is a stream: bytes are iterated, too, and are none. */
export function isStream(source: unknown): source is ByteStream {
  return typeof source === 'object' && source !== null && !(source instanceof Uint8Array) && Symbol.asyncIterator in source
}

/**
 * The first bytes of a stream, up to `most`, and whether those were all. They are copied: a chunk may be a window of a larger buffer, or be used again.
 * The stream is let go of, also when it stands still and `signal` aborts.
 */
export async function firstBytes(
  stream: ByteStream,
  most: number,
  signal: AbortSignal | undefined,
): Promise<{ bytes: Uint8Array; complete: boolean }> {
  let chunks: AsyncIterator<unknown> | undefined
  let ended = false
  try {
    const iterator = stream[Symbol.asyncIterator]()
    chunks = iterator
    const kept = new Kept(most)
    while (kept.length < most) {
      if (signal?.aborted) throw cancelled(signal.reason)
      const next = iterator.next()
      const { done, value } = await (signal === undefined ? next : orAborted(next, signal))
      ended = done === true
      if (ended) return { bytes: kept.bytes(), complete: true }
      if (!(value instanceof Uint8Array)) throw invalid('source', `the stream must give Uint8Arrays: it gave ${kindOf(value)}`)
      kept.add(value)
    }
    return { bytes: kept.bytes(), complete: false }
  } catch (error) {
    ended ||= !(error instanceof Qcow2Error)
    throw error instanceof Qcow2Error ? error : failed(error)
  } finally {
    if (!ended) letGo(stream, chunks)
  }
}

class Kept {
  length = 0
  #room = Buffer.alloc(64 << 10)
  constructor(readonly most: number) {}

  add(chunk: Uint8Array): void {
    const part = chunk.subarray(0, this.most - this.length)
    const needed = this.length + part.length
    if (needed > this.#room.length) {
      const larger = Buffer.alloc(Math.min(this.most, Math.max(needed, this.#room.length * 2)))
      larger.set(this.bytes())
      this.#room = larger
    }
    this.#room.set(part, this.length)
    this.length = needed
  }

  bytes(): Uint8Array {
    return this.#room.subarray(0, this.length)
  }
}

/** A stream that stands still ends no iteration: it is destroyed, if it can be. Nobody waits for it. */
function letGo(stream: ByteStream, chunks: AsyncIterator<unknown> | undefined): void {
  try {
    const { destroy } = stream as { destroy?: unknown }
    if (typeof destroy === 'function') destroy.call(stream)
    Promise.resolve(chunks?.return?.()).catch(() => {})
  } catch {
    // What was read of it, or why not, is told.
  }
}

function failed(cause: unknown): Qcow2Error {
  const reason = cause instanceof Error ? cause.message : String(cause)
  return new Qcow2Error('ERR_QCOW2_IO', `the stream failed: ${reason}`, { cause, details: { operation: 'read' } })
}
