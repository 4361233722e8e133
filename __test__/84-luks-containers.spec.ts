/** LUKS1 containers as a format of their own: from TypeScript, and on the command line beside qemu-img. */
import { randomBytes } from 'node:crypto'
import { cpSync, mkdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { amend, check, compare, convert, create, digest, info, measure, open, probe, rebase } from '../js/index.js'
import { answer } from './support/cli.js'
import { failure } from './support/fixtures.js'
import { must, temporaryFolder } from './support/qemu.js'

const SECRET = Buffer.from('abc')
const ENCRYPTION = { secret: SECRET, iterTime: 10 }
const O = ['--object', 'secret,id=s,data=abc', '--object', 'secret,id=b,data=bcd']
const named = (path: string, header?: string) =>
  `driver=luks,key-secret=s,file.filename=${path}${header === undefined ? '' : `,header.filename=${header}`}`

async function qemuBytes(description: string, folder: string): Promise<Buffer> {
  await must('qemu-img', ['convert', ...O, '--image-opts', '-O', 'raw', description, 'qemu.raw'], { cwd: folder })
  return readFileSync(join(folder, 'qemu.raw'))
}

test('a container holds what is written to it, for us and for qemu-img', async (t) => {
  const folder = temporaryFolder()
  const path = join(folder, 'disk.luks')
  const { fileSize } = await create(path, { format: 'luks', size: '3M', encryption: ENCRYPTION })
  t.is(fileSize, statSync(path).size)
  t.is(await probe(path), 'luks')
  const disk = await open(path, { format: 'luks', writable: true, secret: SECRET })
  t.is(disk.format, 'luks')
  // What nobody has written is noise, as in every container: so all of it is.
  const model = randomBytes(3 << 20)
  await disk.write(model, { position: 0 })
  for (const [position, length] of [
    [0, 100],
    [511, 2],
    [1_000_001, 70_003],
    [(3 << 20) - 1, 1],
  ] as const) {
    const bytes = randomBytes(length)
    bytes.copy(model, position)
    await disk.write(bytes, { position })
  }
  await disk.writeZeroes(4096, 8192)
  model.fill(0, 4096, 4096 + 8192)
  await disk.close()
  t.true((await qemuBytes(named('disk.luks'), folder)).equals(model))
  t.false(readFileSync(path).includes(model.subarray(20_000, 20_032)))
  const again = await open(path, { format: 'luks', secret: SECRET })
  for (const [position, length] of [
    [0, 3 << 20],
    [4000, 4096],
    [1, 1],
  ] as const) {
    const buffer = Buffer.alloc(length)
    await again.read(buffer, { position })
    t.true(buffer.equals(model.subarray(position, position + length)))
  }
  // Where bytes stand in the file is of no use to anybody.
  for await (const run of again.map()) t.deepEqual([run.data, run.zero, run.offset], [true, false, undefined])
  await again.close()
})

test('containers are converted to and from, compared, measured, resized and digested', async (t) => {
  const folder = temporaryFolder()
  const at = (name: string) => join(folder, name)
  const model = randomBytes(2 << 20)
  model.fill(0, 300_000, 1_200_000)
  writeFileSync(at('a.raw'), model)
  await convert(at('a.raw'), at('b.luks'), { format: 'luks', encryption: ENCRYPTION })
  t.true((await qemuBytes(named('b.luks'), folder)).equals(model))
  const source = { secret: SECRET }
  await convert(at('b.luks'), at('c.qcow2'), { source })
  t.true((await compare(at('b.luks'), at('a.raw'), { source })).identical)
  t.is((await digest(at('b.luks'), { source })).digest, (await digest(at('a.raw'))).digest)
  const { required, fullyAllocated } = await measure({ size: '2M' }, { format: 'luks', encryption: ENCRYPTION })
  t.deepEqual([required, fullyAllocated], [statSync(at('b.luks')).size, statSync(at('b.luks')).size])
  const disk = await open(at('b.luks'), { format: 'luks', writable: true, secret: SECRET })
  await disk.resize('3M')
  await disk.close()
  const grown = await qemuBytes(named('b.luks'), folder)
  t.is(grown.length, 3 << 20)
  t.true(grown.subarray(0, 2 << 20).equals(model))
  // As the backing file of an overlay, each with its own key.
  await must('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', 'b.luks', '-F', 'luks', 'over.qcow2'], { cwd: folder })
  const over = await open(at('over.qcow2'), { secret: async (layer) => (layer?.depth === 1 ? SECRET : undefined) as Uint8Array })
  const buffer = Buffer.alloc(4096)
  await over.read(buffer, { position: 1_250_000 })
  t.true(buffer.equals(model.subarray(1_250_000, 1_254_096)))
  await over.close()
  // A function could not answer that a backing file is a container, and the command line asks one.
  const answered = await open(at('over.qcow2'), { secret: SECRET, backingFiles: ({ path }) => ({ path, format: 'luks' }) })
  await answered.read(buffer, { position: 1_250_000 })
  t.true(buffer.equals(model.subarray(1_250_000, 1_254_096)))
  await answered.close()
  writeFileSync(at('key'), SECRET)
  const ways = [
    ['convert', ...O, '-O', 'raw', '--image-opts', 'driver=qcow2,file.filename=over.qcow2,backing.key-secret=s', '1.raw'],
    ['convert', ...O, '-O', 'raw', 'json:{"driver":"qcow2","file":{"driver":"file","filename":"over.qcow2"},"backing":{"key-secret":"s"}}', '2.raw'],
    ['convert', '--passphrase-file', 'key', '-O', 'raw', 'over.qcow2', '3.raw'],
  ]
  for (const [index, words] of ways.entries()) {
    const found = await answer('qcow2', words, { cwd: folder, ours: true })
    t.deepEqual([found.code, found.stderr], [0, ''])
    t.true(
      readFileSync(at(`${index + 1}.raw`))
        .subarray(0, model.length)
        .equals(model),
    )
    if (index < 2) await must('qemu-img', words, { cwd: folder })
    t.true(
      readFileSync(at(`${index + 1}.raw`))
        .subarray(0, model.length)
        .equals(model),
    )
  }
})

test('a header may be a file of its own', async (t) => {
  const folder = temporaryFolder()
  const [header, path] = [join(folder, 'header.luks'), join(folder, 'payload')]
  await create(header, { format: 'luks', encryption: { ...ENCRYPTION, detachedHeader: true } })
  writeFileSync(path, '')
  truncateSync(path, 1 << 20)
  const source = { path, luksHeader: header }
  const disk = await open(source, { format: 'luks', writable: true, secret: SECRET })
  const model = randomBytes(1 << 20)
  await disk.write(model, { position: 0 })
  await disk.close()
  t.true((await qemuBytes(named('payload', 'header.luks'), folder)).equals(model))
  t.true((await info(source, { format: 'luks' })).luks?.detachedHeader)
  await amend(source, { format: 'luks', secret: SECRET, keySlot: { newSecret: Buffer.from('bcd'), oldSecret: SECRET, iterTime: 10 } })
  t.is((await failure(() => open(source, { format: 'luks', secret: SECRET }))).code, 'ERR_QCOW2_WRONG_KEY')
  await (await open(source, { format: 'luks', secret: Buffer.from('bcd') })).close()
  t.is((await failure(() => open(header, { format: 'luks', secret: SECRET }))).code, 'ERR_QCOW2_LUKS_HEADER')
  t.is((await failure(() => open(source, { format: 'raw' }))).code, 'ERR_QCOW2_INVALID_ARGUMENT')
})

test('what a container cannot be, or have done to it, is refused', async (t) => {
  const folder = temporaryFolder()
  const path = join(folder, 'disk.luks')
  await create(path, { format: 'luks', size: '1M', encryption: ENCRYPTION })
  const before = readFileSync(path)
  const code = async (work: () => PromiseLike<unknown>) => (await failure(work)).code
  t.is(await code(() => open(path, { format: 'luks' })), 'ERR_QCOW2_ENCRYPTED')
  t.is(await code(() => open(path, { format: 'luks', secret: Buffer.from('x') })), 'ERR_QCOW2_WRONG_KEY')
  t.is(await code(() => create(join(folder, 'x'), { format: 'luks', size: '1M' })), 'ERR_QCOW2_INVALID_ARGUMENT')
  t.is(
    await code(() => create(join(folder, 'x'), { format: 'luks', size: '1M', encryption: ENCRYPTION, clusterSize: 4096 })),
    'ERR_QCOW2_INVALID_ARGUMENT',
  )
  t.is(await code(() => create(join(folder, 'x'), { size: '1M', encryption: { ...ENCRYPTION, detachedHeader: true } })), 'ERR_QCOW2_INVALID_ARGUMENT')
  t.is(
    await code(() => convert(path, join(folder, 'x'), { format: 'luks', compression: 'zlib', encryption: ENCRYPTION, source: { secret: SECRET } })),
    'ERR_QCOW2_INVALID_ARGUMENT',
  )
  t.is(await code(() => amend(path, { format: 'luks', secret: SECRET, compat: '1.1' })), 'ERR_QCOW2_AMEND')
  t.truthy(await code(() => check(path, { format: 'luks' } as object)))
  t.truthy(await code(() => rebase(path, { format: 'luks', backing: null } as Parameters<typeof rebase>[1])))
  truncateSync(path, 2_068_479)
  t.is(await code(() => open(path, { format: 'luks', secret: SECRET })), 'ERR_QCOW2_LUKS_HEADER')
  t.true(readFileSync(path).equals(before.subarray(0, 2_068_479)))
})

const LINES: readonly string[] = [
  'create O -f luks -o key-secret=s,iter-time=10 a.luks 1M',
  'info a.luks',
  'info --output=json a.luks',
  'map O --image-opts driver=luks,key-secret=s,file.filename=a.luks',
  'map O --output=json --image-opts driver=luks,key-secret=s,file.filename=a.luks',
  'create -f luks -o help',
  'create -f luks -o help x.luks',
  'create -f luks -o key-secret=s x.luks 1M',
  'create -f luks x.luks 1M',
  'measure -O luks --size 1M',
  'measure O -O luks -o key-secret=s,iter-time=10 --size 1M',
  'measure O -O luks -o key-secret=s,iter-time=10 -f raw src.raw',
  'resize O --image-opts driver=luks,key-secret=s,file.filename=a.luks 2M',
  'resize a.luks 2M',
  'amend O --image-opts driver=luks,key-secret=s,file.filename=a.luks -o help',
  'amend O --image-opts driver=luks,key-secret=s,file.filename=a.luks -o state=inactive,keyslot=0',
  'amend O --image-opts driver=luks,key-secret=s,file.filename=a.luks -o state=active,new-secret=b,iter-time=10',
  'amend O --image-opts driver=luks,key-secret=s,file.filename=a.luks -o state=inactive,old-secret=s',
  'amend O --image-opts driver=luks,key-secret=s,file.filename=a.luks -o state=inactive,old-secret=s',
  'amend O --image-opts driver=luks,key-secret=s,file.filename=a.luks -o encrypt.state=inactive',
  'amend O --image-opts driver=luks,key-secret=b,file.filename=a.luks -o iter-time=10',
  'check O --image-opts driver=luks,key-secret=b,file.filename=a.luks',
  'convert a.luks -O raw o.raw',
  'convert O --image-opts driver=luks,key-secret=b,file.filename=a.luks -O raw o.raw',
  'convert -f raw O -O luks -o key-secret=s,iter-time=10 src.raw b.luks',
  'compare O --image-opts driver=luks,key-secret=s,file.filename=b.luks driver=raw,file.filename=src.raw',
  'create O -f luks -b a.luks -F luks -o key-secret=s c.luks',
  'create O -f luks -o key-secret=s,preallocation=full,iter-time=10 p.luks 1M',
  'convert -f raw -c O -O luks -o key-secret=s src.raw d.luks',
  'convert -f raw -B a.luks -F luks O -O luks -o key-secret=s src.raw d.luks',
  'snapshot -c x O --image-opts driver=luks,key-secret=s,file.filename=b.luks',
  'snapshot -l O --image-opts driver=luks,key-secret=s,file.filename=b.luks',
  'create -q -f qcow2 -b b.luks -F luks over.q',
  'create O -f luks -o key-secret=s,foo=1 s.luks 1M',
  'create O -f luks -o key-secret=s,cipher-alg=foo s.luks 1M',
  'create O -f luks -o key-secret=s,cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha1,iter-time=10 e.luks 3M',
  'info e.luks',
  'info O --image-opts driver=luks,key-secret=s,file.filename=src.raw',
  'info O --image-opts driver=luks,key-secret=s,file.filename=nothing',
]

test('lines about containers answer as those of qemu-img do', async (t) => {
  t.timeout(120_000)
  const folder = temporaryFolder()
  const [theirs, ours] = [join(folder, 'theirs'), join(folder, 'ours')]
  mkdirSync(theirs)
  writeFileSync(join(theirs, 'src.raw'), randomBytes(1 << 20))
  cpSync(theirs, ours, { recursive: true })
  const plain = (text: string) =>
    text
      .replace(/[0-9a-f]{8}-[0-9a-f-]{27}/g, 'UUID')
      .replace(/(iters"?: )\d+/g, '$1N')
      .replace(/(disk size: ).*/g, '$1…')
      .replace(/("actual-size": )\d+/g, '$1N')
  for (const line of LINES) {
    const words = line.split(' ').flatMap((word) => (word === 'O' ? O : [word]))
    const [a, b] = await Promise.all([answer('qemu-img', words, { cwd: theirs, ours: false }), answer('qemu-img', words, { cwd: ours, ours: true })])
    t.deepEqual({ code: b.code, out: plain(b.stdout), err: plain(b.stderr) }, { code: a.code, out: plain(a.stdout), err: plain(a.stderr) }, line)
  }
  t.true((await qemuBytes(named('b.luks'), ours)).equals(readFileSync(join(ours, 'src.raw'))))
})
