/** Opening an image that a command changes. */
import { type Disk, library } from './library.js'
import { formatOf, type GatePolicy, gateOptions, type ImageName, openRefusal, refuseReadOnly } from './names.js'
import { printError } from './output.js'
import type { Program } from './program.js'
import { systemText } from './texts.js'

/** Opens an image for writing, as qemu-img does before it changes one in place. */
export async function openWritable(program: Program, name: ImageName, format: string | undefined, policy: GatePolicy): Promise<Disk> {
  const { signal } = program
  refuseReadOnly(name)
  const kind = await formatOf(name, format, signal)
  if (format === undefined && kind === 'raw') warnOfGuess(name)
  try {
    return await library().open(name.source, { ...gateOptions(policy), format: kind, writable: true, signal })
  } catch (error) {
    throw openRefusal(error, name)
  }
}

/** What qemu-img says when it takes an image for raw that nobody called so. */
export function warnOfGuess({ given }: ImageName): void {
  printError(`WARNING: Image format was not specified for '${given}' and probing guessed raw.
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.
         Specify the 'raw' format explicitly to remove the restrictions.
`)
}

/** Why a change failed: the system's words if it was the system, else the library's. */
export function changeFault(error: unknown): string {
  if (!(error instanceof library().Qcow2Error)) throw error
  if (error.code === 'ERR_QCOW2_CANCELLED') throw error
  return error.errno !== undefined && error.errno !== 0 ? systemText(error) : error.message
}
