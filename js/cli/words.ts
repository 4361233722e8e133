/** The options that several commands share. */
import { type Grammar, grammar, OptionFault, readOptions } from './getopt.js'
import { type CommandHelp, commandHelp, wholeHelp } from './help.js'
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
  return plainGrammar(flags, valued, `${long} !backing-files:`)
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

/** `--image-opts` is known by name; with `-f` it contradicts itself. */
export function refuseImageOpts(format: string | undefined, code = 1): Refusal {
  if (format === undefined) return notYet('Image options (--image-opts)', code)
  return new Refusal('--image-opts and --format are mutually exclusive', { code })
}

const OBJECT_TYPES = new Set(['secret', 'secret_keyring', 'tls-creds-x509', 'tls-creds-psk', 'tls-creds-anon', 'throttle-group', 'iothread'])

/** `--object`: known by name, and of no use before there is encryption. */
export function refuseObject(definition: string): never {
  const kind = definition.startsWith('qom-type=') ? definition.slice(9).split(',')[0] : definition.split(',')[0]
  if (!OBJECT_TYPES.has(kind ?? '')) throw new Refusal(`Parameter 'qom-type' does not accept value '${kind}'`)
  if (!/(^|,)id=/.test(definition)) throw new Refusal("Parameter 'id' is missing")
  throw notYet('Objects (--object) and encrypted images')
}

const CACHE_MODES = new Set(['none', 'off', 'writeback', 'unsafe', 'writethrough', 'directsync'])

/** Whether a cache mode exists. The page cache is used whatever it says: the bytes are the same. */
export function isCacheMode(mode: string): boolean {
  return CACHE_MODES.has(mode)
}
