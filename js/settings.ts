/**
 * The options of `open`, and of every call that opens images, with their defaults.
 */

import type { LayerSpec } from './boundary.js'
import { invalid } from './errors.js'
import { type Gate, gate, sameDirectory } from './gate.js'
import { type Checked, checkOptions, flag, format, integer, memorySize, oneOf, type Rule, type Rules, signal, size, text } from './options.js'
import { secret } from './secret.js'
import { kindOf } from './sizes.js'
import type { CacheMode, Format, Secret } from './types.js'

export { format }

const LIMITS = {
  maxVirtualSize: size,
  maxChainDepth: integer(1, 200),
  maxMemory: memorySize(1 << 20),
  maxOutputSize: size,
  maxKeyIterations: integer(1, Number.MAX_SAFE_INTEGER),
}

/** The rule for `limits`. */
export const limits: Rule<Checked<typeof LIMITS>> = (value, name) => checkOptions('this call', value, LIMITS, `${name}.`)

/** The rule for every option that names the caches of files. */
export const cacheMode = oneOf('writeback', 'writethrough', 'none', 'directsync', 'unsafe')

/** What opening takes, whoever opens. */
export const SOURCE_RULES = {
  backingFiles: gate,
  dataFile: ((value, name) => (typeof value === 'boolean' ? value : pathOrFlag(value, name))) as Rule<boolean | string>,
  bigint: flag,
  forceShare: flag,
  locking: oneOf('auto', 'on', 'off'),
  secret,
  legacy: flag,
  limits,
  cacheSize: memorySize(1 << 16),
  cache: cacheMode,
}

/** What `open` takes. */
export const OPEN_RULES = { ...SOURCE_RULES, format, writable: flag, snapshot: text, signal }

/** The rule for `source`: the options of `open` for what a job reads. */
export function sourceRule<R extends Rules>(call: string, rules: R): Rule<Checked<R>> {
  return (value, name) => checkOptions(call, value, rules, `${name}.`)
}

/** Everything that opening a chain needs to know. */
export interface Settings {
  format: Format
  /** The format was found by content: the image may name no other file. */
  probed: boolean
  snapshot: string | undefined
  /** The top layer and its data file are written too. */
  writable: boolean
  gate: Gate
  dataFile: boolean | string
  secret: Secret | undefined
  /** The old encryption is meant. */
  legacy: boolean
  bigint: boolean
  cacheBytes: number
  cache: CacheMode
  layer: Omit<LayerSpec, 'format' | 'metadataOnly' | 'forCheck'>
  signal: AbortSignal | undefined
}

/** Fills in the defaults. */
export function settingsOf(checked: Checked<typeof OPEN_RULES>): Settings {
  const writable = checked.writable ?? false
  if (writable && checked.snapshot !== undefined) {
    throw invalid('writable', 'a snapshot never changes: writable and snapshot exclude each other; disk.snapshots.apply makes the disk what it was')
  }
  if (writable && checked.forceShare === true) {
    throw invalid('forceShare', 'who writes lets nobody else write: writable and forceShare exclude each other')
  }
  return {
    format: checked.format ?? 'qcow2',
    probed: false,
    writable,
    snapshot: checked.snapshot,
    gate: checked.backingFiles ?? sameDirectory,
    dataFile: checked.dataFile ?? false,
    secret: checked.secret,
    legacy: checked.legacy ?? false,
    bigint: checked.bigint ?? false,
    cache: checked.cache ?? 'writeback',
    cacheBytes: checked.cacheSize ?? 64 << 20,
    layer: layerSettings(checked),
    signal: checked.signal,
  }
}

/** The part of the settings that every layer is opened with. */
export function layerSettings(checked: Pick<Checked<typeof OPEN_RULES>, 'forceShare' | 'locking' | 'limits'>): Settings['layer'] {
  const bounds = checked.limits ?? {}
  return {
    forceShare: checked.forceShare ?? false,
    locking: checked.locking ?? 'auto',
    maxMemory: bounds.maxMemory ?? 256 << 20,
    maxChainDepth: bounds.maxChainDepth ?? 200,
    ...(bounds.maxKeyIterations === undefined ? {} : { maxKeyIterations: bounds.maxKeyIterations }),
    ...(bounds.maxVirtualSize === undefined ? {} : { maxVirtualSize: bounds.maxVirtualSize }),
  }
}

function pathOrFlag(value: unknown, name: string): string {
  if (typeof value !== 'string') throw invalid(name, `${name} must be true, false or a path: it is ${kindOf(value)}`)
  return text(value, name)
}
