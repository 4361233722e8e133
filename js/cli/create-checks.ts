/**
 * What qemu-img refuses about the options of a new image, in its words and in its order: of several faults it names one, and scripts know
 * which.
 */
import type { CreateOptions, Format, NewEncryption } from './library.js'
import { type CreateValues, isOn } from './options.js'
import { type Program, warn } from './program.js'
import { Refusal } from './refusal.js'
import { hasPassphrase, newSecretBytes, passphraseBytes } from './secrets.js'

const SINCE_V3 = 'with compatibility level 1.1 and above (use version=v3 or greater)'

/** Refuses what contradicts itself. The size is judged by the library. */
export async function checkCreateValues(format: Format, values: CreateValues, signal: AbortSignal): Promise<void> {
  const fault =
    format === 'qcow2'
      ? (enumFault(values) ?? shapeFault(values) ?? featureFault(values) ?? encryptionFault(values))
      : (rawFault(values) ?? containerFault(format, values))
  if (fault !== undefined) throw new Refusal(fault)
  await checkSecret(sealedValues(format, values), signal)
}

/** Refuses a secret that is not there, or that no key slot can have, before anything is made. */
export async function checkSecret(values: CreateValues, signal: AbortSignal): Promise<void> {
  const id = values.get('encrypt.key-secret')
  if (id !== undefined) await newSecretBytes(id, signal)
}

function rawFault(values: CreateValues): string | undefined {
  const preallocation = values.get('preallocation') ?? 'off'
  if (preallocation === 'metadata') return 'Unsupported preallocation mode: metadata'
  return ['off', 'falloc', 'full'].includes(preallocation) ? undefined : `invalid parameter value: ${preallocation}`
}

/** What a LUKS container is encrypted with is said without `encrypt.`. */
function sealedValues(format: Format, values: CreateValues): CreateValues {
  if (format !== 'luks') return values
  return new Map([...[...values].map(([key, value]) => [`encrypt.${key}`, value] as const), ['encrypt.format', 'luks']])
}

function containerFault(format: Format, values: CreateValues): string | undefined {
  if (format !== 'luks') return undefined
  return encryptionFault(sealedValues(format, values))?.replace("'encrypt.key-secret'", "'key-secret'")
}

/** Values that are none of a fixed set. */
function enumFault(values: CreateValues): string | undefined {
  const bad = (key: string, known: readonly string[], shown = key) => {
    const value = values.get(key)
    return value === undefined || known.includes(value) ? undefined : notAccepted(shown, value)
  }
  return (
    encryptionClash(values) ??
    bad('compat', ['0.10', '1.1', 'v2', 'v3'], 'version') ??
    bad('backing_fmt', ['qcow2', 'raw', 'luks'], 'backing-fmt') ??
    bad('encrypt.format', ['aes', 'luks'], 'format') ??
    encryptionUnnamed(values) ??
    bad('preallocation', ['off', 'metadata', 'falloc', 'full']) ??
    bad('compression_type', ['zlib', 'zstd', 'lz4'], 'compression-type')
  )
}

function notAccepted(key: string, value: string): string {
  return `Parameter '${key}' does not accept value '${value}'`
}

/** Sizes, and what goes with them. */
function shapeFault(values: CreateValues): string | undefined {
  const extended = isOn(values, 'extended_l2')
  const cluster = Number(values.get('cluster_size') ?? 65536)
  if (extended && isVersion2(values)) return `Extended L2 entries are only supported ${SINCE_V3}`
  if (!Number.isInteger(Math.log2(cluster)) || cluster < 512 || cluster > 2 << 20) return 'Cluster size must be a power of two between 512 and 2048k'
  if (extended && cluster < 16384) return 'Extended L2 entries are only supported with cluster sizes of at least 16384 bytes'
  if (values.has('backing_file') && (values.get('preallocation') ?? 'off') !== 'off' && !extended) {
    return 'Backing file and preallocation can only be used at the same time if extended_l2 is on'
  }
  return values.has('backing_fmt') && !values.has('backing_file') ? 'Backing format cannot be used without backing file' : undefined
}

/** Features that need version 3 or each other. */
function featureFault(values: CreateValues): string | undefined {
  const old = isVersion2(values)
  const bits = BigInt(values.get('refcount_bits') ?? 16)
  const raw = isOn(values, 'data_file_raw')
  if (old && isOn(values, 'lazy_refcounts')) return `Lazy refcounts only supported ${SINCE_V3}`
  if (![1n, 2n, 4n, 8n, 16n, 32n, 64n].includes(bits)) return 'Refcount width must be a power of two and may not exceed 64 bits'
  if (old && bits !== 16n) {
    return 'Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)'
  }
  if (raw && !values.has('data_file')) return 'data-file-raw requires data-file'
  if (raw && values.has('backing_file')) return 'Backing file and data-file-raw cannot be used at the same time'
  if (old && values.has('data_file')) return `External data files are only supported ${SINCE_V3}`
  if (old && (values.get('compression_type') ?? 'zlib') !== 'zlib') return `Non-zlib compression type is only supported ${SINCE_V3}`
  return undefined
}

function isVersion2(values: CreateValues): boolean {
  return ['0.10', 'v2'].includes(values.get('compat') ?? '1.1')
}

function encryptionClash(values: CreateValues): string | undefined {
  if (!values.has('encrypt.format') || !values.has('encryption')) return undefined
  return "'encrypt.format' and its alias 'encryption' can't be used at the same time"
}

function encryptionUnnamed(values: CreateValues): string | undefined {
  const detail = [...values.keys()].some((key) => key.startsWith('encrypt.'))
  return detail && !values.has('encrypt.format') && !isOn(values, 'encryption') ? "Parameter 'encrypt.format' is missing" : undefined
}

function encryptionFault(values: CreateValues): string | undefined {
  if (!values.has('encrypt.format') && !isOn(values, 'encryption')) return undefined
  const surplus = [...values.keys()].find((key) => key.startsWith('encrypt.') && key !== 'encrypt.format' && key !== 'encrypt.key-secret')
  // The old method has no settings.
  if (surplus !== undefined && values.get('encrypt.format') !== 'luks') return `Parameter '${surplus}' is unexpected`
  if (!values.has('encrypt.key-secret') && !hasPassphrase()) return "Parameter 'encrypt.key-secret' is required for cipher"
  const bad = ENCRYPTION_WORDS.find(([key, known]) => values.has(`encrypt.${key}`) && !known.includes(values.get(`encrypt.${key}`) ?? ''))
  if (bad !== undefined) return notAccepted(bad[0], values.get(`encrypt.${bad[0]}`) ?? '')
  const time = iterTimeFault(values.get('encrypt.iter-time'))
  if (time !== undefined) return time
  return isOn(values, 'data_file_raw')
    ? 'An encrypted data file is no raw image: encryption and data-file-raw cannot be used at the same time'
    : undefined
}

/** A time that nobody can mean. */
export function iterTimeFault(value: string | undefined): string | undefined {
  const time = Number(value ?? 0)
  return time >= 0 && time <= 0xffff_ffff ? undefined : `Parameter 'iter-time' expects milliseconds from 0 to ${0xffff_ffff}`
}

/** What is known here of what QEMU knows. */
const HASHES = ['sha1', 'sha224', 'sha256', 'sha384', 'sha512', 'ripemd160']
const ENCRYPTION_WORDS: readonly (readonly [string, readonly string[]])[] = [
  [
    'cipher-alg',
    ['aes-128', 'aes-192', 'aes-256', 'cast5-128', 'serpent-128', 'serpent-192', 'serpent-256', 'twofish-128', 'twofish-192', 'twofish-256'],
  ],
  ['cipher-mode', ['ecb', 'cbc', 'xts']],
  ['ivgen-alg', ['plain', 'plain64', 'essiv']],
  ['ivgen-hash-alg', HASHES],
  ['hash-alg', HASHES],
]

function encryptionOf(values: CreateValues): NewEncryption | undefined {
  const format = values.get('encrypt.format') ?? (isOn(values, 'encryption') ? 'aes' : undefined)
  if (format === undefined) return undefined
  const id = values.get('encrypt.key-secret')
  const secret = () => (id === undefined ? passphraseBytes() : newSecretBytes(id))
  if (format === 'aes') return { secret, format, legacy: true }
  const iterTime = values.get('encrypt.iter-time')
  const text = (key: string) => values.get(`encrypt.${key}`)
  return withoutUndefined({
    secret,
    cipher: text('cipher-alg'),
    cipherMode: text('cipher-mode'),
    ivGenerator: text('ivgen-alg'),
    ivHash: text('ivgen-alg') === 'essiv' ? text('ivgen-hash-alg') : undefined,
    hash: text('hash-alg'),
    detachedHeader: isOn(values, 'encrypt.detached-header') || undefined,
    iterTime: iterTime === undefined ? undefined : Number(iterTime),
  })
}

function withoutUndefined<T extends object>(object: { [K in keyof T]: T[K] | undefined }): T {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as T
}

/** Who asks for the old method is told why not to, and who asks for what QEMU cannot open, that. */
export function warnOfEncryption(program: Program, format: Format, values: CreateValues): void {
  const { format: method, cipher, cipherMode } = encryptionOf(sealedValues(format, values)) ?? {}
  // A key of 24 bytes, split 4000 times, is no whole number of sectors, on which QEMU insists.
  if (cipher?.endsWith('-192') && (cipherMode === 'cbc' || cipherMode === 'ecb'))
    warn(program, `QEMU cannot open images of ${cipher} with ${cipherMode}`)
  if (method !== 'aes') return
  warn(program, 'AES-CBC encryption of qcow2 is old and weak: nothing tells a wrong password or a changed image. Use encrypt.format=luks')
}

/** The options as the library takes them. */
export function createOptionsOf(values: CreateValues, format: Format): Omit<CreateOptions, 'size' | 'format'> {
  const options: Omit<CreateOptions, 'size' | 'format'> = {}
  const take = <K extends keyof typeof options>(key: string, name: K, read: (value: string) => (typeof options)[K]) => {
    const value = values.get(key)
    if (value !== undefined) options[name] = read(value)
  }
  const on = (value: string) => /^(on|yes|true|y)$/.test(value)
  take('cluster_size', 'clusterSize', Number)
  take('compat', 'compat', (value) => value as CreateOptions['compat'])
  take('refcount_bits', 'refcountBits', Number)
  take('extended_l2', 'extendedL2', on)
  take('lazy_refcounts', 'lazyRefcounts', on)
  take('compression_type', 'compressionType', (value) => value as CreateOptions['compressionType'])
  take('preallocation', 'preallocation', (value) => value as CreateOptions['preallocation'])
  take('backing_file', 'backing', String)
  take('backing_fmt', 'backingFormat', (value) => value as Format)
  take('data_file', 'dataFile', String)
  take('data_file_raw', 'dataFileRaw', on)
  take('nocow', 'nocow', on)
  take('extent_size_hint', 'extentSizeHint', BigInt)
  const encryption = encryptionOf(sealedValues(format, values))
  if (encryption !== undefined) options.encryption = encryption
  return options
}
