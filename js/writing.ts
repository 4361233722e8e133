/**
 * Writes and flushes of a disk, on the pool's threads.
 */

import type { Handle } from './boundary.js'
import { call, errorOf, writeInPool } from './native.js'

/** Larger writes are cut into such pieces, at multiples of it on the disk. */
const LARGEST = 4 * 1024 * 1024

/**
 * Writes bytes. They are copied before this returns.
 *
 * @param position - guest offset in bytes
 * @param result - what it resolves to
 */
export async function write<R>(disk: Handle, source: Uint8Array, offset: number, length: number, position: number | bigint, result: R): Promise<R> {
  try {
    if (length <= LARGEST) await writeInPool(disk, source, offset, length, position, 0)
    else await writePieces(disk, source, offset, length, position)
  } catch (failure) {
    throw errorOf(failure)
  }
  return result
}

async function writePieces(disk: Handle, source: Uint8Array, offset: number, length: number, position: number | bigint): Promise<void> {
  const pieces: Promise<unknown>[] = []
  let next = LARGEST - Number(BigInt(position) % BigInt(LARGEST))
  for (let done = 0; done < length; done += next, next = Math.min(LARGEST, length - done)) {
    pieces.push(writeInPool(disk, source, offset, next, position, done))
  }
  // All have ended before anything is said; the first one's error is the one that counts.
  for (const outcome of await Promise.allSettled(pieces)) if (outcome.status === 'rejected') throw outcome.reason
}

/** The flushes of one disk: however many are asked for, one runs and one waits, which serves everybody who asked since the first began. */
export class Flushes {
  #running: Promise<void> | undefined
  #next: Promise<void> | undefined
  readonly #disk: Handle

  constructor(disk: Handle) {
    this.#disk = disk
  }

  /** Makes durable what was written before this is called. */
  flush(): Promise<void> {
    if (this.#running === undefined) return this.#run()
    this.#next ??= this.#running.then(
      () => this.#run(),
      () => this.#run(),
    )
    return this.#next
  }

  #run(): Promise<void> {
    this.#next = undefined
    const running = call<void>((addon, id) => addon.flush(id, this.#disk))
    const done = (): void => {
      if (this.#running === running) this.#running = undefined
    }
    this.#running = running
    running.then(done, done)
    return running
  }
}
