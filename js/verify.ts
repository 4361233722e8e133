/**
 * `verify`: whether a disk holds what a digest was made of, and where it does not.
 */

import type { VerifyFacts } from './boundary.js'
import { closeHandle, openChain } from './chain.js'
import type { DifferentRange, DigestManifest, VerifyOptions, VerifyResult } from './digest-types.js'
import { Qcow2Error } from './errors.js'
import { withoutAbsent } from './facts.js'
import { chooseFormat } from './format.js'
import { JOB_RULES, type JobControl, startJob } from './job.js'
import { digestText, type Expected, readExpected } from './manifest.js'
import { call } from './native.js'
import { type Checked, checkOptions, count, integer, text } from './options.js'
import { format, SOURCE_RULES, settingsOf, sourceRule } from './settings.js'
import { narrow } from './sizes.js'
import { type Located, locate } from './source.js'
import type { Job, Source } from './types.js'

const RULES = {
  ...JOB_RULES,
  start: count,
  end: count,
  digest: text,
  maxRanges: integer(0, 1_000_000),
  format,
  snapshot: text,
  source: sourceRule('verify', SOURCE_RULES),
}

type Options = Checked<typeof RULES>

const DEFAULT_MEMORY = 256 << 20

/**
 * Reads a disk and says whether it holds what `expected` was made of: a manifest of {@link digest}, whose blocks are compared one by one, or a digest,
 * of which only the whole can be compared. A difference is a result, not an error.
 *
 * A manifest proves no more than its root: whoever got it from elsewhere passes the digest that he trusts as `digest`.
 *
 * @example
 * ```ts
 * import { readFileSync } from 'node:fs'
 * import { verify } from 'qcow2'
 * const manifest = JSON.parse(readFileSync('disk.manifest', 'utf8'))
 * const { identical, different } = await verify('disk.qcow2', manifest, { start: 0, end: 1 << 20 })
 * if (!identical) console.error('they differ at', different)
 * ```
 */
export function verify(source: Source, expected: DigestManifest | string, options?: VerifyOptions): Job<VerifyResult> {
  return startJob(verify, () => {
    const checked = checkOptions('verify', options, RULES)
    const wanted = readExpected(expected, checked.source?.limits?.maxMemory ?? DEFAULT_MEMORY)
    refuseOther(wanted, checked.digest)
    const located = locate(source)
    return { options: checked, run: (control) => run(located, wanted, checked, control).finally(() => located.release()) }
  })
}

/** The manifest must be the one that was vouched for. */
function refuseOther({ algorithm, blockSize, root }: Expected, trusted: string | undefined): void {
  if (trusted === undefined) return
  const digest = digestText(algorithm, blockSize, Buffer.from(root).toString('hex'))
  // Read as what it is, so that a mistyped one is told from another.
  const { algorithm: name, blockSize: block, root: bytes } = readExpected(trusted, 0)
  if (digestText(name, block, Buffer.from(bytes).toString('hex')) === digest) return
  throw new Qcow2Error('ERR_QCOW2_MANIFEST', `the manifest is of another disk: its digest is ${digest}`)
}

async function run(located: Located, expected: Expected, options: Options, control: JobControl): Promise<VerifyResult> {
  const { source, snapshot, start, end, maxRanges = 1000 } = options
  const { format, probed } = await chooseFormat(located, options.format, 'format', control.signal)
  const settings = settingsOf({ ...source, format, signal: control.signal, ...(snapshot === undefined ? {} : { snapshot }) })
  const { algorithm, blockSize, virtualSize, root, runs, hashes } = expected
  const chain = await openChain(located, { ...settings, probed })
  try {
    const ranged = start !== undefined || end !== undefined
    const spec = {
      ...{ algorithm, blockSize, maxRanges },
      ...(virtualSize === undefined ? {} : { virtualSize }),
      ...(ranged ? { start: start ?? 0n, end: end ?? virtualSize ?? chain.virtualSize } : {}),
    }
    const facts = await call<VerifyFacts>((addon, id) => addon.verify(id, chain.handle, root, runs, hashes, spec), control)
    return resultOf(facts, virtualSize, source?.bigint ?? false)
  } finally {
    await closeHandle(chain.handle)
  }
}

function resultOf(facts: VerifyFacts, expectedSize: bigint | undefined, bigint: boolean): VerifyResult {
  const different: DifferentRange[] = []
  for (let at = 0; at < facts.different.length; at += 2) {
    different.push({ start: narrow(facts.different[at] as bigint, bigint), end: narrow(facts.different[at + 1] as bigint, bigint) })
  }
  return withoutAbsent({
    identical: facts.identical,
    virtualSize: narrow(facts.virtualSize, bigint),
    expectedSize: expectedSize === undefined ? undefined : narrow(expectedSize, bigint),
    checked: narrow(facts.checked, bigint),
    differentBlocks: expectedSize === undefined ? undefined : narrow(facts.differentBlocks, bigint),
    different,
    omitted: narrow(facts.omitted, bigint),
  })
}
