/**
 * The gate before every file that an image names. An image is a stranger's word: what it names is opened only if the caller's policy says
 * so, and only ever as a plain file name.
 */

import * as fs from 'node:fs'
import { dirname, isAbsolute, relative, sep } from 'node:path'
import { promisify } from 'node:util'
import type { Identity } from './boundary.js'
import { fromSystem, invalid, Qcow2Error } from './errors.js'
import { format, oneOf, type Rule, text } from './options.js'
import { printable } from './printable.js'
import { kindOf } from './sizes.js'
import type { BackingFiles, Format, GateAnswer, LayerDescription, NamedFile } from './types.js'

// The same functions from node:fs/promises would bring readline along, which costs a command a millisecond.
const lstat = promisify(fs.lstat)
const realpath = promisify(fs.realpath.native)

/** What the gate lets pass. */
export interface Passage {
  /** What is opened. */
  path: string
  /** What the caller is told: the name as the image and its folder spell it. */
  shown: string
  /** The format the gate says, which then counts instead of the recorded one. */
  format?: Format
  /** May it be a block device? */
  devices: boolean
  /** `path` is a real path that a policy judged: what was opened must be what still stands there. */
  judged: boolean
}

/** Decides about one named file, or throws. */
export type Gate = (file: NamedFile, layer: LayerDescription) => Promise<Passage>

const BUILT_IN = oneOf('same-directory', 'deny')

/** The rule for the option `backingFiles`. */
export const gate: Rule<Gate> = (value, name) => {
  if (typeof value === 'function') return asking(value as Extract<BackingFiles, (...words: never[]) => unknown>)
  if (Array.isArray(value)) {
    const folders = value.map((folder, index) => text(folder, `${name}[${index}]`))
    return (file, layer) => inside(file, layer, () => Promise.all(folders.map(realFolder)), false)
  }
  if (typeof value !== 'string')
    throw invalid(name, `${name} must be 'same-directory', 'deny', a list of folders or a function: it is ${kindOf(value)}`)
  return BUILT_IN(value, name) === 'deny' ? deny : sameDirectory
}

/** Regular files in the folder of the layer that names them. */
export const sameDirectory: Gate = (file, layer) => inside(file, layer, () => foldersOf(layer), true)

const deny: Gate = async (file, layer) => {
  throw denied(file, layer, 'files that an image names are denied')
}

/** A function of the caller decides; the files may then be block devices too, as for a path that the caller names. */
function asking(decide: Extract<BackingFiles, (...words: never[]) => unknown>): Gate {
  return async (file, layer) => {
    const answer: GateAnswer = await decide({ ...file }, { ...layer })
    if (answer === true) {
      refuseProtocol(file, layer)
      if (layer.path === undefined && !isAbsolute(file.name)) {
        throw denied(file, layer, 'an image in memory has no folder to find it in: let backingFiles answer with a path')
      }
      return { path: file.path, shown: file.path, devices: true, judged: false }
    }
    if (answer === false) throw denied(file, layer, 'backingFiles said no')
    if (typeof answer === 'string') return { path: text(answer, 'the answer of backingFiles'), shown: answer, devices: true, judged: false }
    if (typeof answer !== 'object' || answer === null) {
      throw invalid('backingFiles', `backingFiles must answer true, false, a path or { path, format }: it answered ${kindOf(answer)}`)
    }
    const path = text(answer.path, 'path in the answer of backingFiles')
    return { path, shown: path, format: format(answer.format, 'format in the answer of backingFiles'), devices: true, judged: false }
  }
}

/** Passes a regular file whose real place is in one of some folders (`flat`: directly in it). */
async function inside(file: NamedFile, layer: LayerDescription, folders: () => Promise<string[]>, flat: boolean): Promise<Passage> {
  refuseProtocol(file, layer)
  if (layer.path === undefined && (flat || !isAbsolute(file.name))) {
    throw denied(file, layer, 'an image in memory has no folder to find it in: let a backingFiles function answer with a path')
  }
  // The real path is what is opened, and `refuseReplaced` looks again: a link that is made after this moment leads nowhere new.
  const path = await realpath(file.path).catch((error) => {
    throw fromSystem(error, file.path)
  })
  const allowed = await folders()
  if (!allowed.some((folder) => (flat ? dirname(path) === folder : contains(folder, path)))) {
    const where = flat ? 'it is not in the folder of the image that names it' : 'it is in none of the folders that are allowed'
    throw denied(file, layer, `${where} (it is ${path})`)
  }
  return { path, shown: file.path, devices: false, judged: true }
}

/**
 * Refuses a file that took the judged one's place between judging and opening: the one that was opened must stand, itself and not through a
 * link, where the policy looked.
 */
export async function refuseReplaced(passage: Passage, opened: Identity): Promise<void> {
  if (!passage.judged || opened.inode === undefined || opened.inode === null) return
  const { path } = passage
  const [real, there] = await Promise.all([realpath(path), lstat(path, { bigint: true })]).catch((error) => {
    throw fromSystem(error, path)
  })
  if (real === path && there.ino === opened.inode && there.dev === opened.device) return
  throw new Qcow2Error('ERR_QCOW2_BACKING_DENIED', `${path} was replaced while it was opened`, { path })
}

/** The folder of the layer as it was named, and the folder where it really is. */
async function foldersOf({ path = '.' }: LayerDescription): Promise<string[]> {
  const [named, real] = await Promise.all([realFolder(dirname(path)), realpath(path)]).catch((error) => {
    throw fromSystem(error, path)
  })
  return [named, dirname(real)]
}

function realFolder(folder: string): Promise<string> {
  return realpath(folder).catch((error) => {
    throw fromSystem(error, folder)
  })
}

function contains(folder: string, path: string): boolean {
  const way = relative(folder, path)
  return way !== '' && way !== '..' && !way.startsWith(`..${sep}`) && !isAbsolute(way)
}

/** What other programs would take for a protocol or a description of a device is refused, whatever it names: a colon before any slash. */
function refuseProtocol(file: NamedFile, layer: LayerDescription): void {
  if (!hasProtocol(file.name)) return
  throw new Qcow2Error(
    'ERR_QCOW2_NAME_PROTOCOL',
    `${nameOf(layer)} names ${what(file)} '${printable(file.name)}': names with a protocol are not opened`,
    {
      ...pathOf(layer),
      details: { name: file.name, kind: file.kind },
    },
  )
}

/** Whether a name begins with a protocol, such as `nbd:` or `json:`. */
export function hasProtocol(name: string): boolean {
  // A drive letter is no protocol where there are drives.
  if (process.platform === 'win32' && /^[a-z]:[\\/]/i.test(name)) return false
  return /^[^/]*:/.test(name)
}

function denied(file: NamedFile, layer: LayerDescription, reason: string): Qcow2Error {
  const code = file.kind === 'backing' ? 'ERR_QCOW2_BACKING_DENIED' : 'ERR_QCOW2_DATA_FILE_DENIED'
  return new Qcow2Error(code, `${nameOf(layer)} names ${what(file)} '${printable(file.name)}', which is not opened: ${reason}`, {
    ...pathOf(layer),
    details: { name: file.name, kind: file.kind },
  })
}

function what(file: NamedFile): string {
  return file.kind === 'backing' ? 'the backing file' : 'the data file'
}

/** How a message names a layer. */
export function nameOf({ path, depth }: LayerDescription): string {
  return path ?? (depth === 0 ? 'the image in memory' : `layer ${depth}`)
}

/** The `path` field of an error about a layer. */
export function pathOf({ path }: LayerDescription): { path?: string } {
  return path === undefined ? {} : { path }
}
