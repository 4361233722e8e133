/**
 * `digest`: a hash of what a disk holds, whatever holds it.
 */

import type { DigestFacts } from './boundary.js'
import { closeHandle, openChain } from './chain.js'
import type { DigestAlgorithm, DigestOptions, DigestResult } from './digest-types.js'
import { withoutAbsent } from './facts.js'
import { chooseFormat } from './format.js'
import { JOB_RULES, type JobControl, startJob } from './job.js'
import { algorithm, blockSize, digestText, hexOf, listLeaves, manifestSize } from './manifest.js'
import { call } from './native.js'
import { type Checked, checkOptions, flag, text } from './options.js'
import { format, SOURCE_RULES, settingsOf, sourceRule } from './settings.js'
import { narrow } from './sizes.js'
import { type Located, locate } from './source.js'
import type { Job, Source } from './types.js'

const RULES = {
  ...JOB_RULES,
  algorithm,
  blockSize,
  manifest: flag,
  format,
  snapshot: text,
  source: sourceRule('digest', SOURCE_RULES),
}

type Options = Checked<typeof RULES>

/**
 * A hash of what a disk holds: the same for a raw file, a sparse one, a compressed or encrypted image and a chain of overlays, as long as a guest
 * reads the same. What is known to be zeros is not read. docs/digest.md defines it to the byte.
 *
 * With `manifest`, the result has what {@link verify} checks single ranges against.
 *
 * @example
 * ```ts
 * import { digest } from 'qcow2'
 * const { digest: before } = await digest('disk.raw')
 * const { digest: after } = await digest('disk.qcow2')
 * console.log(before, before === after) // blake3:6c36…
 * ```
 */
export function digest(source: Source, options?: DigestOptions): Job<DigestResult> {
  return startJob(digest, () => {
    const checked = checkOptions('digest', options, RULES)
    const located = locate(source)
    return { options: checked, run: (control) => run(located, checked, control).finally(() => located.release()) }
  })
}

async function run(located: Located, options: Options, control: JobControl): Promise<DigestResult> {
  const algorithm: DigestAlgorithm = options.algorithm ?? 'blake3'
  const bytes = options.blockSize ?? 1 << 20
  const { source, snapshot, manifest = false } = options
  const { format, probed } = await chooseFormat(located, options.format, 'format', control.signal)
  const settings = settingsOf({ ...source, format, signal: control.signal, ...(snapshot === undefined ? {} : { snapshot }) })
  const chain = await openChain(located, { ...settings, probed })
  try {
    const facts = await call<DigestFacts>(
      (addon, id) => addon.digest(id, chain.handle, digestSpec(algorithm, bytes, manifest, settings.layer)),
      control,
    )
    const root = hexOf(facts.root)
    const bigint = source?.bigint
    const { runs, hashes } = facts
    return withoutAbsent({
      digest: digestText(algorithm, bytes, root),
      algorithm,
      blockSize: bytes,
      virtualSize: narrow(facts.virtualSize, bigint),
      root,
      blocks: narrow(facts.blocks, bigint),
      zeroBlocks: narrow(facts.zeroBlocks, bigint),
      manifest: !manifest
        ? undefined
        : {
            'qcow2-digest': 1 as const,
            algorithm,
            blockSize: bytes,
            virtualSize: manifestSize(facts.virtualSize),
            root,
            leaves: listLeaves(runs as BigUint64Array, hashes as BigUint64Array),
          },
    })
  } finally {
    await closeHandle(chain.handle)
  }
}

function digestSpec(algorithm: string, blockSize: number, manifest: boolean, { maxMemory }: { maxMemory: number }) {
  return { algorithm, blockSize, ...(manifest ? { leaves: BigInt(maxMemory) } : {}) }
}
