/**
 * Reads of a deflate image through the API beside `qemu-img bench` with the same positions and as many under way.
 *
 * node --require tsx/cjs benches/api-compressed.ts [--quick] [--processes N] [--only TEXT]
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { open } from 'qcow2'
import { measure, must } from './lib/process.js'
import { benchmark, type Cost, cost, inTurn, type Measurement, quick, wanted } from './lib/samples.js'

const MiB = 1024 ** 2
const BLOCK = 4096
const CLUSTER = 65536
const SIZE = 64 * MiB
const HOT = 16 * MiB
const DEPTHS = [1, 16]

/** What `qemu-img bench` walks, and so do we: `count` positions, each `step` bytes after the last, around the end to the begin. */
interface Walk {
  name: string
  image: 'large' | 'hot'
  step: number
  count: number
  least: number
}

const WALKS: Walk[] = [
  { name: 'sequential 4 KiB', image: 'large', step: BLOCK, count: quick ? 2048 : 8192, least: 4 },
  { name: 'stride of 5 clusters', image: 'large', step: 5 * CLUSTER, count: quick ? 1000 : 4000, least: 1.7 },
  // Odd in blocks and about the golden section of the disk: every block once, and never one near the last.
  { name: 'random in 16 MiB, hot', image: 'hot', step: 2531 * BLOCK, count: quick ? 4096 : 8192, least: 20 },
]
const rowOf = ({ name }: Walk, depth: number) => `deflate: ${name}, ${depth} in flight`
const promised = Object.fromEntries(WALKS.flatMap((walk) => DEPTHS.map((depth) => [rowOf(walk, depth), walk.least])))

benchmark(__filename, ['qcow2', 'qemu-img bench'], promised, prepare, sample)

/** Text and programs of this package's own dependencies, compressed by qemu-img. */
async function prepare(folder: string): Promise<void> {
  const raw = Buffer.concat(filesOf(join(__dirname, '..', 'node_modules'), SIZE))
  for (const [name, size] of [
    ['large', SIZE],
    ['hot', HOT],
  ] as const) {
    if (raw.length < size) throw new Error(`only ${raw.length} bytes of files were found`)
    const at = (ending: string) => join(folder, `${name}.${ending}`)
    writeFileSync(at('raw'), raw.subarray(0, size))
    await must('qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow2', '-m', '8', '-W', at('raw'), at('qcow2')])
  }
}

function filesOf(folder: string, most: number): Buffer[] {
  const parts: Buffer[] = []
  let left = most
  for (const entry of readdirSync(folder, { withFileTypes: true, recursive: true })) {
    if (left <= 0) break
    if (!entry.isFile() || entry.name.endsWith('.map')) continue
    const bytes = readFileSync(join(entry.parentPath, entry.name)).subarray(0, left)
    parts.push(bytes)
    left -= bytes.length
  }
  return parts
}

async function sample(folder: string): Promise<Measurement[]> {
  const all: Measurement[] = []
  for (const walk of WALKS)
    for (const depth of DEPTHS) {
      const row = rowOf(walk, depth)
      const [image, raw] = ['qcow2', 'raw'].map((ending) => join(folder, `${walk.image}.${ending}`)) as [string, string]
      if (!wanted(row)) continue
      await assertEqual(image, readFileSync(raw))
      all.push({
        row,
        ...(await inTurn(
          quick ? 3 : 4,
          () => ours(image, walk, depth),
          () => theirs(image, walk, depth),
        )),
      })
    }
  return all
}

/** Each time a disk that was just opened, as the rival has it. Of the hot row the disk was read before: that is what hot means. */
async function ours(image: string, walk: Walk, depth: number): Promise<Cost> {
  const disk = await open(image)
  const size = disk.virtualSize as number
  const buffers = Array.from({ length: depth }, () => Buffer.alloc(BLOCK))
  const read = (turn: number, lane: number) => disk.read(buffers[lane] as Buffer, 0, BLOCK, (turn * walk.step) % size)
  if (walk.image === 'hot') await cost(size / BLOCK, depth, read)
  const measured = await cost(walk.count, depth, read)
  await disk.close()
  return measured
}

/** The seconds that it reports itself: neither its start nor its opening of the image. */
async function theirs(image: string, walk: Walk, depth: number): Promise<Cost> {
  const words = ['bench', '-f', 'qcow2', '-c', `${walk.count}`, '-d', `${depth}`, '-s', `${BLOCK}`, '-S', `${walk.step}`, image]
  const { stdout, stderr, code, cpu } = await measure('qemu-img', words)
  const seconds = Number(/completed in ([\d.]+) seconds/.exec(stdout)?.[1])
  if (code !== 0 || !(seconds > 0)) throw new Error(`${stdout}${stderr}`)
  return { rate: walk.count / seconds, cpu: (cpu * 1e6) / walk.count }
}

async function assertEqual(image: string, raw: Buffer): Promise<void> {
  const disk = await open(image)
  const bytes = Buffer.alloc(raw.length)
  await disk.read(bytes, { position: 0 })
  await disk.close()
  if (!bytes.equals(raw)) throw new Error(`${image}: different bytes`)
}
