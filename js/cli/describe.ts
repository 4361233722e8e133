/**
 * Descriptions of images that a user gives on the command line: `--image-opts key=value,…` and `json:{…}`. What an image names is never taken for
 * one.
 */
import type { Format, Source } from './library.js'
import { readInteger, readSize } from './numbers.js'
import { splitList } from './options.js'
import type { KeyName } from './secrets.js'

/** What a description leads to. */
export interface Described {
  source: Source
  /** The file; empty if there is none. */
  path: string
  /** Said; otherwise it is looked for. */
  format?: Format
  /** It may not be written. */
  readOnly?: true
  /** Which secrets open it, and what lies below it. */
  keys?: KeyName[]
}

/** Why a description leads to nothing, as it stands behind `Could not open '…': `. */
export class DescriptionFault extends Error {}

/** A description taken apart: names and texts, nested. */
interface Node {
  [key: string]: string | null | Node
}

/** Deeper descriptions make no sense, and would be walked without end. */
const MOST_LEVELS = 16
const FORMATS = new Set(['qcow2', 'raw', 'luks'])
const FILES = new Set(['file', 'host_device', 'host_cdrom'])
const NULLS = new Set(['null-co', 'null-aio'])
/** What says how an image is opened and changes no byte of it. */
const HARMLESS =
  /^(node-name|read-only|auto-read-only|force-share|discard|detect-zeroes|cache\.(direct|no-flush|writeback)|cache|aio|aio-max-batch|locking|drop-cache|x-check-cache-dropped|pr-manager|latency-ns|read-zeroes|lazy-refcounts|pass-discard-(request|snapshot|other)|discard-no-unref|overlap-check(\..+)?|(l2-cache-entry|l2-cache|refcount-cache|cache)-size|cache-clean-interval)$/
/** Those that are either on or off. */
const SWITCHES = new Set(['read-only', 'auto-read-only', 'force-share'])

/** Understands `--image-opts`. */
export function fromOptions(text: string): Described {
  const node: Node = {}
  for (const { key, value } of splitList(text)) put(node, key, value ?? 'on')
  return guarded(node)
}

/** Understands what follows `json:`. */
export function fromJson(text: string): Described {
  let value: unknown
  try {
    value = JSON.parse(doubleQuoted(text))
  } catch {
    throw new DescriptionFault('Could not parse the JSON options: JSON parse error, invalid syntax')
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new DescriptionFault('Invalid JSON object given')
  const node: Node = {}
  flatten(value as Record<string, unknown>, '', node, 0)
  return guarded(node)
}

/** Texts in single quotes, which QEMU takes too, as JSON has them. */
function doubleQuoted(text: string): string {
  return text.replace(/"(?:[^"\\]|\\.)*"|'((?:[^'\\]|\\.)*)'/gs, (whole, inner: string | undefined) =>
    inner === undefined ? whole : `"${inner.replace(/\\'/g, "'").replace(/(^|[^\\])"/g, '$1\\"')}"`,
  )
}

function flatten(value: Record<string, unknown>, before: string, into: Node, level: number): void {
  if (level > MOST_LEVELS) throw new DescriptionFault('Could not parse the JSON options: it is nested too deeply')
  for (const [key, inner] of Object.entries(value)) {
    const name = `${before}${key}`
    if (inner === null) put(into, name, null)
    else if (typeof inner === 'object') flatten(inner as Record<string, unknown>, `${name}.`, into, level + 1)
    else put(into, name, typeof inner === 'boolean' ? (inner ? 'on' : 'off') : String(inner))
  }
}

/** Sets `a.b.c` of a node. */
function put(node: Node, key: string, value: string | null): void {
  const parts = key.split('.')
  if (parts.length > MOST_LEVELS) throw new DescriptionFault('the description is nested too deeply')
  let at = node
  for (const part of parts.slice(0, -1)) {
    const inner = Object.hasOwn(at, part) ? at[part] : undefined
    const next: Node = typeof inner === 'object' && inner !== null ? inner : {}
    Object.defineProperty(at, part, { value: next, enumerable: true, configurable: true, writable: true })
    at = next
  }
  Object.defineProperty(at, parts.at(-1) ?? '', { value, enumerable: true, configurable: true, writable: true })
}

/** The image, and whether it, or the file that it lies in, may be written. */
function guarded(node: Node): Described {
  const described = resolve(node)
  const file = typeof node.file === 'object' && node.file !== null ? node.file : {}
  const readOnly = [node, file].some((each) => isOn(each['read-only']))
  return readOnly ? { ...described, readOnly } : described
}

function isOn(value: Node[string] | undefined): boolean {
  if (value === undefined || value === 'off' || value === 'no' || value === 'false' || value === 'n') return false
  if (value === 'on' || value === 'yes' || value === 'true' || value === 'y') return true
  throw new DescriptionFault("Parameter 'read-only' expects 'on' or 'off'")
}

/** An image: a format over a file, or a file by itself. */
function resolve(node: Node): Described {
  const { driver, ...rest } = node
  if (driver !== undefined && typeof driver !== 'string') throw new DescriptionFault("Parameter 'driver' expects a string")
  if (driver !== undefined && !FORMATS.has(driver)) {
    const below = protocol(node)
    return { ...below, format: 'raw' }
  }
  if (driver === 'luks') return container(rest)
  const { file, offset, size, backing, ...others } = rest
  const kind = driver === undefined ? 'raw' : driver
  if (driver === undefined && typeof others.filename === 'string') {
    const { filename, ...more } = others
    refuseUnknown(more, `Block format '${kind}' does not support the option`)
    return named(filename)
  }
  if (typeof file === 'string') throw new DescriptionFault(`Cannot find device='' nor node-name='${file}'`)
  if (file === undefined || file === null) throw new DescriptionFault('A block device must be specified for "file"')
  const keys = [...keysOf(others.encrypt, 0), ...keysBelow(backing, 1)]
  if (driver === 'qcow2') delete others.encrypt
  if (backing !== undefined && !holdsKeysAlone(backing))
    throw new DescriptionFault("The option 'backing' is not supported in this version: the backing file is the one that the image names")
  if (others['data-file'] !== undefined)
    throw new DescriptionFault("The option 'data-file' is not supported in this version: the data file is the one that the image names")
  const below = protocol(file)
  refuseUnknown(others, `Block format '${kind}' does not support the option`)
  const format = driver as Format | undefined
  if (offset === undefined && size === undefined)
    return { ...below, ...(format === undefined ? {} : { format }), ...(keys.length === 0 ? {} : { keys }) }
  if (driver !== 'raw')
    refuseUnknown({ ...(offset === undefined ? { size } : { offset }) } as Node, `Block format '${kind}' does not support the option`)
  return { ...windowOf(below, offset, size), format: 'raw' }
}

/** A LUKS container, whose header may be a file of its own. */
function container(node: Node): Described {
  const { file, header, 'key-secret': id, ...others } = node
  if (typeof file === 'string') throw new DescriptionFault(`Cannot find device='' nor node-name='${file}'`)
  if (file === undefined || file === null) throw new DescriptionFault('A block device must be specified for "file"')
  refuseUnknown(others, "Block format 'luks' does not support the option")
  if (id !== undefined && typeof id !== 'string') throw new DescriptionFault("Parameter 'key-secret' expects a string")
  const below = protocol(file)
  const keys = id === undefined ? {} : { keys: [{ depth: 0, id }] }
  if (header === undefined || header === null) return { ...below, format: 'luks', ...keys }
  if (typeof header === 'string') throw new DescriptionFault(`Cannot find device='' nor node-name='${header}'`)
  const luksHeader = protocol(header)
  // The library takes a path for the header, and one window at most.
  if (typeof luksHeader.source !== 'string' || typeof below.source !== 'string') throw new DescriptionFault('A detached header goes with whole files')
  return { ...below, source: { path: below.path, luksHeader: luksHeader.path }, format: 'luks', ...keys }
}

/** `encrypt.key-secret` of a layer, with the format that is expected. */
function keysOf(encrypt: Node[string] | undefined, depth: number): KeyName[] {
  if (encrypt === undefined) return []
  if (typeof encrypt !== 'object' || encrypt === null) throw new DescriptionFault("Parameter 'encrypt' expects an object")
  const { format, 'key-secret': id, ...others } = encrypt
  const [unexpected] = Object.keys(others)
  if (unexpected !== undefined) throw new DescriptionFault(`Parameter 'encrypt.${unexpected}' is unexpected`)
  if (format !== undefined && typeof format !== 'string') throw new DescriptionFault("Parameter 'encrypt.format' expects a string")
  if (typeof id !== 'string') throw new DescriptionFault("Parameter 'encrypt.key-secret' is required for cipher")
  return [{ depth, id, ...(format === undefined ? {} : { format }) }]
}

/** The same of the layers below, which are those that the image names. */
function keysBelow(backing: Node[string] | undefined, depth: number): KeyName[] {
  if (typeof backing !== 'object' || backing === null) return []
  const { encrypt, 'key-secret': id, backing: below } = backing
  // A layer is a qcow2 image, or a LUKS container, which says it without `encrypt`.
  const own = typeof id === 'string' ? [{ depth, id }] : keysOf(encrypt, depth)
  return [...own, ...keysBelow(below, depth + 1)]
}

function holdsKeysAlone(backing: Node[string] | undefined): boolean {
  if (typeof backing !== 'object' || backing === null) return false
  if (backing.encrypt !== undefined && backing['key-secret'] !== undefined) return false
  return Object.entries(backing).every(
    ([key, value]) => key === 'encrypt' || (key === 'key-secret' && typeof value === 'string') || (key === 'backing' && holdsKeysAlone(value)),
  )
}

/** A file, or what stands for one. */
function protocol(node: Node): Described {
  const { driver, ...rest } = node
  if (driver === undefined || (typeof driver === 'string' && FILES.has(driver))) {
    const { filename, ...others } = rest
    if (typeof filename !== 'string' || filename === '') throw new DescriptionFault(`The '${driver ?? 'file'}' block driver requires a file name`)
    refuseUnknown(others, `Block protocol '${driver ?? 'file'}' doesn't support the option`)
    return named(filename)
  }
  if (typeof driver !== 'string') throw new DescriptionFault("Parameter 'driver' expects a string")
  if (NULLS.has(driver)) {
    const { size, ...others } = rest
    refuseUnknown(others, `Block protocol '${driver}' doesn't support the option`)
    return { source: { zeros: size === undefined ? 1n << 30n : sizeOf('size', size) }, path: '' }
  }
  if (driver === 'raw') {
    const { file, offset, size, ...others } = rest
    if (typeof file !== 'object' || file === null) throw new DescriptionFault('A block device must be specified for "file"')
    refuseUnknown(others, "Block format 'raw' does not support the option")
    return windowOf(protocol(file), offset, size)
  }
  if (driver === 'qcow2') throw new DescriptionFault('An image inside of an image is not supported in this version')
  throw new DescriptionFault(`Unknown driver '${driver}'`)
}

/** A file by its name, which may have a protocol in front. */
function named(filename: string): Described {
  const path = filename.startsWith('file:') ? filename.slice(5) : filename
  return { source: path, path }
}

/** A part of a file. */
function windowOf(below: Described, offset: Node[string] | undefined, size: Node[string] | undefined): Described {
  if (offset === undefined && size === undefined) return below
  // The library takes one window: of two, the inner one would be forgotten.
  if (typeof below.source !== 'string') throw new DescriptionFault('Only a part of a file can be an image')
  if (size !== undefined && sizeOf('size', size) % 512n !== 0n) throw new DescriptionFault('Specified size is not multiple of 512')
  const source = {
    path: below.path,
    ...(offset === undefined ? {} : { offset: sizeOf('offset', offset) }),
    ...(size === undefined ? {} : { size: sizeOf('size', size) }),
  }
  return { source, path: below.path }
}

function sizeOf(key: string, value: Node[string] | undefined): bigint {
  const size = typeof value === 'string' ? (/^\d+$/.test(value) ? readInteger(value) : readSize(value)) : 'invalid'
  if (typeof size === 'bigint' && size >= 0n) return size
  throw new DescriptionFault(`Parameter '${key}' expects a non-negative number below 2^64`)
}

function refuseUnknown(others: Node, text: string): void {
  for (const [key, value] of Object.entries(others)) {
    const inner = key === 'cache' && typeof value === 'object' && value !== null ? Object.keys(value).map((each) => `cache.${each}`) : [key]
    const unknown = inner.find((each) => !HARMLESS.test(each))
    if (unknown !== undefined) throw new DescriptionFault(`${text} '${unknown}'`)
    if (SWITCHES.has(key) && !/^(on|yes|true|y|off|no|false|n)$/.test(String(value)))
      throw new DescriptionFault(`Parameter '${key}' expects 'on' or 'off'`)
  }
}
