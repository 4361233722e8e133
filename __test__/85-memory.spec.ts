/**
 * What is left of keys in the memory of a process that used them: nothing. Another process looks, which alone knows what to look for: passwords, also as
 * HMAC has them, and keys, also as AES expands them. It finds them while the image is open.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { closeSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { create, open } from '../js/index.js'
import { aesRoundKeys } from './support/aes-keys.js'
import { luksArea, naiveLuks, naiveMasterKey } from './support/luks.js'
import { Prng } from './support/prng.js'
import { temporaryFolder } from './support/qemu.js'

const CHILD = join(__dirname, 'support', 'memory-child.cjs')

type Needles = Map<string, Buffer>

/** Pieces of 16 bytes, so that a part that is left is found too. */
function pieces(name: string, bytes: Buffer, needles: Needles): void {
  for (let at = 0; at + 16 <= bytes.length; at += 16) needles.set(`${name} from ${at}`, bytes.subarray(at, at + 16))
}

function passwordNeedles(name: string, password: Buffer, needles: Needles): void {
  pieces(name, password, needles)
  for (const pad of [0x36, 0x5c]) pieces(`${name} as HMAC has it (${pad})`, Buffer.from(password.map((byte) => byte ^ pad)), needles)
}

function keyNeedles(name: string, key: Buffer, mode: string, needles: Needles): void {
  passwordNeedles(name, key, needles)
  const keys = mode.startsWith('xts') ? [key.subarray(0, key.length / 2), key.subarray(key.length / 2)] : [key]
  for (const [number, part] of keys.entries()) pieces(`round keys ${number} of ${name}`, aesRoundKeys(part), needles)
}

/** What a process may write to, read from outside; which of the needles are there. */
function scan(pid: number, needles: Needles): string[] {
  const found = new Set<string>()
  const memory = openSync(`/proc/${pid}/mem`, 'r')
  const chunk = Buffer.alloc(8 << 20)
  const overlap = 16
  for (const area of readFileSync(`/proc/${pid}/smaps`, 'latin1').split(/\n(?=[0-9a-f]+-[0-9a-f]+ )/)) {
    const [line = '', from, to] = /^([0-9a-f]+)-([0-9a-f]+) rw.*/.exec(area) ?? []
    const flags = /VmFlags: (.*)/.exec(area)?.[1] ?? ''
    if (from === undefined || to === undefined) continue
    const end = BigInt(`0x${to}`)
    for (let at = BigInt(`0x${from}`); at < end; at += BigInt(chunk.length - overlap)) {
      const wanted = Number(end - at < BigInt(chunk.length) ? end - at : BigInt(chunk.length))
      let count = 0
      try {
        count = readSync(memory, chunk, 0, wanted, at)
      } catch {
        // A page that was never touched, or a device's.
        break
      }
      for (const [name, bytes] of needles) if (chunk.subarray(0, count).includes(bytes)) found.add(`${name} in ${line.slice(0, 120)} flags: ${flags}`)
      if (count < wanted || at + BigInt(wanted) >= end) break
    }
  }
  closeSync(memory)
  return [...found].sort()
}

class Looked {
  readonly #child: ChildProcess
  readonly needles: Needles = new Map()

  constructor() {
    this.#child = fork(CHILD, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  }

  tell(step: string, rest: object = {}): Promise<{ done: boolean; code?: string; message?: string }> {
    return new Promise((resolve, reject) => {
      this.#child.once('message', resolve as (value: unknown) => void)
      this.#child.once('exit', (code, signal) => reject(new Error(`the child ended: ${code} ${signal}`)))
      this.#child.send({ step, ...rest })
    })
  }

  seen(): string[] {
    return scan(this.#child.pid ?? 0, this.needles)
  }

  end(): void {
    this.#child.kill()
  }
}

/** A password that is nowhere else, in a file. */
function newPassword(folder: string, name: string): { path: string; bytes: Buffer } {
  const path = join(folder, name)
  const bytes = Buffer.from(new Prng(Number(process.hrtime.bigint() & 0xffff_ffffn)).bytes(48))
  writeFileSync(path, bytes)
  return { path, bytes }
}

function imageNeedles(path: string, password: Buffer, needles: Needles): void {
  const name = `of ${password.toString('hex', 0, 2)}`
  const image = readFileSync(path)
  const { offset, length } = luksArea(image)
  const area = Buffer.alloc(length)
  image.copy(area, 0, offset, offset + length)
  const { mode } = naiveLuks(area)
  const { key, slotKeys } = naiveMasterKey(area, password)
  if (key !== undefined) keyNeedles(`master key ${name}`, key, mode, needles)
  for (const slotKey of slotKeys) keyNeedles(`slot key ${name}`, slotKey, mode, needles)
}

const SHAPES = [
  ['bytes', {}, true],
  ['file', { cipher: 'aes-128', cipherMode: 'cbc', ivGenerator: 'essiv', hash: 'sha1' }, true],
  ['function', { hash: 'sha512' }, false],
] as const

for (const [kind, encryption, writable] of SHAPES) {
  test.serial(`nothing of a key is in memory once the image is closed; the password came as ${kind}`, async (t) => {
    const folder = temporaryFolder()
    const path = join(folder, 'disk.qcow2')
    const password = newPassword(folder, 'key')
    await create(path, { size: '2M', encryption: { secret: password.bytes, iterTime: 10, ...encryption } })
    const disk = await open(path, { secret: password.bytes, writable: true })
    await disk.write(Buffer.alloc(300_000, 7), { position: 5 })
    await disk.close()
    const child = new Looked()
    passwordNeedles('password', password.bytes, child.needles)
    imageNeedles(path, password.bytes, child.needles)
    try {
      t.like(await child.tell('open', { path, kind, key: password.path, options: { writable } }), { done: true })
      const whileOpen = child.seen()
      const kept = whileOpen.filter((name) => /^round keys \d of master key/.test(name))
      t.true(kept.length > 0, 'the key is found while it is there')
      t.deepEqual(
        whileOpen.filter((name) => /^master key|^round keys/.test(name) && !/flags: .*\blo\b.*\bdd\b/.test(name)),
        [],
        'but only where no core dump and no swap has it',
      )
      await child.tell('wipe')
      t.like(await child.tell('close'), { done: true })
      t.deepEqual(child.seen(), [])
    } finally {
      child.end()
    }
  })
}

test.serial('nothing of a wrong password is in memory, nor of what was derived from it', async (t) => {
  const folder = temporaryFolder()
  const path = join(folder, 'disk.qcow2')
  await create(path, { size: '2M', encryption: { secret: Buffer.from('right'), iterTime: 10 } })
  for (const kind of ['bytes', 'file', 'function']) {
    const password = newPassword(folder, 'wrong')
    const child = new Looked()
    passwordNeedles('password', password.bytes, child.needles)
    imageNeedles(path, password.bytes, child.needles)
    try {
      t.like(await child.tell('open', { path, kind, key: password.path, options: {} }), { done: false, code: 'ERR_QCOW2_WRONG_KEY' })
      if (kind !== 'file')
        t.true(
          child.seen().some((name) => name.startsWith('password')),
          'what the caller still has is found',
        )
      await child.tell('wipe')
      t.deepEqual(child.seen(), [])
    } finally {
      child.end()
    }
  }
})

test.serial('nothing of the keys that were made or used is in memory when an image is created, converted or given other key slots', async (t) => {
  const folder = temporaryFolder()
  const [path, to] = [join(folder, 'disk.qcow2'), join(folder, 'other.qcow2')]
  for (const kind of ['bytes', 'file', 'function']) {
    const [password, added] = [newPassword(folder, 'key'), newPassword(folder, 'added')]
    const child = new Looked()
    try {
      t.like(await child.tell('create', { path, kind, key: password.path, encryption: {} }), { done: true })
      t.like(await child.tell('convert', { from: path, path: to, kind, key: password.path }), { done: true })
      for (const image of [path, to]) imageNeedles(image, password.bytes, child.needles)
      t.like(await child.tell('amend', { path: to, kind, key: password.path, added: added.path }), { done: true })
      imageNeedles(to, added.bytes, child.needles)
      for (const { bytes } of [password, added]) passwordNeedles(`password ${bytes[0]}`, bytes, child.needles)
      await child.tell('wipe')
      t.deepEqual(child.seen(), [])
    } finally {
      child.end()
    }
  }
})
