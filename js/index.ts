/**
 * The QCOW2 disk image format: read, create, convert, compare, check and measure images. No QEMU needed.
 *
 * @packageDocumentation
 */

export { amend } from './amend.js'
export { bench } from './bench.js'
export type { DirtyRange, DiskBitmap, DiskBitmaps, MergeOptions, NewBitmap } from './bitmaps.js'
export { check } from './check.js'
export { commit } from './commit.js'
export { compare } from './compare.js'
export { convert } from './convert.js'
export { create } from './create.js'
export { dd } from './dd.js'
export { digest } from './digest.js'
export type * from './digest-types.js'
export { Disk, type ReadOptions, type ReadResult, type ResizeOptions, type WriteResult } from './disk.js'
export { Qcow2Error, type Qcow2ErrorFields } from './errors.js'
export { info } from './info.js'
export type * from './job-types.js'
export type { MapOptions } from './map.js'
export { measure } from './measure.js'
export { memoryStorage } from './memory.js'
export { open } from './open.js'
export { type ProbeOptions, probe } from './probe.js'
export { rebase } from './rebase.js'
export type { DiskSnapshots, NewSnapshot, SnapshotChoice } from './snapshots.js'
export type { ReadStreamOptions } from './streams.js'
export type * from './types.js'
export { verify } from './verify.js'
export type { WriteOptions } from './write-arguments.js'
export type { WriteStreamOptions } from './write-streams.js'
