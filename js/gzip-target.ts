/**
 * A raw disk in gzip, for destinations that take nothing else. Node.js's zlib compresses, off this thread.
 */

import * as fs from 'node:fs'
import { pipeline } from 'node:stream/promises'
import { promisify } from 'node:util'
import { createGzip } from 'node:zlib'
import type { Disk } from './disk.js'
import { cancelled, fromSystem, Qcow2Error } from './errors.js'
import type { JobControl } from './job.js'

const [open, fsync, close] = [promisify(fs.open), promisify(fs.fsync), promisify(fs.close)]
const [rename, unlink, stat] = [promisify(fs.rename), promisify(fs.unlink), promisify(fs.stat)]
const CHUNK = 1 << 20

interface Made {
  fileSize: number
  virtualSize: bigint
}

async function synced(path: string): Promise<void> {
  const file = await open(path, 'r+')
  await fsync(file).finally(() => close(file))
}

/** Writes the disk beside `path` and gives it that name when it is whole. */
export async function writeGzip(disk: Disk<bigint>, path: string, overwrite: boolean, { signal, onProgress }: JobControl): Promise<Made> {
  const there = await stat(path).catch(() => undefined)
  if (there !== undefined && !overwrite) throw new Qcow2Error('ERR_QCOW2_EXISTS', `${path}: the file exists: overwrite must be asked for`, { path })
  const beside = `${path}.${process.pid}.${Date.now().toString(36)}.part`
  const total = disk.virtualSize
  async function* bytes(): AsyncGenerator<Uint8Array> {
    for (let at = 0n; at < total; ) {
      if (signal.aborted) throw cancelled(signal.reason)
      const { bytesRead, buffer } = await disk.read(new Uint8Array(Math.min(CHUNK, Number(total - at))), { position: at })
      yield buffer.subarray(0, bytesRead)
      at += BigInt(bytesRead)
      onProgress({ phase: 'convert', done: Number(at), total: Number(total) })
    }
  }
  try {
    await pipeline(bytes(), createGzip(), fs.createWriteStream(beside, { flags: 'wx' }))
    await synced(beside)
    await rename(beside, path)
    return { fileSize: (await stat(path)).size, virtualSize: total }
  } catch (error) {
    await unlink(beside).catch(() => {})
    throw error instanceof Qcow2Error ? error : fromSystem(error, path)
  }
}
