/**
 * A naive reader of qcow2: slow, without caches, as the format's text says and no more. It is the third witness beside QEMU and the flat
 * model, and the only one for what QEMU does not know (LZ4) or answers differently (damage). It is as lenient as a right answer can be: what it
 * refuses has no right bytes.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { type CompressionName, decompress } from './codecs.js'

/** Random access to a file's bytes. */
export interface Bytes {
  size: number
  /** Bytes from `offset` on; fewer at the end of the file. */
  read(offset: number, length: number): Uint8Array
}

export function bytesOf(buffer: Uint8Array): Bytes {
  return { size: buffer.length, read: (offset, length) => buffer.subarray(offset, offset + length) }
}

/** What has no right answer. */
export class Unreadable extends Error {}

/** A disk as the naive reader sees it. */
export interface NaiveDisk {
  size: bigint
  read(offset: bigint, length: number): Uint8Array
}

export interface NaiveHeader {
  version: number
  clusterBits: number
  size: bigint
  l1Size: number
  l1Offset: bigint
  snapshotCount: number
  snapshotsOffset: bigint
  incompatible: bigint
  autoclear: bigint
  compression: CompressionName
  backing?: { name: string; format?: string }
  dataFileName?: string
}

const INT64_MAX = 2n ** 63n - 1n

function refuse(message: string): never {
  throw new Unreadable(message)
}

/** Exactly `length` bytes. */
function exactly(file: Bytes, offset: bigint, length: number, what: string): Buffer {
  if (offset < 0n || offset + BigInt(length) > BigInt(file.size)) refuse(`${what} passes the end of the file`)
  const bytes = file.read(Number(offset), length)
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
}

export function naiveHeader(file: Bytes): NaiveHeader {
  const head = exactly(file, 0n, 72, 'header')
  if (head.readUInt32BE(0) !== 0x514649fb) refuse('magic')
  const version = head.readUInt32BE(4)
  if (version !== 2 && version !== 3) refuse('version')
  const clusterBits = head.readUInt32BE(20)
  if (clusterBits < 9 || clusterBits > 21) refuse('cluster bits')
  const size = head.readBigUInt64BE(24)
  if (size > INT64_MAX - 511n) refuse('size')
  if (head.readUInt32BE(32) !== 0) refuse('encrypted')
  let incompatible = 0n
  let autoclear = 0n
  let headerLength = 72
  let type = 0
  if (version === 3) {
    const more = exactly(file, 0n, 104, 'version 3 header')
    incompatible = more.readBigUInt64BE(72)
    autoclear = more.readBigUInt64BE(88)
    if (more.readUInt32BE(96) > 6) refuse('refcount order')
    headerLength = more.readUInt32BE(100)
    if (headerLength < 104 || headerLength > 2 ** clusterBits) refuse('header length')
    if (headerLength > 104) type = exactly(file, 104n, 1, 'compression type').readUInt8(0)
  }
  if (incompatible >> 5n !== 0n) refuse('unknown feature')
  if (((incompatible & 8n) !== 0n) !== (type !== 0)) refuse('compression type without its bit')
  if (type !== 0 && type !== 1 && type !== 0x4c) refuse('unknown compression type')
  const extended = (incompatible & 16n) !== 0n
  if (extended && clusterBits < 14) refuse('subclusters are too small')
  const header: NaiveHeader = {
    version,
    clusterBits,
    size: size - (size % 512n),
    l1Size: head.readUInt32BE(36),
    l1Offset: head.readBigUInt64BE(40),
    snapshotCount: head.readUInt32BE(60),
    snapshotsOffset: head.readBigUInt64BE(64),
    incompatible,
    autoclear,
    compression: type === 0 ? 'zlib' : type === 1 ? 'zstd' : 'lz4',
  }
  const span = (1n << BigInt(clusterBits)) * BigInt(2 ** clusterBits / (extended ? 16 : 8))
  if (BigInt(header.l1Size) < (header.size + span - 1n) / span) refuse('L1 table is too small')
  if (header.l1Size > 4 * 2 ** 20) refuse('L1 table is too large')
  readNames(file, header, headerLength, Number(head.readBigUInt64BE(8)), head.readUInt32BE(16))
  return header
}

function readNames(file: Bytes, header: NaiveHeader, headerLength: number, backingOffset: number, backingLength: number): void {
  const cluster = 2 ** header.clusterBits
  // A name without bytes is no name.
  const end = backingOffset === 0 || backingLength === 0 ? cluster : backingOffset
  if (end > cluster) refuse('backing name outside of the first cluster')
  let format: string | undefined
  for (let at = headerLength; at + 8 <= end; ) {
    if (at + 8 > file.size) break
    const head = exactly(file, BigInt(at), 8, 'extension')
    const type = head.readUInt32BE(0)
    const length = head.readUInt32BE(4)
    if (type === 0) break
    if (at + 8 + length > end) refuse('extension passes its area')
    const data = (): string => exactly(file, BigInt(at + 8), length, 'extension').toString()
    if (type === 0xe2792aca) format = data()
    if (type === 0x44415441) header.dataFileName = data()
    at += 8 + Math.ceil(length / 8) * 8
  }
  if (backingOffset === 0 || backingLength === 0) return
  if (backingLength > 1023 || backingOffset + backingLength > cluster) refuse('backing name')
  const name = exactly(file, BigInt(backingOffset), backingLength, 'backing name').toString()
  header.backing = format === undefined ? { name } : { name, format }
}

interface State {
  l1Offset: bigint
  l1Size: number
  size: bigint
}

function snapshotState(file: Bytes, header: NaiveHeader, wanted: string): State {
  let at = header.snapshotsOffset
  for (let i = 0; i < header.snapshotCount; i++) {
    const entry = exactly(file, at, 40, 'snapshot')
    const extra = entry.readUInt32BE(36)
    const id = entry.readUInt16BE(12)
    const name = entry.readUInt16BE(14)
    const rest = exactly(file, at + 40n, extra + id + name, 'snapshot')
    const idText = rest.toString('utf8', extra, extra + id)
    const nameText = rest.toString('utf8', extra + id)
    if (idText === wanted || nameText === wanted)
      return { l1Offset: entry.readBigUInt64BE(0), l1Size: entry.readUInt32BE(8), size: extra >= 16 ? rest.readBigUInt64BE(8) : header.size }
    at += BigInt(Math.ceil((40 + extra + id + name) / 8) * 8)
  }
  return refuse(`no snapshot ${wanted}`)
}

/** Opens an image whose other files are given. Without a backing disk an image that names one reads zeros there. */
export function naiveDisk(file: Bytes, options: { backing?: NaiveDisk; dataFile?: Bytes; snapshot?: string } = {}): NaiveDisk {
  const header = naiveHeader(file)
  const state: State =
    options.snapshot === undefined
      ? { l1Offset: header.l1Offset, l1Size: header.l1Size, size: header.size }
      : snapshotState(file, header, options.snapshot)
  const external = (header.incompatible & 4n) !== 0n
  const guestFile = external ? (options.dataFile ?? refuse('no data file')) : file
  const clusterSize = 1n << BigInt(header.clusterBits)
  const extended = (header.incompatible & 16n) !== 0n
  const entries = clusterSize / (extended ? 16n : 8n)
  const backing = (offset: bigint, length: number): Uint8Array => {
    const out = new Uint8Array(length)
    if (options.backing === undefined || offset >= options.backing.size) return out
    const known = options.backing.size - offset
    const part = known < BigInt(length) ? Number(known) : length
    out.set(options.backing.read(offset, part))
    return out
  }
  const data = (host: bigint, within: number, length: number): Uint8Array => {
    if (host % clusterSize !== 0n) refuse('unaligned cluster')
    // A file may end inside its last cluster; what is missing there reads as zeros.
    if (host >= BigInt(guestFile.size)) {
      if (external) return new Uint8Array(length)
      refuse('cluster beyond the end of the file')
    }
    const out = new Uint8Array(length)
    const from = Number(host) + within
    if (from < guestFile.size) out.set(guestFile.read(from, Math.min(length, guestFile.size - from)))
    return out
  }
  const inCluster = (offset: bigint, length: number): Uint8Array => {
    const index = offset / clusterSize
    const within = Number(offset % clusterSize)
    const l1Index = index / entries
    if (l1Index >= BigInt(state.l1Size)) refuse('L1 index out of the table')
    if (state.l1Offset % clusterSize !== 0n) refuse('unaligned L1')
    const l1 = exactly(file, state.l1Offset + l1Index * 8n, 8, 'L1').readBigUInt64BE(0)
    const table = l1 & 0x00ff_ffff_ffff_fe00n
    if (table === 0n) return backing(offset, length)
    if (table % clusterSize !== 0n) refuse('unaligned L2')
    const width = extended ? 16 : 8
    const entry = exactly(file, table + (index % entries) * BigInt(width), width, 'L2')
    const word = entry.readBigUInt64BE(0)
    const bitmap = extended ? entry.readBigUInt64BE(8) : 0n
    if ((word & (1n << 62n)) !== 0n) {
      if (external) refuse('compressed cluster with a data file')
      if (bitmap !== 0n) refuse('compressed cluster with a subcluster bitmap')
      const shift = BigInt(62 - (header.clusterBits - 8))
      const host = word & ((1n << shift) - 1n)
      const sectors = (word & ((1n << 62n) - 1n)) >> shift
      const size = Number((sectors + 1n) * 512n - (host & 511n))
      if (host >= BigInt(file.size)) refuse('compressed cluster beyond the end of the file')
      const payload = file.read(Number(host), Math.min(size, file.size - Number(host)))
      try {
        return decompress(header.compression, payload, Number(clusterSize)).subarray(within, within + length)
      } catch (error) {
        return refuse((error as Error).message)
      }
    }
    const host = word & 0x00ff_ffff_ffff_fe00n
    const allocated = host !== 0n || (external && (word & (1n << 63n)) !== 0n)
    if (!extended) {
      if ((word & 1n) !== 0n && header.version >= 3) return new Uint8Array(length)
      return allocated ? data(host, within, length) : backing(offset, length)
    }
    const out = new Uint8Array(length)
    const size = Number(clusterSize) / 32
    for (let done = 0; done < length; ) {
      const sub = BigInt(Math.floor((within + done) / size))
      const part = Math.min(size - ((within + done) % size), length - done)
      const isData = (bitmap >> sub) & 1n
      const isZero = (bitmap >> (32n + sub)) & 1n
      if (isData === 1n && isZero === 1n) refuse('subcluster both data and zero')
      if (isData === 1n) {
        if (!allocated) refuse('subcluster without a host cluster')
        out.set(data(host, within + done, part), done)
      } else if (isZero === 0n) out.set(backing(offset + BigInt(done), part), done)
      done += part
    }
    return out
  }
  return {
    size: state.size,
    read(offset, length) {
      const out = new Uint8Array(length)
      for (let done = 0; done < length; ) {
        const at = offset + BigInt(done)
        const part = Math.min(length - done, Number(clusterSize - (at % clusterSize)))
        out.set(inCluster(at, part), done)
        done += part
      }
      return out
    },
  }
}

/** Opens an image by path with all that it names, taking every recorded name as it stands. Files stay open until `close`. */
export function naiveChain(path: string, format: 'qcow2' | 'raw' = 'qcow2', snapshot?: string): NaiveDisk & { close(): void } {
  const opened: number[] = []
  const file = (name: string): Bytes => {
    const handle = openSync(name, 'r')
    opened.push(handle)
    return {
      size: fstatSync(handle).size,
      read(offset, length) {
        const out = new Uint8Array(length)
        return out.subarray(0, readSync(handle, out, 0, length, offset))
      },
    }
  }
  const layer = (name: string, kind: string, state?: string): NaiveDisk => {
    const bytes = file(name)
    if (kind === 'raw') return { size: BigInt(bytes.size), read: (offset, length) => bytes.read(Number(offset), length) }
    const header = naiveHeader(bytes)
    const near = (other: string): string => resolve(dirname(name), other)
    const options: { backing?: NaiveDisk; dataFile?: Bytes; snapshot?: string } = {}
    if (header.backing !== undefined) options.backing = layer(near(header.backing.name), header.backing.format ?? 'raw')
    if (header.dataFileName !== undefined) options.dataFile = file(near(header.dataFileName))
    if (state !== undefined) options.snapshot = state
    return naiveDisk(bytes, options)
  }
  const close = (): void => opened.forEach(closeSync)
  try {
    return { ...layer(path, format, snapshot), close }
  } catch (error) {
    close()
    throw error
  }
}
