/** Disks that are written in place: every kind of image, many requests at once, sizes, streams, closing; QEMU reads what was written. */
import { readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import test from 'ava'
import { type Disk, memoryStorage, open } from '../js/index.js'
import { failure, MIB } from './support/fixtures.js'
import { Model, tagged } from './support/model.js'
import { firstSeed } from './support/prng.js'
import { qemu, run, temporaryFolder } from './support/qemu.js'
import { busy, differs, differsForQemu, KINDS, subject } from './support/writable.js'

/** An empty image of 8 MiB. */
async function empty(size = 8 * MIB, o: string[] = []): Promise<string> {
  const path = join(temporaryFolder(), 'disk.qcow2')
  await qemu.create(path, { size, o })
  return path
}

async function clean(path: string): Promise<number> {
  return (await qemu.check(path)).code
}

for (const [index, [name, kind]] of Object.entries(KINDS).entries()) {
  test(`${name}: random requests, sixteen at once, leave what the model says, for us and for QEMU`, async (t) => {
    const { path, model, options, format, clusterSize } = await subject(kind)
    for (const again of [0, 1]) {
      const disk = (await open(path, options)) as Disk<number>
      await busy(disk, { model, clusterSize }, firstSeed(7000) + index * 2 + again, 12)
      t.is(await differs(disk, model), 'equal')
      await disk.close()
      t.is(await differsForQemu(path, model, format), 'equal')
      if (format === 'qcow2') t.is(await clean(path), 0)
    }
  })
}

test('each signature of FileHandle.write writes the same bytes', async (t) => {
  const path = await empty()
  const disk = await open(path, { writable: true })
  const bytes = Buffer.from(tagged(0, 300))
  const model = new Model(8 * MIB)
  const first = await disk.write(bytes, 100, 200, 5000)
  t.is(first.bytesWritten, 200)
  t.is(first.buffer, bytes)
  await disk.write(bytes, null, undefined, 10_000n)
  await disk.write(bytes, { position: 20_000 })
  await disk.write(bytes, { offset: 290, length: 10, position: 30_000n })
  await disk.write(new Uint32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + 300)), { position: 40_000 })
  await disk.write(new DataView(bytes.buffer, bytes.byteOffset + 10, 20), { position: 50_000 })
  t.is((await disk.write(bytes, 5, 0, 8 * MIB)).bytesWritten, 0)
  model.write(5000, bytes.subarray(100))
  for (const position of [10_000, 20_000, 40_000]) model.write(position, bytes)
  model.write(30_000, bytes.subarray(290))
  model.write(50_000, bytes.subarray(10, 30))
  t.is(await differs(disk, model), 'equal')
  await disk.close()
  t.is(await differsForQemu(path, model), 'equal')
})

test('the bytes are taken at the call: the buffer may be used again at once, or go away', async (t) => {
  const disk = await open(await empty(), { writable: true })
  const model = new Model(8 * MIB)
  const bytes = new Uint8Array(9 * 4096)
  const writes = []
  for (let i = 0; i < 60; i++) {
    bytes.fill(i + 1)
    model.write(i * bytes.length, bytes)
    writes.push(disk.write(bytes, { position: i * bytes.length }))
  }
  structuredClone(bytes.buffer, { transfer: [bytes.buffer] })
  await Promise.all(writes)
  t.is(await differs(disk, model), 'equal')
  await disk.close()
})

test('a write of many megabytes that begins anywhere is one write', async (t) => {
  const path = await empty(64 * MIB)
  const disk = await open(path, { writable: true })
  const model = new Model(64 * MIB)
  const bytes = tagged(777, 40 * MIB + 333)
  model.write(777, bytes)
  t.is((await disk.write(bytes, { position: 777 })).bytesWritten, bytes.length)
  t.is(await differs(disk, model), 'equal')
  await disk.close()
  t.is(await differsForQemu(path, model), 'equal')
})

test('flushes that are asked for together all end, and cover what was written before each', async (t) => {
  const path = await empty()
  const disk = await open(path, { writable: true })
  const model = new Model(8 * MIB)
  const flushes = []
  for (let i = 0; i < 40; i++) {
    const bytes = tagged(i * 100_000, 5000)
    await disk.write(bytes, { position: i * 100_000 })
    model.write(i * 100_000, bytes)
    flushes.push(disk.flush())
  }
  await Promise.all(flushes)
  // Another reader, without our locks and caches: what was flushed is in the file while the disk is still open.
  await qemu.img('convert', '-q', '-U', '-f', 'qcow2', '-O', 'raw', path, `${path}.raw`)
  t.deepEqual(await readFile(`${path}.raw`), Buffer.from(model.read(0, 8 * MIB)))
  await disk.close()
})

test('a flush that nobody waits for any longer goes on', async (t) => {
  const disk = await open(await empty(), { writable: true })
  await disk.write(Buffer.alloc(100_000, 1), { position: 0 })
  const controller = new AbortController()
  const flushing = disk.flush({ signal: controller.signal })
  controller.abort(new Error('enough'))
  t.is((await failure(() => flushing)).code, 'ERR_QCOW2_CANCELLED')
  t.is((await failure(() => disk.flush({ signal: AbortSignal.abort() }))).code, 'ERR_QCOW2_CANCELLED')
  await disk.flush()
  await disk.close()
})

test('a disk grows and shrinks, and says so at once and later', async (t) => {
  const path = await empty(8 * MIB)
  const disk = (await open(path, { writable: true })) as Disk<number>
  const model = new Model(8 * MIB)
  const bytes = tagged(8 * MIB - 1000, 1000)
  await disk.write(bytes, { position: 8 * MIB - 1000 })
  model.write(8 * MIB - 1000, bytes)
  // What comes after it waits for it: the new part is there.
  const growing = disk.resize('20M')
  const late = disk.write(tagged(19 * MIB, 5000, 9), { position: 19 * MIB })
  await Promise.all([growing, late])
  model.resize(20 * MIB)
  model.write(19 * MIB, tagged(19 * MIB, 5000, 9))
  t.is(disk.virtualSize, 20 * MIB)
  t.is(disk.chain[0]?.virtualSize, 20 * MIB)
  t.is(await differs(disk, model), 'equal')
  t.is((await failure(() => disk.resize(9 * MIB))).code, 'ERR_QCOW2_SHRINK')
  t.is(disk.virtualSize, 20 * MIB)
  await disk.resize(9 * MIB, { shrink: true })
  model.resize(9 * MIB)
  t.is((await failure(() => disk.write(bytes, { position: 19 * MIB }))).code, 'ERR_QCOW2_OUT_OF_RANGE')
  // What was cut off does not come back.
  await disk.resize(20 * MIB, { preallocation: 'metadata' })
  model.resize(20 * MIB)
  t.is(await differs(disk, model), 'equal')
  await disk.close()
  t.is((await qemu.info(path))['virtual-size'], 20 * MIB)
  t.is(await differsForQemu(path, model), 'equal')
  t.is(await clean(path), 0)
})

test('a raw file is written, zeroed, grown and shrunk', async (t) => {
  const path = join(temporaryFolder(), 'disk.raw')
  await writeFile(path, Buffer.alloc(MIB, 7))
  const disk = (await open(path, { format: 'raw', writable: true })) as Disk<number>
  const model = new Model(MIB)
  model.write(0, Buffer.alloc(MIB, 7))
  await disk.write(tagged(500, 1000, 1), { position: 500 })
  model.write(500, tagged(500, 1000, 1))
  await disk.writeZeroes(65536, 65536, { unmap: true })
  model.zero(65536, 65536)
  await disk.resize(2 * MIB)
  model.resize(2 * MIB)
  t.is(await differs(disk, model), 'equal')
  await disk.resize(MIB / 2, { shrink: true })
  model.resize(MIB / 2)
  await disk.close()
  t.deepEqual(await readFile(path), Buffer.from(model.read(0, MIB / 2)))
})

test('an image in memory, and one inside a larger file, are written where they are', async (t) => {
  const path = await empty()
  const image = await readFile(path)
  const memory = memoryStorage(image)
  const disk = (await open(memory, { writable: true })) as Disk<number>
  const model = new Model(8 * MIB)
  model.write(100, tagged(100, 200_000, 5))
  await disk.write(tagged(100, 200_000, 5), { position: 100 })
  await disk.close()
  await writeFile(path, memory.toUint8Array())
  t.is(await differsForQemu(path, model), 'equal')
  t.is((await failure(() => open(image, { writable: true }))).details.argument, 'source')

  const outer = join(temporaryFolder(), 'outer')
  await writeFile(outer, Buffer.concat([Buffer.alloc(MIB, 1), image]))
  const inner = (await open({ path: outer, offset: MIB }, { writable: true })) as Disk<number>
  await inner.write(tagged(100, 200_000, 5), { position: 100 })
  await inner.close()
  const bytes = await readFile(outer)
  t.true(
    bytes.subarray(0, MIB).every((byte) => byte === 1),
    'what stands before it was touched',
  )
  await writeFile(path, bytes.subarray(MIB))
  t.is(await differsForQemu(path, model), 'equal')
  t.is(await clean(path), 0)
})

test('only the top of a chain changes', async (t) => {
  const folder = temporaryFolder()
  await qemu.create(join(folder, 'base'), { size: 2 * MIB })
  await qemu.io(join(folder, 'base'), ['write -P 5 0 2M'])
  await qemu.create(join(folder, 'middle'), { backing: 'base', cwd: folder })
  await qemu.create(join(folder, 'top'), { backing: 'middle', size: 3 * MIB, cwd: folder })
  const before = await Promise.all(['base', 'middle'].map((name) => readFile(join(folder, name))))
  const disk = (await open(join(folder, 'top'), { writable: true })) as Disk<number>
  const model = new Model(3 * MIB)
  model.write(0, Buffer.alloc(2 * MIB, 5))
  await busy(disk, { model, clusterSize: 65536 }, 5, 10)
  t.is(await differs(disk, model), 'equal')
  t.is(disk.chain.length, 3)
  await disk.close()
  t.is(await differsForQemu(join(folder, 'top'), model), 'equal')
  t.deepEqual(await Promise.all(['base', 'middle'].map((name) => readFile(join(folder, name)))), before)
})

for (const size of [700, 65536, 3 * MIB]) {
  test(`a Node.js stream of chunks of ${size} bytes arrives in order`, async (t) => {
    const path = await empty()
    const disk = (await open(path, { writable: true })) as Disk<number>
    const bytes = Buffer.from(tagged(0, 5 * MIB + 77))
    const model = new Model(8 * MIB)
    model.write(12_345, bytes)
    const chunks = function* (): Generator<Buffer> {
      for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
    }
    const stream = disk.createWriteStream({ start: 12_345, flush: true })
    await pipeline(Readable.from(chunks()), stream)
    t.is(stream.bytesWritten, bytes.length)
    t.false(disk.closed)
    t.is(await differs(disk, model), 'equal')
    await disk.close()
    t.is(await differsForQemu(path, model), 'equal')
  })
}

test('a stream holds back a source that is faster than the disk', async (t) => {
  const disk = await open(await empty(64 * MIB), { writable: true })
  const stream = disk.createWriteStream({ highWaterMark: MIB })
  let [accepted, refused] = [0, 0]
  for (; stream.write(Buffer.alloc(256 * 1024, 1)); accepted++) if (accepted > 100) t.fail('it takes everything')
  refused++
  await new Promise((resolve) => stream.once('drain', resolve))
  t.true(accepted <= 4 && refused === 1)
  await new Promise<void>((resolve) => stream.end(() => resolve()))
  await disk.close()
})

test('streams end with what the disk says, and stop by signal', async (t) => {
  const disk = await open(await empty(MIB), { writable: true })
  const over = await failure(() => pipeline(Readable.from([Buffer.alloc(MIB - 100), Buffer.alloc(200)]), disk.createWriteStream()))
  t.is(over.code, 'ERR_QCOW2_OUT_OF_RANGE')
  const controller = new AbortController()
  const endless = Readable.from(
    (function* () {
      for (;;) yield Buffer.alloc(16)
    })(),
  )
  const stopped = pipeline(endless, disk.createWriteStream({ signal: controller.signal }))
  controller.abort()
  t.is(((await stopped.catch((error) => error)) as Error).name, 'AbortError')
  t.is((await failure(() => disk.createWriteStream({ encoding: 'utf8' } as object))).code, 'ERR_QCOW2_UNKNOWN_OPTION')
  t.is((await failure(() => disk.createWriteStream({ start: -1 }))).details.argument, 'start')
  await disk.close()
  t.is((await failure(() => disk.createWriteStream())).code, 'ERR_QCOW2_CLOSED')
})

test('a web stream copies one disk to another', async (t) => {
  const from = (await open(await empty(), { writable: true })) as Disk<number>
  const model = new Model(8 * MIB)
  await busy(from, { model, clusterSize: 65536 }, 3, 5)
  const path = await empty()
  const to = (await open(path, { writable: true })) as Disk<number>
  await from.readable().pipeTo(to.writable({ flush: true }))
  t.is(await differs(to, model), 'equal')
  const writer = to.writable({ start: 8 * MIB }).getWriter()
  t.is((await failure(() => writer.write(new Uint8Array(1)).then(() => writer.close()))).code, 'ERR_QCOW2_OUT_OF_RANGE')
  const words = to.writable().getWriter()
  t.is((await failure(() => words.write('text' as unknown as Uint8Array))).details.argument, 'chunk')
  await from.close()
  await to.close()
  t.is(await differsForQemu(path, model), 'equal')
})

test('close waits for what was accepted, refuses what comes later, and leaves a clean image', async (t) => {
  const path = await empty(8 * MIB, ['lazy_refcounts=on'])
  const disk = await open(path, { writable: true })
  const model = new Model(8 * MIB)
  const order: string[] = []
  const writes = Array.from({ length: 100 }, (_, i) => {
    const bytes = tagged(i * 70_000, 3000)
    model.write(i * 70_000, bytes)
    return disk.write(bytes, { position: i * 70_000 }).then(() => order.push('written'))
  })
  const flushes = [disk.flush(), disk.flush(), disk.flush()]
  const closing = disk.close()
  t.is(disk.close(), closing)
  closing.then(() => order.push('closed'))
  t.true(disk.closed)
  for (const late of [() => disk.write(new Uint8Array(1), { position: 0 }), () => disk.flush(), () => disk.discard(0, 1), () => disk.resize(1)]) {
    t.is((await failure(late)).code, 'ERR_QCOW2_CLOSED')
  }
  await Promise.all([...writes, ...flushes, closing])
  t.deepEqual(order, [...Array(100).fill('written'), 'closed'])
  t.is(await differsForQemu(path, model), 'equal')
  t.is(await clean(path), 0)
  const { dirty } = (await qemu.info(path)) as { dirty?: boolean }
  t.falsy(dirty)
})

test('what is not written leaves the file as it was', async (t) => {
  const path = await empty()
  const before = await readFile(path)
  const disk = await open(path, { writable: true })
  await disk.read(Buffer.alloc(4096), { position: 0 })
  await disk.flush()
  await disk.close()
  t.deepEqual(await readFile(path), before)
})

test('while a disk is open for writing nobody else may use it, and readers are let in again afterwards', async (t) => {
  const path = await empty()
  const disk = await open(path, { writable: true })
  const other = await run('qemu-io', ['-f', 'qcow2', '-c', 'write 0 512', path])
  t.regex(other.stderr + other.stdout.toString(), /lock/)
  t.is((await failure(() => open(path))).code, 'ERR_QCOW2_LOCKED')
  t.is((await failure(() => open(path, { writable: true }))).code, 'ERR_QCOW2_LOCKED')
  const torn = await open(path, { forceShare: true })
  await torn.close()
  await disk.close()
  const reader = await open(path)
  t.is((await failure(() => open(path, { writable: true }))).code, 'ERR_QCOW2_LOCKED')
  await reader.close()
  await (await open(path, { writable: true })).close()
})

test('a file that is full of space is given back what is discarded', async (t) => {
  const path = await empty(32 * MIB)
  const disk = await open(path, { writable: true })
  await disk.write(Buffer.alloc(32 * MIB, 1), { position: 0 })
  await disk.flush()
  const before = (await stat(path)).blocks
  await disk.discard(0, 24 * MIB)
  await disk.flush()
  await disk.close()
  const after = (await stat(path)).blocks
  t.true(after * 512 < before * 512 - 20 * MIB, `${before} blocks, ${after} after`)
})

test('numbers beyond 2^53 are written with bigint', async (t) => {
  const path = join(temporaryFolder(), 'huge.qcow2')
  await qemu.create(path, { size: 2n ** 54n, o: ['cluster_size=2M'] })
  const disk = await open(path, { writable: true, bigint: true })
  const position = 2n ** 54n - 512n
  await disk.write(Buffer.alloc(512, 3), { position })
  const { buffer } = await disk.read(Buffer.alloc(512), { position })
  t.true(buffer.every((byte) => byte === 3))
  t.is((await failure(() => disk.write(Buffer.alloc(513), { position }))).code, 'ERR_QCOW2_OUT_OF_RANGE')
  await disk.close()
})
