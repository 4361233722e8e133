/** `--object`: secrets are understood and kept by their id; other objects are of no use to an image. */
import { accessSync, constants } from 'node:fs'
import { splitList } from './options.js'
import { Refusal } from './refusal.js'
import { addSecret, hasSecret, readWhole } from './secrets.js'

const TYPES = new Set(['secret', 'secret_keyring', 'tls-creds-x509', 'tls-creds-psk', 'tls-creds-anon', 'throttle-group'])
const KEYS = new Set(['id', 'data', 'file', 'format', 'keyid', 'iv'])

/** Understands a definition; what is wrong with it is refused in qemu-img's words. */
export function readObject(definition: string): void {
  const values = definition.startsWith('{') ? fromJson(definition) : fromList(definition)
  const type = values.get('qom-type')
  if (type === undefined || type === '') throw new Refusal("Parameter 'qom-type' is missing")
  if (type === 'iothread') throw new Refusal('invalid object type: iothread')
  if (!TYPES.has(type)) throw new Refusal(`Parameter 'qom-type' does not accept value '${type}'`)
  const id = values.get('id')
  if (id === undefined) throw new Refusal("Parameter 'id' is missing")
  if (!/^[a-z][a-z0-9\-._]*$/i.test(id)) {
    throw new Refusal("Parameter 'id' expects an identifier", {
      hint: "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
    })
  }
  if (type === 'secret') readSecret(id, values)
}

function fromList(definition: string): Map<string, string> {
  const values = new Map<string, string>()
  for (const [index, { key, value }] of splitList(definition).entries()) {
    // The first word is the type, unless it says what it is.
    if (index === 0 && value === undefined) values.set('qom-type', key)
    else values.set(key, value ?? 'on')
  }
  return values
}

function fromJson(definition: string): Map<string, string> {
  let object: unknown
  try {
    object = JSON.parse(definition)
  } catch {
    throw new Refusal('JSON parse error, invalid syntax')
  }
  if (typeof object !== 'object' || object === null || Array.isArray(object)) throw new Refusal('Invalid JSON object given')
  return new Map(Object.entries(object as Record<string, unknown>).map(([key, value]) => [key, String(value)]))
}

function readSecret(id: string, values: ReadonlyMap<string, string>): void {
  const unexpected = [...values.keys()].find((key) => key !== 'qom-type' && !KEYS.has(key))
  if (unexpected !== undefined) throw new Refusal(`Parameter '${unexpected}' is unexpected`)
  const format = values.get('format') ?? 'raw'
  if (format !== 'raw' && format !== 'base64') throw new Refusal(`Parameter 'format' does not accept value '${format}'`)
  const [data, file, keyid] = ['data', 'file', 'keyid'].map((key) => values.get(key))
  if (data !== undefined && file !== undefined) throw new Refusal("'file' and 'data' are mutually exclusive")
  if (data === undefined && file === undefined) throw new Refusal("Either 'file' or 'data' must be provided")
  if (file !== undefined) {
    try {
      // Not read here: it may be a pipe, which can be read once.
      accessSync(file, constants.R_OK)
    } catch (error) {
      const text = (error as NodeJS.ErrnoException).code === 'EACCES' ? 'Permission denied' : 'No such file or directory'
      throw new Refusal(`Unable to read ${file}: Failed to open file “${file}”: ${text}`)
    }
  }
  if (keyid !== undefined && !hasSecret(keyid)) throw new Refusal(`No secret with id '${keyid}'`)
  if (hasSecret(id)) throw new Refusal(`attempt to add duplicate property '${id}' to object (type 'container')`)
  addSecret(id, async (signal) => {
    if (keyid !== undefined) throw new Refusal('Secrets that are encrypted with another (keyid) are not supported in this version')
    const bytes = file === undefined ? Buffer.from(data ?? '') : await readWhole(file, file, signal)
    return format === 'raw' ? bytes : fromBase64(bytes)
  })
}

function fromBase64(bytes: Uint8Array): Uint8Array {
  const text = Buffer.from(bytes).toString('latin1')
  const bare = text.replace(/[\r\n]/g, '')
  if (!/^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(bare)) {
    throw new Refusal(/[^A-Za-z0-9+/=\r\n]/.test(text) ? 'Base64 data contains invalid characters' : 'Base64 data is not valid')
  }
  return Buffer.from(bare, 'base64')
}
