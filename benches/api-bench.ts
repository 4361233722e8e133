/**
 * `bench` beside `qemu-img bench` with the same requests, and beside the same requests made by hand: a harness must not cost what it measures.
 *
 * node --require tsx/cjs benches/api-bench.ts [--quick] [--processes N] [--only TEXT]
 */
import { randomFillSync } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { bench, open } from 'qcow2'
import { measure, must } from './lib/process.js'
import { benchmark, type Cost, cost, inTurn, type Measurement, quick, wanted } from './lib/samples.js'

const MiB = 1024 ** 2
const BLOCK = 4096
const SIZE = 512 * MiB
/** What qemu-img bench does unless told otherwise. */
const DEPTH = 64
const COUNT = quick ? 75_000 : 300_000
/** Writes go to the device in the end. */
const WRITES = COUNT / 4

const READS = `bench: 4 KiB reads, ${DEPTH} in flight, beside qemu-img bench`
const WRITTEN = `bench -w: 4 KiB writes in place, ${DEPTH} in flight, beside qemu-img bench -w`
const BY_HAND = `bench: 4 KiB reads, ${DEPTH} in flight, beside the same by disk.read`
const WRITTEN_BY_HAND = `bench -w: 4 KiB writes in place, ${DEPTH} in flight, beside the same by disk.write`

benchmark(__filename, ['qcow2', 'the other'], { [READS]: 3, [BY_HAND]: 0.9, [WRITTEN_BY_HAND]: 0.9 }, prepare, sample)

async function prepare(folder: string): Promise<void> {
  const raw = Buffer.alloc(SIZE)
  for (let at = 0; at < SIZE; at += MiB) randomFillSync(raw, at, MiB)
  writeFileSync(join(folder, 'disk.raw'), raw)
  await must('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', join(folder, 'disk.raw'), join(folder, 'disk.qcow2')])
}

async function sample(folder: string): Promise<Measurement[]> {
  const path = join(folder, 'disk.qcow2')
  const rows: [string, () => Promise<Cost>, () => Promise<Cost>][] = [
    [READS, () => ours(path, false), () => theirs(path, false)],
    [WRITTEN, () => ours(path, true), () => theirs(path, true)],
    [BY_HAND, () => ours(path, false), () => byHand(path, false)],
    [WRITTEN_BY_HAND, () => ours(path, true), () => byHand(path, true)],
  ]
  const all: Measurement[] = []
  for (const [row, one, other] of rows) if (wanted(row)) all.push({ row, ...(await inTurn(quick ? 3 : 5, one, other)) })
  return all
}

async function ours(path: string, write: boolean): Promise<Cost> {
  const cpu = process.cpuUsage()
  const { requests, requestsPerSecond } = await bench(path, { count: write ? WRITES : COUNT, depth: DEPTH, size: BLOCK, write })
  const { user, system } = process.cpuUsage(cpu)
  return { rate: requestsPerSecond, cpu: (user + system) / requests }
}

/** The seconds that it reports itself, as ours are. */
async function theirs(path: string, write: boolean): Promise<Cost> {
  const count = write ? WRITES : COUNT
  const words = ['bench', '-f', 'qcow2', '-c', `${count}`, '-d', `${DEPTH}`, '-s', `${BLOCK}`, ...(write ? ['-w'] : []), path]
  const { stdout, stderr, code, cpu } = await measure('qemu-img', words)
  const seconds = Number(/completed in ([\d.]+) seconds/.exec(stdout)?.[1])
  if (code !== 0 || !(seconds > 0)) throw new Error(`${stdout}${stderr}`)
  return { rate: count / seconds, cpu: (cpu * 1e6) / count }
}

async function byHand(path: string, write: boolean): Promise<Cost> {
  const disk = await open(path, { writable: write })
  const buffers = Array.from({ length: DEPTH }, () => Buffer.alloc(BLOCK))
  const position = (turn: number) => (turn * BLOCK) % SIZE
  const measured = await cost(write ? WRITES : COUNT, DEPTH, (turn, lane) => {
    const buffer = buffers[lane] as Buffer
    return write ? disk.write(buffer, 0, BLOCK, position(turn)) : disk.read(buffer, 0, BLOCK, position(turn))
  })
  await disk.close()
  return measured
}
