/**
 * Passwords on their way to the core: from a caller, from a function of his, or from a file. Copies that are made here are wiped here.
 */

import { orAborted } from './abort.js'
import type { KeySlotChange } from './amend-types.js'
import type { EncryptionSpec, KeySlotSpec } from './boundary.js'
import { invalid, Qcow2Error } from './errors.js'
import { copyOf, hold } from './holding.js'
import { checkOptions, flag, integer, oneOf, type Rule, text } from './options.js'
import { readSecret } from './secret-file.js'
import { kindOf } from './sizes.js'
import type { LayerDescription, NewEncryption, Secret } from './types.js'

const FILE = { file: text }

/** The rule for every option that is a password. */
export const secret: Rule<Secret> = (value, name) => {
  if (typeof value === 'function') return value as Secret
  if (value instanceof Uint8Array) return hold(present(value, name))
  if (typeof value === 'string') throw invalid(name, `${name} must not be text, which cannot be wiped: give a Uint8Array, a function or { file }`)
  if (typeof value !== 'object' || value === null || isMemory(value))
    throw invalid(name, `${name} must be a Uint8Array, a function or { file }: it is ${kindOf(value)}`)
  const { file } = checkOptions('this call', value, FILE, `${name}.`)
  if (file === undefined) throw invalid(`${name}.file`, `${name}.file must be a path`)
  return { file }
}

const isMemory = (value: object): boolean => ArrayBuffer.isView(value) || value instanceof ArrayBuffer || value instanceof SharedArrayBuffer

const ENCRYPTION = {
  secret,
  format: oneOf('luks', 'aes'),
  legacy: flag,
  cipher: text,
  cipherMode: text,
  ivGenerator: text,
  ivHash: text,
  hash: text,
  iterTime: integer(0, 0xffff_ffff),
  detachedHeader: flag,
}

/** The rule for the encryption of a new image. */
export const encryption: Rule<NewEncryption> = (value, name) => {
  const { secret: given, ...rest } = checkOptions('this call', value, ENCRYPTION, `${name}.`)
  if (given === undefined) throw invalid(`${name}.secret`, `${name}.secret must be given: a Uint8Array, a function or { file }`)
  if (rest.format === 'aes') {
    const foreign = (['cipher', 'cipherMode', 'ivGenerator', 'ivHash', 'hash', 'iterTime', 'detachedHeader'] as const).find(
      (key) => rest[key] !== undefined,
    )
    if (foreign !== undefined) throw invalid(`${name}.${foreign}`, `${name}.${foreign} is an option of luks`)
    if (rest.legacy !== true) {
      const message = 'the old AES-CBC method hides little: who must have it says encryption.legacy, others take luks'
      throw new Qcow2Error('ERR_QCOW2_LEGACY_ENCRYPTION', message, { details: { argument: `${name}.legacy` } })
    }
  }
  if (rest.ivHash !== undefined && rest.ivGenerator !== 'essiv') throw invalid(`${name}.ivHash`, `${name}.ivHash goes with ivGenerator 'essiv' alone`)
  return { secret: given, ...rest }
}

const KEY_SLOT = { newSecret: secret, oldSecret: secret, slot: integer(0, 7), iterTime: integer(0, 0xffff_ffff), force: flag }

/** The rule for a change of key slots. */
export const keySlot: Rule<KeySlotChange> = (value, name) => {
  const change = checkOptions('this call', value, KEY_SLOT, `${name}.`)
  if (change.newSecret === undefined && change.oldSecret === undefined && change.slot === undefined) {
    throw invalid(name, `${name} must have newSecret, oldSecret or slot: which key is there to come or to go?`)
  }
  return change
}

/** A change of key slots as the core takes it; `use` gets it with the secrets. */
export async function withKeySlot<T>(
  change: KeySlotChange | undefined,
  opening: Secret | undefined,
  layer: LayerDescription,
  signal: AbortSignal,
  use: (spec: KeySlotSpec | undefined) => Promise<T>,
): Promise<T> {
  if (change === undefined) return use(undefined)
  if (opening === undefined) throw invalid('secret', 'secret must be given: what opens the image now')
  const { newSecret, oldSecret, slot, iterTime, force } = change
  const rest = { ...(slot === undefined ? {} : { slot }), iterTime: iterTime ?? 2000, force: force ?? false }
  return needed(opening, 'secret', layer, signal, (bytes) =>
    needed(newSecret, 'keySlot.newSecret', undefined, signal, (added) =>
      needed(oldSecret, 'keySlot.oldSecret', undefined, signal, (gone) => {
        const secrets = { ...(added === undefined ? {} : { newSecret: added }), ...(gone === undefined ? {} : { oldSecret: gone }) }
        return use({ secret: bytes as Uint8Array, ...secrets, ...rest })
      }),
    ),
  )
}

/** What is given to `use` is a secret's bytes, or nothing where no secret was given. */
async function needed<T>(
  given: Secret | undefined,
  name: string,
  layer: LayerDescription | undefined,
  signal: AbortSignal | undefined,
  use: (bytes?: Uint8Array) => Promise<T>,
): Promise<T> {
  if (given === undefined) return use()
  const made = await withSecret(given, layer, signal, async (bytes) => ({ value: await use(bytes) }))
  if (made === undefined) throw invalid(name, `the function given as ${name} answered none`)
  return made.value
}

/** What was given in the place of a password, without what it says. */
function kindOfSecret(value: unknown): string {
  return typeof value === 'string' ? 'text' : kindOf(value)
}

/** Hands the bytes of a password, if there is one, to `use`, and wipes what was copied for that. */
export async function withSecret<T>(
  given: Secret,
  layer: LayerDescription | undefined,
  signal: AbortSignal | undefined,
  use: (bytes: Uint8Array) => Promise<T>,
): Promise<T | undefined> {
  if (given instanceof Uint8Array) return use(given)
  if (typeof given === 'function') {
    // It may wait for anything, such as a person: the signal does not wait for it.
    const answer = Promise.resolve(given(layer))
    const bytes: unknown = await (signal === undefined ? answer : orAborted(answer, signal))
    if (bytes === undefined) return undefined
    if (!(bytes instanceof Uint8Array))
      throw invalid('secret', `the function given as secret must answer a Uint8Array: it answered ${kindOfSecret(bytes)}`)
    return wiping(copyOf(present(bytes, 'secret')), use)
  }
  return wiping(await readSecret(given.file, signal === undefined ? {} : { signal }), use)
}

async function wiping<T>(bytes: Uint8Array, use: (bytes: Uint8Array) => Promise<T>): Promise<T> {
  try {
    return await use(bytes)
  } finally {
    bytes.fill(0)
  }
}

/** A view whose memory was given away looks like an empty password, which is one. */
function present(bytes: Uint8Array, name: string): Uint8Array {
  if (bytes.length > 0) return bytes
  try {
    new Uint8Array(bytes.buffer)
  } catch {
    throw invalid(name, `${name} must be bytes: its memory was given away (detached)`)
  }
  return bytes
}

/** The encryption of a new image as the core takes it; `use` gets it with the password. */
export async function withEncryption<T>(
  options: NewEncryption | undefined,
  signal: AbortSignal | undefined,
  use: (spec: EncryptionSpec | undefined) => Promise<T>,
): Promise<T> {
  if (options === undefined) return use(undefined)
  return needed(options.secret, 'encryption.secret', undefined, signal, (bytes) => use(encryptionSpec(options, bytes as Uint8Array)))
}

/** The same with QEMU's defaults. */
export function encryptionSpec(options: NewEncryption, bytes: Uint8Array): EncryptionSpec {
  return {
    method: options.format ?? 'luks',
    secret: bytes,
    cipher: options.cipher ?? 'aes-256',
    cipherMode: options.cipherMode ?? 'xts',
    ivGenerator: options.ivGenerator ?? 'plain64',
    ...(options.ivHash === undefined ? {} : { ivHash: options.ivHash }),
    hash: options.hash ?? 'sha256',
    iterTime: options.iterTime ?? 2000,
    ...(options.detachedHeader === undefined ? {} : { detachedHeader: options.detachedHeader }),
  }
}
