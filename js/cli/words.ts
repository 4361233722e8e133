/** The options that several commands share. */
import { type Grammar, grammar, OptionFault, readOptions } from './getopt.js'
import { type CommandHelp, commandHelp, wholeHelp } from './help.js'
import type { CacheMode } from './library.js'
import { printError } from './output.js'
import { helpHint, type Program } from './program.js'
import { misuse, Refusal } from './refusal.js'

/** Ends a command that has done all it was asked for. */
export class Done extends Error {
  constructor(readonly code: number) {
    super()
  }
}

/** The grammar of a command, with `--help` and the options that only this program has. */
export function commandGrammar(flags: string, valued: string, long: string): Grammar {
  return plainGrammar(flags, valued, `${long} !backing-files: !passphrase-file: !passphrase-fd:`)
}

/** The grammar of a command that opens no file which an image names, with `--help`. */
export function plainGrammar(flags: string, valued: string, long: string): Grammar {
  return grammar(`h${flags}`, valued, `help=h${long === '' ? '' : ` ${long}`}`)
}

/**
 * Reads the words of a command. `--help` is answered here, and what `getopt_long` would refuse is refused in its words.
 */
export function readWords(
  program: Program,
  words: readonly string[],
  grammar: Grammar,
  help: CommandHelp,
  on: (id: string, value: string) => void,
): string[] {
  const whole = wholeHelp(grammar, help)
  program.describe?.(grammar, whole)
  try {
    return readOptions(words, grammar, (id, value) => {
      if (id === 'passphrase-file' || id === 'passphrase-fd') {
        const { takePassphrase } = require('./secrets.js') as typeof import('./secrets.js')
        takePassphrase(id, value)
        return
      }
      if (id === 'h') {
        program.out.print(commandHelp(program, whole))
        throw new Done(0)
      }
      on(id, value)
    })
  } catch (error) {
    if (!(error instanceof OptionFault)) throw error
    printError(`${program.invoked} ${program.command}: ${error.message}\n${helpHint(program)}\n`)
    throw new Done(1)
  }
}

/** The value of `--output`. */
export function outputForm(value: string): 'human' | 'json' {
  if (value === 'human' || value === 'json') return value
  throw misuse(`--output expects 'human' or 'json' not '${value}'`)
}

/** The one file of commands that take one. */
export function oneFile(operands: readonly string[]): string {
  const [file] = operands
  if (file === undefined || operands.length > 1) throw misuse('Expecting one image file name')
  return file
}

/** What this version knows of, and does not do. `what` is plural. */
export function notYet(what: string, code = 1): Refusal {
  return new Refusal(`${what} are not supported in this version`, { code })
}

/** `--image-opts` says the format itself: with `-f` it contradicts itself. */
export function refuseBoth(imageOpts: boolean, format: string | undefined, code = 1): void {
  if (imageOpts && format !== undefined) throw new Refusal('--image-opts and --format are mutually exclusive', { code })
}

/** `--object`, which is understood before anything is opened. */
export function takeObject(definition: string): void {
  const { readObject } = require('./objects.js') as typeof import('./objects.js')
  readObject(definition)
}

const CACHE_MODES = new Set(['none', 'off', 'writeback', 'unsafe', 'writethrough', 'directsync'])

/** Whether a cache mode exists. */
export function isCacheMode(mode: string): boolean {
  return CACHE_MODES.has(mode)
}

/** How the library calls a cache mode that exists. */
export function cacheOf(mode: string): CacheMode {
  return mode === 'off' ? 'none' : (mode as CacheMode)
}
