/** A generated disk with everything that is known about how it must read. */
import { readSync } from 'node:fs'
import { describeDifference, firstDifference, type Model } from './model.js'
import type { Prng } from './prng.js'

export interface DiskCase {
  seed: number
  /** What was made, in words: a failure prints it. */
  words: string
  folder: string
  path: string
  model: Model
  snapshots: { id: string; name: string; model: Model }[]
  /** QEMU can read it. */
  qemu: boolean
  /** It has an external data file, which must be permitted. */
  dataFile: boolean
  /** Files of the chain, top first, with their formats. */
  layers: { path: string; format: 'qcow2' | 'raw' }[]
}

const WHOLE = 12 * 2 ** 20

/** The windows of a disk that are compared: all of it if it is small, else what is occupied with its surroundings, the ends, and some between. */
export function windows(model: Model, random: Prng): { start: number; length: number }[] {
  const piece = 4 * 2 ** 20
  const out: { start: number; length: number }[] = []
  const add = (from: number, to: number): void => {
    const end = Math.min(to, model.size)
    for (let at = Math.max(0, from); at < end; at += piece) out.push({ start: at, length: Math.min(piece, end - at) })
  }
  if (model.size <= WHOLE) {
    add(0, model.size)
    return out
  }
  add(0, 65536)
  add(model.size - 65536, model.size)
  for (const { start, length } of model.occupied()) add(start - 8192, start + length + 8192)
  for (let i = 0; i < 4; i++) {
    const at = random.int(Math.floor(model.size / 512)) * 512
    add(at, at + 65536)
  }
  return out
}

/** Compares a reader with the model. Answers what is wrong, or nothing. */
export async function differs(
  model: Model,
  random: Prng,
  read: (start: number, length: number) => Promise<Uint8Array> | Uint8Array,
): Promise<string | undefined> {
  for (const { start, length } of windows(model, random)) {
    const actual = await read(start, length)
    const expected = model.read(start, length)
    if (firstDifference(actual, expected) !== -1) return describeDifference(actual, expected, start)
  }
  return undefined
}

/** Reads from an open file; past its end there is nothing. */
export function readFrom(handle: number, start: number, length: number): Uint8Array {
  const out = new Uint8Array(length)
  let done = 0
  while (done < length) {
    const got = readSync(handle, out, done, length - done, start + done)
    if (got === 0) break
    done += got
  }
  return out.subarray(0, done)
}
