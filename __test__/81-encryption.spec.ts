/** Keys: from TypeScript, and on the command line beside qemu-img. */
import { createHash } from 'node:crypto'
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { inspect } from 'node:util'
import test from 'ava'
import { amend, compare, convert, create, info, measure, open, type Secret } from '../js/index.js'
import { answer } from './support/cli.js'
import { failure } from './support/fixtures.js'
import { must, temporaryFolder } from './support/qemu.js'

const SECRET = Buffer.from('correct horse')
const OBJECT = 'secret,id=s,data=correct horse'
const FAST = { secret: SECRET, iterTime: 10 }
const named = (path: string) => `driver=qcow2,file.filename=${path},encrypt.key-secret=s`

/** Bytes that look like nothing. */
function noise(length: number, seed: string): Buffer {
  const parts: Buffer[] = []
  for (let at = 0; at < length; at += 32) parts.push(createHash('sha256').update(`${seed} ${at}`).digest())
  return Buffer.concat(parts).subarray(0, length)
}

async function qemuBytes(path: string): Promise<Buffer> {
  const out = `${path}.raw`
  await must('qemu-img', ['convert', '--object', OBJECT, '--image-opts', '-O', 'raw', named(path), out])
  return readFileSync(out)
}

test('an encrypted disk holds what is written, for us and for qemu-img, and the file shows none of it', async (t) => {
  const path = join(temporaryFolder(), 'disk.qcow2')
  await create(path, { size: '4M', encryption: FAST })
  const model = Buffer.alloc(4 << 20)
  const disk = await open(path, { writable: true, secret: SECRET })
  for (const [at, length] of [
    [0, 100_000],
    [65_536 * 3 + 17, 12_345],
    [100_001, 511],
    [(4 << 20) - 700, 700],
  ] as const) {
    const bytes = noise(length, `${at}`)
    await disk.write(bytes, { position: at })
    bytes.copy(model, at)
  }
  await disk.close()
  t.deepEqual(await qemuBytes(path), model)
  const again = await open(path, { secret: async () => SECRET })
  for (const [at, length] of [
    [0, 4 << 20],
    [1, 4096],
    [99_999, 70_000],
    [8192, 8192],
  ] as const) {
    // Twice: the second time memory may answer.
    for (let time = 0; time < 2; time++) {
      const buffer = Buffer.alloc(length)
      const { bytesRead } = await again.read(buffer, { position: at })
      t.deepEqual(buffer.subarray(0, bytesRead), model.subarray(at, at + bytesRead))
    }
  }
  await again.close()
  t.is(readFileSync(path).indexOf(model.subarray(0, 32)), -1)
})

test('a secret is bytes, a file or a function; never text, and never shown', async (t) => {
  const folder = temporaryFolder()
  const path = join(folder, 'disk.qcow2')
  const file = join(folder, 'key')
  writeFileSync(file, SECRET)
  await create(path, { size: '1M', encryption: { ...FAST, secret: { file } } })
  for (const secret of [SECRET, { file }, () => SECRET, async () => SECRET] satisfies Secret[]) await (await open(path, { secret })).close()
  const errors = [
    await failure(() => open(path)),
    await failure(() => open(path, { secret: () => undefined })),
    await failure(() => open(path, { secret: Buffer.from('wrong horse') })),
    await failure(() => open(path, { secret: 'correct horse' as unknown as Uint8Array })),
    await failure(() => open(path, { secret: (() => 'correct horse') as unknown as () => Uint8Array })),
    await failure(() => open(path, { secret: SECRET, limits: { maxKeyIterations: 5 } })),
    await failure(() => open(path, { secret: { file: join(folder, 'nowhere') } })),
    await failure(() => create(path, { size: '1M', overwrite: true, encryption: { secret: SECRET, cipher: 'des' } })),
    await failure(() => create(path, { size: '1M', overwrite: true, encryption: { secret: SECRET, format: 'aes' } })),
  ]
  t.deepEqual(
    errors.map(({ code }) => code),
    [
      'ERR_QCOW2_ENCRYPTED',
      'ERR_QCOW2_ENCRYPTED',
      'ERR_QCOW2_WRONG_KEY',
      'ERR_QCOW2_INVALID_ARGUMENT',
      'ERR_QCOW2_INVALID_ARGUMENT',
      'ERR_QCOW2_LIMIT',
      'ERR_QCOW2_IO',
      'ERR_QCOW2_CIPHER_UNSUPPORTED',
      'ERR_QCOW2_LEGACY_ENCRYPTION',
    ],
  )
  for (const error of errors) t.notRegex(`${inspect(error)}${JSON.stringify(error)}`, /horse'|"correct|correct horse|wrong horse/)
  await (await open(path, { secret: SECRET })).close()
})

test('layers with keys of their own are one disk, whatever each is encrypted with', async (t) => {
  const folder = temporaryFolder()
  const at = (name: string) => join(folder, name)
  const [base, middle] = [Buffer.from('base'), Buffer.from('middle')]
  const model = noise(2 << 20, 'base')
  writeFileSync(at('base.raw'), model)
  await convert(at('base.raw'), at('base.qcow2'), { encryption: { secret: base, format: 'aes', legacy: true } })
  await create(at('middle.qcow2'), { backing: 'base.qcow2', backingFormat: 'qcow2', encryption: { ...FAST, secret: middle, cipher: 'serpent-256' } })
  await create(at('top.qcow2'), { backing: 'middle.qcow2', backingFormat: 'qcow2', dataFile: 'top.data', encryption: FAST })
  const keys = [SECRET, middle, base]
  const opening = { secret: (layer?: { depth: number }) => keys[layer?.depth ?? 0], legacy: true, dataFile: true }
  t.is((await failure(() => open(at('top.qcow2'), { ...opening, legacy: false }))).code, 'ERR_QCOW2_LEGACY_ENCRYPTION')
  const wrong = await failure(() => open(at('top.qcow2'), { ...opening, secret: SECRET }))
  t.is(wrong.code, 'ERR_QCOW2_WRONG_KEY')
  t.like(wrong.details, { role: 'backing', depth: '1' })
  const disk = await open(at('top.qcow2'), { ...opening, writable: true })
  const bytes = noise(10_000, 'top')
  await disk.write(bytes, { position: 70_001 })
  bytes.copy(model, 70_001)
  await disk.close()
  const flat = at('flat.raw')
  await convert(at('top.qcow2'), flat, { source: opening })
  t.true(readFileSync(flat).equals(model))
  t.true((await compare(at('top.qcow2'), flat, { source: opening })).identical)
})

test('snapshots, resizing and amending keep what is encrypted', async (t) => {
  const path = join(temporaryFolder(), 'disk.qcow2')
  const model = noise(1 << 20, 'one')
  await create(path, { size: '1M', encryption: FAST })
  const disk = await open(path, { writable: true, secret: SECRET })
  await disk.write(model, { position: 0 })
  await disk.snapshots.create('before')
  await disk.write(noise(5000, 'two'), { position: 100 })
  await disk.resize('2M')
  await disk.snapshots.apply('before')
  await disk.close()
  await amend(path, { refcountBits: 64, lazyRefcounts: true, secret: SECRET })
  t.deepEqual((await qemuBytes(path)).subarray(0, 1 << 20), model)
  await must('qemu-img', ['check', '--object', OBJECT, '--image-opts', named(path)])
})

test('what is measured is what qemu-img measures, and compression is refused', async (t) => {
  const { stdout } = await must('qemu-img', [
    'measure',
    '--output=json',
    '--object',
    OBJECT,
    '-O',
    'qcow2',
    '-o',
    'encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=aes-128',
    '--size',
    '3G',
  ])
  const theirs = JSON.parse(stdout.toString())
  const ours = await measure({ size: '3G' }, { format: 'qcow2', encryption: { ...FAST, cipher: 'aes-128' } })
  t.deepEqual(ours, { required: theirs.required, fullyAllocated: theirs['fully-allocated'] })
  const folder = temporaryFolder()
  writeFileSync(join(folder, 'a.raw'), noise(1 << 20, 'a'))
  const refused = await failure(() => convert(join(folder, 'a.raw'), join(folder, 'b.qcow2'), { compression: 'zstd', encryption: FAST }))
  t.is(refused.code, 'ERR_QCOW2_COMPRESSION_ENCRYPTION')
})

test('info tells what the header says and opens nothing for it', async (t) => {
  const path = join(temporaryFolder(), 'disk.qcow2')
  await create(path, { size: '1M', encryption: { ...FAST, cipher: 'twofish-256', cipherMode: 'cbc', ivGenerator: 'essiv', hash: 'sha512' } })
  const { luks, encrypted } = await info(path)
  t.true(encrypted)
  t.like(luks, { cipher: 'twofish-256', cipherMode: 'cbc', ivGenerator: 'essiv', ivHash: 'sha256', hash: 'sha512' })
  t.deepEqual(
    luks?.slots.map(({ active }) => active),
    [true, false, false, false, false, false, false, false],
  )
})

const O = ['--object', 'secret,id=s,data=abc']
const LUKS = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10'
const open1 = (file: string, more = '') => `driver=qcow2,encrypt.key-secret=s${more},file.filename=${file}`
const LINES: string[][] = [
  ['create', ...O, '-f', 'qcow2', '-o', LUKS, 'new.q', '4M'],
  ['create', ...O, '-f', 'qcow2', '-o', 'encrypt.format=luks,encrypt.key-secret=zz', 'x.q', '4M'],
  ['create', ...O, '-f', 'qcow2', '-o', `${LUKS},encrypt.cipher-alg=foo`, 'x.q', '4M'],
  ['create', ...O, '-f', 'qcow2', '-o', `${LUKS},encrypt.cipher-mode=foo`, 'x.q', '4M'],
  ['create', ...O, '-f', 'qcow2', '-o', `${LUKS},encrypt.hash-alg=foo`, 'x.q', '4M'],
  ['create', ...O, '-f', 'qcow2', '-o', 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=0', 'x.q', '4M'],
  ['create', '-f', 'qcow2', '-o', 'encrypt.format=luks', 'x.q', '4M'],
  // A password that is no text, which QEMU could never be given again.
  ...['qcow2', 'luks'].flatMap((format) => {
    const encrypt = format === 'luks' ? '' : 'encrypt.'
    const options = ['-o', `${format === 'luks' ? '' : 'encrypt.format=luks,'}${encrypt}key-secret=s,${encrypt}iter-time=10`]
    return ['data=AAEC,format=base64', 'data=gP+A,format=base64'].flatMap((data) => [
      ['create', '--object', `secret,id=s,${data}`, '-f', format, ...options, 'x.q', '4M'],
      ['convert', '--object', `secret,id=s,${data}`, '-O', format, ...options, 'key', 'x.q'],
    ])
  }),
  ['convert', '-O', 'qcow2', '-o', LUKS, 'key', 'x.q'],
  ['measure', '-O', 'qcow2', '-o', LUKS, '--size', '1G'],
  ['info', 'a.q'],
  ['info', '--output=json', 'a.q'],
  ['info', 'aes.q'],
  ['map', 'a.q'],
  ['map', '--output=json', ...O, '--image-opts', open1('a.q')],
  ['map', '--object', 'secret,id=s,data=no', '--image-opts', open1('a.q')],
  ['map', '--object', 'secret,id=s,data=YWJj,format=base64', '--image-opts', open1('a.q')],
  ['map', '--object', 'secret,id=s,file=key', '--image-opts', open1('a.q')],
  ['map', ...O, '--image-opts', 'driver=qcow2,encrypt.key-secret=nope,file.filename=a.q'],
  ['map', ...O, '--image-opts', open1('aes.q', ',encrypt.format=aes')],
  ['map', ...O, '--image-opts', open1('a.q', ',encrypt.format=aes')],
  ['map', ...O, '--image-opts', open1('aes.q', ',encrypt.format=nothing')],
  ['check', ...O, '--image-opts', open1('a.q')],
  ['compare', ...O, '--image-opts', open1('a.q'), open1('a.q')],
  ['compare', ...O, '--image-opts', open1('a.q'), open1('aes.q')],
  ['convert', 'a.q', '-O', 'raw', 'o.raw'],
  ['convert', ...O, '--image-opts', '-O', 'raw', open1('a.q'), 'o.raw'],
  ['convert', ...O, '-O', 'qcow2', '-o', LUKS, 'o.raw', 'b.q'],
  ['convert', ...O, '-c', '-O', 'qcow2', '-o', LUKS, 'o.raw', 'x.q'],
  ['measure', ...O, '-O', 'qcow2', '-o', LUKS, '--size', '1G'],
  ['snapshot', '-l', 'a.q'],
  ['snapshot', ...O, '--image-opts', '-c', 's1', open1('a.q')],
  ['resize', ...O, '--image-opts', open1('a.q'), '8M'],
  ['resize', 'a.q', '9M'],
  ['create', ...O, '-q', '-f', 'qcow2', '-b', 'a.q', '-F', 'qcow2', '-o', LUKS, 'over.q'],
  ['map', ...O, '--image-opts', open1('over.q', ',backing.encrypt.key-secret=s')],
  ['dd', 'if=a.q', 'of=dd.raw'],
  ['amend', ...O, '--image-opts', '-o', 'lazy_refcounts=on', open1('a.q')],
]

test('lines with keys answer as those of qemu-img do', async (t) => {
  const folder = temporaryFolder()
  const [theirs, ours] = [join(folder, 'theirs'), join(folder, 'ours')]
  mkdirSync(theirs)
  const img = (...words: string[]) => must('qemu-img', words, { cwd: theirs })
  await img('create', '-q', ...O, '-f', 'qcow2', '-o', LUKS, 'a.q', '4M')
  await img('create', '-q', ...O, '-f', 'qcow2', '-o', 'encrypt.format=aes,encrypt.key-secret=s', 'aes.q', '4M')
  await must('qemu-io', [...O, '--image-opts', '-c', 'write -P 7 64k 128k', open1('a.q')], { cwd: theirs })
  writeFileSync(join(theirs, 'key'), 'abc')
  cpSync(theirs, ours, { recursive: true })
  const plain = (text: string) =>
    text
      .replace(/[0-9a-f]{8}-[0-9a-f-]{27}/g, 'UUID')
      .replace(/(iters"?: )\d+/g, '$1N')
      .replace(/(disk size: ).*/g, '$1…')
      .replace(/("actual-size": )\d+/g, '$1N')
      .replace(/(file length: ).*/g, '$1…')
  for (const words of LINES) {
    const [a, b] = await Promise.all([answer('qemu-img', words, { cwd: theirs, ours: false }), answer('qemu-img', words, { cwd: ours, ours: true })])
    t.deepEqual(
      { code: b.code, out: plain(b.stdout), err: plain(b.stderr) },
      { code: a.code, out: plain(a.stdout), err: plain(a.stderr) },
      words.join(' '),
    )
  }
  const converted = ['convert', ...O, '--image-opts', '-O', 'raw', open1('b.q'), 'b.raw']
  await must('qemu-img', converted, { cwd: ours })
  t.true(readFileSync(join(ours, 'b.raw')).equals(readFileSync(join(theirs, 'o.raw'))))
})

test('a passphrase comes from a file or a descriptor; the old method is warned of', async (t) => {
  const folder = temporaryFolder()
  writeFileSync(join(folder, 'key'), 'abc\n')
  const run = (...words: string[]) => answer('qcow2', words, { cwd: folder, ours: true })
  t.is((await run('create', '-q', '--passphrase-file', 'key', '-f', 'qcow2', '-o', 'encrypt.format=luks,encrypt.iter-time=10', 'a.q', '1M')).code, 0)
  t.is((await run('map', '--passphrase-file', 'key', 'a.q')).code, 0)
  t.is((await run('map', 'a.q')).code, 1)
  t.is((await run('map', '--passphrase-fd', '99', 'a.q')).code, 1)
  await must('qemu-img', ['map', '--object', 'secret,id=s,data=abc', '--image-opts', open1('a.q')], { cwd: folder })
  const old = await run('create', '-q', '--passphrase-file', 'key', '-f', 'qcow2', '-o', 'encryption=on', 'b.q', '1M')
  t.is(old.code, 0)
  t.regex(old.stderr, /warning: AES-CBC encryption of qcow2 is old and weak/)
  // QEMU itself aborts over such images.
  for (const [format, before] of [
    ['qcow2', 'encrypt.format=luks,encrypt.'],
    ['luks', ''],
  ] as const) {
    const keys = ['key-secret=s', 'iter-time=10', 'cipher-alg=aes-192', 'cipher-mode=cbc']
    const list = before + keys.join(`,${before.slice(before.indexOf(',') + 1)}`)
    const odd = await answer('qcow2', ['create', '-q', '--object', 'secret,id=s,data=x', '-f', format, '-o', list, 'odd', '1M'], {
      cwd: folder,
      ours: true,
    })
    t.deepEqual([odd.code, odd.stderr], [0, 'qcow2: warning: QEMU cannot open images of aes-192 with cbc\n'])
  }
})
