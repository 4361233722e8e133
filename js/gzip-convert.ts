/**
 * Converting for a destination that takes raw disks in gzip alone.
 */

import { stat } from 'node:fs/promises'
import type { ConvertFacts, ConvertSpec } from './boundary.js'
import { closeHandle, type OpenedChain, openChain } from './chain.js'
import { targetSpec } from './creating.js'
import { Disk } from './disk.js'
import { invalid, Qcow2Error } from './errors.js'
import { type Gzip, withGzip } from './gzip-target.js'
import type { JobControl } from './job.js'
import type { ConvertOptions, ConvertResult } from './job-types.js'
import { call } from './native.js'
import type { Checked } from './options.js'
import { refuseFileSize } from './profile-target.js'
import { worded } from './refusals.js'
import { type OPEN_RULES, settingsOf } from './settings.js'
import { narrow } from './sizes.js'
import { type LocatedTarget, locate } from './source.js'
import type { Format } from './types.js'

interface Wished
  extends Pick<ConvertOptions, 'profile' | 'overwrite' | 'durable' | 'cache' | 'preallocation' | 'sparseSize' | 'salvage' | 'rateLimit'> {
  source?: Checked<typeof OPEN_RULES>
}

/** Makes a gzip of one chain, and the target of that: it is replaced when all of it is there, by the core's rules. */
export async function intoGzip(
  chains: OpenedChain[],
  formats: Format[],
  to: LocatedTarget,
  options: Wished,
  spec: ConvertSpec,
  control: JobControl,
): Promise<ConvertResult> {
  const [chain, another] = chains
  if (to.path === undefined) throw invalid('target', 'gzip is written to a path')
  if (chain === undefined || another !== undefined) throw invalid('source', 'one source can be made gzip of at a time')
  for (const name of ['sparseSize', 'salvage', 'rateLimit'] as const) refuseOption(name, options[name] !== undefined && options[name] !== false)
  refuseOption('preallocation', (options.preallocation ?? 'off') !== 'off')
  await refuseTarget(to.path, chain, options.overwrite ?? false)
  const target = targetSpec(to, options)
  chains.length = 0
  const disk = (await Disk.adopt(chain, settingsOf({ ...options.source, bigint: true, signal: control.signal }))) as Disk<bigint>
  try {
    // Its files stay open, and locked, until the target is there.
    const facts = await withGzip(disk, to.path, control, (made) => publish(made, target, options, spec, control))
    const virtualSize = narrow(disk.virtualSize, options.source?.bigint ?? false)
    const fileSize = narrow(facts.fileSize, options.source?.bigint ?? false)
    return { sourceFormats: formats, format: 'raw', virtualSize, fileSize, dataBytes: virtualSize, zeroBytes: 0, compressedClusters: 0 }
  } finally {
    await disk.close()
  }
}

async function publish(
  made: Gzip,
  target: ReturnType<typeof targetSpec>,
  options: Wished,
  spec: ConvertSpec,
  control: JobControl,
): Promise<ConvertFacts> {
  if (options.profile !== undefined) refuseFileSize(options.profile, 'gzip', BigInt(made.size))
  const located = locate({ path: made.path, offset: made.offset, size: made.size })
  const { handle } = await openChain(located, settingsOf({ format: 'raw', signal: control.signal }))
  try {
    const converted = call<ConvertFacts>((addon, id) => addon.convert(id, [handle], target, { ...spec, sparseSize: 0 }), { signal: control.signal })
    return await worded(converted)
  } finally {
    await closeHandle(handle)
    located.release()
  }
}

function refuseOption(name: string, said: boolean): void {
  if (said) throw invalid(name, `${name} says how a disk is written: what is written is a gzip of it`)
}

/** What can be told before hours of compressing. The core asks again. */
async function refuseTarget(path: string, { layers }: OpenedChain, overwrite: boolean): Promise<void> {
  const there = await stat(path, { bigint: true }).catch(() => undefined)
  if (there === undefined) return
  const isOne = (file: { device?: bigint; inode?: bigint } | undefined): boolean => file?.inode === there.ino && file.device === there.dev
  if (layers.some(({ facts, dataIdentity }) => isOne(facts) || isOne(dataIdentity)))
    throw new Qcow2Error('ERR_QCOW2_SAME_FILE', `${path}: the target is a file of the source`, { path })
  if (there.isFile() && !overwrite) throw new Qcow2Error('ERR_QCOW2_EXISTS', `${path}: the file exists: overwrite must be asked for`, { path })
}
