/**
 * Ctrl-C and its kin: the first one cancels what runs, which then takes back what it has half done, and the command dies by the signal, as
 * whoever waits for it expects. A second one does not wait.
 */
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** Watches for signals that end the command. */
export class Interrupt {
  private readonly controller = new AbortController()
  private caught: NodeJS.Signals | undefined

  constructor() {
    for (const signal of SIGNALS) process.once(signal, this.handle)
  }

  /** Aborted by the first signal. */
  get signal(): AbortSignal {
    return this.controller.signal
  }

  /** Dies by the signal that came, if one came. */
  async settle(): Promise<void> {
    for (const signal of SIGNALS) process.removeListener(signal, this.handle)
    if (this.caught === undefined) return
    process.kill(process.pid, this.caught)
    // The signal is delivered by another thread: nothing else may happen before it.
    await new Promise((resolve) => setTimeout(resolve, 1000))
    process.exit(130)
  }

  private readonly handle = (signal: NodeJS.Signals): void => {
    this.caught ??= signal
    for (const each of SIGNALS) process.removeListener(each, this.handle)
    this.controller.abort(new Error(`interrupted by ${signal}`))
  }
}
