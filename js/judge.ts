/**
 * What the predicates of profiles mean.
 */

import type { HeadFacts } from './boundary.js'
import type { InspectFacts, InspectFinding } from './inspect-types.js'
import type { Predicate, Rule } from './profile-types.js'
import { PROFILES } from './profiles.js'

/** What rules are asked about. */
export interface Evidence {
  /** The one format that it has, or `several`. */
  format: string
  facts: InspectFacts
  /** What its bytes say. */
  head: HeadFacts
}

/** `undefined`: it does not apply. `'unsure'`: it could not be found out. */
type Answer = boolean | 'unsure' | undefined

/** What a raw disk may hold and still be one. */
export const CONTENTS = new Set(['mbr', 'gpt', 'iso', 'udf', 'squashfs'])

/** A relative name without a protocol. */
export const isPlainName = (name: string): boolean => !/^(\/|[^/]*:)/.test(name)

/** Above the bits of {@link Predicate} `noIncompatibleAbove`. */
const above = (bits: bigint, bit: number): boolean => bits >> BigInt(bit + 1) !== 0n

const known = <T>(value: T | undefined, judge: (value: T) => boolean): Answer => (value === undefined ? 'unsure' : judge(value))

/** By which marks it is known: those of a part of it do not count. */
function isMarked(name: string, { formats, bootSector, fixedVhd, vmdk }: HeadFacts): boolean {
  if (name === 'boot sector') return present(bootSector) && !bootSector.fat
  if (name === 'vhd' && fixedVhd) return false
  if (name === 'vmdk') return present(vmdk)
  return formats.includes(name)
}

const present = <T>(value: T | undefined | null): value is T => value !== undefined && value !== null

function answer(must: Predicate, { format, facts, head }: Evidence): Answer {
  const { bootSector, vmdk } = head
  const header = head.header ?? undefined
  const size = facts.virtualSize === undefined ? undefined : BigInt(facts.virtualSize)
  const qcow2 = format === 'qcow2' || header !== undefined
  switch (must.is) {
    case 'formatIn':
      return must.formats.includes(format)
    case 'formatNotIn':
      return !must.formats.some((name) => head.formats.includes(name))
    case 'atMostOneMark':
      return Object.entries(must.marks).filter(([name, bytes]) => head.length >= BigInt(bytes) && isMarked(name, head)).length <= 1
    case 'noBackingFile':
      return header === undefined ? undefined : header.backingOffset === 0n
    case 'backingNameIsPlain':
      if (header === undefined || header.backingOffset === 0n) return undefined
      return known(facts.backingFile, isPlainName)
    case 'noDataFile':
      return header === undefined ? undefined : (header.at72 & 4n) === 0n
    case 'noIncompatibleAbove':
      return header === undefined ? undefined : !above(header.incompatible, must.bit)
    case 'versionIn':
      return header === undefined ? undefined : must.versions.includes(header.version)
    case 'headIsWhole': {
      const bytes = Math.max(0, ...Object.entries(must.bytes).map(([name, bytes]) => (isMarked(name, head) ? bytes : 0)))
      return head.length >= BigInt(bytes) || (facts.complete ? false : 'unsure')
    }
    case 'partitionsAreSound':
      return isMarked('boot sector', head) ? !present(bootSector?.fault) : undefined
    case 'descriptorIsSound':
      if (!present(vmdk)) return undefined
      return !facts.complete && (vmdk.cut || vmdk.inFooter) ? 'unsure' : !present(vmdk.fault)
    case 'createTypeIn':
      return present(vmdk) && !present(vmdk.fault) ? must.types.includes(vmdk.createType ?? '') : undefined
    case 'extentsArePlain':
      return present(vmdk) && !present(vmdk.fault) ? vmdk.extents.length > 0 && !vmdk.extents.some((line) => line.includes('/')) : undefined
    case 'virtualSizeBelow':
      return known(size, (bytes) => bytes < BigInt(must.bytes))
    case 'virtualSizeMultipleOf':
      return known(size, (bytes) => bytes % BigInt(must.bytes) === 0n)
    case 'fileSizeAtMost':
      if (must.format !== format) return undefined
      if (facts.complete) return BigInt(facts.fileSize) <= BigInt(must.bytes)
      return BigInt(facts.fileSize) > BigInt(must.bytes) ? false : 'unsure'
    case 'notCompressed':
      return qcow2 ? known(facts.compressed, (compressed) => !compressed) : undefined
    case 'notEncrypted':
      return facts.encryption === undefined
    case 'clusterSizeAtLeast':
      return qcow2 ? known(facts.clusterSize, (bytes) => bytes >= must.bytes) : undefined
  }
}

/** What the rules of a profile say of an image. */
export function judge(profile: keyof typeof PROFILES, evidence: Evidence): InspectFinding[] {
  const { rules, notes = [] } = PROFILES[profile]
  const told = notes.flatMap(({ code, message, source }): InspectFinding[] => {
    const text = filled(message, evidence.facts)
    return text === undefined ? [] : [{ severity: 'info', code, message: text, source }]
  })
  const found = rules.flatMap((rule) => {
    const found = answer(rule.must, evidence)
    if (found === true || found === undefined) return []
    return [finding(rule, found === 'unsure')]
  })
  return [...found, ...told]
}

/** A note with the numbers that it asks for; none if they are not known. */
function filled(message: string, { estimatedSize, virtualSize }: InspectFacts): string | undefined {
  const numbers: Record<string, number | bigint | undefined> = {
    '{required}': estimatedSize?.qcow2,
    '{gibibytes}': virtualSize === undefined ? undefined : (BigInt(virtualSize) + 2n ** 30n - 1n) >> 30n,
  }
  const asked = Object.keys(numbers).filter((name) => message.includes(name))
  if (asked.some((name) => numbers[name] === undefined)) return undefined
  return asked.reduce((text, name) => text.replace(name, String(numbers[name])), message)
}

function finding({ code, severity, message, source, mend }: Rule, unsure: boolean): InspectFinding {
  return {
    severity: unsure ? (severity === 'warning' ? 'info' : 'unknown') : severity,
    code,
    message: unsure ? `could not be found out: ${message}` : message,
    source,
    ...(mend === undefined ? {} : { mend }),
  }
}
