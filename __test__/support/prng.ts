/**
 * Random choices that can be made again: every generated case is a pure function of its seed, and a failure prints the seed.
 */

/** A small generator of pseudo-random numbers (mulberry32). */
export class Prng {
  readonly seed: number
  #state: number

  constructor(seed: number) {
    this.seed = seed >>> 0
    this.#state = this.seed
  }

  /** 32 random bits. */
  u32(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let t = this.#state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return (t ^ (t >>> 14)) >>> 0
  }

  /** A whole number from 0 to `below - 1`. */
  int(below: number): number {
    return Math.floor((this.u32() / 0x1_0000_0000) * below)
  }

  /** A whole number from `low` to `high`, both included. */
  between(low: number, high: number): number {
    return low + this.int(high - low + 1)
  }

  chance(probability: number): boolean {
    return this.u32() / 0x1_0000_0000 < probability
  }

  pick<T>(choices: readonly T[]): T {
    if (choices.length === 0) throw new RangeError('nothing to pick from')
    return choices[this.int(choices.length)] as T
  }

  /** Bytes that no compressor shrinks. */
  bytes(length: number): Uint8Array {
    const words = new Uint32Array(Math.ceil(length / 4))
    for (let i = 0; i < words.length; i++) words[i] = this.u32()
    return new Uint8Array(words.buffer, 0, length)
  }

  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.int(i + 1)
      const held = items[i] as T
      items[i] = items[j] as T
      items[j] = held
    }
    return items
  }

  /** A generator of its own for a part, so that parts do not disturb each other's choices. */
  fork(label: number): Prng {
    return new Prng((this.seed ^ Math.imul(label + 1, 0x9e3779b1)) >>> 0)
  }
}

/** How many cases a generated test runs: `QCOW2_CASES` multiplies nothing, it replaces the default. */
export function caseCount(usual: number): number {
  const asked = Number(process.env.QCOW2_CASES)
  return Number.isInteger(asked) && asked > 0 ? asked : usual
}

/** The first seed: `QCOW2_SEED`, or a fixed one so that an ordinary run is the same everywhere. */
export function firstSeed(usual: number): number {
  const asked = process.env.QCOW2_SEED
  return asked === undefined || asked === '' ? usual : Number(asked) >>> 0
}
