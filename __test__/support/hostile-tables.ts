/** Catalogue entries 55 to 94: snapshots, extensions, names, bitmaps, encryption headers. */
import { build } from './builder.js'
import type { Catalogue, Damage, Expected } from './hostile.js'
import { sample, sampleBytes } from './hostile-sample.js'
import type { BuiltImage } from './image.js'
import type { ExtensionSpec, ImageSpec } from './spec.js'

const refuse = (code: string, offset?: number, table = 'header'): Expected => ({ action: 'refuse', code: `ERR_QCOW2_${code}`, offset, table })

export function snapshotEntries(catalogue: Catalogue, clusterBits: number): void {
  const spec = sample(clusterBits)
  const cluster = 2 ** clusterBits
  spec.snapshots.push(
    { id: '1', name: 'first', clusters: new Map(spec.clusters), size: Number(spec.size) },
    { id: '2', name: 'second', clusters: new Map([...spec.clusters].slice(0, 1)), size: Number(spec.size) },
  )
  const image = build(spec)
  const good = sampleBytes(spec)
  const add = (name: string, damage: Damage): void => catalogue.add(`${name} (clusters of ${cluster})`, image, good, damage)
  for (const count of [0x80000000, 0xffffffff, 65537])
    add(`55 ${count} snapshots`, (x) => {
      x.u32(60, count)
      return refuse('SNAPSHOT_COUNT', 60)
    })
  for (const offset of [8n, BigInt(cluster) + 8n, 2n ** 63n, 2n ** 64n - BigInt(cluster), 0n])
    add(`56 snapshot table at 0x${offset.toString(16)}`, (x) => {
      x.u64(64, offset)
      return refuse('SNAPSHOT_TABLE_OFFSET', 64)
    })
  add('56 snapshot table past the end of the file', (x) => {
    x.u64(64, 2n ** 40n)
    return refuse('SNAPSHOT_TABLE_TRUNCATED', 2 ** 40, 'snapshot-table')
  })
  add('57 more snapshots than the file can hold', (x) => {
    x.u32(60, 65536)
    return { action: 'refuse', code: 'ERR_QCOW2_SNAPSHOT_TABLE_TRUNCATED|ERR_QCOW2_SNAPSHOT_INCOMPLETE', table: 'snapshot-table' }
  })
  add('57 an id that runs past the end of the file', (x) => {
    x.u16(x.at('snapshot[1]') + 12, 0xffff)
    x.u16(x.at('snapshot[1]') + 14, 0xffff)
    const table = x.at('snapshotTable')
    // The table is moved to the end so that nothing lies behind it.
    const bytes = Buffer.concat([
      x.bytes,
      Buffer.alloc((cluster - (x.bytes.length % cluster)) % cluster),
      x.bytes.subarray(table, table + x.place('snapshotTable').length),
    ])
    bytes.writeBigUInt64BE(BigInt(bytes.length - x.place('snapshotTable').length), 64)
    return { bytes, expected: { action: 'refuse', code: 'ERR_QCOW2_SNAPSHOT_TABLE_TRUNCATED', table: 'snapshot-table' } }
  })
  add('58 extra data of 1025 bytes', (x) => {
    x.u32(x.at('snapshot[0]') + 36, 1025)
    return refuse('SNAPSHOT_EXTRA_DATA', x.at('snapshot[0]'), 'snapshot-table')
  })
  add('58 extra data of 4 GiB', (x) => {
    x.u32(x.at('snapshot[0]') + 36, 0xffffffff)
    return refuse('SNAPSHOT_EXTRA_DATA', x.at('snapshot[0]'), 'snapshot-table')
  })
  add('58 version 3 without the extra data it needs', (x) => {
    x.u32(x.at('snapshot[0]') + 36, 8)
    return refuse('SNAPSHOT_INCOMPLETE', x.at('snapshot[0]'), 'snapshot-table')
  })
  for (const [what, offset] of [
    ['unaligned', BigInt(cluster) + 8n],
    ['past the end', 2n ** 40n],
    ['past every file', 2n ** 63n],
  ] as const)
    add(`59 the L1 of a snapshot is ${what}`, (x) => {
      x.u64(x.at('snapshot[1]'), offset)
      return { action: 'snapshot', id: '2', code: 'ERR_QCOW2_' }
    })
  for (const size of [0x10000000, 0xffffffff, 0])
    add(`59 the L1 of a snapshot has ${size} entries`, (x) => {
      x.u32(x.at('snapshot[1]') + 8, size)
      return { action: 'snapshot', id: '2', code: 'ERR_QCOW2_' }
    })
  add('60 a snapshot of an absurd size', (x) => {
    x.u64(x.at('snapshot[1]') + 48, 2n ** 64n - 512n)
    return { action: 'snapshot', id: '2', code: 'ERR_QCOW2_' }
  })
  add('61 bytes of a name that are no text', (x) => {
    x.patch(x.at('snapshot[1]') + 40 + 24 + 1, Buffer.from([0x1b, 0x5b, 0xff, 0x00, 0x0a, 0x2f]))
    return { action: 'report', clean: true }
  })
  add('61 two snapshots of one id', (x) => {
    x.patch(x.at('snapshot[1]') + 40 + 24, Buffer.from('1'))
    return { action: 'report' }
  })
  add('62 a snapshot whose L2 table is its own L1', (x) => {
    x.u64(x.at('snapshot[1].l1'), BigInt(x.at('snapshot[1].l1')))
    return { action: 'report', finding: 'any' }
  })
}

function withExtension(extensions: ExtensionSpec[], change: Partial<ImageSpec> = {}): { image: BuiltImage; good: Uint8Array } {
  const spec = sample(16, { extensions, ...change })
  return { image: build(spec), good: sampleBytes(spec) }
}

export function extensionEntries(catalogue: Catalogue): void {
  const one = (name: string, extension: ExtensionSpec[], expected: Expected, change: Partial<ImageSpec> = {}): void => {
    const { image, good } = withExtension(extension, change)
    catalogue.add(name, image, good, () => expected)
  }
  const text = (value: string | number[]): Uint8Array => (typeof value === 'string' ? Buffer.from(value) : Buffer.from(value))
  const at = 112
  for (const claim of [65536, 0x7fffffff, 0xfffffff8, 0xffffffff])
    one(
      `63 an extension of ${claim} bytes`,
      [{ type: 0x11111111, data: text('abcd'), claim }],
      refuse('EXTENSION_TOO_LARGE', at, 'header-extensions'),
    )
  one(
    '64 thousands of empty extensions',
    Array.from({ length: 8000 }, (_, i) => ({ type: 0x22220000 + i, data: text('') })),
    { action: 'report', clean: true },
  )
  one(
    '65 the data file’s name twice',
    [
      { type: 0x44415441, data: text('a') },
      { type: 0x44415441, data: text('b') },
    ],
    { action: 'refuse', code: 'ERR_QCOW2_EXTENSION_DUPLICATE', offset: 128, table: 'header-extensions' },
    { incompatible: 4n },
  )
  one('66 a feature table of odd length', [{ type: 0x6803f857, data: Buffer.alloc(47, 0x41) }], { action: 'report', clean: true })
  one('66 a feature table without a NUL and with bit 255', [{ type: 0x6803f857, data: Buffer.alloc(96, 0xff) }], { action: 'report', clean: true })
  one(
    '67 no end marker before the end of the cluster',
    [{ type: 0x33333333, data: Buffer.alloc(65536 - 112 - 8, 1) }],
    { action: 'report', clean: true },
    { endMarker: false },
  )
  one(
    '78 a data file’s name without its bit',
    [{ type: 0x44415441, data: text('disk.raw') }],
    refuse('DATA_FILE_UNEXPECTED', undefined, 'header-extensions'),
  )
  one(
    '78 a data file’s bit without a name',
    [],
    { action: 'refuse', code: 'ERR_QCOW2_DATA_FILE_DENIED|ERR_QCOW2_DATA_FILE_REQUIRED' },
    { incompatible: 4n },
  )
  one('80 data-file-raw without a data file', [], refuse('DATA_FILE_RAW', 88), { autoclear: 2n })
  one('44 snapshots with a data file', [{ type: 0x44415441, data: text('disk.raw') }], refuse('DATA_FILE_SNAPSHOTS', 60), {
    incompatible: 4n,
    snapshots: [{ id: '1', name: 'x', clusters: new Map(), size: 65536 }],
  })
  one(
    '75 a format name of 16 bytes',
    [{ type: 0xe2792aca, data: text('qcow2qcow2qcow22') }],
    refuse('BACKING_FORMAT_TOO_LONG', at, 'header-extensions'),
  )
  one(
    '69 a format name with a control character',
    [{ type: 0xe2792aca, data: text('qc\u001bow2') }],
    refuse('BACKING_FORMAT_NAME', at, 'header-extensions'),
  )
  one('87 an encryption header of 15 bytes', [{ type: 0x0537be77, data: Buffer.alloc(15) }], refuse('ENCRYPTION_HEADER', at, 'header-extensions'), {
    cryptMethod: 2,
  })
  const luks = (offset: bigint, length: bigint): ExtensionSpec[] => {
    const data = Buffer.alloc(16)
    data.writeBigUInt64BE(offset, 0)
    data.writeBigUInt64BE(length, 8)
    return [{ type: 0x0537be77, data }]
  }
  one('87 an encryption header that is unaligned', luks(8n, 4096n), { action: 'refuse', code: 'ERR_QCOW2_ENCRYPTION_HEADER' }, { cryptMethod: 2 })
  one(
    '87 an encryption header past every file',
    luks(2n ** 63n, 2n ** 63n),
    { action: 'refuse', code: 'ERR_QCOW2_ENCRYPTION_HEADER' },
    { cryptMethod: 2 },
  )
  one('88 what lies there is no LUKS header', luks(65536n, 2068480n), { action: 'refuse', code: 'ERR_QCOW2_LUKS_HEADER' }, { cryptMethod: 2 })
  one('14 an encryption header without encryption', luks(65536n, 4096n), refuse('ENCRYPTION_HEADER_UNEXPECTED', undefined, 'header-extensions'))
}

export function backingNameEntries(catalogue: Catalogue): void {
  const spec = sample(16, { backing: { name: 'base.img', format: 'raw' } })
  const image = build(spec)
  const good = sampleBytes(spec)
  const add = (name: string, damage: (x: BuiltImage) => Expected): void => catalogue.add(name, image, good, damage)
  for (const offset of [1n, 8n, 103n, 65537n, 2n ** 32n, 2n ** 63n, 2n ** 64n - 1n])
    add(`68 the backing file’s name at 0x${offset.toString(16)}`, (x) => {
      x.u64(8, offset)
      return refuse('BACKING_NAME_OFFSET', 8)
    })
  for (const length of [1024, 0x7fffffff, 0xffffffff])
    add(`68 a backing file’s name of ${length} bytes`, (x) => {
      x.u32(16, length)
      return refuse('BACKING_NAME_TOO_LONG', 16)
    })
  add('68 a backing file’s name that leaves the cluster', (x) => {
    x.u64(8, 65530n).u32(16, 20)
    return refuse('BACKING_NAME_TOO_LONG', 16)
  })
  for (const [what, bytes] of [
    ['a NUL', [0x61, 0x00]],
    ['an escape', [0x1b, 0x5b]],
    ['a newline', [0x0a, 0x61]],
    ['no text', [0xff, 0xfe]],
  ] as const)
    add(`69 a backing file’s name with ${what}`, (x) => {
      x.patch(x.at('backingName') + 2, Buffer.from(bytes))
      return refuse('BACKING_NAME', x.at('backingName'))
    })
}

export function bitmapEntries(catalogue: Catalogue): void {
  const cluster = 65536
  const spec = sample(16)
  spec.bitmaps.push(
    { name: 'first', granularityBits: 16, flags: 2, table: [new Uint8Array(cluster).fill(3, 0, 1)] },
    { name: 'other', granularityBits: 20, flags: 0, table: ['zeros'] },
  )
  const image = build(spec)
  const good = sampleBytes(spec)
  const extension = image.at('extension[bitmaps]')
  const add = (name: string, damage: (x: BuiltImage) => Expected): void => catalogue.add(name, image, good, damage)
  const inExtension = refuse('BITMAPS_EXTENSION', extension, 'header-extensions')
  for (const [what, at, value] of [
    ['no bitmaps', 8, 0],
    ['65536 bitmaps', 8, 65536],
    ['a reserved field', 12, 1],
    ['a length of 23', 4, 23],
  ] as const)
    add(`82 ${what}`, (x) => {
      x.u32(extension + at, value)
      return inExtension
    })
  // What is wrong with bitmaps spoils no guest data: the disk opens, check tells.
  const told = (name: string, damage: (x: BuiltImage) => unknown): void =>
    add(name, (x) => {
      damage(x)
      return { action: 'report', finding: 'any' }
    })
  told('83 directory unaligned', (x) => x.u64(extension + 24, BigInt(x.at('bitmapDirectory') + 8)))
  told('83 directory past the end of the file', (x) => x.u64(extension + 24, 2n ** 40n))
  told('83 directory of no bytes', (x) => x.u64(extension + 16, 0n))
  told('83 directory of 2^60 bytes', (x) => x.u64(extension + 16, 2n ** 60n))
  const entry = image.at('bitmap[0]')
  told('84 an entry runs past the directory', (x) => x.u16(image.at('bitmap[1]') + 18, 1000))
  told('84 one bitmap too few', (x) => x.u32(extension + 8, 1))
  told('84 one bitmap too many', (x) => x.u32(extension + 8, 3))
  told('84 an empty name', (x) => x.u16(entry + 18, 0))
  told('84 a name of 65535 bytes', (x) => x.u16(entry + 18, 0xffff))
  told('84 two bitmaps of one name', (x) => x.patch(entry + 24, Buffer.from('other')))
  told('84 granularity 2^8', (x) => x.u8(entry + 17, 8))
  told('84 granularity 2^32', (x) => x.u8(entry + 17, 32))
  told('84 granularity 2^255', (x) => x.u8(entry + 17, 255))
  told('84 an unknown type', (x) => x.u8(entry + 16, 2))
  told('84 reserved flags', (x) => x.u32(entry + 12, 0x80))
  told('84 extra data', (x) => x.u32(entry + 20, 8))
  told('85 table unaligned', (x) => x.u64(entry, BigInt(x.at('bitmap[0].table') + 8)))
  told('85 table at 0', (x) => x.u64(entry, 0n))
  told('85 table of 2^32-1 entries', (x) => x.u32(entry + 8, 0xffffffff))
  told('85 table of no entries', (x) => x.u32(entry + 8, 0))
  told('85 table past the end of the file', (x) => x.u64(entry, 2n ** 40n))
  told('85 reserved bits in a table entry', (x) => x.u64(x.at('bitmap[0].table'), x.readU64(x.at('bitmap[0].table')) | 2n))
  told('85 offset and all-ones in a table entry', (x) => x.u64(x.at('bitmap[0].table'), x.readU64(x.at('bitmap[0].table')) | 1n))
  told('85 data past the end of the file', (x) => x.u64(x.at('bitmap[0].table'), 2n ** 40n))
  add('86 a bitmap in use', (x) => {
    x.u32(entry + 12, 1)
    return { action: 'report', clean: true }
  })
}
