/**
 * What the commands take, from where they read it themselves: completions, the manual page and the tests of the documentation are made of this.
 */
import type { Grammar } from './getopt.js'
import { COMMANDS, type CommandHelp, namesOfRow } from './help.js'
import type { Command, Program } from './program.js'

/** What a command takes. */
export interface Description {
  name: string
  grammar: Grammar
  help: CommandHelp
}

/** One option under all its names. */
export interface OptionShape {
  /** Such as `-f` and `--format`. */
  names: string[]
  /** What stands for its value in the help, such as `FMT`; absent if it takes none. */
  value?: string
  text: string
}

class Described extends Error {
  constructor(
    readonly grammar: Grammar,
    readonly help: CommandHelp,
  ) {
    super()
  }
}

/** What every command takes. */
export function describeAll(): Promise<Description[]> {
  return Promise.all(COMMANDS.map(([name]) => describeCommand(name)))
}

/** Asks a command what it takes: it is called, and stopped where it would read its words. */
async function describeCommand(name: string): Promise<Description> {
  const command = (require(`./commands/${name}.js`) as Record<string, Command>)[name] as Command
  const describe = (grammar: Grammar, help: CommandHelp): never => {
    throw new Described(grammar, help)
  }
  try {
    await command({ name: 'qcow2', invoked: 'qcow2', command: name, signal: new AbortController().signal, describe } as unknown as Program, [])
  } catch (error) {
    if (error instanceof Described) return { name, grammar: error.grammar, help: error.help }
    throw error
  }
  throw new Error(`${name} does not read its words first`)
}

/** The options of a command, each with what the help says of it. */
export function optionsOf({ grammar, help }: Pick<Description, 'grammar' | 'help'>): OptionShape[] {
  const shapes = new Map<string, OptionShape>()
  const add = (id: string, name: string, takesValue: boolean): void => {
    const shape = shapes.get(id) ?? { names: [], text: '' }
    shape.names.push(name)
    if (takesValue) shape.value ??= 'VALUE'
    shapes.set(id, shape)
  }
  for (const letter of grammar.flags) add(letter, `-${letter}`, false)
  for (const letter of grammar.valued) add(letter, `-${letter}`, true)
  for (const { name, id, value } of grammar.long) add(id, `--${name}`, value)
  for (const [row, text] of [...help.options, ['-h, --help', 'print this help'] as const]) {
    for (const { name, value } of namesOfRow(row)) {
      const shape = [...shapes.values()].find(({ names }) => names.includes(name))
      if (shape === undefined) continue
      if (shape.value !== undefined && value !== undefined) shape.value = value
      if (shape.text === '') shape.text = text
    }
  }
  return [...shapes.values()]
}
