/** Random images through the tests' own writer: what qemu-img cannot make, and quickly. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { build } from './builder.js'
import type { DiskCase } from './case.js'
import { deflate, lz4Cluster, zstdByHand, zstdCompress, zstdSkippable } from './codecs.js'
import { Model, tagged } from './model.js'
import { Prng } from './prng.js'
import { type ClusterSpec, type Clusters, type ImageSpec, imageSpec, l2Entries } from './spec.js'

/** What a state of the image reads as over its backing disk. */
export function modelOf(spec: ImageSpec, clusters: Clusters, size: number, backing?: Model): Model {
  const whole = size - (size % 512)
  const model = backing === undefined ? new Model(whole) : backing.overlay(whole)
  const cluster = 2 ** spec.clusterBits
  for (const [guest, what] of clusters) {
    const at = guest * cluster
    if (what.kind === 'zero') model.zero(at, cluster)
    else if (what.kind !== 'subclusters') model.write(at, what.data)
    else
      for (let i = 0; i < 32; i++) {
        const part = cluster / 32
        if ((what.zero >>> i) & 1) model.zero(at + i * part, part)
        else if ((what.allocated >>> i) & 1) model.write(at + i * part, what.data.subarray(i * part, (i + 1) * part))
      }
  }
  return model
}

/** Bytes of a guest cluster: tagged, random, constant, or mixed. */
function content(random: Prng, offset: number, length: number): Uint8Array {
  const data = tagged(offset, length).slice()
  const style = random.int(6)
  if (style === 0) return random.bytes(length)
  if (style === 1) return data.fill(random.int(256))
  if (style === 2) data.set(random.bytes(length >> 1), length >> 1)
  if (style === 3) data.fill(0, random.int(length))
  return data
}

function payload(random: Prng, spec: ImageSpec, data: Uint8Array): Uint8Array {
  if (spec.compression === 'zlib') return deflate(data, random.pick([9, 10, 12, 12, 13, 15]), random.pick([1, 6, 9]))
  if (spec.compression === 'lz4') return lz4Cluster(data, random.chance(0.2))
  const style = random.int(6)
  if (style === 0) return zstdByHand(data)
  if (style === 1) return Buffer.concat([zstdSkippable(random.int(40)), zstdCompress(data)])
  return zstdCompress(data, { level: random.pick([1, 3, 9, 15]), checksum: random.chance(0.3), frames: random.pick([1, 1, 2, 3]) })
}

/** Frames, descriptors and masks for one guest cluster. */
function cluster(random: Prng, spec: ImageSpec, guest: number): ClusterSpec {
  const length = 2 ** spec.clusterBits
  const data = content(random, guest * length, length)
  const kind = random.int(10)
  if (kind < 3 && spec.dataFile === undefined) {
    const packed = payload(random, spec, data)
    if (packed.length < length) {
      const room = 2 * length - packed.length - 1024
      return { kind: 'compressed', data, payload: packed, extraSectors: !spec.shortTail && random.chance(0.1) && room > 512 ? 1 : 0 }
    }
  }
  if (kind < 5 && spec.version === 3) return { kind: 'zero', allocated: random.chance(0.5) }
  if (kind < 8 && spec.extendedL2) {
    const zero = random.u32() & random.u32()
    const host = random.chance(0.85)
    return { kind: 'subclusters', host, zero: zero >>> 0, allocated: host ? (random.u32() & ~zero) >>> 0 : 0, data }
  }
  return { kind: 'data', data }
}

/** Guest clusters worth touching: the first, the last, around the borders of L2 tables, and some anywhere. */
function places(random: Prng, spec: ImageSpec, count: number): number[] {
  const total = Math.max(1, Math.ceil(Number(spec.size) / 2 ** spec.clusterBits))
  const entries = l2Entries(spec)
  const chosen = new Set<number>()
  for (let i = 0; i < count * 3 && chosen.size < Math.min(count, total); i++) {
    const anchor = random.pick([0, total - 1, random.int(total), Math.floor(random.int(total) / entries) * entries])
    chosen.add(Math.min(total - 1, Math.max(0, anchor + random.between(-2, 3))))
  }
  return [...chosen]
}

function fill(random: Prng, spec: ImageSpec, clusters: Clusters, count: number): void {
  for (const guest of places(random, spec, count)) {
    if (random.chance(0.1)) clusters.delete(guest)
    else clusters.set(guest, cluster(random, spec, guest))
  }
}

/** A random description without its backing file. */
export function randomSpec(random: Prng, change: Partial<ImageSpec> = {}): ImageSpec {
  const version = random.chance(0.2) ? 2 : 3
  const extendedL2 = version === 3 && random.chance(0.3)
  const clusterBits = extendedL2 ? random.pick([14, 14, 15, 16, 16, 18]) : random.pick([9, 9, 10, 11, 12, 13, 14, 15, 16, 16, 16, 17, 18, 20, 21])
  const length = 2 ** clusterBits
  const dataFile = version === 3 && random.chance(0.08) ? { name: '', raw: false } : undefined
  const refcountOrder = version === 2 ? 4 : random.int(7)
  const budget = Math.max(3, Math.min(28, Math.floor((3 * 2 ** 20) / length)))
  const clusters =
    random.chance(0.75) || dataFile !== undefined ? random.between(1, budget * 2) : random.between(1, 2 ** 14) * random.pick([1, 7, 64])
  const spec = imageSpec({
    version,
    extendedL2,
    clusterBits,
    refcountOrder,
    size: Math.max(0, (clusters - 1) * length + (random.chance(0.5) ? length : random.between(1, length))),
    compression: version === 2 ? 'zlib' : random.pick(['zlib', 'zlib', 'zstd', 'lz4']),
    headerLength: version === 2 ? 72 : random.pick([104, 112, 112, 120, 144]),
    featureNames: version === 3 && clusterBits > 11 && random.chance(0.7),
    dirty: version === 3 && random.chance(0.05),
    corrupt: version === 3 && random.chance(0.05),
    lazyRefcounts: version === 3 && random.chance(0.1),
    compatible: version === 3 && random.chance(0.1) ? 1n << BigInt(random.between(1, 63)) : 0n,
    autoclear: version === 3 && random.chance(0.1) ? 1n << BigInt(random.between(2, 63)) : 0n,
    moreL1: random.chance(0.2) ? random.between(1, 9) : 0,
    scatter: random.chance(0.7) ? random.u32() : 0,
    trailing: random.chance(0.2) ? random.between(1, 3000) : 0,
    shortTail: random.chance(0.4),
    extensions: random.chance(0.3) ? [{ type: 0x1000_0000 + random.int(2 ** 20), data: random.bytes(random.int(30)) }] : [],
  })
  if (dataFile !== undefined) spec.dataFile = dataFile
  // A type other than deflate needs the field that names it.
  if (spec.compression !== 'zlib' && spec.headerLength <= 104) spec.headerLength = 112
  if (spec.trailing > 0) spec.shortTail = false
  Object.assign(spec, change)
  fill(random, spec, spec.clusters, random.between(0, budget))
  const most = [0, 2, 3, 3, 3, 3, 3][spec.refcountOrder] ?? 0
  if (spec.dataFile === undefined && random.chance(0.35)) {
    const count = Math.min(random.between(1, 3), most)
    for (let i = 0; i < count; i++) {
      spec.snapshots.push({
        id: String(i + 1),
        name: random.pick(['before-upgrade', 'naïve ☃', 'a b', `s${i}`]),
        clusters: new Map(spec.clusters),
        size: Number(spec.size) - (Number(spec.size) % 512),
        extraSize: spec.version === 2 ? random.pick([0, 16, 24]) : random.pick([16, 24, 24, 32, 56]),
        vmStateSize: random.chance(0.2) ? random.u32() : 0,
        vmClock: BigInt(random.u32()) * 1000n,
        moreL1: random.chance(0.2) ? 1 : 0,
      })
      fill(random, spec, spec.clusters, random.between(1, Math.max(1, budget >> 2)))
    }
  }
  if (spec.version === 3 && spec.clusterBits >= 12 && random.chance(0.15)) addBitmaps(random, spec)
  return spec
}

function addBitmaps(random: Prng, spec: ImageSpec): void {
  const length = 2 ** spec.clusterBits
  for (let i = 0; i < random.between(1, 2); i++) {
    const granularityBits = random.between(Math.max(9, spec.clusterBits - 4), 24)
    const bits = Math.ceil((Math.floor(Number(spec.size) / 512) * 512) / 2 ** granularityBits)
    const parts = Math.ceil(bits / 8 / length)
    if (parts === 0 || parts > 64) continue
    const table = Array.from({ length: parts }, (_, k) => {
      if (k < parts - 1 && random.chance(0.5)) return random.pick(['zeros', 'ones'] as const)
      const data = new Uint8Array(length)
      const used = Math.min(bits - k * length * 8, length * 8)
      data.set(random.bytes(Math.floor(used / 8)))
      return data
    })
    spec.bitmaps.push({ name: `bitmap-${i}`, granularityBits, flags: random.pick([0, 2]), table })
  }
}

/** A random raw file. Its length need not be a whole number of sectors. */
function rawLayer(random: Prng, path: string): Model {
  const size = random.pick([random.between(1, 40) * 512, random.between(1, 2 ** 20), 2 ** 20])
  const bytes = new Uint8Array(size)
  for (let i = 0; i < 3; i++) {
    const at = random.int(size)
    bytes.set(tagged(at, Math.min(random.between(1, 100_000), size - at)), at)
  }
  writeFileSync(path, bytes)
  const model = new Model(Math.ceil(size / 512) * 512)
  model.write(0, bytes)
  return model
}

/** Makes a random disk of one to four layers in `folder`. */
export function randomBuiltCase(seed: number, folder: string): DiskCase {
  const random = new Prng(seed)
  const depth = random.pick([1, 1, 1, 2, 2, 3, 4])
  const layers: DiskCase['layers'] = []
  const words: string[] = []
  let model: Model | undefined
  let snapshots: DiskCase['snapshots'] = []
  let qemu = true
  let dataFile = false
  for (let i = 0; i < depth; i++) {
    const name = `${seed}-${i}`
    const path = join(folder, name)
    const below = layers[0]
    if (i === 0 && depth > 1 && random.chance(0.4)) {
      model = rawLayer(random, path)
      layers.unshift({ path, format: 'raw' })
      words.push(`raw ${model.size}`)
      continue
    }
    // Names and formats stand in the first cluster: small clusters leave room for little else.
    const spec = randomSpec(
      random.fork(i),
      below === undefined ? {} : { backing: { name: below.path.slice(folder.length + 1), format: below.format } },
    )
    if (spec.dataFile !== undefined) spec.dataFile.name = `${name}.data`
    const image = build(spec)
    writeFileSync(path, image.bytes)
    if (image.dataFile !== undefined) writeFileSync(`${path}.data`, image.dataFile)
    const backing: Model | undefined = model
    snapshots = spec.snapshots.map((snapshot) => ({
      id: snapshot.id,
      name: snapshot.name,
      model: modelOf(spec, snapshot.clusters, snapshotSize(spec, snapshot), backing),
    }))
    model = modelOf(spec, spec.clusters, Number(spec.size), backing)
    if (spec.compression === 'lz4') qemu = false
    if (spec.dataFile !== undefined) dataFile = true
    layers.unshift({ path, format: 'qcow2' })
    words.push(describe(spec))
  }
  const path = layers[0]?.path
  if (path === undefined || model === undefined) throw new Error('no layer was made')
  return { seed, words: words.reverse().join(' over '), folder, path, model, snapshots, qemu, dataFile, layers }
}

/** The size that a reader finds for a snapshot: its own where the entry has room for it. */
function snapshotSize(spec: ImageSpec, snapshot: ImageSpec['snapshots'][number]): number {
  return (snapshot.extraSize ?? 24) >= 16 ? snapshot.size : Number(spec.size)
}

function describe(spec: ImageSpec): string {
  const parts = [`v${spec.version} 2^${spec.clusterBits} size ${spec.size} refcount ${2 ** spec.refcountOrder}`]
  if (spec.extendedL2) parts.push('extended L2')
  if ([...spec.clusters.values()].some((cluster) => cluster.kind === 'compressed')) parts.push(spec.compression)
  if (spec.snapshots.length > 0) parts.push(`${spec.snapshots.length} snapshots`)
  if (spec.bitmaps.length > 0) parts.push(`${spec.bitmaps.length} bitmaps`)
  for (const flag of ['dirty', 'corrupt', 'shortTail', 'dataFile', 'scatter', 'trailing'] as const) if (spec[flag]) parts.push(flag)
  return parts.join(', ')
}
