/**
 * Names of files: those that a user gives, and those that an image names. The first are his own act; of the second, regular files and block
 * devices are opened by plain name, never a pipe, another device, a protocol or a description in JSON.
 */
import { statSync } from 'node:fs'
import { type Format, type LayerDescription, library, type NamedFile, type OpenOptions, type Qcow2Error, type Source } from './library.js'
import { Refusal } from './refusal.js'
import { KeyFault, keyOptions } from './secrets.js'
import { strerror } from './strerror.js'
import { isSystemError, type Wording, wordFault } from './texts.js'
import { cacheOf } from './words.js'

/** A file as the user named it. */
export interface ImageName {
  /** As given; messages show it. */
  given: string
  /** Without the prefix `file:`; empty for what is no file. */
  path: string
  /** What is handed to the library. */
  source: Source
  /** Its format, if a description says it. */
  format?: Format
  /** A description says that it may not be written. */
  readOnly?: true
}

/** Which files that an image names are opened. */
export type GatePolicy = 'plain' | 'same-directory' | 'deny'

/** Reads the value of `--backing-files`. */
export function gatePolicy(value: string): GatePolicy {
  if (value === 'same-directory' || value === 'deny') return value
  throw new Refusal(`--backing-files expects 'same-directory' or 'deny' not '${value}'`, { usage: true })
}

/** Understands a name, or with `--image-opts` a description. Protocols are refused by name. */
export function imageName(given: string, imageOpts = false): ImageName {
  if (imageOpts || given.startsWith('json:')) return describedName(given, imageOpts)
  const protocol = protocolOf(given)
  if (protocol === undefined) return { given, path: given, source: given }
  if (protocol === 'file') return { given, path: given.slice(5), source: given.slice(5) }
  throw cannotOpen(given, `Unknown protocol '${protocol}'`)
}

/** Understands a plain name: of what is made, or of what stands or will stand in an image, where a description is never followed. */
export function plainName(given: string): ImageName {
  if (given.startsWith('json:')) throw cannotOpen(given, 'Image descriptions in JSON are not supported in this version')
  return imageName(given)
}

function describedName(given: string, imageOpts: boolean): ImageName {
  const { DescriptionFault, fromJson, fromOptions } = require('./describe.js') as typeof import('./describe.js')
  try {
    const { keys, ...described } = imageOpts ? fromOptions(given) : fromJson(given.slice(5))
    if (keys !== undefined) {
      const { nameKeys } = require('./secrets.js') as typeof import('./secrets.js')
      nameKeys(described.path, keys)
    }
    return { given, ...described }
  } catch (error) {
    throw error instanceof DescriptionFault ? cannotOpen(given, error.message) : error
  }
}

/** What stands before a colon that comes before any slash. */
function protocolOf(name: string): string | undefined {
  if (process.platform === 'win32' && /^[a-z]:[\\/]/i.test(name)) return undefined
  return /^([^/:]*):/.exec(name)?.[1]
}

/** The format the user says, or what the file's first bytes say. */
export async function formatOf(name: ImageName, given: string | undefined, signal: AbortSignal): Promise<Format> {
  if (given === 'qcow2' || given === 'raw' || given === 'luks') return given
  if (given === undefined && name.format !== undefined) return name.format
  if (given !== undefined) throw cannotOpen(name.given, `Unknown driver '${given}'`)
  refuseSpecial(name)
  try {
    return await library().probe(name.source, { signal })
  } catch (error) {
    throw openRefusal(error, name)
  }
}

/** What a description keeps from being written is not. */
export function refuseReadOnly({ given, readOnly }: ImageName): void {
  if (readOnly) throw cannotOpen(given, 'Block node is read-only')
}

/** Pipes and other devices are refused before anything waits for them. */
export function refuseSpecial({ given, path, source }: ImageName): void {
  if (typeof source === 'object' && 'zeros' in source) return
  if (path === '') throw cannotOpen(given, "The 'file' block driver requires a file name")
  const stat = statSync(path, { throwIfNoEntry: false })
  if (stat !== undefined && !stat.isFile() && !stat.isBlockDevice()) throw cannotOpen(given, `'file' driver requires '${path}' to be a regular file`)
}

/** The refusal to open what the user named. */
export function cannotOpen(given: string, text: string, hint?: string): Refusal {
  return new Refusal(`Could not open '${given}': ${text}`, hint === undefined ? {} : { hint })
}

/** A file that an image names is not opened, and why. */
class NamedFault extends Error {
  constructor(
    readonly kind: NamedFile['kind'],
    readonly depth: number,
    text: string,
  ) {
    super(text)
  }
}

/** The options with which a command opens images. */
export function gateOptions(
  policy: GatePolicy,
  cache = 'writeback',
): Pick<OpenOptions, 'backingFiles' | 'dataFile' | 'bigint' | 'cache' | 'secret' | 'legacy'> {
  return { backingFiles: policy === 'plain' ? plainNames : policy, dataFile: policy !== 'deny', bigint: true, cache: cacheOf(cache), ...keyOptions() }
}

async function plainNames(file: NamedFile, layer: LayerDescription): Promise<string | { path: string; format: Format }> {
  const depth = file.kind === 'backing' ? layer.depth + 1 : layer.depth
  const fault = (text: string) => new NamedFault(file.kind, depth, text)
  const path = plainPath(file, fault)
  if (file.kind === 'data') return path
  if (file.format !== undefined && file.format !== 'qcow2' && file.format !== 'raw' && file.format !== 'luks')
    throw fault(`Unknown driver '${file.format}'`)
  // As qemu-img: an image that does not say what it lies on is not refused.
  return { path, format: (file.format as Format | undefined) ?? (await library().probe(path)) }
}

function plainPath({ name, path }: NamedFile, fault: (text: string) => NamedFault): string {
  if (name.startsWith('json:')) throw fault('Image descriptions in JSON are not supported in this version')
  const protocol = protocolOf(name)
  if (protocol !== undefined && protocol !== 'file') throw fault(`Unknown protocol '${protocol}'`)
  const plain = protocol === 'file' ? name.slice(5) : path
  const stat = statSync(plain, { throwIfNoEntry: false })
  if (stat === undefined) throw fault(`Could not open '${plain}': ${strerror(2)}`)
  if (!stat.isFile() && !stat.isBlockDevice()) throw fault(`'file' driver requires '${plain}' to be a regular file`)
  return plain
}

/**
 * The virtual size of an image, after each image below it was found to be one. As for an overlay that is only being made, no data is read, so
 * no data file is needed. The paths of all of them are added to `paths`.
 */
export async function chainSize(top: ImageName, topFormat: Format, signal: AbortSignal, paths: string[] = []): Promise<bigint> {
  let size: bigint | undefined
  let next: { path: string; format: Format } | undefined = { path: top.path, format: topFormat }
  const seen = new Set<string>()
  for (let depth = 0; next !== undefined && !seen.has(next.path); depth++) {
    const { path, format }: { path: string; format: Format } = next
    seen.add(path)
    paths.push(path)
    const facts = await library()
      .info(path, { format, bigint: true, signal })
      .catch((error: unknown) => Promise.reject(depth === 0 ? error : inBacking(error, depth)))
    size ??= BigInt(facts.virtualSize)
    next = undefined
    if (facts.backingFile !== undefined) {
      const file: NamedFile = { kind: 'backing', name: facts.backingFile, path: facts.fullBackingFile ?? facts.backingFile }
      if (facts.backingFormat !== undefined) file.format = facts.backingFormat
      next = (await plainNames(file, { depth, format, path })) as { path: string; format: Format }
    }
  }
  return size ?? 0n
}

function inBacking(error: unknown, depth: number): unknown {
  return error instanceof library().Qcow2Error ? new NamedFault('backing', depth, wordOpening(error, 'backing').text) : error
}

/** What went wrong on opening, in the words of qemu-img: one `Could not open backing file: ` for each layer on the way down. */
export function openRefusal(error: unknown, { given, path }: ImageName): unknown {
  const place = placeOf(error)
  if (place === undefined) return error
  const { depth, wording } = place
  const shown = depth === 0 && wording.opened ? `Could not open '${path}': ${wording.text}` : wording.text
  return cannotOpen(given, 'Could not open backing file: '.repeat(depth) + shown, wording.hint)
}

interface Place {
  depth: number
  wording: Wording & { opened?: boolean }
}

function placeOf(error: unknown): Place | undefined {
  if (error instanceof NamedFault) return { depth: error.kind === 'data' ? 0 : error.depth, wording: { text: error.message } }
  if (error instanceof KeyFault) return { depth: error.depth, wording: { text: error.message } }
  if (!(error instanceof library().Qcow2Error)) return undefined
  if (error.code === 'ERR_QCOW2_CANCELLED') return undefined
  const { role, depth = '0' } = error.details
  const below = role === 'backing' ? Number(depth) : 0
  return { depth: below, wording: wordOpening(error, role) }
}

function wordOpening(error: Qcow2Error, role: string | undefined): Place['wording'] {
  const shown = error.path ?? ''
  if (error.code === 'ERR_QCOW2_DIRECT_UNSUPPORTED') {
    const text = 'filesystem does not support O_DIRECT'
    return role === undefined ? { text, opened: true } : { text: `Could not open '${shown}': ${text}` }
  }
  if (error.code === 'ERR_QCOW2_NOT_REGULAR') return { text: `'file' driver requires '${shown}' to be a regular file` }
  if (!isSystemError(error)) return wordFault(error, shown)
  if (!/^(open|stat|lstat|realpath)/.test(error.syscall ?? '')) return { text: `Could not read image: ${strerror(error.errno)}` }
  return role === undefined ? { text: strerror(error.errno), opened: true } : { text: `Could not open '${shown}': ${strerror(error.errno)}` }
}

/** A file with the format that it is opened in. */
export interface OpenedName {
  name: ImageName
  format: Format
}

/**
 * Which of several files an error is about: each is opened by itself, and the first that cannot be is refused in the words of qemu-img. If all
 * can be opened, the error stays as it is. `evenRefusals`: also what is refused already gives way to a file that cannot be opened, because
 * qemu-img would have noticed that first.
 */
export async function blame(
  error: unknown,
  names: readonly OpenedName[],
  options: Omit<OpenOptions, 'format'>,
  evenRefusals = false,
): Promise<unknown> {
  if ((error instanceof Refusal && !evenRefusals) || options.signal?.aborted) return error
  for (const { name, format } of names) {
    try {
      const disk = await library().open(name.source, { ...options, format })
      await disk.close()
    } catch (fault) {
      return openRefusal(fault, name)
    }
  }
  return error
}
