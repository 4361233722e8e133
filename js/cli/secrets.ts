/**
 * What opens encrypted images: `--object secret,…`, which descriptions name by its id, and `--passphrase-file` or `--passphrase-fd`, which open whatever
 * needs one. Nothing of it is shown anywhere.
 */
import { isUtf8 } from 'node:buffer'
import { type LayerDescription, library, type OpenOptions } from './library.js'
import { readInteger } from './numbers.js'
import { Refusal } from './refusal.js'
import { strerror } from './strerror.js'

/** What a description says of the keys of one layer. */
export interface KeyName {
  depth: number
  id: string
  /** `encrypt.format`. */
  format?: string
}

/** A layer's key is not there. */
export class KeyFault extends Error {
  constructor(
    readonly depth: number,
    text: string,
  ) {
    super(text)
  }
}

type Reader = (signal?: AbortSignal) => Promise<Uint8Array>

const secrets = new Map<string, Reader>()
/** By path for the images that descriptions name, by depth for what lies below them. */
const keys = new Map<string | number, KeyName>()
let passphrase: Reader | undefined

/** Whether a secret has that id. */
export function hasSecret(id: string): boolean {
  return secrets.has(id)
}

/** Keeps a secret under its id. `read` is called when it is needed, once. */
export function addSecret(id: string, read: Reader): void {
  secrets.set(id, once(read))
}

/** The bytes of a secret. */
export async function secretBytes(id: string, signal?: AbortSignal): Promise<Uint8Array> {
  const read = secrets.get(id)
  if (read === undefined) throw new Refusal(`No secret with id '${id}'`)
  return read(signal)
}

/** The same for a new key slot: QEMU takes text alone, and could never open an image whose password is none. */
export async function newSecretBytes(id: string, signal?: AbortSignal): Promise<Uint8Array> {
  const bytes = await secretBytes(id, signal)
  if (!isUtf8(bytes) || bytes.includes(0)) throw new Refusal(`Data from secret ${id} is not valid UTF-8`)
  return bytes
}

/** Whether a passphrase was given for whatever needs one. */
export function hasPassphrase(): boolean {
  return passphrase !== undefined
}

/** That passphrase. */
export async function passphraseBytes(): Promise<Uint8Array> {
  if (passphrase === undefined) throw new Refusal("Parameter 'encrypt.key-secret' is required for cipher")
  return passphrase()
}

/** Reads `--passphrase-file` and `--passphrase-fd`. A line break at the end is not part of it. */
export function takePassphrase(option: string, value: string): void {
  if (passphrase !== undefined) throw new Refusal('--passphrase-file and --passphrase-fd can be given once')
  const number = option === 'passphrase-fd' ? readInteger(value) : undefined
  // What was given is not shown: it may be the passphrase itself.
  if (number !== undefined && (typeof number !== 'bigint' || number < 0n || number > 1_000_000n))
    throw new Refusal('--passphrase-fd expects the number of an open file')
  const from = typeof number === 'bigint' ? Number(number) : value
  passphrase = once(async (signal) => withoutLineBreak(await readWhole(from, value, signal)))
}

/** Remembers which secret opens what a description names. */
export function nameKeys(path: string, named: readonly KeyName[]): void {
  for (const key of named) keys.set(key.depth === 0 ? path : key.depth, key)
}

/** The options with which images are opened, as far as keys are concerned. */
export function keyOptions(): Pick<OpenOptions, 'secret' | 'legacy'> {
  if (secrets.size === 0 && passphrase === undefined && keys.size === 0) return {}
  // Who names the key of an image that is encrypted the old way has seen that it is: `info` says so.
  return { secret: keyOf, legacy: true }
}

async function keyOf(layer?: LayerDescription): Promise<Uint8Array | undefined> {
  const key = layer === undefined ? undefined : (keys.get(layer.depth === 0 ? (layer.path ?? '') : layer.depth) ?? undefined)
  if (key?.format !== undefined && layer?.encryption !== undefined && key.format !== layer.encryption)
    throw new KeyFault(key.depth, `Header reported '${layer.encryption}' encryption format but options specify '${key.format}'`)
  if (key !== undefined && !secrets.has(key.id)) throw new KeyFault(key.depth, `No secret with id '${key.id}'`)
  if (key !== undefined) return secretBytes(key.id)
  return passphrase?.()
}

/** What a file holds; a pipe can be read but once. */
export async function readWhole(from: string | number, shown: string, signal?: AbortSignal): Promise<Uint8Array> {
  const { Qcow2Error, readSecret } = library()
  try {
    return await readSecret(from, signal === undefined ? {} : { signal })
  } catch (error) {
    if (!(error instanceof Qcow2Error) || error.code === 'ERR_QCOW2_CANCELLED') throw error
    throw new Refusal(`Unable to read ${shown}: ${error.errno === undefined ? error.message : strerror(Math.abs(error.errno))}`)
  }
}

function withoutLineBreak(bytes: Uint8Array): Uint8Array {
  if (bytes.at(-1) !== 10) return bytes
  return bytes.subarray(0, bytes.length - (bytes.at(-2) === 13 ? 2 : 1))
}

function once(read: Reader): Reader {
  let bytes: Promise<Uint8Array> | undefined
  return (signal) => {
    bytes ??= read(signal)
    return bytes
  }
}
