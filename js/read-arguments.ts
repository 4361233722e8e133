/**
 * The arguments of `disk.read`, in the three shapes that `FileHandle.read` takes. By hand and not by rules: this is the way of every read.
 */

import { isAnyArrayBuffer, isArrayBufferView } from 'node:util/types'
import { invalid } from './errors.js'
import { type Checked, checkOptions, type Rule } from './options.js'
import { kindOf, parseCount } from './sizes.js'
import type { ByteCount } from './types.js'

/** What is to be read where. `target` is the memory of `buffer`. */
export interface ReadRequest<B extends NodeJS.ArrayBufferView> {
  buffer: B
  target: Uint8Array
  offset: number
  length: number
  position: ByteCount
}

/** As `FileHandle.read` takes where no buffer is given. */
const DEFAULT_LENGTH = 16384

/** The rule for what is judged elsewhere. */
export const ANY: Rule<unknown> = (value) => value
const KEYS = { buffer: ANY, offset: ANY, length: ANY, position: ANY }

/** Sorts and checks the arguments of one read. */
export function readArguments<B extends NodeJS.ArrayBufferView>(first: unknown, second: unknown, third: unknown, fourth: unknown): ReadRequest<B> {
  if (isArrayBufferView(first)) {
    if (typeof second !== 'object' || second === null) return request(first as B, second, third, fourth)
    const { offset, length, position } = optionsOf(second)
    return request(first as B, offset, length, position)
  }
  // An ArrayBuffer is an object too, and would else pass for options without a position.
  const more = second !== undefined || third !== undefined || fourth !== undefined
  if (more || typeof first !== 'object' || first === null || Array.isArray(first) || isAnyArrayBuffer(first))
    throw invalid('buffer', `buffer must be a typed array, a DataView or a Buffer: it is ${kindOf(first)}`)
  const { buffer, offset, length, position } = optionsOf(first)
  if (buffer !== undefined && !isArrayBufferView(buffer)) {
    throw invalid('buffer', `buffer must be a typed array, a DataView or a Buffer: it is ${kindOf(buffer)}`)
  }
  return request(
    (buffer ?? Buffer.alloc(typeof length === 'number' && length < DEFAULT_LENGTH && length > 0 ? length : DEFAULT_LENGTH)) as B,
    offset,
    length,
    position,
  )
}

/** The options themselves if they are a plain object that holds nothing else; the rules, which take longer, judge all others. */
function optionsOf(options: object): Checked<typeof KEYS> {
  if (Object.getPrototypeOf(options) !== Object.prototype) return checkOptions('read', options, KEYS)
  for (const key in options) {
    if (key !== 'position' && key !== 'offset' && key !== 'length' && key !== 'buffer') return checkOptions('read', options, KEYS)
  }
  return options
}

function request<B extends NodeJS.ArrayBufferView>(buffer: B, offsetGiven: unknown, lengthGiven: unknown, positionGiven: unknown): ReadRequest<B> {
  const size = buffer.byteLength
  const offset = within(offsetGiven ?? 0, size, 'offset', 'the buffer has')
  const length = within(lengthGiven ?? size - offset, size - offset, 'length', `behind offset ${offset} the buffer has`)
  const target = buffer instanceof Uint8Array ? buffer : new Uint8Array(buffer.buffer, buffer.byteOffset, size)
  return { buffer, target, offset, length, position: place(positionGiven) }
}

/** A count of bytes in a buffer. */
export function within(value: unknown, most: number, name: string, has: string): number {
  if (typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= most) return value
  throw invalid(name, `${name} must be a whole number of bytes from 0 to ${most}, as ${has} ${most} bytes: it is ${kindOf(value)}`)
}

/** A place on a disk. */
export function place(value: unknown): ByteCount {
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value
  if (value === undefined || value === null) throw invalid('position', 'position must be given: a disk has no cursor')
  return parseCount(value, 'position')
}
