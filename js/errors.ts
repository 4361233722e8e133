/**
 * The one error class that users meet, and how its stack comes to point at their call.
 */

import { getSystemErrorName } from 'node:util'
import { wipingHeld } from './holding.js'

/** An error of the core, as data. */
export interface ErrorData {
  code: string
  message: string
  offset?: bigint
  table?: string
  path?: string
  /** Positive, as the C library has it. */
  errno?: number
  syscall?: string
  details?: Record<string, string>
}

/** What a {@link Qcow2Error} may carry beside code and message. */
export interface Qcow2ErrorFields {
  /** Where in the file the fault stands, in bytes. */
  offset?: number | bigint
  /** The structure at fault, such as `'header'`, `'l1'`, `'l2'`, `'refcount-table'`, `'snapshot-table'`. */
  table?: string
  /** The file at fault. */
  path?: string
  /** Negative, as everywhere in Node.js. */
  errno?: number
  syscall?: string
  /** Further facts by name, as text. */
  details?: Readonly<Record<string, string>>
  cause?: unknown
}

/**
 * Why a call failed. `code` is stable (`ERR_QCOW2_…`); every code stands in docs/errors.md with what to do about it. The text is for people
 * and may change.
 *
 * @example
 * ```ts
 * import { open, Qcow2Error } from 'qcow2'
 * try {
 *   await open('disk.img')
 * } catch (error) {
 *   if (error instanceof Qcow2Error && error.code === 'ERR_QCOW2_NOT_QCOW2') console.error('not a qcow2 image')
 *   else throw error
 * }
 * ```
 */
export class Qcow2Error extends Error {
  static {
    Qcow2Error.prototype.name = 'Qcow2Error'
  }

  /** Stable name of what went wrong, `ERR_QCOW2_…`. */
  readonly code: string
  /** Where in the file the fault stands, in bytes; `bigint` beyond 2^53-1. */
  declare readonly offset?: number | bigint
  /** The structure at fault, such as `'header'`, `'l1'`, `'l2'`, `'refcount-table'`, `'snapshot-table'`. */
  declare readonly table?: string
  /** The file at fault. */
  declare readonly path?: string
  /** The system's error number, negative as everywhere in Node.js; only of system errors. */
  declare readonly errno?: number
  /** The system call that failed; only of system errors. */
  declare readonly syscall?: string
  /** Further facts by name, as text. */
  readonly details: Readonly<Record<string, string>>

  /** @internal */
  constructor(code: string, message: string, fields: Qcow2ErrorFields = {}) {
    super(message, 'cause' in fields ? { cause: fields.cause } : undefined)
    this.code = code
    // Fields that do not apply are absent, not undefined: they would clutter what console.log prints.
    for (const key of ['offset', 'table', 'path', 'errno', 'syscall'] as const) {
      if (fields[key] !== undefined) Object.defineProperty(this, key, { value: fields[key], enumerable: true, configurable: true, writable: true })
    }
    this.details = Object.freeze({ ...fields.details })
    // As Node.js prints its own errors: the code is the first thing to look up.
    if (this.stack !== undefined) this.stack = this.stack.replace(/^Qcow2Error:|^Error:/, `Qcow2Error [${code}]:`)
  }
}

/** The error that the core reported. */
export function fromNative(data: ErrorData): Qcow2Error {
  const fields: Qcow2ErrorFields = { details: { ...(data.errno ? { errno: errnoName(data.errno) } : {}), ...data.details } }
  if (data.offset !== undefined && data.offset !== null) fields.offset = narrow(data.offset)
  if (data.table) fields.table = data.table
  if (data.path) fields.path = data.path
  if (data.errno) fields.errno = -data.errno
  if (data.syscall) fields.syscall = data.syscall
  return new Qcow2Error(data.code, data.message, fields)
}

/** The error of an argument that has no meaning. `argument` is its name as the caller wrote it, such as `clusterSize`. */
export function invalid(argument: string, message: string): Qcow2Error {
  return new Qcow2Error('ERR_QCOW2_INVALID_ARGUMENT', message, { details: { argument } })
}

/** The error of a cancelled call; `reason` is why, as the signal tells it. */
export function cancelled(reason?: unknown): Qcow2Error {
  const message = 'the operation was cancelled'
  return new Qcow2Error('ERR_QCOW2_CANCELLED', message, reason === undefined ? {} : { cause: reason })
}

/** The error of something that Node.js itself reported, such as a path that is not there. */
export function fromSystem(error: unknown, path: string): unknown {
  if (!(error instanceof Error) || !('code' in error) || !('syscall' in error)) return error
  const { errno, syscall } = error as NodeJS.ErrnoException
  const fields: Qcow2ErrorFields = { path, cause: error, details: { errno: String(error.code) } }
  if (errno !== undefined) fields.errno = errno
  if (syscall !== undefined) fields.syscall = syscall
  return new Qcow2Error('ERR_QCOW2_IO', error.message, fields)
}

/**
 * Runs `work` so that an error it throws has the stack of whoever called the public function `entry`: the completion of native work has no
 * frames of its own.
 */
export async function atCaller<T>(entry: (...words: never[]) => unknown, work: () => Promise<T>): Promise<T> {
  const caller: { stack?: string } = {}
  Error.captureStackTrace(caller, entry)
  try {
    return await wipingHeld(work)
  } catch (error) {
    throw withFrames(error, caller)
  }
}

/** Runs the part of a public function that comes before any waiting, so that its errors have the stack of whoever called `entry`. */
export function atEntry<T>(entry: (...words: never[]) => unknown, work: () => T): T {
  try {
    return work()
  } catch (error) {
    throw atEntryOf(entry, error)
  }
}

/** An error that was met on the way in, with the stack of whoever called `entry`. */
export function atEntryOf(entry: (...words: never[]) => unknown, error: unknown): unknown {
  const caller: { stack?: string } = {}
  Error.captureStackTrace(caller, entry)
  return withFrames(error, caller)
}

/** Gives a {@link Qcow2Error} the frames that were captured at the call. Other errors, a gate's own for example, keep theirs. */
export function withFrames(error: unknown, caller: { stack?: string }): unknown {
  if (!(error instanceof Qcow2Error) || caller.stack === undefined) return error
  const frames = caller.stack.slice(caller.stack.indexOf('\n    at ') + 1)
  if (frames.trimStart().startsWith('at ')) error.stack = `Qcow2Error [${error.code}]: ${error.message}\n${frames}`
  return error
}

/** `'ENOENT'` for 2. */
function errnoName(errno: number): string {
  try {
    return getSystemErrorName(-errno)
  } catch {
    return String(errno)
  }
}

function narrow(value: bigint): number | bigint {
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value
}
