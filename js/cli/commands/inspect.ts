/** `inspect`: what a file from a stranger is, and whether a destination takes it. */
import { type CommandHelp, ROWS } from '../help.js'
import { formatJson, type JsonObject } from '../json.js'
import { type InspectResult, library, type ProfileName } from '../library.js'
import { imageName, refuseSpecial } from '../names.js'
import { profileNamed } from '../profile.js'
import type { Program } from '../program.js'
import { Refusal } from '../refusal.js'
import { Done, oneFile, outputForm, plainGrammar, readWords } from '../words.js'

const GRAMMAR = plainGrammar('q', 'P', 'profile:=P output: quiet=q')

const HELP: CommandHelp = {
  summary: 'Examine a file from a stranger: what it is, what it refers to, and whether a destination takes it. Nothing that it names is opened.',
  usage: '[-P PROFILE] [-q] [--output human|json] FILE',
  options: [
    ['-P, --profile NAME', 'judge by the rules of a destination, such as glance, kubevirt or proxmox'],
    ROWS.quiet,
    ROWS.output,
    ['FILE -', 'standard input: its first bytes are enough'],
    ['', 'exit code: 0 acceptable, 1 refused, 2 could not tell'],
  ],
  examples: ['inspect upload.img', 'inspect --profile glance upload.qcow2'],
}

const CODES = { acceptable: 0, refused: 1, unknown: 2 }
/** Every failure, too: nobody can tell then. */
const UNKNOWN = CODES.unknown

/** Runs the command. */
export async function inspect(program: Program, words: readonly string[]): Promise<number> {
  let profile: ProfileName | undefined
  let form = 'human' as 'human' | 'json'
  let quiet = false
  program.failure = UNKNOWN
  try {
    const operands = readWords(program, words, GRAMMAR, HELP, (id, value) => {
      if (id === 'P') profile = profileNamed(value)
      else if (id === 'output') form = outputForm(value)
      else if (id === 'q') quiet = true
    })
    const file = oneFile(operands)
    const result = await examine(program, file, profile)
    if (form === 'json') program.out.print(`${formatJson(jsonOf(file, result))}\n`)
    else if (!quiet || result.verdict !== 'acceptable') program.out.print(humanText(program, file, result))
    return CODES[result.verdict]
  } catch (error) {
    throw asFailure(program, error)
  }
}

function asFailure(program: Program, error: unknown): unknown {
  if (error instanceof Done) return new Done(error.code === 0 ? 0 : UNKNOWN)
  if (error instanceof Refusal) {
    return new Refusal(error.message, { code: UNKNOWN, usage: error.usage, ...(error.hint === undefined ? {} : { hint: error.hint }) })
  }
  if (program.signal.aborted || program.describe !== undefined || !(error instanceof library().Qcow2Error)) return error
  return new Refusal(error.message, { code: UNKNOWN })
}

async function examine({ signal }: Program, file: string, profile: ProfileName | undefined): Promise<InspectResult> {
  const options = { signal, ...(profile === undefined ? {} : { profile }) }
  if (file === '-') {
    try {
      return await library().inspect(process.stdin, options)
    } finally {
      // Whoever writes into the pipe may go on for ever.
      process.stdin.destroy()
    }
  }
  const name = imageName(file)
  refuseSpecial(name)
  return library().inspect(name.source, options)
}

function humanText({ name }: Program, file: string, { verdict, profile, format, formats, facts, findings }: InspectResult): string {
  const { printable } = library()
  const size = (bytes: number | bigint | undefined) => (bytes === undefined ? undefined : `${bytes} bytes`)
  const rows: [string, string | undefined][] = [
    ['format', format === formats[0] || formats.length === 0 ? format : `${format} (${formats.join(', ')})`],
    ['version', facts.version?.toString()],
    ['virtual size', size(facts.virtualSize)],
    ['file size', `${facts.fileSize} bytes${facts.complete ? '' : ' were read'}`],
    ['features', facts.features.map(({ name, kind, bit }) => name ?? `${kind} bit ${bit}`).join(', ') || undefined],
    ['backing file', facts.backingFile],
    ['data file', facts.dataFile],
    ['encryption', facts.encryption === undefined ? undefined : [facts.encryption, facts.cipher].filter(Boolean).join(', ')],
    ['snapshots', facts.snapshots.length === 0 ? undefined : String(facts.snapshots.length)],
    ['bitmaps', facts.bitmaps.length === 0 ? undefined : String(facts.bitmaps.length)],
    ['estimated size', size(facts.estimatedSize?.qcow2 ?? facts.estimatedSize?.raw)],
  ]
  const lines = rows.flatMap(([name, value]) => (value === undefined ? [] : [`${name}: ${printable(value)}`]))
  for (const { severity, code, message, source, mend, place } of findings) {
    const where = [place?.table, place?.offset === undefined ? undefined : `offset ${place.offset}`].filter((part) => part !== undefined).join(', ')
    lines.push(`${severity}: ${code}: ${printable(message)}${where === '' ? '' : ` [${where}]`}${source === undefined ? '' : ` (${source})`}`)
    if (mend !== undefined)
      lines.push(
        `  ${mend}${profile === undefined ? '' : `: ${name} convert --profile ${profile} ${file === '-' ? 'FILE' : quoted(printable(file))} TARGET`}`,
      )
  }
  const words = { acceptable: 'acceptable', refused: 'refused', unknown: 'could not tell' }
  return `${lines.join('\n')}\n${printable(file)}: ${words[verdict]}${profile === undefined ? '' : ` for ${profile}`}\n`
}

/** A name as a shell takes it. */
function quoted(name: string): string {
  return /^[\w@%+=:,./][\w@%+=:,./-]*$/.test(name) ? name : `'${name.replaceAll("'", "'\\''")}'`
}

function jsonOf(file: string, { facts, findings, ...rest }: InspectResult): JsonObject {
  const { snapshots, estimatedSize, features, ...plain } = facts
  return {
    filename: file,
    ...rest,
    facts: {
      ...plain,
      features: features.map((feature) => ({ ...feature })),
      snapshots: snapshots.map((snapshot) => ({ ...snapshot })),
      estimatedSize: estimatedSize === undefined ? undefined : { ...estimatedSize },
    },
    findings: findings.map(({ place, ...finding }) => ({ ...finding, place: place === undefined ? undefined : { ...place } })),
  } as unknown as JsonObject
}
