/**
 * Long calls: awaitable, iterable, cancellable.
 */

import { channel } from 'node:diagnostics_channel'
import { debuglog, type InspectOptionsStylized, inspect } from 'node:util'
import { onAbort } from './abort.js'
import { cancelled, withFrames } from './errors.js'
import { wipingHeld } from './holding.js'
import { callback, signal } from './options.js'
import type { Job, JobOptions, Progress } from './types.js'

/** The options that every job takes. */
export const JOB_RULES = { signal, onProgress: callback<(progress: Progress) => void>() }

/** What the work of a job is given. */
export interface JobControl {
  /** Ends when the job is cancelled, by whatever way. */
  signal: AbortSignal
  onProgress: (progress: Progress) => void
}

const debug = debuglog('qcow2')
const jobs = channel('qcow2:job')

/**
 * Starts a job.
 *
 * @param entry - the public function that was called: errors have the stack of its caller
 * @param prepare - checks the arguments and begins; what it throws rejects the job
 */
export function startJob<T>(entry: (...words: never[]) => unknown, prepare: () => JobWork<T>): Job<T> {
  return new RunningJob(entry, prepare)
}

/** The caller's options, and what is to be done. */
export interface JobWork<T> {
  options: JobOptions
  run: (control: JobControl) => Promise<T>
}

class RunningJob<T> implements Job<T> {
  #progress: Progress = { phase: 'open', done: 0, total: 0 }
  /** Counts reports, so that each iterator knows whether it has seen the newest. */
  #reports = 0
  #ended = false
  #wake: (() => void)[] = []
  readonly #controller = new AbortController()
  readonly #result: Promise<T>

  constructor(entry: (...words: never[]) => unknown, prepare: () => JobWork<T>) {
    const caller: { stack?: string } = {}
    Error.captureStackTrace(caller, entry)
    this.#result = wipingHeld(() => this.#run(entry.name, prepare)).catch((error) => Promise.reject(withFrames(error, caller)))
  }

  get progress(): Progress {
    return this.#progress
  }

  cancel(): void {
    if (!this.#ended) this.#controller.abort()
  }

  // biome-ignore lint/suspicious/noThenProperty: a job is awaitable by contract
  then<A = T, B = never>(
    onFulfilled?: ((value: T) => A | PromiseLike<A>) | null,
    onRejected?: ((reason: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.#result.then(onFulfilled, onRejected)
  }

  catch<R = never>(onRejected?: ((reason: unknown) => R | PromiseLike<R>) | null): Promise<T | R> {
    return this.#result.catch(onRejected)
  }

  finally(onFinally?: (() => void) | null): Promise<T> {
    return this.#result.finally(onFinally)
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Progress, void, undefined> {
    // Iterating observes the outcome: if nobody else does, it is this loop that throws.
    this.#result.catch(() => {})
    let seen = 0
    for (;;) {
      if (this.#reports !== seen) {
        seen = this.#reports
        yield this.#progress
      } else if (this.#ended) {
        await this.#result
        return
      } else await new Promise<void>((wake) => this.#wake.push(wake))
    }
  }

  get [Symbol.toStringTag](): string {
    return 'Job'
  }

  /** @internal */
  [inspect.custom](_depth: number, options: InspectOptionsStylized, print: typeof inspect): string {
    return `Job ${print({ ...this.#progress, ended: this.#ended }, options)}`
  }

  async #run(name: string, prepare: () => JobWork<T>): Promise<T> {
    let release = (): void => {}
    try {
      const { options, run } = prepare()
      const { signal, onProgress } = options
      if (signal?.aborted) throw cancelled(signal.reason)
      const abort = (): void => this.#controller.abort(signal?.reason)
      if (signal !== undefined) release = onAbort(signal, abort)
      return await this.#observed(name, run, onProgress)
    } finally {
      release()
      this.#ended = true
      this.#wakeAll()
    }
  }

  async #observed(name: string, run: JobWork<T>['run'], onProgress: JobOptions['onProgress']): Promise<T> {
    const began = process.hrtime.bigint()
    let failure: { error: unknown } | undefined
    const listen = (progress: Progress): void => {
      this.#progress = progress
      this.#reports++
      this.#wakeAll()
      if (onProgress === undefined || failure !== undefined) return
      try {
        onProgress(progress)
      } catch (error) {
        failure = { error }
        this.#controller.abort(error)
      }
    }
    jobs.publish({ job: name, event: 'start' })
    debug('%s: started', name)
    try {
      const result = await run({ signal: this.#controller.signal, onProgress: listen })
      if (failure !== undefined) throw failure.error
      this.#publishEnd(name, began)
      return result
    } catch (error) {
      const reason = failure === undefined ? error : failure.error
      this.#publishEnd(name, began, reason)
      throw reason
    }
  }

  #publishEnd(name: string, began: bigint, error?: unknown): void {
    const milliseconds = Number(process.hrtime.bigint() - began) / 1e6
    jobs.publish({ job: name, event: 'end', milliseconds, progress: this.#progress, ...(error === undefined ? {} : { error }) })
    debug('%s: %s after %d ms', name, error === undefined ? 'done' : error, Math.round(milliseconds))
  }

  #wakeAll(): void {
    for (const wake of this.#wake.splice(0)) wake()
  }
}
