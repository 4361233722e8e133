/**
 * Waiting that a signal ends.
 */

import { cancelled } from './errors.js'

const waiting = new WeakMap<AbortSignal, Set<() => void>>()

/**
 * Calls `act` when the signal aborts, until the function that is returned is called. However many wait for one signal, it has one listener: Node.js warns
 * of more than ten.
 */
export function onAbort(signal: AbortSignal, act: () => void): () => void {
  const those = waiting.get(signal) ?? new Set()
  const tell = (): void => {
    waiting.delete(signal)
    for (const one of those) one()
  }
  if (!waiting.has(signal)) {
    waiting.set(signal, those)
    signal.addEventListener('abort', tell, { once: true })
  }
  those.add(act)
  return () => {
    those.delete(act)
  }
}

/** Waits for `work` until the signal aborts. The work itself goes on. */
export function orAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = (): void => reject(cancelled(signal.reason))
    const forget = onAbort(signal, abort)
    work.then(resolve, reject).finally(forget)
    if (signal.aborted) abort()
  })
}
