/** What `inspect` makes of streams that behave badly, and of files that would keep it busy. */
import { getEventListeners } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough, Readable } from 'node:stream'
import test from 'ava'
import { create, inspect, profiles } from '../js/index.js'
import { failure } from './support/fixtures.js'
import { must, temporaryFolder } from './support/qemu.js'

let image: Buffer
let luks: Buffer
test.before(async () => {
  const folder = temporaryFolder()
  await create(join(folder, 'a.qcow2'), { size: '1M' })
  await create(join(folder, 'b.luks'), { format: 'luks', size: '4M', encryption: { secret: Buffer.from('x'), iterTime: 10 } })
  image = readFileSync(join(folder, 'a.qcow2'))
  luks = readFileSync(join(folder, 'b.luks'))
})

test('chunks may be one buffer that is used again, and a byte each', async (t) => {
  // The first bytes were kept as windows of what the stream gave: a stream that reads into one buffer was inspected as its end, and taken for raw.
  async function* reusing(): AsyncGenerator<Uint8Array> {
    const buffer = Buffer.alloc(4096)
    for (let at = 0; at < image.length; at += 4096) yield buffer.subarray(0, image.copy(buffer, 0, at, at + 4096))
  }
  t.is((await inspect(reusing())).format, 'qcow2')
  async function* bytes(): AsyncGenerator<Uint8Array> {
    for (const byte of image.subarray(0, 70_000)) yield new Uint8Array([byte])
    yield new Uint8Array(0)
    yield image.subarray(70_000)
  }
  const { format, facts } = await inspect(bytes())
  t.deepEqual([format, facts.fileSize], ['qcow2', image.length])
})

test('a stream that stands still is let go of when the signal aborts', async (t) => {
  const stream = new PassThrough()
  stream.write(image.subarray(0, 100))
  const control = new AbortController()
  const waiting = failure(() => inspect(stream, { signal: control.signal }))
  setImmediate(() => control.abort())
  t.is((await waiting).code, 'ERR_QCOW2_CANCELLED')
  t.true(stream.destroyed)
})

test('the failure of a stream is an error of its own kind, with the cause', async (t) => {
  const cause = new TypeError('gone')
  const broken = new PassThrough()
  broken.destroy(cause)
  t.is((await failure(() => inspect(broken))).code, 'ERR_QCOW2_IO')
  const thrown = await failure(() =>
    inspect({
      [Symbol.asyncIterator]() {
        throw cause
      },
    }),
  )
  t.deepEqual([thrown.code, thrown.cause], ['ERR_QCOW2_IO', cause])
})

test('where nothing comes, nobody can tell', async (t) => {
  for (const source of [new Uint8Array(0), Readable.from([])]) {
    const { verdict, findings } = await inspect(source)
    t.deepEqual([verdict, findings[0]?.code], ['unknown', 'EMPTY'])
  }
})

test('of a stream, what was read is judged, and the last byte that was read is not the last of the file', async (t) => {
  const limits = { maxBytesRead: 65_536 }
  const more = (bytes: Buffer) => Readable.from([bytes.subarray(0, 65_536), Buffer.alloc(100)])
  // A damaged header was taken for one that is cut off.
  const broken = Buffer.from(luks)
  broken.fill('A', 8, 40)
  t.is((await inspect(more(broken), { limits })).verdict, 'refused')
  t.is((await inspect(more(luks), { limits })).verdict, 'acceptable')
  const tail = Buffer.alloc(65_536)
  image.copy(tail, 0, 0, 65_536)
  tail.write('conectix', 65_024)
  t.deepEqual((await inspect(more(tail), { limits })).formats, ['qcow2'])
  t.deepEqual((await inspect(tail)).formats, ['qcow2', 'vhd'])
})

test('a disk whose data the file does not have is refused', async (t) => {
  const path = join(temporaryFolder(), 'cut.qcow2')
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', path, '4M'])
  await must('qemu-io', ['-f', 'qcow2', '-c', 'write -P 7 0 4M', path])
  const whole = readFileSync(path)
  t.is((await inspect(whole)).verdict, 'acceptable')
  const { verdict, profileVerdict, findings } = await inspect(whole.subarray(0, -65_536 - 512), { profile: 'glance' })
  t.deepEqual([verdict, profileVerdict], ['refused', 'acceptable'])
  t.true(findings.some(({ code, place }) => code === 'ERR_QCOW2_TRUNCATED' && place?.table === 'data'))
})

test('tables that name one another do not keep it busy', async (t) => {
  // 1.4 MB whose L1 entries all name one L2 table with every second cluster allocated: the walk for the estimate took more than a minute.
  const path = join(temporaryFolder(), 'amplified.qcow2')
  await create(path, { size: 2n ** 46n })
  await must('qemu-io', ['-f', 'qcow2', '-c', 'write 0 4k', path])
  const bytes = readFileSync(path)
  const l1 = Number(bytes.readBigUInt64BE(40))
  const l2 = bytes.readBigUInt64BE(l1)
  const place = Number(l2 & 0x00ff_ffff_ffff_fe00n)
  const data = bytes.readBigUInt64BE(place)
  for (let entry = 0; entry < 2 ** 17; entry++) bytes.writeBigUInt64BE(l2, l1 + entry * 8)
  for (let entry = 0; entry < 8192; entry += 2) bytes.writeBigUInt64BE(data, place + entry * 8)
  writeFileSync(path, bytes)
  t.timeout(60_000)
  const { verdict, facts, findings } = await inspect(path, { profile: 'dedup' })
  t.is(verdict, 'unknown')
  t.is(facts.estimatedSize?.qcow2, undefined)
  t.true(findings.some(({ code }) => code === 'NOT_ESTIMATED'))
  t.true(findings.some(({ code, severity }) => code === 'DEDUP_COMPRESSED' && severity === 'unknown'))
})

test('the table of profiles is nobody’s to change, and inspect takes one file', async (t) => {
  t.throws(() => (profiles.glance.rules as unknown[]).pop(), { instanceOf: TypeError })
  t.true(Object.isFrozen(profiles.glance.rules[0]))
  t.is((await failure(() => inspect({ path: 'a', luksHeader: 'b' }))).code, 'ERR_QCOW2_INVALID_ARGUMENT')
})

test('many calls with one signal are no leak', async (t) => {
  const warnings: Error[] = []
  const listen = (warning: Error) => warnings.push(warning)
  process.on('warning', listen)
  const { signal } = new AbortController()
  await Promise.all(Array.from({ length: 30 }, () => inspect(image, { signal })))
  await new Promise((resolve) => setImmediate(resolve))
  process.off('warning', listen)
  // Of a signal that is made of others Node.js lets go when nobody listens.
  t.deepEqual(getEventListeners(signal, 'abort'), [])
  t.deepEqual(
    warnings.filter(({ name }) => name === 'MaxListenersExceededWarning'),
    [],
  )
})
