/** Writing as it should not be done: each is one typed error, and the image is as it was and goes on working. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync } from 'node:fs'
import { readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { create, type Disk, type OpenOptions, open, type Qcow2Error } from '../js/index.js'
import { failure, MIB } from './support/fixtures.js'
import { tagged } from './support/model.js'
import { must, qemu, run, temporaryFolder } from './support/qemu.js'

type Any = (...words: unknown[]) => Promise<unknown>

async function image(size = 2 * MIB, o: string[] = []): Promise<string> {
  const path = join(temporaryFolder(), 'disk.qcow2')
  await qemu.create(path, { size, o })
  return path
}

/** A disk with some bytes, and what must hold of it after each abuse. */
async function victim(t: ExecutionContext, o: string[] = [], options: OpenOptions = {}) {
  const path = await image(2 * MIB, o)
  const disk = (await open(path, { writable: true, ...options })) as Disk<number>
  const bytes = tagged(1000, 5000)
  await disk.write(bytes, { position: 1000 })
  let turn = 0
  const wellAfter = async (code: string, abuse: () => unknown, details: Record<string, unknown> = {}): Promise<Qcow2Error> => {
    const error = await failure(abuse)
    t.is(error.code, `ERR_QCOW2_${code}`, error.message)
    if (Object.keys(details).length > 0) t.like(error.details, details)
    t.regex(error.stack ?? '', /73-write-bad-use/, 'the stack points at the caller')
    t.deepEqual((await disk.read(Buffer.alloc(5000), { position: 1000 })).buffer, Buffer.from(bytes))
    await disk.write(Buffer.from([++turn]), { position: MIB })
    await disk.flush()
    return error
  }
  const close = async (): Promise<void> => {
    await disk.close()
    t.is((await qemu.check(path)).code, 0)
    const again = await open(path, options)
    t.deepEqual((await again.read(Buffer.alloc(5000), { position: 1000 })).buffer, Buffer.from(bytes))
    await again.close()
  }
  return { path, disk, wellAfter, close }
}

test('a disk that is open for reading refuses every change', async (t) => {
  const path = await image()
  const before = await readFile(path)
  const disk = await open(path)
  t.true(disk.readOnly)
  const changes: (() => unknown)[] = [
    () => disk.write(new Uint8Array(1), { position: 0 }),
    () => disk.writeZeroes(0, 1),
    () => disk.discard(0, 1),
    () => disk.flush(),
    () => disk.resize('4M'),
    () => disk.createWriteStream(),
    () => disk.writable(),
    () => disk.snapshots.create('a'),
    () => disk.snapshots.apply('a'),
    () => disk.snapshots.delete('a'),
    () => disk.snapshots.rename('a', 'b'),
    () => disk.snapshots.open('a'),
    () => disk.bitmaps.add('a'),
    () => disk.bitmaps.remove('a'),
    () => disk.bitmaps.clear('a'),
    () => disk.bitmaps.enable('a'),
    () => disk.bitmaps.disable('a'),
    () => disk.bitmaps.merge('a', 'b'),
    () => disk.bitmaps.dirty('a'),
  ]
  for (const change of changes) {
    const { code, path: named, message } = await failure(change)
    t.is(code, 'ERR_QCOW2_READ_ONLY')
    t.is(named, path)
    t.regex(message, /writable: true/)
  }
  await disk.close()
  t.deepEqual(await readFile(path), before)
})

test('a disk that is closed refuses everything', async (t) => {
  const disk = await open(await image(), { writable: true })
  await disk.close()
  for (const use of [
    () => disk.write(new Uint8Array(1), { position: 0 }),
    () => disk.writeZeroes(0, 1),
    () => disk.discard(0, 1),
    () => disk.flush(),
    () => disk.resize('4M'),
    () => disk.createWriteStream(),
    () => disk.snapshots.create('a'),
    () => disk.snapshots.list(),
    () => disk.bitmaps.add('a'),
    () => disk.bitmaps.list(),
    () => disk.bitmaps.dirty('a'),
  ]) {
    t.is((await failure(use)).code, 'ERR_QCOW2_CLOSED')
  }
  await disk.close()
})

test('positions and lengths that are none, or pass the end, are refused as a whole', async (t) => {
  const { disk, wellAfter, close } = await victim(t)
  const write = disk.write.bind(disk) as Any
  const two = new Uint8Array(2)
  for (const position of [-1, -1n, 0.5, Number.NaN, 2 ** 53, 2n ** 63n, '0', {}]) {
    await wellAfter('INVALID_ARGUMENT', () => write(two, { position }), { argument: 'position' })
    await wellAfter('INVALID_ARGUMENT', () => write(two, 0, 2, position), { argument: 'position' })
    await wellAfter('INVALID_ARGUMENT', () => disk.discard(position as number, 1), { argument: 'position' })
    await wellAfter('INVALID_ARGUMENT', () => disk.writeZeroes(0, position as number), { argument: 'length' })
  }
  for (const position of [undefined, null]) await wellAfter('INVALID_ARGUMENT', () => write(two, { position }), { argument: 'position' })
  for (const position of [2 * MIB - 1, 2 * MIB, 2 ** 53 - 1, 2n ** 63n - 1n]) {
    await wellAfter('OUT_OF_RANGE', () => disk.write(two, { position }))
    await wellAfter('OUT_OF_RANGE', () => disk.writeZeroes(position, 2))
    await wellAfter('OUT_OF_RANGE', () => disk.discard(position, 2))
  }
  await wellAfter('OUT_OF_RANGE', () => disk.discard(1, 2n ** 63n - 1n))
  for (const [offset, length] of [
    [3, 0],
    [-1, 1],
    [0, 3],
    [1, 2],
    [0.5, 1],
  ]) {
    await wellAfter('INVALID_ARGUMENT', () => write(two, offset, length, 0))
  }
  t.deepEqual((await disk.read(Buffer.alloc(2), { position: 2 * MIB - 2 })).buffer, Buffer.alloc(2))
  await close()
})

test('what is no buffer, and options that there are not, are refused', async (t) => {
  const { disk, wellAfter, close } = await victim(t)
  const write = disk.write.bind(disk) as Any
  t.regex((await wellAfter('INVALID_ARGUMENT', () => write('text', { position: 0 }), { argument: 'buffer' })).message, /no encoding/)
  for (const buffer of [undefined, null, 5, [1, 2], {}, new ArrayBuffer(4)]) {
    await wellAfter('INVALID_ARGUMENT', () => write(buffer, { position: 0 }), { argument: 'buffer' })
  }
  const gone = new Uint8Array(16)
  structuredClone(gone.buffer, { transfer: [gone.buffer] })
  t.is((await disk.write(gone, { position: 0 })).bytesWritten, 0)
  const unknown = (suggestion: string) => ({ suggestion })
  await wellAfter('UNKNOWN_OPTION', () => write(new Uint8Array(1), { postion: 0 }), unknown('position'))
  await wellAfter('UNKNOWN_OPTION', () => disk.writeZeroes(0, 1, { unmapp: true } as object), unknown('unmap'))
  await wellAfter('UNKNOWN_OPTION', () => disk.resize('4M', { shrinks: true } as object), unknown('shrink'))
  await wellAfter('UNKNOWN_OPTION', () => disk.flush({ singal: undefined } as object), unknown('signal'))
  await wellAfter('UNKNOWN_OPTION', () => disk.bitmaps.add('a', { granularty: 1 } as object), unknown('granularity'))
  await wellAfter('UNKNOWN_OPTION', () => disk.snapshots.create('a', { allowDuplicates: true } as object), unknown('allowDuplicate'))
  await wellAfter('UNKNOWN_OPTION', () => disk.snapshots.apply({ nam: 'a' } as never), unknown('name'))
  await wellAfter('INVALID_ARGUMENT', () => disk.snapshots.apply({} as never), { argument: 'snapshot' })
  await wellAfter('INVALID_ARGUMENT', () => disk.snapshots.apply({ id: '1', name: 'a' } as never), { argument: 'snapshot' })
  await wellAfter('INVALID_ARGUMENT', () => disk.snapshots.apply(1 as never), { argument: 'snapshot' })
  await wellAfter('INVALID_ARGUMENT', () => disk.snapshots.create(''), { argument: 'name' })
  await wellAfter('INVALID_ARGUMENT', () => disk.snapshots.create('a', { date: new Date(-1) }), { argument: 'date' })
  await wellAfter('INVALID_ARGUMENT', () => disk.bitmaps.add('a', { granularity: 1000 }), { argument: 'granularity' })
  await wellAfter('INVALID_ARGUMENT', () => disk.writeZeroes(0, 1, { unmap: 1 as never }), { argument: 'unmap' })
  await wellAfter('INVALID_ARGUMENT', () => disk.resize('4X'), { argument: 'size' })
  await wellAfter('INVALID_ARGUMENT', () => disk.resize(-5), { argument: 'size' })
  await close()
})

test('options of open that exclude each other are refused', async (t) => {
  const path = await image()
  for (const other of [{ snapshot: 'a' }, { forceShare: true }]) {
    const { code, message } = await failure(() => open(path, { writable: true, ...other }))
    t.is(code, 'ERR_QCOW2_INVALID_ARGUMENT')
    t.regex(message, /exclude each other/)
  }
  t.is((await failure(() => open(path, { writeable: true } as object))).details.suggestion, 'writable')
  t.is((await failure(() => open(path, { writable: 'yes' } as object))).details.argument, 'writable')
})

test('a disk becomes smaller only when that is said, and never what its image cannot be', async (t) => {
  const { disk, wellAfter, close } = await victim(t)
  await wellAfter('SHRINK', () => disk.resize(MIB))
  await wellAfter('INVALID_ARGUMENT', () => disk.resize(2 * MIB + 1))
  await wellAfter('NEEDS_BIGINT', () => disk.resize(2n ** 60n))
  t.is(disk.virtualSize, 2 * MIB)
  await close()
})

test('an image of version 2 with snapshots keeps its size', async (t) => {
  const path = await image(2 * MIB, ['compat=0.10'])
  await qemu.img('snapshot', '-c', 'a', path)
  const disk = await open(path, { writable: true })
  t.is((await failure(() => disk.resize('4M'))).code, 'ERR_QCOW2_RESIZE_SNAPSHOTS')
  t.is(disk.virtualSize, 2 * MIB)
  await disk.write(new Uint8Array(512), { position: 0 })
  await disk.close()
  t.is((await qemu.check(path)).code, 0)
})

test('snapshots and bitmaps that are not there, or are there already', async (t) => {
  const { disk, wellAfter, close } = await victim(t)
  for (const which of ['a', { id: '1' }, { name: 'a' }]) {
    await wellAfter('NO_SNAPSHOT', () => disk.snapshots.apply(which))
    await wellAfter('NO_SNAPSHOT', () => disk.snapshots.delete(which))
    await wellAfter('NO_SNAPSHOT', () => disk.snapshots.rename(which, 'b'))
    await wellAfter('NO_SNAPSHOT', () => disk.snapshots.open(which))
  }
  await disk.snapshots.create('a')
  await wellAfter('SNAPSHOT_EXISTS', () => disk.snapshots.create('a'))
  t.is((await disk.snapshots.create('a', { allowDuplicate: true })).name, 'a')
  t.is(disk.snapshots.list().length, 2)
  await disk.snapshots.create('b')
  await wellAfter('SNAPSHOT_EXISTS', () => disk.snapshots.rename('b', 'a'))
  await wellAfter('NO_BITMAP', () => disk.bitmaps.clear('a'))
  await wellAfter('NO_BITMAP', () => disk.bitmaps.remove('a'))
  await wellAfter('NO_BITMAP', () => disk.bitmaps.enable('a'))
  await wellAfter('NO_BITMAP', () => disk.bitmaps.dirty('a').next())
  await disk.bitmaps.add('a')
  await wellAfter('BITMAP_EXISTS', () => disk.bitmaps.add('a'))
  await wellAfter('NO_BITMAP', () => disk.bitmaps.merge('a', 'b'))
  await close()
})

test('a snapshot that is open is not deleted', async (t) => {
  const { disk, wellAfter, close } = await victim(t)
  const { id } = await disk.snapshots.create('a')
  const snapshot = await disk.snapshots.open(id)
  t.true(snapshot.readOnly)
  await wellAfter('SNAPSHOT_IN_USE', () => disk.snapshots.delete(id))
  t.is((await failure(() => snapshot.write(new Uint8Array(1), { position: 0 }))).code, 'ERR_QCOW2_READ_ONLY')
  await snapshot.close()
  await disk.snapshots.delete(id)
  t.deepEqual(disk.snapshots.list(), [])
  await close()
})

test('what cannot have snapshots says so: refcounts of one bit, an external data file, a raw file', async (t) => {
  const bits = await victim(t, ['refcount_bits=1'])
  await bits.wellAfter('SNAPSHOT_UNSUPPORTED', () => bits.disk.snapshots.create('a'))
  await bits.close()
  const data = join(temporaryFolder(), 'data')
  const file = await victim(t, [`data_file=${data}`], { dataFile: data })
  await file.wellAfter('SNAPSHOT_UNSUPPORTED', () => file.disk.snapshots.create('a'))
  await file.close()
  const path = join(temporaryFolder(), 'disk.raw')
  await create(path, { size: MIB, format: 'raw' })
  const raw = await open(path, { format: 'raw', writable: true })
  t.is((await failure(() => raw.snapshots.create('a'))).code, 'ERR_QCOW2_RAW')
  t.is((await failure(() => raw.bitmaps.add('a'))).code, 'ERR_QCOW2_RAW')
  t.deepEqual(raw.snapshots.list(), [])
  t.deepEqual(raw.bitmaps.list(), [])
  await raw.close()
})

test('an image of version 2 has no bitmaps', async (t) => {
  const { disk, wellAfter, close } = await victim(t, ['compat=0.10'])
  await wellAfter('BITMAP_UNSUPPORTED', () => disk.bitmaps.add('a'))
  await close()
})

test('a full file system fails the write, and only the write', async (t) => {
  const folder = join(temporaryFolder(), 'small')
  mkdirSync(folder)
  const mounted = await run('mount', ['-t', 'tmpfs', '-o', 'size=6m', 'tmpfs', folder])
  if (mounted.code !== 0) {
    t.log('no file system may be mounted here')
    t.pass()
    return
  }
  try {
    const path = join(folder, 'disk.qcow2')
    await create(path, { size: 32 * MIB })
    const disk = (await open(path, { writable: true })) as Disk<number>
    await disk.write(Buffer.alloc(MIB, 1), { position: 0 })
    const written: number[] = []
    let full: Qcow2Error | undefined
    for (let at = 1; at < 32 && full === undefined; at++) {
      await disk.write(Buffer.alloc(MIB, 2), { position: at * MIB }).then(
        () => written.push(at),
        (error) => {
          full = error
        },
      )
    }
    t.is(full?.code, 'ERR_QCOW2_IO')
    t.is(full?.details.errno, 'ENOSPC')
    t.is(full?.path, path)
    // What is there can be written over and read, and what is given back can be had again.
    await disk.write(Buffer.alloc(MIB, 3), { position: 0 })
    await disk.discard(written.at(-1) as number, 0)
    await disk.discard((written.pop() as number) * MIB, MIB)
    await disk.flush()
    await disk.flush()
    await disk.write(Buffer.alloc(MIB / 4, 4), { position: 30 * MIB })
    await disk.close()
    t.true([0, 3].includes((await qemu.check(path)).code))
    const again = (await open(path)) as Disk<number>
    for (const at of written) t.true((await again.read(Buffer.alloc(MIB), { position: at * MIB })).buffer.every((byte) => byte === 2))
    t.true((await again.read(Buffer.alloc(MIB / 4), { position: 30 * MIB })).buffer.every((byte) => byte === 4))
    await again.close()
  } finally {
    await must('umount', ['-l', folder])
  }
})

test('an image that another program uses says for what, and which byte of the file is locked', async (t) => {
  const path = await image()
  const program = spawn('qemu-io', ['-f', 'qcow2', path], { stdio: ['pipe', 'pipe', 'inherit'] })
  try {
    program.stdin.write('write -P 1 0 512\n')
    await once(program.stdout, 'data')
    const error = await failure(() => open(path, { writable: true }))
    t.is(error.code, 'ERR_QCOW2_LOCKED')
    t.is(error.path, path)
    t.like(error.details, { permission: 'write', shared: 'false', byte: '201', program: 'qemu-io', pid: String(program.pid) })
    t.regex(error.message, /"write" lock.*\(it is qemu-io, process \d+\)$/)
    t.is((await failure(() => open(path))).code, 'ERR_QCOW2_LOCKED')
  } finally {
    program.stdin.end('quit\n')
    await once(program, 'close')
  }
  const reader = spawn('qemu-io', ['-r', '-f', 'qcow2', path], { stdio: ['pipe', 'pipe', 'inherit'] })
  try {
    reader.stdin.write('read 0 512\n')
    await once(reader.stdout, 'data')
    const error = await failure(() => open(path, { writable: true }))
    t.is(error.code, 'ERR_QCOW2_LOCKED')
    await (await open(path)).close()
  } finally {
    reader.stdin.end('quit\n')
    await once(reader, 'close')
  }
  const disk = await open(path, { writable: true })
  t.regex((await failure(() => open(path))).message, /this process itself has it open/)
  await disk.write(new Uint8Array(512), { position: 0 })
  await disk.close()
  t.is((await qemu.check(path)).code, 0)
})

test('an image that is marked corrupt is not written', async (t) => {
  const path = await image()
  const bytes = await readFile(path)
  bytes[79] = (bytes[79] as number) | 2
  await rm(path)
  const { writeFile } = await import('node:fs/promises')
  await writeFile(path, bytes)
  t.is((await failure(() => open(path, { writable: true }))).code, 'ERR_QCOW2_CORRUPT_IMAGE')
  t.deepEqual(await readFile(path), bytes)
})

test('an image that names files opens them for writing only where it may', async (t) => {
  const folder = temporaryFolder()
  await qemu.create(join(folder, 'disk'), { size: MIB, o: [`data_file=${join(folder, 'data')}`] })
  t.is((await failure(() => open(join(folder, 'disk'), { writable: true }))).code, 'ERR_QCOW2_DATA_FILE_DENIED')
  await qemu.create(join(folder, 'base'), { size: MIB })
  await qemu.create(join(folder, 'top'), { backing: 'base', cwd: folder })
  t.is((await failure(() => open(join(folder, 'top'), { writable: true, backingFiles: 'deny' }))).code, 'ERR_QCOW2_BACKING_DENIED')
  // A backing file that somebody writes is not read.
  const base = await open(join(folder, 'base'), { writable: true })
  t.like(await failure(() => open(join(folder, 'top'), { writable: true })), { code: 'ERR_QCOW2_LOCKED' })
  await base.close()
  // And one that is read is not written.
  const top = await open(join(folder, 'top'), { writable: true })
  t.is((await failure(() => open(join(folder, 'base'), { writable: true }))).code, 'ERR_QCOW2_LOCKED')
  await top.close()
})
