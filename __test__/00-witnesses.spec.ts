/**
 * The witnesses agree with each other before they judge the library: the tests' own writer, the flat model, the naive reader and QEMU.
 */
import { closeSync, openSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { type DiskCase, differs, readFrom } from './support/case.js'
import { decompress, deflate, lz4Cluster, zstdByHand, zstdCompress, zstdSkippable } from './support/codecs.js'
import { tagged } from './support/model.js'
import { caseCount, firstSeed, Prng } from './support/prng.js'
import { qemu, removeFolder, temporaryFolder } from './support/qemu.js'
import { randomQemuCase } from './support/random-qemu.js'
import { randomBuiltCase } from './support/random-spec.js'
import { naiveChain } from './support/reader.js'

for (const kind of ['zlib', 'zstd', 'lz4'] as const) {
  test(`the ${kind} codec of the tests gives back what it took, with rubbish behind it`, (t) => {
    const random = new Prng(7)
    for (const data of [tagged(0, 65536), random.bytes(4096), new Uint8Array(512), new Uint8Array(2 ** 18).fill(9)]) {
      const payloads =
        kind === 'zlib'
          ? [deflate(data), deflate(data, 15, 9)]
          : kind === 'lz4'
            ? [lz4Cluster(data), lz4Cluster(data, true)]
            : [
                zstdCompress(data),
                zstdCompress(data, { frames: 3, checksum: true }),
                zstdByHand(data),
                Buffer.concat([zstdSkippable(9), zstdCompress(data)]),
              ]
      for (const payload of payloads)
        t.deepEqual(Buffer.from(decompress(kind, Buffer.concat([payload, random.bytes(300)]), data.length)), Buffer.from(data))
    }
  })
}

async function agree(made: DiskCase): Promise<string | undefined> {
  const random = new Prng(made.seed)
  const states = [
    { snapshot: undefined as string | undefined, model: made.model },
    ...made.snapshots.map(({ id, model }) => ({ snapshot: id as string | undefined, model })),
  ]
  for (const { snapshot, model } of states) {
    const naive = naiveChain(made.path, 'qcow2', snapshot)
    const wrong = await differs(model, random, (start, length) => naive.read(BigInt(start), length))
    naive.close()
    if (wrong !== undefined) return `naive reader${snapshot === undefined ? '' : `, snapshot ${snapshot}`}: ${wrong}`
    if (!made.qemu) continue
    const raw = join(made.folder, 'out.raw')
    await qemu.raw(made.path, raw, snapshot === undefined ? ['-f', 'qcow2'] : ['-f', 'qcow2', '-l', `snapshot.id=${snapshot}`])
    const handle = openSync(raw, 'r')
    const differing = await differs(model, random, (start, length) => readFrom(handle, start, length))
    closeSync(handle)
    if (differing !== undefined) return `qemu-img${snapshot === undefined ? '' : `, snapshot ${snapshot}`}: ${differing}`
  }
  if (!made.qemu) return undefined
  for (const { path, format } of made.layers) {
    if (format === 'raw') continue
    const { code, stderr } = await qemu.check(path)
    if (code !== 0) return `qemu-img check ${path}: ${code} ${stderr}`
  }
  return undefined
}

test('the tests’ own writer, the model, the naive reader and QEMU agree on random images', async (t) => {
  const first = firstSeed(1000)
  for (let seed = first; seed < first + caseCount(40); seed++) {
    const folder = temporaryFolder()
    const made = randomBuiltCase(seed, folder)
    t.is(await agree(made), undefined, `QCOW2_SEED=${seed}: ${made.words}`)
    removeFolder(folder)
  }
})

test('qemu-io’s writes, the model and the naive reader agree on random images', async (t) => {
  const first = firstSeed(2000)
  for (let seed = first; seed < first + caseCount(15); seed++) {
    const folder = temporaryFolder()
    const made = await randomQemuCase(seed, folder)
    t.is(await agree(made), undefined, `QCOW2_SEED=${seed}: ${made.words}`)
    removeFolder(folder)
  }
})
