/**
 * What there is to complete, the same for every shell, from what the commands say of themselves.
 */
import { type Description, optionsOf } from '../catalog.js'
import { createKeys } from '../options.js'

/** What may be a value: one of some words, a file, a list of keys and values, or whatever the user knows. */
export type Values = readonly string[] | 'file' | 'keys' | 'any'

/** An option to complete. */
export interface ShellOption {
  /** Such as `-f` and `--format`. */
  names: string[]
  text: string
  /** What its value is called; absent if it takes none. */
  value?: string
  values?: Values
}

/** A command to complete. */
export interface ShellCommand {
  name: string
  summary: string
  options: ShellOption[]
  /** Words that may stand where an operand may. Without any, it is a file. */
  words: string[]
}

/** A key of an option list such as `-o`. */
export interface ShellKey {
  name: string
  text: string
  values: Values
}

const FORMATS = ['qcow2', 'raw', 'luks']
const CACHE_MODES = ['none', 'writeback', 'writethrough', 'directsync', 'unsafe']
/** By what the help calls a value. Words divided by bars are those words. */
const CALLED: Readonly<Record<string, Values>> = { FMT: FORMATS, CACHE: CACHE_MODES, FILE: 'file', 'KEY=VALUE,…': 'keys' }
const KEYS: Readonly<Record<string, Values>> = {
  backing_file: 'file',
  backing_fmt: FORMATS,
  cluster_size: ['512', '4k', '16k', '32k', '64k', '128k', '256k', '512k', '1M', '2M'],
  compat: ['0.10', '1.1', 'v2', 'v3'],
  compression_type: ['zlib', 'zstd', 'lz4'],
  data_file: 'file',
  'encrypt.format': ['aes', 'luks'],
  preallocation: ['off', 'metadata', 'falloc', 'full'],
  refcount_bits: ['1', '2', '4', '8', '16', '32', '64'],
}

/** What a command has to complete. */
export function shellCommand(description: Description): ShellCommand {
  const { name, help } = description
  const options = optionsOf(description).map(({ names, text, value }) => {
    const option: ShellOption = { names, text: text || sayingOf(names) }
    return value === undefined ? option : { ...option, value, values: valuesOf(names, value) }
  })
  return { name, summary: help.summary.replace(/\. .*|\.$/, ''), options, words: operandsOf(help.usage) }
}

/** The help has no row for what is only accepted. */
function sayingOf(names: readonly string[]): string {
  if (names.includes('--object')) return 'define an object, such as a secret'
  return names.some((name) => name.endsWith('image-opts')) ? 'the name is a list of options' : ''
}

function valuesOf(names: readonly string[], value: string): Values {
  if (names.some((name) => name.endsWith('cache'))) return CACHE_MODES
  if (/^[\w-]+(\|[\w-]+)+$/.test(value)) return value.split('|')
  return CALLED[value] ?? 'any'
}

/** Operands that are no files: `if=SOURCE of=TARGET`, or words divided by bars. */
function operandsOf(usage: string): string[] {
  const plain = usage.replace(/-{1,2}[\w-]+(?: [A-Z…=,|]+| [a-z]+(?:\|[a-z]+)+)?/g, '')
  const words = [...plain.matchAll(/\b([a-z]+=)[A-Z]+/g)].map((match) => match[1] ?? '')
  return words.length > 0 ? words : (/(?:^| )([a-z]+(?:\|[a-z]+)+)(?: |$)/.exec(plain)?.[1]?.split('|') ?? [])
}

/** The keys of an option list. */
export function shellKeys(): ShellKey[] {
  return createKeys().map(({ name, kind, text }) => ({ name, text, values: KEYS[name] ?? (kind.startsWith('bool') ? ['on', 'off'] : 'any') }))
}

/** The name of a function for a program of that name. */
export function functionName(program: string): string {
  return `_${program.replace(/\W/g, '_')}`
}
