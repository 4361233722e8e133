/**
 * A raw disk in gzip, for destinations that take nothing else. Node.js's zlib compresses, off this thread, into a file beside the target; what becomes of
 * the target is the core's matter, as with any other conversion.
 */

import * as fs from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { crc32, createDeflateRaw } from 'node:zlib'
import type { Disk } from './disk.js'
import { cancelled, fromSystem, Qcow2Error } from './errors.js'
import type { JobControl } from './job.js'

const [open, close, write, unlink] = [promisify(fs.open), promisify(fs.close), promisify(fs.write), promisify(fs.unlink)]
const CHUNK = 1 << 20
const SECTOR = 512
/** Room before the compressed bytes, for a header that is known when they are. */
const FRONT = 2 * SECTOR
/** Of the header without its extra field, and of what follows the compressed bytes. */
const HEADER = 10
const TRAILER = 8
/** Milliseconds between two reports. */
const PAUSE = 100

/** A gzip file as a part of another: whole sectors, so that it is a raw image to the core. */
export interface Gzip {
  path: string
  offset: number
  size: number
}

/** Compresses the disk into a file beside `target`, and hands it to `use`. It is gone afterwards, also when the process ends before. */
export async function withGzip<T>(disk: Disk<bigint>, target: string, control: JobControl, use: (made: Gzip) => Promise<T>): Promise<T> {
  const path = join(dirname(target), `.${basename(target)}.${process.pid}.${Date.now().toString(36)}.part`)
  const forget = (): void => {
    try {
      fs.unlinkSync(path)
    } catch {
      // It is gone.
    }
  }
  const fd = await open(path, 'wx', 0o600).catch((error) => Promise.reject(fromSystem(error, path)))
  process.once('exit', forget)
  // On Linux it needs no name: not even a process that is killed leaves it.
  const known = `/proc/self/fd/${fd}`
  const nameless = process.platform === 'linux' && fs.existsSync(known)
  if (nameless) forget()
  try {
    const size = await compress(disk, fd, control).catch((error) => Promise.reject(error instanceof Qcow2Error ? error : fromSystem(error, path)))
    return await use({ path: nameless ? known : path, ...size })
  } finally {
    process.off('exit', forget)
    await close(fd)
    if (!nameless) await unlink(path).catch(() => {})
  }
}

/** Writes the deflated disk from {@link FRONT} on, and around it what makes it a gzip file of whole sectors. */
async function compress(disk: Disk<bigint>, fd: number, { signal, onProgress }: JobControl): Promise<{ offset: number; size: number }> {
  const total = disk.virtualSize
  const deflate = createDeflateRaw()
  let end = FRONT
  const written = (async () => {
    for await (const chunk of deflate) end += await writeAll(fd, chunk as Buffer, end)
  })()
  // Heard of below: until then nobody waits for it.
  written.catch(() => {})
  let sum = 0
  let told = 0
  try {
    for (let at = 0n; at < total; ) {
      if (signal.aborted) throw cancelled(signal.reason)
      const { bytesRead, buffer } = await disk.read(new Uint8Array(total - at < BigInt(CHUNK) ? Number(total - at) : CHUNK), { position: at })
      const bytes = buffer.subarray(0, bytesRead)
      sum = crc32(bytes, sum)
      if (!deflate.write(bytes)) await drained(deflate)
      // It is let go of by who cannot write what it gives.
      if (deflate.destroyed) await written
      at += BigInt(bytesRead)
      if (Date.now() - told >= PAUSE || at === total) {
        told = Date.now()
        onProgress({ phase: 'convert', done: Number(at), total: Number(total) })
      }
    }
    deflate.end()
    await written
  } finally {
    deflate.destroy()
  }
  const trailer = Buffer.alloc(TRAILER)
  trailer.writeUInt32LE(sum, 0)
  trailer.writeUInt32LE(Number(total & 0xffff_ffffn), 4)
  end += await writeAll(fd, trailer, end)
  const header = headerFor(end - FRONT)
  await writeAll(fd, header, FRONT - header.length)
  return { offset: FRONT - header.length, size: end - FRONT + header.length }
}

/** A header with an extra field that fills `rest` bytes behind it up to whole sectors (RFC 1952, section 2.3.1.1). */
function headerFor(rest: number): Buffer {
  const FIELD = 6
  const least = HEADER + FIELD
  const length = least + ((SECTOR - ((rest + least) % SECTOR)) % SECTOR)
  const header = Buffer.alloc(length)
  // Deflate, an extra field, no time, and no word on the system.
  header.set([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255])
  header.writeUInt16LE(length - HEADER - 2, HEADER)
  header.write('PD', HEADER + 2)
  header.writeUInt16LE(length - least, HEADER + 4)
  return header
}

async function writeAll(fd: number, bytes: Buffer, position: number): Promise<number> {
  for (let at = 0; at < bytes.length; ) at += (await write(fd, bytes, at, bytes.length - at, position + at)).bytesWritten
  return bytes.length
}

/** Waits until a stream takes more, or nothing any longer. */
function drained(stream: NodeJS.WritableStream): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      stream.off('drain', done).off('close', done)
      resolve()
    }
    stream.once('drain', done).once('close', done)
  })
}
