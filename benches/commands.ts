/**
 * Whole commands beside qemu-img: the same work, equal output checked first, then pairs of runs in alternating order.
 *
 * node --require tsx/cjs benches/commands.ts [--quick] [--pairs N] [--only TEXT]
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type Images, makeImages } from './lib/images.js'
import { metadataTasks } from './lib/metadata.js'
import { bareNode, HEAD, row, type Task } from './lib/pairs.js'
import { type Measured, measure, must } from './lib/process.js'
import { table } from './lib/stats.js'

const { values: options } = parseArgs({ options: { quick: { type: 'boolean' }, pairs: { type: 'string' }, only: { type: 'string' } } })
const pairs = Number(options.pairs ?? (options.quick ? 3 : 5))
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
  const images = await makeImages(folder, options.quick === true)
  console.log(`${images.text}\n`)
  const node = await bareNode()
  const rows: string[][] = []
  const all = [...tasks(images), ...(await metadataTasks(folder, options.quick === true))]
  for (const task of all) if (task.name.includes(options.only ?? '')) rows.push(await row(task, pairs, node))
  console.log(table(HEAD, rows))
}

/** qemu-img gets what makes it fastest: writes out of order, and the best of 4, 8 and 16 coroutines. Neither side syncs at the end. */
function tasks(images: Images): Task[] {
  const fast = ['4', '8', '16'].map((count) => ['-W', '-m', count])
  const convert = (name: string, promised: number, [format, path]: [string, string], to: string, extra: string[] = []): Task => {
    const outputs: [string, string] = [join(folder, `ours.${to}`), join(folder, `qemu.${to}`)]
    const args = ['-f', format, '-O', to, ...extra, path]
    return {
      name,
      promised,
      ours: ['convert', ...args, outputs[0]],
      qemu: fast.map((flags) => ['convert', ...flags, ...args, outputs[1]]),
      outputs,
      equal: () => sameBytes(to, outputs),
    }
  }
  const look = (name: string, promised: number, args: string[], equal: Task['equal'] = sameText): Task => ({
    name,
    promised,
    ours: args,
    qemu: [args],
    equal,
  })
  /** Digests beside what there is without them: the raw disk's hash by the system's own program, behind a conversion if there is none. */
  const digest = (name: string, promised: number, flags: string[], [format, path]: [string, string]): Task => {
    const made = join(folder, 'hashed.raw')
    const script = format === 'raw' ? 'sha256sum "$1"' : 'qemu-img convert -W -m 16 -O raw "$1" "$2" && sha256sum "$2" && rm "$2"'
    return {
      name,
      promised,
      ours: ['digest', ...flags, '-f', format, path],
      rival: 'sh',
      qemu: [['-c', script, 'sh', path, made]],
      equal: async (ours) => {
        const whole = await measure(process.execPath, [join(__dirname, '..', 'dist', 'cli', 'main.js'), 'digest', ...flags, '-f', 'raw', images.raw])
        if (whole.code !== 0 || whole.stdout.split(' ')[0] !== ours.stdout.split(' ')[0])
          throw new Error(`different digests:\n${ours.stdout}${whole.stdout}`)
      },
    }
  }
  const raw: [string, string] = ['raw', images.raw]
  const deflate = convert('raw → qcow2 -c', 4.5, raw, 'qcow2', ['-c'])
  const without = { name: 'raw → qcow2 -c, qemu-img without -W', promised: 8, qemu: [['convert', ...(deflate.qemu[0] ?? []).slice(4)]] }
  const zstd = convert('raw → qcow2 -c zstd', 2, raw, 'qcow2', ['-c', '-o', 'compression_type=zstd'])
  return [
    { ...deflate, noLarger: true, pairs: Math.min(pairs, 3) },
    { ...deflate, ...without, noLarger: true, pairs: Math.min(pairs, 3) },
    { ...zstd, noLarger: true },
    convert('qcow2 (deflate) → raw', 2.5, ['qcow2', images.zlib], 'raw'),
    convert('qcow2 (zstd) → raw', 1.8, ['qcow2', images.zstd], 'raw'),
    convert('raw → qcow2', 1, raw, 'qcow2'),
    convert('qcow2 → raw', 0.9, ['qcow2', images.plain], 'raw'),
    convert('chain of 64 → raw', 1.3, ['qcow2', images.chain], 'raw'),
    look('map --output=json, large', 15, ['map', '--output=json', '-f', 'qcow2', images.huge], sameJson),
    look('check --output=json, large', 12, ['check', '--output=json', '-f', 'qcow2', images.huge], sameJson),
    look('bench, 300000 reads of 4 KiB', 3, ['bench', '-f', 'qcow2', '-c', '300000', images.plain], sameRun),
    look('compare raw, qcow2', 1.5, ['compare', '-f', 'raw', '-F', 'qcow2', images.raw, images.plain]),
    look('compare raw, qcow2 (deflate)', 4, ['compare', '-f', 'raw', '-F', 'qcow2', images.raw, images.zlib]),
    digest('digest raw (qemu-img: sha256sum)', 4, [], raw),
    digest('digest -a sha256 raw (sha256sum)', 3, ['-a', 'sha256'], raw),
    digest('digest qcow2 (convert, sha256sum)', 6, [], ['qcow2', images.plain]),
    digest('digest qcow2, deflate (convert, sha256sum)', 5, [], ['qcow2', images.zlib]),
  ]
}

async function sameBytes(format: string, [ours, qemu]: [string, string]): Promise<void> {
  await must('qemu-img', ['compare', '-f', format, '-F', format, ours, qemu])
}

/** All but how long it took. */
async function sameRun(ours: Measured, qemu: Measured): Promise<void> {
  const normal = ({ stdout }: Measured) => stdout.replace(/[\d.]+ seconds/, 'N seconds')
  if (normal(ours) !== normal(qemu)) throw new Error(`different output:\n${ours.stdout}---\n${qemu.stdout}`)
}

async function sameText(ours: Measured, qemu: Measured): Promise<void> {
  if (ours.stdout !== qemu.stdout) throw new Error(`different output:\n${ours.stdout.slice(0, 2000)}\n---\n${qemu.stdout.slice(0, 2000)}`)
}

async function sameJson(ours: Measured, qemu: Measured): Promise<void> {
  const normal = ({ stdout }: Measured) => JSON.stringify(JSON.parse(stdout))
  if (normal(ours) !== normal(qemu)) throw new Error(`different JSON:\n${ours.stdout.slice(0, 2000)}\n---\n${qemu.stdout.slice(0, 2000)}`)
}
