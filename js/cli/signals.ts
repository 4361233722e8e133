/**
 * Answers SIGUSR1 from the first moment on. Node.js would open its debugger instead, and a script that asks for progress may ask before the
 * command has even read its arguments: main.ts therefore loads this file first, and this file loads nothing.
 */

let answer: (() => void) | undefined
let asked = false

if (process.platform !== 'win32') {
  process.on('SIGUSR1', () => {
    asked = true
    answer?.()
  })
}

/** Says who answers SIGUSR1 from now on. A question that came earlier is answered at once. */
export function answerProgress(print: (() => void) | undefined): void {
  answer = print
  if (asked) answer?.()
}

/** Whether progress was asked for since the last call: what could not be answered yet still has to be. */
export function takeQuestion(): boolean {
  const was = asked
  asked = false
  return was
}
