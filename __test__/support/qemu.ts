/**
 * QEMU's own tools as a witness, and folders that vanish with the process.
 */
import { execFile, spawnSync } from 'node:child_process'
import { accessSync, constants, mkdtempSync, rmSync, statfsSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { dirname, isAbsolute, join } from 'node:path'

/** What a program left behind. */
export interface Outcome {
  code: number
  stdout: Buffer
  stderr: string
}

const packageOf: Record<string, string> = {
  'qemu-img': 'qemu-utils',
  'qemu-io': 'qemu-utils',
  'qemu-nbd': 'qemu-utils',
  zstd: 'zstd',
  groff: 'groff-base',
  cryptsetup: 'cryptsetup-bin',
  '7zz': '7zip',
  '/usr/bin/python3': 'python3',
}
const found = new Set<string>()

/** A witness that is missing is a failure that names it: a comparison that silently did not happen proves nothing. */
function need(tool: string): void {
  if (found.has(tool)) return
  const probe = spawnSync(tool, ['--version'], { stdio: 'ignore' })
  if (probe.error !== undefined) throw new Error(`${tool} is needed by this test and was not found: install the package ${packageOf[tool] ?? tool}`)
  found.add(tool)
}

let running = 0
const waiting: (() => void)[] = []

/** Runs a program. At most as many run at once as there are processors. Never rejects for an exit code. */
export async function run(
  tool: string,
  words: readonly string[],
  options: { cwd?: string; input?: Uint8Array; timeout?: number } = {},
): Promise<Outcome> {
  need(tool)
  if (running >= Math.max(2, availableParallelism())) await new Promise<void>((go) => waiting.push(go))
  running++
  try {
    return await new Promise<Outcome>((done, fail) => {
      const child = execFile(
        tool,
        words,
        { cwd: options.cwd, encoding: 'buffer', maxBuffer: 1 << 30, timeout: options.timeout ?? 60_000, env: { ...process.env, LC_ALL: 'C' } },
        (error, stdout, stderr) => {
          const code = error === null ? 0 : error.code
          if (typeof code === 'number') done({ code, stdout, stderr: stderr.toString() })
          else fail(new Error(`${tool} ${words.join(' ')}: ${error?.signal ?? ''} ${error?.message ?? ''}`))
        },
      )
      child.stdin?.on('error', () => {})
      child.stdin?.end(options.input)
    })
  } finally {
    running--
    waiting.shift()?.()
  }
}

/** Runs a program that must succeed. */
export async function must(
  tool: string,
  words: readonly string[],
  options: { cwd?: string; input?: Uint8Array; timeout?: number } = {},
): Promise<Outcome> {
  const outcome = await run(tool, words, options)
  if (outcome.code !== 0)
    throw new Error(`${tool} ${words.join(' ')} ended with ${outcome.code}: ${outcome.stderr}${outcome.stdout.subarray(0, 2000)}`)
  return outcome
}

/**
 * Runs a tool in the folder of an image: QEMU takes the relative name of an external data file from the folder it runs in, not from the
 * image's, so the two have to be one.
 */
function beside(tool: string, path: string, words: readonly string[]): Promise<Outcome> {
  return run(tool, words, isAbsolute(path) ? { cwd: dirname(path) } : {})
}

async function mustBeside(tool: string, path: string, words: readonly string[]): Promise<Outcome> {
  return must(tool, words, isAbsolute(path) ? { cwd: dirname(path) } : {})
}

/**
 * The same for a report. qemu-img ends with 0 even if what it printed was lost: seen once in some ten thousand runs, on a machine that had
 * run out of memory. Then it is asked again.
 */
async function report(path: string, words: readonly string[]): Promise<Outcome> {
  const outcome = await mustBeside('qemu-img', path, words)
  return outcome.stdout.length > 0 ? outcome : mustBeside('qemu-img', path, words)
}

/** A value of JSON output, as far as the tests look into it. */
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json }

/** Parses JSON whose numbers may pass 2^53: such numbers become strings of digits. */
export function parseJson(text: string): Json {
  return JSON.parse(
    text.replace(/([:[,]\s*)(\d{16,})(?=\s*[,}\]])/g, (whole, before: string, digits: string) =>
      Number.isSafeInteger(Number(digits)) ? whole : `${before}"${digits}"`,
    ),
  ) as Json
}

export interface MapEntry {
  start: number
  length: number
  depth: number
  present: boolean
  zero: boolean
  data: boolean
  compressed: boolean
  offset?: number
}

/** The counts of `qemu-img check --output=json`. Counts that are zero are left out by qemu-img. */
export interface CheckCounts {
  'check-errors': number
  'image-end-offset'?: number
  'total-clusters'?: number
  'allocated-clusters'?: number
  'fragmented-clusters'?: number
  'compressed-clusters'?: number
  corruptions?: number
  leaks?: number
}

export const qemu = {
  img: (...words: string[]): Promise<Outcome> => must('qemu-img', words),
  tryImg: (...words: string[]): Promise<Outcome> => run('qemu-img', words),

  async create(
    path: string,
    options: { size?: number | bigint; o?: readonly string[]; backing?: string; backingFormat?: string; format?: string; cwd?: string },
  ): Promise<void> {
    const words = ['create', '-q', '-f', options.format ?? 'qcow2']
    if (options.o !== undefined && options.o.length > 0) words.push('-o', options.o.join(','))
    if (options.backing !== undefined) words.push('-b', options.backing, '-F', options.backingFormat ?? 'qcow2')
    words.push(path)
    if (options.size !== undefined) words.push(String(options.size))
    await must('qemu-img', words, options.cwd === undefined ? {} : { cwd: options.cwd })
  },

  /** Runs many commands of qemu-io on one image in one process. Any of them failing is an error. */
  async io(
    path: string,
    commands: readonly string[],
    options: { format?: string; discard?: boolean; imageOpts?: string; readOnly?: boolean } = {},
  ): Promise<string> {
    const words = options.discard === true ? ['-d', 'unmap'] : []
    if (options.readOnly === true) words.push('-r')
    for (const command of commands) words.push('-c', command)
    if (options.imageOpts === undefined) words.push('-f', options.format ?? 'qcow2', path)
    else words.push('--image-opts', options.imageOpts)
    const outcome = await mustBeside('qemu-io', path, words)
    const text = outcome.stdout.toString()
    if (/failed|error|mismatch/i.test(text)) throw new Error(`qemu-io ${words.join(' ')}: ${text}`)
    return text
  },

  async raw(path: string, output: string, words: readonly string[] = ['-f', 'qcow2']): Promise<void> {
    await mustBeside('qemu-img', path, ['convert', ...words, '-O', 'raw', path, output])
  },

  async map(path: string, words: readonly string[] = ['-f', 'qcow2']): Promise<MapEntry[]> {
    const outcome = await report(path, ['map', '--output=json', ...words, path])
    return parseJson(outcome.stdout.toString()) as unknown as MapEntry[]
  },

  async info(path: string, words: readonly string[] = ['-f', 'qcow2']): Promise<{ [key: string]: Json }> {
    const outcome = await report(path, ['info', '--output=json', ...words, path])
    return parseJson(outcome.stdout.toString()) as { [key: string]: Json }
  },

  /** Never throws for what is wrong with the image: `code` tells (0 clean, 2 corrupt, 3 leaks). */
  async check(path: string): Promise<{ code: number; counts: CheckCounts | undefined; stderr: string }> {
    const outcome = await beside('qemu-img', path, ['check', '--output=json', '-f', 'qcow2', path])
    const text = outcome.stdout.toString()
    return {
      code: outcome.code,
      counts: text.trim().startsWith('{') ? (parseJson(text) as unknown as CheckCounts) : undefined,
      stderr: outcome.stderr,
    }
  },

  /** Without a path the words give a size. */
  async measure(path: string | undefined, ...words: string[]): Promise<{ required: number; 'fully-allocated': number; bitmaps?: number }> {
    const outcome = await report(path ?? '', ['measure', '--output=json', ...words, ...(path === undefined ? [] : [path])])
    return parseJson(outcome.stdout.toString()) as unknown as { required: number; 'fully-allocated': number; bitmaps?: number }
  },
}

const folders: string[] = []

/** Where test images live: memory if it has room (no test waits for a disk), else the usual place. */
function base(): string {
  try {
    accessSync('/dev/shm', constants.W_OK)
    const { bavail, bsize } = statfsSync('/dev/shm')
    if (bavail * bsize > 2 ** 31) return '/dev/shm'
  } catch {
    // No such place on this system.
  }
  return tmpdir()
}

/** A new folder that is removed when the process ends. */
export function temporaryFolder(): string {
  if (folders.length === 0) process.on('exit', () => folders.forEach(removeFolder))
  const folder = mkdtempSync(join(base(), 'qcow2-test-'))
  folders.push(folder)
  return folder
}

export function removeFolder(folder: string): void {
  rmSync(folder, { recursive: true, force: true })
}
