/** Images of every kind that can be written, and a busy writer that keeps the flat byte model beside the disk. */
import { readFileSync } from 'node:fs'
import { rename } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { Disk, OpenOptions } from '../../js/index.js'
import { describeDifference, Model, tagged } from './model.js'
import { Prng } from './prng.js'
import { qemu, temporaryFolder } from './qemu.js'

const SIZE = 4 << 20

/** An image to write to, and what it holds. */
export interface Subject {
  path: string
  model: Model
  options: OpenOptions
  format: 'qcow2' | 'raw'
  clusterSize: number
}

/** How an image is made. `o` are options of qemu-img. */
interface Kind {
  o?: string[]
  format?: 'raw'
  backed?: boolean
  compressed?: boolean
  shared?: boolean
  zeroed?: boolean
}

/** Every kind of image that the writer must know. */
export const KINDS: Record<string, Kind> = {
  plain: {},
  'clusters of 512 bytes': { o: ['cluster_size=512'] },
  'clusters of 2 MiB': { o: ['cluster_size=2M'] },
  'version 2': { o: ['compat=0.10'] },
  'refcounts of 1 bit': { o: ['refcount_bits=1', 'cluster_size=4k'] },
  'refcounts of 64 bits': { o: ['refcount_bits=64', 'cluster_size=1k'] },
  'lazy refcounts': { o: ['lazy_refcounts=on', 'cluster_size=4k'] },
  subclusters: { o: ['extended_l2=on'] },
  'subclusters over a backing file': { o: ['extended_l2=on', 'cluster_size=32k'], backed: true },
  'over a backing file': { backed: true },
  'compressed clusters': { compressed: true },
  'clusters shared with a snapshot': { shared: true },
  'zero clusters': { zeroed: true, o: ['cluster_size=4k'] },
  preallocated: { o: ['preallocation=metadata', 'cluster_size=8k'] },
  'a data file': { o: ['data_file=data', 'cluster_size=16k'] },
  'a raw data file': { o: ['data_file=data', 'data_file_raw=on'] },
  raw: { format: 'raw' },
}

/** Makes an image of a kind. */
export async function subject(kind: Kind): Promise<Subject> {
  const folder = temporaryFolder()
  const path = join(folder, 'disk.img')
  const model = new Model(SIZE)
  const o = (kind.o ?? []).map((word) => word.replace('data_file=data', `data_file=${join(folder, 'data.raw')}`))
  const cluster = /cluster_size=(\d+)([kM]?)/.exec(o.join(','))
  const unit = { '': 1, k: 1024, M: 1 << 20 }[cluster?.[2] ?? '']
  const clusterSize = cluster === null || unit === undefined ? 65536 : Number(cluster[1]) * unit
  const format = kind.format ?? 'qcow2'
  const fill = async (image: string): Promise<void> => {
    for (const [offset, length, byte] of [
      [0, 200_000, 1],
      [SIZE / 2, 300_000, 2],
      [SIZE - 70_000, 70_000, 3],
    ] as const) {
      await qemu.io(image, [`write -P ${byte} ${offset} ${length}`], { format })
      model.write(offset, Buffer.alloc(length, byte))
    }
  }
  if (kind.backed) {
    await qemu.create(join(folder, 'base.img'), { size: SIZE, o: ['cluster_size=8k'] })
    await fill(join(folder, 'base.img'))
    await qemu.create(path, { backing: 'base.img', o, cwd: folder })
  } else {
    await qemu.create(path, { size: SIZE, o, format })
    await fill(path)
  }
  if (kind.compressed) {
    await qemu.img('convert', '-q', '-c', '-O', 'qcow2', path, `${path}.c`)
    await rename(`${path}.c`, path)
  }
  if (kind.shared) await qemu.img('snapshot', '-c', 'before', path)
  if (kind.zeroed) {
    await qemu.io(path, ['write -z 100k 50k', 'write -z -u 2100k 20k'])
    model.zero(100 << 10, 50 << 10)
    model.zero(2100 << 10, 20 << 10)
  }
  const options: OpenOptions = { format, writable: true, dataFile: o.some((word) => word.startsWith('data_file=')) }
  return { path, model, options, format, clusterSize }
}

/** Requests that do not touch each other, `width` at a time, until `rounds` are over; every change is told to the model. */
export async function busy(
  disk: Disk<number>,
  { model, clusterSize }: Pick<Subject, 'model' | 'clusterSize'>,
  seed: number,
  rounds: number,
): Promise<void> {
  const prng = new Prng(seed)
  const width = 16
  for (let round = 0; round < rounds; round++) {
    const stripe = Math.floor(disk.virtualSize / width)
    const requests: Promise<unknown>[] = []
    for (let lane = 0; lane < width; lane++) {
      const begin = lane * stripe
      const length = 1 + prng.int(prng.chance(0.2) ? stripe : Math.min(20_000, stripe))
      const position = begin + prng.int(stripe - length + 1)
      const choice = prng.int(8)
      if (choice < 5) {
        const bytes = tagged(position, length)
        requests.push(disk.write(bytes, { position }))
        model.write(position, bytes)
      } else if (choice < 7) {
        requests.push(disk.writeZeroes(position, length, { unmap: choice === 5 }))
        model.zero(position, length)
      } else {
        // Whole clusters, which read as zeros then; what a discard does to a part of one is its own affair.
        const from = Math.ceil(position / clusterSize) * clusterSize
        const to = Math.floor((position + length) / clusterSize) * clusterSize
        if (to <= from) continue
        requests.push(disk.discard(from, to - from))
        model.zero(from, to - from)
      }
    }
    if (prng.chance(0.3)) requests.push(disk.flush())
    await Promise.all(requests)
  }
}

/** How a disk differs from the model; `'equal'` if it does not. */
export async function differs(disk: Disk<number>, model: Model): Promise<string> {
  const { buffer } = await disk.read(Buffer.alloc(disk.virtualSize), { position: 0 })
  return describeDifference(buffer, model.read(0, model.size))
}

/** The same for what QEMU reads in an image. */
export async function differsForQemu(path: string, model: Model, format = 'qcow2'): Promise<string> {
  const raw = join(dirname(path), 'qemu.raw')
  await qemu.raw(path, raw, ['-f', format])
  return describeDifference(readFileSync(raw), model.read(0, model.size))
}
