/** The facts of an image as qemu-img prints them for people. */
import type { NamedImage } from './commands/info.js'
import { humanSize } from './human.js'
import { fileLength, formatSpecific } from './image-json.js'
import { inHashOrder, type JsonObject, type JsonValue } from './json.js'
import { type ImageInfo, library } from './library.js'
import { snapshotTable } from './snapshot-table.js'

/** The block of one image. */
export function imageBlock({ name, facts }: NamedImage): string {
  const lines = [
    `image: ${name}`,
    `file format: ${facts.format}`,
    `virtual size: ${humanSize(facts.virtualSize)} (${facts.virtualSize} bytes)`,
    diskSize(facts),
    ...(facts.encrypted ? ['encrypted: yes'] : []),
    ...(facts.clusterSize === undefined ? [] : [`cluster_size: ${facts.clusterSize}`]),
    ...(facts.dirty ? ['cleanly shut down: no'] : []),
    ...backing(facts),
  ]
  const snapshots = snapshotTable(facts.snapshots)
  const specific = facts.format !== 'raw' ? ['Format specific information:', ...rows(formatSpecific(facts), '    ')] : []
  const length = fileLength(facts)
  const file = [
    "Child node '/file':",
    `    filename: ${name}`,
    '    protocol type: file',
    `    file length: ${humanSize(length)} (${length} bytes)`,
    `    ${diskSize(facts)}`,
  ]
  return `${lines.join('\n')}\n${snapshots}${[...specific, ...file].join('\n')}\n`
}

function diskSize({ actualSize }: ImageInfo): string {
  return `disk size: ${actualSize === undefined ? 'unavailable' : humanSize(actualSize)}`
}

function backing({ backingFile, fullBackingFile, backingFormat }: ImageInfo): string[] {
  if (backingFile === undefined) return []
  const actual = fullBackingFile === undefined ? ' (cannot determine actual path)' : ` (actual path: ${fullBackingFile})`
  const lines = [`backing file: ${backingFile}${fullBackingFile === backingFile ? '' : actual}`]
  if (backingFormat !== undefined) lines.push(`backing file format: ${backingFormat}`)
  return lines.map((line) => library().printable(line))
}

/** A tree of values, a level deeper for each nesting; the keys are those of the JSON with spaces. */
function rows(value: JsonObject | JsonValue[], indent: string): string[] {
  const entries: [string, JsonValue][] = Array.isArray(value)
    ? value.map((item, index) => [`[${index}]`, item])
    : inHashOrder(value).map(([key, item]) => [key.replaceAll('-', ' '), item])
  return entries.flatMap(([key, item]) =>
    typeof item === 'object'
      ? [`${indent}${key}:`, ...rows(item, `${indent}    `)]
      : [`${indent}${key}: ${typeof item === 'string' ? library().printable(item) : item}`],
  )
}
