/** Catalogue entries 87 to 94: a LUKS image that qemu-img made, damaged in one place of its encryption header. */
import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { HostileCase } from './hostile-cases.js'
import { temporaryFolder } from './qemu.js'

let made: Buffer | undefined

/** Passphrase of the image's one key slot. */
export const PASSPHRASE = 'correct horse'

/** 1 MiB, AES-256-XTS, the fewest iterations that QEMU takes. */
function luksImage(): Buffer {
  if (made !== undefined) return made
  const path = join(temporaryFolder(), 'luks.qcow2')
  const words = ['create', '-q', '-f', 'qcow2', '--object', `secret,id=s,data=${PASSPHRASE}`]
  const options = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10'
  const { status, stderr } = spawnSync('qemu-img', [...words, '-o', options, path, '1M'], { encoding: 'utf8' })
  if (status !== 0) throw new Error(`qemu-img: ${stderr}`)
  made = readFileSync(path)
  return made
}

/** Where the LUKS header lies: the first word of header extension 0x0537be77. */
function luksAt(bytes: Buffer): { extension: number; header: number } {
  for (let at = bytes.readUInt32BE(100); at < 65536; ) {
    const length = bytes.readUInt32BE(at + 4)
    if (bytes.readUInt32BE(at) === 0x0537be77) return { extension: at, header: Number(bytes.readBigUInt64BE(at + 8)) }
    at += 8 + Math.ceil(length / 8) * 8
  }
  throw new Error('no encryption header')
}

const SLOTS = 208
const SLOT = 48

export function luksEntries(): HostileCase[] {
  const cases: HostileCase[] = []
  const add = (name: string, change: (bytes: Buffer, header: number, extension: number) => Buffer | undefined): void => {
    cases.push({
      entry: Number.parseInt(name, 10),
      name,
      write(folder) {
        const bytes = Buffer.from(luksImage())
        const { extension, header } = luksAt(bytes)
        writeFileSync(join(folder, 'image.qcow2'), change(bytes, header, extension) ?? bytes)
      },
    })
  }
  const u32 = (name: string, at: number, value: number): void =>
    add(name, (bytes, header) => {
      bytes.writeUInt32BE(value >>> 0, header + at)
      return undefined
    })
  const text = (name: string, at: number, value: string, length = 32): void =>
    add(name, (bytes, header) => {
      bytes.fill(0, header + at, header + at + length)
      bytes.write(value, header + at, 'latin1')
      return undefined
    })
  const region = (name: string, offset: (header: number) => bigint, length: bigint): void =>
    add(name, (bytes, header, extension) => {
      bytes.writeBigUInt64BE(offset(header), extension + 8)
      bytes.writeBigUInt64BE(length, extension + 16)
      return undefined
    })

  region('87 the encryption header lies past the end of the file', () => 2n ** 40n, 2068480n)
  region('87 the encryption header is the L1 table', (header) => BigInt(header) - 65536n, 2068480n)
  region('87 the encryption header has no bytes', (header) => BigInt(header), 0n)
  region('87 the encryption header is shorter than one', (header) => BigInt(header), 512n)
  u32('88 the LUKS magic is another', 0, 0x4c554b54)
  for (const version of [0, 2, 0xffff])
    add(`88 LUKS version ${version}`, (bytes, header) => {
      bytes.writeUInt16BE(version, header + 6)
      return undefined
    })
  text('89 a cipher that nobody knows', 8, 'rot13')
  text('89 a cipher without a NUL', 8, 'a'.repeat(32))
  text('89 a mode that nobody knows', 40, 'xts-rot13')
  text('89 a mode without a NUL', 40, 'x'.repeat(32))
  text('89 a hash that nobody knows', 72, 'md2')
  text('89 a hash without a NUL', 72, 'h'.repeat(32))
  for (const bytes of [0, 1, 63, 0x7fffffff, 0xffffffff]) u32(`89 a key of ${bytes} bytes`, 108, bytes)
  for (const stripes of [0, 1, 3999, 0x7fffffff, 0xffffffff]) u32(`90 ${stripes} stripes`, SLOTS + 44, stripes)
  u32('90 a key slot that is neither on nor off', SLOTS, 0x12345678)
  u32('90 key material in the LUKS header', SLOTS + 40, 0)
  add('90 two key slots of one key material', (bytes, header) => {
    bytes.copy(bytes, header + SLOTS + SLOT, header + SLOTS, header + SLOTS + SLOT)
    return undefined
  })
  u32('91 no iterations in a key slot', SLOTS + 4, 0)
  u32('91 four thousand million iterations in a key slot', SLOTS + 4, 0xffffffff)
  u32('91 no iterations of the digest', 164, 0)
  u32('91 four thousand million iterations of the digest', 164, 0xffffffff)
  add('92 eight key slots of two million iterations', (bytes, header) => {
    const size = bytes.readUInt32BE(header + SLOTS + SLOT + 40) - bytes.readUInt32BE(header + SLOTS + 40)
    const first = bytes.readUInt32BE(header + SLOTS + 40)
    for (let i = 0; i < 8; i++) {
      const at = header + SLOTS + i * SLOT
      bytes.copy(bytes, at, header + SLOTS, header + SLOTS + SLOT)
      bytes.writeUInt32BE(2_000_000, at + 4)
      bytes.writeUInt32BE(first + i * size, at + 40)
    }
    return undefined
  })
  u32('93 the payload lies past the encryption header', 104, 0x7fffffff)
  u32('93 the payload lies on the key material', 104, 8)
  add('93 the digest of the key is wrong', (bytes, header) => {
    bytes[header + 112] = (bytes[header + 112] ?? 0) ^ 1
    return undefined
  })
  add('93 no key slot is on', (bytes, header) => {
    bytes.writeUInt32BE(0xdead, header + SLOTS)
    return undefined
  })
  u32('94 key material past the end of the file', SLOTS + 40, 0x7ffffff0)
  add('94 the file ends in the key material', (bytes, header) => bytes.subarray(0, header + 4096 + 100))
  add('94 the file ends in the LUKS header', (bytes, header) => bytes.subarray(0, header + 300))
  return cases
}
