/**
 * What qemu-img refuses about the options of a new image, in its words and in its order: of several faults it names one, and scripts know
 * which.
 */
import type { CreateOptions, Format } from './library.js'
import { type CreateValues, isOn } from './options.js'
import { Refusal } from './refusal.js'

const SINCE_V3 = 'with compatibility level 1.1 and above (use version=v3 or greater)'

/** Refuses what contradicts itself. The size is judged by the library. */
export function checkCreateValues(format: Format, values: CreateValues): void {
  const fault = format === 'raw' ? rawFault(values) : (enumFault(values) ?? shapeFault(values) ?? featureFault(values) ?? encryptionFault(values))
  if (fault !== undefined) throw new Refusal(fault)
}

function rawFault(values: CreateValues): string | undefined {
  const preallocation = values.get('preallocation') ?? 'off'
  if (preallocation === 'metadata') return 'Unsupported preallocation mode: metadata'
  return ['off', 'falloc', 'full'].includes(preallocation) ? undefined : `invalid parameter value: ${preallocation}`
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
    bad('backing_fmt', ['qcow2', 'raw'], 'backing-fmt') ??
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
  if (!values.has('encrypt.key-secret')) return "Parameter 'encrypt.key-secret' is required for cipher"
  return 'Encrypted images are not supported in this version'
}

/** The options as the library takes them. */
export function createOptionsOf(values: CreateValues): Omit<CreateOptions, 'size' | 'format'> {
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
  return options
}
