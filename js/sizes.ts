/**
 * Byte counts on their way in and out: text with suffixes, numbers, `bigint`.
 */

import { invalid, Qcow2Error } from './errors.js'

const SUFFIXES = 'BKMGTPE'
const LARGEST = 2n ** 63n - 1n

/** Bytes of a size option: a whole number, a `bigint`, or text such as `'10G'` (powers of 1024; a fraction of a byte is dropped). */
export function parseSize(value: unknown, name: string): bigint {
  if (typeof value !== 'string') {
    if (typeof value === 'number' || typeof value === 'bigint') return parseCount(value, name)
    throw invalid(name, `${name} must be a number, a bigint or text such as '10G': it is ${kindOf(value)}`)
  }
  const match = /^\s*(\d+)(?:\.(\d+))?\s*([bkmgtpe]?)\s*$/i.exec(value)
  if (match === null)
    throw invalid(name, `${name}: '${value}' is not a size: bytes, or a number with one of the suffixes K, M, G, T, P, E as in '10G'`)
  const [, whole = '0', fraction = '', suffix = ''] = match
  const unit = suffix === '' ? 1n : 1024n ** BigInt(SUFFIXES.indexOf(suffix.toUpperCase()))
  const bytes = BigInt(whole) * unit + (BigInt(fraction === '' ? 0 : fraction) * unit) / 10n ** BigInt(fraction.length)
  return bounded(bytes, name)
}

/** Bytes of a position or length: a safe non-negative integer, or a non-negative `bigint`. */
export function parseCount(value: unknown, name: string): bigint {
  if (typeof value === 'bigint') {
    if (value < 0n) throw invalid(name, `${name} must not be negative: it is ${value}`)
    return bounded(value, name)
  }
  if (typeof value !== 'number') throw invalid(name, `${name} must be a number or a bigint: it is ${kindOf(value)}`)
  if (!Number.isSafeInteger(value) || value < 0) {
    const hint = value > Number.MAX_SAFE_INTEGER ? ': beyond 2^53-1 give a bigint' : ''
    throw invalid(name, `${name} must be a whole number from 0 to 2^53-1, or a bigint: it is ${value}${hint}`)
  }
  return BigInt(value)
}

function bounded(bytes: bigint, name: string): bigint {
  if (bytes > LARGEST) throw invalid(name, `${name} must be less than 2^63: it is ${bytes}`)
  return bytes
}

/** A size of an opened image: `bigint` if asked for, else a number that must be exact. */
export function exact(value: bigint, bigint: boolean, what: string, path: string | undefined): number | bigint {
  if (bigint) return value
  if (value <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(value)
  throw new Qcow2Error('ERR_QCOW2_NEEDS_BIGINT', `${what} is ${value} bytes, which a number cannot hold: say { bigint: true }`, {
    ...(path === undefined ? {} : { path }),
    details: { size: value.toString() },
  })
}

/** A number of a result: `bigint` if asked for, or where a number could not hold it. */
export function narrow(value: bigint, bigint = false): number | bigint {
  return bigint || value > BigInt(Number.MAX_SAFE_INTEGER) ? value : Number(value)
}

/** What a value is, for a sentence. */
export function kindOf(value: unknown): string {
  if (value === null) return 'null'
  if (typeof value === 'string') return `'${value.length > 40 ? `${value.slice(0, 40)}…` : value}'`
  if (typeof value === 'number' || typeof value === 'boolean' || typeof value === 'bigint') return String(value)
  if (Array.isArray(value)) return 'an array'
  if (typeof value === 'function') return 'a function'
  if (typeof value === 'object')
    return `an object${value.constructor?.name && value.constructor.name !== 'Object' ? ` (${value.constructor.name})` : ''}`
  return typeof value
}
