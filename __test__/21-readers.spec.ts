/**
 * What the library writes is read by programs that are not QEMU: 7-Zip and libqcow. Both know versions 2 and 3, every cluster size and
 * refcount width, and deflate; neither knows zstd or extended L2.
 */
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInflateRaw } from 'node:zlib'
import test from 'ava'
import { convert, create } from '../js/index.js'
import type { ConvertOptions } from '../js/job-types.js'
import { storedClusters } from './support/entries.js'
import { tagged } from './support/model.js'
import { caseCount, firstSeed, Prng } from './support/prng.js'
import { must, removeFolder, temporaryFolder } from './support/qemu.js'
import { bytesOf } from './support/reader.js'

const PYQCOW = `
import hashlib, sys
import pyqcow
image = pyqcow.file()
image.open(sys.argv[1])
digest = hashlib.sha256()
left = image.get_media_size()
while left:
    part = image.read_buffer(min(left, 1 << 20))
    if not part:
        sys.exit("short read")
    digest.update(part)
    left -= len(part)
print(digest.hexdigest())
`

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex')

/** Bytes as a disk has them: text, tags, noise, and zeros between. */
function disk(random: Prng): Buffer {
  const parts: Uint8Array[] = []
  for (let i = 0; i < random.between(1, 9); i++) {
    const length = random.between(1, 500) * 512
    parts.push(
      random.pick([
        () => random.bytes(length),
        () => tagged(i * 4096, length),
        () => new Uint8Array(length),
        () => new Uint8Array(length).fill(65),
      ])(),
    )
  }
  return Buffer.concat(parts)
}

test('7-Zip and libqcow read every image that we convert to within what they know', async (t) => {
  t.timeout(300_000)
  const first = firstSeed(90_000)
  for (let seed = first; seed < first + caseCount(30); seed++) {
    const random = new Prng(seed)
    const folder = temporaryFolder()
    const source = join(folder, 'source.raw')
    const target = join(folder, 'target.qcow2')
    const bytes = disk(random)
    writeFileSync(source, bytes)
    const compat = random.pick(['0.10', '1.1'] as const)
    const options: ConvertOptions = {
      sourceFormat: 'raw',
      format: 'qcow2',
      compat,
      clusterSize: 2 ** random.between(9, 21),
      threads: 2,
      ...(compat === '1.1' ? { refcountBits: 2 ** random.int(7) } : {}),
      ...random.pick<ConvertOptions>([
        {},
        { preallocation: 'metadata' },
        { compression: 'zlib' },
        { compression: 'zlib', level: random.between(1, 9) },
        { compression: 'zlib', level: random.between(1, 9) },
      ]),
    }
    await convert(source, target, options)
    const words = `QCOW2_SEED=${seed}: ${JSON.stringify(options)}`
    const zipped = await must('7zz', ['e', '-so', '-tqcow', target])
    t.is(sha256(zipped.stdout), sha256(bytes), `7-Zip, ${words}`)
    const python = await must('/usr/bin/python3', ['-c', PYQCOW, target])
    t.is(python.stdout.toString().trim(), sha256(bytes), `libqcow, ${words}`)
    removeFolder(folder)
  }
})

test('libqcow and 7-Zip read an empty image of ours as zeros', async (t) => {
  const folder = temporaryFolder()
  const target = join(folder, 'empty.qcow2')
  await create(target, { size: 3 * 2 ** 20 })
  const zeros = sha256(new Uint8Array(3 * 2 ** 20))
  t.is((await must('/usr/bin/python3', ['-c', PYQCOW, target])).stdout.toString().trim(), zeros)
  t.is(sha256((await must('7zz', ['e', '-so', '-tqcow', target])).stdout), zeros)
})

/** Inflates with a window of exactly 4 KiB: fed in small pieces, with small output, so that nothing but the window remembers. */
function inflateInPieces(payload: Uint8Array): Promise<Buffer> {
  return new Promise((done, fail) => {
    const stream = createInflateRaw({ windowBits: 12, chunkSize: 64 })
    const parts: Buffer[] = []
    stream.on('data', (part: Buffer) => parts.push(part))
    stream.on('end', () => done(Buffer.concat(parts)))
    stream.on('error', fail)
    for (let at = 0; at < payload.length; at += 97) stream.write(payload.subarray(at, at + 97))
    stream.end()
  })
}

test('our deflate needs no more than a 4 KiB window, at every level', async (t) => {
  const folder = temporaryFolder()
  const source = join(folder, 'source.raw')
  // Repeats at distances just below, at and above 4 KiB: an encoder with a larger window would use them.
  const random = new Prng(5)
  const unit = random.bytes(5000)
  const bytes = Buffer.concat([
    ...Array.from({ length: 40 }, () => unit),
    ...Array.from({ length: 60 }, () => random.bytes(4097).fill(1, 0, 40)),
    tagged(0, 2 ** 18),
  ])
  writeFileSync(source, bytes.subarray(0, bytes.length - (bytes.length % 512)))
  for (let level = 1; level <= 9; level++)
    for (const clusterSize of level % 4 === 1 ? [65536, 2 ** 21] : [65536]) {
      const target = join(folder, `${level}-${clusterSize}.qcow2`)
      await convert(source, target, { sourceFormat: 'raw', format: 'qcow2', compression: 'zlib', level, clusterSize })
      const clusters = storedClusters(bytesOf(readFileSync(target))).filter(({ compressed }) => compressed !== undefined)
      t.true(clusters.length > 0, `level ${level} compresses something`)
      for (const { index, compressed } of clusters) {
        const expected = Buffer.alloc(clusterSize)
        bytes.copy(expected, 0, index * clusterSize, Math.min(bytes.length - (bytes.length % 512), (index + 1) * clusterSize))
        const inflated = await inflateInPieces(compressed?.bytes ?? new Uint8Array())
        t.true(inflated.equals(expected), `level ${level}, cluster ${index} of ${clusterSize}`)
      }
    }
})
