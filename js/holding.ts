/**
 * Copies of callers' passwords: made while a call looks at its options, so that what is used later is what was there at the call, and wiped when the call has
 * ended, however it did.
 */

/** Those of the call that looks at its options just now. */
let holding: Uint8Array[] | undefined

/** Does the work of a call. What is held until it first waits is wiped when it has ended. */
export function wipingHeld<T>(work: () => Promise<T>): Promise<T> {
  const before = holding
  const copies: Uint8Array[] = []
  holding = copies
  let done: Promise<T>
  try {
    done = work()
  } finally {
    holding = before
  }
  // Most calls hold nothing, and need no further turn.
  return copies.length === 0 ? done : done.finally(() => wipe(copies))
}

/** A copy of a password that lasts as long as the call. */
export function hold(bytes: Uint8Array): Uint8Array {
  if (holding === undefined) throw new Error('a password is looked at outside of any call')
  const copy = copyOf(bytes)
  holding.push(copy)
  return copy
}

/** A copy with a buffer of its own: the engine keeps small arrays without one where it moves them, and leaves copies behind. */
export function copyOf(bytes: Uint8Array): Uint8Array {
  const copy = new Uint8Array(new ArrayBuffer(bytes.length))
  copy.set(bytes)
  return copy
}

function wipe(copies: Uint8Array[]): void {
  for (const copy of copies) copy.fill(0)
}
