/** The header cluster of the tests' own writer: fields, extensions and the backing file's name. */
import type { Place } from './image.js'
import type { ExtensionSpec, ImageSpec } from './spec.js'

/** The bytes of the header with all that follows it in cluster 0, and the place of each field. */
export function headerBytes(
  spec: ImageSpec,
  tables: {
    l1Size: number
    l1Offset: number
    tableOffset: number
    tableClusters: number
    snapshotsOffset: number
    bitmaps: { offset: number; size: number } | undefined
  },
): { bytes: Buffer; places: Place[] } {
  const cluster = 2 ** spec.clusterBits
  const header = Buffer.alloc(spec.headerLength)
  const places: Place[] = []
  const field = (name: string, offset: number, width: 1 | 2 | 4 | 8, value: number | bigint): void => {
    if (offset + width > header.length) return
    places.push({ name: `header.${name}`, offset, length: width })
    if (width === 8) header.writeBigUInt64BE(BigInt(value), offset)
    else header.writeUIntBE(Number(value), offset, width)
  }
  const parts = extensions(spec, tables.bitmaps)
  const area = Buffer.concat(parts.map(({ bytes }) => bytes))
  const backingName = Buffer.from(spec.backing?.name ?? '')
  const backingOffset = spec.headerLength + area.length
  field('magic', 0, 4, 0x514649fb)
  field('version', 4, 4, spec.version)
  field('backingFileOffset', 8, 8, spec.backing === undefined ? 0 : backingOffset)
  field('backingFileSize', 16, 4, backingName.length)
  field('clusterBits', 20, 4, spec.clusterBits)
  field('size', 24, 8, spec.size)
  field('cryptMethod', 32, 4, spec.cryptMethod)
  field('l1Size', 36, 4, tables.l1Size)
  field('l1Offset', 40, 8, tables.l1Offset)
  field('refcountTableOffset', 48, 8, tables.tableOffset)
  field('refcountTableClusters', 56, 4, tables.tableClusters)
  field('snapshotCount', 60, 4, spec.snapshots.length)
  field('snapshotsOffset', 64, 8, tables.snapshotsOffset)
  if (spec.version >= 3) {
    field('incompatible', 72, 8, incompatible(spec))
    field('compatible', 80, 8, (spec.lazyRefcounts ? 1n : 0n) | spec.compatible)
    const raw = spec.dataFile?.raw === true ? 2n : 0n
    field('autoclear', 88, 8, (spec.bitmaps.length > 0 && spec.bitmapsValid ? 1n : 0n) | raw | spec.autoclear)
    field('refcountOrder', 96, 4, spec.refcountOrder)
    field('headerLength', 100, 4, spec.headerLength)
    field('compressionType', 104, 1, { zlib: 0, zstd: 1, lz4: 0x4c }[spec.compression])
    for (let i = 112; i < header.length; i++) header[i] = 0xcd
  }
  let at = spec.headerLength
  for (const { name, bytes } of parts) {
    places.push({ name, offset: at, length: bytes.length })
    at += bytes.length
  }
  const bytes = Buffer.concat([header, area, backingName])
  if (spec.backing !== undefined) places.push({ name: 'backingName', offset: backingOffset, length: backingName.length })
  places.push({ name: 'header', offset: 0, length: bytes.length })
  if (bytes.length > cluster) throw new Error(`the header needs ${bytes.length} bytes and a cluster has ${cluster}`)
  return { bytes, places }
}

function incompatible(spec: ImageSpec): bigint {
  let bits = spec.incompatible
  if (spec.dirty) bits |= 1n
  if (spec.corrupt) bits |= 2n
  if (spec.dataFile !== undefined) bits |= 4n
  if (spec.compression !== 'zlib') bits |= 8n
  if (spec.extendedL2) bits |= 16n
  return bits
}

const FEATURES: [type: number, bit: number, name: string][] = [
  [0, 0, 'dirty bit'],
  [0, 1, 'corrupt bit'],
  [0, 2, 'external data file'],
  [0, 3, 'compression type'],
  [0, 4, 'extended L2 entries'],
  [1, 0, 'lazy refcounts'],
  [2, 0, 'bitmaps'],
  [2, 1, 'raw external data'],
]

/** A row of the feature name table. */
export function featureName(type: number, bit: number, name: string): Buffer {
  const row = Buffer.alloc(48)
  row[0] = type
  row[1] = bit
  row.write(name, 2, 46, 'latin1')
  return row
}

function extensions(spec: ImageSpec, bitmaps: { offset: number; size: number } | undefined): { name: string; bytes: Buffer }[] {
  const parts: { name: string; bytes: Buffer }[] = []
  const add = (name: string, extension: ExtensionSpec): void => {
    const bytes = Buffer.alloc(8 + Math.ceil(extension.data.length / 8) * 8)
    bytes.writeUInt32BE(extension.type >>> 0, 0)
    bytes.writeUInt32BE((extension.claim ?? extension.data.length) >>> 0, 4)
    bytes.set(extension.data, 8)
    parts.push({ name: `extension[${name}]`, bytes })
  }
  if (spec.backing?.format !== undefined) add('backingFormat', { type: 0xe2792aca, data: Buffer.from(spec.backing.format) })
  if (spec.dataFile?.name !== undefined) add('dataFile', { type: 0x44415441, data: Buffer.from(spec.dataFile.name) })
  if (spec.featureNames) add('featureNames', { type: 0x6803f857, data: Buffer.concat(FEATURES.map((row) => featureName(...row))) })
  if (bitmaps !== undefined) {
    const data = Buffer.alloc(24)
    data.writeUInt32BE(spec.bitmaps.length, 0)
    data.writeBigUInt64BE(BigInt(bitmaps.size), 8)
    data.writeBigUInt64BE(BigInt(bitmaps.offset), 16)
    add('bitmaps', { type: 0x23852875, data })
  }
  for (const [i, extension] of spec.extensions.entries()) add(String(i), extension)
  if (spec.endMarker) add('end', { type: 0, data: Buffer.alloc(0) })
  return parts
}
