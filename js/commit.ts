/**
 * `commit`: what an overlay holds, written into a layer below it.
 */

import * as fs from 'node:fs'
import { promisify } from 'node:util'
import type { CommitFacts } from './boundary.js'
import { closeHandle, closeLayers, makeDisk, type OpenedLayer, openLayers, type WrittenBelow } from './chain.js'
import { invalid, Qcow2Error } from './errors.js'
import { JOB_RULES, type JobControl, startJob } from './job.js'
import type { CommitOptions, CommitResult } from './job-types.js'
import { call } from './native.js'
import { type Checked, checkOptions, flag, size, text } from './options.js'
import { OPEN_RULES, type Settings, settingsOf } from './settings.js'
import { narrow } from './sizes.js'
import { beside, type Located, locate } from './source.js'
import type { Job, Source } from './types.js'

const realpath = promisify(fs.realpath.native)

const { format, backingFiles, dataFile, bigint, locking, secret, legacy, limits, cacheSize, cache } = OPEN_RULES
const OPENING = { format, backingFiles, dataFile, bigint, locking, secret, legacy, limits, cacheSize, cache }
const RULES = { ...JOB_RULES, ...OPENING, base: text, drop: flag, rateLimit: size }

type Options = Checked<typeof RULES>

/**
 * Writes what an image, and every layer between it and the base, holds into the base, and empties the image, which then shows what the base has. A base
 * that is smaller grows. Nobody else may be using the files meanwhile.
 *
 * Cancelled, failed or cut short, it leaves the image reading as before, with all that it holds; called again it begins again.
 *
 * @example
 * ```ts
 * import { commit } from 'qcow2'
 * const { base, dataBytes } = await commit('overlay.qcow2', { onProgress: ({ done, total }) => console.log(done / total) })
 * console.log(`${dataBytes} bytes went to ${base}`)
 * ```
 */
export function commit(source: Source, options?: CommitOptions): Job<CommitResult> {
  return startJob(commit, () => {
    const checked = checkOptions('commit', options, RULES)
    if (checked.rateLimit === 0n) throw invalid('rateLimit', 'rateLimit must not be 0')
    if (source instanceof Uint8Array)
      throw invalid('source', 'bytes are copied, and nobody would see what is written to the copy: give memoryStorage(bytes)')
    const located = locate(source)
    return { options: checked, run: (control) => run(located, checked, control).finally(() => located.release()) }
  })
}

async function run(located: Located, options: Options, control: JobControl): Promise<CommitResult> {
  const { base, drop, rateLimit, onProgress: _, ...opening } = options
  const settings = settingsOf({ ...opening, writable: true, signal: control.signal })
  const finder = new BaseFinder(base)
  const layers = await openLayers(located, settings, finder.isBase)
  const top = layers[0] as OpenedLayer
  const { depth } = finder
  if (depth === undefined || layers[depth] === undefined) {
    await closeLayers(layers)
    throw missing(base, top)
  }
  const empty = !(drop ?? base !== undefined)
  const spec = { empty, ...(rateLimit === undefined ? {} : { rateLimit: Number(rateLimit) }) }
  const facts = await withDisks(layers, depth, settings, (upper, lower) =>
    call<CommitFacts>((addon, id) => addon.commit(id, upper, lower, spec), control),
  )
  const number = (bytes: bigint): number | bigint => narrow(bytes, options.bigint)
  return {
    base: layers[depth]?.path ?? '',
    depth,
    virtualSize: number(facts.virtualSize),
    dataBytes: number(facts.dataBytes),
    zeroBytes: number(facts.zeroBytes),
    baseGrown: facts.grown,
    emptied: facts.emptied,
  }
}

/** Makes a disk of the layers above `depth` and one of the others, and closes both. A failure to close counts only if nothing failed before. */
async function withDisks<T>(
  layers: OpenedLayer[],
  depth: number,
  settings: Settings,
  work: (upper: number, lower: number) => Promise<T>,
): Promise<T> {
  const open: number[] = []
  let result: T
  try {
    const lower = layers.slice(depth)
    const upper = await makeDisk(layers.slice(0, depth), settings, true).catch(async (error) => {
      await closeLayers(lower)
      throw error
    })
    open.push(upper.handle)
    open.push((await makeDisk(lower, settings)).handle)
    result = await work(open[0] as number, open[1] as number)
  } catch (error) {
    await Promise.all(open.map((handle) => closeHandle(handle).catch(() => {})))
    throw error
  }
  // The base first, though the core has closed it: whatever goes wrong, the image still holds what it held.
  for (const handle of open.reverse()) await closeHandle(handle)
  return result
}

/** Finds the base on the way down, before it is opened: it is opened for writing. */
class BaseFinder {
  depth: number | undefined

  constructor(private readonly base: string | undefined) {}

  readonly isBase: WrittenBelow = async (depth, file, path, above) => {
    if (this.depth !== undefined) return false
    const found = this.base === undefined || this.base === file.name || (await isSame(path, [beside(above.path, this.base), this.base]))
    if (found) this.depth = depth
    return found
  }
}

/** Whether one of some names leads to the file at `path`. */
async function isSame(path: string, names: readonly string[]): Promise<boolean> {
  const [real, ...others] = await Promise.all([path, ...names].map((name) => realpath(name).catch(() => undefined)))
  return real !== undefined && others.includes(real)
}

function missing(base: string | undefined, top: OpenedLayer): Qcow2Error {
  const name = top.path ?? 'the image'
  const fields = { ...(top.path === undefined ? {} : { path: top.path }), ...(base === undefined ? {} : { details: { name: base } }) }
  if (top.facts.backingFile === undefined || top.facts.backingFile === null || base === undefined) {
    return new Qcow2Error('ERR_QCOW2_NO_BACKING', `${name} has no backing file`, fields)
  }
  return new Qcow2Error('ERR_QCOW2_NOT_IN_CHAIN', `'${base}' is not in the backing chain of ${name}`, fields)
}
