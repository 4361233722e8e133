/** `amend` and `resize` beside qemu-img: on twin copies, the same words give the same answers and the same images. */
import { cpSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { amend } from '../js/index.js'
import { type Answer, answer } from './support/cli.js'
import { must, temporaryFolder } from './support/qemu.js'
import { look } from './support/seen.js'

let fixture = ''

test.before(async () => {
  fixture = join(temporaryFolder(), 'fixture')
  mkdirSync(fixture)
  const img = (...words: string[]) => must('qemu-img', words, { cwd: fixture })
  const io = (file: string, ...commands: string[]) => must('qemu-io', [...commands.flatMap((c) => ['-c', c]), '-f', 'qcow2', file], { cwd: fixture })
  const create = (options: string, ...words: string[]) => img('create', '-q', '-f', 'qcow2', '-o', options, ...words)
  await create('cluster_size=64k', 'base.q', '1M')
  await io('base.q', 'write -P 1 0 300k')
  await create('cluster_size=4k', '-b', 'base.q', '-F', 'qcow2', 'top.q', '2M')
  await io('top.q', 'write -P 2 100k 200k', 'write -z 0 40k', 'write -z 1500k 64k', 'discard 150k 8k')
  await create('cluster_size=64k', 'plain.q', '10M')
  await io('plain.q', 'write -P 3 0 700k', 'write -z 64k 128k', 'write -z 8M 64k')
  await create('cluster_size=4k', 'snap.q', '4M')
  await io('snap.q', 'write -P 4 0 2M', 'write -z 100k 64k')
  await img('snapshot', '-c', 'one', 'snap.q')
  await io('snap.q', 'write -P 5 1M 64k', 'write -z 2M 64k')
  await img('snapshot', '-c', 'two', 'snap.q')
  await io('snap.q', 'discard 1M 128k')
  await create('compat=0.10,cluster_size=8k', 'old.q', '3M')
  await io('old.q', 'write -P 6 0 1M')
  await create('compat=0.10', 'oldsnap.q', '3M')
  await io('oldsnap.q', 'write -P 6 0 1M')
  await img('snapshot', '-c', 'one', 'oldsnap.q')
  await create('lazy_refcounts=on', 'lazy.q', '1M')
  await create('extended_l2=on', 'ext.q', '1M')
  await io('ext.q', 'write -P 9 3k 9k')
  await create('compression_type=zstd', 'zstd.q', '1M')
  await img('convert', '-c', '-O', 'qcow2', '-o', 'compression_type=zstd', 'plain.q', 'zstdc.q')
  await img('convert', '-c', '-O', 'qcow2', 'plain.q', 'zlibc.q')
  await create('data_file=df.raw', 'df.q', '1M')
  await io('df.q', 'write -P 8 0 200k')
  await img('create', '-q', '-f', 'raw', 'disk.raw', '1M')
})

const LINES = {
  amend: `
    -o compat=0.10 plain.q
    -o compat=0.10 top.q
    -o compat=0.10 snap.q
    -o compat=v2 zlibc.q
    -o compat=0.10 lazy.q
    -o compat=0.10,lazy_refcounts=on plain.q
    -o compat=0.10 ext.q
    -o compat=0.10 zstd.q
    -o compat=0.10 zstdc.q
    -o compat=0.10 df.q
    -o compat=1.1 old.q
    -o compat=v3,refcount_bits=64 old.q
    -o compat=1.1,lazy_refcounts=on oldsnap.q
    -o compat=1.1 plain.q
    -o compat=7 plain.q
    -o compat plain.q
    -o lazy_refcounts=on plain.q
    -o lazy_refcounts=off lazy.q
    -o lazy_refcounts=on old.q
    -o lazy_refcounts=x plain.q
    -o refcount_bits=1 plain.q
    -o refcount_bits=2 snap.q
    -o refcount_bits=1 snap.q
    -o refcount_bits=8 ext.q
    -o refcount_bits=32 top.q
    -o refcount_bits=64 df.q
    -o refcount_bits=16 plain.q
    -o refcount_bits=3 plain.q
    -o refcount_bits=64 old.q
    -o refcount_bits=x plain.q
    -o refcount_bits=64,lazy_refcounts=on,size=20M plain.q
    -o size=5M plain.q
    -o size=20M snap.q
    -o size=1000 plain.q
    -o data_file=x.raw plain.q
    -o data_file_raw=on df.q
    -o data_file_raw=off df.q
    -o data_file_raw=on plain.q
    -o backing_file=base.q top.q
    -o backing_fmt=raw top.q
    -o backing_file=base.q,backing_fmt=qcow2 top.q
    -o backing_file=base.q,backing_fmt=raw top.q
    -o cluster_size=4k plain.q
    -o foo=4k plain.q
    -o encrypt.state=active plain.q
    -o lazy_refcounts=on disk.raw
    -f raw -o lazy_refcounts=on disk.raw
    -o lazy_refcounts=on nope
    -o lazy_refcounts=on -t foo plain.q
    -t none -q -o lazy_refcounts=on plain.q
    -o lazy_refcounts=on plain.q top.q
    -o lazy_refcounts=on
    plain.q
    -o , plain.q
    -o help
    -o help plain.q
    -o help disk.raw
    -f qcow2 -o help
    -f raw -o help
    -f foo -o help
    -z
    --force -o lazy_refcounts=on plain.q`,
  resize: `
    plain.q +1M
    plain.q 20M
    plain.q -- +1M
    plain.q -1M
    --shrink plain.q -1M
    --shrink plain.q 500k
    --shrink snap.q 1M
    --shrink top.q 1500k
    --shrink plain.q -10M
    --shrink plain.q -- -100M
    plain.q 0
    plain.q +0
    plain.q zz
    plain.q +
    plain.q 20E
    plain.q 9E
    plain.q 20000001
    -q plain.q +1M
    top.q +7M
    snap.q +512
    old.q +1M
    oldsnap.q +1M
    ext.q +1M
    df.q +1M
    --shrink df.q 100k
    lazy.q +100M
    --preallocation=metadata plain.q +1M
    --preallocation=falloc plain.q +1M
    --preallocation=full ext.q +1M
    --preallocation=off plain.q +1M
    --preallocation=foo plain.q +1M
    --preallocation=full --shrink plain.q -1M
    -f raw disk.raw +1M
    disk.raw +1M
    -f raw disk.raw 2000001
    -f raw --shrink disk.raw 1000
    -f raw --preallocation=metadata disk.raw +1M
    -f raw --preallocation=full disk.raw +1M
    -f foo plain.q 1M
    nope +1M
    plain.q
    plain.q 1M 2M
    --bar plain.q 1M`,
}

const IMAGES = ['plain.q', 'top.q', 'snap.q', 'old.q', 'oldsnap.q', 'lazy.q', 'ext.q', 'zstd.q', 'zstdc.q', 'zlibc.q', 'df.q', 'base.q']

for (const [command, text] of Object.entries(LINES)) {
  test(`${command}: the same words in, the same answers and images out`, async (t) => {
    t.timeout(300_000)
    const failures: string[] = []
    for (const line of text
      .trim()
      .split('\n')
      .map((each) => each.trim())) {
      const words = [command, ...line.split(' ')]
      const folder = temporaryFolder()
      const [theirs, ours] = ['theirs', 'ours'].map((side) => join(folder, side)) as [string, string]
      for (const side of [theirs, ours]) cpSync(fixture, side, { recursive: true })
      const [expected, actual] = await Promise.all([
        answer('qemu-img', words, { cwd: theirs, ours: false }),
        answer('qemu-img', words, { cwd: ours, ours: true }),
      ])
      const file = IMAGES.find((image) => words.includes(image))
      const difference = differing(expected, actual) ?? (file === undefined ? undefined : await differingImages(theirs, ours, file))
      if (difference !== undefined) failures.push(`${words.join(' ')}: ${difference}`)
    }
    t.deepEqual(failures, [])
  })
}

function differing(expected: Answer, actual: Answer): string | undefined {
  const [a, b] = [JSON.stringify(actual), JSON.stringify(expected)]
  return a === b ? undefined : `ours ${a}, theirs ${b}`
}

async function differingImages(theirs: string, ours: string, file: string): Promise<string | undefined> {
  const [expected, actual] = [await look(theirs, file), await look(ours, file)]
  // QEMU's own images need not be clean: compat=0.10 leaves COPIED set in an image with snapshots whose zero clusters it has made data.
  for (const who of ['us', 'QEMU']) {
    if (actual[`${file} checked by ${who}`] !== 'clean') return `checked by ${who}: ${actual[`${file} checked by ${who}`]}`
    expected[`${file} checked by ${who}`] = 'clean'
  }
  const [a, b] = [JSON.stringify(actual), JSON.stringify(expected)]
  if (a !== b) return `ours ${a}, theirs ${b}`
  const size = (folder: string) => (existsSync(join(folder, 'disk.raw')) ? statSync(join(folder, 'disk.raw')).size : 0)
  return size(theirs) === size(ours) ? undefined : `the raw file has ${size(ours)} bytes, theirs ${size(theirs)}`
}

test('refcounts of an image whose refcount table names what is not its own are not moved', async (t) => {
  // Giving back what the table named once gave back an L2 table, and the guest's data with it.
  for (const named of [4, 1000]) {
    const folder = temporaryFolder()
    const path = join(folder, 'x.q')
    await must('qemu-img', ['create', '-q', '-f', 'qcow2', path, '64M'])
    await must('qemu-io', ['-c', 'write -P 7 0 1M', path])
    const image = readFileSync(path)
    image.writeBigUInt64BE(BigInt(named * 65536), 65536 + 8)
    writeFileSync(path, image)
    await t.throwsAsync(amend(path, { refcountBits: 64 }), { code: 'ERR_QCOW2_AMEND' })
    t.true((await must('qemu-io', ['-r', '-c', 'read -P 7 0 1M', path])).stdout.includes('read 1048576/1048576'), `${named}`)
  }
})
