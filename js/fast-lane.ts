/**
 * Reads of a disk: at once and on this thread where memory can answer, else on the pool's threads. What comes out is the same.
 *
 * A read that is answered at once returns a settled promise, so a loop of awaits would never come back to the event loop by itself; and what the
 * pool has done is handed over in one go for as long as there is more. A turn therefore has a budget; when it is spent, the rest waits for the next
 * turn, and timers and sockets have theirs before.
 */

import type { Handle } from './boundary.js'
import { readInPool, readNow } from './native.js'
import { isSpent, putOff, spend } from './turn.js'

/** Larger reads are cut into such pieces. */
const LARGEST = 1024 * 1024
/** Pieces of one read that are under way at a time: while one is handed over, the next is being read. */
const AHEAD = 2

/** For tests: whether there is a fast lane, how many reads it has answered, and how often reads had to wait for the next turn. */
export const fastLane = { open: true, answered: 0, waited: 0 }

/**
 * Reads from a chain into `target`.
 *
 * @param position - guest offset in bytes
 * @returns how many bytes there were, fewer than `length` only at the end of the disk; a promise of that if it has to be waited for
 */
export function read(chain: Handle, target: Uint8Array, offset: number, length: number, position: number | bigint): number | Promise<number> {
  if (length > LARGEST) return readPieces(chain, target, offset, length, position)
  if (!fastLane.open) return readInPool(chain, target, offset, length, position, 0)
  if (isSpent()) return readNextTurn(chain, target, offset, length, position)
  spend(1, length)
  const count = readNow(chain, target, offset, length, position)
  if (count === length) {
    fastLane.answered++
    return count
  }
  return readInPool(chain, target, offset, length, position, Math.max(count, 0))
}

async function readPieces(chain: Handle, target: Uint8Array, offset: number, length: number, position: number | bigint): Promise<number> {
  const under: Promise<number>[] = []
  let begun = 0
  let done = 0
  try {
    do {
      for (; under.length < AHEAD && begun < length; begun += LARGEST) {
        const at = typeof position === 'number' && Number.isSafeInteger(position + begun) ? position + begun : BigInt(position) + BigInt(begun)
        const piece = Promise.resolve(read(chain, target, offset + begun, Math.min(length - begun, LARGEST), at))
        // It may fail before anybody waits for it.
        piece.catch(() => {})
        under.push(piece)
      }
      const wanted = Math.min(length - done, LARGEST)
      const count = (await under[0]) as number
      under.shift()
      done += count
      if (count < wanted) break
    } while (done < length)
    return done
  } finally {
    // They write to the target: nothing may be said before they have ended. The first one's error is the one that counts.
    await Promise.allSettled(under)
  }
}

function readNextTurn(chain: Handle, target: Uint8Array, offset: number, length: number, position: number | bigint): Promise<number> {
  fastLane.waited++
  return new Promise((resolve, reject) => {
    putOff(() => {
      try {
        resolve(read(chain, target, offset, length, position))
      } catch (error) {
        reject(error)
      }
    })
  })
}
