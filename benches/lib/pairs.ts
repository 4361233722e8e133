/**
 * One row of a table: the same task by two programs, in pairs of runs in alternating order.
 */
import { rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { type Measured, measure } from './process.js'
import { spread } from './stats.js'

/** The same task for both programs. */
export interface Task {
  name: string
  /** The ratio that is promised at least. */
  promised: number
  ours: string[]
  /** What ours runs instead of the command: a script with the package as `q`. */
  script?: string
  /** What runs instead of qemu-img. */
  rival?: string
  /** Arguments of qemu-img; of several, the one that turns out fastest runs in the pairs. */
  qemu: string[][]
  /** What each writes; removed before each run. */
  outputs?: [string, string]
  /** What each changes is made anew before each run, which is not measured. */
  before?: (side: 'ours' | 'qemu') => Promise<void>
  /** Ours may not be larger. */
  noLarger?: boolean
  /** Runs of each, where it is not the usual number. */
  pairs?: number
  /** Throws unless both did the same. */
  equal: (ours: Measured, qemu: Measured) => Promise<void>
}

const library = join(__dirname, '..', '..', 'dist', 'index.js')
const command = join(__dirname, '..', '..', 'dist', 'cli', 'main.js')

/** What stands above the rows of `row`. */
export const HEAD = [
  'command',
  'at least',
  'times as fast: min',
  'median',
  'max',
  'qcow2 s',
  'qemu-img s',
  'qcow2 CPU s',
  'qemu-img CPU s',
  'file MiB',
  'qcow2 MiB beyond Node',
  'qemu-img MiB',
  'qemu-img flags',
]

/** The memory of Node.js itself, in bytes: what our command line has before it does anything. */
export async function bareNode(): Promise<number> {
  const samples: number[] = []
  for (let count = 0; count < 5; count += 1) samples.push((await measure(process.execPath, ['-e', 'setTimeout(() => {}, 50)'], { peak: true })).peak)
  return spread(samples).median
}

/** Checks that both do the same, measures memory once, then time in pairs. */
export async function row(task: Task, usualPairs: number, node: number): Promise<string[]> {
  const run = async (args: string[] | undefined, peak = false) => {
    const output = task.outputs?.[args === undefined ? 0 : 1]
    if (output) rmSync(output, { force: true })
    await task.before?.(args === undefined ? 'ours' : 'qemu')
    const ours =
      task.script === undefined ? [command, ...task.ours] : ['-e', `const q=require(${JSON.stringify(library)});(async()=>{${task.script}})()`]
    return args === undefined ? measure(process.execPath, ours, { peak }) : measure(task.rival ?? 'qemu-img', args, { peak })
  }
  // The check is the warm-up too: the page cache holds the source from here on.
  const first = { ours: await run(undefined, true), qemu: await run(task.qemu[0], true) }
  for (const [name, { code, stderr }] of Object.entries(first)) if (code !== 0) throw new Error(`${task.name}: ${name} failed: ${stderr}`)
  await task.equal(first.ours, first.qemu)
  const sizes = task.outputs?.map((path) => statSync(path).size)
  if (task.noLarger && sizes && (sizes[0] ?? 0) > (sizes[1] ?? 0)) throw new Error(`${task.name}: ${sizes[0]} bytes, qemu-img ${sizes[1]}`)

  const best = await fastest(task.qemu, run)
  const [ours, qemu]: [Measured[], Measured[]] = [[], []]
  for (let pair = 0; pair < (task.pairs ?? usualPairs); pair += 1) {
    const oursFirst = pair % 2 === 0
    if (oursFirst) ours.push(await run(undefined))
    qemu.push(await run(best))
    if (!oursFirst) ours.push(await run(undefined))
  }
  for (const path of task.outputs ?? []) rmSync(path, { force: true })
  const ratio = spread(ours.map(({ seconds }, index) => (qemu[index]?.seconds ?? Number.NaN) / seconds))
  const median = (list: Measured[], key: 'seconds' | 'cpu') => spread(list.map((one) => one[key])).median.toFixed(2)
  const ratios = [ratio.min, ratio.median, ratio.max].map((value) => value.toFixed(2))
  const MiB = (bytes: number) => (bytes / 1024 ** 2).toFixed(0)
  const flags = best.filter((word, index) => word === '-W' || best[index - 1] === '-m').join(' ')
  console.error(`${task.name}: ${ratios.join(' ')}`)
  return [
    task.name,
    `${task.promised}`,
    ...ratios,
    median(ours, 'seconds'),
    median(qemu, 'seconds'),
    median(ours, 'cpu'),
    median(qemu, 'cpu'),
    sizes ? sizes.map(MiB).join(' / ') : '',
    MiB(first.ours.peak - node),
    MiB(first.qemu.peak),
    flags.replace(/^(\d+) -W$|^-W (\d+)$/, '-W -m $1$2'),
  ]
}

/** The argument list that takes the least time, from one run each. */
async function fastest(lists: readonly string[][], run: (args: string[]) => Promise<Measured>): Promise<string[]> {
  let best = { args: lists[0] ?? [], seconds: Number.POSITIVE_INFINITY }
  if (lists.length === 1) return best.args
  for (const args of lists) {
    const { seconds } = await run(args)
    if (seconds < best.seconds) best = { args, seconds }
  }
  return best.args
}
