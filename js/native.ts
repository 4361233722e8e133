/**
 * The one file that imports the addon: it loads it on first use, starts it once an environment, and turns its completions into promises.
 */

import { createRequire } from 'node:module'
import { dirname } from 'node:path'
import { onAbort } from './abort.js'
import type { Addon, Handle } from './boundary.js'
import { cancelled, type ErrorData, fromNative, Qcow2Error } from './errors.js'
import { loadOrExplain } from './load.js'
import { isSpent, nextTurn, spend } from './turn.js'
import type { Progress } from './types.js'

/** What a caller may do with a call under way. */
export interface CallControl {
  signal?: AbortSignal | undefined
  onProgress?: ((progress: Progress) => void) | undefined
}

/** What `napi build` says that the addon has. It is assigned to {@link RawAddon}, so that the two cannot drift apart. */
type Generated = typeof import('../index.js')

/** The addon as it is: completions still come as batches of triples, and errors as data. */
interface RawAddon extends Addon {
  start(onComplete: (triples: Float64Array, values: unknown[]) => void): void
  cancel(id: number): void
  hold(held: boolean): void
  shutdown(milliseconds: number): void
}

interface OpenCall {
  resolve(value: unknown): void
  reject(error: unknown): void
  onProgress?: ((progress: Progress) => void) | undefined
}

/** What `status` of a triple says of its value. */
const NUMBER = 0
const VALUE = 1
const ERROR = 2
const PROGRESS = 3

/** How long the end of the process waits for jobs to remove what they had half-made. */
const SHUTDOWN_MILLISECONDS = 3000

const openCalls = new Map<number, OpenCall>()
let lastCall = 0
let held = false
let started: RawAddon | undefined

/** The addon, for the calls that answer at once. */
export function addon(): Addon {
  return start()
}

/**
 * Makes one asynchronous call.
 *
 * @param begin - calls the addon with the call's number
 * @returns what the core answers, or a {@link Qcow2Error}. A cancelled call rejects with `ERR_QCOW2_CANCELLED` and the signal's reason as
 * its cause.
 */
export async function call<T>(begin: (addon: Addon, id: number) => void, control: CallControl = {}): Promise<T> {
  const { signal, onProgress } = control
  if (signal?.aborted) throw cancelled(signal.reason)
  const native = start()
  const id = ++lastCall
  const cancel = () => native.cancel(id)
  const forget = signal === undefined ? undefined : onAbort(signal, cancel)
  try {
    // Awaited here and made an error here: an error that is made in an async function has the stack of those who wait for it.
    return (await answer(native, id, begin, onProgress)) as T
  } catch (failure) {
    throw asError(failure, signal)
  } finally {
    forget?.()
  }
}

/**
 * Reads from a chain into `target` on the pool's threads. As much memory is set aside meanwhile.
 *
 * @param position - guest offset in bytes
 * @param done - how many of the `length` bytes are there already
 * @returns how many bytes there were in all: fewer than `length` only at the end of the disk
 */
export async function readInPool(
  chain: Handle,
  target: Uint8Array,
  offset: number,
  length: number,
  position: number | bigint,
  done: number,
): Promise<number> {
  const native = start()
  const [low, high] = words(position, done)
  try {
    const count = await answer(native, ++lastCall, (native, id) => native.read(id, chain, target, offset + done, length - done, low, high))
    return done + (count as number)
  } catch (failure) {
    throw asError(failure)
  }
}

/**
 * Writes to a disk on the pool's threads. The bytes are copied before this returns. What it rejects with is for {@link errorOf}.
 *
 * @param position - guest offset in bytes, to which `done` is added
 * @param done - how many bytes behind `offset` to begin
 */
export function writeInPool(
  disk: Handle,
  source: Uint8Array,
  offset: number,
  length: number,
  position: number | bigint,
  done: number,
): Promise<unknown> {
  const native = start()
  const [low, high] = words(position, done)
  spend(0, length)
  const id = ++lastCall
  // By hand, and without the functions and promises that other calls have: this is the way of every write.
  return new Promise((resolve, reject) => {
    openCalls.set(id, { resolve, reject })
    try {
      native.write(id, disk, source, offset + done, length, low, high)
    } catch (error) {
      openCalls.delete(id)
      reject(error)
    }
  })
}

/** Makes an error of what {@link writeInPool} rejects with, in the function that waits for it: its stack is then that function's. */
export function errorOf(failure: unknown): unknown {
  return asError(failure)
}

/**
 * Reads what memory has, at once and on this thread. What it throws is a {@link Qcow2Error}.
 *
 * @returns how many bytes those were; fewer than `length` say nothing about the rest
 */
export function readNow(chain: Handle, target: Uint8Array, offset: number, length: number, position: number | bigint): number {
  const native = start()
  try {
    if (typeof position === 'bigint') {
      const [low, high] = words(position, 0)
      return native.tryRead(chain, target, offset, length, low, high)
    }
    return native.tryRead(chain, target, offset, length, position >>> 0, Math.floor(position / 2 ** 32))
  } catch (failure) {
    throw asError(failure)
  }
}

/** Runs a call of the addon that answers at once, so that what it throws is a {@link Qcow2Error}. */
export function sync<T>(work: (addon: Addon) => T): T {
  const native = start()
  try {
    return work(native)
  } catch (failure) {
    throw asError(failure)
  }
}

/**
 * Closes `handle` when `owner` is collected without having been closed. Call the function that it returns once it is closed.
 *
 * @param written - how a warning calls what was written and not closed; none for what was only read
 */
export function closeWhenLost(owner: object, handle: Handle, written?: string): () => void {
  const token = {}
  lost.register(owner, { handle, written }, token)
  return () => lost.unregister(token)
}

const lost = new FinalizationRegistry<{ handle: Handle; written: string | undefined }>(({ handle, written }) => {
  if (written !== undefined) warn(`${written} was open for writing and was forgotten without close(): it is flushed and closed now`)
  call((native, id) => native.close(id, handle)).catch((error) => {
    // Nobody else is left to be told of a failure.
    if (written !== undefined) warn(`${written} was forgotten without close(), and closing it failed: ${(error as Error).message}`)
  })
})

function warn(message: string): void {
  process.emitWarning(message, { type: 'Qcow2Warning', code: 'QCOW2_NOT_CLOSED' })
}

function start(): RawAddon {
  if (started === undefined) {
    // `__filename` and not `__dirname`: where the build puts all modules into one file, it still says where this one would lie.
    const native: RawAddon = loadOrExplain(() => createRequire(__filename)('../index.js') as Generated, dirname(dirname(__filename)))
    native.start(deliver)
    // `process.exit` runs no native clean-up on the main thread: without this, a conversion would leave its half-made file behind.
    process.once('exit', () => native.shutdown(SHUTDOWN_MILLISECONDS))
    started = native
  }
  return started
}

function answer(native: RawAddon, id: number, begin: (addon: Addon, id: number) => void, onProgress?: OpenCall['onProgress']): Promise<unknown> {
  return new Promise((resolve, reject) => {
    openCalls.set(id, { resolve, reject, onProgress })
    try {
      begin(native, id)
    } catch (error) {
      openCalls.delete(id)
      reject(error)
    }
  })
}

/** Called by the addon with everything that was done since the last time. */
function deliver(triples: Float64Array, values: unknown[]): void {
  let copied = 0
  for (let at = 0; at < triples.length; at += 3) {
    const id = triples[at] as number
    const status = triples[at + 1]
    const value = triples[at + 2] as number
    const open = openCalls.get(id)
    if (open === undefined) continue
    if (status === PROGRESS) {
      report(open, values[value] as Progress)
      continue
    }
    openCalls.delete(id)
    if (status === NUMBER) {
      // Of a read, which most are, the bytes that were copied for it.
      copied += value
      open.resolve(value)
    }
    if (status === VALUE) open.resolve(values[value])
    if (status === ERROR) open.reject(new Failure(values[value] as ErrorData))
  }
  spend(triples.length / 3, copied)
  if (isSpent()) hold()
}

/** Lets completions gather until the next turn: the system hands them over for as long as there are more, and their callers make more. */
function hold(): void {
  if (held) return
  held = true
  start().hold(true)
  nextTurn().then(() => {
    held = false
    start().hold(false)
  })
}

/** A listener that throws must not cost the other calls of the batch their answers: it becomes an uncaught exception of its own. */
function report({ onProgress }: OpenCall, progress: Progress): void {
  if (onProgress === undefined) return
  try {
    onProgress(progress)
  } catch (error) {
    queueMicrotask(() => {
      throw error
    })
  }
}

/** An error's data on its way to the function that makes the error, so that its stack is that function's. */
class Failure {
  constructor(readonly data: ErrorData) {}
}

function asError(failure: unknown, signal?: AbortSignal): unknown {
  if (failure instanceof Failure) {
    return failure.data.code === 'ERR_QCOW2_CANCELLED' ? cancelled(signal?.reason) : fromNative(failure.data)
  }
  if (!(failure instanceof Error) || failure instanceof Qcow2Error) return failure
  // The addon throws for arguments of a wrong type, and for defects: neither reaches it through the façade.
  const { code } = failure as NodeJS.ErrnoException
  const isOurs = typeof code === 'string' && code.startsWith('ERR_QCOW2_')
  return new Qcow2Error(isOurs ? code : 'ERR_QCOW2_INTERNAL', failure.message, { cause: failure })
}

/** The low and the high half of `position + done`. */
function words(position: number | bigint, done: number): [number, number] {
  if (typeof position === 'number') {
    const at = position + done
    if (Number.isSafeInteger(at)) return [at >>> 0, Math.floor(at / 2 ** 32)]
  }
  const at = BigInt(position) + BigInt(done)
  return [Number(at & 0xffff_ffffn), Number(at >> 32n)]
}
