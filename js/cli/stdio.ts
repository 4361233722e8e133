/** Images through pipes. */
import { closeSync, fstatSync, mkdtempSync, openSync, read, rmSync, write, writeSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { isatty } from 'node:tty'
import { promisify } from 'node:util'
import { library, type OpenOptions } from './library.js'
import { type OpenedName, openRefusal } from './names.js'
import { ReaderGone } from './output.js'
import type { Program } from './program.js'
import { Refusal } from './refusal.js'

const readSome = promisify(read)
const writeSome = promisify(write)
const PIECE = 1 << 20

/** A folder for what has to lie in a file for a while: an image cannot be read backwards from a pipe. Made when it is first needed. */
export class Scratch {
  private folder: string | undefined

  constructor(private readonly signal: AbortSignal) {}

  /** The path of a new file. */
  file(name: string): string {
    this.folder ??= mkdtempSync(join(tmpdir(), 'qcow2-'))
    return join(this.folder, name)
  }

  /** The path of what stands on standard input: of the file itself if it is one, else of a copy. */
  async fromStdin(): Promise<string> {
    if (process.platform === 'linux' && fstatSync(0).isFile()) return '/proc/self/fd/0'
    if (isatty(0)) throw new Refusal('Standard input is a terminal, not an image')
    const path = this.file('stdin')
    const fd = openSync(path, 'wx', 0o600)
    try {
      const piece = Buffer.allocUnsafe(PIECE)
      for (let length = await readStdin(piece); length > 0; length = await readStdin(piece)) {
        this.signal.throwIfAborted()
        for (let at = 0; at < length; ) at += writeSync(fd, piece, at, length - at)
      }
    } finally {
      closeSync(fd)
    }
    return path
  }

  /** Removes everything. */
  remove(): void {
    if (this.folder !== undefined) rmSync(this.folder, { recursive: true, force: true })
  }
}

async function readStdin(piece: Buffer): Promise<number> {
  for (;;) {
    try {
      return (await readSome(0, piece, 0, piece.length, null)).bytesRead
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'EOF') return 0
      if (code !== 'EAGAIN') throw error
      await pause(5)
    }
  }
}

/** Writes the disks one behind the other to standard output, as they read. */
export async function streamToStdout(program: Program, names: readonly OpenedName[], options: Omit<OpenOptions, 'format'>): Promise<void> {
  refuseTerminal()
  const { signal } = program
  for (const { name, format } of names) {
    const disk = await library()
      .open(name.source, { ...options, format, signal })
      .catch((error: unknown) => Promise.reject(openRefusal(error, name)))
    try {
      for await (const piece of disk.createReadStream({ highWaterMark: PIECE, signal })) await writeStdout(piece as Uint8Array, signal)
    } finally {
      await disk.close()
    }
  }
}

/** Writes a file to standard output. */
export async function copyToStdout({ signal }: Program, path: string): Promise<void> {
  refuseTerminal()
  const file = await open(path)
  try {
    const piece = Buffer.allocUnsafe(PIECE)
    for (;;) {
      const { bytesRead } = await file.read(piece, 0, piece.length, null)
      if (bytesRead === 0) break
      await writeStdout(piece.subarray(0, bytesRead), signal)
    }
  } finally {
    await file.close()
  }
}

function refuseTerminal(): void {
  if (isatty(1)) throw new Refusal('Standard output is a terminal: an image is not written there')
}

/** Not by the buffered output: a reader that waits must not keep Ctrl-C from being heard. */
async function writeStdout(bytes: Uint8Array, signal: AbortSignal): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    signal.throwIfAborted()
    try {
      at += (await writeSome(1, bytes, at, bytes.length - at)).bytesWritten
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'EPIPE') throw new ReaderGone()
      if (code !== 'EAGAIN') throw error
      await pause(5)
    }
  }
}
