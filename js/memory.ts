/**
 * Bytes in memory as a place for images.
 */

import type { Handle } from './boundary.js'
import { atEntry, invalid, Qcow2Error } from './errors.js'
import { sync } from './native.js'
import { kindOf } from './sizes.js'
import type { MemoryStorage } from './types.js'

/**
 * A place for an image that is no file: bytes that grow as they are written.
 *
 * @param bytes - what it begins with; copied
 * @returns a source for every call that reads an image, and a target for those that make one
 *
 * @example
 * ```ts
 * import { convert, memoryStorage } from 'qcow2'
 * const target = memoryStorage()
 * await convert('disk.raw', target, { format: 'qcow2', compression: true })
 * const image = target.toUint8Array()
 * ```
 */
export function memoryStorage(bytes?: Uint8Array): MemoryStorage {
  return atEntry(memoryStorage, () => new Memory(sync((addon) => addon.memoryCreate(bytes === undefined ? undefined : bytesOf(bytes, 'bytes')))))
}

/** Handles of the storages made here: an object that only looks like one is none. */
const handles = new WeakMap<object, { open: Handle | undefined }>()
const forgotten = new FinalizationRegistry<Handle>((handle) => sync((addon) => addon.memoryClose(handle)))

class Memory implements MemoryStorage {
  readonly kind = 'memory'

  constructor(handle: Handle) {
    handles.set(this, { open: handle })
    forgotten.register(this, handle, this)
  }

  size(): number {
    return atEntry(this.size, () => sync((addon) => addon.memorySize(memoryHandle(this))))
  }

  read(buffer: Uint8Array, position: number): number {
    return atEntry(this.read, () => sync((addon) => addon.memoryRead(memoryHandle(this), bytesOf(buffer), place(position, 'position'))))
  }

  write(buffer: Uint8Array, position: number): void {
    atEntry(this.write, () => sync((addon) => addon.memoryWrite(memoryHandle(this), bytesOf(buffer), place(position, 'position'))))
  }

  truncate(size: number): void {
    atEntry(this.truncate, () => sync((addon) => addon.memoryTruncate(memoryHandle(this), place(size, 'size'))))
  }

  toUint8Array(): Uint8Array {
    const copy = new Uint8Array(this.size())
    this.read(copy, 0)
    return copy
  }

  close(): void {
    const state = handles.get(this)
    if (state?.open === undefined) return
    forgotten.unregister(this)
    const { open } = state
    state.open = undefined
    sync((addon) => addon.memoryClose(open))
  }
}

/** Whether a value was made by {@link memoryStorage}. */
export function isMemoryStorage(value: unknown): value is MemoryStorage {
  return typeof value === 'object' && value !== null && handles.has(value)
}

/** The native handle behind a storage. */
export function memoryHandle(storage: MemoryStorage): Handle {
  const handle = handles.get(storage)?.open
  if (handle === undefined) throw new Qcow2Error('ERR_QCOW2_CLOSED', 'the memory storage is closed')
  return handle
}

function bytesOf(value: Uint8Array, name = 'buffer'): Uint8Array {
  if (!(value instanceof Uint8Array)) throw invalid(name, `${name} must be a Uint8Array: it is ${kindOf(value)}`)
  return value
}

function place(value: number, name: string): number {
  if (!Number.isSafeInteger(value) || value < 0) throw invalid(name, `${name} must be a whole number from 0 to 2^53-1: it is ${kindOf(value)}`)
  return value
}
