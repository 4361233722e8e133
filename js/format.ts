/**
 * Which format a path holds, where the caller need not say.
 */

import type { SourceSpec } from './boundary.js'
import { Qcow2Error } from './errors.js'
import { call } from './native.js'
import type { Located } from './source.js'
import type { Format } from './types.js'

/** A format, and whether it was found by content alone. */
export interface Choice {
  format: Format
  probed: boolean
}

/**
 * As the caller says, else by the extension, else by content. A `.raw` that begins with a qcow2 header is refused: its guest may have
 * written that header, and then its bytes would decide which files of the host are read.
 */
export async function chooseFormat(located: Located, said: Format | undefined, option: string, signal: AbortSignal | undefined): Promise<Choice> {
  if (said !== undefined) return { format: said, probed: false }
  // Nobody but a LUKS container has one.
  if (located.luksHeader !== undefined) return { format: 'luks', probed: false }
  if (located.extension === 'qcow2') return { format: 'qcow2', probed: false }
  const found = await probeContent(located.spec, signal)
  if (located.extension !== 'raw') return { format: found, probed: true }
  if (found === 'raw') return { format: 'raw', probed: false }
  throw new Qcow2Error(
    'ERR_QCOW2_FORMAT_AMBIGUOUS',
    `${located.path} is called .raw and begins with a ${found} header: say ${option}, 'raw' or '${found}'`,
    {
      ...(located.path === undefined ? {} : { path: located.path }),
      details: { argument: option },
    },
  )
}

/** What a file's first bytes say: `'qcow2'` or `'luks'` if they are its magic and version, else `'raw'`. */
export function probeContent(spec: SourceSpec, signal?: AbortSignal): Promise<Format> {
  return call<Format>((addon, id) => addon.probeFormat(id, spec), { signal })
}
