/**
 * Reads of a disk: at once and on this thread where memory can answer, else on the pool's threads. What comes out is the same.
 *
 * A read that is answered at once returns a settled promise, so a loop of awaits would never come back to the event loop by itself. A turn
 * therefore has a budget; when it is spent, reads wait for the next turn, and timers and sockets have theirs before.
 */

import type { Handle } from './boundary.js'
import { readInPool, readNow } from './native.js'

/** Larger reads are the pool's at once. */
const LARGEST = 1024 * 1024
/** What a read costs beside its bytes, in bytes that could be copied meanwhile. */
const CALL = 10 * 1024
/** What a turn of the event loop may spend: some 250 µs. Counted and not measured, because a clock would cost as much as a small read. */
const TURN = 2560 * 1024

/** For tests: whether there is a fast lane, how many reads it has answered, and how often reads had to wait for the next turn. */
export const fastLane = { open: true, answered: 0, waited: 0 }

let left = TURN
let turn: Promise<void> | undefined

/**
 * Reads from a chain into `target`.
 *
 * @param position - guest offset in bytes
 * @returns how many bytes there were, fewer than `length` only at the end of the disk; a promise of that if it has to be waited for
 */
export function read(chain: Handle, target: Uint8Array, offset: number, length: number, position: number | bigint): number | Promise<number> {
  if (length > LARGEST || !fastLane.open) return readInPool(chain, target, offset, length, position, 0)
  if (left <= 0) return readNextTurn(chain, target, offset, length, position)
  left -= CALL + length
  const count = readNow(chain, target, offset, length, position)
  if (count === length) {
    fastLane.answered++
    return count
  }
  return readInPool(chain, target, offset, length, position, Math.max(count, 0))
}

async function readNextTurn(chain: Handle, target: Uint8Array, offset: number, length: number, position: number | bigint): Promise<number> {
  fastLane.waited++
  do {
    turn ??= nextTurn()
    await turn
  } while (left <= 0)
  return read(chain, target, offset, length, position)
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(() => {
      left = TURN
      turn = undefined
      resolve()
    })
  })
}
