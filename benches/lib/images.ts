/**
 * What the command benchmarks work on: a disk with a file system full of real files, and images of it, all made by qemu-img.
 */
import { closeSync, openSync, readSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { makeDisk } from '../../scripts/lib/disk.mjs'
import { must } from './process.js'

const MiB = 1024 ** 2
const GiB = 1024 ** 3

/** Where each image is, by what it holds. */
export interface Images {
  raw: string
  plain: string
  zlib: string
  zstd: string
  /** The top of 64 layers. */
  chain: string
  /** 4 TiB with preallocated metadata; with `quick`, 256 GiB. */
  huge: string
  /** What was made, in a sentence. */
  text: string
}

/** Makes all of them in `folder`. `quick`: a small disk of this package's own dependencies. */
export async function makeImages(folder: string, quick: boolean): Promise<Images> {
  const at = (name: string) => join(folder, name)
  const full = { folder: process.env.QCOW2_BENCH_SOURCE ?? '/usr', most: 1.2 * GiB, size: 2 * GiB }
  const made = await makeDisk(at('disk.raw'), quick ? { folder: join(__dirname, '..', '..', 'node_modules') } : full)
  const convert = (name: string, ...flags: string[]) =>
    must('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', '-m', '16', '-W', ...flags, at('disk.raw'), at(name)])
  await convert('plain.qcow2')
  await convert('zlib.qcow2', '-c')
  await convert('zstd.qcow2', '-c', '-o', 'compression_type=zstd')
  const size = quick ? '256G' : '4T'
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata', at('huge.qcow2'), size])
  await makeChain(folder)
  // What is still to be written back would disturb the first rows.
  await must('sync', [])
  const MiBs = (bytes: number) => `${Math.round(bytes / MiB)} MiB`
  return {
    raw: at('disk.raw'),
    plain: at('plain.qcow2'),
    zlib: at('zlib.qcow2'),
    zstd: at('zstd.qcow2'),
    chain: at('layer63.qcow2'),
    huge: at('huge.qcow2'),
    text: `Source: ${made.kind}, ${made.files} files, ${MiBs(made.bytes)}, on a disk of ${MiBs(statSync(at('disk.raw')).size)}. The large image has ${size}B.`,
  }
}

/** 64 layers: the disk at the bottom, and in each overlay the disk's own bytes again at 16 places, so that the whole reads as the disk does. */
async function makeChain(folder: string): Promise<void> {
  const at = (name: string) => join(folder, name)
  await must('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', at('disk.raw'), at('layer0.qcow2')])
  const disk = openSync(at('disk.raw'), 'r')
  const { size } = statSync(at('disk.raw'))
  const [pieces, piece] = [16, Buffer.alloc(256 * 1024)]
  for (let layer = 1; layer < 64; layer += 1) {
    const backing = ['-b', at(`layer${layer - 1}.qcow2`), '-F', 'qcow2']
    await must('qemu-img', ['create', '-q', '-f', 'qcow2', ...backing, at(`layer${layer}.qcow2`)])
    const writes: string[] = []
    for (let index = 0; index < pieces; index += 1) {
      const place = Math.floor(((index * 64 + layer) * size) / (pieces * 64) / piece.length) * piece.length
      const source = at(`piece${index}`)
      readSync(disk, piece, 0, piece.length, place)
      writeFileSync(source, piece)
      writes.push('-c', `write -q -s ${source} ${place} ${piece.length}`)
    }
    await must('qemu-io', ['-f', 'qcow2', ...writes, at(`layer${layer}.qcow2`)])
  }
  closeSync(disk)
}
