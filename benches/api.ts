/**
 * Reads through the API beside `FileHandle.read` of the raw disk with the same bytes, and a chain of 64 layers beside one image, all from the
 * page cache.
 *
 * node --require tsx/cjs benches/api.ts [--quick] [--processes N] [--only TEXT]
 */
import { randomFillSync } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { open as openFile } from 'node:fs/promises'
import { join } from 'node:path'
import { convert, type Disk, open } from 'qcow2'
import { must } from './lib/process.js'
import { benchmark, type Cost, cost, inTurn, type Measurement, quick, wanted } from './lib/samples.js'

const MiB = 1024 ** 2
const BLOCK = 4096
const SIZE = 256 * MiB
const LAYERS = 64

const RANDOM = { 1: 4, 16: 2.5, 64: 2 }
const SEQUENTIAL = { 1: 0.95, 4: 0.85 }
const rowOf = { random: (depth: string) => `4 KiB random, ${depth} in flight`, sequential: (depth: string) => `1 MiB sequential, ${depth} in flight` }
const CHAIN = (depth: string) => `chain of 64 beside 1: 4 KiB random, ${depth} in flight`
const promised = {
  ...Object.fromEntries(Object.entries(RANDOM).map(([depth, least]) => [rowOf.random(depth), least])),
  ...Object.fromEntries(Object.entries(SEQUENTIAL).map(([depth, least]) => [rowOf.sequential(depth), least])),
  ...Object.fromEntries(['1', '16'].map((depth) => [CHAIN(depth), 0.9])),
}

benchmark(__filename, ['qcow2', 'FileHandle'], promised, prepare, sample)

/** A raw disk of random bytes, an image of it, and a chain of 64 layers that reads the same: each overlay has a 64th of it. */
async function prepare(folder: string): Promise<void> {
  const at = (name: string) => join(folder, name)
  const raw = randomFillSync(Buffer.alloc(SIZE))
  writeFileSync(at('disk.raw'), raw)
  await convert(at('disk.raw'), at('disk.qcow2'))
  await convert(at('disk.raw'), at('layer0.qcow2'))
  for (let layer = 1; layer < LAYERS; layer += 1) {
    await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', at(`layer${layer - 1}.qcow2`), '-F', 'qcow2', at(`layer${layer}.qcow2`)])
    const writes: string[] = []
    for (let index = 0; index < 16; index += 1) {
      const place = ((index * LAYERS + layer) * SIZE) / (16 * LAYERS)
      writeFileSync(at(`piece${index}`), raw.subarray(place, place + 4 * 65536))
      writes.push('-c', `write -q -s ${at(`piece${index}`)} ${place} ${4 * 65536}`)
    }
    await must('qemu-io', ['-f', 'qcow2', ...writes, at(`layer${layer}.qcow2`)])
  }
}

type Read = (buffer: Uint8Array, position: number) => Promise<unknown>

async function sample(folder: string): Promise<Measurement[]> {
  const file = await openFile(join(folder, 'disk.raw'))
  const [disk, chain] = [await open(join(folder, 'disk.qcow2')), await open(join(folder, `layer${LAYERS - 1}.qcow2`))]
  const raw = readFileSync(join(folder, 'disk.raw'))
  await assertEqual(disk, raw)
  await assertEqual(chain, raw)
  const all: Measurement[] = []
  for (const depth of Object.keys(RANDOM)) {
    const ours = (length: number) => random(length, depth, (buffer, position) => disk.read(buffer, 0, BLOCK, position))
    const theirs = (length: number) => random(length, depth, (buffer, position) => file.read(buffer, 0, BLOCK, position))
    await add(
      rowOf.random(depth),
      () => ours(200_000),
      () => theirs(40_000),
    )
  }
  for (const depth of Object.keys(SEQUENTIAL)) {
    await add(
      rowOf.sequential(depth),
      () => sequential(depth, disk),
      () => sequential(depth, file),
    )
  }
  for (const depth of ['1', '16']) {
    const of = (disk: Disk) => () => random(200_000, depth, (buffer, position) => disk.read(buffer, 0, BLOCK, position))
    await add(CHAIN(depth), of(chain), of(disk))
  }
  for (const one of [disk, chain, file]) await one.close()
  return all

  async function add(row: string, ours: () => Promise<Cost>, theirs: () => Promise<Cost>): Promise<void> {
    if (wanted(row)) all.push({ row, ...(await inTurn(quick ? 3 : 6, ours, theirs)) })
  }
}

/** Equal bytes first; this also warms the page cache and what is known of the map. */
async function assertEqual(disk: Disk, raw: Buffer): Promise<void> {
  const bytes = Buffer.alloc(MiB)
  for (let position = 0; position < SIZE; position += bytes.length) {
    await disk.read(bytes, { position })
    if (bytes.compare(raw, position, position + bytes.length) !== 0) throw new Error(`different bytes at ${position}`)
  }
}

function random(count: number, depth: string, read: Read): Promise<Cost> {
  const buffers = Array.from({ length: Number(depth) }, () => new Uint8Array(BLOCK))
  return cost(count, Number(depth), (_, lane) => read(buffers[lane] as Uint8Array, Math.floor(Math.random() * (SIZE / BLOCK)) * BLOCK))
}

function sequential(
  depth: string,
  from: { read(buffer: Buffer, offset: number, length: number, position: number): Promise<unknown> },
): Promise<Cost> {
  const buffers = Array.from({ length: Number(depth) }, () => Buffer.alloc(MiB))
  return cost(2000, Number(depth), (turn, lane) => from.read(buffers[lane] as Buffer, 0, MiB, (turn * MiB) % SIZE))
}
