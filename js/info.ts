/**
 * `info`: facts about one image.
 */

import type { LayerFacts } from './boundary.js'
import { closeHandle, headerSpec } from './chain.js'
import { atCaller, cancelled } from './errors.js'
import { imageInfo } from './facts.js'
import { call } from './native.js'
import { checkOptions } from './options.js'
import { layerSettings, OPEN_RULES } from './settings.js'
import { locate } from './source.js'
import type { ImageInfo, InfoOptions, Source } from './types.js'

const { format, forceShare, locking, limits, bigint, signal } = OPEN_RULES
const RULES = { format, forceShare, locking, limits, bigint, signal }

/**
 * Facts about one image. Nothing that it names is opened: neither its backing file nor its data file, so that a stranger's upload may be
 * asked. Encrypted images answer too.
 *
 * @param source - a path, a `file:` URL, bytes, `{ path, offset, size }` or `memoryStorage()`; qcow2 unless `format` says raw
 *
 * @example
 * ```ts
 * import { info } from 'qcow2'
 * const { virtualSize, backingFile, encrypted } = await info('upload.img', { limits: { maxVirtualSize: '2T' } })
 * ```
 */
export function info(source: Source, options: InfoOptions & { bigint: true }): Promise<ImageInfo<bigint>>
export function info(source: Source, options?: InfoOptions & { bigint?: false }): Promise<ImageInfo<number>>
export function info(source: Source, options?: InfoOptions): Promise<ImageInfo>
export function info(source: Source, options?: InfoOptions): Promise<ImageInfo> {
  return atCaller(info, async () => {
    const checked = checkOptions('info', options, RULES)
    if (checked.signal?.aborted) throw cancelled(checked.signal.reason)
    const located = locate(source)
    const { spec, path } = located
    const header = headerSpec(checked.format ?? 'qcow2', located, false)
    try {
      const facts = await call<LayerFacts>(
        (addon, id) =>
          addon.openLayer(id, spec, { ...layerSettings(checked), format: checked.format ?? 'qcow2', metadataOnly: true, forCheck: false }, header),
        { signal: checked.signal },
      )
      try {
        return imageInfo(facts, path, checked.bigint ?? false)
      } finally {
        await closeHandle(facts.handle)
      }
    } finally {
      located.release()
    }
  })
}
