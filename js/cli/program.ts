/** What every command knows of the program it runs in. */
import type { Grammar } from './getopt.js'
import type { CommandHelp } from './help.js'
import type { Output } from './output.js'
import { printError } from './output.js'
import type { Refusal } from './refusal.js'

/** The program as it was called. */
export interface Program {
  /** Stands before messages: the last part of the name it was called by. */
  name: string
  /** The name it was called by. */
  invoked: string
  /** The command, such as `info`; empty before it is known. */
  command: string
  out: Output
  /** Aborted when the command shall end. */
  signal: AbortSignal
  /** The exit code of a failure, where 1 says something else. */
  failure?: number
  /** Set by who wants to know what a command takes, and not what it does. */
  describe?: (grammar: Grammar, help: CommandHelp) => never
}

/** One command: reads its words, does its work, answers with the exit code. */
export type Command = (program: Program, words: readonly string[]) => Promise<number>

/** Says what is wrong. */
export function complain({ name }: Program, text: string, hint?: string): void {
  printError(`${name}: ${text}\n${hint === undefined ? '' : `${hint}\n`}`)
}

/** Says a warning. */
export function warn(program: Program, text: string): void {
  complain(program, `warning: ${text}`)
}

/** Says why a command ends. */
export function report(program: Program, refusal: Refusal): void {
  complain(program, refusal.message, refusal.usage ? helpHint(program) : refusal.hint)
}

/** Where the options are explained. */
export function helpHint({ invoked, command }: Program): string {
  return `Try '${command === '' ? invoked : `${invoked} ${command}`} --help' for more info`
}
