/** Entries that take more than one damaged field: chains, names, huge and cut files, other formats. */
import { linkSync, mkdirSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { build } from './builder.js'
import type { HostileCase } from './hostile-cases.js'
import { sample } from './hostile-sample.js'
import type { BuiltImage } from './image.js'
import { type ImageSpec, imageSpec } from './spec.js'

const NAME = 'image.qcow2'
const CLUSTER = 65536

/** What must never be read: its bytes in a target would tell. */
export const SECRET = Buffer.alloc(CLUSTER, 'secret that no image may name. ')

function overlay(backing: string, format: string | undefined, change: Partial<ImageSpec> = {}): Buffer {
  return build(
    imageSpec({
      clusterBits: 16,
      size: 4 * CLUSTER,
      featureNames: false,
      backing: format === undefined ? { name: backing } : { name: backing, format },
      ...change,
    }),
  ).bytes
}

export function aroundEntries(): HostileCase[] {
  const cases: HostileCase[] = []
  const add = (name: string, write: (folder: string) => void): void => {
    cases.push({ entry: Number.parseInt(name, 10), name, write })
  }
  const one = (name: string, make: () => Buffer): void => add(name, (folder) => writeFileSync(join(folder, NAME), make()))
  const changed = (name: string, change: (x: BuiltImage) => void, spec: () => ImageSpec = () => sample(16)): void =>
    one(name, () => {
      const image = build(spec()).copy()
      change(image)
      return image.bytes
    })

  sizes(one)
  for (const bits of [9, 12, 16, 21]) mappings(bits, changed)
  chains(add)
  names(add)
  dataFiles(add)
  wholeFiles(add, one)
  return cases
}

type One = (name: string, make: () => Buffer) => void
type Add = (name: string, write: (folder: string) => void) => void
type Changed = (name: string, change: (x: BuiltImage) => void, spec?: () => ImageSpec) => void

function sizes(one: One): void {
  const huge = (clusterBits: number, size: bigint) => () => build(imageSpec({ clusterBits, size, featureNames: false })).bytes
  one('16 a disk of 2 PiB in some KiB', huge(21, 2n ** 51n))
  one('16 a disk of 1 PiB, all zeros', huge(21, 2n ** 50n))
  one('16 a disk of 128 GiB in clusters of 512', huge(9, 2n ** 37n))
  one('54 a disk of 64 GiB of one compressed cluster', () => {
    const spec = imageSpec({ clusterBits: 16, size: 2n ** 36n, featureNames: false })
    const base = sample(16)
    const packed = base.clusters.get(3)
    if (packed === undefined) throw new Error('the sample has a compressed cluster')
    spec.clusters.set(0, packed)
    const image = build(spec).copy()
    const entry = image.readU64(image.l2Entry(0))
    for (let i = 0; i < CLUSTER / 8; i++) image.u64(image.at('l2[0]') + i * 8, entry)
    const table = image.readU64(image.at('l1'))
    for (let i = 0; i < image.place('l1').length / 8; i++) image.u64(image.at('l1') + i * 8, table & ~(1n << 63n))
    return image.bytes
  })
}

/** What two entries of the catalogue say of one cluster. */
function mappings(clusterBits: number, changed: Changed): void {
  const spec = (): ImageSpec => sample(clusterBits)
  const of = (what: string): string => `${what} (clusters of ${2 ** clusterBits})`
  for (const [what, place] of [
    ['the L1 itself', 'l1'],
    ['the header', ''],
    ['the refcount table', 'refcountTable'],
    ['a refcount block', 'refcountBlock[0]'],
  ] as const)
    changed(
      of(`33 an L1 entry names ${what}`),
      (x) => {
        // The header lies at 0, which is no table; the table behind it is named as a cluster of 0 with its flag.
        x.u64(x.at('l1'), BigInt(place === '' ? 0 : x.at(place)) | (1n << 63n))
      },
      spec,
    )
  changed(
    of('34 two L1 entries of one L2 table'),
    (x) => {
      x.u64(x.at('l1') + 8, x.readU64(x.at('l1')))
    },
    () => sample(clusterBits, { size: 2 * (2 ** clusterBits / 8) * 2 ** clusterBits }),
  )
  if (clusterBits !== 9) return
  changed(
    of('30 refcounts of one bit'),
    () => {},
    () => ({ ...sample(9), refcountOrder: 0 }),
  )
}

function chains(add: Add): void {
  add('70 an image that backs itself', (folder) => writeFileSync(join(folder, NAME), overlay(NAME, 'qcow2')))
  add('70 two images that back each other', (folder) => {
    writeFileSync(join(folder, NAME), overlay('other.qcow2', 'qcow2'))
    writeFileSync(join(folder, 'other.qcow2'), overlay(NAME, 'qcow2'))
  })
  add('70 an image that backs itself by a hard link', (folder) => {
    writeFileSync(join(folder, NAME), overlay('hard.qcow2', 'qcow2'))
    linkSync(join(folder, NAME), join(folder, 'hard.qcow2'))
  })
  add('70 an image that backs itself by a symbolic link', (folder) => {
    writeFileSync(join(folder, NAME), overlay('soft.qcow2', 'qcow2'))
    symlinkSync(NAME, join(folder, 'soft.qcow2'))
  })
  add('71 a chain of 201 images', (folder) => {
    writeFileSync(join(folder, '0'), build(sample(9)).bytes)
    for (let i = 1; i <= 200; i++)
      writeFileSync(join(folder, i === 200 ? NAME : String(i)), overlay(String(i - 1), 'qcow2', { clusterBits: 9, size: 40960 }))
  })
  add('76 a backing file shorter than its overlay', (folder) => {
    writeFileSync(join(folder, NAME), overlay('short.raw', 'raw'))
    writeFileSync(join(folder, 'short.raw'), Buffer.alloc(70_000, 0x77))
  })
  add('76 a backing file longer than its overlay', (folder) => {
    writeFileSync(join(folder, NAME), overlay('long.raw', 'raw'))
    writeFileSync(join(folder, 'long.raw'), Buffer.alloc(2 ** 20, 0x78))
  })
}

/** The secret lies beside the folder `images` of the case, as an administrator's files lie beside an upload. */
function names(add: Add): void {
  const around = (folder: string): void => {
    writeFileSync(join(folder, 'secret.raw'), SECRET)
    mkdirSync(join(folder, 'folder'))
    mkdirSync(join(folder, 'outside'))
    writeFileSync(join(folder, 'outside', 'secret.raw'), SECRET)
  }
  for (const name of [
    '/etc/passwd',
    '../secret.raw',
    'folder/../../secret.raw',
    '/dev/zero',
    '/proc/self/environ',
    '/proc/self/mem',
    'folder',
    '.',
    '..',
  ])
    add(`72 the backing file ${name}`, (folder) => {
      around(folder)
      writeFileSync(join(folder, NAME), overlay(name, 'raw'))
    })
  add('72 a symbolic link that leads out', (folder) => {
    around(folder)
    symlinkSync('/etc/hostname', join(folder, 'link.raw'))
    writeFileSync(join(folder, NAME), overlay('link.raw', 'raw'))
  })
  for (const name of [
    'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}',
    'nbd://127.0.0.1:1/x',
    'nbd:unix:/nowhere/socket',
    'http://127.0.0.1:1/x',
    'rbd:pool/x',
    'fd:0',
    'file:secret.raw',
    'fat:rw:/nowhere',
  ])
    add(`73 the backing file ${name}`, (folder) => {
      around(folder)
      writeFileSync(join(folder, NAME), overlay(name, 'raw'))
    })
  add('74 no format of the backing file', (folder) => {
    writeFileSync(join(folder, 'base.img'), build(sample(16)).bytes)
    writeFileSync(join(folder, NAME), overlay('base.img', undefined))
  })
  add('75 a raw backing file that begins as a qcow2 image', (folder) => {
    writeFileSync(join(folder, 'base.img'), build(sample(16)).bytes)
    writeFileSync(join(folder, NAME), overlay('base.img', 'raw'))
  })
  for (const format of ['vmdk', 'luks', 'QCOW2', ' raw'])
    add(`75 the backing format ${JSON.stringify(format)}`, (folder) => {
      around(folder)
      writeFileSync(join(folder, NAME), overlay('secret.raw', format))
    })
  add('81 a backing file that is not there', (folder) => writeFileSync(join(folder, NAME), overlay('nowhere.qcow2', 'qcow2')))
}

function dataFiles(add: Add): void {
  const of = (name: string): Buffer => build(sample(16, { dataFile: { name, raw: false } })).bytes
  for (const name of ['data.raw', '/etc/passwd', '../secret.raw', '/dev/zero', 'json:{"driver":"null-co"}', 'nbd://127.0.0.1:1/x'])
    add(`77 the data file ${name}`, (folder) => {
      writeFileSync(join(folder, NAME), of(name))
      if (name === 'data.raw') writeFileSync(join(folder, name), SECRET)
    })
  add('79 an image that is its own data file', (folder) => writeFileSync(join(folder, NAME), of(NAME)))
  add('79 a data file that is the backing file too', (folder) => {
    writeFileSync(join(folder, 'both.raw'), SECRET)
    writeFileSync(
      join(folder, NAME),
      build(sample(16, { dataFile: { name: 'both.raw', raw: false }, backing: { name: 'both.raw', format: 'raw' } })).bytes,
    )
  })
}

function wholeFiles(add: Add, one: One): void {
  const image = (): Buffer => build(sample(16)).bytes
  // 95: every byte of small images is 31-flips.spec.ts's; here is one cut a structure.
  for (const at of [
    104,
    512,
    CLUSTER,
    CLUSTER + 8,
    2 * CLUSTER,
    3 * CLUSTER,
    3 * CLUSTER + 4,
    4 * CLUSTER,
    4 * CLUSTER + 20,
    5 * CLUSTER + 1,
    7 * CLUSTER,
  ])
    one(`95 cut at byte ${at}`, () => image().subarray(0, at))
  add('96 a file that is grown by other bytes', (folder) =>
    writeFileSync(join(folder, NAME), Buffer.concat([image(), Buffer.alloc(CLUSTER + 77, 0x5a)])),
  )
  add('97 a sparse file of 8 TiB', (folder) => {
    writeFileSync(join(folder, NAME), image())
    truncateSync(join(folder, NAME), 2 ** 43)
  })
  one('97 a refcount table that claims the end of 2^56', () => {
    const x = build(sample(16)).copy()
    x.u64(x.at('refcountTable') + 4096, 2n ** 55n)
    return x.bytes
  })
  one('98 a qcow2 image that is an ISO image too', () => {
    const bytes = Buffer.from(image())
    bytes.write('\x01CD001\x01', 0x8000, 'latin1')
    return bytes
  })
  one('98 a qcow2 image that ends as a boot sector', () => {
    const bytes = Buffer.from(image())
    bytes.writeUInt16LE(0xaa55, 510)
    bytes.set([0x80, 1, 1, 0, 7, 0xfe, 0xff, 0xff, 1, 0, 0, 0, 0, 1, 0, 0], 446)
    return bytes
  })
  one('98 a VMDK descriptor', () => Buffer.from('# Disk DescriptorFile\nversion=1\nRW 4192256 FLAT "/etc/passwd" 0\n'.padEnd(CLUSTER, '\n')))
  // 99: exhaustive on small images in 31-flips.spec.ts; here are some of the bits of one of 64 KiB clusters.
  for (const bit of [63, 190, 300, 390, 767, 831, 895])
    one(`99 bit ${bit} of the header`, () => {
      const bytes = Buffer.from(image())
      bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (0x80 >> (bit & 7))
      return bytes
    })
  one('100 every refcount is all ones', () => {
    const x = build(sample(16)).copy()
    x.patch(x.at('refcountBlock[0]'), Buffer.alloc(CLUSTER, 0xff))
    return x.bytes
  })
  one('100 an L2 table of one offset all over', () => {
    const x = build(sample(16, { size: 8192 * CLUSTER })).copy()
    for (let i = 0; i < 8192; i++) x.u64(x.at('l2[0]') + i * 8, (1n << 63n) | BigInt(x.at('l2[0]')))
    return x.bytes
  })
  one('100 a refcount table of one block all over', () => {
    const x = build(sample(16)).copy()
    for (let i = 0; i < 8192; i++) x.u64(x.at('refcountTable') + i * 8, x.at('refcountBlock[0]'))
    return x.bytes
  })
}
