/**
 * Compressed payloads made and read without the library: Node's zlib for deflate, the `zstd` program and hand-made frames for zstd, and a
 * small codec of our own for LZ4 blocks.
 */
import { spawnSync } from 'node:child_process'
import { deflateRawSync, inflateRawSync } from 'node:zlib'

export type CompressionName = 'zlib' | 'zstd' | 'lz4'

/** Raw deflate with a window of `1 << windowBits` bytes. */
export function deflate(data: Uint8Array, windowBits = 12, level = 6): Uint8Array {
  return deflateRawSync(data, { windowBits, memLevel: 9, level })
}

const zstdCache = new Map<string, Uint8Array>()

function zstdProgram(words: string[], input: Uint8Array): Uint8Array {
  const key = words.join(' ') + Buffer.from(input).toString('latin1')
  const known = zstdCache.get(key)
  if (known !== undefined) return known
  const outcome = spawnSync('zstd', words, { input, maxBuffer: 1 << 26 })
  if (outcome.error !== undefined) throw new Error(`zstd is needed by this test and did not run: ${outcome.error.message}`)
  if (zstdCache.size > 4096) zstdCache.clear()
  zstdCache.set(key, outcome.stdout)
  return outcome.stdout
}

/** One zstd frame, or with `frames` several that follow each other; each with a checksum if asked. */
export function zstdCompress(data: Uint8Array, options: { level?: number; checksum?: boolean; frames?: number } = {}): Uint8Array {
  const words = ['-q', '-c', `-${options.level ?? 3}`, options.checksum === true ? '--check' : '--no-check']
  const count = options.frames ?? 1
  const size = Math.ceil(data.length / count)
  const parts: Uint8Array[] = []
  for (let at = 0; at < data.length; at += size) parts.push(zstdProgram(words, data.subarray(at, at + size)))
  return Buffer.concat(parts)
}

const ZSTD_MAGIC = Buffer.from([0x28, 0xb5, 0x2f, 0xfd])
const ZSTD_BLOCK = 128 * 1024

/** A zstd frame by hand, without entropy coding: blocks that repeat one byte, or stored ones. No content size is declared. */
export function zstdByHand(data: Uint8Array, windowDescriptor = 0x58): Uint8Array {
  const parts: Uint8Array[] = [ZSTD_MAGIC, Buffer.from([0x00, windowDescriptor])]
  for (let at = 0; at < data.length; at += ZSTD_BLOCK) {
    const block = data.subarray(at, at + ZSTD_BLOCK)
    const first = block[0] ?? 0
    const last = at + ZSTD_BLOCK >= data.length ? 1 : 0
    const repeats = block.every((byte) => byte === first)
    const header = Buffer.alloc(3)
    header.writeUIntLE((block.length << 3) | ((repeats ? 1 : 0) << 1) | last, 0, 3)
    parts.push(header, repeats ? Buffer.from([first]) : block)
  }
  return Buffer.concat(parts)
}

/** A zstd frame that holds nothing for the reader. */
export function zstdSkippable(length: number): Uint8Array {
  const frame = Buffer.alloc(8 + length, 0xee)
  frame.writeUInt32LE(0x184d2a53, 0)
  frame.writeUInt32LE(length, 4)
  return frame
}

/** What the `zstd` program makes of a payload that may be followed by other bytes; at most `length` bytes. */
export function zstdDecompress(payload: Uint8Array, length: number): Uint8Array {
  return zstdProgram(['-q', '-d', '-c', '--single-thread'], payload).subarray(0, length)
}

/** One LZ4 block: greedy matches over the last 64 KiB; `literal` makes a block without any match. */
export function lz4Block(data: Uint8Array, literal = false): Uint8Array {
  const out: number[] = []
  const seen = new Map<number, number>()
  let anchor = 0
  const emit = (end: number, offset: number, match: number): void => {
    const literals = end - anchor
    const extra = match - 4
    out.push((Math.min(literals, 15) << 4) | (match === 0 ? 0 : Math.min(extra, 15)))
    if (literals >= 15) pushLength(out, literals - 15)
    for (let i = anchor; i < end; i++) out.push(data[i] ?? 0)
    if (match === 0) return
    out.push(offset & 0xff, offset >> 8)
    if (extra >= 15) pushLength(out, extra - 15)
  }
  // The format wants the last five bytes as literals and no match that begins within the last twelve.
  for (let at = 0; !literal && at + 12 < data.length; ) {
    const key = ((data[at] ?? 0) | ((data[at + 1] ?? 0) << 8) | ((data[at + 2] ?? 0) << 16) | ((data[at + 3] ?? 0) << 24)) >>> 0
    const candidate = seen.get(key)
    seen.set(key, at)
    if (candidate === undefined || at - candidate > 65535) {
      at++
      continue
    }
    let match = 4
    while (at + match < data.length - 5 && data[candidate + match] === data[at + match]) match++
    emit(at, at - candidate, match)
    at += match
    anchor = at
  }
  emit(data.length, 0, 0)
  return Uint8Array.from(out)
}

function pushLength(out: number[], rest: number): void {
  while (rest >= 255) {
    out.push(255)
    rest -= 255
  }
  out.push(rest)
}

/** Decodes one LZ4 block into at most `length` bytes. Throws on what is no block. */
export function lz4Decode(block: Uint8Array, length: number): Uint8Array {
  const out = new Uint8Array(length)
  let at = 0
  let made = 0
  const byte = (): number => {
    const value = block[at++]
    if (value === undefined) throw new Error('LZ4 block ends early')
    return value
  }
  const more = (nibble: number): number => {
    let total = nibble
    if (nibble === 15) for (let next = 255; next === 255; total += next) next = byte()
    return total
  }
  while (at < block.length) {
    const token = byte()
    const literals = more(token >> 4)
    if (made + literals > length) throw new Error('LZ4 block is longer than its cluster')
    for (let i = 0; i < literals; i++) out[made++] = byte()
    if (at === block.length) break
    const offset = byte() | (byte() << 8)
    const match = more(token & 15) + 4
    if (offset === 0 || offset > made || made + match > length) throw new Error('LZ4 match out of bounds')
    for (let i = 0; i < match; i++, made++) out[made] = out[made - offset] ?? 0
  }
  if (made !== length) throw new Error('LZ4 block is shorter than its cluster')
  return out
}

/** The payload of an LZ4 cluster: the block's length, then the block. */
export function lz4Cluster(data: Uint8Array, literal = false): Uint8Array {
  const block = lz4Block(data, literal)
  const length = Buffer.alloc(4)
  length.writeUInt32BE(block.length)
  return Buffer.concat([length, block])
}

/** Decodes a compressed cluster as the format says: trailing bytes are ignored, fewer bytes than a cluster are an error. */
export function decompress(kind: CompressionName, payload: Uint8Array, length: number): Uint8Array {
  if (kind === 'lz4') {
    const view = Buffer.from(payload.buffer, payload.byteOffset, payload.length)
    const size = view.length < 4 ? Number.POSITIVE_INFINITY : view.readUInt32BE(0)
    if (size > payload.length - 4) throw new Error('LZ4 length passes the descriptor')
    return lz4Decode(payload.subarray(4, 4 + size), length)
  }
  const data = kind === 'zstd' ? zstdDecompress(payload, length) : inflateUpTo(payload, length)
  if (data.length !== length) throw new Error(`${kind} payload is shorter than its cluster`)
  return data
}

/** Inflates until `length` bytes are there; what follows them in the stream does not matter. */
function inflateUpTo(payload: Uint8Array, length: number): Uint8Array {
  try {
    return inflateRawSync(payload, { windowBits: 15, finishFlush: 2, maxOutputLength: Math.max(length * 2, 4096) }).subarray(0, length)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_BUFFER_TOO_LARGE' && (error as NodeJS.ErrnoException).code !== 'Z_DATA_ERROR') throw error
    return inflateInPieces(payload, length)
  }
}

/** The slow way, for streams that go wrong or on after the cluster is whole: the shortest prefix that yields a cluster decides. */
function inflateInPieces(payload: Uint8Array, length: number): Uint8Array {
  let low = 1
  let high = payload.length
  const attempt = (size: number): Uint8Array | undefined => {
    try {
      return inflateRawSync(payload.subarray(0, size), { windowBits: 15, finishFlush: 2 })
    } catch {
      return undefined
    }
  }
  let best: Uint8Array | undefined
  while (low <= high) {
    const middle = (low + high) >> 1
    const out = attempt(middle)
    if (out !== undefined && out.length < length) low = middle + 1
    else {
      if (out !== undefined) best = out
      high = middle - 1
    }
  }
  if (best === undefined || best.length < length) throw new Error('deflate payload is damaged before its cluster is whole')
  return best.subarray(0, length)
}
