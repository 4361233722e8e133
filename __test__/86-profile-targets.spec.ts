/** What `convert --profile` may do to its target, and what it does not make. */
import { spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, lstatSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import test from 'ava'
import { convert, create, open } from '../js/index.js'
import { answer } from './support/cli.js'
import { failure } from './support/fixtures.js'
import { must, temporaryFolder } from './support/qemu.js'

/** A folder with a disk of 2 MiB, what it reads as, and an overlay of it. */
async function sources() {
  const folder = temporaryFolder()
  const at = (name: string) => join(folder, name)
  const bytes = Buffer.alloc(2 << 20)
  bytes.fill('some of it ', 70_000, 900_000)
  writeFileSync(at('raw'), bytes)
  await convert(at('raw'), at('base.qcow2'), { sourceFormat: 'raw' })
  await create(at('overlay.qcow2'), { size: bytes.length, backing: 'base.qcow2', backingFormat: 'qcow2' })
  return { folder, at, bytes }
}

test('gzip for linode is one member of whole sectors, of which everybody reads the disk', async (t) => {
  const { at, bytes } = await sources()
  const { fileSize } = await convert(at('overlay.qcow2'), at('disk.gz'), { profile: 'linode' })
  const file = readFileSync(at('disk.gz'))
  t.is(fileSize, file.length)
  t.is(file.length % 512, 0)
  t.true(gunzipSync(file).equals(bytes))
  const { stdout } = await must('gzip', ['-dc', at('disk.gz')])
  t.true(stdout.equals(bytes))
})

test('a gzip replaces no file of its source, no device, and no link', async (t) => {
  // It was written by a rename of its own: the source, a device node or a link became the gzip, whoever owned it and whoever used it.
  const { folder, at, bytes } = await sources()
  const before = readFileSync(at('base.qcow2'))
  const refused = async (source: string, target: string) =>
    (await failure(() => convert(at(source), at(target), { profile: 'linode', overwrite: true }))).code
  t.is(await refused('base.qcow2', 'base.qcow2'), 'ERR_QCOW2_SAME_FILE')
  t.is(await refused('overlay.qcow2', 'base.qcow2'), 'ERR_QCOW2_SAME_FILE')
  t.true(readFileSync(at('base.qcow2')).equals(before))
  await must('mkfifo', [at('pipe')])
  t.is(await refused('base.qcow2', 'pipe'), 'ERR_QCOW2_NOT_REGULAR')
  t.true(lstatSync(at('pipe')).isFIFO())
  const used = await open(at('overlay.qcow2'), { writable: true })
  await create(at('other.qcow2'), { size: 512 })
  t.is(await refused('other.qcow2', 'overlay.qcow2'), 'ERR_QCOW2_LOCKED')
  await used.close()
  writeFileSync(at('old'), 'old', { mode: 0o600 })
  symlinkSync('old', at('link'))
  t.is((await failure(() => convert(at('base.qcow2'), at('link'), { profile: 'linode' }))).code, 'ERR_QCOW2_EXISTS')
  await convert(at('base.qcow2'), at('link'), { profile: 'linode', overwrite: true })
  t.true(lstatSync(at('link')).isSymbolicLink())
  t.is(statSync(at('old')).mode & 0o777, 0o600)
  t.true(gunzipSync(readFileSync(at('old'))).equals(bytes))
  for (const option of [{ salvage: true }, { sparseSize: 4096 }, { preallocation: 'falloc' as const }, { rateLimit: 1 << 20 }])
    t.is((await failure(() => convert(at('base.qcow2'), at('x.gz'), { profile: 'linode', ...option }))).code, 'ERR_QCOW2_INVALID_ARGUMENT')
  t.deepEqual(
    readdirSync(folder).filter((name) => name.includes('part')),
    [],
  )
})

test('the command writes the gzip to standard output, too', async (t) => {
  const { folder, at, bytes } = await sources()
  // It wrote the raw disk.
  const script = `"$0" "$@" > out.gz`
  const words = [process.execPath, join(__dirname, '..', 'dist', 'cli', 'main.js'), 'convert', '--profile', 'linode', 'base.qcow2', '-']
  await must('sh', ['-c', script, ...words], { cwd: folder })
  t.true(gunzipSync(readFileSync(at('out.gz'))).equals(bytes))
})

test('a raw disk that begins as an image is not made for anybody', async (t) => {
  const { folder, at } = await sources()
  await convert(at('overlay.qcow2'), at('outer.qcow2'), { sourceFormat: 'raw' })
  for (const profile of ['firecracker', 'kata', 'ec2', 'hetzner'] as const) {
    const error = await failure(() => convert(at('outer.qcow2'), at('x.raw'), { profile }))
    t.deepEqual([error.code, error.details.format], ['ERR_QCOW2_PROFILE', 'qcow2'], profile)
  }
  t.false(existsSync(at('x.raw')))
  const error = await failure(() =>
    convert(at('raw'), at('x.qcow2'), { profile: 'ovirt', sourceFormat: 'raw', backing: at('base.qcow2'), backingFormat: 'qcow2' }),
  )
  t.is(error.code, 'ERR_QCOW2_INVALID_ARGUMENT')
  const found = await answer('qcow2', ['digest', '-m', 'base.qcow2', 'overlay.qcow2'], { cwd: folder, ours: true })
  // The manifest of an overlay replaced its backing file.
  t.deepEqual([found.code, found.stderr], [1, "qcow2: The manifest 'base.qcow2' would replace a file of the image\n"])
  // What a link names is written, also where that is not there yet.
  symlinkSync('manifest.json', at('link'))
  t.is((await answer('qcow2', ['digest', '-m', 'link', 'overlay.qcow2'], { cwd: folder, ours: true })).code, 0)
  t.true(lstatSync(at('link')).isSymbolicLink())
  t.is(typeof JSON.parse(readFileSync(at('manifest.json'), 'utf8')), 'object')
})

test('a qcow2 file that would be too large for hetzner is refused, and nothing is left of it', async (t) => {
  const folder = temporaryFolder()
  const at = (name: string) => join(folder, name)
  writeFileSync(at('part'), randomBytes(16 << 20))
  const parts = Array.from({ length: 58 }, () => at('part'))
  const options = { profile: 'hetzner', format: 'qcow2', sourceFormat: 'raw' } as const
  const error = await failure(() => convert(parts, at('large.qcow2'), options))
  t.deepEqual([error.code, error.details.rule], ['ERR_QCOW2_PROFILE', 'HETZNER_QCOW2_SIZE'])
  // Room that is reserved is in the file, too: told before it is made.
  await create(at('empty.qcow2'), { size: '1G' })
  const reserved = await failure(() =>
    convert(at('empty.qcow2'), at('large.qcow2'), { ...options, sourceFormat: 'qcow2', preallocation: 'metadata' }),
  )
  t.deepEqual([reserved.code, reserved.details.rule], ['ERR_QCOW2_PROFILE', 'HETZNER_QCOW2_SIZE'])
  t.deepEqual(readdirSync(folder).sort(), ['empty.qcow2', 'part'])
  const own = await failure(() => convert(at('part'), at('large.qcow2'), { ...options, limits: { maxOutputSize: '1M' } }))
  t.is(own.code, 'ERR_QCOW2_LIMIT')
  await convert(at('empty.qcow2'), at('small.qcow2'), { ...options, sourceFormat: 'qcow2' })
  t.true(existsSync(at('small.qcow2')))
})

// Elsewhere the file has a name while it is made.
const onLinux = process.platform === 'linux' ? test : test.skip

onLinux('of a gzip that is not finished nothing is left, even by a kill', async (t) => {
  const { folder, at } = await sources()
  writeFileSync(at('large'), randomBytes(64 << 20))
  const before = readdirSync(folder).sort()
  for (const signal of ['SIGKILL', 'SIGINT'] as const) {
    const words = [join(__dirname, '..', 'dist', 'cli', 'main.js'), 'convert', '-p', '--profile', 'linode', '-f', 'raw', 'large', 'large.gz']
    const child = spawn(process.execPath, words, { cwd: folder, stdio: ['ignore', 'pipe', 'inherit'] })
    const ended = once(child, 'exit')
    // Twice: the second one does not wait for what is to be taken back.
    child.stdout.on('data', (text: Buffer) => /\([1-9]/.test(text.toString()) && child.kill(signal) && child.kill(signal))
    t.deepEqual(await ended, [null, signal])
    t.deepEqual(readdirSync(folder).sort(), before, signal)
  }
})

onLinux('a gzip that cannot be written is told, and nothing is left of it', async (t) => {
  const { folder, at } = await sources()
  writeFileSync(at('large'), randomBytes(8 << 20))
  const before = readdirSync(folder).sort()
  const words = [
    process.execPath,
    join(__dirname, '..', 'dist', 'cli', 'main.js'),
    'convert',
    '--profile',
    'linode',
    '-f',
    'raw',
    'large',
    'large.gz',
  ]
  const { status, stderr } = spawnSync('bash', ['-c', 'ulimit -f 2000; "$0" "$@"', ...words], { cwd: folder, encoding: 'utf8', timeout: 30_000 })
  t.deepEqual([status, stderr], [1, 'qcow2: error while writing at byte 0: File too large\n'])
  t.deepEqual(readdirSync(folder).sort(), before)
})
