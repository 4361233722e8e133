/**
 * `probe`: what a file's first bytes say.
 */

import { atCaller, cancelled } from './errors.js'
import { probeContent } from './format.js'
import { checkOptions, signal } from './options.js'
import { locate } from './source.js'
import type { Format, Source } from './types.js'

/** Options of {@link probe}. */
export interface ProbeOptions {
  signal?: AbortSignal
}

/**
 * The format that a file's first bytes look like: `'qcow2'` or `'luks'` if they are its magic and a version of it, else `'raw'`. Opens nothing else.
 *
 * Whoever wrote the file chose the answer. Do not let it decide about a disk that a guest could write to: a raw disk can begin with what
 * looks like an image that names files of the host.
 */
export function probe(source: Source, options?: ProbeOptions): Promise<Format> {
  return atCaller(probe, async () => {
    const checked = checkOptions('probe', options, { signal })
    if (checked.signal?.aborted) throw cancelled(checked.signal.reason)
    const located = locate(source)
    try {
      return await probeContent(located.spec, checked.signal)
    } finally {
      located.release()
    }
  })
}
