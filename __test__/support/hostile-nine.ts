/**
 * Asks everything of hostile images, in a process of its own: open, info, map, read, check, repair, convert, write and snapshot, through the library
 * and through the commands. Words: the file for the report, which part of the cases, and how many parts there are.
 */
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Output } from '../../js/cli/output.js'
import type { Command, Program } from '../../js/cli/program.js'
import { Refusal } from '../../js/cli/refusal.js'
import { check, convert, info, Qcow2Error } from '../../js/index.js'
import { SECRET } from './hostile-around.js'
import { type HostileCase, hostileCases, IMAGE } from './hostile-cases.js'
import { PASSPHRASE } from './hostile-luks.js'
import { type Disk, readRange, withDisk, within } from './ours.js'
import { temporaryFolder } from './qemu.js'

/** In the order of the table's columns. */
export const OPERATIONS = ['open', 'info', 'map', 'read', 'check', 'repair', 'convert', 'write', 'snapshot', 'commands'] as const

/** `ok`, with what was noticed or found behind a plus; or the code of the error. */
export type Answers = Record<(typeof OPERATIONS)[number], string>

export interface Verdict {
  name: string
  answers: Answers
  /** What must not be: changed sources, files left behind, untyped errors, secrets in targets. */
  wrong: string[]
  /** The slowest of the nine, in milliseconds. */
  slowest: number
  /** By how much the process grew at most, in MiB. */
  grown: number
}

/** Each operation ends within this, in milliseconds. */
export const PATIENCE = 5000
/** The most of a disk that is read. */
const WINDOW = 2n ** 20n
const LIMITS = { maxOutputSize: 2 ** 26 }
/** Whoever examines a stranger's image with a key bounds what finding out about it may cost, too. */
const KEY = { secret: Buffer.from(PASSPHRASE), limits: { maxKeyIterations: 12_000_000 } }

const sorted = (codes: readonly string[]): string => [...new Set(codes)].sort().join()
const plus = (codes: readonly string[]): string => (codes.length === 0 ? 'ok' : `ok+${sorted(codes)}`)

class Asking {
  readonly wrong: string[] = []
  slowest = 0
  constructor(
    readonly folder: string,
    readonly path: string,
  ) {}

  /** The code of what came of it. */
  async ask(what: string, work: () => Promise<string>): Promise<string> {
    const begun = performance.now()
    try {
      return await within(what, PATIENCE, work())
    } catch (error) {
      if (error instanceof Qcow2Error) {
        if (error.code === 'ERR_QCOW2_INTERNAL') this.wrong.push(`${what}: ${error.message}`)
        // A terminal is not the image's to write to.
        // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
        if (/[\x00-\x08\x0b-\x1f\x7f]/.test(error.message)) this.wrong.push(`${what}: control characters in ${JSON.stringify(error.message)}`)
        return error.code
      }
      this.wrong.push(`${what}: ${error instanceof Error ? error.stack : String(error)}`)
      return 'UNTYPED'
    } finally {
      this.slowest = Math.max(this.slowest, performance.now() - begun)
    }
  }

  /** A state of everything that lies in the folder. The system notes every change of a file in its ctime, which nobody can set. */
  state(): string {
    const all: string[] = []
    for (const name of (readdirSync(this.folder, { recursive: true }) as string[]).sort()) {
      const found = statSync(join(this.folder, name), { bigint: true, throwIfNoEntry: false })
      if (found?.isFile() === true) all.push(`${name} ${found.size} ${found.ctimeNs} ${found.mtimeNs}`)
    }
    return all.join('\n')
  }
}

async function readWindow(disk: Disk): Promise<string> {
  const size = BigInt(disk.virtualSize)
  const length = Number(size < WINDOW ? size : WINDOW)
  await readRange(disk, 0, length)
  if (size > WINDOW) await readRange(disk, size - 512n, 512)
  return 'ok'
}

async function mapSome(disk: Disk): Promise<string> {
  let runs = 0
  for await (const _ of disk.map()) if (++runs >= 5000) break
  return 'ok'
}

/** What changes an image is done to a copy; nothing but it may change. */
async function changing(asking: Asking, what: string, work: (copy: string) => Promise<string>): Promise<string> {
  const copy = join(asking.folder, 'copy.qcow2')
  const before = asking.state()
  copyFileSync(asking.path, copy)
  const answer = await asking.ask(what, () => work(copy))
  rmSync(copy)
  if (asking.state() !== before) asking.wrong.push(`${what}: another file was changed`)
  return answer
}

async function repairs(copy: string, asking: Asking): Promise<string> {
  const { corruptions, leaks, checkErrors, findings } = await check(copy, { format: 'qcow2', repair: 'all', bigint: true })
  const again = await check(copy, { format: 'qcow2', bigint: true })
  if (again.corruptions > corruptions || again.leaks > leaks || again.checkErrors > checkErrors) asking.wrong.push('repair: a second check is worse')
  return plus(findings.map(({ code }) => code))
}

async function writes(copy: string): Promise<string> {
  const bytes = new Uint8Array(4096).fill(0xa7)
  return withDisk(copy, { ...KEY, format: 'qcow2', writable: true, bigint: true }, async (disk) => {
    const size = BigInt(disk.virtualSize)
    if (size === 0n) return 'ok'
    const length = Number(size < 4096n ? size : 4096n)
    const places = [0n, ((size / 2n) >> 9n) << 9n].filter((at) => at + BigInt(length) <= size)
    for (const at of places) await disk.write(bytes.subarray(0, length), { position: at })
    await disk.flush()
    for (const at of places)
      if ((await readRange(disk, at, length)).some((byte) => byte !== 0xa7)) throw new Error('what was written is not what is read')
    return plus(disk.notices.map(({ code }) => code))
  })
}

/** The commands, as the program loads them; what they print goes nowhere. */
async function commands(asking: Asking, target: string): Promise<string> {
  const copy = join(asking.folder, 'copy.qcow2')
  const { path } = asking
  const lines: [string, string[], boolean][] = [
    ['info', ['-f', 'qcow2', path], false],
    ['map', ['-f', 'qcow2', '--output', 'json', '--max-length', '1M', path], false],
    ['dd', ['-f', 'qcow2', '-O', 'raw', 'bs=64k', 'count=16', `if=${path}`, `of=${target}`], false],
    ['check', ['-f', 'qcow2', path], false],
    ['measure', ['-f', 'qcow2', path], false],
    ['check', ['-r', 'all', '-f', 'qcow2', copy], true],
    ['bench', ['-f', 'qcow2', '-w', '-c', '2', '-s', '512', copy], true],
    ['snapshot', ['-c', 'one', copy], true],
  ]
  const codes: string[] = []
  for (const [name, words, changes] of lines) {
    const load = require(`../../js/cli/commands/${name}.js`) as Record<string, Command>
    const command = load[name]
    if (command === undefined) throw new Error(`no command ${name}`)
    const program: Program = { name: 'qcow2', invoked: 'qcow2', command: name, out: new Output(), signal: new AbortController().signal }
    if (changes) copyFileSync(path, copy)
    const code = await asking.ask(`command ${name}`, async () => {
      try {
        return String(await command(program, words))
      } catch (error) {
        if (error instanceof Refusal) return String(error.code)
        if (error instanceof Qcow2Error) return '1'
        throw error
      }
    })
    program.out.flush()
    rmSync(target, { force: true })
    if (changes) rmSync(copy)
    codes.push(code)
  }
  return codes.join('')
}

function peak(): number {
  const line = /VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))
  return Number(line?.[1] ?? 0) / 1024
}

async function verdict(hostile: HostileCase, parent: string): Promise<Verdict> {
  const folder = join(parent, 'case')
  mkdirSync(folder)
  hostile.write(folder)
  const path = join(folder, IMAGE)
  const target = join(parent, 'target.raw')
  const asking = new Asking(folder, path)
  const before = asking.state()
  globalThis.gc?.()
  // Forgets the highest point so far.
  if (process.platform === 'linux') writeFileSync('/proc/self/clear_refs', '5')
  const start = peak()
  const options = { format: 'qcow2', bigint: true } as const
  const answers = {} as Answers
  answers.open = await asking.ask('open', () => withDisk(path, { ...options, ...KEY }, async (disk) => plus(disk.notices.map(({ code }) => code))))
  answers.info = await asking.ask('info', async () => plus((await info(path, options)).notices.map(({ code }) => code)))
  answers.map = await asking.ask('map', () => withDisk(path, { ...options, ...KEY }, mapSome))
  answers.read = await asking.ask('read', () => withDisk(path, { ...options, ...KEY }, readWindow))
  answers.check = await asking.ask('check', async () => plus((await check(path, options)).findings.map(({ code }) => code)))
  answers.convert = await asking.ask('convert', async () => {
    await convert(path, target, { sourceFormat: 'qcow2', format: 'raw', limits: LIMITS, source: KEY })
    if (statSync(target).size <= 2 ** 26 && readFileSync(target).includes(SECRET.subarray(0, 31)))
      asking.wrong.push('convert: a secret is in the target')
    return 'ok'
  })
  if (answers.convert !== 'ok' && existsSync(target)) asking.wrong.push('convert: a target was left')
  rmSync(target, { force: true })
  if (asking.state() !== before) asking.wrong.push('what only reads changed a file')
  // Of a file of terabytes there is no copy.
  if (statSync(path).size > 2 ** 30) Object.assign(answers, { repair: '-', write: '-', snapshot: '-', commands: '-' })
  else {
    answers.repair = await changing(asking, 'repair', (copy) => repairs(copy, asking))
    answers.write = await changing(asking, 'write', writes)
    answers.snapshot = await changing(asking, 'snapshot', (copy) =>
      withDisk(copy, { ...options, ...KEY, writable: true }, async (disk) => {
        await disk.snapshots.create('of a hostile image')
        return 'ok'
      }),
    )
    if (asking.state() !== before) asking.wrong.push('a file was changed or left')
    answers.commands = await commands(asking, target)
    // The command line lets an image name its data file, as qemu-img does; to write the disk is to write that.
    if (asking.state() !== before) answers.commands += '+DATA_FILE_WRITTEN'
  }
  const grown = peak() - start
  rmSync(folder, { recursive: true })
  return { name: hostile.name, answers, wrong: asking.wrong, slowest: asking.slowest, grown }
}

async function main(): Promise<void> {
  const [report, part, parts] = process.argv.slice(2)
  if (report === undefined) throw new Error('words: report file, part, parts')
  const parent = temporaryFolder()
  const verdicts: Verdict[] = []
  for (const [i, hostile] of hostileCases().entries()) {
    if (i % Number(parts) !== Number(part)) continue
    // Names what was in flight, should the process end here.
    writeFileSync(report, JSON.stringify({ inFlight: hostile.name }))
    verdicts.push(await verdict(hostile, parent))
  }
  writeFileSync(report, JSON.stringify(verdicts))
}

if (require.main === module)
  main().then(
    () => process.exit(0),
    (error: unknown) => {
      console.error(error)
      process.exit(1)
    },
  )
