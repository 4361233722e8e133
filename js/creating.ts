/**
 * The options of a new image: what `create` and `convert` share, and what `measure` asks about.
 */

import type { CreateSpec, Handle, TargetSpec } from './boundary.js'
import { invalid, Qcow2Error } from './errors.js'
import { hasProtocol } from './gate.js'
import { sync } from './native.js'
import { type Checked, flag, memorySize, oneOf, type Rule, size, text } from './options.js'
import { encryption } from './secret.js'
import { cacheMode, format } from './settings.js'
import { kindOf } from './sizes.js'
import { beside, type LocatedTarget } from './source.js'
import type { Format } from './types.js'

const clusterSize: Rule<number> = (value, name) => {
  const bytes = memorySize(0)(value, name)
  // A power of two has one bit.
  if (bytes < 512 || bytes > 2 << 20 || (bytes & (bytes - 1)) !== 0) {
    throw invalid(name, `${name} must be a power of two from 512 to 2 MiB: it is ${bytes}`)
  }
  return bytes
}

const refcountBits: Rule<number> = (value, name) => {
  if ([1, 2, 4, 8, 16, 32, 64].some((bits) => bits === value)) return value as number
  throw invalid(name, `${name} must be 1, 2, 4, 8, 16, 32 or 64: it is ${kindOf(value)}`)
}

/** What describes the image itself. */
export const IMAGE_RULES = {
  clusterSize,
  compat: oneOf('1.1', '0.10', 'v3', 'v2'),
  refcountBits,
  extendedL2: flag,
  lazyRefcounts: flag,
  compressionType: oneOf('zlib', 'zstd', 'lz4'),
  backing: text,
  backingFormat: format,
  preallocation: oneOf('off', 'metadata', 'falloc', 'full'),
  dataFile: text,
  dataFileRaw: flag,
  nocow: flag,
  extentSizeHint: size,
  encryption,
}

/** How its file is made. */
export const FILE_RULES = { overwrite: flag, durable: flag, cache: cacheMode }

/** Options that only qcow2 has. */
const ONLY_QCOW2 = [
  'clusterSize',
  'compat',
  'refcountBits',
  'extendedL2',
  'lazyRefcounts',
  'compressionType',
  'backing',
  'backingFormat',
  'dataFile',
  'dataFileRaw',
  'encryption',
] as const

type ImageOptions = Checked<typeof IMAGE_RULES>

/** The image that the options describe, with defaults. Numbers of the format are checked against each other by the core. */
export function createSpec(options: ImageOptions, format: Format, target: LocatedTarget): CreateSpec {
  refuseForeign(options, format)
  const { backing, backingFormat, dataFile, dataFileRaw = false, extentSizeHint } = options
  if (backing !== undefined && backingFormat === undefined) throw invalid('backingFormat', "backing needs backingFormat, 'qcow2' or 'raw'")
  if (backing === undefined && backingFormat !== undefined) throw invalid('backing', 'backingFormat needs backing')
  if (dataFileRaw && dataFile === undefined) throw invalid('dataFile', 'dataFileRaw needs dataFile')
  if (dataFile !== undefined && target.path === undefined) throw invalid('dataFile', 'an image in memory cannot have an external data file')
  if (dataFile !== undefined && hasProtocol(dataFile)) throw invalid('dataFile', `dataFile must be a plain file name: '${dataFile}' has a protocol`)
  const spec: CreateSpec = {
    format,
    clusterSize: options.clusterSize ?? 65536,
    version: options.compat === '0.10' || options.compat === 'v2' ? 2 : 3,
    refcountBits: options.refcountBits ?? 16,
    extendedL2: options.extendedL2 ?? false,
    lazyRefcounts: options.lazyRefcounts ?? false,
    compressionType: options.compressionType ?? 'zlib',
    preallocation: options.preallocation ?? 'off',
    dataFileRaw,
    nocow: options.nocow ?? false,
  }
  if (backing !== undefined) spec.backing = backing
  if (backingFormat !== undefined) spec.backingFormat = backingFormat
  if (dataFile !== undefined) Object.assign(spec, { dataFile, dataFilePath: beside(target.path, dataFile) })
  if (extentSizeHint !== undefined) spec.extentSizeHint = extentSizeHint
  return spec
}

/** Where a new image is made. */
export function targetSpec(target: LocatedTarget, options: Checked<typeof FILE_RULES>, inPlace = false): TargetSpec {
  if (target.memory !== undefined && options.overwrite !== true && !inPlace) refuseHeld(target.memory)
  const { cache, durable } = options
  if (cache === 'unsafe' && durable === true) throw invalid('cache', "cache 'unsafe' and durable exclude each other: nothing is synced")
  // Who says how it is to be cached wants it on the device at the end.
  const synced = durable ?? (cache !== undefined && cache !== 'unsafe')
  const spec: TargetSpec = { overwrite: options.overwrite ?? false, durable: synced, inPlace }
  if (cache !== undefined) spec.cache = cache
  if (target.path !== undefined) spec.path = target.path
  if (target.memory !== undefined) spec.memory = target.memory
  return spec
}

/** What memory holds is there like an existing file. The core refuses the file, where nothing can come between asking and making. */
function refuseHeld(memory: Handle): void {
  const bytes = sync((addon) => addon.memorySize(memory))
  if (bytes === 0) return
  throw new Qcow2Error('ERR_QCOW2_EXISTS', `the target holds ${bytes} bytes: overwrite must be asked for`)
}

/** An option that an image of the target's format cannot follow must not be dropped in silence. */
export function refuseForeign(options: ImageOptions, format: Format): void {
  if (options.encryption?.detachedHeader === true && format !== 'luks') {
    throw invalid('encryption.detachedHeader', `encryption.detachedHeader is an option of luks: the target is ${format}`)
  }
  if (format === 'qcow2') return
  if (format === 'luks' && (options.encryption === undefined || options.encryption.format === 'aes')) {
    throw invalid('encryption', 'a LUKS container needs encryption: { secret }')
  }
  for (const name of ONLY_QCOW2) {
    if (options[name] !== undefined && !(format === 'luks' && name === 'encryption'))
      throw invalid(name, `${name} is an option of qcow2: the target is ${format}`)
  }
  if (options.preallocation === 'metadata')
    throw invalid('preallocation', `a ${format} image has no metadata: preallocation is 'off', 'falloc' or 'full'`)
}
