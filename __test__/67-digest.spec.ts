/** Digests against a second implementation of docs/digest.md, for every representation of a disk; verify, and manifests that nobody vouches for. */
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { truncate } from 'node:fs/promises'
import { join } from 'node:path'
import test from 'ava'
import { type DigestManifest, digest, open, type VerifyResult, verify } from '../js/index.js'
import { answer } from './support/cli.js'
import { failure, MIB, smallChain, smallModel } from './support/fixtures.js'
import { must, qemu, temporaryFolder } from './support/qemu.js'

const sha256 = (...parts: Uint8Array[]): Buffer => createHash('sha256').update(Buffer.concat(parts)).digest()

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt(value))
  return bytes
}

/** The leaves of a disk, as the page defines them. */
function leavesOf(disk: Buffer, block: number): Buffer[] {
  const leaves: Buffer[] = []
  for (let at = 0; at < disk.length || leaves.length === 0; at += block) leaves.push(sha256(disk.subarray(at, at + block), Buffer.from([0])))
  return leaves
}

function topOf(leaves: Buffer[]): Buffer {
  if (leaves.length === 1) return leaves[0] as Buffer
  let left = 1
  while (left * 2 < leaves.length) left *= 2
  return sha256(topOf(leaves.slice(0, left)), topOf(leaves.slice(left)), Buffer.from([1]))
}

function rootOf(leaves: Buffer[], block: number, size: number): string {
  return sha256(topOf(leaves), u64(block), u64(size), Buffer.from('sha256'), Buffer.from([2])).toString('hex')
}

/** A manifest's leaves, spelled out: its runs of zeros too. */
function spelledOut({ leaves, blockSize, virtualSize }: DigestManifest): Buffer[] {
  const all: Buffer[] = []
  const blocks = Math.max(1, Math.ceil(Number(virtualSize) / blockSize))
  for (const leaf of leaves) {
    if (typeof leaf === 'string') {
      const bytes = Buffer.from(leaf, 'base64')
      for (let at = 0; at < bytes.length; at += 32) all.push(bytes.subarray(at, at + 32))
    } else
      for (let n = 0; n < leaf; n++) {
        const last = all.length === blocks - 1 ? Number(virtualSize) - (blocks - 1) * blockSize : blockSize
        all.push(sha256(Buffer.alloc(last), Buffer.from([0])))
      }
  }
  return all
}

/** Some disk with holes, zeros that are written, and a length that no block divides; and files that hold it. */
async function representations(): Promise<{ folder: string; disk: Buffer; files: string[] }> {
  const folder = temporaryFolder()
  const disk = Buffer.alloc(5 * MIB + 1536)
  randomBytes(700_000).copy(disk, 300_000)
  disk.fill(7, 2 * MIB, 2 * MIB + 100_000).fill(9, disk.length - 512)
  writeFileSync(join(folder, 'full.raw'), disk)
  const img = (...words: string[]) => must('qemu-img', words, { cwd: folder })
  await img('convert', '-O', 'raw', 'full.raw', 'sparse.raw')
  await img('convert', '-f', 'raw', '-O', 'qcow2', 'full.raw', 'plain.qcow2')
  await img('convert', '-f', 'raw', '-c', '-O', 'qcow2', '-o', 'compression_type=zstd,cluster_size=2M', 'full.raw', 'packed.qcow2')
  await img('convert', '-f', 'raw', '-O', 'qcow2', '-S', '0', '-o', 'extended_l2=on', 'full.raw', 'sub.qcow2')
  await img('create', '-q', '-f', 'qcow2', '-b', 'packed.qcow2', '-F', 'qcow2', 'over.qcow2')
  await must('qemu-io', ['-c', 'write -P 1 1M 64k', join(folder, 'plain.qcow2')])
  await img('snapshot', '-c', 'changed', 'plain.qcow2')
  await must('qemu-io', ['-c', `write -s ${join(folder, 'full.raw')} 0 5M`, join(folder, 'plain.qcow2')])
  return { folder, disk, files: ['full.raw', 'sparse.raw', 'plain.qcow2', 'packed.qcow2', 'sub.qcow2', 'over.qcow2'] }
}

test('every representation has the digest and the manifest of a second implementation', async (t) => {
  const { folder, disk, files } = await representations()
  for (const block of [4096, 65536, 1 << 20]) {
    const leaves = leavesOf(disk, block)
    const root = rootOf(leaves, block, disk.length)
    const blake3 = new Set<string>()
    for (const file of files) {
      const found = await digest(join(folder, file), { algorithm: 'sha256', blockSize: block, manifest: true })
      t.is(found.root, root, `${file} ${block}`)
      t.is(found.digest, `sha256${block === MIB ? '' : `-${block}`}:${root}`)
      t.like(found, { virtualSize: disk.length, blocks: leaves.length, blockSize: block })
      const manifest = found.manifest as DigestManifest
      t.deepEqual(spelledOut(manifest), leaves)
      t.true(manifest.leaves.some((leaf) => typeof leaf === 'number'))
      blake3.add((await digest(join(folder, file), { blockSize: block })).digest)
      t.like(await verify(join(folder, file), JSON.parse(JSON.stringify(manifest))), { identical: true, checked: disk.length, different: [] })
    }
    t.is(blake3.size, 1)
  }
})

test('an encrypted image has the digest of what it holds, whatever the key; without the key there is none', async (t) => {
  const { top, folder } = await smallChain()
  const plain = (await digest(top)).digest
  for (const password of ['one', 'two']) {
    const path = join(folder, `${password}.qcow2`)
    const options = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10'
    await must('qemu-img', ['convert', '--object', `secret,id=s,data=${password}`, '-O', 'qcow2', '-o', options, top, path])
    t.is((await digest(path, { source: { secret: Buffer.from(password) } })).digest, plain)
    t.true((await verify(path, plain, { source: { secret: Buffer.from(password) } })).identical)
    t.regex((await failure(() => digest(path))).code, /^ERR_QCOW2_/)
  }
})

test('the vectors of docs/digest.md come out', async (t) => {
  const made = Buffer.alloc(20_992).map((_, index) => index % 251)
  const disks = new Map<string, Uint8Array | { zeros: bigint }>([
    ['no bytes', Buffer.alloc(0)],
    ['4096 zeros', Buffer.alloc(4096)],
    ['12800 zeros', Buffer.alloc(12_800)],
    ['20992 bytes, 0 to 250 over and over', made],
    ['1125899906842624 zeros', { zeros: 1n << 50n }],
  ])
  const page = readFileSync(join(__dirname, '../docs/digest.md'), 'utf8')
  const rows = [...page.matchAll(/^\|(.*) \| `((blake3|sha256)-4096:[0-9a-f]{64})` \|$/gm)]
  t.is(rows.length, 10)
  let disk = ''
  for (const [, name, expected, algorithm] of rows as unknown as [string, string, string, 'blake3' | 'sha256'][]) {
    if (name.trim() !== '') disk = name.trim()
    const source = disks.get(disk) as Uint8Array
    t.is((await digest(source, { format: 'raw', algorithm, blockSize: 4096 })).digest, expected, disk)
    if (source instanceof Uint8Array && algorithm === 'sha256') {
      t.is(`sha256-4096:${rootOf(leavesOf(Buffer.from(source), 4096), 4096, source.length)}`, expected)
    }
  }
})

test('a snapshot has the digest that its disk had, and what is written changes it', async (t) => {
  const { top } = await smallChain()
  const before = await digest(top)
  const disk = await open(top, { writable: true })
  await disk.snapshots.create('then')
  await disk.write(Buffer.from('x'), { position: 5 * MIB + 3 })
  await disk.close()
  t.is((await digest(top, { snapshot: 'then' })).digest, before.digest)
  const after = await digest(top)
  t.not(after.digest, before.digest)
  t.is(after.root, (await digest(Buffer.from(smallModel()).fill('x', 5 * MIB + 3, 5 * MIB + 4), { format: 'raw' })).root)
})

test('verify names the blocks that differ, of the whole disk and of ranges', async (t) => {
  const { top, folder } = await smallChain()
  const { manifest, digest: text } = await digest(top, { manifest: true, blockSize: 65536 })
  const expected = manifest as DigestManifest
  await qemu.io(top, ['write -P 1 4M 64k', 'write -P 2 4160k 1k', 'write -P 0 2M 64k', 'write -z 7M 64k'])
  const found = await verify(top, expected)
  const places = [
    { start: 2 * MIB, end: 2 * MIB + 65536 },
    { start: 4 * MIB, end: 4 * MIB + 131072 },
  ]
  t.deepEqual(found, {
    identical: false,
    virtualSize: 8 * MIB,
    expectedSize: 8 * MIB,
    checked: 8 * MIB,
    differentBlocks: 3,
    different: places,
    omitted: 0,
  })
  t.like(await verify(top, expected, { end: 2 * MIB }), { identical: true, checked: 2 * MIB })
  t.like(await verify(top, expected, { start: 4 * MIB - 1, end: 4 * MIB + 1 }), {
    identical: false,
    checked: 131072,
    different: [{ start: 4 * MIB, end: 4 * MIB + 65536 }],
  })
  t.like(await verify(top, expected, { maxRanges: 1 }), { different: [places[0]], omitted: 1, differentBlocks: 3 })
  t.deepEqual(await verify(top, text), { identical: false, virtualSize: 8 * MIB, checked: 8 * MIB, different: [], omitted: 0 })
  t.true((await verify(join(folder, 'base.qcow2'), (await digest(join(folder, 'base.qcow2'))).digest)).identical)
  t.is((await failure(() => verify(top, text, { start: 5 }))).code, 'ERR_QCOW2_INVALID_ARGUMENT')
  t.is((await failure(() => verify(top, expected, { end: 8 * MIB + 1 }))).code, 'ERR_QCOW2_INVALID_ARGUMENT')
  t.like(await verify(top, expected, { digest: text, end: 1 }), { identical: true })
  t.is((await failure(() => verify(top, expected, { digest: `blake3:${'0'.repeat(64)}` }))).code, 'ERR_QCOW2_MANIFEST')
})

test('a disk of another length differs where it is longer or shorter', async (t) => {
  const file = join(temporaryFolder(), 'a.raw')
  writeFileSync(file, Buffer.alloc(40 * 4096, 3))
  const manifest = (await digest(file, { manifest: true, blockSize: 4096 })).manifest as DigestManifest
  await truncate(file, 30 * 4096 + 512)
  t.like(await verify(file, manifest), {
    identical: false,
    different: [{ start: 30 * 4096, end: 40 * 4096 }],
    virtualSize: 30 * 4096 + 512,
  } as Partial<VerifyResult>)
  t.true((await verify(file, manifest, { end: 30 * 4096 })).identical)
})

test('a manifest that was tampered with is refused by a typed error', async (t) => {
  const disk = Buffer.alloc(20 * 4096)
  randomBytes(5 * 4096).copy(disk, 4096)
  const good = (await digest(disk, { format: 'raw', manifest: true, blockSize: 4096 })).manifest as DigestManifest
  const hash = randomBytes(32).toString('base64')
  const changes: Record<string, unknown>[] = [
    { 'qcow2-digest': 2 },
    { algorithm: 'md5' },
    { algorithm: 'sha256' },
    { blockSize: 8192 },
    { blockSize: '4096' },
    { blockSize: 4097 },
    { blockSize: 2 ** 40 },
    { virtualSize: -1 },
    { virtualSize: 1.5 },
    { virtualSize: 20 * 4096 - 512 },
    { virtualSize: '99999999999999999999' },
    { virtualSize: '9223372036854775807' },
    { root: good.root.toUpperCase() },
    { root: '0'.repeat(64) },
    { root: undefined },
    { leaves: undefined },
    { leaves: [] },
    { leaves: [20] },
    { leaves: [2 ** 53] },
    { leaves: [Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER] },
    { leaves: [...good.leaves.slice(0, -1), hash] },
    { leaves: [...good.leaves, 0] },
    { leaves: [...good.leaves, -1] },
    { leaves: [...good.leaves, null] },
    { leaves: [...good.leaves, 'AA=='] },
    { leaves: [...good.leaves, `${hash} `] },
    { leaves: [...good.leaves, ''] },
    { leaves: [...good.leaves, {}] },
  ]
  for (const change of changes) {
    const error = await failure(() => verify(disk, { ...good, ...change } as DigestManifest, { format: 'raw' }))
    t.is(error.code, 'ERR_QCOW2_MANIFEST', `${JSON.stringify(change)}: ${error.message}`)
  }
  for (const bad of [null, 5, [], 'blake3:', `md5:${'0'.repeat(64)}`, `blake3-4097:${'0'.repeat(64)}`]) {
    t.is((await failure(() => verify(disk, bad as string, { format: 'raw' }))).code, 'ERR_QCOW2_MANIFEST', String(bad))
  }
  const many = { ...good, leaves: Array(100_000).fill(1) as number[] }
  t.is((await failure(() => verify(disk, many, { format: 'raw', source: { limits: { maxMemory: MIB } } }))).code, 'ERR_QCOW2_LIMIT')
})

test('a digest is a job: it reports bytes, and can be cancelled', async (t) => {
  const seen: number[] = []
  const job = digest({ zeros: 1 << 30 }, { format: 'raw', onProgress: ({ phase, done, total }) => phase === 'digest' && seen.push(done / total) })
  await job
  t.is(seen.at(-1), 1)
  const { top } = await smallChain()
  const cancelled = digest(top)
  cancelled.cancel()
  t.is((await failure(() => cancelled)).code, 'ERR_QCOW2_CANCELLED')
  t.is((await failure(() => digest(top, { blockSize: 5000 }))).code, 'ERR_QCOW2_INVALID_ARGUMENT')
  t.is((await failure(() => digest(top, { blocksize: 4096 } as object))).code, 'ERR_QCOW2_UNKNOWN_OPTION')
})

test('the commands: what they print, what they write, and exit codes that mean one thing each', async (t) => {
  const { folder, top } = await smallChain()
  const run = (...words: string[]) => answer('qcow2', words, { cwd: folder, ours: true })
  const made = await run('digest', '-b', '64k', '-m', 'm', 'top.qcow2')
  const library = await digest(top, { blockSize: 65536, manifest: true })
  t.deepEqual(made, { code: 0, stdout: `${library.digest}  top.qcow2\n`, stderr: '' })
  t.deepEqual(JSON.parse(readFileSync(join(folder, 'm'), 'utf8')), library.manifest)
  const json = JSON.parse((await run('digest', '--output=json', '-a', 'sha256', 'top.qcow2')).stdout)
  t.like(json, { algorithm: 'sha256', 'block-size': MIB, 'virtual-size': 8 * MIB, blocks: 8 })
  t.deepEqual(JSON.parse((await run('digest', '-b', '64k', '-m', '-', 'top.qcow2')).stdout), library.manifest)
  t.deepEqual(await run('verify', '-m', 'm', 'top.qcow2'), { code: 0, stdout: `Verified: ${8 * MIB} bytes are as expected.\n`, stderr: '' })
  t.is((await run('verify', '-d', library.digest, 'top.qcow2')).code, 0)
  await qemu.io(top, ['write -P 1 4M 64k'])
  const range = `${4 * MIB} to ${4 * MIB + 65536}`
  t.deepEqual(await run('verify', '-m', 'm', 'top.qcow2'), { code: 1, stdout: `Mismatch at ${range}\n1 blocks differ.\n`, stderr: '' })
  t.is((await run('verify', '-m', 'm', '--end', '4M', 'top.qcow2')).code, 0)
  t.deepEqual(await run('verify', '-q', '-d', library.digest, 'top.qcow2'), { code: 1, stdout: '', stderr: '' })
  t.like(JSON.parse((await run('verify', '--output=json', '-m', 'm', 'top.qcow2')).stdout), { identical: false, 'different-blocks': 1 })
  for (const words of [
    ['-m', 'm', 'nothing.qcow2'],
    ['-m', 'nothing', 'top.qcow2'],
    ['-m', 'top.qcow2', 'top.qcow2'],
    ['-d', 'blake3:00', 'top.qcow2'],
    ['-m', 'm', '--end', '9M', 'top.qcow2'],
    ['-m', 'm', '-l', 'none', 'top.qcow2'],
    ['-m', 'm', '--wrong', 'top.qcow2'],
    ['top.qcow2'],
    ['-m', 'm'],
  ]) {
    t.like(await run('verify', ...words), { code: 2, stdout: '' }, words.join(' '))
  }
  t.is((await run('verify', '--help')).code, 0)
  const image = readFileSync(top)
  for (const words of [
    ['-m', 'top.qcow2', 'top.qcow2'],
    ['-m', 'no/where', 'top.qcow2'],
    ['-b', '5000', 'top.qcow2'],
    ['-a', 'md5', 'top.qcow2'],
  ]) {
    t.like(await run('digest', ...words), { code: 1, stdout: '' }, words.join(' '))
  }
  t.deepEqual(readFileSync(top), image)
  t.false(existsSync(join(folder, 'no')))
  t.deepEqual(
    readdirSync(folder).filter((name) => name.includes('.part')),
    [],
  )
})
