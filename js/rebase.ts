/**
 * `rebase`: an overlay over another backing file.
 */

import type { RebaseFacts } from './boundary.js'
import { closeHandle, closeLayers, makeChain, makeDisk, type OpenedLayer, openLayers, openTop } from './chain.js'
import { invalid, Qcow2Error } from './errors.js'
import { JOB_RULES, type JobControl, startJob } from './job.js'
import type { RebaseOptions, RebaseResult } from './job-types.js'
import { call } from './native.js'
import { type Checked, checkOptions, flag, type Rule, text } from './options.js'
import { OPEN_RULES, format as oneFormat, type Settings, settingsOf } from './settings.js'
import { narrow } from './sizes.js'
import { beside, type Located, locate } from './source.js'
import type { Format, Job, Source } from './types.js'

const { format, backingFiles, dataFile, bigint, locking, secret, legacy, limits, cacheSize, cache } = OPEN_RULES
const OPENING = { format, backingFiles, dataFile, bigint, locking, secret, legacy, limits, cacheSize, cache }
const nameOrNull: Rule<string | null> = (value, name) => (value === null ? null : text(value, name))
const RULES = { ...JOB_RULES, ...OPENING, backing: nameOrNull, backingFormat: oneFormat, unsafe: flag, compress: flag }

type Options = Checked<typeof RULES>

/**
 * Makes an image name another backing file, or none, and read as before: where the image itself has nothing and the two backing files differ, it gets
 * what the old one has. Nobody else may be using the image meanwhile.
 *
 * Cancelled, failed or cut short, it leaves the image reading as before over its old backing file; called again it goes on with what is left to copy.
 *
 * @example
 * ```ts
 * import { rebase } from 'qcow2'
 * await rebase('overlay.qcow2', { backing: 'new-base.qcow2', backingFormat: 'qcow2' })
 * await rebase('overlay.qcow2', { backing: null }) // it stands alone
 * ```
 */
export function rebase(source: Source, options: RebaseOptions): Job<RebaseResult> {
  return startJob(rebase, () => {
    const checked = checkOptions('rebase', options, RULES)
    const { backing, backingFormat } = checked
    if (backing === undefined) throw invalid('backing', 'backing must be the name of a file, or null')
    if (backing !== null && backingFormat === undefined) throw invalid('backingFormat', "backing needs backingFormat, 'qcow2' or 'raw'")
    if (source instanceof Uint8Array)
      throw invalid('source', 'bytes are copied, and nobody would see what is written to the copy: give memoryStorage(bytes)')
    const located = locate(source)
    return { options: checked, run: (control) => run(located, { ...checked, backing }, control).finally(() => located.release()) }
  })
}

async function run(located: Located, options: Options & { backing: string | null }, control: JobControl): Promise<RebaseResult> {
  const { backing, backingFormat, unsafe = false, compress = false, onProgress: _, ...opening } = options
  const settings = settingsOf({ ...opening, writable: true, signal: control.signal })
  const spec = { unchecked: unsafe, compress, ...(backing === null ? {} : { backing, backingFormat: backingFormat as string }) }
  const handles: number[] = []
  let facts: RebaseFacts
  try {
    const [old, disk] = unsafe ? [undefined, await openAlone(located, settings)] : await openBoth(located, options, settings, handles)
    handles.push(disk)
    facts = await call<RebaseFacts>((addon, id) => addon.rebase(id, disk, old, spec), control)
  } catch (error) {
    await Promise.all(handles.map((handle) => closeHandle(handle).catch(() => {})))
    throw error
  }
  for (const handle of handles.reverse()) await closeHandle(handle)
  return {
    backing,
    dataBytes: narrow(facts.dataBytes, options.bigint),
    zeroBytes: narrow(facts.zeroBytes, options.bigint),
    compressedClusters: Number(facts.compressedClusters),
  }
}

async function openAlone(located: Located, settings: Settings): Promise<number> {
  const top = await openTop(located, settings)
  refuseRaw(top.facts.format)
  return (await makeDisk([top], settings, true)).handle
}

/** Opens the image with the chain that it has, and the chain that it shall have; makes a disk of the image over the second. */
async function openBoth(
  located: Located,
  { backing, backingFormat }: Options & { backing: string | null },
  settings: Settings,
  handles: number[],
): Promise<[old: number | undefined, disk: number]> {
  const [top, ...old] = (await openLayers(located, settings)) as [OpenedLayer, ...OpenedLayer[]]
  const reading = { ...settings, writable: false }
  let below: OpenedLayer[] = []
  try {
    if (backing !== null) below = await openNew(beside(located.path, backing), { ...reading, format: backingFormat as Format })
    refuseRaw(top.facts.format)
    if (old.length > 0) handles.push((await makeChain(old, reading)).handle)
  } catch (error) {
    await closeLayers([top, ...old, ...below])
    throw error
  }
  const disk = await makeDisk([top, ...below], settings, true)
  return [handles[0], disk.handle]
}

/** Errors of the new backing file say so: their `details` get `chain: 'new'`. */
async function openNew(path: string, settings: Settings): Promise<OpenedLayer[]> {
  const { dataFile, ...others } = settings
  try {
    // A data file that is given by path is the image's own.
    return await openLayers(locate(path), { ...others, dataFile: dataFile === true })
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error
    const details = Object.freeze({ ...error.details, chain: 'new' })
    throw Object.defineProperty(error, 'details', { value: details, enumerable: true, configurable: true, writable: true })
  }
}

function refuseRaw(format: string): void {
  if (format !== 'qcow2') throw new Qcow2Error('ERR_QCOW2_RAW', `a ${format} image has no backing file`)
}
