/** The findings of a check in the lines that qemu-img prints on stderr. */
import type { Finding } from './library.js'

type Number64 = number | bigint | undefined

const hex = (value: Number64): string => BigInt(value ?? 0).toString(16)
const marked = (value: Number64): string => (BigInt(value ?? 0) === 0n ? '0' : `0x${hex(value)}`)

/** Lines by code, and by table where one code has two. */
const LINES: Readonly<Record<string, (finding: Finding) => string>> = {
  LEAK: ({ cluster, refcount, references }) => `Leaked cluster ${cluster} refcount=${refcount} reference=${references}`,
  REFCOUNT_TOO_LOW: ({ cluster, refcount, references }) => `ERROR cluster ${cluster} refcount=${refcount} reference=${references}`,
  'COPIED_FLAG/l1': ({ index, value, refcount }) => `ERROR OFLAG_COPIED L2 cluster: l1_index=${index} l1_entry=${hex(value)} refcount=${refcount}`,
  'COPIED_FLAG/l2': ({ value, refcount }) => `ERROR OFLAG_COPIED data cluster: l2_entry=${hex(value)} refcount=${refcount}`,
  BEYOND_END_OF_FILE: ({ offset, length }) =>
    `ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset 0x${hex(offset)} size 0x${hex(length)}`,
  REFERENCE_OVERFLOW: ({ offset }) =>
    `ERROR: overflow cluster offset=0x${hex(offset)}\nUse qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the image cannot be opened for writing`,
  UNALIGNED_DATA: ({ value }) => `ERROR offset=${hex(value)}: Data cluster is not properly aligned; L2 entry corrupted.`,
  UNALIGNED_ZERO: ({ value }) => `ERROR offset=${hex(value)}: Preallocated cluster is not properly aligned; L2 entry corrupted.`,
  'RESERVED_BITS/l1': ({ value }) => `ERROR found L1 entry with reserved bits set: ${hex(value)}`,
  'RESERVED_BITS/l2': ({ value }) => `ERROR found l2 entry with reserved bits set: ${hex(value)}`,
  'RESERVED_BITS/refcount-table': ({ index }) => `ERROR refcount table entry ${index} has reserved bits set`,
  UNALIGNED_TABLE: ({ value }) => `ERROR l2_offset=${hex(value)}: Table is not cluster aligned; L1 entry corrupted`,
  COPIED_COMPRESSED: ({ value }) => `ERROR: coffset=0x${hex(value)}: copied flag must never be set for compressed clusters`,
  COMPRESSED_IN_DATA_FILE: ({ index, value }) => `ERROR compressed cluster ${index} with data file, entry=0x${hex(value)}`,
  COMPRESSED_SUBCLUSTERS: ({ index, value }) => `ERROR compressed cluster ${index} with non-zero subcluster allocation bitmap, entry=0x${hex(value)}`,
  SUBCLUSTER_STATES: ({ value }) => `ERROR offset=${hex(value)}: Allocated cluster has corrupted subcluster allocation bitmap`,
  SUBCLUSTERS_WITHOUT_HOST: () => 'ERROR: Unallocated cluster has non-zero subcluster allocation map',
  SNAPSHOTS_WITH_DATA_FILE: ({ value }) => `ERROR ${value} snapshots in image with data file`,
  SNAPSHOT_L1_UNALIGNED: (finding) =>
    `ERROR snapshot ${snapshotOf(finding)} l1_offset=${marked(finding.value)}: L1 table is not cluster aligned; snapshot table entry corrupted`,
  SNAPSHOT_L1_TOO_LARGE: (finding) =>
    `ERROR snapshot ${snapshotOf(finding)} l1_size=${marked(finding.value)}: L1 table is too large; snapshot table entry corrupted`,
  SNAPSHOT_INCOMPLETE: ({ index }) => `ERROR snapshot table entry ${index} is incomplete`,
  SNAPSHOT_EXTRA: ({ index }) => `ERROR failed to read the snapshot table: Too much extra metadata in snapshot table entry ${index}
You can force-remove this extra metadata with qemu-img check -r all`,
  SNAPSHOTS_OVERHANGING: ({ value }) => `ERROR failed to read the snapshot table: Snapshot table is too big
You can force-remove all ${value} overhanging snapshots with qemu-img check -r all`,
  'READ_ERROR/refcount-block': ({ cluster, message }) =>
    cluster === undefined ? `ERROR ${message}` : `Can't get refcount for cluster ${cluster}: Input/output error`,
  REFCOUNT_BLOCK_UNALIGNED: ({ index }) => `ERROR refcount block ${index} is not cluster aligned; refcount table entry corrupted`,
  REFCOUNT_BLOCK_OUTSIDE: ({ index }) => `ERROR refcount block ${index} is outside image`,
  REFCOUNT_BLOCK_REFERENCES: ({ index, references }) => `ERROR refcount block ${index} refcount=${references}`,
}

/** The line of a finding. What qemu-img has no line for is told in the library's words. */
export function findingText(finding: Finding): string {
  const line = LINES[finding.code] ?? LINES[`${finding.code}/${finding.table}`]
  return line?.(finding) ?? `${finding.severity === 'error' ? 'ERROR' : 'WARNING'} ${finding.message}`
}

/** What is mended is told in the words of the finding. */
const REPAIRING: Readonly<Record<string, [said: RegExp, instead: string]>> = {
  LEAK: [/^Leaked cluster/, 'Repairing cluster'],
}

/** The line for something that was mended. */
export function repairText(finding: Finding): string {
  const { code, index, value } = finding
  if (code === 'SNAPSHOT_EXTRA') return `Discarding too much extra metadata in snapshot table entry ${index} (${value} > 1024)`
  if (code === 'SNAPSHOTS_OVERHANGING') return `Discarding ${value} overhanging snapshots (snapshot table is too big)`
  const [said, instead] = REPAIRING[finding.code] ?? [/^(ERROR|WARNING)/, 'Repairing']
  return findingText(finding).replace(said, instead)
}

function snapshotOf({ snapshotId, snapshot }: Finding): string {
  return `${snapshotId} (${snapshot})`
}
