/**
 * What our command line costs above Node.js itself, and what the machine can do at most: the limits that the other tables are read against.
 *
 * node --require tsx/cjs benches/startup.ts [--quick]
 */
import { closeSync, copyFileSync, mkdtempSync, openSync, readSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type Measured, must } from './lib/process.js'
import { spread, table } from './lib/stats.js'

const { values: options } = parseArgs({ options: { quick: { type: 'boolean' } } })
const command = join(__dirname, '..', 'dist', 'cli', 'main.js')
const folder = mkdtempSync(join(process.env.QCOW2_BENCH_FOLDER ?? tmpdir(), 'qcow2-bench-'))

main().then(
  () => rmSync(folder, { recursive: true, force: true }),
  (error: unknown) => {
    rmSync(folder, { recursive: true, force: true })
    console.error(error)
    process.exitCode = 1
  },
)

async function main(): Promise<void> {
  const image = join(folder, 'small.qcow2')
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', image, '1G'])
  const rows: string[][] = []
  for (const args of [['--version'], ['info', image], ['map', image], ['check', image]]) rows.push(await above(args))
  console.log(table(['command', 'ms above bare Node: min', 'median', 'max', 'CPU ms above', 'qemu-img ms'], rows))
  console.log(`\n${await limits()}`)
}

/** Our command, bare Node.js and qemu-img in turn. */
async function above(args: string[]): Promise<string[]> {
  const [ours, node, qemu]: Measured[][] = [[], [], []]
  for (let count = 0; count < (options.quick ? 5 : 25); count += 1) {
    ours?.push(await must(process.execPath, [command, ...args]))
    node?.push(await must(process.execPath, ['-e', '0']))
    qemu?.push(await must('qemu-img', args))
  }
  const more = spread((ours ?? []).map(({ seconds }, index) => (seconds - (node?.[index]?.seconds ?? Number.NaN)) * 1000))
  const cpu = (list: Measured[] = []) => list.reduce((sum, one) => sum + one.cpu, 0) / list.length
  const numbers = [more.min, more.median, more.max, (cpu(ours) - cpu(node)) * 1000, spread((qemu ?? []).map(({ seconds }) => seconds * 1000)).median]
  return [`${args[0]}`, ...numbers.map((value) => value.toFixed(1))]
}

/** One thread of the kernel's own copying and reading, from the page cache. */
async function limits(): Promise<string> {
  const [from, to] = [join(folder, 'from'), join(folder, 'to')]
  const MiBs = options.quick ? 256 : 1024
  await must('dd', ['if=/dev/urandom', `of=${from}`, 'bs=1M', `count=${MiBs}`])
  const copies = Array.from({ length: 3 }, () => {
    rmSync(to, { force: true })
    const begin = performance.now()
    copyFileSync(from, to)
    return performance.now() - begin
  })
  const buffer = Buffer.alloc(1024 ** 2)
  const reads = Array.from({ length: 3 }, () => {
    const file = openSync(from, 'r')
    const begin = performance.now()
    for (let at = 0; at < statSync(from).size; at += buffer.length) readSync(file, buffer, 0, buffer.length, at)
    const time = performance.now() - begin
    closeSync(file)
    return time
  })
  const rate = (times: number[]) => ((MiBs * 1.048576) / spread(times).min).toFixed(1)
  return `One thread, page cache: copy_file_range ${rate(copies)} GB/s, pread of 1 MiB ${rate(reads)} GB/s.`
}
