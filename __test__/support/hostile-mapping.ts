/** Catalogue entries 31 to 54: L1 and L2 entries, subclusters, compressed clusters. */
import { build } from './builder.js'
import { deflate, lz4Cluster, zstdByHand, zstdCompress, zstdSkippable } from './codecs.js'
import type { Catalogue, Expected } from './hostile.js'
import { sample, sampleBytes } from './hostile-sample.js'
import type { BuiltImage } from './image.js'
import { tagged } from './model.js'
import { type ClusterSpec, imageSpec } from './spec.js'

const COPIED = 1n << 63n
const COMPRESSED = 1n << 62n

export function mappingEntries(catalogue: Catalogue, clusterBits: number): void {
  const spec = sample(clusterBits)
  const image = build(spec)
  const good = sampleBytes(spec)
  const cluster = 2 ** clusterBits
  const span = cluster * (cluster / 8)
  const add = (name: string, damage: (x: BuiltImage) => Expected): void => catalogue.add(`${name} (clusters of ${cluster})`, image, good, damage)
  /** The guest cluster cannot be read because of its entry. */
  const entry = (guest: number, x: BuiltImage, value: bigint): Expected => {
    x.u64(x.l2Entry(guest), value)
    return {
      action: 'range',
      code: 'ERR_QCOW2_CORRUPT',
      start: guest * cluster,
      length: cluster,
      offset: x.l2Entry(guest),
      table: 'l2',
      finding: true,
    }
  }
  const inL1 = (code: string, table: string, offset: number): Expected => ({
    action: 'range',
    code: `ERR_QCOW2_${code}`,
    start: 0,
    length: Math.min(span, good.length),
    table,
    offset,
    finding: true,
  })

  if (clusterBits > 9)
    add('31 L1 entry unaligned', (x) => {
      x.u64(x.at('l1'), BigInt(x.at('l2[0]') + 512) | COPIED)
      return inL1('CORRUPT', 'l1', x.at('l1'))
    })
  add('32 L1 entry past the end of the file', (x) => {
    x.u64(x.at('l1'), (1n << 40n) | COPIED)
    return inL1('TRUNCATED', 'l2', 2 ** 40)
  })
  if (clusterBits > 9) add('35 L2 entry unaligned', (x) => entry(0, x, BigInt(x.at('data[0]') + 512) | COPIED))
  if (clusterBits > 9) add('35 preallocated zero cluster unaligned', (x) => entry(5, x, BigInt(x.at('data[5]') + 512) | COPIED | 1n))
  add('36 data past the end of the file', (x) => {
    x.u64(x.l2Entry(0), (1n << 40n) | COPIED)
    return { action: 'range', code: 'ERR_QCOW2_TRUNCATED', start: 0, length: cluster, offset: 2 ** 40, table: 'data', finding: true }
  })
  add('37 data cluster in the header', (x) => {
    x.u64(x.l2Entry(2), BigInt(x.at('l1')) | COPIED)
    return { action: 'report', finding: 'any', otherBytes: true }
  })
  add('38 two entries share a cluster with COPIED set', (x) => {
    x.u64(x.l2Entry(2), x.readU64(x.l2Entry(0)))
    return { action: 'report', finding: 'any', otherBytes: true }
  })
  for (const bit of [56, 60, 61]) add(`39 an offset with bit ${bit}`, (x) => entry(0, x, x.readU64(x.l2Entry(0)) | (1n << BigInt(bit))))
  add('40 COPIED without an offset', (x) => entry(1, x, COPIED))
  add('43 COPIED with a higher refcount', (x) => {
    x.u16(x.at('refcountBlock[0]') + (x.at('data[0]') / cluster) * 2, 2)
    return { action: 'report', finding: 'any' }
  })

  const compressed = (x: BuiltImage, value: bigint, code: string, table: string): Expected => {
    x.u64(x.l2Entry(3), value)
    return { action: 'range', code: `ERR_QCOW2_${code}`, start: 3 * cluster, length: cluster, table, finding: code !== 'DECOMPRESS' }
  }
  add('45 compressed data past the end of the file', (x) => compressed(x, COMPRESSED | (1n << 40n), 'TRUNCATED', 'data'))
  add('46 COPIED with compressed', (x) => compressed(x, x.readU64(x.l2Entry(3)) | COPIED, 'CORRUPT', 'l2'))
  add('47 too few sectors for the payload', (x) => {
    const shift = BigInt(62 - (clusterBits - 8))
    const host = x.readU64(x.l2Entry(3)) & ((1n << shift) - 1n)
    // One sector from its last byte on: nothing that could decode to a cluster.
    return compressed(x, COMPRESSED | (host - (host % 512n) + 511n), 'DECOMPRESS', 'data')
  })
  const payload = [...image.places.keys()].find((name) => name.startsWith('compressed['))
  if (payload === undefined) throw new Error('the sample has no compressed cluster')
  add('48 the stream is damaged', (x) => {
    x.bytes.fill(0xff, x.at(payload), x.at(payload) + x.place(payload).length)
    return { action: 'range', code: 'ERR_QCOW2_DECOMPRESS', start: 3 * cluster, length: cluster, table: 'data', offset: x.at(payload) }
  })
  add('50 a zlib wrapper around the stream', (x) => {
    x.patch(x.at(payload), Buffer.from([0x78, 0x9c]))
    return { action: 'range', code: 'ERR_QCOW2_DECOMPRESS', start: 3 * cluster, length: cluster, table: 'data' }
  })
}

/** Entries 41 and 42 and those that need an image of another kind. */
export function specialMappings(catalogue: Catalogue): void {
  const cluster = 65536
  const v2 = sample(16, { version: 2, headerLength: 72 })
  catalogue.add('41 the zero flag in version 2', build(v2), sampleBytes(v2), (x) => {
    x.u64(x.l2Entry(0), x.readU64(x.l2Entry(0)) | 1n)
    return { action: 'range', code: 'ERR_QCOW2_CORRUPT', start: 0, length: cluster, offset: x.l2Entry(0), table: 'l2', finding: true }
  })
  const extended = sample(16, { extendedL2: true })
  const image = build(extended)
  const good = sampleBytes(extended)
  const bad = (name: string, guest: number, damage: (x: BuiltImage) => void): void =>
    catalogue.add(name, image, good, (x) => {
      damage(x)
      return {
        action: 'range',
        code: 'ERR_QCOW2_CORRUPT',
        start: guest * cluster,
        length: cluster,
        offset: x.l2Entry(guest),
        table: 'l2',
        finding: true,
      }
    })
  bad('42 a subcluster both allocated and zero', 0, (x) => x.u64(x.l2Entry(0) + 8, 0xffff_ffffn | (1n << 40n)))
  bad('42 a subcluster allocated without a host cluster', 1, (x) => x.u64(x.l2Entry(1) + 8, 4n))
  bad('42 a compressed cluster with subclusters', 3, (x) => x.u64(x.l2Entry(3) + 8, 1n))
}

/** Entries 49 and 51 to 53: streams that are longer, odd, or wrong, for each codec. */
export function streamEntries(catalogue: Catalogue): void {
  const cluster = 65536
  const data = tagged(0, cluster, 77).slice()
  const twice = Buffer.concat([data, tagged(cluster, cluster, 78)])
  const one = (name: string, compression: 'zlib' | 'zstd' | 'lz4', payload: Uint8Array, damaged: boolean, what = data): void => {
    const clusters = new Map<number, ClusterSpec>([[0, { kind: 'compressed', data, payload }]])
    const image = build(imageSpec({ clusterBits: 16, size: 2 * cluster, compression, clusters, featureNames: false }))
    const good = Buffer.concat([what, new Uint8Array(cluster)])
    catalogue.add(name, image, good, () =>
      damaged ? { action: 'range', code: 'ERR_QCOW2_DECOMPRESS', start: 0, length: cluster, table: 'data' } : { action: 'report', clean: true },
    )
  }
  one('48 deflate: shorter than the cluster', 'zlib', deflate(data.subarray(0, 60000)), true)
  one('49 deflate: longer than the cluster', 'zlib', deflate(twice), false)
  one('49 deflate: a bomb', 'zlib', deflate(new Uint8Array(2 ** 24)), false, new Uint8Array(cluster))
  one('48 zstd: shorter than the cluster', 'zstd', zstdCompress(data.subarray(0, 60000)), true)
  one('49 zstd: longer than the cluster', 'zstd', zstdCompress(twice), true)
  // Clusters are decoded in place, so a window costs nothing: up to what zstd itself takes it is believed.
  one('51 zstd: a window of 128 MiB', 'zstd', zstdByHand(data, 0x88), false)
  one('51 zstd: a window of 256 MiB', 'zstd', zstdByHand(data, 0x90), true)
  one('51 zstd: a window of 2 TiB', 'zstd', zstdByHand(data, 0xf8), true)
  one('52 zstd: thousands of empty skippable frames', 'zstd', Buffer.concat(Array.from({ length: 4000 }, () => zstdSkippable(0))), true)
  one('52 zstd: some skippable frames before the data', 'zstd', Buffer.concat([zstdSkippable(0), zstdSkippable(3), zstdCompress(data)]), false)
  const dictionary = Buffer.from(zstdCompress(data))
  one('53 zstd: a dictionary is needed', 'zstd', withDictionary(dictionary), true)
  const checksum = Buffer.from(zstdCompress(data, { checksum: true }))
  checksum[checksum.length - 1] = (checksum.at(-1) ?? 0) ^ 1
  one('53 zstd: the checksum is wrong', 'zstd', checksum, true)
  one('48 zstd: no frame at all', 'zstd', Buffer.alloc(600, 0x11), true)
  const lz4 = Buffer.from(lz4Cluster(data))
  one('48 LZ4: shorter than the cluster', 'lz4', lz4Cluster(data.subarray(0, 60000)), true)
  one('49 LZ4: longer than the cluster', 'lz4', lz4Cluster(twice), true)
  one(
    '48 LZ4: the length passes the descriptor',
    'lz4',
    patched(lz4, (x) => x.writeUInt32BE(0x7fffffff, 0)),
    true,
  )
  one(
    '48 LZ4: a match before the beginning',
    'lz4',
    patched(lz4, (x) => x.set([0x10, 0x41, 0xff, 0xff], 4)),
    true,
  )
}

function patched(bytes: Buffer, change: (copy: Buffer) => void): Buffer {
  const copy = Buffer.from(bytes)
  change(copy)
  return copy
}

/** The same frame with a dictionary id in its header. */
function withDictionary(frame: Buffer): Buffer {
  const descriptor = (frame[4] ?? 0) | 1
  return Buffer.concat([
    frame.subarray(0, 4),
    Buffer.from([descriptor]),
    ...((descriptor & 0x20) === 0 ? [frame.subarray(5, 6)] : []),
    Buffer.from([42]),
    frame.subarray((descriptor & 0x20) === 0 ? 6 : 5),
  ])
}
