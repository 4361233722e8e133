/**
 * Waiting that a signal ends.
 */

import { cancelled } from './errors.js'

interface Waiting {
  acts: Set<() => void>
  tell: () => void
}

const waiting = new WeakMap<AbortSignal, Waiting>()

/**
 * Calls `act` when the signal aborts, until the function that is returned is called. However many wait for one signal, it has one listener: Node.js warns
 * of more than ten. When nobody waits any longer it has none: Node.js keeps a signal that was made of others as long as somebody listens.
 */
export function onAbort(signal: AbortSignal, act: () => void): () => void {
  const those = waiting.get(signal) ?? listen(signal)
  those.acts.add(act)
  return () => {
    if (!those.acts.delete(act) || those.acts.size > 0) return
    signal.removeEventListener('abort', those.tell)
    if (waiting.get(signal) === those) waiting.delete(signal)
  }
}

function listen(signal: AbortSignal): Waiting {
  const acts = new Set<() => void>()
  const tell = (): void => {
    waiting.delete(signal)
    for (const act of acts) act()
  }
  signal.addEventListener('abort', tell, { once: true })
  const those = { acts, tell }
  waiting.set(signal, those)
  return those
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
