/**
 * Waiting that a signal ends.
 */

import { cancelled } from './errors.js'

/** Waits for `work` until the signal aborts. The work itself goes on. */
export function orAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = (): void => reject(cancelled(signal.reason))
    const forget = (): void => signal.removeEventListener('abort', abort)
    signal.addEventListener('abort', abort, { once: true })
    work.then(resolve, reject).finally(forget)
    if (signal.aborted) abort()
  })
}
