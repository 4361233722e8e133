/** The library's answers about one disk beside QEMU's, as data. Each function answers what differs, or nothing. */
import { check, info, measure, open } from '../../js/index.js'
import type { Run } from '../../js/types.js'
import type { DiskCase } from './case.js'
import type { Prng } from './prng.js'
import { type MapEntry, qemu } from './qemu.js'

/** What the library must be told to open a case. */
export function openOptions(made: DiskCase): { dataFile: boolean } {
  return { dataFile: made.dataFile }
}

function differing(what: string, ours: unknown, theirs: unknown): string | undefined {
  const [a, b] = [JSON.stringify(ours), JSON.stringify(theirs)]
  return a === b ? undefined : `${what}: ours ${a}, QEMU's ${b}`
}

/** Joins what touches and has one answer: where a map is cut is not part of its meaning. */
function joined(runs: MapEntry[]): MapEntry[] {
  const out: MapEntry[] = []
  for (const run of runs) {
    const last = out.at(-1)
    const same =
      last !== undefined &&
      last.start + last.length === run.start &&
      (['depth', 'present', 'zero', 'data', 'compressed'] as const).every((key) => last[key] === run[key]) &&
      (last.offset === undefined ? run.offset === undefined : last.offset + last.length === run.offset)
    if (same) last.length += run.length
    else out.push({ ...run })
  }
  return out
}

const entry = (run: Run): MapEntry => {
  const { start, length, depth, present, zero, data, compressed, offset } = run
  const plain: MapEntry = { start: Number(start), length: Number(length), depth, present, zero, data, compressed }
  return offset === undefined ? plain : { ...plain, offset: Number(offset) }
}

/** The map of our open disk beside `qemu-img map --output=json`. */
export async function mapDiffers(made: DiskCase): Promise<string | undefined> {
  const disk = await open(made.path, openOptions(made))
  const ours: MapEntry[] = []
  for await (const run of disk.map()) ours.push(entry(run))
  await disk.close()
  const theirs = (await qemu.map(made.path)).map(({ start, length, depth, present, zero, data, compressed, offset }) => {
    const plain: MapEntry = { start, length, depth, present, zero, data, compressed }
    return offset === undefined ? plain : { ...plain, offset }
  })
  const [a, b] = [joined(ours), joined(theirs)]
  for (let i = 0; i < Math.max(a.length, b.length); i++) {
    const wrong = differing(`map entry ${i}`, a[i], b[i])
    if (wrong !== undefined) return wrong
  }
  return undefined
}

/** The counts of our check beside `qemu-img check --output=json`. */
export async function checkDiffers(path: string): Promise<string | undefined> {
  const { code, counts, stderr } = await qemu.check(path)
  if (counts === undefined) return `qemu-img check says nothing: ${code} ${stderr}`
  const ours = await check(path)
  const told = ours.findings.map((one) => `${one.code}: ${one.message}`).join('; ')
  return differing(
    `check (ours finds: ${told}; QEMU: ${stderr})`,
    {
      errors: ours.checkErrors,
      corruptions: ours.corruptions,
      leaks: ours.leaks,
      end: Number(ours.imageEndOffset),
      total: Number(ours.totalClusters),
      allocated: Number(ours.allocatedClusters),
      fragmented: Number(ours.fragmentedClusters),
      compressed: Number(ours.compressedClusters),
    },
    {
      errors: counts['check-errors'],
      corruptions: counts.corruptions ?? 0,
      leaks: counts.leaks ?? 0,
      end: counts['image-end-offset'] ?? 0,
      total: counts['total-clusters'] ?? 0,
      allocated: counts['allocated-clusters'] ?? 0,
      fragmented: counts['fragmented-clusters'] ?? 0,
      compressed: counts['compressed-clusters'] ?? 0,
    },
  )
}

interface QemuInfo {
  'virtual-size': number
  'cluster-size'?: number
  'actual-size': number
  'dirty-flag': boolean
  'backing-filename'?: string
  'full-backing-filename'?: string
  'backing-filename-format'?: string
  snapshots?: { id: string; name: string; 'vm-state-size': number; 'date-sec': number; 'date-nsec': number; icount?: number }[]
  'format-specific'?: {
    data: {
      compat: string
      'refcount-bits': number
      'compression-type': string
      'lazy-refcounts'?: boolean
      corrupt?: boolean
      'extended-l2'?: boolean
      'data-file'?: string
      'data-file-raw'?: boolean
      bitmaps?: { name: string; granularity: number; flags: string[] }[]
    }
  }
}

/** Our facts beside `qemu-img info --output=json`. */
export async function infoDiffers(path: string): Promise<string | undefined> {
  const theirs = (await qemu.info(path)) as unknown as QemuInfo
  const ours = await info(path)
  const data = theirs['format-specific']?.data
  return differing(
    'info',
    {
      size: Number(ours.virtualSize),
      cluster: ours.clusterSize,
      actual: ours.actualSize,
      dirty: ours.dirty,
      backing: ours.backingFile,
      full: ours.backingFile === undefined ? undefined : ours.fullBackingFile,
      backingFormat: ours.backingFormat,
      snapshots: ours.snapshots.map((one) => [
        one.id,
        one.name,
        Number(one.vmStateSize),
        one.dateSec,
        one.dateNsec,
        one.icount === undefined ? undefined : Number(one.icount),
      ]),
      compat: ours.compat,
      bits: ours.refcountBits,
      compression: ours.compressionType,
      lazy: ours.compat === '0.10' ? undefined : ours.lazyRefcounts,
      corrupt: ours.compat === '0.10' ? undefined : ours.corrupt,
      extended: ours.compat === '0.10' ? undefined : ours.extendedL2,
      dataFile: ours.dataFile,
      raw: ours.dataFile === undefined ? undefined : ours.dataFileRaw,
      bitmaps: ours.bitmaps.map(({ name, granularity, flags }) => [name, granularity, flags]),
    },
    {
      size: theirs['virtual-size'],
      cluster: theirs['cluster-size'],
      actual: theirs['actual-size'],
      dirty: theirs['dirty-flag'],
      backing: theirs['backing-filename'],
      full: theirs['full-backing-filename'],
      backingFormat: theirs['backing-filename-format'],
      snapshots: (theirs.snapshots ?? []).map((one) => [one.id, one.name, one['vm-state-size'], one['date-sec'], one['date-nsec'], one.icount]),
      compat: data?.compat,
      bits: data?.['refcount-bits'],
      compression: data?.['compression-type'],
      lazy: data?.['lazy-refcounts'],
      corrupt: data?.corrupt,
      extended: data?.['extended-l2'],
      dataFile: data?.['data-file'],
      raw: data?.['data-file-raw'],
      bitmaps: (data?.bitmaps ?? []).map(({ name, granularity, flags }) => [name, granularity, flags]),
    },
  )
}

/** Our measure beside `qemu-img measure`, for a random target. */
export async function measureDiffers(made: DiskCase, random: Prng): Promise<string | undefined> {
  if (random.chance(0.2)) {
    const theirs = await qemu.measure(made.path, '-f', 'qcow2', '-O', 'raw')
    const ours = await measure(made.path, { sourceFormat: 'qcow2', format: 'raw', source: openOptions(made) })
    return differing('measure raw', [Number(ours.required), Number(ours.fullyAllocated)], [theirs.required, theirs['fully-allocated']])
  }
  const clusterSize = 2 ** random.pick([9, 12, 14, 16, 16, 18, 21])
  const extendedL2 = clusterSize >= 16384 && random.chance(0.3)
  const refcountBits = random.pick([1, 8, 16, 16, 64])
  const o = `cluster_size=${clusterSize},extended_l2=${extendedL2 ? 'on' : 'off'},refcount_bits=${refcountBits}`
  const theirs = await qemu.measure(made.path, '-f', 'qcow2', '-O', 'qcow2', '-o', o)
  const ours = await measure(made.path, { sourceFormat: 'qcow2', format: 'qcow2', clusterSize, extendedL2, refcountBits, source: openOptions(made) })
  return differing(
    `measure ${o}`,
    [Number(ours.required), Number(ours.fullyAllocated), ours.bitmaps === undefined ? undefined : Number(ours.bitmaps)],
    [theirs.required, theirs['fully-allocated'], theirs.bitmaps],
  )
}
