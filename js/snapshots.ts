/**
 * The internal snapshots of a disk.
 */

import type { ChainFacts, Handle, NewSnapshotSpec, SnapshotChoiceSpec } from './boundary.js'
import type { Disk, DiskParts } from './disk.js'
import { atCaller, atEntry, invalid } from './errors.js'
import { snapshotInfo } from './facts.js'
import { call, sync } from './native.js'
import { checkOptions, count, flag, type Rule, text } from './options.js'
import { exact, kindOf } from './sizes.js'
import type { ByteCount, SnapshotInfo } from './types.js'

/** What {@link DiskSnapshots.create} records beside the name. */
export interface NewSnapshot {
  /** Let it have the name of another one. Default false: `ERR_QCOW2_SNAPSHOT_EXISTS`. */
  allowDuplicate?: boolean
  /** When it was taken. Default: now. */
  date?: Date
  /** The guest's clock in nanoseconds. Default 0. */
  vmClockNsec?: ByteCount
  /** Instruction count. Default: none is recorded. */
  icount?: ByteCount
}

/** Which snapshot is meant: an id or a name (the id goes first), or one of them by its kind. */
export type SnapshotChoice = string | { id: string } | { name: string }

const date: Rule<Date> = (value, name) => {
  if (!(value instanceof Date)) throw invalid(name, `${name} must be a Date: it is ${kindOf(value)}`)
  const seconds = value.getTime() / 1000
  if (!(seconds >= 0 && seconds < 2 ** 32)) throw invalid(name, `${name} must lie between 1970 and 2106: it is ${value}`)
  return value
}

const NEW_RULES = { allowDuplicate: flag, date, vmClockNsec: count, icount: count }

/** The internal snapshots of an opened image. All but {@link DiskSnapshots.list} need a disk that is open for writing. */
export class DiskSnapshots<N extends ByteCount = ByteCount> {
  readonly #disk: DiskParts<N>

  /** @internal */
  constructor(disk: DiskParts<N>) {
    this.#disk = disk
  }

  /** All of them, in the image's order. */
  list(): SnapshotInfo<N>[] {
    return atEntry(this.list, () => this.#facts().map((facts) => snapshotInfo(facts, this.#disk.bigint, this.#disk.path) as SnapshotInfo<N>))
  }

  /**
   * Takes a snapshot of what the disk holds. Requests that were accepted before are part of it, later ones wait for it and are not. It is durable
   * when the promise resolves, and so is everything written before.
   *
   * @throws Qcow2Error - `ERR_QCOW2_SNAPSHOT_EXISTS`, `ERR_QCOW2_SNAPSHOT_UNSUPPORTED` (refcounts of 1 bit, external data file),
   * `ERR_QCOW2_REFCOUNT_OVERFLOW`
   * @example
   * ```ts
   * import { open } from 'qcow2'
   * const disk = await open('vm.qcow2', { writable: true })
   * const { id } = await disk.snapshots.create('before-upgrade')
   * await disk.write(Buffer.alloc(4096, 1), { position: 0 })
   * await disk.snapshots.apply(id)
   * await disk.close()
   * ```
   */
  create(name: string, options?: NewSnapshot): Promise<SnapshotInfo<N>>
  create(options: NewSnapshot & { name: string }): Promise<SnapshotInfo<N>>
  create(first: string | (NewSnapshot & { name: string }), options?: NewSnapshot): Promise<SnapshotInfo<N>> {
    return atCaller(this.create, () => {
      const snapshot = newSnapshot(first, options)
      return this.#disk.change(async (disk) => {
        const facts = await call<Parameters<typeof snapshotInfo>[0]>((addon, id) => addon.snapshotCreate(id, disk, snapshot))
        return snapshotInfo(facts, this.#disk.bigint, this.#disk.path) as SnapshotInfo<N>
      })
    })
  }

  /**
   * Makes the disk what it was when the snapshot was taken, its size too. What was written since is lost unless another snapshot holds it. Durable
   * when the promise resolves; a crash before that leaves all of the one state or all of the other.
   *
   * @throws Qcow2Error - `ERR_QCOW2_NO_SNAPSHOT`
   */
  apply(which: SnapshotChoice): Promise<void> {
    return atCaller(this.apply, () => {
      const choice = choiceOf(which)
      return this.#disk.change(async (disk) => {
        this.#refuseTooLarge(choice)
        this.#disk.resized(await call<bigint>((addon, id) => addon.snapshotApply(id, disk, choice)))
      })
    })
  }

  /**
   * Deletes a snapshot. Durable when the promise resolves.
   *
   * @throws Qcow2Error - `ERR_QCOW2_NO_SNAPSHOT`, `ERR_QCOW2_SNAPSHOT_IN_USE` while it is open
   */
  delete(which: SnapshotChoice): Promise<void> {
    return atCaller(this.delete, () => {
      const choice = choiceOf(which)
      return this.#disk.change((disk: Handle) => call<void>((addon, id) => addon.snapshotDelete(id, disk, choice)))
    })
  }

  /**
   * Gives a snapshot another name. Durable when the promise resolves.
   *
   * @throws Qcow2Error - `ERR_QCOW2_NO_SNAPSHOT`, `ERR_QCOW2_SNAPSHOT_EXISTS`
   */
  rename(which: SnapshotChoice, name: string): Promise<void> {
    return atCaller(this.rename, () => {
      const choice = choiceOf(which)
      const wanted = text(name, 'name')
      return this.#disk.change((disk: Handle) => call<void>((addon, id) => addon.snapshotRename(id, disk, choice, wanted)))
    })
  }

  /**
   * Opens a snapshot as a disk of its own, read-only, on the same files and locks. It has to be closed too; while it is open it cannot be deleted.
   * Of an image that is not open for writing: `open(path, { snapshot })`.
   *
   * @throws Qcow2Error - `ERR_QCOW2_NO_SNAPSHOT`
   */
  open(which: SnapshotChoice): Promise<Disk<N>> {
    return atCaller(this.open, () => {
      const choice = choiceOf(which)
      return this.#disk.change(async (disk) => {
        this.#refuseTooLarge(choice)
        return this.#disk.view(await call<ChainFacts>((addon, id) => addon.snapshotOpen(id, disk, choice)))
      })
    })
  }

  #facts(): Parameters<typeof snapshotInfo>[0][] {
    const { handle, writable, layers } = this.#disk
    return writable ? sync((addon) => addon.snapshotList(handle)) : (layers[0]?.facts.snapshots ?? [])
  }

  /** A disk of a size that a number cannot hold is not made by applying a snapshot either. */
  #refuseTooLarge({ text, by }: SnapshotChoiceSpec): void {
    const { bigint, path } = this.#disk
    const meant = this.#facts().find(({ id, name }) => (by !== 'name' && id === text) || (by !== 'id' && name === text))
    if (meant !== undefined) exact(meant.diskSize, bigint, `the size of snapshot ${meant.id}`, path)
  }
}

function newSnapshot(first: unknown, second: unknown): NewSnapshotSpec {
  const together = typeof first === 'object' && first !== null ? checkOptions('snapshots.create', first, { ...NEW_RULES, name: text }) : undefined
  const given = together ?? { ...checkOptions('snapshots.create', second, NEW_RULES), name: first }
  const spec: NewSnapshotSpec = { name: text(given.name, 'name'), allowDuplicate: given.allowDuplicate ?? false }
  if (given.date !== undefined) {
    const milliseconds = given.date.getTime()
    spec.dateSec = Math.floor(milliseconds / 1000)
    spec.dateNsec = Math.floor(milliseconds % 1000) * 1e6
  }
  if (given.vmClockNsec !== undefined) spec.vmClockNsec = given.vmClockNsec
  if (given.icount !== undefined) spec.icount = given.icount
  return spec
}

function choiceOf(which: unknown): SnapshotChoiceSpec {
  if (typeof which === 'string') return { text: text(which, 'snapshot'), by: 'any' }
  if (typeof which !== 'object' || which === null) {
    throw invalid('snapshot', `a snapshot is named by its id or name, or by { id } or { name }: it is ${kindOf(which)}`)
  }
  const { id, name } = checkOptions('snapshots', which, { id: text, name: text })
  if (id !== undefined && name === undefined) return { text: id, by: 'id' }
  if (name !== undefined && id === undefined) return { text: name, by: 'name' }
  throw invalid('snapshot', 'a snapshot is named by its id or by its name: give one of the two')
}
