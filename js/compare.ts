/**
 * `compare`: whether two disks hold the same.
 */

import type { CompareFacts } from './boundary.js'
import { closeHandle, type OpenedChain, openChain } from './chain.js'
import { withoutAbsent } from './facts.js'
import { chooseFormat } from './format.js'
import { JOB_RULES, type JobControl, startJob } from './job.js'
import type { CompareOptions, CompareResult } from './job-types.js'
import { call } from './native.js'
import { type Checked, checkOptions, flag, text } from './options.js'
import { format, SOURCE_RULES, settingsOf, sourceRule } from './settings.js'
import { narrow } from './sizes.js'
import { type Located, locateAll, releaseAll } from './source.js'
import type { Job, Source } from './types.js'

const RULES = {
  ...JOB_RULES,
  strict: flag,
  formatA: format,
  formatB: format,
  source: sourceRule('compare', { ...SOURCE_RULES, snapshot: text }),
}

type Options = Checked<typeof RULES>

/**
 * Compares what two disks hold, whatever their formats. A longer one must read as zeros beyond the end of the other. With `strict` the sizes
 * and the allocation have to be the same too.
 *
 * A difference is a result, not an error.
 *
 * @example
 * ```ts
 * import { compare } from 'qcow2'
 * const { identical, offset } = await compare('disk.raw', 'disk.qcow2')
 * if (!identical) console.error(`they differ at ${offset}`)
 * ```
 */
export function compare(a: Source, b: Source, options?: CompareOptions): Job<CompareResult> {
  return startJob(compare, () => {
    const checked = checkOptions('compare', options, RULES)
    const both = locateAll([a, b]) as [Located, Located]
    return { options: checked, run: (control) => run(both, checked, control).finally(() => releaseAll(both)) }
  })
}

async function run([a, b]: [Located, Located], options: Options, control: JobControl): Promise<CompareResult> {
  const chains: OpenedChain[] = []
  const open = async (located: Located, said: Options['formatA'], option: string): Promise<OpenedChain> => {
    const { format, probed } = await chooseFormat(located, said, option, control.signal)
    const chain = await openChain(located, { ...settingsOf({ ...options.source, format, signal: control.signal }), probed })
    chains.push(chain)
    return chain
  }
  try {
    const first = await open(a, options.formatA, 'formatA')
    const second = await open(b, options.formatB, 'formatB')
    const facts = await call<CompareFacts>(
      (addon, id) => addon.compare(id, first.handle, second.handle, { strict: options.strict ?? false }),
      control,
    )
    const { identical, reason, sizesDiffer } = facts
    const absent = facts.offset === undefined || facts.offset === null
    return withoutAbsent({
      identical,
      offset: absent ? undefined : narrow(facts.offset as bigint, options.source?.bigint),
      reason,
      sizesDiffer,
    })
  } finally {
    await Promise.all(chains.map(({ handle }) => closeHandle(handle)))
  }
}
