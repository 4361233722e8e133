/**
 * The library's errors in the words of qemu-img, by their stable codes. What has no such words keeps its own.
 */
import type { Qcow2Error } from './library.js'
import { strerror } from './strerror.js'

/** A text, and what may follow it on lines of its own. */
export interface Wording {
  text: string
  hint?: string
}

type Details = Readonly<Record<string, string>>

const FORMAT_TEXTS: Readonly<Record<string, (details: Details) => string>> = {
  NOT_QCOW2: () => 'Image is not in qcow2 format',
  VERSION: ({ version }) => `Unsupported qcow2 version ${version}`,
  HEADER_LENGTH: () => 'qcow2 header too short',
  HEADER_TRUNCATED: () => 'qcow2 header too short',
  HEADER_EXCEEDS_CLUSTER: () => 'qcow2 header exceeds cluster size',
  CLUSTER_SIZE: ({ bits }) => `Unsupported cluster size: 2^${bits}`,
  REFCOUNT_WIDTH: () => 'Reference count entry width too large; may not exceed 64 bits',
  UNKNOWN_FEATURE: (details) => `Unsupported qcow2 feature(s): ${features(details)}`,
  COMPRESSION_TYPE: ({ kind }) => `qcow2: unknown compression type: ${kind}`,
  COMPRESSION_BIT: () => 'qcow2: Compression type incompatible feature bit must be set',
  COMPRESSION_BIT_SET: () => 'qcow2: Compression type incompatible feature bit must not be set',
  ENCRYPTION_METHOD: ({ method }) => `Unsupported encryption method ${method}`,
  ENCRYPTION_HEADER_MISSING: ({ method }) => `Missing CRYPTO header for crypt method ${method}`,
  ENCRYPTION_HEADER_UNEXPECTED: () => 'CRYPTO header extension only expected with LUKS encryption method',
  ENCRYPTED: ({ format }) => `Parameter '${format === 'luks' ? '' : 'encrypt.'}key-secret' is required for cipher`,
  WRONG_KEY: () => 'Invalid password, cannot unlock any keyslot',
  LUKS_VERSION: ({ version }) => `LUKS version ${version} is not supported`,
  VIRTUAL_SIZE: () => 'Image is too big',
  IMAGE_TOO_BIG: () => 'Image is too big',
  L1_TOO_SMALL: () => 'L1 table is too small',
  L1_TOO_LARGE: () => 'Active L1 table too large',
  L1_OFFSET: () => 'Active L1 table offset invalid',
  REFCOUNT_TABLE_TOO_LARGE: ({ clusters }) =>
    clusters === '0' ? 'Image does not contain a reference count table' : 'Reference count table too large',
  REFCOUNT_TABLE_OFFSET: () => 'Reference count table offset invalid',
  SNAPSHOT_COUNT: () => 'Snapshot table too large',
  SNAPSHOT_TABLE_OFFSET: () => 'Snapshot table offset invalid',
  SNAPSHOT_TABLE_TOO_LARGE: () => 'Snapshot table is too big',
  SNAPSHOT_EXTRA_DATA: ({ index }) => `Too much extra metadata in snapshot table entry ${index}`,
  EXTENSION_TOO_LARGE: () => 'Header extension too large',
  BACKING_FORMAT_TOO_LONG: ({ length }) => `ERROR: ext_backing_format: len=${length} too large (>=16)`,
  BITMAPS_EXTENSION: ({ reason }) => `bitmaps_ext: ${reason}`,
  BACKING_NAME_OFFSET: () => 'Invalid backing file offset',
  BACKING_NAME_TOO_LONG: () => 'Backing file name too long',
  CORRUPT_IMAGE: () => 'qcow2: Image is corrupt; cannot be opened read/write',
  DATA_FILE_RAW: () => 'data-file-raw requires a data file',
  DATA_FILE_REQUIRED: () => "'data-file' is required for this image",
  LOCKED: ({ permission, shared }) => `Failed to get ${shared === 'true' ? 'shared ' : ''}"${permission}" lock`,
}

/** Named features in the order of the image's own table, then what it does not name as one hexadecimal mask. */
function features({ names = '', unnamed = '0' }: Details): string {
  const rest = BigInt(unnamed)
  const known = names.replace(/^, /, '')
  const unknown = rest === 0n ? '' : `Unknown incompatible feature: ${rest.toString(16)}`
  return [known, unknown].filter((part) => part !== '').join(', ')
}

/** What an error says about a file, without the file's name. `shown` is the name for hints. */
export function wordFault(error: Qcow2Error, shown: string): Wording {
  const code = error.code.replace('ERR_QCOW2_', '')
  const noLuks = code === 'LUKS_HEADER' && error.message.includes('its magic is missing')
  const text = noLuks ? 'Volume is not in LUKS format' : (FORMAT_TEXTS[code]?.(error.details) ?? withoutPath(error))
  const hint = hintOf(code, error.details, shown)
  return hint === undefined ? { text } : { text, hint }
}

function hintOf(code: string, { overhanging }: Details, shown: string): string | undefined {
  if (code === 'LOCKED') return `Is another process using the image [${shown}]?`
  if (code === 'SNAPSHOT_EXTRA_DATA') return 'You can force-remove this extra metadata with qemu-img check -r all'
  if (code === 'SNAPSHOT_TABLE_TOO_LARGE') return `You can force-remove all ${overhanging} overhanging snapshots with qemu-img check -r all`
  return undefined
}

/** Whether the system refused something, as opposed to the image being wrong. */
export function isSystemError(error: Qcow2Error): error is Qcow2Error & { errno: number } {
  return error.errno !== undefined && error.errno !== 0
}

/** The system's text, or that of the fault: data that cannot be read is an input error, whatever the reason. */
export function systemText(error: Qcow2Error): string {
  return isSystemError(error) ? strerror(error.errno) : 'Input/output error'
}

/** What the system, or QEMU's driver, would say of a job that failed. */
export function jobText(error: Qcow2Error): string {
  return UNSUPPORTED.has(error.code.replace('ERR_QCOW2_', '')) ? strerror(95) : systemText(error)
}

/** What QEMU refuses with `Operation not supported`. */
const UNSUPPORTED = new Set(['RESIZE_SNAPSHOTS', 'BITMAP', 'READ_ONLY', 'RAW'])

/** The library's own text. It begins with the path, which the caller says in his own way. */
export function withoutPath({ message, path }: Qcow2Error): string {
  return path !== undefined && message.startsWith(`${path}: `) ? message.slice(path.length + 2) : message
}
