/**
 * `create`: a new, empty image.
 */

import { stat } from 'node:fs/promises'
import type { CreateFacts, LayerFacts } from './boundary.js'
import { closeHandle } from './chain.js'
import { createSpec, FILE_RULES, IMAGE_RULES, targetSpec } from './creating.js'
import { atCaller, cancelled, invalid, Qcow2Error } from './errors.js'
import { withoutAbsent } from './facts.js'
import { hasProtocol } from './gate.js'
import type { CreateOptions, CreateResult } from './job-types.js'
import { call } from './native.js'
import { checkOptions, flag, signal, size } from './options.js'
import { worded } from './refusals.js'
import { format, layerSettings } from './settings.js'
import { narrow } from './sizes.js'
import { beside, type LocatedTarget, locateTarget } from './source.js'
import type { Format, Target } from './types.js'

const RULES = { ...IMAGE_RULES, ...FILE_RULES, size, format, backingUnchecked: flag, signal }

/**
 * Makes a new image that reads as zeros, or as its backing file.
 *
 * The file is written beside its name and renamed when it is whole; an existing one is refused unless `overwrite` is set. The format is
 * qcow2 unless `format` or the extension `.raw` says otherwise.
 *
 * @param target - a path, a `file:` URL, or `memoryStorage()`
 *
 * @example
 * ```ts
 * import { create } from 'qcow2'
 * await create('base.qcow2', { size: '20G' })
 * await create('overlay.qcow2', { backing: 'base.qcow2', backingFormat: 'qcow2' })
 * ```
 */
export function create(target: Target, options?: CreateOptions): Promise<CreateResult> {
  return atCaller(create, async () => {
    const checked = checkOptions('create', options, RULES)
    if (checked.signal?.aborted) throw cancelled(checked.signal.reason)
    const located = locateTarget(target)
    const spec = createSpec(checked, checked.format ?? located.extension ?? 'qcow2', located)
    if (checked.backingUnchecked !== undefined && spec.backing === undefined) throw invalid('backing', 'backingUnchecked needs backing')
    const backing = await backingSize(located, spec, checked.backingUnchecked ?? false, checked.signal)
    const bytes = checked.size ?? backing
    if (bytes === undefined) throw invalid('size', 'size must be given: there is no backing file to take it from')
    const facts = await worded(
      call<CreateFacts>((addon, id) => addon.create(id, targetSpec(located, checked), { ...spec, size: roundUp(bytes) }), { signal: checked.signal }),
    )
    return withoutAbsent({
      path: located.path,
      format: spec.format,
      virtualSize: narrow(facts.virtualSize),
      fileSize: narrow(facts.fileSize),
    })
  })
}

/** Opens the backing file as far as it takes to know that it is one, and how large. */
async function backingSize(
  target: LocatedTarget,
  spec: { backing?: string; backingFormat?: string; dataFilePath?: string },
  unchecked: boolean,
  signal: AbortSignal | undefined,
): Promise<bigint | undefined> {
  if (spec.backing === undefined || unchecked) return undefined
  if (hasProtocol(spec.backing)) {
    throw new Qcow2Error('ERR_QCOW2_NAME_PROTOCOL', `backing must be a plain file name: '${spec.backing}' has a protocol`, {
      details: { name: spec.backing, kind: 'backing' },
    })
  }
  const path = beside(target.path, spec.backing)
  const facts = await call<LayerFacts>(
    (addon, id) =>
      addon.openLayer(
        id,
        { path, devices: true },
        { ...layerSettings({}), format: spec.backingFormat as Format, metadataOnly: true, forCheck: false },
      ),
    { signal },
  )
  try {
    for (const made of [target.path, spec.dataFilePath]) {
      const old = made === undefined ? undefined : await stat(made, { bigint: true }).catch(() => undefined)
      if (old !== undefined && old.ino === facts.inode && old.dev === facts.device) {
        throw new Qcow2Error('ERR_QCOW2_SAME_FILE', 'neither an image nor its data file can be its own backing file', { path })
      }
    }
    return facts.virtualSize
  } finally {
    await closeHandle(facts.handle)
  }
}

function roundUp(bytes: bigint): bigint {
  return ((bytes + 511n) / 512n) * 512n
}
