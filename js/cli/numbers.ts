/** Sizes and numbers as qemu-img reads them from its arguments. */
import { Refusal } from './refusal.js'

/** Why a text is no number, or none that fits. */
export type NumberFault = 'invalid' | 'range'

/** The largest signed 64-bit number: what a size or offset may be. */
export const INT64_MAX = 2n ** 63n - 1n
const UINT64_MAX = 2n ** 64n - 1n
const SHIFTS: Readonly<Record<string, bigint>> = { '': 0n, b: 0n, k: 10n, m: 20n, g: 30n, t: 40n, p: 50n, e: 60n }

/** Reads a size: decimal with a suffix of powers of 1024 and perhaps a fraction, or hexadecimal without either. */
export function readSize(text: string): bigint | NumberFault {
  const hex = /^\s*([+-]?)0x([0-9a-f]+)$/i.exec(text)
  if (hex) return signed(hex[1], BigInt(`0x${hex[2]}`))
  const match = /^\s*([+-]?)(\d*)(?:(\.)(\d*))?([bkmgtpe]?)$/i.exec(text)
  if (!match) return 'invalid'
  const [, sign, whole = '', point, fraction = '', suffix = ''] = match
  if (whole === '' && fraction === '') return 'invalid'
  const shift = SHIFTS[suffix.toLowerCase()] ?? 0n
  const part = point === undefined ? 0 : Number(`0.${fraction}0`)
  // A fraction of a byte has no meaning; that of a larger unit is rounded to whole bytes.
  if (part > 0 && shift === 0n) return 'invalid'
  return signed(sign, (BigInt(whole || 0) << shift) + BigInt(Math.floor(part * 2 ** Number(shift) + 0.5)))
}

function signed(sign: string | undefined, value: bigint): bigint | NumberFault {
  if (value > UINT64_MAX || sign === '-') return 'range'
  return value
}

/** Reads a plain number as C's `strtoull` with base 0 does: decimal, `0x…` or octal. */
export function readInteger(text: string): bigint | NumberFault {
  const match = /^\s*([+-]?)(0x[0-9a-f]+|0[0-7]*|[1-9]\d*)$/i.exec(text)
  if (!match) return 'invalid'
  const digits = match[2] ?? '0'
  const value = /^0[0-7]+$/.test(digits) ? BigInt(`0o${digits.slice(1)}`) : BigInt(digits)
  if (value > UINT64_MAX) return 'range'
  return match[1] === '-' ? -value : value
}

/** A size argument between bounds, or a refusal that names it: `image size`, `start offset` … */
export function sizeArgument(name: string, text: string, min = 0n, max = INT64_MAX): bigint {
  return inBounds(name, text, readSize(text), min, max)
}

/** A plain number argument between bounds. */
export function integerArgument(name: string, text: string, min: bigint, max: bigint): bigint {
  return inBounds(name, text, readInteger(text), min, max)
}

function inBounds(name: string, text: string, value: bigint | NumberFault, min: bigint, max: bigint): bigint {
  if (value === 'invalid') throw new Refusal(`Invalid ${name} specified: '${text}'.`)
  if (value === 'range' || value < min || value > max) throw new Refusal(`Invalid ${name} specified. Must be between ${min} and ${max}.`)
  return value
}
