/** `convert` into images that are there, with bitmaps, and of what cannot be read: beside qemu-img, on twin copies. */
import { closeSync, cpSync, existsSync, mkdirSync, openSync, readFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { convert, memoryStorage, open } from '../js/index.js'
import { answer } from './support/cli.js'
import { must, qemu, temporaryFolder } from './support/qemu.js'
import { look } from './support/seen.js'

let fixture = ''

test.before(async () => {
  fixture = join(temporaryFolder(), 'fixture')
  mkdirSync(fixture)
  const img = (...words: string[]) => must('qemu-img', words, { cwd: fixture })
  const io = (file: string, ...commands: string[]) => must('qemu-io', [...commands.flatMap((c) => ['-c', c]), '-f', 'qcow2', file], { cwd: fixture })
  const create = (...words: string[]) => img('create', '-q', '-f', 'qcow2', ...words)
  await create('src.q', '4M')
  await io('src.q', 'write -P 1 0 1M', 'write -P 2 2M 64k', 'write -z 3M 64k')
  await img('bitmap', '--add', 'src.q', 'b0')
  await img('bitmap', '--add', '-g', '4k', '--disable', 'src.q', 'b1')
  await io('src.q', 'write -P 3 1M 64k')
  await create('dst.q', '4M')
  await io('dst.q', 'write -P 9 0 4M')
  await create('big.q', '6M')
  await io('big.q', 'write -P 9 0 6M')
  await create('small.q', '3M')
  await create('-b', 'big.q', '-F', 'qcow2', 'over.q')
  await create('-o', 'compat=0.10', 'v2.q', '4M')
  await create('-o', 'extended_l2=on', 'ext.q', '4M')
  await io('ext.q', 'write -P 7 5k 100k')
  await create('-o', 'data_file=df.raw', 'df.q', '4M')
  await img('convert', '-c', '-O', 'qcow2', 'src.q', 'bad.q')
  // The first compressed cluster.
  const file = openSync(join(fixture, 'bad.q'), 'r+')
  writeSync(file, Buffer.from('garbage_garbage'), 0, 15, 5 * 65536 + 7)
  closeSync(file)
  await create('inuse.q', '4M')
  await img('bitmap', '--add', 'inuse.q', 'broken')
  await img('bitmap', '--add', 'inuse.q', 'whole')
  markInUse(join(fixture, 'inuse.q'), 'broken')
})

/** Sets the flag of a bitmap that a writer which never closed leaves. */
function markInUse(path: string, name: string): void {
  const bytes = readFileSync(path)
  const at = bytes.lastIndexOf(name)
  // The flags stand twelve bytes before the name: type, granularity, length of the name, extra data.
  const flags = at - 12
  bytes.writeUInt32BE(bytes.readUInt32BE(flags) | 1, flags)
  const file = openSync(path, 'r+')
  writeSync(file, bytes, 0, bytes.length, 0)
  closeSync(file)
}

const LINES = `
  -n -O qcow2 src.q dst.q
  -n -O qcow2 src.q big.q
  -n -O qcow2 src.q small.q
  -n -O qcow2 src.q over.q
  -n -O qcow2 src.q ext.q
  -n -O qcow2 src.q df.q
  -n -O qcow2 src.q nope.q
  -n -O qcow2 src.q df.raw
  -n --target-is-zero -O qcow2 src.q v2.q
  -n --target-is-zero -O qcow2 src.q over.q
  -n -O qcow2 -S 0 src.q dst.q
  -n -O qcow2 -B big.q -F qcow2 src.q over.q
  -n -O qcow2 --bitmaps src.q dst.q
  --bitmaps -O qcow2 src.q x
  --bitmaps -c -O qcow2 src.q x
  --bitmaps -O qcow2 -B big.q -F qcow2 src.q x
  --bitmaps -O qcow2 -o data_file=xd src.q x
  --bitmaps -O qcow2 -o cluster_size=4k,refcount_bits=64 src.q x
  --bitmaps -O raw src.q x
  --bitmaps -O qcow2 dst.q x
  --bitmaps -O qcow2 src.q dst.q x
  --skip-broken-bitmaps -O qcow2 src.q x
  --bitmaps -O qcow2 inuse.q x
  --bitmaps --skip-broken-bitmaps -O qcow2 inuse.q x
  --salvage -O qcow2 bad.q x
  --salvage -q -O raw bad.q x
  --salvage -C -O qcow2 bad.q x`

test('convert into what is there, with bitmaps and of what cannot be read does what qemu-img does', async (t) => {
  t.timeout(300_000)
  const failures: string[] = []
  for (const line of LINES.trim()
    .split('\n')
    .map((each) => each.trim())) {
    const words = ['convert', ...line.split(' ')]
    const folder = temporaryFolder()
    const [theirs, ours] = ['theirs', 'ours'].map((side) => join(folder, side)) as [string, string]
    for (const side of [theirs, ours]) cpSync(fixture, side, { recursive: true })
    const [expected, actual] = await Promise.all([
      answer('qemu-img', words, { cwd: theirs, ours: false }),
      answer('qemu-img', words, { cwd: ours, ours: true }),
    ])
    if (JSON.stringify(actual) !== JSON.stringify(expected))
      failures.push(`${line}: ours ${JSON.stringify(actual)}, theirs ${JSON.stringify(expected)}`)
    const target = words.at(-1) as string
    if (expected.code !== 0 || !existsSync(join(theirs, target))) continue
    if (line.includes('-O raw')) {
      if (!readFileSync(join(ours, target)).equals(readFileSync(join(theirs, target)))) failures.push(`${line}: other bytes`)
      continue
    }
    const [a, b] = [await look(ours, target), await look(theirs, target)]
    if (JSON.stringify(a) !== JSON.stringify(b)) failures.push(`${line}: ours ${JSON.stringify(a)}, theirs ${JSON.stringify(b)}`)
  }
  t.deepEqual(failures, [])
})

test('a conversion that fails while bitmaps are copied leaves no target', async (t) => {
  const folder = temporaryFolder()
  cpSync(fixture, folder, { recursive: true })
  const target = join(folder, 'x.q')
  await t.throwsAsync(convert(join(folder, 'src.q'), target, { sourceFormat: 'qcow2', format: 'qcow2', compat: '0.10', bitmaps: true }), {
    code: 'ERR_QCOW2_BITMAP_UNSUPPORTED',
  })
  t.false(existsSync(target))
  await t.throwsAsync(convert(join(folder, 'inuse.q'), target, { sourceFormat: 'qcow2', format: 'qcow2', bitmaps: true }), {
    code: 'ERR_QCOW2_BITMAP_INCONSISTENT',
  })
  t.false(existsSync(target))
})

test('what was salvaged is told: where, and that all else is there', async (t) => {
  const path = join(fixture, 'bad.q')
  await t.throwsAsync(convert(path, memoryStorage(), { sourceFormat: 'qcow2', format: 'raw' }), { code: 'ERR_QCOW2_DECOMPRESS' })
  const memory = memoryStorage()
  const { lost = [] } = await convert(path, memory, { sourceFormat: 'qcow2', format: 'raw', salvage: true })
  t.true(lost.length > 0)
  const gone = lost.reduce((sum, { length }) => sum + Number(length), 0)
  t.is(gone % 65536, 0)
  const whole = Buffer.alloc(4 << 20)
  const disk = await open(join(fixture, 'src.q'))
  await disk.read(whole, { position: 0 })
  await disk.close()
  for (const { offset, length, what } of lost) {
    t.is(what, 'data')
    whole.fill(0, Number(offset), Number(offset) + Number(length))
  }
  t.true(Buffer.from(memory.toUint8Array()).equals(whole))
  memory.close()
})

test('an image that is written into keeps its snapshots', async (t) => {
  const folder = temporaryFolder()
  cpSync(fixture, folder, { recursive: true })
  const target = join(folder, 'dst.q')
  await qemu.img('snapshot', '-c', 'before', target)
  const before = await look(folder, 'dst.q')
  await convert(join(folder, 'src.q'), target, { sourceFormat: 'qcow2', format: 'qcow2', noCreate: true })
  const after = await look(folder, 'dst.q')
  t.is(after['dst.q snapshot 1'], before['dst.q snapshot 1'])
  t.not(after['dst.q disk'], before['dst.q disk'])
  t.is(after['dst.q disk'], (await look(folder, 'src.q'))['src.q disk'])
  t.is(after['dst.q checked by QEMU'], 'clean')
})
