/** What an image names, and what lies around it: chains, the gate, limits, other kinds of files, files that change. */
import { spawnSync } from 'node:child_process'
import { linkSync, mkdirSync, readdirSync, statSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { check, convert, info, open } from '../js/index.js'
import type { OpenOptions, Source } from '../js/types.js'
import { build } from './support/builder.js'
import { deflate } from './support/codecs.js'
import { sample, sampleBytes } from './support/hostile-sample.js'
import { tagged } from './support/model.js'
import { answer, readRange, withDisk } from './support/ours.js'
import { temporaryFolder } from './support/qemu.js'
import { type ImageSpec, imageSpec } from './support/spec.js'

async function fails(t: ExecutionContext, source: Source, options: OpenOptions, code: RegExp | string, what: string): Promise<void> {
  const got = await answer(what, open(source, options), 20_000)
  if ('value' in got) {
    await got.value.close()
    t.fail(`${what}: it opened`)
  } else if (typeof code === 'string') t.is(got.error.code, code, `${what}: ${got.error.message}`)
  else t.regex(got.error.code, code, `${what}: ${got.error.message}`)
}

function overlay(folder: string, name: string, backing: string, format: string | false = 'qcow2', change: Partial<ImageSpec> = {}): string {
  const path = join(folder, name)
  const spec = imageSpec({
    clusterBits: 16,
    size: 4 * 65536,
    featureNames: false,
    backing: format === false ? { name: backing } : { name: backing, format },
    ...change,
  })
  writeFileSync(path, build(spec).bytes)
  return path
}

test.serial('70 an image that backs itself is refused at once', async (t) => {
  const folder = temporaryFolder()
  await fails(t, overlay(folder, 'self.qcow2', 'self.qcow2'), {}, 'ERR_QCOW2_BACKING_LOOP', 'itself')
  overlay(folder, 'b.qcow2', 'a.qcow2')
  await fails(t, overlay(folder, 'a.qcow2', 'b.qcow2'), {}, 'ERR_QCOW2_BACKING_LOOP', 'two images')
  const hard = overlay(folder, 'hard.qcow2', 'other-name.qcow2')
  linkSync(hard, join(folder, 'other-name.qcow2'))
  await fails(t, hard, {}, 'ERR_QCOW2_BACKING_LOOP', 'through a hard link')
  const soft = overlay(folder, 'soft.qcow2', 'soft-link.qcow2')
  symlinkSync('soft.qcow2', join(folder, 'soft-link.qcow2'))
  await fails(t, soft, {}, 'ERR_QCOW2_BACKING_LOOP', 'through a symbolic link')
  symlinkSync('circle', join(folder, 'circle'))
  await fails(t, overlay(folder, 'c.qcow2', 'circle'), {}, /^ERR_QCOW2_/, 'a link that is its own target')
})

test.serial('71 a chain is as deep as the limit says, 200 unless told otherwise', async (t) => {
  const folder = temporaryFolder()
  const base = sample(16)
  writeFileSync(join(folder, '0'), build(base).bytes)
  const good = sampleBytes(base)
  for (let i = 1; i <= 200; i++) overlay(folder, String(i), String(i - 1), 'qcow2', { size: good.length })
  await withDisk(join(folder, '199'), {}, async (disk) => {
    t.is(disk.chain.length, 200)
    t.deepEqual(Buffer.from(await readRange(disk, 0, good.length)), Buffer.from(good))
  })
  await fails(t, join(folder, '200'), {}, 'ERR_QCOW2_LIMIT', '201 layers')
  await fails(t, join(folder, '3'), { limits: { maxChainDepth: 3 } }, 'ERR_QCOW2_LIMIT', '4 layers of 3')
  await withDisk(join(folder, '2'), { limits: { maxChainDepth: 3 } }, async (disk) => t.is(disk.chain.length, 3))
})

test.serial('72 names outside of the image’s folder, devices, FIFOs and folders are not opened', async (t) => {
  const parent = temporaryFolder()
  const folder = join(parent, 'images')
  mkdirSync(folder)
  const secret = join(parent, 'secret.raw')
  writeFileSync(secret, Buffer.alloc(65536, 0x53))
  symlinkSync(secret, join(folder, 'link.raw'))
  mkdirSync(join(folder, 'folder'))
  t.is(spawnSync('mkfifo', [join(folder, 'fifo')]).status, 0)
  for (const name of [
    secret,
    '../secret.raw',
    'folder/../../secret.raw',
    'link.raw',
    '/dev/zero',
    '/proc/self/mem',
    '/proc/self/environ',
    '/etc/passwd',
    'folder',
    'fifo',
    '.',
    '..',
  ])
    await fails(t, overlay(folder, 'top.qcow2', name, 'raw'), {}, /^ERR_QCOW2_/, name)
  // Permission for a folder, or for every name, does not reach what is no regular file.
  for (const name of ['/dev/zero', '/dev/tty', 'fifo', 'folder'])
    await fails(t, overlay(folder, 'top.qcow2', name, 'raw'), { backingFiles: () => true }, /^ERR_QCOW2_/, `${name}, though permitted`)
  await withDisk(overlay(folder, 'top.qcow2', '../secret.raw', 'raw'), { backingFiles: [parent] }, async (disk) =>
    t.is((await readRange(disk, 0, 1))[0], 0x53),
  )
  await withDisk(overlay(folder, 'top.qcow2', '../secret.raw', 'raw'), { backingFiles: () => true }, async (disk) =>
    t.is((await readRange(disk, 0, 1))[0], 0x53),
  )
  await fails(
    t,
    overlay(folder, 'top.qcow2', '../secret.raw', 'raw'),
    { backingFiles: [folder] },
    /^ERR_QCOW2_/,
    'outside of the folders that are permitted',
  )
  await fails(t, overlay(folder, 'top.qcow2', '../secret.raw', 'raw'), { backingFiles: 'deny' }, /^ERR_QCOW2_/, 'denied')
})

test.serial('73 protocols are names of files and nothing else', async (t) => {
  const folder = temporaryFolder()
  for (const name of [
    'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}',
    'nbd://127.0.0.1:1/x',
    'nbd:unix:/tmp/x',
    'http://127.0.0.1:1/x',
    'rbd:pool/x',
    'fd:0',
    'file:base.raw',
    'fat:rw:/tmp',
  ])
    for (const backingFiles of ['same-directory', () => true] as const) {
      const got = await answer(name, open(overlay(folder, 'top.qcow2', name, 'raw'), { backingFiles }), 20_000)
      if ('value' in got) {
        await got.value.close()
        t.fail(`${name} opened`)
      } else t.regex(got.error.code, /^ERR_QCOW2_/)
    }
  // Even where a file of that very name lies: other programs would take the name for the protocol.
  writeFileSync(join(folder, 'file:base.raw'), Buffer.alloc(65536, 0x42))
  await fails(t, overlay(folder, 'top.qcow2', 'file:base.raw', 'raw'), {}, 'ERR_QCOW2_NAME_PROTOCOL', 'file:')
})

test.serial('74 and 75 the format of a backing file is what is recorded, and is never guessed', async (t) => {
  const folder = temporaryFolder()
  const inner = build(sample(16))
  writeFileSync(join(folder, 'base.img'), inner.bytes)
  await fails(t, overlay(folder, 'top.qcow2', 'base.img', false), {}, /^ERR_QCOW2_.*FORMAT/, 'no format recorded')
  await withDisk(overlay(folder, 'top.qcow2', 'base.img', false), { backingFiles: (file) => ({ path: file.path, format: 'qcow2' }) }, async (disk) =>
    t.deepEqual(Buffer.from(await readRange(disk, 0, 65536)), Buffer.from(sampleBytes(sample(16)).slice(0, 65536))),
  )
  await withDisk(overlay(folder, 'top.qcow2', 'base.img', 'raw'), {}, async (disk) =>
    t.deepEqual(Buffer.from(await readRange(disk, 0, 65536)), inner.bytes.subarray(0, 65536), 'a qcow2 header in raw data is data'),
  )
  for (const format of ['vmdk', 'vdi', 'nbd', 'QCOW2', ' raw'])
    await fails(t, overlay(folder, 'top.qcow2', 'base.img', format), {}, /^ERR_QCOW2_.*FORMAT/, `format ${format}`)
})

test.serial('76 a backing file that is shorter or longer than its overlay', async (t) => {
  const folder = temporaryFolder()
  writeFileSync(join(folder, 'short.raw'), Buffer.alloc(70_000, 0x77))
  await withDisk(overlay(folder, 'top.qcow2', 'short.raw', 'raw'), {}, async (disk) => {
    const bytes = Buffer.from(await readRange(disk, 0, 4 * 65536))
    t.true(bytes.subarray(0, 70_000).every((byte) => byte === 0x77))
    t.true(bytes.subarray(70_000).every((byte) => byte === 0))
  })
  writeFileSync(join(folder, 'long.raw'), Buffer.alloc(2 ** 20, 0x78))
  await withDisk(overlay(folder, 'top.qcow2', 'long.raw', 'raw'), {}, async (disk) => {
    t.is(Number(disk.virtualSize), 4 * 65536)
    t.true((await readRange(disk, 0, 4 * 65536)).every((byte) => byte === 0x78))
  })
})

test.serial('77 and 79 an external data file is opened only when asked for, through the same gate', async (t) => {
  const folder = temporaryFolder()
  const parent = join(folder, '..')
  const spec = sample(16, { dataFile: { name: 'data.raw', raw: false } })
  const image = build(spec)
  const path = join(folder, 'top.qcow2')
  writeFileSync(path, image.bytes)
  writeFileSync(join(folder, 'data.raw'), image.dataFile ?? new Uint8Array())
  await fails(t, path, {}, /^ERR_QCOW2_DATA_FILE/, 'not asked for')
  const good = Buffer.from(sampleBytes(spec))
  await withDisk(path, { dataFile: true }, async (disk) => t.deepEqual(Buffer.from(await readRange(disk, 0, good.length)), good))
  await withDisk(path, { dataFile: join(folder, 'data.raw') }, async (disk) => t.deepEqual(Buffer.from(await readRange(disk, 0, good.length)), good))
  const naming = (name: string): string => {
    const other = join(folder, 'other.qcow2')
    writeFileSync(other, build(sample(16, { dataFile: { name, raw: false } })).bytes)
    return other
  }
  for (const name of ['/etc/passwd', `../${basename(parent)}/x`, '/dev/zero', 'json:{}', 'nbd://x', 'missing.raw'])
    await fails(t, naming(name), { dataFile: true }, /^ERR_QCOW2_/, name)
  await fails(t, naming('other.qcow2'), { dataFile: true }, 'ERR_QCOW2_SAME_FILE', 'its own data file')
  const moved = image.copy()
  moved.u64(moved.l2Entry(2), (5n * 65536n) | (1n << 63n))
  writeFileSync(path, moved.bytes)
  await withDisk(path, { dataFile: true }, async (disk) => {
    const got = await answer('44 a cluster that is not at its guest offset', readRange(disk, 2 * 65536, 512))
    t.is('error' in got ? got.error.code : 'read', 'ERR_QCOW2_CORRUPT')
    t.deepEqual(Buffer.from(await readRange(disk, 0, 65536)), good.subarray(0, 65536))
  })
})

test.serial('81 info opens nothing that an image names', async (t) => {
  const folder = temporaryFolder()
  t.is(spawnSync('mkfifo', [join(folder, 'fifo')]).status, 0)
  const facts = await answer('info', info(overlay(folder, 'top.qcow2', 'fifo', 'raw')), 20_000)
  t.is('value' in facts ? facts.value.backingFile : facts.error.code, 'fifo')
  writeFileSync(join(folder, 'data.qcow2'), build(sample(16, { dataFile: { name: '/nowhere/at/all', raw: false } })).bytes)
  const other = await answer('info', info(join(folder, 'data.qcow2')), 20_000)
  t.is('value' in other ? other.value.dataFile : other.error.code, '/nowhere/at/all')
})

test.serial('1 and 72 what is no image: nothing, a folder, a FIFO, a device', async (t) => {
  const folder = temporaryFolder()
  t.is(spawnSync('mkfifo', [join(folder, 'fifo')]).status, 0)
  for (const [path, code] of [
    [join(folder, 'missing'), 'ERR_QCOW2_IO'],
    [folder, /^ERR_QCOW2_/],
    [join(folder, 'fifo'), /^ERR_QCOW2_/],
    ['/dev/zero', /^ERR_QCOW2_/],
    ['/dev/null', /^ERR_QCOW2_/],
  ] as const) {
    await fails(t, path, {}, code, path)
    for (const work of [info(path), check(path), convert(path, join(folder, 'out'), { sourceFormat: 'qcow2', format: 'raw' })]) {
      const got = await answer(path, work as PromiseLike<unknown>, 20_000)
      t.true('error' in got, path)
    }
  }
  t.deepEqual(readdirSync(folder), ['fifo'])
})

test.serial('16 a huge virtual size costs nothing and obeys the limit', async (t) => {
  const folder = temporaryFolder()
  const path = join(folder, 'huge.qcow2')
  const size = 2n ** 61n
  const last = 2 ** 40 - 1
  const data = tagged(0, 2 ** 21, 61)
  writeFileSync(path, build(imageSpec({ clusterBits: 21, size, featureNames: false, clusters: new Map([[last, { kind: 'data', data }]]) })).bytes)
  await fails(t, path, {}, 'ERR_QCOW2_NEEDS_BIGINT', 'sizes past 2^53 without bigint')
  await withDisk(path, { bigint: true }, async (disk) => {
    t.is(disk.virtualSize, size)
    t.deepEqual(Buffer.from(await readRange(disk, size - 512n, 512)), Buffer.from(data.subarray(2 ** 21 - 512)))
    t.true((await readRange(disk, 2n ** 60n, 4096)).every((byte) => byte === 0))
    const runs = []
    for await (const { start, length, zero } of disk.map()) runs.push([start, length, zero])
    t.deepEqual(runs, [
      [0n, size - 2n ** 21n, true],
      [size - 2n ** 21n, 2n ** 21n, false],
    ])
  })
  await fails(t, path, { bigint: true, limits: { maxVirtualSize: '1T' } }, 'ERR_QCOW2_LIMIT', 'maxVirtualSize')
  t.true(process.resourceUsage().maxRSS / 1024 < 700)
})

test.serial('54 many entries of one compressed cluster: the output obeys its limit, and nothing is left', async (t) => {
  const folder = temporaryFolder()
  const cluster = 2 ** 21
  const data = tagged(0, cluster, 3).slice()
  const shared = { kind: 'compressed' as const, data, payload: deflate(data, 12, 9) }
  const spec = imageSpec({ clusterBits: 21, size: 512 * cluster, featureNames: false, refcountOrder: 5 })
  spec.clusters.set(0, shared)
  const image = build(spec)
  for (let guest = 1; guest < 512; guest++) image.u64(image.l2Entry(guest), image.readU64(image.l2Entry(0)))
  const path = join(folder, 'bomb.qcow2')
  writeFileSync(path, image.bytes)
  const target = join(folder, 'out.raw')
  const got = await answer('convert', convert(path, target, { format: 'raw', limits: { maxOutputSize: 16 * 2 ** 20 } }), 60_000)
  t.is('error' in got ? got.error.code : 'converted', 'ERR_QCOW2_LIMIT')
  t.deepEqual(readdirSync(folder), ['bomb.qcow2'])
})

test.serial('21 and 95 an L1 table that the file cuts is refused, at every length', async (t) => {
  const spec = imageSpec({ clusterBits: 9, size: 200 * 512 * 64, featureNames: false })
  const image = build(spec)
  const { offset, length } = image.place('l1')
  for (let end = offset; end < offset + length; end += 41) {
    const got = await answer('open', open(new Uint8Array(image.cut(end))))
    t.is('error' in got ? got.error.code : 'opened', 'ERR_QCOW2_L1_TRUNCATED', `cut to ${end}`)
  }
})

test.serial('96 a file that shrinks while it is open fails the read and crashes nothing', async (t) => {
  const folder = temporaryFolder()
  const path = join(folder, 'shrinks.qcow2')
  const cluster = 2 ** 16
  const spec = imageSpec({ clusterBits: 16, size: 64 * cluster, featureNames: false })
  for (let guest = 0; guest < 64; guest++) spec.clusters.set(guest, { kind: 'data', data: tagged(guest * cluster, cluster, 9) })
  const image = build(spec)
  writeFileSync(path, image.bytes)
  const disk = await open(path)
  await readRange(disk, 0, cluster)
  truncateSync(path, image.at('data[10]'))
  const got = await answer('read', readRange(disk, 20 * cluster, cluster))
  t.true('error' in got, 'bytes that are gone are not zeros')
  await disk.close()
})

test.serial('97 a sparse file of exabytes is not measured by allocating', async (t) => {
  const folder = temporaryFolder()
  const path = join(folder, 'sparse.qcow2')
  const spec = sample(16)
  writeFileSync(path, build(spec).bytes)
  try {
    truncateSync(path, 2 ** 52)
  } catch {
    truncateSync(path, 2 ** 43)
  }
  t.true(statSync(path).size >= 2 ** 43)
  await withDisk(path, {}, async (disk) => t.deepEqual(Buffer.from(await readRange(disk, 0, 65536)), Buffer.from(sampleBytes(spec).slice(0, 65536))))
  const before = process.memoryUsage.rss()
  const judged = await answer('check', check(path), 20_000)
  t.true('value' in judged && judged.value.corruptions === 0, 'error' in judged ? judged.error.message : 'clean')
  t.true(process.memoryUsage.rss() - before < 256 * 2 ** 20)
})
