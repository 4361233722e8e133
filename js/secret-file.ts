/**
 * Reading a password from a file, a pipe or a terminal, without a thread that waits: one that stands in a pipe nobody writes to would keep the process
 * from ending.
 */

import * as fs from 'node:fs'
import { setTimeout as pause } from 'node:timers/promises'
import { promisify } from 'node:util'
import { cancelled, fromSystem, invalid, Qcow2Error } from './errors.js'
import { copyOf } from './holding.js'
import { checkOptions, signal } from './options.js'
import { kindOf } from './sizes.js'

// As in gate.ts: node:fs/promises costs more than it is used for.
const open = promisify(fs.open)
const read = promisify(fs.read)
const close = promisify(fs.close)
const fstat = promisify(fs.fstat)
const realpath = promisify(fs.realpath)

/** A password that is longer is none: a file that was named by mistake. */
const LONGEST = 1 << 20
/** Milliseconds between two looks at a pipe. */
const PAUSE = 20

/**
 * Reads a password from a file, a pipe or a terminal: what it holds until its end, at most 1 MiB. As it is: a line break at the end belongs to it.
 * `{ file }` does the same where a `secret` is wanted; this is for who wants to look at the bytes first. Wipe them when they are no longer needed.
 *
 * @param from - a path, or the number of an open file, which stays open
 * @param options - `signal` ends the waiting for who has not written yet
 * @returns the bytes
 * @throws {@link Qcow2Error} `ERR_QCOW2_IO`, `ERR_QCOW2_LIMIT` of more than 1 MiB, `ERR_QCOW2_CANCELLED`
 *
 * @example
 * ```ts
 * import { open, readSecret } from 'qcow2'
 * const bytes = await readSecret('/run/secrets/disk')
 * const disk = await open('disk.qcow2', { secret: bytes.at(-1) === 10 ? bytes.subarray(0, -1) : bytes })
 * bytes.fill(0)
 * await disk.close()
 * ```
 */
export async function readSecret(from: string | number, options?: { signal?: AbortSignal }): Promise<Uint8Array> {
  const { signal: aborts } = checkOptions('readSecret', options, { signal })
  if (typeof from !== 'string' && !(Number.isInteger(from) && from >= 0))
    throw invalid('from', `from must be a path or the number of an open file: it is ${kindOf(from)}`)
  const shown = String(from)
  const system = (error: unknown): Promise<never> => Promise.reject(error instanceof Qcow2Error ? error : fromSystem(error, shown))
  if (aborts?.aborted) throw cancelled(aborts.reason)
  const fd = await (typeof from === 'number' ? again(from) : openAtOnce(from)).catch(system)
  const bytes = new Uint8Array(LONGEST + 1)
  try {
    const length = await fill(fd, bytes, await awaitsWriter(fd, from), aborts).catch(system)
    if (length > LONGEST) throw new Qcow2Error('ERR_QCOW2_LIMIT', `the secret is longer than ${LONGEST} bytes`, { path: shown })
    return copyOf(bytes.subarray(0, length))
  } finally {
    bytes.fill(0)
    if (fd !== from) await close(fd)
  }
}

/** Opening a pipe waits for who writes to it, and so does a read, unless told not to. Windows has no such flag, and no such pipes. */
function openAtOnce(path: string): Promise<number> {
  return open(path, fs.constants.O_RDONLY | (fs.constants.O_NONBLOCK ?? 0))
}

/** The same for what is open already: a pipe or a terminal is opened once more, where the system lets it be. A file is read from where it stands. */
async function again(fd: number): Promise<number> {
  const kind = await fstat(fd)
  return kind.isFIFO() || kind.isCharacterDevice() ? openAtOnce(`/dev/fd/${fd}`).catch(() => fd) : fd
}

/** Whether a file that has nothing may have something later: a pipe with a name, to which nobody has come yet. */
async function awaitsWriter(fd: number, from: string | number): Promise<boolean> {
  if (typeof from === 'number' || !(await fstat(fd)).isFIFO()) return false
  // What the name of an inherited pipe leads to is no name.
  return realpath(from).then(
    () => true,
    () => false,
  )
}

async function fill(fd: number, bytes: Uint8Array, awaits: boolean, aborts: AbortSignal | undefined): Promise<number> {
  let length = 0
  let awaited = awaits
  while (length < bytes.length) {
    if (aborts?.aborted) throw cancelled(aborts.reason)
    const bytesRead = await read(fd, bytes, length, bytes.length - length, null).then(
      (answer) => answer.bytesRead,
      (error: NodeJS.ErrnoException) => (error.code === 'EAGAIN' ? undefined : Promise.reject(error)),
    )
    if (bytesRead === 0 && !awaited) break
    // Somebody has come, or there is something.
    if (bytesRead !== 0) awaited = false
    if (bytesRead) length += bytesRead
    else await pause(PAUSE)
  }
  return length
}
