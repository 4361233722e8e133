/** Memory that changes, moves or goes away while it is a password, or what an encrypted disk is read into and written from. */
import { join } from 'node:path'
import { inspect } from 'node:util'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import { amend, convert, create, open } from '../js/index.js'
import { failure } from './support/fixtures.js'
import { Prng } from './support/prng.js'
import { must, temporaryFolder } from './support/qemu.js'

const PASSWORD = Buffer.from('correct horse battery staple')
const FAST = { secret: PASSWORD, iterTime: 10 }
const MIB = 1 << 20

/** TypeScript's library for this target knows no resizable buffers. */
type Resizable = ArrayBuffer & { resize(length: number): void }
const Resizable = ArrayBuffer as unknown as new (length: number, options: { maxByteLength: number }) => Resizable

function fresh(): Uint8Array {
  const bytes = new Uint8Array(new Resizable(PASSWORD.length, { maxByteLength: 64 }))
  bytes.set(PASSWORD)
  return bytes
}

function grow(bytes: Uint8Array): void {
  ;(bytes.buffer as Resizable).resize(60)
  bytes.fill(7)
}

const SPOILS: [name: string, spoil: (bytes: Uint8Array) => void][] = [
  ['wiped', (bytes) => bytes.fill(0)],
  ['detached', ({ buffer }) => structuredClone(buffer, { transfer: [buffer as ArrayBuffer] })],
  ['shrunk', ({ buffer }) => (buffer as Resizable).resize(3)],
  ['grown and changed', grow],
]

for (const [name, spoil] of SPOILS) {
  test(`a password is what was there at the call, also where its memory is ${name} behind it`, async (t) => {
    const folder = temporaryFolder()
    const [path, copy] = [join(folder, 'disk.qcow2'), join(folder, 'copy.qcow2')]
    /** Calls, spoils, and only then waits. */
    const spoiling = async <T>(use: (secret: Uint8Array) => PromiseLike<T>): Promise<T> => {
      const secret = fresh()
      const done = use(secret)
      spoil(secret)
      return done
    }
    await spoiling((secret) => create(path, { size: MIB, encryption: { secret, iterTime: 10 } }))
    await must('qemu-io', [
      '--object',
      `secret,id=s,data=${PASSWORD}`,
      '--image-opts',
      `driver=qcow2,file.filename=${path},encrypt.key-secret=s`,
      '-c',
      'write -P 7 0 64k',
    ])
    await spoiling(async (secret) => (await open(path, { secret })).close())
    await spoiling((secret) => convert(path, copy, { source: { secret: PASSWORD }, encryption: { secret, iterTime: 10 } }))
    await spoiling((secret) => convert(path, copy, { overwrite: true, source: { secret }, encryption: FAST }))
    await spoiling((newSecret) => amend(copy, { secret: PASSWORD, keySlot: { newSecret, slot: 5, iterTime: 10 } }))
    await amend(copy, { secret: PASSWORD, keySlot: { slot: 0 } })
    const disk = await open(copy, { secret: PASSWORD })
    const { buffer } = await disk.read(Buffer.alloc(65_536), { position: 0 })
    t.true(buffer.equals(Buffer.alloc(65_536, 7)))
    await disk.close()
    // What a function answers is taken when it answers.
    const answered = fresh()
    const answer = () => {
      setImmediate(() => spoil(answered))
      return answered
    }
    const opening = open(copy, { secret: answer })
    await (await opening).close()
  })
}

test('memory that was given away is no password, and none is made of it', async (t) => {
  const path = join(temporaryFolder(), 'disk.qcow2')
  await create(path, { size: MIB, encryption: FAST })
  const gone = fresh()
  structuredClone(gone.buffer, { transfer: [gone.buffer as ArrayBuffer] })
  const errors = [
    await failure(() => open(path, { secret: gone })),
    await failure(() => open(path, { secret: () => gone })),
    await failure(() => create(path, { size: MIB, overwrite: true, encryption: { secret: gone } })),
    await failure(() => convert(path, `${path}.copy`, { source: { secret: PASSWORD }, encryption: { secret: async () => gone } })),
    await failure(() => amend(path, { secret: PASSWORD, keySlot: { newSecret: gone } })),
  ]
  t.deepEqual(
    errors.map(({ code }) => code),
    errors.map(() => 'ERR_QCOW2_INVALID_ARGUMENT'),
  )
  await (await open(path, { secret: PASSWORD })).close()
})

test('a shared password is one; one that another thread changes is right or wrong, and nothing else', async (t) => {
  const path = join(temporaryFolder(), 'disk.qcow2')
  await create(path, { size: MIB, encryption: FAST })
  const shared = new Uint8Array(new SharedArrayBuffer(PASSWORD.length))
  shared.set(PASSWORD)
  await (await open(path, { secret: shared })).close()
  const changing = 'const{workerData:b}=require("node:worker_threads");const c=b.slice();for(;;){b.fill(0);b.set(c)}'
  const worker = new Worker(changing, { eval: true, workerData: shared })
  const codes = new Set<string>()
  for (let time = 0; time < 20; time++) {
    await open(path, { secret: shared }).then(
      (disk) => disk.close(),
      ({ code }) => codes.add(code),
    )
  }
  await worker.terminate()
  codes.delete('ERR_QCOW2_WRONG_KEY')
  t.deepEqual([...codes], [])
})

test('an encrypted disk is written from and read into memory that moves and changes', async (t) => {
  const path = join(temporaryFolder(), 'disk.qcow2')
  await create(path, { size: 4 * MIB, encryption: FAST })
  const disk = await open(path, { writable: true, secret: PASSWORD })
  const random = new Prng(86)
  const model = Buffer.alloc(4 * MIB)
  for (let time = 0; time < 200; time++) {
    const length = [512, 4096, 65_536, 1000][time % 4] ?? 0
    const bytes = new Uint8Array(new Resizable(length, { maxByteLength: 2 * length }))
    bytes.set(random.bytes(length))
    const position = random.int(4 * MIB - length)
    model.set(bytes, position)
    const writing = disk.write(bytes, { position })
    if (time % 3 === 0) structuredClone(bytes.buffer, { transfer: [bytes.buffer as ArrayBuffer] })
    else if (time % 3 === 1) (bytes.buffer as Resizable).resize(time % 2 === 0 ? 0 : 2 * length)
    else bytes.fill(255)
    await writing
  }
  t.true(model.equals((await disk.read(Buffer.alloc(4 * MIB), { position: 0 })).buffer))
  let gone = 0
  for (let time = 0; time < 200; time++) {
    const length = [512, 4096, 65_536, 2 * MIB][time % 4] ?? 0
    const target = new Uint8Array(new Resizable(length, { maxByteLength: 2 * length }))
    const position = random.int(4 * MIB - length)
    const reading = disk.read(target, { position })
    let kept: Uint8Array = target
    if (time % 3 === 0) kept = new Uint8Array(structuredClone(target.buffer, { transfer: [target.buffer as ArrayBuffer] }))
    else if (time % 3 === 1) (target.buffer as Resizable).resize(time % 2 === 0 ? 0 : 2 * length)
    const done = await reading.then(
      ({ bytesRead }) => bytesRead,
      ({ code }) => code,
    )
    if (done === length) {
      // It had been filled before its memory went, or its memory was there.
      if (kept.length >= length) t.true(model.subarray(position, position + length).equals(kept.subarray(0, length)), `${time}`)
    } else {
      gone++
      t.is(done, 'ERR_QCOW2_BUFFER_DETACHED', `${time}`)
    }
  }
  t.true(gone > 0, 'some were gone in time')
  // Shared, and changed by another thread: nothing but those bytes is other than it was.
  const shared = new Uint8Array(new SharedArrayBuffer(65_536 + 64))
  const worker = new Worker('const{workerData:b}=require("node:worker_threads");for(;;)b.fill(3,32,b.length-32)', { eval: true, workerData: shared })
  for (let time = 0; time < 300; time++) await disk.read(shared.subarray(32, 32 + 65_536), { position: random.int(3 * MIB) })
  await disk.write(shared, { position: 0 })
  await worker.terminate()
  t.true([...shared.subarray(0, 32), ...shared.subarray(-32)].every((byte) => byte === 0))
  await disk.close()
})

test('a password that is given as text, or in the place of an object, is in no message', async (t) => {
  const path = join(temporaryFolder(), 'disk.qcow2')
  const text = PASSWORD.toString() as never
  // The last but one was answered "encryption must be an object: it is 'correct horse battery staple'".
  const calls = [
    () => create(path, { size: MIB, encryption: { secret: text } }),
    () => create(path, { size: MIB, encryption: { ...FAST, format: 'aes', secret: (() => text) as never, legacy: true } }),
    () => amend(path, { secret: PASSWORD, keySlot: { newSecret: text } }),
    () => amend(path, { secret: PASSWORD, keySlot: text }),
    () => create(path, { size: MIB, encryption: text }),
    () => open(path, text),
  ]
  for (const call of calls) {
    const error = await failure(async () => {
      await call()
    })
    t.false(inspect(error, { depth: 9 }).includes(PASSWORD.toString().slice(0, 12)), `${call}`)
  }
})
