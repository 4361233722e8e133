/**
 * Options as the C library's `getopt_long` reads them: permuted operands, clustered letters, abbreviated long names, and its words for what is
 * wrong.
 */

/** A long option. `id` is what the handler is told: the letter that means the same, or the name. */
export interface LongOption {
  name: string
  id: string
  value: boolean
  /** Only by its full name; takes no part in abbreviations. */
  exact?: boolean
}

/** What a command takes. */
export interface Grammar {
  /** Letters without a value. */
  flags: string
  /** Letters with a value. */
  valued: string
  long: readonly LongOption[]
  /** The first operand ends the options. */
  stopAtOperand?: boolean
}

/** What is wrong, in the words of `getopt_long`. */
export class OptionFault extends Error {}

/**
 * Describes long options in one line: `name=id`, with `:` before the `=` if they take a value; without `=id` the name is the id; a leading
 * `!` takes no part in abbreviations.
 */
export function grammar(flags: string, valued: string, long: string, more: { stopAtOperand?: boolean } = {}): Grammar {
  const options = long.split(' ').map((word) => {
    const [left = '', id] = word.split('=')
    const name = left.replace(/[!:]/g, '')
    return { name, id: id ?? name, value: left.includes(':'), exact: left.startsWith('!') }
  })
  return { flags, valued, long: options, ...more }
}

/** Calls `on` for each option in the order of the command line, and returns the operands. Throws {@link OptionFault}. */
export function readOptions(words: readonly string[], grammar: Grammar, on: (id: string, value: string) => void): string[] {
  const operands: string[] = []
  for (let i = 0; i < words.length; i++) {
    const word = words[i] ?? ''
    if (word === '--') return [...operands, ...words.slice(i + 1)]
    if (word.startsWith('--')) {
      const { option, value } = readLong(word.slice(2), grammar)
      if (option.value && value === undefined) {
        i += 1
        const next = words[i]
        if (next === undefined) throw new OptionFault(`option '--${option.name}' requires an argument`)
        on(option.id, next)
      } else {
        on(option.id, value ?? '')
      }
    } else if (word.startsWith('-') && word !== '-') {
      i += readLetters(word.slice(1), words[i + 1], grammar, on)
    } else if (grammar.stopAtOperand) {
      return [...operands, ...words.slice(i)]
    } else {
      operands.push(word)
    }
  }
  return operands
}

function readLong(text: string, { long }: Grammar): { option: LongOption; value: string | undefined } {
  const equals = text.indexOf('=')
  const name = equals === -1 ? text : text.slice(0, equals)
  const value = equals === -1 ? undefined : text.slice(equals + 1)
  const option = long.find((candidate) => candidate.name === name) ?? abbreviated(name, text, long)
  if (!option.value && value !== undefined) throw new OptionFault(`option '--${option.name}' doesn't allow an argument`)
  return { option, value }
}

function abbreviated(name: string, text: string, long: readonly LongOption[]): LongOption {
  const candidates = long.filter((candidate) => !candidate.exact && candidate.name.startsWith(name))
  const [first] = candidates
  if (first === undefined) throw new OptionFault(`unrecognized option '--${text}'`)
  // Two names of the same option are no contradiction.
  const others = candidates.filter((candidate) => candidate.id !== first.id || candidate.value !== first.value)
  if (others.length === 0) return first
  const names = [first, ...others].map((candidate) => `'--${candidate.name}'`)
  throw new OptionFault(`option '--${text}' is ambiguous; possibilities: ${names.join(' ')}`)
}

/** Reads a cluster of letters; returns how many further words it took. */
function readLetters(letters: string, next: string | undefined, grammar: Grammar, on: (id: string, value: string) => void): number {
  for (let i = 0; i < letters.length; i++) {
    const letter = letters.charAt(i)
    if (grammar.flags.includes(letter)) {
      on(letter, '')
    } else if (grammar.valued.includes(letter)) {
      const rest = letters.slice(i + 1)
      if (rest !== '') {
        on(letter, rest)
        return 0
      }
      if (next === undefined) throw new OptionFault(`option requires an argument -- '${letter}'`)
      on(letter, next)
      return 1
    } else {
      throw new OptionFault(`invalid option -- '${letter}'`)
    }
  }
  return 0
}
