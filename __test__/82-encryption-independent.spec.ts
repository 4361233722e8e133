/** Encryption as others see it: OpenSSL (node:crypto) under a naive reader of LUKS, and cryptsetup. Neither shares code with the library. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { create, type NewEncryption, open } from '../js/index.js'
import { failure } from './support/fixtures.js'
import { luksArea, naiveDecrypt, naiveLuks, naiveMasterKey } from './support/luks.js'
import { Prng } from './support/prng.js'
import { must, run, temporaryFolder } from './support/qemu.js'

const PASSWORD = Buffer.from('correct horse \xff\x01', 'latin1')
const FAST = { secret: PASSWORD, iterTime: 10 }
const SIZE = 2 << 20
/** For cryptsetup. */
const QUICK = ['--pbkdf-force-iterations', '1000']

/** Writes that meet sectors, clusters and what a snapshot holds in all ways; answers what the disk holds then. */
async function fill(path: string): Promise<Buffer> {
  const random = new Prng(82)
  const model = Buffer.alloc(SIZE)
  const disk = await open(path, { writable: true, secret: PASSWORD, dataFile: true })
  const write = async (position: number, length: number) => {
    const bytes = random.bytes(length)
    await disk.write(bytes, { position })
    model.set(bytes, position)
  }
  await write(0, 300_000)
  await write(700_001, 5)
  await write(SIZE - 65_536, 65_536)
  if (!path.endsWith('data.qcow2')) await disk.snapshots.create('before')
  await write(100_000, 70_001)
  await write(511, 2)
  await disk.writeZeroes(SIZE - 65_536, 65_536)
  model.fill(0, SIZE - 65_536)
  await disk.close()
  return model
}

/** The LUKS header of an image with its key slots, as a file of its own. */
function extract(path: string): Buffer {
  const image = readFileSync(path)
  const { offset, length } = luksArea(image)
  const area = Buffer.alloc(length)
  image.copy(area, 0, offset, offset + length)
  return area
}

function putBack(path: string, area: Buffer): void {
  const image = readFileSync(path)
  area.copy(image, luksArea(image).offset)
  writeFileSync(path, image)
}

const SHAPES: [name: string, encryption: Omit<NewEncryption, 'secret'>, clusterSize?: number][] = [
  ['defaults', {}],
  ['aes-128 xts plain', { cipher: 'aes-128', ivGenerator: 'plain', hash: 'sha1' }, 4096],
  ['aes-256 cbc essiv', { cipherMode: 'cbc', ivGenerator: 'essiv', ivHash: 'sha256', hash: 'sha512' }, 512],
  ['aes-128 cbc essiv', { cipher: 'aes-128', cipherMode: 'cbc', ivGenerator: 'essiv', ivHash: 'sha256', hash: 'ripemd160' }],
  ['aes-192 cbc plain64', { cipher: 'aes-192', cipherMode: 'cbc', hash: 'sha384' }],
  ['aes-256 cbc plain', { cipherMode: 'cbc', ivGenerator: 'plain', hash: 'sha224' }, 2 << 20],
  ['aes-192 ecb', { cipher: 'aes-192', cipherMode: 'ecb' }],
  ['data file', {}],
]

for (const [name, encryption, clusterSize] of SHAPES) {
  test(`OpenSSL decrypts what was written here: ${name}`, async (t) => {
    const folder = temporaryFolder()
    const path = join(folder, name === 'data file' ? 'data.qcow2' : 'disk.qcow2')
    const data = name === 'data file' ? { dataFile: 'data.raw' } : {}
    await create(path, { size: SIZE, clusterSize: clusterSize ?? 65536, encryption: { ...FAST, ...encryption }, ...data })
    const model = await fill(path)
    const area = extract(path)
    const { key } = naiveMasterKey(area, PASSWORD)
    t.truthy(key)
    t.is(naiveMasterKey(area, Buffer.from('wrong')).key, undefined)
    const dataPath = name === 'data file' ? join(folder, 'data.raw') : path
    t.true(naiveDecrypt(path, key ?? Buffer.of(), naiveLuks(area).mode, dataPath).equals(model))
  })
}

test('the naive reader is right about what qemu-img wrote', async (t) => {
  const folder = temporaryFolder()
  const [raw, path] = [join(folder, 'disk.raw'), join(folder, 'disk.qcow2')]
  writeFileSync(raw, new Prng(1).bytes(SIZE))
  const how =
    'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv'
  await must('qemu-img', ['convert', '--object', 'secret,id=s,data=abc', '-O', 'qcow2', '-o', `${how},encrypt.ivgen-hash-alg=sha256`, raw, path])
  const area = extract(path)
  const { key } = naiveMasterKey(area, Buffer.from('abc'))
  t.true(naiveDecrypt(path, key ?? Buffer.of(), naiveLuks(area).mode).equals(readFileSync(raw)))
})

test('cryptsetup opens the key slots that were made here, and finds the key that OpenSSL finds', async (t) => {
  const folder = temporaryFolder()
  const at = (name: string) => join(folder, name)
  writeFileSync(at('key'), PASSWORD)
  writeFileSync(at('wrong'), 'wrong')
  for (const [name, encryption] of SHAPES.slice(0, 4)) {
    const path = at('disk.qcow2')
    await create(path, { size: SIZE, overwrite: true, encryption: { ...FAST, ...encryption } })
    const area = extract(path)
    writeFileSync(at('header'), area)
    // cryptsetup wants something behind the header.
    writeFileSync(at('header'), Buffer.alloc(1 << 20), { flag: 'a' })
    const tried = await Promise.all(
      ['key', 'wrong'].map((file) => run('cryptsetup', ['open', '--test-passphrase', '--key-file', at(file), at('header')])),
    )
    t.deepEqual(
      tried.map(({ code }) => code),
      [0, 2],
      `${name}: ${tried[0]?.stderr}`,
    )
    const { stdout } = await must('cryptsetup', ['luksDump', '--dump-master-key', '--batch-mode', '--key-file', at('key'), at('header')])
    const dumped = /MK dump:([\s0-9a-f]+)/.exec(stdout.toString())?.[1]?.replace(/\s/g, '')
    t.is(dumped, naiveMasterKey(area, PASSWORD).key?.toString('hex'), name)
  }
})

test('key slots that cryptsetup adds, changes and kills are those that open the image', async (t) => {
  const folder = temporaryFolder()
  const at = (name: string) => join(folder, name)
  const path = at('disk.qcow2')
  await create(path, { size: SIZE, encryption: FAST })
  const model = await fill(path)
  const area = extract(path)
  writeFileSync(at('header'), Buffer.concat([area, Buffer.alloc(1 << 20)]))
  writeFileSync(at('key'), PASSWORD)
  const passwords = Array.from({ length: 8 }, (_, number) => Buffer.from(`password ${number}`))
  for (const [number, password] of passwords.entries()) writeFileSync(at(`key${number}`), password)
  const cryptsetup = (...words: string[]) => must('cryptsetup', ['--batch-mode', ...words])
  for (let number = 1; number < 8; number++) await cryptsetup('luksAddKey', ...QUICK, '--key-file', at('key'), at('header'), at(`key${number}`))
  await cryptsetup('luksKillSlot', '--key-file', at('key7'), at('header'), '3')
  await cryptsetup('luksKillSlot', '--key-file', at('key7'), at('header'), '0')
  await cryptsetup('luksChangeKey', ...QUICK, '--key-file', at('key5'), at('header'), at('key0'))
  putBack(path, readFileSync(at('header')).subarray(0, area.length))
  for (const [number, secret] of passwords.entries()) {
    if (number === 3 || number === 5) {
      t.is((await failure(() => open(path, { secret }))).code, 'ERR_QCOW2_WRONG_KEY')
      continue
    }
    const disk = await open(path, { secret })
    const { buffer } = await disk.read(Buffer.alloc(SIZE), { position: 0 })
    t.true(buffer.equals(model))
    await disk.close()
  }
  t.is((await failure(() => open(path, { secret: PASSWORD }))).code, 'ERR_QCOW2_WRONG_KEY')
})

test('a header that cryptsetup made for the same master key opens the image', async (t) => {
  const folder = temporaryFolder()
  const at = (name: string) => join(folder, name)
  const path = at('disk.qcow2')
  await create(path, { size: SIZE, encryption: FAST })
  const model = await fill(path)
  const area = extract(path)
  const { key } = naiveMasterKey(area, PASSWORD)
  writeFileSync(at('master'), key ?? '')
  writeFileSync(at('other'), 'another horse')
  writeFileSync(at('header'), Buffer.alloc(area.length + (1 << 20)))
  const shape = ['--type', 'luks1', '--cipher', 'aes-xts-plain64', '--key-size', '512', '--hash', 'sha512', '--align-payload', '8', '--use-urandom']
  const keys = ['--master-key-file', at('master'), '--key-file', at('other')]
  await must('cryptsetup', ['luksFormat', '--batch-mode', ...QUICK, ...shape, ...keys, at('header')])
  putBack(path, readFileSync(at('header')).subarray(0, area.length))
  t.is((await failure(() => open(path, { secret: PASSWORD }))).code, 'ERR_QCOW2_WRONG_KEY')
  const disk = await open(path, { secret: Buffer.from('another horse') })
  const { buffer } = await disk.read(Buffer.alloc(SIZE), { position: 0 })
  t.true(buffer.equals(model))
  await disk.close()
})
