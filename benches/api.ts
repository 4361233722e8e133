/**
 * Random 4 KiB reads through the API beside `FileHandle.read` of the raw disk with the same bytes, both from the page cache.
 * One process is one sample (thread placement differs from process to process), so this starts several of itself.
 *
 * node --require tsx/cjs benches/api.ts [--quick] [--processes N]
 */
import { spawnSync } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { type FileHandle, open as openFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import Benchmark from 'benchmark'
import { convert, open } from 'qcow2'
import { spread, table } from './lib/stats.js'

/** One way of reading at one depth. */
interface Sample {
  name: string
  depth: number
  /** Reads a second, as Benchmark.js found. */
  rate: number
  /** Processor microseconds a read, all threads of the process. */
  cpu: number
}

type Read = (buffer: Uint8Array, position: number) => Promise<unknown>

const { values: options } = parseArgs({
  options: { quick: { type: 'boolean' }, processes: { type: 'string' }, sample: { type: 'string' } },
})
const DEPTHS = [1, 16, 64]
const BLOCK = 4096
const SIZE = 256 * 1024 ** 2

const work = options.sample === undefined ? parent() : sample(options.sample)
work.catch((error: unknown) => {
  console.error(error)
  process.exitCode = 1
})

/** Makes the disks, takes samples in processes of their own, prints the table. */
async function parent(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'qcow2-bench-'))
  try {
    const raw = randomFillSync(Buffer.alloc(SIZE))
    writeFileSync(join(folder, 'disk.raw'), raw)
    await convert(join(folder, 'disk.raw'), join(folder, 'disk.qcow2'))
    const processes = Number(options.processes ?? (options.quick ? 2 : 5))
    const samples: Sample[] = []
    for (let index = 0; index < processes; index += 1) {
      const { stdout, stderr, status } = spawnSync(process.execPath, [...process.execArgv, __filename, '--sample', folder], { encoding: 'utf8' })
      if (status !== 0) throw new Error(stderr)
      samples.push(...(JSON.parse(stdout) as Sample[]))
    }
    console.log(report(samples))
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

function report(samples: readonly Sample[]): string {
  const rows = DEPTHS.map((depth) => {
    const of = (name: string) => samples.filter((one) => one.name === name && one.depth === depth)
    const [ours, node] = [of('qcow2'), of('FileHandle')]
    const ratio = spread(ours.map(({ rate }, index) => rate / (node[index]?.rate ?? Number.NaN)))
    const rate = (list: Sample[]) => `${(spread(list.map((one) => one.rate)).median / 1000).toFixed(0)}k`
    const cpu = (list: Sample[]) => spread(list.map((one) => one.cpu)).median.toFixed(1)
    return [`${depth}`, rate(ours), rate(node), ...[ratio.min, ratio.median, ratio.max].map((value) => value.toFixed(2)), cpu(ours), cpu(node)]
  })
  const head = ['4 KiB reads in flight', 'disk.read/s', 'FileHandle.read/s', 'times as fast: min', 'median', 'max', 'CPU µs', 'FileHandle CPU µs']
  return table(head, rows)
}

async function sample(folder: string): Promise<void> {
  const file = await openFile(join(folder, 'disk.raw'))
  const disk = await open(join(folder, 'disk.qcow2'))
  const ways: { name: string; read: Read }[] = [
    { name: 'qcow2', read: (buffer, position) => disk.read(buffer, { position }) },
    { name: 'FileHandle', read: (buffer, position) => file.read(buffer, 0, BLOCK, position) },
  ]
  await assertEqual(file, ways[0]?.read)
  const samples: Sample[] = []
  for (const depth of DEPTHS) for (const { name, read } of ways) samples.push({ name, depth, ...(await rateOf(read, depth)) })
  await disk.close()
  await file.close()
  console.log(JSON.stringify(samples))
}

/** Equal bytes first; this also warms the page cache and the tables. */
async function assertEqual(file: FileHandle, read: Read | undefined): Promise<void> {
  const [ours, theirs] = [new Uint8Array(1024 ** 2), Buffer.alloc(1024 ** 2)]
  for (let position = 0; position < SIZE; position += ours.length) {
    await read?.(ours, position)
    await file.read(theirs, 0, theirs.length, position)
    if (theirs.compare(ours) !== 0) throw new Error(`different bytes at ${position}`)
  }
}

/** One round is `depth` reads at once. */
function rateOf(read: Read, depth: number): Promise<{ rate: number; cpu: number }> {
  const buffers = Array.from({ length: depth }, () => new Uint8Array(BLOCK))
  const blocks = SIZE / BLOCK
  let rounds = 0
  const round = async () => {
    rounds += 1
    await Promise.all(buffers.map((buffer) => read(buffer, Math.floor(Math.random() * blocks) * BLOCK)))
  }
  return new Promise((resolve, reject) => {
    const before = process.cpuUsage()
    const bench = new Benchmark('reads', {
      defer: true,
      maxTime: options.quick ? 0.5 : 2,
      fn: (deferred: { resolve(): void }) => void round().then(() => deferred.resolve(), reject),
    })
    bench.on('complete', () => {
      const { user, system } = process.cpuUsage(before)
      resolve({ rate: bench.hz * depth, cpu: (user + system) / (rounds * depth) })
    })
    bench.on('error', () => reject(bench.error))
    bench.run({ async: true })
  })
}
