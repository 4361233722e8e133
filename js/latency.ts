/**
 * How long requests took: counted in buckets, so that millions of them take the memory of one page and no time to speak of.
 */

import type { Latency } from './job-types.js'

/** Buckets of one octave: neighbours differ by 1.6 %. */
const STEPS = 64
const STEP_BITS = 6
/** Nanoseconds of the finest bucket. */
const FINEST = 8
/** The longest that has a bucket of its own, some 17 s in units of the finest; what takes longer is counted there. */
const LONGEST = 2 ** 31 - 1

/** Counts requests by what they took. */
export class LatencyCounts {
  readonly #buckets = new Float64Array(STEPS * (31 - STEP_BITS + 1))
  #count = 0
  #sum = 0
  #max = 0

  /** One request took so long. */
  record(milliseconds: number): void {
    this.#count++
    this.#sum += milliseconds
    if (milliseconds > this.#max) this.#max = milliseconds
    const units = Math.min((milliseconds * 1e6) / FINEST, LONGEST) | 0
    const octave = 31 - STEP_BITS - Math.clz32(units | (STEPS - 1))
    const bucket = octave <= 0 ? units : octave * STEPS + (units >> octave)
    this.#buckets[bucket] = (this.#buckets[bucket] ?? 0) + 1
  }

  /** What was counted so far; zeros if nothing was. */
  get summary(): Latency {
    const round = (microseconds: number): number => Math.round(microseconds * 1000) / 1000
    const mean = this.#count === 0 ? 0 : (this.#sum / this.#count) * 1000
    return { mean: round(mean), p50: round(this.#at(0.5)), p90: round(this.#at(0.9)), p99: round(this.#at(0.99)), max: round(this.#max * 1000) }
  }

  /** The upper edge of the bucket that this share of the requests lies in, in microseconds. */
  #at(share: number): number {
    const wanted = Math.ceil(this.#count * share)
    let seen = 0
    for (const [bucket, count] of this.#buckets.entries()) {
      seen += count
      if (seen >= wanted && count > 0) return Math.min((edge(bucket) * FINEST) / 1000, this.#max * 1000)
    }
    return 0
  }
}

/** Where the bucket ends, in units of the finest. */
function edge(bucket: number): number {
  if (bucket < STEPS) return bucket + 1
  const octave = Math.floor(bucket / STEPS) - 1
  return ((bucket % STEPS) + STEPS + 1) * 2 ** octave
}
