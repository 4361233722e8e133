/**
 * The runs of a disk, a batch at a time.
 */

import type { Handle } from './boundary.js'
import type { Disk } from './disk.js'
import { invalid, Qcow2Error } from './errors.js'
import { call } from './native.js'
import { checkOptions, count, signal } from './options.js'
import type { ByteCount, ChainLayer, Run } from './types.js'

/** Which part of a disk {@link Disk.map} walks. */
export interface MapOptions {
  /** First byte. Default 0. */
  start?: ByteCount
  /** The byte behind the last: exclusive. Default, and at most: the virtual size. */
  end?: ByteCount
  signal?: AbortSignal
}

const RULES = { start: count, end: count, signal }

/** Runs that are asked for at once: enough to make the crossing cheap, few enough to begin at once. */
const BATCH = 512

/** A run crosses as five words: start, length, flags, offset, and one that is unused. */
const WORDS = 5
const PRESENT = 1n
const ZERO = 2n
const DATA = 4n
const COMPRESSED = 8n
const OFFSET = 16n
const IN_DATA_FILE = 32n

/** The checked options of `map`, within a disk of `size` bytes. */
export function mapRange(
  options: MapOptions | undefined,
  size: bigint,
  call = 'map',
): { start: bigint; end: bigint; signal: AbortSignal | undefined } {
  const { start = 0n, end, signal } = checkOptions(call, options, RULES)
  if (end !== undefined && start > end) throw invalid('start', `start must not be greater than end: they are ${start} and ${end}`)
  return { start, end: end === undefined || end > size ? size : end, signal }
}

/** Walks from `start` to `end`. */
export async function* runsOf<N extends ByteCount>(
  disk: Disk<N>,
  handle: Handle,
  start: bigint,
  end: bigint,
  bigint: boolean,
  signal: AbortSignal | undefined,
): AsyncGenerator<Run<N>, void, undefined> {
  const number = (value: bigint): N => (bigint ? value : Number(value)) as N
  let at = start
  while (at < end) {
    if (disk.closed) throw new Qcow2Error('ERR_QCOW2_CLOSED', 'the disk is closed')
    const from = at
    const words = await call<BigUint64Array>((addon, id) => addon.map(id, handle, from, end - from, BATCH), { signal })
    for (let word = 0; word + WORDS <= words.length; word += WORDS) {
      const [begin, length, flags, offset] = words.subarray(word, word + WORDS) as unknown as [bigint, bigint, bigint, bigint]
      const depth = Number(flags >> 32n)
      const run: Run<N> = {
        start: number(begin),
        length: number(length),
        depth,
        present: (flags & PRESENT) !== 0n,
        zero: (flags & ZERO) !== 0n,
        data: (flags & DATA) !== 0n,
        compressed: (flags & COMPRESSED) !== 0n,
      }
      if ((flags & OFFSET) !== 0n) {
        run.offset = number(offset)
        const path = fileOf(disk.chain[depth], (flags & IN_DATA_FILE) !== 0n)
        if (path !== undefined) run.path = path
      }
      yield run
      at = begin + length
    }
    // Every byte has an answer: none means a defect, which must not become an endless loop.
    if (at === from) throw new Qcow2Error('ERR_QCOW2_INTERNAL', `the map has no answer for offset ${from}`)
  }
}

function fileOf(layer: ChainLayer | undefined, inDataFile: boolean): string | undefined {
  return inDataFile ? layer?.dataFile : layer?.path
}
