/** Catalogue entries 1 to 30: header and placement of tables. */
import { build } from './builder.js'
import { featureName } from './header.js'
import type { Catalogue, Damage, Expected } from './hostile.js'
import { sample, sampleBytes } from './hostile-sample.js'
import { imageSpec } from './spec.js'

const refuse = (code: string, offset?: number, table = 'header'): Expected => ({ action: 'refuse', code: `ERR_QCOW2_${code}`, offset, table })

export function headerEntries(catalogue: Catalogue, clusterBits: number): void {
  const spec = sample(clusterBits)
  const image = build(spec)
  const good = sampleBytes(spec)
  const cluster = 2 ** clusterBits
  const add = (name: string, damage: Damage): void => catalogue.add(`${name} (clusters of ${cluster})`, image, good, damage)
  const u32 = (name: string, field: string, values: number[], code: string, at?: number): void => {
    for (const value of values)
      add(`${name}: ${field} = ${value}`, (x) => {
        x.u32(x.at(`header.${field}`), value)
        return refuse(code, at ?? x.at(`header.${field}`))
      })
  }
  const u64 = (name: string, field: string, values: (number | bigint)[], code: string): void => {
    for (const value of values)
      add(`${name}: ${field} = 0x${value.toString(16)}`, (x) => {
        x.u64(x.at(`header.${field}`), value)
        return refuse(code, x.at(`header.${field}`))
      })
  }

  u32('1 magic', 'magic', [0, 0x514649fa, 0x4b444d56], 'NOT_QCOW2')
  add('1 an empty file', (x) => ({ bytes: x.cut(0), expected: refuse('NOT_QCOW2', 0) }))
  add('1 three bytes', (x) => ({ bytes: x.cut(3), expected: refuse('NOT_QCOW2', 0) }))
  for (const length of [4, 8, 24, 71]) add(`1 ${length} bytes`, (x) => ({ bytes: x.cut(length), expected: refuse('HEADER_TRUNCATED') }))
  u32('2 version', 'version', [0, 1, 4, 0xffffffff], 'VERSION')
  for (const length of [72, 76, 103]) add(`3 version 3 in ${length} bytes`, (x) => ({ bytes: x.cut(length), expected: refuse('HEADER_TRUNCATED') }))
  u32('4 header length', 'headerLength', [0, 72, 103, 105, 108], 'HEADER_LENGTH')
  // Both are past every cluster; the odd one is refused for that first.
  u32('4 header length', 'headerLength', [0x7ffffff8, 0xfffffff8, cluster + 8], 'HEADER_EXCEEDS_CLUSTER')
  u32('4 header length', 'headerLength', [0x7fffffff, 0xffffffff], 'HEADER_LENGTH')
  u32('5 cluster bits', 'clusterBits', [0, 8, 22, 31, 32, 63, 64, 0x7fffffff, 0xffffffff], 'CLUSTER_SIZE')
  u32('6 refcount order', 'refcountOrder', [7, 8, 31, 64, 0xffffffff], 'REFCOUNT_WIDTH')
  for (const bit of [5, 31, 63])
    add(`7 unknown incompatible bit ${bit}`, (x) => {
      x.u64(x.at('header.incompatible'), 1n << BigInt(bit))
      return refuse('UNKNOWN_FEATURE', 72)
    })
  add('8 dirty bit', (x) => {
    x.u64(72, 1n)
    return { action: 'report', notice: 'DIRTY', clean: true }
  })
  add('9 corrupt bit', (x) => {
    x.u64(72, 2n)
    return { action: 'report', notice: 'CORRUPT', clean: true }
  })
  add('10 unknown autoclear bit', (x) => {
    x.u64(88, 1n << 40n)
    return { action: 'report', clean: true }
  })
  add('11 compression bit without a type', (x) => {
    x.u64(72, 8n)
    return refuse('COMPRESSION_BIT_SET', 72)
  })
  add('11 compression type without its bit', (x) => {
    x.u8(104, 1)
    return refuse('COMPRESSION_BIT', 72)
  })
  for (const kind of [2, 3, 0x4b, 255])
    add(`11 compression type ${kind}`, (x) => {
      x.u64(72, 8n).u8(104, kind)
      return refuse('COMPRESSION_TYPE', 104)
    })
  if (clusterBits < 14)
    add('13 extended L2 with small clusters', (x) => {
      x.u64(72, 16n)
      return refuse('CLUSTER_SIZE_EXTENDED_L2', 20)
    })
  u32('14 encryption method', 'cryptMethod', [3, 0xffffffff], 'ENCRYPTION_METHOD')
  add('14 LUKS without its header', (x) => {
    x.u32(x.at('header.cryptMethod'), 2)
    return refuse('ENCRYPTION_HEADER_MISSING', x.at('header.cryptMethod'), 'header-extensions')
  })
  add('14 AES is refused by name', (x) => {
    x.u32(32, 1)
    return { action: 'refuse', code: 'ERR_QCOW2_ENCRYPTED', message: /aes/i }
  })
  u64('15 size', 'size', [2n ** 63n - 511n, 2n ** 63n, 2n ** 64n - 1n, 2n ** 64n - 512n], 'VIRTUAL_SIZE')
  if (clusterBits === 9) u64('15 size that needs a larger L1 than there may be', 'size', [2n ** 62n, 2n ** 37n + 2n ** 15n], 'IMAGE_TOO_BIG')

  u32('17 L1 too small', 'l1Size', [0, 1].slice(0, clusterBits === 9 ? 2 : 1), 'L1_TOO_SMALL')
  u32('18 L1 size', 'l1Size', [2 ** 22 + 1, 0x7fffffff, 0x80000000, 0xffffffff], 'L1_TOO_LARGE')
  u64('19 L1 offset', 'l1Offset', [0, 1, cluster + 8, cluster / 2], 'L1_OFFSET')
  u64('20 L1 offset', 'l1Offset', [2n ** 63n, 2n ** 64n - BigInt(cluster), 2n ** 63n - BigInt(cluster) + 8n], 'L1_OFFSET')
  add('21 L1 past the end of the file', (x) => {
    const offset = 2n ** 40n
    x.u64(x.at('header.l1Offset'), offset)
    return refuse('L1_TRUNCATED', Number(offset), 'l1')
  })
  add('22 refcount table of no clusters', (x) => {
    x.u32(x.at('header.refcountTableClusters'), 0)
    return { action: 'report', finding: 'any' }
  })
  u32('23 refcount table', 'refcountTableClusters', [0xffffffff, 0x00020001, 0x80000000], 'REFCOUNT_TABLE_TOO_LARGE')
  u64('24 refcount table offset', 'refcountTableOffset', [1, cluster + 8, 2n ** 63n, 2n ** 64n - BigInt(cluster)], 'REFCOUNT_TABLE_OFFSET')
  for (const offset of [0n, 2n ** 40n])
    add(`24 refcount table at 0x${offset.toString(16)}`, (x) => {
      x.u64(x.at('header.refcountTableOffset'), offset)
      return { action: 'report', finding: 'any' }
    })
  for (const [what, entry] of [
    ['unaligned', BigInt(cluster) + 512n],
    ['with reserved bits', -1n],
    ['past the end', 2n ** 40n],
  ] as const) {
    if (what === 'unaligned' && clusterBits === 9) continue
    add(`25 refcount table entry ${what}`, (x) => {
      const value = entry === -1n ? x.readU64(x.at('refcountTable')) | 0xffn : entry
      x.u64(x.at('refcountTable'), value)
      return { action: 'report', finding: 'any', table: 'refcount-table' }
    })
  }
  for (const place of ['header', 'l1', 'l2[0]'])
    add(`26 refcount block in the ${place}`, (x) => {
      x.u64(x.at('refcountTable'), x.at(place))
      return { action: 'report', finding: 'any' }
    })
  add('27 refcount 0 for the header', (x) => {
    x.u16(x.at('refcountBlock[0]'), 0)
    return { action: 'report', finding: 'any' }
  })
  add('28 all refcounts are 0', (x) => {
    x.bytes.fill(0, x.at('refcountBlock[0]'), x.at('refcountBlock[0]') + x.place('refcountBlock[0]').length)
    return { action: 'report', finding: 'any' }
  })
  add('29 a refcount at its maximum', (x) => {
    x.u16(x.at('refcountBlock[0]') + (x.at('data[0]') / cluster) * 2, 0xffff)
    return { action: 'report', finding: 'any' }
  })
}

/** Entry 7 with names, and entry 12: feature tables and reserved bits. */
export function featureEntries(catalogue: Catalogue): void {
  const names = Buffer.concat([
    featureName(0, 17, 'holographic clusters'),
    featureName(0, 18, '\u001b[31mred\u0007'),
    featureName(1, 17, 'not this one'),
  ])
  const spec = imageSpec({ ...sample(16), featureNames: false, extensions: [{ type: 0x6803f857, data: names }] })
  const image = build(spec)
  const good = sampleBytes(spec)
  catalogue.add('7 an unknown feature is named from the table', image, good, (x) => {
    x.u64(72, 1n << 17n)
    return { action: 'refuse', code: 'ERR_QCOW2_UNKNOWN_FEATURE', offset: 72, message: /holographic clusters/ }
  })
  catalogue.add('7 the name of a feature reaches no terminal raw', image, good, (x) => {
    x.u64(72, 1n << 18n)
    // biome-ignore lint/suspicious/noControlCharactersInRegex: exactly these must not be there.
    return { action: 'refuse', code: 'ERR_QCOW2_UNKNOWN_FEATURE', offset: 72, message: /^[^\u0000-\u001f]*red[^\u0000-\u001f]*$/ }
  })
  catalogue.add('12 reserved bits of an L1 entry', image, good, (x) => {
    x.u64(x.at('l1'), x.readU64(x.at('l1')) | 1n | (1n << 60n))
    return { action: 'report', finding: 'any', table: 'l1' }
  })
  catalogue.add('12 reserved bits of an L2 entry', image, good, (x) => {
    x.u64(x.l2Entry(0), x.readU64(x.l2Entry(0)) | 2n)
    return { action: 'report', finding: 'any', table: 'l2' }
  })
}
