/**
 * Writes through the API beside `FileHandle.write` to a raw file and beside QEMU, a chain of 64 layers beside one, and snapshots
 * beside `qemu-img snapshot`.
 *
 * node --require tsx/cjs benches/api-write.ts [--quick] [--processes N] [--only TEXT]
 */
import { spawn } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import { once } from 'node:events'
import { copyFileSync, existsSync, rmSync, writeFileSync } from 'node:fs'
import { open as openFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { create, open } from 'qcow2'
import { must } from './lib/process.js'
import { benchmark, type Cost, cost, inTurn, type Measurement, quick, wanted } from './lib/samples.js'

const MiB = 1024 ** 2
const BLOCK = 4096
const CLUSTER = 65536
const SIZE = 256 * MiB
const LAYERS = 64
const METADATA = quick ? '16G' : '64G'

const RANDOM = { 1: 1.3, 16: 1.5 }
const random = (depth: string) => `4 KiB random writes in place, ${depth} in flight, beside FileHandle`
const ALLOCATING = '64 KiB writes that allocate, beside FileHandle'
const STEPS = '4 KiB writes in steps of 68 KiB, 16 in flight, beside'
const NBD = `${STEPS} qemu-nbd`
const DIRECT = `${STEPS} qemu-img bench -w in its own process`
const CHAIN = 'chain of 64 beside 1: 4 KiB random writes that copy, 16 in flight'
const SNAPSHOT = { create: `snapshot create, ${METADATA} of metadata`, apply: 'snapshot apply', delete: 'snapshot delete' }
const promised = {
  ...Object.fromEntries(Object.entries(RANDOM).map(([depth, least]) => [random(depth), least])),
  [ALLOCATING]: 0.8,
  [NBD]: 2,
  [CHAIN]: 0.9,
  [SNAPSHOT.create]: 5,
  [SNAPSHOT.apply]: 5,
  [SNAPSHOT.delete]: 5,
}

benchmark(__filename, ['qcow2', 'the other'], promised, prepare, sample)

async function prepare(folder: string): Promise<void> {
  const at = (name: string) => join(folder, name)
  writeFileSync(at('disk.raw'), randomFillSync(Buffer.alloc(SIZE)))
  await must('qemu-img', ['convert', '-O', 'qcow2', at('disk.raw'), at('disk.qcow2')])
  await must('qemu-img', ['convert', '-O', 'qcow2', at('disk.raw'), at('layer0.qcow2')])
  for (let layer = 1; layer < LAYERS; layer += 1) {
    await create(at(`layer${layer}.qcow2`), { backing: `layer${layer - 1}.qcow2`, backingFormat: 'qcow2' })
  }
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata', at('large.qcow2'), METADATA])
}

async function sample(folder: string): Promise<Measurement[]> {
  const at = (name: string) => join(folder, name)
  const all: Measurement[] = []
  await inPlace()
  await allocating()
  await besideQemu()
  await copying()
  await snapshots()
  return all

  async function add(row: string, turns: number, ours: () => Promise<Cost>, theirs: () => Promise<Cost>): Promise<void> {
    if (wanted(row)) all.push({ row, ...(await inTurn(quick ? 2 : turns, ours, theirs)) })
  }

  async function inPlace(): Promise<void> {
    const disk = await open(at('disk.qcow2'), { writable: true })
    const file = await openFile(at('disk.raw'), 'r+')
    for (const depth of Object.keys(RANDOM)) {
      const ours = () => scattered(60_000, depth, (buffer, position) => disk.write(buffer, 0, BLOCK, position))
      const theirs = () => scattered(30_000, depth, (buffer, position) => file.write(buffer, 0, BLOCK, position))
      await add(random(depth), 6, ours, theirs)
    }
    await disk.close()
    await file.close()
  }

  async function allocating(): Promise<void> {
    const bytes = randomFillSync(Buffer.alloc(CLUSTER))
    const count = SIZE / CLUSTER
    const ours = async () => {
      await create(at('fresh.qcow2'), { size: SIZE, overwrite: true })
      const disk = await open(at('fresh.qcow2'), { writable: true })
      const taken = await cost(count, 1, (turn) => disk.write(bytes, 0, CLUSTER, turn * CLUSTER))
      await disk.close()
      return taken
    }
    const theirs = async () => {
      rmSync(at('fresh.raw'), { force: true })
      const file = await openFile(at('fresh.raw'), 'w+')
      const taken = await cost(count, 1, (turn) => file.write(bytes, 0, CLUSTER, turn * CLUSTER))
      await file.sync()
      await file.close()
      return taken
    }
    await add(ALLOCATING, 6, ours, theirs)
  }

  /** The same requests: each 64 KiB + 4 KiB behind the one before, all to clusters that are allocated. */
  async function besideQemu(): Promise<void> {
    const count = 50_000
    const step = CLUSTER + BLOCK
    const ours = async () => {
      const disk = await open(at('disk.qcow2'), { writable: true })
      const buffers = Array.from({ length: 16 }, () => Buffer.alloc(BLOCK, 7))
      const taken = await cost(count, 16, (turn, lane) => disk.write(buffers[lane] as Buffer, 0, BLOCK, ((turn * step) % (SIZE - BLOCK)) & ~511))
      await disk.close()
      return taken
    }
    const bench = async (format: string, target: string) => {
      const args = ['bench', '-w', '-t', 'writeback', '-f', format, '-c', `${count}`, '-d', '16', '-s', `${BLOCK}`, '-S', `${step}`, target]
      const seconds = /Run completed in ([\d.]+) seconds/.exec((await must('qemu-img', args)).stdout)?.[1]
      return { rate: count / Number(seconds), cpu: Number.NaN }
    }
    const served = async () => {
      const socket = at('nbd.sock')
      const server = spawn('qemu-nbd', ['-f', 'qcow2', '--cache=writeback', '-k', socket, at('disk.qcow2')], { stdio: 'ignore' })
      const ended = once(server, 'exit')
      while (!existsSync(socket)) await setTimeout(10)
      const taken = await bench('raw', `nbd+unix:///?socket=${socket}`)
      server.kill()
      await ended
      return taken
    }
    await add(NBD, 4, ours, served)
    await add(DIRECT, 4, ours, () => bench('qcow2', at('disk.qcow2')))
  }

  async function copying(): Promise<void> {
    const overlay = (below: number) => async () => {
      await create(at('top.qcow2'), { backing: `layer${below}.qcow2`, backingFormat: 'qcow2', overwrite: true })
      const disk = await open(at('top.qcow2'), { writable: true })
      const taken = await scattered(3000, '16', (buffer, position) => disk.write(buffer, 0, BLOCK, position))
      await disk.close()
      return taken
    }
    await add(CHAIN, 6, overlay(LAYERS - 2), overlay(0))
  }

  async function snapshots(): Promise<void> {
    const times = { ours: {} as Record<string, Cost>, theirs: {} as Record<string, Cost> }
    if (!Object.values(SNAPSHOT).some(wanted)) return
    copyFileSync(at('large.qcow2'), at('ours.qcow2'))
    copyFileSync(at('large.qcow2'), at('theirs.qcow2'))
    const disk = await open(at('ours.qcow2'), { writable: true })
    times.ours.create = await cost(1, 1, () => disk.snapshots.create('one'))
    times.ours.apply = await cost(1, 1, () => disk.snapshots.apply('one'))
    times.ours.delete = await cost(1, 1, () => disk.snapshots.delete('one'))
    await disk.close()
    times.theirs.create = await cost(1, 1, () => must('qemu-img', ['snapshot', '-c', 'one', at('theirs.qcow2')]))
    times.theirs.apply = await cost(1, 1, () => must('qemu-img', ['snapshot', '-a', 'one', at('theirs.qcow2')]))
    times.theirs.delete = await cost(1, 1, () => must('qemu-img', ['snapshot', '-d', 'one', at('theirs.qcow2')]))
    for (const name of ['create', 'apply', 'delete'] as const) {
      const [ours, theirs] = [times.ours[name], times.theirs[name]]
      if (ours && theirs && wanted(SNAPSHOT[name])) all.push({ row: SNAPSHOT[name], ours, theirs })
    }
    for (const name of ['ours.qcow2', 'theirs.qcow2']) {
      await must('qemu-img', ['check', '-q', at(name)])
      rmSync(at(name))
    }
  }
}

type Write = (buffer: Uint8Array, position: number) => Promise<unknown>

function scattered(count: number, depth: string, write: Write): Promise<Cost> {
  const buffers = Array.from({ length: Number(depth) }, () => randomFillSync(Buffer.alloc(BLOCK)))
  return cost(count, Number(depth), (_, lane) => write(buffers[lane] as Buffer, Math.floor(Math.random() * (SIZE / BLOCK)) * BLOCK))
}
