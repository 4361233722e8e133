/**
 * `bench`: how fast requests to a disk are, made as a user makes them.
 */

import { openChain } from './chain.js'
import { Disk } from './disk.js'
import { cancelled, invalid, Qcow2Error } from './errors.js'
import { JOB_RULES, type JobControl, startJob } from './job.js'
import type { BenchOptions, BenchResult } from './job-types.js'
import { LatencyCounts } from './latency.js'
import { type Checked, checkOptions, flag, integer, memorySize, size } from './options.js'
import { OPEN_RULES, settingsOf } from './settings.js'
import { type Located, locate } from './source.js'
import type { ByteCount, Job, Source } from './types.js'

const INT_MAX = 2 ** 31 - 1
const { writable: _writable, bigint: _bigint, ...OPENING } = OPEN_RULES
const RULES = {
  ...OPENING,
  ...JOB_RULES,
  count: integer(1, INT_MAX),
  depth: integer(1, INT_MAX),
  size: memorySize(1),
  step: size,
  offset: size,
  write: flag,
  pattern: integer(0, 255),
  flushInterval: integer(0, INT_MAX),
  drain: flag,
  durable: flag,
}

type Options = Checked<typeof RULES>

/** What a run does, with the defaults filled in. */
interface Plan {
  count: number
  depth: number
  size: number
  step: bigint
  offset: bigint
  write: boolean
  pattern: number
  flushInterval: number
  drain: boolean
  durable: boolean
}

/** Requests that are under way at a time have a buffer each, up to so many bytes; beyond it they share. */
const MOST_BUFFERS = 256 * 1024 * 1024
/** Between two reports of progress. */
const REPORT_MILLISECONDS = 100

/**
 * Measures requests to a disk: `count` reads or writes, `depth` of them under way at a time, each `step` bytes behind the last and, past the end of
 * the disk, from its beginning again. They are calls of {@link Disk.read} and {@link Disk.write}, so what is measured is what they cost.
 *
 * @throws Qcow2Error - `ERR_QCOW2_OUT_OF_RANGE` if a request passes the end of the disk, and what reads and writes throw
 *
 * @example
 * ```ts
 * import { bench } from 'qcow2'
 * const { requestsPerSecond, latency } = await bench('disk.qcow2', { count: 10_000, depth: 16, size: '4K' })
 * console.log(Math.round(requestsPerSecond), latency.p99)
 * ```
 */
export function bench(source: Source, options?: BenchOptions): Job<BenchResult> {
  return startJob(bench, () => {
    const checked = checkOptions('bench', options, RULES)
    const plan = planOf(checked)
    if (plan.write && source instanceof Uint8Array) {
      throw invalid('source', 'bytes are copied, and nobody would see what is written to the copy: give memoryStorage(bytes)')
    }
    const located = locate(source)
    return { options: checked, run: (control) => run(located, checked, plan, control).finally(() => located.release()) }
  })
}

function planOf(options: Options): Plan {
  const { write = false, flushInterval = 0, depth = 64, size = 4096 } = options
  if (flushInterval > 0 && !write) throw invalid('flushInterval', 'flushInterval is only for writes: say { write: true }')
  if (options.durable === true && !write) throw invalid('durable', 'durable is only for writes: say { write: true }')
  if (flushInterval > 0 && flushInterval < depth) {
    throw invalid('flushInterval', `flushInterval must not be smaller than depth: it is ${flushInterval}, and depth ${depth}`)
  }
  return {
    count: options.count ?? 75_000,
    depth,
    size,
    step: options.step || BigInt(size),
    offset: options.offset ?? 0n,
    write,
    pattern: options.pattern ?? 0,
    flushInterval,
    drain: options.drain ?? true,
    durable: options.durable ?? false,
  }
}

async function run(from: Located, options: Options, plan: Plan, control: JobControl): Promise<BenchResult> {
  const settings = settingsOf({ ...options, bigint: true, writable: plan.write, signal: control.signal })
  const disk = (await Disk.adopt(await openChain(from, settings), settings)) as Disk<bigint>
  let result: BenchResult
  try {
    result = await new Run(disk, plan, control).done()
  } catch (error) {
    await disk.close().catch(() => {})
    throw error
  }
  await disk.close()
  return result
}

/** One run: so many lanes make one request after the other. */
class Run {
  readonly #latency = new LatencyCounts()
  readonly #signal: AbortSignal
  readonly #place: () => ByteCount
  #begun = 0
  #ended = 0
  #underWay = 0
  #flushes = 0
  #failed = false
  #nextReport = 0
  /** Set while lanes wait for the flush that comes when nothing is under way any more. */
  #drained: { promise: Promise<void>; open: () => void } | undefined
  readonly #background: Promise<void>[] = []

  constructor(
    private readonly disk: Disk<bigint>,
    private readonly plan: Plan,
    private readonly control: JobControl,
  ) {
    this.#signal = control.signal
    this.#place = places(plan, disk.virtualSize)
  }

  async done(): Promise<BenchResult> {
    const { count, size, write } = this.plan
    const lanes = Math.min(this.plan.depth, count)
    const buffers = this.#buffers(lanes)
    this.control.onProgress({ phase: 'bench', done: 0, total: count * size })
    const begin = performance.now()
    this.#nextReport = begin + REPORT_MILLISECONDS
    const running = Array.from({ length: lanes }, (_, lane) => {
      const buffer = buffers[lane % buffers.length] as Buffer
      return this.#guard(write ? this.#writes(buffer, begin) : this.#reads(buffer, begin))
    })
    const outcomes = await Promise.allSettled(running)
    outcomes.push(...(await Promise.allSettled(this.#background)))
    const seconds = (performance.now() - begin) / 1000
    for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason
    this.control.onProgress({ phase: 'bench', done: count * size, total: count * size })
    return {
      requests: count,
      bytes: count * size,
      seconds,
      requestsPerSecond: count / seconds,
      bytesPerSecond: (count * size) / seconds,
      flushes: this.#flushes,
      latency: this.#latency.summary,
    }
  }

  /** Written bytes are copied by the call, so that all lanes may write the same. */
  #buffers(lanes: number): Buffer[] {
    const { size, write, pattern } = this.plan
    if (write) return [Buffer.alloc(size, pattern)]
    const count = Math.max(1, Math.min(lanes, Math.floor(MOST_BUFFERS / size)))
    return Array.from({ length: count }, () => Buffer.alloc(size))
  }

  /** The first lane that fails stops the others. */
  async #guard(lane: Promise<void>): Promise<void> {
    try {
      await lane
    } catch (error) {
      this.#failed = true
      this.#drained?.open()
      throw error
    }
  }

  /** A request ends where the lane's next begins: one look at the clock serves both. */
  async #reads(buffer: Buffer, begin: number): Promise<void> {
    const { count, size } = this.plan
    const { disk } = this
    for (let from = begin; this.#begun < count && !this.#failed; ) {
      this.#begun++
      const { bytesRead } = await disk.read(buffer, 0, size, this.#place())
      if (bytesRead !== size) throw new Qcow2Error('ERR_QCOW2_INTERNAL', `a read of ${size} bytes gave ${bytesRead}`)
      from = this.#tick(from)
    }
  }

  async #writes(buffer: Buffer, begin: number): Promise<void> {
    const { count, size, flushInterval, durable } = this.plan
    for (let from = begin; this.#begun < count && !this.#failed; ) {
      this.#begun++
      this.#underWay++
      try {
        await this.disk.write(buffer, 0, size, this.#place())
        if (durable) await this.disk.flush()
      } finally {
        this.#underWay--
      }
      from = this.#tick(from)
      if (flushInterval > 0 && (count - this.#begun) % flushInterval === 0) {
        await this.#flushPoint()
        from = performance.now()
      }
    }
  }

  /** One request has ended; answers with when. */
  #tick(from: number): number {
    const now = performance.now()
    this.#latency.record(now - from)
    this.#ended++
    if (now >= this.#nextReport) {
      const { count, size } = this.plan
      this.#nextReport = now + REPORT_MILLISECONDS
      this.control.onProgress({ phase: 'bench', done: this.#ended * size, total: count * size })
    }
    if (this.#signal.aborted) throw cancelled(this.#signal.reason)
    return now
  }

  /** As qemu-img: a flush when the number of requests not yet begun is a multiple of the interval, alone unless `drain` is false. */
  async #flushPoint(): Promise<void> {
    if (!this.plan.drain) {
      const flush = this.#flush()
      // It is waited for at the end.
      flush.catch(() => {})
      this.#background.push(flush)
      return
    }
    this.#drained ??= gate()
    const drained = this.#drained
    if (this.#underWay > 0) return await drained.promise
    try {
      await this.#flush()
    } finally {
      this.#drained = undefined
      drained.open()
    }
  }

  async #flush(): Promise<void> {
    this.#flushes++
    await this.disk.flush()
  }
}

function gate(): { promise: Promise<void>; open: () => void } {
  let open = (): void => {}
  const promise = new Promise<void>((resolve) => (open = resolve))
  return { promise, open }
}

/** The positions of a run, one after the other. One that passes the end of the disk is refused when its turn comes. */
function places({ size, step, offset }: Plan, virtualSize: bigint): () => ByteCount {
  const refuse = (at: ByteCount): never => {
    throw new Qcow2Error('ERR_QCOW2_OUT_OF_RANGE', `a request of ${size} bytes at ${at} passes the end of the disk at ${virtualSize}`)
  }
  const last = virtualSize - BigInt(size)
  let next = offset
  const exact = (): bigint => {
    const at = next
    if (at > last) refuse(at)
    next = (at + step) % virtualSize
    return at
  }
  // Nearly always: positions as numbers, which cost less.
  const stride = Number(step % (virtualSize || 1n))
  if (offset > BigInt(Number.MAX_SAFE_INTEGER) || virtualSize + step > BigInt(Number.MAX_SAFE_INTEGER)) return exact
  const [limit, end] = [Number(last), Number(virtualSize)]
  let place = Number(offset)
  return () => {
    const at = place
    if (at > limit) refuse(at)
    place = at + stride < end ? at + stride : at + stride - end
    return at
  }
}
