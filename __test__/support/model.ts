/**
 * The flat byte model: what a disk must read as, kept as plain bytes and told by the same events that made the image. It knows nothing of
 * clusters or of the format.
 */

const CHUNK = 65536

/** The expected bytes of one disk. Chunks that were never written read as zeros. */
export class Model {
  #size: number
  #chunks: Map<number, Uint8Array>
  /** Chunks that another model shares: copied before they are written. */
  #shared = new Set<number>()

  constructor(size: number) {
    this.#size = size
    this.#chunks = new Map()
  }

  get size(): number {
    return this.#size
  }

  /** The same bytes, independent from now on. */
  clone(): Model {
    const copy = new Model(this.#size)
    for (const [index, chunk] of this.#chunks) {
      copy.#chunks.set(index, chunk)
      copy.#shared.add(index)
      this.#shared.add(index)
    }
    return copy
  }

  /** What a new overlay of `size` bytes over this disk reads as: cut, or zeros beyond its end. */
  overlay(size: number): Model {
    const copy = this.clone()
    copy.resize(size)
    return copy
  }

  resize(size: number): void {
    if (size < this.#size) {
      for (const index of [...this.#chunks.keys()]) if (index * CHUNK >= size) this.#chunks.delete(index)
      const cut = size % CHUNK
      if (cut !== 0 && this.#chunks.has(Math.floor(size / CHUNK))) this.#own(Math.floor(size / CHUNK)).fill(0, cut)
    }
    this.#size = size
  }

  write(offset: number, bytes: Uint8Array): void {
    const end = Math.min(offset + bytes.length, this.#size)
    for (let at = offset; at < end; ) {
      const from = at % CHUNK
      const length = Math.min(CHUNK - from, end - at)
      this.#own(Math.floor(at / CHUNK)).set(bytes.subarray(at - offset, at - offset + length), from)
      at += length
    }
  }

  zero(offset: number, length: number): void {
    const end = Math.min(offset + length, this.#size)
    for (let at = offset; at < end; ) {
      const index = Math.floor(at / CHUNK)
      const from = at % CHUNK
      const part = Math.min(CHUNK - from, end - at)
      if (part === CHUNK) this.#chunks.delete(index)
      else if (this.#chunks.has(index)) this.#own(index).fill(0, from, from + part)
      at += part
    }
  }

  /** Makes a range read as it does in `source` (zeros beyond its end). */
  copyFrom(source: Model, offset: number, length: number): void {
    const end = Math.min(offset + length, this.#size)
    if (end <= offset) return
    this.zero(offset, end - offset)
    const known = Math.min(end, source.size) - offset
    if (known > 0) this.write(offset, source.read(offset, known))
  }

  read(offset: number, length: number): Uint8Array {
    const out = new Uint8Array(length)
    for (let at = offset; at < offset + length; ) {
      const from = at % CHUNK
      const part = Math.min(CHUNK - from, offset + length - at)
      const chunk = this.#chunks.get(Math.floor(at / CHUNK))
      if (chunk !== undefined) out.set(chunk.subarray(from, from + part), at - offset)
      at += part
    }
    return out
  }

  /** Ranges outside of which everything is zero, in order, joined where they touch. */
  occupied(): { start: number; length: number }[] {
    const ranges: { start: number; length: number }[] = []
    for (const index of [...this.#chunks.keys()].sort((a, b) => a - b)) {
      const start = index * CHUNK
      const length = Math.min(CHUNK, this.#size - start)
      const last = ranges.at(-1)
      if (last !== undefined && last.start + last.length === start) last.length += length
      else ranges.push({ start, length })
    }
    return ranges
  }

  #own(index: number): Uint8Array {
    const chunk = this.#chunks.get(index)
    if (chunk !== undefined && !this.#shared.has(index)) return chunk
    const own = chunk === undefined ? new Uint8Array(CHUNK) : chunk.slice()
    this.#shared.delete(index)
    this.#chunks.set(index, own)
    return own
  }
}

let writes = 0

/**
 * Bytes that name their own write: each line of 16 carries a number of the write and its position, so that bytes of another place or of an
 * older write are recognised as foreign. They compress a little.
 */
export function tagged(offset: number, length: number, tag = ++writes): Uint8Array {
  const first = Math.floor(offset / 16)
  const last = Math.ceil((offset + length) / 16)
  const words = new Uint32Array((last - first) * 4)
  for (let line = first, at = 0; line < last; line++, at += 4) {
    words[at] = tag
    words[at + 1] = line >>> 0
    words[at + 2] = 0x71c0_0000 + Math.floor(line / 0x1_0000_0000)
    words[at + 3] = ~tag
  }
  return new Uint8Array(words.buffer, offset - first * 16, length)
}

/** Where two byte arrays first differ; -1 if they are equal. */
export function firstDifference(a: Uint8Array, b: Uint8Array): number {
  if (Buffer.compare(a, b) === 0) return -1
  const length = Math.min(a.length, b.length)
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return i
  return length
}

/** Says in one line how bytes differ, with the lines around for reading tags. */
export function describeDifference(actual: Uint8Array, expected: Uint8Array, base = 0): string {
  const at = firstDifference(actual, expected)
  if (at === -1) return 'equal'
  const from = at - (at % 16)
  const show = (bytes: Uint8Array): string => Buffer.from(bytes.subarray(from, from + 16)).toString('hex')
  return `first difference at ${base + at}: have ${show(actual)}, want ${show(expected)} (lengths ${actual.length}, ${expected.length})`
}
