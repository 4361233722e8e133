/** Why a command ends without having done its work. */

/** Said on stderr behind the program's name; the hint stands on lines of its own, without the name. */
export class Refusal extends Error {
  readonly hint: string | undefined
  readonly code: number
  /** Refer to `--help`. */
  readonly usage: boolean

  constructor(text: string, more: { hint?: string; code?: number; usage?: boolean } = {}) {
    super(text)
    this.hint = more.hint
    this.code = more.code ?? 1
    this.usage = more.usage ?? false
  }
}

/** A refusal that points at `--help`. */
export function misuse(text: string): Refusal {
  return new Refusal(text, { usage: true })
}
