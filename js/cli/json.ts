/**
 * JSON as qemu-img prints it: four spaces, ASCII only, an empty list on two lines, and the keys in the order of QEMU's hash table. Scripts
 * compare such text line by line, so the order is part of the interface.
 */

export type JsonValue = string | number | bigint | boolean | JsonValue[] | JsonObject
/** Keys whose value is undefined are left out. */
export interface JsonObject {
  [key: string]: JsonValue | undefined
}

/** The text of a value, without a line end. */
export function formatJson(value: JsonValue, indent = ''): string {
  if (typeof value === 'string') return quote(value)
  if (typeof value !== 'object') return String(value)
  const deeper = `${indent}    `
  if (Array.isArray(value))
    return lines(
      '[',
      value.map((item) => deeper + formatJson(item, deeper)),
      `${indent}]`,
    )
  const rows: string[] = []
  for (const [key, item] of inHashOrder(value)) rows.push(`${deeper}${quote(key)}: ${formatJson(item, deeper)}`)
  return lines('{', rows, `${indent}}`)
}

/** The entries of an object in the order in which QEMU walks them. */
export function inHashOrder(object: JsonObject): [string, JsonValue][] {
  const entries: [string, JsonValue][] = []
  for (const [key, value] of Object.entries(object)) if (value !== undefined) entries.push([key, value])
  return entries
    .map((entry, index) => ({ entry, index, bucket: bucket(entry[0]) }))
    .sort((a, b) => a.bucket - b.bucket || b.index - a.index)
    .map(({ entry }) => entry)
}

/** The slot, of 512, that a key falls into. */
function bucket(key: string): number {
  let value = Math.imul(0x238f13af, key.length)
  for (let i = 0; i < key.length; i++) value = (value + (key.charCodeAt(i) << ((i * 5) % 24))) | 0
  return ((Math.imul(1103515243, value) + 12345) >>> 0) % 512
}

function lines(open: string, rows: string[], close: string): string {
  return rows.length === 0 ? `${open}\n${close}` : `${open}\n${rows.join(',\n')}\n${close}`
}

const SHORT: Readonly<Record<string, string>> = { '"': '\\"', '\\': '\\\\', '\b': '\\b', '\f': '\\f', '\n': '\\n', '\r': '\\r', '\t': '\\t' }

/** A string in quotes. What is not printable ASCII is escaped. */
export function quote(text: string): string {
  const escaped = text.replace(/["\\]|[^ -~]/g, (unit) => SHORT[unit] ?? `\\u${unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`)
  return `"${escaped}"`
}
