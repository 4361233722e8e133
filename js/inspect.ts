/**
 * `inspect`: what a file from a stranger is, and whether a destination takes it.
 */

import type { HeadFacts, LayerFacts, MeasureFacts, SurveyFacts } from './boundary.js'
import { closeHandle, makeChain, type OpenedLayer } from './chain.js'
import { atCaller, cancelled, invalid, Qcow2Error } from './errors.js'
import { imageInfo, withoutAbsent } from './facts.js'
import { firstBytes, isStream } from './first-bytes.js'
import type { ByteStream, InspectFacts, InspectFinding, InspectOptions, InspectResult, ProfileName } from './inspect-types.js'
import { CONTENTS, type Evidence, judge } from './judge.js'
import { call } from './native.js'
import { checkOptions, memorySize, oneOf, type Rule, signal, size } from './options.js'
import { printable } from './printable.js'
import { PROFILE_NAMES, PROFILES } from './profiles.js'
import { settingsOf } from './settings.js'
import { narrow } from './sizes.js'
import { type Located, locate } from './source.js'
import type { Source } from './types.js'

const LEAST = 64 << 10
const MOST = 64 << 20
const USUAL = 4 << 20

const maxBytesRead: Rule<number> = (value, name) => {
  const bytes = memorySize(LEAST)(value, name)
  if (bytes > MOST) throw invalid(name, `${name} must be at most 64 MiB: it is ${bytes}`)
  return bytes
}

const LIMITS = { maxVirtualSize: size, maxMemory: memorySize(1 << 20), maxBytesRead }
const RULES = {
  profile: oneOf(...PROFILE_NAMES),
  limits: ((value, name) => checkOptions('inspect', value, LIMITS, `${name}.`)) as Rule<{
    maxVirtualSize?: bigint
    maxMemory?: number
    maxBytesRead?: number
  }>,
  signal,
}

/** Tables that begin behind what was read, or pass its end; and of a LUKS header the same in words. */
const CUT = /_TRUNCATED$/
const CUT_OFF = /(behind the end|passes the end of the file|the file ends inside it)/

/**
 * Mappings that are looked at: tables name each other as often as a forger likes, and the walk would last as long as he likes. So many take a second or
 * two, and are more than an honest disk of some terabytes has.
 */
const MOST_MAPPINGS = 1 << 25

/**
 * Examines a file that a stranger has made: what it is, what it refers to, whether it is sound enough to be opened, and with `profile`, whether a
 * destination takes it. Nothing that it names is opened. Of a stream the first bytes are read, and the source is then let go.
 *
 * A bad image is an answer, not an error: this throws for what is the caller's fault, such as a file that is not there.
 *
 * @param source - a path, a `file:` URL, bytes, `{ path, offset, size }`, `memoryStorage()`, or a stream of bytes
 *
 * @example
 * ```ts
 * import { inspect } from 'qcow2'
 * const { verdict, findings } = await inspect('upload.img', { profile: 'glance' })
 * if (verdict !== 'acceptable') for (const { code, message, mend } of findings) console.log(code, message, mend)
 * ```
 */
export function inspect(source: Source | ByteStream, options?: InspectOptions): Promise<InspectResult> {
  return atCaller(inspect, async () => {
    const { profile, limits = {}, signal } = checkOptions('inspect', options, RULES)
    if (signal?.aborted) throw cancelled(signal.reason)
    const stream = isStream(source) ? await firstBytes(source, limits.maxBytesRead ?? USUAL, signal) : undefined
    const located = locate(stream === undefined ? source : stream.bytes)
    if (located.luksHeader !== undefined)
      throw invalid('source.luksHeader', 'inspect looks at one file: give the header, or the payload, by its path')
    try {
      const complete = stream?.complete ?? true
      const head = await call<HeadFacts>((addon, id) => addon.inspectHead(id, located.spec, complete), { signal })
      const found = new Found(head, complete)
      found.looks(profile)
      await examine(found, located, limits, profile, signal)
      const judged = profile === undefined ? undefined : judge(profile, found.evidence())
      found.findings.push(...(judged ?? []))
      return withoutAbsent({
        verdict: verdictOf(found.findings),
        profile,
        profileVerdict: judged && verdictOf(judged),
        format: found.format,
        formats: head.formats,
        facts: found.facts,
        findings: found.findings,
      })
    } finally {
      located.release()
    }
  })
}

/** What is known so far. */
class Found {
  readonly findings: InspectFinding[] = []
  readonly format: string
  readonly facts: InspectFacts
  private readonly several: boolean

  constructor(
    readonly head: HeadFacts,
    readonly complete: boolean,
  ) {
    const containers = head.formats.filter((name) => !CONTENTS.has(name))
    const contents = head.formats.length - containers.length
    // A fixed VHD is a raw disk with a footer: what the disk holds stands at its begin.
    this.several = containers.length > 1 || (containers.length === 1 && contents > 0 && containers[0] !== 'vhd')
    this.format = containers.length > 1 ? 'several' : (containers[0] ?? 'raw')
    this.facts = {
      fileSize: narrow(head.length),
      complete,
      features: (head.header?.features ?? []).map((feature) => withoutAbsent({ ...feature, name: feature.name ?? undefined })),
      snapshots: [],
      bitmaps: [],
    }
    if (head.header !== undefined && head.header !== null) this.facts.version = head.header.version
  }

  /** What its bytes look like. */
  looks(profile: ProfileName | undefined): void {
    // A destination that has a rule for it goes by that.
    const judged = profile !== undefined && PROFILES[profile].rules.some(({ must }) => must.is === 'atMostOneMark')
    if (this.several)
      this.add(judged ? 'warning' : 'error', 'SEVERAL_FORMATS', `the file looks like several formats: ${this.head.formats.join(', ')}`)
    if (this.complete && this.head.length === 0n) this.add('unknown', 'EMPTY', 'there is nothing: no byte was read')
    if (this.format === 'raw' && this.complete) this.raw()
    const { vmdk } = this.head
    if (vmdk === undefined || vmdk === null) return
    this.facts.extents = vmdk.extents
    if (vmdk.extents.length > 0)
      this.add('warning', 'NAMES_EXTENTS', `it names where its data is: ${vmdk.extents.slice(0, 3).map(printable).join('; ')}`)
  }

  raw(): void {
    const bytes = this.head.length
    this.facts.virtualSize = narrow(bytes)
    this.facts.estimatedSize = { raw: narrow(bytes) }
  }

  add(severity: InspectFinding['severity'], code: string, message: string, place?: InspectFinding['place']): void {
    this.findings.push({ severity, code, message, ...(place === undefined ? {} : { place }) })
  }

  /** An error of opening. What was not read yet may be why. */
  fault(error: unknown): void {
    if (!(error instanceof Qcow2Error) || error.code === 'ERR_QCOW2_CANCELLED' || error.code === 'ERR_QCOW2_INTERNAL') throw error
    const { code, message, table, offset, path, details } = error
    const cut = !this.complete && (CUT.test(code) || CUT_OFF.test(message) || (offset !== undefined && BigInt(offset) >= this.head.length))
    const busy = code === 'ERR_QCOW2_LOCKED' || code === 'ERR_QCOW2_IO' || (code === 'ERR_QCOW2_LIMIT' && details.limit !== 'maxVirtualSize')
    const place = withoutAbsent({ table, offset })
    const text = path === undefined ? message : message.replace(`${path}: `, '')
    this.add(cut ? 'info' : busy ? 'unknown' : 'error', cut ? 'NOT_READ' : code, cut ? `behind the bytes that were read: ${text}` : text, place)
  }

  evidence(): Evidence {
    const { format, facts, head } = this
    return { format, facts, head }
  }
}

function verdictOf(findings: readonly InspectFinding[]): InspectResult['verdict'] {
  if (findings.some(({ severity }) => severity === 'error')) return 'refused'
  return findings.some(({ severity }) => severity === 'unknown') ? 'unknown' : 'acceptable'
}

type Limits = { maxVirtualSize?: bigint; maxMemory?: number }

/** Opens what this library reads, as far as facts and soundness need it. */
async function examine(found: Found, located: Located, limits: Limits, profile: string | undefined, signal: AbortSignal | undefined): Promise<void> {
  const formats = found.head.formats
  const format = formats.includes('qcow2') ? 'qcow2' : formats.includes('luks') ? 'luks' : undefined
  if (format === undefined) {
    if (found.format !== 'raw' && found.format !== 'several')
      found.add(profile === undefined ? 'unknown' : 'info', 'NAME_ONLY', `${found.format} is known by its name alone: nothing more was looked at`)
    return
  }
  const { maxVirtualSize, maxMemory } = limits
  const bounds = withoutAbsent({ maxVirtualSize, maxMemory })
  const settings = settingsOf({ format, bigint: true, limits: bounds, ...(signal === undefined ? {} : { signal }) })
  const open = (metadataOnly: boolean, forCheck: boolean): Promise<LayerFacts> =>
    call<LayerFacts>((addon, id) => addon.openLayer(id, located.spec, { ...settings.layer, format, metadataOnly, forCheck }), { signal })
  let facts: LayerFacts | undefined
  try {
    facts = await open(false, false)
  } catch (error) {
    found.fault(error)
    // What its header says is known all the same, if that much is sound.
    const some = await open(true, true).catch(() => undefined)
    if (some === undefined) return
    note(found, some, format)
    await closeHandle(some.handle)
    return
  }
  if (!isSame(found.head, facts)) {
    found.add('unknown', 'REPLACED', 'the file was replaced by another one while it was looked at')
    await closeHandle(facts.handle)
    return
  }
  note(found, facts, format)
  await follow(found, { facts, window: false }, settings)
}

/** The file is opened twice. */
function isSame(head: HeadFacts, { device, inode }: LayerFacts): boolean {
  return (head.inode ?? undefined) === (inode ?? undefined) && (head.device ?? undefined) === (device ?? undefined)
}

function note(found: Found, layer: LayerFacts, format: 'qcow2' | 'luks'): void {
  const { facts } = found
  const info = imageInfo(layer, undefined, true)
  const { clusterSize, backingFile, backingFormat, dataFile, encryption, compressionType, notices, luks } = info
  const virtualSize = narrow(BigInt(info.virtualSize))
  Object.assign(facts, withoutAbsent({ virtualSize, clusterSize, backingFile, backingFormat, dataFile, encryption, compressionType }))
  if (luks !== undefined) facts.cipher = `${luks.cipher}-${luks.cipherMode}-${luks.ivGenerator}${luks.ivHash === undefined ? '' : `:${luks.ivHash}`}`
  facts.snapshots = info.snapshots.map(({ id, name }) => ({ id, name }))
  facts.bitmaps = info.bitmaps.map(({ name }) => name)
  facts.estimatedSize = { raw: virtualSize }
  for (const { code, message } of notices) found.add('warning', code, message)
  if (backingFile !== undefined)
    found.add('warning', 'NAMES_BACKING_FILE', `it needs the backing file '${printable(backingFile)}', which was not opened`)
  if (format === 'qcow2' && layer.needsDataFile === true)
    found.add('warning', 'NAMES_DATA_FILE', `its data is in the file '${printable(dataFile ?? '')}', which was not opened`)
  if (encryption !== undefined) found.add('info', 'ENCRYPTED', `guest data is encrypted (${encryption}): no key was asked for`)
}

/** Walks the tables of an image that opens: whether all of it is there, what it takes, and whether it has compressed clusters. The layer is closed. */
async function follow(found: Found, layer: OpenedLayer, settings: ReturnType<typeof settingsOf>): Promise<void> {
  const { facts, complete } = found
  // Nothing of the guest's can be mapped without the key, or the data file; tables of a stream lie anywhere.
  if (!complete || layer.facts.encryption || layer.facts.needsDataFile === true || layer.facts.format !== 'qcow2') {
    if (layer.facts.needsDataFile === true) facts.compressed = false
    await closeHandle(layer.facts.handle)
    return
  }
  const chain = await makeChain([layer], settings, true).catch((error) => found.fault(error))
  if (chain === undefined) return
  try {
    const { signal } = settings
    const spec = {
      chain: chain.handle,
      ...{ format: 'qcow2' as const, clusterSize: 65536, version: 3 as const, refcountBits: 16, extendedL2: false },
      ...{ preallocation: 'off' as const, dataFile: false, dataFileRaw: false, backing: false },
    }
    const { compressed, missingGuest, missingHost, complete } = await call<SurveyFacts>(
      (addon, id) => addon.survey(id, chain.handle, MOST_MAPPINGS),
      {
        signal,
      },
    )
    if (missingGuest !== undefined && missingGuest !== null)
      found.add('error', 'ERR_QCOW2_TRUNCATED', `the file ends before its data does: guest offset ${missingGuest} is missing`, {
        table: 'data',
        offset: narrow(missingHost ?? 0n),
      })
    if (compressed || complete) facts.compressed = compressed
    if (!complete) {
      found.add('info', 'NOT_ESTIMATED', `it has more than ${MOST_MAPPINGS} mappings: the rest was not looked at`)
      return
    }
    const { required } = await call<MeasureFacts>((addon, id) => addon.measure(id, spec), { signal })
    facts.estimatedSize = { raw: facts.virtualSize ?? 0, qcow2: narrow(required) }
  } catch (error) {
    found.fault(error)
  } finally {
    await closeHandle(chain.handle)
  }
}
