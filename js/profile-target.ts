/**
 * What `convert` makes for a destination: its recipe where the caller says nothing, its rules where he says something.
 */

import type { Handle, HeadFacts } from './boundary.js'
import { invalid, Qcow2Error } from './errors.js'
import type { ProfileName } from './inspect-types.js'
import { isPlainName } from './judge.js'
import { call } from './native.js'
import type { Predicate, Rule } from './profile-types.js'
import { PROFILES } from './profiles.js'
import { locate } from './source.js'

/** Images of disks: a raw file that looks like one is taken for it by whoever looks. */
const IMAGES = new Set(['qcow2', 'qcow', 'qed', 'vmdk', 'vdi', 'vhd', 'vhdx', 'parallels'])

/** The options of a target that rules speak of. */
interface Wished {
  format?: string
  compat?: string
  clusterSize?: number
  extendedL2?: boolean
  compression?: unknown
  encryption?: unknown
  backing?: string
  dataFile?: string
  noCreate?: boolean
}

/** What an option must be for a predicate to hold; the name of the option if it is something else. */
function contradicting(must: Predicate, wished: Wished): keyof Wished | undefined {
  const version = wished.compat === '0.10' || wished.compat === 'v2' ? 2 : 3
  const faults: Partial<Record<Predicate['is'], [keyof Wished, boolean]>> = {
    formatIn: ['format', must.is === 'formatIn' && wished.format !== undefined && !must.formats.includes(wished.format)],
    noBackingFile: ['backing', wished.backing !== undefined],
    backingNameIsPlain: ['backing', wished.backing !== undefined && !isPlainName(wished.backing)],
    noDataFile: ['dataFile', wished.dataFile !== undefined],
    noIncompatibleAbove: ['extendedL2', wished.extendedL2 === true],
    versionIn: ['compat', must.is === 'versionIn' && !must.versions.includes(version)],
    notCompressed: ['compression', wished.compression !== undefined && wished.compression !== false],
    notEncrypted: ['encryption', wished.encryption !== undefined],
    clusterSizeAtLeast: ['clusterSize', must.is === 'clusterSizeAtLeast' && wished.clusterSize !== undefined && wished.clusterSize < must.bytes],
  }
  const [option, wrong] = faults[must.is] ?? []
  return wrong === true ? option : undefined
}

/**
 * The caller's options with the recipe of a profile.
 *
 * @throws Qcow2Error - `ERR_QCOW2_INVALID_ARGUMENT` for an option that the destination's rules refuse
 */
export function withRecipe<T extends Wished>(profile: ProfileName, wished: T): T {
  const { rules, make } = PROFILES[profile]
  if (wished.noCreate === true) throw invalid('profile', 'profile says what is made: with noCreate nothing is')
  // The rule of a gzip speaks of what the file is in the end.
  const said = make.gzip === true && wished.format === 'raw' ? { ...wished, format: 'gzip' } : wished
  for (const rule of rules) {
    const option = contradicting(rule.must, said)
    if (option !== undefined) throw invalid(option, `${option} contradicts profile '${profile}': ${rule.message} (${rule.source})`)
  }
  const qcow2 = (wished.format ?? make.format) === 'qcow2'
  return {
    ...wished,
    format: wished.format ?? make.format,
    ...(qcow2 && make.compat !== undefined && wished.compat === undefined ? { compat: make.compat } : {}),
    ...(qcow2 && make.clusterSize !== undefined && wished.clusterSize === undefined ? { clusterSize: make.clusterSize } : {}),
  }
}

/** Refuses a file that the destination would not take, before anybody gets it. */
export function refuseFileSize(profile: ProfileName, format: string, fileSize: bigint): void {
  const most = mostBytes(profile, format)
  if (most !== undefined && fileSize > BigInt(most.bytes)) throw refusal(profile, most.rule, `this one has ${fileSize} bytes`)
}

/** Lets no more be written than the destination takes: a file that grows past it is refused in the profile's words. */
export async function withinFileSize<T>(
  profile: ProfileName | undefined,
  format: string,
  said: bigint | undefined,
  write: (maxOutput: bigint | undefined) => Promise<T>,
): Promise<T> {
  const most = profile === undefined ? undefined : mostBytes(profile, format)
  if (profile === undefined || most === undefined || (said !== undefined && said <= BigInt(most.bytes))) return write(said)
  try {
    return await write(BigInt(most.bytes))
  } catch (error) {
    if (!(error instanceof Qcow2Error) || error.details.limit !== 'maxOutputSize') throw error
    throw refusal(profile, most.rule, 'this one would have more')
  }
}

function mostBytes(profile: ProfileName, format: string): { rule: Rule; bytes: number } | undefined {
  for (const rule of PROFILES[profile].rules) {
    if (rule.severity === 'error' && rule.must.is === 'fileSizeAtMost' && rule.must.format === format) return { rule, bytes: rule.must.bytes }
  }
  return undefined
}

/**
 * Refuses to make a raw file that the destination would take for something else: what a guest has written to the begin of its disk is then the begin of
 * the file, and may be the header of an image that names others.
 */
export async function refuseDisguised(profile: ProfileName, format: string, chain: Handle | undefined, signal: AbortSignal): Promise<void> {
  if (format !== 'raw' || chain === undefined) return
  const bytes = new Uint8Array(64 << 10)
  const length = await call<number>((addon, id) => addon.read(id, chain, bytes, 0, bytes.length, 0, 0), { signal })
  const located = locate(bytes.subarray(0, length))
  try {
    const { formats } = await call<HeadFacts>((addon, id) => addon.inspectHead(id, located.spec, false), { signal })
    const image = formats.find((name) => IMAGES.has(name))
    if (image === undefined) return
    const message = `what the guest has written to the begin of the disk would make the raw file look like ${image}: whoever probes it takes it for that`
    throw new Qcow2Error('ERR_QCOW2_PROFILE', message, { details: { profile, format: image } })
  } finally {
    located.release()
  }
}

/** Refuses a disk that the destination would not take, before anything is made of it. `reserved`: the file has room for all of it. */
export function refuseSize(profile: ProfileName, virtualSize: bigint, format: string, reserved: boolean): void {
  if (reserved) refuseFileSize(profile, format, virtualSize)
  const large = ({ must, severity }: Rule) => severity === 'error' && must.is === 'virtualSizeBelow' && virtualSize >= BigInt(must.bytes)
  const rule = PROFILES[profile].rules.find(large)
  if (rule === undefined) return
  throw refusal(profile, rule, `this one has ${virtualSize} bytes`)
}

function refusal(profile: ProfileName, { code, message, source }: Rule, why: string): Qcow2Error {
  return new Qcow2Error('ERR_QCOW2_PROFILE', `${message} (${source}): ${why}`, { details: { profile, rule: code } })
}
