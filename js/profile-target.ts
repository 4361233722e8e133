/**
 * What `convert` makes for a destination: its recipe where the caller says nothing, its rules where he says something.
 */

import { invalid, Qcow2Error } from './errors.js'
import type { ProfileName } from './inspect-types.js'
import type { Predicate, Rule } from './profile-types.js'
import { PROFILES } from './profiles.js'

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

/** Refuses a disk that the destination would not take, before anything is made of it. */
export function refuseSize(profile: ProfileName, virtualSize: bigint): void {
  const large = ({ must, severity }: Rule) => severity === 'error' && must.is === 'virtualSizeBelow' && virtualSize >= BigInt(must.bytes)
  const rule = PROFILES[profile].rules.find(large)
  if (rule === undefined) return
  throw new Qcow2Error('ERR_QCOW2_PROFILE', `${rule.message} (${rule.source}): this one has ${virtualSize} bytes`, {
    details: { profile, rule: rule.code, virtualSize: String(virtualSize) },
  })
}
