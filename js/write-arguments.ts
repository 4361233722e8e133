/**
 * The arguments of `disk.write`, in the two shapes that `FileHandle.write` takes for bytes. By hand and not by rules: this is the way of every
 * write.
 */

import { isArrayBufferView } from 'node:util/types'
import { invalid } from './errors.js'
import { type Checked, checkOptions } from './options.js'
import { ANY, place, within } from './read-arguments.js'
import { kindOf } from './sizes.js'
import type { ByteCount } from './types.js'

/** Where {@link Disk.write} takes bytes from and where they go. */
export interface WriteOptions {
  /** Where in the buffer to begin, in bytes. Default 0. */
  offset?: number
  /** How many bytes to write. Default: all from `offset` on. */
  length?: number
  /** Where on the disk to begin, in bytes. Must be given: a disk has no cursor. */
  position: ByteCount
}

/** What is to be written where. `source` is the memory of `buffer`. */
export interface WriteRequest<B extends NodeJS.ArrayBufferView> {
  buffer: B
  source: Uint8Array
  offset: number
  length: number
  position: ByteCount
}

const KEYS = { offset: ANY, length: ANY, position: ANY }

/** Sorts and checks the arguments of one write. */
export function writeArguments<B extends NodeJS.ArrayBufferView>(
  buffer: unknown,
  second: unknown,
  length: unknown,
  position: unknown,
): WriteRequest<B> {
  if (!isArrayBufferView(buffer)) {
    const hint = typeof buffer === 'string' ? ': a disk has bytes and no encoding, so give a Buffer' : ''
    throw invalid('buffer', `buffer must be a typed array, a DataView or a Buffer: it is ${kindOf(buffer)}${hint}`)
  }
  if (typeof second !== 'object' || second === null) return request(buffer as B, second, length, position)
  const options = optionsOf(second)
  return request(buffer as B, options.offset, options.length, options.position)
}

/** The options themselves if they are a plain object that holds nothing else; the rules, which take longer, judge all others. */
function optionsOf(options: object): Checked<typeof KEYS> {
  if (Object.getPrototypeOf(options) !== Object.prototype) return checkOptions('write', options, KEYS)
  for (const key in options) {
    if (key !== 'position' && key !== 'offset' && key !== 'length') return checkOptions('write', options, KEYS)
  }
  return options
}

function request<B extends NodeJS.ArrayBufferView>(buffer: B, offsetGiven: unknown, lengthGiven: unknown, positionGiven: unknown): WriteRequest<B> {
  const size = buffer.byteLength
  const offset = within(offsetGiven ?? 0, size, 'offset', 'the buffer has')
  const length = within(lengthGiven ?? size - offset, size - offset, 'length', `behind offset ${offset} the buffer has`)
  const source = buffer instanceof Uint8Array ? buffer : new Uint8Array(buffer.buffer, buffer.byteOffset, size)
  return { buffer, source, offset, length, position: place(positionGiven) }
}
