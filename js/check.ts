/**
 * `check`: whether an image's metadata agrees with itself.
 */

import type { CheckFacts, FindingFacts, LayerFacts, RepairFacts, SourceSpec } from './boundary.js'
import { closeHandle } from './chain.js'
import { invalid } from './errors.js'
import { withoutAbsent } from './facts.js'
import { JOB_RULES, type JobControl, startJob } from './job.js'
import type { CheckOptions, CheckResult, Finding } from './job-types.js'
import { call } from './native.js'
import { type Checked, checkOptions, integer, oneOf } from './options.js'
import { layerSettings, OPEN_RULES } from './settings.js'
import { narrow } from './sizes.js'
import { type Located, locate } from './source.js'
import type { Job, Source } from './types.js'

const { format, bigint, forceShare, locking, limits, cache } = OPEN_RULES
const RULES = { ...JOB_RULES, format, bigint, forceShare, locking, limits, cache, maxFindings: integer(0, 10_000_000), repair: oneOf('leaks', 'all') }

type Options = Checked<typeof RULES>

/**
 * Checks an image: every reference is counted and compared with the refcounts on disk, every entry with the rules of the format. Nothing that
 * the image names is opened, and nothing is changed but for what `repair` asks for. A repair that is cut short, by a crash or by its `signal`, leaves
 * an image that is no worse and can be repaired again.
 *
 * Findings are data, not exceptions: the job rejects only if the image cannot be walked at all.
 *
 * @example
 * ```ts
 * import { check } from 'qcow2'
 * const { corruptions, leaks, findings } = await check('disk.qcow2')
 * for (const { severity, message } of findings) console.log(severity, message)
 * const { leaksFixed } = await check('disk.qcow2', { repair: 'leaks' })
 * ```
 */
export function check(source: Source, options?: CheckOptions): Job<CheckResult> {
  return startJob(check, () => {
    const checked = checkOptions('check', options, RULES)
    if (checked.repair !== undefined && checked.forceShare === true) {
      throw invalid('forceShare', 'who repairs lets nobody else write: repair and forceShare exclude each other')
    }
    if (checked.repair !== undefined && source instanceof Uint8Array) {
      throw invalid('source', 'bytes are copied, and nobody would see what is repaired in the copy: give memoryStorage(bytes)')
    }
    const located = locate(source)
    return { options: checked, run: (control) => run(located, checked, control).finally(() => located.release()) }
  })
}

async function run(located: Located, options: Options, control: JobControl): Promise<CheckResult> {
  const spec = { ...located.spec, ...(options.cache === undefined ? {} : { cache: options.cache }) }
  // Of a raw image the check itself says that there is nothing to check.
  if (options.repair !== undefined && (options.format ?? 'qcow2') === 'qcow2') return repair(spec, options, control)
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

async function repair(spec: SourceSpec, options: Options, control: JobControl): Promise<CheckResult> {
  const bigint = options.bigint ?? false
  const layer = { ...layerSettings(options), format: options.format ?? 'qcow2', metadataOnly: true, forCheck: true }
  const all = options.repair === 'all'
  const facts = await call<RepairFacts>(
    (addon, id) => addon.repair(id, { ...spec, writable: true }, layer, { all, maxFindings: options.maxFindings ?? 10_000 }),
    control,
  )
  return {
    ...resultOf(facts.after, bigint),
    leaksFixed: Number(facts.leaksFixed),
    corruptionsFixed: Number(facts.corruptionsFixed),
    repair: {
      found: facts.before.findings.map((finding) => findingOf(finding, bigint)),
      foundOmitted: Number(facts.before.findingsOmitted),
      fixed: facts.fixed.map((finding) => findingOf(finding, bigint)),
      rebuilt: Number(facts.rebuilt),
      stillMarked: facts.stillMarked,
    },
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
    leaksFixed: 0,
    corruptionsFixed: 0,
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
