/** A disk as users of the API meet it: opening, reading, mapping, streaming, closing. */
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { pathToFileURL } from 'node:url'
import { inspect } from 'node:util'
import test from 'ava'
import { type Disk, info, memoryStorage, open, probe, type Run } from '../js/index.js'
import { collect, failure, MIB, smallChain, smallModel } from './support/fixtures.js'
import { qemu, temporaryFolder } from './support/qemu.js'

const chain = smallChain()
const model = smallModel()

test('a disk tells its size, clusters, format and layers', async (t) => {
  const { top, base } = await chain
  const disk = await open(top)
  t.is(disk.virtualSize, 8 * MIB)
  t.is(disk.clusterSize, 65536)
  t.is(disk.format, 'qcow2')
  t.like(disk.chain[0], { depth: 0, format: 'qcow2', path: top, backingFile: 'base.qcow2', backingFormat: 'qcow2' })
  t.like(disk.chain[1], { depth: 1, format: 'qcow2', path: base, virtualSize: 8 * MIB })
  t.is(disk.chain.length, 2)
  t.deepEqual(disk.snapshots.list(), [])
  t.deepEqual(disk.notices, [])
  t.false(disk.closed)
  await disk.close()
})

test('each signature of FileHandle.read reads the same bytes', async (t) => {
  const disk = await open((await chain).top)
  const position = 2 * MIB - 100
  const wanted = model.subarray(position, position + 200)
  const first = await disk.read(Buffer.alloc(200), 0, 200, position)
  t.deepEqual(first.buffer, wanted)
  t.is(first.bytesRead, 200)
  t.deepEqual((await disk.read(Buffer.alloc(200), { position })).buffer, wanted)
  t.deepEqual((await disk.read({ buffer: Buffer.alloc(200), position })).buffer, wanted)
  t.deepEqual((await disk.read({ position: BigInt(position), length: 200 })).buffer.subarray(0, 200), wanted)
  const inside = await disk.read(Buffer.alloc(210, 1), { offset: 5, length: 200, position: BigInt(position) })
  t.deepEqual(inside.buffer, Buffer.concat([Buffer.alloc(5, 1), wanted, Buffer.alloc(5, 1)]))
  const words = await disk.read(new Uint32Array(50), { position })
  t.deepEqual(Buffer.from(words.buffer.buffer), wanted)
  // An ArrayBuffer was taken for options, and the message then asked for a position that was there.
  t.is((await failure(() => disk.read(new ArrayBuffer(4) as unknown as Buffer, { position: 0 }))).details.argument, 'buffer')
  t.is((await failure(() => disk.read(new ArrayBuffer(4) as object as { position: 0 }))).details.argument, 'buffer')
  const view = await disk.read(new DataView(new ArrayBuffer(300), 50, 200), { position })
  t.deepEqual(Buffer.from(view.buffer.buffer, 50, 200), wanted)
  await disk.close()
})

test('a read ends where the disk ends', async (t) => {
  const disk = await open((await chain).top)
  t.is((await disk.read(Buffer.alloc(100), { position: 8 * MIB - 30 })).bytesRead, 30)
  t.is((await disk.read(Buffer.alloc(100), { position: 8 * MIB })).bytesRead, 0)
  t.is((await disk.read(Buffer.alloc(100), { position: Number.MAX_SAFE_INTEGER })).bytesRead, 0)
  t.is((await disk.read(Buffer.alloc(100), { position: 2n ** 63n - 1n })).bytesRead, 0)
  t.is((await disk.read(Buffer.alloc(0), { position: 0 })).bytesRead, 0)
  await disk.close()
})

test('a thousand reads at once each get their own bytes', async (t) => {
  const disk = await open((await chain).top)
  const places = Array.from({ length: 1000 }, (_, index) => (index * 7919 * 512) % (8 * MIB - 5000))
  const reads = await Promise.all(places.map((position) => disk.read(Buffer.alloc(4096), { position })))
  t.true(reads.every(({ buffer }, index) => buffer.equals(model.subarray(places[index], (places[index] ?? 0) + 4096))))
  await disk.close()
})

test('a read of the whole disk at once is right, and close waits for it', async (t) => {
  const { folder } = await chain
  const path = join(folder, 'big.raw')
  const bytes = Buffer.alloc(40 * MIB, 'qcow2 ')
  await writeFile(path, bytes)
  const disk = await open(path, { format: 'raw' })
  const reading = disk.read(Buffer.alloc(40 * MIB), { position: 0 })
  const closing = disk.close()
  t.is((await failure(() => disk.read(Buffer.alloc(1), { position: 0 }))).code, 'ERR_QCOW2_CLOSED')
  t.true((await reading).buffer.equals(bytes))
  await closing
})

test('arguments of read that have no meaning are refused by name', async (t) => {
  const disk = await open((await chain).top)
  const read = disk.read.bind(disk) as (...words: unknown[]) => Promise<unknown>
  const cases: [unknown[], string][] = [
    [[Buffer.alloc(8)], 'position'],
    [[Buffer.alloc(8), {}], 'position'],
    [[Buffer.alloc(8), 0, 8, null], 'position'],
    [[Buffer.alloc(8), { position: -1 }], 'position'],
    [[Buffer.alloc(8), { position: 1.5 }], 'position'],
    [[Buffer.alloc(8), { position: 2 ** 53 }], 'position'],
    [[Buffer.alloc(8), { position: 2n ** 63n }], 'position'],
    [[Buffer.alloc(8), { position: '0' }], 'position'],
    [[Buffer.alloc(8), 9, 1, 0], 'offset'],
    [[Buffer.alloc(8), { offset: -1, position: 0 }], 'offset'],
    [[Buffer.alloc(8), 4, 5, 0], 'length'],
    [[Buffer.alloc(8), { length: Number.NaN, position: 0 }], 'length'],
    [[[1, 2, 3], { position: 0 }], 'buffer'],
    [['text'], 'buffer'],
    [[undefined], 'buffer'],
    [[{ buffer: 'text', position: 0 }], 'buffer'],
  ]
  for (const [words, argument] of cases) {
    const error = await failure(() => read(...words))
    t.is(error.code, 'ERR_QCOW2_INVALID_ARGUMENT', inspect(words))
    t.is(error.details.argument, argument, inspect(words))
  }
  const near = await failure(() => read(Buffer.alloc(8), { Position: 0 }))
  t.is(near.code, 'ERR_QCOW2_UNKNOWN_OPTION')
  t.is(near.details.suggestion, 'position')
  await disk.close()
})

test('map gives the runs that qemu-img map gives', async (t) => {
  const { top, folder } = await chain
  const runs: Run<number>[] = []
  const disk = await open(top)
  for await (const run of disk.map()) runs.push(run)
  const wanted = (await qemu.map(top)).map(({ start, length, depth, present, zero, data, compressed, offset }) => ({
    ...{ start, length, depth, present, zero, data, compressed },
    ...(offset === undefined ? {} : { offset, path: join(folder, depth === 0 ? 'top.qcow2' : 'base.qcow2') }),
  }))
  t.deepEqual(runs, wanted)
  const part: Run<number>[] = []
  for await (const run of disk.map({ start: 2 * MIB - 512, end: 2 * MIB + 1024 })) part.push(run)
  t.deepEqual(
    part.map(({ start, length, depth }) => [start, length, depth]),
    [
      [2 * MIB - 512, 512, 1],
      [2 * MIB, 1024, 0],
    ],
  )
  t.deepEqual(await collectRuns(disk, { start: 8 * MIB, end: 9 * MIB }), [])
  // The message spoke of an end that nobody had given; a stream from there is empty.
  t.deepEqual(await collectRuns(disk, { start: 9 * MIB }), [])
  t.deepEqual(await collectRuns(disk, { start: 9 * MIB, end: 10 * MIB }), [])
  t.is((await failure(async () => disk.map({ start: 5, end: 4 }))).code, 'ERR_QCOW2_INVALID_ARGUMENT')
  t.is((await failure(async () => disk.map({ form: 5 } as object))).code, 'ERR_QCOW2_UNKNOWN_OPTION')
  t.is((await failure(async () => disk.map({ signal: AbortSignal.abort() }))).code, 'ERR_QCOW2_CANCELLED')
  await disk.close()
  t.is((await failure(async () => disk.map())).code, 'ERR_QCOW2_CLOSED')
})

test('map of a disk with thousands of runs crosses its batches without a gap', async (t) => {
  const path = join(temporaryFolder(), 'many.qcow2')
  await qemu.create(path, { size: 16 * MIB, o: ['cluster_size=512'] })
  const writes = Array.from({ length: 3000 }, (_, index) => `write -P ${1 + (index % 200)} ${index * 5120} 512`)
  await qemu.io(path, writes)
  const disk = await open(path)
  const runs = await collectRuns(disk)
  t.is(runs.filter(({ data }) => data).length, 3000)
  t.true(runs.every(({ start }, index) => start === (index === 0 ? 0 : (runs[index - 1]?.start ?? 0) + (runs[index - 1]?.length ?? 0))))
  t.is((runs.at(-1)?.start ?? 0) + (runs.at(-1)?.length ?? 0), 16 * MIB)
  const walk = disk.map()
  await walk.next()
  await disk.close()
  for (let left = 600; left > 0; left--) {
    const answer = await walk.next().catch((error) => error)
    if ('code' in answer) {
      t.is(answer.code, 'ERR_QCOW2_CLOSED')
      return
    }
  }
  t.fail('map went on after close')
})

test('a Node.js stream gives the range that was asked for, end inclusive', async (t) => {
  const disk = await open((await chain).top)
  t.true((await collect(disk.createReadStream())).equals(model))
  const part = disk.createReadStream({ start: 2 * MIB - 10, end: 2 * MIB + 9, highWaterMark: 512 })
  t.deepEqual(await collect(part), model.subarray(2 * MIB - 10, 2 * MIB + 10))
  t.is(part.bytesRead, 20)
  t.true((await collect(disk.createReadStream({ start: 5 * MIB, highWaterMark: 4096 }))).equals(model.subarray(5 * MIB)))
  t.is((await collect(disk.createReadStream({ start: 8n * BigInt(MIB) }))).length, 0)
  t.is((await collect(disk.createReadStream({ start: 0, end: 0 }))).length, 1)
  t.is((await failure(async () => disk.createReadStream({ start: 2, end: 1 }))).details.argument, 'start')
  t.is((await failure(async () => disk.createReadStream({ highWatermark: 1 } as object))).details.suggestion, 'highWaterMark')
  await disk.close()
})

test('streams stop by signal and fail with what the disk says', async (t) => {
  const disk = await open((await chain).top)
  const controller = new AbortController()
  const stream = disk.createReadStream({ highWaterMark: 512, signal: controller.signal })
  const error = await t.throwsAsync(async () => {
    for await (const _ of stream) controller.abort()
  })
  t.is(error?.name, 'AbortError')
  const web = new AbortController()
  const reader = disk.readable({ signal: web.signal, highWaterMark: 512 }).getReader()
  await reader.read()
  web.abort(new Error('enough'))
  t.is((await t.throwsAsync(reader.closed))?.message, 'enough')
  const late = disk.createReadStream()
  await disk.close()
  t.is((await failure(() => collect(late))).code, 'ERR_QCOW2_CLOSED')
})

test('a stream of a signal that has aborted ends with AbortError', async (t) => {
  // The stream was destroyed before its fields were there, and ended with a TypeError about a private member.
  const disk = await open((await chain).top)
  const error = await t.throwsAsync(collect(disk.createReadStream({ signal: AbortSignal.abort() })))
  t.is(error?.name, 'AbortError')
  const web = disk.readable({ signal: AbortSignal.abort(new Error('before')) })
  t.is((await t.throwsAsync(web.getReader().read()))?.message, 'before')
  await disk.close()
})

test('a web stream gives the same bytes, with a reader of its own buffers too', async (t) => {
  const disk = await open((await chain).top)
  t.true((await collect(disk.readable())).equals(model))
  t.deepEqual(await collect(disk.readable({ start: MIB + 65530, end: MIB + 65540 })), model.subarray(MIB + 65530, MIB + 65541))
  const reader = disk.readable({ start: 2 * MIB }).getReader({ mode: 'byob' })
  const { value } = await reader.read(new Uint8Array(100))
  t.deepEqual(Buffer.from(value as Uint8Array), model.subarray(2 * MIB, 2 * MIB + 100))
  await reader.cancel()
  const response = new Response(disk.readable({ start: 2 * MIB, end: 2 * MIB + 4 }) as ReadableStream)
  t.deepEqual(Buffer.from(await response.arrayBuffer()), model.subarray(2 * MIB, 2 * MIB + 5))
  await disk.close()
})

test('a stream into a slow reader holds back', async (t) => {
  const disk = await open((await chain).top)
  const stream = disk.createReadStream({ highWaterMark: 65536 })
  await pipeline(stream, async (source) => {
    for await (const _ of source) {
      await new Promise((go) => setTimeout(go, 20))
      t.true(stream.bytesRead <= 4 * 65536)
      return
    }
  })
  await disk.close()
})

test('close may be called twice, and await using closes', async (t) => {
  const disk = await open((await chain).top)
  const [first, second] = [disk.close(), disk.close()]
  t.is(first, second)
  await first
  t.true(disk.closed)
  let kept: Disk<number>
  {
    await using used = await open((await chain).top)
    kept = used
    t.false(kept.closed)
  }
  t.true(kept.closed)
  t.regex(inspect(kept), /^Disk \{.*virtualSize: 8388608,.*closed: true\s*\}$/s)
})

test('one image opens from a path, a URL, bytes, a part of a file, and memory', async (t) => {
  const { folder, base } = await chain
  const bytes = await readFile(base)
  const inside = join(folder, 'inside.bin')
  await writeFile(inside, Buffer.concat([Buffer.alloc(12345, 0xee), bytes, Buffer.alloc(777, 0xee)]))
  const memory = memoryStorage(bytes)
  for (const source of [base, pathToFileURL(base), new Uint8Array(bytes), { path: inside, offset: 12345, size: BigInt(bytes.length) }, memory]) {
    t.is(await probe(source), 'qcow2')
    t.is((await info(source)).virtualSize, 8 * MIB)
    const disk = await open(source)
    t.true((await disk.read(Buffer.alloc(MIB), { position: MIB })).buffer.equals(Buffer.alloc(MIB, 7)))
    await disk.close()
  }
  memory.close()
  t.is((await failure(() => open(memory))).code, 'ERR_QCOW2_CLOSED')
  for (const source of [42, null, {}, { file: 'x' }, new URL('http://example.org/x'), '', 'a\0b', { path: base, offset: -1 }]) {
    t.is((await failure(() => open(source as string))).code, 'ERR_QCOW2_INVALID_ARGUMENT', inspect(source))
  }
})

test('bytes are copied at the call', async (t) => {
  const bytes = new Uint8Array(512).fill(5)
  const opening = open(bytes, { format: 'raw' })
  bytes.fill(6)
  const disk = await opening
  t.is((await disk.read(Buffer.alloc(1), { position: 0 })).buffer[0], 5)
  await disk.close()
})

test('memory storage reads, writes, grows and shrinks', (t) => {
  const memory = memoryStorage(Buffer.from('abc'))
  t.is(memory.size(), 3)
  memory.write(Buffer.from('xyz'), 5)
  t.deepEqual(Buffer.from(memory.toUint8Array()), Buffer.from('abc\0\0xyz'))
  memory.truncate(6)
  const buffer = new Uint8Array(4)
  t.is(memory.read(buffer, 3), 3)
  t.deepEqual(Buffer.from(buffer), Buffer.from('\0\0x\0'))
  t.throws(() => memory.write(Buffer.alloc(1), -1), { code: 'ERR_QCOW2_INVALID_ARGUMENT' })
  t.throws(() => memory.read('x' as never, 0), { code: 'ERR_QCOW2_INVALID_ARGUMENT' })
  memory.close()
  memory.close()
  t.throws(() => memory.size(), { code: 'ERR_QCOW2_CLOSED' })
})

test('snapshots are listed and open read-only by id and name', async (t) => {
  const path = join(temporaryFolder(), 'snapshots.qcow2')
  await qemu.create(path, { size: MIB })
  await qemu.io(path, ['write -P 1 0 64k'])
  await qemu.img('snapshot', '-c', 'first', path)
  await qemu.io(path, ['write -P 2 0 64k'])
  const disk = await open(path)
  const [snapshot] = disk.snapshots.list()
  t.like(snapshot, { id: '1', name: 'first', vmStateSize: 0, diskSize: MIB, vmClockNsec: 0n })
  t.true(Math.abs((snapshot?.date.getTime() ?? 0) - Date.now()) < 120_000)
  for (const [options, value] of [
    [{}, 2],
    [{ snapshot: '1' }, 1],
    [{ snapshot: 'first' }, 1],
  ] as const) {
    const state = await open(path, options)
    t.is((await state.read(Buffer.alloc(1), { position: 0 })).buffer[0], value)
    await state.close()
  }
  t.is((await failure(() => open(path, { snapshot: 'second' }))).code, 'ERR_QCOW2_NO_SNAPSHOT')
  await disk.close()
})

test('a disk beyond 2^53 needs bigint, and then is right to its end', async (t) => {
  const path = join(temporaryFolder(), 'huge.qcow2')
  await qemu.create(path, { size: 2n ** 60n, o: ['cluster_size=2M'] })
  t.is((await failure(() => open(path))).code, 'ERR_QCOW2_NEEDS_BIGINT')
  t.is((await failure(() => info(path))).code, 'ERR_QCOW2_NEEDS_BIGINT')
  t.is((await info(path, { bigint: true })).virtualSize, 2n ** 60n)
  const disk = await open(path, { bigint: true })
  const size: bigint = disk.virtualSize
  t.is(size, 2n ** 60n)
  await disk.close()
  await qemu.io(path, [`write -P 3 ${2n ** 60n - 512n} 512`])
  const again = await open(path, { bigint: true })
  const { bytesRead, buffer } = await again.read(Buffer.alloc(1000), { position: 2n ** 60n - 600n })
  t.is(bytesRead, 600)
  t.deepEqual(buffer.subarray(0, 600), Buffer.concat([Buffer.alloc(88), Buffer.alloc(512, 3)]))
  const runs: Run<bigint>[] = []
  for await (const run of again.map({ start: 2n ** 60n - 2n ** 22n })) runs.push(run)
  t.deepEqual(
    runs.map(({ start, length, data }) => [start, length, data]),
    [
      [2n ** 60n - 2n ** 22n, 2n ** 21n, false],
      [2n ** 60n - 2n ** 21n, 2n ** 21n, true],
    ],
  )
  await again.close()
})

async function collectRuns(disk: Disk<number>, options?: { start: number; end?: number }): Promise<Run<number>[]> {
  const runs: Run<number>[] = []
  for await (const run of disk.map(options)) runs.push(run)
  return runs
}
