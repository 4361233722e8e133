/**
 * A naive reader of LUKS1 on node:crypto (OpenSSL), written from the format's text: a witness of encryption that shares no code with the library. It knows
 * AES only.
 */
import { createCipheriv, createDecipheriv, createHash, pbkdf2Sync, timingSafeEqual } from 'node:crypto'
import { readFileSync } from 'node:fs'

const SECTOR = 512

/** What a header says. */
export interface NaiveLuks {
  /** `xts-plain64`. */
  mode: string
  /** `sha256`. */
  hash: string
  /** Bytes up to the payload. */
  payload: number
  keyBytes: number
  slots: { active: boolean; iterations: number; salt: Buffer; material: number }[]
  digest: Buffer
  digestSalt: Buffer
  digestIterations: number
}

export function naiveLuks(header: Buffer): NaiveLuks {
  const text = (at: number) => header.toString('latin1', at, header.indexOf(0, at))
  if (header.toString('latin1', 0, 6) !== 'LUKS\xba\xbe' || header.readUInt16BE(6) !== 1) throw new Error('no LUKS1')
  if (text(8) !== 'aes') throw new Error(`cipher ${text(8)}`)
  return {
    mode: text(40),
    hash: text(72),
    payload: header.readUInt32BE(104) * SECTOR,
    keyBytes: header.readUInt32BE(108),
    digest: header.subarray(112, 132),
    digestSalt: header.subarray(132, 164),
    digestIterations: header.readUInt32BE(164),
    slots: Array.from({ length: 8 }, (_, number) => {
      const at = 208 + number * 48
      return {
        active: header.readUInt32BE(at) === 0x00ac71f3,
        iterations: header.readUInt32BE(at + 4),
        salt: header.subarray(at + 8, at + 40),
        material: header.readUInt32BE(at + 40) * SECTOR,
      }
    }),
  }
}

/** Decrypts whole sectors, of which the first has that number. */
export function decryptSectors(mode: string, key: Buffer, first: number, bytes: Buffer): Buffer {
  const [chaining, generator, essivHash] = mode.split(/[-:]/)
  const bits = (key.length * 8) / (chaining === 'xts' ? 2 : 1)
  const out: Buffer[] = []
  for (let at = 0; at < bytes.length; at += SECTOR) {
    const number = BigInt(first + at / SECTOR)
    let iv: Buffer | null = Buffer.alloc(16)
    iv.writeBigUInt64LE(generator === 'plain' ? number & 0xffff_ffffn : number)
    if (essivHash !== undefined) {
      const salt = createHash(essivHash).update(key).digest()
      iv = createCipheriv(`aes-${salt.length * 8}-ecb`, salt, null).update(iv)
    }
    if (chaining === 'ecb') iv = null
    const cipher = createDecipheriv(`aes-${bits}-${chaining}`, key, iv).setAutoPadding(false)
    out.push(cipher.update(bytes.subarray(at, at + SECTOR)), cipher.final())
  }
  return Buffer.concat(out)
}

/** Undoes the anti-forensic split: stripes are added up, and diffused by the hash after each but the last. */
function merge(hash: string, stripes: Buffer, length: number): Buffer {
  let sum = Buffer.alloc(length)
  for (let at = 0; at < stripes.length; at += length) {
    for (let i = 0; i < length; i++) sum[i] = (sum[i] ?? 0) ^ (stripes[at + i] ?? 0)
    if (at + length === stripes.length) break
    const size = createHash(hash).digest().length
    const parts: Buffer[] = []
    for (let i = 0; i * size < length; i++) {
      const count = Buffer.alloc(4)
      count.writeUInt32BE(i)
      const part = sum.subarray(i * size, (i + 1) * size)
      parts.push(createHash(hash).update(count).update(part).digest().subarray(0, part.length))
    }
    sum = Buffer.concat(parts)
  }
  return sum
}

/** The master key, if a slot holds it under that password; with the keys of the slots that were tried. */
export function naiveMasterKey(area: Buffer, password: Uint8Array): { key: Buffer | undefined; slotKeys: Buffer[] } {
  const header = naiveLuks(area)
  const slotKeys: Buffer[] = []
  for (const slot of header.slots.filter(({ active }) => active)) {
    const slotKey = pbkdf2Sync(password, slot.salt, slot.iterations, header.keyBytes, header.hash)
    slotKeys.push(slotKey)
    const length = header.keyBytes * 4000
    const material = Buffer.alloc(Math.ceil(length / SECTOR) * SECTOR)
    area.copy(material, 0, slot.material, slot.material + length)
    const key = merge(header.hash, decryptSectors(header.mode, slotKey, 0, material).subarray(0, length), header.keyBytes)
    const digest = pbkdf2Sync(key, header.digestSalt, header.digestIterations, 20, header.hash)
    if (timingSafeEqual(digest, header.digest)) return { key, slotKeys }
  }
  return { key: undefined, slotKeys }
}

/** Where the LUKS header of a qcow2 lies: its extension 0x0537be77. */
export function luksArea(image: Buffer): { offset: number; length: number } {
  let at = image.readUInt32BE(100)
  while (image.readUInt32BE(at) !== 0) {
    const length = image.readUInt32BE(at + 4)
    if (image.readUInt32BE(at) === 0x0537be77) {
      return { offset: Number(image.readBigUInt64BE(at + 8)), length: Number(image.readBigUInt64BE(at + 16)) }
    }
    at += 8 + Math.ceil(length / 8) * 8
  }
  throw new Error('no LUKS header')
}

/** The bytes of an encrypted disk without a backing file; sectors are counted in the file that holds the data. */
export function naiveDecrypt(path: string, key: Buffer, mode: string, dataPath = path): Buffer {
  const image = readFileSync(path)
  const data = dataPath === path ? image : readFileSync(dataPath)
  const cluster = 1 << image.readUInt32BE(20)
  const disk = Buffer.alloc(Number(image.readBigUInt64BE(24)))
  const l1 = Number(image.readBigUInt64BE(40))
  const place = (at: number) => Number(image.readBigUInt64BE(at) & 0x00ff_ffff_ffff_fe00n)
  for (let at = 0; at < disk.length; at += cluster) {
    const index = at / cluster
    const l2 = place(l1 + Math.floor(index / (cluster / 8)) * 8)
    if (l2 === 0) continue
    const entry = l2 + (index % (cluster / 8)) * 8
    const stored = (image.readBigUInt64BE(entry) & 1n) === 0n && (dataPath !== path || place(entry) !== 0)
    // In a data file a cluster may be at zero: there it is allocated if its entry says that it has one reference.
    if (!stored || (dataPath !== path && image.readBigUInt64BE(entry) >> 63n === 0n)) continue
    const from = place(entry)
    const bytes = Buffer.alloc(cluster)
    data.copy(bytes, 0, from, from + cluster)
    decryptSectors(mode, key, from / SECTOR, bytes).copy(disk, at)
  }
  return disk
}
