/**
 * Who keeps an image from being opened. The system does not tell whose a lock of an open file is, but on Linux every process lists its open files
 * and their locks; of other users' processes only root sees them.
 */

import { readdir, readFile, readlink, realpath } from 'node:fs/promises'
import { Qcow2Error } from './errors.js'

/** Open files that are looked at, at most: a name in a message is not worth more. */
const MOST = 20_000

/** The error of a locked image, with the program that holds the lock in its text and `details` if it can be found. Other errors as they are. */
export async function withHolder(error: unknown): Promise<unknown> {
  if (!(error instanceof Qcow2Error) || error.code !== 'ERR_QCOW2_LOCKED' || error.path === undefined || error.details.byte === undefined)
    return error
  const holder = await findHolder(error.path, Number(error.details.byte)).catch(() => undefined)
  if (holder === undefined) return error
  const { pid, program } = holder
  const who = pid === process.pid ? 'this process itself has it open' : `it is ${program}, process ${pid}`
  const { path, details } = error
  return new Qcow2Error(error.code, `${error.message} (${who})`, { path, details: { ...details, pid: String(pid), program } })
}

/** The process that has a lock on a byte of a file. */
async function findHolder(path: string, byte: number): Promise<{ pid: number; program: string } | undefined> {
  const real = await realpath(path)
  let left = MOST
  // The youngest first: they come and go, and the system's own are the oldest.
  const processes = (await readdir('/proc')).map(Number).filter((pid) => pid > 0)
  for (const pid of processes.sort((a, b) => b - a)) {
    const files = await readdir(`/proc/${pid}/fd`).catch(() => [])
    for (const file of files) {
      if (left-- === 0) return undefined
      if ((await readlink(`/proc/${pid}/fd/${file}`).catch(() => '')) !== real) continue
      const locks = await readFile(`/proc/${pid}/fdinfo/${file}`, 'latin1').catch(() => '')
      if (!holds(locks, byte)) continue
      return { pid, program: (await readFile(`/proc/${pid}/comm`, 'utf8')).trim() }
    }
  }
  return undefined
}

/** Whether one of the locks, as the system lists them, is on the byte. */
function holds(locks: string, byte: number): boolean {
  const ranges = locks.matchAll(/^lock:.* (\d+) (\d+|EOF)$/gm)
  return [...ranges].some(([, first, last]) => Number(first) <= byte && (last === 'EOF' || byte <= Number(last)))
}
