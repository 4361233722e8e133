/**
 * Whole commands beside qemu-img: the same work, equal output checked first, then pairs of runs in alternating order.
 *
 * node --require tsx/cjs benches/commands.ts [--quick] [--pairs N] [--only TEXT]
 */
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { makeDisk } from '../scripts/lib/disk.mjs'
import { type Measured, measure } from './lib/process.js'
import { spread, table } from './lib/stats.js'

/** The same task for both programs. */
interface Task {
  name: string
  ours: string[]
  qemu: string[]
  /** What each writes; removed before each run. */
  outputs?: [string, string]
  /** Throws unless both did the same. */
  equal: (ours: Measured, qemu: Measured) => Promise<void>
}

const { values: options } = parseArgs({ options: { quick: { type: 'boolean' }, pairs: { type: 'string' }, only: { type: 'string' } } })
const GiB = 1024 ** 3
const pairs = Number(options.pairs ?? (options.quick ? 3 : 5))
const command = join(__dirname, '..', 'dist', 'cli', 'main.js')
const folder = mkdtempSync(join(process.env.QCOW2_BENCH_FOLDER ?? tmpdir(), 'qcow2-bench-'))
const at = (name: string) => join(folder, name)

main().then(
  () => rmSync(folder, { recursive: true, force: true }),
  (error: unknown) => {
    rmSync(folder, { recursive: true, force: true })
    console.error(error)
    process.exitCode = 1
  },
)

async function main(): Promise<void> {
  const small = { folder: join(__dirname, '..', 'node_modules') }
  const full = { folder: process.env.QCOW2_BENCH_SOURCE ?? '/usr', most: 1.2 * GiB, size: 2 * GiB }
  const made = await makeDisk(at('disk.raw'), options.quick ? small : full)
  const bytes = (path: string) => `${Math.round(statSync(path).size / 1024 ** 2)} MiB`
  console.log(`Source: ${made.kind}, ${made.files} files, ${Math.round(made.bytes / 1024 ** 2)} MiB, on a disk of ${bytes(at('disk.raw'))}.\n`)
  await must('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', at('disk.raw'), at('plain.qcow2')])
  await must('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', '-c', '-m', '16', '-W', at('disk.raw'), at('zlib.qcow2')])
  const rows: string[][] = []
  for (const task of tasks().filter(({ name }) => options.only === undefined || name.includes(options.only))) rows.push(await row(task))
  const head = ['command', 'qcow2 s', 'qemu-img s', 'times as fast: min', 'median', 'max', 'qcow2 CPU s', 'qemu-img CPU s', 'size']
  console.log(table(head, rows))
}

/** qemu-img gets what makes it fastest: 16 coroutines and writes out of order. Neither side syncs at the end. */
function tasks(): Task[] {
  const fast = ['-m', '16', '-W']
  const both = (name: string, from: [string, string], to: string, extra: string[]): Task => {
    const [format, path] = from
    const outputs: [string, string] = [at(`ours.${to}`), at(`qemu.${to}`)]
    const args = ['-f', format, '-O', to, ...extra, at(path)]
    return {
      name,
      ours: ['convert', ...args, outputs[0]],
      qemu: ['convert', ...fast, ...args, outputs[1]],
      outputs,
      equal: () => sameBytes(to, outputs),
    }
  }
  const look = (name: string, args: string[], equal: Task['equal'] = sameText): Task => ({ name, ours: args, qemu: args, equal })
  const raw: [string, string] = ['raw', 'disk.raw']
  return [
    both('convert raw → qcow2', raw, 'qcow2', []),
    both('convert raw → qcow2 -c', raw, 'qcow2', ['-c']),
    both('convert raw → qcow2 -c zstd', raw, 'qcow2', ['-c', '-o', 'compression_type=zstd']),
    both('convert qcow2 → raw', ['qcow2', 'plain.qcow2'], 'raw', []),
    both('convert qcow2 (zlib) → raw', ['qcow2', 'zlib.qcow2'], 'raw', []),
    look('map --output=json', ['map', '--output=json', '-f', 'qcow2', at('plain.qcow2')], sameJson),
    look('check --output=json', ['check', '--output=json', '-f', 'qcow2', at('zlib.qcow2')], sameJson),
    look('compare', ['compare', '-f', 'raw', '-F', 'qcow2', at('disk.raw'), at('plain.qcow2')]),
    look('info --output=json', ['info', '--output=json', '-f', 'qcow2', at('zlib.qcow2')], sameJson),
  ]
}

async function row(task: Task): Promise<string[]> {
  const run = (ours: boolean) => {
    const output = task.outputs?.[ours ? 0 : 1]
    if (output) rmSync(output, { force: true })
    return ours ? measure(process.execPath, [command, ...task.ours]) : measure('qemu-img', task.qemu)
  }
  // The check is the warm-up too: the page cache holds the source from here on.
  const first = { ours: await run(true), qemu: await run(false) }
  for (const [name, { code, stderr }] of Object.entries(first)) if (code !== 0) throw new Error(`${task.name}: ${name} failed: ${stderr}`)
  await task.equal(first.ours, first.qemu)
  const size = task.outputs ? task.outputs.map((path) => `${(statSync(path).size / 1024 ** 2).toFixed(0)}`).join(' / ') : ''
  const ours: Measured[] = []
  const qemu: Measured[] = []
  for (let pair = 0; pair < pairs; pair += 1) {
    const oursFirst = pair % 2 === 0
    for (const which of [oursFirst, !oursFirst]) (which ? ours : qemu).push(await run(which))
  }
  const ratio = spread(ours.map(({ seconds }, index) => (qemu[index]?.seconds ?? Number.NaN) / seconds))
  const median = (list: Measured[], key: 'seconds' | 'cpu') => spread(list.map((one) => one[key])).median.toFixed(2)
  const ratios = [ratio.min, ratio.median, ratio.max].map((value) => value.toFixed(2))
  console.error(`${task.name}: ${ratios.join(' ')}`)
  return [task.name, median(ours, 'seconds'), median(qemu, 'seconds'), ...ratios, median(ours, 'cpu'), median(qemu, 'cpu'), size]
}

async function sameBytes(format: string, [ours, qemu]: [string, string]): Promise<void> {
  await must('qemu-img', ['compare', '-f', format, '-F', format, ours, qemu])
}

async function sameText(ours: Measured, qemu: Measured): Promise<void> {
  if (ours.stdout !== qemu.stdout) throw new Error(`different output:\n${ours.stdout.slice(0, 2000)}\n---\n${qemu.stdout.slice(0, 2000)}`)
}

async function sameJson(ours: Measured, qemu: Measured): Promise<void> {
  const normal = ({ stdout }: Measured) => JSON.stringify(JSON.parse(stdout))
  if (normal(ours) !== normal(qemu)) throw new Error(`different JSON:\n${ours.stdout.slice(0, 2000)}\n---\n${qemu.stdout.slice(0, 2000)}`)
}

async function must(program: string, args: string[]): Promise<void> {
  const { code, stdout, stderr } = await measure(program, args)
  if (code !== 0) throw new Error(`${program} ${args.join(' ')}: ${stdout}${stderr}`)
}
