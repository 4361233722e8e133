/**
 * Reads by either lane: on the JavaScript thread where memory can answer, or on the pool's threads. Whatever is read, what comes out is the same.
 */
import { createHook } from 'node:async_hooks'
import { mkdtempSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inspect, isDeepStrictEqual } from 'node:util'
import test from 'ava'
import { fastLane } from '../js/fast-lane.js'
import { type Disk, open, Qcow2Error } from '../js/index.js'
import { openOptions } from './support/against-qemu.js'
import { collect, failure, MIB } from './support/fixtures.js'
import { describeDifference, firstDifference, type Model } from './support/model.js'
import { withDisk } from './support/ours.js'
import { caseCount, firstSeed, Prng } from './support/prng.js'
import { qemu } from './support/qemu.js'
import { randomQemuCase } from './support/random-qemu.js'
import { randomBuiltCase } from './support/random-spec.js'

/** Not in /dev/shm as elsewhere: a page cache that answers without waiting is what these tests are about. */
const folder = mkdtempSync(join(tmpdir(), 'qcow2-lane-'))
/** Whether its file system is one of those that are known to do so: ext4, XFS, Btrfs. */
const cached = process.platform === 'linux' && [0xef53, 0x58465342, 0x9123683e].includes(statfsSync(folder).type)

test.after.always(() => {
  fastLane.open = true
  rmSync(folder, { recursive: true, force: true })
})

// Node.js 20 has them, the types of ES2023 do not.
const Resizable = ArrayBuffer as unknown as new (length: number, options: { maxByteLength: number }) => ArrayBuffer
const Growable = SharedArrayBuffer as unknown as new (length: number, options: { maxByteLength: number }) => SharedArrayBuffer

/** What a read came to: its bytes and count, or everything that its error tells. */
type Outcome = { bytesRead: number; bytes: Buffer } | { error: Record<string, unknown> }

async function outcome(read: () => Promise<{ bytesRead: number; buffer: NodeJS.ArrayBufferView }>): Promise<Outcome> {
  try {
    const { bytesRead, buffer } = await read()
    return { bytesRead, bytes: Buffer.from(Buffer.from(buffer.buffer, buffer.byteOffset, buffer.byteLength)) }
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error
    return { error: { ...error, message: error.message } }
  }
}

/** Whether two reads came to the same. */
function same(a: Outcome, b: Outcome): boolean {
  if ('error' in a || 'error' in b) return 'error' in a && 'error' in b && isDeepStrictEqual(a.error, b.error)
  return a.bytesRead === b.bytesRead && a.bytes.equals(b.bytes)
}

/** The same read by both lanes: first by the pool, which learns where the bytes are, then with the fast lane, and how many it answered. */
async function eachLane(
  read: () => Promise<{ bytesRead: number; buffer: NodeJS.ArrayBufferView }>,
): Promise<{ pool: Outcome; fast: Outcome; answered: number }> {
  fastLane.open = false
  const pool = await outcome(read)
  fastLane.open = true
  const before = fastLane.answered
  const fast = await outcome(read)
  return { pool, fast, answered: fastLane.answered - before }
}

/** Ranges of every size that either lane takes, all over the disk and past its end. */
function ranges(random: Prng, size: number): { position: number; length: number }[] {
  return Array.from({ length: 24 }, () => {
    const length = random.pick([1, 512, 4096, random.between(1, 5000), random.between(1, 70_000), random.between(200_000, 1_300_000)])
    const position = random.pick([random.int(size + 1), Math.max(0, size - random.int(length + 1)), Math.floor(random.int(size + 1) / 4096) * 4096])
    return { position, length }
  })
}

/** What differs between the lanes, or between them and the model. */
async function differs(disk: Disk, model: Model, random: Prng, answered: { count: number }): Promise<string | undefined> {
  const size = model.size
  for (const { position, length } of ranges(random, size)) {
    const lanes = await eachLane(() => disk.read(Buffer.alloc(length + 3, 0xaa), 2, length, position))
    answered.count += lanes.answered
    const expected = Buffer.alloc(length + 3, 0xaa)
    const there = Math.max(0, Math.min(length, size - position))
    expected.set(model.read(position, there), 2)
    for (const [name, lane] of [
      ['pool', lanes.pool],
      ['fast lane', lanes.fast],
    ] as const) {
      if ('error' in lane) return `${name}: ${lane.error.message}`
      if (lane.bytesRead !== there) return `${name}: ${lane.bytesRead} of ${there} bytes at ${position}`
      if (firstDifference(lane.bytes, expected) !== -1) return `${name}: ${describeDifference(lane.bytes, expected, position - 2)}`
    }
  }
  return undefined
}

test.serial('every generated disk reads as its model says by both lanes: chains, snapshots, data files, holes', async (t) => {
  t.timeout(600_000)
  const answered = { count: 0 }
  const first = firstSeed(470_000)
  for (let seed = first; seed < first + caseCount(60); seed++) {
    const made = await (seed % 4 === 0 ? randomQemuCase(seed, folder) : randomBuiltCase(seed, folder))
    const random = new Prng(seed)
    const states = [{ model: made.model, options: {} }, ...made.snapshots.map(({ model, id }) => ({ model, options: { snapshot: id } }))]
    for (const { model, options } of states) {
      const wrong = await withDisk(made.path, { ...openOptions(made), ...options }, (disk) => differs(disk, model, random, answered))
      if (wrong !== undefined) t.fail(`QCOW2_SEED=${seed} QCOW2_CASES=1: ${wrong}\n  ${made.words}`)
    }
  }
  if (cached) t.true(answered.count > 0, 'the fast lane answered nothing')
  t.pass()
})

test.serial('the same image in memory and inside a larger file is answered by the fast lane too', async (t) => {
  const memory = { count: 0 }
  const window = { count: 0 }
  for (let seed = 471_000; seed < 471_020; seed++) {
    const made = randomBuiltCase(seed, folder)
    if (made.layers.length > 1 || made.dataFile) continue
    const random = new Prng(seed)
    const bytes = readFileSync(made.path)
    const inside = join(folder, 'larger')
    writeFileSync(inside, Buffer.concat([random.bytes(777), bytes, random.bytes(5000)]))
    t.is(await withDisk(new Uint8Array(bytes), {}, (disk) => differs(disk, made.model, random, memory)), undefined, `${seed}`)
    const source = { path: inside, offset: 777, size: bytes.length }
    t.is(await withDisk(source, {}, (disk) => differs(disk, made.model, random, window)), undefined, `${seed}`)
  }
  t.true(memory.count > 0)
  if (cached) t.true(window.count > 0)
})

test.serial('a truncated image gives the same bytes or the same error by both lanes', async (t) => {
  const path = join(folder, 'cut.qcow2')
  await qemu.create(path, { size: MIB, o: ['cluster_size=4096'] })
  await qemu.io(path, ['write -P 1 0 100k', 'write -P 2 200k 300k', 'write -z 150k 20k'])
  const bytes = readFileSync(path)
  const model = Buffer.alloc(MIB)
    .fill(1, 0, 100 * 1024)
    .fill(2, 200 * 1024, 500 * 1024)
  const counts = { error: 0, read: 0, answered: 0 }
  for (let length = bytes.length; length > 8 * 4096; length -= 13_331) {
    writeFileSync(path, bytes.subarray(0, length))
    for (const source of [path, new Uint8Array(bytes.subarray(0, length))]) {
      const disk = await open(source).catch(() => undefined)
      if (disk === undefined) continue
      for (let position = 0; position < MIB; position += 50_000) {
        for (const size of [1000, 60_000, 400_000]) {
          const { pool, fast, answered } = await eachLane(() => disk.read(Buffer.alloc(size), { position }))
          if (!same(fast, pool)) t.fail(`${length} ${position} ${size}: ${inspect(fast)}, by the pool ${inspect(pool)}`)
          if ('error' in pool) counts.error++
          else counts.read++
          if ('bytes' in fast) {
            // Only the cluster that the file ends in may read as zeros.
            const odd = fast.bytes.findIndex((byte, at) => byte !== 0 && byte !== model[position + at])
            if (odd !== -1) t.fail(`${length}: byte ${position + odd} is ${fast.bytes[odd]}`)
          }
          counts.answered += answered
        }
      }
      await disk.close()
    }
  }
  t.true(counts.error > 0 && counts.read > 0 && counts.answered > 0, JSON.stringify(counts))
})

test.serial('targets of every kind are filled by both lanes in their own place alone', async (t) => {
  const bytes = new Prng(1).bytes(MIB)
  const disk = await open(new Uint8Array(bytes), { format: 'raw' })
  const position = 5000
  const targets: Record<string, () => NodeJS.ArrayBufferView> = {
    buffer: () => Buffer.alloc(4096),
    'a view with an offset': () => new Uint8Array(new ArrayBuffer(5000), 3, 4096),
    clamped: () => new Uint8ClampedArray(4096),
    words: () => new Uint32Array(1024),
    floats: () => new Float64Array(new ArrayBuffer(4096 + 16), 8, 512),
    DataView: () => new DataView(new ArrayBuffer(4200), 7, 4096),
    shared: () => new Uint8Array(new SharedArrayBuffer(4200), 5, 4096),
    growable: () => new Uint8Array(new Growable(4096, { maxByteLength: 9000 })),
    resizable: () => new Uint8Array(new Resizable(4096, { maxByteLength: 9000 })),
    "a part of Node.js's pool": () => Buffer.allocUnsafe(4096),
  }
  for (const [name, make] of Object.entries(targets)) {
    const seen = new Set<ArrayBufferLike>()
    const { pool, fast, answered } = await eachLane(() => {
      const target = make()
      seen.add(target.buffer)
      return disk.read(target, { position })
    })
    t.is(answered, 1, name)
    t.true(same(fast, pool), name)
    t.deepEqual('bytes' in fast && fast.bytes, Buffer.from(bytes.subarray(position, position + 4096)), name)
    if (name === "a part of Node.js's pool") continue
    for (const buffer of seen) {
      // Nothing around the view was touched.
      const around = [...new Uint8Array(buffer)].reduce((sum, byte) => sum + byte, 0)
      t.is(
        around,
        [...bytes.subarray(position, position + 4096)].reduce((sum, byte) => sum + byte, 0),
        name,
      )
    }
  }
  await disk.close()
})

test.serial('a target that is taken away is refused, or has its bytes with it; it is never written to later', async (t) => {
  const bytes = Buffer.from(new Prng(2).bytes(4 * MIB))
  const disk = await open(new Uint8Array(bytes), { format: 'raw' })
  const gone = (): Uint8Array => {
    const target = new Uint8Array(4096)
    structuredClone(target.buffer, { transfer: [target.buffer] })
    return target
  }
  const before = await eachLane(() => disk.read(gone(), 0, 4096, 0))
  t.deepEqual(before.fast, before.pool)
  t.is('error' in before.fast && before.fast.error.code, 'ERR_QCOW2_INVALID_ARGUMENT')
  await disk.read(Buffer.alloc(4 * MIB), { position: 0 })
  for (const lane of [true, false])
    for (const length of [4096, 600_000, 3 * MIB]) {
      const counts = { there: 0, refused: 0 }
      fastLane.open = lane
      for (let i = 0; i < 40; i++) {
        const target = new Uint8Array(length)
        const reading = disk.read(target, { position: 100 })
        const moved = Buffer.from(structuredClone(target.buffer, { transfer: [target.buffer] }))
        const end = await reading.then(({ bytesRead }) => bytesRead).catch((error) => error.code)
        if (end === length) counts.there++
        else if (end === 'ERR_QCOW2_BUFFER_DETACHED') counts.refused++
        else t.fail(`${end}`)
        // Either its bytes were there when the call returned, and went with the buffer, or a piece was not written to.
        for (let at = 0; at < length; at += MIB) {
          const piece = moved.subarray(at, at + MIB)
          const there = piece.equals(bytes.subarray(100 + at, 100 + at + piece.length))
          if (!there && (end === length || piece.some((byte) => byte !== 0))) t.fail(`${length}: byte ${at} is neither there nor not`)
        }
        const after = Buffer.from(moved)
        await new Promise((resolve) => setImmediate(resolve))
        t.true(moved.equals(after))
      }
      t.true(lane && length < MIB ? counts.there > 0 : counts.refused > 0, JSON.stringify({ lane, length, ...counts }))
    }
  fastLane.open = true
  await disk.close()
})

test.serial('the ends of a disk, positions as bigint, empty reads and a closed disk are the same by both lanes', async (t) => {
  const disk = await open(new Uint8Array(new Prng(3).bytes(10_000)), { format: 'raw' })
  const cases: [length: number, position: number | bigint, count: number][] = [
    [4096, 0n, 4096],
    [4096, 9000, 1240],
    [4096, 10_239n, 1],
    [4096, 10_240, 0],
    [4096, Number.MAX_SAFE_INTEGER, 0],
    [4096, 2n ** 63n - 1n, 0],
    [0, 5, 0],
    [0, 2n ** 60n, 0],
    [2 ** 21, 0, 10_240],
  ]
  for (const [length, position, count] of cases) {
    const { pool, fast } = await eachLane(() => disk.read(Buffer.alloc(length), { position }))
    t.true(same(fast, pool), `${length} at ${position}`)
    t.is('bytesRead' in fast && fast.bytesRead, count, `${length} at ${position}`)
  }
  await disk.close()
  const { pool, fast, answered } = await eachLane(() => disk.read(Buffer.alloc(1), { position: 0 }))
  t.deepEqual(fast, pool)
  t.is('error' in fast && fast.error.code, 'ERR_QCOW2_CLOSED')
  t.is(answered, 0)
})

/**
 * Loops of awaits that read `count` times in all. Answers how many reads the busiest turn of the event loop had, how many turns there were, and
 * how many reads came before a timer of 0 ms.
 */
async function turnsOf(disk: Disk, loops: number, length: number, count: number): Promise<{ longest: number; turns: number; timer: number }> {
  let [reads, turns, since, longest, timer, done] = [0, 0, 0, 0, 0, false]
  const turn = (): void => {
    turns++
    longest = Math.max(longest, since)
    since = 0
    if (!done) setImmediate(turn)
  }
  setImmediate(turn)
  setTimeout(() => {
    timer = reads
  }, 0)
  const loop = async (): Promise<void> => {
    const target = Buffer.alloc(length)
    while (reads < count) {
      reads++
      since++
      await disk.read(target, { position: 0 })
    }
  }
  await Promise.all(Array.from({ length: loops }, loop))
  done = true
  return { longest, turns, timer }
}

test.serial('a loop of awaits comes back to the event loop every few hundred reads, and so do many loops at once', async (t) => {
  const disk = await open(new Uint8Array(new Prng(4).bytes(MIB)), { format: 'raw' })
  await disk.read(Buffer.alloc(MIB), { position: 0 })
  for (const [loops, length, most] of [
    [1, 4096, 400],
    [64, 4096, 400],
    [2, 65_536, 90],
    [1, 1, 600],
    [1, MIB, 8],
  ] as const) {
    const before = fastLane.answered
    const count = most * 20
    const { longest, turns, timer } = await turnsOf(disk, loops, length, count)
    t.true(fastLane.answered - before >= count, 'the fast lane answered all of them')
    t.true(longest <= most, `${longest} reads of ${length} bytes in one turn`)
    t.true(turns > 5 && timer > 0 && timer < count, `${turns} turns, the timer came after ${timer} of ${count} reads`)
  }
  await disk.close()
})

/** What the pool has done is handed over for as long as there is more: eight loops held the event loop up for a third of a second. */
test.serial('what the pool hands over leaves turns to others too', async (t) => {
  const disk = await open(new Uint8Array(new Prng(6).bytes(4 * MIB)), { format: 'raw' })
  fastLane.open = false
  for (const [loops, length, most] of [
    [8, 65_536, 150],
    [4, 3 * MIB, 8],
    [64, 512, 900],
  ] as const) {
    const { longest, turns } = await turnsOf(disk, loops, length, most * 5)
    t.true(longest <= most, `${longest} reads of ${length} bytes in one turn of ${turns}`)
  }
  fastLane.open = true
  await disk.close()
})

test.serial('a read of many pieces fails with its first error, once nothing is written to its target any more', async (t) => {
  const path = join(folder, 'pieces.qcow2')
  await qemu.create(path, { size: 8 * MIB })
  await qemu.io(path, ['write -P 1 0 8M'])
  const bytes = readFileSync(path)
  // Clusters of the second, third and fourth piece are gone.
  writeFileSync(path, bytes.subarray(0, bytes.length - 5.5 * MIB))
  const disk = await open(path)
  for (const lane of [true, false]) {
    fastLane.open = lane
    const target = Buffer.alloc(7 * MIB + 5)
    const error = await failure(() => disk.read(target, { position: 1000 }))
    t.is(error.code, 'ERR_QCOW2_TRUNCATED')
    t.is(Number(error.offset), bytes.length - 5.5 * MIB)
    const after = Buffer.from(target)
    await new Promise((resolve) => setTimeout(resolve, 30))
    t.true(target.equals(after))
    t.is((await disk.read(target, 0, 2 * MIB, 0)).bytesRead, 2 * MIB)
    t.true(target.subarray(0, 2 * MIB).every((byte) => byte === 1))
  }
  fastLane.open = true
  await disk.close()
})

test.serial('close waits for reads that wait for the next turn', async (t) => {
  const bytes = new Prng(5).bytes(MIB)
  const disk = await open(new Uint8Array(bytes), { format: 'raw' })
  await disk.read(Buffer.alloc(MIB), { position: 0 })
  const waited = fastLane.waited
  const reads = Array.from({ length: 2000 }, (_, i) => disk.read(Buffer.alloc(512), { position: i * 512 }))
  t.true(fastLane.waited > waited)
  let ended = 0
  for (const read of reads) read.then(() => ended++)
  await disk.close()
  t.is(ended, reads.length)
  const all = await Promise.all(reads)
  t.true(all.every(({ buffer }, i) => buffer.equals(bytes.subarray(i * 512, (i + 1) * 512))))
})

/** In each turn all reads that waited were woken, most of them to wait again: fifty thousand at once kept the event loop for ten seconds. */
test.serial('reads that wait for a turn are woken once, however many there are', async (t) => {
  const disk = await open(new Uint8Array(MIB), { format: 'raw' })
  const target = Buffer.alloc(512)
  const waited = fastLane.waited
  let promises = 0
  const init = (_: number, type: string) => {
    if (type === 'PROMISE') promises++
  }
  const hook = createHook({ init }).enable()
  const reads = Array.from({ length: 20_000 }, () => disk.read(target, { position: 0 }))
  const all = await Promise.all(reads)
  hook.disable()
  await disk.close()
  t.true(all.every(({ bytesRead }) => bytesRead === 512) && fastLane.waited - waited > 15_000)
  t.true(promises < 20 * reads.length, `${promises} promises`)
})

test.serial('streams give the same bytes by both lanes', async (t) => {
  const path = join(folder, 'stream.qcow2')
  await qemu.create(path, { size: 5 * MIB })
  await qemu.io(path, ['write -P 1 0 1M', 'write -P 2 2M 1M', 'write -P 3 4700k 200k'])
  const disk = await open(path)
  const [from, to] = [777, 5 * MIB - 999]
  fastLane.open = false
  const pool = await collect(disk.createReadStream({ start: from, end: to }))
  fastLane.open = true
  const before = fastLane.answered
  const streams = [collect(disk.createReadStream({ start: from, end: to })), collect(disk.readable({ start: from, end: to, highWaterMark: 100_000 }))]
  for (const fast of await Promise.all(streams)) t.true(fast.equals(pool))
  if (cached) t.true(fastLane.answered > before)
  const model = Buffer.alloc(5 * MIB)
    .fill(1, 0, MIB)
    .fill(2, 2 * MIB, 3 * MIB)
    .fill(3, 4700 * 1024, 4900 * 1024)
  t.true(pool.equals(model.subarray(from, to + 1)))
  await disk.close()
})
