/**
 * The tests' own writer of qcow2, made from the format's facts and sharing nothing with the library: it makes what qemu-img cannot, and it
 * knows where every structure lies, so that a test can damage exactly one field.
 */
import { headerBytes } from './header.js'
import { BuiltImage, type Place } from './image.js'
import { Prng } from './prng.js'
import { type ClusterSpec, type Clusters, type ImageSpec, l1Needed, l2Entries, type SnapshotSpec } from './spec.js'

const COPIED = 1n << 63n
const COMPRESSED = 1n << 62n

/** Makes the image. The refcounts are right, and so `qemu-img check` finds nothing. */
export function build(spec: ImageSpec): BuiltImage {
  let blocks = 1
  for (;;) {
    const layout = new Layout(spec, blocks)
    const needed = layout.refcountBlocksNeeded()
    if (needed <= blocks) return layout.finish()
    blocks = needed
  }
}

interface State {
  name: string
  clusters: Clusters
  l1Size: number
  l1Offset: number
  snapshot?: SnapshotSpec
}

/** One attempt to lay the image out with a given number of refcount blocks. */
class Layout {
  readonly #spec: ImageSpec
  readonly #cluster: number
  readonly #blocks: number
  readonly #random: Prng | undefined
  /** Next host cluster that was never given out. */
  #next = 1
  #length = 0
  readonly #writes: { offset: number; bytes: Uint8Array }[] = []
  readonly #holes: number[] = []
  readonly #places = new Map<string, Place>()
  readonly #refcounts = new Map<number, number>([[0, 1]])
  /** The L2 descriptor of each cluster object: standard word and subcluster word. */
  readonly #descriptors = new Map<ClusterSpec, { word: bigint; bitmap: bigint; host: number[] }>()
  readonly #references = new Map<ClusterSpec, number>()
  readonly #dataWrites: { offset: number; bytes: Uint8Array }[] = []
  #compressedAt = -1
  readonly #states: State[]
  #tail = 0

  constructor(spec: ImageSpec, blocks: number) {
    this.#spec = spec
    this.#cluster = 2 ** spec.clusterBits
    this.#blocks = blocks
    this.#random = spec.scatter === 0 ? undefined : new Prng(spec.scatter)
    this.#states = [{ name: '', clusters: spec.clusters, l1Size: l1Needed(spec, spec.size) + spec.moreL1, l1Offset: 0 }]
    spec.snapshots.forEach((snapshot, i) => {
      this.#states.push({
        name: `snapshot[${i}].`,
        clusters: snapshot.clusters,
        l1Size: l1Needed(spec, snapshot.size) + (snapshot.moreL1 ?? 0),
        l1Offset: 0,
        snapshot,
      })
    })
    this.#lay()
  }

  refcountBlocksNeeded(): number {
    return Math.ceil(this.#next / this.#countsPerBlock())
  }

  finish(): BuiltImage {
    this.#writeRefcounts()
    const spec = this.#spec
    const rubbish = new Prng(spec.scatter + 77)
    const end = spec.shortTail && this.#tail > 0 ? Math.max(this.#tail, this.#lastWritten()) : this.#next * this.#cluster
    const bytes = Buffer.alloc(end + spec.trailing)
    for (const hole of this.#holes) bytes.set(rubbish.bytes(Math.min(this.#cluster, 4096)), hole * this.#cluster)
    for (const { offset, bytes: part } of this.#writes) bytes.set(part, offset)
    if (spec.trailing > 0) bytes.set(rubbish.bytes(spec.trailing), end)
    let dataFile: Buffer | undefined
    if (spec.dataFile !== undefined) {
      dataFile = Buffer.alloc(Math.ceil(Number(spec.size) / this.#cluster) * this.#cluster)
      for (const { offset, bytes: part } of this.#dataWrites) dataFile.set(part, offset)
      dataFile = dataFile.subarray(0, Number(spec.size))
    }
    return new BuiltImage(spec, bytes, dataFile, this.#places)
  }

  #lastWritten(): number {
    return this.#writes.reduce((end, { offset, bytes }) => Math.max(end, offset + bytes.length), this.#length)
  }

  #countsPerBlock(): number {
    return (this.#cluster * 8) / 2 ** this.#spec.refcountOrder
  }

  /** Takes `count` host clusters in a row, each with one reference for now. */
  #take(count: number): number {
    if (this.#random?.chance(0.2) === true) this.#holes.push(this.#next++)
    const first = this.#next
    this.#next += count
    return first
  }

  #takeTable(name: string, length: number): number {
    const count = Math.max(1, Math.ceil(length / this.#cluster))
    const first = this.#take(count)
    for (let i = 0; i < count; i++) this.#count(first + i, 1)
    const offset = first * this.#cluster
    this.#places.set(name, { name, offset, length })
    return offset
  }

  #count(cluster: number, references: number): void {
    this.#refcounts.set(cluster, (this.#refcounts.get(cluster) ?? 0) + references)
  }

  #write(offset: number, bytes: Uint8Array): void {
    this.#writes.push({ offset, bytes })
  }

  #lay(): void {
    const spec = this.#spec
    const tableClusters = Math.max(1, Math.ceil((this.#blocks * 8) / this.#cluster))
    const tableOffset = this.#takeTable('refcountTable', tableClusters * this.#cluster)
    for (let i = 0; i < this.#blocks; i++) this.#takeTable(`refcountBlock[${i}]`, this.#cluster)
    for (const state of this.#states) state.l1Offset = this.#takeTable(`${state.name}l1`, state.l1Size * 8)
    for (const state of this.#states)
      for (const cluster of state.clusters.values()) this.#references.set(cluster, (this.#references.get(cluster) ?? 0) + 1)
    const snapshotsOffset = spec.snapshots.length === 0 ? 0 : this.#laySnapshotTable()
    const bitmaps = spec.bitmaps.length === 0 ? undefined : this.#layBitmaps()
    const tables = this.#takeL2Tables()
    this.#layGuestData()
    this.#fillL2Tables(tables)
    const header = headerBytes(spec, {
      l1Size: this.#states[0]?.l1Size ?? 0,
      l1Offset: this.#states[0]?.l1Offset ?? 0,
      tableOffset,
      tableClusters,
      snapshotsOffset,
      bitmaps,
    })
    this.#write(0, header.bytes)
    for (const place of header.places) this.#places.set(place.name, place)
  }

  #laySnapshotTable(): number {
    const entries = this.#spec.snapshots.map((snapshot, i) => snapshotEntry(snapshot, this.#states[i + 1]))
    const total = entries.reduce((sum, entry) => sum + entry.length, 0)
    const offset = this.#takeTable('snapshotTable', total)
    let at = offset
    entries.forEach((entry, i) => {
      this.#write(at, entry)
      this.#places.set(`snapshot[${i}]`, { name: `snapshot[${i}]`, offset: at, length: entry.length })
      at += entry.length
    })
    return offset
  }

  #layBitmaps(): { offset: number; size: number } {
    const entries: Buffer[] = []
    this.#spec.bitmaps.forEach((bitmap, i) => {
      const table = Buffer.alloc(bitmap.table.length * 8)
      const tableOffset = this.#takeTable(`bitmap[${i}].table`, table.length)
      bitmap.table.forEach((part, k) => {
        if (part === 'zeros') return
        if (part === 'ones') {
          table.writeBigUInt64BE(1n, k * 8)
          return
        }
        const data = this.#takeTable(`bitmap[${i}].data[${k}]`, this.#cluster)
        this.#write(data, part)
        table.writeBigUInt64BE(BigInt(data), k * 8)
      })
      this.#write(tableOffset, table)
      const name = Buffer.from(bitmap.name)
      const entry = Buffer.alloc(Math.ceil((24 + name.length) / 8) * 8)
      entry.writeBigUInt64BE(BigInt(tableOffset), 0)
      entry.writeUInt32BE(bitmap.table.length, 8)
      entry.writeUInt32BE(bitmap.flags, 12)
      entry.writeUInt8(1, 16)
      entry.writeUInt8(bitmap.granularityBits, 17)
      entry.writeUInt16BE(name.length, 18)
      entry.set(name, 24)
      entries.push(entry)
    })
    const directory = Buffer.concat(entries)
    const offset = this.#takeTable('bitmapDirectory', directory.length)
    this.#write(offset, directory)
    let at = offset
    entries.forEach((entry, i) => {
      this.#places.set(`bitmap[${i}]`, { name: `bitmap[${i}]`, offset: at, length: entry.length })
      at += entry.length
    })
    return { offset, size: directory.length }
  }

  /** Host clusters for the L2 tables. States whose table would be the same share one, as after `snapshot -c`. */
  #takeL2Tables(): { state: State; index: number; offset: number; shared: boolean }[] {
    const entries = l2Entries(this.#spec)
    const known = new Map<string, number>()
    const names = new Map<ClusterSpec, number>()
    const tables: { state: State; index: number; offset: number; shared: boolean }[] = []
    for (const state of this.#states) {
      const used = new Set([...state.clusters.keys()].map((cluster) => Math.floor(cluster / entries)))
      for (const index of [...used].sort((a, b) => a - b)) {
        const content: string[] = []
        for (const [guest, cluster] of state.clusters) {
          if (Math.floor(guest / entries) !== index) continue
          if (!names.has(cluster)) names.set(cluster, names.size)
          content.push(`${guest % entries}:${names.get(cluster)}`)
        }
        const key = `${this.#spec.refcountOrder === 0 ? state.name : ''}${content.sort().join()}`
        const same = known.get(key)
        const offset = same ?? this.#takeTable(`${state.name}l2[${index}]`, this.#cluster)
        if (same === undefined) known.set(key, offset)
        else {
          this.#count(same / this.#cluster, 1)
          this.#places.set(`${state.name}l2[${index}]`, { name: `${state.name}l2[${index}]`, offset, length: this.#cluster })
        }
        tables.push({ state, index, offset, shared: same !== undefined })
      }
    }
    return tables
  }

  #layGuestData(): void {
    const all: { cluster: ClusterSpec; guest: number; state: State }[] = []
    for (const state of this.#states)
      for (const [guest, cluster] of [...state.clusters].sort((a, b) => a[0] - b[0])) all.push({ cluster, guest, state })
    // Compressed clusters come last so that a file may end inside their last sector.
    const order = this.#random?.shuffle([...all]) ?? all
    for (const { cluster, guest, state } of order) if (cluster.kind !== 'compressed') this.#layPlain(cluster, guest, state)
    for (const { cluster } of all) if (cluster.kind === 'compressed') this.#layCompressed(cluster)
  }

  #layPlain(cluster: Exclude<ClusterSpec, { kind: 'compressed' }>, guest: number, state: State): void {
    if (this.#descriptors.has(cluster)) return
    const needsHost = cluster.kind === 'data' || (cluster.kind === 'zero' ? cluster.allocated : cluster.host)
    let word = 0n
    const host: number[] = []
    if (needsHost && this.#spec.dataFile !== undefined) {
      word = (BigInt(guest) * BigInt(this.#cluster)) | COPIED
      if (cluster.kind !== 'zero') this.#dataWrites.push({ offset: guest * this.#cluster, bytes: cluster.data })
    } else if (needsHost) {
      const at = this.#take(1)
      const offset = at * this.#cluster
      const references = this.#references.get(cluster) ?? 1
      this.#count(at, references)
      host.push(at)
      word = BigInt(offset) | (references === 1 ? COPIED : 0n)
      // A preallocated zero cluster holds bytes that must never be seen.
      const bytes = cluster.kind === 'zero' ? new Prng(at).bytes(this.#cluster) : cluster.data
      this.#write(offset, bytes)
      const name = `${state.name}data[${guest}]`
      this.#places.set(name, { name, offset, length: this.#cluster })
    }
    let bitmap = 0n
    if (this.#spec.extendedL2) {
      if (cluster.kind === 'data') bitmap = 0xffff_ffffn
      else if (cluster.kind === 'zero') bitmap = 0xffff_ffffn << 32n
      else bitmap = BigInt(cluster.allocated >>> 0) | (BigInt(cluster.zero >>> 0) << 32n)
    } else if (cluster.kind === 'zero') word |= 1n
    this.#descriptors.set(cluster, { word, bitmap, host })
  }

  #layCompressed(cluster: Extract<ClusterSpec, { kind: 'compressed' }>): void {
    if (this.#descriptors.has(cluster)) return
    const references = this.#references.get(cluster) ?? 1
    const most = 2 ** Math.min(2 ** this.#spec.refcountOrder, 30) - 1
    const offset = this.#compressedPlace(cluster, references, most)
    const firstSector = Math.floor(offset / 512)
    const lastSector = Math.floor((offset + Math.max(cluster.payload.length, 1) - 1) / 512)
    const sectors = BigInt(lastSector - firstSector + (cluster.extraSectors ?? 0))
    const end = (lastSector + 1 + (cluster.extraSectors ?? 0)) * 512
    const host: number[] = []
    for (let at = Math.floor(offset / this.#cluster); at * this.#cluster < end; at++) {
      host.push(at)
      this.#count(at, references)
    }
    this.#write(offset, cluster.payload)
    this.#tail = offset + cluster.payload.length
    this.#places.set(`compressed[${offset}]`, { name: `compressed[${offset}]`, offset, length: cluster.payload.length })
    const shift = BigInt(62 - (this.#spec.clusterBits - 8))
    this.#descriptors.set(cluster, { word: COMPRESSED | BigInt(offset) | (sectors << shift), bitmap: 0n, host })
    this.#compressedAt = offset + cluster.payload.length
    const reserved = Math.ceil(end / this.#cluster)
    if (reserved > this.#next) this.#next = reserved
  }

  /** Right behind the payload before it, at any byte, unless a host cluster would be referred to more often than a count can say. */
  #compressedPlace(cluster: Extract<ClusterSpec, { kind: 'compressed' }>, references: number, most: number): number {
    const extra = (cluster.extraSectors ?? 0) * 512
    const at = this.#compressedAt
    if (at >= 0 && at % this.#cluster !== 0) {
      const end = Math.ceil((at + cluster.payload.length) / 512) * 512 + extra
      let fits = true
      for (let host = Math.floor(at / this.#cluster); host * this.#cluster < end; host++)
        fits &&= (this.#refcounts.get(host) ?? 0) + references <= most
      if (fits) return at
    }
    const length = Math.ceil(cluster.payload.length / 512) * 512 + extra
    return this.#take(Math.max(1, Math.ceil(length / this.#cluster))) * this.#cluster
  }

  #fillL2Tables(tables: { state: State; index: number; offset: number; shared: boolean }[]): void {
    const entries = l2Entries(this.#spec)
    const width = this.#spec.extendedL2 ? 16 : 8
    const uses = new Map<number, number>()
    for (const { offset } of tables) uses.set(offset, (uses.get(offset) ?? 0) + 1)
    const l1s = new Map<State, Buffer>(this.#states.map((state) => [state, Buffer.alloc(state.l1Size * 8)]))
    for (const { state, index, offset, shared } of tables) {
      l1s.get(state)?.writeBigUInt64BE(BigInt(offset) | (uses.get(offset) === 1 ? COPIED : 0n), index * 8)
      if (shared) continue
      const table = Buffer.alloc(this.#cluster)
      for (const [guest, cluster] of state.clusters) {
        if (Math.floor(guest / entries) !== index) continue
        const descriptor = this.#descriptors.get(cluster)
        if (descriptor === undefined) throw new Error('a cluster was not laid out')
        table.writeBigUInt64BE(descriptor.word, (guest % entries) * width)
        if (width === 16) table.writeBigUInt64BE(descriptor.bitmap, (guest % entries) * width + 8)
      }
      this.#write(offset, table)
    }
    for (const [state, l1] of l1s) this.#write(state.l1Offset, l1)
  }

  #writeRefcounts(): void {
    const perBlock = this.#countsPerBlock()
    const bits = 2 ** this.#spec.refcountOrder
    const table = this.#places.get('refcountTable')
    if (table === undefined) throw new Error('no refcount table')
    const entries = Buffer.alloc(table.length)
    for (let i = 0; i < this.#blocks; i++) {
      const place = this.#places.get(`refcountBlock[${i}]`)
      if (place === undefined) throw new Error('no refcount block')
      entries.writeBigUInt64BE(BigInt(place.offset), i * 8)
      const block = Buffer.alloc(this.#cluster)
      for (let k = 0; k < perBlock; k++) {
        const count = this.#refcounts.get(i * perBlock + k) ?? 0
        if (count === 0) continue
        if (bits < 31 && count >= 2 ** bits) throw new Error(`refcount ${count} does not fit ${bits} bits`)
        if (bits === 64) block.writeBigUInt64BE(BigInt(count), k * 8)
        else if (bits === 32) block.writeUInt32BE(count, k * 4)
        else if (bits === 16) block.writeUInt16BE(count, k * 2)
        else if (bits === 8) block.writeUInt8(count, k)
        else {
          const bit = k * bits
          block[bit >> 3] = (block[bit >> 3] ?? 0) | (count << (bit & 7))
        }
      }
      this.#write(place.offset, block)
    }
    this.#write(table.offset, entries)
  }
}

function snapshotEntry(snapshot: SnapshotSpec, state: State | undefined): Buffer {
  const id = Buffer.from(snapshot.id)
  const name = Buffer.from(snapshot.name)
  const extra = snapshot.extraSize ?? 24
  const entry = Buffer.alloc(Math.ceil((40 + extra + id.length + name.length) / 8) * 8)
  entry.writeBigUInt64BE(BigInt(state?.l1Offset ?? 0), 0)
  entry.writeUInt32BE(state?.l1Size ?? 0, 8)
  entry.writeUInt16BE(id.length, 12)
  entry.writeUInt16BE(name.length, 14)
  entry.writeUInt32BE(snapshot.dateSec ?? 1_700_000_000, 16)
  entry.writeUInt32BE(snapshot.dateNsec ?? 123_000_000, 20)
  entry.writeBigUInt64BE(snapshot.vmClock ?? 0n, 24)
  const vmState = snapshot.vmStateSize ?? 0
  entry.writeUInt32BE(vmState > 0xffff_ffff ? 0 : vmState, 32)
  entry.writeUInt32BE(extra, 36)
  if (extra >= 8) entry.writeBigUInt64BE(BigInt(vmState), 40)
  if (extra >= 16) entry.writeBigUInt64BE(BigInt(snapshot.size), 48)
  if (extra >= 24) entry.writeBigUInt64BE(snapshot.icount ?? 0xffff_ffff_ffff_ffffn, 56)
  for (let i = 64; i < 40 + extra; i++) entry[i] = 0xab
  entry.set(id, 40 + extra)
  entry.set(name, 40 + extra + id.length)
  return entry
}
