/**
 * `dd`: blocks of a disk into a new image.
 */

import type { ConvertFacts, ConvertSpec } from './boundary.js'
import { closeHandle, openChain } from './chain.js'
import { defaultThreads, resultOf } from './convert.js'
import { createSpec, FILE_RULES, targetSpec } from './creating.js'
import { invalid } from './errors.js'
import { chooseFormat } from './format.js'
import { JOB_RULES, type JobControl, startJob } from './job.js'
import type { ConvertResult, DdOptions } from './job-types.js'
import { call } from './native.js'
import { type Checked, checkOptions, count, size, text } from './options.js'
import { worded } from './refusals.js'
import { format, SOURCE_RULES, settingsOf, sourceRule } from './settings.js'
import { type Located, type LocatedTarget, locateAll, locateTarget, releaseAll } from './source.js'
import type { Job, Source, Target } from './types.js'

const RULES = {
  ...JOB_RULES,
  ...FILE_RULES,
  blockSize: size,
  count,
  skip: count,
  sourceFormat: format,
  format,
  source: sourceRule('dd', { ...SOURCE_RULES, snapshot: text }),
}

type Options = Checked<typeof RULES>

/**
 * Copies `count` blocks of a disk, after `skip` blocks, into a new image. What lies beyond the end of the disk is not there to copy. The
 * target's size is rounded up to 512 bytes.
 *
 * @param source - a path, a `file:` URL, bytes, `{ path, offset, size }` or `memoryStorage()`
 * @param target - a path, a `file:` URL, or `memoryStorage()`; raw unless `format` or the extension `.qcow2` says otherwise
 *
 * @example
 * ```ts
 * import { dd } from 'qcow2'
 * await dd('disk.qcow2', 'boot-sector.raw', { blockSize: 512, count: 1 })
 * ```
 */
export function dd(source: Source, target: Target, options?: DdOptions): Job<ConvertResult> {
  return startJob(dd, () => {
    const checked = checkOptions('dd', options, RULES)
    if (checked.blockSize === 0n) throw invalid('blockSize', 'blockSize must be at least 1')
    const to = locateTarget(target)
    const [from] = locateAll([source]) as [Located]
    return { options: checked, run: (control) => run(from, to, checked, control).finally(() => releaseAll([from])) }
  })
}

async function run(from: Located, to: LocatedTarget, options: Options, control: JobControl): Promise<ConvertResult> {
  const choice = await chooseFormat(from, options.sourceFormat, 'sourceFormat', control.signal)
  const settings = settingsOf({ ...options.source, format: choice.format, signal: control.signal })
  const chain = await openChain(from, { ...settings, probed: choice.probed })
  try {
    const create = createSpec({}, options.format ?? to.extension ?? 'raw', to)
    const { start, length } = rangeOf(options, chain.virtualSize)
    const maxOutput = options.source?.limits?.maxOutputSize
    const spec: ConvertSpec = {
      create,
      sparseSize: 4096,
      threads: defaultThreads(),
      targetIsZero: false,
      salvage: false,
      rangeStart: start,
      rangeLength: length,
    }
    if (maxOutput !== undefined) spec.maxOutput = maxOutput
    const facts = await worded(call<ConvertFacts>((addon, id) => addon.convert(id, [chain.handle], targetSpec(to, options), spec), control))
    return resultOf(facts, [choice.format], create.format, options.source?.bigint ?? false)
  } finally {
    await closeHandle(chain.handle)
  }
}

/** The bytes that are copied: blocks are counted from the start, and end with the disk. */
function rangeOf({ blockSize = 512n, skip = 0n, count }: Options, size: bigint): { start: bigint; length: bigint } {
  const start = least(skip * blockSize, size)
  const rest = size - start
  return { start, length: count === undefined ? rest : least(count * blockSize, rest) }
}

function least(a: bigint, b: bigint): bigint {
  return a < b ? a : b
}
