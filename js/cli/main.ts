#!/usr/bin/env node
import './signals.js'
import { readFileSync } from 'node:fs'
import { basename, delimiter, dirname } from 'node:path'
import { grammar, OptionFault, readOptions } from './getopt.js'
import { programHelp } from './help.js'
import { Interrupt } from './interrupt.js'
import { Output, printError, ReaderGone } from './output.js'
import { type Command, complain, helpHint, type Program, report } from './program.js'
import { misuse, Refusal } from './refusal.js'
import { Done } from './words.js'

/** The commands, loaded when they are called. */
const COMMANDS: Readonly<Record<string, () => Command>> = {
  amend: () => (require('./commands/amend.js') as typeof import('./commands/amend.js')).amend,
  bench: () => (require('./commands/bench.js') as typeof import('./commands/bench.js')).bench,
  bitmap: () => (require('./commands/bitmap.js') as typeof import('./commands/bitmap.js')).bitmap,
  check: () => (require('./commands/check.js') as typeof import('./commands/check.js')).check,
  commit: () => (require('./commands/commit.js') as typeof import('./commands/commit.js')).commit,
  compare: () => (require('./commands/compare.js') as typeof import('./commands/compare.js')).compare,
  completion: () => (require('./commands/completion.js') as typeof import('./commands/completion.js')).completion,
  convert: () => (require('./commands/convert.js') as typeof import('./commands/convert.js')).convert,
  create: () => (require('./commands/create.js') as typeof import('./commands/create.js')).create,
  dd: () => (require('./commands/dd.js') as typeof import('./commands/dd.js')).dd,
  digest: () => (require('./commands/digest.js') as typeof import('./commands/digest.js')).digest,
  info: () => (require('./commands/info.js') as typeof import('./commands/info.js')).info,
  inspect: () => (require('./commands/inspect.js') as typeof import('./commands/inspect.js')).inspect,
  map: () => (require('./commands/map.js') as typeof import('./commands/map.js')).map,
  measure: () => (require('./commands/measure.js') as typeof import('./commands/measure.js')).measure,
  rebase: () => (require('./commands/rebase.js') as typeof import('./commands/rebase.js')).rebase,
  resize: () => (require('./commands/resize.js') as typeof import('./commands/resize.js')).resize,
  snapshot: () => (require('./commands/snapshot.js') as typeof import('./commands/snapshot.js')).snapshot,
  verify: () => (require('./commands/verify.js') as typeof import('./commands/verify.js')).verify,
}

const PROGRAM_GRAMMAR = grammar('hV', 'T', 'help=h version=V trace:=T', { stopAtOperand: true })

async function main(words: readonly string[]): Promise<number> {
  const invoked = invokedName()
  const interrupt = new Interrupt()
  const program: Program = { name: basename(invoked), invoked, command: '', out: new Output(), signal: interrupt.signal }
  let code = 1
  try {
    code = await run(program, words)
  } catch (error) {
    code = explain(program, error)
  }
  try {
    program.out.flush()
  } catch (error) {
    if (!(error instanceof ReaderGone)) {
      complain(program, (error as Error).message)
      code = program.failure ?? 1
    }
  }
  await interrupt.settle()
  return code
}

async function run(program: Program, words: readonly string[]): Promise<number> {
  const [command, ...rest] = readProgramWords(program, words)
  if (command === undefined) throw misuse('Not enough arguments')
  const load = Object.hasOwn(COMMANDS, command) ? COMMANDS[command] : undefined
  if (load === undefined) throw misuse(`Command not found: ${command}`)
  program.command = command
  return await load()(program, rest)
}

function readProgramWords(program: Program, words: readonly string[]): string[] {
  try {
    return readOptions(words, PROGRAM_GRAMMAR, (id) => {
      // Accepted: there are no trace events to enable.
      if (id === 'T') return
      program.out.print(id === 'h' ? programHelp(program) : versionText(program))
      throw new Done(0)
    })
  } catch (error) {
    if (!(error instanceof OptionFault)) throw error
    printError(`${program.invoked}: ${error.message}\n${helpHint(program)}\n`)
    throw new Done(1)
  }
}

/** Says what went wrong; answers with the exit code. */
function explain(program: Program, error: unknown): number {
  if (error instanceof Done) return error.code
  // Nobody is left to tell; qemu-img takes that for success.
  if (error instanceof ReaderGone) return 0
  if (program.signal.aborted) return 130
  if (error instanceof Refusal) {
    report(program, error)
    return error.code
  }
  complain(program, error instanceof Error ? error.message : String(error))
  return program.failure ?? 1
}

/** Scripts read the version from behind the word `version`: a link named qemu-img answers with the version whose words it speaks. */
function versionText({ name }: Program): string {
  const { version } = JSON.parse(readFileSync(`${__dirname}/../../package.json`, 'utf8')) as { version: string }
  if (name === 'qemu-img') return `qemu-img version 10.0.2 (spoken by qcow2 ${version})\n`
  return `${name} version ${version}\n`
}

/**
 * The name the command was called by, as C's `argv[0]` would be. Node.js keeps only the full path, so the name as it was written is read from
 * the system; of a command that was found by the search path, only its last part was written.
 */
function invokedName(): string {
  const script = process.argv[1] ?? 'qcow2'
  if (/^main\.[jt]s$/.test(basename(script))) return 'qcow2'
  const written = writtenName() ?? script
  const found = (process.env.PATH ?? '').split(delimiter).includes(dirname(written))
  return found ? basename(written) : written
}

function writtenName(): string | undefined {
  try {
    return readFileSync('/proc/self/cmdline', 'utf8').split('\0')[1 + process.execArgv.length]
  } catch {
    return undefined
  }
}

main(process.argv.slice(2)).then(
  // Everything is written by now. An end that waits to be found would first give up the signals: a late SIGUSR1 would then kill.
  (code) => process.exit(code),
  (error: unknown) => {
    printError(`${error instanceof Error ? error.stack : String(error)}\n`)
    process.exit(1)
  },
)
