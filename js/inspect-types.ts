/**
 * The types of `inspect` and of profiles.
 */

import type { ByteCount, Limits } from './types.js'

/** A destination whose rules are known: docs/inspect.md has them. */
export type ProfileName =
  | 'glance'
  | 'kubevirt'
  | 'ovirt'
  | 'digitalocean'
  | 'linode'
  | 'ec2'
  | 'netbackup'
  | 'vagrant-libvirt'
  | 'firecracker'
  | 'kata'
  | 'proxmox'
  | 'hetzner'
  | 'dedup'

/** Options of {@link inspect}. */
export interface InspectOptions {
  /** Judge by the rules of this destination, too. */
  profile?: ProfileName
  /** `maxBytesRead`: of a stream, so many bytes are taken at most, from 64 KiB to 64 MiB (default 4 MiB); the rest is not needed for a verdict. */
  limits?: Pick<Limits, 'maxVirtualSize' | 'maxMemory'> & { maxBytesRead?: ByteCount | string }
  signal?: AbortSignal
}

/** Bytes that come one after the other: a stream of Node.js or of the web, or anything that is iterated. */
export type ByteStream = AsyncIterable<Uint8Array>

/** What was found. */
export interface InspectFinding {
  /** `error`: refused. `warning`: to be looked at. `unknown`: could not be found out. `info`: worth knowing. */
  severity: 'error' | 'warning' | 'unknown' | 'info'
  /** Stable: that of the error with which opening refuses the image, or the rule of the profile, such as `GLANCE_BACKING_FILE`. */
  code: string
  message: string
  /** Where, as far as it can be said. */
  place?: { table?: string; offset?: number | bigint }
  /** Of a profile's rule: who says so. */
  source?: string
  /** Of a profile's rule: what makes the image acceptable. */
  mend?: string
}

/** A feature bit that is set in the header. */
export interface ImageFeature {
  kind: 'incompatible' | 'compatible' | 'autoclear'
  bit: number
  /** Absent for one that is not known here. */
  name?: string
}

/** What is known of the file. Sizes are `bigint` where they pass 2^53-1. */
export interface InspectFacts {
  /** Bytes that were looked at; for a whole file its length. */
  fileSize: number | bigint
  /** All of it was there to be looked at. */
  complete: boolean
  virtualSize?: number | bigint
  clusterSize?: number
  version?: number
  features: ImageFeature[]
  /** Named, and not opened. */
  backingFile?: string
  backingFormat?: string
  /** Named, and not opened. */
  dataFile?: string
  /** Of a VMDK: the lines of its descriptor that say where data is, in small letters. */
  extents?: string[]
  encryption?: 'aes' | 'luks'
  cipher?: string
  compressionType?: string
  /** Whether any cluster is compressed; absent where that was not found out. */
  compressed?: boolean
  snapshots: { id: string; name: string }[]
  bitmaps: string[]
  /**
   * Bytes that a copy takes: as `raw` exactly; as `qcow2` at most, with default options and without compression, and without what lies in files that the
   * image names.
   */
  estimatedSize?: { raw: number | bigint; qcow2?: number | bigint }
}

/** The answer of {@link inspect}. */
export interface InspectResult {
  /** `'unknown'`: not all that decides could be found out. */
  verdict: 'acceptable' | 'refused' | 'unknown'
  profile?: ProfileName
  /** What the rules of the profile alone say: a destination may take what cannot be opened, or is cut off. */
  profileVerdict?: 'acceptable' | 'refused' | 'unknown'
  /** The one format that the file has: `'raw'` if it looks like none, `'several'` if like more than one. */
  format: string
  /** All that it looks like. */
  formats: string[]
  facts: InspectFacts
  findings: InspectFinding[]
}
