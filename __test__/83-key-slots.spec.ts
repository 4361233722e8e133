/** Passwords that come and go: from TypeScript, and on the command line beside qemu-img. */
import { cpSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { amend, create, info, open } from '../js/index.js'
import { answer } from './support/cli.js'
import { failure } from './support/fixtures.js'
import { must, run, temporaryFolder } from './support/qemu.js'

const [ONE, TWO, THREE] = ['one', 'two', 'three'].map((text) => Buffer.from(text)) as [Buffer, Buffer, Buffer]
const OBJECTS = ['a', 'b', 'c'].flatMap((id, index) => ['--object', `secret,id=${id},data=${['one', 'two', 'three'][index]}`])

/** The passwords that open the image, as qemu-img and this library say. */
async function opening(path: string): Promise<string[]> {
  const those: string[] = []
  for (const [id, secret] of [['a', ONE] as const, ['b', TWO] as const, ['c', THREE] as const]) {
    const named = `driver=qcow2,file.filename=${path},encrypt.key-secret=${id}`
    const { code } = await run('qemu-img', ['map', ...OBJECTS, '--image-opts', named])
    const own = await open(path, { secret }).then(
      (disk) => disk.close().then(() => 0),
      (error) => (error.code === 'ERR_QCOW2_WRONG_KEY' ? 1 : 2),
    )
    if (own !== code) throw new Error(`${secret}: qemu-img answers ${code}, and we ${own}`)
    if (code === 0) those.push(String(secret))
  }
  return those
}

test('secrets are added, replaced and erased, and qemu-img opens the image with those that are left', async (t) => {
  const path = join(temporaryFolder(), 'disk.qcow2')
  await create(path, { size: '1M', encryption: { secret: ONE, iterTime: 10 } })
  await amend(path, { secret: ONE, keySlot: { newSecret: TWO, iterTime: 10 } })
  t.deepEqual(await opening(path), ['one', 'two'])
  // The secret of any slot will do, from a function too.
  const asked: unknown[] = []
  const secret = (layer: unknown) => {
    asked.push(layer)
    return TWO
  }
  await amend(path, { secret, keySlot: { newSecret: async () => THREE, oldSecret: ONE, slot: 6, iterTime: 10 } })
  t.deepEqual(await opening(path), ['two', 'three'])
  const layer = { depth: 0, format: 'qcow2', encryption: 'luks', path }
  t.deepEqual(asked, [layer, layer])
  const { luks } = await info(path)
  t.deepEqual(
    luks?.slots.map(({ active }) => active),
    [false, true, false, false, false, false, true, false],
  )
  await amend(path, { secret: THREE, keySlot: { slot: 1 } })
  t.deepEqual(await opening(path), ['three'])
  // With other changes: they are made first.
  await amend(path, { secret: THREE, size: '2M', refcountBits: 32, keySlot: { newSecret: ONE, iterTime: 10 } })
  t.deepEqual(await opening(path), ['one', 'three'])
  t.is((await info(path)).virtualSize, 2 << 20)
  await must('qemu-img', ['check', ...OBJECTS, '--image-opts', `driver=qcow2,file.filename=${path},encrypt.key-secret=a`])
})

test('what cannot be is refused before anything is changed', async (t) => {
  const path = join(temporaryFolder(), 'disk.qcow2')
  await create(path, { size: '1M', encryption: { secret: ONE, iterTime: 10 } })
  const code = async (options: Parameters<typeof amend>[1]) => (await failure(() => amend(path, { size: '2M', ...options }))).code
  t.is(await code({ secret: TWO, keySlot: { newSecret: THREE } }), 'ERR_QCOW2_WRONG_KEY')
  t.is(await code({ secret: ONE, keySlot: { newSecret: TWO, slot: 0 } }), 'ERR_QCOW2_KEY_SLOT')
  t.is(await code({ secret: ONE, keySlot: { oldSecret: ONE } }), 'ERR_QCOW2_KEY_SLOT')
  t.is(await code({ secret: ONE, keySlot: { oldSecret: TWO } }), 'ERR_QCOW2_KEY_SLOT')
  t.is(await code({ secret: ONE, keySlot: { slot: 3 } }), 'ERR_QCOW2_KEY_SLOT')
  t.is(await code({ secret: ONE, keySlot: { slot: 8 } }), 'ERR_QCOW2_INVALID_ARGUMENT')
  t.is(await code({ secret: ONE, keySlot: {} }), 'ERR_QCOW2_INVALID_ARGUMENT')
  t.is(await code({ secret: ONE, keySlot: { newSecret: () => undefined as never } }), 'ERR_QCOW2_INVALID_ARGUMENT')
  t.is(await code({ keySlot: { newSecret: TWO } }), 'ERR_QCOW2_ENCRYPTED')
  t.deepEqual(await opening(path), ['one'])
  t.is((await info(path)).virtualSize, 1 << 20)
  await amend(path, { secret: ONE, keySlot: { newSecret: TWO, slot: 0, force: true, iterTime: 10 } })
  t.deepEqual(await opening(path), ['two'])
  const plain = join(temporaryFolder(), 'plain.qcow2')
  await create(plain, { size: '1M' })
  t.is((await failure(() => amend(plain, { keySlot: { slot: 1 }, secret: ONE }))).code, 'ERR_QCOW2_AMEND')
})

const NAMED = ['--image-opts', 'driver=qcow2,file.filename=k.q,encrypt.key-secret=a']
const BY_B = ['--image-opts', 'driver=qcow2,file.filename=k.q,encrypt.key-secret=b']
const AES = ['--image-opts', 'driver=qcow2,file.filename=aes.q,encrypt.key-secret=a']
const LINES: readonly (readonly string[])[] = [
  [...NAMED, 'state=active,encrypt.new-secret=b,encrypt.iter-time=10'],
  [...NAMED, 'state=active'],
  [...NAMED, 'new-secret=b'],
  [...NAMED, 'state=active,encrypt.new-secret=b,encrypt.old-secret=a'],
  [...NAMED, 'state=active,encrypt.new-secret=b,encrypt.keyslot=1'],
  [...NAMED, 'state=active,encrypt.new-secret=b,encrypt.keyslot=9'],
  [...NAMED, 'state=active,encrypt.new-secret=nope'],
  [...NAMED, 'state=inactive'],
  [...NAMED, 'state=inactive,encrypt.old-secret=c'],
  [...NAMED, 'state=inactive,encrypt.keyslot=5'],
  [...NAMED, 'state=inactive,encrypt.keyslot=5,encrypt.old-secret=a'],
  [...NAMED, 'state=inactive,encrypt.keyslot=1,encrypt.new-secret=a'],
  [...NAMED, 'state=inactive,encrypt.keyslot=1,encrypt.iter-time=10'],
  [...NAMED, 'state=bad'],
  [...NAMED, 'format=luks,encrypt.state=inactive,encrypt.keyslot=1'],
  [...NAMED, 'state=inactive,encrypt.keyslot=0'],
  [...NAMED, 'state=inactive,encrypt.keyslot=1'],
  [...BY_B, 'state=inactive,encrypt.keyslot=1'],
  [...BY_B, 'state=inactive,encrypt.old-secret=b'],
  [...BY_B, 'state=active,encrypt.new-secret=a,encrypt.keyslot=7,encrypt.iter-time=10'],
  [...BY_B, 'state=inactive,encrypt.old-secret=b'],
  ['--force', ...NAMED, 'state=inactive,encrypt.old-secret=a'],
  [...NAMED, 'state=active,encrypt.new-secret=b'],
  ['plain.q', 'state=active,encrypt.new-secret=b'],
  [...AES, 'state=active,encrypt.new-secret=b'],
  ['k.q', 'state=active,encrypt.new-secret=b'],
]

test('amend of key slots answers as qemu-img does', async (t) => {
  const folder = temporaryFolder()
  const [theirs, ours] = [join(folder, 'theirs'), join(folder, 'ours')]
  mkdirSync(theirs)
  const img = (...words: string[]) => must('qemu-img', words, { cwd: theirs })
  await img('create', '-q', ...OBJECTS, '-f', 'qcow2', '-o', 'encrypt.format=luks,encrypt.key-secret=a,encrypt.iter-time=10', 'k.q', '1M')
  await img('create', '-q', ...OBJECTS, '-f', 'qcow2', '-o', 'encrypt.format=aes,encrypt.key-secret=a', 'aes.q', '1M')
  await img('create', '-q', '-f', 'qcow2', 'plain.q', '1M')
  cpSync(theirs, ours, { recursive: true })
  for (const words of LINES) {
    const line = ['amend', ...OBJECTS, ...words.slice(0, -1), '-o', `encrypt.${words.at(-1)}`]
    const [a, b] = await Promise.all([answer('qemu-img', line, { cwd: theirs, ours: false }), answer('qemu-img', line, { cwd: ours, ours: true })])
    t.deepEqual(b, a, words.join(' '))
  }
})
