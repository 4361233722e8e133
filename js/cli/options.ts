/**
 * Lists of options such as `-o cluster_size=4k,compat=0.10`: how they are taken apart, which keys a format knows, what their values may be, and
 * the help that `-o help` prints.
 */
import type { Format } from './library.js'
import { readInteger, readSize } from './numbers.js'
import { Refusal } from './refusal.js'

/** What a value is. */
type Kind = 'str' | 'size' | 'num' | 'bool (on/off)'

/** An option that a format, or the file below it, takes on creation. */
interface CreateKey {
  name: string
  kind: Kind
  text: string
  /** Given by the file, so not part of the help without a file name. */
  protocol?: true
}

const SIZE: CreateKey = { name: 'size', kind: 'size', text: 'Virtual disk size' }
const FILE_KEYS: readonly CreateKey[] = [
  { name: 'nocow', kind: 'bool (on/off)', text: 'Turn off copy-on-write (valid only on btrfs)', protocol: true },
  { name: 'extent_size_hint', kind: 'size', text: 'Extent size hint for the image file, 0 to disable', protocol: true },
]

const FILE_PREALLOCATION: CreateKey = {
  name: 'preallocation',
  kind: 'str',
  text: 'Preallocation mode (allowed values: off, falloc, full)',
  protocol: true,
}

/** In the order in which `create` prints them. */
const CREATE_KEYS: Readonly<Record<string, readonly CreateKey[]>> = {
  qcow2: [
    { name: 'encryption', kind: 'bool (on/off)', text: "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)" },
    { name: 'encrypt.format', kind: 'str', text: "Encrypt the image, format choices: 'aes', 'luks'" },
    { name: 'encrypt.key-secret', kind: 'str', text: 'ID of secret providing qcow AES key or LUKS passphrase' },
    { name: 'encrypt.cipher-alg', kind: 'str', text: 'Name of encryption cipher algorithm' },
    { name: 'encrypt.cipher-mode', kind: 'str', text: 'Name of encryption cipher mode' },
    { name: 'encrypt.ivgen-alg', kind: 'str', text: 'Name of IV generator algorithm' },
    { name: 'encrypt.ivgen-hash-alg', kind: 'str', text: 'Name of IV generator hash algorithm' },
    { name: 'encrypt.hash-alg', kind: 'str', text: 'Name of encryption hash algorithm' },
    { name: 'encrypt.iter-time', kind: 'num', text: 'Time to spend in PBKDF in milliseconds' },
    { name: 'cluster_size', kind: 'size', text: 'qcow2 cluster size' },
    { name: 'extended_l2', kind: 'bool (on/off)', text: 'Extended L2 tables' },
    { name: 'preallocation', kind: 'str', text: 'Preallocation mode (allowed values: off, metadata, falloc, full)' },
    { name: 'compression_type', kind: 'str', text: 'Compression method used for image cluster compression' },
    SIZE,
    { name: 'compat', kind: 'str', text: 'Compatibility level (v2 [0.10] or v3 [1.1])' },
    { name: 'backing_file', kind: 'str', text: 'File name of a base image' },
    { name: 'backing_fmt', kind: 'str', text: 'Image format of the base image' },
    { name: 'data_file', kind: 'str', text: 'File name of an external data file' },
    { name: 'data_file_raw', kind: 'bool (on/off)', text: 'The external data file must stay valid as a raw image' },
    { name: 'lazy_refcounts', kind: 'bool (on/off)', text: 'Postpone refcount updates' },
    { name: 'refcount_bits', kind: 'num', text: 'Width of a reference count entry in bits' },
    ...FILE_KEYS,
  ],
  raw: [SIZE, ...FILE_KEYS, FILE_PREALLOCATION],
  luks: [
    SIZE,
    { name: 'key-secret', kind: 'str', text: 'ID of the secret that provides the keyslot passphrase' },
    { name: 'cipher-alg', kind: 'str', text: 'Name of encryption cipher algorithm' },
    { name: 'cipher-mode', kind: 'str', text: 'Name of encryption cipher mode' },
    { name: 'ivgen-alg', kind: 'str', text: 'Name of IV generator algorithm' },
    { name: 'ivgen-hash-alg', kind: 'str', text: 'Name of IV generator hash algorithm' },
    { name: 'hash-alg', kind: 'str', text: 'Name of encryption hash algorithm' },
    { name: 'iter-time', kind: 'num', text: 'Time to spend in PBKDF in milliseconds' },
    { name: 'detached-header', kind: 'bool (on/off)', text: 'Create a detached LUKS header' },
    ...FILE_KEYS,
    FILE_PREALLOCATION,
  ],
}

const CREATED_ALIKE = new Set(['size', 'compat', 'backing_file', 'backing_fmt', 'data_file', 'data_file_raw', 'lazy_refcounts', 'refcount_bits'])

const SLOT_KEYS: readonly CreateKey[] = [
  { name: 'keyslot', kind: 'num', text: 'Select a single keyslot to modify explicitly' },
  { name: 'new-secret', kind: 'str', text: 'New secret to set in the matching keyslots. Empty string to erase' },
  { name: 'old-secret', kind: 'str', text: 'Select all keyslots that match this password' },
  { name: 'state', kind: 'str', text: 'Select new state of affected keyslots (active/inactive)' },
]

/** What an image that is there can be given. */
const AMEND_KEYS: Readonly<Record<'qcow2' | 'luks', readonly CreateKey[]>> = {
  qcow2: [
    ...(CREATE_KEYS.qcow2 ?? []).filter(({ name }) => CREATED_ALIKE.has(name) || name === 'encrypt.iter-time'),
    ...SLOT_KEYS.map((key) => ({ ...key, name: `encrypt.${key.name}` })),
  ],
  luks: [...(CREATE_KEYS.luks ?? []).filter(({ name }) => name === 'iter-time'), ...SLOT_KEYS],
}

/** What `create` prints although nobody said it. */
const DEFAULTS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  qcow2: { cluster_size: '65536', extended_l2: 'off', compression_type: 'zlib', lazy_refcounts: 'off', refcount_bits: '16' },
  raw: {},
  luks: {},
}

const SIZE_HINT = `Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-
and exabytes, respectively.`

/** The options given for a new image; the last value of a key counts. Values are kept in normal form: sizes in bytes. */
export type CreateValues = Map<string, string>

/** Joins repeated `-o`. Refuses a list that begins with a comma or ends with a single one. */
export function joinLists(before: string | undefined, list: string): string {
  const trailing = /,*$/.exec(list)?.[0].length ?? 0
  if (list === '' || list.startsWith(',') || trailing % 2 === 1) throw new Refusal(`Invalid option list: ${list}`)
  return before === undefined ? list : `${before},${list}`
}

/** Takes a list apart. Two commas stand for one inside a value, not inside a key. A key without a value has none. */
export function splitList(list: string): { key: string; value: string | undefined }[] {
  const out: { key: string; value: string | undefined }[] = []
  const part = /([^=,]*)(?:=((?:[^,]|,,)*))?(?:,|$)/y
  while (part.lastIndex < list.length) {
    const match = part.exec(list)
    if (!match) break
    out.push({ key: match[1] ?? '', value: match[2]?.replace(/,,/g, ',') })
  }
  return out
}

/** Whether a list asks for help instead. */
export function asksForHelp(list: string | undefined): boolean {
  return list !== undefined && splitList(list).some(({ key, value }) => value === undefined && (key === 'help' || key === '?'))
}

/** The formats that images can be made in. */
export function isTargetFormat(format: string): format is Format {
  return Object.hasOwn(CREATE_KEYS, format)
}

/** The keys of a new qcow2 image, each with what its value is. */
export function createKeys(): { name: string; kind: string; text: string }[] {
  return (CREATE_KEYS.qcow2 ?? []).map(({ name, kind, text }) => ({ name, kind, text }))
}

/** The help of `-o help`, with the keys of the file below if its name is known. */
export function createHelp(format: Format, file: boolean): string {
  const rows = rowsOf((CREATE_KEYS[format] ?? []).filter(({ protocol }) => file || !protocol))
  const first = file ? 'Supported options:\n' : `Supported ${format} options:\n`
  const last = file ? '' : '\nThe protocol level may support further options.\nSpecify the target filename to include those options.\n'
  return first + rows.join('') + last
}

/** The help of `amend -o help`. */
export function amendHelp(format: 'qcow2' | 'luks'): string {
  return `Amend options for '${format}':\n${rowsOf(AMEND_KEYS[format]).join('')}`
}

function rowsOf(keys: readonly CreateKey[]): string[] {
  return keys.map(({ name, kind, text }) => `  ${`${name}=<${kind}>`.padEnd(22)} - ${text}\n`).sort()
}

/** Reads a list for an image that is there. */
export function readAmendValues(format: 'qcow2' | 'luks', list: string): CreateValues {
  const known = AMEND_KEYS[format]
  const only = CREATE_KEYS[format]?.filter(({ name }) => !known.some((key) => key.name === name)) ?? []
  const said = splitList(list).find(({ key, value }) => value !== undefined && only.some(({ name }) => name === key))
  try {
    return readValues(known, list)
  } catch (error) {
    const about = said !== undefined && error instanceof Refusal && error.message === `Invalid parameter '${said.key}'`
    throw about ? new Refusal(error.message, { hint: 'This option is only supported for image creation' }) : error
  }
}

/** Reads a list for a new image. The first thing that is wrong with it is refused. */
export function readCreateValues(format: Format, list: string | undefined): CreateValues {
  return readValues(CREATE_KEYS[format] ?? [], list)
}

function readValues(keys: readonly CreateKey[], list: string | undefined): CreateValues {
  const values: CreateValues = new Map()
  for (const { key, value } of list === undefined ? [] : splitList(list)) {
    const known = keys.find(({ name }) => name === key)
    if (known) {
      values.set(key, normal(known, value ?? 'on'))
      continue
    }
    // `nofoo` switches foo off.
    const negated = value === undefined && key.startsWith('no') ? keys.find(({ name }) => name === key.slice(2)) : undefined
    if (!negated) throw new Refusal(`Invalid parameter '${value === undefined ? key.replace(/^no/, '') : key}'`)
    values.set(negated.name, normal(negated, 'off'))
  }
  return values
}

/** A value as it is printed and used. */
function normal({ name, kind }: CreateKey, value: string): string {
  if (kind === 'bool (on/off)') {
    if (!/^(on|yes|true|y|off|no|false|n)$/.test(value)) throw new Refusal(`Parameter '${name}' expects 'on' or 'off'`)
    return value
  }
  if (kind === 'str') return value
  const number = kind === 'size' ? readSize(value) : readInteger(value)
  if (number === 'range') {
    throw new Refusal(
      kind === 'size' ? `Value '${value}' is out of range for parameter '${name}'` : `Value '${value}' is too large for parameter '${name}'`,
    )
  }
  if (number !== 'invalid') return String(number)
  if (kind === 'num') throw new Refusal(`Parameter '${name}' expects a number`)
  throw new Refusal(`Parameter '${name}' expects a non-negative number below 2^64`, { hint: SIZE_HINT })
}

/** Whether a switch is on. */
export function isOn(values: CreateValues, key: string): boolean {
  return /^(on|yes|true|y)$/.test(values.get(key) ?? 'off')
}

/** The options in the order and form of the line that `create` prints. */
export function describeValues(format: Format, values: CreateValues): string {
  const words: string[] = []
  for (const { name } of CREATE_KEYS[format] ?? []) {
    const value = values.get(name) ?? DEFAULTS[format]?.[name]
    if (value !== undefined) words.push(` ${name}=${value.replace(/,/g, ',,')}`)
  }
  return words.join('')
}
