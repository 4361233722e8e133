/** A conversion that was asked for in words: what is refused about it in which order, and how it is done. */
import { checkCreateValues, createOptionsOf, warnOfEncryption } from './create-checks.js'
import { type ConvertOptions, type ConvertResult, type Format, library, type OpenOptions, type ProfileName, type Qcow2Error } from './library.js'
import {
  blame,
  cannotOpen,
  formatOf,
  type GatePolicy,
  gateOptions,
  imageName,
  type OpenedName,
  openRefusal,
  plainName,
  refuseReadOnly,
  refuseSpecial,
} from './names.js'
import { type CreateValues, isTargetFormat, readCreateValues } from './options.js'
import { type Program, warn } from './program.js'
import type { ProgressLine } from './progress.js'
import { Refusal } from './refusal.js'
import { type SnapshotParameter, snapshotId, snapshotRefusal } from './snapshots.js'
import { copyToStdout, Scratch, streamToStdout } from './stdio.js'
import { strerror } from './strerror.js'
import { beside, isCreation, refuseNameless, targetFault } from './targets.js'
import { isSystemError, systemText, withoutPath } from './texts.js'
import { cacheOf, isCacheMode, notYet } from './words.js'

/** What was asked for. */
export interface Conversion {
  sources: string[]
  target: string
  sourceFormat: string | undefined
  profile: ProfileName | undefined
  targetFormat: string
  list: string | undefined
  backing: string | undefined
  backingFormat: string | undefined
  snapshot: SnapshotParameter | undefined
  compress: boolean
  sparseSize: number | undefined
  noCreate: boolean
  targetIsZero: boolean
  bitmaps: boolean
  skipBroken: boolean
  salvage: boolean
  quiet: boolean
  threads: number | undefined
  rateLimit: bigint | undefined
  cache: string
  sourceCache: string
  forceShare: boolean
  policy: GatePolicy
  imageOpts: boolean
  targetImageOpts: boolean
}

const DOWNGRADED = /^(v2|0\.10)$/

/** The options with which the sources are opened. */
type SourceOptions = Pick<OpenOptions, 'backingFiles' | 'dataFile' | 'bigint' | 'forceShare' | 'cache' | 'secret' | 'legacy'>

/** Converts. `-` is standard input or output. */
export async function runConversion(program: Program, asked: Conversion, line: ProgressLine): Promise<void> {
  if (asked.targetImageOpts) {
    const target = imageName(asked.target, true)
    if (target.path === '') throw notYet('Targets that are no files')
    refuseReadOnly(target)
    asked.targetFormat = await formatOf(target, undefined, program.signal)
  }
  const scratch = new Scratch(program.signal)
  try {
    const files = await Promise.all(asked.sources.map((source) => (source === '-' ? scratch.fromStdin() : source)))
    // What comes through a pipe has no folder, and no one who answers for it.
    const source = { ...gateOptions(asked.sources.includes('-') ? 'deny' : asked.policy, asked.sourceCache), forceShare: asked.forceShare }
    const names: OpenedName[] = []
    for (const file of files) {
      const name = imageName(file, asked.imageOpts)
      names.push({ name, format: await formatOf(name, asked.sourceFormat, program.signal) })
    }
    const snapshot = await chooseSnapshot(program, asked, names, source)
    const options = await targetOptions(program, asked, names, source)
    const all = { ...options, source, ...(snapshot === undefined ? {} : { snapshot }) }
    const gzip = asked.profile !== undefined && library().profiles[asked.profile].make.gzip === true
    if (asked.target !== '-') await write(program, asked, names, all, asked.target, line)
    else if (options.format === 'raw' && !gzip) await streamToStdout(program, names, { ...source, ...(snapshot === undefined ? {} : { snapshot }) })
    else {
      const file = scratch.file('image')
      await write(program, asked, names, all, file, line)
      await copyToStdout(program, file)
    }
  } finally {
    scratch.remove()
  }
}

async function chooseSnapshot(
  program: Program,
  { snapshot }: Conversion,
  names: readonly OpenedName[],
  source: SourceOptions,
): Promise<string | undefined> {
  if (snapshot === undefined) return undefined
  if (names.length > 1) {
    const refusal = new Refusal('No support for concatenating multiple snapshot')
    throw await blame(refusal, names, { ...source, signal: program.signal }, true)
  }
  return await snapshotId(program, names[0] as OpenedName, snapshot, source)
}

/** Reads what is said about the target. A source that cannot be opened is told first. */
async function targetOptions(
  program: Program,
  asked: Conversion,
  names: readonly OpenedName[],
  source: SourceOptions,
): Promise<ConvertOptions & { format: Format }> {
  try {
    const format = asked.targetFormat
    if (!isTargetFormat(format)) throw new Refusal(`Unknown file format '${format}'`)
    const values = readValues(asked, format)
    refuseTarget(asked, format, values)
    const bitmaps = await chooseBitmaps(program, asked, format, names)
    if (bitmaps && DOWNGRADED.test(values.get('compat') ?? '')) throw new Refusal("Format driver 'qcow2' does not support bitmaps")
    if (!isCacheMode(asked.cache)) throw new Refusal(`Invalid cache option: ${asked.cache}`)
    await checkTarget(asked, format, values, program.signal)
    warnOfEncryption(program, format, values)
    if (asked.noCreate) {
      // What is below an image that is there is its own matter: everything is written, whatever the backing file has.
      values.delete('backing_file')
      values.delete('backing_fmt')
    }
    return {
      ...createOptionsOf(values, format),
      format,
      ...(asked.profile === undefined ? {} : { profile: asked.profile }),
      sourceFormat: names.map((name) => name.format),
      ...(bitmaps ? { bitmaps } : {}),
      ...(asked.salvage ? { salvage: true } : {}),
      ...(asked.compress ? { compression: true } : {}),
      ...(asked.sparseSize === undefined ? {} : { sparseSize: asked.sparseSize }),
      ...(asked.threads === undefined ? {} : { threads: asked.threads }),
      // What nobody waits for is not synced: that is what `unsafe`, the default, says.
      ...(asked.cache === 'unsafe' ? {} : { cache: cacheOf(asked.cache) }),
      // A rate of 0 is none.
      ...(asked.rateLimit ? { rateLimit: asked.rateLimit } : {}),
      ...(asked.noCreate ? { noCreate: true, targetIsZero: asked.targetIsZero } : { overwrite: true }),
      signal: program.signal,
    }
  } catch (error) {
    throw await blame(error, names, { ...source, signal: program.signal }, true)
  }
}

function readValues({ list, backing, backingFormat }: Conversion, format: Format): CreateValues {
  const values = readCreateValues(format, list)
  if (format !== 'qcow2') {
    if (backing !== undefined) throw new Refusal(`Backing file not supported for file format '${format}'`)
    if (backingFormat !== undefined) throw new Refusal(`Backing file format not supported for file format '${format}'`)
  }
  if (backing !== undefined) values.set('backing_file', backing)
  if (backingFormat !== undefined) values.set('backing_fmt', backingFormat)
  // The size is that of the sources.
  values.delete('size')
  return values
}

function refuseTarget({ sources, compress }: Conversion, format: Format, values: CreateValues): void {
  const backed = values.has('backing_file')
  if (backed && sources.length > 1) {
    throw new Refusal('Having a backing file for the target makes no sense when concatenating multiple input images')
  }
  if (backed && !values.has('backing_fmt')) throw new Refusal('Use of backing file requires explicit backing format')
  if (!compress) return
  if (format !== 'qcow2') throw new Refusal('Compression not supported for this file format')
  if (/^(on|yes|true|y)$/.test(values.get('encryption') ?? '') || values.has('encrypt.format')) {
    throw new Refusal('Compression and encryption not supported at the same time')
  }
  if ((values.get('preallocation') ?? 'off') !== 'off') throw new Refusal('Compression and preallocation not supported at the same time')
}

/** Which bitmaps are copied. What cannot be is refused, or told and left out. */
async function chooseBitmaps(
  program: Program,
  { bitmaps, skipBroken, quiet }: Conversion,
  format: Format,
  names: readonly OpenedName[],
): Promise<boolean | 'skip-broken'> {
  if (!bitmaps) return false
  if (format !== 'qcow2') throw new Refusal(`Format driver '${format}' does not support bitmaps`)
  const { name, format: sourceFormat } = names[0] as OpenedName
  const facts = await library().info(name.source, { format: sourceFormat, bigint: true, signal: program.signal })
  const broken = facts.bitmaps.filter(({ flags }) => flags.includes('in-use'))
  if (broken[0] === undefined) return true
  if (!skipBroken) {
    throw new Refusal(`Cannot copy inconsistent bitmap '${broken[0].name}'`, {
      hint: "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
    })
  }
  if (!quiet) for (const bitmap of broken) warn(program, `Skipping inconsistent bitmap '${bitmap.name}'`)
  return 'skip-broken'
}

async function checkTarget(
  { target, noCreate, compress, targetImageOpts }: Conversion,
  format: Format,
  values: CreateValues,
  signal: AbortSignal,
): Promise<void> {
  if (noCreate) {
    if (target === '-') throw new Refusal('Standard output cannot be written in place (-n)')
    const name = imageName(target, targetImageOpts)
    refuseSpecial(name)
    if (compress) throw notYet('Compressed writes into an existing image (-n -c)')
    return
  }
  try {
    await checkCreateValues(format, values, signal)
    refuseNameless(plainName(target).path)
  } catch (error) {
    throw error instanceof Refusal ? converting(error, target, format) : error
  }
}

function converting(refusal: Refusal, target: string, format: string): Refusal {
  return new Refusal(`${target}: error while converting ${format}: ${refusal.message}`, refusal.hint === undefined ? {} : { hint: refusal.hint })
}

async function write(
  program: Program,
  asked: Conversion,
  names: readonly OpenedName[],
  options: ConvertOptions & { source: SourceOptions; format?: Format },
  file: string,
  line: ProgressLine,
): Promise<void> {
  const { path } = imageName(file, asked.targetImageOpts)
  try {
    const result = await library().convert(
      names.map(({ name }) => name.source),
      path,
      { ...options, onProgress: line.update },
    )
    if (!asked.quiet) tellLosses(program, result)
  } catch (error) {
    if (program.signal.aborted) throw error
    const blamed = await blame(error, names, { ...options.source, signal: program.signal })
    if (blamed instanceof Refusal) throw blamed
    await blameBacking(options, path, asked.target)
    throw snapshotRefusal(wordFailure(error, asked, options.format ?? 'raw'))
  }
}

/** What could not be read, as it is told beside a conversion that goes on. */
function tellLosses(program: Program, { lost = [], lostOmitted = 0 }: ConvertResult): void {
  for (const { what, offset, errno } of lost) {
    const text = strerror(errno ?? 5)
    warn(
      program,
      what === 'mapping' ? `error while reading block status at offset ${offset}: ${text}` : `error while reading offset ${offset}: ${text}`,
    )
  }
  if (lostOmitted > 0) warn(program, `${lostOmitted} more places could not be read`)
}

/** A backing file of the target that cannot be opened: the target would be an image that cannot be. */
async function blameBacking({ backing, backingFormat, source }: ConvertOptions, path: string, shown: string): Promise<void> {
  if (backing === undefined) return
  const name = plainName(beside(path, backing))
  try {
    const disk = await library().open(name.source, { ...source, format: backingFormat ?? 'qcow2' })
    await disk.close()
  } catch (error) {
    const refusal = openRefusal(error, name)
    if (!(refusal instanceof Refusal)) throw refusal
    const text = refusal.message.replace(`Could not open '${name.given}': `, '')
    throw cannotOpen(shown, `Could not open backing file: ${text}`, refusal.hint)
  }
}

/** What went wrong although every source can be opened: reading, or the target. */
function wordFailure(error: unknown, { target, noCreate, targetImageOpts }: Conversion, format: Format): unknown {
  const { Qcow2Error } = library()
  if (!(error instanceof Qcow2Error)) return error
  const code = error.code.replace('ERR_QCOW2_', '')
  if (code === 'TARGET_TOO_SMALL') return new Refusal('output file is smaller than input file')
  if (isReading(error)) {
    const hint = withoutPath(error)
    return new Refusal(`error while reading at byte ${error.details.guest ?? 0}: ${systemText(error)}`, isSystemError(error) ? {} : { hint })
  }
  if (isSystemError(error) && !isCreation(error)) return new Refusal(`error while writing at byte ${error.offset ?? 0}: ${systemText(error)}`)
  if (noCreate && format === 'qcow2') return openRefusal(error, imageName(target, targetImageOpts))
  const fault = targetFault(error, target, format)
  if (!(fault instanceof Refusal)) return fault
  if (noCreate) return cannotOpen(target, fault.message.replace('Could not create', 'Could not open'), fault.hint)
  return converting(fault, target, format)
}

/** Whether a source could not be read, as opposed to the target not written. Nothing is ever read from a target. */
function isReading(error: Qcow2Error): boolean {
  return /_(CORRUPT|TRUNCATED|DECOMPRESS)$/.test(error.code) || (isSystemError(error) && /^p?read/.test(error.syscall ?? ''))
}
