/**
 * What the profile `glance` says of partition tables, VMDKs and files of several formats, beside what OpenStack's inspector (oslo.utils 10.2.0) said of
 * the same bytes.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import test from 'ava'
import { inspect } from '../js/index.js'
import { must, temporaryFolder } from './support/qemu.js'

const rulesOf = async (source: Parameters<typeof inspect>[0]) => {
  const { verdict, findings } = await inspect(source, { profile: 'glance' })
  return [verdict, ...findings.filter(({ severity }) => severity === 'error' || severity === 'unknown').map(({ code }) => code)]
}

/** A disk of 300 KiB whose first sector is signed, with bytes put into it. */
function disk(...bytes: [at: number, bytes: string | number[]][]): Buffer {
  const whole = Buffer.alloc(300 << 10)
  whole.set([0x55, 0xaa], 510)
  for (const [at, part] of bytes) whole.set(Buffer.from(part as number[]), at)
  return whole
}

const GPT: [number, number[]] = [446, [0, 0, 2, 0, 0xee, 255, 255, 255, 1, 0, 0, 0, 9, 0, 0, 0]]

test('a boot sector needs a table of partitions, unless it is that of a FAT file system', async (t) => {
  const cases: [string, Buffer, string[]][] = [
    ['no partitions', disk(), ['refused', 'GLANCE_PARTITIONS']],
    ['FAT', disk([16, [2]], [21, [0xf8]]), ['acceptable']],
    ['a partition', disk([450, [0x83]]), ['acceptable']],
    ['a flag that is none', disk([450, [0x83]], [462, [1]]), ['refused', 'GLANCE_PARTITIONS']],
    ['GPT', disk(GPT), ['acceptable']],
    ['GPT and another partition', disk(GPT, [466, [0x83]]), ['refused', 'GLANCE_PARTITIONS']],
    ['GPT at another sector', disk(GPT, [454, [2]]), ['refused', 'GLANCE_PARTITIONS']],
    ['an ISO that boots', disk([450, [0x83]], [32_769, 'CD001']), ['refused', 'GLANCE_SEVERAL_FORMATS']],
    ['an ISO', disk([510, [0, 0]], [32_769, 'CD001']), ['acceptable']],
    ['VDI that boots', disk([450, [0x83]], [64, [0x7f, 0x10, 0xda, 0xbe]]), ['refused', 'GLANCE_SEVERAL_FORMATS']],
    ['VHDX without its tables', disk([0, 'vhdxfile'], [510, [0, 0]]).subarray(0, 200 << 10), ['refused', 'GLANCE_HEADER']],
    ['gzip, which it does not know', disk([0, [31, 139, 8]], [510, [0, 0]]), ['acceptable']],
  ]
  for (const [name, bytes, answer] of cases) t.deepEqual(await rulesOf(bytes), answer, name)
})

test('a VMDK is taken by what its descriptor says, and nothing that it names is opened', async (t) => {
  const folder = temporaryFolder()
  const at = (name: string) => join(folder, name)
  const types = ['monolithicSparse', 'streamOptimized', 'monolithicFlat', 'twoGbMaxExtentSparse']
  for (const type of types) await must('qemu-img', ['create', '-q', '-f', 'vmdk', '-o', `subformat=${type}`, `${type}.vmdk`, '4M'], { cwd: folder })
  t.deepEqual(await rulesOf(at('monolithicSparse.vmdk')), ['acceptable'])
  for (const type of types.slice(2)) t.deepEqual(await rulesOf(at(`${type}.vmdk`)), ['refused', 'GLANCE_VMDK_TYPE'], type)
  const { facts } = await inspect(at('monolithicFlat.vmdk'))
  t.deepEqual(facts.extents, ['rw 8192 flat "monolithicflat-flat.vmdk" 0'])

  const changed = (name: string, change: (bytes: Buffer) => void) => {
    const bytes = readFileSync(at(name))
    change(bytes)
    return rulesOf(bytes)
  }
  const one = 'monolithicSparse.vmdk'
  t.deepEqual(await changed(one, (bytes) => bytes.write('/', bytes.indexOf('SPARSE "') + 8)), ['refused', 'GLANCE_VMDK_EXTENTS'])
  t.deepEqual(await changed(one, (bytes) => bytes.write('#', bytes.indexOf('\nRW ') + 1)), ['refused', 'GLANCE_VMDK_EXTENTS'])
  t.deepEqual(await changed(one, (bytes) => bytes.write('also', bytes.indexOf('\nRW ') + 1)), ['refused', 'GLANCE_VMDK_DESCRIPTOR'])
  t.deepEqual(await changed(one, (bytes) => bytes.writeUInt32LE(4, 4)), ['refused', 'GLANCE_VMDK_DESCRIPTOR'])
  t.deepEqual(await changed(one, (bytes) => bytes.writeUInt32LE(2, 28)), ['refused', 'GLANCE_VMDK_DESCRIPTOR'])
  t.deepEqual(await rulesOf(readFileSync(at('streamOptimized.vmdk'))), ['acceptable'])
})

test('where the last header of a VMDK counts, nobody can tell before its end', async (t) => {
  const path = join(temporaryFolder(), 'x.vmdk')
  await must('qemu-img', ['create', '-q', '-f', 'vmdk', '-o', 'subformat=streamOptimized', path, '4M'])
  const head = readFileSync(path)
  const last = Buffer.from(head.subarray(0, 512))
  head.fill(255, 56, 64)
  const marker = Buffer.alloc(512)
  marker[12] = 3
  const whole = Buffer.concat([head, marker, last, Buffer.alloc(512)])
  t.deepEqual(await rulesOf(whole), ['acceptable'])
  const other = Buffer.from(whole)
  other[other.length - 1024 + 4] = 2
  t.deepEqual(await rulesOf(other), ['refused', 'GLANCE_VMDK_DESCRIPTOR'])
  t.deepEqual(await rulesOf(whole.subarray(0, -512)), ['refused', 'GLANCE_VMDK_DESCRIPTOR'])
  const stream = Readable.from([whole, Buffer.alloc(60_000)])
  const { verdict, findings } = await inspect(stream, { profile: 'glance', limits: { maxBytesRead: 65_536 } })
  t.is(verdict, 'unknown')
  t.true(findings.some(({ severity, code }) => severity === 'unknown' && code === 'GLANCE_VMDK_DESCRIPTOR'))
})
