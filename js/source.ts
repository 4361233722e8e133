/**
 * What a caller names as a source or target, before anything is opened.
 */

import { basename, extname, isAbsolute } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Handle, SourceSpec } from './boundary.js'
import { invalid } from './errors.js'
import { isMemoryStorage, memoryHandle } from './memory.js'
import { sync } from './native.js'
import { checkOptions, count, text } from './options.js'
import { kindOf } from './sizes.js'
import type { Format } from './types.js'

/** A source whose bytes can be found again: opening is the next step. */
export interface Located {
  spec: SourceSpec
  /** Absent for memory. */
  path?: string
  /** The format that the name says, if it says one. */
  extension?: Format
  /** Path of the header of a LUKS container, where it is in a file of its own. */
  luksHeader?: string
  /** What keeps the bytes alive while nothing is open on them. */
  owner?: object
  /** Frees the copy of bytes; an image that was opened on it keeps what it needs. */
  release(): void
}

/** Where a job writes. */
export interface LocatedTarget {
  path?: string
  memory?: Handle
  /** What keeps the memory alive. */
  owner?: object
  extension?: Format
}

const ZEROS = { zeros: count }
const WINDOW = {
  path: (value: unknown, name: string) => filePath(value, name),
  offset: count,
  size: count,
  luksHeader: (value: unknown, name: string) => filePath(value, name),
}

/**
 * Finds out what a source is. Bytes are copied here and now: the caller may change them as soon as the call has returned.
 */
export function locate(source: unknown, name = 'source'): Located {
  const nothing = (): void => {}
  if (typeof source === 'string' || source instanceof URL) {
    const path = filePath(source, name)
    return { spec: { path, devices: true }, path, ...extensionOf(path), release: nothing }
  }
  if (source instanceof Uint8Array) {
    const memory = sync((addon) => addon.memoryCreate(source))
    return { spec: { memory }, release: () => sync((addon) => addon.memoryClose(memory)) }
  }
  if (isMemoryStorage(source)) return { spec: { memory: memoryHandle(source) }, owner: source, release: nothing }
  if (typeof source === 'object' && source !== null && 'zeros' in source) {
    const { zeros } = checkOptions('zeros', source, ZEROS)
    return { spec: { zeros: zeros ?? 0n }, release: nothing }
  }
  if (typeof source === 'object' && source !== null && 'path' in source) {
    const { path, offset, size, luksHeader } = checkOptions('a part of a file', source, WINDOW)
    if (path === undefined) throw invalid(`${name}.path`, `${name}.path must be text: it is undefined`)
    const whole = luksHeader !== undefined && offset === undefined && size === undefined
    const spec: SourceSpec = { path, devices: true, ...(whole ? {} : { offset: offset ?? 0n }) }
    if (size !== undefined) spec.size = size
    return { spec, path, ...(luksHeader === undefined ? {} : { luksHeader }), release: nothing }
  }
  throw invalid(
    name,
    `${name} must be a path, a file: URL, a Uint8Array, { path, offset, size, luksHeader }, { zeros } or memoryStorage(): it is ${kindOf(source)}`,
  )
}

/** Finds all sources, or none: what was copied for the first must not outlive the fault of the second. */
export function locateAll(sources: readonly unknown[]): Located[] {
  const located: Located[] = []
  try {
    for (const [index, source] of sources.entries()) located.push(locate(source, sources.length === 1 ? 'source' : `source[${index}]`))
    return located
  } catch (error) {
    releaseAll(located)
    throw error
  }
}

/** Frees what {@link locateAll} copied. */
export function releaseAll(located: readonly Located[]): void {
  for (const { release } of located) release()
}

/** Finds out what a target is. */
export function locateTarget(target: unknown, name = 'target'): LocatedTarget {
  if (isMemoryStorage(target)) return { memory: memoryHandle(target), owner: target }
  if (typeof target === 'string' || target instanceof URL) {
    const path = filePath(target, name)
    return { path, ...extensionOf(path) }
  }
  throw invalid(name, `${name} must be a path, a file: URL or memoryStorage(): it is ${kindOf(target)}`)
}

/** A path as the system takes it; never a protocol. */
export function filePath(value: unknown, name: string): string {
  if (!(value instanceof URL)) return text(value, name)
  if (value.protocol !== 'file:') throw invalid(name, `${name} must be a file: URL: its protocol is '${value.protocol}'`)
  return text(fileURLToPath(value), name)
}

/**
 * A name that is recorded in the image at `path`, as a path: relative names start at that image's folder. Nothing is normalised, so that it
 * reads as its two parts were written.
 */
export function beside(path: string | undefined, name: string): string {
  if (path === undefined || isAbsolute(name)) return name
  const folder = path.slice(0, path.length - basename(path).length)
  return folder + name
}

function extensionOf(path: string): { extension?: Format } {
  const ending = extname(path).toLowerCase()
  if (ending === '.qcow2') return { extension: 'qcow2' }
  if (ending === '.raw') return { extension: 'raw' }
  return {}
}
