/**
 * `open`: an image as a disk.
 */

import { openChain } from './chain.js'
import { Disk } from './disk.js'
import { atCaller, cancelled, invalid } from './errors.js'
import { checkOptions } from './options.js'
import { OPEN_RULES, settingsOf } from './settings.js'
import { locate } from './source.js'
import type { OpenOptions, Source } from './types.js'

/**
 * Opens an image for reading, or with `{ writable: true }` for writing too, with its backing files as far as `backingFiles` lets them pass.
 *
 * The format is qcow2 unless `format` says raw, whatever the name: a disk that a guest wrote must not decide what it is. An image that is
 * marked dirty or corrupt opens for reading and says so in `notices`; an encrypted one is refused. For writing, a dirty one is repaired first and
 * a corrupt one refused; what was written is on the device after `flush` or `close`.
 *
 * @param source - a path, a `file:` URL, bytes (copied at the call), `{ path, offset, size }` or `memoryStorage()`
 * @returns a disk that has to be closed
 * @throws Qcow2Error - `ERR_QCOW2_NOT_QCOW2`, `ERR_QCOW2_ENCRYPTED`, `ERR_QCOW2_BACKING_DENIED`, `ERR_QCOW2_NEEDS_BIGINT`, `ERR_QCOW2_IO`
 * and others: docs/errors.md lists them
 *
 * @example
 * ```ts
 * import { open } from 'qcow2'
 * const disk = await open('vm.qcow2')
 * try {
 *   const { buffer } = await disk.read(Buffer.alloc(512), { position: 0 })
 *   console.log(disk.virtualSize, buffer.subarray(510))
 * } finally {
 *   await disk.close()
 * }
 * ```
 */
export function open(source: Source, options: OpenOptions & { bigint: true }): Promise<Disk<bigint>>
export function open(source: Source, options?: OpenOptions & { bigint?: false }): Promise<Disk<number>>
export function open(source: Source, options?: OpenOptions): Promise<Disk>
export function open(source: Source, options?: OpenOptions): Promise<Disk> {
  return atCaller(open, async () => {
    const settings = settingsOf(checkOptions('open', options, OPEN_RULES))
    if (settings.signal?.aborted) throw cancelled(settings.signal.reason)
    if (settings.writable && source instanceof Uint8Array) {
      throw invalid('source', 'bytes are copied, and nobody would see what is written to the copy: give memoryStorage(bytes)')
    }
    const located = locate(source)
    try {
      return await Disk.adopt(await openChain(located, settings), settings)
    } finally {
      located.release()
    }
  })
}
