/** Random images through qemu-img and qemu-io, with the flat model told of every write. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { DiskCase } from './case.js'
import { Model, tagged } from './model.js'
import { Prng } from './prng.js'
import { must, qemu } from './qemu.js'

interface LayerPlan {
  version: 2 | 3
  cluster: number
  extendedL2: boolean
  zstd: boolean
  dataFile: '' | 'plain' | 'raw'
  options: string[]
  size: number
}

function plan(random: Prng, bottom: boolean, top: boolean): LayerPlan {
  const version = random.chance(0.2) ? 2 : 3
  const extendedL2 = version === 3 && random.chance(0.3)
  const bits = extendedL2 ? random.pick([14, 15, 16, 16, 18]) : random.pick([9, 10, 12, 14, 16, 16, 16, 18, 21])
  const cluster = 2 ** bits
  const zstd = version === 3 && random.chance(0.4)
  const dataFile = version === 3 && top && random.chance(0.12) ? (bottom && random.chance(0.5) ? 'raw' : 'plain') : ''
  const options = [`cluster_size=${cluster}`, `compat=${version === 2 ? '0.10' : '1.1'}`]
  if (version === 3) options.push(`refcount_bits=${random.pick([1, 2, 4, 8, 16, 16, 32, 64])}`, `compression_type=${zstd ? 'zstd' : 'zlib'}`)
  if (extendedL2) options.push('extended_l2=on')
  if (version === 3 && random.chance(0.15)) options.push('lazy_refcounts=on')
  if (dataFile === '' && (bottom || extendedL2) && random.chance(0.15)) options.push('preallocation=metadata')
  const most = bits < 12 ? 600 * cluster : 6 * 2 ** 20
  return { version, cluster, extendedL2, zstd, dataFile, options, size: Math.max(512, random.int(most / 512) * 512) }
}

/** One layer's writes as commands of qemu-io, applied to the model at once. */
class Writes {
  readonly commands: string[] = []
  readonly #random: Prng
  readonly #plan: LayerPlan
  readonly #folder: string
  readonly #model: Model
  /** Clusters that may be allocated: a compressed write must not meet one. */
  readonly #touched = new Set<number>()
  #preallocated: boolean

  constructor(random: Prng, layer: LayerPlan, folder: string, model: Model) {
    this.#random = random
    this.#plan = layer
    this.#folder = folder
    this.#model = model
    this.#preallocated = layer.options.includes('preallocation=metadata')
  }

  make(count: number, backed: boolean): string[] {
    this.commands.length = 0
    // Compressed writes come first: QEMU (10.0.2) keeps appending to the last host cluster of compressed data even after that was freed and
    // given to plain data, within one process, and so destroys it.
    const compressed = this.#random.int(count)
    for (let i = 0; i < count; i++) this.#one(backed, i < compressed)
    return this.commands
  }

  #one(backed: boolean, compressed: boolean): void {
    const { cluster, size, version, dataFile } = this.#plan
    const random = this.#random
    const kind = random.int(9)
    const clusters = Math.floor(size / cluster)
    if (compressed && clusters > 0 && dataFile === '' && !this.#preallocated) {
      const at = random.int(clusters)
      if (!this.#touched.has(at)) this.#data('write -c', at * cluster, cluster)
      return
    }
    if (kind < 2) {
      this.#zero(random.pick(['write -z', 'write -z -u']))
      return
    }
    if (kind === 2 && clusters > 0 && !(version === 2 && backed)) {
      const at = random.int(clusters)
      const count = Math.min(random.between(1, 3), clusters - at)
      // Without a backing file or a mapped cluster a discard changes nothing; either way the range reads as zeros.
      this.#model.zero(at * cluster, count * cluster)
      this.commands.push(`discard -q ${at * cluster} ${count * cluster}`)
      return
    }
    const at = random.int(size / 512) * 512
    const length = Math.min(size - at, Math.max(512, random.pick([512, cluster >> 1, cluster, cluster * 2, cluster * 3]) & ~511), 2 ** 20)
    this.#data('write', at, length)
  }

  #data(command: string, at: number, length: number): void {
    const bytes = this.#random.chance(0.2) ? this.#random.bytes(length) : tagged(at, length)
    const file = join(this.#folder, `w${Math.floor(this.#random.u32())}`)
    writeFileSync(file, bytes)
    this.#model.write(at, bytes)
    this.#touch(at, length)
    this.commands.push(`${command} -q -s ${file} ${at} ${length}`)
  }

  #zero(command: string): void {
    const { cluster, size } = this.#plan
    const at = this.#random.int(size / 512) * 512
    const length = Math.min(size - at, this.#random.pick([512, cluster, cluster * 2, cluster + 512]))
    this.#model.zero(at, length)
    this.#touch(at, length)
    this.commands.push(`${command} -q ${at} ${length}`)
  }

  #touch(at: number, length: number): void {
    const { cluster } = this.#plan
    for (let i = Math.floor(at / cluster); i * cluster < at + length; i++) this.#touched.add(i)
  }
}

/** Makes a random disk of one to three layers in a folder of its own. */
export async function randomQemuCase(seed: number, folder: string): Promise<DiskCase> {
  const random = new Prng(seed)
  const depth = random.pick([1, 1, 1, 2, 2, 3])
  const layers: DiskCase['layers'] = []
  const words: string[] = []
  let model: Model | undefined
  let snapshots: DiskCase['snapshots'] = []
  let dataFile = false
  for (let i = 0; i < depth; i++) {
    const name = `${seed}-${i}`
    const path = join(folder, name)
    const below = layers[0]
    if (i === 0 && depth > 1 && random.chance(0.3)) {
      const size = random.between(1, 2000) * 512
      const bytes = tagged(0, size)
      writeFileSync(path, bytes)
      model = new Model(size)
      model.write(0, bytes)
      layers.unshift({ path, format: 'raw' })
      words.push(`raw ${size}`)
      continue
    }
    const layer = plan(random, below === undefined, i === depth - 1)
    if (layer.dataFile !== '') layer.options.push(`data_file=${name}.data`, ...(layer.dataFile === 'raw' ? ['data_file_raw=on'] : []))
    const target = { size: layer.size, o: layer.options, cwd: folder }
    await qemu.create(name, below === undefined ? target : { ...target, backing: below.path.slice(folder.length + 1), backingFormat: below.format })
    model = model === undefined ? new Model(layer.size) : model.overlay(layer.size)
    const writes = new Writes(random, layer, folder, model)
    snapshots = []
    const rounds =
      layer.dataFile === '' && !layer.options.includes('refcount_bits=1') && !layer.options.includes('refcount_bits=2') && random.chance(0.35) ? 2 : 1
    for (let round = 0; round < rounds; round++) {
      if (round > 0) {
        await must('qemu-img', ['snapshot', '-c', `snap ${round}`, path])
        snapshots.push({ id: String(round), name: `snap ${round}`, model: model.clone() })
      }
      await qemu.io(path, writes.make(random.between(2, 9), below !== undefined), { discard: true })
    }
    if (layer.dataFile !== '') dataFile = true
    layers.unshift({ path, format: 'qcow2' })
    words.push(`${layer.options.join(' ')} size=${layer.size}${rounds > 1 ? ' snapshot' : ''}`)
  }
  const path = layers[0]?.path
  if (path === undefined || model === undefined) throw new Error('no layer was made')
  return { seed, words: words.reverse().join(' over '), folder, path, model, snapshots, qemu: true, dataFile, layers }
}
