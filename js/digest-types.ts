/**
 * The shapes of digests: options in, results out.
 */

import type { ByteCount, Format, JobOptions, SizeOption, SourceOptions } from './types.js'

/** The hash functions of digests. */
export type DigestAlgorithm = 'blake3' | 'sha256'

/** Options of {@link digest}. */
export interface DigestOptions extends JobOptions {
  /** Default `'blake3'`. */
  algorithm?: DigestAlgorithm
  /** Bytes of a block, a power of two from 4 KiB to 64 MiB: what a manifest tells apart. Digests of different block sizes differ. Default 1 MiB. */
  blockSize?: SizeOption
  /** Make a manifest too; it takes 32 bytes a block that is not zeros, and at most `source.limits.maxMemory`. Default false. */
  manifest?: boolean
  /** Format of the source: as said, else by extension, else by content, as {@link convert} has it. */
  format?: Format
  /** The digest of this snapshot (id or name) instead of the active state. */
  snapshot?: string
  /** How the source is opened. */
  source?: SourceOptions
}

/** What {@link digest} answers. Sizes and counts are `bigint` where asked for, or where they pass 2^53-1. */
export interface DigestResult {
  /** Function, block size if it is not the usual one, and root: `'blake3:6c36…'`. Equal if and only if the disks are. */
  digest: string
  algorithm: DigestAlgorithm
  /** Bytes of a block. */
  blockSize: number
  virtualSize: number | bigint
  /** The root of the tree, as 64 hexadecimal digits. */
  root: string
  blocks: number | bigint
  /** Blocks of nothing but zeros, whether they are allocated or not. */
  zeroBlocks: number | bigint
  /** If asked for. */
  manifest?: DigestManifest
}

/** The leaves of a digest: fit for JSON. docs/digest.md defines it. */
export interface DigestManifest {
  /** The version of this form. */
  'qcow2-digest': 1
  algorithm: DigestAlgorithm
  /** Bytes of a block. */
  blockSize: number
  /** Bytes; beyond 2^53-1 as decimal digits. */
  virtualSize: number | string
  /** 64 hexadecimal digits. */
  root: string
  /** In the order of the blocks: a number is so many blocks of zeros, a text is hashes of 32 bytes each in base64. */
  leaves: (number | string)[]
}

/** Options of {@link verify}. */
export interface VerifyOptions extends JobOptions {
  /** First byte that is wanted; the range is widened to whole blocks. Needs a manifest. Default 0. */
  start?: ByteCount
  /** The byte behind the last that is wanted, at most the virtual size of the manifest. Default: everything. */
  end?: ByteCount
  /** The digest that is trusted: a manifest with another is refused (`ERR_QCOW2_MANIFEST`). */
  digest?: string
  /** Most ranges that are listed, up to 1000000; all are counted. Default 1000. */
  maxRanges?: number
  /** Format of the source: as said, else by extension, else by content, as {@link convert} has it. */
  format?: Format
  /** Verify this snapshot (id or name) instead of the active state. */
  snapshot?: string
  /** How the source is opened. `limits.maxMemory` bounds the manifest too. */
  source?: SourceOptions
}

/** Where a disk is not what it should be, in bytes, in whole blocks. */
export interface DifferentRange {
  start: number | bigint
  /** Behind the last byte. */
  end: number | bigint
}

/** What {@link verify} answers. Sizes and counts are `bigint` where asked for, or where they pass 2^53-1. */
export interface VerifyResult {
  /** All of what was wanted is what it should be. */
  identical: boolean
  virtualSize: number | bigint
  /** What the manifest says; absent if only a digest was given. What one of the two disks alone has differs. */
  expectedSize?: number | bigint
  /** Bytes that were compared. */
  checked: number | bigint
  /** Absent if only a digest was given. */
  differentBlocks?: number | bigint
  /** Where they are, neighbours joined; empty if only a digest was given. */
  different: DifferentRange[]
  /** Ranges that are not listed. */
  omitted: number | bigint
}
