/** How far a job is, as qemu-img tells it: `-p` on stdout, SIGUSR1 on stderr. */
import { twoDigits } from './human.js'
import type { Progress } from './library.js'
import { printError } from './output.js'
import type { Program } from './program.js'
import { answerProgress, takeQuestion } from './signals.js'

/** The line of one command. */
export class ProgressLine {
  private printed = Number.NEGATIVE_INFINITY
  private percent = 0

  /** `visible`: `-p` without `-q`. Smaller steps than `step` percent are not printed. */
  constructor(
    private readonly program: Program,
    private readonly visible: boolean,
    private readonly step: number,
  ) {
    answerProgress(() => this.answer())
  }

  /** Begins the line. */
  start(): void {
    this.show(0)
  }

  /** Takes a report of a job. */
  readonly update = ({ done, total }: Progress): void => {
    this.show(total === 0 ? 100 : (done / total) * 100)
  }

  /** A job that was not finished does not reach 100. */
  finish(wholly: boolean): void {
    if (this.printed < 0) this.show(0)
    if (wholly && this.percent !== 100) this.show(100)
  }

  /** Ends the line. */
  end(): void {
    answerProgress(undefined)
    if (!this.visible) return
    this.program.out.print('\n')
    this.program.out.flush()
  }

  private show(percent: number): void {
    this.percent = percent
    if (!this.visible) return
    if (percent < this.printed + this.step && percent !== 0 && percent !== 100) return
    this.printed = percent
    this.program.out.print(`    (${twoDigits(percent)}/100%)\r`)
    this.program.out.flush()
  }

  private answer(): void {
    if (takeQuestion() && !this.visible) printError(`    (${twoDigits(this.percent)}/100%)\n`)
  }
}
