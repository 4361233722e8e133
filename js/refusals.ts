/**
 * Combinations of options that the format does not have. The core decides and words them as image tools do; here they get the names of the
 * API, so that a message says which option to change.
 */

import { Qcow2Error } from './errors.js'

/** By the code's ending: the option to look at, and the sentence. */
const SENTENCES: Record<string, [argument: string, sentence: string]> = {
  SIZE_REQUIRED: ['size', 'size must be given'],
  IMAGE_TOO_BIG: ['size', 'the size is too large for this clusterSize: larger clusters reach further'],
  CLUSTER_SIZE: ['clusterSize', 'clusterSize must be a power of two from 512 to 2 MiB'],
  CLUSTER_SIZE_EXTENDED_L2: ['clusterSize', 'extendedL2 needs a clusterSize of at least 16 KiB'],
  EXTENDED_L2_COMPAT: ['compat', "extendedL2 needs compat '1.1'"],
  LAZY_REFCOUNTS_COMPAT: ['compat', "lazyRefcounts needs compat '1.1'"],
  REFCOUNT_BITS_COMPAT: ['compat', "refcountBits other than 16 need compat '1.1'"],
  DATA_FILE_COMPAT: ['compat', "dataFile needs compat '1.1'"],
  COMPRESSION_TYPE_COMPAT: ['compat', "a compression other than 'zlib' needs compat '1.1'"],
  REFCOUNT_BITS: ['refcountBits', 'refcountBits must be 1, 2, 4, 8, 16, 32 or 64'],
  REFCOUNT_TABLE_FULL: ['refcountBits', 'the image would need too many refcounts: larger clusters or narrower refcountBits are needed'],
  BACKING_PREALLOCATION: ['preallocation', 'backing and preallocation go together only with extendedL2'],
  BACKING_DATA_FILE_RAW: ['dataFileRaw', 'backing and dataFileRaw exclude each other'],
  COMPRESSION_PREALLOCATION: ['preallocation', 'compression and preallocation exclude each other'],
  COMPRESSION_DATA_FILE: ['compression', 'compression and dataFile exclude each other: a data file holds no compressed clusters'],
  COMPRESSION_UNSUPPORTED: ['compression', 'compression is an option of qcow2'],
  CONCAT_BACKING: ['backing', 'backing is not possible with several sources'],
  PREALLOCATION_UNSUPPORTED: ['preallocation', "space cannot be reserved here: preallocation 'full', 'metadata' and 'off' are possible"],
}

/** Runs a call that makes an image. A fault of an image that is read has a `table`, and keeps its own words. */
export async function worded<T>(call: Promise<T>): Promise<T> {
  try {
    return await call
  } catch (error) {
    throw inWords(error)
  }
}

function inWords(error: unknown): unknown {
  if (!(error instanceof Qcow2Error) || error.table !== undefined) return error
  const entry = SENTENCES[error.code.replace('ERR_QCOW2_', '')]
  if (entry === undefined) return error
  const [argument, sentence] = entry
  const { path, details } = error
  return new Qcow2Error(error.code, sentence, { ...(path === undefined ? {} : { path }), details: { ...details, argument } })
}
