/**
 * The dirty bitmaps of a disk: what was changed since when.
 */

import type { Handle } from './boundary.js'
import type { Disk, DiskParts } from './disk.js'
import { atCaller, atEntry, cancelled, invalid } from './errors.js'
import { type MapOptions, mapRange } from './map.js'
import { call, sync } from './native.js'
import { checkOptions, flag, size, text } from './options.js'
import { kindOf, narrow } from './sizes.js'
import type { ByteCount, SizeOption } from './types.js'

/** What {@link DiskBitmaps.add} takes. */
export interface NewBitmap {
  /** Bytes of the disk that one bit stands for: a power of two from 512 to 2 GiB. Default 65536. */
  granularity?: SizeOption
  /** Whether it follows writes from the beginning. Default true. */
  enabled?: boolean
}

/** A bitmap of an opened image. */
export interface DiskBitmap {
  name: string
  /** Bytes of the disk that one bit stands for. */
  granularity: number
  /** It follows writes. */
  enabled: boolean
  /** Its last writer did not close the image, so what it says is not known: it can only be removed. */
  inconsistent: boolean
  /** Bytes that are dirty; only of a disk that is open for writing. */
  dirtyBytes?: ByteCount
}

/** What {@link DiskBitmaps.merge} takes. */
export interface MergeOptions {
  /** The disk that has the source bitmaps. Default: the one that has the target. */
  from?: Disk
}

/** A range that was changed. */
export interface DirtyRange<N extends ByteCount = ByteCount> {
  /** Guest offset in bytes. */
  start: N
  /** Length in bytes. */
  length: N
}

const NEW_RULES = { granularity: size, enabled: flag }
const MERGE_RULES = { from: (value: unknown): unknown => value }

/** Ranges that are asked for at once. */
const BATCH = 1024

/**
 * The persistent bitmaps of an opened image. They are stored when the disk is closed; after a crash a bitmap that followed writes is inconsistent.
 * All but {@link DiskBitmaps.list} need a disk that is open for writing.
 */
export class DiskBitmaps<N extends ByteCount = ByteCount> {
  readonly #disk: DiskParts<N>

  /** @internal */
  constructor(disk: DiskParts<N>) {
    this.#disk = disk
  }

  /** All of them, in the image's order. */
  list(): DiskBitmap[] {
    return atEntry(this.list, () => {
      const { handle, writable, layers, bigint } = this.#disk
      if (writable) {
        return sync((addon) => addon.bitmapList(handle)).map(({ dirtyBytes, ...facts }) => ({ ...facts, dirtyBytes: narrow(dirtyBytes, bigint) }))
      }
      const facts = layers[0]?.facts.bitmaps ?? []
      return facts.map(({ name, granularity, auto, inUse }) => ({ name, granularity, enabled: auto, inconsistent: inUse }))
    })
  }

  /**
   * Adds a bitmap.
   *
   * @throws Qcow2Error - `ERR_QCOW2_BITMAP_EXISTS`, `ERR_QCOW2_BITMAP_UNSUPPORTED` (an image of version 2)
   */
  add(name: string, options?: NewBitmap): Promise<void> {
    return atCaller(this.add, () => {
      const { granularity, enabled = true } = checkOptions('bitmaps.add', options, NEW_RULES)
      if (granularity !== undefined && (granularity < 512n || granularity > 1n << 31n || (granularity & (granularity - 1n)) !== 0n)) {
        throw invalid('granularity', `granularity must be a power of two from 512 to 2 GiB: it is ${granularity}`)
      }
      const bitmap = { name: text(name, 'name'), enabled, ...(granularity === undefined ? {} : { granularity }) }
      return this.#disk.change((disk) => call<void>((addon, id) => addon.bitmapAdd(id, disk, bitmap)))
    })
  }

  /** Removes a bitmap, an inconsistent one too. */
  remove(name: string): Promise<void> {
    return atCaller(this.remove, () => {
      const bitmap = text(name, 'name')
      return this.#disk.change((disk) => call<void>((addon, id) => addon.bitmapRemove(id, disk, bitmap)))
    })
  }

  /** Makes nothing dirty: from here on it tells what changes from now. */
  clear(name: string): Promise<void> {
    return atCaller(this.clear, () => {
      const bitmap = text(name, 'name')
      return this.#disk.change((disk) => call<void>((addon, id) => addon.bitmapClear(id, disk, bitmap)))
    })
  }

  /** Lets a bitmap follow writes from now on. */
  enable(name: string): Promise<void> {
    return atCaller(this.enable, () => this.#enable(name, true))
  }

  /** Lets a bitmap follow writes no longer; what is dirty stays so. */
  disable(name: string): Promise<void> {
    return atCaller(this.disable, () => this.#enable(name, false))
  }

  /**
   * Adds what is dirty in `source`, or in several, to `target`. The granularities may differ.
   *
   * @param options - `from`: the disk that has the source bitmaps, which may be open for reading only. It must have the same size. Default: this one
   * @throws Qcow2Error - `ERR_QCOW2_NO_BITMAP`, `ERR_QCOW2_BITMAP_INCONSISTENT`, `ERR_QCOW2_BITMAP_SIZES`
   */
  merge(target: string, source: string | readonly string[], options?: MergeOptions): Promise<void> {
    return atCaller(this.merge, () => {
      const into = text(target, 'target')
      const sources = Array.isArray(source) ? source.map((name, index) => text(name, `source[${index}]`)) : [text(source, 'source')]
      const other = this.#other(checkOptions('bitmaps.merge', options, MERGE_RULES).from)
      return this.#disk.change(async (disk) => {
        // All are accepted at once: nothing comes between them.
        const merges = sources.map((name) =>
          call<void>((addon, id) =>
            other === undefined || other === disk ? addon.bitmapMerge(id, disk, into, name) : addon.bitmapMergeFrom(id, disk, into, other, name),
          ),
        )
        for (const outcome of await Promise.allSettled(merges)) if (outcome.status === 'rejected') throw outcome.reason
      })
    })
  }

  /** The handle of the disk that bitmaps are merged from. */
  #other(from: unknown): Handle | undefined {
    if (from === undefined) return undefined
    const bitmaps = typeof from === 'object' && from !== null && 'bitmaps' in from ? from.bitmaps : undefined
    if (!(bitmaps instanceof DiskBitmaps)) throw invalid('from', `from must be an opened disk: it is ${kindOf(from)}`)
    bitmaps.#disk.refuse(false)
    return bitmaps.#disk.handle
  }

  /**
   * What is dirty, as ranges in ascending order, found as they are asked for.
   *
   * @param options - `start` (default 0) and `end` (exclusive; default: the end of the disk) in bytes
   * @example
   * ```ts
   * import { open } from 'qcow2'
   * const disk = await open('vm.qcow2', { writable: true })
   * for await (const { start, length } of disk.bitmaps.dirty('backup')) console.log(start, length)
   * await disk.bitmaps.clear('backup')
   * await disk.close()
   * ```
   */
  dirty(name: string, options?: MapOptions): AsyncGenerator<DirtyRange<N>, void, undefined> {
    return atEntry(this.dirty, () => {
      const bitmap = text(name, 'name')
      this.#disk.refuse(true)
      const range = mapRange(options, BigInt(this.#disk.size()), 'bitmaps.dirty')
      if (range.signal?.aborted) throw cancelled(range.signal.reason)
      return this.#ranges(bitmap, range)
    })
  }

  async *#ranges(name: string, { start, end, signal }: ReturnType<typeof mapRange>): AsyncGenerator<DirtyRange<N>, void, undefined> {
    const { handle, bigint } = this.#disk
    const number = (value: bigint): N => (bigint ? value : Number(value)) as N
    let at = start
    while (at < end) {
      this.#disk.refuse(true)
      if (signal?.aborted) throw cancelled(signal.reason)
      const from = at
      const words = await call<BigUint64Array>((addon, id) => addon.bitmapDirty(id, handle, name, from, BATCH))
      for (let word = 0; word + 1 < words.length; word += 2) {
        const [first, behind] = [words[word] as bigint, words[word + 1] as bigint]
        if (first >= end) return
        at = behind
        // A granule may begin before `start` and end behind `end`.
        let begin = first
        if (begin < from) begin = from
        yield { start: number(begin), length: number((behind < end ? behind : end) - begin) }
      }
      if (words.length < BATCH * 2) return
    }
  }

  #enable(name: string, enabled: boolean): Promise<void> {
    const bitmap = text(name, 'name')
    return this.#disk.change((disk) => call<void>((addon, id) => addon.bitmapEnable(id, disk, bitmap, enabled)))
  }
}
