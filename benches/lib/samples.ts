/**
 * Benchmarks whose samples are processes of their own: where the system puts the threads differs from process to process, and with it the cost
 * of every hop between them.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { spread, table } from './stats.js'

/** One way of doing something, measured once. */
export interface Measurement {
  /** Row of the table. */
  row: string
  ours: Cost
  theirs: Cost
}

/** What it took. */
export interface Cost {
  /** How many a second. */
  rate: number
  /** Processor microseconds for each, all threads of the process. */
  cpu: number
}

/** A row of the table and the ratio that is promised at least. */
export type Promised = Record<string, number>

const { values: options } = parseArgs({
  options: { quick: { type: 'boolean' }, processes: { type: 'string' }, sample: { type: 'string' }, only: { type: 'string' } },
})

/** Less data and fewer samples. */
export const quick = options.quick === true

/** Whether a row is wanted: all are, unless `--only` says which. */
export function wanted(row: string): boolean {
  return options.only === undefined || row.includes(options.only)
}

/**
 * Runs a benchmark: `prepare` fills a folder once, `sample` measures in a process of its own, as often as there are samples. Prints the table.
 *
 * @param file - the benchmark's own file
 * @param names - what the two sides are called
 */
export function benchmark(
  file: string,
  names: [ours: string, theirs: string],
  promised: Promised,
  prepare: (folder: string) => Promise<void>,
  sample: (folder: string) => Promise<Measurement[]>,
): void {
  inProcesses(file, prepare, sample, (samples) => console.log(report(samples.flat())))

  function report(all: readonly Measurement[]): string {
    const rows = [...new Set(all.map(({ row }) => row))].map((row) => {
      const samples = all.filter((one) => one.row === row)
      const ratio = spread(samples.map(({ ours, theirs }) => ours.rate / theirs.rate))
      const rate = (side: 'ours' | 'theirs') => thousands(spread(samples.map((one) => one[side].rate)).median)
      const cpu = (side: 'ours' | 'theirs') => spread(samples.map((one) => one[side].cpu)).median.toFixed(1)
      const ratios = [ratio.min, ratio.median, ratio.max].map((value) => value.toFixed(2))
      return [row, `${promised[row] ?? ''}`, ...ratios, rate('ours'), rate('theirs'), cpu('ours'), cpu('theirs')]
    })
    const [ours, theirs] = names
    const head = ['at least', 'times as fast: min', 'median', 'max', `${ours}/s`, `${theirs}/s`, `${ours} CPU µs`, `${theirs} CPU µs`]
    return table([`${samplesText(all)}`, ...head], rows)
  }
}

/**
 * A benchmark of single numbers, each of which has an upper bound. Otherwise as {@link benchmark}.
 *
 * @param most - what is promised at most, by row
 */
export function bounds(
  file: string,
  most: Promised,
  prepare: (folder: string) => Promise<void>,
  sample: (folder: string) => Promise<Record<string, number>>,
): void {
  inProcesses(file, prepare, sample, (samples) => {
    const rows = Object.keys(samples[0] ?? {}).map((row) => {
      const { min, median, max } = spread(samples.map((one) => one[row] ?? Number.NaN))
      return [row, `${most[row] ?? ''}`, ...[min, median, max].map((value) => value.toFixed(2))]
    })
    console.log(table([`${samples.length} processes`, 'at most', 'min', 'median', 'max'], rows))
  })
}

/** Prepares once, then takes samples in processes of their own; in one of those, takes the sample. */
function inProcesses<T>(
  file: string,
  prepare: (folder: string) => Promise<void>,
  sample: (folder: string) => Promise<T>,
  done: (samples: T[]) => void,
): void {
  const parent = async () => {
    const folder = mkdtempSync(join(process.env.QCOW2_BENCH_FOLDER ?? tmpdir(), 'qcow2-bench-'))
    try {
      await prepare(folder)
      const samples: T[] = []
      const again = [...process.execArgv, file, ...process.argv.slice(2), '--sample', folder]
      for (let count = Number(options.processes ?? (quick ? 3 : 7)); count > 0; count -= 1) {
        const { stdout, stderr, status } = spawnSync(process.execPath, again, { encoding: 'utf8', maxBuffer: 2 ** 26 })
        if (status !== 0) throw new Error(stderr)
        samples.push(JSON.parse(stdout) as T)
      }
      done(samples)
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  }
  const work = options.sample === undefined ? parent() : sample(options.sample).then((one) => console.log(JSON.stringify(one)))
  work.catch((error: unknown) => {
    console.error(error)
    process.exitCode = 1
  })
}

function samplesText(all: readonly Measurement[]): string {
  return `${all.filter(({ row }) => row === all[0]?.row).length} processes`
}

function thousands(rate: number): string {
  return rate >= 10_000 ? `${(rate / 1000).toFixed(0)}k` : rate.toFixed(rate < 100 ? 1 : 0)
}

/**
 * Rate and cost of something that is done `count` times, `depth` of them under way at a time.
 *
 * @param one - does it once; `turn` counts from 0, `lane` is which of those under way it is
 */
export async function cost(count: number, depth: number, one: (turn: number, lane: number) => Promise<unknown>): Promise<Cost> {
  let turn = 0
  const loop = async (lane: number) => {
    while (turn < count) await one(turn++, lane)
  }
  const cpu = process.cpuUsage()
  const begin = performance.now()
  await Promise.all(Array.from({ length: depth }, (_, lane) => loop(lane)))
  const seconds = (performance.now() - begin) / 1000
  const { user, system } = process.cpuUsage(cpu)
  return { rate: count / seconds, cpu: (user + system) / count }
}

/** Two sides in turn, several times, so that both meet the machine as it is; what counts is the middle of each. */
export async function inTurn(turns: number, ours: () => Promise<Cost>, theirs: () => Promise<Cost>): Promise<{ ours: Cost; theirs: Cost }> {
  const costs: { ours: Cost[]; theirs: Cost[] } = { ours: [], theirs: [] }
  for (let turn = 0; turn < turns; turn += 1) {
    if (turn % 2 === 0) costs.ours.push(await ours())
    costs.theirs.push(await theirs())
    if (turn % 2 === 1) costs.ours.push(await ours())
  }
  const middle = (list: Cost[]): Cost => ({ rate: spread(list.map(({ rate }) => rate)).median, cpu: spread(list.map(({ cpu }) => cpu)).median })
  return { ours: middle(costs.ours), theirs: middle(costs.theirs) }
}
