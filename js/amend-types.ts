/**
 * The types of `amend`.
 */

import type { ByteCount, JobOptions, OpenOptions, Secret, SizeOption } from './types.js'

/** Options of {@link amend}. What is left out stays as it is. */
export interface AmendOptions
  extends JobOptions,
    Pick<OpenOptions, 'backingFiles' | 'dataFile' | 'bigint' | 'locking' | 'secret' | 'legacy' | 'limits' | 'cache'> {
  /** `'qcow2'` (default) or `'luks'`, of which `keySlot` can be changed. */
  format?: 'qcow2' | 'luks'
  /** Version of the format: `'0.10'` (`'v2'`) or `'1.1'` (`'v3'`). */
  compat?: '1.1' | '0.10' | 'v3' | 'v2'
  /** Width of a refcount in bits: 1, 2, 4, 8, 16, 32 or 64. Another one rebuilds the refcount structure. */
  refcountBits?: number
  /** Let refcounts be late, under the dirty mark: faster allocation, a repair after a crash. */
  lazyRefcounts?: boolean
  /** `false`: the data file need no longer be valid as a raw image. It cannot be made so again. */
  dataFileRaw?: boolean
  /** Record another name for the external data file, which is not touched itself. */
  dataFileName?: string
  /** Virtual size, a multiple of 512 bytes. A smaller one drops what lies beyond. */
  size?: SizeOption
  /** Passwords of an image with LUKS encryption; `secret` opens it. */
  keySlot?: KeySlotChange
}

/**
 * What becomes of the passwords of an image: with `newSecret` alone there is one more, with `oldSecret` or `slot` alone one less, with both secrets
 * the old one is replaced. The new one is proven before the old one goes, and whenever power fails the image opens with one of them.
 */
export interface KeySlotChange {
  /** Opens the image from now on, besides others. */
  newSecret?: Secret
  /** Opens it no longer: every slot that it opens is erased. */
  oldSecret?: Secret
  /** From 0 to 7: where the new secret goes (default: the first free one), or without one, which is erased. */
  slot?: number
  /** Milliseconds that one try of the new secret is to take. Default 2000. */
  iterTime?: number
  /** Also what cannot be undone: erase the last slot, which loses all data; overwrite one that is in use. */
  force?: boolean
}

/** What {@link amend} resolves to. */
export interface AmendResult {
  /** Virtual size in bytes. */
  virtualSize: ByteCount
}
