/** Cache modes: the same answers and bytes whatever they say, the page cache passed by, syncs where they are promised and nowhere else. */
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { type CacheMode, convert, open } from '../js/index.js'
import { answer } from './support/cli.js'
import { must, temporaryFolder } from './support/qemu.js'
import { Twins } from './support/twins.js'

const SIZE = 3145216
const MODES: CacheMode[] = ['writeback', 'writethrough', 'none', 'directsync', 'unsafe']

/** A chain whose sizes are no multiples of a block, with data, zeros and compressed clusters. */
async function make(folder: string): Promise<void> {
  const io = (file: string, ...commands: string[]) =>
    must('qemu-io', ['-f', 'qcow2', ...commands.flatMap((command) => ['-c', command]), file], { cwd: folder })
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', 'base', String(SIZE)], { cwd: folder })
  await io('base', 'write -P 1 0 700k', 'write -P 2 1M 3333', 'write -c -P 5 2M 4k')
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', '-b', 'base', '-F', 'qcow2', 'top', String(SIZE)], { cwd: folder })
  await io('top', 'write -P 3 512 70k', 'write -z 300k 64k', 'write -P 4 3144704 512')
}

const IMAGES = ['base', 'top'].map((name) => ({ name, format: 'qcow2' as const }))

test('every command does what qemu-img does, whatever the cache mode', async (t) => {
  for (const mode of ['writethrough', 'none', 'directsync', 'unsafe', 'off', 'bad']) {
    const twins = await Twins.make(IMAGES, make)
    const lines = [
      ['convert', '-t', mode, '-T', mode, '-O', 'qcow2', 'top', 'copy'],
      ['convert', '-t', mode, '-O', 'raw', 'top', 'copy.raw'],
      ['convert', '-t', mode, '-n', '-O', 'raw', 'base', 'copy.raw'],
      ['compare', '-T', mode, 'top', 'copy'],
      ['check', '-T', mode, 'top'],
      ['amend', '-t', mode, '-o', 'lazy_refcounts=on', 'top'],
      ['rebase', '-t', mode, '-b', '', 'top'],
      ['rebase', '-t', mode, '-u', '-b', 'base', '-F', 'qcow2', 'top'],
      ['commit', '-t', mode, 'top'],
    ]
    for (const line of lines) t.deepEqual(await twins.differences(line), [], `${mode}: ${line.join(' ')}`)
    if (mode === 'bad') continue
    const [ours, theirs] = [readFileSync(join(twins.ours, 'copy.raw')), readFileSync(join(twins.theirs, 'copy.raw'))]
    t.is(ours.length, SIZE, `${mode}: as long as the disk`)
    // Past the page cache qemu-img leaves a whole last block.
    t.true(theirs.subarray(0, SIZE).equals(ours), mode)
  }
})

test('where a file system lets nobody pass the page cache by, it is said in the words of qemu-img', async (t) => {
  // The files that the kernel makes up have no direct access anywhere.
  const file = '/proc/version'
  const cwd = temporaryFolder()
  if (process.platform !== 'linux' || !existsSync(file)) {
    t.pass('there is no such file here')
    return
  }
  for (const line of [
    ['compare', '-T', 'none', '-f', 'raw', '-F', 'raw', file, file],
    ['convert', '-T', 'directsync', '-f', 'raw', '-O', 'raw', file, 'x'],
  ]) {
    const [ours, theirs] = [await answer('qemu-img', line, { cwd, ours: true }), await answer('qemu-img', line, { cwd, ours: false })]
    t.deepEqual(ours, theirs, line.join(' '))
  }
  const error = await t.throwsAsync(open(file, { format: 'raw', cache: 'none' }), { code: 'ERR_QCOW2_DIRECT_UNSUPPORTED' })
  t.true(error?.message.includes('O_DIRECT'))
})

test('a disk is written and read past the page cache as through it', async (t) => {
  for (const cache of MODES) {
    const folder = temporaryFolder()
    await make(folder)
    const path = join(folder, 'top')
    const model = await read(path)
    const disk = await open(path, { writable: true, cache })
    for (let round = 0; round < 40; round++) {
      const at = (round * 77_777) % 3_000_000
      const bytes = Buffer.alloc(1 + ((round * 3571) % 30_000), round + 1)
      await disk.write(bytes, 0, bytes.length, at)
      bytes.copy(model, at)
    }
    await disk.close()
    t.true((await read(path)).equals(model), cache)
    t.true((await read(path, cache)).equals(model), cache)
    await must('qemu-img', ['check', '-q', path])
  }
})

async function read(path: string, cache: CacheMode = 'writeback'): Promise<Buffer> {
  const disk = await open(path, { cache })
  const bytes = Buffer.alloc(disk.virtualSize as number)
  await disk.read(bytes, 0, bytes.length, 0)
  await disk.close()
  return bytes
}

test('what is written through is in the file when the write returns', async (t) => {
  for (const [cache, there] of [
    ['writethrough', true],
    ['directsync', true],
    ['writeback', false],
  ] as const) {
    const folder = temporaryFolder()
    await must('qemu-img', ['create', '-q', '-f', 'qcow2', 'image', '1M'], { cwd: folder })
    const disk = await open(join(folder, 'image'), { writable: true, cache })
    await disk.write(Buffer.alloc(4096, 7), 0, 4096, 65536)
    // What a kill would leave now.
    writeFileSync(join(folder, 'copy'), readFileSync(join(folder, 'image')))
    const found = (await read(join(folder, 'copy'))).subarray(65536, 69632)
    t.is(found.equals(Buffer.alloc(4096, 7)), there, cache)
    await disk.close()
  }
})

test('the system is asked for what a mode says: direct access, syncs, or none', async (t) => {
  try {
    execFileSync('strace', ['-V'], { stdio: 'ignore' })
  } catch {
    t.pass('there is no strace to look with')
    return
  }
  const folder = temporaryFolder()
  await make(folder)
  const calls = (mode: string) => {
    const log = join(folder, `log-${mode}`)
    const main = join(__dirname, '../dist/cli/main.js')
    const words = ['convert', '-t', mode, '-O', 'qcow2', 'top', `new-${mode}`]
    execFileSync('strace', ['-f', '-o', log, '-e', 'trace=fcntl,fsync,fdatasync', process.execPath, main, ...words], { cwd: folder })
    const text = readFileSync(log, 'latin1')
    rmSync(log)
    return { direct: text.includes('O_DIRECT'), synced: /f(data)?sync\(/.test(text) }
  }
  t.deepEqual(calls('unsafe'), { direct: false, synced: false })
  t.deepEqual(calls('writeback'), { direct: false, synced: true })
  t.deepEqual(calls('writethrough'), { direct: false, synced: true })
  t.deepEqual(calls('none'), { direct: true, synced: true })
})

test('a target that is not to be synced and is to be durable is refused', async (t) => {
  const folder = temporaryFolder()
  await make(folder)
  const job = convert(join(folder, 'top'), join(folder, 'new'), { cache: 'unsafe', durable: true, sourceFormat: 'qcow2' })
  await t.throwsAsync(async () => job, { code: 'ERR_QCOW2_INVALID_ARGUMENT' })
  await t.throwsAsync(async () => open(join(folder, 'top'), { cache: 'off' as never }), { code: 'ERR_QCOW2_INVALID_ARGUMENT' })
})
