/**
 * What the predicates of profiles mean.
 */

import type { HeaderFacts } from './boundary.js'
import type { InspectFacts, InspectFinding } from './inspect-types.js'
import { PROFILES, type Predicate, type Rule } from './profiles.js'

/** What rules are asked about. */
export interface Evidence {
  format: string
  /** It looks like more than one format. */
  several: boolean
  header: HeaderFacts | undefined
  /** Bytes of the header that were there. */
  headerBytes: number
  facts: InspectFacts
}

/** `undefined`: it does not apply. `'unsure'`: it could not be found out. */
type Answer = boolean | 'unsure' | undefined

/** oslo's inspector keeps so many bytes of a header, and says nothing of fewer. */
const WHOLE_HEADER = 512

/** Above the bits of {@link Predicate} `noIncompatibleAbove`. */
const above = (bits: bigint, bit: number): boolean => bits >> BigInt(bit + 1) !== 0n

const known = <T>(value: T | undefined, judge: (value: T) => boolean): Answer => (value === undefined ? 'unsure' : judge(value))

function answer(must: Predicate, { format, several, header, headerBytes, facts }: Evidence): Answer {
  // A version that nobody knows has no features that could be read.
  const incompatible = header === undefined ? undefined : header.incompatible
  const size = facts.virtualSize === undefined ? undefined : BigInt(facts.virtualSize)
  const qcow2 = format === 'qcow2' || header !== undefined
  switch (must.is) {
    case 'formatIn':
      return must.unsure?.includes(format) === true ? 'unsure' : must.formats.includes(format)
    case 'oneFormat':
      return !several
    case 'noBackingFile':
      return header === undefined ? undefined : header.backingOffset === 0n
    case 'backingNameIsPlain':
      if (header === undefined || header.backingOffset === 0n) return undefined
      return known(facts.backingFile, (name) => !/^(\/|[^/]*:)/.test(name))
    case 'noDataFile':
      return incompatible === undefined ? undefined : (incompatible & 4n) === 0n
    case 'noIncompatibleAbove':
      return incompatible === undefined ? undefined : !above(incompatible, must.bit)
    case 'versionIn':
      return header === undefined ? undefined : must.versions.includes(header.version)
    case 'headerIsWhole':
      return qcow2 ? headerBytes >= WHOLE_HEADER : undefined
    case 'virtualSizeBelow':
      return known(size, (bytes) => bytes < BigInt(must.bytes))
    case 'virtualSizeMultipleOf':
      return known(size, (bytes) => bytes % BigInt(must.bytes) === 0n)
    case 'fileSizeAtMost':
      if (format === 'raw') return undefined
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
