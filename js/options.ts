/**
 * Checking what callers hand in, in the order default → type → meaning. An unknown key is an error that names the right one: an option that
 * is silently ignored is the worst kind of wrong.
 */

import { invalid, Qcow2Error } from './errors.js'
import { kindOf, parseCount, parseSize } from './sizes.js'

/** Turns what was given into what is meant, or throws. `name` is the option as the caller wrote it. */
export type Rule<T> = (value: unknown, name: string) => T

/** The options of one call, by name. */
export type Rules = Record<string, Rule<unknown>>

/** Options that passed their rules. What was not given is absent. */
export type Checked<R extends Rules> = { [K in keyof R]?: ReturnType<R[K]> }

/**
 * Checks an options object against the rules of a call.
 *
 * @param call - the public function, for the message
 * @param options - what the caller gave; `undefined` is none
 * @param rules - every option that the call knows
 * @param prefix - name of the option that holds these, such as `'limits.'`
 */
export function checkOptions<R extends Rules>(call: string, options: unknown, rules: R, prefix = ''): Checked<R> {
  const checked: Partial<Record<string, unknown>> = {}
  if (options === undefined) return checked as Checked<R>
  if (typeof options !== 'object' || options === null || Array.isArray(options) || ArrayBuffer.isView(options)) {
    const what = prefix === '' ? `the options of ${call}` : prefix.slice(0, -1)
    // Text is not shown: where `encryption` is expected, it is a password as like as not.
    const kind = typeof options === 'string' ? 'text' : kindOf(options)
    throw invalid(prefix === '' ? 'options' : prefix.slice(0, -1), `${what} must be an object: it is ${kind}`)
  }
  for (const [key, value] of Object.entries(options)) {
    const rule = Object.hasOwn(rules, key) ? rules[key] : undefined
    if (rule === undefined) throw unknownOption(call, prefix, key, Object.keys(rules))
    if (value !== undefined) checked[key] = rule(value, prefix + key)
  }
  return checked as Checked<R>
}

function unknownOption(call: string, prefix: string, key: string, known: readonly string[]): Qcow2Error {
  const near = nearest(key, known)
  const hint = near === undefined ? `it knows ${known.map((name) => prefix + name).join(', ')}` : `did you mean '${prefix}${near}'?`
  return new Qcow2Error('ERR_QCOW2_UNKNOWN_OPTION', `${call} has no option '${prefix}${key}': ${hint}`, {
    details: { argument: prefix + key, ...(near === undefined ? {} : { suggestion: prefix + near }) },
  })
}

/** The known word that was probably meant, if one is near enough. */
export function nearest(word: string, known: readonly string[]): string | undefined {
  const bare = (text: string): string => text.toLowerCase().replace(/[^a-z0-9.]/g, '')
  const wanted = bare(word)
  const same = known.find((name) => bare(name) === wanted)
  if (same !== undefined) return same
  const begun = known.filter((name) => wanted.length > 2 && bare(name).startsWith(wanted))
  // Of words that begin alike, the one that the others only lengthen: 'compress' means compression, not compressionType.
  const shortest = begun.reduce<string | undefined>((least, name) => (least === undefined || name.length < least.length ? name : least), undefined)
  if (shortest !== undefined && begun.every((name) => name.startsWith(shortest))) return shortest
  let best: string | undefined
  // Of very short words every other is near.
  let least = wanted.length < 3 ? 0 : Math.max(1, Math.floor(wanted.length / 3)) + 1
  for (const name of known) {
    const distance = editDistance(wanted, bare(name))
    if (distance < least) [best, least] = [name, distance]
  }
  return best
}

/** Insertions, deletions and replacements that make one word the other (Levenshtein). */
function editDistance(a: string, b: string): number {
  // Words beyond any option's length are never near; this bounds the work for hostile keys.
  if (a.length > 64) return a.length
  let row = Array.from({ length: b.length + 1 }, (_, index) => index)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const change = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(change, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1))
    }
    row = next
  }
  return row[b.length] ?? a.length
}

/** `true` or `false`. */
export const flag: Rule<boolean> = (value, name) => {
  if (typeof value !== 'boolean') throw invalid(name, `${name} must be true or false: it is ${kindOf(value)}`)
  return value
}

/** One of some words. */
export function oneOf<const W extends string>(...words: W[]): Rule<W> {
  return (value, name) => {
    const found = words.find((word) => word === value)
    if (found !== undefined) return found
    const near = typeof value === 'string' ? nearest(value, words) : undefined
    const hint = near === undefined ? '' : `; did you mean '${near}'?`
    throw invalid(name, `${name} must be one of ${words.map((word) => `'${word}'`).join(', ')}: it is ${kindOf(value)}${hint}`)
  }
}

/** The rule for every option that names a format. */
export const format = oneOf('qcow2', 'raw', 'luks')

/** Text that names something: not empty, and without the NUL that would end it early for the system. */
export const text: Rule<string> = (value, name) => {
  if (typeof value !== 'string') throw invalid(name, `${name} must be text: it is ${kindOf(value)}`)
  if (value === '') throw invalid(name, `${name} must not be empty`)
  if (value.includes('\0')) throw invalid(name, `${name} must not contain a NUL character`)
  return value
}

/** A whole number of a range. */
export function integer(least: number, most: number): Rule<number> {
  return (value, name) => {
    if (typeof value !== 'number' || !Number.isInteger(value) || value < least || value > most) {
      throw invalid(name, `${name} must be a whole number from ${least} to ${most}: it is ${kindOf(value)}`)
    }
    return value
  }
}

/** A size, as bytes. */
export const size: Rule<bigint> = parseSize

/** A position, length or count. */
export const count: Rule<bigint> = parseCount

/** A size that memory has to hold, as a number. */
export function memorySize(least: number): Rule<number> {
  return (value, name) => {
    const bytes = parseSize(value, name)
    if (bytes < BigInt(least) || bytes > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw invalid(name, `${name} must be from ${least} to 2^53-1 bytes: it is ${bytes}`)
    }
    return Number(bytes)
  }
}

/** An `AbortSignal`, of whatever realm. */
export const signal: Rule<AbortSignal> = (value, name) => {
  const candidate = value as Partial<AbortSignal> | null
  if (
    typeof candidate !== 'object' ||
    candidate === null ||
    typeof candidate.aborted !== 'boolean' ||
    typeof candidate.addEventListener !== 'function'
  ) {
    throw invalid(name, `${name} must be an AbortSignal: it is ${kindOf(value)}`)
  }
  return candidate as AbortSignal
}

/** A function. */
export function callback<F extends (...words: never[]) => unknown>(): Rule<F> {
  return (value, name) => {
    if (typeof value !== 'function') throw invalid(name, `${name} must be a function: it is ${kindOf(value)}`)
    return value as F
  }
}
