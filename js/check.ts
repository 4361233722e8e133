/**
 * `check`: whether an image's metadata agrees with itself.
 */

import type { CheckFacts, FindingFacts, LayerFacts } from './boundary.js'
import { closeHandle } from './chain.js'
import { withoutAbsent } from './facts.js'
import { JOB_RULES, type JobControl, startJob } from './job.js'
import type { CheckOptions, CheckResult, Finding } from './job-types.js'
import { call } from './native.js'
import { type Checked, checkOptions, integer } from './options.js'
import { layerSettings, OPEN_RULES } from './settings.js'
import { narrow } from './sizes.js'
import { type Located, locate } from './source.js'
import type { Job, Source } from './types.js'

const { format, bigint, forceShare, locking, limits } = OPEN_RULES
const RULES = { ...JOB_RULES, format, bigint, forceShare, locking, limits, maxFindings: integer(0, 10_000_000) }

type Options = Checked<typeof RULES>

/**
 * Checks an image: every reference is counted and compared with the refcounts on disk, every entry with the rules of the format. Nothing is
 * changed, and nothing that the image names is opened.
 *
 * Findings are data, not exceptions: the job rejects only if the image cannot be walked at all.
 *
 * @example
 * ```ts
 * import { check } from 'qcow2'
 * const { corruptions, leaks, findings } = await check('disk.qcow2')
 * for (const { severity, message } of findings) console.log(severity, message)
 * ```
 */
export function check(source: Source, options?: CheckOptions): Job<CheckResult> {
  return startJob(check, () => {
    const checked = checkOptions('check', options, RULES)
    const located = locate(source)
    return { options: checked, run: (control) => run(located, checked, control).finally(() => located.release()) }
  })
}

async function run({ spec }: Located, options: Options, control: JobControl): Promise<CheckResult> {
  const layer = await call<LayerFacts>(
    (addon, id) => addon.openLayer(id, spec, { ...layerSettings(options), format: options.format ?? 'qcow2', metadataOnly: true, forCheck: true }),
    { signal: control.signal },
  )
  try {
    const maxFindings = options.maxFindings ?? 10_000
    const facts = await call<CheckFacts>((addon, id) => addon.check(id, layer.handle, { maxFindings }), control)
    return resultOf(facts, options.bigint ?? false)
  } finally {
    await closeHandle(layer.handle)
  }
}

function resultOf(facts: CheckFacts, bigint: boolean): CheckResult {
  return {
    format: 'qcow2',
    checkErrors: Number(facts.checkErrors),
    corruptions: Number(facts.corruptions),
    leaks: Number(facts.leaks),
    imageEndOffset: narrow(facts.imageEndOffset, bigint),
    totalClusters: narrow(facts.totalClusters, bigint),
    allocatedClusters: narrow(facts.allocatedClusters, bigint),
    fragmentedClusters: narrow(facts.fragmentedClusters, bigint),
    compressedClusters: narrow(facts.compressedClusters, bigint),
    findings: facts.findings.map((finding) => findingOf(finding, bigint)),
    findingsOmitted: Number(facts.findingsOmitted),
  }
}

function findingOf(facts: FindingFacts, bigint: boolean): Finding {
  const number = (value: bigint | undefined | null): number | bigint | undefined =>
    value === undefined || value === null ? undefined : narrow(value, bigint)
  return withoutAbsent({
    code: facts.code,
    severity: facts.severity,
    table: facts.table,
    index: number(facts.index),
    offset: number(facts.offset),
    length: number(facts.length),
    cluster: number(facts.cluster),
    refcount: number(facts.refcount),
    references: number(facts.references),
    guestRanges: facts.guestRanges.map(({ start, length }) => ({ start: narrow(start, bigint), length: narrow(length, bigint) })),
    snapshot: facts.snapshot,
    snapshotId: facts.snapshotId,
    message: facts.message,
    value: facts.value,
    detail: facts.detail,
  })
}
