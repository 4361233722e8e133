/**
 * `amend`: the format of an image is changed, and nothing that a guest sees.
 */

import type { AmendOptions, AmendResult } from './amend-types.js'
import { closeHandle, openChain } from './chain.js'
import { invalid, Qcow2Error } from './errors.js'
import { JOB_RULES, type JobControl, startJob } from './job.js'
import { call } from './native.js'
import { type Checked, checkOptions, flag, integer, oneOf, size, text } from './options.js'
import { keySlot, withKeySlot } from './secret.js'
import { OPEN_RULES, settingsOf } from './settings.js'
import { narrow } from './sizes.js'
import { type Located, locate } from './source.js'
import type { Job, Source } from './types.js'

const { backingFiles, dataFile: _dataFile, bigint, locking, secret, legacy, limits, cache } = OPEN_RULES
const OPENING = { backingFiles, bigint, locking, secret, legacy, limits, cache }
const RULES = {
  ...JOB_RULES,
  ...OPENING,
  format: oneOf('qcow2', 'luks'),
  compat: oneOf('1.1', '0.10', 'v3', 'v2'),
  refcountBits: integer(1, 64),
  lazyRefcounts: flag,
  dataFileRaw: flag,
  dataFileName: text,
  dataFile: OPEN_RULES.dataFile,
  size,
  keySlot,
}

type Options = Checked<typeof RULES>

/**
 * Changes the format of an image in place: its version, the width of its refcounts, lazy refcounts, the name of its data file, its size, the
 * passwords that open it. Guest and snapshots see what they saw, but for a smaller disk's end. Nobody else may use the image meanwhile.
 *
 * What contradicts itself, or what the image holds, is refused before anything is changed. Cancelled, failed or cut short later, the image is right
 * and has some of the changes; called again it gets the others.
 *
 * @throws Qcow2Error - `ERR_QCOW2_AMEND` for what cannot be, such as version 2 for an image with a data file; `ERR_QCOW2_REFCOUNT_OVERFLOW` for a
 * width that is too narrow for what is counted; `ERR_QCOW2_KEY_SLOT` for a change of passwords that cannot be
 *
 * @example
 * ```ts
 * import { amend } from 'qcow2'
 * await amend('disk.qcow2', { compat: '1.1', refcountBits: 32, lazyRefcounts: true })
 * ```
 */
export function amend(source: Source, options: AmendOptions): Job<AmendResult> {
  return startJob(amend, () => {
    const checked = checkOptions('amend', options, RULES)
    if (source instanceof Uint8Array) {
      throw invalid('source', 'bytes are copied, and nobody would see what is written to the copy: give memoryStorage(bytes)')
    }
    const located = locate(source)
    return { options: checked, run: (control) => run(located, checked, control).finally(() => located.release()) }
  })
}

async function run(located: Located, options: Options, control: JobControl): Promise<AmendResult> {
  const { compat, refcountBits, lazyRefcounts, dataFileRaw, dataFileName, size: wanted, keySlot: slots, onProgress: _, ...opening } = options
  if (wanted !== undefined && wanted % 512n !== 0n) throw invalid('size', 'size must be a multiple of 512')
  const settings = settingsOf({ ...opening, format: options.format ?? 'qcow2', writable: true, signal: control.signal })
  const { handle } = await openChain(located, settings)
  const spec = {
    ...(compat === undefined ? {} : { compat: compat === 'v2' || compat === '0.10' ? '0.10' : '1.1' }),
    ...(refcountBits === undefined ? {} : { refcountBits }),
    ...(lazyRefcounts === undefined ? {} : { lazyRefcounts }),
    ...(dataFileRaw === undefined ? {} : { dataFileRaw }),
    ...(dataFileName === undefined ? {} : { dataFile: dataFileName }),
    ...(wanted === undefined ? {} : { size: wanted }),
  }
  let virtualSize: bigint
  try {
    // Key slots are what LUKS has.
    const top = { depth: 0, format: settings.format, encryption: 'luks' as const, ...(located.path === undefined ? {} : { path: located.path }) }
    virtualSize = await withKeySlot(slots, options.secret, top, control.signal, (keySlot) =>
      call<bigint>((addon, id) => addon.amend(id, handle, keySlot === undefined ? spec : { ...spec, keySlot }), control),
    )
  } catch (error) {
    // The core has closed the disk: what is left is to let go of its files.
    await closeHandle(handle).catch(() => {})
    throw error
  }
  await closeHandle(handle).catch((error: unknown) => {
    if (!(error instanceof Qcow2Error) || error.code !== 'ERR_QCOW2_CLOSED') throw error
  })
  return { virtualSize: narrow(virtualSize, options.bigint) }
}
