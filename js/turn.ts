/**
 * What one turn of the event loop may do on this thread for reads, before timers and sockets have theirs.
 */

/** What a read costs beside its bytes, in bytes that could be copied meanwhile. */
const CALL = 10 * 1024
/** What a turn may spend: some 250 µs. Counted and not measured, because a clock would cost as much as a small read. */
const BUDGET = 2560 * 1024

/** As it is when this is loaded: where a test puts a clock of its own in its place later, reads would wait for that clock. */
const later = setImmediate

let left = BUDGET
let turn: Promise<void> | undefined

/** Some calls were made and some bytes copied. */
export function spend(calls: number, bytes: number): void {
  left -= calls * CALL + bytes
}

/** Whether the rest has to wait for the next turn. */
export function isSpent(): boolean {
  return left <= 0
}

/** Settles in the next turn, whose budget is whole again. */
export function nextTurn(): Promise<void> {
  turn ??= new Promise((resolve) => {
    later(() => {
      left = BUDGET
      turn = undefined
      resolve()
    })
  })
  return turn
}

/** Work that was put off, the first first. */
const waiting: (() => void)[] = []

/** Does `work`, which does not throw, in a later turn: after what was put off before it, and once there is budget for it. */
export function putOff(work: () => void): void {
  waiting.push(work)
  if (waiting.length === 1) serve()
}

function serve(): void {
  nextTurn().then(() => {
    let done = 0
    // Only as many as the budget lets: to wake all of them in each turn, most in vain, took more than the reads themselves.
    for (; done < waiting.length && !isSpent(); done++) waiting[done]?.()
    waiting.splice(0, done)
    if (waiting.length > 0) serve()
  })
}
