/**
 * `convert`: a disk into a new image.
 */

import { availableParallelism } from 'node:os'
import type { ConvertFacts, ConvertSpec, LostFacts } from './boundary.js'
import { closeHandle, type OpenedChain, openChain } from './chain.js'
import { createSpec, FILE_RULES, IMAGE_RULES, targetSpec } from './creating.js'
import { invalid, Qcow2Error } from './errors.js'
import { chooseFormat } from './format.js'
import { intoGzip } from './gzip-convert.js'
import { JOB_RULES, type JobControl, startJob } from './job.js'
import type { ConvertOptions, ConvertResult, LostRange } from './job-types.js'
import { call } from './native.js'
import { type Checked, checkOptions, flag, integer, memorySize, oneOf, type Rule, text } from './options.js'
import { refuseDisguised, refuseSize, withinFileSize, withRecipe } from './profile-target.js'
import { PROFILE_NAMES, PROFILES } from './profiles.js'
import { worded } from './refusals.js'
import { withEncryption } from './secret.js'
import { format, limits, type OPEN_RULES, SOURCE_RULES, settingsOf, sourceRule } from './settings.js'
import { kindOf, narrow } from './sizes.js'
import { beside, type Located, type LocatedTarget, locateAll, locateTarget, releaseAll } from './source.js'
import type { Compression, Format, Job, Source, Target } from './types.js'

const compression: Rule<Compression | boolean> = (value, name) => (typeof value === 'boolean' ? value : oneOf('zlib', 'zstd', 'lz4')(value, name))

const sparseSize: Rule<number> = (value, name) => {
  const bytes = memorySize(0)(value, name)
  if (bytes % 512 !== 0 || bytes > 1 << 30) throw invalid(name, `${name} must be a multiple of 512 up to 1 GiB: it is ${bytes}`)
  return bytes
}

const sourceFormat: Rule<Format | readonly Format[]> = (value, name) =>
  Array.isArray(value) ? value.map((each, index) => format(each, `${name}[${index}]`)) : format(value, name)

const RULES = {
  ...IMAGE_RULES,
  ...FILE_RULES,
  ...JOB_RULES,
  format,
  sourceFormat,
  compression,
  level: integer(1, 22),
  snapshot: text,
  sparseSize,
  threads: integer(1, 64),
  rateLimit: memorySize(1),
  noCreate: flag,
  targetIsZero: flag,
  bitmaps: ((value, name) => (typeof value === 'boolean' ? value : oneOf('skip-broken')(value, name))) as Rule<boolean | 'skip-broken'>,
  salvage: flag,
  source: sourceRule('convert', SOURCE_RULES),
  limits,
  profile: oneOf(...PROFILE_NAMES),
}

type Options = Checked<typeof RULES>

/**
 * Converts an image, or several one behind the other, into a new one.
 *
 * The target is written beside its name and renamed when it is whole: an error, a cancel or a killed process leaves an older target and the
 * sources as they were. Its bytes are the same whatever `threads` says. Only `noCreate` and block devices are written in place.
 *
 * @param source - a path, a `file:` URL, bytes, `{ path, offset, size }`, `memoryStorage()`, or an array of these
 * @param target - a path, a `file:` URL, or `memoryStorage()`
 * @returns a job: await it, iterate its progress, cancel it
 *
 * @example
 * ```ts
 * import { convert } from 'qcow2'
 * const job = convert('disk.raw', 'disk.qcow2', { compression: 'zstd' })
 * for await (const { done, total } of job) console.log(`${Math.floor((100 * done) / total)} %`)
 * const { fileSize } = await job
 * ```
 */
export function convert(source: Source | readonly Source[], target: Target, options?: ConvertOptions): Job<ConvertResult> {
  return startJob(convert, () => {
    const said = checkOptions('convert', options, RULES)
    const checked = said.profile === undefined ? said : withRecipe(said.profile, said)
    const to = locateTarget(target)
    const spec = convertSpec(checked, to)
    const given: readonly unknown[] = Array.isArray(source) ? source : [source]
    if (given.length === 0) throw invalid('source', 'source must name at least one image: the array is empty')
    if (given.length > 1 && checked.bitmaps) throw invalid('bitmaps', 'bitmaps cannot be copied from several sources')
    if (given.length > 1 && checked.snapshot !== undefined) throw invalid('snapshot', 'snapshot cannot be said for several sources')
    if (Array.isArray(checked.sourceFormat) && checked.sourceFormat.length !== given.length) {
      throw invalid('sourceFormat', `sourceFormat lists ${checked.sourceFormat.length} formats for ${given.length} sources`)
    }
    const from = locateAll(given)
    return { options: checked, run: (control) => run(from, to, checked, spec, control).finally(() => releaseAll(from)) }
  })
}

async function run(from: readonly Located[], to: LocatedTarget, options: Options, spec: ConvertSpec, control: JobControl): Promise<ConvertResult> {
  const chains: OpenedChain[] = []
  const formats: Format[] = []
  const open = async (located: Located, said: Format | undefined, source: Checked<typeof OPEN_RULES>): Promise<OpenedChain> => {
    const { format, probed } = await chooseFormat(located, said, 'sourceFormat', control.signal)
    const bounds = { ...options.limits, ...options.source?.limits }
    const settings = settingsOf({ ...source, limits: bounds, format, signal: control.signal })
    const chain = await openChain(located, { ...settings, probed })
    chains.push(chain)
    return chain
  }
  try {
    const said = options.sourceFormat
    for (const [index, located] of from.entries()) {
      const { layers } = await open(located, typeof said === 'string' ? said : said?.[index], {
        ...options.source,
        ...(options.snapshot === undefined ? {} : { snapshot: options.snapshot }),
      })
      formats.push(layers[0]?.facts.format ?? 'raw')
    }
    const sources = chains.map(({ handle }) => handle)
    const format = options.format ?? to.extension ?? 'qcow2'
    if (options.profile !== undefined) {
      const total = chains.reduce((sum, { virtualSize }) => sum + virtualSize, 0n)
      refuseSize(options.profile, total, format, (options.preallocation ?? 'off') !== 'off')
      if (PROFILES[options.profile].make.gzip === true) return await intoGzip(chains, formats, to, options, spec, control)
      await refuseDisguised(options.profile, format, sources[0], control.signal)
    }
    if (options.backing !== undefined) {
      const path = beside(to.path, options.backing)
      // A data file that is named by its path is the source's own.
      const dataFile = options.source?.dataFile === true
      const backing = await open({ spec: { path, devices: true }, path, release: () => {} }, options.backingFormat, { ...options.source, dataFile })
      spec.backing = backing.handle
    }
    const bitmaps = options.bitmaps ? bitmapsOf(chains[0] as OpenedChain, options.bitmaps) : []
    if (bitmaps.length > 0) spec.bitmaps = bitmaps
    const target = targetSpec(to, options, options.noCreate ?? false)
    if (options.noCreate === true && format === 'qcow2') {
      const disk = await openTarget(to, options, control)
      chains.push(disk)
      target.disk = disk.handle
      // What the pipeline hands over is plain content: the image that is there keeps its own form.
      spec.create = createSpec({}, 'raw', to)
    }
    const converted = withEncryption(options.encryption, control.signal, (encryption) => {
      const whole = encryption === undefined ? spec : { ...spec, create: { ...spec.create, encryption } }
      return withinFileSize(options.profile, format, spec.maxOutput, (maxOutput) => {
        const bounded = maxOutput === undefined ? whole : { ...whole, maxOutput }
        return call<ConvertFacts>((addon, id) => addon.convert(id, sources, target, bounded), control)
      })
    })
    const facts = await worded(converted)
    if (target.disk !== undefined) {
      // What was written is durable, and the image's bitmaps are stored, only when closing has succeeded.
      const disk = chains.pop() as OpenedChain
      await closeHandle(disk.handle)
    }
    return resultOf(facts, formats, format, options.source?.bigint ?? false)
  } finally {
    await Promise.all(chains.map(({ handle }) => closeHandle(handle)))
  }
}

/** Opens what is there already and is written into. */
async function openTarget({ path, memory }: LocatedTarget, options: Options, { signal }: JobControl): Promise<OpenedChain> {
  const { forceShare: _, ...opening } = options.source ?? {}
  const settings = settingsOf({ ...opening, cache: options.cache ?? 'writeback', format: 'qcow2', writable: true, signal })
  const spec = path === undefined ? { memory: memory as number } : { path, devices: true }
  return openChain({ spec, ...(path === undefined ? {} : { path }), release: () => {} }, settings)
}

/** The names of the bitmaps that are copied. */
function bitmapsOf({ layers }: OpenedChain, which: true | 'skip-broken'): string[] {
  const bitmaps = layers[0]?.facts.bitmaps ?? []
  const broken = bitmaps.find(({ inUse }) => inUse)
  if (broken !== undefined && which !== 'skip-broken') {
    throw new Qcow2Error('ERR_QCOW2_BITMAP_INCONSISTENT', `bitmap '${broken.name}' is inconsistent: it can only be left out, or removed`, {
      details: { name: broken.name },
    })
  }
  return bitmaps.filter(({ inUse }) => !inUse).map(({ name }) => name)
}

/** What a conversion did, as it is told. */
export function resultOf(facts: ConvertFacts, sourceFormats: Format[], format: Format, bigint: boolean): ConvertResult {
  return {
    sourceFormats,
    format,
    virtualSize: narrow(facts.virtualSize, bigint),
    fileSize: narrow(facts.fileSize, bigint),
    dataBytes: narrow(facts.dataBytes, bigint),
    zeroBytes: narrow(facts.zeroBytes, bigint),
    compressedClusters: Number(facts.compressedClusters),
    ...(facts.lost.length === 0 ? {} : { lost: facts.lost.map((range) => lostRange(range, bigint)), lostOmitted: Number(facts.lostOmitted) }),
  }
}

function lostRange({ offset, length, mapping, errno, reason }: LostFacts, bigint: boolean): LostRange {
  return {
    offset: narrow(offset, bigint),
    length: narrow(length, bigint),
    what: mapping ? 'mapping' : 'data',
    ...(errno === 0 ? {} : { errno }),
    message: reason,
  }
}

/** The number of workers where nobody says one. */
export function defaultThreads(): number {
  return Math.min(8, availableParallelism())
}

function convertSpec(options: Options, to: LocatedTarget): ConvertSpec {
  const target = options.format ?? to.extension ?? 'qcow2'
  const compression = compressionOf(options, target)
  const create = createSpec({ ...options, ...(compression === undefined ? {} : { compressionType: compression }) }, target, to)
  refuseInPlace(options)
  const spec: ConvertSpec = {
    create,
    sparseSize: options.sparseSize ?? 4096,
    threads: options.threads ?? defaultThreads(),
    targetIsZero: options.targetIsZero ?? false,
    salvage: options.salvage ?? false,
  }
  if (compression !== undefined) spec.compression = compression
  if (options.level !== undefined) spec.level = options.level
  if (options.rateLimit !== undefined) spec.rateLimit = options.rateLimit
  const maxOutput = options.limits?.maxOutputSize ?? options.source?.limits?.maxOutputSize
  if (maxOutput !== undefined) spec.maxOutput = maxOutput
  return spec
}

/** Highest level of each compressor; 0 for one that has none. */
const LEVELS = { zlib: 9, zstd: 22, lz4: 0 }

function compressionOf({ compression, compressionType, level }: Options, target: Format): Compression | undefined {
  if (compression === undefined || compression === false) {
    if (level !== undefined) throw invalid('level', 'level needs compression')
    return undefined
  }
  if (target !== 'qcow2') throw invalid('compression', `compression is an option of qcow2: the target is ${target}`)
  if (compression !== true && compressionType !== undefined && compression !== compressionType) {
    throw invalid('compression', `compression is '${compression}' and compressionType '${compressionType}': an image has one`)
  }
  const type = compression === true ? (compressionType ?? 'zlib') : compression
  if (level !== undefined && level > LEVELS[type]) {
    throw invalid(
      'level',
      LEVELS[type] === 0 ? `${type} has no level` : `level must be a whole number from 1 to ${LEVELS[type]} for ${type}: it is ${kindOf(level)}`,
    )
  }
  return type
}

function refuseInPlace(options: Options): void {
  if (options.noCreate !== true) {
    if (options.targetIsZero === true) throw invalid('targetIsZero', 'targetIsZero needs noCreate: a new target reads as zeros anyway')
    return
  }
  if (options.overwrite === true) throw invalid('overwrite', 'overwrite and noCreate exclude each other')
  if (options.compression) throw invalid('compression', 'compression needs a new target: noCreate is set')
  if (options.preallocation !== undefined) throw invalid('preallocation', 'preallocation needs a new target: noCreate is set')
}
