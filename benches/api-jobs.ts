/**
 * What jobs cost whoever runs them in process: making an overlay, and how long the event loop is held up while a conversion runs.
 *
 * node --require tsx/cjs benches/api-jobs.ts [--quick] [--processes N]
 */
import { randomFillSync } from 'node:crypto'
import { rmSync, writeFileSync } from 'node:fs'
import { open as openFile } from 'node:fs/promises'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { convert, create } from 'qcow2'
import { must } from './lib/process.js'
import { bounds, quick } from './lib/samples.js'
import { spread } from './lib/stats.js'

const MiB = 1024 ** 2
const OVERLAYS = quick ? 50 : 300
/** How often the event loop is looked at, in milliseconds: the delay is what a look is late. */
const LOOK = 1

const CREATE = 'create an overlay, ms'
const DURABLE = 'create a durable overlay, ms'
const FSYNC = 'node:fs alone: write and fsync 256 KiB, ms'
const IDLE = 'event loop delay with nothing to do, p99 ms'
const delays = { plain: 'event loop delay while converting raw → qcow2, p99 ms', deflate: 'event loop delay while converting raw → qcow2 -c, p99 ms' }

bounds(__filename, { [CREATE]: 1, [delays.plain]: 5, [delays.deflate]: 5 }, prepare, sample)

async function prepare(folder: string): Promise<void> {
  const half = randomFillSync(Buffer.alloc((quick ? 128 : 512) * MiB))
  for (let at = 0; at < half.length; at += 8192) half.fill(`${at} `, at, at + 4096)
  writeFileSync(join(folder, 'disk.raw'), half)
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', join(folder, 'base.qcow2'), '20G'])
}

async function sample(folder: string): Promise<Record<string, number>> {
  const backing = { backing: 'base.qcow2', backingFormat: 'qcow2' } as const
  const overlay = (durable: boolean) => async (index: number) => {
    await create(join(folder, `overlay${index}`), { ...backing, durable })
  }
  const file = async (index: number) => {
    const path = join(folder, `overlay${index}`)
    const handle = await openFile(`${path}.new`, 'w')
    await handle.write(Buffer.alloc(4 * 65536))
    await handle.sync()
    await handle.close()
  }
  const all: Record<string, number> = {}
  all[CREATE] = await median(folder, OVERLAYS, overlay(false))
  all[DURABLE] = await median(folder, OVERLAYS / 5, overlay(true))
  all[FSYNC] = await median(folder, OVERLAYS / 5, file)
  all[IDLE] = await delay(() => new Promise((resolve) => setTimeout(resolve, 1000)))
  const target = join(folder, 'converted')
  const raw = join(folder, 'disk.raw')
  all[delays.plain] = await delay(() => convert(raw, target, { format: 'qcow2', overwrite: true }))
  all[delays.deflate] = await delay(() => convert(raw, target, { format: 'qcow2', compression: 'zlib', overwrite: true }))
  return all
}

/** The delay of the event loop, 99th percentile, while something is done. */
async function delay(work: () => PromiseLike<unknown>): Promise<number> {
  const looking = monitorEventLoopDelay({ resolution: LOOK })
  looking.enable()
  await work()
  looking.disable()
  return Math.max(0, looking.percentile(99) / 1e6 - LOOK)
}

async function median(folder: string, count: number, one: (index: number) => Promise<void>): Promise<number> {
  const times: number[] = []
  for (let index = 0; index < count; index += 1) {
    const begin = performance.now()
    await one(index)
    times.push(performance.now() - begin)
    rmSync(join(folder, `overlay${index}`), { force: true })
    rmSync(join(folder, `overlay${index}.new`), { force: true })
  }
  return spread(times).median
}
