/**
 * `measure`: how large an image will be.
 */

import type { MeasureFacts, MeasureSpec } from './boundary.js'
import { closeHandle, openChain } from './chain.js'
import { IMAGE_RULES, refuseForeign } from './creating.js'
import { atCaller, cancelled, invalid } from './errors.js'
import { withoutAbsent } from './facts.js'
import { chooseFormat } from './format.js'
import type { MeasureOptions, MeasureResult } from './job-types.js'
import { isMemoryStorage } from './memory.js'
import { call } from './native.js'
import { type Checked, checkOptions, signal, size, text } from './options.js'
import { worded } from './refusals.js'
import { encryptionSpec } from './secret.js'
import { format, SOURCE_RULES, settingsOf, sourceRule } from './settings.js'
import { narrow } from './sizes.js'
import { locate } from './source.js'
import type { SizeOption, Source } from './types.js'

const { clusterSize, compat, refcountBits, extendedL2, preallocation, dataFile, dataFileRaw, backing, backingFormat, encryption } = IMAGE_RULES
const RULES = {
  ...{ clusterSize, compat, refcountBits, extendedL2, preallocation, dataFile, dataFileRaw, backing, backingFormat, encryption },
  format,
  sourceFormat: format,
  snapshot: text,
  source: sourceRule('measure', SOURCE_RULES),
  signal,
}

type Options = Checked<typeof RULES>

/**
 * How many bytes a new image needs: for the data that a source holds (`required`), and when everything is written (`fullyAllocated`).
 * Compression is not foreseen.
 *
 * @param source - an image as `convert` takes it, or `{ size }`: an empty disk of that size
 *
 * @example
 * ```ts
 * import { measure } from 'qcow2'
 * const { required } = await measure('disk.raw', { format: 'qcow2' })
 * const empty = await measure({ size: '10G' }, { format: 'qcow2', preallocation: 'metadata' })
 * ```
 */
export function measure(source: Source | { size: SizeOption }, options?: MeasureOptions): Promise<MeasureResult> {
  return atCaller(measure, async () => {
    const checked = checkOptions('measure', options, RULES)
    if (checked.signal?.aborted) throw cancelled(checked.signal.reason)
    const spec = measureSpec(checked)
    const facts = await worded(isSize(source) ? measureSize(source, spec, checked) : measureSource(source, spec, checked))
    const bigint = checked.source?.bigint ?? false
    const { bitmaps } = facts
    return withoutAbsent({
      required: narrow(facts.required, bigint),
      fullyAllocated: narrow(facts.fullyAllocated, bigint),
      bitmaps: bitmaps === undefined || bitmaps === null ? undefined : narrow(bitmaps, bigint),
    })
  })
}

function measureSpec(options: Options): MeasureSpec {
  const target = options.format ?? 'raw'
  refuseForeign(options, target)
  if (options.dataFileRaw === true && options.dataFile === undefined) throw invalid('dataFile', 'dataFileRaw needs dataFile')
  return {
    format: target,
    clusterSize: options.clusterSize ?? 65536,
    version: options.compat === '0.10' || options.compat === 'v2' ? 2 : 3,
    refcountBits: options.refcountBits ?? 16,
    extendedL2: options.extendedL2 ?? false,
    preallocation: options.preallocation ?? 'off',
    dataFile: options.dataFile !== undefined,
    dataFileRaw: options.dataFileRaw ?? false,
    backing: options.backing !== undefined,
    // Its password does not matter: it is not asked for.
    ...(options.encryption === undefined ? {} : { encryption: encryptionSpec(options.encryption, new Uint8Array()) }),
  }
}

function measureSize(source: { size: SizeOption }, spec: MeasureSpec, options: Options): Promise<MeasureFacts> {
  const { size: bytes } = checkOptions('measure', source, { size })
  for (const name of ['sourceFormat', 'snapshot', 'source'] as const) {
    if (options[name] !== undefined) throw invalid(name, `${name} needs an image: measure was given a size`)
  }
  if (bytes === undefined) throw invalid('size', 'size must be given')
  return call<MeasureFacts>((addon, id) => addon.measure(id, { ...spec, size: bytes }), { signal: options.signal })
}

async function measureSource(source: Source, spec: MeasureSpec, options: Options): Promise<MeasureFacts> {
  const { signal, snapshot } = options
  const located = locate(source)
  try {
    const { format, probed } = await chooseFormat(located, options.sourceFormat, 'sourceFormat', signal)
    const settings = settingsOf({
      ...options.source,
      format,
      ...(snapshot === undefined ? {} : { snapshot }),
      ...(signal === undefined ? {} : { signal }),
    })
    const chain = await openChain(located, { ...settings, probed })
    try {
      return await call<MeasureFacts>((addon, id) => addon.measure(id, { ...spec, chain: chain.handle }), { signal })
    } finally {
      await closeHandle(chain.handle)
    }
  } finally {
    located.release()
  }
}

function isSize(source: unknown): source is { size: SizeOption } {
  return typeof source === 'object' && source !== null && 'size' in source && !('path' in source) && !isMemoryStorage(source)
}
