/** New files: their names, and what can go wrong with them. */
import * as fs from 'node:fs'
import { promisify } from 'node:util'
import { type Format, library, type Qcow2Error } from './library.js'
import { Refusal } from './refusal.js'
import { isSystemError, systemText, withoutPath, wordFault } from './texts.js'

const stat = promisify(fs.stat)

/** A name that is recorded in the image at `path`, as a path. */
export function beside(path: string, name: string): string {
  if (/^([a-z]:)?[\\/]/i.test(name) || /^[^/]*:/.test(name)) return name
  return path.slice(0, path.lastIndexOf('/') + 1) + name
}

/** Whether two names are written alike: what lies behind them is not looked at. */
export function isSameFile(a: string, b: string): boolean {
  return a === b
}

/** Whether two names lead to one file that is there, through links of either kind. */
export async function isOneFile(a: string, b: string): Promise<boolean> {
  const [one, other] = await Promise.all([a, b].map((path) => stat(path, { bigint: true }).catch(() => undefined)))
  return one !== undefined && other !== undefined && one.ino === other.ino && one.dev === other.dev
}

const TEXTS: Readonly<Record<string, (format: Format) => string>> = {
  IMAGE_TOO_BIG: (format) => `The image size is too large for file format '${format}' (try using a larger cluster size)`,
  VIRTUAL_SIZE: (format) => `The image size is too large for file format '${format}' (try using a larger cluster size)`,
  L1_TOO_LARGE: (format) => `The image size is too large for file format '${format}' (try using a larger cluster size)`,
}

/** A new file has a name. */
export function refuseNameless(path: string): void {
  if (path === '') throw new Refusal("Could not create '': No such file or directory")
}

/** What went wrong with a new file, without its name in front. */
export function targetFault(error: unknown, file: string, format: Format): unknown {
  const { Qcow2Error } = library()
  if (!(error instanceof Qcow2Error) || error.code === 'ERR_QCOW2_CANCELLED') return error
  const wording = wordTarget(error, file, format)
  return new Refusal(wording.text, wording.hint === undefined ? {} : { hint: wording.hint })
}

function wordTarget(error: Qcow2Error, file: string, format: Format): { text: string; hint?: string } {
  const code = error.code.replace('ERR_QCOW2_', '')
  // A file that is read and replaced at once is, in the other program's words, one that is locked.
  if (code === 'SAME_FILE') return { text: 'Failed to get "write" lock', hint: `Is another process using the image [${file}]?` }
  const text = TEXTS[code]?.(format)
  if (text !== undefined) return { text }
  if (code === 'LOCKED') return wordFault(error, file)
  const path = error.path ?? file
  if (code === 'NOT_REGULAR' && fs.statSync(path, { throwIfNoEntry: false })?.isDirectory())
    return { text: `Could not create '${path}': Is a directory` }
  if (!isSystemError(error)) return { text: withoutPath(error) }
  return { text: isCreation(error) ? `Could not create '${file}': ${systemText(error)}` : systemText(error) }
}

/** The file could not even be made, as opposed to written. */
export function isCreation({ syscall = '' }: Qcow2Error): boolean {
  return /^(open|create|stat|lstat|realpath|link|rename|mkdir)/.test(syscall)
}
