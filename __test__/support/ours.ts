/** The library, as the specs call it: a whole read, an error's data, a time limit. */
import { open, Qcow2Error } from '../../js/index.js'
import type { OpenOptions, Source } from '../../js/types.js'

export type Disk = Awaited<ReturnType<typeof open>>

/** Bytes of a guest range. A short count is an error of the library: the range lies inside the disk. */
export async function readRange(disk: Disk, start: number | bigint, length: number): Promise<Uint8Array> {
  const out = new Uint8Array(length)
  const { bytesRead } = await disk.read(out, { position: start })
  if (bytesRead !== length) throw new Error(`read ${bytesRead} of ${length} bytes at ${start}`)
  return out
}

/** Opens, does, closes. */
export async function withDisk<T>(source: Source, options: OpenOptions, use: (disk: Disk) => Promise<T>): Promise<T> {
  const disk = await open(source, options)
  try {
    return await use(disk)
  } finally {
    await disk.close()
  }
}

/** Fails what takes longer than it may: a hang is named instead of stopping the run. */
export async function within<T>(what: string, limit: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, fail) => {
    timer = setTimeout(() => fail(new Error(`${what} took longer than ${limit} ms`)), limit)
  })
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}

export type Answer<T> = { value: T } | { error: Qcow2Error }

/** What came of it: a value, or the library's own error. Anything else that is thrown passes. */
export async function answer<T>(what: string, work: PromiseLike<T>, limit = 20_000): Promise<Answer<T>> {
  try {
    return { value: await within(what, limit, Promise.resolve(work)) }
  } catch (error) {
    if (error instanceof Qcow2Error) return { error }
    throw error
  }
}
