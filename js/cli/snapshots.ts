/** The choice of an internal snapshot as a source: `-l NAME`, `-l ID` or `-l snapshot.id=ID,snapshot.name=NAME`. */
import { library, type OpenOptions, type SnapshotInfo } from './library.js'
import { type OpenedName, openRefusal } from './names.js'
import { splitList } from './options.js'
import { complain, type Program } from './program.js'
import { Refusal } from './refusal.js'

/** What `-l` says. */
export type SnapshotParameter = { any: string } | { id: string | undefined; name: string | undefined }

/** Understands the value of `-l`. */
export function readSnapshotParameter(program: Program, text: string): SnapshotParameter {
  if (!text.startsWith('snapshot.')) return { any: text }
  const wanted = { id: undefined as string | undefined, name: undefined as string | undefined }
  for (const { key, value = 'on' } of splitList(text)) {
    if (key === 'snapshot.id') wanted.id = value
    else if (key === 'snapshot.name') wanted.name = value
    else {
      complain(program, `Invalid parameter '${key}'`)
      throw new Refusal(`Failed in parsing snapshot param '${text}'`)
    }
  }
  return wanted
}

/** The id of the snapshot that is meant, or nothing if none is. */
export async function snapshotId(
  program: Program,
  { name, format }: OpenedName,
  wanted: SnapshotParameter | undefined,
  options: Omit<OpenOptions, 'format'>,
): Promise<string | undefined> {
  if (wanted === undefined) return undefined
  let snapshots: SnapshotInfo[]
  try {
    const disk = await library().open(name.source, { ...options, format, signal: program.signal })
    snapshots = await disk.snapshots.list()
    await disk.close()
  } catch (error) {
    throw openRefusal(error, name)
  }
  if (format === 'raw') {
    throw new Refusal("Failed to load snapshot: Block format 'raw' used by device '' does not support temporarily loading internal snapshots")
  }
  const found = find(snapshots, wanted)
  if (found === undefined) throw new Refusal("Failed to load snapshot: Can't find snapshot")
  return found.id
}

function find(snapshots: readonly SnapshotInfo[], wanted: SnapshotParameter): SnapshotInfo | undefined {
  if ('any' in wanted) return snapshots.find(({ id }) => id === wanted.any) ?? snapshots.find(({ name }) => name === wanted.any)
  const { id, name } = wanted
  if (id === undefined && name === undefined) return undefined
  return snapshots.find((snapshot) => (id === undefined || snapshot.id === id) && (name === undefined || snapshot.name === name))
}

/** A snapshot that vanished between the question and the answer. */
export function snapshotRefusal(error: unknown): unknown {
  const { Qcow2Error } = library()
  return error instanceof Qcow2Error && error.code === 'ERR_QCOW2_NO_SNAPSHOT' ? new Refusal("Failed to load snapshot: Can't find snapshot") : error
}
