/**
 * Digests as text, and manifests as JSON: what {@link digest} makes and {@link verify} takes. A manifest may come from anybody: everything in it is
 * checked before it is used.
 */

import type { DigestAlgorithm, DigestManifest } from './digest-types.js'
import { Qcow2Error } from './errors.js'
import { oneOf, type Rule } from './options.js'
import { kindOf, parseSize } from './sizes.js'

/** The rule for every option that names a hash function. */
export const algorithm: Rule<DigestAlgorithm> = oneOf('blake3', 'sha256')

const LEAST_BLOCK = 4096
const MOST_BLOCK = 64 << 20
const DEFAULT_BLOCK = 1 << 20
const HASH_BYTES = 32
/** Hashes of one text of a manifest: lines of JSON that tools still like to show. */
const HASHES_EACH = 256
const LARGEST_SIZE = 2n ** 63n - 1n

/** The rule for the length of a block. */
export const blockSize: Rule<number> = (value, name) => {
  const bytes = parseSize(value, name)
  if (bytes >= LEAST_BLOCK && bytes <= MOST_BLOCK && (bytes & (bytes - 1n)) === 0n) return Number(bytes)
  throw new Qcow2Error('ERR_QCOW2_INVALID_ARGUMENT', `${name} must be a power of two from 4 KiB to 64 MiB: it is ${bytes}`, {
    details: { argument: name },
  })
}

/** What a digest or manifest says, ready for the core. */
export interface Expected {
  algorithm: DigestAlgorithm
  blockSize: number
  root: Uint8Array
  /** Absent if only the digest is known. */
  virtualSize?: bigint
  runs: Uint8Array
  hashes: Uint8Array
}

/** A digest as text: `blake3:6c36…`, or `blake3-65536:…` of another block size than the usual one. */
export function digestText(algorithm: DigestAlgorithm, blockSize: number, root: string): string {
  return `${algorithm}${blockSize === DEFAULT_BLOCK ? '' : `-${blockSize}`}:${root}`
}

/** The bytes of a hash, as hexadecimal digits. */
export function hexOf(words: BigUint64Array): string {
  return bytesOf(words).toString('hex')
}

/** A size as a manifest has it: JSON's numbers end at 2^53-1. */
export function manifestSize(size: bigint): number | string {
  return size > BigInt(Number.MAX_SAFE_INTEGER) ? size.toString() : Number(size)
}

/** Leaves as a manifest has them: counts of blocks that are zeros, and hashes in base64. */
export function listLeaves(runs: BigUint64Array, hashes: BigUint64Array): (number | string)[] {
  const bytes = bytesOf(hashes)
  const leaves: (number | string)[] = []
  let at = 0
  for (let index = 0; index < runs.length; index += 2) {
    const zeros = Number(runs[index])
    if (zeros > 0) leaves.push(zeros)
    const end = at + Number(runs[index + 1]) * HASH_BYTES
    for (; at < end; at = Math.min(at + HASHES_EACH * HASH_BYTES, end)) {
      leaves.push(bytes.toString('base64', at, Math.min(at + HASHES_EACH * HASH_BYTES, end)))
    }
  }
  return leaves
}

/** Reads a digest or a manifest. `most`: bytes that the leaves may take. */
export function readExpected(value: unknown, most: number): Expected {
  if (typeof value === 'string') return readDigest(value)
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw bad(`it must be an object or a digest: it is ${kindOf(value)}`)
  const manifest = value as Partial<Record<keyof DigestManifest, unknown>>
  if (manifest['qcow2-digest'] !== 1) throw bad(`its version is ${kindOf(manifest['qcow2-digest'])}: this version reads 1`)
  const { root, leaves } = manifest
  if (typeof root !== 'string' || !/^[0-9a-f]{64}$/.test(root)) throw bad('root must be 64 hexadecimal digits')
  if (!Array.isArray(leaves)) throw bad(`leaves must be an array: it is ${kindOf(leaves)}`)
  return {
    algorithm: asManifest(() => algorithm(manifest.algorithm, 'algorithm')),
    blockSize: asManifest(() => blockSize(typeof manifest.blockSize === 'number' ? manifest.blockSize : Number.NaN, 'blockSize')),
    virtualSize: readSize(manifest.virtualSize),
    root: Buffer.from(root, 'hex'),
    ...readLeaves(leaves, most),
  }
}

function readDigest(digest: string): Expected {
  const match = /^(blake3|sha256)(?:-(\d{4,8}))?:([0-9a-f]{64})$/.exec(digest)
  if (match === null) throw bad(`${kindOf(digest)} is no digest: one is blake3: or sha256: and 64 hexadecimal digits`)
  const [, name, size, root] = match as unknown as [string, DigestAlgorithm, string | undefined, string]
  const block = size === undefined ? DEFAULT_BLOCK : asManifest(() => blockSize(Number(size), 'the block size of the digest'))
  const none = new Uint8Array()
  return { algorithm: name, blockSize: block, root: Buffer.from(root, 'hex'), runs: none, hashes: none }
}

function readSize(value: unknown): bigint {
  const isNumber = typeof value === 'number' && Number.isSafeInteger(value) && value >= 0
  if (!isNumber && !(typeof value === 'string' && /^\d{1,19}$/.test(value))) throw bad(`virtualSize must be a whole number: it is ${kindOf(value)}`)
  const size = BigInt(value as number | string)
  if (size > LARGEST_SIZE) throw bad(`virtualSize must be less than 2^63: it is ${size}`)
  return size
}

/** Leaves as the core takes them: pairs of counts, and all hashes one behind the other. */
function readLeaves(leaves: readonly unknown[], most: number): Pick<Expected, 'runs' | 'hashes'> {
  let bytes = 0
  for (const leaf of leaves) bytes += typeof leaf === 'string' ? Math.floor(leaf.length / 4) * 3 : 16
  if (bytes > most) {
    throw new Qcow2Error('ERR_QCOW2_LIMIT', `maxMemory is ${most}, but ${bytes} would be needed for the manifest`, {
      details: { limit: 'maxMemory', allowed: String(most), wanted: String(bytes) },
    })
  }
  const runs: bigint[] = []
  const parts: Buffer[] = []
  for (const leaf of leaves) {
    if (typeof leaf === 'number' && Number.isSafeInteger(leaf) && leaf > 0) {
      runs.push(BigInt(leaf), 0n)
      continue
    }
    const part = typeof leaf === 'string' ? Buffer.from(leaf, 'base64') : undefined
    // Whatever is no base64 is passed over by the decoder: what it has read must be what is written.
    if (part === undefined || part.length === 0 || part.length % HASH_BYTES !== 0 || part.toString('base64') !== leaf) {
      throw bad(`leaves are counts and hashes in base64: one is ${kindOf(leaf)}`)
    }
    if (runs.length === 0) runs.push(0n, 0n)
    runs.push((runs.pop() as bigint) + BigInt(part.length / HASH_BYTES))
    parts.push(part)
  }
  return { runs: bytesOf(BigUint64Array.from(runs)), hashes: Buffer.concat(parts) }
}

/** What an option would say of a value, said of the manifest. */
function asManifest<T>(read: () => T): T {
  try {
    return read()
  } catch (error) {
    throw bad((error as Error).message)
  }
}

function bad(reason: string): Qcow2Error {
  return new Qcow2Error('ERR_QCOW2_MANIFEST', `the manifest cannot be used: ${reason}`)
}

function bytesOf(words: BigUint64Array): Buffer {
  return Buffer.from(words.buffer, words.byteOffset, words.byteLength)
}
