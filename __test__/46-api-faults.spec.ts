/** Images that are damaged, locked, encrypted or unfinished: refused by name, or read with a notice. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { check, convert, create, info, memoryStorage, open } from '../js/index.js'
import { collect, failure, MIB, smallChain } from './support/fixtures.js'
import { must, qemu, temporaryFolder } from './support/qemu.js'

test('an encrypted image is refused by name, and info and check still answer', async (t) => {
  const path = join(temporaryFolder(), 'secret.qcow2')
  const secret = ['--object', 'secret,id=s,data=hush']
  await must('qemu-img', [
    'create',
    '-q',
    '-f',
    'qcow2',
    ...secret,
    '-o',
    'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10',
    path,
    '4M',
  ])
  const error = await failure(() => open(path))
  t.is(error.code, 'ERR_QCOW2_ENCRYPTED')
  t.is(error.details.method, 'luks')
  t.is(error.path, path)
  t.like(await info(path), { encrypted: true, encryption: 'luks', virtualSize: 4 * MIB })
  t.is((await check(path)).corruptions, 0)
  t.is((await failure(() => convert(path, memoryStorage(), { format: 'raw' }))).code, 'ERR_QCOW2_ENCRYPTED')
})

test('an image that was not closed, or was found corrupt, opens and says so', async (t) => {
  const { base } = await smallChain()
  const bytes = await readFile(base)
  bytes.writeBigUInt64BE(3n, 72)
  await writeFile(base, bytes)
  const disk = await open(base)
  t.deepEqual(disk.notices.map(({ code }) => code).sort(), ['CORRUPT', 'DIRTY'])
  t.is((await disk.read(Buffer.alloc(1), { position: MIB })).buffer[0], 7)
  await disk.close()
  t.like(await info(base), { dirty: true, corrupt: true })
})

test('a feature that nobody knows is refused with its name', async (t) => {
  const { base } = await smallChain()
  const bytes = await readFile(base)
  bytes.writeBigUInt64BE(1n << 40n, 72)
  await writeFile(base, bytes)
  const error = await failure(() => open(base))
  t.is(error.code, 'ERR_QCOW2_UNKNOWN_FEATURE')
  t.is(error.table, 'header')
  t.is(error.offset, 72)
})

test('bytes that were cut off are an error with its place, in every way of reading, and never zeros', async (t) => {
  const { folder, base } = await smallChain()
  await truncate(base, 12 * 65536)
  const disk = await open(base)
  const read = await failure(() => disk.read(Buffer.alloc(3 * MIB), { position: 0 }))
  t.is(read.code, 'ERR_QCOW2_TRUNCATED')
  t.is(read.table, 'data')
  t.is(read.path, base)
  t.true(Number(read.offset) >= 12 * 65536)
  t.is((await failure(() => collect(disk.createReadStream()))).code, 'ERR_QCOW2_TRUNCATED')
  t.is((await failure(() => collect(disk.readable()))).code, 'ERR_QCOW2_TRUNCATED')
  t.is((await failure(() => convert(base, join(folder, 'out.raw')))).code, 'ERR_QCOW2_TRUNCATED')
  // What is there can still be read.
  t.is((await disk.read(Buffer.alloc(1), { position: MIB })).buffer[0], 7)
  await disk.close()
})

test('an image that another process writes is locked, unless that is ignored knowingly', async (t) => {
  const { base } = await smallChain()
  const writer = spawn('qemu-io', ['-f', 'qcow2', base], { stdio: ['pipe', 'pipe', 'inherit'] })
  writer.stdin.write('read 0 512\n')
  await once(writer.stdout, 'data')
  const error = await failure(() => open(base))
  t.is(error.code, 'ERR_QCOW2_LOCKED')
  t.is((await failure(() => info(base))).code, 'ERR_QCOW2_LOCKED')
  const disk = await open(base, { forceShare: true })
  t.deepEqual(
    disk.notices.map(({ code }) => code),
    ['MAY_BE_TORN'],
  )
  await disk.close()
  await (await open(base, { locking: 'off' })).close()
  writer.stdin.end('quit\n')
  await once(writer, 'exit')
  await (await open(base)).close()
})

test('an open disk keeps writers of other processes out, until it is closed', async (t) => {
  const { base } = await smallChain()
  const disk = await open(base)
  await t.throwsAsync(qemu.io(base, ['write 0 512']), { message: /Failed to get "write" lock/ })
  await disk.close()
  await qemu.io(base, ['write 0 512'])
})

test('limits hold before anything large is set aside', async (t) => {
  const memory = memoryStorage()
  await create(memory, { size: '8T' })
  const error = await failure(() => open(memory, { limits: { maxVirtualSize: '1T' } }))
  t.is(error.code, 'ERR_QCOW2_LIMIT')
  t.like(error.details, { limit: 'maxVirtualSize', allowed: String(2 ** 40), wanted: String(8 * 2 ** 40) })
  t.is((await failure(() => info(memory, { limits: { maxVirtualSize: '1T' } }))).code, 'ERR_QCOW2_LIMIT')
  await (await open(memory, { limits: { maxVirtualSize: '8T' } })).close()
})

test('every truncation of a small image is an error or the right bytes', async (t) => {
  const folder = temporaryFolder()
  const path = join(folder, 'small.qcow2')
  await qemu.create(path, { size: 64 * 1024, o: ['cluster_size=512'] })
  await qemu.io(path, ['write -P 1 0 1k', 'write -P 2 32k 512'])
  const bytes = await readFile(path)
  const whole = Buffer.alloc(64 * 1024)
    .fill(1, 0, 1024)
    .fill(2, 32 * 1024, 32 * 1024 + 512)
  let opened = 0
  for (let length = 0; length < bytes.length; length += 37) {
    const disk = await open(bytes.subarray(0, length)).catch((error) => {
      t.regex(error.code, /^ERR_QCOW2_/, `${length}`)
      return undefined
    })
    if (disk === undefined) continue
    opened++
    for (let position = 0; position < whole.length; position += 8192) {
      const answer = await disk.read(Buffer.alloc(8192), { position }).catch((error) => error.code as string)
      if (typeof answer === 'string') t.regex(answer, /^ERR_QCOW2_(TRUNCATED|CORRUPT)$/, `${length}`)
      else t.true(isRight(answer.buffer, whole.subarray(position, position + 8192), length % 512), `${length} at ${position}`)
    }
    await disk.close()
  }
  t.true(opened > 0)
})

/** The same, or the same up to where the file ends inside a cluster: QEMU reads zeros there, as the file may be written so. */
function isRight(actual: Buffer, expected: Buffer, inLastCluster: number): boolean {
  const at = actual.findIndex((byte, index) => byte !== expected[index])
  if (at === -1) return true
  const rest = 512 - (at % 512)
  return (
    at % 512 === inLastCluster &&
    actual.subarray(at, at + rest).every((byte) => byte === 0) &&
    actual.subarray(at + rest).equals(expected.subarray(at + rest))
  )
}
