/** Images by description (`--image-opts`, `json:`), given by the user: beside qemu-img. What an image names is never taken for one. */
import { appendFileSync, cpSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { info, open } from '../js/index.js'
import { answer } from './support/cli.js'
import { must, temporaryFolder } from './support/qemu.js'

let [theirs, ours] = ['', '']

test.before(async () => {
  const folder = temporaryFolder()
  ;[theirs, ours] = ['theirs', 'ours'].map((side) => join(folder, side)) as [string, string]
  mkdirSync(theirs)
  const img = (...words: string[]) => must('qemu-img', words, { cwd: theirs })
  await img('create', '-q', '-f', 'qcow2', 'src.q', '4M')
  await must('qemu-io', ['-c', 'write -P 1 0 1M', '-c', 'write -P 2 2M 64k', 'src.q'], { cwd: theirs })
  await img('snapshot', '-c', 'one', 'src.q')
  await img('create', '-q', '-f', 'qcow2', '-b', 'src.q', '-F', 'qcow2', 'over.q')
  await img('convert', '-O', 'raw', 'src.q', 'two.raw')
  appendFileSync(join(theirs, 'two.raw'), readFileSync(join(theirs, 'two.raw')))
  await img('create', '-q', '-u', '-f', 'qcow2', '-b', 'json:{"driver":"qcow2","file.filename":"src.q"}', '-F', 'qcow2', 'named.q', '4M')
  cpSync(theirs, ours, { recursive: true })
})

const LINES = [
  'info --image-opts driver=qcow2,file.filename=src.q',
  'info --output=json --image-opts driver=qcow2,file.filename=src.q',
  'info --image-opts file.filename=src.q',
  'info --image-opts file.filename=two.raw',
  'info --image-opts driver=qcow2,file.driver=file,file.filename=src.q,node-name=x,read-only=on,cache.direct=off',
  'info --backing-chain --image-opts driver=qcow2,file.filename=over.q',
  'info json:{"driver":"qcow2","file":{"driver":"file","filename":"src.q"}}',
  "info json:{'driver':'qcow2','file.filename':'src.q'}",
  'info json:{"file.filename":"nope.q"}',
  'info json:{"driver":"foo"}',
  'info --image-opts driver=foo,file.filename=src.q',
  'info --image-opts driver=qcow2,file.driver=foo,file.filename=src.q',
  'info --image-opts driver=qcow2,file.filename=two.raw',
  'info --image-opts driver=qcow2',
  'info --image-opts driver=null-co,latency-nsfoo=1',
  'info --image-opts driver=qcow2,read-onlyfoo=on,file.filename=src.q',
  'info --image-opts driver=qcow2,read-only=maybe,file.filename=src.q',
  'info --image-opts driver=qcow2,cache.foo=on,file.filename=src.q',
  'info --image-opts driver=qcow2,cache.direct=off,cache.no-flush=off,file.filename=src.q',
  'info --image-opts driver=raw,size=1000,file.filename=two.raw',
  'info --image-opts -f raw src.q',
  'check --image-opts driver=qcow2,file.filename=src.q',
  'check json:{"driver":"qcow2","file.filename":"src.q"}',
  'map --image-opts driver=qcow2,file.filename=src.q',
  'map --output=json json:{"driver":"qcow2","file.filename":"over.q"}',
  'map --output=json --image-opts driver=raw,offset=4M,file.filename=two.raw',
  'measure -O qcow2 --image-opts driver=qcow2,file.filename=src.q',
  'measure -O qcow2 --image-opts driver=raw,size=1M,file.filename=two.raw',
  'compare --image-opts driver=raw,offset=4M,file.filename=two.raw driver=qcow2,file.filename=src.q',
  'compare --image-opts driver=raw,offset=4M,size=1M,file.filename=two.raw driver=qcow2,file.filename=src.q',
  'compare json:{"driver":"qcow2","file.filename":"src.q"} over.q',
  'convert -O qcow2 --image-opts driver=raw,offset=4M,file.filename=two.raw x',
  'convert -O raw --image-opts driver=null-co,size=1M,read-zeroes=on x',
  'convert -O raw -l one json:{"driver":"qcow2","file.filename":"src.q"} x',
  'dd --image-opts -O raw bs=64k count=3 if=driver=qcow2,file.filename=src.q of=x',
  'snapshot -l --image-opts driver=qcow2,file.filename=over.q',
  'snapshot -c two --image-opts driver=qcow2,file.filename=over.q',
  'bitmap --add --image-opts driver=qcow2,file.filename=over.q b',
  'resize --image-opts driver=qcow2,file.filename=over.q +1M',
  'amend -o lazy_refcounts=on --image-opts driver=qcow2,file.filename=over.q',
  'resize --image-opts driver=qcow2,read-only=on,file.filename=over.q +1M',
  'snapshot -c three --image-opts driver=qcow2,read-only=on,file.filename=over.q',
  'check -r all --image-opts driver=qcow2,read-only=on,file.filename=over.q',
  'amend -o lazy_refcounts=on --image-opts driver=qcow2,read-only=on,file.filename=over.q',
  'bitmap --add --image-opts driver=qcow2,read-only=on,file.filename=over.q c',
  'commit --image-opts driver=qcow2,read-only=on,file.filename=over.q',
  'commit --image-opts driver=qcow2,file.filename=over.q',
]

/** Facts that differ from one run to the next. */
const steady = (text: string) => text.replace(/^ *"actual-size".*\n|^ *disk size: .*\n|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/gm, '')

test('a description leads to what it leads qemu-img to', async (t) => {
  t.timeout(120_000)
  const failures: string[] = []
  for (const line of LINES) {
    const words = line.split(' ')
    const [expected, actual] = await Promise.all([
      answer('qemu-img', words, { cwd: theirs, ours: false }),
      answer('qemu-img', words, { cwd: ours, ours: true }),
    ])
    const [a, b] = [expected, actual].map((one) => JSON.stringify({ ...one, stdout: steady(one.stdout) }))
    if (a !== b) failures.push(`${line}: ours ${b}, theirs ${a}`)
    if (words.at(-1) === 'x' && expected.code === 0) {
      const same = await answer('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', join(theirs, 'x'), join(ours, 'x')], { cwd: ours, ours: false })
      if (!line.includes('qcow2 --image-opts') && same.code !== 0) failures.push(`${line}: other bytes`)
    }
    for (const side of [theirs, ours]) rmSync(join(side, 'x'), { force: true })
  }
  t.deepEqual(failures, [])
})

test('a description that an image names is not followed', async (t) => {
  for (const words of [
    ['map', 'named.q'],
    ['info', '--backing-chain', 'named.q'],
    ['convert', 'named.q', 'x'],
    ['check', 'named.q'],
  ]) {
    const { code, stderr } = await answer('qemu-img', words, { cwd: ours, ours: true })
    t.is(code, 1, words.join(' '))
    t.regex(stderr, /Image descriptions in JSON are not supported/, words.join(' '))
  }
})

test('descriptions that mean harm are refused in words', async (t) => {
  const deep = `${'{"a":'.repeat(5_000)}1${'}'.repeat(5_000)}`
  for (const words of [
    [`json:${deep}`],
    ['json:{"__proto__":{"driver":"qcow2"},"driver":"qcow2","file.filename":"src.q"}'],
    ['json:{"driver":"raw","offset":99999999999999999999,"file.filename":"two.raw"}'],
    ['json:{"driver":"null-co","size":"-1"}'],
    // Two windows, one in the other: the inner one must not be forgotten.
    ['json:{"driver":"raw","offset":512,"file":{"driver":"raw","offset":1024,"file.filename":"two.raw"}}'],
    ['--image-opts', `${'a.'.repeat(10_000)}b=1`],
  ]) {
    const { code, stderr } = await answer('qemu-img', ['info', ...words], { cwd: ours, ours: true })
    t.is(code, 1, words.join(' ').slice(0, 60))
    t.regex(stderr, /^qemu-img: Could not open '/, stderr.slice(0, 200))
    t.notRegex(stderr, /\n {4}at /)
  }
})

test('zeros are a source', async (t) => {
  const disk = await open({ zeros: 1 << 30 }, { format: 'raw' })
  const { buffer } = await disk.read(Buffer.alloc(4096, 1), { position: 12345 })
  t.true(buffer.every((byte) => byte === 0))
  t.is(disk.virtualSize, 1 << 30)
  await disk.close()
  t.is((await info({ zeros: 5n * 2n ** 40n }, { format: 'raw' })).virtualSize, 5 * 2 ** 40)
})

test('objects are taken, and what is wrong with one is told as qemu-img tells it', async (t) => {
  const failures: string[] = []
  for (const definition of [
    'secret,id=a,data=b',
    'secret,id=a',
    'secret,data=b',
    'secret,id=a,foo=b',
    'secret,id=a,data=b,file=src.q',
    'secret,id=a,file=src.q',
    'secret,id=a,file=nope',
    'secret',
    'secret,id=a,data=YWJj,format=base64',
    'secret,id=a,data=b,format=x',
    'foo,id=a',
    'iothread,id=x',
    'secret,id=1a,data=b',
    'qom-type=secret,id=a,data=b',
    '{"qom-type":"secret","id":"a","data":"b"}',
    'secret,id=a,data=b,keyid=x',
    'throttle-group,id=t',
  ]) {
    const words = ['snapshot', '-l', '--object', definition, 'named.q']
    const [expected, actual] = await Promise.all([
      answer('qemu-img', words, { cwd: theirs, ours: false }),
      answer('qemu-img', words, { cwd: ours, ours: true }),
    ])
    // The image itself cannot be opened by us: objects are looked at before.
    if (expected.code !== 0 && expected.stderr !== actual.stderr) failures.push(`${definition}: ours ${actual.stderr}, theirs ${expected.stderr}`)
    if (expected.code === 0 && !/Image descriptions/.test(actual.stderr)) failures.push(`${definition}: ${actual.stderr}`)
  }
  t.deepEqual(failures, [])
})
