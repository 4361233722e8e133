/**
 * Standard output and standard error as a C program has them: stdout comes out when the process ends (or, on a terminal, at each line),
 * stderr at once. Written by file descriptor: Node.js's own streams cost more start-up than the rest of the command.
 */
import { fstatSync, writeSync } from 'node:fs'
import { strerror } from './strerror.js'

/** Kept back at most; a map of millions of lines must not become one string. */
const BUFFER = 1 << 16

/** Nobody reads stdout any more. The command ends there, silently and with the code it has earned. */
export class ReaderGone extends Error {}

/** Buffered standard output. */
export class Output {
  private parts: string[] = []
  private length = 0
  private readonly immediate: boolean

  constructor(private readonly fd = 1) {
    // A terminal. Of other devices nobody notices; and asking node:tty would load all of node:net.
    this.immediate = isDevice(fd)
  }

  print(text: string): void {
    this.parts.push(text)
    this.length += text.length
    if (this.length >= BUFFER || (this.immediate && text.endsWith('\n'))) this.flush()
  }

  /** Writes out what is kept back. */
  flush(): void {
    if (this.length === 0) return
    const text = this.parts.join('')
    this.parts = []
    this.length = 0
    try {
      writeAll(this.fd, Buffer.from(text))
    } catch (error) {
      if (error instanceof ReaderGone) throw error
      throw new Error(`Could not write to standard output: ${strerror((error as NodeJS.ErrnoException).errno ?? 0)}`)
    }
  }
}

function isDevice(fd: number): boolean {
  try {
    return fstatSync(fd).isCharacterDevice()
  } catch {
    // Closed by whoever called.
    return false
  }
}

/** Writes text to standard error, at once. */
export function printError(text: string): void {
  try {
    writeAll(2, Buffer.from(text))
  } catch {
    // Nowhere is left to complain to.
  }
}

/** Writes every byte, also to a descriptor that somebody made non-blocking. */
export function writeAll(fd: number, bytes: Uint8Array): void {
  let at = 0
  while (at < bytes.length) {
    try {
      at += writeSync(fd, bytes, at)
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code
      if (code === 'EAGAIN') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5)
      else if (code === 'EPIPE') throw new ReaderGone()
      else throw error
    }
  }
}
